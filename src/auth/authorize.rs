//! The decision on a `connect`: one function, top to bottom, in the order of the wire.

use super::authenticate::{Authentication, Identity, authenticate};
use super::denied::{Denied, Provided, Refusal};
use super::device::{self, SignedFields, VerifiedDevice};
use super::evidence::{Evidence, PairedDevice, filled};
use super::grant::{Grant, Method};
use super::ingress::Verdict;
use super::missing_device::{MissingDevice, WithoutDevice};
use super::origin::OriginRefused;
use super::pairing::{Locality, PairingNeeded, PairingReason, is_self_pairing, is_silent};
use super::pins;
use super::policy::Policy;
use super::rate_limit::{Attempts, CredentialKind, RateLimits};
use super::scope_cap;
use crate::clock::UnixMs;
use crate::rpc::scope::{Role, ScopeSet};
use crate::secret::SecretHash;

/// What becomes of a connect.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It may come in.
    Granted(Grant),
    /// It is who it says and must be approved first. When [`PairingNeeded::silent`], approve and decide again.
    NeedsPairing(Box<PairingNeeded>),
    /// It may not.
    Denied(Box<Refusal>),
}

/// Decides on one connect. Wrong credentials are counted in `limits`, whatever the outcome.
///
/// Costs one or two Ed25519 verifications where the client brings a device, else a few SHA-256.
pub fn authorize(evidence: &Evidence<'_>, policy: &Policy, limits: &RateLimits, now: UnixMs) -> Decision {
    let mut attempts = limits.attempts(evidence.request.verdict, evidence.request.headers, now);
    match decide(evidence, policy, &mut attempts, now) {
        Ok(decision) => decision,
        Err(Stop { reason, identity }) => {
            let provided = provided(evidence);
            let can_retry_with_device_token = reason == Denied::TokenMismatch
                && provided == Provided::Token
                && evidence.device.is_some()
                && filled(evidence.request.credentials.device_token).is_none();
            Decision::Denied(Box::new(Refusal { reason, identity, provided, can_retry_with_device_token }))
        }
    }
}

/// A refusal on its way out.
struct Stop {
    reason: Denied,
    identity: Option<Denied>,
}

impl From<Denied> for Stop {
    fn from(reason: Denied) -> Self {
        Self { reason, identity: None }
    }
}

fn decide(
    evidence: &Evidence<'_>,
    policy: &Policy,
    attempts: &mut Attempts<'_>,
    now: UnixMs,
) -> Result<Decision, Stop> {
    let request = &evidence.request;
    let client = &evidence.client;
    if let Verdict::Unattributable { why, .. } = request.verdict {
        return Err(Denied::ProxyAttributionRequired(why).into());
    }
    let role = evidence.role.map_or(Some(Role::Operator), Role::parse).ok_or(Denied::InvalidRole)?;
    check_origin(evidence, policy)?;
    let has_browser_origin = request.headers.has("origin");

    // Evaluated, not yet enforced: a device token may prove the client where the shared secret does not.
    let Authentication { outcome, tailscale } = authenticate(request, policy, attempts);
    let shared = Shared::of(&outcome);
    let locality = |method| {
        let host = request.headers.single("host").ok().flatten();
        let origin = request.headers.values("origin").next().map(|origin| str::from_utf8(origin).unwrap_or_default());
        Locality::of(request.verdict, host, origin, client, shared.ok, method)
    };
    let self_pairing = |method| is_self_pairing(locality(method), client, has_browser_origin, shared.ok, method);

    let keeps_scopes = match &evidence.device {
        Some(_) => true,
        None => {
            let without = WithoutDevice {
                role,
                is_control_ui: client.is_control_ui(),
                is_local: request.verdict.is_local(),
                has_browser_origin,
                allows_insecure_ui: policy.allow_insecure_ui,
                is_self_pairing: self_pairing(shared.method),
                shared_auth_ok: shared.ok,
                auth_ok: outcome.is_ok(),
                sent_shared_auth: filled(request.credentials.token).or(filled(request.credentials.password)).is_some(),
                method: shared.method,
            };
            match without.decide() {
                MissingDevice::Allow => !without.clears_scopes(),
                MissingDevice::ControlUiNeedsDevice => return Err(Denied::ControlUiDeviceRequired.into()),
                MissingDevice::DeviceRequired => return Err(Denied::DeviceRequired.into()),
                MissingDevice::Unauthorized => {
                    let reason = outcome.err().unwrap_or(Denied::Unauthorized);
                    return Err(Stop { reason, identity: tailscale });
                }
            }
        }
    };

    let device = evidence.device.as_ref().map(|device| {
        let fields = signed_fields(evidence, role);
        device::verify(device, fields, evidence.challenge, now)
    });
    let device = device.transpose()?;
    let asks = Asks::of(evidence, role);
    let identity = match &device {
        None => outcome,
        Some(device) => by_device_credential(evidence, device, role, asks, outcome, attempts, now),
    };
    let identity = identity.map_err(|reason| Stop { reason, identity: tailscale })?;
    if evidence.generation != policy.generation {
        return Err(Denied::AuthChanged.into());
    }

    let vouched = policy.scopes_of(identity.user.as_deref());
    let cap = (identity.method == Method::TrustedProxy).then(|| request.headers.first("x-openclaw-scopes")).flatten();
    let asks = Asks { scopes: asks.scopes.map(|scopes| capped(scopes, cap)), ..asks };
    let mut grant = Grant {
        role,
        scopes: ScopeSet::EMPTY,
        method: identity.method,
        user: identity.user,
        device: device.map(|device| (device.id, device.key)),
        paired: false,
        platform: Box::default(),
        device_family: Box::default(),
        issues_device_token: false,
        verdict: request.verdict,
        generation: policy.generation,
    };
    let own = match &device {
        None if keeps_scopes => asks.scopes.unwrap_or_default(),
        None => ScopeSet::EMPTY,
        Some(device) => {
            let pairing = Pairing {
                evidence,
                policy,
                device,
                asks,
                vouched,
                cap,
                locality: locality(Some(grant.method)),
                needs_none: needs_no_pairing(evidence, role, grant.method) || self_pairing(Some(grant.method)),
            };
            match pairing.decide(&grant) {
                Ok(own) => {
                    grant.paired = pairing.paired().is_some();
                    (grant.platform, grant.device_family) = pairing.metadata();
                    let proxied_ui = grant.method == Method::TrustedProxy && client.is_control_ui();
                    grant.issues_device_token = grant.paired && !proxied_ui;
                    own
                }
                Err(needed) => return Ok(Decision::NeedsPairing(needed)),
            }
        }
    };
    if role == Role::Operator {
        let session = asks.scopes.map_or(vouched, |asked| vouched.meet(asked));
        grant.scopes = capped(own.union(session), cap);
    }
    Ok(Decision::Granted(grant))
}

/// Judges the page behind a connect. The clients that are pages must say which.
fn check_origin(evidence: &Evidence<'_>, policy: &Policy) -> Result<(), Denied> {
    let headers = evidence.request.headers;
    match policy.origins.check_request(headers, evidence.request.verdict.is_local()) {
        Ok(None) if evidence.client.is_browser_ui() || evidence.client.is_webchat() => {
            Err(Denied::OriginNotAllowed(OriginRefused::MissingOrInvalid))
        }
        Ok(_) => Ok(()),
        Err(why) => Err(Denied::OriginNotAllowed(why)),
    }
}

/// What the shared credentials came to.
#[derive(Clone, Copy)]
struct Shared {
    /// The shared secret, or a trusted proxy, proved the client.
    ok: bool,
    method: Option<Method>,
}

impl Shared {
    fn of(outcome: &Result<Identity, Denied>) -> Self {
        let method = outcome.as_ref().ok().map(|identity| identity.method);
        Self { ok: matches!(method, Some(Method::Token | Method::Password | Method::TrustedProxy)), method }
    }
}

/// What a client asks for.
#[derive(Clone, Copy)]
struct Asks {
    role: Role,
    /// `None`: what it was approved for. Nodes have no scopes.
    scopes: Option<ScopeSet>,
}

impl Asks {
    fn of(evidence: &Evidence<'_>, role: Role) -> Self {
        let scopes = match role {
            Role::Operator => evidence.scopes.map(|names| ScopeSet::parse(names.iter().copied())),
            Role::Node => Some(ScopeSet::EMPTY),
        };
        Self { role, scopes }
    }
}

fn capped(scopes: ScopeSet, header: Option<&str>) -> ScopeSet {
    ScopeSet::parse(scope_cap::cap(scopes.iter().map(|scope| scope.as_str()), header))
}

fn signed_fields<'a>(evidence: &Evidence<'a>, role: Role) -> SignedFields<'a> {
    let Evidence { client, request, .. } = evidence;
    let credentials = &request.credentials;
    let token = credentials.token.or(credentials.device_token).or(credentials.bootstrap_token);
    SignedFields {
        client_id: client.id,
        client_mode: client.mode,
        role: role.as_str(),
        scopes: evidence.scopes.unwrap_or_default(),
        token: token.unwrap_or_default(),
        platform: client.platform,
        device_family: client.device_family,
        ..SignedFields::default()
    }
}

/// Looks at the credentials that only a device can have: the setup code first, then the device token.
fn by_device_credential(
    evidence: &Evidence<'_>,
    device: &VerifiedDevice,
    role: Role,
    asks: Asks,
    shared: Result<Identity, Denied>,
    attempts: &mut Attempts<'_>,
    now: UnixMs,
) -> Result<Identity, Denied> {
    let credentials = &evidence.request.credentials;
    let mut outcome = shared;
    if let Some(code) = filled(credentials.bootstrap_token) {
        match by_bootstrap(evidence, device, role, code, attempts, now) {
            Ok(()) => outcome = Ok(Identity { method: Method::BootstrapToken, user: None }),
            Err(denied) if outcome.is_err() => outcome = Err(denied),
            Err(_) => {}
        }
    }
    let explicit = filled(credentials.device_token);
    // A client without a field for it sends its device token as `token`; that only matters where the token
    // is not the shared one.
    let Some(token) = explicit.or(filled(credentials.token).filter(|_| outcome.is_err())) else { return outcome };
    match by_device_token(evidence, device, asks, token, attempts, now) {
        Ok(()) => {
            if explicit.is_none() {
                attempts.excuse(CredentialKind::SharedSecret);
            }
            outcome.or(Ok(Identity { method: Method::DeviceToken, user: None }))
        }
        Err(denied) => outcome.map_err(|shared| match denied {
            // As a device token it is unknown; as a shared token it was wrong, and that is the better advice.
            Denied::DeviceTokenMismatch if explicit.is_none() => shared,
            denied => denied,
        }),
    }
}

fn by_bootstrap(
    evidence: &Evidence<'_>,
    device: &VerifiedDevice,
    role: Role,
    code: &str,
    attempts: &mut Attempts<'_>,
    now: UnixMs,
) -> Result<(), Denied> {
    attempts.check(CredentialKind::BootstrapToken, code)?;
    let good = evidence.bootstrap.is_some_and(|code| {
        now < code.expires_at
            && code.bound_key.is_none_or(|key| key == device.key)
            && code.roles.contains(&role)
            && (role == Role::Node || code.scopes.covers_all(Asks::of(evidence, role).scopes.unwrap_or_default()))
    });
    if !good {
        attempts.wrong(CredentialKind::BootstrapToken, code);
        return Err(Denied::BootstrapTokenInvalid);
    }
    attempts.right(CredentialKind::BootstrapToken);
    Ok(())
}

fn by_device_token(
    evidence: &Evidence<'_>,
    device: &VerifiedDevice,
    asks: Asks,
    token: &str,
    attempts: &mut Attempts<'_>,
    now: UnixMs,
) -> Result<(), Denied> {
    attempts.check(CredentialKind::DeviceToken, token)?;
    let paired = evidence.paired.filter(|paired| paired.key == device.key);
    let approved = paired.and_then(|paired| paired.role(asks.role));
    let known = approved.and_then(|role| role.token.as_ref()).filter(|known| known.hash == SecretHash::of(token));
    let Some(known) = known else {
        attempts.wrong(CredentialKind::DeviceToken, token);
        return Err(Denied::DeviceTokenMismatch);
    };
    // From here on it is this device's token: what is wrong with it is no guess.
    attempts.right(CredentialKind::DeviceToken);
    if known.expires_at.is_some_and(|end| now >= end) {
        return Err(Denied::DeviceTokenExpired);
    }
    if !known.scopes.covers_all(asks.scopes.unwrap_or_default()) {
        return Err(Denied::ScopeMismatch);
    }
    Ok(())
}

/// A Control UI that comes from a place where its user is already known needs no pairing of its browser.
fn needs_no_pairing(evidence: &Evidence<'_>, role: Role, method: Method) -> bool {
    evidence.client.is_control_ui() && role == Role::Operator && matches!(method, Method::Tailscale | Method::None)
}

/// The question whether a verified device is approved for what it asks.
struct Pairing<'a> {
    evidence: &'a Evidence<'a>,
    policy: &'a Policy,
    device: &'a VerifiedDevice,
    asks: Asks,
    /// Scopes that a vouched-for user has in any case.
    vouched: ScopeSet,
    cap: Option<&'a str>,
    locality: Locality,
    needs_none: bool,
}

impl Pairing<'_> {
    /// The record of this very key.
    fn paired(&self) -> Option<&PairedDevice> {
        self.evidence.paired.filter(|paired| paired.key == self.device.key)
    }

    /// The scopes the device holds by itself, or what it must be approved for.
    fn decide(&self, grant: &Grant) -> Result<ScopeSet, Box<PairingNeeded>> {
        let asked = self.asks.scopes.unwrap_or_default();
        let Some(paired) = self.paired() else {
            return if self.needs_none { Ok(asked) } else { Err(self.needed(PairingReason::NotPaired, grant)) };
        };
        if self.describes_itself_differently(paired) {
            return Err(self.needed(PairingReason::MetadataUpgrade, grant));
        }
        let Some(approved) = paired.role(self.asks.role) else {
            return Err(self.needed(PairingReason::RoleUpgrade, grant));
        };
        let held = approved.scopes;
        let Some(asked) = self.asks.scopes else { return Ok(held) };
        if held.union(self.vouched).covers_all(asked) {
            return Ok(asked.narrowed_to(held));
        }
        // What would be approved without asking may already be held: then there is nothing to approve.
        let automatic = self.automatic(grant);
        if automatic.is_some_and(|scopes| held.union(self.vouched).covers_all(scopes)) {
            return Ok(asked.narrowed_to(held));
        }
        Err(self.needed(PairingReason::ScopeUpgrade, grant))
    }

    /// Platform and family as far as they can be believed: approved, else signed, else empty.
    fn metadata(&self) -> (Box<str>, Box<str>) {
        let client = &self.evidence.client;
        let paired = self.paired();
        let believed = |pin: Option<&str>, claim: &str| match filled(pin) {
            Some(pin) => pin.into(),
            None if self.device.binds_metadata => claim.trim().into(),
            None => Box::default(),
        };
        (
            believed(paired.and_then(|paired| paired.platform.as_deref()), client.platform),
            believed(paired.and_then(|paired| paired.device_family.as_deref()), client.device_family),
        )
    }

    /// Whether platform or family are not the approved ones. A node must also not add what was left open,
    /// for its platform decides what it may offer.
    fn describes_itself_differently(&self, paired: &PairedDevice) -> bool {
        let client = &self.evidence.client;
        let differs = |pin: Option<&str>, claim: &str, same: fn(&str, &str) -> bool| match filled(pin) {
            Some(pin) => !same(claim, pin),
            None => self.asks.role == Role::Node && self.device.binds_metadata && !claim.trim().is_empty(),
        };
        differs(paired.platform.as_deref(), client.platform, pins::same_platform)
            || differs(paired.device_family.as_deref(), client.device_family, pins::same_device_family)
    }

    fn needed(&self, reason: PairingReason, grant: &Grant) -> Box<PairingNeeded> {
        let client = &self.evidence.client;
        let has_browser_origin = self.evidence.request.headers.has("origin");
        let signed = |claim: &str| if self.device.binds_metadata { claim.trim().into() } else { Box::default() };
        let by_code = grant.method == Method::BootstrapToken && reason == PairingReason::NotPaired;
        // More scopes come without asking only to who holds the shared secret on this host and is no page: the same
        // secret gives them without a device too, so asking would protect nothing. Another role never does.
        let holds_secret = matches!(grant.method, Method::Token | Method::Password | Method::None);
        let local = (reason != PairingReason::ScopeUpgrade || (holds_secret && !has_browser_origin))
            && (self.policy.pair_local_silently || reason == PairingReason::MetadataUpgrade)
            && (self.evidence.paired.is_none() || self.asks.role == Role::Operator)
            && is_silent(self.locality, reason, client, has_browser_origin);
        let automatic = matches!(reason, PairingReason::NotPaired | PairingReason::ScopeUpgrade)
            .then(|| self.automatic(grant))
            .flatten();
        Box::new(PairingNeeded {
            reason,
            silent: local
                || automatic.is_some()
                || self.is_listed_node(reason)
                || (by_code && self.evidence.bootstrap.is_some_and(|code| code.approves)),
            device: *self.device,
            role: self.asks.role,
            scopes: automatic.filter(|_| !local).or(self.asks.scopes).unwrap_or_default(),
            platform: signed(client.platform),
            device_family: signed(client.device_family),
            method: grant.method,
            user: grant.user.clone(),
            client_address: grant.verdict.client(),
            approved: self.paired().map(|paired| (paired.roles(), paired.scopes())),
            retry_after_approval: by_code && self.asks.role == Role::Node,
        })
    }

    /// What `deviceAutoApprove` gives this client, if it applies: user interfaces of users that the proxy
    /// vouches for.
    fn automatic(&self, grant: &Grant) -> Option<ScopeSet> {
        let limit = self.policy.device_auto_approve?;
        let client = &self.evidence.client;
        let interface = client.is_browser_ui() || client.is_webchat() || client.is_native_ui();
        let applies = grant.method == Method::TrustedProxy && self.asks.role == Role::Operator && interface;
        applies.then(|| capped(self.asks.scopes.map_or(limit, |asked| asked.narrowed_to(limit)), self.cap))
    }

    /// Whether this is a new node from where the operator pairs nodes without asking. A proxy on loopback
    /// vouches for no address: any local process could be it.
    fn is_listed_node(&self, reason: PairingReason) -> bool {
        let address = match self.evidence.request.verdict {
            Verdict::DirectRemote { client } => Some(client).filter(|client| !client.is_loopback()),
            Verdict::TrustedProxy { proxy, client } if !proxy.is_loopback() => client,
            _ => None,
        };
        reason == PairingReason::NotPaired
            && self.evidence.paired.is_none()
            && self.asks.role == Role::Node
            && !self.evidence.request.headers.has("origin")
            && address.is_some_and(|address| self.policy.node_auto_approve.contains(address))
    }
}

fn provided(evidence: &Evidence<'_>) -> Provided {
    let credentials = &evidence.request.credentials;
    if filled(credentials.password).is_some() {
        Provided::Password
    } else if filled(credentials.token).is_some() {
        Provided::Token
    } else if filled(credentials.bootstrap_token).is_some() {
        Provided::BootstrapToken
    } else if filled(credentials.device_token).is_some() {
        Provided::DeviceToken
    } else {
        Provided::None
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::device::tests::Device;
    use super::super::device::{DeviceKey, SignedDevice};
    use super::super::evidence::{ApprovedRole, BootstrapCode, Credentials, DeviceToken, Request, Surface};
    use super::super::headers::HeaderView;
    use super::super::ingress::Listener;
    use super::super::origin::OriginPolicy;
    use super::super::policy::AuthMode;
    use super::super::rate_limit::RateLimitPolicy;
    use super::super::tailscale::Whois;
    use super::super::trusted_proxy::TrustedProxy;
    use super::super::{address::AddressList, client::Client};
    use super::*;
    use crate::rpc::scope::Scope;

    const NOW: UnixMs = UnixMs(1_700_000_000_000);
    const CHALLENGE: &str = "nonce-1";

    /// One connect and the gateway it comes to. Starts as the CLI on the gateway's host with the right token.
    struct Scene {
        policy: Policy,
        limits: RateLimits,
        peer: &'static str,
        listener: Listener,
        headers: Vec<(&'static str, &'static str)>,
        client: Client<'static>,
        role: Option<&'static str>,
        scopes: Option<Vec<&'static str>>,
        credentials: Credentials<'static>,
        device: Option<u8>,
        payload_v2: bool,
        paired: Option<PairedDevice>,
        bootstrap: Option<BootstrapCode>,
        whois: Option<Whois<'static>>,
        generation: u64,
    }

    fn hash(text: &str) -> Option<SecretHash> {
        Some(SecretHash::of(text))
    }

    fn client(id: &'static str, mode: &'static str) -> Client<'static> {
        Client { id, mode, platform: "linux", device_family: "Linux" }
    }

    fn scene() -> Scene {
        Scene {
            policy: Policy::new(1, AuthMode::Token(hash("tok"))),
            limits: RateLimits::new(RateLimitPolicy::default()),
            peer: "127.0.0.1",
            listener: Listener::Main,
            headers: vec![("host", "127.0.0.1:18789")],
            client: client("cli", "cli"),
            role: None,
            scopes: Some(vec!["operator.read"]),
            credentials: Credentials { token: Some("tok"), ..Credentials::default() },
            device: None,
            payload_v2: false,
            paired: None,
            bootstrap: None,
            whois: None,
            generation: 1,
        }
    }

    /// The same from a stranger's address.
    fn remote() -> Scene {
        Scene { peer: "198.51.100.7", headers: vec![("host", "gw.example")], ..scene() }
    }

    /// A node host with a device.
    fn node() -> Scene {
        Scene {
            client: client("node-host", "node"),
            role: Some("node"),
            scopes: Some(vec![]),
            device: Some(1),
            ..remote()
        }
    }

    /// The Control UI on the gateway's own host.
    fn control_ui() -> Scene {
        let headers = vec![("host", "localhost:18789"), ("origin", "http://localhost:18789")];
        Scene { client: client("openclaw-control-ui", "webchat"), headers, device: Some(1), ..scene() }
    }

    /// The Control UI behind an authenticating proxy.
    fn proxied_ui() -> Scene {
        let proxy = TrustedProxy { user_header: "x-forwarded-user".into(), ..TrustedProxy::default() };
        let mut policy = Policy::new(1, AuthMode::TrustedProxy { proxy: Some(proxy), password: hash("pw") });
        policy.ingress.trusted_proxies = AddressList::parse(["10.0.0.1"]);
        policy.origins = OriginPolicy::parse(["https://gw.example"]);
        let headers = vec![
            ("host", "gw.example"),
            ("origin", "https://gw.example"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-user", "alice@example.com"),
        ];
        let scopes = Some(vec!["operator.read", "operator.write"]);
        let credentials = Credentials::default();
        Scene { policy, peer: "10.0.0.1", headers, scopes, credentials, ..control_ui() }
    }

    fn paired(seed: u8, scopes: &[&str], token: Option<&str>) -> PairedDevice {
        let scopes = ScopeSet::parse(scopes.iter().copied());
        let token = token.map(|token| DeviceToken { hash: SecretHash::of(token), scopes, expires_at: None });
        PairedDevice {
            key: Device::new(seed).key(),
            operator: Some(ApprovedRole { scopes, token }),
            node: None,
            platform: Some("linux".into()),
            device_family: Some("Linux".into()),
        }
    }

    fn paired_node(seed: u8, token: &str) -> PairedDevice {
        let token = DeviceToken { hash: SecretHash::of(token), scopes: ScopeSet::EMPTY, expires_at: None };
        let node = Some(ApprovedRole { scopes: ScopeSet::EMPTY, token: Some(token) });
        PairedDevice { operator: None, node, ..paired(seed, &[], None) }
    }

    impl Scene {
        fn decide(&self) -> Decision {
            let lines: Vec<(&str, &[u8])> =
                self.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            let headers = HeaderView::new(&lines);
            let peer: IpAddr = self.peer.parse().unwrap();
            let verdict = Verdict::of(peer, headers, self.listener, &self.policy.ingress);
            let request = Request {
                surface: Surface::WebSocket,
                peer: Some(peer),
                verdict,
                headers,
                credentials: self.credentials,
                whois: self.whois,
                own_addresses: Some(&[]),
            };
            let mut evidence = Evidence {
                request,
                client: self.client,
                role: self.role,
                scopes: self.scopes.as_deref(),
                device: None,
                challenge: CHALLENGE,
                paired: self.paired.as_ref(),
                bootstrap: self.bootstrap.as_ref(),
                generation: self.generation,
            };
            let Some(seed) = self.device else { return authorize(&evidence, &self.policy, &self.limits, NOW) };
            let device = Device::new(seed);
            let (id, key) = (device.id(), device.key().to_string());
            let role = self.role.and_then(Role::parse).unwrap_or(Role::Operator);
            let signed = signed_fields(&evidence, role);
            let signed = SignedFields { device_id: &id, signed_at_ms: NOW.0, nonce: CHALLENGE, ..signed };
            let payload = if self.payload_v2 { signed.payload_v2() } else { signed.payload_v3() };
            let signature = device.sign(&payload);
            let proof = SignedDevice {
                id: &id,
                public_key: &key,
                signature: &signature,
                signed_at_ms: Some(NOW.0),
                nonce: CHALLENGE,
            };
            evidence.device = Some(proof);
            authorize(&evidence, &self.policy, &self.limits, NOW)
        }

        #[track_caller]
        fn granted(&self) -> Grant {
            match self.decide() {
                Decision::Granted(grant) => grant,
                other => panic!("expected a grant, not {other:?}"),
            }
        }

        #[track_caller]
        fn denied(&self) -> Denied {
            match self.decide() {
                Decision::Denied(refusal) => refusal.reason,
                other => panic!("expected a refusal, not {other:?}"),
            }
        }

        #[track_caller]
        fn pairing(&self) -> PairingNeeded {
            match self.decide() {
                Decision::NeedsPairing(needed) => *needed,
                other => panic!("expected a pairing, not {other:?}"),
            }
        }

        fn token(mut self, token: &'static str) -> Self {
            self.credentials.token = Some(token);
            self
        }
    }

    fn names(scopes: ScopeSet) -> Vec<&'static str> {
        scopes.iter().map(Scope::as_str).collect()
    }

    #[test]
    fn the_cli_on_the_gateways_host_keeps_its_scopes_without_a_device() {
        let grant = scene().granted();
        assert_eq!(
            (grant.role(), grant.method(), names(grant.scopes())),
            (Role::Operator, Method::Token, vec!["operator.read"])
        );
        assert!(grant.device().is_none() && !grant.issues_device_token());
        let probe = Scene { client: client("cli", "probe"), ..scene() };
        assert_eq!(names(probe.granted().scopes()), ["operator.read"]);
    }

    #[test]
    fn s_50_a_shared_token_from_elsewhere_gives_no_scopes_without_a_device() {
        let admin = Scene { scopes: Some(vec!["operator.admin"]), ..remote() };
        assert!(admin.granted().scopes().is_empty());
        let page = Scene {
            headers: vec![("host", "localhost:1"), ("origin", "http://localhost:1")],
            client: client("test", "test"),
            ..scene()
        };
        assert!(page.granted().scopes().is_empty());
    }

    #[test]
    fn s_16_an_unvalidated_field_opens_nothing() {
        for credentials in [
            Credentials { token: Some("wrong"), ..Credentials::default() },
            Credentials { token: Some("wrong"), device_token: Some("x"), ..Credentials::default() },
            Credentials {
                token: Some("wrong"),
                password: Some("tok"),
                bootstrap_token: Some("x"),
                ..Credentials::default()
            },
        ] {
            assert_eq!(Scene { credentials, ..scene() }.denied(), Denied::TokenMismatch);
        }
        for credentials in [
            Credentials::default(),
            Credentials { token: Some("  "), ..Credentials::default() },
            Credentials { device_token: Some("x"), bootstrap_token: Some("x"), ..Credentials::default() },
        ] {
            assert_eq!(Scene { credentials, ..scene() }.denied(), Denied::DeviceRequired);
        }
    }

    #[test]
    fn s_32_every_wrong_credential_counts_under_its_own_kind() {
        let attack = Scene { device: Some(1), ..remote() };
        let headers: Vec<(&str, &[u8])> = vec![];
        let there = Verdict::DirectRemote { client: "198.51.100.7".parse().unwrap() };
        let locked = |scene: &Scene, kind| {
            scene.limits.attempts(there, HeaderView::new(&headers), NOW).check(kind, "new").is_err()
        };
        let mut attack = attack;
        for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            attack.credentials = Credentials {
                token: Some(guess),
                device_token: Some(guess),
                bootstrap_token: Some(guess),
                password: None,
            };
            attack.decide();
        }
        for kind in [CredentialKind::SharedSecret, CredentialKind::DeviceToken, CredentialKind::BootstrapToken] {
            assert!(locked(&attack, kind), "{kind:?}");
        }
        attack.credentials = Credentials { token: Some("tok"), ..Credentials::default() };
        assert!(matches!(attack.denied(), Denied::RateLimited { .. }));
    }

    #[test]
    fn s_32_a_wrong_device_token_counts_even_beside_the_right_token() {
        let mut scene = Scene { device: Some(1), ..remote() };
        for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            scene.credentials.device_token = Some(guess);
            assert_eq!(scene.pairing().reason, PairingReason::NotPaired);
        }
        scene.credentials = Credentials { device_token: Some("k"), ..Credentials::default() };
        assert!(matches!(scene.denied(), Denied::RateLimited { .. }));
    }

    #[test]
    fn wrong_credentials_count_although_the_device_proof_fails_later() {
        let mut scene =
            Scene { device: Some(1), client: Client { platform: "a|b", ..client("cli", "cli") }, ..remote() };
        for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            scene.credentials.token = Some(guess);
            assert!(matches!(scene.denied(), Denied::DeviceFieldInvalid(_)));
        }
        scene.device = None;
        assert!(matches!(scene.token("tok").denied(), Denied::RateLimited { .. }));
    }

    #[test]
    fn s_13_unattributable_traffic_is_refused_before_credentials_are_looked_at() {
        let mut scene = remote();
        scene.headers.push(("x-forwarded-for", "127.0.0.1"));
        for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "tok"] {
            scene.credentials.token = Some(guess);
            assert!(matches!(scene.denied(), Denied::ProxyAttributionRequired(_)));
        }
        assert_eq!(scene.limits.entries(), 0);
    }

    #[test]
    fn a_stranger_role_or_origin_is_refused_first() {
        assert_eq!(Scene { role: Some("worker"), ..scene() }.denied(), Denied::InvalidRole);
        let evil = Scene { headers: vec![("host", "localhost"), ("origin", "https://evil.example")], ..scene() };
        assert_eq!(evil.denied(), Denied::OriginNotAllowed(OriginRefused::NotAllowed));
        let no_origin = Scene { headers: vec![], ..control_ui() };
        assert_eq!(no_origin.denied(), Denied::OriginNotAllowed(OriginRefused::MissingOrInvalid));
    }

    #[test]
    fn a_new_device_is_paired_silently_only_when_truly_local() {
        let local = Scene { device: Some(1), ..scene() };
        let needed = local.pairing();
        assert!(needed.silent && needed.reason == PairingReason::NotPaired);
        assert_eq!((&*needed.platform, &*needed.device_family), ("linux", "Linux"));
        assert!(!Scene { device: Some(1), ..remote() }.pairing().silent);
        let rebound = Scene { device: Some(1), headers: vec![("host", "evil.example")], ..scene() };
        assert!(!rebound.pairing().silent);
        let container = Scene { device: Some(1), headers: vec![("host", "192.168.1.5:18789")], ..scene() };
        assert!(container.pairing().silent);
    }

    #[test]
    fn silent_pairing_can_be_switched_off() {
        let mut local = Scene { device: Some(1), ..scene() };
        local.policy.pair_local_silently = false;
        assert!(!local.pairing().silent);
    }

    #[test]
    fn s_17_forged_loopback_names_pair_no_one_silently() {
        let forged = Scene { peer: "172.17.0.1", ..control_ui() };
        assert!(matches!(forged.denied(), Denied::OriginNotAllowed(_)));
        let mut listed = Scene { peer: "172.17.0.1", ..control_ui() };
        listed.policy.origins = OriginPolicy::parse(["http://localhost:18789"]);
        assert!(!listed.pairing().silent);
    }

    #[test]
    fn after_its_pairing_the_same_connect_is_granted() {
        let scene = Scene { device: Some(1), paired: Some(paired(1, &["operator.read"], None)), ..remote() };
        let grant = scene.granted();
        assert_eq!(names(grant.scopes()), ["operator.read"]);
        assert!(grant.is_paired() && grant.issues_device_token());
        assert_eq!(grant.device(), Some(Device::new(1).key().device_id()));
    }

    #[test]
    fn another_key_does_not_inherit_a_pairing() {
        let scene = Scene { device: Some(2), paired: Some(paired(1, &["operator.admin"], Some("dt"))), ..remote() };
        let needed = scene.pairing();
        assert_eq!(needed.reason, PairingReason::NotPaired);
        assert!(needed.approved.is_none());
    }

    #[test]
    fn more_than_approved_comes_without_asking_only_to_who_holds_the_secret_here() {
        let here = Scene { device: Some(1), paired: Some(paired(1, &[], None)), ..scene() };
        let needed = here.pairing();
        assert!(needed.silent && needed.reason == PairingReason::ScopeUpgrade);
        assert_eq!(needed.approved, Some((vec![Role::Operator], ScopeSet::EMPTY)));
        let elsewhere = Scene { device: Some(1), paired: Some(paired(1, &[], None)), ..remote() };
        assert!(!elsewhere.pairing().silent);
    }

    #[test]
    fn a_known_device_in_another_role_is_never_approved_silently() {
        let mut scene = Scene { peer: "127.0.0.1", headers: vec![], paired: Some(paired(1, &[], None)), ..node() };
        let needed = scene.pairing();
        assert!(!needed.silent && needed.reason == PairingReason::RoleUpgrade);
        scene.paired = None;
        assert!(scene.pairing().silent);
    }

    #[test]
    fn a_device_token_lets_its_device_in_and_no_other() {
        let credentials = Credentials { device_token: Some("dt"), ..Credentials::default() };
        let good =
            Scene { device: Some(1), credentials, paired: Some(paired(1, &["operator.read"], Some("dt"))), ..remote() };
        assert_eq!(good.granted().method(), Method::DeviceToken);
        let other = Scene { device: Some(2), credentials, paired: good.paired.clone(), ..remote() };
        assert_eq!(other.denied(), Denied::DeviceTokenMismatch);
        let more = Scene { scopes: Some(vec!["operator.admin"]), ..good };
        assert_eq!(more.denied(), Denied::ScopeMismatch);
        let as_token = Scene { credentials: Credentials { token: Some("dt"), ..Credentials::default() }, ..more };
        let as_token = Scene { scopes: None, ..as_token };
        assert_eq!(names(as_token.granted().scopes()), ["operator.read"]);
        assert_eq!(as_token.limits.entries(), 0, "a device token in the token field is no wrong guess");
    }

    #[test]
    fn s_66_a_device_token_can_end() {
        let mut record = paired(1, &["operator.read"], Some("dt"));
        let token = record.operator.as_mut().and_then(|role| role.token.as_mut()).unwrap();
        token.expires_at = Some(NOW);
        let credentials = Credentials { device_token: Some("dt"), ..Credentials::default() };
        let scene = Scene { device: Some(1), credentials, paired: Some(record), ..remote() };
        assert_eq!(scene.denied(), Denied::DeviceTokenExpired);
    }

    #[test]
    fn s_39_a_device_token_is_still_checked_while_the_shared_path_is_limited() {
        let mut scene = Scene { device: Some(1), paired: Some(paired(1, &["operator.read"], Some("dt"))), ..remote() };
        scene.credentials = Credentials::default();
        for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            scene.credentials.token = Some(guess);
            scene.decide();
        }
        scene.limits = RateLimits::new(RateLimitPolicy::default());
        let there = Verdict::DirectRemote { client: "198.51.100.7".parse().unwrap() };
        let mut attempts = scene.limits.attempts(there, HeaderView::default(), NOW);
        for guess in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            attempts.wrong(CredentialKind::SharedSecret, guess);
            drop(std::mem::replace(&mut attempts, scene.limits.attempts(there, HeaderView::default(), NOW)));
        }
        scene.credentials = Credentials { token: Some("tok"), device_token: Some("dt"), ..Credentials::default() };
        assert_eq!(scene.granted().method(), Method::DeviceToken);
    }

    #[test]
    fn a_mismatch_with_a_device_advises_to_try_the_device_token() {
        let advice = |scene: Scene| match scene.decide() {
            Decision::Denied(refusal) => refusal.can_retry_with_device_token,
            other => panic!("{other:?}"),
        };
        assert!(advice(Scene { device: Some(1), ..remote() }.token("wrong")));
        assert!(!advice(remote().token("wrong")));
        let mut sent = Scene { device: Some(1), ..remote() }.token("wrong");
        sent.credentials.device_token = Some("x");
        assert!(!advice(sent));
    }

    #[test]
    fn the_gateways_own_helper_needs_no_pairing_on_its_host() {
        let helper =
            Scene { client: client("gateway-client", "backend"), scopes: Some(vec!["operator.admin"]), ..scene() };
        assert_eq!(names(helper.granted().scopes()), ["operator.admin"]);
        let with_device = Scene { device: Some(1), ..helper };
        let grant = with_device.granted();
        assert!(!grant.is_paired() && !grant.issues_device_token());
        let remote_helper =
            Scene { client: client("gateway-client", "backend"), scopes: Some(vec!["operator.admin"]), ..remote() };
        assert!(remote_helper.granted().scopes().is_empty());
    }

    #[test]
    fn a_node_needs_a_device_and_holds_no_scopes() {
        assert_eq!(Scene { device: None, ..node() }.denied(), Denied::DeviceRequired);
        let scene = Scene { scopes: Some(vec!["operator.admin"]), paired: Some(paired_node(1, "dt")), ..node() };
        let grant = scene.granted();
        assert_eq!((grant.role(), grant.scopes()), (Role::Node, ScopeSet::EMPTY));
        assert_eq!((grant.platform(), grant.device_family()), ("linux", "Linux"));
    }

    #[test]
    fn s_71_a_node_can_not_change_what_it_is() {
        let other = Client { platform: "ios", device_family: "iPhone", ..client("node-host", "node") };
        let scene = Scene { client: other, paired: Some(paired_node(1, "dt")), ..node() };
        assert_eq!(scene.pairing().reason, PairingReason::MetadataUpgrade);
        let mut open = paired_node(1, "dt");
        open.platform = None;
        let adds = Scene { paired: Some(open), ..node() };
        assert_eq!(adds.pairing().reason, PairingReason::MetadataUpgrade);
    }

    #[test]
    fn unsigned_metadata_is_neither_pinned_nor_believed() {
        let needed = Scene { payload_v2: true, ..node() }.pairing();
        assert_eq!((&*needed.platform, &*needed.device_family), ("", ""));
        let mut open = paired_node(1, "dt");
        (open.platform, open.device_family) = (None, None);
        let grant = Scene { payload_v2: true, paired: Some(open), ..node() }.granted();
        assert_eq!((grant.platform(), grant.device_family()), ("", ""));
    }

    #[test]
    fn listed_networks_pair_new_nodes_and_nothing_else() {
        let mut listed = node();
        listed.policy.node_auto_approve = AddressList::parse(["198.51.100.0/24"]);
        assert!(listed.pairing().silent);
        listed.paired = Some(paired(1, &[], None));
        assert!(!listed.pairing().silent);
        let mut operator = Scene { device: Some(1), ..remote() };
        operator.policy.node_auto_approve = AddressList::parse(["198.51.100.0/24"]);
        assert!(!operator.pairing().silent);
    }

    #[test]
    fn s_55_a_setup_code_serves_its_first_key_only() {
        let code = |bound_key: Option<DeviceKey>| {
            let expires_at = NOW.plus(1);
            Some(BootstrapCode {
                expires_at,
                bound_key,
                roles: vec![Role::Node],
                scopes: ScopeSet::EMPTY,
                approves: false,
            })
        };
        let credentials = Credentials { bootstrap_token: Some("code"), ..Credentials::default() };
        let scene = Scene { credentials, bootstrap: code(None), ..node() };
        let needed = scene.pairing();
        assert!(needed.retry_after_approval && needed.method == Method::BootstrapToken && !needed.silent);
        let own = Scene { bootstrap: code(Some(Device::new(1).key())), ..scene };
        assert_eq!(own.pairing().method, Method::BootstrapToken);
        let other = Scene { bootstrap: code(Some(Device::new(2).key())), ..own };
        assert_eq!(other.denied(), Denied::BootstrapTokenInvalid);
        let operator = Scene { credentials, bootstrap: code(None), device: Some(1), ..remote() };
        assert_eq!(operator.denied(), Denied::BootstrapTokenInvalid);
    }

    #[test]
    fn s_59_settings_that_changed_meanwhile_let_no_one_in() {
        let stale = Scene { generation: 0, ..scene() };
        assert_eq!(stale.denied(), Denied::AuthChanged);
        assert_eq!(Denied::AuthChanged.close_code(), 4001);
    }

    #[test]
    fn s_51_a_proxied_control_ui_holds_what_its_device_was_approved_for() {
        let without = Scene { device: None, ..proxied_ui() };
        assert!(without.granted().scopes().is_empty());
        assert!(!proxied_ui().pairing().silent);
        let mut known = Scene { paired: Some(paired(1, &["operator.admin"], None)), ..proxied_ui() };
        let grant = known.granted();
        assert_eq!(names(grant.scopes()), ["operator.read", "operator.write"]);
        assert_eq!(grant.user(), Some("alice@example.com"));
        assert!(!grant.issues_device_token());
        known.headers.push(("x-openclaw-scopes", "operator.read, operator.admin"));
        assert_eq!(names(known.granted().scopes()), ["operator.read"]);
        known.headers.pop();
        known.headers.push(("x-openclaw-scopes", ""));
        assert!(known.granted().scopes().is_empty());
    }

    #[test]
    fn other_operators_behind_the_proxy_hold_no_scopes_and_nodes_need_a_device() {
        let automation = Scene { client: client("test", "backend"), device: None, ..proxied_ui() };
        assert!(automation.granted().scopes().is_empty());
        let node = Scene { client: client("node-host", "node"), role: Some("node"), device: None, ..proxied_ui() };
        assert_eq!(node.denied(), Denied::DeviceRequired);
    }

    #[test]
    fn an_identity_can_hold_scopes_of_its_own() {
        let mut scene = Scene { device: None, ..proxied_ui() };
        scene.policy.identity_scopes =
            vec![("Alice@example.com".into(), ScopeSet::parse(["operator.admin"])), ("bob".into(), ScopeSet::EMPTY)];
        assert_eq!(names(scene.granted().scopes()), ["operator.read", "operator.write"]);
        scene.scopes = None;
        assert_eq!(names(scene.granted().scopes()), ["operator.admin"]);
        scene.headers.push(("x-openclaw-scopes", "operator.read"));
        assert!(scene.granted().scopes().is_empty());
        let known = Scene { paired: Some(paired(1, &[], None)), device: Some(1), ..scene };
        let known = Scene { scopes: Some(vec!["operator.read"]), ..known };
        assert_eq!(names(known.granted().scopes()), ["operator.read"]);
    }

    #[test]
    fn the_proxys_word_can_approve_user_interfaces_up_to_a_limit() {
        let mut scene = proxied_ui();
        scene.policy.device_auto_approve = Some(ScopeSet::parse(["operator.read"]));
        let needed = scene.pairing();
        assert!(needed.silent);
        assert_eq!(names(needed.scopes), ["operator.read"]);
        scene.paired = Some(paired(1, &["operator.read"], None));
        assert_eq!(names(scene.granted().scopes()), ["operator.read"]);
        scene.client = client("cli", "cli");
        scene.paired = None;
        assert!(!scene.pairing().silent);
    }

    #[test]
    fn behind_a_proxy_a_local_caller_may_use_the_password() {
        let local =
            Scene { peer: "127.0.0.1", client: client("cli", "cli"), headers: vec![], device: None, ..proxied_ui() };
        let password = Credentials { password: Some("pw"), ..Credentials::default() };
        assert_eq!(Scene { credentials: password, ..local }.granted().method(), Method::Password);
        let with_header = Scene { headers: vec![("x-forwarded-user", "root")], credentials: password, ..proxied_ui() };
        let with_header = Scene { peer: "127.0.0.1", client: client("cli", "cli"), device: None, ..with_header };
        assert!(matches!(with_header.denied(), Denied::ProxyAttributionRequired(_)));
    }

    #[test]
    fn a_tailscale_identity_needs_the_daemons_word() {
        let headers = vec![
            ("host", "gw.tail.ts.net"),
            ("origin", "https://gw.tail.ts.net"),
            ("x-forwarded-for", "100.64.0.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "gw.tail.ts.net"),
            ("tailscale-user-login", "alice@example.com"),
        ];
        let mut served =
            Scene { listener: Listener::TailscaleServe, headers, credentials: Credentials::default(), ..control_ui() };
        served.policy.allow_tailscale = true;
        let refused = |scene: &Scene, reason: Denied| match scene.decide() {
            Decision::Denied(refusal) => {
                assert_eq!((&refusal.reason, refusal.identity.as_ref()), (&Denied::TokenMissing, Some(&reason)));
            }
            other => panic!("{other:?}"),
        };
        refused(&served, Denied::TailscaleWhoisFailed);
        served.whois = Some(Whois::Login("mallory@example.com"));
        refused(&served, Denied::TailscaleUserMismatch);
        served.whois = Some(Whois::Login("alice@example.com"));
        let grant = served.granted();
        assert_eq!(
            (grant.method(), grant.user(), grant.is_paired()),
            (Method::Tailscale, Some("alice@example.com"), false)
        );
        served.policy.origins = OriginPolicy::parse(["*"]);
        refused(&served, Denied::TailscaleOriginNotAllowed);
        served.policy.origins = OriginPolicy::default();
        served.device = None;
        assert_eq!(served.denied(), Denied::ControlUiDeviceRequired);
    }

    #[test]
    fn without_auth_only_devices_and_own_helpers_come_in() {
        let open = || Scene { policy: Policy::new(1, AuthMode::None), credentials: Credentials::default(), ..scene() };
        assert_eq!(open().denied(), Denied::DeviceRequired);
        assert!(Scene { device: Some(1), ..open() }.pairing().silent);
        let helper = Scene { client: client("gateway-client", "backend"), ..open() };
        assert_eq!(names(helper.granted().scopes()), ["operator.read"]);
    }
}
