//! SYNs on their way out: rules 1 to 5.

use aya_ebpf::{bindings::TC_ACT_SHOT, helpers::bpf_ktime_get_ns};
use aya_log_ebpf::warn;
use throttle_common::{
    decision::{self, Admission, Again, Context, Deferral, Offer, Verdict},
    flow::{Attempt, Entry, Flow, PhaseWord},
    frame::{self, Headers, Kind, Layout, Link, Syn},
    policy::Mode,
    process::Process,
    record::{FRAME_MAX, Step, Tally, Unhandled},
    scope::Scope,
    subject::{LineKey, Subject, SubjectKind},
};

use crate::{
    departures, endpoints, events, exempt,
    flows::{self, Insertion},
    inbound::{self, Incoming},
    scopes,
    scratch::{self, Seen},
    settings,
    skb::Skb,
    sockets, steps, tallies, unhandled,
};

/// Where a SYN on its way out is seen, and so, how it is held back.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// At egress.
    Egress = 0,
    /// At ingress (of the host's side of a pod's veth).
    Ingress = 1,
    /// The daemon's copy, at the egress of a device whose ingress is watched:
    /// when it is released it turns round, and comes in where its original did.
    Turning = 2,
}

/// Where the IP header begins behind an Ethernet header with two VLAN tags.
const TWO_TAGS: u32 = 14 + 2 * 4;

/// `TCX_NEXT` and `TC_ACT_UNSPEC`: the packet goes on to the next program.
pub const NEXT: i32 = -1;

impl Hook {
    /// The hook that was noted as a number.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Ingress,
            2 => Self::Turning,
            _ => Self::Egress,
        }
    }
}

/// The return code for a verdict at a hook.
#[inline(always)]
fn code(skb: &Skb, hook: Hook, verdict: Verdict) -> i32 {
    match (verdict, hook) {
        (Verdict::Pass, Hook::Turning) => skb.turn_round(),
        (Verdict::Pass, Hook::Egress | Hook::Ingress) => NEXT,
        // At ingress its sender never learns of a drop.
        (Verdict::Swallow, Hook::Ingress) => TC_ACT_SHOT,
        // At egress a packet that is held back must look sent.
        (Verdict::Swallow, Hook::Egress | Hook::Turning) => skb.vanish(),
    }
}

/// Looks at a packet on its way out, and goes on if it is a SYN. What is none
/// has passed after a few reads of its headers, without a helper call or a map
/// look-up.
#[inline(always)]
pub fn look(skb: &Skb, link: Link, hook: Hook) {
    if read(skb, link, hook) {
        steps::go_on(skb, Step::Syn);
    }
}

/// Whether the packet is a SYN; if it is, what it says is noted.
#[inline(always)]
fn read(skb: &Skb, link: Link, hook: Hook) -> bool {
    // The second round is for headers that were not in the linear part.
    for round in 0..2 {
        let packet = skb.packet();
        match frame::headers(&packet, link) {
            Headers::Other => return false,
            Headers::Found(layout) => match frame::kind(&packet, &layout) {
                Kind::Syn => {
                    if let Some(syn) = frame::syn(&packet, &layout) {
                        return note(&syn, &layout, hook);
                    }
                }
                Kind::SynAck | Kind::Reset | Kind::IcmpError | Kind::Other => return false,
                Kind::Unparsed => {}
            },
            Headers::Unparsed => {}
        }
        if round > 0 || !skb.pull() {
            break;
        }
    }
    unhandled::count(Unhandled::Unparsed);
    false
}

/// Notes what a SYN says.
#[inline(always)]
pub fn note(syn: &Syn, layout: &Layout, hook: Hook) -> bool {
    scratch::note(Seen {
        key: syn.key,
        number: syn.isn,
        incoming: Incoming::Syn as u32,
        hook: hook as u32,
        data_len: syn.data_len,
        network_offset: layout.network_offset,
        transport_offset: layout.transport_offset,
    })
}

/// Whether the daemon sent the packet. Nobody else can have its socket's cookie.
#[inline(always)]
fn offer_of(daemon_cookie: u64, cookie: u64) -> Offer {
    if daemon_cookie != 0 && cookie == daemon_cookie {
        Offer::Daemon
    } else {
        Offer::Sender
    }
}

/// Whether the daemon sent the packet.
#[inline(always)]
#[must_use]
pub fn is_daemons(skb: &Skb) -> bool {
    settings::daemon()
        .is_some_and(|daemon| offer_of(daemon.cookie, skb.socket_cookie()) == Offer::Daemon)
}

/// Runs one step about the SYN that was noted, with the time and the settings.
#[inline(always)]
fn step(skb: &Skb, decide: impl FnOnce(&Context<'_>, &'static Seen) -> Verdict) -> i32 {
    let Some(seen) = scratch::seen() else {
        return NEXT;
    };
    let Some((policy, daemon)) = settings::get() else {
        return NEXT;
    };
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let verdict = decide(
        &Context {
            policy,
            daemon,
            now_ns,
        },
        seen,
    );
    code(skb, Hook::from_raw(seen.hook), verdict)
}

/// [`Step::Syn`]: rule 1; rule 2, if the SYN's attempt is in the table.
#[inline(always)]
pub fn on_syn(skb: &Skb) -> i32 {
    step(skb, |context, syn| {
        let offer = offer_of(context.daemon.cookie, skb.socket_cookie());
        // A copy that was turned round comes in with the daemon's socket still
        // on it (`____dev_forward_skb` in include/linux/netdevice.h leaves it
        // there): it was released a moment ago.
        if offer == Offer::Daemon && Hook::from_raw(syn.hook) == Hook::Ingress {
            return Verdict::Pass;
        }
        // Rule 1.
        if offer == Offer::Sender && exempt::is_exempt(&syn.key.endpoint()) {
            return Verdict::Pass;
        }
        if let Some((flow, word)) = flows::get(&syn.key) {
            if flow.isn == syn.number {
                let again = on_known_flow(skb, context, syn, flow, word, offer);
                if again != Again::Ended {
                    // It may have ended while its places in the queue were handed
                    // in, and who ended it left the rest to us.
                    flows::take_out_if_over(&syn.key, flow, word);
                    let was_on_wire = offer == Offer::Daemon && flow.is_on_wire();
                    return again.verdict(offer, context.policy.mode(), was_on_wire);
                }
            } else if offer == Offer::Sender {
                // The same addresses and ports with another sequence number:
                // the old attempt is over.
                inbound::finish(flow, word, Tally::Aborted);
            }
            if offer == Offer::Sender {
                flows::take_out(&syn.key, flow, word);
            }
        }
        match offer {
            Offer::Daemon => {
                unhandled::count(Unhandled::NotNeeded);
                Verdict::Swallow
            }
            Offer::Sender => {
                steps::go_on(skb, Step::Admit);
                Verdict::Pass
            }
        }
    })
}

/// [`Step::Admit`]: rules 3 and 4.
#[inline(always)]
pub fn on_new(skb: &Skb) -> i32 {
    step(skb, |context, syn| admit(skb, context, syn))
}

/// [`Step::Defer`]: rule 5.
#[inline(always)]
pub fn on_full(skb: &Skb) -> i32 {
    step(skb, |context, syn| defer(skb, context, syn))
}

/// Rule 2.
#[inline(always)]
fn on_known_flow(
    skb: &Skb,
    context: &Context<'_>,
    syn: &Seen,
    flow: &'static Flow,
    seen: PhaseWord,
    offer: Offer,
) -> Again {
    let known = is_known(context, syn);
    let Some(scope) = scopes::get_or_make(&flow.scope) else {
        unhandled::count(Unhandled::ScopeTableFull);
        return Again::HalfOpen;
    };
    retire(context, &flow.scope, scope);
    if offer == Offer::Daemon {
        scope.room_seen();
    }
    let line = scopes::line(&LineKey {
        scope: flow.scope,
        owner: flow.owner,
    });
    let device = departures::device(skb, context, syn, flow, offer);
    let again = decision::seen_again(context, scope, line, flow, seen, offer, known, device);
    match again {
        Again::Released => {
            tallies::count(&flow.scope, Tally::Released);
            if offer == Offer::Sender {
                flow.goes_out();
            }
        }
        Again::Departs(at_ns) => {
            tallies::count(&flow.scope, Tally::Released);
            flow.departs(at_ns);
            departures::depart(skb, syn, at_ns, context.now_ns);
        }
        Again::NowCounted => endpoints::forget(&syn.key.endpoint(), flow.first_ns),
        Again::HandOver => {
            hand_over(skb, context, syn, flow, scope);
            note_monitored(context, flow, offer);
        }
        Again::StillDeferred => note_monitored(context, flow, offer),
        Again::NotNeeded => {
            unhandled::count(Unhandled::NotNeeded);
        }
        Again::HalfOpen | Again::Ended => {}
    }
    again
}

/// In monitor mode a deferred attempt's packet goes out. The daemon's copy does
/// not: it may be of an attempt that was held back before the mode was changed.
#[inline(always)]
fn note_monitored(context: &Context<'_>, flow: &Flow, offer: Offer) {
    if offer == Offer::Sender && matches!(context.policy.mode(), Mode::Monitor) {
        flow.goes_out();
    }
}

/// Hands a deferred attempt's frame to the daemon, and notes to which.
#[inline(always)]
fn hand_over(skb: &Skb, context: &Context<'_>, syn: &Seen, flow: &Flow, scope: &Scope) {
    if context.daemon.generation != 0 && events::deferred(skb, syn, flow, context.now_ns) {
        flow.hand_to(context.daemon.generation);
        // The daemon looks at the scope when it reads the record.
        scope.room_seen();
    }
}

#[inline(always)]
fn retire(context: &Context<'_>, subject: &Subject, scope: &Scope) {
    // Added even if it is 0: a test would have the verifier tell apart every
    // way through the sweep.
    tallies::add(
        subject,
        Tally::Expired,
        scope.retire(context.policy, context.now_ns),
    );
}

/// The scope whose limit an attempt counts against. Where it is not known whose
/// it is, the next best: an attempt never counts against a stranger.
#[inline(always)]
fn scope_of(skb: &Skb, scope_kind: u32, syn: &Seen, process: Option<&Process>) -> Subject {
    match SubjectKind::from_raw(scope_kind) {
        Some(SubjectKind::Source) => Subject::source(syn.key.source),
        Some(SubjectKind::Cgroup) => owner_of(skb, syn, None),
        Some(SubjectKind::User) => match process {
            Some(process) => Subject::numbered(SubjectKind::User, u64::from(process.uid)),
            None => match skb.socket_uid() {
                Some(uid) => Subject::numbered(SubjectKind::User, u64::from(uid)),
                None => Subject::source(syn.key.source),
            },
        },
        Some(SubjectKind::Process) => owner_of(skb, syn, process),
        Some(SubjectKind::Interface) | None => {
            Subject::numbered(SubjectKind::Interface, u64::from(skb.ifindex()))
        }
    }
}

/// Whose line an attempt stands in: its process, else its socket's cgroup, else
/// its source.
#[inline(always)]
fn owner_of(skb: &Skb, syn: &Seen, process: Option<&Process>) -> Subject {
    if let Some(process) = process {
        return process.subject();
    }
    match skb.cgroup_id() {
        0 => Subject::source(syn.key.source),
        id => Subject::numbered(SubjectKind::Cgroup, id),
    }
}

#[inline(always)]
fn is_known(context: &Context<'_>, syn: &Seen) -> bool {
    endpoints::is_known(
        &syn.key.endpoint(),
        context.policy.known_for_ns,
        context.now_ns,
    )
}

/// Notes what is known of a new attempt.
#[inline(always)]
fn note_attempt(skb: &Skb, context: &Context<'_>, syn: &Seen) -> Option<&'static Attempt> {
    scratch::note_attempt(|to| {
        let cookie = skb.socket_cookie();
        let process = sockets::process_of(cookie);
        // With a tag beside the frame, and two in it, a copy could not be read.
        let too_long =
            skb.len() as usize > FRAME_MAX || (skb.vlan() != 0 && syn.network_offset >= TWO_TAGS);
        // SAFETY: `to` is valid for writes. Every field is written, one by one:
        // the whole would stand on the stack.
        unsafe {
            (&raw mut (*to).isn).write(syn.number);
            (&raw mut (*to).data_len).write(syn.data_len);
            (&raw mut (*to).ifindex).write(skb.ifindex());
            (&raw mut (*to).cookie).write(cookie);
            (&raw mut (*to).scope).write(scope_of(skb, context.policy.scope, syn, process));
            (&raw mut (*to).owner).write(owner_of(skb, syn, process));
            (&raw mut (*to).too_long).write(too_long);
        }
    })
}

#[inline(always)]
fn admit(skb: &Skb, context: &Context<'_>, syn: &Seen) -> Verdict {
    // It has been counted on the device above.
    if scratch::is_unremembered(skb.ifindex(), context.now_ns) {
        return Verdict::Pass;
    }
    let Some(attempt) = note_attempt(skb, context, syn) else {
        return Verdict::Pass;
    };
    let Some(scope) = scopes::get_or_make(&attempt.scope) else {
        unhandled::count(Unhandled::ScopeTableFull);
        return Verdict::Pass;
    };
    retire(context, &attempt.scope, scope);
    tallies::count(&attempt.scope, Tally::Attempts);
    let entry = match decision::admit(context, scope, is_known(context, syn)) {
        Admission::Known => Entry::Known,
        Admission::Counted(place) => Entry::Counted(place),
        Admission::Full => {
            steps::go_on(skb, Step::Defer);
            return Verdict::Pass;
        }
        Admission::Unaccountable => return pass_unaccounted(context, attempt),
    };
    match insert(skb, context, syn, attempt, entry) {
        Insertion::Done => {}
        failed @ (Insertion::Taken | Insertion::Full) => {
            decision::undo(scope, None, entry);
            return not_inserted(context, attempt, failed);
        }
    }
    if entry == Entry::Known {
        tallies::count(&attempt.scope, Tally::Known);
    }
    tallies::count(&attempt.scope, Tally::Passed);
    Verdict::Pass
}

#[inline(always)]
fn pass_unaccounted(context: &Context<'_>, attempt: &Attempt) -> Verdict {
    unhandled::count(Unhandled::Unaccountable);
    tallies::count(&attempt.scope, Tally::Passed);
    unremembered(context, attempt, Verdict::Pass)
}

/// This verdict on an attempt that is in no table. If it passes it may cross another
/// device right away, where it is no new one.
#[inline(always)]
fn unremembered(context: &Context<'_>, attempt: &Attempt, verdict: Verdict) -> Verdict {
    if matches!(verdict, Verdict::Pass) {
        scratch::note_unremembered(attempt.ifindex, context.now_ns);
    }
    verdict
}

/// Puts the attempt into the table. If it does not get in, the caller gives back
/// what it took.
#[inline(always)]
fn insert(
    skb: &Skb,
    context: &Context<'_>,
    syn: &Seen,
    attempt: &Attempt,
    entry: Entry,
) -> Insertion {
    let insertion = match scratch::flow(Flow::new(attempt, entry, context.now_ns)) {
        Some(flow) => {
            flow.found_under(&syn.key);
            flows::insert(&syn.key, flow, entry != Entry::Known)
        }
        None => Insertion::Full,
    };
    match insertion {
        Insertion::Done => sockets::remember(attempt.cookie, &syn.key),
        Insertion::Taken => {}
        Insertion::Full => {
            // How many were lost is in the count; the log says it ever more rarely.
            let before = unhandled::count(Unhandled::FlowTableFull);
            if before & (before + 1) == 0 {
                warn_of_full_table(skb, before);
            }
        }
    }
    insertion
}

/// What becomes of an attempt that did not get into the table. Where there was no
/// room it passes. Where another CPU has just put one with the same addresses and
/// ports it is as with a full line: it is not remembered, and its sender will ask
/// again.
#[inline(always)]
fn not_inserted(context: &Context<'_>, attempt: &Attempt, insertion: Insertion) -> Verdict {
    if insertion != Insertion::Taken {
        return unremembered(context, attempt, Verdict::Pass);
    }
    tallies::count(&attempt.scope, Tally::Overflowed);
    unremembered(context, attempt, held_back(context.policy.mode()))
}

#[inline(never)]
fn warn_of_full_table(skb: &Skb, before: u64) {
    warn!(
        &skb.context(),
        "no room for an attempt in the table of flows, {} before it", before
    );
}

#[inline(always)]
fn defer(skb: &Skb, context: &Context<'_>, syn: &Seen) -> Verdict {
    let Context { policy, now_ns, .. } = *context;
    let Some(attempt) = scratch::attempt() else {
        return Verdict::Pass;
    };
    let (Some(scope), Some(line)) = (
        scopes::get_or_make(&attempt.scope),
        scopes::line_or_make(&LineKey {
            scope: attempt.scope,
            owner: attempt.owner,
        }),
    ) else {
        unhandled::count(Unhandled::ScopeTableFull);
        return pass_unaccounted(context, attempt);
    };
    let deferral = decision::defer(context, scope, line);
    // First, so that the daemon knows of the episode before it knows of the
    // attempt.
    if deferral.episode_begins() {
        if events::limit_reached(skb, policy, scope, attempt, syn, now_ns) {
            tallies::count(&attempt.scope, Tally::Episodes);
        } else {
            scope.forget_episode(now_ns);
        }
    }
    let verdict = held_back(policy.mode());
    match deferral {
        Deferral::Unaccountable => {
            unhandled::count(Unhandled::Unaccountable);
            tallies::count(&attempt.scope, Tally::Overflowed);
            unremembered(context, attempt, verdict)
        }
        Deferral::Overflow { .. } => {
            tallies::count(&attempt.scope, Tally::Overflowed);
            unremembered(context, attempt, verdict)
        }
        Deferral::Waits { entry, .. } => {
            match insert(skb, context, syn, attempt, entry) {
                Insertion::Done => {}
                failed @ (Insertion::Taken | Insertion::Full) => {
                    decision::undo(scope, Some(line), entry);
                    return not_inserted(context, attempt, failed);
                }
            }
            tallies::count(&attempt.scope, Tally::Deferred);
            if let Some((flow, _)) = flows::get(&syn.key) {
                hand_over(skb, context, syn, flow, scope);
            }
            verdict
        }
    }
}

#[inline(always)]
const fn held_back(mode: Mode) -> Verdict {
    match mode {
        Mode::Enforce => Verdict::Swallow,
        Mode::Monitor => Verdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_survives_as_a_number() {
        for hook in [Hook::Egress, Hook::Ingress, Hook::Turning] {
            assert!(Hook::from_raw(hook as u32) == hook);
        }
        // What nobody wrote is where most are.
        assert!(Hook::from_raw(7) == Hook::Egress);
    }

    #[test]
    fn only_the_cookie_of_a_daemon_makes_a_copy() {
        assert_eq!(offer_of(5, 5), Offer::Daemon);
        assert_eq!(offer_of(5, 6), Offer::Sender);
        // Without a daemon, and without a socket.
        assert_eq!(offer_of(0, 0), Offer::Sender);
        assert_eq!(offer_of(5, 0), Offer::Sender);
    }
}
