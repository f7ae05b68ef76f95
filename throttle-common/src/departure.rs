//! Releases ahead of their time: how far ahead.
//!
//! Some devices let a packet go at a time that it carries (fq, and EDT: earliest
//! departure time). There a sender that retransmits once in a while need not meet
//! the moment at which a release is due: it gets one that is due before it would
//! ask again, and the packet waits in the device. A packet that waits there is
//! not retransmitted meanwhile (`skb_still_in_host_queue` in
//! net/ipv4/tcp_output.c), and being let go before the next retransmission it
//! costs none of TCP's patience either.

use crate::{
    NANOS_PER_SEC,
    decision::Context,
    flow::{Flow, Phase},
};

/// How far ahead at most: 8 s. fq drops what departs later than its horizon, 10 s
/// unless it was told otherwise (`fq_packet_beyond_horizon` in net/sched/sch_fq.c).
pub const AHEAD_MAX_NS: u64 = 8 * NANOS_PER_SEC;

/// The first time TCP asks again: 1 s (`TCP_TIMEOUT_INIT` in include/net/tcp.h).
const FIRST_TIMEOUT_NS: u64 = NANOS_PER_SEC;

/// After a SYN that is sent again `since_ns` after its first, the time until the
/// next one: Linux asks once a second for `linear_timeouts` times
/// (`tcp_syn_linear_timeouts`, since 6.5) and doubles the time from then on.
///
/// That is after 1, 3, 7, 15, 31 s without, and after 1, 2, 3, 4, 5, 7, 11, 19 s
/// with four of them: a wait is as long as all before it, and a second, less the
/// linear ones. Timers are late, never early, so parts of a second are left out.
#[inline(always)]
#[must_use]
pub const fn until_next_ns(since_ns: u64, linear_timeouts: u32) -> u64 {
    let whole_ns = since_ns - since_ns % NANOS_PER_SEC;
    let linear_ns = linear_timeouts as u64 * FIRST_TIMEOUT_NS;
    let next_ns = whole_ns.saturating_add(FIRST_TIMEOUT_NS);
    if next_ns > linear_ns + FIRST_TIMEOUT_NS {
        next_ns - linear_ns
    } else {
        FIRST_TIMEOUT_NS
    }
}

/// How far ahead of its time a release may be for an attempt that its sender
/// offers; 0 if it has to be due.
///
/// Only what is deferred, with nobody to re-send it, and not where every packet
/// passes at once. It takes its place in the count now, not when it departs: it is
/// on its way, and nobody would take the place for it later. For at least half of
/// the timeout it counts after it has left.
#[inline(always)]
pub fn ahead_ns(context: &Context<'_>, flow: &Flow, linear_timeouts: u32) -> u64 {
    let Context { policy, now_ns, .. } = *context;
    if !policy.may_depart_ahead()
        || context.daemon.is_alive(now_ns)
        || !matches!(flow.phase(), Phase::Deferred)
    {
        return 0;
    }
    let until_ns = until_next_ns(now_ns.saturating_sub(flow.first_ns), linear_timeouts);
    let most_ns = policy.attempt_timeout_ns / 2;
    let most_ns = if most_ns < AHEAD_MAX_NS {
        most_ns
    } else {
        AHEAD_MAX_NS
    };
    if until_ns < most_ns {
        until_ns
    } else {
        most_ns
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::{
        NANOS_PER_MILLI,
        flow::{Attempt, Entry},
        place::Place,
        policy::{Daemon, Mode, Pacing, Policy},
        subject::Subject,
        window::Window,
    };
    use proptest::prelude::*;

    /// When Linux asks again, in seconds after its first SYN.
    const BEFORE_6_5: [u64; 6] = [1, 3, 7, 15, 31, 63];
    const SINCE_6_5: [u64; 10] = [1, 2, 3, 4, 5, 7, 11, 19, 35, 67];

    #[test]
    fn the_next_retransmission_comes_when_the_kernel_sends_it() {
        for (schedule, linear) in [(&BEFORE_6_5[..], 0), (&SINCE_6_5[..], 4)] {
            for pair in schedule.windows(2) {
                // Each timer is some way late.
                for late_ns in [0, NANOS_PER_MILLI, 400 * NANOS_PER_MILLI] {
                    let since_ns = pair[0] * NANOS_PER_SEC + late_ns;
                    let until_ns = until_next_ns(since_ns, linear);
                    assert_eq!(until_ns, (pair[1] - pair[0]) * NANOS_PER_SEC, "{pair:?}");
                }
            }
        }
    }

    fn waiting(first_ns: u64) -> Flow {
        let attempt = Attempt {
            isn: 1,
            data_len: 0,
            ifindex: 1,
            cookie: 1,
            scope: Subject::default(),
            owner: Subject::default(),
            too_long: false,
        };
        let place = Place::new(0, Window::new(1 << 34, 64).label(first_ns));
        let entry = Entry::Deferred {
            queue: place,
            line: place,
            on_wire: false,
        };
        Flow::new(&attempt, entry, first_ns)
    }

    fn ahead(policy: &Policy, daemon: &Daemon, flow: &Flow, now_ns: u64) -> u64 {
        let context = Context {
            policy,
            daemon,
            now_ns,
        };
        ahead_ns(&context, flow, 0)
    }

    #[test]
    fn only_what_nobody_re_sends_and_what_is_held_back_departs_ahead() {
        let (flow, now_ns) = (waiting(NANOS_PER_SEC), 4 * NANOS_PER_SEC);
        let with = |pacing: Pacing, mode: Mode| Policy {
            pacing: pacing as u32,
            mode: mode as u32,
            ..Policy::default()
        };
        let nobody = Daemon::default();
        for (pacing, expected) in [
            (Pacing::Auto, 4),
            (Pacing::Fq, 4),
            (Pacing::Resend, 0),
            (Pacing::Retransmit, 0),
        ] {
            let policy = with(pacing, Mode::Enforce);
            let expected_ns = expected * NANOS_PER_SEC;
            assert_eq!(
                ahead(&policy, &nobody, &flow, now_ns),
                expected_ns,
                "{pacing:?}"
            );
            let policy = with(pacing, Mode::Monitor);
            assert_eq!(ahead(&policy, &nobody, &flow, now_ns), 0, "{pacing:?}");
        }
        let alive = Daemon {
            alive_until_ns: now_ns + 1,
            ..nobody
        };
        assert_eq!(ahead(&Policy::default(), &alive, &flow, now_ns), 0);
        assert!(flow.advance(flow.phase_word(), Phase::Ended));
        assert_eq!(ahead(&Policy::default(), &nobody, &flow, now_ns), 0);
    }

    proptest! {
        #[test]
        fn it_is_less_than_the_horizon_and_leaves_the_attempt_half_of_its_time(
            first_ns in any::<u64>(),
            now_ns in any::<u64>(),
            attempt_timeout_ns in NANOS_PER_SEC..86_400 * NANOS_PER_SEC,
            linear in any::<u32>(),
        ) {
            let policy = Policy { attempt_timeout_ns, ..Policy::default() };
            let context = Context { policy: &policy, daemon: &Daemon::default(), now_ns };
            let ahead_ns = ahead_ns(&context, &waiting(first_ns), linear);
            prop_assert!(ahead_ns > 0 && ahead_ns <= AHEAD_MAX_NS);
            prop_assert!(ahead_ns <= attempt_timeout_ns / 2);
        }
    }
}
