//! What the gateway makes of a request, for the person who sets a proxy up: the same functions that decide, put into words.
//!
//! A [`Report`] is for operators alone; it is never an answer to the request that it is about.

use std::net::IpAddr;

use serde::Serialize;

use super::denied::Denied;
use super::headers::HeaderView;
use super::ingress::{Listener, Unattributable, Verdict, is_proxy_evidence};
use super::policy::{AuthMode, Policy};
use super::trusted_proxy::OwnAddresses;
use crate::address;

/// Characters of a header's value that are shown.
const SHOWN: usize = 200;
/// Headers that proxies commonly name the user in, the likeliest first.
const USER_HEADERS: [&str; 8] = [
    "x-forwarded-user",
    "x-auth-request-email",
    "x-forwarded-email",
    "cf-access-authenticated-user-email",
    "x-pomerium-claim-email",
    "remote-user",
    "x-remote-user",
    "x-auth-request-user",
];

/// One element of `X-Forwarded-For`, from left to right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// As written.
    pub value: String,
    /// What it is to the gateway.
    pub is: HopKind,
}

/// What an element of `X-Forwarded-For` is to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HopKind {
    /// The client: the first from the right that no trusted proxy is.
    Client,
    /// In `gateway.trustedProxies`, or loopback: walked over.
    Trusted,
    /// Left of the client: whoever sent it could write what they liked.
    NotLookedAt,
    /// No address a client can have: the whole header is worthless.
    Invalid,
}

/// Whom the request is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Who {
    /// The user, if the proxy's word is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the gateway makes of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The other end of the socket.
    pub peer: IpAddr,
    /// Whether it is in `gateway.trustedProxies`.
    pub peer_is_trusted: bool,
    /// Where the request comes from, by the one verdict that everything uses.
    pub verdict: &'static str,
    /// What is wrong, where it is refused for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<&'static str>,
    /// The client's address, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// `Host`, and the headers that only something in between writes.
    pub headers: Vec<(String, String)>,
    /// `X-Forwarded-For`, element by element.
    pub hops: Vec<Hop>,
    /// `gateway.auth.mode`.
    pub mode: &'static str,
    /// Whom the proxy vouches for, in mode `trusted-proxy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Who>,
    /// What to change: lines for the configuration, or for the proxy's. Empty when all is well.
    pub advice: Vec<String>,
}

/// Says what the gateway makes of a request from `peer`.
pub fn explain(peer: IpAddr, headers: HeaderView<'_>, own: OwnAddresses<'_>, policy: &Policy) -> Report {
    let peer = peer.to_canonical();
    let ingress = &policy.ingress;
    let verdict = Verdict::of(peer, headers, Listener::Main, ingress);
    let identity = match &policy.mode {
        AuthMode::TrustedProxy { proxy: Some(proxy), .. } => {
            Some(proxy.user(Some(peer), headers, &ingress.trusted_proxies, own))
        }
        _ => None,
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).chars().take(SHOWN).collect::<String>();
    let shown = headers
        .names()
        .filter(|name| is_proxy_evidence(name, &ingress.identity_headers) || name.eq_ignore_ascii_case("host"))
        .flat_map(|name| headers.values(name).map(move |value| (name.to_ascii_lowercase(), text(value))));
    let mut lines: Vec<_> = shown.collect();
    lines.dedup();
    Report {
        peer,
        peer_is_trusted: ingress.trusted_proxies.contains(peer),
        verdict: verdict.as_str(),
        refused: match verdict {
            Verdict::Unattributable { why, .. } => Some(why.as_str()),
            _ => None,
        },
        client: verdict.client(),
        headers: lines,
        hops: hops(headers, policy),
        mode: policy.mode.as_str(),
        advice: advice(peer, verdict, identity.as_ref(), headers, policy),
        identity: identity.map(|identity| match identity {
            Ok(user) => Who { user: Some(user.into()), reason: None },
            Err(denied) => Who { user: None, reason: Some(denied.reason().into_owned()) },
        }),
    }
}

fn hops(headers: HeaderView<'_>, policy: &Policy) -> Vec<Hop> {
    let elements = headers.values("x-forwarded-for").flat_map(|line| line.split(|b| *b == b','));
    let elements: Vec<_> = elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty()).collect();
    let mut found = false;
    let mut hops: Vec<_> = elements
        .iter()
        .rev()
        .map(|element| {
            let address = str::from_utf8(element).ok().and_then(address::parse_hop);
            let trusted = |ip: &IpAddr| ip.is_loopback() || policy.ingress.trusted_proxies.contains(*ip);
            let is = match address {
                _ if found => HopKind::NotLookedAt,
                Some(ip) if trusted(&ip) => HopKind::Trusted,
                Some(ip) if address::is_client(ip) => HopKind::Client,
                _ => HopKind::Invalid,
            };
            found |= matches!(is, HopKind::Client | HopKind::Invalid);
            Hop { value: String::from_utf8_lossy(element).chars().take(SHOWN).collect(), is }
        })
        .collect();
    hops.reverse();
    hops
}

fn advice(
    peer: IpAddr,
    verdict: Verdict,
    identity: Option<&Result<Box<str>, Denied>>,
    headers: HeaderView<'_>,
    policy: &Policy,
) -> Vec<String> {
    let mut advice = Vec::new();
    let trust = format!("gateway.trustedProxies: [\"{peer}\"]");
    let overwrite = "the proxy: overwrite X-Forwarded-For with the address of its client (nginx: proxy_set_header X-Forwarded-For $remote_addr)";
    match verdict {
        Verdict::Unattributable { why: Unattributable::UntrustedPeer, .. } => {
            advice.push(trust);
            if !headers.has("x-forwarded-for") {
                advice.push(overwrite.to_owned());
            }
        }
        Verdict::Unattributable { .. } | Verdict::TrustedProxy { client: None, .. } => {
            advice.push(overwrite.to_owned())
        }
        // A request that was made through a proxy, and looks as if it had not been.
        Verdict::DirectLocal | Verdict::DirectRemote { .. } => {
            if !policy.ingress.trusted_proxies.contains(peer) {
                advice.push(trust);
            }
            advice.push(overwrite.to_owned());
        }
        Verdict::TrustedProxy { .. } | Verdict::TailscaleServe { .. } | Verdict::TailscaleFunnel { .. } => {}
    }
    let key = "gateway.auth.trustedProxy";
    match identity {
        Some(Err(Denied::ProxyLoopbackSource)) => advice.push(format!("{key}.allowLoopback: true")),
        Some(Err(Denied::ProxyInterfaceSource | Denied::ProxyInterfaceCheckFailed)) => advice.push(
            "the proxy: connect from 127.0.0.1, and set gateway.auth.trustedProxy.allowLoopback, or run it elsewhere"
                .to_owned(),
        ),
        Some(Err(Denied::ProxyHeaderMissing(name))) => {
            advice.push(format!("the proxy: send {name}, or take it out of {key}.requiredHeaders"));
        }
        Some(Err(Denied::ProxyUserMissing)) => match USER_HEADERS.iter().find(|name| headers.is_filled(name)) {
            Some(name) => advice.push(format!("{key}.userHeader: \"{name}\"")),
            None => advice.push(
                "the proxy: send the user in a header, and name it in gateway.auth.trustedProxy.userHeader".to_owned(),
            ),
        },
        Some(Err(Denied::ProxyUserAmbiguous)) => {
            advice.push("the proxy: overwrite the user header; a client's own came through beside it".to_owned());
        }
        Some(Err(Denied::ProxyUserNotAllowed)) => {
            let user = match &policy.mode {
                AuthMode::TrustedProxy { proxy: Some(proxy), .. } => headers.first(&proxy.user_header),
                _ => None,
            };
            advice.push(format!("{key}.allowUsers: add {:?}, if they may come in", user.unwrap_or_default().trim()));
        }
        Some(Err(_) | Ok(_)) | None => {}
    }
    let is_let_in = !matches!(verdict, Verdict::Unattributable { .. });
    if matches!(policy.mode, AuthMode::None) && is_let_in {
        advice.push(
            "gateway.auth.mode: \"trusted-proxy\" where the proxy knows its users, else \"token\"; now whoever it passes on \
             is let in with all scopes"
                .to_owned(),
        );
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::AddressList;
    use crate::auth::trusted_proxy::TrustedProxy;

    fn report(peer: &str, lines: &[(&str, &str)], trusted: &[&str], proxy: Option<TrustedProxy>) -> Report {
        let mode = match proxy {
            Some(proxy) => AuthMode::TrustedProxy { proxy: Some(proxy), password: None },
            None => AuthMode::Token(None),
        };
        let mut policy = Policy::new(1, mode);
        policy.ingress.trusted_proxies = AddressList::parse(trusted.iter().copied());
        let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        explain(peer.parse().unwrap(), HeaderView::new(&lines), Some(&[]), &policy)
    }

    fn proxy() -> Option<TrustedProxy> {
        Some(TrustedProxy { user_header: "X-Forwarded-User".into(), ..TrustedProxy::default() })
    }

    #[test]
    fn an_unlisted_proxy_gets_the_line_to_add() {
        let report =
            report("10.0.0.1", &[("Host", "gw"), ("X-Forwarded-For", "203.0.113.9"), ("Cookie", "secret")], &[], None);
        assert_eq!((report.verdict, report.client), ("unattributable-proxy", None));
        assert_eq!(report.advice, ["gateway.trustedProxies: [\"10.0.0.1\"]"]);
        assert_eq!(report.headers.len(), 2, "a cookie is nobody's business: {:?}", report.headers);
    }

    #[test]
    fn each_hop_says_what_it_is() {
        let lines =
            [("X-Forwarded-For", "evil, 198.51.100.7, 203.0.113.9"), ("x-forwarded-for", "10.0.0.2, 127.0.0.1")];
        let report = report("10.0.0.1", &lines, &["10.0.0.0/24"], None);
        let kinds: Vec<_> = report.hops.iter().map(|hop| hop.is).collect();
        use HopKind::{Client, NotLookedAt, Trusted};
        assert_eq!(kinds, [NotLookedAt, NotLookedAt, Client, Trusted, Trusted]);
        assert_eq!(report.client, Some("203.0.113.9".parse().unwrap()));
        assert!(report.advice.is_empty(), "{:?}", report.advice);
    }

    #[test]
    fn every_way_to_go_wrong_has_its_advice() {
        let xff = ("X-Forwarded-For", "203.0.113.9");
        let advice = |peer, lines: &[(&str, &str)], trusted: &[&str], proxy| {
            report(peer, lines, trusted, proxy).advice.join("; ")
        };
        for (text, says) in [
            (advice("127.0.0.1", &[], &[], None), "gateway.trustedProxies: [\"127.0.0.1\"]"),
            (advice("10.0.0.1", &[("X-Forwarded-For", "127.0.0.1")], &["10.0.0.1"], None), "overwrite X-Forwarded-For"),
            (advice("10.0.0.1", &[("Via", "x")], &["10.0.0.1"], None), "overwrite X-Forwarded-For"),
            (advice("127.0.0.1", &[xff, ("X-Forwarded-User", "a")], &["127.0.0.1"], proxy()), "allowLoopback: true"),
            (
                advice("10.0.0.1", &[xff, ("X-Auth-Request-Email", "a")], &["10.0.0.1"], proxy()),
                "userHeader: \"x-auth-request-email\"",
            ),
            (advice("10.0.0.1", &[xff], &["10.0.0.1"], proxy()), "send the user in a header"),
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
        let only = TrustedProxy { allow_users: vec!["bob".into()], ..proxy().unwrap() };
        let said = report("10.0.0.1", &[xff, ("X-Forwarded-User", "alice")], &["10.0.0.1"], Some(only)).advice;
        assert_eq!(said, ["gateway.auth.trustedProxy.allowUsers: add \"alice\", if they may come in"]);
        let good = report("10.0.0.1", &[xff, ("X-Forwarded-User", "alice")], &["10.0.0.1"], proxy());
        assert_eq!(good.identity, Some(Who { user: Some("alice".into()), reason: None }));
        assert!(good.advice.is_empty(), "{:?}", good.advice);
    }

    #[test]
    fn an_open_gateway_behind_a_proxy_is_not_well() {
        let mut policy = Policy::new(1, AuthMode::None);
        policy.ingress.trusted_proxies = AddressList::parse(["10.0.0.1"]);
        let lines: &[(&str, &[u8])] = &[("X-Forwarded-For", b"203.0.113.9")];
        let report = explain("10.0.0.1".parse().unwrap(), HeaderView::new(lines), Some(&[]), &policy);
        assert!(report.advice[0].starts_with("gateway.auth.mode: "), "{:?}", report.advice);
    }
}
