//! When a device must be approved, and when that happens without asking (contract 2.9).
//!
//! Silent pairing is for a loopback peer without any trace of a proxy; nothing in a header can bring it
//! about (S-17). Who may pair silently has already been authenticated.

use std::net::IpAddr;

use serde_json::json;

use super::client::Client;
use super::device::VerifiedDevice;
use super::grant::Method;
use super::host::Host;
use super::ingress::Verdict;
use super::origin::Origin;
use crate::address::is_private;
use crate::rpc::error::{ErrorCode, RpcError};
use crate::rpc::scope::{Role, ScopeSet};

/// How close a client is, as far as pairing is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// On this host, without doubt.
    DirectLocal,
    /// The CLI on a loopback peer under a private `Host`, with the shared secret: a container that shares
    /// this host's network.
    CliContainerLocal,
    /// Any other client of that kind.
    SharedSecretLoopbackLocal,
    /// The Control UI from a private address, under loopback names that only the request itself claims: perhaps a
    /// container with a forwarded port, perhaps a neighbour on the network. Treated as remote (S-17); the name is
    /// for the log.
    BrowserContainerLocal,
    /// Anywhere else.
    Remote,
}

impl Locality {
    /// Judges a client. `host` and `origin` are the request's headers; `method` and `shared_auth_ok` say how and
    /// whether the shared secret proved it.
    pub fn of(
        verdict: Verdict,
        host: Option<&str>,
        origin: Option<&str>,
        client: &Client<'_>,
        shared_auth_ok: bool,
        method: Option<Method>,
    ) -> Self {
        if verdict.is_local() {
            return Self::DirectLocal;
        }
        let secret = shared_auth_ok && matches!(method, Some(Method::Token | Method::Password));
        let (Verdict::DirectRemote { client: peer }, true) = (verdict, secret) else { return Self::Remote };
        let Some(host) = host.and_then(Host::parse) else { return Self::Remote };
        match origin {
            None if !peer.is_loopback() || !host.is_private() => Self::Remote,
            None if client.is_cli() => Self::CliContainerLocal,
            None => Self::SharedSecretLoopbackLocal,
            Some(origin) => {
                let own_page = client.is_browser_ui() && client.is_webchat() && is_private(peer) && host.is_loopback();
                let loopback_page = || Origin::parse(origin).is_some_and(|origin| origin.is_loopback());
                if own_page && loopback_page() { Self::BrowserContainerLocal } else { Self::Remote }
            }
        }
    }

    /// The name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DirectLocal => "direct_local",
            Self::CliContainerLocal => "cli_container_local",
            Self::SharedSecretLoopbackLocal => "shared_secret_loopback_local",
            Self::BrowserContainerLocal => "browser_container_local",
            Self::Remote => "remote",
        }
    }
}

/// Why an approval is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairingReason {
    /// The device is unknown, or known under another key.
    NotPaired,
    /// Its platform or family is not the one that was approved.
    MetadataUpgrade,
    /// It asks for a role it was not approved for.
    RoleUpgrade,
    /// It asks for scopes it was not approved for.
    ScopeUpgrade,
}

impl PairingReason {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotPaired => "not-paired",
            Self::MetadataUpgrade => "metadata-upgrade",
            Self::RoleUpgrade => "role-upgrade",
            Self::ScopeUpgrade => "scope-upgrade",
        }
    }

    const fn requirement(self) -> &'static str {
        match self {
            Self::NotPaired => "this device is not approved yet",
            Self::MetadataUpgrade => "this device is not described as it was approved",
            Self::RoleUpgrade => "this device asks for a role it is not approved for",
            Self::ScopeUpgrade => "this device asks for more scopes than approved",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::NotPaired => "On the gateway's host: `devices list`, compare the device id, then `devices approve`.",
            Self::MetadataUpgrade => {
                "Review what changed with `devices list`, then `devices approve` or `devices reject`."
            }
            Self::RoleUpgrade => "Review the requested role with `devices list`, then `devices approve`.",
            Self::ScopeUpgrade => "Review the requested scopes with `devices list`, then `devices approve`.",
        }
    }
}

/// Whether a pairing of this reason happens without asking.
pub fn is_silent(locality: Locality, reason: PairingReason, client: &Client<'_>, has_browser_origin: bool) -> bool {
    let page = client.is_control_ui() || client.is_webchat();
    let remote = matches!(locality, Locality::Remote | Locality::BrowserContainerLocal);
    if remote || (has_browser_origin && !page) {
        return false;
    }
    if reason != PairingReason::MetadataUpgrade {
        return true;
    }
    !has_browser_origin && !page && (locality != Locality::DirectLocal || client.is_native_ui())
}

/// Whether this is the gateway's own helper process on its host, which needs no device and no pairing.
pub fn is_self_pairing(
    locality: Locality,
    client: &Client<'_>,
    has_browser_origin: bool,
    shared_auth_ok: bool,
    method: Option<Method>,
) -> bool {
    let near = matches!(locality, Locality::DirectLocal | Locality::SharedSecretLoopbackLocal);
    let proved = match method {
        Some(Method::None | Method::DeviceToken) => true,
        Some(Method::Token | Method::Password) => shared_auth_ok,
        _ => false,
    };
    client.is_backend() && near && !has_browser_origin && proved
}

/// An authenticated device that must be approved before it comes in.
#[derive(Clone, Debug)]
pub struct PairingNeeded {
    /// Why.
    pub reason: PairingReason,
    /// Approve at once, without asking anyone, then decide again.
    pub silent: bool,
    /// The device; its signature was verified.
    pub device: VerifiedDevice,
    /// The role it asks for.
    pub role: Role,
    /// The scopes to approve: those it asks for, or what an automatic approval may give of them.
    pub scopes: ScopeSet,
    /// The platform to pin: as claimed, if the device's key signed the claim; else empty.
    pub platform: Box<str>,
    /// The device family to pin, likewise.
    pub device_family: Box<str>,
    /// How it was authenticated.
    pub method: Method,
    /// Who vouched for it, if someone did.
    pub user: Option<Box<str>>,
    /// Its address, where known.
    pub client_address: Option<IpAddr>,
    /// What the device holds already; told only to the key that holds it.
    pub approved: Option<(Vec<Role>, ScopeSet)>,
    /// The client has a setup code that stays good: it should simply try again.
    pub retry_after_approval: bool,
}

impl PairingNeeded {
    /// The error of the wire; `request_id` names the pending request.
    pub fn to_rpc_error(&self, request_id: Option<&str>) -> RpcError {
        let mut details = json!({
            "code": "PAIRING_REQUIRED",
            "reason": self.reason.as_str(),
            "remediationHint": self.reason.remedy(),
            "deviceId": self.device.id.to_string(),
            "requestedRole": self.role,
        });
        let mut put = |key: &str, value: serde_json::Value| details[key] = value;
        if let Some(request_id) = request_id {
            put("requestId", request_id.into());
        }
        if !self.scopes.is_empty() {
            put("requestedScopes", json!(self.scopes));
        }
        if let Some((roles, scopes)) = &self.approved {
            put("approvedRoles", json!(roles));
            if !scopes.is_empty() {
                put("approvedScopes", json!(scopes));
            }
        }
        if self.retry_after_approval {
            put("recommendedNextStep", "wait_then_retry".into());
            put("retryable", true.into());
            put("pauseReconnect", false.into());
        }
        RpcError::new(ErrorCode::NotPaired, self.message()).with_details(details)
    }

    /// The reason to close the connection with (1008); at most 123 bytes with an id of a UUID's length.
    pub fn close_reason(&self, request_id: Option<&str>) -> String {
        match request_id {
            Some(id) => format!("{} (requestId: {id})", self.message()),
            None => self.message(),
        }
    }

    fn message(&self) -> String {
        format!("pairing required: {}", self.reason.requirement())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::DeviceKey;
    use crate::limits::CLOSE_REASON_BYTES;

    fn needed(reason: PairingReason, scopes: &[&str]) -> PairingNeeded {
        let key = DeviceKey::from_bytes([9; 32]).unwrap();
        PairingNeeded {
            reason,
            silent: false,
            device: VerifiedDevice { key, id: key.device_id(), binds_metadata: true },
            role: Role::Operator,
            scopes: ScopeSet::parse(scopes.iter().copied()),
            platform: "linux".into(),
            device_family: "Linux".into(),
            method: Method::Token,
            user: None,
            client_address: None,
            approved: None,
            retry_after_approval: false,
        }
    }

    #[test]
    fn the_close_reason_fits_with_the_request_id() {
        use PairingReason::{MetadataUpgrade, NotPaired, RoleUpgrade, ScopeUpgrade};
        for reason in [NotPaired, MetadataUpgrade, RoleUpgrade, ScopeUpgrade] {
            let text = needed(reason, &[]).close_reason(Some("e135bb80-3b0b-4487-98e3-93c72443de25"));
            assert!(text.starts_with("pairing required: ") && text.len() <= CLOSE_REASON_BYTES, "{text}");
        }
    }

    #[test]
    fn the_error_names_the_request_and_tells_only_what_the_key_may_know() {
        let mut upgrade = needed(PairingReason::ScopeUpgrade, &["operator.pairing"]);
        let details = upgrade.to_rpc_error(None).details.unwrap();
        assert!(details.get("approvedRoles").is_none() && details.get("requestId").is_none());
        upgrade.approved = Some((vec![Role::Operator], ScopeSet::parse(["operator.read"])));
        let error = upgrade.to_rpc_error(Some("r-1"));
        assert_eq!(error.code, ErrorCode::NotPaired);
        let mut details = error.details.unwrap();
        details.as_object_mut().unwrap().remove("remediationHint");
        let expected = json!({"code": "PAIRING_REQUIRED", "reason": "scope-upgrade", "requestId": "r-1",
            "deviceId": upgrade.device.id.to_string(), "requestedRole": "operator",
            "requestedScopes": ["operator.pairing"], "approvedRoles": ["operator"], "approvedScopes": ["operator.read"]});
        assert_eq!(details, expected);
    }
}
