//! What changes setup codes: made, bound to a key, used, void. On the store's writer, as everything in [`super::change`].

use std::sync::Arc;

use serde::Serialize;

use super::change::{Decision, IssuedToken, PairingError, Result, issue_first, retire, still_there, take_covered};
use super::pairing::{self, Denial, Manager, Standing, Wanted};
use super::record::{ApprovedVia, Claims, PendingRequest, Token};
use super::setup::{self, Access, Issuer, Outcome, SetupCode, State};
use super::{Devices, Inner, table};
use crate::auth::device::{DeviceId, DeviceKey};
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::catalog::Event;
use crate::rpc::scope::{Role, Scope, ScopeSet};
use crate::secret::{Secret, SecretHash};
use crate::store::{Change, StoreError, Tx};

/// A code, for the person who asked for it. This is the only time its token is there to be read.
#[derive(Debug)]
pub struct IssuedCode {
    /// Its public name.
    pub setup_id: Box<str>,
    /// Its token: `auth.bootstrapToken` of a `connect`.
    pub token: Secret,
    /// When it ends.
    pub expires_at: UnixMs,
}

/// A device that uses a code.
#[derive(Clone, Debug)]
pub struct Redeeming {
    /// Which code.
    pub setup_id: Box<str>,
    /// Its key, of which it has proved that it holds the private half.
    pub key: DeviceKey,
    /// What it connects as.
    pub role: Role,
    /// What it says of itself.
    pub claims: Claims,
    /// The code pairs it without asking. Else it is approved already, and only gets its token.
    pub pairs: bool,
}

/// The tokens of a device that has used a code, by role.
pub type Redeemed = Vec<(Role, IssuedToken)>;

/// `device.pair.setup.*`, and an answer to `device.pair.setupStatus`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutcomeView<'a> {
    setup_id: &'a str,
    device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_name: Option<&'a str>,
    access: &'static str,
    ts: UnixMs,
}

impl<'a> OutcomeView<'a> {
    pub(super) fn of(code: &'a SetupCode, outcome: &'a Outcome) -> Self {
        Self {
            setup_id: &code.setup_id,
            device_id: outcome.device.to_string(),
            device_name: outcome.name.as_deref().filter(|name| !name.is_empty()),
            access: code.access.on_the_wire(),
            ts: outcome.at,
        }
    }
}

impl Devices {
    /// Makes a code. It needs `operator.admin`: it pairs nodes.
    ///
    /// # Errors
    /// [`PairingError::Denied`]; [`PairingError::Full`] when [`setup::MAX_OPEN`] are out; or the store's.
    pub async fn issue_code(&self, access: Access, by: Manager, issuer: Issuer, now: UnixMs) -> Result<IssuedCode> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            still_there(tx, by)?;
            if !by.is_admin() {
                return Err(Denial::MissingScope(Scope::Admin).into());
            }
            // Its right may have gone while this waited its turn; whoever took it has already looked for codes.
            if by.connection.is_some_and(|id| inner.hub.get(id).is_none_or(|caller| caller.outbox.is_closing())) {
                return Err(Denial::Gone.into());
            }
            let codes = table::codes(tx)?;
            if codes.iter().filter(|code| code.is_open(now)).count() >= setup::MAX_OPEN {
                return Err(PairingError::Full("too many setup codes are out; each ends after ten minutes"));
            }
            let ended = Inner::end_codes(tx, |code| setup::gives_way(code, &codes, now))?;
            let token = Secret::new(id::token());
            let code = SetupCode {
                setup_id: id::uuid().into(),
                access,
                issuer,
                expires_at: now.plus(setup::TTL_MS),
                state: State::Open { hash: SecretHash::of(token.expose()), key: None },
            };
            table::put_code(tx, &code)?;
            let issued = IssuedCode { setup_id: code.setup_id.clone(), token, expires_at: code.expires_at };
            Ok(Change::of(issued).publish(move || {
                tracing::info!(setup = &*code.setup_id, access = access.as_str(), by = ?issuer.device.map(|id| id.to_string()),
                    "a setup code was made");
                inner.forget_codes(&ended);
                inner.show_code(code);
            }))
        };
        self.0.store.write(op).await
    }

    /// The code of which `presented` is the token, if it is still good.
    pub fn code(&self, presented: &str, now: UnixMs) -> Option<Arc<SetupCode>> {
        let presented = SecretHash::of(presented.trim());
        self.0.read().codes.values().find(|code| code.is(presented, now)).cloned()
    }

    /// Whether a code is good still.
    pub fn is_code_open(&self, setup_id: &str, now: UnixMs) -> bool {
        self.0.read().codes.get(setup_id).is_some_and(|code| code.is_open(now))
    }

    /// What became of a code; `None` when it is not known, or not used yet.
    pub fn code_outcome(&self, setup_id: &str, now: UnixMs) -> Option<(Arc<SetupCode>, Outcome)> {
        let code = self.0.read().codes.get(setup_id).filter(|code| !code.is_over(now)).cloned()?;
        let State::Used(outcome) = &code.state else { return None };
        let outcome = outcome.clone();
        Some((code, outcome))
    }

    /// Keeps a code for `key`, which waits for approval. False when it is another's, or not good any more.
    ///
    /// # Errors
    /// The store's.
    pub async fn bind_code(&self, setup_id: &str, key: DeviceKey, now: UnixMs) -> Result<bool> {
        let bound = |code: &SetupCode| matches!(code.state, State::Open { key: Some(bound), .. } if bound == key);
        if self.0.read().codes.get(setup_id).is_some_and(|code| bound(code) && code.serves(&key, now)) {
            return Ok(true);
        }
        let inner = Arc::clone(&self.0);
        let setup_id = setup_id.to_owned();
        let op = move |tx: &Tx<'_>| {
            let Some(mut code) = table::code(tx, &setup_id)?.filter(|code| code.serves(&key, now)) else {
                return Ok(Change::of(false));
            };
            let State::Open { hash, .. } = code.state else { return Ok(Change::of(false)) };
            code.state = State::Open { hash, key: Some(key) };
            table::put_code(tx, &code)?;
            Ok::<_, PairingError>(Change::of(true).publish(move || inner.show_code(code)))
        };
        self.0.store.write(op).await
    }

    /// Uses a code up: pairs its device where it may, and makes its tokens, all in one transaction. `None` when the code
    /// is not good for it, or not any more: then nothing has changed.
    ///
    /// # Errors
    /// [`PairingError::Full`] when there is no place for another device; or the store's.
    pub async fn redeem(&self, redeeming: Redeeming, now: UnixMs) -> Result<Option<Redeemed>> {
        let inner = Arc::clone(&self.0);
        self.0.store.write(move |tx| inner.redeem(tx, redeeming, now)).await
    }

    /// Notes that the tokens of a device that used a code are on their way to it, and tells who looks after devices.
    pub async fn code_delivered(&self, setup_id: &str) {
        let inner = Arc::clone(&self.0);
        let setup_id = setup_id.to_owned();
        let op = move |tx: &Tx<'_>| {
            let Some(mut code) = table::code(tx, &setup_id)? else { return Ok(Change::of(())) };
            let State::Used(outcome) = &mut code.state else { return Ok(Change::of(())) };
            outcome.delivered = true;
            table::put_code(tx, &code)?;
            Ok::<_, StoreError>(Change::of(()).publish(move || {
                inner.tell_outcome(&code, Event::DEVICE_PAIR_SETUP_COMPLETED);
                inner.show_code(code);
            }))
        };
        if let Err(error) = self.0.store.write(op).await {
            tracing::warn!(%error, "that a setup code was used was not noted");
        }
    }

    /// Tells who looks after devices that a device has used a code and left before it had its tokens.
    pub fn code_undelivered(&self, setup_id: &str) {
        let code = self.0.read().codes.get(setup_id).cloned();
        if let Some(code) = code {
            tracing::warn!(setup = setup_id, "a device used a setup code and left before it had its tokens");
            self.0.tell_outcome(&code, Event::DEVICE_PAIR_SETUP_DELIVERY_UNCERTAIN);
        }
    }

    /// Makes void what was made by those who are here by what the settings say: the settings have changed, or may have while
    /// the gateway did not run.
    pub async fn end_codes_by_settings(&self) {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            let is_void = |code: &SetupCode| code.issuer.by_settings && matches!(code.state, State::Open { .. });
            let ended = Inner::end_codes(tx, is_void)?;
            Ok::<_, StoreError>(Change::of(()).publish(move || inner.forget_codes(&ended)))
        };
        if let Err(error) = self.0.store.write(op).await {
            tracing::warn!(%error, "setup codes of before the settings changed are still good, for ten minutes at most");
        }
    }

    /// Forgets codes that are over.
    pub(super) async fn tend_codes(&self, now: UnixMs) {
        let is_due = self.0.read().codes.values().any(|code| code.is_over(now));
        if !is_due {
            return;
        }
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            let ended = Inner::end_codes(tx, |code| code.is_over(now))?;
            Ok::<_, StoreError>(Change::of(()).publish(move || inner.forget_codes(&ended)))
        };
        if let Err(error) = self.0.store.write(op).await {
            tracing::warn!(%error, "setup codes that are over were not deleted");
        }
    }
}

impl Inner {
    fn redeem(self: Arc<Self>, tx: &Tx<'_>, redeeming: Redeeming, now: UnixMs) -> Result<Change<Option<Redeemed>>> {
        let Redeeming { setup_id, key, role, claims, pairs } = redeeming;
        let code = table::code(tx, &setup_id)?.filter(|code| code.serves(&key, now));
        let Some(mut code) = code.filter(|code| code.access.roles().contains(&role)) else {
            return Ok(Change::of(None));
        };
        let mut paired = table::device(tx, key.device_id())?;
        let roles: &[Role] = if pairs { code.access.roles() } else { &[role] };
        if pairs {
            let Claims { platform, device_family, .. } = &claims;
            let wanted = Wanted { role, scopes: ScopeSet::EMPTY, platform, device_family: device_family.as_deref() };
            if pairing::standing(paired.as_ref(), &wanted) == Standing::Missing(pairing::Reason::MetadataUpgrade) {
                return Ok(Change::of(None));
            }
            let is_repair = paired.is_some();
            for role in roles {
                let scopes = if *role == Role::Operator { code.access.scopes() } else { ScopeSet::EMPTY };
                let request = PendingRequest {
                    request_id: Box::default(),
                    id: key.device_id(),
                    key,
                    role: *role,
                    scopes,
                    claims: claims.clone(),
                    remote_ip: None,
                    is_repair,
                    created_at: now,
                };
                paired = Some(self.grown(paired, &request, ApprovedVia::SetupCode, now)?);
            }
        }
        let Some(mut device) = paired else { return Ok(Change::of(None)) };
        let mut tokens = Vec::with_capacity(roles.len());
        let mut replaced = Vec::new();
        for role in roles {
            let Some(approval) = device.approval_mut(*role).filter(|approval| !approval.is_revoked()) else {
                return Ok(Change::of(None));
            };
            if matches!(approval.token, Token::Live { .. }) {
                // Whoever holds it may be why the device is set up anew.
                retire(approval, Token::Unissued);
                approval.rotated_at = Some(now);
                replaced.push(*role);
            }
            tokens.extend(issue_first(approval, now).map(|issued| (*role, issued)));
        }
        table::put(tx, &device)?;
        let settled = take_covered(tx, &device)?;
        code.state = State::Used(Outcome { device: device.id, name: claims.display_name, at: now, delivered: false });
        table::put_code(tx, &code)?;
        Ok(Change::of(Some(tokens)).publish(move || {
            let id = device.id;
            tracing::info!(device = %id, setup = &*code.setup_id, access = code.access.as_str(), pairs,
                "a device has used a setup code");
            self.show(device);
            self.show_code(code);
            for role in replaced {
                self.cut_off(id, Some(role), None, "device token rotated");
            }
            self.resolve(&settled, Decision::Approved, now);
        }))
    }

    /// Deletes the codes that hang on a device which has lost a right. Their names are to be forgotten after the commit.
    pub(super) fn end_codes_of(&self, tx: &Tx<'_>, device: DeviceId) -> rusqlite::Result<Vec<Box<str>>> {
        Self::end_codes(tx, |code| code.hangs_on(device))
    }

    fn end_codes(tx: &Tx<'_>, is_void: impl Fn(&SetupCode) -> bool) -> rusqlite::Result<Vec<Box<str>>> {
        let void: Vec<_> = table::codes(tx)?.into_iter().filter(is_void).map(|code| code.setup_id).collect();
        void.iter().try_for_each(|setup_id| table::delete_code(tx, setup_id))?;
        Ok(void)
    }

    /// Shows readers that codes are gone.
    pub(super) fn forget_codes(&self, ended: &[Box<str>]) {
        if !ended.is_empty() {
            let mut index = self.write();
            ended.iter().for_each(|setup_id| drop(index.codes.remove(setup_id)));
        }
    }

    fn show_code(&self, code: SetupCode) {
        self.write().codes.insert(code.setup_id.clone(), Arc::new(code));
    }

    fn tell_outcome(&self, code: &SetupCode, event: &'static Event) {
        if let State::Used(outcome) = &code.state {
            self.hub.broadcast(event, &OutcomeView::of(code, outcome));
        }
    }
}
