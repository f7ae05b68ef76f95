//! The receipt for one unit of a count.

use crate::window::{LABEL_BITS, Label};

/// Bits of a place: a slot (8) and a bucket's label.
pub const PLACE_BITS: u32 = 8 + LABEL_BITS;

/// Where one unit of a [`Counter`](crate::counter::Counter) was filed: the slot
/// and the label of its bucket. Who hands the receipt in gets the unit taken
/// back, once, if it has not been retired since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(u64);

impl Place {
    /// The receipt for a unit in `slot` under `label`. Slots are below 256.
    #[inline(always)]
    #[must_use]
    pub const fn new(slot: usize, label: Label) -> Self {
        Self(((slot as u64 & 0xff) << LABEL_BITS) | label.bits())
    }

    /// Unpacks a receipt from the low [`PLACE_BITS`] bits; none if they are 0.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let bits = bits & ((1 << PLACE_BITS) - 1);
        if bits == 0 { None } else { Some(Self(bits)) }
    }

    /// The receipt as a number below 2^[`PLACE_BITS`]; never 0.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The slot.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> usize {
        ((self.0 >> LABEL_BITS) & 0xff) as usize
    }

    /// The label of its bucket.
    #[inline(always)]
    #[must_use]
    pub const fn label(self) -> Label {
        Label::from_bits(self.0)
    }
}
