//! Identity that Tailscale Serve on this host vouches for (contract 2.6).
//!
//! `Tailscale-User-Login` is a claim that any local process could write. It counts only when the local
//! daemon's whois of the forwarded address gives the same login. Asking the daemon is IO, so it happens
//! between two calls: [`Claim::of`] says whom to ask about, [`Claim::verify`] takes the answer.

use std::net::IpAddr;

use super::denied::Denied;
use super::headers::HeaderView;
use super::ingress::Verdict;
use super::trusted_proxy::is_identity;

/// What the local daemon answered about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whois<'a> {
    /// The login that the address belongs to.
    Login(&'a str),
    /// It knows no user there, or gave no answer in time.
    Failed,
}

/// A claim to be verified: this address belongs to this login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Whom to ask the daemon about.
    pub client: IpAddr,
    login: &'a str,
}

impl<'a> Claim<'a> {
    /// Reads the claim of a request that came through Serve.
    ///
    /// # Errors
    /// No (single, plain) login, or the request did not come through Serve.
    pub fn of(verdict: Verdict, headers: HeaderView<'a>) -> Result<Self, Denied> {
        let login = headers.single("tailscale-user-login").ok().flatten().map(str::trim);
        let login = login.filter(|login| is_identity(login)).ok_or(Denied::TailscaleUserMissing)?;
        let Verdict::TailscaleServe { client } = verdict else { return Err(Denied::TailscaleProxyMissing) };
        Ok(Self { client, login })
    }

    /// The login as the daemon spells it. Logins compare without case.
    ///
    /// # Errors
    /// The daemon did not answer, or names someone else.
    pub fn verify(self, whois: Option<Whois<'a>>) -> Result<&'a str, Denied> {
        match whois {
            Some(Whois::Login(login)) if login.trim().to_lowercase() == self.login.to_lowercase() => Ok(login.trim()),
            Some(Whois::Login(login)) if !login.trim().is_empty() => Err(Denied::TailscaleUserMismatch),
            Some(Whois::Login(_) | Whois::Failed) | None => Err(Denied::TailscaleWhoisFailed),
        }
    }
}
