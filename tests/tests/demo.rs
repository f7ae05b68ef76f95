//! The demo cleans up after itself, however it ends. (What it shows, it judges
//! itself.)

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use throttle_tests::{Namespace, Throttle, cgroup, hooks::HookState, process::Process, wait_until};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
const SOON: Duration = Duration::from_secs(30);

/// What a demo could leave in the machine.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    hooks: HookState,
    cgroups: BTreeSet<PathBuf>,
}

impl Traces {
    /// Of the demo `pid`, that was started inside `namespace`.
    fn of(pid: u32, namespace: &Namespace) -> Self {
        let part = format!("-{pid}-");
        let cgroups = fs::read_dir(cgroup::mount_point()).unwrap();
        let cgroups = cgroups.map(|entry| entry.unwrap().path());
        Self {
            hooks: HookState::of(namespace),
            cgroups: cgroups
                .filter(|path| path.to_string_lossy().contains(&part))
                .collect(),
        }
    }
}

/// Ids of the processes that a process has started, and of those that these have.
fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let children = fs::read_to_string(task.path().join("children"));
        let children = children.unwrap_or_default();
        children
            .split_whitespace()
            .map(|child| child.parse().unwrap())
            .collect::<Vec<u32>>()
    });
    children
        .flat_map(|child| [vec![child], descendants(child)].concat())
        .collect()
}

/// Starts it inside `namespace`, and waits until it has shown `part`.
#[track_caller]
fn demo_at(namespace: &Namespace, part: &str) -> Process {
    let program = namespace.program(DEMO);
    let mut demo = program.env("THROTTLE_BIN", Throttle::path()).start();
    wait_until(&format!("the demo to show {part:?}"), SOON, || {
        assert_eq!(demo.ended(), None, "{:?}", demo.stderr());
        demo.stdout().iter().any(|line| line.contains(part))
    });
    demo
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    // While it sets up, while its programs run, and with a throttle at work.
    for (part, signal, code) in [
        ("1. What is set up", Signal::SIGINT, 130),
        ("second  first  again", Signal::SIGTERM, 143),
        ("4. With the throttle", Signal::SIGINT, 130),
    ] {
        let namespace = Namespace::new("outside");
        let before = Traces::of(u32::MAX, &namespace);
        let demo = demo_at(&namespace, part);
        let pid = demo.pid();
        let started = descendants(pid);
        demo.signal(signal);
        let finished = demo.wait(SOON);
        assert_eq!(finished.code(), Some(code), "{part}: {}", finished.stderr);
        let said = finished.stderr.lines().collect::<Vec<_>>();
        assert_eq!(
            said,
            ["demo: interrupted; everything that was set up is removed again"],
            "{part}"
        );
        assert_eq!(Traces::of(pid, &namespace), before, "{part}");
        wait_until("its programs to be gone", SOON, || {
            let alive = |pid: &u32| Path::new("/proc").join(pid.to_string()).exists();
            !started.iter().any(alive)
        });
    }
}

#[test]
fn the_demo_needs_root_and_says_so() {
    const NOBODY: u32 = 65_534;
    let folder = std::env::temp_dir().join(format!("throttle-demo-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let copy = folder.join("demo");
    fs::copy(DEMO, &copy).unwrap();
    let program = Namespace::current().program(&copy).as_user(NOBODY);
    let finished = program.output();
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(finished.code(), Some(3), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("needs root"),
        "{}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "");
}
