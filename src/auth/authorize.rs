//! The decision on a `connect`: one function, top to bottom, in the order of the wire.

use super::authenticate::{Authentication, Identity, authenticate};
use super::denied::{Denied, Provided, Refusal};
use super::device::{self, SignedFields, VerifiedDevice};
use super::evidence::{Evidence, PairedDevice, filled};
use super::grant::{Grant, Method};
use super::headers::HeaderView;
use super::ingress::Verdict;
use super::missing_device::{MissingDevice, WithoutDevice};
use super::origin::OriginRefused;
use super::pairing::{Locality, PairingNeeded, PairingReason, is_self_pairing, is_silent};
use super::pins;
use super::policy::{AuthMode, Policy};
use super::rate_limit::{Attempts, CredentialKind, RateLimits};
use super::scope_cap;
use super::standing::Page;
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
            let by_proxy = matches!(policy.mode, AuthMode::TrustedProxy { .. });
            match (without.decide(), &outcome) {
                (MissingDevice::Allow, _) => !without.clears_scopes(),
                // The proxy is what lets people in here: why it did not is what they, and its operator, have to know.
                (_, Err(reason)) if by_proxy => return Err(Stop { reason: reason.clone(), identity: tailscale }),
                (MissingDevice::ControlUiNeedsDevice, _) => return Err(Denied::ControlUiDeviceRequired.into()),
                (MissingDevice::DeviceRequired, _) => return Err(Denied::DeviceRequired.into()),
                (MissingDevice::Unauthorized, _) => {
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
        page: page(request.headers),
        lent: ScopeSet::EMPTY,
        insecure_ui: device.is_none() && client.is_control_ui() && policy.allow_insecure_ui,
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
                needs_none: needs_no_pairing(evidence, role, grant.method)
                    // The helpers of the gateway are operators; a node is approved, whoever it says it is.
                    || (role == Role::Operator && self_pairing(Some(grant.method))),
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
        grant.lent = grant.scopes.meet(session.iter().filter(|scope| !own.covers(*scope)).collect());
    }
    Ok(Decision::Granted(grant))
}

/// The page behind a connect, to be judged again when the settings change.
pub(super) fn page(headers: HeaderView<'_>) -> Option<Box<Page>> {
    let origin = headers.single("origin").ok()??;
    let host = headers.single("host").ok().flatten().map(Into::into);
    Some(Box::new(Page { origin: origin.into(), host }))
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
        let signed = |claim: &str, pin: Option<&str>, same: fn(&str, &str) -> bool| match filled(pin) {
            _ if self.device.binds_metadata => claim.trim().into(),
            // Not signed, so worth nothing by itself; but what it repeats was approved.
            Some(pin) if same(claim, pin) => pin.into(),
            _ => Box::default(),
        };
        let pinned = |which: fn(&PairedDevice) -> &Option<Box<str>>| self.paired().and_then(|it| which(it).as_deref());
        // Whoever had the code made has approved what it gives, for the one device that uses it; not that the device
        // turns into another one.
        let by_code = grant.method == Method::BootstrapToken && reason != PairingReason::MetadataUpgrade;
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
            platform: signed(client.platform, pinned(|it| &it.platform), pins::same_platform),
            device_family: signed(client.device_family, pinned(|it| &it.device_family), pins::same_device_family),
            method: grant.method,
            user: grant.user.clone(),
            client_address: grant.verdict.client(),
            approved: self.paired().map(|paired| (paired.roles(), paired.scopes())),
            retry_after_approval: by_code && reason == PairingReason::NotPaired && self.asks.role == Role::Node,
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
mod tests;
