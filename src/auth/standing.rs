//! Does it still hold? A grant under settings that came after it.
//!
//! When the settings change, every connection is asked this, and who has lost its right is closed. What a grant rests on
//! that can be looked at again is: the proxy that spoke for the client, its user, the page it came from, the scopes its
//! user lent it. What can't be, because it was not kept (the secret, the proxy's headers), counts by when it last
//! changed: [`Policy::succeeding`].

use super::grant::{Grant, Method};
use super::ingress::Verdict;
use super::origin::OriginMatch;
use super::policy::{AuthMode, Policy};

/// Why a connection has lost its right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Clients prove themselves in another way now, or by another secret.
    Secret,
    /// The proxy it came through is not trusted any more.
    Proxy,
    /// What the proxy must say has changed: it has to say it again.
    ProxyRules,
    /// Its user may not come in any more.
    User,
    /// Tailscale identities do not serve any more.
    Tailscale,
    /// Its page may not talk to the gateway any more.
    Origin,
    /// It has scopes that its user does not lend it any more.
    Scopes,
    /// A Control UI needs a device now.
    InsecureUi,
}

impl Lost {
    /// The close reason: what changed, and so what to look at.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Secret => "gateway auth changed: gateway.auth.mode or its secret",
            Self::Proxy => "gateway auth changed: gateway.trustedProxies",
            Self::ProxyRules => "gateway auth changed: gateway.auth.trustedProxy",
            Self::User => "gateway auth changed: gateway.auth.trustedProxy.allowUsers",
            Self::Tailscale => "gateway auth changed: gateway.auth.allowTailscale",
            Self::Origin => "gateway auth changed: gateway.controlUi.allowedOrigins",
            Self::Scopes => "gateway auth changed: gateway.auth.identityScopes",
            Self::InsecureUi => "gateway auth changed: gateway.controlUi.allowInsecureAuth",
        }
    }
}

/// The page behind a connection, as it said at its upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) origin: Box<str>,
    pub(super) host: Option<Box<str>>,
}

/// Whether `grant` holds under `policy`.
///
/// # Errors
/// [`Lost`]: it does not.
pub fn stands(grant: &Grant, policy: &Policy) -> Result<(), Lost> {
    if let Verdict::TrustedProxy { proxy, .. } = grant.verdict
        && !policy.ingress.trusted_proxies.contains(proxy)
    {
        return Err(Lost::Proxy);
    }
    match grant.method {
        Method::None | Method::Token | Method::Password if grant.generation < policy.since.secret => {
            return Err(Lost::Secret);
        }
        Method::TrustedProxy => proxy_stands(grant, policy)?,
        Method::Tailscale => {
            let by_mode = matches!(policy.mode, AuthMode::Token(_) | AuthMode::Password(_));
            if !by_mode || !policy.allow_tailscale {
                return Err(Lost::Tailscale);
            }
        }
        Method::None | Method::Token | Method::Password | Method::DeviceToken | Method::BootstrapToken => {}
    }
    if matches!(grant.verdict, Verdict::TailscaleServe { .. }) && grant.generation < policy.since.hand_made_serve {
        return Err(Lost::Tailscale);
    }
    if let Some(page) = &grant.page {
        let judged = policy.origins.check(Some(&page.origin), page.host.as_deref(), grant.verdict.is_local());
        match judged {
            Ok(OriginMatch::Wildcard) if grant.method == Method::Tailscale => return Err(Lost::Origin),
            Ok(_) => {}
            Err(_) => return Err(Lost::Origin),
        }
    }
    if !policy.scopes_of(grant.user.as_deref()).covers_all(grant.lent) {
        return Err(Lost::Scopes);
    }
    if grant.insecure_ui && !policy.allow_insecure_ui {
        return Err(Lost::InsecureUi);
    }
    Ok(())
}

fn proxy_stands(grant: &Grant, policy: &Policy) -> Result<(), Lost> {
    let AuthMode::TrustedProxy { proxy: Some(proxy), .. } = &policy.mode else { return Err(Lost::Secret) };
    if grant.generation < policy.since.proxy_rules {
        return Err(Lost::ProxyRules);
    }
    if matches!(grant.verdict, Verdict::TrustedProxy { proxy: peer, .. } if peer.is_loopback()) && !proxy.allow_loopback
    {
        return Err(Lost::ProxyRules);
    }
    proxy.allowed(grant.user.as_deref().unwrap_or_default()).map(drop).map_err(|_| Lost::User)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::AddressList;
    use crate::auth::origin::OriginPolicy;
    use crate::auth::trusted_proxy::TrustedProxy;
    use crate::rpc::scope::{Role, Scope, ScopeSet};
    use crate::secret::SecretHash;

    fn token(text: &str) -> Policy {
        Policy::new(1, AuthMode::Token(Some(SecretHash::of(text))))
    }

    fn grant(method: Method) -> Grant {
        Grant { generation: 1, ..Grant::for_test(Role::Operator, ScopeSet::EMPTY, None).by(method) }
    }

    fn proxied(allow_users: &[&str]) -> Policy {
        let proxy = TrustedProxy {
            user_header: "x-user".into(),
            allow_users: allow_users.iter().map(|user| (*user).into()).collect(),
            ..TrustedProxy::default()
        };
        let mut policy = Policy::new(1, AuthMode::TrustedProxy { proxy: Some(proxy), password: None });
        policy.ingress.trusted_proxies = AddressList::parse(["10.0.0.1"]);
        policy
    }

    fn alice() -> Grant {
        Grant {
            user: Some("alice".into()),
            verdict: Verdict::TrustedProxy { proxy: "10.0.0.1".parse().unwrap(), client: None },
            ..grant(Method::TrustedProxy)
        }
    }

    #[test]
    fn what_is_as_before_is_no_new_generation() {
        let policy = token("t");
        assert!(token("t").succeeding(&policy).is_none());
        let mut next = token("t");
        next.origins = OriginPolicy::parse(["https://ui.example"]);
        let next = next.succeeding(&policy).unwrap();
        assert_eq!((next.generation, next.since.secret), (2, 1), "the secret is the old one");
        assert_eq!(stands(&grant(Method::Token), &next), Ok(()));
    }

    #[test]
    fn another_secret_or_mode_ends_those_that_used_it_and_no_device() {
        let password = Policy::new(1, AuthMode::Password(Some(SecretHash::of("t"))));
        for next in [token("other"), password, Policy::new(1, AuthMode::None), proxied(&[])] {
            let next = next.succeeding(&token("t")).unwrap();
            assert_eq!(stands(&grant(Method::Token), &next), Err(Lost::Secret));
            assert_eq!(stands(&grant(Method::DeviceToken), &next), Ok(()));
            let newer = Grant { generation: 2, ..grant(Method::Token) };
            assert_eq!(stands(&newer, &next), Ok(()));
        }
        assert_eq!(stands(&alice(), &token("t").succeeding(&proxied(&[])).unwrap()), Err(Lost::Proxy));
    }

    #[test]
    fn a_proxy_its_rules_and_its_users_are_looked_at_again() {
        let before = proxied(&[]);
        let only = |users: &[&str]| proxied(users).succeeding(&before).unwrap();
        assert_eq!(stands(&alice(), &only(&["bob"])), Err(Lost::User));
        assert_eq!(stands(&alice(), &only(&["bob", "alice"])), Ok(()));
        let mut elsewhere = proxied(&[]);
        elsewhere.ingress.trusted_proxies = AddressList::parse(["10.0.0.2"]);
        assert_eq!(stands(&alice(), &elsewhere.succeeding(&before).unwrap()), Err(Lost::Proxy));
        let mut more = proxied(&[]);
        more.ingress.trusted_proxies = AddressList::parse(["10.0.0.1", "10.0.0.2"]);
        assert_eq!(stands(&alice(), &more.succeeding(&before).unwrap()), Ok(()));
        let mut stricter = proxied(&[]);
        if let AuthMode::TrustedProxy { proxy: Some(proxy), .. } = &mut stricter.mode {
            proxy.required_headers = vec!["x-verified".into()];
        }
        assert_eq!(stands(&alice(), &stricter.succeeding(&before).unwrap()), Err(Lost::ProxyRules));
    }

    #[test]
    fn a_page_that_is_taken_off_the_list_loses_its_connections() {
        let mut before = token("t");
        before.origins = OriginPolicy::parse(["https://ui.example", "https://old.example"]);
        let mut next = token("t");
        next.origins = OriginPolicy::parse(["https://ui.example"]);
        let next = next.succeeding(&before).unwrap();
        let from = |origin: &str| Grant {
            page: Some(Box::new(Page { origin: origin.into(), host: None })),
            ..grant(Method::DeviceToken)
        };
        assert_eq!(stands(&from("https://old.example"), &next), Err(Lost::Origin));
        assert_eq!(stands(&from("https://ui.example"), &next), Ok(()));
    }

    #[test]
    fn scopes_that_a_user_lent_are_taken_back() {
        let lends = |scopes: &[Scope]| {
            let mut policy = proxied(&[]);
            policy.identity_scopes = vec![("alice".into(), scopes.iter().copied().collect())];
            policy
        };
        let before = lends(&[Scope::Read, Scope::Write]);
        let holder = Grant { lent: ScopeSet::EMPTY.with(Scope::Write), ..alice() };
        assert_eq!(stands(&holder, &lends(&[Scope::Read]).succeeding(&before).unwrap()), Err(Lost::Scopes));
        assert_eq!(stands(&holder, &lends(&[Scope::Write]).succeeding(&before).unwrap()), Ok(()));
        let reader = Grant { lent: ScopeSet::EMPTY.with(Scope::Read), ..alice() };
        assert_eq!(stands(&reader, &lends(&[Scope::Read]).succeeding(&before).unwrap()), Ok(()));
    }

    #[test]
    fn tailscale_identities_end_when_they_do_not_serve_any_more() {
        let mut before = token("t");
        (before.allow_tailscale, before.ingress.tailscale_on_main) = (true, true);
        let serve = Verdict::TailscaleServe { client: "100.64.0.9".parse().unwrap() };
        let grant = Grant { verdict: serve, ..grant(Method::Tailscale) };
        let mut next = before.clone();
        next.allow_tailscale = false;
        assert_eq!(stands(&grant, &next.succeeding(&before).unwrap()), Err(Lost::Tailscale));
        let mut next = before.clone();
        next.ingress.tailscale_on_main = false;
        assert_eq!(stands(&grant, &next.succeeding(&before).unwrap()), Err(Lost::Tailscale));
    }
}
