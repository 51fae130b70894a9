//! The setup code that a client presents, from the look at it to its use: what the door keeps of it between two decisions.
//!
//! A code is used up before the client is let in, so the next decision would not find it any more: from then on the code
//! that was used by this very connection stands in its place, and pairs nobody again.

use std::sync::Arc;

use super::admission::claims;
use crate::auth::BootstrapCode;
use crate::auth::device::DeviceKey;
use crate::clock::UnixMs;
use crate::conn::connect::ConnectParams;
use crate::devices::record::Claims;
use crate::devices::setup::{SetupCode, State};
use crate::devices::{Devices, PairingError, Redeemed, Redeeming};
use crate::rpc::scope::Role;
use crate::task;

/// What is known of the code.
#[derive(Debug)]
pub(super) enum Presented {
    /// None was presented, or none that is good.
    None,
    /// It is good, as far as is known.
    Open(Arc<SetupCode>, BootstrapCode),
    /// This connection has used it.
    Used(BootstrapCode, Undelivered),
}

/// A code that was used, and whose device has no token yet. Dropped, those who look after devices are told so.
#[derive(Debug)]
pub(super) struct Undelivered {
    devices: Devices,
    setup_id: Box<str>,
    is_delivered: bool,
}

impl Presented {
    /// Looks the code of `params` up, unless this connection has used it.
    pub(super) fn look_up(&mut self, devices: &Devices, params: &ConnectParams, now: UnixMs) {
        if self.is_used() {
            return;
        }
        let code = params.auth.bootstrap_token.as_deref().and_then(|token| devices.code(token, now));
        *self = match code {
            None => Self::None,
            Some(code) => {
                let State::Open { key, .. } = code.state else { return };
                let evidence = BootstrapCode {
                    expires_at: code.expires_at,
                    bound_key: key,
                    roles: code.access.roles().to_vec(),
                    scopes: code.access.scopes(),
                    approves: code.access.is_for(&claims(params)),
                };
                Self::Open(code, evidence)
            }
        };
    }

    /// As the rules read it.
    pub(super) const fn as_evidence(&self) -> Option<&BootstrapCode> {
        match self {
            Self::None => None,
            Self::Open(_, code) | Self::Used(code, _) => Some(code),
        }
    }

    /// Whether this connection has used it.
    pub(super) const fn is_used(&self) -> bool {
        matches!(self, Self::Used(..))
    }

    /// Whether it pairs this client without asking.
    pub(super) const fn pairs(&self) -> bool {
        matches!(self, Self::Open(_, code) if code.approves)
    }

    /// Keeps the code for `key`. False when it is another's by now.
    pub(super) async fn keep_for(&self, devices: &Devices, key: DeviceKey, now: UnixMs) -> Result<bool, PairingError> {
        match self {
            Self::Open(code, _) => devices.bind_code(&code.setup_id, key, now).await,
            Self::None | Self::Used(..) => Ok(false),
        }
    }

    /// Uses the code up. The tokens of the device; `None` when it was not good any more.
    pub(super) async fn redeem(
        &mut self,
        devices: &Devices,
        key: DeviceKey,
        role: Role,
        claims: Claims,
        now: UnixMs,
    ) -> Result<Option<Redeemed>, PairingError> {
        let Self::Open(code, evidence) = &*self else { return Ok(None) };
        let redeeming = Redeeming { setup_id: code.setup_id.clone(), key, role, claims, pairs: evidence.approves };
        let Some(tokens) = devices.redeem(redeeming, now).await? else { return Ok(None) };
        let used = BootstrapCode {
            // It has done what it can do: the rest of this connect is not to race with its end.
            expires_at: UnixMs(u64::MAX),
            bound_key: Some(key),
            approves: false,
            ..evidence.clone()
        };
        let undelivered =
            Undelivered { devices: devices.clone(), setup_id: code.setup_id.clone(), is_delivered: false };
        *self = Self::Used(used, undelivered);
        Ok(Some(tokens))
    }

    /// The tokens are on their way.
    pub(super) fn delivered(&mut self) {
        let Self::Used(_, undelivered) = self else { return };
        undelivered.is_delivered = true;
        let (devices, setup_id) = (undelivered.devices.clone(), undelivered.setup_id.clone());
        task::spawn("setup code", async move { devices.code_delivered(&setup_id).await });
    }
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        if !self.is_delivered {
            self.devices.code_undelivered(&self.setup_id);
        }
    }
}
