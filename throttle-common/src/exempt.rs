//! Destinations that no limit applies to.

use crate::flow::Endpoint;

/// Bits of the port in front of the address.
pub const PORT_BITS: u32 = 16;
/// Bits of a whole destination.
pub const ALL_BITS: u32 = PORT_BITS + 128;

/// A destination as the key of a longest-prefix table: the port comes first, so
/// that a prefix of the address may go with it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Destination {
    /// The port in network order; 0, which no connection has, for all ports.
    pub port: [u8; 2],
    /// The address, IPv4 mapped into IPv6.
    pub address: [u8; 16],
}

const _: () = assert!(size_of::<Destination>() == 18);

impl Destination {
    /// The endpoint at its own port.
    #[inline(always)]
    #[must_use]
    pub const fn at_port(endpoint: &Endpoint) -> Self {
        Self {
            port: endpoint.port,
            address: endpoint.address,
        }
    }

    /// The endpoint at whatever port.
    #[inline(always)]
    #[must_use]
    pub const fn at_any_port(endpoint: &Endpoint) -> Self {
        Self {
            port: [0; 2],
            address: endpoint.address,
        }
    }
}
