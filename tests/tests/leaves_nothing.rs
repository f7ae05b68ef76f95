//! Nothing of a lab outlives it. Alone in its file, so that no other test of
//! the same process is in the way.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeSet,
    fs,
    panic::{self, AssertUnwindSafe},
    time::Duration,
};
use throttle_tests::{
    Behaviour, Cgroup, Lab, Namespace, addresses, cgroup, dial::DialProgram, wait_until,
};

#[derive(Debug, PartialEq, Eq)]
struct Traces {
    devices: Vec<String>,
    mounts: String,
    descriptors: BTreeSet<String>,
    threads: usize,
    children: String,
    cgroups: usize,
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

fn traces() -> Traces {
    let own = format!("throttle-test-leaves-{}-", std::process::id());
    let cgroups = names(&cgroup::mount_point().to_string_lossy());
    Traces {
        devices: Namespace::current().devices(),
        mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
        descriptors: names("/proc/self/fd"),
        threads: names("/proc/self/task").len(),
        children: fs::read_to_string("/proc/thread-self/children").unwrap_or_default(),
        cgroups: cgroups.iter().filter(|name| name.starts_with(&own)).count(),
    }
}

fn everything() {
    let labs = [
        Lab::plain(),
        Lab::builder().vlan(&[5, 7]).machines_behind(1).build(),
        Lab::builder().tun().build(),
        Lab::builder().delay(Duration::from_millis(5)).build(),
    ];
    for lab in &labs {
        let cgroup = Cgroup::new("leaves");
        let capture = lab.capture();
        let _server = lab.serve(Behaviour::Hold);
        let _program = DialProgram::new(&lab.client)
            .to([addresses::dead(0)])
            .in_cgroup(&cgroup)
            .start();
        let _attempts = lab.dial([addresses::dead(1), addresses::live(0, addresses::OPEN_PORT)]);
        capture.wait_for_attempts(3, Duration::from_secs(5));
        assert!(traces().threads > 4);
    }
    panic!("on purpose");
}

#[test]
fn nothing_outlives_a_lab_even_after_a_panic() {
    // What the process opens once and keeps.
    drop(Lab::plain().dial([addresses::dead(0)]));
    let before = traces();
    let panicked = panic::catch_unwind(AssertUnwindSafe(everything)).unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"on purpose"));
    // The kernel ends a thread a moment after it was joined.
    wait_until("all traces to be gone", Duration::from_secs(5), || {
        traces() == before
    });
}
