//! The decision on one HTTP request: the mode and the limits of a connect, without a device.
//!
//! What proves a caller is `Authorization: Bearer` with the shared secret, or the proxy of `trusted-proxy`. A Tailscale
//! identity never does (contract 2.6), nor does a browser's place on the network: where nothing else is asked for, a page
//! must be allowed by name, and a name that was rebound to loopback is none of ours.

use std::net::IpAddr;

use super::authenticate::{Authentication, authenticate};
use super::denied::Denied;
use super::evidence::{Credentials, Request, Surface};
use super::grant::{Grant, Method};
use super::headers::HeaderView;
use super::ingress::Verdict;
use super::origin::{OriginMatch, OriginRefused, is_cross_site_without_origin};
use super::policy::Policy;
use super::rate_limit::RateLimits;
use super::scope_cap;
use super::trusted_proxy::OwnAddresses;
use crate::clock::UnixMs;
use crate::rpc::scope::{Role, Scope, ScopeSet};

/// What a caller over HTTP holds where nothing narrows it: the default set of the wire.
pub const DEFAULT_SCOPES: [Scope; 6] =
    [Scope::Admin, Scope::Approvals, Scope::Pairing, Scope::Read, Scope::TalkSecrets, Scope::Write];

/// An HTTP request, as far as it matters to who sent it.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// The address at the other end of the socket.
    pub peer: IpAddr,
    /// Where it came from, by [`Verdict::of`].
    pub verdict: Verdict,
    /// Its headers.
    pub headers: HeaderView<'a>,
    /// The addresses of this host.
    pub own_addresses: OwnAddresses<'a>,
}

/// Decides on one request. A wrong secret is counted in `limits`, whatever the outcome.
///
/// # Errors
/// Why it is refused.
pub fn authorize_http(
    request: &HttpRequest<'_>,
    policy: &Policy,
    limits: &RateLimits,
    now: UnixMs,
) -> Result<Grant, Denied> {
    let HttpRequest { peer, verdict, headers, own_addresses } = *request;
    if let Verdict::Unattributable { why, .. } = verdict {
        return Err(Denied::ProxyAttributionRequired(why));
    }
    let page = policy.origins.check_request(headers, verdict.is_local()).map_err(Denied::OriginNotAllowed)?;
    // Which of the two it is depends on the mode, and only one of them is looked at.
    let bearer = bearer(headers);
    let request = Request {
        surface: Surface::Http,
        peer: Some(peer),
        verdict,
        headers,
        credentials: Credentials { token: bearer, password: bearer, ..Credentials::default() },
        whois: None,
        own_addresses,
    };
    let mut attempts = limits.attempts(verdict, headers, now);
    let Authentication { outcome, .. } = authenticate(&request, policy, &mut attempts);
    let identity = outcome?;
    if identity.method == Method::None && !is_ours(verdict, headers, page) {
        return Err(Denied::OriginNotAllowed(OriginRefused::NotAllowed));
    }
    let default: ScopeSet = DEFAULT_SCOPES.into_iter().collect();
    let (scopes, lent) = match identity.method {
        // Who knows the secret may do everything; the header is an identity's.
        Method::Token | Method::Password => (default, ScopeSet::EMPTY),
        _ => {
            let user = identity.user.as_deref();
            let lent = match user {
                // Where the operator said what users may do, a user may do that.
                Some(_) if !policy.identity_scopes.is_empty() => policy.scopes_of(user),
                _ => ScopeSet::EMPTY,
            };
            let held = if user.is_some() && !policy.identity_scopes.is_empty() { lent } else { default };
            // One that can't be read names nothing, which is not the same as none.
            let cap = headers.has("x-openclaw-scopes").then(|| headers.first("x-openclaw-scopes").unwrap_or_default());
            (narrowed(held, cap), narrowed(lent, cap))
        }
    };
    Ok(Grant {
        role: Role::Operator,
        scopes,
        method: identity.method,
        user: identity.user,
        device: None,
        paired: false,
        platform: Box::default(),
        device_family: Box::default(),
        issues_device_token: false,
        verdict,
        generation: policy.generation,
        page: super::authorize::page(headers),
        lent,
        insecure_ui: false,
    })
}

/// What the header names and `held` covers: a caller that holds everything may ask for less than is in its set.
fn narrowed(held: ScopeSet, cap: Option<&str>) -> ScopeSet {
    match cap {
        None => held,
        Some(_) => {
            let named = scope_cap::cap(Scope::ALL.iter().map(|scope| scope.as_str()), cap);
            ScopeSet::parse(named).narrowed_to(held)
        }
    }
}

/// Whether a request that proves nothing is one of this host: no page but one that is allowed by name, and no name but
/// one of loopback, which is what a rebound name is not.
fn is_ours(verdict: Verdict, headers: HeaderView<'_>, page: Option<OriginMatch>) -> bool {
    let by_name = !matches!(page, Some(OriginMatch::Wildcard)) && !is_cross_site_without_origin(headers);
    let rebound = matches!(verdict, Verdict::DirectRemote { client } if client.is_loopback());
    by_name && !rebound
}

/// The secret of `Authorization: Bearer`; `None` where the header is missing, doubled, or of another kind.
fn bearer<'a>(headers: HeaderView<'a>) -> Option<&'a str> {
    let (kind, secret) = headers.single("authorization").ok()??.trim().split_once(' ')?;
    kind.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::AddressList;
    use crate::auth::AuthMode;
    use crate::auth::ingress::{IngressPolicy, Listener};
    use crate::auth::origin::OriginPolicy;
    use crate::auth::trusted_proxy::TrustedProxy;
    use crate::secret::SecretHash;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn asked(policy: &Policy, peer: &str, lines: &[(&str, &str)]) -> Result<Grant, Denied> {
        let limits = RateLimits::new(Default::default());
        let lines: Vec<(&str, &[u8])> = lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let headers = HeaderView::new(&lines);
        let peer = peer.parse().unwrap();
        let verdict = Verdict::of(peer, headers, Listener::Main, &policy.ingress);
        authorize_http(&HttpRequest { peer, verdict, headers, own_addresses: Some(&[]) }, policy, &limits, NOW)
    }

    fn token() -> Policy {
        Policy::new(1, AuthMode::Token(Some(SecretHash::of("good"))))
    }

    fn proxied() -> Policy {
        let proxy = TrustedProxy { user_header: "x-user".into(), allow_loopback: true, ..TrustedProxy::default() };
        let mut policy = Policy::new(1, AuthMode::TrustedProxy { proxy: Some(proxy), password: None });
        policy.ingress = IngressPolicy {
            trusted_proxies: AddressList::parse(["10.0.0.1"]),
            identity_headers: policy.ingress.identity_headers,
            ..IngressPolicy::default()
        };
        policy
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:18789");

    #[test]
    fn the_shared_secret_is_a_bearer_and_a_scope_header_takes_nothing_from_it() {
        let policy = token();
        let grant = asked(&policy, "127.0.0.1", &[HOST, ("authorization", "bearer good"), ("x-openclaw-scopes", "")]);
        assert!(grant.unwrap().scopes().covers(Scope::Admin));
        for (line, why) in [
            ("Bearer bad", Denied::TokenMismatch),
            ("Basic Z29vZA==", Denied::TokenMissing),
            ("Bearer ", Denied::TokenMissing),
            ("good", Denied::TokenMissing),
        ] {
            assert_eq!(asked(&policy, "127.0.0.1", &[HOST, ("authorization", line)]).unwrap_err(), why, "{line}");
        }
        let twice = [HOST, ("authorization", "Bearer good"), ("authorization", "Bearer good")];
        assert_eq!(asked(&policy, "127.0.0.1", &twice).unwrap_err(), Denied::TokenMissing);
    }

    #[test]
    fn a_foreign_page_is_refused_even_with_the_secret() {
        let lines = [HOST, ("authorization", "Bearer good"), ("origin", "https://evil.example")];
        assert!(matches!(asked(&token(), "127.0.0.1", &lines), Err(Denied::OriginNotAllowed(_))));
        let own = [HOST, ("authorization", "Bearer good"), ("origin", "http://127.0.0.1:18789")];
        assert!(asked(&token(), "127.0.0.1", &own).is_ok());
    }

    #[test]
    fn without_auth_only_this_host_may_ask_and_no_page_by_a_wildcard_or_a_rebound_name() {
        let mut policy = Policy::new(1, AuthMode::None);
        assert!(asked(&policy, "127.0.0.1", &[HOST]).is_ok());
        assert!(asked(&policy, "127.0.0.1", &[("host", "evil.example")]).is_err());
        assert!(asked(&policy, "127.0.0.1", &[HOST, ("sec-fetch-site", "cross-site")]).is_err());
        policy.origins = OriginPolicy::parse(["*"]);
        assert!(asked(&policy, "127.0.0.1", &[HOST, ("origin", "https://evil.example")]).is_err());
        let narrowed = asked(&policy, "127.0.0.1", &[HOST, ("x-openclaw-scopes", "operator.read")]).unwrap();
        assert!(narrowed.scopes().covers(Scope::Read) && !narrowed.scopes().covers(Scope::Write));
    }

    #[test]
    fn a_proxys_user_holds_what_the_header_and_the_settings_leave() {
        let alice = [("host", "gw.example"), ("x-user", "alice"), ("x-forwarded-for", "203.0.113.9")];
        let with = |more: &[(&'static str, &'static str)]| [&alice[..], more].concat();
        let mut policy = proxied();
        assert!(asked(&policy, "10.0.0.1", &alice).unwrap().scopes().covers(Scope::Admin));
        let read = asked(&policy, "10.0.0.1", &with(&[("x-openclaw-scopes", "operator.read")])).unwrap();
        assert_eq!(read.scopes(), ScopeSet::EMPTY.with(Scope::Read));
        let empty = asked(&policy, "10.0.0.1", &with(&[("x-openclaw-scopes", "")])).unwrap();
        assert!(empty.scopes().is_empty(), "empty is not absent");
        policy.identity_scopes = vec![("bob".into(), ScopeSet::EMPTY.with(Scope::Write))];
        assert!(asked(&policy, "10.0.0.1", &alice).unwrap().scopes().is_empty(), "others were named");
        policy.identity_scopes = vec![("alice".into(), ScopeSet::EMPTY.with(Scope::Write))];
        let cut = asked(&policy, "10.0.0.1", &with(&[("x-openclaw-scopes", "operator.admin,operator.read")])).unwrap();
        assert_eq!(cut.scopes(), ScopeSet::EMPTY.with(Scope::Read));
        assert!(asked(&policy, "10.0.0.2", &alice).is_err(), "another peer is no proxy");
        let cross = with(&[("sec-fetch-site", "cross-site")]);
        assert!(asked(&policy, "10.0.0.1", &cross).is_err());
        policy.origins = OriginPolicy::parse(["*"]);
        let foreign = with(&[("origin", "https://evil.example")]);
        assert_eq!(
            asked(&policy, "10.0.0.1", &foreign).unwrap_err(),
            Denied::ProxyOriginNotAllowed,
            "a wildcard lends nothing"
        );
    }

    #[test]
    fn a_tailscale_identity_never_serves() {
        let mut policy = token();
        policy.allow_tailscale = true;
        policy.ingress.tailscale_on_main = true;
        let lines = [
            ("host", "gw.tail.ts.net"),
            ("tailscale-user-login", "alice@example.com"),
            ("x-forwarded-for", "100.64.0.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "gw.tail.ts.net"),
        ];
        assert_eq!(asked(&policy, "127.0.0.1", &lines).unwrap_err(), Denied::TokenMissing);
        let with = [&lines[..], &[("authorization", "Bearer good")]].concat();
        assert!(asked(&policy, "127.0.0.1", &with).is_ok(), "the secret does, through Serve, too");
    }
}
