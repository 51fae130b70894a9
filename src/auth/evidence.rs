//! What a connect is judged by: what the peer sent, what the network says, and what we know of the device.

use std::net::IpAddr;

use super::client::Client;
use super::device::{DeviceKey, SignedDevice};
use super::headers::HeaderView;
use super::ingress::Verdict;
use super::tailscale::Whois;
use super::trusted_proxy::OwnAddresses;
use crate::clock::UnixMs;
use crate::rpc::scope::{Role, ScopeSet};
use crate::secret::SecretHash;

/// Where a request knocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Surface {
    /// The gateway's WebSocket.
    #[default]
    WebSocket,
    /// An HTTP route.
    Http,
}

/// `connect.auth`, or the same from an HTTP request. Empty texts are nothing.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The shared token, or a device token by a client that has no other field for it.
    pub token: Option<&'a str>,
    /// The shared password.
    pub password: Option<&'a str>,
    /// A device token.
    pub device_token: Option<&'a str>,
    /// A setup code.
    pub bootstrap_token: Option<&'a str>,
}

/// Says which are there, never what they are.
impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("token", &self.token.is_some())
            .field("password", &self.password.is_some())
            .field("device_token", &self.device_token.is_some())
            .field("bootstrap_token", &self.bootstrap_token.is_some())
            .finish()
    }
}

/// Trims a text and treats a blank one as missing.
pub(super) fn filled(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

/// A request, before anyone asks for a role.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Where it knocks.
    pub surface: Surface,
    /// The address at the other end of the socket; `None` on transports without addresses.
    pub peer: Option<IpAddr>,
    /// Where it came from, by [`Verdict::of`].
    pub verdict: Verdict,
    /// Its headers; for a WebSocket those of the upgrade.
    pub headers: HeaderView<'a>,
    /// What it brought.
    pub credentials: Credentials<'a>,
    /// What the local Tailscale daemon said about [`super::needs_whois`]; `None` when it was not asked.
    pub whois: Option<Whois<'a>>,
    /// The addresses of this host.
    pub own_addresses: OwnAddresses<'a>,
}

/// Everything about one `connect`.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The upgrade request, with `connect.auth` as its credentials.
    pub request: Request<'a>,
    /// `connect.client`.
    pub client: Client<'a>,
    /// `connect.role`; operator when missing.
    pub role: Option<&'a str>,
    /// `connect.scopes` as sent; `None` when missing, which means: what I was approved for.
    pub scopes: Option<&'a [&'a str]>,
    /// `connect.device`.
    pub device: Option<SignedDevice<'a>>,
    /// The nonce of this connection's `connect.challenge`.
    pub challenge: &'a str,
    /// The record of the device that `device.id` names, if it is paired.
    pub paired: Option<&'a PairedDevice>,
    /// The setup code that `auth.bootstrapToken` is, if it is one.
    pub bootstrap: Option<&'a BootstrapCode>,
    /// The generation of the settings when the connection was accepted.
    pub generation: u64,
}

/// What is known of a paired device.
#[derive(Clone, Debug)]
pub struct PairedDevice {
    /// The key it was approved with.
    pub key: DeviceKey,
    /// Its right to be an operator.
    pub operator: Option<ApprovedRole>,
    /// Its right to be a node.
    pub node: Option<ApprovedRole>,
    /// The platform it was approved with.
    pub platform: Option<Box<str>>,
    /// The device family it was approved with.
    pub device_family: Option<Box<str>>,
}

impl PairedDevice {
    pub(super) fn role(&self, role: Role) -> Option<&ApprovedRole> {
        match role {
            Role::Operator => self.operator.as_ref(),
            Role::Node => self.node.as_ref(),
        }
    }

    pub(super) fn roles(&self) -> Vec<Role> {
        [Role::Operator, Role::Node].into_iter().filter(|role| self.role(*role).is_some()).collect()
    }

    pub(super) fn scopes(&self) -> ScopeSet {
        self.operator.as_ref().map_or(ScopeSet::EMPTY, |operator| operator.scopes)
    }
}

/// A role that a device was approved for.
#[derive(Clone, Debug, Default)]
pub struct ApprovedRole {
    /// The scopes it was approved with. Empty is nothing (S-56).
    pub scopes: ScopeSet,
    /// Its token, unless it has none or it was revoked.
    pub token: Option<DeviceToken>,
}

/// A device token, of which only the hash is known.
#[derive(Clone, Debug)]
pub struct DeviceToken {
    /// SHA-256 of the token.
    pub hash: SecretHash,
    /// The scopes it covers.
    pub scopes: ScopeSet,
    /// When it ends, if it does.
    pub expires_at: Option<UnixMs>,
}

/// A setup code that exists: its text was found by its hash.
#[derive(Clone, Debug)]
pub struct BootstrapCode {
    /// When it ends.
    pub expires_at: UnixMs,
    /// The key that used it first; no other may (S-55).
    pub bound_key: Option<DeviceKey>,
    /// The roles it lets in.
    pub roles: Vec<Role>,
    /// The scopes it gives an operator.
    pub scopes: ScopeSet,
    /// Whether giving it out was the approval: its first device is paired without asking.
    pub approves: bool,
}
