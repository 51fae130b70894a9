//! Where a request comes from: any peer, any header lines, any settings.
//!
//! The oracle walks `X-Forwarded-For` in the plain way, from the right, and is stricter about what may be concluded.

use std::net::IpAddr;

use arbitrary::Unstructured;

use super::{as_view, flip, header_lines, pick, some};
use crate::address::{self, AddressList};
use crate::auth::host::Host;
use crate::auth::ingress::{Client, IngressPolicy, Listener, client_address, is_proxy_evidence};
use crate::auth::{HeaderView, Verdict};

pub(super) const PEERS: [&str; 9] = [
    "127.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "10.0.0.1",
    "192.168.1.5",
    "::ffff:10.0.0.1",
    "203.0.113.9",
    "2001:db8::5",
    "100.64.0.9",
];

pub(super) const PROXIES: [&str; 6] = ["127.0.0.1", "10.0.0.0/24", "::1", "2001:db8::/64", "192.168.1.5", "bogus"];

pub(super) const NAMES: [&str; 16] = [
    "X-Forwarded-For",
    "x-forwarded-for",
    "X-Real-IP",
    "Forwarded",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-User",
    "Via",
    "CF-Connecting-IP",
    "Tailscale-User-Login",
    "Tailscale-Funnel-Request",
    "Host",
    "Origin",
    "x-openclaw-scopes",
    "Sec-Fetch-Site",
    "User-Agent",
];

pub(super) const VALUES: [&[u8]; 22] = [
    b"",
    b" ",
    b"127.0.0.1",
    b"203.0.113.9",
    b"203.0.113.9, 10.0.0.1",
    b"127.0.0.1, 203.0.113.9, ::1",
    b"garbage, 203.0.113.9",
    b"203.0.113.9, garbage",
    b"10.0.0.1",
    b"[2001:db8:1::9]:443",
    b"100.64.0.9",
    b"0.0.0.0",
    b"localhost",
    b"localhost:18789",
    b"127.0.0.1:18789",
    b"gw.example",
    b"alice@example.com",
    b"Alice@Example.com",
    b"operator.read",
    b"operator.admin, operator.write",
    b"https://gw.example",
    b"http://127.0.0.1:18789",
];

pub(super) fn ingress(u: &mut Unstructured<'_>) -> IngressPolicy {
    IngressPolicy {
        trusted_proxies: AddressList::parse(some(u, &PROXIES)),
        real_ip_fallback: flip(u),
        tailscale_on_main: flip(u),
        identity_headers: some(u, &["x-forwarded-user", "x-my-user"]).into_iter().map(Into::into).collect(),
    }
}

pub(super) fn listener(u: &mut Unstructured<'_>) -> Listener {
    pick(u, &[Listener::Main, Listener::Main, Listener::Main, Listener::TailscaleServe, Listener::TailscaleFunnel])
}

pub(super) fn peer(u: &mut Unstructured<'_>) -> IpAddr {
    match u.arbitrary::<u8>().unwrap_or(0) {
        0 => IpAddr::from(u.arbitrary::<[u8; 16]>().unwrap_or_default()),
        1 => IpAddr::from(u.arbitrary::<[u8; 4]>().unwrap_or_default()),
        _ => pick(u, &PEERS).parse().unwrap_or(IpAddr::from([127, 0, 0, 1])),
    }
}

/// Whether any line shows that something stands in between.
pub(super) fn shows_a_proxy(headers: HeaderView<'_>, policy: &IngressPolicy) -> bool {
    headers.names().any(|name| is_proxy_evidence(name, &policy.identity_headers))
}

/// The client by the header, walked from the right as the rule says it.
fn by_walking(headers: HeaderView<'_>, trusted: &AddressList) -> Client {
    let hops: Vec<&[u8]> = headers.values("x-forwarded-for").flat_map(|line| line.split(|b| *b == b',')).collect();
    for hop in hops.iter().rev().map(|hop| hop.trim_ascii()).filter(|hop| !hop.is_empty()) {
        let Some(address) = str::from_utf8(hop).ok().and_then(address::parse_hop) else { return Client::Invalid };
        if address.is_loopback() || trusted.contains(address) {
            continue;
        }
        return if address::is_client(address) { Client::Known(address) } else { Client::Invalid };
    }
    Client::Unsaid
}

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let policy = ingress(u);
    let (peer, listener) = (peer(u), listener(u));
    let lines = header_lines(u, &NAMES, &VALUES);
    let view = as_view(&lines);
    let headers = HeaderView::new(&view);
    let verdict = Verdict::of(peer, headers, listener, &policy);
    assert_eq!(verdict, Verdict::of(peer.to_canonical(), headers, listener, &policy), "one peer, one verdict");

    let peer = peer.to_canonical();
    let evidence = shows_a_proxy(headers, &policy);
    let trusted = policy.trusted_proxies.contains(peer);
    if let Some(client) = verdict.client().filter(|_| !matches!(verdict, Verdict::DirectLocal)) {
        let forwarded = !matches!(verdict, Verdict::DirectRemote { .. });
        assert!(!forwarded || address::is_client(client), "a forwarded client is no address of this host: {verdict:?}");
    }
    match verdict {
        Verdict::DirectLocal => {
            assert!(peer.is_loopback() && !evidence && listener == Listener::Main);
            let hosts: Vec<_> = headers.values("host").collect();
            let names_loopback =
                |host: &[u8]| str::from_utf8(host).ok().and_then(Host::parse).is_some_and(|host| host.is_loopback());
            assert!(hosts.len() <= 1 && hosts.iter().all(|host| names_loopback(host)), "{hosts:?}");
        }
        Verdict::DirectRemote { client } => assert!(client == peer && !evidence && (!trusted || peer.is_loopback())),
        Verdict::TrustedProxy { proxy, client } => {
            assert!(proxy == peer && trusted && (evidence || !peer.is_loopback()));
            let said = by_walking(headers, &policy.trusted_proxies);
            match client {
                Some(client) if said == Client::Unsaid => {
                    assert!(policy.real_ip_fallback && headers.has("x-real-ip"), "{client}");
                }
                Some(client) => assert_eq!(said, Client::Known(client)),
                None => assert!(!headers.has("x-forwarded-for")),
            }
        }
        Verdict::TailscaleServe { client } | Verdict::TailscaleFunnel { client } => {
            assert!(peer.is_loopback() && headers.is_filled("x-forwarded-for"));
            assert_eq!(by_walking(headers, &AddressList::default()), Client::Known(client));
            let serve = matches!(verdict, Verdict::TailscaleServe { .. });
            assert!(listener != Listener::Main || (policy.tailscale_on_main && !trusted && serve));
            assert!(!serve || !headers.has("tailscale-funnel-request"), "Funnel is the Internet");
        }
        Verdict::Unattributable { peer: blamed, .. } => {
            assert!(blamed == peer && (evidence || listener != Listener::Main));
        }
    }
    if !trusted {
        assert_eq!(client_address(peer, headers, &policy), Client::Known(peer), "a stranger speaks for itself alone");
    }
}
