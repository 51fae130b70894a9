//! Who is it? The part of the decision that needs no device: mode, shared secret, proxy, Tailscale.

use super::denied::Denied;
use super::evidence::{Request, Surface, filled};
use super::grant::Method;
use super::origin::{OriginMatch, is_cross_site_without_origin};
use super::policy::{AuthMode, Policy};
use super::rate_limit::{Attempts, CredentialKind};
use super::shared_secret::SharedSecret;
use super::tailscale::Claim;

/// Someone who was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// By what.
    pub method: Method,
    /// As whom, where a proxy or Tailscale says.
    pub user: Option<Box<str>>,
}

impl Identity {
    fn by(method: Method) -> Self {
        Self { method, user: None }
    }
}

/// What came out of a request's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// Who it is, or why not.
    pub outcome: Result<Identity, Denied>,
    /// Why a Tailscale identity did not serve, where it was looked for.
    pub tailscale: Option<Denied>,
}

/// Judges the credentials of `request` by the gateway's mode. What is wrong is noted in `attempts`, which
/// counts it in the end; a device token in `token` may still turn out to be right, and only then
/// [`Attempts::excuse`] applies.
///
/// Whether the request can be attributed at all is judged before.
pub fn authenticate(request: &Request<'_>, policy: &Policy, attempts: &mut Attempts<'_>) -> Authentication {
    let plain = |outcome| Authentication { outcome, tailscale: None };
    match &policy.mode {
        AuthMode::None => plain(Ok(Identity::by(Method::None))),
        AuthMode::TrustedProxy { .. } => plain(by_proxy(request, policy, attempts)),
        AuthMode::Token(_) | AuthMode::Password(_) => {
            let tailscale = tailscale_claim(request, policy).map(|claim| claim.and_then(|c| c.verify(request.whois)));
            match tailscale {
                Some(Ok(login)) => {
                    let identity = Identity { method: Method::Tailscale, user: Some(login.into()) };
                    Authentication { outcome: Ok(identity), tailscale: None }
                }
                other => Authentication {
                    outcome: by_secret(request, policy, attempts),
                    tailscale: other.and_then(Result::err),
                },
            }
        }
    }
}

/// Compares the shared secret that the mode asks for.
fn by_secret(request: &Request<'_>, policy: &Policy, attempts: &mut Attempts<'_>) -> Result<Identity, Denied> {
    let (secret, method, configured, supplied) = match &policy.mode {
        AuthMode::Token(token) => (SharedSecret::Token, Method::Token, token, request.credentials.token),
        AuthMode::Password(password) | AuthMode::TrustedProxy { password, .. } => {
            (SharedSecret::Password, Method::Password, password, request.credentials.password)
        }
        AuthMode::None => return Ok(Identity::by(Method::None)),
    };
    let supplied = filled(supplied);
    if let Some(supplied) = supplied {
        attempts.check(CredentialKind::SharedSecret, supplied)?;
    }
    let outcome = secret.check(configured.as_ref(), supplied);
    match (&outcome, supplied) {
        (Ok(()), _) => attempts.right(CredentialKind::SharedSecret),
        (Err(Denied::TokenMismatch | Denied::PasswordMismatch), Some(wrong)) => {
            attempts.wrong(CredentialKind::SharedSecret, wrong);
        }
        _ => {}
    }
    outcome.map(|()| Identity::by(method))
}

/// Takes the proxy's word, or the password of a caller on this host that does not come through it.
fn by_proxy(request: &Request<'_>, policy: &Policy, attempts: &mut Attempts<'_>) -> Result<Identity, Denied> {
    let AuthMode::TrustedProxy { proxy: Some(proxy), password } = &policy.mode else {
        return Err(Denied::ProxyConfigMissing);
    };
    let proxies = &policy.ingress.trusted_proxies;
    if proxies.is_empty() {
        return Err(Denied::ProxyNoneConfigured);
    }
    let offers_password = password.is_some() && filled(request.credentials.password).is_some();
    match proxy.user(request.peer, request.headers, proxies, request.own_addresses) {
        Ok(_) if !page_may_use_identity(request, policy) => Err(Denied::ProxyOriginNotAllowed),
        Ok(user) => Ok(Identity { method: Method::TrustedProxy, user: Some(user) }),
        Err(_) if request.verdict.is_local() && offers_password => by_secret(request, policy, attempts),
        Err(denied) => Err(denied),
    }
}

/// On HTTP routes a page must be allowed by itself: the browser adds the proxy's identity to any request, and a wildcard
/// must not lend it to every page (S-08). On the WebSocket the origin was judged before.
fn page_may_use_identity(request: &Request<'_>, policy: &Policy) -> bool {
    let is_allowed = match policy.origins.check_request(request.headers, false) {
        Ok(page) => page != Some(OriginMatch::Wildcard),
        Err(_) => false,
    };
    request.surface == Surface::WebSocket || (is_allowed && !is_cross_site_without_origin(request.headers))
}

/// The claim of a Tailscale identity, where one could let this request in.
fn tailscale_claim<'a>(request: &Request<'a>, policy: &Policy) -> Option<Result<Claim<'a>, Denied>> {
    let secret = filled(request.credentials.token).or(filled(request.credentials.password));
    let wanted = policy.allow_tailscale
        && request.surface == Surface::WebSocket
        && matches!(policy.mode, AuthMode::Token(_) | AuthMode::Password(_))
        && !request.verdict.is_local()
        && secret.is_none();
    wanted.then(|| {
        let claim = Claim::of(request.verdict, request.headers)?;
        // A wildcard allows every page; it must not lend each of them the user's identity (S-08).
        match policy.origins.check_request(request.headers, false) {
            Ok(Some(OriginMatch::Wildcard)) | Err(_) => Err(Denied::TailscaleOriginNotAllowed),
            Ok(_) => Ok(claim),
        }
    })
}

/// The address to ask the local Tailscale daemon about before `request` is judged; `None` where its answer
/// would not matter. Limits and cost of asking are the caller's business.
pub fn needs_whois(request: &Request<'_>, policy: &Policy) -> Option<std::net::IpAddr> {
    tailscale_claim(request, policy)?.ok().map(|claim| claim.client)
}
