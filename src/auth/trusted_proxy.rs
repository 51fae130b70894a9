//! Identity that an authenticating proxy vouches for (contract 2.4).
//!
//! The checks run in a fixed order and the first failure is the reason, each with a name of its own: what an
//! operator reads in the log is what to change. Whether the page behind the request may talk to us is judged
//! elsewhere.

use std::net::IpAddr;

use super::denied::Denied;
use super::headers::HeaderView;
use crate::address::AddressList;

/// Bytes a user identity may have: the longest e-mail address.
const USER_BYTES: usize = 320;

/// `gateway.auth.trustedProxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxy {
    /// The header that carries the user, in any case.
    pub user_header: Box<str>,
    /// Headers that must be there and not blank.
    pub required_headers: Vec<Box<str>>,
    /// Users that may come in; empty: all that the proxy lets through.
    pub allow_users: Vec<Box<str>>,
    /// Whether the proxy may connect from loopback.
    pub allow_loopback: bool,
}

/// The addresses of the gateway's own host; `None` when they could not be listed.
pub type OwnAddresses<'a> = Option<&'a [IpAddr]>;

impl TrustedProxy {
    /// The user that the proxy at `peer` vouches for. `peer` is `None` on transports without addresses.
    ///
    /// # Errors
    /// The first check that fails, as `Denied::Proxy*`.
    pub fn user(
        &self,
        peer: Option<IpAddr>,
        headers: HeaderView<'_>,
        proxies: &AddressList,
        own: OwnAddresses<'_>,
    ) -> Result<Box<str>, Denied> {
        let peer = peer.map(|peer| peer.to_canonical()).filter(|peer| proxies.contains(*peer));
        let peer = peer.ok_or(Denied::ProxyUntrustedSource)?;
        if peer.is_loopback() {
            if !self.allow_loopback {
                return Err(Denied::ProxyLoopbackSource);
            }
        } else if own.ok_or(Denied::ProxyInterfaceCheckFailed)?.iter().any(|own| own.to_canonical() == peer) {
            return Err(Denied::ProxyInterfaceSource);
        }
        if let Some(name) = self.required_headers.iter().find(|name| !headers.is_filled(name)) {
            return Err(Denied::ProxyHeaderMissing(name.clone()));
        }
        self.allowed(header_user(headers, &self.user_header)?)
    }

    /// The identity under which `user` is let in: as the operator spells it in `allowUsers`.
    pub(super) fn allowed(&self, user: &str) -> Result<Box<str>, Denied> {
        if self.allow_users.is_empty() {
            return Ok(user.into());
        }
        let exact = self.allow_users.iter().find(|allowed| allowed.trim() == user);
        let listed = exact.or_else(|| self.allow_users.iter().find(|allowed| same_user(allowed.trim(), user)));
        listed.map(|allowed| allowed.trim().into()).ok_or(Denied::ProxyUserNotAllowed)
    }
}

/// The user in `name`, trimmed.
fn header_user<'a>(headers: HeaderView<'a>, name: &str) -> Result<&'a str, Denied> {
    match headers.single(name) {
        Err(_) if headers.values(name).nth(1).is_some() => Err(Denied::ProxyUserAmbiguous),
        Err(_) => Err(Denied::ProxyUserInvalid),
        Ok(value) => match value.map(str::trim).filter(|user| !user.is_empty()) {
            None => Err(Denied::ProxyUserMissing),
            Some(user) if !is_identity(user) => Err(Denied::ProxyUserInvalid),
            Some(user) => Ok(user),
        },
    }
}

/// Whether `text` can be an identity: bounded, and nothing that writes to a terminal or a log.
pub(super) fn is_identity(text: &str) -> bool {
    !text.is_empty() && text.len() <= USER_BYTES && !text.contains(char::is_control)
}

/// Whether two identities are one user: e-mail addresses compare without case, all else exactly.
pub fn same_user(one: &str, two: &str) -> bool {
    one == two || (is_email(one) && is_email(two) && one.to_lowercase() == two.to_lowercase())
}

fn is_email(text: &str) -> bool {
    text.split_once('@').is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(headers: &[(&str, &[u8])], allow: &[&str]) -> Result<Box<str>, Denied> {
        let proxy = TrustedProxy {
            user_header: "X-Forwarded-User".into(),
            allow_users: allow.iter().map(|user| (*user).into()).collect(),
            ..TrustedProxy::default()
        };
        let proxies = AddressList::parse(["10.0.0.1"]);
        proxy.user(Some("10.0.0.1".parse().unwrap()), HeaderView::new(headers), &proxies, Some(&[]))
    }

    #[test]
    fn an_identity_is_bounded_and_plain() {
        let long = [b'a'; 321];
        for value in [&long[..], b"alice\x1b[2J", b"\xff\xfe"] {
            assert_eq!(user(&[("x-forwarded-user", value)], &[]), Err(Denied::ProxyUserInvalid));
        }
        assert_eq!(user(&[("x-forwarded-user", &long[..320])], &[]).unwrap().len(), 320);
    }

    #[test]
    fn case_folds_for_e_mail_addresses_only() {
        let header: &[(&str, &[u8])] = &[("x-forwarded-user", b" Alice@Example.com ")];
        assert_eq!(user(header, &["alice@example.com"]).as_deref(), Ok("alice@example.com"));
        assert_eq!(user(header, &[]).as_deref(), Ok("Alice@Example.com"));
        assert_eq!(user(&[("x-forwarded-user", b"Alice")], &["alice"]), Err(Denied::ProxyUserNotAllowed));
    }

    #[test]
    fn a_peer_that_is_this_host_is_no_proxy() {
        let proxy = TrustedProxy { user_header: "x-u".into(), ..TrustedProxy::default() };
        let proxies = AddressList::parse(["10.0.0.0/8"]);
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let headers: &[(&str, &[u8])] = &[("x-u", b"alice")];
        let user = |own: OwnAddresses<'_>| proxy.user(Some(peer), HeaderView::new(headers), &proxies, own);
        assert_eq!(user(None), Err(Denied::ProxyInterfaceCheckFailed));
        assert_eq!(user(Some(&["::ffff:10.0.0.1".parse().unwrap()])), Err(Denied::ProxyInterfaceSource));
        assert_eq!(user(Some(&["10.0.0.2".parse().unwrap()])).as_deref(), Ok("alice"));
    }
}
