//! What is told to a service manager (`sd_notify`(3)): that the daemon is ready,
//! reloads, ends, and is still alive.
//!
//! Without one (no `NOTIFY_SOCKET` in the environment) nothing happens. What
//! cannot be told is logged, and changes nothing: the manager judges by what it
//! does not hear.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use log::debug;
use sd_notify::NotifyState;

use crate::clock;

/// The daemon is at work: at its start, and again after a reload. `status` is a
/// line for people.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The daemon reads its configuration again, until it is [`ready`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // The manager matches it with the signal that it sent.
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!("tell the service manager: {error}"),
    }
}

/// The daemon ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The daemon is alive. This may be called as often as one likes: it tells so
/// twice in the time after which the manager would take it for dead, and nothing
/// if the manager does not watch.
pub fn alive() {
    /// How often it is to be told.
    static EVERY_NS: OnceLock<Option<u64>> = OnceLock::new();
    /// When it is to be told next, on the monotonic clock.
    static NEXT_NS: AtomicU64 = AtomicU64::new(0);
    let Some(every_ns) = *EVERY_NS.get_or_init(|| sd_notify::watchdog_enabled().map(half_ns))
    else {
        return;
    };
    if is_due(&NEXT_NS, clock::monotonic_ns(), every_ns) {
        tell(&[NotifyState::Watchdog]);
    }
}

/// Half of the time that the manager waits.
fn half_ns(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_nanos() / 2).unwrap_or(u64::MAX)
}

/// Whether it is time; if so, when it is next is written down. One of several
/// callers at a time finds that it is.
fn is_due(next_ns: &AtomicU64, now_ns: u64, every_ns: u64) -> bool {
    let next = next_ns.load(Ordering::Relaxed);
    now_ns >= next
        && next_ns
            .compare_exchange(
                next,
                now_ns.saturating_add(every_ns),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
            .is_ok()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!("tell the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_manager_nothing_happens() {
        ready("at work");
        reloading();
        alive();
        stopping();
    }

    #[test]
    fn it_is_alive_twice_in_the_time_that_the_manager_waits() {
        const BEAT_NS: u64 = 200_000_000;
        let every_ns = half_ns(Duration::from_secs(10));
        let next_ns = AtomicU64::new(0);
        let beats = (1..=300).map(|n| n * BEAT_NS);
        let told: Vec<u64> = beats
            .filter(|now_ns| is_due(&next_ns, *now_ns, every_ns))
            .collect();
        // The first beat, then every 5 s in a minute.
        assert_eq!(told.len(), 12);
        assert!(told.is_sorted_by(|a, b| b - a == every_ns));
    }

    #[test]
    fn with_a_short_time_every_beat_tells() {
        let next_ns = AtomicU64::new(0);
        let every_ns = half_ns(Duration::from_millis(1));
        assert!((1..10).all(|n| is_due(&next_ns, n * 200_000_000, every_ns)));
    }
}
