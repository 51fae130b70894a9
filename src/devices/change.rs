//! What changes devices. Every operation decides on the store's writer, against the tables, and shows its
//! result to readers, to event listeners and to the sockets it ends once it is on disk.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::pairing::{self, Denial, Manager, Reason, Standing, Wanted};
use super::record::{Approval, ApprovedVia, Claims, PairedDevice, PendingRequest, Token};
use super::{Devices, Inner, Known, Waiting, lock, methods, table};
use crate::auth::Method;
use crate::auth::device::{DeviceId, DeviceKey};
use crate::clock::UnixMs;
use crate::hub::Connection;
use crate::id::{self, ConnId};
use crate::rpc::catalog::Event;
use crate::rpc::scope::{Role, ScopeSet};
use crate::secret::{Secret, SecretHash};
use crate::store::{Change, StoreError, Tx};
use crate::ws::close::CloseCode;

/// How often it is noted that who stays connected is using its token.
const USES_INTERVAL_MS: u64 = 3_600_000;
/// The close reason of a token that has come to its end.
const TOKEN_EXPIRED: &str = "device token expired";
/// Sightings written in one operation.
const SIGHTINGS: usize = 256;

/// A device that is not covered by what was approved asks to be.
#[derive(Clone, Debug)]
pub struct PairingRequest {
    /// Its key, of which it has proved that it holds the private half.
    pub key: DeviceKey,
    /// What it wants to be.
    pub role: Role,
    /// What it wants to do; for a node nothing, whatever is said here.
    pub scopes: ScopeSet,
    /// What it says of itself.
    pub claims: Claims,
    /// Where it asks from; `None` for a local client.
    pub remote_ip: Option<IpAddr>,
    /// Whether its way in allows that nobody is asked. The rules may still want someone asked.
    pub silent: bool,
}

impl PairingRequest {
    fn wanted(&self) -> Wanted<'_> {
        let Claims { platform, device_family, .. } = &self.claims;
        Wanted { role: self.role, scopes: self.scopes, platform, device_family: device_family.as_deref() }
    }

    fn into_pending(self, is_repair: bool, now: UnixMs) -> PendingRequest {
        let Self { key, role, scopes, claims, remote_ip, .. } = self;
        let request_id = pairing::request_id(&key, role, scopes, &claims).into();
        PendingRequest {
            request_id,
            id: key.device_id(),
            key,
            role,
            scopes,
            claims,
            remote_ip,
            is_repair,
            created_at: now,
        }
    }
}

/// What became of a [`PairingRequest`].
#[derive(Debug)]
pub enum Requested {
    /// What is approved covers it, since a moment ago.
    Covered,
    /// It is approved: nobody had to be asked.
    Paired {
        /// Its token, if it had none.
        token: Option<IssuedToken>,
    },
    /// It waits for someone.
    Pending {
        /// The id to approve or reject.
        request_id: Box<str>,
        /// What is missing.
        reason: Reason,
        /// When it lapses, unless the device asks again.
        expires_at: UnixMs,
    },
}

/// A new token, for its device alone. This is the only time it is there to be read.
#[derive(Debug)]
pub struct IssuedToken {
    /// The token.
    pub token: Secret,
    /// What it carries.
    pub scopes: ScopeSet,
    /// When it was made.
    pub issued_at: UnixMs,
}

/// A token was replaced.
#[derive(Debug)]
pub struct Rotated {
    /// What the new one carries.
    pub scopes: ScopeSet,
    /// When.
    pub rotated_at: UnixMs,
    /// The new token, for a device that rotates its own. For any other there is none yet: it is made when the
    /// device next connects by another credential, and only the device ever sees it (S-62).
    pub token: Option<Secret>,
}

/// Why a change was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PairingError {
    /// No such request, or it has lapsed.
    #[error("unknown requestId")]
    UnknownRequest,
    /// No such device.
    #[error("unknown deviceId")]
    UnknownDevice,
    /// The caller may not.
    #[error("{}", .0.as_str())]
    Denied(Denial),
    /// Too many requests wait, or too many devices are paired.
    #[error("{0}")]
    Full(&'static str),
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for PairingError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<Denial> for PairingError {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// How a request ended, as `device.pair.resolved` says it.
#[derive(Clone, Copy)]
pub(super) enum Decision {
    Approved,
    Rejected,
    Expired,
}

impl Decision {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
        }
    }
}

/// Payload of `device.pair.resolved`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resolved<'a> {
    request_id: &'a str,
    device_id: String,
    decision: &'static str,
    ts: UnixMs,
}

pub(super) type Result<T> = std::result::Result<T, PairingError>;

impl Devices {
    /// Pairs a device, or lets it wait for someone: see [`Requested`]. A device that waits already and asks
    /// for the same again keeps its request, its id and its place; that costs no write.
    ///
    /// # Errors
    /// [`PairingError::Full`] or [`PairingError::Store`].
    pub async fn request(&self, mut asks: PairingRequest, now: UnixMs) -> Result<Requested> {
        if asks.role == Role::Node {
            asks.scopes = ScopeSet::EMPTY;
        }
        if !asks.silent
            && let Some(requested) = self.0.asked_again(&asks, now)
        {
            return Ok(requested);
        }
        let inner = Arc::clone(&self.0);
        self.0.store.write(move |tx| inner.request(tx, asks, now)).await
    }

    /// Approves a request. Returns the device as it is now.
    ///
    /// # Errors
    /// [`PairingError::UnknownRequest`], [`PairingError::Denied`], [`PairingError::Full`], or the store's.
    pub async fn approve(&self, request_id: &str, by: Manager, now: UnixMs) -> Result<Arc<PairedDevice>> {
        let inner = Arc::clone(&self.0);
        let request_id = request_id.to_owned();
        self.0.store.write(move |tx| inner.approve(tx, &request_id, by, now)).await
    }

    /// Rejects a request. The device, whose id is returned, may ask again.
    ///
    /// # Errors
    /// [`PairingError::UnknownRequest`], [`PairingError::Denied`], or the store's.
    pub async fn reject(&self, request_id: &str, by: Manager, now: UnixMs) -> Result<DeviceId> {
        let inner = Arc::clone(&self.0);
        let request_id = request_id.to_owned();
        let op = move |tx: &Tx<'_>| {
            still_there(tx, by)?;
            let request = table::request(tx, &request_id)?.ok_or(PairingError::UnknownRequest)?;
            if !by.reaches(request.id) {
                return Err(Denial::OtherDevice.into());
            }
            table::delete_request(tx, &request_id)?;
            let device = request.id;
            let ended = inner.end_codes_of(tx, device)?;
            Ok(Change::of(device).publish(move || {
                inner.forget_codes(&ended);
                inner.resolve(&[request], Decision::Rejected, now);
            }))
        };
        self.0.store.write(op).await
    }

    /// Removes a device: its approvals, its tokens, its requests, and what other domains approved for it. Its
    /// sockets are closed with 4001, except that of the manager, who closes it when it has its answer.
    ///
    /// # Errors
    /// [`PairingError::UnknownDevice`], [`PairingError::Denied`], or the store's.
    pub async fn remove(&self, id: DeviceId, by: Manager, now: UnixMs) -> Result<()> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            still_there(tx, by)?;
            if !by.reaches(id) {
                return Err(Denial::OtherDevice.into());
            }
            let device = table::device(tx, id)?.ok_or(PairingError::UnknownDevice)?;
            by.may_remove(&device)?;
            inner.remove(tx, &device, by.connection, now)
        };
        self.0.store.write(op).await
    }

    /// Removes one role of a device, or the device when it has no other. For the domain that owns the role; who
    /// may do so is its business. Of the sockets that are closed, `spare` is left to it.
    ///
    /// # Errors
    /// [`PairingError::UnknownDevice`] also when the device has not that role; or the store's.
    pub async fn remove_role(&self, id: DeviceId, role: Role, spare: Option<ConnId>, now: UnixMs) -> Result<()> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            let mut device = table::device(tx, id)?.ok_or(PairingError::UnknownDevice)?;
            device.approval(role).ok_or(PairingError::UnknownDevice)?;
            if device.approvals.iter().all(|approval| approval.role == role) {
                return inner.remove(tx, &device, spare, now);
            }
            table::delete_role(tx, id, role)?;
            device.approvals.retain(|approval| approval.role != role);
            let ended = inner.end_codes_of(tx, id)?;
            Ok(Change::of(()).publish(move || {
                inner.forget_codes(&ended);
                inner.show(device);
                inner.forget_role(id, role);
                inner.cut_off(id, Some(role), spare, "device removed");
            }))
        };
        self.0.store.write(op).await
    }

    /// Gives a device a name of the operator's choosing, which stays through later approvals.
    ///
    /// # Errors
    /// [`PairingError::UnknownDevice`], [`PairingError::Denied`], or the store's.
    pub async fn rename(&self, id: DeviceId, label: &str, by: Manager) -> Result<()> {
        let inner = Arc::clone(&self.0);
        let label: Box<str> = label.into();
        let op = move |tx: &Tx<'_>| {
            still_there(tx, by)?;
            if !by.reaches(id) {
                return Err(Denial::OtherDevice.into());
            }
            let mut device = table::device(tx, id)?.ok_or(PairingError::UnknownDevice)?;
            device.label = Some(label);
            table::put(tx, &device)?;
            Ok(Change::of(()).publish(move || inner.show(device)))
        };
        self.0.store.write(op).await
    }

    /// A token for a device that was let in by another credential, if its role has none out, or one that has ended. `None`
    /// when one is out (only its hash is known here, and the device keeps it), or when the role is not approved.
    ///
    /// # Errors
    /// [`PairingError::Store`].
    pub async fn ensure_token(&self, id: DeviceId, role: Role, now: UnixMs) -> Result<Option<IssuedToken>> {
        let is_due = move |devices: &Self, device: &PairedDevice| {
            device.approval(role).is_some_and(|approval| approval.token == Token::Unissued)
                || devices.token_end(device, role).is_some_and(|end| now >= end)
        };
        if !self.facts(id).is_some_and(|device| is_due(self, &device)) {
            return Ok(None);
        }
        let (inner, devices) = (Arc::clone(&self.0), self.clone());
        let op = move |tx: &Tx<'_>| {
            let device = table::device(tx, id)?.filter(|device| is_due(&devices, device));
            let Some(mut device) = device else { return Ok(Change::of(None)) };
            let mut has_ended = false;
            if let Some(approval) = device.approval_mut(role).filter(|approval| !approval.is_revoked()) {
                has_ended = matches!(approval.token, Token::Live { .. });
                retire(approval, Token::Unissued);
            }
            let Some(issued) = device.approval_mut(role).and_then(|approval| issue_first(approval, now)) else {
                return Ok(Change::of(None));
            };
            table::put(tx, &device)?;
            Ok(Change::of(Some(issued)).publish(move || {
                inner.show(device);
                if has_ended {
                    // Its age can't be seen from here on.
                    inner.end_sessions_of_token(id, role);
                }
            }))
        };
        self.0.store.write(op).await
    }

    /// Replaces the token of a role; the old one is void at once, and sockets of the device in that role are
    /// closed with 4001, except that of the manager. `scopes` narrows or widens what it carries, within what was
    /// approved.
    ///
    /// # Errors
    /// [`PairingError::UnknownDevice`], [`PairingError::Denied`], or the store's.
    pub async fn rotate(
        &self,
        id: DeviceId,
        role: Role,
        scopes: Option<ScopeSet>,
        by: Manager,
        now: UnixMs,
    ) -> Result<Rotated> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            still_there(tx, by)?;
            by.may_manage(id, role)?;
            let mut device = table::device(tx, id)?.ok_or(PairingError::UnknownDevice)?;
            let scopes = by.may_rotate(&device, role, scopes)?;
            let approval = device.approval_mut(role).ok_or(Denial::NoSuchRole)?;
            approval.token_scopes = scopes;
            approval.rotated_at = Some(now);
            retire(approval, Token::Unissued);
            let own = by.device == Some(id);
            let token = own.then(|| issue_first(approval, now)).flatten().map(|issued| issued.token);
            table::put(tx, &device)?;
            let ended = inner.end_codes_of(tx, id)?;
            Ok(Change::of(Rotated { scopes, rotated_at: now, token }).publish(move || {
                inner.forget_codes(&ended);
                inner.show(device);
                inner.cut_off(id, Some(role), by.connection, "device token rotated");
            }))
        };
        self.0.store.write(op).await
    }

    /// Takes a role back: its token and its scopes. Only a new approval brings it back. Sockets of the device
    /// in that role are closed with 4001, except that of the manager. Returns when it was revoked.
    ///
    /// # Errors
    /// [`PairingError::UnknownDevice`], [`PairingError::Denied`], or the store's.
    pub async fn revoke(&self, id: DeviceId, role: Role, by: Manager, now: UnixMs) -> Result<UnixMs> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            still_there(tx, by)?;
            by.may_manage(id, role)?;
            let mut device = table::device(tx, id)?.ok_or(PairingError::UnknownDevice)?;
            by.may_revoke(&device, role)?;
            let approval = device.approval_mut(role).ok_or(Denial::NoSuchRole)?;
            if let Token::Revoked { at } = approval.token {
                return Ok(Change::of(at));
            }
            retire(approval, Token::Revoked { at: now });
            approval.scopes = ScopeSet::EMPTY;
            approval.token_scopes = ScopeSet::EMPTY;
            table::put(tx, &device)?;
            let ended = inner.end_codes_of(tx, id)?;
            Ok(Change::of(now).publish(move || {
                inner.forget_codes(&ended);
                inner.show(device);
                inner.cut_off(id, Some(role), by.connection, "device token revoked");
            }))
        };
        self.0.store.write(op).await
    }

    /// Lets requests lapse, and writes when devices were last seen. A failure is logged and made up for the
    /// next time. Call it once more before the store is closed.
    pub async fn tend(&self, now: UnixMs) {
        self.tend_codes(now).await;
        self.tend_tokens(now);
        let lapsed = move |waiting: &Waiting| waiting.for_bounds().has_lapsed(now);
        if self.0.read().pending.values().any(lapsed) {
            let inner = Arc::clone(&self.0);
            let expired = self.0.store.write(move |tx| {
                let lapsed = inner.pending_where(lapsed);
                for request in &lapsed {
                    table::delete_request(tx, &request.request_id)?;
                }
                Ok::<_, StoreError>(Change::of(()).publish(move || inner.resolve(&lapsed, Decision::Expired, now)))
            });
            if let Err(error) = expired.await {
                tracing::warn!(%error, "lapsed pairing requests were not removed");
            }
        }
        let unsaved: Vec<_> = lock(&self.0.unsaved).drain().collect();
        for ids in unsaved.chunks(SIGHTINGS) {
            let sightings: Vec<_> = ids.iter().filter_map(|id| Some((*id, self.last_seen(*id)?))).collect();
            let written = self.0.store.write(move |tx| {
                sightings.iter().try_for_each(|(id, seen)| table::put_seen(tx, *id, seen))?;
                Ok::<_, StoreError>(Change::of(()))
            });
            if let Err(error) = written.await {
                tracing::warn!(%error, "when devices were last seen was not written");
                lock(&self.0.unsaved).extend(ids);
            }
        }
    }
}

impl Devices {
    /// Sets when tokens end, also those that are out; who came by one that is too old by now is closed.
    pub fn set_token_life(&self, life: pairing::TokenLife, now: UnixMs) {
        *lock(&self.0.life) = life;
        self.tend_tokens(now);
    }

    /// Closes who came by a token that is too old by now; and notes that who stays connected is using theirs.
    fn tend_tokens(&self, now: UnixMs) {
        let pairing::TokenLife { max_age_ms, idle_ms } = *lock(&self.0.life);
        let is_hour = {
            let mut noted = lock(&self.0.uses_noted);
            let is_due = idle_ms.is_some() && now.since(*noted) >= USES_INTERVAL_MS;
            if is_due {
                *noted = now;
            }
            is_due
        };
        if max_age_ms.is_none() && !is_hour {
            return;
        }
        for connection in self.0.hub.connections().iter().filter(|connection| is_by_own_token(connection)) {
            let grant = &connection.grant;
            let Some(device) = grant.device().and_then(|id| self.facts(id)) else { continue };
            if is_hour {
                self.touch(device.id, grant.role(), true, connection.remote_ip, now);
            }
            let Some(Token::Live { issued_at, .. }) = device.approval(grant.role()).map(|approval| approval.token)
            else {
                continue;
            };
            if max_age_ms.is_some_and(|ms| now >= issued_at.plus(ms)) {
                connection.close(CloseCode::AUTH_CHANGED, TOKEN_EXPIRED);
            }
        }
    }
}

impl Inner {
    /// The answer to a device that asks for what it waits for already.
    fn asked_again(&self, asks: &PairingRequest, now: UnixMs) -> Option<Requested> {
        let index = self.read();
        let request_id = pairing::request_id(&asks.key, asks.role, asks.scopes, &asks.claims);
        let waiting = index.pending.get(request_id.as_str())?;
        let paired = index.paired.get(&waiting.request.id).map(|known| &*known.facts);
        let Standing::Missing(reason) = pairing::standing(paired, &asks.wanted()) else { return None };
        waiting.seen_at.fetch_max(now.0, Ordering::Relaxed);
        Some(pending(request_id.into(), reason, now))
    }

    fn request(self: Arc<Self>, tx: &Tx<'_>, asks: PairingRequest, now: UnixMs) -> Result<Change<Requested>> {
        let paired = table::device(tx, asks.key.device_id())?;
        let reason = match pairing::standing(paired.as_ref(), &asks.wanted()) {
            Standing::Covered => return Ok(Change::of(Requested::Covered)),
            Standing::Missing(reason) => reason,
        };
        let silent = asks.silent && pairing::may_be_silent(paired.as_ref(), asks.role, reason);
        let request = asks.into_pending(paired.is_some(), now);
        if silent {
            return self.pair_silently(tx, paired, request, now);
        }
        let request_id = request.request_id.clone();
        let answer = pending(request_id, reason, now);
        if table::request(tx, &request.request_id)?.is_some() {
            return Ok(Change::of(answer).publish(move || {
                if let Some(waiting) = self.read().pending.get(&request.request_id) {
                    waiting.seen_at.fetch_max(now.0, Ordering::Relaxed);
                }
            }));
        }
        let displaced = self.make_room(tx, &request, now)?;
        table::put_request(tx, &request)?;
        Ok(Change::of(answer).publish(move || {
            self.resolve(&displaced, Decision::Expired, now);
            let waiting = Waiting::new(request, now);
            let request = Arc::clone(&waiting.request);
            self.write().pending.insert(request.request_id.clone(), waiting);
            tracing::info!(device = %request.id, role = %request.role, scopes = ?request.scopes,
                reason = reason.as_str(), request = &*request.request_id, "a device waits for approval");
            self.hub.broadcast(Event::DEVICE_PAIR_REQUESTED, &methods::PendingView::of(&request));
        }))
    }

    /// Deletes what gives way to `request`.
    fn make_room(&self, tx: &Tx<'_>, request: &PendingRequest, now: UnixMs) -> Result<Vec<PendingRequest>> {
        let ids = table::request_ids(tx)?;
        let mut waiting = Vec::with_capacity(ids.len());
        {
            let index = self.read();
            for id in &ids {
                waiting.push(match index.pending.get(id) {
                    Some(known) => known.for_bounds(),
                    // Added in this very transaction.
                    None => match table::request(tx, id)? {
                        Some(new) => pairing::Waiting { device: new.id, source: new.remote_ip, seen_at: now },
                        None => continue,
                    },
                });
            }
        }
        let leave = pairing::make_room(&waiting, request.id, request.remote_ip, now).map_err(|pairing::Full| {
            PairingError::Full("too many devices wait for approval; approve or reject some, then try again")
        })?;
        let mut displaced = Vec::with_capacity(leave.len());
        for id in leave.into_iter().filter_map(|at| ids.get(at)) {
            displaced.extend(table::request(tx, id)?);
            table::delete_request(tx, id)?;
        }
        Ok(displaced)
    }

    fn pair_silently(
        self: Arc<Self>,
        tx: &Tx<'_>,
        paired: Option<PairedDevice>,
        request: PendingRequest,
        now: UnixMs,
    ) -> Result<Change<Requested>> {
        let is_new = paired.is_none();
        let mut device = self.grown(paired, &request, ApprovedVia::Silent, now)?;
        let token = device.approval_mut(request.role).and_then(|approval| issue_first(approval, now));
        table::put(tx, &device)?;
        let mut settled = take_covered(tx, &device)?;
        settled.retain(|other| other.request_id != request.request_id);
        settled.push(request);
        Ok(Change::of(Requested::Paired { token }).publish(move || {
            tracing::info!(device = %device.id, scopes = ?device.scopes(), "a local device was paired");
            if is_new && lock(&self.silent).note(now) {
                tracing::warn!(
                    "{} devices were paired without asking within {} minutes: if a proxy or a tunnel on this host passes \
                     the connections of others on, let it send X-Forwarded-For and list it in gateway.trustedProxies, so \
                     that they are not taken for local ones; see who was paired with: clawgate devices list",
                    pairing::SilentPairings::NOTABLE,
                    pairing::SilentPairings::WINDOW_MS / 60_000
                );
            }
            self.show(device);
            self.resolve(&settled, Decision::Approved, now);
        }))
    }

    fn approve(
        self: Arc<Self>,
        tx: &Tx<'_>,
        request_id: &str,
        by: Manager,
        now: UnixMs,
    ) -> Result<Change<Arc<PairedDevice>>> {
        still_there(tx, by)?;
        let request = table::request(tx, request_id)?.ok_or(PairingError::UnknownRequest)?;
        let before = table::device(tx, request.id)?;
        let device = self.grown(before.clone(), &request, ApprovedVia::Owner, now)?;
        by.may_approve(&request, &device)?;
        table::put(tx, &device)?;
        table::delete_request(tx, request_id)?;
        let mut settled = take_covered(tx, &device)?;
        settled.push(request);
        let repinned = before.is_some_and(|before| pairing::pins_changed(&before, &device));
        let device = Arc::new(device);
        Ok(Change::of(Arc::clone(&device)).publish(move || {
            tracing::info!(device = %device.id, scopes = ?device.scopes(), "a device was approved");
            let id = device.id;
            self.show(device);
            if repinned {
                self.cut_off(id, None, None, "device metadata changed");
            }
            self.resolve(&settled, Decision::Approved, now);
        }))
    }

    /// The device after approval, if there is a place for it.
    pub(super) fn grown(
        &self,
        paired: Option<PairedDevice>,
        request: &PendingRequest,
        via: ApprovedVia,
        now: UnixMs,
    ) -> Result<PairedDevice> {
        if paired.is_none() && self.read().paired.len() >= pairing::MAX_PAIRED {
            return Err(PairingError::Full("too many devices are paired; remove those that are not used any more"));
        }
        Ok(pairing::approve(paired, request, via, now))
    }

    fn remove(
        self: Arc<Self>,
        tx: &Tx<'_>,
        device: &PairedDevice,
        spare: Option<ConnId>,
        now: UnixMs,
    ) -> Result<Change<()>> {
        let id = device.id;
        let roles: Vec<_> = device.approvals.iter().map(|approval| approval.role).collect();
        let requests = table::requests_of(tx, id)?;
        for request in &requests {
            table::delete_request(tx, &request.request_id)?;
        }
        table::delete(tx, id)?;
        let ended = self.end_codes_of(tx, id)?;
        Ok(Change::of(()).publish(move || {
            tracing::info!(device = %id, "a device was removed");
            self.forget_codes(&ended);
            self.write().paired.remove(&id);
            roles.iter().for_each(|role| self.forget_role(id, *role));
            self.cut_off(id, None, spare, "device removed");
            self.resolve(&requests, Decision::Rejected, now);
        }))
    }

    /// Shows readers a device as it is now.
    pub(super) fn show(&self, device: impl Into<Arc<PairedDevice>>) {
        let facts = device.into();
        let mut index = self.write();
        match index.paired.get_mut(&facts.id) {
            Some(known) => known.facts = facts,
            None => {
                index.paired.insert(facts.id, Known { facts, seen: std::sync::Mutex::default() });
            }
        }
    }

    fn pending_where(&self, which: impl Fn(&Waiting) -> bool) -> Vec<PendingRequest> {
        let index = self.read();
        index.pending.values().filter(|waiting| which(waiting)).map(|waiting| (*waiting.request).clone()).collect()
    }

    /// Forgets requests that have ended, and says so.
    pub(super) fn resolve(&self, requests: &[PendingRequest], decision: Decision, now: UnixMs) {
        for PendingRequest { request_id, id, .. } in requests {
            self.write().pending.remove(request_id);
            let device_id = id.to_string();
            let resolved = Resolved { request_id, device_id, decision: decision.as_str(), ts: now };
            self.hub.broadcast(Event::DEVICE_PAIR_RESOLVED, &resolved);
        }
    }

    fn forget_role(&self, id: DeviceId, role: Role) {
        if let Some(hook) = self.on_removed.get() {
            hook(id, role);
        }
    }

    /// Closes who came by the token that a role had until now, and not by another credential.
    fn end_sessions_of_token(&self, id: DeviceId, role: Role) {
        self.cut_offs.fetch_add(1, Ordering::SeqCst);
        self.hub.close_where(CloseCode::AUTH_CHANGED, TOKEN_EXPIRED, |connection| {
            connection.grant.device() == Some(id) && connection.grant.role() == role && is_by_own_token(connection)
        });
    }

    /// Closes the sockets of a device, after the index shows what has become of it. The counter moves first: whoever is
    /// registered before sees its socket closed, whoever is registered later sees the counter.
    pub(super) fn cut_off(&self, id: DeviceId, role: Option<Role>, spare: Option<ConnId>, reason: &str) {
        self.cut_offs.fetch_add(1, Ordering::SeqCst);
        self.hub.close_where(CloseCode::AUTH_CHANGED, reason, |connection| {
            let grant = &connection.grant;
            grant.device() == Some(id) && role.is_none_or(|role| grant.role() == role) && spare != Some(connection.id)
        });
    }
}

/// Whether it rests on its device's token, or on the code that gave it that.
fn is_by_own_token(connection: &Connection) -> bool {
    matches!(connection.grant.method(), Method::DeviceToken | Method::BootstrapToken)
}

/// Refuses a manager whose own device was removed or revoked while its call waited its turn.
pub(super) fn still_there(tx: &Tx<'_>, by: Manager) -> Result<()> {
    let Some(own) = by.device else { return Ok(()) };
    let device = table::device(tx, own)?;
    let standing = device.is_some_and(|device| device.approval(Role::Operator).is_some_and(|a| !a.is_revoked()));
    if standing { Ok(()) } else { Err(Denial::Gone.into()) }
}

fn pending(request_id: Box<str>, reason: Reason, now: UnixMs) -> Requested {
    Requested::Pending { request_id, reason, expires_at: now.plus(pairing::REQUEST_TTL_MS) }
}

/// Takes out the requests of a device that what it has now covers.
pub(super) fn take_covered(tx: &Tx<'_>, device: &PairedDevice) -> Result<Vec<PendingRequest>> {
    let mut requests = table::requests_of(tx, device.id)?;
    requests.retain(|request| {
        let Claims { platform, device_family, .. } = &request.claims;
        let wanted =
            Wanted { role: request.role, scopes: request.scopes, platform, device_family: device_family.as_deref() };
        pairing::standing(Some(device), &wanted) == Standing::Covered
    });
    for request in &requests {
        table::delete_request(tx, &request.request_id)?;
    }
    Ok(requests)
}

/// Makes a token where none is out.
pub(super) fn issue_first(approval: &mut Approval, now: UnixMs) -> Option<IssuedToken> {
    if approval.token != Token::Unissued {
        return None;
    }
    let token = Secret::new(id::token());
    approval.token = Token::Live { hash: SecretHash::of(token.expose()), issued_at: now };
    Some(IssuedToken { token, scopes: approval.token_scopes, issued_at: now })
}

/// Puts `next` in the place of the token that is out, and remembers that one.
pub(super) fn retire(approval: &mut Approval, next: Token) {
    if let Token::Live { hash, .. } = approval.token {
        approval.retired = Some(hash);
    }
    approval.token = next;
}
