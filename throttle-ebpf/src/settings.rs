//! The settings: written by user space, read at each SYN.

use aya_ebpf::{macros::map, maps::Array};
use throttle_common::policy::{Daemon, ONLY, Policy};

#[map(name = "POLICY")]
static POLICY: Array<Policy> = Array::with_max_entries(1, 0);

/// Apart from the policy, since its heartbeat must not touch that.
#[map(name = "DAEMON")]
static DAEMON: Array<Daemon> = Array::with_max_entries(1, 0);

/// The settings in force and the daemon.
#[inline(always)]
#[must_use]
pub fn get() -> Option<(&'static Policy, &'static Daemon)> {
    Some((POLICY.get(ONLY)?, DAEMON.get(ONLY)?))
}

/// The daemon.
#[inline(always)]
#[must_use]
pub fn daemon() -> Option<&'static Daemon> {
    DAEMON.get(ONLY)
}
