//! The addresses of the lab, and how each kind of them behaves.
//!
//! All of them are documentation or private ranges, and are routed only
//! inside the lab's namespaces.
//!
//! | kind | addresses | what a SYN meets |
//! |---|---|---|
//! | live | 10.78.0.0/16, fd78::/64 | whatever [`Server`](crate::Server) listens there |
//! | refusing | the same, a closed port | RST |
//! | dead | 198.51.100.0/24, 203.0.113.0/24, 2001:db8:dead::/64, and all unknown ones | silence |
//! | unreachable | 192.0.2.0/24, 2001:db8:bad::/64 | an ICMP error |

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The client's own addresses.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// See [`CLIENT`].
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The far end's own addresses.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// See [`FAR`].
pub const FAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// Where servers of the lab usually listen.
pub const OPEN_PORT: u16 = 80;
/// Where nothing ever listens.
pub const CLOSED_PORT: u16 = 9;

/// Host addresses of a /24 that are used: 1 to 254.
const HOSTS: u32 = 254;

/// The nth dead endpoint. The first 508 are different addresses; then the port
/// goes up, so that every n is an endpoint of its own.
pub fn dead(n: u32) -> SocketAddr {
    let prefix = if (n / HOSTS).is_multiple_of(2) {
        [198, 51, 100]
    } else {
        [203, 0, 113]
    };
    let [a, b, c] = prefix;
    let host = 1 + n % HOSTS;
    let port = 1024 + n / (2 * HOSTS);
    SocketAddr::from(([a, b, c, host as u8], u16::try_from(port).unwrap()))
}

/// The nth dead IPv6 endpoint, each with an address of its own.
pub fn dead_v6(n: u32) -> SocketAddr {
    let [hi, lo] = halves(n + 1);
    SocketAddr::from(([0x2001, 0xdb8, 0xdead, 0, 0, 0, hi, lo], 1024))
}

/// The nth dead endpoint of IPv4 or IPv6, which take turns.
pub fn dead_of_both(n: u32) -> SocketAddr {
    if n.is_multiple_of(2) {
        dead(n)
    } else {
        dead_v6(n)
    }
}

/// The nth live address; it answers if a server listens at `port`.
pub fn live(n: u32, port: u16) -> SocketAddr {
    let [.., hi, lo] = (n + 1).to_be_bytes();
    SocketAddr::from(([10, 78, hi, lo], port))
}

/// The nth live IPv6 address.
pub fn live_v6(n: u32, port: u16) -> SocketAddr {
    let [hi, lo] = halves(n + 1);
    SocketAddr::from(([0xfd78, 0, 0, 0, 0, 0, hi, lo], port))
}

/// The nth endpoint that answers with RST.
pub fn refusing(n: u32) -> SocketAddr {
    live(n, CLOSED_PORT)
}

/// The nth IPv6 endpoint that answers with RST.
pub fn refusing_v6(n: u32) -> SocketAddr {
    live_v6(n, CLOSED_PORT)
}

/// The nth endpoint that is answered for with an ICMP error.
pub fn unreachable(n: u32) -> SocketAddr {
    let port = 1024 + n / HOSTS;
    SocketAddr::from((
        [192, 0, 2, (1 + n % HOSTS) as u8],
        u16::try_from(port).unwrap(),
    ))
}

/// The nth IPv6 endpoint that is answered for with an ICMPv6 error.
pub fn unreachable_v6(n: u32) -> SocketAddr {
    let [hi, lo] = halves(n + 1);
    SocketAddr::from(([0x2001, 0xdb8, 0xbad, 0, 0, 0, hi, lo], 1024))
}

fn halves(n: u32) -> [u16; 2] {
    [(n >> 16) as u16, n as u16]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_number_is_an_endpoint_of_its_own() {
        assert_eq!((0..20_000).map(dead).collect::<HashSet<_>>().len(), 20_000);
        assert_eq!(
            (0..20_000).map(dead_v6).collect::<HashSet<_>>().len(),
            20_000
        );
        assert_eq!(
            (0..20_000)
                .map(|n| live(n, 80))
                .collect::<HashSet<_>>()
                .len(),
            20_000
        );
        assert_eq!(
            (0..5_000).map(unreachable).collect::<HashSet<_>>().len(),
            5_000
        );
    }

    #[test]
    fn the_first_dead_endpoints_are_different_hosts() {
        let hosts: HashSet<_> = (0..508).map(|n| dead(n).ip()).collect();
        assert_eq!(hosts.len(), 508);
    }
}
