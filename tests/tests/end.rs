//! `throttle end`: the program behind the attempts, and no other.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::{errno::Errno, sys::signal::Signal};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};
use throttle_tests::{
    Cgroup, Lab, Namespace, Throttle,
    addresses::{dead, dead_v6},
    clients::Connector,
    dial::DialProgram,
    process::Finished,
    throttle_cmd::Running,
    wait_for, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// Few places, so that most attempts are deferred, and none is released; and room
/// for sixty in a line.
const STRICT: &[&str] = &["--limit=3", "--rate=1/m", "--max-delay=1h"];
/// A user that owns nothing.
const NOBODY: u32 = 65_534;

/// A lab with a throttle that commands find.
struct Watched {
    lab: Lab,
    throttle: Running,
}

fn watched() -> Watched {
    let lab = Lab::plain();
    let throttle = lab.throttle(STRICT);
    Watched { lab, throttle }
}

/// `throttle end` with these arguments, in `namespace`.
#[track_caller]
fn end(namespace: &Namespace, args: &[&str]) -> Finished {
    Throttle::command(namespace, &["end"]).args(args).output()
}

/// What it wrote: one object.
#[track_caller]
fn told(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", finished.stdout, finished.stderr))
}

/// How many sockets in SYN_SENT there are, by the kernel's own tables.
fn syn_sent(namespace: &Namespace) -> usize {
    /// `TCP_SYN_SENT` of include/net/tcp_states.h, as /proc writes it.
    const SYN_SENT: &str = "02";
    let count = |file: &str| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let lines = table.lines().skip(1);
        lines
            .filter(|line| line.split_whitespace().nth(3) == Some(SYN_SENT))
            .count()
    };
    namespace.run(|| count("tcp") + count("tcp6"))
}

/// The entity id of a process that runs, worked out here.
fn entity_id(pid: u32) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name is in parentheses, and may hold any of them.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let start = fields.split(' ').nth(19).unwrap();
    format!("{}-{pid}-{start}", boot.trim())
}

/// Ten dead addresses of each family.
fn twenty() -> impl Iterator<Item = SocketAddr> {
    (0..10).map(dead).chain((0..10).map(dead_v6))
}

#[test]
fn its_unanswered_sockets_are_closed_and_it_ends() {
    let Watched { lab, .. } = &watched();
    let mut program = DialProgram::new(&lab.client).to(twenty()).start();
    program.wait_for(20, "started", SOON);
    assert_eq!(syn_sent(&lab.client), 20);
    let finished = end(&lab.client, &[&program.pid().to_string()]).expect_success();
    let told = told(&finished);
    assert_eq!(told["outcome"], "ended", "{told:#}");
    assert_eq!(told["process"]["pid"], program.pid());
    assert_eq!(told["process"]["name"], "dialer");
    assert_eq!(told["certain"], true);
    assert_eq!(told["unanswered_sockets"], 20);
    assert_eq!(told["closed_sockets"], 20);
    assert_eq!(told["signals"], serde_json::json!(["SIGTERM"]));
    assert_eq!(told["attempts"][0]["half_open"], 3, "{told:#}");
    assert_eq!(told["attempts"][0]["deferred"], 17, "{told:#}");
    assert_eq!(
        told["left"],
        serde_json::json!({"half_open": 0, "deferred": 0})
    );
    assert_eq!(told["problems"], serde_json::json!([]));
    assert_eq!(syn_sent(&lab.client), 0);
    assert!(!program.is_running());
}

#[test]
fn who_waits_for_a_closed_socket_is_told_that_it_was_aborted() {
    let Watched { lab, throttle, .. } = &watched();
    let mut program = DialProgram::heedless(&lab.client).to(twenty()).start();
    program.wait_for(20, "started", SOON);
    let event = throttle.wait_event("limit reached", SOON, |event| {
        event["event"]["action"] == "connection-attempt-deferred"
    });
    let id = event["process"]["entity_id"].as_str().unwrap();
    assert_eq!(id, entity_id(program.pid()));
    let finished = end(&lab.client, &["--wait=100ms", &program.pid().to_string()]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("--force ends it"),
        "{}",
        finished.stderr
    );
    let first = told(&finished);
    assert_eq!(first["outcome"], "still-runs", "{first:#}");
    assert_eq!(first["closed_sockets"], 20);
    program.wait_for(20, "failed", SOON);
    for report in program.reports() {
        if report.event == "failed" {
            assert_eq!(report.errno, Some(Errno::ECONNABORTED as i32), "{report:?}");
        }
    }
    assert_eq!(syn_sent(&lab.client), 0);
    assert!(program.is_running());

    // It has no attempts any more, so its number says nothing.
    let finished = end(&lab.client, &["--force", &program.pid().to_string()]);
    assert_eq!(finished.code(), Some(1));
    assert_eq!(told(&finished)["reason"], "no-attempts");
    assert!(program.is_running());

    let finished = end(&lab.client, &["--force", "--wait=100ms", id]).expect_success();
    assert!(!program.is_running());
    let last = told(&finished);
    assert_eq!(last["signals"], serde_json::json!(["SIGTERM", "SIGKILL"]));
}

#[test]
fn a_number_that_was_given_again_is_refused() {
    let connector = Connector::new();
    let Watched { lab, .. } = &watched();
    let cgroup = Cgroup::new("reuse");
    let mut first = lab
        .client
        .program(connector.path())
        .args(["6", "leave"])
        .in_cgroup(&cgroup)
        .start();
    wait_until("the connector to end", SOON, || first.ended().is_some());
    let pid = first.pid();
    // A child of it holds the sockets, so the attempts are there still.
    assert_eq!(syn_sent(&lab.client), 6);
    let finished = end(&lab.client, &[&pid.to_string()]);
    assert_eq!(told(&finished)["reason"], "ended-before");
    assert!(
        finished.stderr.contains("other processes hold"),
        "{}",
        finished.stderr
    );

    let mut second = with_number(pid);
    let finished = end(&lab.client, &["--yes", "--force", &pid.to_string()]);
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr);
    let refused = told(&finished);
    assert_eq!(refused["outcome"], "refused");
    assert_eq!(refused["reason"], "reused", "{refused:#}");
    assert!(
        finished.stderr.contains("was given again"),
        "{}",
        finished.stderr
    );
    assert!(second.try_wait().unwrap().is_none(), "it was ended");
    assert_eq!(syn_sent(&lab.client), 6, "nothing was closed");
    second.kill().unwrap();
    second.wait().unwrap();
}

/// A process that gets the number of one that has ended.
fn with_number(pid: u32) -> Child {
    wait_for("the number to be given again", 6 * SOON, || {
        // The kernel gives the next one; another program may be quicker.
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        if child.id() == pid {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        None
    })
}

#[test]
fn an_entity_id_of_an_earlier_process_is_refused() {
    let lab = Lab::plain();
    let program = lab.client.program("sleep").arg("1000").start();
    let id = entity_id(program.pid());
    let (rest, start) = id.rsplit_once('-').unwrap();
    let earlier = start.parse::<u64>().unwrap() - 1;
    let finished = end(&lab.client, &["--force", &format!("{rest}-{earlier}")]);
    assert_eq!(finished.code(), Some(1));
    assert_eq!(told(&finished)["reason"], "reused");
    let other_boot = id.replacen(|c: char| c.is_ascii_digit(), "f", 1);
    let finished = end(&lab.client, &["--force", &other_boot]);
    assert_eq!(told(&finished)["reason"], "other-boot");
    program.kill();
}

#[test]
fn without_privilege_the_error_says_what_is_missing() {
    let Watched { lab, .. } = &watched();
    let mut program = DialProgram::new(&lab.client).to(twenty()).start();
    program.wait_for(20, "started", SOON);
    // Where another user may run it.
    let command = Copy::of(&Throttle::path());
    let number = program.pid().to_string();
    let id = entity_id(program.pid());
    for (process, missing) in [(&number, "run it as root"), (&id, "CAP_KILL")] {
        let finished = lab
            .client
            .program(&command.0)
            .args(["end", "--yes", "--force", process])
            .as_user(NOBODY)
            .output();
        assert_eq!(finished.code(), Some(3), "{}", finished.stderr);
        assert!(finished.stderr.contains(missing), "{}", finished.stderr);
        assert_eq!(finished.stdout, "");
    }
    assert_eq!(syn_sent(&lab.client), 20);
    assert!(program.is_running());
}

#[test]
fn a_user_ends_a_program_of_their_own() {
    let lab = Lab::plain();
    let connector = Connector::new();
    let mut program = lab
        .client
        .program(connector.path())
        .args(["6", "plain"])
        .as_user(NOBODY)
        .start();
    wait_until("it to dial", SOON, || syn_sent(&lab.client) == 6);
    let command = Copy::of(&Throttle::path());
    let finished = lab
        .client
        .program(&command.0)
        .args(["end", &entity_id(program.pid())])
        .as_user(NOBODY)
        .output()
        .expect_success();
    let told = told(&finished);
    assert_eq!(told["outcome"], "ended");
    // Only the kernel's administrator closes sockets; they end with it.
    assert_eq!(told["unanswered_sockets"], 6, "{told:#}");
    assert_eq!(told["closed_sockets"], 0);
    let problems = told["problems"].to_string();
    assert!(problems.contains("CAP_NET_ADMIN"), "{problems}");
    assert!(program.ended().is_some());
    assert_eq!(syn_sent(&lab.client), 0);
}

#[test]
fn a_program_in_another_network_namespace_is_ended_there() {
    let lab = Lab::builder().machines_behind(1).build();
    let mut program = DialProgram::heedless(&lab.behind[0]).to(twenty()).start();
    program.wait_for(20, "started", SOON);
    // No throttle runs: the entity id says enough.
    let id = entity_id(program.pid());
    let finished = end(&lab.client, &["--wait=0", &id]);
    let told = told(&finished);
    assert_eq!(told["closed_sockets"], 20, "{told:#}");
    assert!(told["left"].is_null());
    program.wait_for(20, "failed", SOON);
    assert_eq!(syn_sent(&lab.behind[0]), 0);
    assert!(program.is_running());
}

#[test]
fn sockets_that_others_hold_as_well_are_closed_and_the_others_live() {
    let connector = Connector::new();
    let Watched { lab, .. } = &watched();
    let mut program = lab
        .client
        .program(connector.path())
        .args(["6", "family"])
        .start();
    let child: u32 = {
        let line = wait_for("the child to dial", SOON, || {
            program.stdout().first().cloned()
        });
        line.split_once(' ').unwrap().0.parse().unwrap()
    };
    wait_until("both to dial", SOON, || syn_sent(&lab.client) == 12);
    let shown = end(&lab.client, &["--dry-run", &program.pid().to_string()]).expect_success();
    let shown = told(&shown);
    assert_eq!(shown["outcome"], "dry-run");
    assert_eq!(shown["children"][0]["pid"], child, "{shown:#}");
    assert_eq!(shown["children"][0]["attempts"], 6);
    assert_eq!(syn_sent(&lab.client), 12);

    // The child holds the sockets of its parent, too, but they are not its own.
    let shown = end(&lab.client, &["--dry-run", &child.to_string()]).expect_success();
    assert_eq!(told(&shown)["unanswered_sockets"], 6);

    // Stopped, the parent cannot end, and its child goes on.
    program.signal(Signal::SIGSTOP);
    let finished = end(&lab.client, &["--wait=0", &program.pid().to_string()]);
    assert!(finished.stderr.contains("SIGCONT"), "{}", finished.stderr);
    let told = told(&finished);
    assert_eq!(told["closed_sockets"], 6, "{told:#}");
    assert_eq!(told["stopped"], true);
    assert_eq!(syn_sent(&lab.client), 6, "those of the child");
    program.signal(Signal::SIGCONT);
    wait_until("the end of it", SOON, || program.ended().is_some());
}

#[test]
fn what_it_opens_while_it_ends_is_closed_as_well() {
    let connector = Connector::new();
    let Watched { lab, .. } = &watched();
    // Whoever is left in it is killed.
    let cgroup = Cgroup::new("late");
    let program = lab
        .client
        .program(connector.path())
        .args(["6", "late"])
        .in_cgroup(&cgroup)
        .start();
    wait_until("it to dial", SOON, || !program.stdout().is_empty());
    let finished = end(&lab.client, &[&program.pid().to_string()]).expect_success();
    let told = told(&finished);
    assert_eq!(told["closed_sockets"], 6, "{told:#}");
    assert_eq!(told["closed_sockets_after_end"], 6, "{told:#}");
    assert_eq!(
        told["left"],
        serde_json::json!({"half_open": 0, "deferred": 0})
    );
    assert_eq!(syn_sent(&lab.client), 0);
    assert_eq!(cgroup.processes().len(), 1, "its child lives");
}

#[test]
fn some_processes_are_never_ended() {
    let Watched { lab, throttle, .. } = &mut watched();
    let daemon = entity_id(throttle.pid());
    let kthread = "2";
    for (process, reason) in [
        ("1", "first-process"),
        (&*daemon, "daemon"),
        (kthread, "kernel-thread"),
    ] {
        if process == kthread && !Path::new("/proc/2/stat").exists() {
            eprintln!("skipped: kernel threads are not seen here");
            continue;
        }
        let finished = end(&lab.client, &["--yes", "--force", process]);
        assert_eq!(finished.code(), Some(1), "{}", finished.stderr);
        assert_eq!(told(&finished)["reason"], reason);
    }
    assert!(throttle.is_running());
}

#[test]
fn without_a_throttle_a_number_is_refused() {
    let lab = Lab::plain();
    let mut program = lab.client.program("sleep").arg("1000").start();
    let finished = end(&lab.client, &["--force", &program.pid().to_string()]);
    assert_eq!(finished.code(), Some(1));
    assert_eq!(told(&finished)["reason"], "no-throttle");
    assert!(program.ended().is_none());
}

#[test]
fn what_is_no_process_is_a_wrong_use() {
    let lab = Lab::plain();
    for nonsense in ["curl", "0", "1.5", ""] {
        let finished = end(&lab.client, &[nonsense]);
        assert_eq!(finished.code(), Some(2), "{}", finished.stderr);
        assert!(finished.stderr.contains("entity_id"), "{}", finished.stderr);
    }
}

#[test]
fn text_says_who_and_what() {
    let Watched { lab, .. } = &watched();
    let program = DialProgram::new(&lab.client).to(twenty()).start();
    program.wait_for(20, "started", SOON);
    let pid = program.pid().to_string();
    let finished = end(&lab.client, &["-o", "text", &pid]).expect_success();
    let text = finished.stdout;
    for part in [
        &*format!("dialer (pid {pid})\n"),
        "  user        root (0)\n",
        "  attempts    3 half-open, 17 deferred, to 20 destinations",
        "  to do       close 20 unanswered sockets, then send SIGTERM\n",
        "closed 20 unanswered sockets\n",
        &*format!("dialer (pid {pid}) ended after SIGTERM"),
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

/// A copy of a program, where everybody may run it. Removed when dropped.
struct Copy(PathBuf);

impl Copy {
    fn of(program: &Path) -> Self {
        let copy = std::env::temp_dir().join(format!("end-{}", std::process::id()));
        fs::copy(program, &copy).unwrap();
        Self(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
