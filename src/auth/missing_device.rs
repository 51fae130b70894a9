//! What happens to a client that shows no device identity (contract 2.9).
//!
//! A device-less operator may come in with the shared secret, and then holds no scopes, except where the
//! secret was given on the gateway's own host (S-50). Everything here depends on verdicts, never on which
//! fields are there (S-16).

use super::grant::Method;
use crate::rpc::scope::Role;

/// What is known when the question comes up.
#[derive(Clone, Copy, Debug)]
pub struct WithoutDevice {
    /// The role asked for.
    pub role: Role,
    /// The client is a user interface for operators.
    pub is_control_ui: bool,
    /// The request is truly local ([`super::ingress::Verdict::DirectLocal`]).
    pub is_local: bool,
    /// A page is behind the request.
    pub has_browser_origin: bool,
    /// `gateway.controlUi.allowInsecureAuth`: a local Control UI may do without a device.
    pub allows_insecure_ui: bool,
    /// The gateway's own helper process on its host ([`super::pairing::is_self_pairing`]).
    pub is_self_pairing: bool,
    /// The shared secret, or a trusted proxy, proved the client.
    pub shared_auth_ok: bool,
    /// Something proved the client.
    pub auth_ok: bool,
    /// The client sent a token or a password, right or wrong: then that is what it hears about.
    pub sent_shared_auth: bool,
    /// How it was proved.
    pub method: Option<Method>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingDevice {
    /// It may come in.
    Allow,
    /// A user interface needs a device.
    ControlUiNeedsDevice,
    /// Its credentials are wrong.
    Unauthorized,
    /// This needs a device.
    DeviceRequired,
}

impl WithoutDevice {
    /// Decides whether the client may come in.
    pub fn decide(&self) -> MissingDevice {
        let operator = self.role == Role::Operator;
        let proxy = self.auth_ok && self.method == Some(Method::TrustedProxy);
        let insecure_ui = self.allows_insecure_ui && self.is_local;
        if operator && ((self.is_control_ui && proxy) || self.is_self_pairing) {
            MissingDevice::Allow
        } else if self.is_control_ui && !insecure_ui {
            MissingDevice::ControlUiNeedsDevice
        } else if operator && self.shared_auth_ok {
            MissingDevice::Allow
        } else if !self.auth_ok && self.sent_shared_auth {
            MissingDevice::Unauthorized
        } else {
            MissingDevice::DeviceRequired
        }
    }

    /// Whether the scopes it asked for are taken away.
    pub fn clears_scopes(&self) -> bool {
        let secret = matches!(self.method, Some(Method::Token | Method::Password)) && self.shared_auth_ok;
        let own_host = if self.is_control_ui { self.allows_insecure_ui } else { !self.has_browser_origin };
        let keeps = self.role == Role::Operator && self.is_local && secret && own_host;
        let keeps = keeps && self.decide() == MissingDevice::Allow;
        !self.is_self_pairing && !keeps
    }
}
