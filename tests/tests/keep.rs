//! With `--keep` enforcement outlives the daemon, and the next one adopts it.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use aya::maps::{Array, Map, MapData};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use throttle::maps::Plain;
use throttle_common::policy::Policy;
use throttle_tests::{
    Lab, Pace, Throttle,
    addresses::dead,
    dial::now_ns,
    features::{Feature, hooks},
    frame::Syn,
    holds_for,
    hooks::{BpfObjects, HookState},
    process::Mounts,
    throttle_cmd::{Running, scope_in, status},
    timing::{Lateness, millis},
    wait_until,
};

const PACE: Pace = Pace {
    limit: 10,
    per_second: 5,
};
/// What senders may catch up on when there is no daemon.
const BURST: Duration = Duration::from_secs(1);

fn times(syns: &[Syn]) -> Vec<u64> {
    syns.iter().map(|syn| syn.at_ns).collect()
}

/// A lab, and a bpf filesystem that several daemons see.
fn lab() -> (Lab, Mounts) {
    let lab = Lab::plain();
    let mounts = Mounts::with_bpffs(&lab.client);
    (lab, mounts)
}

fn arguments(more: &[&str]) -> Vec<String> {
    let mut all = vec![
        "-i=eth0".to_owned(),
        format!("--limit={}", PACE.limit),
        format!("--rate={}/s", PACE.per_second),
    ];
    all.extend(more.iter().map(|word| (*word).to_owned()));
    all
}

#[track_caller]
fn start(lab: &Lab, mounts: &Mounts, more: &[&str]) -> Running {
    let all = arguments(more);
    let words: Vec<&str> = all.iter().map(String::as_str).collect();
    Throttle::start_with(&lab.client, mounts, &words)
}

/// Where a running daemon's pins are, seen from here.
fn pins_of(running: &Running) -> PathBuf {
    let root = format!("/proc/{}/root/sys/fs/bpf/throttle", running.pid());
    let network = fs::read_dir(root).unwrap().next().unwrap().unwrap();
    network.path().join("eth0")
}

#[track_caller]
fn only(status: &Value) -> &Value {
    let throttles = status["throttles"].as_array().unwrap();
    assert_eq!(throttles.len(), 1, "{status}");
    &throttles[0]
}

#[test]
fn killed_under_load_the_rate_holds_and_the_next_daemon_is_exact_again() {
    const ATTEMPTS: usize = 100;
    let (lab, mounts) = lab();
    let first = start(&lab, &mounts, &["--keep"]);
    let capture = lab.capture();
    let attempts = lab.dial((0..100).map(dead));
    capture.wait_for_attempts(25, Duration::from_secs(10));
    first.signal(Signal::SIGKILL);
    let killed_ns = now_ns();
    holds_for("no connect() has failed", Duration::from_secs(12), || {
        attempts.failed().is_empty()
    });
    let left = status(&lab.client, Some(&mounts));
    let left = only(&left);
    assert!(left["daemon"].is_null(), "{left}");
    let left = scope_in(left, "eth0");

    let second = start(&lab, &mounts, &["--keep"]);
    let adopted_ns = now_ns();
    let said = second.wait_log("adopted from the daemon before", Duration::from_secs(5));
    let after = status(&lab.client, Some(&mounts));
    let after = scope_in(only(&after), "eth0");
    // What was counted goes on being counted.
    for tally in ["attempts", "deferred", "released"] {
        let count = |of: &Value| of["tallies"][tally].as_u64().unwrap();
        assert!(count(after) >= count(left), "{tally}: {left} {after}");
    }
    assert_eq!(after["tallies"]["attempts"], 100);
    let counts = said.split_once("before: ").unwrap().1;
    let numbers: Vec<u64> = counts
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [half_open, queued, scopes] = numbers[..] else {
        panic!("{said}")
    };
    // Between the look and the adoption some may have got out.
    assert_eq!(scopes, 1);
    assert!(half_open >= left["half_open"].as_u64().unwrap(), "{said}");
    assert!(
        queued <= left["queued"].as_u64().unwrap() && queued > 0,
        "{said}"
    );
    assert_eq!(
        half_open + queued,
        left["half_open"].as_u64().unwrap() + left["queued"].as_u64().unwrap(),
        "{said}"
    );
    // The episode that the first daemon told of goes on.
    let event = second.wait_event("it goes on", Duration::from_secs(5), |_| true);
    assert_eq!(event["event"]["action"], "limit-ongoing", "{event}");

    let syns = capture.wait_for_attempts(ATTEMPTS, PACE.span(ATTEMPTS));
    assert!(attempts.failed().is_empty());
    PACE.assert_line(&times(&syns), BURST);
    let without = syns
        .iter()
        .filter(|syn| (killed_ns..adopted_ns).contains(&syn.at_ns))
        .count();
    assert!(without > 0, "nobody got out without a daemon");
    // All have been handed over when their senders asked again.
    let handed_ns = adopted_ns + 10_000_000_000;
    let last: Vec<Syn> = syns
        .into_iter()
        .filter(|syn| syn.at_ns > handed_ns)
        .collect();
    assert!(last.len() > 5, "only {} were left", last.len());
    let order: Vec<_> = attempts.all().iter().map(|attempt| attempt.dst).collect();
    assert!(
        last.is_sorted_by_key(|syn| order.iter().position(|dst| *dst == syn.dst)),
        "not in order of arrival"
    );
    let exact = Lateness::behind_the_first(&times(&last), PACE.interval()).assert_close();
    eprintln!("{without} got out in the 12 s without a daemon; {said}; then {exact}");
}

#[test]
fn without_keep_everything_is_gone_after_a_kill() {
    // By clsact the filters stay, and let everything pass.
    if !Feature::Tcx.is_here() {
        return;
    }
    let (lab, mounts) = lab();
    let before = (HookState::of(&lab.client), BpfObjects::now());
    let running = start(&lab, &mounts, &[]);
    let capture = lab.capture();
    let attempts = lab.dial((0..30).map(dead));
    capture.wait_for_attempts(10, Duration::from_secs(5));
    running.signal(Signal::SIGKILL);
    // The kernel takes its time to free what nobody uses.
    wait_until("all to be gone", Duration::from_secs(10), || {
        HookState::of(&lab.client) == before.0 && ours(&before.1).is_empty()
    });
    capture.wait_for_attempts(30, Duration::from_secs(5));
    assert!(attempts.failed().is_empty());
    let found = status(&lab.client, Some(&mounts));
    assert_eq!(found["throttles"], serde_json::json!([]));
}

/// Names of our programs and maps that were not there before.
fn ours(before: &BpfObjects) -> Vec<String> {
    let now = BpfObjects::now().since(before);
    let names = now.programs.into_values().chain(now.maps.into_values());
    names
        .filter(|name| {
            [
                "out_egress",
                "in_ingress",
                "socket_state",
                "FLOWS",
                "SCOPES",
                "EVENTS",
            ]
            .iter()
            .any(|ours| name.starts_with(ours))
        })
        .collect()
}

#[test]
fn no_syn_passes_unwatched_while_daemons_take_turns() {
    let (lab, mounts) = lab();
    let mut running = start(&lab, &mounts, &["--keep", "--attempt-timeout=30m"]);
    let capture = lab.capture();
    let mut attempts = Vec::new();
    for turn in 0..6u32 {
        // New attempts all the time that one daemon goes and another comes.
        let dialled = std::thread::scope(|scope| {
            let dialler = scope.spawn(|| {
                let mut all = Vec::new();
                for n in 0..200 {
                    all.push(lab.dial([dead(turn * 200 + n)]));
                    std::thread::sleep(Duration::from_millis(5));
                }
                all
            });
            let signal = if turn % 2 == 0 {
                Signal::SIGKILL
            } else {
                Signal::SIGTERM
            };
            running.signal(signal);
            wait_until("the daemon to end", Duration::from_secs(10), || {
                !running.is_running()
            });
            running = start(&lab, &mounts, &["--keep", "--attempt-timeout=30m"]);
            dialler.join().unwrap()
        });
        attempts.push(dialled);
    }
    let frames = capture.finish();
    let first = frames.first_syns();
    PACE.assert_line(&times(&first), BURST);
    let found = status(&lab.client, Some(&mounts));
    let scope = scope_in(only(&found), "eth0");
    let tally = |name: &str| scope["tallies"][name].as_u64().unwrap();
    // Whatever arrived had been let out by a program that counted it. One or the
    // other may have left since the capture ended.
    let let_out = tally("passed") + tally("released");
    let arrived = first.len() as u64;
    assert!(
        arrived <= let_out && let_out <= arrived + 10,
        "{arrived} arrived, {let_out} were let out"
    );
    assert!(tally("attempts") >= 1_200, "{scope}");
    for name in ["step_missing", "unparsed", "flow_table_full"] {
        assert_eq!(only(&found)["not_handled"][name], 0, "{name}");
    }
    eprintln!("1,200 attempts during 6 changes of the daemon: {arrived} went out, all counted");
}

/// Has what the daemon keeps look like another version's.
fn change_layout(pins: &Path) {
    let map = Map::Array(MapData::from_pin(pins.join("maps/POLICY")).unwrap());
    let mut map: Array<MapData, Plain<Policy>> = map.try_into().unwrap();
    let Plain(mut policy) = map.get(&0, 0).unwrap();
    policy.layout = policy.layout.wrapping_add(1);
    map.set(0, Plain(policy), 0).unwrap();
}

#[test]
fn what_another_version_left_is_replaced_and_that_is_said() {
    let (lab, mounts) = lab();
    let first = start(&lab, &mounts, &["--keep"]);
    let attempts = lab.dial((0..20).map(dead));
    wait_until("some to wait", Duration::from_secs(5), || {
        let found = status(&lab.client, Some(&mounts));
        scope_in(only(&found), "eth0")["queued"].as_u64() > Some(0)
    });
    change_layout(&pins_of(&first));
    first.signal(Signal::SIGKILL);
    let refused = Throttle::command(&lab.client, &["set", "--limit=5"])
        .with_mounts(&mounts)
        .output();
    assert_eq!(refused.code(), Some(1));
    assert!(
        refused.stderr.contains("another version"),
        "{}",
        refused.stderr
    );

    let (capture, began) = (lab.capture(), Instant::now());
    let second = start(&lab, &mounts, &["--keep"]);
    let said = second.wait_log("is replaced", Duration::from_secs(5));
    assert!(said.contains("another version"), "{said}");
    // Its own maps are there now, and it counts from nothing.
    let _more = lab.dial((100..130).map(dead));
    wait_until("the limit to be reached", Duration::from_secs(5), || {
        !second.limit_events().is_empty()
    });
    // Those that were out ask again, ten have room, one is on its way, and the others
    // were released.
    let released = began.elapsed().as_nanos() / PACE.interval().as_nanos();
    let most = 21 + usize::try_from(released).unwrap();
    assert!(capture.attempts() <= most, "{}", capture.attempts());
    assert!(attempts.failed().is_empty());
    drop(second);
    let found = status(&lab.client, Some(&mounts));
    assert!(only(&found)["error"].is_null(), "{found}");
}

#[test]
fn tables_that_are_too_small_are_replaced_and_that_is_said() {
    let (lab, mounts) = lab();
    drop(start(&lab, &mounts, &["--keep"]));
    let second = start(&lab, &mounts, &["--keep", "--attempt-timeout=12h"]);
    let said = second.wait_log("is replaced", Duration::from_secs(5));
    assert!(said.contains("too small"), "{said}");
    drop(second);
    // Those are large enough for anything less.
    let third = start(&lab, &mounts, &["--keep"]);
    third.wait_log("adopted", Duration::from_secs(5));
}

#[test]
fn a_second_run_is_refused_with_the_pid_of_the_first() {
    let (lab, mounts) = lab();
    for (keep, more) in [(false, &[][..]), (true, &["--keep"])] {
        let first = start(&lab, &mounts, more);
        let pid = format!("pid {}", first.pid());
        let before = HookState::of(&lab.client);
        for name in [&[][..], &["--name=other"], &["--keep", "--name=other"]] {
            let all = arguments(name);
            let refused = Throttle::run(
                &lab.client,
                &all.iter().map(String::as_str).collect::<Vec<_>>(),
            )
            .with_mounts(&mounts)
            .output();
            assert_eq!(refused.code(), Some(1), "{name:?}: {}", refused.stderr);
            assert!(
                refused.stderr.contains(&pid),
                "{name:?}: {}",
                refused.stderr
            );
        }
        assert_eq!(HookState::of(&lab.client), before, "keep: {keep}");
        let found = status(&lab.client, Some(&mounts));
        assert_eq!(only(&found)["daemon"]["pid"], first.pid());
        first.stop().expect_success();
    }
    // The first one was told to leave its kernel side behind.
    let all = arguments(&["--name=other"]);
    let refused = Throttle::run(
        &lab.client,
        &all.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .with_mounts(&mounts)
    .output();
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr.contains("--name eth0"), "{}", refused.stderr);
}

#[test]
fn a_start_that_fails_leaves_what_is_kept_as_it_was() {
    let (lab, mounts) = lab();
    drop(start(&lab, &mounts, &["--keep"]));
    let before = HookState::of(&lab.client);
    let failed = Throttle::run(
        &lab.client,
        &["-i", "eth0", "-i", "nonesuch", "--keep", "--name=eth0"],
    )
    .with_mounts(&mounts)
    .output();
    assert_eq!(failed.code(), Some(1));
    assert_eq!(HookState::of(&lab.client), before);
    // It is at work still.
    let capture = lab.capture();
    let _attempts = lab.dial((0..30).map(dead));
    capture.wait_for_attempts(10, Duration::from_secs(5));
    holds_for("the rate holds", Duration::from_millis(900), || {
        capture.attempts() <= 16
    });
    start(&lab, &mounts, &["--keep"]).wait_log("adopted", Duration::from_secs(5));
}

#[test]
fn who_adopts_without_keep_takes_all_of_it_along_at_the_end() {
    for hook in hooks() {
        let (lab, mounts) = lab();
        let before = (HookState::of(&lab.client), BpfObjects::now());
        drop(start(&lab, &mounts, &["--keep", "--hook", hook]));
        assert_ne!(HookState::of(&lab.client), before.0, "{hook}");
        let second = start(&lab, &mounts, &["--hook", hook]);
        second.wait_log("adopted", Duration::from_secs(5));
        let found = status(&lab.client, Some(&mounts));
        assert_eq!(only(&found)["daemon"]["keep"], false);
        assert_eq!(only(&found)["interfaces"][0]["name"], "eth0");
        second.stop().expect_success();
        wait_until("all to be gone", Duration::from_secs(10), || {
            HookState::of(&lab.client) == before.0 && ours(&before.1).is_empty()
        });
    }
}

#[test]
fn programs_change_from_one_hook_to_the_other_in_place() {
    let (lab, mounts) = lab();
    let bare = HookState::of(&lab.client);
    let hooks = hooks();
    for (hook, other) in [("clsact", "tcx"), ("tcx", "clsact"), ("clsact", "clsact")] {
        if !hooks.contains(&hook) || !hooks.contains(&other) {
            continue;
        }
        drop(start(&lab, &mounts, &["--keep", "--hook", hook]));
        let second = start(&lab, &mounts, &["--keep", "--hook", other]);
        second.wait_log("adopted", Duration::from_secs(5));
        let state = HookState::of(&lab.client);
        assert_eq!(
            state.tcx.is_empty(),
            other == "clsact",
            "{hook} to {other}: {state:?}"
        );
        assert_eq!(
            state.filters.is_empty(),
            other == "tcx",
            "{hook} to {other}: {state:?}"
        );
        let capture = lab.capture();
        let _attempts = lab.dial((0..30).map(dead));
        capture.wait_for_attempts(10, Duration::from_secs(5));
        assert!(capture.attempts() < 16);
        drop(second);
        let removed = Throttle::command(&lab.client, &["detach", "-o", "json"])
            .with_mounts(&mounts)
            .output()
            .expect_success();
        assert!(removed.stdout.contains("eth0"), "{}", removed.stdout);
        assert_eq!(HookState::of(&lab.client), bare, "{hook} to {other}");
    }
}

#[test]
fn without_a_bpf_filesystem_keep_is_refused_and_all_else_works() {
    let lab = Lab::plain();
    let bare = HookState::of(&lab.client);
    let mounts = Mounts::without_bpffs(&lab.client);
    let all = arguments(&["--keep"]);
    let refused = Throttle::run(
        &lab.client,
        &all.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .with_mounts(&mounts)
    .output();
    assert_eq!(refused.code(), Some(1));
    assert!(
        refused.stderr.contains("mount -t bpf"),
        "{}",
        refused.stderr
    );
    assert_eq!(HookState::of(&lab.client), bare);
    let running = start(&lab, &mounts, &[]);
    let found = status(&lab.client, Some(&mounts));
    assert_eq!(only(&found)["interfaces"][0]["name"], "eth0");
    running.stop().expect_success();
    assert_eq!(HookState::of(&lab.client), bare);
}

#[test]
fn a_daemon_that_ends_on_request_leaves_the_queue_to_the_senders_at_once() {
    let (lab, mounts) = lab();
    let running = start(&lab, &mounts, &["--keep"]);
    let capture = lab.capture();
    let attempts = lab.dial((0..60).map(dead));
    capture.wait_for_attempts(15, Duration::from_secs(5));
    let left = running.stop_by(Signal::SIGTERM).expect_success();
    assert!(left.stderr.contains("stays attached"), "{}", left.stderr);
    let stopped_ns = now_ns();
    let syns = capture.wait_for_attempts(25, Duration::from_secs(10));
    PACE.assert_line(&times(&syns), BURST);
    assert!(attempts.failed().is_empty());
    let next = syns.iter().find(|syn| syn.at_ns > stopped_ns).unwrap();
    eprintln!(
        "the next one got out {:.0} ms after the daemon had ended",
        millis(stopped_ns, next.at_ns)
    );
}

#[test]
fn of_two_that_start_at_the_same_moment_one_has_the_interface() {
    let (lab, mounts) = lab();
    for keep in [&[][..], &["--keep"]] {
        let both = ["--name=a", "--name=b"].map(|name| {
            let words = arguments(&[keep, &[name]].concat());
            Throttle::run(
                &lab.client,
                &words.iter().map(String::as_str).collect::<Vec<_>>(),
            )
            .with_mounts(&mounts)
            .start()
        });
        let mut both = both.map(Some);
        wait_until("one of them to be refused", Duration::from_secs(20), || {
            both.iter_mut().flatten().any(|one| one.ended().is_some())
        });
        let mut left = Vec::new();
        for one in &mut both {
            let mut one = one.take().unwrap();
            match one.ended() {
                Some(status) => {
                    assert_eq!(status.code(), Some(1));
                    let said = one.wait(Duration::from_secs(5)).stderr;
                    assert!(
                        said.contains("is attached to interface eth0 already"),
                        "{said}"
                    );
                }
                None => left.push(one),
            }
        }
        assert_eq!(left.len(), 1, "one stays");
        let found = status(&lab.client, Some(&mounts));
        assert_eq!(only(&found)["daemon"]["pid"], left[0].pid());
        drop(left);
        Throttle::command(&lab.client, &["detach"])
            .with_mounts(&mounts)
            .output()
            .expect_success();
    }
}

#[test]
fn what_somebody_else_puts_into_the_bpf_filesystem_is_not_believed() {
    let (lab, mounts) = lab();
    let running = start(&lab, &mounts, &[]);
    let network = {
        let folder = fs::read_dir("/run/throttle").unwrap();
        let pid = format!("\"pid\":{}", running.pid());
        let mut all = folder.flatten().filter(|entry| entry.path().is_dir());
        let own = all.find(|entry| {
            let file = entry.path().join("eth0");
            fs::read_to_string(file).is_ok_and(|text| text.contains(&pid))
        });
        own.unwrap().file_name().into_string().unwrap()
    };
    running.stop().expect_success();
    let index = lab.client.ifindex("eth0");
    let fake = format!("/sys/fs/bpf/throttle/{network}/fake/links/{index}-egress");
    let made = lab
        .client
        .program("mkdir")
        .args(["-p", &fake])
        .with_mounts(&mounts)
        .as_user(65_534)
        .output();
    if made.code() != Some(0) {
        eprintln!(
            "skipped: this bpf filesystem is nobody's to write to: {}",
            made.stderr
        );
        return;
    }
    let running = start(&lab, &mounts, &[]);
    running.wait_log("is not believed", Duration::from_secs(5));
    let found = status(&lab.client, Some(&mounts));
    assert_eq!(only(&found)["name"], "eth0");
    running.stop().expect_success();
    // Nothing is kept where anybody could take it away.
    let words = arguments(&["--keep"]);
    let refused = Throttle::run(
        &lab.client,
        &words.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .with_mounts(&mounts)
    .output();
    assert_eq!(refused.code(), Some(1));
    assert!(
        refused.stderr.contains("look who made"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_start_that_fails_changes_no_setting_of_what_is_kept() {
    let (lab, mounts) = lab();
    lab.client.ip("link add second type veth peer name third");
    lab.client.tc("qdisc add dev second ingress");
    drop(start(&lab, &mounts, &["--keep", "--hook=clsact"]));
    let before = status(&lab.client, Some(&mounts));
    for more in [
        &["--mode=monitor", "--limit=7"][..],
        // This one wants larger tables.
        &["--limit=7", "--attempt-timeout=12h"],
    ] {
        let mut words = vec![
            "-i=eth0",
            "-i=second",
            "--name=eth0",
            "--keep",
            "--hook=clsact",
            "--rate=5/s",
        ];
        words.extend(more);
        let failed = Throttle::run(&lab.client, &words)
            .with_mounts(&mounts)
            .output();
        assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
        assert!(failed.stderr.contains("ingress qdisc"), "{}", failed.stderr);
        let now = status(&lab.client, Some(&mounts));
        if more[0] == "--mode=monitor" {
            assert_eq!(only(&now)["settings"], only(&before)["settings"]);
        }
        assert_eq!(only(&now)["interfaces"], only(&before)["interfaces"]);
        // Whoever commands it commands what holds the packets.
        Throttle::command(
            &lab.client,
            &["set", "--limit=10", "--rate=5/s", "--mode=enforce"],
        )
        .with_mounts(&mounts)
        .output()
        .expect_success();
        let capture = lab.capture();
        let _attempts = lab.dial((0..40).map(dead));
        capture.wait_for_attempts(10, Duration::from_secs(5));
        holds_for("the rate holds", Duration::from_millis(900), || {
            capture.attempts() <= 16
        });
        let now = status(&lab.client, Some(&mounts));
        assert!(
            scope_in(only(&now), "eth0")["queued"].as_u64() > Some(0),
            "{now}"
        );
    }
}

#[test]
fn a_filter_of_somebody_else_in_the_place_of_ours_stays() {
    let (lab, mounts) = lab();
    let theirs = "filter add dev eth0 egress bpf bytecode";
    for adopts in [false, true] {
        let running = start(&lab, &mounts, &["--keep", "--hook=clsact"]);
        lab.client.tc("filter del dev eth0 egress");
        lab.client
            .program("tc")
            .args(theirs.split(' '))
            .arg("1,6 0 0 4294967295")
            .output()
            .expect_success();
        drop(running);
        if adopts {
            drop(start(&lab, &mounts, &["--keep", "--hook=clsact"]));
        }
        Throttle::command(&lab.client, &["detach"])
            .with_mounts(&mounts)
            .output()
            .expect_success();
        let left = HookState::of(&lab.client).filters;
        assert_eq!(left.len(), 1, "adopted: {adopts}: {left:?}");
        assert!(
            left.values().all(|shown| shown.contains("bytecode")),
            "{left:?}"
        );
        lab.client.tc("qdisc del dev eth0 clsact");
    }
}
