//! Why someone was not let in: one table from the reason to everything the wire, the log and a counter say.
//!
//! A [`Denied`] is the reason alone. A [`Refusal`] is the reason with the advice that depends on what the
//! client sent; it makes the error of the wire.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::ingress::Unattributable;
use super::origin::OriginRefused;
use crate::rpc::error::{ErrorCode, RpcError};
use crate::ws::close::CloseCode;

/// A reason to refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A proxy stands in between and we can't know for whom it speaks.
    ProxyAttributionRequired(Unattributable),
    /// `role` is neither `operator` nor `node`.
    InvalidRole,
    /// The page behind the request may not talk to us.
    OriginNotAllowed(OriginRefused),
    /// No token came, and one is needed.
    TokenMissing,
    /// The token is another.
    TokenMismatch,
    /// The gateway is in token mode and has no token.
    TokenNotConfigured,
    /// No password came, and one is needed.
    PasswordMissing,
    /// The password is another.
    PasswordMismatch,
    /// The gateway is in password mode and has no password.
    PasswordNotConfigured,
    /// Trusted-proxy mode without its section in the configuration.
    ProxyConfigMissing,
    /// Trusted-proxy mode without `gateway.trustedProxies`.
    ProxyNoneConfigured,
    /// The peer is not a trusted proxy.
    ProxyUntrustedSource,
    /// The peer is loopback, and `allowLoopback` is not set.
    ProxyLoopbackSource,
    /// The peer may be this host itself: its addresses could not be listed.
    ProxyInterfaceCheckFailed,
    /// The peer is this host itself under another address.
    ProxyInterfaceSource,
    /// A required header is missing or blank; the name as configured.
    ProxyHeaderMissing(Box<str>),
    /// The user header is missing or blank.
    ProxyUserMissing,
    /// The user header stands several times.
    ProxyUserAmbiguous,
    /// The user header is too long, or no plain text.
    ProxyUserInvalid,
    /// The user is not in `allowUsers`.
    ProxyUserNotAllowed,
    /// The page behind the proxied request may not talk to us.
    ProxyOriginNotAllowed,
    /// No `Tailscale-User-Login`.
    TailscaleUserMissing,
    /// The request did not come through Tailscale Serve.
    TailscaleProxyMissing,
    /// The daemon does not know the address, or did not answer.
    TailscaleWhoisFailed,
    /// The daemon knows the address as someone else.
    TailscaleUserMismatch,
    /// A page that only a wildcard allows can't use the identity of the browser's user.
    TailscaleOriginNotAllowed,
    /// The setup code is wrong, used up, expired, or for another role or key.
    BootstrapTokenInvalid,
    /// The device token is not this device's.
    DeviceTokenMismatch,
    /// The device token is this device's and too old.
    DeviceTokenExpired,
    /// The device token is this device's and does not cover the requested scopes.
    ScopeMismatch,
    /// Too many wrong credentials of this kind from there.
    RateLimited {
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
    },
    /// Nothing that came lets anyone in.
    Unauthorized,
    /// Only a device may do this.
    DeviceRequired,
    /// The Control UI needs a device identity, which browsers have on HTTPS and localhost only.
    ControlUiDeviceRequired,
    /// `device.publicKey` is no usable Ed25519 key.
    DeviceKeyInvalid,
    /// `device.id` is not the hash of the key.
    DeviceIdMismatch,
    /// `device.signedAt` is missing or too far from the gateway's clock.
    DeviceSignatureExpired,
    /// `device.nonce` is missing.
    DeviceNonceMissing,
    /// `device.nonce` is not this connection's challenge.
    DeviceNonceMismatch,
    /// The signature does not fit.
    DeviceSignatureInvalid,
    /// A signed field holds a separator or a control character.
    DeviceFieldInvalid(&'static str),
    /// The gateway's auth settings changed while this connection was being set up.
    AuthChanged,
}

/// What a client should do about a refusal; a closed list of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Try once more with the stored device token.
    RetryWithDeviceToken,
    /// A credential has to be configured.
    UpdateAuthConfiguration,
    /// A credential has to be replaced.
    UpdateAuthCredentials,
    /// Time heals it.
    WaitThenRetry,
    /// A person has to look at the settings.
    ReviewAuthConfiguration,
}

impl NextStep {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RetryWithDeviceToken => "retry_with_device_token",
            Self::UpdateAuthConfiguration => "update_auth_configuration",
            Self::UpdateAuthCredentials => "update_auth_credentials",
            Self::WaitThenRetry => "wait_then_retry",
            Self::ReviewAuthConfiguration => "review_auth_configuration",
        }
    }
}

/// One row of the table.
struct Row {
    /// The name on the wire, in logs and counters.
    reason: &'static str,
    /// `details.code`.
    code: &'static str,
    next: NextStep,
    message: &'static str,
}

impl Denied {
    fn row(&self) -> Row {
        use NextStep::{ReviewAuthConfiguration, UpdateAuthConfiguration, UpdateAuthCredentials, WaitThenRetry};
        let row = |reason, code, next, message| Row { reason, code, next, message };
        let review = |reason, code, message| row(reason, code, ReviewAuthConfiguration, message);
        match self {
            Self::ProxyAttributionRequired(_) => review(
                "proxy_attribution_required",
                "AUTH_PROXY_ATTRIBUTION_REQUIRED",
                "unauthorized: the request came through a proxy that this gateway does not know: list its address in gateway.trustedProxies and let it overwrite X-Forwarded-For",
            ),
            Self::InvalidRole => review("invalid_role", "INVALID_ROLE", "invalid role: it must be operator or node"),
            Self::OriginNotAllowed(_) => review(
                "origin_not_allowed",
                "CONTROL_UI_ORIGIN_NOT_ALLOWED",
                "origin not allowed: open the Control UI from the gateway's host, or add its origin to gateway.controlUi.allowedOrigins",
            ),
            Self::TokenMissing => row(
                "token_missing",
                "AUTH_TOKEN_MISSING",
                UpdateAuthConfiguration,
                "unauthorized: gateway token missing: set gateway.remote.token or OPENCLAW_GATEWAY_TOKEN where the client runs",
            ),
            Self::TokenMismatch => row(
                "token_mismatch",
                "AUTH_TOKEN_MISMATCH",
                UpdateAuthCredentials,
                "unauthorized: gateway token mismatch: the client's token must be the gateway's gateway.auth.token",
            ),
            Self::TokenNotConfigured => row(
                "token_missing_config",
                "AUTH_TOKEN_NOT_CONFIGURED",
                UpdateAuthConfiguration,
                "unauthorized: the gateway has no token: set gateway.auth.token on its host",
            ),
            Self::PasswordMissing => row(
                "password_missing",
                "AUTH_PASSWORD_MISSING",
                UpdateAuthConfiguration,
                "unauthorized: gateway password missing: set gateway.remote.password or OPENCLAW_GATEWAY_PASSWORD where the client runs",
            ),
            Self::PasswordMismatch => row(
                "password_mismatch",
                "AUTH_PASSWORD_MISMATCH",
                UpdateAuthCredentials,
                "unauthorized: gateway password mismatch: the client's password must be the gateway's gateway.auth.password",
            ),
            Self::PasswordNotConfigured => row(
                "password_missing_config",
                "AUTH_PASSWORD_NOT_CONFIGURED",
                UpdateAuthConfiguration,
                "unauthorized: the gateway has no password: set gateway.auth.password on its host",
            ),
            Self::ProxyConfigMissing => review(
                "trusted_proxy_config_missing",
                "AUTH_TRUSTED_PROXY_NOT_CONFIGURED",
                "unauthorized: gateway.auth.mode is trusted-proxy, but gateway.auth.trustedProxy is not set",
            ),
            Self::ProxyNoneConfigured => review(
                "trusted_proxy_no_proxies_configured",
                "AUTH_TRUSTED_PROXY_NO_PROXIES",
                "unauthorized: gateway.auth.mode is trusted-proxy, but gateway.trustedProxies is empty",
            ),
            Self::ProxyUntrustedSource => review(
                "trusted_proxy_untrusted_source",
                "AUTH_TRUSTED_PROXY_UNTRUSTED_SOURCE",
                "unauthorized: connect through the authenticating proxy; this peer is not in gateway.trustedProxies",
            ),
            Self::ProxyLoopbackSource => review(
                "trusted_proxy_loopback_source",
                "AUTH_TRUSTED_PROXY_LOOPBACK_SOURCE",
                "unauthorized: the proxy connects from loopback: set gateway.auth.trustedProxy.allowLoopback to true if that is meant",
            ),
            Self::ProxyInterfaceCheckFailed => review(
                "trusted_proxy_local_interface_check_failed",
                "AUTH_TRUSTED_PROXY_INTERFACE_CHECK_FAILED",
                "unauthorized: the gateway could not list its own addresses, so it can't tell the proxy from a local process",
            ),
            Self::ProxyInterfaceSource => review(
                "trusted_proxy_local_interface_source",
                "AUTH_TRUSTED_PROXY_INTERFACE_SOURCE",
                "unauthorized: the peer is the gateway's own host under another address, not the proxy",
            ),
            Self::ProxyHeaderMissing(_) => review(
                "trusted_proxy_missing_header",
                "AUTH_TRUSTED_PROXY_HEADER_MISSING",
                "unauthorized: the proxy did not send a header that gateway.auth.trustedProxy.requiredHeaders names",
            ),
            Self::ProxyUserMissing => review(
                "trusted_proxy_user_missing",
                "AUTH_TRUSTED_PROXY_USER_MISSING",
                "unauthorized: the proxy did not say who the user is: check gateway.auth.trustedProxy.userHeader",
            ),
            Self::ProxyUserAmbiguous => review(
                "trusted_proxy_user_ambiguous",
                "AUTH_TRUSTED_PROXY_USER_AMBIGUOUS",
                "unauthorized: the user header came twice: let the proxy overwrite what clients send",
            ),
            Self::ProxyUserInvalid => review(
                "trusted_proxy_user_invalid",
                "AUTH_TRUSTED_PROXY_USER_INVALID",
                "unauthorized: the user header is longer than 320 bytes or not plain text",
            ),
            Self::ProxyUserNotAllowed => review(
                "trusted_proxy_user_not_allowed",
                "AUTH_TRUSTED_PROXY_USER_NOT_ALLOWED",
                "unauthorized: this user is not in gateway.auth.trustedProxy.allowUsers",
            ),
            Self::ProxyOriginNotAllowed => review(
                "trusted_proxy_origin_not_allowed",
                "AUTH_TRUSTED_PROXY_ORIGIN_NOT_ALLOWED",
                "unauthorized: the page's origin is not in gateway.controlUi.allowedOrigins",
            ),
            Self::TailscaleUserMissing => review(
                "tailscale_user_missing",
                "AUTH_TAILSCALE_IDENTITY_MISSING",
                "unauthorized: Tailscale did not say who the user is: use the gateway's token or password",
            ),
            Self::TailscaleProxyMissing => review(
                "tailscale_proxy_missing",
                "AUTH_TAILSCALE_PROXY_MISSING",
                "unauthorized: the request did not come through Tailscale Serve: use the gateway's token or password",
            ),
            Self::TailscaleWhoisFailed => review(
                "tailscale_whois_failed",
                "AUTH_TAILSCALE_WHOIS_FAILED",
                "unauthorized: the Tailscale daemon does not know the client's address: use the gateway's token or password",
            ),
            Self::TailscaleUserMismatch => review(
                "tailscale_user_mismatch",
                "AUTH_TAILSCALE_IDENTITY_MISMATCH",
                "unauthorized: the Tailscale daemon knows the client's address as another user",
            ),
            Self::TailscaleOriginNotAllowed => review(
                "tailscale_origin_not_allowed",
                "AUTH_TAILSCALE_ORIGIN_NOT_ALLOWED",
                "unauthorized: a page that only the wildcard allows can't use a Tailscale identity: list its origin in gateway.controlUi.allowedOrigins",
            ),
            Self::BootstrapTokenInvalid => review(
                "bootstrap_token_invalid",
                "AUTH_BOOTSTRAP_TOKEN_INVALID",
                "unauthorized: the setup code is wrong, used or expired: make a new one on the gateway's host",
            ),
            Self::DeviceTokenMismatch => row(
                "device_token_mismatch",
                "AUTH_DEVICE_TOKEN_MISMATCH",
                UpdateAuthCredentials,
                "unauthorized: device token mismatch: it was revoked or replaced; pair the device again, or give the gateway token",
            ),
            Self::DeviceTokenExpired => row(
                "device_token_expired",
                "AUTH_DEVICE_TOKEN_MISMATCH",
                UpdateAuthCredentials,
                "unauthorized: the device token is too old: pair the device again, or give the gateway token",
            ),
            Self::ScopeMismatch => review(
                "scope_mismatch",
                "AUTH_SCOPE_MISMATCH",
                "unauthorized: the device token does not cover the requested scopes: approve the upgrade, or ask for less",
            ),
            Self::RateLimited { .. } => row(
                "rate_limited",
                "AUTH_RATE_LIMITED",
                WaitThenRetry,
                "unauthorized: too many wrong credentials from this address: wait, then try again with the right one",
            ),
            Self::Unauthorized => review("unauthorized", "AUTH_UNAUTHORIZED", "unauthorized"),
            Self::DeviceRequired => review(
                "device_identity_required",
                "DEVICE_IDENTITY_REQUIRED",
                "device identity required: connect with a signed device, or with the gateway's token or password",
            ),
            Self::ControlUiDeviceRequired => review(
                "control_ui_device_identity_required",
                "CONTROL_UI_DEVICE_IDENTITY_REQUIRED",
                "the Control UI needs a device identity, which browsers have on HTTPS and on localhost only: open it there",
            ),
            Self::DeviceKeyInvalid => review(
                "device-public-key",
                "DEVICE_AUTH_PUBLIC_KEY_INVALID",
                "device public key invalid: it must be an Ed25519 key, 32 bytes in base64url",
            ),
            Self::DeviceIdMismatch => review(
                "device-id-mismatch",
                "DEVICE_AUTH_DEVICE_ID_MISMATCH",
                "device identity mismatch: device.id must be the SHA-256 of the public key in hex",
            ),
            Self::DeviceSignatureExpired => review(
                "device-signature-stale",
                "DEVICE_AUTH_SIGNATURE_EXPIRED",
                "device signature expired: signedAt is more than two minutes from the gateway's clock",
            ),
            Self::DeviceNonceMissing => review(
                "device-nonce-missing",
                "DEVICE_AUTH_NONCE_REQUIRED",
                "device nonce required: sign the nonce of connect.challenge and send it back",
            ),
            Self::DeviceNonceMismatch => review(
                "device-nonce-mismatch",
                "DEVICE_AUTH_NONCE_MISMATCH",
                "device nonce mismatch: sign the nonce of this connection's connect.challenge",
            ),
            Self::DeviceSignatureInvalid => review(
                "device-signature",
                "DEVICE_AUTH_SIGNATURE_INVALID",
                "device signature invalid: it must cover the payload v3 (or v2) of this connect",
            ),
            Self::DeviceFieldInvalid(_) => {
                review("device-field", "DEVICE_AUTH_INVALID", "a signed field holds a separator or a control character")
            }
            Self::AuthChanged => row("auth_changed", "AUTH_CHANGED", WaitThenRetry, "gateway auth changed"),
        }
    }

    /// The reason as the wire, the log and the counters call it.
    pub fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::ProxyHeaderMissing(name) => format!("trusted_proxy_missing_header_{name}").into(),
            _ => self.row().reason.into(),
        }
    }

    /// The reason without what is particular to one configuration: a label of bounded variety.
    pub fn label(&self) -> &'static str {
        self.row().reason
    }

    /// `details.code`.
    pub fn code(&self) -> &'static str {
        self.row().code
    }

    /// What happened and what to do, for a person.
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::ProxyHeaderMissing(name) => format!("unauthorized: the proxy did not send the header {name}").into(),
            Self::DeviceFieldInvalid(field) => format!("{field} holds a separator or a control character").into(),
            _ => self.row().message.into(),
        }
    }

    /// The code to close the connection with.
    pub fn close_code(&self) -> CloseCode {
        if *self == Self::AuthChanged { CloseCode::AUTH_CHANGED } else { CloseCode::POLICY_VIOLATION }
    }
}

/// Which kind of credential a client sent; the strongest when several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provided {
    /// A password.
    Password,
    /// A token, shared or of a device.
    Token,
    /// A setup code.
    BootstrapToken,
    /// A device token in its own field.
    DeviceToken,
    /// None.
    #[default]
    None,
}

impl Provided {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
            Self::BootstrapToken => "bootstrap-token",
            Self::DeviceToken => "device-token",
            Self::None => "none",
        }
    }
}

/// A reason, with what the client can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Denied,
    /// Why the identity that came with the connection did not serve, where it might have (Tailscale).
    pub identity: Option<Denied>,
    /// What the client sent.
    pub provided: Provided,
    /// Whether the client has another credential to try: it sent a device and a wrong shared token, and no
    /// device token yet.
    pub can_retry_with_device_token: bool,
}

impl Refusal {
    /// A refusal that no credential has part in.
    pub fn plain(reason: Denied) -> Self {
        Self { reason, identity: None, provided: Provided::None, can_retry_with_device_token: false }
    }

    /// The error of the wire.
    pub fn to_rpc_error(&self) -> RpcError {
        let row = self.reason.row();
        let next = if self.can_retry_with_device_token { NextStep::RetryWithDeviceToken } else { row.next };
        let code = match self.reason {
            Denied::DeviceRequired => ErrorCode::NotPaired,
            _ => ErrorCode::InvalidRequest,
        };
        let mut error = RpcError::new(code, self.reason.message()).with_details(self.details(next));
        if let Denied::RateLimited { retry_after_ms } = self.reason {
            error.retry_after_ms = Some(retry_after_ms);
            error.retryable = Some(true);
        }
        error
    }

    fn details(&self, next: NextStep) -> Value {
        let code = self.reason.code();
        match &self.reason {
            Denied::InvalidRole | Denied::DeviceRequired | Denied::ControlUiDeviceRequired => json!({"code": code}),
            Denied::OriginNotAllowed(why) => json!({"code": code, "reason": why.as_str()}),
            Denied::DeviceKeyInvalid
            | Denied::DeviceIdMismatch
            | Denied::DeviceSignatureExpired
            | Denied::DeviceNonceMissing
            | Denied::DeviceNonceMismatch
            | Denied::DeviceSignatureInvalid
            | Denied::DeviceFieldInvalid(_) => json!({"code": code, "reason": self.reason.reason()}),
            _ => {
                let mut details = json!({
                    "code": code,
                    "authReason": self.reason.reason(),
                    "authProvided": self.provided.as_str(),
                    "canRetryWithDeviceToken": self.can_retry_with_device_token,
                    "recommendedNextStep": next.as_str(),
                });
                if let Some(identity) = &self.identity {
                    details["identityReason"] = identity.reason().into();
                }
                details
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Every reason once. A new variant must be added here: `row` has no wildcard, this list has a count.
    fn all() -> Vec<Denied> {
        use Denied::*;
        vec![
            ProxyAttributionRequired(Unattributable::UntrustedPeer),
            InvalidRole,
            OriginNotAllowed(OriginRefused::NotAllowed),
            TokenMissing,
            TokenMismatch,
            TokenNotConfigured,
            PasswordMissing,
            PasswordMismatch,
            PasswordNotConfigured,
            ProxyConfigMissing,
            ProxyNoneConfigured,
            ProxyUntrustedSource,
            ProxyLoopbackSource,
            ProxyInterfaceCheckFailed,
            ProxyInterfaceSource,
            ProxyHeaderMissing("X-Who".into()),
            ProxyUserMissing,
            ProxyUserAmbiguous,
            ProxyUserInvalid,
            ProxyUserNotAllowed,
            ProxyOriginNotAllowed,
            TailscaleUserMissing,
            TailscaleProxyMissing,
            TailscaleWhoisFailed,
            TailscaleUserMismatch,
            TailscaleOriginNotAllowed,
            BootstrapTokenInvalid,
            DeviceTokenMismatch,
            DeviceTokenExpired,
            ScopeMismatch,
            RateLimited { retry_after_ms: 1 },
            Unauthorized,
            DeviceRequired,
            ControlUiDeviceRequired,
            DeviceKeyInvalid,
            DeviceIdMismatch,
            DeviceSignatureExpired,
            DeviceNonceMissing,
            DeviceNonceMismatch,
            DeviceSignatureInvalid,
            DeviceFieldInvalid("scopes"),
            AuthChanged,
        ]
    }

    #[test]
    fn every_reason_has_its_own_name_and_a_message_for_people() {
        let names: HashSet<_> = all().iter().map(|denied| denied.reason().into_owned()).collect();
        assert_eq!(names.len(), all().len());
        for denied in all() {
            assert!(denied.message().len() > 10, "{denied:?}");
            assert!(denied.code().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{denied:?}");
            assert!(denied.reason().starts_with(denied.label()), "{denied:?}");
            let error = Refusal::plain(denied.clone()).to_rpc_error();
            assert_eq!(error.details.unwrap()["code"], denied.code());
        }
    }

    #[test]
    fn trusted_proxy_reasons_have_codes_of_their_own() {
        let proxy: Vec<_> = all().into_iter().filter(|denied| denied.reason().starts_with("trusted_proxy")).collect();
        let codes: HashSet<_> = proxy.iter().map(Denied::code).collect();
        assert_eq!(codes.len(), proxy.len());
        assert!(!codes.contains("AUTH_UNAUTHORIZED"));
    }

    /// The table of recovery advice on the wire.
    #[test]
    fn advice_follows_the_reason() {
        use Denied::*;
        let cases = [
            (TokenMissing, Provided::None, false, "update_auth_configuration"),
            (TokenMismatch, Provided::Token, true, "retry_with_device_token"),
            (TokenMismatch, Provided::Token, false, "update_auth_credentials"),
            (PasswordMismatch, Provided::Password, false, "update_auth_credentials"),
            (DeviceTokenMismatch, Provided::DeviceToken, false, "update_auth_credentials"),
            (ScopeMismatch, Provided::DeviceToken, false, "review_auth_configuration"),
            (RateLimited { retry_after_ms: 5 }, Provided::Token, false, "wait_then_retry"),
            (ProxyUserMissing, Provided::None, false, "review_auth_configuration"),
        ];
        for (reason, provided, can_retry_with_device_token, next) in cases {
            let refusal = Refusal { reason, identity: None, provided, can_retry_with_device_token };
            let details = refusal.to_rpc_error().details.unwrap();
            assert_eq!(details["recommendedNextStep"], next, "{refusal:?}");
            assert_eq!(details["canRetryWithDeviceToken"], can_retry_with_device_token, "{refusal:?}");
            assert_eq!(details["authProvided"], provided.as_str(), "{refusal:?}");
        }
    }

    #[test]
    fn the_header_that_is_missing_is_named() {
        let refusal = Refusal::plain(Denied::ProxyHeaderMissing("X-Forwarded-Host".into()));
        let error = refusal.to_rpc_error();
        assert!(error.message.contains("X-Forwarded-Host"));
        assert_eq!(error.details.unwrap()["authReason"], "trusted_proxy_missing_header_X-Forwarded-Host");
    }
}
