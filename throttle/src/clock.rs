//! The clocks: the kernel side's, the one that processes are dated by, and the
//! calendar's.

use nix::time::{ClockId, clock_gettime};

fn nanos(clock: ClockId) -> u64 {
    // These clocks are always there.
    clock_gettime(clock).map_or(0, |time| {
        let (seconds, nanos) = (time.tv_sec(), time.tv_nsec());
        u64::try_from(seconds).unwrap_or(0) * 1_000_000_000 + u64::try_from(nanos).unwrap_or(0)
    })
}

/// Nanoseconds on the clock of `bpf_ktime_get_ns` (CLOCK_MONOTONIC).
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC)
}

/// The calendar time, in nanoseconds since 1970, of a moment on the monotonic
/// clock.
#[must_use]
pub fn calendar_ns(monotonic_ns: u64) -> u64 {
    let ago = self::monotonic_ns().saturating_sub(monotonic_ns);
    nanos(ClockId::CLOCK_REALTIME).saturating_sub(ago)
}

/// The calendar time, in nanoseconds since 1970, of a moment in nanoseconds since
/// boot (CLOCK_BOOTTIME, which goes on while the machine is suspended).
#[must_use]
pub fn calendar_of_boot_ns(boot_ns: u64) -> u64 {
    let ago = nanos(ClockId::CLOCK_BOOTTIME).saturating_sub(boot_ns);
    nanos(ClockId::CLOCK_REALTIME).saturating_sub(ago)
}
