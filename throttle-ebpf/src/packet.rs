//! Direct access to the bytes of a packet.

use throttle_common::frame::Packet;

/// Furthest offset that is read. Two VLAN tags, six IPv6 extension headers of
/// 256 bytes and a quoted packet lie below it; the verifier needs a bound.
const OFFSET_MAX: u32 = 0xfff;

/// Hides from the compiler how `pointer` came about.
///
/// The verifier learns how far a packet reaches from a comparison of a pointer
/// with its end, and applies that to the pointers it was derived from. The
/// compiler, left alone, derives the two separately, compares their lower
/// halves, or turns `p + 1 > end` into `p >= end`, of which the verifier learns
/// nothing (`find_good_pkt_pointers` in kernel/bpf/verifier.c).
#[inline(always)]
fn opaque(pointer: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let out;
        // A move onto itself, not nothing: an empty statement gives two lines of
        // debug information for one instruction, which the kernel refuses.
        // SAFETY: its result is its operand.
        unsafe {
            core::arch::asm!("{0} = {0}", inlateout(reg) pointer => out, options(pure, nomem, nostack));
        }
        out
    }
    #[cfg(not(target_arch = "bpf"))]
    pointer
}

/// The linear part of a packet: what can be read without a helper.
#[derive(Clone, Copy)]
pub struct Bytes {
    data: usize,
    data_end: usize,
}

impl Bytes {
    /// The bytes from `data` up to, not including, `data_end`.
    ///
    /// # Safety
    ///
    /// Every byte between the two must stay readable for as long as this is
    /// used. In a program: no helper that changes the packet may be called in
    /// between (the verifier sees to it).
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(data: usize, data_end: usize) -> Self {
        Self { data, data_end }
    }

    /// How many there are.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.data_end.saturating_sub(self.data)
    }

    /// Whether there are none.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Packet for Bytes {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if offset > OFFSET_MAX {
            return None;
        }
        let start = opaque(self.data + offset as usize);
        if opaque(start + N) > self.data_end {
            return None;
        }
        // SAFETY: the N bytes from `start` lie before `data_end`, as was just
        // checked, and `new` promises that they are readable.
        Some(unsafe { core::ptr::read_unaligned(start as *const [u8; N]) })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn bytes(of: &[u8]) -> Bytes {
        let range = of.as_ptr_range();
        // SAFETY: the slice outlives the use in each test.
        unsafe { Bytes::new(range.start as usize, range.end as usize) }
    }

    #[test]
    fn reads_what_is_there_and_nothing_behind_it() {
        let frame = [1u8, 2, 3, 4, 5];
        let bytes = bytes(&frame);
        assert_eq!(bytes.load::<2>(3), Some([4, 5]));
        assert_eq!(bytes.load::<3>(3), None);
        assert_eq!(bytes.load::<1>(5), None);
        assert_eq!(bytes.load::<1>(u32::MAX), None);
        assert_eq!(bytes.len(), 5);
    }

    #[test]
    fn agrees_with_the_slice_at_every_offset() {
        let frame: std::vec::Vec<u8> = (0..80).collect();
        for len in 0..frame.len() {
            let part = &frame[..len];
            for offset in 0..100 {
                assert_eq!(bytes(part).load::<4>(offset), part.load::<4>(offset));
                assert_eq!(bytes(part).load::<20>(offset), part.load::<20>(offset));
            }
        }
    }
}
