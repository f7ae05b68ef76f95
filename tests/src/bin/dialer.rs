//! A program that dials, for tests of which program is to blame. One JSON
//! object a line says what became of each attempt.
//!
//! ```text
//! dialer [--every SECONDS] [--close-after SECONDS] [--leave] [--by-children] ADDRESS:PORT...
//! ```

use nix::sys::{prctl::set_pdeathsig, signal::Signal};
use std::{
    env,
    io::{self, Write},
    net::SocketAddr,
    process::{Command, exit},
    thread,
    time::{Duration, Instant},
};
use throttle_tests::dial::{Attempt, Attempts, Outcome, dial_here};

/// How often outcomes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Wanted {
    destinations: Vec<SocketAddr>,
    every: Duration,
    close_after: Option<Duration>,
    leave: bool,
    by_children: bool,
}

fn main() {
    // Nobody is to outlive a test: neither this program nor its children.
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        eprintln!("{error}");
        exit(1);
    }
    let wanted = match parse(env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(complaint) => {
            eprintln!("{complaint}");
            exit(2);
        }
    };
    let done = if wanted.by_children {
        have_children_dial(&wanted)
    } else {
        dial(&wanted)
    };
    if let Err(error) = done {
        eprintln!("{error}");
        exit(1);
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    while let Some(word) = words.next() {
        let mut seconds = || -> Result<Duration, String> {
            let value = words.next().ok_or(format!("{word} needs seconds"))?;
            let value: f64 = value.parse().map_err(|e| format!("{word} {value}: {e}"))?;
            Duration::try_from_secs_f64(value).map_err(|e| format!("{word} {value}: {e}"))
        };
        match word.as_str() {
            "--every" => wanted.every = seconds()?,
            "--close-after" => wanted.close_after = Some(seconds()?),
            "--leave" => wanted.leave = true,
            "--by-children" => wanted.by_children = true,
            address => {
                let dst = address.parse().map_err(|e| format!("{address}: {e}"))?;
                wanted.destinations.push(dst);
            }
        }
    }
    Ok(wanted)
}

/// Leaves each attempt to a process of its own, and stays with them.
fn have_children_dial(wanted: &Wanted) -> io::Result<()> {
    let program = env::current_exe()?;
    let mut children = Vec::new();
    for dst in &wanted.destinations {
        children.push(Command::new(&program).arg(dst.to_string()).spawn()?);
    }
    for mut child in children {
        child.wait()?;
    }
    Ok(())
}

/// What has been said about an attempt.
struct Told {
    started: Instant,
    outcome: Outcome,
    closed: bool,
}

fn dial(wanted: &Wanted) -> io::Result<()> {
    let attempts = Attempts::watch();
    let mut told: Vec<Told> = Vec::new();
    let mut due = Instant::now();
    let mut to_come = wanted.destinations.iter();
    loop {
        while due <= Instant::now() {
            let Some(&dst) = to_come.next() else { break };
            due += wanted.every;
            told.push(Told {
                started: Instant::now(),
                outcome: Outcome::Pending,
                closed: false,
            });
            say("started", &dial_here(&attempts, dst), Duration::ZERO, None)?;
        }
        for (n, (attempt, told)) in attempts.all().iter().zip(&mut told).enumerate() {
            if attempt.outcome != told.outcome {
                told.outcome = attempt.outcome;
                match attempt.outcome {
                    Outcome::Connected { after } => say("connected", attempt, after, None)?,
                    Outcome::Failed { errno, after } => {
                        say("failed", attempt, after, Some(errno as i32))?;
                        told.closed = true;
                    }
                    Outcome::Pending | Outcome::Closed => {}
                }
            }
            let patience = wanted
                .close_after
                .is_some_and(|p| told.started.elapsed() >= p);
            if patience && !told.closed {
                attempts.close(n);
                told.closed = true;
                told.outcome = attempts.all()[n].outcome;
                say("closed", attempt, told.started.elapsed(), None)?;
            }
        }
        if wanted.leave && told.len() == wanted.destinations.len() && told.iter().all(|t| t.closed)
        {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn say(event: &str, attempt: &Attempt, after: Duration, errno: Option<i32>) -> io::Result<()> {
    let line = serde_json::json!({
        "event": event,
        "dst": attempt.dst.to_string(),
        "local": attempt.local.to_string(),
        "started_ns": attempt.started_ns,
        "after": after.as_secs_f64(),
        "errno": errno,
    });
    writeln!(io::stdout(), "{line}")
}
