//! Packets on their way in: what ends an attempt.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use throttle_common::{
    decision,
    flow::{Flow, FlowKey, Phase, PhaseWord},
    frame::{self, Headers, Kind, Link, Quoted},
    record::{Tally, Unhandled},
    subject::LineKey,
};

use crate::{
    endpoints, events, flows,
    outbound::{self, Hook},
    scopes,
    scratch::{self, Seen},
    settings,
    skb::Skb,
    tallies, unhandled,
};

/// What a packet on its way in is to the throttle. What it says is noted.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Incoming {
    /// The peer took the attempt up.
    SynAck = 1,
    /// The peer refused it.
    Reset = 2,
    /// An ICMP error about an attempt.
    IcmpError = 3,
    /// A SYN. On the way in it is somebody else's attempt, or the daemon's copy
    /// on the egress hook of a device whose ingress is watched.
    Syn = 4,
    /// Nothing of these.
    Other = 0,
}

impl Incoming {
    /// What was noted as a number.
    #[inline(always)]
    const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::SynAck,
            2 => Self::Reset,
            3 => Self::IcmpError,
            4 => Self::Syn,
            _ => Self::Other,
        }
    }
}

/// Reads a packet on its way in. Most have passed after a few reads of their
/// headers, without a helper call or a map look-up.
#[inline(always)]
pub fn read(skb: &Skb, link: Link) -> Incoming {
    // The second round is for headers that were not in the linear part.
    for round in 0..2 {
        let packet = skb.packet();
        match frame::headers(&packet, link) {
            Headers::Other => return Incoming::Other,
            Headers::Found(layout) => match frame::kind(&packet, &layout) {
                Kind::Other => return Incoming::Other,
                Kind::SynAck => {
                    if let Some(answer) = frame::answer(&packet, &layout) {
                        return note(answer.key, answer.ack, Incoming::SynAck);
                    }
                }
                Kind::Reset => {
                    if let Some(answer) = frame::answer(&packet, &layout) {
                        return note(answer.key, answer.ack, Incoming::Reset);
                    }
                }
                Kind::IcmpError => match frame::quote(&packet, &layout) {
                    Quoted::Tcp(quote) => {
                        return note(quote.key, quote.seq, Incoming::IcmpError);
                    }
                    Quoted::Other => return Incoming::Other,
                    Quoted::Unparsed => {}
                },
                Kind::Syn => {
                    if let Some(syn) = frame::syn(&packet, &layout) {
                        return if outbound::note(&syn, &layout, Hook::Turning) {
                            Incoming::Syn
                        } else {
                            Incoming::Other
                        };
                    }
                }
                Kind::Unparsed => {}
            },
            Headers::Unparsed => {}
        }
        if round > 0 || !skb.pull() {
            break;
        }
    }
    unhandled::count(Unhandled::Unparsed);
    Incoming::Other
}

#[inline(always)]
fn note(key: FlowKey, number: u32, incoming: Incoming) -> Incoming {
    let seen = Seen {
        key,
        number,
        incoming: incoming as u32,
        hook: Hook::Egress as u32,
        data_len: 0,
        network_offset: 0,
        transport_offset: 0,
    };
    if scratch::note(seen) {
        incoming
    } else {
        Incoming::Other
    }
}

/// An answer or an ICMP error was noted: it ends its attempt if it carries the
/// right number, and a SYN-ACK makes the endpoint known.
#[inline(always)]
pub fn on_answer() {
    let Some(seen) = scratch::seen() else { return };
    let Some((flow, word)) = flows::get(&seen.key) else {
        return;
    };
    let incoming = Incoming::from_raw(seen.incoming);
    let (fits, how) = match incoming {
        Incoming::SynAck => (decision::acknowledges(flow, seen.number), Tally::Answered),
        Incoming::Reset => (decision::acknowledges(flow, seen.number), Tally::Refused),
        Incoming::IcmpError => (decision::is_quoted(flow, seen.number), Tally::Unreachable),
        Incoming::Syn | Incoming::Other => return,
    };
    // What has just been read may have been another one's.
    if !fits || !may_be_answered(flow) || !flow.phase_word().is_of(word) {
        return;
    }
    if incoming == Incoming::SynAck {
        // SAFETY: a helper without arguments.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        endpoints::remember(&seen.key.endpoint(), now_ns);
    }
    finish(flow, word, how);
    flows::take_out(&seen.key, flow, word);
}

/// Nothing of a deferred attempt went out, so nobody can answer it.
#[inline(always)]
fn may_be_answered(flow: &Flow) -> bool {
    flow.phase() != Phase::Deferred || flow.is_on_wire()
}

/// Ends the attempt that `seen` is the phase word of: its place is free, its line
/// moves up, and if somebody waits for the place the daemon is told. The caller takes
/// it out of the table.
#[inline(never)]
pub fn finish(flow: &Flow, seen: PhaseWord, how: Tally) {
    let scope = scopes::get(&flow.scope);
    let line = scopes::line(&LineKey {
        scope: flow.scope,
        owner: flow.owner,
    });
    if decision::end(scope, line, flow, seen).is_none() {
        return;
    }
    tallies::count(&flow.scope, how);
    if let Some(scope) = scope
        && let Some((policy, daemon)) = settings::get()
        && daemon.generation != 0
        && scope.should_tell_of_room(policy)
        && !events::room(&flow.scope)
    {
        scope.room_seen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use throttle_common::{
        decision::undo,
        flow::{Attempt, Entry},
        policy::Policy,
        scope::Scope,
        subject::Subject,
    };

    #[test]
    fn what_came_in_survives_as_a_number() {
        for incoming in [
            Incoming::SynAck,
            Incoming::Reset,
            Incoming::IcmpError,
            Incoming::Syn,
            Incoming::Other,
        ] {
            assert!(Incoming::from_raw(incoming as u32) == incoming);
        }
        assert!(Incoming::from_raw(99) == Incoming::Other);
    }

    #[test]
    fn what_never_went_out_cannot_be_answered() {
        let scope = Scope::new();
        let window = Scope::queue_window(&Policy::default());
        let place = || scope.queued.put(window, 1).unwrap();
        for (on_wire, may_be) in [(false, false), (true, true)] {
            let entry = Entry::Deferred {
                queue: place(),
                line: place(),
                on_wire,
            };
            let attempt = Attempt {
                isn: 1,
                data_len: 0,
                ifindex: 1,
                cookie: 0,
                scope: Subject::default(),
                owner: Subject::default(),
                too_long: false,
            };
            let flow = Flow::new(&attempt, entry, 1);
            assert_eq!(may_be_answered(&flow), may_be);
            undo(&scope, None, entry);
        }
    }
}
