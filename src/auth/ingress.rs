//! The one verdict on where a request came from (contract 2.5; behaviour "One verdict").
//!
//! It is computed once, from the peer's address, the headers and the listener, and then used by auth,
//! locality, rate limits and logs alike. The rule behind it: **headers never widen**. A trace of a proxy
//! takes locality away; only a peer that the operator listed may say who its client is.
//!
//! A TCP forwarder leaves no trace (S-12), so even [`Verdict::DirectLocal`] proves only where the last hop
//! was. It never stands in for a credential.

use std::net::{IpAddr, Ipv4Addr};

use super::headers::HeaderView;
use super::host::Host;
use crate::address::{self, AddressList};

/// Headers that show that something stands between the client and us, besides the prefixes below. Presence
/// counts, even when the value is empty (S-19).
const EVIDENCE: &[&str] = &[
    "cdn-loop",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "proxy-client-ip",
    "remote-addr",
    "remote-user",
    "true-client-ip",
    "via",
    "wl-proxy-client-ip",
    "x-amz-cf-id",
    "x-amzn-trace-id",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-http-forwarded-for",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-user",
    "x-rewrite-url",
    "x-scheme",
];

/// Prefixes of such headers: whole families that only intermediaries write.
const EVIDENCE_PREFIXES: &[&str] =
    &["x-forwarded-", "tailscale-", "cf-", "x-auth-request-", "x-goog-authenticated-", "x-goog-iap-", "x-pomerium-"];

/// Whether `name` is one that only something between a client and us writes. `own` are the identity headers
/// this gateway is configured to read.
pub fn is_proxy_evidence(name: &str, own: &[Box<str>]) -> bool {
    let is_prefix = |prefix: &&str| {
        name.len() >= prefix.len() && name.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
    };
    EVIDENCE_PREFIXES.iter().any(is_prefix)
        || EVIDENCE.iter().any(|evidence| name.eq_ignore_ascii_case(evidence))
        || own.iter().any(|header| name.eq_ignore_ascii_case(header))
}

/// Which of our sockets accepted the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listener {
    /// The ordinary port.
    #[default]
    Main,
    /// The loopback port that only our own `tailscale serve` knows.
    TailscaleServe,
    /// The loopback port that only our own `tailscale funnel` knows.
    TailscaleFunnel,
}

/// What the operator said about proxies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IngressPolicy {
    /// `gateway.trustedProxies`.
    pub trusted_proxies: AddressList,
    /// `gateway.allowRealIpFallback`: `X-Real-IP` of a trusted proxy serves where it sends no
    /// `X-Forwarded-For`.
    pub real_ip_fallback: bool,
    /// A Tailscale Serve route made by hand may come to the ordinary loopback port: only where
    /// `gateway.auth.allowTailscale` is written out as `true`.
    pub tailscale_on_main: bool,
    /// Names of identity headers this gateway reads (`userHeader`, `requiredHeaders`): on a loopback peer
    /// they are traces of a proxy like any other.
    pub identity_headers: Vec<Box<str>>,
}

/// Where a request came from. See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A loopback peer, no trace of a proxy, and a `Host` (if any) that names loopback.
    DirectLocal,
    /// A peer that speaks for itself.
    DirectRemote {
        /// The peer. Loopback only where `Host` names another place.
        client: IpAddr,
    },
    /// A proxy the operator listed.
    TrustedProxy {
        /// The peer.
        proxy: IpAddr,
        /// Whom it speaks for; `None` when it does not say. Never loopback.
        client: Option<IpAddr>,
    },
    /// Tailscale Serve on this host.
    TailscaleServe {
        /// The address it forwards for. Never loopback.
        client: IpAddr,
    },
    /// Tailscale Funnel on this host: a stranger from the Internet.
    TailscaleFunnel {
        /// The address it forwards for. Never loopback.
        client: IpAddr,
    },
    /// Someone speaks for someone else, and we can't know for whom. Refused before any credential is looked
    /// at (S-13).
    Unattributable {
        /// The peer.
        peer: IpAddr,
        /// What is wrong.
        why: Unattributable,
    },
}

/// Why a proxied request can't be attributed to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unattributable {
    /// Forwarding headers from a peer that is not in `gateway.trustedProxies`.
    UntrustedPeer,
    /// A trusted proxy's address header is malformed, doubled, or names no client.
    BadClientAddress,
    /// A Tailscale listener got a request without the headers Tailscale writes, or from another host.
    NotTailscale,
    /// Funnel traffic where only Serve may come, or a Funnel marker that Tailscale does not write.
    Funnel,
}

impl Unattributable {
    /// What happened, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UntrustedPeer => "forwarding headers from a peer that is not in gateway.trustedProxies",
            Self::BadClientAddress => "the proxy's X-Forwarded-For (or X-Real-IP) does not name a client address",
            Self::NotTailscale => "the listener of Tailscale was reached by something else",
            Self::Funnel => "Tailscale Funnel traffic on a route that is not for it",
        }
    }
}

impl Verdict {
    /// Judges a request.
    pub fn of(peer: IpAddr, headers: HeaderView<'_>, listener: Listener, policy: &IngressPolicy) -> Self {
        let peer = peer.to_canonical();
        if listener != Listener::Main {
            return managed_tailscale(peer, headers, listener);
        }
        let evidence = headers.names().any(|name| is_proxy_evidence(name, &policy.identity_headers));
        if peer.is_loopback() && !evidence {
            return match host_allows_local(headers) {
                true => Self::DirectLocal,
                false => Self::DirectRemote { client: peer },
            };
        }
        if policy.trusted_proxies.contains(peer) {
            return match client_address(peer, headers, policy) {
                Client::Known(client) => Self::TrustedProxy { proxy: peer, client: Some(client) },
                Client::Unsaid => Self::TrustedProxy { proxy: peer, client: None },
                Client::Invalid => Self::Unattributable { peer, why: Unattributable::BadClientAddress },
            };
        }
        if policy.tailscale_on_main && peer.is_loopback() && tailscale_wrote(headers) {
            return managed_tailscale(peer, headers, Listener::TailscaleServe);
        }
        match evidence {
            true => Self::Unattributable { peer, why: Unattributable::UntrustedPeer },
            false => Self::DirectRemote { client: peer },
        }
    }

    /// Whether the request truly comes from this host itself.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::DirectLocal)
    }

    /// The client's address for logs and lists; `None` where nobody said it.
    pub const fn client(self) -> Option<IpAddr> {
        match self {
            Self::DirectLocal => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            Self::DirectRemote { client } | Self::TailscaleServe { client } | Self::TailscaleFunnel { client } => {
                Some(client)
            }
            Self::TrustedProxy { client, .. } => client,
            Self::Unattributable { .. } => None,
        }
    }

    /// The name in logs and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DirectLocal => "direct-local",
            Self::DirectRemote { .. } => "direct-remote",
            Self::TrustedProxy { .. } => "trusted-proxy",
            Self::TailscaleServe { .. } => "tailscale-serve",
            Self::TailscaleFunnel { .. } => "tailscale-funnel",
            Self::Unattributable { .. } => "unattributable-proxy",
        }
    }
}

/// No `Host`, or one that names loopback.
fn host_allows_local(headers: HeaderView<'_>) -> bool {
    match headers.single("host") {
        Ok(None) => true,
        Ok(Some(text)) => Host::parse(text).is_some_and(|host| host.is_loopback()),
        Err(_) => false,
    }
}

/// Whom the peer speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// This address.
    Known(IpAddr),
    /// A trusted proxy that sends no address header.
    Unsaid,
    /// An address header that can't be believed.
    Invalid,
}

/// The client's address: the peer itself, or, behind a trusted proxy, the first hop of `X-Forwarded-For`
/// from the right that is neither a trusted proxy nor loopback on a proxy's host. So a loopback value is never
/// the client (S-10).
///
/// Each hop walked over was written by a trusted proxy. One that is no address makes the whole header worthless:
/// we do not look further left, nor elsewhere. `X-Real-IP` serves, where allowed, when the header names nobody.
pub fn client_address(peer: IpAddr, headers: HeaderView<'_>, policy: &IngressPolicy) -> Client {
    let peer = peer.to_canonical();
    if !policy.trusted_proxies.contains(peer) {
        return Client::Known(peer);
    }
    let client = match forwarded_client(headers, &policy.trusted_proxies) {
        Client::Unsaid if policy.real_ip_fallback => real_ip(headers),
        client => client,
    };
    // A header that is there and names nobody is not the same as none.
    if client == Client::Unsaid && headers.has("x-forwarded-for") { Client::Invalid } else { client }
}

/// Walks `X-Forwarded-For` from the right. Repeated lines are one list (RFC 9110, section 5.3); empty
/// elements don't count. [`Client::Unsaid`] when all hops are trusted, or there are none.
pub(super) fn forwarded_client(headers: HeaderView<'_>, trusted: &AddressList) -> Client {
    let hops = headers.values("x-forwarded-for").flat_map(|line| line.split(|b| *b == b','));
    let mut client = Client::Unsaid;
    // The lines only iterate forwards: a hop that would stop the walk from the right overrides all before it.
    for hop in hops.map(<[u8]>::trim_ascii).filter(|hop| !hop.is_empty()) {
        client = match str::from_utf8(hop).ok().and_then(address::parse_hop) {
            Some(address) if address.is_loopback() || trusted.contains(address) => client,
            Some(address) if address::is_client(address) => Client::Known(address),
            _ => Client::Invalid,
        };
    }
    client
}

fn real_ip(headers: HeaderView<'_>) -> Client {
    match headers.single("x-real-ip") {
        Ok(None) => Client::Unsaid,
        Ok(Some(text)) => match address::parse_hop(text).filter(|address| address::is_client(*address)) {
            Some(address) => Client::Known(address),
            None => Client::Invalid,
        },
        Err(_) => Client::Invalid,
    }
}

/// Whether Tailscale's proxy headers are there and filled.
pub(super) fn tailscale_wrote(headers: HeaderView<'_>) -> bool {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"].iter().all(|name| headers.is_filled(name))
}

/// Whom Tailscale on this host forwards for. It connects from loopback, which is all we trust in the chain.
pub(super) fn tailscale_client(peer: IpAddr, headers: HeaderView<'_>) -> Option<IpAddr> {
    if !peer.to_canonical().is_loopback() || !tailscale_wrote(headers) {
        return None;
    }
    match forwarded_client(headers, &AddressList::default()) {
        Client::Known(client) => Some(client),
        Client::Unsaid | Client::Invalid => None,
    }
}

fn managed_tailscale(peer: IpAddr, headers: HeaderView<'_>, listener: Listener) -> Verdict {
    let Some(client) = tailscale_client(peer, headers) else {
        return Verdict::Unattributable { peer, why: Unattributable::NotTailscale };
    };
    let marked = headers.has("tailscale-funnel-request");
    match listener {
        Listener::TailscaleFunnel if !marked || headers.single("tailscale-funnel-request") == Ok(Some("?1")) => {
            Verdict::TailscaleFunnel { client }
        }
        Listener::Main | Listener::TailscaleServe if !marked => Verdict::TailscaleServe { client },
        _ => Verdict::Unattributable { peer, why: Unattributable::Funnel },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn verdict(peer: &str, headers: &[(&str, &str)], policy: &IngressPolicy) -> Verdict {
        let lines: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        Verdict::of(ip(peer), HeaderView::new(&lines), Listener::Main, policy)
    }

    fn trusting(proxies: &[&str]) -> IngressPolicy {
        IngressPolicy { trusted_proxies: AddressList::parse(proxies.iter().copied()), ..IngressPolicy::default() }
    }

    #[test]
    fn the_table_of_verdicts() {
        let none = IngressPolicy::default();
        let proxy = trusting(&["10.0.0.1", "127.0.0.1"]);
        let xff = ("x-forwarded-for", "198.51.100.7");
        let bad = Unattributable::BadClientAddress;
        let client = Some(ip("198.51.100.7"));
        assert_eq!(verdict("127.0.0.1", &[], &none), Verdict::DirectLocal);
        assert_eq!(verdict("::ffff:127.0.0.1", &[], &proxy), Verdict::DirectLocal);
        assert_eq!(verdict("192.0.2.1", &[], &none), Verdict::DirectRemote { client: ip("192.0.2.1") });
        assert_eq!(verdict("10.0.0.1", &[xff], &proxy), Verdict::TrustedProxy { proxy: ip("10.0.0.1"), client });
        assert_eq!(verdict("127.0.0.1", &[xff], &proxy), Verdict::TrustedProxy { proxy: ip("127.0.0.1"), client });
        for unsaid in [&[][..], &[("x-forwarded-user", "alice")], &[("x-real-ip", "198.51.100.7")]] {
            let expected = Verdict::TrustedProxy { proxy: ip("10.0.0.1"), client: None };
            assert_eq!(verdict("10.0.0.1", unsaid, &proxy), expected, "{unsaid:?}");
        }
        for value in ["", " , ", "127.0.0.1", "198.51.100.7, garbage", "10.0.0.1", "garbage, ::1", "0.0.0.0"] {
            let expected = Verdict::Unattributable { peer: ip("10.0.0.1"), why: bad };
            assert_eq!(verdict("10.0.0.1", &[("x-forwarded-for", value)], &proxy), expected, "{value}");
        }
    }

    #[test]
    fn s_10_a_loopback_hop_is_never_the_client() {
        let proxy = trusting(&["10.0.0.1"]);
        for value in ["198.51.100.7, 127.0.0.1", "127.0.0.1, 198.51.100.7", "::1, 198.51.100.7, ::ffff:127.0.0.1"] {
            let verdict = verdict("10.0.0.1", &[("x-forwarded-for", value)], &proxy);
            assert_eq!(verdict.client(), Some(ip("198.51.100.7")), "{value}");
        }
    }

    #[test]
    fn x_real_ip_serves_where_allowed_and_nothing_better_is_said() {
        let allowed = IngressPolicy { real_ip_fallback: true, ..trusting(&["10.0.0.1"]) };
        let client = |headers: &[(&str, &str)]| verdict("10.0.0.1", headers, &allowed).client();
        let real = ("x-real-ip", "198.51.100.9");
        assert_eq!(client(&[real]), Some(ip("198.51.100.9")));
        assert_eq!(client(&[real, ("x-forwarded-for", "10.0.0.1")]), Some(ip("198.51.100.9")));
        assert_eq!(client(&[real, ("x-forwarded-for", "198.51.100.7")]), Some(ip("198.51.100.7")));
        assert_eq!(client(&[real, ("x-forwarded-for", "garbage")]), None);
        assert_eq!(client(&[real, real]), None);
        assert_eq!(client(&[("x-real-ip", "127.0.0.1")]), None);
    }

    #[test]
    fn s_13_s_18_an_unlisted_proxy_is_refused_and_never_local() {
        for (name, value) in [("x-forwarded-for", "198.51.100.7"), ("forwarded", ""), ("via", "1.1 p"), ("CF-Ray", "1")]
        {
            let expected = Verdict::Unattributable { peer: ip("127.0.0.1"), why: Unattributable::UntrustedPeer };
            assert_eq!(verdict("127.0.0.1", &[(name, value)], &IngressPolicy::default()), expected, "{name}");
        }
    }

    #[test]
    fn s_06_host_takes_locality_away_and_never_gives_it() {
        let none = IngressPolicy::default();
        for host in ["evil.example", "gw.tail.ts.net", "[::1]evil.com", "192.168.1.5:18789", ""] {
            let expected = Verdict::DirectRemote { client: ip("127.0.0.1") };
            assert_eq!(verdict("127.0.0.1", &[("host", host)], &none), expected, "{host}");
        }
        let lan = Verdict::DirectRemote { client: ip("192.168.1.50") };
        assert_eq!(verdict("192.168.1.50", &[("host", "127.0.0.1:18789")], &none), lan);
        assert_eq!(verdict("127.0.0.1", &[("host", "localhost:18789")], &none), Verdict::DirectLocal);
    }

    #[test]
    fn the_configured_identity_header_is_a_trace_of_the_proxy() {
        let policy = IngressPolicy { identity_headers: vec!["X-Who".into()], ..IngressPolicy::default() };
        assert!(!verdict("127.0.0.1", &[("x-who", "alice")], &policy).is_local());
    }

    #[test]
    fn tailscale_listeners_believe_only_what_tailscale_writes() {
        let serve: Vec<(&str, &[u8])> = vec![
            ("x-forwarded-for", b"100.64.0.9"),
            ("x-forwarded-proto", b"https"),
            ("x-forwarded-host", b"gw.tail.ts.net"),
        ];
        let of = |lines: &[(&str, &[u8])], peer, listener| {
            Verdict::of(ip(peer), HeaderView::new(lines), listener, &IngressPolicy::default())
        };
        let client = ip("100.64.0.9");
        assert_eq!(of(&serve, "127.0.0.1", Listener::TailscaleServe), Verdict::TailscaleServe { client });
        assert_eq!(of(&serve, "127.0.0.1", Listener::TailscaleFunnel), Verdict::TailscaleFunnel { client });
        let not_tailscale = |peer| Verdict::Unattributable { peer: ip(peer), why: Unattributable::NotTailscale };
        assert_eq!(of(&serve, "192.0.2.1", Listener::TailscaleServe), not_tailscale("192.0.2.1"));
        assert_eq!(of(&serve[..2], "127.0.0.1", Listener::TailscaleServe), not_tailscale("127.0.0.1"));
        let mut funnel = serve.clone();
        funnel.push(("Tailscale-Funnel-Request", b"?1"));
        let refused = Verdict::Unattributable { peer: ip("127.0.0.1"), why: Unattributable::Funnel };
        assert_eq!(of(&funnel, "127.0.0.1", Listener::TailscaleServe), refused);
        assert_eq!(of(&funnel, "127.0.0.1", Listener::TailscaleFunnel), Verdict::TailscaleFunnel { client });
        funnel[3].1 = b"yes";
        assert_eq!(of(&funnel, "127.0.0.1", Listener::TailscaleFunnel), refused);
    }

    #[test]
    fn a_handmade_serve_route_needs_the_word_of_the_operator() {
        let lines =
            [("x-forwarded-for", "100.64.0.9"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "gw.tail.ts.net")];
        let allowed = IngressPolicy { tailscale_on_main: true, ..IngressPolicy::default() };
        let client = ip("100.64.0.9");
        assert_eq!(verdict("127.0.0.1", &lines, &allowed), Verdict::TailscaleServe { client });
        assert!(matches!(verdict("127.0.0.1", &lines, &IngressPolicy::default()), Verdict::Unattributable { .. }));
        assert!(matches!(verdict("192.0.2.1", &lines, &allowed), Verdict::Unattributable { .. }));
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            Just(ip("127.0.0.1")),
            Just(ip("::1")),
            Just(ip("::ffff:127.0.0.1")),
            Just(ip("10.0.0.1")),
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        ]
    }

    fn any_header() -> impl Strategy<Value = (String, Vec<u8>)> {
        let name = prop_oneof![
            Just("host".to_owned()),
            Just("x-forwarded-for".to_owned()),
            Just("X-Real-IP".to_owned()),
            Just("x-forwarded-proto".to_owned()),
            Just("x-forwarded-host".to_owned()),
            Just("tailscale-user-login".to_owned()),
            "[a-z-]{1,12}",
        ];
        let value = prop_oneof![
            "[0-9., :a-f]{0,40}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..20),
            Just(b"127.0.0.1".to_vec()),
            Just(b"localhost".to_vec()),
        ];
        (name, value)
    }

    fn any_policy() -> impl Strategy<Value = IngressPolicy> {
        (prop::collection::vec(any_address(), 0..3), any::<bool>(), any::<bool>())
            .prop_map(|(proxies, real_ip, tailscale)| policy_of(&proxies, real_ip, tailscale))
    }

    fn policy_of(proxies: &[IpAddr], real_ip_fallback: bool, tailscale_on_main: bool) -> IngressPolicy {
        let entries: Vec<String> = proxies.iter().map(ToString::to_string).collect();
        let trusted_proxies = AddressList::parse(entries.iter().map(String::as_str));
        IngressPolicy { trusted_proxies, real_ip_fallback, tailscale_on_main, identity_headers: Vec::new() }
    }

    fn view(headers: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
        headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect()
    }

    proptest! {
        #[test]
        fn headers_never_widen(
            peer in any_address(),
            headers in prop::collection::vec(any_header(), 0..6),
            more in any_header(),
            policy in any_policy(),
        ) {
            let bare = Verdict::of(peer, HeaderView::default(), Listener::Main, &policy);
            let with = Verdict::of(peer, HeaderView::new(&view(&headers)), Listener::Main, &policy);
            prop_assert!(!with.is_local() || bare.is_local());
            let mut longer = headers.clone();
            longer.push(more);
            let longer = Verdict::of(peer, HeaderView::new(&view(&longer)), Listener::Main, &policy);
            prop_assert!(!longer.is_local() || with.is_local());
            // A peer nobody vouched for speaks only for itself.
            if let Verdict::DirectRemote { client } = with {
                prop_assert_eq!(client, peer.to_canonical());
            }
        }

        #[test]
        fn an_added_trusted_hop_never_makes_a_remote_client_local(
            peer in any_address(),
            headers in prop::collection::vec(any_header(), 0..6),
            proxies in prop::collection::vec(any_address(), 0..3),
            hop in any_address(),
        ) {
            let policy = policy_of(&proxies, true, true);
            let before = Verdict::of(peer, HeaderView::new(&view(&headers)), Listener::Main, &policy);
            let mut longer = headers.clone();
            longer.push(("x-forwarded-for".to_owned(), hop.to_string().into_bytes()));
            let entries: Vec<String> = proxies.iter().chain([&hop]).map(ToString::to_string).collect();
            let trusted_proxies = AddressList::parse(entries.iter().map(String::as_str));
            let wider = IngressPolicy { trusted_proxies, ..policy };
            let after = Verdict::of(peer, HeaderView::new(&view(&longer)), Listener::Main, &wider);
            prop_assert!(!after.is_local() || before.is_local());
            if let Verdict::TrustedProxy { client: Some(client), .. } | Verdict::TailscaleServe { client } = after {
                prop_assert!(address::is_client(client));
            }
        }
    }
}
