//! The rules: what is done with a SYN, and what an answer ends.
//!
//! Each function takes the state it needs and the time, changes the state by
//! atomics, and returns an outcome. Looking things up, and acting on the
//! outcome, is the caller's part.

use crate::{
    counter::Taken,
    flow::{Entry, Flow, Phase, PhaseWord},
    place::Place,
    policy::{Daemon, Mode, Policy},
    release::{Release, SENDER_BURST_NS, daemon_burst_ns},
    scope::{Line, Scope},
};

/// For how long a SYN that is seen again is no retransmission: 500 ms. TCP waits
/// a second before it asks again (RFC 6298, 2.1). What comes sooner is the same
/// packet on a second device (vlan on bond, bridge port), or one that somebody
/// forged or duplicated.
pub const SAME_PACKET_NS: u64 = 500 * crate::NANOS_PER_MILLI;

/// What every rule goes by: the settings, the daemon, and the time.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The settings.
    pub policy: &'a Policy,
    /// The daemon.
    pub daemon: &'a Daemon,
    /// Monotonic time in nanoseconds.
    pub now_ns: u64,
}

impl Context<'_> {
    #[inline(always)]
    const fn daemon_is_alive(&self) -> bool {
        self.daemon.is_alive(self.now_ns)
    }
}

/// What is done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on its way.
    Pass,
    /// It vanishes, and its sender does not notice.
    Swallow,
}

/// What a new attempt is told at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Its endpoint is known: it goes out uncounted.
    Known,
    /// There is room: it goes out, counted at this place.
    Counted(Place),
    /// No room.
    Full,
    /// The count could not be kept (see [`Taken::Contended`]): it goes out
    /// uncounted, and that is noted.
    Unaccountable,
}

/// Rules 3 and 4: whether a new attempt goes out at once.
///
/// The caller has retired what timed out ([`Scope::retire`]).
#[inline(always)]
pub fn admit(context: &Context<'_>, scope: &Scope, endpoint_is_known: bool) -> Admission {
    if endpoint_is_known {
        return Admission::Known;
    }
    // Nobody overtakes those who wait; without a daemon there is no order.
    if context.daemon_is_alive() && scope.queued.total() > 0 {
        return Admission::Full;
    }
    let window = Scope::half_open_window(context.policy);
    match scope
        .half_open
        .take(context.policy.limit, window, context.now_ns)
    {
        Taken::Place(place) => Admission::Counted(place),
        Taken::Full => Admission::Full,
        Taken::Contended => Admission::Unaccountable,
    }
}

/// What becomes of an attempt that found no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deferral {
    /// It waits.
    Waits {
        /// How it enters the table.
        entry: Entry,
        /// Whether an episode begins with it.
        episode_begins: bool,
    },
    /// Its line or the whole queue is full: it is not remembered, its sender will ask again.
    Overflow {
        /// Whether an episode begins with it.
        episode_begins: bool,
    },
    /// The count could not be kept (see [`Taken::Contended`]): it is treated like
    /// an overflow, since it must not go out over the limit, and that is noted.
    Unaccountable,
}

impl Deferral {
    /// Whether an episode begins with it.
    #[inline(always)]
    #[must_use]
    pub const fn episode_begins(&self) -> bool {
        match self {
            Self::Waits { episode_begins, .. } | Self::Overflow { episode_begins } => {
                *episode_begins
            }
            Self::Unaccountable => false,
        }
    }
}

/// Rule 5: an attempt that found no room gets into its line, if that is not
/// full.
#[inline(always)]
pub fn defer(context: &Context<'_>, scope: &Scope, line: &Line) -> Deferral {
    let Context { policy, now_ns, .. } = *context;
    let line_window = Line::window(policy);
    line.queued.retire(line_window, now_ns);
    let someone_waits = scope.queued.total() > 0;
    let line_place = match line.queued.take(policy.line_capacity, line_window, now_ns) {
        Taken::Place(place) => place,
        Taken::Full => {
            return Deferral::Overflow {
                episode_begins: scope.press(someone_waits, now_ns),
            };
        }
        Taken::Contended => return Deferral::Unaccountable,
    };
    let queue_window = Scope::queue_window(policy);
    let queue_place = match scope
        .queued
        .take(policy.queue_capacity, queue_window, now_ns)
    {
        Taken::Place(place) => place,
        Taken::Full => {
            line.queued.end(line_place);
            return Deferral::Overflow {
                episode_begins: scope.press(someone_waits, now_ns),
            };
        }
        Taken::Contended => {
            line.queued.end(line_place);
            return Deferral::Unaccountable;
        }
    };
    if !someone_waits {
        scope.releases.begin(policy.interval_ns, now_ns);
    }
    Deferral::Waits {
        entry: Entry::Deferred {
            queue: queue_place,
            line: line_place,
            on_wire: matches!(policy.mode(), Mode::Monitor),
        },
        episode_begins: scope.press(someone_waits, now_ns),
    }
}

/// An entry could not be put into the table: what it took is given back.
#[inline(always)]
pub fn undo(scope: &Scope, line: Option<&Line>, entry: Entry) {
    match entry {
        Entry::Known => {}
        Entry::Counted(place) => {
            scope.half_open.end(place);
        }
        Entry::Deferred {
            queue,
            line: line_place,
            ..
        } => {
            scope.queued.end(queue);
            if let Some(line) = line {
                line.queued.end(line_place);
            }
        }
    }
}

/// Who offers a SYN that is in the table already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// Its sender retransmits it.
    Sender,
    /// The daemon re-sends it.
    Daemon,
}

/// What a SYN that is in the table already comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It is half-open: it passes.
    HalfOpen,
    /// It was uncounted; nobody answered it, so it counts from now on, and its
    /// endpoint is no longer known. It passes.
    NowCounted,
    /// It was deferred and is released: it is counted, and passes.
    Released,
    /// It was deferred and is released ahead of time: it is counted, and passes,
    /// to leave its device at this time (monotonic nanoseconds).
    Departs(u64),
    /// It was deferred and stays so; or another packet of it waits in the device.
    StillDeferred,
    /// It was deferred and stays so, and the present daemon does not have its
    /// frame: hand it over.
    HandOver,
    /// The daemon's copy of an attempt that is no longer deferred: nobody needs
    /// it.
    NotNeeded,
    /// The attempt has ended: what comes now is a new one.
    Ended,
}

/// The device on which a SYN is seen again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// How far ahead of its time a release may be, in nanoseconds: the packet
    /// leaves the device when it is due. 0 if the device cannot do that, or not
    /// with this packet. See [`departure::ahead_ns`](crate::departure::ahead_ns).
    pub ahead_ns: u64,
}

impl Device {
    /// A device that packets leave at once.
    #[inline(always)]
    #[must_use]
    pub const fn plain(ifindex: u32) -> Self {
        Self {
            ifindex,
            ahead_ns: 0,
        }
    }
}

/// Rule 2: a SYN whose flow is in the table with the same sequence number, and is the
/// attempt that `seen` is the phase word of.
///
/// `device` is where it is seen now; `line` may be missing if the kernel evicted
/// it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "each is another fact")]
pub fn seen_again(
    context: &Context<'_>,
    scope: &Scope,
    line: Option<&Line>,
    flow: &Flow,
    seen: PhaseWord,
    offer: Offer,
    endpoint_is_known: bool,
    device: Device,
) -> Again {
    let word = flow.phase_word();
    let over = match offer {
        Offer::Sender => Again::Ended,
        Offer::Daemon => Again::NotNeeded,
    };
    if !word.is_of(seen) {
        return over;
    }
    match word.phase() {
        Phase::Ended => over,
        // On a second device it is the copy that was released on the first.
        Phase::Counted(_) | Phase::Known if offer == Offer::Daemon => {
            if device.ifindex == flow.ifindex {
                Again::NotNeeded
            } else {
                Again::HalfOpen
            }
        }
        // Where the kernel does not keep it from being sent twice.
        Phase::Counted(_) if flow.is_about_to_depart(context.now_ns) => Again::StillDeferred,
        Phase::Counted(_) => Again::HalfOpen,
        Phase::Known => become_counted(context, scope, flow, word),
        Phase::Deferred => offered(
            context,
            scope,
            line,
            flow,
            word,
            offer,
            endpoint_is_known,
            device,
        ),
    }
}

#[inline(always)]
fn become_counted(context: &Context<'_>, scope: &Scope, flow: &Flow, word: PhaseWord) -> Again {
    let Context { policy, now_ns, .. } = *context;
    if now_ns.saturating_sub(flow.first_ns) < SAME_PACKET_NS {
        return Again::HalfOpen;
    }
    if let Some(place) = scope.half_open.put(Scope::half_open_window(policy), now_ns) {
        if flow.advance(word, Phase::Counted(place)) {
            return Again::NowCounted;
        }
        scope.half_open.end(place);
    }
    Again::HalfOpen
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "split off from one function, inlined into it"
)]
fn offered(
    context: &Context<'_>,
    scope: &Scope,
    line: Option<&Line>,
    flow: &Flow,
    word: PhaseWord,
    offer: Offer,
    endpoint_is_known: bool,
    device: Device,
) -> Again {
    let daemon_pace = Pace {
        burst_ns: daemon_burst_ns(context.policy.interval_ns),
        ahead_ns: 0,
    };
    let pace = match offer {
        Offer::Daemon => daemon_pace,
        // In monitor mode a deferred packet goes on to a second device.
        Offer::Sender
            if device.ifindex != flow.ifindex
                && context.now_ns.saturating_sub(flow.first_ns) < SAME_PACKET_NS =>
        {
            return Again::StillDeferred;
        }
        Offer::Sender => {
            // Its sender still cares: its place in the counts is renewed.
            renew(context, scope, line, flow);
            if context.daemon_is_alive() && !endpoint_is_known && flow.too_long == 0 {
                // A frame that was handed over for another device is of no use
                // when the route has changed.
                let is_handed =
                    flow.handed_to() == context.daemon.generation && flow.ifindex == device.ifindex;
                return if is_handed {
                    Again::StillDeferred
                } else {
                    Again::HandOver
                };
            }
            if context.daemon_is_alive() {
                daemon_pace
            } else if device.ahead_ns > 0 {
                // What leaves when it is due need not catch up.
                Pace {
                    burst_ns: 0,
                    ahead_ns: device.ahead_ns,
                }
            } else {
                Pace {
                    burst_ns: SENDER_BURST_NS,
                    ahead_ns: 0,
                }
            }
        }
    };
    let Some((place, release)) = grant(context, scope, endpoint_is_known, pace) else {
        return Again::StillDeferred;
    };
    if flow.advance(word, Phase::Counted(place)) {
        leave_queue(Some(scope), line, flow);
        return match release {
            Some(release) if release.at_ns > context.now_ns => Again::Departs(release.at_ns),
            Some(_) | None => Again::Released,
        };
    }
    // Somebody else released or ended it in this very moment.
    scope.half_open.end(place);
    if let Some(release) = release {
        scope.releases.give_back(release);
    }
    match (offer, flow.phase()) {
        (Offer::Daemon, _) => Again::NotNeeded,
        (Offer::Sender, Phase::Ended) => Again::Ended,
        (Offer::Sender, Phase::Deferred) => Again::StillDeferred,
        (Offer::Sender, Phase::Counted(_) | Phase::Known) => Again::HalfOpen,
    }
}

/// How releases are given to an offer.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// How much lateness is made up for.
    burst_ns: u64,
    /// How far ahead of its time one may be given.
    ahead_ns: u64,
}

/// Grants an offer: to a known endpoint, or because there is room, or because a
/// release is due.
#[inline(always)]
fn grant(
    context: &Context<'_>,
    scope: &Scope,
    endpoint_is_known: bool,
    pace: Pace,
) -> Option<(Place, Option<Release>)> {
    let Context { policy, now_ns, .. } = *context;
    let window = Scope::half_open_window(policy);
    if endpoint_is_known {
        return Some((scope.half_open.put(window, now_ns)?, None));
    }
    if let Taken::Place(place) = scope.half_open.take(policy.limit, window, now_ns) {
        return Some((place, None));
    }
    let release =
        scope
            .releases
            .give_ahead(policy.interval_ns, pace.burst_ns, pace.ahead_ns, now_ns)?;
    let Some(place) = scope.half_open.put(window, now_ns) else {
        scope.releases.give_back(release);
        return None;
    };
    Some((place, Some(release)))
}

/// Moves the units of a deferred attempt to the present buckets, so that they
/// are forgiven one max-delay after its sender was last heard, not after it was
/// first. One that has been forgiven is counted again if there is room for it; else
/// nothing would bound how many a sender lets be forgotten and then asks for again.
#[inline(always)]
fn renew(context: &Context<'_>, scope: &Scope, line: Option<&Line>, flow: &Flow) {
    let Context { policy, now_ns, .. } = *context;
    let (queue_place, line_place) = flow.queue_places();
    if let Some(old) = queue_place
        && let Some(fresh) = scope.queued.renew(
            old,
            policy.queue_capacity,
            Scope::queue_window(policy),
            now_ns,
        )
    {
        let spare = if flow.renew_queue_place(old, fresh) {
            old
        } else {
            fresh
        };
        scope.queued.end(spare);
    }
    let window = Line::window(policy);
    if let Some(line) = line
        && let Some(old) = line_place
        && let Some(fresh) = {
            line.queued.retire(window, now_ns);
            line.queued.renew(old, policy.line_capacity, window, now_ns)
        }
    {
        let spare = if flow.renew_line_place(old, fresh) {
            old
        } else {
            fresh
        };
        line.queued.end(spare);
    }
}

#[inline(always)]
fn leave_queue(scope: Option<&Scope>, line: Option<&Line>, flow: &Flow) {
    let (queue_place, line_place) = flow.take_queue_places();
    if let Some(scope) = scope
        && let Some(place) = queue_place
    {
        scope.queued.end(place);
    }
    if let Some(line) = line
        && let Some(place) = line_place
    {
        line.queued.end(place);
    }
}

impl Again {
    /// What is done with the packet that came to this, in `mode`.
    /// `was_on_wire` says whether a packet of the attempt went out before.
    ///
    /// [`Again::Ended`] has no verdict of its own: the packet is looked at as a
    /// new attempt.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self, offer: Offer, mode: Mode, was_on_wire: bool) -> Verdict {
        match (self, offer) {
            // Where the original passed, the daemon's copy must not.
            (Self::Released, Offer::Daemon) => {
                if was_on_wire {
                    Verdict::Swallow
                } else {
                    Verdict::Pass
                }
            }
            (
                Self::HalfOpen | Self::NowCounted | Self::Released | Self::Departs(_) | Self::Ended,
                _,
            ) => Verdict::Pass,
            (Self::NotNeeded, _) => Verdict::Swallow,
            (Self::StillDeferred | Self::HandOver, Offer::Daemon) => Verdict::Swallow,
            (Self::StillDeferred | Self::HandOver, Offer::Sender) => match mode {
                Mode::Enforce => Verdict::Swallow,
                Mode::Monitor => Verdict::Pass,
            },
        }
    }
}

/// Whether `ack` acknowledges the SYN of an attempt, and nothing it did not
/// send: ISN+1, or up to ISN+1+len with data in the SYN (RFC 9293, 3.10.7.3;
/// RFC 7413).
#[inline(always)]
#[must_use]
pub const fn acknowledges(flow: &Flow, ack: u32) -> bool {
    ack.wrapping_sub(flow.isn).wrapping_sub(1) <= flow.data_len
}

/// Whether an ICMP error that quotes the sequence number `seq` is about this
/// attempt (RFC 5927, 4.1; `tcp_v4_err` in net/ipv4/tcp_ipv4.c).
#[inline(always)]
#[must_use]
pub const fn is_quoted(flow: &Flow, seq: u32) -> bool {
    flow.isn == seq
}

/// What an attempt was when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Half-open and counted: a place is free.
    HalfOpen,
    /// Half-open and uncounted.
    Known,
    /// Deferred: it left its line.
    Deferred,
}

/// Ends the attempt that `seen` is the phase word of. None if it had ended already:
/// it ends once. Nor is another attempt ended that was given its memory meanwhile.
///
/// `line` may be missing if the kernel evicted it.
#[inline(always)]
pub fn end(
    scope: Option<&Scope>,
    line: Option<&Line>,
    flow: &Flow,
    seen: PhaseWord,
) -> Option<Ended> {
    // A second round is needed only when the attempt is released or becomes
    // counted between the look and the exchange; it does either once.
    for _ in 0..3 {
        let word = flow.phase_word();
        if !word.is_of(seen) {
            return None;
        }
        let ended = match word.phase() {
            Phase::Ended => return None,
            Phase::Counted(_) => Ended::HalfOpen,
            Phase::Known => Ended::Known,
            Phase::Deferred => Ended::Deferred,
        };
        if flow.advance(word, Phase::Ended) {
            match word.phase() {
                Phase::Counted(place) => {
                    if let Some(scope) = scope {
                        scope.half_open.end(place);
                    }
                }
                Phase::Deferred => leave_queue(scope, line, flow),
                Phase::Known | Phase::Ended => {}
            }
            return Some(ended);
        }
    }
    None
}

#[cfg(all(test, not(shuttle)))]
mod tests;
