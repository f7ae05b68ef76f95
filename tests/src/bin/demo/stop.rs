//! Signals, and waits that end with one.
//!
//! A handler only sets a flag, which is looked at between steps and in every
//! wait: so whatever was made is dropped in the ordinary way. (Blocking the
//! signals would pass on to the programs that are started.)

use std::{
    fmt,
    process::ExitCode,
    sync::atomic::{AtomicI32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use throttle_tests::dial::now_ns;

/// How often the flag is looked at: at once, to a person.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The signal that came; 0 if none has.
static CAME: AtomicI32 = AtomicI32::new(0);

/// Why it ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// By this signal.
    Signal(i32),
    /// Nobody reads any more.
    Closed,
}

impl Stop {
    /// As a shell tells of it: 130 for Ctrl-C.
    pub(crate) fn code(self) -> ExitCode {
        let signal = match self {
            Self::Signal(signal) => signal,
            Self::Closed => libc::SIGPIPE,
        };
        ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::Closed => f.write_str("nobody reads any more"),
        }
    }
}

impl std::error::Error for Stop {}

extern "C" fn note(signal: libc::c_int) {
    CAME.store(signal, Ordering::SeqCst);
}

/// From now on a signal that would end us sets the flag instead.
pub(crate) fn catch_signals() {
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        let caught = unsafe { sigaction(signal, &action) };
        debug_assert!(caught.is_ok(), "these signals can be caught");
    }
}

/// The signal that came, if one has.
pub(crate) fn signalled() -> Option<i32> {
    Some(CAME.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

/// Fails if a signal has come.
pub(crate) fn check() -> Result<()> {
    match signalled() {
        Some(signal) => Err(Stop::Signal(signal).into()),
        None => Ok(()),
    }
}

/// Waits until `look` finds something, and returns it.
pub(crate) fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = Instant::now() + timeout;
    loop {
        check()?;
        let last = Instant::now() >= until;
        if let Some(found) = look()? {
            return Ok(found);
        }
        if last {
            bail!("waited {timeout:?} in vain for {what}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Waits until the wall clock, by which captures tell the time, shows `at_ns`.
pub(crate) fn wait_until_ns(at_ns: u64) -> Result<()> {
    let left = Duration::from_nanos(at_ns.saturating_sub(now_ns()));
    wait_for("the clock to go on", left + Duration::from_secs(60), || {
        Ok((now_ns() >= at_ns).then_some(()))
    })
}
