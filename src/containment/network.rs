//! Networks whose hosts are never isolated (`cognito.md` 6.3).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// How many bits of an IPv6 address come before the IPv4 address that it maps.
const MAPPED_BITS: u8 = 96;

/// A network, such as `10.1.0.0/16` or `2001:db8::/32`. IPv4 addresses written as IPv6 are the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Neither an address nor an address with a number of bits.
    #[error("must be an address, or a network such as 10.1.0.0/16 or 2001:db8::/32")]
    Form,
    /// `10.1.2.3/16`: one of the two is a mistake, and which one decides who is protected.
    #[error("has address bits beyond its length: write {0} for that network, or the address alone")]
    HostBits(String),
}

impl Network {
    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// Reads a network; an address alone is the network of that address.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let text = text.trim();
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address.to_canonical()),
            Err(_) => text.parse::<IpNet>().map_err(|_| NetworkError::Form)?,
        };
        if net.trunc() != net {
            return Err(NetworkError::HostBits(net.trunc().to_string()));
        }
        let mapped = match net.network().to_canonical() {
            address @ IpAddr::V4(_) if net.prefix_len() >= MAPPED_BITS => {
                IpNet::new(address, net.prefix_len() - MAPPED_BITS).ok()
            }
            _ => None,
        };
        Ok(Self(mapped.unwrap_or(net)))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_and_single_addresses_are_read() {
        let rows = [
            // text, shown, inside, outside
            ("10.1.0.0/16", "10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            (" 192.0.2.7 ", "192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1", "::1/128", "::1", "127.0.0.1"),
            ("::ffff:10.1.0.0/112", "10.1.0.0/16", "10.1.2.3", "10.2.0.0"),
            ("::ffff:10.1.2.3", "10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
            ("10.1.0.0/16", "10.1.0.0/16", "::ffff:10.1.2.3", "::ffff:10.2.0.0"),
        ];
        for (text, shown, inside, outside) in rows {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.to_string(), shown, "{text}");
            assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{text} {outside}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_rule() {
        for text in ["", "10.1.0.0/33", "10.1/16", "fin-01", "10.1.0.0/", "/8", "10.1.0.0/8/8", "2001:db8::/129"] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError::Form), "{text}");
        }
        assert_eq!("10.1.2.3/16".parse::<Network>(), Err(NetworkError::HostBits("10.1.0.0/16".into())));
    }

    proptest! {
        #[test]
        fn a_network_holds_what_shares_its_first_bits(a: u32, b: u32, bits in 0u8..=32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let network: Network = format!("{}/{bits}", Ipv4Addr::from(a & mask)).parse().unwrap();
            prop_assert_eq!(network.contains(IpAddr::V4(Ipv4Addr::from(b))), a & mask == b & mask);
        }

        #[test]
        fn an_ipv6_network_holds_what_shares_its_first_bits(a: u128, low: u128, bits in 0u8..=128) {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            let network: Network = format!("{}/{bits}", Ipv6Addr::from(a & mask)).parse().unwrap();
            let near = Ipv6Addr::from((a & mask) | (low & !mask));
            // An address that maps an IPv4 one is that one, and so in no wider IPv6 network.
            if near.to_ipv4_mapped().is_none() {
                prop_assert!(network.contains(IpAddr::V6(near)));
            }
        }

        #[test]
        fn no_text_is_a_panic(text in any::<String>(), near in "[0-9a-f:./]{0,30}") {
            let _ = (text.parse::<Network>(), near.parse::<Network>());
        }
    }
}
