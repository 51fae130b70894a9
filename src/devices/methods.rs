//! `device.pair.*` and `device.token.*`: parameters, results, and who may call.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Devices;
use super::change::{PairingError, Rotated};
use super::pairing::{Denial, Manager};
use super::record::{LastSeen, PairedDevice, PendingRequest, Token};
use super::setup_change::OutcomeView;
use crate::auth::device::DeviceId;
use crate::clock::UnixMs;
use crate::hub::Connection;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::{ErrorCode, RpcError};
use crate::rpc::scope::{Role, Scope, ScopeSet};
use crate::task;
use crate::ws::close::CloseCode;

/// The methods of this domain.
pub const METHODS: &[Method<Devices>] = &[
    Method { name: "device.pair.approve", handler: approve },
    Method { name: "device.pair.list", handler: list },
    Method { name: "device.pair.reject", handler: reject },
    Method { name: "device.pair.remove", handler: remove },
    Method { name: "device.pair.rename", handler: rename },
    Method { name: "device.pair.setupStatus", handler: setup_status },
    Method { name: "device.token.revoke", handler: revoke },
    Method { name: "device.token.rotate", handler: rotate },
];

/// Characters of a label.
const LABEL_CHARS: usize = 64;

/// A request, in `device.pair.list` and as the payload of `device.pair.requested`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PendingView<'a> {
    request_id: &'a str,
    device_id: String,
    public_key: String,
    #[serde(flatten)]
    claims: ClaimsView<'a>,
    role: Role,
    roles: [Role; 1],
    scopes: ScopeSet,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_ip: Option<IpAddr>,
    silent: bool,
    is_repair: bool,
    ts: UnixMs,
}

impl<'a> PendingView<'a> {
    pub(super) fn of(request: &'a PendingRequest) -> Self {
        Self {
            request_id: &request.request_id,
            device_id: request.id.to_string(),
            public_key: request.key.to_string(),
            claims: ClaimsView::of(&request.claims),
            role: request.role,
            roles: [request.role],
            scopes: request.scopes,
            remote_ip: request.remote_ip,
            silent: false,
            is_repair: request.is_repair,
            ts: request.created_at,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClaimsView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    platform: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_family: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_mode: &'a str,
}

impl<'a> ClaimsView<'a> {
    fn of(claims: &'a super::record::Claims) -> Self {
        let present = |text: &'a Option<Box<str>>| text.as_deref().filter(|text| !text.is_empty());
        Self {
            display_name: present(&claims.display_name),
            platform: &claims.platform,
            device_family: present(&claims.device_family),
            client_id: &claims.client_id,
            client_mode: &claims.client_mode,
        }
    }
}

/// A paired device. Of its tokens only what is not secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PairedView<'a> {
    device_id: String,
    public_key: String,
    #[serde(flatten)]
    claims: ClaimsView<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator_label: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    roles: Vec<Role>,
    scopes: ScopeSet,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_ip: Option<IpAddr>,
    approved_via: &'static str,
    created_at_ms: UnixMs,
    approved_at_ms: UnixMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected: Option<bool>,
    tokens: Vec<TokenView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenView {
    role: Role,
    scopes: ScopeSet,
    created_at_ms: UnixMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotated_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at_ms: Option<UnixMs>,
}

impl<'a> PairedView<'a> {
    fn of(device: &'a PairedDevice, seen: &LastSeen, connected: Option<bool>) -> Self {
        let token = |approval: &super::record::Approval| TokenView {
            role: approval.role,
            scopes: approval.token_scopes,
            created_at_ms: approval.created_at,
            rotated_at_ms: approval.rotated_at,
            revoked_at_ms: match approval.token {
                Token::Revoked { at } => Some(at),
                Token::Unissued | Token::Live { .. } => None,
            },
            last_used_at_ms: seen.token_used_at(approval.role),
        };
        Self {
            device_id: device.id.to_string(),
            public_key: device.key.to_string(),
            claims: ClaimsView::of(&device.claims),
            operator_label: device.label.as_deref(),
            role: device.standing_approvals().next_back().map(|approval| approval.role),
            roles: device.standing_approvals().map(|approval| approval.role).collect(),
            scopes: device.scopes(),
            remote_ip: seen.remote_ip,
            approved_via: device.approved_via.as_str(),
            created_at_ms: device.created_at,
            approved_at_ms: device.approved_at,
            last_seen_at_ms: seen.at,
            last_seen_reason: seen.at.map(|_| "connect"),
            connected,
            tokens: device.approvals.iter().map(token).collect(),
        }
    }
}

fn list(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Serialize)]
    struct Listed<'a> {
        pending: Vec<PendingView<'a>>,
        paired: Vec<PairedView<'a>>,
    }
    call.no_params()?;
    let by = manager(call.caller());
    let mut pending = devices.pending(call.now());
    let mut paired = devices.all();
    pending.retain(|request| by.reaches(request.id));
    paired.retain(|(device, _)| by.reaches(device.id));
    paired.sort_by(|(a, _), (b, _)| (b.approved_at, a.id).cmp(&(a.approved_at, b.id)));
    let connections = devices.0.hub.connections();
    let connected: HashSet<_> = connections.iter().filter_map(|c| c.grant.device()).collect();
    let listed = Listed {
        pending: pending.iter().map(|request| PendingView::of(request)).collect(),
        paired: paired
            .iter()
            .map(|(device, seen)| PairedView::of(device, seen, Some(connected.contains(&device.id))))
            .collect(),
    };
    call.answer(&listed)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestParams {
    request_id: String,
}

fn approve(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    let RequestParams { request_id } = call.params()?;
    let (devices, by, now) = (devices.clone(), manager(call.caller()), call.now());
    call.spawn(async move {
        let request_id = request_id.trim();
        let device = devices
            .approve(request_id, by, now)
            .await
            .map_err(|error| refusal("device pairing approval denied", "approving", error))?;
        let seen = devices.last_seen(device.id).unwrap_or_default();
        let view = serde_json::to_value(PairedView::of(&device, &seen, None)).unwrap_or_default();
        Ok(json!({"requestId": request_id, "device": view}))
    })
}

fn reject(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    let RequestParams { request_id } = call.params()?;
    let (devices, by, now) = (devices.clone(), manager(call.caller()), call.now());
    call.spawn(async move {
        let request_id = request_id.trim();
        let device = devices
            .reject(request_id, by, now)
            .await
            .map_err(|error| refusal("device pairing rejection denied", "rejecting", error))?;
        Ok(json!({"requestId": request_id, "deviceId": device.to_string()}))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceParams {
    device_id: String,
}

fn remove(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    let DeviceParams { device_id } = call.params()?;
    let id = parse_id(&device_id)?;
    let (devices, by, now) = (devices.clone(), manager(call.caller()), call.now());
    spawn_then_close(call, id, None, "device removed", async move {
        devices
            .remove(id, by, now)
            .await
            .map_err(|error| refusal("device pairing removal denied", "removing", error))?;
        Ok(json!({"deviceId": id.to_string()}))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RenameParams {
    device_id: String,
    label: String,
}

fn rename(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    let RenameParams { device_id, label } = call.params()?;
    let label = label.trim().to_owned();
    if label.is_empty() || label.chars().count() > LABEL_CHARS || label.chars().any(char::is_control) {
        return Err(RpcError::invalid(format!(
            "invalid device.pair.rename params: at label: expected 1 to {LABEL_CHARS} printable characters"
        )));
    }
    let id = parse_id(&device_id)?;
    let (devices, by) = (devices.clone(), manager(call.caller()));
    call.spawn(async move {
        devices
            .rename(id, &label, by)
            .await
            .map_err(|error| refusal("device pairing rename denied", "renaming", error))?;
        Ok(json!({"deviceId": id.to_string(), "label": label}))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RotateParams {
    device_id: String,
    role: String,
    scopes: Option<Vec<String>>,
}

fn rotate(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    let RotateParams { device_id, role, scopes } = call.params()?;
    let role = parse_role("device.token.rotate", &role)?;
    let scopes = scopes.map(|names| parse_scopes("device.token.rotate", &names)).transpose()?;
    let id = parse_id(&device_id)?;
    let (devices, by, now) = (devices.clone(), manager(call.caller()), call.now());
    spawn_then_close(call, id, Some(role), "device token rotated", async move {
        let Rotated { scopes, rotated_at, token } = devices
            .rotate(id, role, scopes, by, now)
            .await
            .map_err(|error| refusal("device token rotation denied", "rotating the token of", error))?;
        let mut answer = json!({
            "deviceId": id.to_string(), "role": role, "scopes": scopes, "rotatedAtMs": rotated_at,
            "tokenDelivery": if token.is_some() { "in-band" } else { "withheld-cross-device" },
        });
        if let Some(token) = token {
            answer["token"] = token.expose().into();
        }
        Ok(answer)
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RevokeParams {
    device_id: String,
    role: String,
}

fn revoke(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    let RevokeParams { device_id, role } = call.params()?;
    let role = parse_role("device.token.revoke", &role)?;
    let id = parse_id(&device_id)?;
    let (devices, by, now) = (devices.clone(), manager(call.caller()), call.now());
    spawn_then_close(call, id, Some(role), "device token revoked", async move {
        let revoked_at = devices
            .revoke(id, role, by, now)
            .await
            .map_err(|error| refusal("device token revocation denied", "revoking a role of", error))?;
        Ok(json!({"deviceId": id.to_string(), "role": role, "revokedAtMs": revoked_at}))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetupParams {
    setup_id: String,
}

fn setup_status(devices: &Devices, call: Call<'_>) -> Result<Outcome, RpcError> {
    let SetupParams { setup_id } = call.params()?;
    let Some((code, outcome)) = devices.code_outcome(&setup_id, call.now()) else { return call.answer(&json!({})) };
    let view = OutcomeView::of(&code, &outcome);
    let name = if outcome.delivered { "completion" } else { "deliveryUncertain" };
    call.answer(&json!({name: view}))
}

/// Who calls, as the rules see it.
pub fn manager(caller: &Connection) -> Manager {
    let grant = &caller.grant;
    // Whoever came by a credential that is its device's alone manages that device, and no other.
    let by_own = matches!(grant.method(), crate::auth::Method::DeviceToken | crate::auth::Method::BootstrapToken);
    let own = by_own.then(|| grant.device()).flatten();
    Manager { scopes: grant.scopes(), device: own, connection: Some(caller.id) }
}

/// Answers with what `future` gives; then, when that ended the caller's own right to be here, closes it. Its later
/// requests wait for that.
fn spawn_then_close(
    call: Call<'_>,
    id: DeviceId,
    role: Option<Role>,
    reason: &'static str,
    future: impl Future<Output = Result<serde_json::Value, RpcError>> + Send + 'static,
) -> Result<Outcome, RpcError> {
    let caller = Arc::clone(call.caller());
    let hold = call.hold();
    let responder = call.later();
    task::spawn(reason, async move {
        let _hold = hold;
        match future.await {
            Ok(answer) => {
                responder.answer(&answer);
                let grant = &caller.grant;
                let own = grant.device() == Some(id);
                if own && role.is_none_or(|role| grant.role() == role) {
                    caller.close(CloseCode::AUTH_CHANGED, reason);
                }
            }
            Err(error) => {
                responder.fail(&error);
            }
        }
    });
    Ok(Outcome::Held)
}

/// The error of a change that was not made. `denied` is what clients look for.
pub fn refusal(denied: &'static str, doing: &'static str, error: PairingError) -> RpcError {
    let why = match error {
        PairingError::UnknownRequest => return RpcError::invalid("unknown requestId"),
        PairingError::UnknownDevice => return RpcError::invalid("unknown deviceId"),
        PairingError::Full(what) => return RpcError::unavailable(what).retryable(true),
        PairingError::Store(error) => return error.into(),
        PairingError::Denied(why) => why,
    };
    let explained = match why {
        Denial::MissingScope(scope) => return RpcError::missing_scope(scope.as_str(), &[scope.as_str()]),
        Denial::Gone => "this device itself has been removed or revoked".to_owned(),
        Denial::OtherDevice => format!("{doing} another device needs operator.admin"),
        Denial::NeedsAdmin => format!("{doing} a device with a role other than operator needs operator.admin"),
        Denial::NoSuchRole => "the device has no such role, or it was revoked: it must be approved again".to_owned(),
        Denial::NotApproved(scope) => format!("{scope} was never approved for this device"),
    };
    RpcError::new(ErrorCode::Forbidden, format!("{denied}: {explained}"))
        .with_details(json!({"code": "DEVICE_MANAGEMENT_DENIED", "reason": why.as_str()}))
}

fn parse_id(text: &str) -> Result<DeviceId, RpcError> {
    DeviceId::parse(text.trim()).ok_or_else(|| RpcError::invalid("unknown deviceId"))
}

fn parse_role(method: &str, text: &str) -> Result<Role, RpcError> {
    Role::parse(text.trim())
        .ok_or_else(|| RpcError::invalid(format!("invalid {method} params: at role: expected operator or node")))
}

fn parse_scopes(method: &str, names: &[String]) -> Result<ScopeSet, RpcError> {
    let parse = |(at, name): (usize, &String)| {
        Scope::parse(name).ok_or_else(|| {
            let known: Vec<_> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
            RpcError::invalid(format!("invalid {method} params: at scopes[{at}]: expected one of {}", known.join(", ")))
        })
    };
    names.iter().enumerate().map(parse).collect()
}
