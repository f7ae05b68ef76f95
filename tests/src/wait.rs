//! Waiting for a state, with a bound and a name for what is waited for.

use std::{
    env,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// How many times slower than hardware the machine is, if it is emulated.
const SLOWNESS: &str = "THROTTLE_TEST_SLOW";

/// How often a condition is looked at. Short against every interval a test
/// measures, long against the cost of looking.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// By how much waits, and bounds on lateness, are longer here: 1, unless
/// `THROTTLE_TEST_SLOW` says more.
///
/// # Panics
/// When that is no number of at least 1.
pub fn slowness() -> u32 {
    static SET: OnceLock<u32> = OnceLock::new();
    *SET.get_or_init(|| match env::var(SLOWNESS) {
        Err(_) => 1,
        Ok(times) => match times.parse() {
            Ok(times) if times >= 1 => times,
            Ok(_) | Err(_) => panic!("{SLOWNESS}={times}: not a number of at least 1"),
        },
    })
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within `timeout`; the message says what was waited for.
#[track_caller]
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, timeout, || condition().then_some(()));
}

/// Waits until `look` finds something, and returns it.
///
/// # Panics
/// When it does not within `timeout`; the message says what was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, timeout: Duration, look: impl FnMut() -> Option<T>) -> T {
    let timeout = timeout * slowness();
    match wait_at_most(timeout, look) {
        Some(found) => found,
        None => panic!("waited {timeout:?} in vain for: {what}"),
    }
}

/// Looks until `look` finds something or `timeout` is over.
pub fn wait_at_most<T>(timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + timeout;
    loop {
        // The time is read first, so that a look that was delayed past the
        // end still counts.
        let last = Instant::now() >= until;
        if let Some(found) = look() {
            return Some(found);
        }
        if last {
            return None;
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Asserts that `condition` holds throughout `period`: for things that must
/// *not* happen, where there is no state to wait for.
///
/// # Panics
/// As soon as it does not hold.
#[track_caller]
pub fn holds_for(what: &str, period: Duration, mut condition: impl FnMut() -> bool) {
    if wait_at_most(period, || (!condition()).then_some(())).is_some() {
        panic!("did not hold for {period:?}: {what}");
    }
}
