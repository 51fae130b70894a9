//! What the operator decided about access, resolved: secrets as hashes, lists parsed, defaults filled in.
//!
//! The server builds one from the configuration and replaces it whole on reload, with the next generation.

use super::ingress::IngressPolicy;
use super::origin::OriginPolicy;
use super::trusted_proxy::{TrustedProxy, same_user};
use crate::address::AddressList;
use crate::rpc::scope::ScopeSet;
use crate::secret::SecretHash;

/// `gateway.auth.mode` with what it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthMode {
    /// Everyone on loopback is let in. Start guards keep it off other addresses.
    None,
    /// The shared token; `None` when there is none, which lets no one in by token.
    Token(Option<SecretHash>),
    /// The shared password; likewise.
    Password(Option<SecretHash>),
    /// An authenticating proxy.
    TrustedProxy {
        /// `gateway.auth.trustedProxy`; `None` when missing.
        proxy: Option<TrustedProxy>,
        /// `gateway.auth.password`, for callers on this host that don't come through the proxy.
        password: Option<SecretHash>,
    },
}

impl AuthMode {
    /// The name in the configuration.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token(_) => "token",
            Self::Password(_) => "password",
            Self::TrustedProxy { .. } => "trusted-proxy",
        }
    }
}

impl AuthMode {
    fn has_secret_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::TrustedProxy { password: one, .. }, Self::TrustedProxy { password: two, .. }) => one == two,
            (one, two) => one == two,
        }
    }

    fn has_proxy_rules_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::TrustedProxy { proxy: Some(one), .. }, Self::TrustedProxy { proxy: Some(two), .. }) => {
                one.user_header == two.user_header && one.required_headers == two.required_headers
            }
            _ => false,
        }
    }
}

/// The generations since which settings are as they are, of those that a grant keeps nothing of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// The kind of mode and its shared secret.
    pub secret: u64,
    /// Which headers a proxy must send, and which holds the user.
    pub proxy_rules: u64,
    /// [`IngressPolicy::tailscale_on_main`]: that it was last taken away.
    pub hand_made_serve: u64,
}

/// The access settings in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Counts changes of anything below; from 1.
    pub generation: u64,
    /// Since when some of it is as it is.
    pub since: Since,
    /// How clients prove themselves.
    pub mode: AuthMode,
    /// What gave the shared secret, for the error about a wrong one: `gateway.auth.token`, a variable, a flag.
    pub secret_source: Option<Box<str>>,
    /// Which proxies are believed. Its `identity_headers` come from `mode`: see [`Policy::new`].
    pub ingress: IngressPolicy,
    /// Which pages may talk to us.
    pub origins: OriginPolicy,
    /// `gateway.auth.allowTailscale`, resolved.
    pub allow_tailscale: bool,
    /// `gateway.controlUi.allowInsecureAuth`: a Control UI on the gateway's own host may do without a
    /// device identity.
    pub allow_insecure_ui: bool,
    /// `gateway.auth.identityScopes`: scopes for the session of a user that a proxy or Tailscale vouches for.
    pub identity_scopes: Vec<(Box<str>, ScopeSet)>,
    /// `gateway.auth.trustedProxy.deviceAutoApprove`: what a user interface behind the proxy is approved for
    /// without asking; `None` when off.
    pub device_auto_approve: Option<ScopeSet>,
    /// `gateway.nodes.pairing.autoApproveLocal`: truly local devices are paired without asking. Default true.
    pub pair_local_silently: bool,
    /// `gateway.nodes.pairing.autoApproveCidrs`: where new nodes are paired without asking. Their commands
    /// still need an approval.
    pub node_auto_approve: AddressList,
}

impl Policy {
    /// A policy of `mode` with everything else at its default.
    pub fn new(generation: u64, mode: AuthMode) -> Self {
        let identity_headers = match &mode {
            AuthMode::TrustedProxy { proxy: Some(proxy), .. } => {
                let named = proxy.required_headers.iter().chain([&proxy.user_header]);
                named.filter(|name| !is_ordinary(name)).cloned().collect()
            }
            _ => Vec::new(),
        };
        Self {
            generation,
            since: Since { secret: generation, proxy_rules: generation, hand_made_serve: generation },
            mode,
            secret_source: None,
            ingress: IngressPolicy { identity_headers, ..IngressPolicy::default() },
            origins: OriginPolicy::default(),
            allow_tailscale: false,
            allow_insecure_ui: false,
            identity_scopes: Vec::new(),
            device_auto_approve: None,
            pair_local_silently: true,
            node_auto_approve: AddressList::default(),
        }
    }

    /// These settings as the ones after `previous`; `None` when they are the same.
    #[must_use]
    pub fn succeeding(mut self, previous: &Self) -> Option<Self> {
        (self.generation, self.since) = (previous.generation, previous.since);
        if self == *previous {
            return None;
        }
        self.generation += 1;
        let (now, since) = (self.generation, &mut self.since);
        if !self.mode.has_secret_of(&previous.mode) {
            since.secret = now;
        }
        if !self.mode.has_proxy_rules_of(&previous.mode) {
            since.proxy_rules = now;
        }
        if previous.ingress.tailscale_on_main && !self.ingress.tailscale_on_main {
            since.hand_made_serve = now;
        }
        Some(self)
    }

    /// The secret that clients are asked for.
    pub const fn secret(&self) -> Option<&SecretHash> {
        match &self.mode {
            AuthMode::Token(secret) | AuthMode::Password(secret) | AuthMode::TrustedProxy { password: secret, .. } => {
                secret.as_ref()
            }
            AuthMode::None => None,
        }
    }

    /// The session scopes of a vouched-for user.
    pub(super) fn scopes_of(&self, user: Option<&str>) -> ScopeSet {
        let Some(user) = user else { return ScopeSet::EMPTY };
        let entry = self.identity_scopes.iter().find(|(name, _)| same_user(name.trim(), user));
        entry.map_or(ScopeSet::EMPTY, |(_, scopes)| *scopes)
    }
}

/// Whether clients send this header by themselves, so that it shows no proxy.
fn is_ordinary(name: &str) -> bool {
    const ORDINARY: [&str; 7] = ["host", "origin", "user-agent", "connection", "upgrade", "cookie", "authorization"];
    let name = name.to_ascii_lowercase();
    ORDINARY.contains(&name.as_str()) || name.starts_with("sec-") || name.starts_with("accept")
}
