//! Which gateway URLs a client may send credentials to (contract 4.9).
//!
//! Owns the reading of a gateway's URL and the two verdicts on it: of the text, before anything is
//! resolved or sent, and of the address a name resolved to, before anything is sent to it. Pure: it neither
//! resolves names nor connects. Start at [`GatewayUrl::parse`].
//!
//! URLs are read as browsers and Node read them (WHATWG), so that what is judged here is the host that every
//! other client would connect to: `ws://0x7f000001` is `127.0.0.1` for all of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;
use url::{Host, Url};

/// A gateway's address that credentials may be sent to.
///
/// ```
/// use clawgate::client::GatewayUrl;
///
/// let url = GatewayUrl::parse("ws://127.0.0.1:18789")?;
/// assert_eq!((url.host(), url.port(), url.is_tls()), ("127.0.0.1", 18789, false));
/// assert!(GatewayUrl::parse("ws://gateway.example.com").is_err());
/// # Ok::<(), clawgate::client::UrlError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayUrl {
    tls: bool,
    host: Box<str>,
    ip: Option<IpAddr>,
    port: u16,
    target: Box<str>,
}

/// Why a URL is refused. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// It does not parse, or has no host.
    #[error("{0:?} is not a gateway URL: write ws://HOST:PORT or wss://HOST[:PORT]")]
    Malformed(String),
    /// Its scheme is not one of `ws`, `wss`, `http`, `https`.
    #[error("{0:?} is not a scheme of a gateway: use wss:// (or ws:// on your own network)")]
    Scheme(String),
    /// It carries a user name or a password.
    #[error("a gateway URL must not carry credentials, they end up in logs: pass --token or --password instead")]
    Credentials,
    /// Plaintext to a host outside the operator's own networks.
    #[error(
        "ws:// to {0:?} is refused: credentials and messages would cross the network in plaintext. Use wss://, or an \
         SSH tunnel (ssh -N -L 18789:127.0.0.1:18789 user@host) and ws://127.0.0.1:18789"
    )]
    Plaintext(String),
    /// The name is local, but the address it resolved to is not.
    #[error(
        "ws:// to {host:?} is refused: it resolves to {address}, which is not an address of a private network. Use \
         wss://"
    )]
    PublicAddress {
        /// The name in the URL.
        host: String,
        /// What it resolved to.
        address: IpAddr,
    },
}

impl GatewayUrl {
    /// Reads `text` and decides whether a client may send credentials there: anywhere over `wss://`
    /// (`https://` is the same), and over `ws://` (`http://`) to loopback, private, link-local, Tailscale
    /// (100.64.0.0/10), `.local` and `.ts.net` hosts.
    ///
    /// # Errors
    /// [`UrlError`] says what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let malformed = || UrlError::Malformed(shown(text));
        let (scheme, rest) = text.split_once(':').ok_or_else(malformed)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "wss" | "https" => true,
            "ws" | "http" => false,
            // `localhost:18789` parses as a scheme; the answer is better when it is not taken for one.
            _ if !rest.starts_with("//") => return Err(malformed()),
            other => return Err(UrlError::Scheme(shown(other))),
        };
        // WHATWG also reads `ws:host` and `ws:\\host`; whoever wrote that meant something else.
        if rest.strip_prefix("//").is_none_or(|authority| authority.starts_with(['/', '\\'])) {
            return Err(malformed());
        }
        let url = Url::parse(text).map_err(|_| malformed())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Credentials);
        }
        let (host, ip) = match url.host().ok_or_else(malformed)? {
            Host::Ipv4(ip) => (ip.to_string(), Some(IpAddr::V4(ip))),
            Host::Ipv6(ip) => (ip.to_string(), Some(IpAddr::V6(ip))),
            Host::Domain(name) => (name.trim_end_matches('.').to_owned(), None),
        };
        let plaintext_is_safe = match ip {
            Some(ip) => is_own_network(ip),
            None => is_local_name(&host),
        };
        if !tls && !plaintext_is_safe {
            return Err(UrlError::Plaintext(host));
        }
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let port = url.port_or_known_default().ok_or_else(malformed)?;
        Ok(Self { tls, host: host.into(), ip, port, target: target.into() })
    }

    /// The plaintext URL of a gateway on this host.
    pub fn loopback(port: u16) -> Self {
        let ip = Ipv4Addr::LOCALHOST;
        Self { tls: false, host: ip.to_string().into(), ip: Some(ip.into()), port, target: "/".into() }
    }

    /// Whether credentials may go to `address`, which the host resolved to: over `wss://` the certificate
    /// decides, over `ws://` the address must be of the operator's own networks, whatever the name says.
    ///
    /// # Errors
    /// [`UrlError::PublicAddress`].
    pub fn check_address(&self, address: IpAddr) -> Result<(), UrlError> {
        if self.tls || is_own_network(address) {
            return Ok(());
        }
        Err(UrlError::PublicAddress { host: self.host.to_string(), address })
    }

    /// Whether the connection is over TLS.
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host: an IP address without brackets, or a name in lower case without final dots.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host, when the URL gives it as an address.
    pub const fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The port; 80 or 443 when the URL has none, as everywhere.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Path and query for the request line, `/` at least.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Whether the host is this machine by its very spelling.
    pub fn is_loopback(&self) -> bool {
        match self.ip {
            Some(ip) => ip.to_canonical().is_loopback(),
            None => &*self.host == "localhost",
        }
    }

    /// `HOST:PORT`, brackets around an IPv6 address: the `Host` header.
    pub fn authority(&self) -> String {
        match self.ip {
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

/// `ws://HOST:PORT`, and the path when there is one. The query is left out: it may hold a secret.
impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{}", if self.tls { "wss" } else { "ws" }, self.authority(), path.trim_end_matches('/'))
    }
}

/// Addresses where clouds hand out the credentials of the machine: link-local or private by number, and
/// the last place to send a secret to.
const METADATA_SERVICES: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Whether `ip` is an address of the operator's own networks: loopback, private (RFC 1918, RFC 4193),
/// link-local, or the shared range that Tailscale uses (RFC 6598).
fn is_own_network(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    if METADATA_SERVICES.contains(&ip) {
        return false;
    }
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0b1100_0000 == 64;
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// `localhost`, or a name under `.local` or `.ts.net`.
fn is_local_name(name: &str) -> bool {
    name == "localhost"
        || [".local", ".ts.net"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix).is_some_and(|rest| rest.split('.').all(|label| !label.is_empty())))
}

/// `text` cut and stripped for an error message, without what looks like credentials.
fn shown(text: &str) -> String {
    let text = match text.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => text.to_owned(),
    };
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong() {
        let error = |text| GatewayUrl::parse(text).unwrap_err();
        assert_eq!(error("localhost:18789"), UrlError::Malformed("localhost:18789".into()));
        assert_eq!(error("ws:///x"), UrlError::Malformed("ws:///x".into()));
        assert_eq!(error("ftp://127.0.0.1"), UrlError::Scheme("ftp".into()));
        assert_eq!(error("wss://u:p@host"), UrlError::Credentials);
        assert_eq!(error("ws://Gateway.Example.com."), UrlError::Plaintext("gateway.example.com".into()));
        assert!(!error("ws://u:secret@:1").to_string().contains("secret"));
    }

    #[test]
    fn gives_what_a_connection_needs() {
        let url = GatewayUrl::parse(" WSS://[::1]/a/b?c=d ").unwrap();
        assert_eq!((url.host(), url.port(), url.target()), ("::1", 443, "/a/b?c=d"));
        assert_eq!(url.authority(), "[::1]:443");
        assert_eq!(url.to_string(), "wss://[::1]:443/a/b");
        assert_eq!(GatewayUrl::loopback(18789), GatewayUrl::parse("ws://127.0.0.1:18789").unwrap());
        assert_eq!(GatewayUrl::parse("http://localhost.").unwrap().to_string(), "ws://localhost:80");
    }

    #[test]
    fn a_local_name_does_not_excuse_a_public_address() {
        let url = GatewayUrl::parse("ws://gateway.local:1").unwrap();
        assert!(url.check_address([192, 168, 1, 9].into()).is_ok());
        assert!(matches!(url.check_address([203, 0, 113, 9].into()), Err(UrlError::PublicAddress { .. })));
        assert!(GatewayUrl::parse("wss://gateway.local").unwrap().check_address([203, 0, 113, 9].into()).is_ok());
    }

    #[test]
    fn knows_loopback_by_spelling_only() {
        for (text, loopback) in [
            ("ws://127.9.9.9", true),
            ("ws://[::ffff:127.0.0.1]", true),
            ("ws://localhost", true),
            ("ws://x.local", false),
            ("ws://10.0.0.1", false),
        ] {
            assert_eq!(GatewayUrl::parse(text).unwrap().is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn metadata_services_are_nobodys_gateway() {
        for text in ["ws://169.254.170.2", "ws://100.100.100.200", "ws://[fd00:ec2::254]", "ws://[::ffff:a9fe:a9fe]"] {
            assert!(GatewayUrl::parse(text).is_err(), "{text}");
        }
    }
}
