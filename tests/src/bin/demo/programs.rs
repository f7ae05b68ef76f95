//! The two programs of the demo. They are this executable again, each with a
//! process and a cgroup, and so a line in the queue, of its own. A JSON object a line says
//! what they did.

use std::{
    io::{self, Write as _, stderr, stdout},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    libc,
    sys::{
        prctl,
        socket::{setsockopt, sockopt},
    },
};
use serde_json::{Value, json};
use throttle_tests::{
    Cgroup, Namespace,
    addresses::{self, OPEN_PORT},
    dial::{Attempts, Outcome, dial_here, now_ns},
    process::Process,
};

/// First argument of the program that talks to a server.
pub(crate) const TALK: &str = "program-that-talks";
/// First argument of the program that dials.
pub(crate) const DIAL: &str = "program-that-dials";

/// A connect each: 50 a second.
const TALK_EVERY: Duration = Duration::from_millis(20);
/// Connects the dialer begins with.
pub(crate) const AT_ONCE: usize = 60;
/// Those after that: 10 a second.
const DIAL_EVERY: Duration = Duration::from_millis(100);
/// Among the first, every tenth of those that are over the limit goes to a
/// server that answers.
pub(crate) const LIVE: [usize; 5] = [19, 29, 39, 49, 59];
/// How often the dialer looks what became of its attempts.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The server the talker talks to.
pub(crate) fn server() -> SocketAddr {
    addresses::live(0, OPEN_PORT)
}

/// Where the dialer's nth connect goes to.
fn destination(n: usize) -> SocketAddr {
    let number = u32::try_from(n).unwrap_or(u32::MAX);
    if LIVE.contains(&n) {
        addresses::live(100 + number, OPEN_PORT)
    } else {
        addresses::dead(number)
    }
}

/// One connect of the talker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talked {
    /// When connect() was called.
    pub(crate) at_ns: u64,
    /// From where. None if it failed.
    pub(crate) local: Option<SocketAddr>,
    pub(crate) took: Duration,
}

/// One connect of the dialer.
#[derive(Clone, Debug)]
pub(crate) struct Dialled {
    /// When connect() was called.
    pub(crate) at_ns: u64,
    pub(crate) dst: SocketAddr,
    /// After what time it was connected.
    pub(crate) connected: Option<Duration>,
    /// How it failed.
    pub(crate) failed: Option<String>,
}

/// A running program of the demo, in a cgroup of its own as a service is. It
/// is killed when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    // The process before its cgroup: fields are dropped in this order.
    process: Process,
    _cgroup: Cgroup,
}

impl Program {
    /// Starts the talker.
    pub(crate) fn talker(namespace: &Namespace) -> Self {
        Self::start("talker", namespace, TALK)
    }

    /// Starts the dialer.
    pub(crate) fn dialer(namespace: &Namespace) -> Self {
        Self::start("dialer", namespace, DIAL)
    }

    fn start(name: &'static str, namespace: &Namespace, role: &str) -> Self {
        // Not by its path: the file may be rebuilt meanwhile.
        let cgroup = Cgroup::new(name);
        let program = namespace.program("/proc/self/exe").arg(role);
        let process = program.in_cgroup(&cgroup).start();
        Self {
            name,
            process,
            _cgroup: cgroup,
        }
    }

    fn reports(&mut self) -> Result<Vec<Value>> {
        if let Some(status) = self.process.ended() {
            let (name, why) = (self.name, self.process.stderr().join("; "));
            bail!("the {name} ended with {status}: {why}");
        }
        let lines = self.process.stdout();
        let parsed = lines.iter().map(|line| serde_json::from_str(line));
        parsed
            .collect::<Result<_, _>>()
            .with_context(|| format!("read what the {} says", self.name))
    }

    /// What it has said so far, if it is the talker.
    pub(crate) fn talked(&mut self) -> Result<Vec<Talked>> {
        let reports = self.reports()?;
        let talked = reports.iter().map(|report| Talked {
            at_ns: number(report, "at_ns"),
            local: address(report, "local"),
            took: Duration::from_nanos(number(report, "took_ns")),
        });
        Ok(talked.collect())
    }

    /// What it has said so far, if it is the dialer.
    pub(crate) fn dialled(&mut self) -> Result<Vec<Dialled>> {
        let mut dialled: Vec<Dialled> = Vec::new();
        for report in self.reports()? {
            if let Some(dst) = address(&report, "dst") {
                dialled.push(Dialled {
                    at_ns: number(&report, "at_ns"),
                    dst,
                    connected: None,
                    failed: None,
                });
                continue;
            }
            let n = usize::try_from(number(&report, "n"))?;
            let attempt = dialled.get_mut(n).context("an end without a beginning")?;
            match report["failed"].as_str() {
                Some(how) => attempt.failed = Some(how.to_owned()),
                None => {
                    attempt.connected = Some(Duration::from_nanos(number(&report, "took_ns")));
                }
            }
        }
        Ok(dialled)
    }
}

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_default()
}

fn address(report: &Value, name: &str) -> Option<SocketAddr> {
    report[name].as_str()?.parse().ok()
}

/// The talker: connects to a server, again and again.
pub(crate) fn talk(args: impl Iterator<Item = String>) -> ExitCode {
    run(c"talker", args, || {
        let mut due = Instant::now();
        loop {
            due += TALK_EVERY;
            let (at_ns, start) = (now_ns(), Instant::now());
            let connected = TcpStream::connect(server());
            let took_ns = nanos(start.elapsed());
            match connected {
                Ok(stream) => {
                    let local = stream.local_addr()?.to_string();
                    say(&json!({ "at_ns": at_ns, "local": local, "took_ns": took_ns }))?;
                    reset(&stream);
                }
                Err(error) => {
                    let failed = error.to_string();
                    say(&json!({ "at_ns": at_ns, "failed": failed, "took_ns": took_ns }))?;
                }
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    })
}

/// The dialer: dials, and waits for what never comes.
pub(crate) fn dial(args: impl Iterator<Item = String>) -> ExitCode {
    run(c"dialer", args, || {
        let attempts = Attempts::watch();
        let mut told = Vec::new();
        let mut due = Instant::now();
        loop {
            while told.len() < AT_ONCE || due <= Instant::now() {
                if told.len() >= AT_ONCE {
                    due += DIAL_EVERY;
                }
                dial_here(&attempts, destination(told.len()));
                told.push(Told::default());
                if told.len() == AT_ONCE {
                    due = Instant::now() + DIAL_EVERY;
                }
            }
            for (n, (attempt, told)) in attempts.all().iter().zip(&mut told).enumerate() {
                if !told.beginning {
                    told.beginning = true;
                    let dst = attempt.dst.to_string();
                    say(&json!({ "at_ns": attempt.started_ns, "dst": dst }))?;
                }
                match attempt.outcome {
                    _ if told.end => continue,
                    Outcome::Pending => continue,
                    Outcome::Connected { after } => {
                        say(&json!({ "n": n, "took_ns": nanos(after) }))?;
                    }
                    Outcome::Failed { errno, .. } => {
                        say(&json!({ "n": n, "failed": errno.to_string() }))?;
                    }
                    Outcome::Closed => {}
                }
                told.end = true;
            }
            thread::sleep(LOOK_EVERY);
        }
    })
}

/// What has been said about an attempt.
#[derive(Default)]
struct Told {
    beginning: bool,
    end: bool,
}

fn run(
    name: &std::ffi::CStr,
    mut args: impl Iterator<Item = String>,
    program: impl FnOnce() -> io::Result<()>,
) -> ExitCode {
    // The name is what tools show; the program does as well without.
    let _ = prctl::set_name(name);
    let done = match args.next() {
        None => program().map_err(|error| error.to_string()),
        Some(other) => Err(format!("unexpected argument {other:?}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn say(report: &Value) -> io::Result<()> {
    writeln!(stdout(), "{report}")
}

/// Closes without TIME-WAIT, so that ports do not run out.
fn reset(stream: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Fails if the server has closed first, which is as well.
    let _ = setsockopt(stream, sockopt::Linger, &linger);
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
