//! The permit: what someone who was let in may do.
//!
//! A [`Grant`] is made by [`super::authorize`] and [`super::authorize_http`] and by nothing else, but for the one of the
//! gateway's own agent. Everything behind the door takes one, so forgetting the check does not compile.

use std::fmt;

use super::device::{DeviceId, DeviceKey};
use super::ingress::Verdict;
use super::standing::Page;
use crate::rpc::scope::{Role, Scope, ScopeSet};

/// What proved a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Nothing: the gateway runs without auth, on loopback.
    None,
    /// The shared token.
    Token,
    /// The shared password.
    Password,
    /// An authenticating proxy.
    TrustedProxy,
    /// Tailscale Serve and the local daemon.
    Tailscale,
    /// A paired device's token.
    DeviceToken,
    /// A setup code.
    BootstrapToken,
}

impl Method {
    /// The name on the wire and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token => "token",
            Self::Password => "password",
            Self::TrustedProxy => "trusted-proxy",
            Self::Tailscale => "tailscale",
            Self::DeviceToken => "device-token",
            Self::BootstrapToken => "bootstrap-token",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The right to be connected, in a role, with scopes. Only [`super::authorize`] makes one for a client.
#[derive(Clone, Debug)]
pub struct Grant {
    pub(super) role: Role,
    pub(super) scopes: ScopeSet,
    pub(super) method: Method,
    pub(super) user: Option<Box<str>>,
    pub(super) device: Option<(DeviceId, DeviceKey)>,
    pub(super) paired: bool,
    pub(super) platform: Box<str>,
    pub(super) device_family: Box<str>,
    pub(super) issues_device_token: bool,
    pub(super) verdict: Verdict,
    pub(super) generation: u64,
    /// The page it came from, if it came from one.
    pub(super) page: Option<Box<Page>>,
    /// Scopes it has only because its user lends them.
    pub(super) lent: ScopeSet,
    /// A Control UI that does without a device because the settings let it.
    pub(super) insecure_ui: bool,
}

impl Grant {
    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The scopes. Empty means nothing, for nodes always.
    pub fn scopes(&self) -> ScopeSet {
        self.scopes
    }

    /// What proved the client.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Whom a proxy or Tailscale vouched for.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The device whose key signed this connect.
    pub fn device(&self) -> Option<DeviceId> {
        self.device.map(|(id, _)| id)
    }

    /// That device's key.
    pub fn device_key(&self) -> Option<DeviceKey> {
        self.device.map(|(_, key)| key)
    }

    /// Whether the device is paired. A device that needed no pairing (the gateway's own helpers, a Control
    /// UI that Tailscale vouches for) is not.
    pub fn is_paired(&self) -> bool {
        self.paired
    }

    /// The platform to judge a node's commands by: the approved one of a paired device, else the claim that
    /// its key signed. Empty when there is neither.
    pub fn platform(&self) -> &str {
        &self.platform
    }

    /// The device family, likewise.
    pub fn device_family(&self) -> &str {
        &self.device_family
    }

    /// Whether `hello-ok` should carry a device token.
    pub fn issues_device_token(&self) -> bool {
        self.issues_device_token
    }

    /// Where the connection comes from.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The generation of the auth settings under which it was given. A connection whose generation is no
    /// longer the current one must be looked at again.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The gateway's own agent: what an operator with `operator.write` may do, and nothing that needs more. The one
    /// grant that no caller can get.
    pub fn for_agent() -> Self {
        Self {
            role: Role::Operator,
            scopes: ScopeSet::EMPTY.with(Scope::Write),
            method: Method::None,
            user: Some("agent".into()),
            device: None,
            paired: false,
            platform: Box::default(),
            device_family: Box::default(),
            issues_device_token: false,
            verdict: Verdict::DirectLocal,
            generation: 0,
            page: None,
            lent: ScopeSet::EMPTY,
            insecure_ui: false,
        }
    }

    /// Whether it is the one of [`Grant::for_agent`]: no client is vouched for by nothing.
    pub fn is_agents(&self) -> bool {
        self.method == Method::None && self.user.is_some()
    }

    /// A grant for tests of what lies behind the door.
    #[cfg(any(test, feature = "internals"))]
    pub fn for_test(role: Role, scopes: ScopeSet, device: Option<DeviceKey>) -> Self {
        Self {
            role,
            scopes,
            method: Method::Token,
            user: None,
            device: device.map(|key| (key.device_id(), key)),
            paired: device.is_some(),
            platform: Box::default(),
            device_family: Box::default(),
            issues_device_token: false,
            verdict: Verdict::DirectLocal,
            generation: 0,
            page: None,
            lent: ScopeSet::EMPTY,
            insecure_ui: false,
        }
    }

    /// The same, proved by something else.
    #[cfg(any(test, feature = "internals"))]
    #[must_use]
    pub fn by(self, method: Method) -> Self {
        Self { method, ..self }
    }
}
