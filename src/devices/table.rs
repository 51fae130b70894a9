//! The tables of devices: what stands where in the store, and nothing of what it means.
//!
//! Approvals of other domains for one role of a device (a node's commands) refer to `device_role` with
//! `ON DELETE CASCADE`, so that they cannot outlive it; that is why rows are updated and never replaced.

use std::net::IpAddr;
use std::str::FromStr;

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row};

use super::record::{Approval, ApprovedVia, Claims, LastSeen, PairedDevice, PendingRequest, Token};
use super::setup::{self, SetupCode};
use crate::auth::device::{DeviceId, DeviceKey};
use crate::clock::UnixMs;
use crate::rpc::scope::{Role, Scope, ScopeSet};
use crate::secret::SecretHash;
use crate::store::Schema;

/// The schema of this domain.
pub const SCHEMA: Schema = Schema { domain: "devices", steps: &[V1, V2] };

const V1: &str = "
CREATE TABLE device (
    device_id       BLOB PRIMARY KEY,
    public_key      BLOB NOT NULL,
    display_name    TEXT,
    platform        TEXT NOT NULL,
    device_family   TEXT,
    client_id       TEXT NOT NULL,
    client_mode     TEXT NOT NULL,
    label           TEXT,
    approved_via    TEXT NOT NULL,
    created_at_ms   INTEGER NOT NULL,
    approved_at_ms  INTEGER NOT NULL,
    last_seen_at_ms INTEGER,
    remote_ip       TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE device_role (
    device_id       BLOB NOT NULL REFERENCES device (device_id) ON DELETE CASCADE,
    role            TEXT NOT NULL,
    scopes          TEXT NOT NULL,
    token_scopes    TEXT NOT NULL,
    token_hash      TEXT,
    issued_at_ms    INTEGER,
    retired_hash    TEXT,
    created_at_ms   INTEGER NOT NULL,
    rotated_at_ms   INTEGER,
    revoked_at_ms   INTEGER,
    last_used_at_ms INTEGER,
    PRIMARY KEY (device_id, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE device_request (
    request_id      TEXT PRIMARY KEY,
    device_id       BLOB NOT NULL,
    public_key      BLOB NOT NULL,
    role            TEXT NOT NULL,
    scopes          TEXT NOT NULL,
    display_name    TEXT,
    platform        TEXT NOT NULL,
    device_family   TEXT,
    client_id       TEXT NOT NULL,
    client_mode     TEXT NOT NULL,
    remote_ip       TEXT,
    is_repair       INTEGER NOT NULL,
    created_at_ms   INTEGER NOT NULL
) STRICT;
CREATE INDEX device_request_device ON device_request (device_id);
";

const V2: &str = "
CREATE TABLE device_setup (
    setup_id      TEXT PRIMARY KEY,
    access        TEXT NOT NULL,
    token_hash    TEXT,
    bound_key     BLOB,
    issuer        BLOB,
    by_settings   INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    device_id     BLOB,
    device_name   TEXT,
    used_at_ms    INTEGER,
    delivered     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

const DEVICE: &str = "device_id, public_key, display_name, platform, device_family, client_id, client_mode, label,
    approved_via, created_at_ms, approved_at_ms, last_seen_at_ms, remote_ip";

const ROLE: &str = "device_id, role, scopes, token_scopes, token_hash, issued_at_ms, retired_hash, created_at_ms,
    rotated_at_ms, revoked_at_ms, last_used_at_ms";

const REQUEST: &str = "request_id, device_id, public_key, role, scopes, display_name, platform, device_family,
    client_id, client_mode, remote_ip, is_repair, created_at_ms";

/// Hands every device to `add`, in the order of the ids.
pub(super) fn devices(db: &Connection, mut add: impl FnMut(PairedDevice, LastSeen)) -> rusqlite::Result<()> {
    // Both tables lie in the order of their keys: one walk over each, side by side.
    let mut devices = db.prepare(&format!("SELECT {DEVICE} FROM device ORDER BY device_id"))?;
    let mut roles = db.prepare(&format!("SELECT {ROLE} FROM device_role ORDER BY device_id, role"))?;
    let (mut devices, mut roles) = (devices.query([])?, roles.query([])?);
    let mut role = roles.next()?;
    while let Some(row) = devices.next()? {
        let (mut device, mut seen) = device_row(row)?;
        while let Some(row) = role
            && row.get_ref(0)?.as_blob()? == device.id.as_bytes()
        {
            add_role(&mut device, &mut seen, row)?;
            role = roles.next()?;
        }
        device.approvals.sort_by_key(|approval| approval.created_at);
        add(device, seen);
    }
    Ok(())
}

/// Reads one device.
pub(super) fn device(db: &Connection, id: DeviceId) -> rusqlite::Result<Option<PairedDevice>> {
    let id = id.as_bytes();
    let found = db
        .prepare_cached(&format!("SELECT {DEVICE} FROM device WHERE device_id = ?1"))?
        .query_row([id], device_row)
        .optional()?;
    let Some((mut device, mut seen)) = found else { return Ok(None) };
    let mut roles =
        db.prepare_cached(&format!("SELECT {ROLE} FROM device_role WHERE device_id = ?1 ORDER BY created_at_ms"))?;
    let mut rows = roles.query([id])?;
    while let Some(row) = rows.next()? {
        add_role(&mut device, &mut seen, row)?;
    }
    Ok(Some(device))
}

/// Writes a device with all its roles, new or changed. When it was last seen is left as it is.
pub(super) fn put(db: &Connection, device: &PairedDevice) -> rusqlite::Result<()> {
    let id = device.id.as_bytes();
    let Claims { display_name, platform, device_family, client_id, client_mode } = &device.claims;
    db.prepare_cached(
        "INSERT INTO device (device_id, public_key, display_name, platform, device_family, client_id, client_mode,
             label, approved_via, created_at_ms, approved_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (device_id) DO UPDATE SET display_name = ?3, platform = ?4, device_family = ?5, client_id = ?6,
             client_mode = ?7, label = ?8, approved_via = ?9, approved_at_ms = ?11",
    )?
    .execute((
        id,
        device.key.as_bytes(),
        display_name,
        platform,
        device_family,
        client_id,
        client_mode,
        &device.label,
        device.approved_via.as_str(),
        ms(device.created_at),
        ms(device.approved_at),
    ))?;
    for approval in &device.approvals {
        let (hash, issued_at, revoked_at) = match approval.token {
            Token::Unissued => (None, None, None),
            Token::Live { hash, issued_at } => (Some(hash.to_hex()), Some(ms(issued_at)), None),
            Token::Revoked { at } => (None, None, Some(ms(at))),
        };
        db.prepare_cached(
            "INSERT INTO device_role (device_id, role, scopes, token_scopes, token_hash, issued_at_ms, retired_hash,
                 created_at_ms, rotated_at_ms, revoked_at_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (device_id, role) DO UPDATE SET scopes = ?3, token_scopes = ?4, token_hash = ?5,
                 issued_at_ms = ?6, retired_hash = ?7, created_at_ms = ?8, rotated_at_ms = ?9, revoked_at_ms = ?10",
        )?
        .execute((
            id,
            approval.role.as_str(),
            names(approval.scopes),
            names(approval.token_scopes),
            hash,
            issued_at,
            approval.retired.map(|hash| hash.to_hex()),
            ms(approval.created_at),
            approval.rotated_at.map(ms),
            revoked_at,
        ))?;
    }
    Ok(())
}

/// Deletes a device and, by reference, everything that was approved for it.
pub(super) fn delete(db: &Connection, id: DeviceId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM device WHERE device_id = ?1")?.execute([id.as_bytes()]).map(drop)
}

/// Deletes one role of a device likewise.
pub(super) fn delete_role(db: &Connection, id: DeviceId, role: Role) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM device_role WHERE device_id = ?1 AND role = ?2")?
        .execute((id.as_bytes(), role.as_str()))
        .map(drop)
}

/// Notes when a device was last seen. Of a device that is gone nothing is written.
pub(super) fn put_seen(db: &Connection, id: DeviceId, seen: &LastSeen) -> rusqlite::Result<()> {
    let id = id.as_bytes();
    db.prepare_cached("UPDATE device SET last_seen_at_ms = ?2, remote_ip = ?3 WHERE device_id = ?1")?.execute((
        id,
        seen.at.map(ms),
        seen.remote_ip.map(|ip| ip.to_string()),
    ))?;
    for role in [Role::Operator, Role::Node] {
        if let Some(at) = seen.token_used_at(role) {
            db.prepare_cached("UPDATE device_role SET last_used_at_ms = ?3 WHERE device_id = ?1 AND role = ?2")?
                .execute((id, role.as_str(), ms(at)))?;
        }
    }
    Ok(())
}

/// Every request, the oldest first.
pub(super) fn requests(db: &Connection) -> rusqlite::Result<Vec<PendingRequest>> {
    db.prepare_cached(&format!("SELECT {REQUEST} FROM device_request ORDER BY rowid"))?
        .query_map([], request_row)?
        .collect()
}

/// The ids of every request.
pub(super) fn request_ids(db: &Connection) -> rusqlite::Result<Vec<Box<str>>> {
    db.prepare_cached("SELECT request_id FROM device_request")?.query_map([], |row| row.get(0))?.collect()
}

/// The requests of one device.
pub(super) fn requests_of(db: &Connection, id: DeviceId) -> rusqlite::Result<Vec<PendingRequest>> {
    db.prepare_cached(&format!("SELECT {REQUEST} FROM device_request WHERE device_id = ?1 ORDER BY rowid"))?
        .query_map([id.as_bytes()], request_row)?
        .collect()
}

/// One request.
pub(super) fn request(db: &Connection, request_id: &str) -> rusqlite::Result<Option<PendingRequest>> {
    db.prepare_cached(&format!("SELECT {REQUEST} FROM device_request WHERE request_id = ?1"))?
        .query_row([request_id], request_row)
        .optional()
}

/// Adds a request.
pub(super) fn put_request(db: &Connection, request: &PendingRequest) -> rusqlite::Result<()> {
    let Claims { display_name, platform, device_family, client_id, client_mode } = &request.claims;
    db.prepare_cached(
        "INSERT INTO device_request (request_id, device_id, public_key, role, scopes, display_name, platform,
             device_family, client_id, client_mode, remote_ip, is_repair, created_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute((
        &request.request_id,
        request.id.as_bytes(),
        request.key.as_bytes(),
        request.role.as_str(),
        names(request.scopes),
        display_name,
        platform,
        device_family,
        client_id,
        client_mode,
        request.remote_ip.map(|ip| ip.to_string()),
        request.is_repair,
        ms(request.created_at),
    ))
    .map(drop)
}

/// Deletes a request.
pub(super) fn delete_request(db: &Connection, request_id: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM device_request WHERE request_id = ?1")?.execute([request_id]).map(drop)
}

const CODE: &str =
    "setup_id, access, token_hash, bound_key, issuer, by_settings, expires_at_ms, device_id, device_name,
    used_at_ms, delivered";

/// Every setup code, open or used.
pub(super) fn codes(db: &Connection) -> rusqlite::Result<Vec<SetupCode>> {
    db.prepare_cached(&format!("SELECT {CODE} FROM device_setup"))?.query_map([], code_row)?.collect()
}

/// One setup code.
pub(super) fn code(db: &Connection, setup_id: &str) -> rusqlite::Result<Option<SetupCode>> {
    db.prepare_cached(&format!("SELECT {CODE} FROM device_setup WHERE setup_id = ?1"))?
        .query_row([setup_id], code_row)
        .optional()
}

/// Writes a setup code, new or changed. Of a used one no hash is kept.
pub(super) fn put_code(db: &Connection, code: &SetupCode) -> rusqlite::Result<()> {
    let SetupCode { setup_id, access, issuer, expires_at, state } = code;
    let (hash, key, outcome) = match state {
        setup::State::Open { hash, key } => (Some(hash.to_hex()), key.as_ref(), None),
        setup::State::Used(outcome) => (None, None, Some(outcome)),
    };
    db.prepare_cached(&format!(
        "INSERT OR REPLACE INTO device_setup ({CODE}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
    ))?
    .execute((
        setup_id,
        access.as_str(),
        hash,
        key.map(DeviceKey::as_bytes),
        issuer.device.as_ref().map(DeviceId::as_bytes),
        issuer.by_settings,
        ms(*expires_at),
        outcome.map(|outcome| outcome.device.as_bytes()),
        outcome.and_then(|outcome| outcome.name.as_deref()),
        outcome.map(|outcome| ms(outcome.at)),
        outcome.is_some_and(|outcome| outcome.delivered),
    ))
    .map(drop)
}

/// Deletes a setup code.
pub(super) fn delete_code(db: &Connection, setup_id: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM device_setup WHERE setup_id = ?1")?.execute([setup_id]).map(drop)
}

fn code_row(row: &Row<'_>) -> rusqlite::Result<SetupCode> {
    let device = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<[u8; 32]>>(at)?.map(DeviceId::from_bytes));
    let state = match (hash(row, 2)?, device(7)?) {
        (Some(hash), _) => {
            let key = row.get_ref(3)? != ValueRef::Null;
            setup::State::Open { hash, key: key.then(|| self::key(row, 3)).transpose()? }
        }
        (None, Some(device)) => setup::State::Used(setup::Outcome {
            device,
            name: row.get(8)?,
            at: time(row, 9)?.unwrap_or_default(),
            delivered: row.get(10)?,
        }),
        (None, None) => return Err(unreadable(row, 2, Type::Null)),
    };
    Ok(SetupCode {
        setup_id: row.get(0)?,
        access: parse(row, 1, setup::Access::parse)?,
        issuer: setup::Issuer { device: device(4)?, by_settings: row.get(5)? },
        expires_at: time(row, 6)?.unwrap_or_default(),
        state,
    })
}

fn device_row(row: &Row<'_>) -> rusqlite::Result<(PairedDevice, LastSeen)> {
    let key = key(row, 1)?;
    let device = PairedDevice {
        id: key.device_id(),
        key,
        claims: claims(row, 2)?,
        label: row.get(7)?,
        approved_via: parse(row, 8, ApprovedVia::parse)?,
        created_at: time(row, 9)?.unwrap_or_default(),
        approved_at: time(row, 10)?.unwrap_or_default(),
        approvals: Vec::with_capacity(1),
    };
    let seen = LastSeen { at: time(row, 11)?, remote_ip: address(row, 12)?, ..LastSeen::default() };
    Ok((device, seen))
}

fn add_role(device: &mut PairedDevice, seen: &mut LastSeen, row: &Row<'_>) -> rusqlite::Result<()> {
    let role = parse(row, 1, Role::parse)?;
    let token = match (time(row, 9)?, hash(row, 4)?) {
        (Some(at), _) => Token::Revoked { at },
        (None, Some(hash)) => Token::Live { hash, issued_at: time(row, 5)?.unwrap_or_default() },
        (None, None) => Token::Unissued,
    };
    if let Some(at) = time(row, 10)? {
        seen.token_used(role, at);
    }
    device.approvals.push(Approval {
        role,
        scopes: scopes(row, 2)?,
        token_scopes: scopes(row, 3)?,
        token,
        retired: hash(row, 6)?,
        created_at: time(row, 7)?.unwrap_or_default(),
        rotated_at: time(row, 8)?,
    });
    Ok(())
}

fn request_row(row: &Row<'_>) -> rusqlite::Result<PendingRequest> {
    let key = key(row, 2)?;
    Ok(PendingRequest {
        request_id: row.get(0)?,
        id: key.device_id(),
        key,
        role: parse(row, 3, Role::parse)?,
        scopes: scopes(row, 4)?,
        claims: claims(row, 5)?,
        remote_ip: address(row, 10)?,
        is_repair: row.get(11)?,
        created_at: time(row, 12)?.unwrap_or_default(),
    })
}

/// Five columns from `at` on.
fn claims(row: &Row<'_>, at: usize) -> rusqlite::Result<Claims> {
    Ok(Claims {
        display_name: row.get(at)?,
        platform: row.get(at + 1)?,
        device_family: row.get(at + 2)?,
        client_id: row.get(at + 3)?,
        client_mode: row.get(at + 4)?,
    })
}

fn key(row: &Row<'_>, at: usize) -> rusqlite::Result<DeviceKey> {
    DeviceKey::from_bytes(row.get(at)?).ok_or_else(|| unreadable(row, at, Type::Blob))
}

fn parse<T>(row: &Row<'_>, at: usize, read: fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    read(row.get_ref(at)?.as_str()?).ok_or_else(|| unreadable(row, at, Type::Text))
}

fn unreadable(row: &Row<'_>, at: usize, found: Type) -> rusqlite::Error {
    let column = row.as_ref().column_name(at).unwrap_or("?").to_owned();
    rusqlite::Error::InvalidColumnType(at, column, found)
}

fn hash(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<SecretHash>> {
    match row.get_ref(at)? {
        ValueRef::Null => Ok(None),
        _ => parse(row, at, SecretHash::from_hex).map(Some),
    }
}

fn address(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<IpAddr>> {
    Ok(row.get_ref(at)?.as_str_or_null()?.and_then(|text| IpAddr::from_str(text).ok()))
}

fn scopes(row: &Row<'_>, at: usize) -> rusqlite::Result<ScopeSet> {
    Ok(ScopeSet::parse(row.get_ref(at)?.as_str()?.split_ascii_whitespace()))
}

fn time(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<UnixMs>> {
    Ok(row.get::<_, Option<i64>>(at)?.map(|ms| UnixMs(ms.max(0).unsigned_abs())))
}

/// SQLite's integers are signed; the year 292 million is far enough.
fn ms(time: UnixMs) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

fn names(scopes: ScopeSet) -> String {
    let names: Vec<_> = scopes.iter().map(Scope::as_str).collect();
    names.join(" ")
}
