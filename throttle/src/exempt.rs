//! Destinations that no limit applies to: `--exempt CIDR[:PORT]`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use throttle_common::exempt::{Destination, PORT_BITS};

/// Most of them.
pub const EXEMPT_MAX: u32 = 4_096;

/// A network, at one port or at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Exempt {
    net: IpNet,
    port: Option<u16>,
}

impl Exempt {
    /// The key of the kernel side's table, and how many of its bits count.
    #[must_use]
    pub fn key(&self) -> (u32, Destination) {
        let (address, bits): (Ipv6Addr, u8) = match self.net {
            IpNet::V4(net) => (net.network().to_ipv6_mapped(), 96 + net.prefix_len()),
            IpNet::V6(net) => (net.network(), net.prefix_len()),
        };
        let destination = Destination {
            port: self.port.unwrap_or(0).to_be_bytes(),
            address: address.octets(),
        };
        (PORT_BITS + u32::from(bits), destination)
    }
}

impl Exempt {
    /// What a key of the kernel side's table stands for. None if `bits` are too
    /// few to hold the port.
    #[must_use]
    pub fn of_key(bits: u32, key: &Destination) -> Option<Self> {
        let bits = u8::try_from(bits.checked_sub(PORT_BITS)?).ok()?;
        let address = Ipv6Addr::from(key.address);
        let net = match (address.to_ipv4_mapped(), bits.checked_sub(96)) {
            (Some(address), Some(bits)) => IpNet::new(address.into(), bits),
            _ => IpNet::new(address.into(), bits),
        };
        let port = u16::from_be_bytes(key.port);
        Some(Self {
            net: net.ok()?,
            port: (port != 0).then_some(port),
        })
    }
}

impl FromStr for Exempt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (net, port) = split(text)?;
        let net = match net.parse::<IpNet>() {
            Ok(net) => net,
            // An address alone is a network of one.
            Err(_) => IpNet::from(net.parse::<IpAddr>().map_err(|_| {
                format!(
                    "'{net}' is no network; write 10.0.0.0/8, 192.0.2.1:443, 2001:db8::/32 or \
                     [2001:db8::/32]:443"
                )
            })?),
        };
        if net != net.trunc() {
            return Err(format!(
                "{net} has bits set beyond its prefix; write {} for the network, or {} for the \
                 address",
                net.trunc(),
                net.addr()
            ));
        }
        let port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(port @ 1..) => Some(port),
                Ok(0) | Err(_) => {
                    return Err(format!("'{port}' is no port; write one from 1 to 65535"));
                }
            },
        };
        Ok(Self { net, port })
    }
}

/// Separates the port. Around an IPv6 address with a port there are brackets.
fn split(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (net, port) = rest
            .split_once(']')
            .ok_or_else(|| format!("no ']' behind '{text}'"))?;
        // [2001:db8::]/32 is not written by anybody, but would be misread.
        return match (port.strip_prefix(':'), port) {
            (Some(port), _) => Ok((net, Some(port))),
            (None, "") => Ok((net, None)),
            (None, _) => Err(format!(
                "'{port}' behind the brackets; the prefix stands within: [2001:db8::/32]:443"
            )),
        };
    }
    match text.split_once(':') {
        Some((net, port)) if !port.contains(':') && net.contains('.') => Ok((net, Some(port))),
        Some(_) | None => Ok((text, None)),
    }
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.net) {
            (None, net) => write!(f, "{net}"),
            (Some(port), IpNet::V4(net)) => write!(f, "{net}:{port}"),
            (Some(port), IpNet::V6(net)) => write!(f, "[{net}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_with_and_without_a_port_are_read() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8:443", "10.0.0.0/8:443"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.1:53", "192.0.2.1/32:53"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
            ("[2001:db8::1]:65535", "[2001:db8::1/128]:65535"),
            ("[::1]", "::1/128"),
            ("::/0", "::/0"),
        ] {
            let exempt: Exempt = text.parse().unwrap();
            assert_eq!(exempt.to_string(), shown);
            let (bits, key) = exempt.key();
            assert_eq!(Exempt::of_key(bits, &key), Some(exempt));
            assert_eq!(shown.parse(), Ok(exempt));
        }
    }

    #[test]
    fn what_is_none_is_refused_with_what_to_write() {
        for (text, hint) in [
            ("", "no network"),
            ("example.org", "no network"),
            ("10.0.0.0/33", "no network"),
            ("10.1.0.0/8", "write 10.0.0.0/8 for the network"),
            ("10.0.0.0/8:0", "from 1 to 65535"),
            ("10.0.0.0/8:70000", "from 1 to 65535"),
            ("10.0.0.0/8:", "from 1 to 65535"),
            ("[2001:db8::]/32", "stands within"),
            ("[2001:db8::/32", "no ']'"),
            ("2001:db8::/129", "no network"),
        ] {
            let error = text.parse::<Exempt>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn an_ipv4_network_is_one_of_mapped_addresses() {
        let (bits, key) = "10.0.0.0/8:443".parse::<Exempt>().unwrap().key();
        assert_eq!((bits, key.port), (16 + 96 + 8, [1, 187]));
        assert_eq!(key.address[10..], [0xff, 0xff, 10, 0, 0, 0]);
        let (bits, key) = "::/0".parse::<Exempt>().unwrap().key();
        assert_eq!((bits, key), (16, Destination::default()));
    }
}
