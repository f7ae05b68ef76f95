//! What the programs should decide: the same core, over plain tables.

use super::build::Dial;
use std::collections::HashMap;
use throttle_common::{
    decision::{self, Admission, Again, Context, Deferral, Offer, Verdict},
    flow::{Attempt, Endpoint, Entry, Flow, FlowKey, Phase},
    policy::{Daemon, Mode, Policy},
    record::{FRAME_MAX, RecordKind, Tallies, Tally},
    scope::{Line, Scope},
    subject::Subject,
};

/// The tables of the host. One scope, one line.
pub(crate) struct Model {
    pub(crate) policy: Policy,
    pub(crate) daemon: Daemon,
    pub(crate) flows: HashMap<FlowKey, Flow>,
    endpoints: HashMap<Endpoint, u64>,
    pub(crate) scope: Scope,
    pub(crate) line: Line,
    pub(crate) tallies: Tallies,
    pub(crate) records: Vec<RecordKind>,
    /// Copies of the daemon's whose attempt was gone.
    pub(crate) not_needed: u64,
    ifindex: u32,
    subject: Subject,
}

impl Model {
    pub(crate) fn new(policy: &Policy, ifindex: u32) -> Self {
        Self {
            policy: *policy,
            daemon: Daemon::default(),
            flows: HashMap::new(),
            endpoints: HashMap::new(),
            scope: Scope::new(),
            line: Line::new(),
            tallies: Tallies::default(),
            records: Vec::new(),
            not_needed: 0,
            ifindex,
            subject: super::bench::interface(ifindex),
        }
    }

    /// Whether an endpoint has answered, however long ago, and nothing has gone
    /// unanswered since.
    pub(crate) fn has_answered(&self, endpoint: &Endpoint) -> bool {
        self.endpoints
            .get(endpoint)
            .is_some_and(|at_ns| *at_ns != 0)
    }

    /// An endpoint answered at this time, or, if it is 0, has left a SYN unanswered
    /// since it did.
    pub(crate) fn answered_at(&mut self, endpoint: Endpoint, at_ns: u64) {
        self.endpoints.insert(endpoint, at_ns);
    }

    fn count(&mut self, tally: Tally) {
        self.tallies.0[tally as usize] += 1;
    }

    pub(crate) fn is_known(&self, endpoint: &Endpoint, now_ns: u64) -> bool {
        self.policy.known_for_ns > 0
            && self.endpoints.get(endpoint).is_some_and(|&at_ns| {
                at_ns != 0 && now_ns.saturating_sub(at_ns) < self.policy.known_for_ns
            })
    }

    /// A SYN of `dial` leaves in a frame of `frame_len` bytes, `data_len` of them
    /// data. The programs that decide about it read the clock one after the other.
    pub(crate) fn syn(
        &mut self,
        dial: Dial,
        data_len: u32,
        frame_len: usize,
        offer: Offer,
        [found_ns, admitted_ns, deferred_ns]: [u64; 3],
    ) -> Verdict {
        let key = dial.key();
        let (policy, daemon) = (self.policy, self.daemon);
        let at = |now_ns| Context {
            policy: &policy,
            daemon: &daemon,
            now_ns,
        };
        if let Some(flow) = self.flows.get(&key) {
            if flow.isn == dial.isn {
                if let Some(verdict) = self.again(&at(found_ns), &key, frame_len, offer) {
                    return verdict;
                }
            } else if offer == Offer::Sender {
                self.end(&key, Tally::Aborted);
            }
            if offer == Offer::Sender {
                self.flows.remove(&key);
            }
        }
        if offer == Offer::Daemon {
            self.not_needed += 1;
            return Verdict::Swallow;
        }
        let attempt = Attempt {
            isn: dial.isn,
            data_len,
            ifindex: self.ifindex,
            cookie: 0,
            scope: self.subject,
            owner: Subject::default(),
            too_long: frame_len > FRAME_MAX,
        };
        self.retire(admitted_ns);
        self.count(Tally::Attempts);
        let known = self.is_known(&key.endpoint(), admitted_ns);
        let entry = match decision::admit(&at(admitted_ns), &self.scope, known) {
            Admission::Known => Entry::Known,
            Admission::Counted(place) => Entry::Counted(place),
            Admission::Full => return self.defer(&at(deferred_ns), &key, &attempt),
            Admission::Unaccountable => panic!("nobody contends here"),
        };
        self.flows
            .insert(key, Flow::new(&attempt, entry, admitted_ns));
        if entry == Entry::Known {
            self.count(Tally::Known);
        }
        self.count(Tally::Passed);
        Verdict::Pass
    }

    fn retire(&mut self, now_ns: u64) {
        self.tallies.0[Tally::Expired as usize] += self.scope.retire(&self.policy, now_ns);
    }

    fn again(
        &mut self,
        context: &Context<'_>,
        key: &FlowKey,
        frame_len: usize,
        offer: Offer,
    ) -> Option<Verdict> {
        let known = self.is_known(&key.endpoint(), context.now_ns);
        self.retire(context.now_ns);
        if offer == Offer::Daemon {
            self.scope.room_seen();
        }
        let flow = &self.flows[key];
        let (scope, line) = (&self.scope, Some(&self.line));
        let again = decision::seen_again(
            context,
            scope,
            line,
            flow,
            flow.phase_word(),
            offer,
            known,
            decision::Device::plain(self.ifindex),
        );
        // In monitor mode a sender's packet goes out.
        if matches!(again, Again::StillDeferred | Again::HandOver)
            && offer == Offer::Sender
            && context.policy.mode() == Mode::Monitor
        {
            flow.goes_out();
        }
        match again {
            // This device has no fq.
            Again::Departs(at_ns) => panic!("departs at {at_ns}"),
            Again::Released => {
                if offer == Offer::Sender {
                    flow.goes_out();
                }
                self.count(Tally::Released);
            }
            // Unless the endpoint has answered another one meanwhile.
            Again::NowCounted => {
                let first_ns = flow.first_ns;
                self.endpoints
                    .entry(key.endpoint())
                    .and_modify(|at_ns| *at_ns = if *at_ns <= first_ns { 0 } else { *at_ns });
            }
            Again::HandOver => self.hand_over(key, frame_len),
            Again::NotNeeded => self.not_needed += 1,
            Again::StillDeferred | Again::HalfOpen => {}
            Again::Ended => return None,
        }
        let was_on_wire = offer == Offer::Daemon && self.flows[key].is_on_wire();
        Some(again.verdict(offer, context.policy.mode(), was_on_wire))
    }

    fn hand_over(&mut self, key: &FlowKey, frame_len: usize) {
        if self.daemon.generation != 0 && frame_len <= FRAME_MAX {
            self.records.push(RecordKind::Deferred);
            self.flows[key].hand_to(self.daemon.generation);
            self.scope.room_seen();
        }
    }

    fn defer(&mut self, context: &Context<'_>, key: &FlowKey, attempt: &Attempt) -> Verdict {
        let deferral = decision::defer(context, &self.scope, &self.line);
        if deferral.episode_begins() {
            self.records.push(RecordKind::LimitReached);
            self.count(Tally::Episodes);
        }
        match deferral {
            Deferral::Unaccountable => panic!("nobody contends here"),
            Deferral::Overflow { .. } => self.count(Tally::Overflowed),
            Deferral::Waits { entry, .. } => {
                self.flows
                    .insert(*key, Flow::new(attempt, entry, context.now_ns));
                self.count(Tally::Deferred);
                let len = if attempt.too_long { FRAME_MAX + 1 } else { 0 };
                self.hand_over(key, len);
            }
        }
        match context.policy.mode() {
            Mode::Enforce => Verdict::Swallow,
            Mode::Monitor => Verdict::Pass,
        }
    }

    /// A SYN-ACK or RST for `dial` comes in.
    pub(crate) fn answer(&mut self, dial: Dial, ack: u32, how: Tally, now_ns: u64) {
        let key = dial.key();
        let Some(flow) = self.flows.get(&key) else {
            return;
        };
        if !decision::acknowledges(flow, ack) || !Self::may_be_answered(flow) {
            return;
        }
        if how == Tally::Answered {
            self.endpoints.insert(key.endpoint(), now_ns);
        }
        self.end(&key, how);
        self.flows.remove(&key);
    }

    /// An ICMP error about `dial` comes in.
    pub(crate) fn error(&mut self, dial: Dial, seq: u32) {
        let key = dial.key();
        let Some(flow) = self.flows.get(&key) else {
            return;
        };
        if decision::is_quoted(flow, seq) && Self::may_be_answered(flow) {
            self.end(&key, Tally::Unreachable);
            self.flows.remove(&key);
        }
    }

    /// What has left.
    fn may_be_answered(flow: &Flow) -> bool {
        flow.phase() != Phase::Deferred || flow.is_on_wire()
    }

    fn end(&mut self, key: &FlowKey, how: Tally) {
        let flow = &self.flows[key];
        if decision::end(Some(&self.scope), Some(&self.line), flow, flow.phase_word()).is_none() {
            return;
        }
        self.count(how);
        if self.daemon.generation != 0 && self.scope.should_tell_of_room(&self.policy) {
            self.records.push(RecordKind::Room);
        }
    }
}
