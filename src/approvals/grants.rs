//! Standing grants: a person's word that the same command may run again without being asked for.
//!
//! A grant is for one command: program and arguments to the byte, the folder, the node, and the content of the scripts
//! among the arguments, where the node has found any in its plan. Another byte, and a person is asked. It is on disk before anybody is told of it, lives until it lapses or is revoked, and each use is noted before
//! the command runs: whoever was told that a grant is revoked was told the truth.

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Command;
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::error::RpcError;
use crate::store::{Schema, StoreError, Tx};

/// Grants that may stand, those that have lapsed or were revoked not counted.
const MAX_STANDING: usize = 1000;
/// How long one that stands no more is shown.
const KEEP_MS: u64 = 30 * 24 * 3600 * 1000;
/// Characters of a command that are shown.
const SHOWN_CHARS: usize = 512;

/// The tables of this domain.
pub const SCHEMA: Schema = Schema {
    domain: "approvals",
    steps: &["
        CREATE TABLE grants (
            id TEXT PRIMARY KEY, binding TEXT NOT NULL, created_at INTEGER NOT NULL, row TEXT NOT NULL
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX grants_by_binding ON grants (binding);
    "],
};

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// The request it was given for.
    pub minted_by: String,
    /// What may run.
    pub command: Command,
    /// Who gave it, for people.
    pub given_by: String,
    /// When.
    pub created_at: UnixMs,
    /// Until when; without one until it is revoked.
    pub expires_at: Option<UnixMs>,
    /// When it was revoked.
    pub revoked_at: Option<UnixMs>,
    /// By whom.
    pub revoked_by: Option<String>,
    /// When it was last used.
    pub last_used_at: Option<UnixMs>,
    /// How often.
    pub use_count: u64,
}

impl Grant {
    fn stands(&self, now: UnixMs) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }

    /// As the wire shows it. Its grants are those of automations, which there are none of here: what it calls one is the
    /// node.
    pub(super) fn row(&self) -> Value {
        let command: String = self.command.text().chars().take(SHOWN_CHARS).collect();
        let node = self.command.node_id.as_deref().unwrap_or("gateway");
        json!({
            "grantId": self.id, "mintedByApprovalId": self.minted_by, "agentId": "main", "cronJobId": node,
            "cronJobName": null, "command": command, "cwd": self.command.cwd, "createdAtMs": self.created_at,
            "expiresAtMs": self.expires_at, "revokedAtMs": self.revoked_at, "revokedBy": self.revoked_by,
            "lastUsedAtMs": self.last_used_at, "useCount": self.use_count,
        })
    }
}

/// What binds a grant: the command without the session in which it was first asked for.
fn binding(command: &Command) -> String {
    Command { session_key: None, ..command.clone() }.binding().to_hex()
}

/// Gives a grant.
pub(super) fn give(
    tx: &Tx<'_>,
    minted_by: &str,
    command: &Command,
    given_by: &str,
    expires_at: Option<UnixMs>,
    now: UnixMs,
) -> Result<(), RpcError> {
    purge(tx, now)?;
    if all(tx)?.iter().filter(|grant| grant.stands(now)).count() >= MAX_STANDING {
        return Err(RpcError::unavailable(format!(
            "{MAX_STANDING} grants stand, the most there may be; revoke some (exec.approval.grants.revoke)"
        )));
    }
    let grant = Grant {
        id: id::uuid(),
        minted_by: minted_by.to_owned(),
        command: Command { session_key: None, ..command.clone() },
        given_by: given_by.to_owned(),
        created_at: now,
        expires_at,
        revoked_at: None,
        revoked_by: None,
        last_used_at: None,
        use_count: 0,
    };
    Ok(put(tx, &grant)?)
}

/// Uses the grant of a command, where one stands: its id.
pub(super) fn take(tx: &Tx<'_>, command: &Command, now: UnixMs) -> Result<Option<String>, RpcError> {
    let found: Vec<Grant> = {
        let mut rows = tx.prepare_cached("SELECT row FROM grants WHERE binding = ?1")?;
        let rows = rows.query_map([binding(command)], |row| row.get::<_, String>(0))?;
        rows.filter_map(Result::ok).filter_map(|row| serde_json::from_str(&row).ok()).collect()
    };
    let Some(mut grant) = found.into_iter().find(|grant| grant.stands(now)) else { return Ok(None) };
    grant.last_used_at = Some(now);
    grant.use_count += 1;
    put(tx, &grant)?;
    Ok(Some(grant.id))
}

/// What became of a grant that is to be revoked, in the word of the wire.
pub(super) fn revoke(tx: &Tx<'_>, id: &str, by: &str, now: UnixMs) -> Result<&'static str, RpcError> {
    let row = tx
        .prepare_cached("SELECT row FROM grants WHERE id = ?1")?
        .query_row([id], |row| row.get::<_, String>(0))
        .optional()?;
    let Some(mut grant) = row.and_then(|row| serde_json::from_str::<Grant>(&row).ok()) else {
        return Ok("not-found");
    };
    if grant.revoked_at.is_some() {
        return Ok("already-revoked");
    }
    grant.revoked_at = Some(now);
    grant.revoked_by = Some(by.to_owned());
    put(tx, &grant)?;
    Ok("revoked")
}

/// All grants, the latest first.
pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<Grant>> {
    let mut rows = db.prepare_cached("SELECT row FROM grants ORDER BY created_at DESC, id")?;
    let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.filter_map(Result::ok).filter_map(|row| serde_json::from_str(&row).ok()).collect())
}

/// Forgets those that have not stood for long.
pub(super) fn purge(tx: &Tx<'_>, now: UnixMs) -> Result<(), StoreError> {
    for grant in all(tx)? {
        if grant.revoked_at.or(grant.expires_at).is_some_and(|ended| now.since(ended) >= KEEP_MS && now > ended) {
            tx.prepare_cached("DELETE FROM grants WHERE id = ?1")?.execute([&grant.id])?;
        }
    }
    Ok(())
}

fn put(tx: &Tx<'_>, grant: &Grant) -> rusqlite::Result<()> {
    let row = serde_json::to_string(grant).unwrap_or_default();
    let at = i64::try_from(grant.created_at.0).unwrap_or(i64::MAX);
    tx.prepare_cached("INSERT OR REPLACE INTO grants (id, binding, created_at, row) VALUES (?1, ?2, ?3, ?4)")?
        .execute((&grant.id, binding(&grant.command), at, row))?;
    Ok(())
}
