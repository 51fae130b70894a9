//! The door: from an upgraded socket to a connection in the hub, or a refusal with its reason.
//!
//! The rules are `auth`'s; here the facts are gathered for them, what they decide is carried out (a silent
//! pairing, a request for approval, a token), and every outcome leaves one line in the log.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::json;

use super::hello::{Hello, IssuedToken};
use crate::auth::client::Client as ClientClaims;
use crate::auth::device::SignedDevice;
use crate::auth::ingress::Listener;
use crate::auth::pairing::PairingNeeded;
use crate::auth::{
    self, ApprovedRole, Credentials, Decision, DeviceId, DeviceToken, Evidence, Grant, HeaderView, Policy, RateLimits,
    Surface, Verdict,
};
use crate::clock::UnixMs;
use crate::conn::connect::{ConnectParams, PROTOCOL, PROTOCOL_PREVIOUS};
use crate::conn::{Accepted, Connecting, End, EndedBy, Refused, Service, Socket, driver};
use crate::devices::record::{Claims, PairedDevice, Token};
use crate::devices::{PairingError, PairingRequest, Requested};
use crate::http::reject::{self, Reject};
use crate::http::{Readiness, Site, Upgraded};
use crate::hub::{Client, Connection, Hub};
use crate::id;
use crate::limits;
use crate::methods::Domains;
use crate::nodes::Declared;
use crate::rpc::dispatch::{Params, Routed, Router};
use crate::rpc::error::RpcError;
use crate::rpc::scope::Role;
use crate::shutdown::Shutdown;
use crate::system::journal::plain;
use crate::ws::close::CloseCode;

/// Times that a connect is decided on: again after a silent pairing, and whenever a right was taken back meanwhile.
const DECISIONS: usize = 8;

/// Everything behind the door.
#[derive(Debug)]
pub struct Admission {
    policy: ArcSwap<Policy>,
    limits: RateLimits,
    own_addresses: Option<Vec<IpAddr>>,
    hub: Hub,
    domains: Domains,
    router: Router,
    hello: Hello,
    readiness: AtomicU8,
    preauth: AtomicUsize,
    handshake_timeout: Duration,
    shutdown: Shutdown,
}

impl Admission {
    /// A door that is still shut: it opens with [`Admission::set_readiness`].
    pub fn new(
        policy: Policy,
        limits: RateLimits,
        handshake_timeout: Duration,
        shutdown: Shutdown,
        hub: Hub,
        domains: Domains,
        router: Router,
    ) -> Self {
        let hello = Hello::new(&router, policy.mode.as_str());
        let own_addresses = if_addrs::get_if_addrs().ok().map(|all| all.iter().map(if_addrs::Interface::ip).collect());
        Self {
            policy: ArcSwap::from_pointee(policy),
            limits,
            own_addresses,
            hub,
            domains,
            router,
            hello,
            readiness: AtomicU8::new(Readiness::Starting as u8),
            preauth: AtomicUsize::new(0),
            handshake_timeout,
            shutdown,
        }
    }

    /// Says how far the start, or the stop, has come.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.store(readiness as u8, Ordering::Release);
    }

    /// One decision, from the facts of this moment.
    fn decide(&self, socket: &Socket, params: &ConnectParams, now: UnixMs) -> (Decision, Verdict) {
        let policy = self.policy.load();
        let lines = header_lines(&socket.head);
        let headers = HeaderView::new(&lines);
        let peer = socket.peer.ip();
        let verdict = Verdict::of(peer, headers, Listener::Main, &policy.ingress);
        let device_id = params.device.as_ref().and_then(|device| DeviceId::parse(&device.id));
        let paired = device_id.and_then(|id| self.domains.devices.facts(id)).map(|facts| as_evidence(&facts));
        let scopes: Option<Vec<&str>> = params.scopes.as_ref().map(|all| all.iter().map(String::as_str).collect());
        let evidence = Evidence {
            request: auth::Request {
                surface: Surface::WebSocket,
                peer: Some(peer),
                verdict,
                headers,
                credentials: Credentials {
                    token: params.auth.token.as_deref(),
                    password: params.auth.password.as_deref(),
                    device_token: params.auth.device_token.as_deref(),
                    bootstrap_token: params.auth.bootstrap_token.as_deref(),
                },
                whois: None,
                own_addresses: self.own_addresses.as_deref(),
            },
            client: ClientClaims {
                id: &params.client.id,
                mode: &params.client.mode,
                platform: &params.client.platform,
                device_family: params.client.device_family.as_deref().unwrap_or_default(),
            },
            role: params.role.as_deref(),
            scopes: scopes.as_deref(),
            device: params.device.as_ref().map(|device| SignedDevice {
                id: &device.id,
                public_key: &device.public_key,
                signature: &device.signature,
                signed_at_ms: Some(device.signed_at),
                nonce: &device.nonce,
            }),
            challenge: &socket.nonce,
            paired: paired.as_ref(),
            bootstrap: None,
            generation: socket.generation,
        };
        (auth::authorize(&evidence, &policy, &self.limits, now), verdict)
    }

    async fn admit(self: Arc<Self>, socket: Socket, params: ConnectParams) -> Result<Accepted, Refused> {
        let protocol = params.negotiate().ok_or_else(|| protocol_mismatch(&params))?;
        let mut token = None;
        for _ in 0..DECISIONS {
            let now = UnixMs::now();
            let cut_offs = self.domains.devices.cut_offs();
            let (decision, verdict) = self.decide(&socket, &params, now);
            match decision {
                Decision::Granted(grant) => {
                    let decided = Decided { grant, verdict, cut_offs };
                    if let Some(accepted) = self.open(&socket, &params, decided, protocol, &mut token, now).await? {
                        return Ok(accepted);
                    }
                }
                Decision::Denied(refusal) => {
                    let error = refusal.to_rpc_error();
                    let code = refusal.reason.close_code();
                    return Err(Refused { reason: String::new(), error, code });
                }
                Decision::NeedsPairing(needed) => {
                    let asks = pairing_request(&needed, &params);
                    match self.domains.devices.request(asks, now).await {
                        Ok(Requested::Covered) => {}
                        Ok(Requested::Paired { token: issued }) => {
                            token = issued.map(|issued| IssuedToken {
                                token: issued.token.expose().to_owned(),
                                issued_at: issued.issued_at,
                            });
                        }
                        Ok(Requested::Pending { request_id, .. }) => {
                            return Err(Refused {
                                error: needed.to_rpc_error(Some(&request_id)),
                                code: CloseCode::POLICY_VIOLATION,
                                reason: needed.close_reason(Some(&request_id)),
                            });
                        }
                        Err(error) => return Err(unpaired(&error)),
                    }
                }
            }
        }
        Err(refused(RpcError::unavailable("the device's approval keeps changing; try again").retryable(true)))
    }

    /// Takes a client in that was granted entry; `None` when rights were taken back meanwhile, and it must be decided
    /// again whether its was among them. `token` is what it was given so far.
    async fn open(
        &self,
        socket: &Socket,
        params: &ConnectParams,
        decided: Decided,
        protocol: u32,
        token: &mut Option<IssuedToken>,
        now: UnixMs,
    ) -> Result<Option<Accepted>, Refused> {
        let Decided { grant, verdict, cut_offs } = decided;
        let remote_ip = verdict.client().filter(|_| !verdict.is_local());
        if let Some(device) = grant.device().filter(|_| grant.is_paired()) {
            let by_token = grant.method() == auth::Method::DeviceToken;
            self.domains.devices.touch(device, grant.role(), by_token, remote_ip, now);
            if grant.issues_device_token() {
                // One that was rotated away since it was issued is replaced by the one that came after it.
                let issued = self.domains.devices.ensure_token(device, grant.role(), now).await;
                if let Some(issued) = issued.map_err(|error| unpaired(&error))? {
                    *token = Some(IssuedToken { token: issued.token.expose().to_owned(), issued_at: issued.issued_at });
                }
            }
        }
        let issues_token = grant.issues_device_token();
        let has_device = grant.device().is_some();
        let declared = (grant.role() == Role::Node).then(|| declared(params));
        let connection = self.hub.register(socket.id, grant, client(params), remote_ip, now);
        let registered = Registered { admission: self, connection: &connection };
        // What was taken back before this found no connection to close; what is taken back after this does.
        if has_device && self.domains.devices.cut_offs() != cut_offs {
            return Ok(None);
        }
        // The stop may have closed all connections just before this one was among them.
        if self.shutdown.has_begun() {
            let error = RpcError::unavailable("the gateway is stopping; connect again in a moment").retryable(true);
            return Err(Refused { error, code: CloseCode::SERVICE_RESTART, reason: "service restart".to_owned() });
        }
        if let Some(declared) = declared {
            self.domains.nodes.connected(&connection, declared, now).await.map_err(refused)?;
        }
        let token = token.as_ref().filter(|_| issues_token);
        let hello = self.hello.payload(&connection, protocol, token, &self.domains.system, &self.hub, now);
        std::mem::forget(registered);
        Ok(Some(Accepted { connection, hello }))
    }

    fn forget(&self, connection: &Connection) {
        // Of an operator it has the calls that wait for a node.
        self.domains.nodes.disconnected(connection);
        self.domains.sessions.disconnected(connection);
        self.hub.unregister(connection.id);
    }
}

/// A decision to let someone in, and what had been taken back by then.
struct Decided {
    grant: Grant,
    verdict: Verdict,
    cut_offs: u64,
}

/// Takes a connection out again when its admission is dropped half-way: the socket may end at any await.
struct Registered<'a> {
    admission: &'a Admission,
    connection: &'a Connection,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.admission.forget(self.connection);
    }
}

fn refused(error: RpcError) -> Refused {
    Refused { error, code: CloseCode::POLICY_VIOLATION, reason: String::new() }
}

/// The pairing could not be looked after: too many wait, or the state cannot be written.
fn unpaired(error: &PairingError) -> Refused {
    refused(RpcError::unavailable(format!("the device could not be paired: {error}")).retryable(true))
}

fn protocol_mismatch(params: &ConnectParams) -> Refused {
    let error = RpcError::invalid("protocol mismatch").with_details(json!({
        "code": "PROTOCOL_MISMATCH",
        "clientMinProtocol": params.min_protocol,
        "clientMaxProtocol": params.max_protocol,
        "expectedProtocol": PROTOCOL,
        "minimumProbeProtocol": PROTOCOL_PREVIOUS,
    }));
    Refused { error, code: CloseCode::PROTOCOL_ERROR, reason: String::new() }
}

/// Header lines as the rules read them.
fn header_lines(head: &http::request::Parts) -> Vec<(&str, &[u8])> {
    head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// A device's record as the rules read it.
fn as_evidence(device: &PairedDevice) -> auth::PairedDevice {
    let approved = |role| {
        device.approval(role).filter(|approval| !approval.is_revoked()).map(|approval| ApprovedRole {
            scopes: approval.scopes,
            token: match approval.token {
                Token::Live { hash, .. } => Some(DeviceToken { hash, scopes: approval.token_scopes, expires_at: None }),
                Token::Unissued | Token::Revoked { .. } => None,
            },
        })
    };
    auth::PairedDevice {
        key: device.key,
        operator: approved(Role::Operator),
        node: approved(Role::Node),
        platform: Some(device.claims.platform.clone()),
        device_family: device.claims.device_family.clone(),
    }
}

fn pairing_request(needed: &PairingNeeded, params: &ConnectParams) -> PairingRequest {
    let client = &params.client;
    PairingRequest {
        key: needed.device.key,
        role: needed.role,
        scopes: needed.scopes,
        claims: Claims {
            display_name: client.display_name.as_deref().map(Into::into),
            platform: needed.platform.clone(),
            device_family: Some(needed.device_family.clone()).filter(|family| !family.is_empty()),
            client_id: client.id.as_str().into(),
            client_mode: client.mode.as_str().into(),
        },
        remote_ip: needed.client_address,
        silent: needed.silent,
    }
}

fn client(params: &ConnectParams) -> Client {
    let client = &params.client;
    let text = |text: &Option<String>| text.as_deref().map(Into::into);
    Client {
        id: client.id.as_str().into(),
        display_name: text(&client.display_name),
        version: client.version.as_str().into(),
        platform: client.platform.as_str().into(),
        device_family: text(&client.device_family),
        model_identifier: text(&client.model_identifier),
        mode: client.mode.as_str().into(),
        instance_id: text(&client.instance_id),
    }
}

fn declared(params: &ConnectParams) -> Declared {
    Declared {
        caps: params.caps.clone(),
        commands: params.commands.clone(),
        permissions: params.permissions.clone(),
        path_env: params.path_env.clone(),
    }
}

impl Site for Admission {
    fn readiness(&self) -> Readiness {
        match self.readiness.load(Ordering::Acquire) {
            0 => Readiness::Starting,
            1 => Readiness::Ready,
            _ => Readiness::Draining,
        }
    }

    fn uptime_ms(&self) -> u64 {
        self.domains.system.uptime_ms()
    }

    fn stopping(&self) -> impl Future<Output = ()> + Send {
        self.shutdown.begun()
    }

    fn admit(&self, peer: SocketAddr, head: &http::request::Parts) -> Result<(), Reject> {
        let policy = self.policy.load();
        let lines = header_lines(head);
        let headers = HeaderView::new(&lines);
        let verdict = Verdict::of(peer.ip(), headers, Listener::Main, &policy.ingress);
        if let Verdict::Unattributable { .. } = verdict {
            return Err(reject::UNATTRIBUTABLE);
        }
        policy.origins.check_request(headers, verdict.is_local()).map_err(|_| reject::ORIGIN)?;
        if self.preauth.load(Ordering::Relaxed) >= limits::PREAUTH_SOCKETS {
            return Err(reject::PREAUTH_FULL);
        }
        Ok(())
    }

    fn connected(self: Arc<Self>, upgraded: Upgraded) -> impl Future<Output = ()> + Send {
        let Upgraded { stream, read, peer, head } = upgraded;
        self.preauth.fetch_add(1, Ordering::Relaxed);
        let generation = self.policy.load().generation;
        let socket = Socket { id: self.hub.next_id(), peer, head, nonce: id::uuid().into(), generation };
        driver::run(stream, read, socket, self)
    }
}

impl Service for Admission {
    fn handshake_timeout(&self) -> Duration {
        self.handshake_timeout
    }

    fn stopping(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let shutdown = self.shutdown.clone();
        Box::pin(async move { shutdown.begun().await })
    }

    fn connect(self: Arc<Self>, socket: Socket, params: ConnectParams) -> Connecting {
        Box::pin(self.admit(socket, params))
    }

    fn opened(&self, connection: &Arc<Connection>) {
        self.preauth.fetch_sub(1, Ordering::Relaxed);
        tracing::debug!(
            conn = %connection.id,
            role = %connection.grant.role(),
            scopes = ?connection.grant.scopes(),
            by = %connection.grant.method(),
            client = plain(&connection.client.id, 64),
            from = ?connection.remote_ip,
            "connected"
        );
    }

    fn route(
        &self,
        caller: &Arc<Connection>,
        id: &str,
        method: &str,
        params: Params<'_>,
        now: UnixMs,
        out: &mut Vec<u8>,
    ) -> Routed {
        self.router.route(caller, id, method, params, now, out)
    }

    fn ended(&self, socket: Option<&Socket>, connection: Option<&Arc<Connection>>, end: &End) {
        let reason = plain(&end.reason, 300);
        match connection {
            Some(connection) => {
                self.forget(connection);
                let conn = connection.id;
                let client = plain(&connection.client.id, 64);
                match end.by {
                    EndedBy::Gateway => tracing::info!(%conn, client, code = end.code, reason, "closed by the gateway"),
                    EndedBy::Client => tracing::debug!(%conn, client, code = end.code, reason, "closed by the client"),
                    EndedBy::Transport => tracing::info!(%conn, client, reason, "connection lost"),
                }
            }
            None => {
                self.preauth.fetch_sub(1, Ordering::Relaxed);
                let peer = socket.map(|socket| socket.peer.to_string()).unwrap_or_default();
                match end.by {
                    EndedBy::Gateway => tracing::info!(peer, code = end.code, reason, "client refused"),
                    EndedBy::Client | EndedBy::Transport => tracing::debug!(peer, reason, "left before connecting"),
                }
            }
        }
    }
}
