//! Addresses as text: strict parsing, one canonical form, and lists of networks.
//!
//! IPv4-mapped IPv6 (`::ffff:10.0.0.1`) is IPv4 everywhere past this file, so one peer never has two
//! names. Nothing here resolves names: `localhost` in a list of addresses is not an address.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Parses an address and nothing else: no port, no octal or hexadecimal octets, no zone. IPv6 may stand in
/// brackets.
pub fn parse(text: &str) -> Option<IpAddr> {
    let address = match text.strip_prefix('[') {
        Some(inside) => IpAddr::V6(inside.strip_suffix(']')?.parse().ok()?),
        None => text.parse().ok()?,
    };
    Some(address.to_canonical())
}

/// Parses one hop of `X-Forwarded-For` or the value of `X-Real-IP`: an address, optionally in brackets,
/// optionally with a port (`198.51.100.7:443`, `[2001:db8::5]:443`). White space around it is ignored.
pub fn parse_hop(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    parse(text).or_else(|| {
        let (address, after) = text.rsplit_once(':')?;
        port(after)?;
        parse(address).filter(|_| address.starts_with('[') || !address.contains(':'))
    })
}

/// Parses a port: one to five decimal digits, at most 65535.
pub fn port(text: &str) -> Option<u16> {
    (!text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Whether `address` can be the far end of a connection to us: not loopback, unspecified, multicast or
/// broadcast. What a proxy reports as its client must be.
pub fn is_client(address: IpAddr) -> bool {
    !address.is_loopback()
        && !address.is_unspecified()
        && !address.is_multicast()
        && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Whether `address` is loopback, private (RFC 1918, RFC 4193), link-local, or CGNAT (RFC 6598, which
/// Tailscale uses).
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Addresses and networks that an operator listed (`gateway.trustedProxies`). Order means nothing.
///
/// An entry is an address or a CIDR (`10.42.0.0/24`; host bits are ignored). Entries that are neither never
/// match and are kept aside for the configuration to complain about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressList {
    networks: Vec<IpNet>,
    invalid: Vec<Box<str>>,
}

impl AddressList {
    /// Reads the entries; white space around each is ignored.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        let mut list = Self::default();
        for entry in entries {
            match parse_network(entry.trim()) {
                Some(network) => list.networks.push(network),
                None => list.invalid.push(entry.into()),
            }
        }
        list
    }

    /// Whether `address` is listed.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether nothing was listed, not even something invalid.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.invalid.is_empty()
    }

    /// The entries that are neither an address nor a CIDR, as written.
    pub fn invalid(&self) -> impl Iterator<Item = &str> {
        self.invalid.iter().map(AsRef::as_ref)
    }

    /// Whether the list covers all of IPv4 or all of IPv6, by one entry or by several together. Such a list
    /// trusts the whole Internet, and a gateway must not start with it.
    pub fn covers_everything(&self) -> bool {
        let mut simplified = IpNet::aggregate(&self.networks);
        simplified.retain(|network| network.prefix_len() == 0);
        !simplified.is_empty()
    }
}

impl FromIterator<IpNet> for AddressList {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self { networks: networks.into_iter().collect(), invalid: Vec::new() }
    }
}

/// Parses one entry of such a list: an address, or a CIDR over IPv4 or native IPv6.
pub fn parse_network(entry: &str) -> Option<IpNet> {
    let Some((address, prefix)) = entry.split_once('/') else {
        return parse(entry).map(IpNet::from);
    };
    // A prefix over a mapped address would be read as IPv4 by some and as IPv6 by others.
    let base = address.parse::<IpAddr>().ok().filter(|base| base.to_canonical() == *base)?;
    let digits = prefix.len() <= 3 && prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix = digits.then(|| prefix.parse::<u8>().ok()).flatten()?;
    IpNet::new(base, prefix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_hop_is_an_address_with_an_optional_port() {
        for (text, address) in [
            ("198.51.100.7", "198.51.100.7"),
            ("\t198.51.100.7:443 ", "198.51.100.7"),
            ("::ffff:198.51.100.7", "198.51.100.7"),
            ("2001:DB8::5", "2001:db8::5"),
            ("[2001:db8::5]", "2001:db8::5"),
            ("[2001:db8::5]:65535", "2001:db8::5"),
        ] {
            assert_eq!(parse_hop(text), Some(ip(address)), "{text}");
        }
        for text in [
            "",
            "unknown",
            "_hidden",
            "010.0.0.9",
            "0x7f000001",
            "1.2.3",
            "198.51.100.7:",
            "198.51.100.7:abc",
            "198.51.100.7:65536",
            "198.51.100.7:+1",
            "\"198.51.100.7\"",
            "[2001:db8::5",
            "[2001:db8::5]x",
            "[198.51.100.7]",
            "2001:db8::5:443x",
            "[2001:db8::5]:",
            "fe80::1%eth0",
            "1.2.3.4, 5.6.7.8",
        ] {
            assert_eq!(parse_hop(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_that_trusts_everyone_is_recognised_however_it_is_written() {
        for everything in [&["0.0.0.0/0"][..], &["::/0"], &["128.0.0.0/1", "10.0.0.1", "0.0.0.0/1"]] {
            assert!(AddressList::parse(everything.iter().copied()).covers_everything(), "{everything:?}");
        }
        for narrow in [&[][..], &["10.0.0.0/8"], &["0.0.0.0/1"]] {
            assert!(!AddressList::parse(narrow.iter().copied()).covers_everything(), "{narrow:?}");
        }
    }

    #[test]
    fn an_invalid_entry_matches_nothing_and_is_reported() {
        let list = AddressList::parse(["10.0.0.*", "10.0.0.0/33", "10.0.0.0/+8", "::ffff:10.0.0.0/104", "localhost"]);
        assert!(!list.is_empty() && !list.contains(ip("10.0.0.1")) && !list.contains(ip("127.0.0.1")));
        assert_eq!(list.invalid().count(), 5);
    }

    #[test]
    fn private_means_not_routed_on_the_internet() {
        for address in
            ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.0.1", "169.254.1.1", "100.64.0.9", "::1", "fd00::1"]
        {
            assert!(is_private(ip(address)), "{address}");
        }
        for address in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "100::1", "::"] {
            assert!(!is_private(ip(address)), "{address}");
        }
    }
}
