//! One 64-bit number that several CPUs change at once.
//!
//! On the host this is `AtomicU64`; under `cfg(shuttle)` the model checker's;
//! on the BPF target, where `AtomicU64` cannot add or exchange, the compiler's
//! intrinsics. Always sequentially consistent: with a weaker order LLVM 22
//! emits an add that does not fetch and then uses the register as if it had.

#[cfg(target_arch = "bpf")]
use core::cell::UnsafeCell;
#[cfg(not(any(target_arch = "bpf", shuttle)))]
use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(shuttle)]
use shuttle::sync::atomic::{AtomicU64, Ordering};

/// A shared 64-bit number. Eight bytes, aligned to eight, wherever it is.
#[repr(transparent)]
#[derive(Debug)]
#[cfg(not(target_arch = "bpf"))]
pub struct Word(AtomicU64);

#[cfg(not(target_arch = "bpf"))]
impl Word {
    /// A word that holds `value`.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// What it holds now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Replaces what it holds and returns what was there.
    #[inline(always)]
    pub fn swap(&self, value: u64) -> u64 {
        self.0.swap(value, Ordering::SeqCst)
    }

    /// Adds `value`, wrapping, and returns what was there before.
    #[inline(always)]
    pub fn add(&self, value: u64) -> u64 {
        self.0.fetch_add(value, Ordering::SeqCst)
    }

    /// Replaces `old` by `new`; `true` if it did, `false` if something else
    /// was there.
    #[inline(always)]
    pub fn replace(&self, old: u64, new: u64) -> bool {
        self.0
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// A shared 64-bit number. Eight bytes, aligned to eight, wherever it is.
#[repr(transparent)]
#[derive(Debug)]
#[cfg(target_arch = "bpf")]
pub struct Word(UnsafeCell<u64>);

// SAFETY: every access goes through an atomic instruction or a single aligned
// 8-byte volatile read, which a 64-bit CPU does not tear.
#[cfg(target_arch = "bpf")]
unsafe impl Sync for Word {}

#[cfg(target_arch = "bpf")]
impl Word {
    /// A word that holds `value`.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// What it holds now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // `AtomicU64::load` does not select on this target.
        // SAFETY: the pointer comes from a live reference and is aligned.
        unsafe { core::ptr::read_volatile(self.0.get()) }
    }

    /// Replaces what it holds and returns what was there.
    #[inline(always)]
    pub fn swap(&self, value: u64) -> u64 {
        // SAFETY: as for `load`.
        unsafe {
            core::intrinsics::atomic_xchg::<u64, { core::intrinsics::AtomicOrdering::SeqCst }>(
                self.0.get(),
                value,
            )
        }
    }

    /// Adds `value`, wrapping, and returns what was there before.
    #[inline(always)]
    pub fn add(&self, value: u64) -> u64 {
        // SAFETY: as for `load`.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::SeqCst }>(
                self.0.get(),
                value,
            )
        }
    }

    /// Replaces `old` by `new`; `true` if it did, `false` if something else
    /// was there.
    #[inline(always)]
    pub fn replace(&self, old: u64, new: u64) -> bool {
        // SAFETY: as for `load`.
        unsafe {
            core::intrinsics::atomic_cxchg::<
                u64,
                { core::intrinsics::AtomicOrdering::SeqCst },
                { core::intrinsics::AtomicOrdering::SeqCst },
            >(self.0.get(), old, new)
            .1
        }
    }
}

impl Word {
    /// Takes `value` away, wrapping, and returns what was there before.
    #[inline(always)]
    pub fn sub(&self, value: u64) -> u64 {
        self.add(value.wrapping_neg())
    }

    /// Raises it to at least `value`.
    ///
    /// Gives up after a few lost races; each lost race means that somebody else
    /// has just written a fresher value.
    #[inline(always)]
    pub fn raise_to(&self, value: u64) {
        for _ in 0..4 {
            let held = self.load();
            if held >= value || self.replace(held, value) {
                return;
            }
        }
    }
}
