//! What a client says of itself when it connects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::identity::Identity;
use super::tls::Trust;
use super::url_policy::GatewayUrl;
use crate::id;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::rpc::scope::{Role, ScopeSet};
use crate::secret::Secret;

/// Everything that [`connect`](super::connect) needs.
///
/// Start from [`ConnectOptions::operator`] or [`ConnectOptions::node`] and change what differs.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The gateway.
    pub url: GatewayUrl,
    /// What proves that this client may come in.
    pub auth: Auth,
    /// The key of this device. Nodes need one; operators need one unless they are on the gateway's own host
    /// and hold its shared secret.
    pub identity: Option<Arc<Identity>>,
    /// What this client is.
    pub role: Role,
    /// What an operator wants to do.
    pub scopes: ScopeSet,
    /// The program.
    pub program: Program,
    /// Capabilities that a node declares.
    pub caps: Vec<String>,
    /// Commands that a node declares.
    pub commands: Vec<String>,
    /// Permissions that a node has on its device.
    pub permissions: BTreeMap<String, bool>,
    /// The lowest version of the protocol that will do. Default 4, the only one this client speaks itself.
    pub min_protocol: u32,
    /// Which certificates of a `wss://` gateway will do. Default: what the operating system trusts.
    pub tls: Trust,
    /// Headers for a proxy in front of the gateway, sent with the upgrade. Over `ws://` the attempt fails instead.
    pub edge: Vec<EdgeHeader>,
    /// Time from the first packet to `hello-ok`. Default 15 s, as on the gateway's side.
    pub timeout: Duration,
}

/// What proves that a client may come in. Any of them may be absent.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// The gateway's shared token.
    pub token: Option<Secret>,
    /// The gateway's shared password.
    pub password: Option<Secret>,
    /// The token that the gateway gave this device.
    pub device_token: Option<Secret>,
    /// The token of a setup code: pairs this device, once.
    pub bootstrap_token: Option<Secret>,
}

/// A header that an identity-aware proxy in front of the gateway asks for.
///
/// It goes to the URL of the same options and nowhere else: redirects are never followed.
#[derive(Clone, Debug)]
pub struct EdgeHeader {
    /// Its name.
    pub name: http::HeaderName,
    /// Its value.
    pub value: Secret,
}

/// The program, as gateways list it.
#[derive(Clone, Debug)]
pub struct Program {
    /// Kind of program, from the wire's closed list: `cli`, `node-host`, `gateway-client`, `test`, ...
    pub id: &'static str,
    /// What it is doing, from the wire's closed list: `cli`, `node`, `backend`, `probe`, `test`, ...
    pub mode: &'static str,
    /// Name for people.
    pub display_name: Option<String>,
    /// Identifier of this run of the program. Default: a random UUID.
    pub instance_id: String,
}

impl Program {
    /// A program of that kind, without a name.
    pub fn new(id: &'static str, mode: &'static str) -> Self {
        Self { id, mode, display_name: None, instance_id: id::uuid() }
    }
}

impl ConnectOptions {
    /// An operator that wants `scopes`, as the program `cli`.
    pub fn operator(url: GatewayUrl, scopes: ScopeSet) -> Self {
        Self {
            url,
            auth: Auth::default(),
            identity: None,
            role: Role::Operator,
            scopes,
            program: Program::new("cli", "cli"),
            caps: Vec::new(),
            commands: Vec::new(),
            permissions: BTreeMap::new(),
            min_protocol: super::PROTOCOL,
            tls: Trust::default(),
            edge: Vec::new(),
            timeout: HANDSHAKE_TIMEOUT,
        }
    }

    /// A node that offers `commands`, as the program `node-host`.
    pub fn node(url: GatewayUrl, identity: Arc<Identity>, commands: Vec<String>) -> Self {
        Self {
            role: Role::Node,
            identity: Some(identity),
            program: Program::new("node-host", "node"),
            commands,
            ..Self::operator(url, ScopeSet::EMPTY)
        }
    }
}
