//! `Host`, parsed strictly (RFC 9110, section 7.2): a name or an address, and perhaps a port.
//!
//! A `Host` can only take trust away: it never makes a request local (S-06), but one that names another
//! place than loopback shows that a browser was talked into coming here (DNS rebinding).

use std::net::{IpAddr, Ipv6Addr};

use crate::address;

/// Where a request believes to have arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    name: Name<'a>,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name<'a> {
    Address(IpAddr),
    Dns(&'a str),
}

impl<'a> Host<'a> {
    /// Parses `host`, `host:port`, `[v6]` or `[v6]:port`; `None` for anything else, user-info and empty
    /// ports included.
    pub fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t']);
        let (name, rest) = match text.strip_prefix('[') {
            Some(inside) => {
                let (address, rest) = inside.split_once(']')?;
                (Name::Address(IpAddr::V6(address.parse::<Ipv6Addr>().ok()?).to_canonical()), rest)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                (dns_or_v4(&text[..end])?, &text[end..])
            }
        };
        let port = match rest.strip_prefix(':') {
            Some(digits) => Some(address::port(digits)?),
            None if rest.is_empty() => None,
            None => return None,
        };
        Some(Self { name, port })
    }

    /// Whether it names this host to itself: a loopback address, or exactly `localhost`.
    pub fn is_loopback(&self) -> bool {
        match self.name {
            Name::Address(address) => address.is_loopback(),
            Name::Dns(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Whether it is a loopback, private or link-local address, or `localhost`.
    pub fn is_private(&self) -> bool {
        match self.name {
            Name::Address(address) => address::is_private(address),
            Name::Dns(_) => self.is_loopback(),
        }
    }

    /// Whether pages served under it can be no one else's: private, or a name that public DNS does not give
    /// to strangers (`*.local`, `*.ts.net`).
    pub fn is_private_site(&self) -> bool {
        match self.name {
            Name::Address(address) => address::is_private(address),
            Name::Dns(name) => {
                let under = |suffix: &str| {
                    name.len() > suffix.len()
                        && name.as_bytes()[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
                };
                self.is_loopback() || under(".local") || under(".ts.net")
            }
        }
    }

    /// Whether both name the same host and port. Names compare without case.
    pub fn same(&self, other: &Host<'_>) -> bool {
        let same_name = match (&self.name, &other.name) {
            (Name::Address(one), Name::Address(two)) => one == two,
            (Name::Dns(one), Name::Dns(two)) => one.eq_ignore_ascii_case(two),
            _ => false,
        };
        same_name && self.port == other.port
    }

    /// The port, if one is written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

fn dns_or_v4(text: &str) -> Option<Name<'_>> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(allowed) || text.starts_with('.') {
        return None;
    }
    // A name whose last label is a number is an IPv4 address to every browser; only the plain form is ours.
    let last = text.rsplit('.').find(|label| !label.is_empty())?;
    if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X") {
        return address::parse(text).map(Name::Address);
    }
    Some(Name::Dns(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_address_or_exactly_localhost() {
        for text in ["localhost", "LOCALHOST:18789", "127.0.0.1:18789", "127.9.9.9", "[::1]:1", "[::ffff:127.0.0.1]"] {
            assert!(Host::parse(text).unwrap().is_loopback(), "{text}");
        }
        for text in
            ["evil.example", "127.evil.com", "localhost.evil.com", "192.168.1.5", "sub.localhost", "[2001:db8::1]"]
        {
            assert!(!Host::parse(text).unwrap().is_loopback(), "{text}");
        }
    }

    #[test]
    fn s_19_what_is_not_a_host_is_refused() {
        for text in [
            "",
            "[::1]evil.com",
            "localhost:18789@evil.com",
            "user@localhost",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "local host",
            "127.1",
            "0x7f000001",
            "127.0.0.010",
            "::1",
            "a/b",
            "höst",
        ] {
            assert_eq!(Host::parse(text), None, "{text}");
        }
    }
}
