//! Looking into a throttle at work, changing it, and removing it.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use throttle_tests::{
    Behaviour, Feature, Lab, Namespace, Throttle,
    addresses::{OPEN_PORT, dead, live, refusing},
    features::hooks,
    hooks::{BpfObjects, HookState},
    process::Finished,
    throttle_cmd::{scope_in, status},
    wait::slowness,
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);

fn throttle(namespace: &Namespace, words: &[&str]) -> Finished {
    Throttle::command(namespace, words).output()
}

#[track_caller]
fn set(lab: &Lab, words: &[&str]) -> Value {
    let mut all = vec!["set", "-o", "json"];
    all.extend(words);
    let done = throttle(&lab.client, &all).expect_success();
    serde_json::from_str(done.stdout.trim_end()).unwrap()
}

#[track_caller]
fn eth0(lab: &Lab) -> Value {
    scope_in(&status(&lab.client, None)["throttles"][0], "eth0").clone()
}

#[test]
fn a_limit_and_a_rate_that_are_set_are_in_force_within_a_second_and_nothing_is_lost() {
    let lab = Lab::plain();
    let _running = lab.throttle(&["--limit=5", "--rate=1/m", "--max-delay=1h"]);
    let capture = lab.capture();
    let attempts = lab.dial((0..60).map(dead));
    capture.wait_for_attempts(5, SOON);
    wait_until("the others to wait", SOON, || eth0(&lab)["queued"] == 55);

    let asked = Instant::now();
    let now = set(&lab, &["--limit=20"]);
    assert_eq!(now["settings"]["limit"], 20);
    assert_eq!(now["settings"]["rate"], "1/m", "what was not named stays");
    capture.wait_for_attempts(20, SOON);
    let raised = asked.elapsed();
    assert!(raised < Duration::from_secs(1) * slowness(), "{raised:?}");
    let scope = eth0(&lab);
    assert_eq!(
        (&scope["half_open"], &scope["queued"]),
        (&json!(20), &json!(40))
    );

    let asked = Instant::now();
    // A line of an hour would be too long at this rate.
    set(&lab, &["--rate=10/s", "--max-delay=60s"]);
    capture.wait_for_attempts(21, SOON);
    let faster = asked.elapsed();
    assert!(faster < Duration::from_secs(1) * slowness(), "{faster:?}");
    capture.wait_for_attempts(60, Duration::from_secs(4) + SOON);
    let spent = asked.elapsed();
    assert!(spent > Duration::from_millis(3_800), "too fast: {spent:?}");
    let scope = eth0(&lab);
    assert_eq!(
        (&scope["half_open"], &scope["queued"]),
        (&json!(60), &json!(0))
    );
    for (name, count) in [
        ("attempts", 60),
        ("passed", 5),
        ("deferred", 55),
        ("released", 55),
    ] {
        assert_eq!(scope["tallies"][name], count, "{name}");
    }
    assert!(attempts.failed().is_empty());
    eprintln!("limit in force after {raised:?}, rate after {faster:?}");

    // Down again: nobody who is out is called back, nobody new gets out.
    set(&lab, &["--limit=1", "--rate=1/m", "--max-delay=1h"]);
    let _more = lab.dial((60..65).map(dead));
    wait_until("them to wait", SOON, || eth0(&lab)["queued"] == 5);
    assert_eq!(eth0(&lab)["half_open"], 60);
    assert_eq!(capture.attempts(), 60);
}

#[test]
fn other_settings_are_live_too() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Hold);
    let _running = lab.throttle(&["--limit=2", "--rate=1/m", "--max-delay=1h", "--known-for=0"]);
    let capture = lab.capture();
    let attempts = lab.dial((0..6).map(dead));
    wait_until("four to wait", SOON, || eth0(&lab)["queued"] == 4);
    // A destination that is exempt passes, and so does all in monitor mode.
    set(
        &lab,
        &["--exempt", "198.51.100.0/24", "--exempt", "10.78.0.0/16:80"],
    );
    let live_ones = lab.dial([live(0, OPEN_PORT)]);
    live_ones.wait_for_connected(1, SOON);
    let now = set(&lab, &["--mode=monitor", "--no-exempt"]);
    assert_eq!(now["settings"]["exempt"], json!([]));
    let _more = lab.dial((10..20).map(dead));
    capture.wait_for_attempts(13, SOON);
    // And back. The scope's kind may change: those who wait keep theirs.
    let now = set(
        &lab,
        &["--mode=enforce", "--scope=source", "--pacing=retransmit"],
    );
    assert_eq!(now["settings"]["scope"], "source");
    assert_eq!(now["settings"]["pacing"], "retransmit");
    let _others = lab.dial((20..30).map(dead));
    wait_until("others to wait by their source", SOON, || {
        let found = status(&lab.client, None);
        let scopes = found["throttles"][0]["scopes"].as_array().unwrap();
        scopes
            .iter()
            .any(|of| of["kind"] == "source" && of["half_open"] == 2 && of["queued"] == 8)
    });
    assert!(attempts.failed().is_empty());
}

#[test]
fn refused_values_change_nothing() {
    let lab = Lab::plain();
    let running = lab.throttle(&["--limit=7", "--rate=3/s", "--exempt=192.0.2.0/24"]);
    let before = status(&lab.client, None)["throttles"][0]["settings"].clone();
    for (words, code, hint) in [
        (&["--limit=0"][..], 2, "from 1 to"),
        (&["--rate=0/s"], 2, "1/m"),
        (&["--rate=5"], 2, "10/s"),
        (&["--attempt-timeout=0s"], 2, "1s"),
        (&["--exempt=10.1.2.3/8"], 2, "10.0.0.0/8"),
        (&["--exempt=10.0.0.0/8", "--no-exempt"], 2, "cannot be used"),
        (&["--direction=ingress"], 2, "unexpected"),
        (&["--limit=1000000", "--exempt=10.0.0.0/8"], 2, "choose"),
        (
            &["--limit=100000", "--exempt=10.0.0.0/8"],
            1,
            "larger tables",
        ),
        (&["--name=nonesuch", "--limit=9"], 1, "throttle status"),
    ] {
        let mut all = vec!["set"];
        all.extend(words);
        let refused = throttle(&lab.client, &all);
        assert_eq!(refused.code(), Some(code), "{words:?}: {}", refused.stderr);
        assert!(
            refused.stderr.contains(hint),
            "{words:?}: {}",
            refused.stderr
        );
        let now = &status(&lab.client, None)["throttles"][0]["settings"];
        assert_eq!(*now, before, "{words:?}");
    }
    running.stop().expect_success();
    let none = throttle(&lab.client, &["set", "--limit=9"]);
    assert_eq!(none.code(), Some(1));
    assert!(none.stderr.contains("throttle run"), "{}", none.stderr);
}

#[test]
fn of_several_throttles_each_is_called_by_its_name() {
    let lab = Lab::builder().machines_behind(1).build();
    let one = lab.throttle(&["--limit=7"]);
    let two = Throttle::start(
        &lab.client,
        &[
            "-i",
            "pod0",
            "--direction=ingress",
            "--name=pods-in-general",
            "--limit=8",
        ],
    );
    let unclear = throttle(&lab.client, &["set", "--limit=9"]);
    assert_eq!(unclear.code(), Some(2));
    for name in ["eth0", "pods-in-general"] {
        assert!(unclear.stderr.contains(name), "{}", unclear.stderr);
    }
    set(&lab, &["--name=pods-in-general", "--limit=9"]);
    let limits = |found: &Value| -> Vec<(String, u64)> {
        let all = found["throttles"].as_array().unwrap().iter();
        all.map(|of| {
            let name = of["name"].as_str().unwrap().to_owned();
            (name, of["settings"]["limit"].as_u64().unwrap())
        })
        .collect()
    };
    let found = status(&lab.client, None);
    assert_eq!(
        limits(&found),
        [("eth0".into(), 7), ("pods-in-general".into(), 9)]
    );
    throttle(&lab.client, &["detach", "--name=eth0"]).expect_success();
    assert!(one.wait(SOON).status.success());
    let found = status(&lab.client, None);
    assert_eq!(limits(&found), [("pods-in-general".into(), 9)]);
    // Others do not see what is not theirs.
    assert_eq!(
        status(&lab.far, None),
        json!({ "throttles": [], "strangers": [] })
    );
    two.stop().expect_success();
}

#[test]
fn the_status_tells_what_is_attached_and_what_goes_on() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Hold);
    let running = lab.throttle(&["--limit=5", "--rate=1/m", "--max-delay=1h"]);
    let live_ones = lab.dial((0..3).map(|n| live(n, OPEN_PORT)));
    live_ones.wait_for_connected(3, SOON);
    lab.dial([refusing(0)]).wait_for_all(SOON);
    let _attempts = lab.dial((0..9).map(dead));
    wait_until("four to wait", SOON, || eth0(&lab)["queued"] == 4);
    let found = status(&lab.client, None);
    let of = &found["throttles"][0];
    assert_eq!(of["name"], "eth0");
    assert_eq!(of["daemon"]["pid"], running.pid());
    assert_eq!(of["daemon"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(of["daemon"]["is_responding"], true);
    let hook = if Feature::Tcx.may_be_used() {
        "TCX"
    } else {
        "clsact"
    };
    assert_eq!(of["interfaces"][0]["hook"], hook);
    let scope = scope_in(of, "eth0");
    assert_eq!(scope["is_limited"], true);
    for (name, count) in [
        ("attempts", 13),
        ("answered", 3),
        ("refused", 1),
        ("passed", 9),
        ("deferred", 4),
        ("overflowed", 0),
        ("episodes", 1),
    ] {
        assert_eq!(scope["tallies"][name], count, "{name}: {scope}");
    }
    let text = throttle(&lab.client, &["status", "-o", "text"])
        .expect_success()
        .stdout;
    let row = text
        .lines()
        .find(|line| line.contains("interface eth0"))
        .unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "interface",
            "eth0",
            "*",
            "5",
            "4",
            "13",
            "4",
            "0",
            "0",
            "3",
            "1",
            "0",
            "0",
            "0"
        ]
    );
    running.signal(Signal::SIGSTOP);
    wait_until("it to be told not to respond", SOON, || {
        let text = throttle(&lab.client, &["status", "-o", "text"])
            .expect_success()
            .stdout;
        text.contains("does not respond")
    });
    running.signal(Signal::SIGCONT);
}

#[test]
fn whoever_lacks_the_privilege_is_told_so_and_nothing_happens() {
    let lab = Lab::plain();
    let mut running = lab.throttle(&[]);
    for words in [&["status"][..], &["set", "--limit=9"], &["detach"]] {
        let refused = Throttle::command(&lab.client, words)
            .as_user(65534)
            .output();
        assert_eq!(refused.code(), Some(3), "{words:?}: {}", refused.stderr);
        assert!(
            refused.stderr.contains("sudo"),
            "{words:?}: {}",
            refused.stderr
        );
    }
    assert!(running.is_running());
    assert_eq!(
        status(&lab.client, None)["throttles"][0]["settings"]["limit"],
        50
    );
}

#[test]
fn detach_removes_everything_of_ours_and_nothing_else() {
    let lab = Lab::plain();
    // Somebody else's.
    lab.client.tc("qdisc add dev eth0 clsact");
    let theirs = "filter add dev eth0 egress prio 7 protocol ip bpf bytecode";
    lab.client
        .program("tc")
        .args(theirs.split(' '))
        .arg("1,6 0 0 0")
        .output()
        .expect_success();
    let before = (HookState::of(&lab.client), BpfObjects::now());
    for hook in hooks() {
        let running = lab.throttle(&["--hook", hook]);
        let _attempts = lab.dial((0..60).map(dead));
        let done = throttle(&lab.client, &["detach", "-o", "text"]).expect_success();
        assert!(done.stdout.contains("eth0 is detached"), "{}", done.stdout);
        let left = running.wait(SOON);
        assert!(left.status.success(), "{}", left.stderr);
        assert_eq!(HookState::of(&lab.client), before.0, "{hook}");
        wait_until("the kernel to free it", Duration::from_secs(10), || {
            BpfObjects::now().since(&before.1).links.is_empty()
        });
    }
    let again = throttle(&lab.client, &["detach", "-o", "text"]).expect_success();
    assert!(again.stdout.starts_with("no throttle"), "{}", again.stdout);
}

#[test]
fn filters_of_a_throttle_that_was_killed_are_found_and_removed() {
    let lab = Lab::plain();
    let before = HookState::of(&lab.client);
    let running = lab.throttle(&["--hook=clsact"]);
    running.signal(Signal::SIGKILL);
    assert!(!running.wait(SOON).status.success());
    assert!(!HookState::of(&lab.client).filters.is_empty());
    let done = throttle(&lab.client, &["detach", "-o", "json"]).expect_success();
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        done,
        json!({ "removed": [], "orphaned_filters": 2, "strangers": [] })
    );
    assert_eq!(HookState::of(&lab.client).filters, before.filters);
    // A start finds them as well.
    let running = lab.throttle(&["--hook=clsact"]);
    running.signal(Signal::SIGKILL);
    assert!(!running.wait(SOON).status.success());
    let running = lab.throttle(&["--hook=clsact"]);
    let filters = HookState::of(&lab.client).filters;
    assert!(
        filters
            .values()
            .all(|shown| shown.matches("direct-action").count() == 1),
        "{filters:?}"
    );
    running.stop().expect_success();
    assert!(HookState::of(&lab.client).filters.is_empty());
}

#[test]
fn a_daemon_that_is_stopped_is_not_waited_for_for_ever() {
    let lab = Lab::plain();
    let running = lab.throttle(&[]);
    running.signal(Signal::SIGSTOP);
    let asked = Instant::now();
    let refused = throttle(&lab.client, &["detach"]);
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("kill -9"), "{}", refused.stderr);
    assert!(asked.elapsed() < Duration::from_secs(30));
    running.signal(Signal::SIGCONT);
    assert!(running.wait(SOON).status.success());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lab = Lab::plain();
    let _running = lab.throttle(&[]);
    let path = Throttle::path();
    for command in ["status", "set", "detach"] {
        let script = format!(
            "{} {command} -o text | true; echo ${{PIPESTATUS[0]}}",
            path.display()
        );
        let done = lab
            .client
            .program("bash")
            .args(["-c", &script])
            .output()
            .expect_success();
        assert_eq!(done.stdout.trim(), "0", "{command}: {}", done.stderr);
    }
}
