//! The door: from an upgraded socket to a connection in the hub, or a refusal with its reason.
//!
//! The rules are `auth`'s; here the facts are gathered for them, what they decide is carried out (a silent
//! pairing, a request for approval, a token), and every outcome leaves one line in the log, until there are too many.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::doctor::{self, Doctor};
use super::hello::Hello;
use super::in_force::{Applied, InForce};
use super::join::Joins;
use super::large;
use super::own_addresses::OwnAddresses;
use super::presented::Presented;
use crate::api::Api;
use crate::auth::client::Client as ClientClaims;
use crate::auth::device::{DeviceKey, SignedDevice};
use crate::auth::explain::explain;
use crate::auth::ingress::Listener;
use crate::auth::pairing::PairingNeeded;
use crate::auth::rate_limit::RateLimitPolicy;
use crate::auth::standing::stands;
use crate::auth::tailscale::Whois;
use crate::auth::{
    self, ApprovedRole, AuthMode, BootstrapCode, Credentials, Decision, Denied, DeviceId, DeviceToken, Evidence, Grant,
    HeaderView, Policy, RateLimits, Surface, Verdict,
};
use crate::clock::{UnixMs, monotonic_s};
use crate::conn::connect::{ConnectParams, PROTOCOL, PROTOCOL_PREVIOUS};
use crate::conn::{Accepted, CalledOff, Connecting, End, EndedBy, Refused, Service, Socket};
use crate::devices::record::{Claims, PairedDevice, Token};
use crate::devices::{Devices, PairingError, PairingRequest, Redeemed, Requested};
use crate::http::Readiness;
use crate::http::api::BodyRoom;
use crate::http::files::Files;
use crate::http::reject::{self, Reject};
use crate::hub::{Client, Connection, Hub};
use crate::id;
use crate::limits;
use crate::methods::Domains;
use crate::net::preauth::{Full, Preauth, Slot};
use crate::nodes::Declared;
use crate::rpc::dispatch::{Params, Routed, Router};
use crate::rpc::error::RpcError;
use crate::rpc::scope::Role;
use crate::secret::SecretHash;
use crate::shutdown::Shutdown;
use crate::sparing::{LeftOut, Sparing};
use crate::store::Fault;
use crate::tailscale::{LocalApi, localapi};
use crate::text::plain;
use crate::ws::close::{Close, CloseCode};

/// Times that a connect is decided on: again after a silent pairing, and whenever a right was taken back meanwhile.
const DECISIONS: usize = 8;

/// What the log says of those who do not get in: strangers who knock must not fill it.
#[derive(Debug)]
pub(super) struct Said {
    /// A client has another secret.
    mismatch: Sparing,
    /// A client is refused.
    refused: Sparing,
    /// A request over HTTP is, a call of the API among them.
    pub(super) http: Sparing,
}

impl Default for Said {
    fn default() -> Self {
        Self { mismatch: Sparing::a_minute(60), refused: Sparing::a_minute(600), http: Sparing::a_minute(600) }
    }
}

/// Everything behind the door.
#[derive(Debug)]
pub struct Admission {
    pub(super) policy: InForce,
    pub(super) limits: RateLimits,
    pub(super) own_addresses: OwnAddresses,
    pub(super) said: Said,
    tailscale: Arc<LocalApi>,
    hub: Hub,
    domains: Domains,
    router: Router,
    hello: Hello,
    readiness: AtomicU8,
    preauth: Preauth,
    /// `gateway.http.securityHeaders.strictTransportSecurity`, for every answer.
    transport_security: ArcSwapOption<HeaderValue>,
    handshake_timeout: Duration,
    shutdown: Shutdown,
    doctor: Doctor,
    /// Tells calls that are being answered that other settings are in force.
    applied: watch::Sender<u64>,
    /// The HTTP API, and what its bodies may take.
    pub(super) api: Option<Api>,
    pub(super) body_room: BodyRoom,
    /// The Control UI, where one is served.
    pub(super) files: Option<Files>,
    /// Setup codes that wait to be fetched by their join URLs.
    pub(super) joins: Option<Joins>,
}

impl Admission {
    /// A door that is still shut: it opens with [`Admission::set_readiness`].
    #[expect(clippy::too_many_arguments, reason = "one call, from the composition root")]
    pub fn new(
        policy: Policy,
        limits: RateLimits,
        tailscale: Arc<LocalApi>,
        preauth: Preauth,
        handshake_timeout: Duration,
        shutdown: Shutdown,
        hub: Hub,
        domains: Domains,
        router: Router,
    ) -> Self {
        let hello = Hello::new(&router);
        Self {
            policy: InForce::new(policy),
            limits,
            own_addresses: OwnAddresses::default(),
            said: Said::default(),
            tailscale,
            hub,
            domains,
            router,
            hello,
            readiness: AtomicU8::new(Readiness::Starting as u8),
            preauth,
            transport_security: ArcSwapOption::empty(),
            handshake_timeout,
            shutdown,
            doctor: Doctor::default(),
            applied: watch::Sender::new(0),
            api: None,
            body_room: BodyRoom::new(limits::API_BODY_BYTES),
            files: None,
            joins: None,
        }
    }

    /// The same, with an HTTP API, and with the files of a Control UI.
    #[must_use]
    pub fn serving(self, api: Api, files: Option<Files>) -> Self {
        Self { api: Some(api), files, ..self }
    }

    /// The same, with join URLs.
    #[must_use]
    pub(super) fn joined_by(self, joins: Joins) -> Self {
        Self { joins: Some(joins), ..self }
    }

    /// The same, with requests of `doctor` noted.
    #[must_use]
    pub fn examining_for(self, doctor: Doctor) -> Self {
        Self { doctor, ..self }
    }

    /// Says how far the start, or the stop, has come.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.store(readiness as u8, Ordering::Release);
    }

    /// Sets the `Strict-Transport-Security` of the answers from now on; `None` sends none.
    pub fn set_transport_security(&self, value: Option<&str>) {
        // What is no header value has been refused with the configuration.
        let value = value.map(str::trim).filter(|value| !value.is_empty());
        self.transport_security.store(value.and_then(|value| HeaderValue::from_str(value).ok()).map(Arc::new));
    }

    /// The `Strict-Transport-Security` of an answer.
    pub fn transport_security(&self) -> Option<HeaderValue> {
        self.transport_security.load().as_deref().cloned()
    }

    /// Puts other settings in force, and closes the connections whose right has gone with the old ones. `None` when who
    /// gets in is as before. One caller at a time.
    pub fn apply(&self, policy: Policy, limits: RateLimitPolicy) -> Option<Applied> {
        self.limits.set_policy(limits);
        let change = self.policy.replace(policy)?;
        let applied = change.look_at_all(&self.hub);
        self.applied.send_replace(applied.generation);
        Some(applied)
    }

    /// Ends when `grant` has lost its right by other settings. Cancel safe.
    pub(super) async fn lost(self: Arc<Self>, grant: Grant) {
        let mut applied = self.applied.subscribe();
        while stands(&grant, &self.policy.load()).is_ok() {
            // The sender is ours.
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    /// The request behind a connect, as the rules read it.
    fn request<'a>(
        socket: &Socket,
        params: &'a ConnectParams,
        headers: HeaderView<'a>,
        whois: Option<Whois<'a>>,
        own_addresses: Option<&'a [IpAddr]>,
    ) -> auth::Request<'a> {
        auth::Request {
            surface: Surface::WebSocket,
            peer: Some(socket.peer.ip()),
            verdict: socket.verdict,
            headers,
            credentials: Credentials {
                token: params.auth.token.as_deref(),
                password: params.auth.password.as_deref(),
                device_token: params.auth.device_token.as_deref(),
                bootstrap_token: params.auth.bootstrap_token.as_deref(),
            },
            whois,
            own_addresses,
        }
    }

    /// What the local Tailscale daemon says of the client, where that matters.
    async fn whois(&self, socket: &Socket, params: &ConnectParams) -> Option<localapi::Answer> {
        let address = {
            let lines = header_lines(&socket.head);
            let request = Self::request(socket, params, HeaderView::new(&lines), None, None);
            auth::needs_whois(&request, &self.policy.load())?
        };
        let answer = self.tailscale.whois(address).await;
        if let Err(error) = &answer {
            tracing::warn!(%address, %error, "a Tailscale identity could not be verified");
        }
        Some(answer)
    }

    /// One decision, from the facts of this moment.
    fn decide(
        &self,
        socket: &Socket,
        params: &ConnectParams,
        whois: Option<&localapi::Answer>,
        code: Option<&BootstrapCode>,
        now: UnixMs,
    ) -> (Decision, Verdict) {
        let policy = self.policy.load();
        let lines = header_lines(&socket.head);
        let headers = HeaderView::new(&lines);
        let verdict = socket.verdict;
        let whois = whois.map(|answer| answer.as_ref().map_or(Whois::Failed, |login| Whois::Login(login)));
        let device_id = params.device.as_ref().and_then(|device| DeviceId::parse(&device.id));
        let paired = device_id
            .and_then(|id| self.domains.devices.facts(id))
            .map(|facts| as_evidence(&self.domains.devices, &facts));
        let scopes: Option<Vec<&str>> = params.scopes.as_ref().map(|all| all.iter().map(String::as_str).collect());
        // Only of a proxy it matters whether it is this host under another name.
        let own = matches!(policy.mode, AuthMode::TrustedProxy { .. }).then(|| self.own_addresses.current());
        let own = own.as_ref().and_then(|own| own.list.as_deref());
        let evidence = Evidence {
            request: Self::request(socket, params, headers, whois, own),
            client: claims(params),
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
            bootstrap: code,
            generation: socket.generation,
        };
        (auth::authorize(&evidence, &policy, &self.limits, now), verdict)
    }

    async fn admit(self: Arc<Self>, socket: Socket, params: ConnectParams) -> Result<Accepted, Refused> {
        let Some(protocol) = params.negotiate() else {
            self.deny(&socket, "protocol_mismatch");
            return Err(protocol_mismatch(&params));
        };
        let whois = self.whois(&socket, &params).await;
        let mut tokens = Vec::new();
        let mut code = Presented::None;
        for _ in 0..DECISIONS {
            let now = UnixMs::now();
            let cut_offs = self.domains.devices.cut_offs();
            code.look_up(&self.domains.devices, &params, now);
            let (decision, verdict) = self.decide(&socket, &params, whois.as_ref(), code.as_evidence(), now);
            match decision {
                Decision::Granted(grant) => {
                    if let (auth::Method::BootstrapToken, Some(key), false) =
                        (grant.method(), grant.device_key(), code.is_used())
                    {
                        let claims = pairing_claims(&params, grant.platform().into(), grant.device_family());
                        self.redeem(&mut code, &mut tokens, key, grant.role(), claims, now).await?;
                        continue;
                    }
                    let decided = Decided { grant, verdict, cut_offs };
                    if let Some(accepted) = self.open(&socket, &params, decided, protocol, &mut tokens, now).await? {
                        code.delivered();
                        return Ok(accepted);
                    }
                }
                Decision::Denied(refusal) => {
                    self.count_refusal(refusal.reason.label());
                    // The log has the whole reason, with the name of a header that is missing.
                    let _ = socket.denied.set(refusal.reason.reason());
                    if let Some(identity) = &refusal.identity {
                        self.count_refusal(identity.label());
                        tracing::info!(peer = %socket.peer, reason = identity.label(), "a Tailscale identity did not serve");
                    }
                    let mut error = refusal.to_rpc_error();
                    if matches!(refusal.reason, Denied::TokenMismatch | Denied::PasswordMismatch) {
                        self.name_the_secret(&params, &mut error);
                    }
                    let code = refusal.reason.close_code();
                    return Err(Refused { reason: String::new(), error, code });
                }
                Decision::NeedsPairing(needed) => {
                    let asks = pairing_request(&needed, &params);
                    if needed.method == auth::Method::BootstrapToken && !code.is_used() {
                        if needed.silent && code.pairs() {
                            self.redeem(&mut code, &mut tokens, asks.key, asks.role, asks.claims, now).await?;
                            continue;
                        }
                        // It waits with the code as its proof, which is nobody else's from here on.
                        let kept = code.keep_for(&self.domains.devices, asks.key, now).await;
                        if !kept.map_err(|error| unpaired(&error))? {
                            continue;
                        }
                    }
                    match self.domains.devices.request(asks, now).await {
                        Ok(Requested::Covered) => {}
                        Ok(Requested::Paired { token }) => {
                            tokens = token.map(|token| (needed.role, token)).into_iter().collect()
                        }
                        Ok(Requested::Pending { request_id, .. }) => {
                            self.deny(&socket, "pairing_required");
                            return Err(Refused {
                                error: needed.to_rpc_error(Some(&request_id)),
                                code: CloseCode::POLICY_VIOLATION,
                                reason: needed.close_reason(Some(&request_id)),
                            });
                        }
                        Err(error) => {
                            self.deny(&socket, "pairing_unavailable");
                            return Err(unpaired(&error));
                        }
                    }
                }
            }
        }
        self.deny(&socket, "approval_changing");
        Err(refused(RpcError::unavailable("the device's approval keeps changing; try again").retryable(true)))
    }

    /// Uses the client's setup code up. When somebody was faster with it, that shows in the next decision.
    async fn redeem(
        &self,
        code: &mut Presented,
        tokens: &mut Redeemed,
        key: DeviceKey,
        role: Role,
        claims: Claims,
        now: UnixMs,
    ) -> Result<(), Refused> {
        let issued = code.redeem(&self.domains.devices, key, role, claims, now).await;
        if let Some(issued) = issued.map_err(|error| unpaired(&error))? {
            *tokens = issued;
        }
        Ok(())
    }

    /// Says to both sides of a mismatch where this side has its secret from. The fingerprints go to the log alone: they
    /// let who reads both sides compare, and nobody guess.
    fn name_the_secret(&self, params: &ConnectParams, error: &mut RpcError) {
        let policy = self.policy.load();
        let Some(source) = policy.secret_source.as_deref() else { return };
        if let Some(details) = error.details.as_mut() {
            details["secretSource"] = source.into();
        }
        let Some(LeftOut(left_out)) = self.said.mismatch.say(monotonic_s()) else { return };
        // Of a token, eight digits tell two apart and nothing more. A password may be weak enough for them to help whoever
        // reads the log to guess it.
        let shows = matches!(policy.mode, AuthMode::Token(_));
        let fingerprint = |hash: &SecretHash| hash.to_hex()[..8].to_owned();
        let sent = params.auth.token.as_deref();
        tracing::warn!(
            source,
            left_out,
            ours = policy.secret().filter(|_| shows).map(fingerprint),
            theirs = sent.filter(|_| shows).map(|sent| fingerprint(&SecretHash::of(sent))),
            "a client has another secret than this gateway"
        );
    }

    /// Takes a client in that was granted entry; `None` when rights were taken back meanwhile, and it must be decided
    /// again whether its was among them. `tokens` is what it was given so far.
    async fn open(
        &self,
        socket: &Socket,
        params: &ConnectParams,
        decided: Decided,
        protocol: u32,
        tokens: &mut Redeemed,
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
                    tokens.retain(|(role, _)| *role != grant.role());
                    tokens.push((grant.role(), issued));
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
        let policy = self.policy.load_full();
        if policy.generation != connection.grant.generation() && stands(&connection.grant, &policy).is_err() {
            self.deny(socket, Denied::AuthChanged.label());
            let refusal = auth::Refusal::plain(Denied::AuthChanged);
            let code = refusal.reason.close_code();
            return Err(Refused { error: refusal.to_rpc_error(), code, reason: String::new() });
        }
        // The stop may have closed all connections just before this one was among them.
        if self.shutdown.has_begun() {
            let error = RpcError::unavailable("the gateway is stopping; connect again in a moment").retryable(true);
            return Err(Refused { error, code: CloseCode::SERVICE_RESTART, reason: "service restart".to_owned() });
        }
        if let Some(declared) = declared {
            self.domains.nodes.connected(&connection, declared, now).await.map_err(refused)?;
        }
        let tokens = if issues_token { tokens.as_slice() } else { &[] };
        let mode = self.policy.load().mode.as_str();
        let hello = self.hello.payload(&connection, protocol, tokens, mode, &self.domains.system, &self.hub, now);
        std::mem::forget(registered);
        Ok(Some(Accepted { connection, hello }))
    }

    /// Notes for the counters and for the log why the client of `socket` is not let in.
    fn deny(&self, socket: &Socket, reason: &'static str) {
        self.count_refusal(reason);
        // The first reason is the one.
        let _ = socket.denied.set(reason.into());
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

async fn call_off(shutdown: &Shutdown, slot: &Slot) -> Close<'static> {
    tokio::select! {
        () = shutdown.begun() => Close::new(CloseCode::SERVICE_RESTART, "service restart"),
        () = slot.called_off() => Close::new(CloseCode::TRY_AGAIN_LATER, "too many unauthenticated connections"),
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
pub(super) fn header_lines(head: &http::request::Parts) -> Vec<(&str, &[u8])> {
    head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// A device's record as the rules read it.
fn as_evidence(devices: &Devices, device: &PairedDevice) -> auth::PairedDevice {
    let approved = |role| {
        device.approval(role).filter(|approval| !approval.is_revoked()).map(|approval| ApprovedRole {
            scopes: approval.scopes,
            token: match approval.token {
                Token::Live { hash, .. } => {
                    let expires_at = devices.token_end(device, role);
                    Some(DeviceToken { hash, scopes: approval.token_scopes, expires_at })
                }
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

/// Who a client says it is, as the rules read it.
pub(super) fn claims(params: &ConnectParams) -> ClientClaims<'_> {
    ClientClaims {
        id: &params.client.id,
        mode: &params.client.mode,
        platform: &params.client.platform,
        device_family: params.client.device_family.as_deref().unwrap_or_default(),
    }
}

/// What of it is kept; platform and family only as far as they are believed.
fn pairing_claims(params: &ConnectParams, platform: Box<str>, device_family: &str) -> Claims {
    let client = &params.client;
    Claims {
        display_name: client.display_name.as_deref().map(Into::into),
        platform,
        device_family: Some(device_family).filter(|family| !family.is_empty()).map(Into::into),
        client_id: client.id.as_str().into(),
        client_mode: client.mode.as_str().into(),
    }
}

fn pairing_request(needed: &PairingNeeded, params: &ConnectParams) -> PairingRequest {
    PairingRequest {
        key: needed.device.key,
        role: needed.role,
        scopes: needed.scopes,
        claims: pairing_claims(params, needed.platform.clone(), &needed.device_family),
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

impl Admission {
    /// How far the start, or the stop, has come.
    pub fn readiness(&self) -> Readiness {
        match self.readiness.load(Ordering::Acquire) {
            0 => Readiness::Starting,
            1 => Readiness::Ready,
            _ => Readiness::Draining,
        }
    }

    /// What keeps state from the disk, if anything does.
    pub fn fault(&self) -> Option<Fault> {
        self.domains.system.fault()
    }

    /// Milliseconds since the start.
    pub fn uptime_ms(&self) -> u64 {
        self.domains.system.uptime_ms()
    }

    /// A place for a socket from `peer`, of which nothing is known yet.
    ///
    /// # Errors
    /// [`Full`]: it has too many already.
    pub fn enter(&self, peer: IpAddr) -> Result<Slot, Full> {
        let is_shared = peer.to_canonical().is_loopback() || self.policy.load().ingress.trusted_proxies.contains(peer);
        self.preauth.enter(peer, is_shared)
    }

    /// Whether a request for a page is one that an operator examines their proxy with; see [`doctor`].
    pub fn examine(&self, peer: SocketAddr, path: &str, headers: &http::HeaderMap) -> bool {
        let Some(number) = headers.get(doctor::HEADER).and_then(|number| number.to_str().ok()) else { return false };
        if path != doctor::PATH {
            return false;
        }
        let policy = self.policy.load();
        let lines: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        self.doctor.examine(number, UnixMs::now(), || {
            let own = self.own_addresses.current();
            explain(peer.ip(), HeaderView::new(&lines), own.list.as_deref(), &policy)
        })
    }

    /// Time from the accept to the end of the TLS handshake.
    pub fn tls_timeout(&self) -> Duration {
        limits::TLS_HANDSHAKE_TIMEOUT.min(self.handshake_timeout)
    }

    /// Ends when a stranger must go: the gateway stops, or gave the place of `slot` to another. Says which.
    pub async fn call_off(&self, slot: &Slot) -> Close<'static> {
        call_off(&self.shutdown, slot).await
    }

    /// The one verdict on where a request came from, with the generation of the settings it was judged by. Also
    /// judges whether its page may talk to us.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn judge(
        &self,
        peer: SocketAddr,
        head: &http::request::Parts,
        listener: Listener,
    ) -> Result<(Verdict, u64), Reject> {
        let policy = self.policy.load();
        let lines = header_lines(head);
        let headers = HeaderView::new(&lines);
        let verdict = Verdict::of(peer.ip(), headers, listener, &policy.ingress);
        if let Verdict::Unattributable { .. } = verdict {
            return Err(reject::UNATTRIBUTABLE);
        }
        policy.origins.check_request(headers, verdict.is_local()).map_err(|_| reject::ORIGIN)?;
        Ok((verdict, policy.generation))
    }

    /// A socket whose upgrade was admitted.
    pub fn socket(
        &self,
        peer: SocketAddr,
        head: Arc<http::request::Parts>,
        verdict: Verdict,
        generation: u64,
        since: Instant,
        slot: Arc<Slot>,
    ) -> Socket {
        let (id, nonce, denied) = (self.hub.next_id(), id::uuid().into(), Arc::default());
        Socket { id, peer, head, nonce, verdict, generation, since, slot, denied }
    }

    /// Notes a request over HTTP that is refused.
    pub fn refused_http(&self, peer: SocketAddr, reject: &Reject) {
        self.count_refusal(reject.reason);
        if let Some(LeftOut(left_out)) = self.said.http.say(monotonic_s()) {
            let status = reject.status.as_u16();
            tracing::info!(%peer, status, reason = reject.reason, left_out, "http request refused");
        }
    }

    /// Counts a refusal by its name.
    pub fn count_refusal(&self, reason: &'static str) {
        self.domains.system.refusals().count(reason);
    }
}

impl Service for Admission {
    fn handshake_timeout(&self) -> Duration {
        self.handshake_timeout
    }

    fn called_off(&self, socket: &Socket) -> CalledOff {
        let (shutdown, slot) = (self.shutdown.clone(), Arc::clone(&socket.slot));
        Box::pin(async move { call_off(&shutdown, &slot).await })
    }

    fn connect(self: Arc<Self>, socket: Socket, params: ConnectParams) -> Connecting {
        Box::pin(self.admit(socket, params))
    }

    fn opened(&self, connection: &Arc<Connection>) {
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
        if !self.policy.lets_on(caller) {
            return Routed::Routed;
        }
        self.router.route(caller, id, method, params, now, out)
    }

    fn ended(&self, socket: Option<&Socket>, connection: Option<&Arc<Connection>>, end: &End) {
        large::note(self.domains.system.stability(), connection.map(|connection| &**connection), end, UnixMs::now());
        match connection {
            Some(connection) => {
                self.forget(connection);
                let conn = connection.id;
                let (client, reason) = (plain(&connection.client.id, 64), plain(&end.reason, 300));
                match end.by {
                    EndedBy::Gateway => tracing::info!(%conn, client, code = end.code, reason, "closed by the gateway"),
                    EndedBy::Client => tracing::debug!(%conn, client, code = end.code, reason, "closed by the client"),
                    EndedBy::Transport => tracing::info!(%conn, client, reason, "connection lost"),
                }
            }
            None => {
                if !matches!(end.by, EndedBy::Gateway) {
                    return tracing::debug!(peer = ?socket.map(|socket| socket.peer), reason = ?end.reason, "left before connecting");
                }
                // A line costs more than the refusal itself: nothing of it is made for those that are left out.
                let Some(LeftOut(left_out)) = self.said.refused.say(monotonic_s()) else { return };
                let peer = socket.map(|socket| socket.peer.to_string()).unwrap_or_default();
                let denied = socket.and_then(|socket| socket.denied.get()).map(|reason| plain(reason, 80));
                let from = socket.and_then(|socket| socket.verdict.client());
                let (code, reason) = (end.code, plain(&end.reason, 300));
                tracing::info!(peer, ?from, code, denied, reason, left_out, "client refused");
            }
        }
    }
}
