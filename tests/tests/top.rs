//! `throttle top`: who has half-open and deferred attempts.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use throttle_tests::{
    Behaviour, Cgroup, Lab, Namespace, Throttle,
    addresses::{OPEN_PORT, dead, dead_v6, live},
    dial::{DialProcess, DialProgram},
    process::{Finished, Process},
    wait::wait_at_most,
    wait_for, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// A few are half-open, the others deferred, and none is released meanwhile.
const STILL: &[&str] = &["--limit=6", "--rate=1/m", "--max-delay=1h"];

/// The half-open and deferred attempts, by process.
type Counts = BTreeMap<u32, (u64, u64)>;

/// How many sockets of this process are in SYN_SENT: by the tables of its network
/// namespace, and by the sockets that it holds.
fn syn_sent(pid: u32) -> u64 {
    // TCP_SYN_SENT of include/net/tcp_states.h.
    const SYN_SENT: &str = "02";
    const STATE: usize = 3;
    const INODE: usize = 9;
    let mut inodes = HashSet::new();
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[STATE] == SYN_SENT {
                inodes.insert(format!("socket:[{}]", words[INODE]));
            }
        }
    }
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let held = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    held.filter(|target| inodes.contains(target.to_str().unwrap_or_default()))
        .count() as u64
}

fn top(lab: &Lab, args: &[&str]) -> Finished {
    let args = [&["top", "--once"], args].concat();
    Throttle::command(&lab.client, &args).output()
}

fn look(lab: &Lab, args: &[&str]) -> Value {
    let args = [&["-o", "json"], args].concat();
    serde_json::from_str(&top(lab, &args).expect_success().stdout).unwrap()
}

fn counts(look: &Value) -> Counts {
    let mut counts = Counts::new();
    for row in look["rows"].as_array().unwrap() {
        let number = |name: &str| row[name].as_u64().unwrap();
        let pid = u32::try_from(row["process"]["pid"].as_u64().unwrap()).unwrap();
        let of = counts.entry(pid).or_default();
        of.0 += number("half_open");
        of.1 += number("deferred");
    }
    counts
}

/// Waits until `top` and /proc say the same of each of these.
#[track_caller]
fn agree(lab: &Lab, programs: &[&DialProcess]) -> Counts {
    let mut last = None;
    let agreed = wait_at_most(SOON, || {
        let told = counts(&look(lab, &[]));
        let sockets = programs.iter().map(|p| (p.pid(), syn_sent(p.pid())));
        let sockets: BTreeMap<u32, u64> = sockets.filter(|(_, count)| *count > 0).collect();
        let sums = told.iter().map(|(pid, (open, waits))| (*pid, open + waits));
        let is_same = sums.collect::<BTreeMap<_, _>>() == sockets;
        last = Some((told.clone(), sockets));
        is_same.then_some(told)
    });
    agreed.unwrap_or_else(|| panic!("top and /proc/net/tcp do not agree: {last:?}"))
}

#[test]
fn half_open_and_deferred_attempts_of_a_process_are_its_sockets_in_syn_sent() {
    let lab = Lab::plain();
    let _server = lab.serve(Behaviour::Hold);
    let cgroup = Cgroup::new("top");
    let _throttle = lab.throttle(STILL);
    let dials = || DialProgram::new(&lab.client);
    let first = dials().to((0..9).map(dead)).start();
    first.wait_for(9, "started", SOON);
    let second = dials()
        .to((0..5).map(dead_v6))
        .as_user(65_534)
        .in_cgroup(&cgroup)
        .start();
    second.wait_for(5, "started", SOON);
    // It has a connection too, which is not unanswered.
    let third = dials()
        .to([live(1, OPEN_PORT), dead(100), dead(101)])
        .start();
    third.wait_for(3, "started", SOON);

    let told = agree(&lab, &[&first, &second, &third]);
    let sums: Vec<u64> = [&first, &second]
        .iter()
        .map(|p| told[&p.pid()].0 + told[&p.pid()].1)
        .collect();
    assert_eq!(sums, [9, 5]);
    assert_eq!(told[&first.pid()], (6, 3), "there is room for six");

    let look = look(&lab, &["--sort", "attempts"]);
    let rows = look["rows"].as_array().unwrap();
    let (pid, row) = (first.pid(), &rows[0]);
    assert_eq!(row["process"]["pid"], pid, "{row:#}");
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(row["process"]["executable"], executable.to_str().unwrap());
    assert_eq!(row["process"]["user"]["name"], "root");
    assert_eq!(row["process"]["exited"], false);
    assert_eq!(row["destinations"], 9);
    assert_eq!(row["scope"]["kind"], "interface");
    assert_eq!(row["scope"]["name"], "eth0");
    assert!(row["oldest_seconds"].as_f64().unwrap() < 60.0);
    let dialled: Vec<String> = (0..9).map(|n| dead(n).to_string()).collect();
    let example = row["example"]["destination"].as_str().unwrap();
    assert!(dialled.iter().any(|to| to == example), "{example}");
    let row = &rows[1];
    assert_eq!(row["process"]["user"]["name"], "nobody", "{row:#}");
    assert_eq!(row["cgroup"]["path"], cgroup.path());
    let throttle = &look["throttles"][0];
    assert_eq!(
        (&throttle["limit"], &throttle["rate"]),
        (&6.into(), &"1/m".into())
    );
    assert_eq!(throttle["scopes_at_limit"], 1);
    assert_eq!(throttle["half_open"], 6);

    // Whoever ends is in the table no more.
    first.kill();
    agree(&lab, &[&second, &third]);
}

#[test]
fn rows_are_filtered_sorted_and_written_as_a_table() {
    let lab = Lab::plain();
    let _throttle = lab.throttle(STILL);
    let few = DialProgram::new(&lab.client).to([dead(1)]).start();
    let many = DialProgram::new(&lab.client)
        .to((10..13).map(dead))
        .as_user(65_534)
        .start();
    few.wait_for(1, "started", SOON);
    many.wait_for(3, "started", SOON);
    agree(&lab, &[&few, &many]);
    let pids = |args: &[&str]| -> Vec<u64> {
        let look = look(&lab, args);
        let rows = look["rows"].as_array().unwrap();
        rows.iter()
            .map(|row| row["process"]["pid"].as_u64().unwrap())
            .collect()
    };
    let [few, many] = [few.pid(), many.pid()].map(u64::from);
    assert_eq!(pids(&["--sort=half-open"]), [many, few]);
    assert_eq!(pids(&["--sort=half-open", "--reverse"]), [few, many]);
    assert_eq!(pids(&["--filter=NOBODY"]), [many]);
    assert_eq!(pids(&["--filter=no such thing"]), [0u64; 0]);
    let text = top(&lab, &["-o", "text"]).expect_success().stdout;
    let line = text.lines().find(|line| line.contains("nobody")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..5], [&many.to_string(), "nobody", "3", "0", "3"]);
}

#[test]
fn each_user_has_a_row_in_a_scope_of_its_own() {
    let lab = Lab::plain();
    let _throttle = lab.throttle(&[STILL, &["--scope=user"]].concat());
    let root = DialProgram::new(&lab.client).to((0..8).map(dead)).start();
    let nobody = DialProgram::new(&lab.client)
        .to((10..12).map(dead))
        .as_user(65_534)
        .start();
    root.wait_for(8, "started", SOON);
    nobody.wait_for(2, "started", SOON);
    let told = agree(&lab, &[&root, &nobody]);
    assert_eq!(told[&root.pid()], (6, 2));
    assert_eq!(told[&nobody.pid()], (2, 0));
    let look = look(&lab, &[]);
    let scopes: Vec<&Value> = look["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["scope"]["name"])
        .collect();
    assert_eq!(scopes, ["root", "nobody"]);
    assert_eq!(look["throttles"][0]["scopes"], 2);
    assert_eq!(look["throttles"][0]["scopes_at_limit"], 1);
}

#[test]
fn without_a_throttle_it_says_so_and_fails() {
    let lab = Lab::plain();
    for args in [&[][..], &["--throttle", "x\x1b"]] {
        let ended = top(&lab, args);
        assert_eq!(ended.code(), Some(1));
        assert!(ended.stdout.is_empty());
        assert!(ended.stderr.contains("there is no throttle"), "{ended:?}");
        assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
    }
}

#[test]
fn who_may_not_look_is_told_what_is_missing() {
    let lab = Lab::plain();
    let _throttle = lab.throttle(STILL);
    let program = readable_by_all();
    let ended = lab
        .client
        .program(&program.0)
        .args(["top", "--once"])
        .as_user(65_534)
        .output();
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    assert!(ended.stderr.contains("run it as root"), "{ended:?}");
}

/// A file that is removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("top-{name}-{}-{n}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The command, where every user can reach it.
fn readable_by_all() -> Temporary {
    let copy = Temporary::new("throttle");
    fs::copy(Throttle::path(), &copy.0).unwrap();
    copy
}

/// The live table on a terminal, which util-linux's `script` makes.
struct OnTerminal {
    script: Process,
    typescript: Temporary,
    pid: Pid,
}

/// What enters and leaves the alternate screen (xterm's `smcup` and `rmcup`).
const ENTERED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";
const CURSOR_SHOWN: &str = "\x1b[?25h";

impl OnTerminal {
    fn start(namespace: &Namespace) -> Self {
        let typescript = Temporary::new("typescript");
        let command = format!(
            "stty rows 24 cols 80 && exec {} top --interval 100ms",
            Throttle::path().display()
        );
        let script = namespace
            .program("script")
            .args(["--quiet", "--return", "--flush", "--command", &command])
            .arg(&typescript.0)
            .env("TERM", "xterm")
            .start();
        let children = format!("/proc/{0}/task/{0}/children", script.pid());
        let pid = wait_for("the command to start", SOON, || {
            fs::read_to_string(&children).ok()?.trim().parse().ok()
        });
        let table = Self {
            script,
            typescript,
            pid: Pid::from_raw(pid),
        };
        wait_until("the table to be drawn", SOON, || {
            let drawn = table.drawn();
            drawn.contains(ENTERED) && drawn.contains("quit")
        });
        table
    }

    /// All that was written to the terminal.
    fn drawn(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.typescript.0).unwrap_or_default()).into_owned()
    }
}

#[test]
fn the_terminal_is_given_back_by_whatever_signal_it_ends() {
    let lab = Lab::plain();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let table = OnTerminal::start(&lab.client);
        // Only what changes is drawn: a word, but not the blanks between words.
        assert!(table.drawn().contains("namespace"), "{}", table.drawn());
        kill(table.pid, signal).unwrap();
        let OnTerminal {
            script, typescript, ..
        } = table;
        let ended = script.wait(SOON);
        assert_eq!(ended.code(), Some(0), "{signal}: {ended:?}");
        let drawn = fs::read_to_string(&typescript.0).unwrap();
        let (_, after) = drawn.rsplit_once(ENTERED).unwrap();
        assert!(after.contains(LEFT), "{signal}: {after:?}");
        assert!(after.contains(CURSOR_SHOWN), "{signal}: {after:?}");
    }
}

#[test]
fn it_ends_with_its_terminal() {
    let lab = Lab::plain();
    let table = OnTerminal::start(&lab.client);
    let pid = table.pid;
    table.script.kill();
    wait_until("the command to end", SOON, || kill(pid, None).is_err());
}
