//! An attempt: its key, its state, and how it changes hands.

use crate::{
    place::{PLACE_BITS, Place},
    subject::Subject,
    word::Word,
};

/// An address as two numbers.
#[inline(always)]
const fn halves(address: [u8; 16]) -> [u64; 2] {
    let whole = u128::from_be_bytes(address);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the rest is the other half"
    )]
    let low = whole as u64;
    [(whole >> 64) as u64, low]
}

/// Addresses and ports of an attempt, seen from its sender. IPv4 addresses are
/// mapped into IPv6 (RFC 4291, 2.5.5.2). Network order.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    /// The sender's address.
    pub source: [u8; 16],
    /// The address it dials.
    pub destination: [u8; 16],
    /// The sender's port.
    pub source_port: [u8; 2],
    /// The port it dials.
    pub destination_port: [u8; 2],
}

impl FlowKey {
    /// A few bits that are seldom the same for two keys.
    #[inline(always)]
    const fn mixed(&self) -> u64 {
        let [source_high, source_low] = halves(self.source);
        let [destination_high, destination_low] = halves(self.destination);
        let source_port = u16::from_be_bytes(self.source_port) as u64;
        let destination_port = u16::from_be_bytes(self.destination_port) as u64;
        let parts = [
            source_high,
            source_low,
            destination_high,
            destination_low,
            source_port << 16 | destination_port,
        ];
        let (mut mixed, mut at) = (0_u64, 0);
        while at < parts.len() {
            mixed = (mixed.rotate_left(5) ^ parts[at]).wrapping_mul(GOLDEN);
            at += 1;
        }
        mixed >> (64 - NONCE_BITS)
    }

    /// The endpoint that is dialled.
    #[inline(always)]
    #[must_use]
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.destination,
            port: self.destination_port,
            reserved: [0; 2],
        }
    }
}

/// A destination address and port, as a map key.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Endpoint {
    /// The address, IPv4 mapped into IPv6.
    pub address: [u8; 16],
    /// The port, in network order.
    pub port: [u8; 2],
    /// Always 0: a key has no padding.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<FlowKey>() == 36 && size_of::<Endpoint>() == 20);

/// Where an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Over; the entry is about to go.
    Ended,
    /// Held back, waiting in its line.
    Deferred,
    /// Half-open, and counted at this place.
    Counted(Place),
    /// Half-open and uncounted: its endpoint was known.
    Known,
}

/// 2^64 divided by the golden ratio: the upper bits of a product with it are mixed
/// (Fibonacci hashing).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const KIND_SHIFT: u32 = 61;
/// Set in the word of an attempt that has ended, where others have their place, once
/// somebody takes it out of its table.
const CLAIMED: u64 = 1;
const NONCE_BITS: u32 = KIND_SHIFT - PLACE_BITS;

/// What a phase word holds: the phase, and a few bits drawn from the attempt
/// itself.
///
/// The kernel may give an entry's memory to another attempt while a program
/// still looks at it. The bits make a compare-and-swap on behalf of the old
/// attempt fail on the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhaseWord(u64);

impl PhaseWord {
    #[inline(always)]
    const fn new(phase: Phase, nonce: u64) -> Self {
        let (kind, place) = match phase {
            Phase::Ended => (0, 0),
            Phase::Deferred => (1, 0),
            Phase::Counted(place) => (2, place.bits()),
            Phase::Known => (3, 0),
        };
        Self((kind << KIND_SHIFT) | (nonce << PLACE_BITS) | place)
    }

    /// The phase.
    #[inline(always)]
    #[must_use]
    pub const fn phase(self) -> Phase {
        match self.0 >> KIND_SHIFT {
            1 => Phase::Deferred,
            2 => match Place::from_bits(self.0) {
                Some(place) => Phase::Counted(place),
                None => Phase::Ended,
            },
            3 => Phase::Known,
            _ => Phase::Ended,
        }
    }

    #[inline(always)]
    const fn nonce(self) -> u64 {
        (self.0 >> PLACE_BITS) & ((1 << NONCE_BITS) - 1)
    }

    /// Whether this is a word of the same attempt as `seen`, or of one in some eight
    /// thousand that are given its memory.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, seen: Self) -> bool {
        self.nonce() == seen.nonce()
    }

    /// The same attempt in another phase.
    #[inline(always)]
    #[must_use]
    const fn with(self, phase: Phase) -> Self {
        Self::new(phase, self.nonce())
    }
}

/// The state of one attempt, as it stands in the table.
#[repr(C)]
#[derive(Debug)]
pub struct Flow {
    phase: Word,
    /// Receipt of its place in the line's count; 0 is none.
    line_place: Word,
    /// Receipt of its place in the scope's queue count; 0 is none.
    queue_place: Word,
    /// To which daemon its frame was handed; 0 is none.
    handed_to: Word,
    /// From when on a packet of it is out, in monotonic nanoseconds; 0 is not yet.
    on_wire_ns: Word,
    /// When it was first seen, in monotonic nanoseconds.
    pub first_ns: u64,
    /// Socket cookie of its sender; 0 if its socket is not on this host.
    pub cookie: u64,
    /// The scope whose limit it counts against.
    pub scope: Subject,
    /// Whose line it stands in when deferred.
    pub owner: Subject,
    /// Initial sequence number.
    pub isn: u32,
    /// Bytes of data in the SYN (TCP Fast Open, RFC 7413).
    pub data_len: u32,
    /// Index of the interface where it was first seen.
    pub ifindex: u32,
    /// 1 if its frame does not fit a record, so that it waits for its sender.
    pub too_long: u32,
}

#[cfg(not(shuttle))]
const _: () = assert!(size_of::<Flow>() == 120);

/// What is known of an attempt when it is first seen.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Initial sequence number.
    pub isn: u32,
    /// Bytes of data in the SYN.
    pub data_len: u32,
    /// Index of the interface it is seen on.
    pub ifindex: u32,
    /// Socket cookie of its sender, or 0.
    pub cookie: u64,
    /// Its scope.
    pub scope: Subject,
    /// Its line.
    pub owner: Subject,
    /// Whether its frame does not fit a record.
    pub too_long: bool,
}

/// How an attempt enters the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Admitted, counted at this place.
    Counted(Place),
    /// Admitted because its endpoint is known.
    Known,
    /// Deferred, counted at these places of the queue and of its line. In
    /// monitor mode it is on the wire all the same.
    Deferred {
        /// Its place in the scope's queue.
        queue: Place,
        /// Its place in its line.
        line: Place,
        /// Whether its packet passes.
        on_wire: bool,
    },
}

impl Flow {
    /// The attempt `of` that enters as `entry` at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub fn new(of: &Attempt, entry: Entry, now_ns: u64) -> Self {
        let (phase, queue_place, line_place, on_wire) = match entry {
            Entry::Counted(place) => (Phase::Counted(place), 0, 0, true),
            Entry::Known => (Phase::Known, 0, 0, true),
            Entry::Deferred {
                queue,
                line,
                on_wire,
            } => (Phase::Deferred, queue.bits(), line.bits(), on_wire),
        };
        Self {
            phase: Word::new(PhaseWord::new(phase, Self::nonce(of.isn, now_ns)).0),
            line_place: Word::new(line_place),
            queue_place: Word::new(queue_place),
            handed_to: Word::new(0),
            on_wire_ns: Word::new(on_wire as u64),
            first_ns: now_ns,
            cookie: of.cookie,
            scope: of.scope,
            owner: of.owner,
            isn: of.isn,
            data_len: of.data_len,
            ifindex: of.ifindex,
            too_long: of.too_long as u32,
        }
    }

    #[inline(always)]
    const fn nonce(isn: u32, now_ns: u64) -> u64 {
        (((isn as u64) << 31) ^ now_ns).wrapping_mul(GOLDEN) >> (64 - NONCE_BITS)
    }

    /// Says under which key it will be found: once, before it is put into a table.
    #[inline(always)]
    pub fn found_under(&self, key: &FlowKey) {
        let word = self.phase.load();
        self.phase.swap(word ^ (key.mixed() << PLACE_BITS));
    }

    /// The phase word, if what is here is still the attempt that was found under `key`:
    /// its memory may have been given to another one since, with whatever is in it half
    /// written. What is read afterwards is believed only while
    /// [`is_of`](PhaseWord::is_of) holds.
    #[inline(always)]
    pub fn word_of(&self, key: &FlowKey) -> Option<PhaseWord> {
        let word = self.phase_word();
        let nonce = Self::nonce(self.isn, self.first_ns) ^ key.mixed();
        (word.nonce() == nonce).then_some(word)
    }

    /// The phase word as it is now: what a change by compare-and-swap starts
    /// from.
    #[inline(always)]
    pub fn phase_word(&self) -> PhaseWord {
        PhaseWord(self.phase.load())
    }

    /// Where the attempt stands now.
    #[inline(always)]
    pub fn phase(&self) -> Phase {
        self.phase_word().phase()
    }

    /// Moves the attempt from `from` to `to`; `false` if somebody else was
    /// first. An attempt that has ended never moves again.
    #[inline(always)]
    pub fn advance(&self, from: PhaseWord, to: Phase) -> bool {
        !matches!(from.phase(), Phase::Ended) && self.phase.replace(from.0, from.with(to).0)
    }

    /// Claims the entry of the attempt that `seen` is the phase word of, once it has
    /// ended, so as to take it out of its table. `false` if it has not, or somebody
    /// else is at it: *of those who find it over, one takes it out*, and nobody does
    /// while its places in the queue are being handed in. Else the second of two might
    /// take out the attempt that came into its place in between, or hand in that one's
    /// places.
    #[inline(always)]
    #[must_use]
    pub fn claim_entry(&self, seen: PhaseWord) -> bool {
        let ended = seen.with(Phase::Ended).0;
        self.queue_place.load() | self.line_place.load() == 0
            && self.phase.replace(ended, ended | CLAIMED)
    }

    /// Gives a claim back: the table did not let the entry go.
    #[inline(always)]
    pub fn disclaim_entry(&self, seen: PhaseWord) {
        let ended = seen.with(Phase::Ended).0;
        // Nobody else changes the word of what is claimed.
        let _ = self.phase.replace(ended | CLAIMED, ended);
    }

    /// Takes the receipts of its places in queue and line, so that nobody else
    /// hands them in.
    #[inline(always)]
    pub fn take_queue_places(&self) -> (Option<Place>, Option<Place>) {
        (
            Place::from_bits(self.queue_place.swap(0)),
            Place::from_bits(self.line_place.swap(0)),
        )
    }

    /// Exchanges the receipt in the queue for a fresh one; `false` if it has
    /// been taken meanwhile, and then the fresh one is still the caller's.
    #[inline(always)]
    pub fn renew_queue_place(&self, old: Place, fresh: Place) -> bool {
        self.queue_place.replace(old.bits(), fresh.bits())
    }

    /// As [`renew_queue_place`](Self::renew_queue_place), for the line.
    #[inline(always)]
    pub fn renew_line_place(&self, old: Place, fresh: Place) -> bool {
        self.line_place.replace(old.bits(), fresh.bits())
    }

    /// The receipts of its places in queue and line, to look at.
    #[inline(always)]
    pub fn queue_places(&self) -> (Option<Place>, Option<Place>) {
        (
            Place::from_bits(self.queue_place.load()),
            Place::from_bits(self.line_place.load()),
        )
    }

    /// Whether a packet of it went out.
    #[inline(always)]
    pub fn is_on_wire(&self) -> bool {
        self.on_wire_ns.load() != 0
    }

    /// Whether a packet of it waits in its device at `now_ns`, to leave later.
    #[inline(always)]
    pub fn is_about_to_depart(&self, now_ns: u64) -> bool {
        now_ns < self.on_wire_ns.load()
    }

    /// Notes that a packet of it goes out.
    #[inline(always)]
    pub fn goes_out(&self) {
        self.on_wire_ns.swap(1);
    }

    /// Notes that a packet of it leaves its device at `at_ns`.
    #[inline(always)]
    pub fn departs(&self, at_ns: u64) {
        self.on_wire_ns.swap(at_ns);
    }

    /// To which daemon its frame was handed; 0 is none.
    #[inline(always)]
    pub fn handed_to(&self) -> u64 {
        self.handed_to.load()
    }

    /// Notes that its frame was handed to the daemon `generation`.
    #[inline(always)]
    pub fn hand_to(&self, generation: u64) {
        self.handed_to.swap(generation);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::window::Window;
    use proptest::prelude::*;

    fn attempt(isn: u32) -> Attempt {
        Attempt {
            isn,
            data_len: 0,
            ifindex: 1,
            cookie: 0,
            scope: Subject::default(),
            owner: Subject::default(),
            too_long: false,
        }
    }

    proptest! {
        #[test]
        fn a_phase_survives_packing(kind in 0u8..4, slot in 0usize..256, now in any::<u64>(), isn in any::<u32>()) {
            let place = Place::new(slot, Window::new(1 << 34, 64).label(now));
            let phase = [Phase::Ended, Phase::Deferred, Phase::Counted(place), Phase::Known][usize::from(kind)];
            let nonce = Flow::nonce(isn, now);
            let word = PhaseWord::new(phase, nonce);
            prop_assert_eq!(word.phase(), phase);
            prop_assert_eq!(word.nonce(), nonce);
            prop_assert_eq!(Place::from_bits(place.bits()), Some(place));
        }
    }

    #[test]
    fn an_ended_attempt_never_moves_again() {
        let flow = Flow::new(&attempt(1), Entry::Known, 5);
        let word = flow.phase_word();
        assert!(flow.advance(word, Phase::Ended));
        assert!(!flow.advance(word, Phase::Ended));
        assert!(!flow.advance(flow.phase_word(), Phase::Deferred));
    }

    #[test]
    fn a_word_is_of_the_attempt_with_its_key_or_of_none() {
        let key = |n: u8| FlowKey {
            source: [n; 16],
            destination: [0; 16],
            source_port: [n, 1],
            destination_port: [0, 80],
        };
        let flow = Flow::new(&attempt(1), Entry::Known, 5);
        flow.found_under(&key(1));
        let word = flow.word_of(&key(1)).unwrap();
        assert!(flow.phase() == Phase::Known && word.phase() == Phase::Known);
        // Of some hundred others hardly any looks like it.
        let others = (2..=255).filter(|&n| flow.word_of(&key(n)).is_some());
        assert!(others.count() < 3);
        assert!(flow.advance(word, Phase::Ended));
        assert!(flow.word_of(&key(1)).unwrap().is_of(word));
        let half_written = Flow {
            isn: 2,
            ..Flow::new(&attempt(1), Entry::Known, 5)
        };
        half_written.found_under(&key(1));
        assert!(half_written.word_of(&key(1)).is_none());
    }

    #[test]
    fn the_entry_of_what_has_ended_is_claimed_once_and_of_nothing_else() {
        let flow = Flow::new(&attempt(1), Entry::Known, 5);
        let seen = flow.phase_word();
        assert!(!flow.claim_entry(seen));
        assert!(flow.advance(seen, Phase::Ended));
        assert!(!flow.claim_entry(Flow::new(&attempt(2), Entry::Known, 5).phase_word()));
        assert!(flow.claim_entry(seen) && !flow.claim_entry(flow.phase_word()));
        assert_eq!(flow.phase(), Phase::Ended);
        flow.disclaim_entry(seen);
        assert!(flow.claim_entry(flow.phase_word()));
    }

    /// Kept tables outlive the program that filled them. If this fails, and what is in
    /// them is meant in another way from now on, `REVISION` of the layout has to rise.
    #[test]
    fn what_is_kept_in_tables_is_understood_by_the_next_program() {
        let place = Place::new(3, Window::new(1 << 34, 64).label(5 << 34));
        let flow = Flow::new(&attempt(0x0102_0304), Entry::Counted(place), 5 << 34);
        flow.found_under(&FlowKey {
            source: [1; 16],
            destination: [2; 16],
            source_port: [3, 4],
            destination_port: [5, 6],
        });
        assert_eq!(
            (flow.phase_word().0, crate::layout::LAYOUT),
            (5_413_612_041_007_005_776, 2_835_021_849)
        );
    }

    #[test]
    fn a_change_on_behalf_of_another_attempt_fails() {
        let old = Flow::new(&attempt(1), Entry::Known, 5).phase_word();
        let reused = Flow::new(&attempt(2), Entry::Known, 6);
        assert!(!reused.advance(old, Phase::Ended));
        assert_eq!(reused.phase(), Phase::Known);
    }
}
