//! After its start `throttle run` has only the privileges that running needs, and
//! they are enough.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{collections::BTreeMap, fs, time::Duration};
use throttle::privileges::NEEDED;
use throttle_tests::{
    Cgroup, Dialer, Lab, Pace,
    addresses::dead,
    clients::Connector,
    features::hooks,
    frame::{Checksum, Syn},
    throttle_cmd::Running,
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// Privileges of a thread: the sets of capabilities, and whether a program that
/// it runs can bring any along, all as the kernel names them.
type Privileges = BTreeMap<String, u64>;

/// Of each thread, by its name.
fn privileges(throttle: &Running) -> Vec<(String, Privileges)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", throttle.pid())).unwrap();
    tasks
        .filter_map(|task| {
            let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            let lines = status.lines().filter_map(|line| line.split_once(':'));
            let fields: BTreeMap<_, _> = lines.map(|(key, value)| (key, value.trim())).collect();
            let numbers = fields
                .iter()
                .filter(|(key, _)| key.starts_with("Cap") || **key == "NoNewPrivs")
                .map(|(key, hex)| ((*key).to_owned(), u64::from_str_radix(hex, 16).unwrap()));
            Some((fields["Name"].to_owned(), numbers.collect()))
        })
        .collect()
}

/// The privileges of who has these capabilities and will never have others.
fn only(capabilities: u64) -> Privileges {
    let sets = [
        ("CapInh", 0),
        ("CapPrm", capabilities),
        ("CapEff", capabilities),
        ("CapBnd", capabilities),
        ("CapAmb", 0),
        ("NoNewPrivs", 1),
    ];
    sets.map(|(set, of)| (set.to_owned(), of)).into()
}

/// Waits until it has given up what running does not need.
#[track_caller]
fn wait_for_few_privileges(throttle: &Running) {
    let needed = NEEDED.iter().map(|(each, _)| each.bitmask()).sum();
    wait_until("the threads of its output", SOON, || {
        privileges(throttle).len() >= 4
    });
    for (n, (name, has)) in privileges(throttle).into_iter().enumerate() {
        // The main thread comes first. The one that writes the log has nothing.
        assert!(
            has == only(needed) || n > 0 && has == only(0),
            "thread {n}, {name}: {has:x?}"
        );
    }
}

#[test]
fn it_keeps_only_what_running_needs() {
    let lab = Lab::plain();
    let throttle = lab.throttle(&[]);
    wait_for_few_privileges(&throttle);
    assert!(throttle.stop().status.success());
}

#[test]
fn with_that_it_names_a_program_of_another_user() {
    const USER: u32 = 65_534;
    let cgroup = Cgroup::new("privileges");
    let lab = Lab::plain();
    let throttle = lab.throttle(&["--limit=3", "--rate=1/m"]);
    wait_for_few_privileges(&throttle);
    let connector = Connector::new();
    let program = connector
        .dials(&lab.client, "6", "plain")
        .in_cgroup(&cgroup)
        .as_user(USER)
        .start();
    let event = throttle.wait_event("limit reached", SOON, |event| {
        event["event"]["action"] == "connection-attempt-deferred"
    });
    assert_eq!(event["process"]["pid"], program.pid(), "{event:#}");
    assert_eq!(event["user"]["id"], USER.to_string(), "{event:#}");
    assert_eq!(event["user"]["name"], "nobody", "{event:#}");
    let executable = fs::read_link(format!("/proc/{}/exe", program.pid())).unwrap();
    assert_eq!(
        event["process"]["executable"],
        executable.to_str().unwrap(),
        "{event:#}"
    );
    assert_eq!(event["throttle"]["cgroup"]["path"], cgroup.path());
    program.kill();
}

#[test]
fn with_that_deferred_attempts_get_out_with_their_mark_and_priority_and_it_detaches() {
    const PACE: Pace = Pace {
        limit: 3,
        per_second: 5,
    };
    /// Above what everybody may set.
    const PRIORITY: i32 = 7;
    let is_copy = |syn: &&Syn| syn.checksum == Checksum::Good;
    for hook in hooks() {
        let lab = Lab::plain();
        let throttle = PACE.throttle(&lab.client, &lab.device, &["--hook", hook]);
        wait_for_few_privileges(&throttle);
        let capture = lab.capture();
        let dialer = Dialer::new(&lab.client).marked(0x77).priority(PRIORITY);
        let attempts = dialer.dial((0..9).map(dead));
        let syns = capture.wait_for_attempts(9, SOON);
        assert_eq!(syns.iter().filter(is_copy).count(), 6, "{syns:#?}");
        assert!(attempts.failed().is_empty());
        let finished = throttle.stop();
        assert!(finished.status.success(), "{}", finished.stderr);
        assert!(!finished.stderr.contains("WARN"), "{}", finished.stderr);
        assert!(!lab.client.tc("qdisc show").contains("clsact"), "{hook}");
    }
}
