//! The state of a scope and of a line.

use crate::{counter::Counter, policy::Policy, release::Releases, window::Window, word::Word};

/// Buckets of a scope's counts. An attempt is forgiven at most a bucket and an
/// eighth before its timeout, and a bucket is less than a sixteenth of that.
pub const SCOPE_SLOTS: usize = 64;
/// Buckets of a line's count, which only bounds how much waits.
pub const LINE_SLOTS: usize = 16;

/// After how long without a deferral, and with nobody waiting, an episode is
/// over: 10 s. A scanner that pauses for less is still the same trouble.
pub const EPISODE_QUIET_NS: u64 = 10 * crate::NANOS_PER_SEC;

/// The state of one scope. All zero is a scope where nothing happened yet.
#[repr(C)]
#[derive(Debug)]
pub struct Scope {
    /// Attempts that are half-open and counted.
    pub half_open: Counter<SCOPE_SLOTS>,
    /// Attempts that are deferred.
    pub queued: Counter<SCOPE_SLOTS>,
    /// When releases may be given.
    pub releases: Releases,
    /// When the present episode began, in monotonic nanoseconds; 0 is never.
    episode_ns: Word,
    /// The last deferral or overflow, in monotonic nanoseconds.
    pressed_ns: Word,
    /// 1 while the daemon has been told of room and has not looked yet.
    room_told: Word,
}

impl Default for Scope {
    fn default() -> Self {
        Self::new()
    }
}

impl Scope {
    /// A scope where nothing happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            half_open: Counter::new(),
            queued: Counter::new(),
            releases: Releases::new(),
            episode_ns: Word::new(0),
            pressed_ns: Word::new(0),
            room_told: Word::new(0),
        }
    }

    /// How the timeout of an attempt is cut into buckets.
    #[inline(always)]
    #[must_use]
    pub const fn half_open_window(policy: &Policy) -> Window {
        Counter::<SCOPE_SLOTS>::window(policy.attempt_timeout_ns)
    }

    /// How the queue's memory is cut into buckets.
    #[inline(always)]
    #[must_use]
    pub const fn queue_window(policy: &Policy) -> Window {
        Counter::<SCOPE_SLOTS>::window(policy.max_delay_ns)
    }

    /// Forgives what has timed out; the number of half-open attempts forgiven.
    #[inline(always)]
    pub fn retire(&self, policy: &Policy, now_ns: u64) -> u64 {
        self.queued.retire(Self::queue_window(policy), now_ns);
        self.half_open
            .retire(Self::half_open_window(policy), now_ns)
    }

    /// Notes that an attempt met the limit. `true` if an episode begins with
    /// it: the first ever, or the first after a quiet time. Says so once, on
    /// whichever CPU comes first.
    #[inline(always)]
    pub fn press(&self, someone_waits: bool, now_ns: u64) -> bool {
        // The episode first: who looked at it after another CPU had begun a new
        // one would take that one for over, by a quiet time that came before it.
        let began_ns = self.episode_ns.load();
        let pressed_ns = self.pressed_ns.swap(now_ns);
        let quiet = !someone_waits && now_ns.saturating_sub(pressed_ns) >= EPISODE_QUIET_NS;
        (began_ns == 0 || quiet) && self.episode_ns.replace(began_ns, now_ns)
    }

    /// The episode that [`press`](Self::press) began at `now_ns` could not be
    /// reported: the next deferral begins it anew.
    #[inline(always)]
    pub fn forget_episode(&self, now_ns: u64) {
        self.episode_ns.replace(now_ns, 0);
    }

    /// When the latest episode began, in monotonic nanoseconds; 0 is never.
    #[inline(always)]
    pub fn episode_ns(&self) -> u64 {
        self.episode_ns.load()
    }

    /// When an attempt last met the limit, in monotonic nanoseconds.
    #[inline(always)]
    pub fn pressed_ns(&self) -> u64 {
        self.pressed_ns.load()
    }

    /// Whether the latest episode is over at `now_ns`. What has timed out in the
    /// queue counts no more, swept or not.
    pub fn has_recovered(&self, policy: &Policy, now_ns: u64) -> bool {
        self.queued.live(Self::queue_window(policy), now_ns) == 0
            && now_ns.saturating_sub(self.pressed_ns.load()) >= EPISODE_QUIET_NS
    }

    /// Whether the daemon should now be told that there is room: somebody
    /// waits, there is room, and it has not been told since it last looked.
    #[inline(always)]
    pub fn should_tell_of_room(&self, policy: &Policy) -> bool {
        self.queued.total() > 0
            && self.half_open.total() < policy.limit
            && self.room_told.load() == 0
            && self.room_told.swap(1) == 0
    }

    /// The daemon has looked, or could not be told: tell it next time.
    #[inline(always)]
    pub fn room_seen(&self) {
        self.room_told.swap(0);
    }
}

/// The state of one line: how many wait in it. All zero is an empty line.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Line {
    /// Attempts of its owner that are deferred.
    pub queued: Counter<LINE_SLOTS>,
}

impl Line {
    /// An empty line.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            queued: Counter::new(),
        }
    }

    /// How the queue's memory is cut into buckets.
    #[inline(always)]
    #[must_use]
    pub const fn window(policy: &Policy) -> Window {
        Counter::<LINE_SLOTS>::window(policy.max_delay_ns)
    }
}

#[cfg(not(shuttle))]
const _: () = assert!(size_of::<Scope>() == 1096 && size_of::<Line>() == 144);

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::NANOS_PER_SEC;

    #[test]
    fn an_episode_begins_once_and_again_after_a_quiet_time() {
        let scope = Scope::new();
        let at = |s: u64| s * NANOS_PER_SEC;
        assert!(scope.press(false, at(1)));
        assert!(!scope.press(true, at(2)));
        assert!(!scope.press(false, at(11)));
        assert!(
            !scope.press(true, at(40)),
            "somebody has waited all the time"
        );
        assert!(scope.press(false, at(50)));
        assert_eq!(scope.episode_ns(), at(50));
    }

    #[test]
    fn an_episode_that_was_not_reported_begins_anew() {
        let scope = Scope::new();
        assert!(scope.press(false, 7));
        scope.forget_episode(7);
        assert!(scope.press(true, 8));
        scope.forget_episode(7);
        assert!(!scope.press(true, 9), "only who began it can forget it");
    }

    #[test]
    fn the_daemon_is_told_of_room_once_until_it_looks() {
        let scope = Scope::new();
        let policy = Policy::default();
        assert!(!scope.should_tell_of_room(&policy), "nobody waits");
        scope.queued.put(Scope::queue_window(&policy), 1);
        assert!(scope.should_tell_of_room(&policy));
        assert!(!scope.should_tell_of_room(&policy));
        scope.room_seen();
        assert!(scope.should_tell_of_room(&policy));
        scope.room_seen();
        let full = Policy { limit: 0, ..policy };
        assert!(!scope.should_tell_of_room(&full), "no room");
    }
}
