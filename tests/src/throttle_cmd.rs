//! The program under test.

use crate::{
    netns::Namespace,
    process::{Finished, Mounts, Process, Program},
    wait::{wait_at_most, wait_for},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long it may take to load and attach, also under emulation.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to detach and leave.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// What it logs when it is at work.
const READY: &str = "attached";

/// The code of the event that says that a limit was reached.
const LIMIT_REACHED: &str = "4226";

/// The `throttle` command.
#[derive(Debug)]
pub struct Throttle;

impl Throttle {
    /// Starts `throttle run` with these arguments, and waits until it is at
    /// work. Events are collected as JSON unless `-o` is among the arguments.
    ///
    /// # Panics
    /// When it is not built, or ends at once.
    #[track_caller]
    pub fn start(namespace: &Namespace, args: &[&str]) -> Running {
        Self::launch(Self::run(namespace, args))
    }

    /// The same with other mounts.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[track_caller]
    pub fn start_with(namespace: &Namespace, mounts: &Mounts, args: &[&str]) -> Running {
        Self::launch(Self::run(namespace, args).with_mounts(mounts))
    }

    /// `throttle run` with these arguments, not yet started.
    ///
    /// # Panics
    /// When it is not built.
    #[track_caller]
    pub fn run(namespace: &Namespace, args: &[&str]) -> Program {
        let program = Self::command(namespace, &["run"]).args(args);
        if args.contains(&"-o") {
            program
        } else {
            program.args(["-o", "json"])
        }
    }

    /// Any other use of it.
    ///
    /// # Panics
    /// When it is not built.
    #[track_caller]
    pub fn command(namespace: &Namespace, args: &[&str]) -> Program {
        let program = namespace.program(Self::path()).args(args);
        match env::var_os("RUST_LOG") {
            Some(_) => program,
            None => program.env("RUST_LOG", "info"),
        }
    }

    /// Starts a [`Self::run`] and waits until it is at work.
    ///
    /// # Panics
    /// When it ends at once.
    #[track_caller]
    pub fn launch(program: Program) -> Running {
        let mut process = program.start();
        let ready = wait_at_most(START_TIMEOUT, || {
            if process.stderr().iter().any(|line| line.contains(READY)) {
                return Some(None);
            }
            process.ended().map(Some)
        });
        match ready {
            Some(None) => Running { process },
            Some(Some(status)) => {
                let complaints = process.wait(STOP_TIMEOUT).stderr;
                panic!("throttle ended with {status} before it was at work:\n{complaints}")
            }
            None => panic!(
                "throttle did not log {READY:?} within {START_TIMEOUT:?}:\n{}",
                process.complaints()
            ),
        }
    }

    /// Where the command is: `$THROTTLE_BIN`, else the release build.
    ///
    /// # Panics
    /// When it is not there.
    #[track_caller]
    pub fn path() -> PathBuf {
        let path = env::var_os("THROTTLE_BIN").map_or_else(built, PathBuf::from);
        assert!(
            path.is_file(),
            "no {}: run the tests with `cargo xtask test`",
            path.display()
        );
        path
    }
}

fn built() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or(workspace.join("target"), PathBuf::from);
    target.join("release/throttle")
}

/// A `throttle run` at work. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    process: Process,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The events so far.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        self.process
            .with_stdout(|lines| lines.iter().map(|line| parse(line)).collect())
    }

    /// Of the events so far, those that say that a limit was reached.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[track_caller]
    pub fn limit_events(&self) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["event"]["code"] == LIMIT_REACHED);
        events
    }

    /// The lines it has printed so far, whatever their form.
    pub fn lines(&self) -> Vec<String> {
        self.process.stdout()
    }

    /// What it has logged so far.
    pub fn log(&self) -> Vec<String> {
        self.process.stderr()
    }

    /// Waits for an event, and returns the first that fits.
    ///
    /// # Panics
    /// When none comes within `timeout`.
    #[track_caller]
    pub fn wait_event(
        &self,
        what: &str,
        timeout: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut looked_at = 0;
        wait_for(&format!("the event: {what}"), timeout, || {
            let fresh: Vec<Value> = self.process.with_stdout(|lines| {
                let fresh = lines[looked_at..].iter().map(|line| parse(line)).collect();
                looked_at = lines.len();
                fresh
            });
            fresh.into_iter().find(&fits)
        })
    }

    /// Waits until it has logged a line that contains this.
    ///
    /// # Panics
    /// When it does not within `timeout`.
    #[track_caller]
    pub fn wait_log(&self, part: &str, timeout: Duration) -> String {
        wait_for(&format!("{part:?} in the log"), timeout, || {
            self.log().into_iter().find(|line| line.contains(part))
        })
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is no more.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it as a terminal does (SIGINT), and returns what it left.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn stop(self) -> Finished {
        self.stop_by(Signal::SIGINT)
    }

    /// Ends it by another signal.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn stop_by(self, signal: Signal) -> Finished {
        self.process.signal(signal);
        self.process.wait(STOP_TIMEOUT)
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not within `timeout`.
    #[track_caller]
    pub fn wait(self, timeout: Duration) -> Finished {
        self.process.wait(timeout)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }
}

/// What a throttle that has ended says it counted for an interface:
/// `attempts`, `passed`, `known`, `deferred` … Those that are 0 are left out.
///
/// # Panics
/// When it says nothing about the interface.
#[track_caller]
pub fn tallies(finished: &Finished, interface: &str) -> BTreeMap<String, u64> {
    tallies_of(finished, "interface", interface)
}

/// The same for a scope of any kind: `cgroup`, `user`, `process` and their
/// number, `source` and its address.
///
/// # Panics
/// When it says nothing about the scope.
#[track_caller]
pub fn tallies_of(finished: &Finished, kind: &str, scope: &str) -> BTreeMap<String, u64> {
    // Behind the number there may be a name.
    let about = [format!("{kind} {scope}: "), format!("{kind} {scope} (")];
    let counts = finished.stderr.lines().find_map(|line| {
        let about = about.iter().find(|about| line.contains(*about))?;
        line.split_once(about)?
            .1
            .rsplit_once(": ")
            .or(line.split_once(about))
    });
    let Some((_, counts)) = counts else {
        panic!("no tallies of {kind} {scope}:\n{}", finished.stderr)
    };
    let counts = counts.split(", ").filter_map(|count| count.split_once(' '));
    counts
        .map(|(name, count)| (name.to_owned(), count.parse().unwrap()))
        .collect()
}

#[track_caller]
fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("an event that is no JSON: {line:?}: {e}"))
}

/// What `throttle status -o json` says in this namespace.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn status(namespace: &Namespace, mounts: Option<&Mounts>) -> Value {
    let program = Throttle::command(namespace, &["status", "-o", "json"]);
    let program = match mounts {
        Some(mounts) => program.with_mounts(mounts),
        None => program,
    };
    let shown = program.output().expect_success();
    parse(shown.stdout.trim_end())
}

/// The scope of this name in what one throttle's status says.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn scope_in<'a>(throttle: &'a Value, name: &str) -> &'a Value {
    let scopes = throttle["scopes"].as_array().into_iter().flatten();
    let mut scopes = scopes.filter(|scope| scope["name"] == name);
    scopes
        .next()
        .unwrap_or_else(|| panic!("no scope {name} in {throttle}"))
}
