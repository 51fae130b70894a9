//! Runs as they are kept: what was asked, in which state it is, how it ended.
//!
//! A run is `queued` from the moment somebody was told that it was taken, `running` once its message stands in the
//! transcript, then `done`, `failed` or `aborted`, once and for good. Its id is the caller's idempotency key, so a
//! repeat finds it, also after a restart, for [`KEEP_MS`].

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::providers::Sampling;
use crate::clock::UnixMs;
use crate::rpc::error::RpcError;
use crate::sessions::key::SessionKey;
use crate::sessions::message::Message;
use crate::store::{Schema, StoreError, Tx};

/// How long an ended run is remembered.
pub(super) const KEEP_MS: u64 = 7 * 24 * 3600 * 1000;
/// Runs of one session that may wait.
pub(super) const MAX_QUEUED: i64 = 32;
/// Runs of all sessions that may wait.
pub(super) const MAX_OPEN: i64 = 4096;

/// The tables of this domain.
pub const SCHEMA: Schema = Schema {
    domain: "agent",
    steps: &["
        CREATE TABLE runs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            session TEXT NOT NULL,
            state TEXT NOT NULL,
            asked TEXT NOT NULL,
            at INTEGER NOT NULL,
            ended_at INTEGER,
            stop_reason TEXT,
            error TEXT,
            text TEXT
        ) STRICT;
        CREATE INDEX runs_open ON runs (session) WHERE state IN ('queued', 'running');
        CREATE INDEX runs_ended ON runs (ended_at) WHERE ended_at IS NOT NULL;
    "],
};

/// Where the answer goes beside the transcript.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Which channel.
    pub channel: String,
    /// Which of its accounts.
    pub account: String,
    /// Whom or where, in the channel's terms.
    pub to: String,
    /// A thread there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<i64>,
    /// Which message it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<i64>,
    /// Pictures that came with the message, in the channel's terms: fetched there when the run begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pictures: Vec<String>,
}

/// What is asked of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// The message that begins the turn.
    pub message: Message,
    /// Where the answer goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// The longest it may take, where that is less than the configured time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// More for the model to know, for this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_system: Option<String>,
    /// `provider/model` to ask first, for this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How the model is to choose its words, for this run.
    #[serde(default, skip_serializing_if = "Sampling::is_default")]
    pub sampling: Sampling,
    /// Whoever asked waits for the answer, and takes the run with them when they leave: nobody does after a restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_awaited: bool,
}

impl Asked {
    /// A message, and nothing about how it is answered.
    pub fn of(message: Message) -> Self {
        Self {
            message,
            route: None,
            timeout_ms: None,
            extra_system: None,
            model: None,
            sampling: Sampling::default(),
            is_awaited: false,
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The model has answered.
    Done,
    /// It could not.
    Failed,
    /// Somebody stopped it.
    Aborted,
}

impl End {
    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How.
    pub end: End,
    /// Why: `stop`, `length`, `refusal`, `timeout`, `aborted`, `max_turns`, ...
    pub stop_reason: String,
    /// For people, when it failed.
    pub error: Option<String>,
    /// What the model said last.
    pub text: String,
    /// When.
    pub ended_at: UnixMs,
}

/// A run that has not ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Open {
    pub id: String,
    pub session: SessionKey,
    /// Its message stands in the transcript already.
    pub running: bool,
    pub asked: Asked,
}

/// Whether a run was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It waits, or begins.
    New,
    /// It was taken in before and has not ended.
    Open,
    /// It has ended.
    Ended(Outcome),
}

/// Takes a run in, or finds the one of that id.
pub(super) fn take_in(
    tx: &Tx<'_>,
    id: &str,
    session: &SessionKey,
    asked: &Asked,
    now: UnixMs,
) -> Result<Taken, RpcError> {
    if let Some((of, taken)) = find_row(tx, id)? {
        if of != session.as_str() {
            return Err(RpcError::invalid("this idempotency key was used in another session; take a new one"));
        }
        return Ok(taken);
    }
    let count = |sql: &str, param: &[&dyn rusqlite::ToSql]| {
        tx.prepare_cached(sql)?.query_row(param, |row| row.get::<_, i64>(0))
    };
    let of_session =
        count("SELECT count(*) FROM runs WHERE session = ?1 AND state IN ('queued', 'running')", &[&session.as_str()])?;
    if of_session >= MAX_QUEUED
        || count("SELECT count(*) FROM runs WHERE state IN ('queued', 'running')", &[])? >= MAX_OPEN
    {
        return Err(RpcError::unavailable(format!(
            "too many runs wait ({MAX_QUEUED} in one session, {MAX_OPEN} together); try again when some have ended"
        ))
        .retryable(true));
    }
    let asked = serde_json::to_string(asked).unwrap_or_default();
    tx.prepare_cached("INSERT INTO runs (id, session, state, asked, at) VALUES (?1, ?2, 'queued', ?3, ?4)")?
        .execute(params![id, session.as_str(), asked, time(now)])?;
    Ok(Taken::New)
}

fn find_row(db: &Connection, id: &str) -> rusqlite::Result<Option<(String, Taken)>> {
    db.prepare_cached("SELECT session, state, stop_reason, error, text, ended_at FROM runs WHERE id = ?1")?
        .query_row([id], |row| {
            let state: String = row.get(1)?;
            let end = match state.as_str() {
                "done" => End::Done,
                "failed" => End::Failed,
                "aborted" => End::Aborted,
                _ => return Ok((row.get(0)?, Taken::Open)),
            };
            let outcome = Outcome {
                end,
                stop_reason: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
                error: row.get(3)?,
                text: row.get::<_, Option<String>>(4)?.unwrap_or_default(),
                ended_at: UnixMs(row.get::<_, Option<i64>>(5)?.unwrap_or_default().unsigned_abs()),
            };
            Ok((row.get(0)?, Taken::Ended(outcome)))
        })
        .optional()
}

/// A run by its id.
pub(super) fn find(db: &Connection, id: &str) -> rusqlite::Result<Option<Taken>> {
    Ok(find_row(db, id)?.map(|(_, taken)| taken))
}

/// Notes that a run's message is in the transcript. `false` when it waits no more.
pub(super) fn begin(tx: &Tx<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(tx.prepare_cached("UPDATE runs SET state = 'running' WHERE id = ?1 AND state = 'queued'")?.execute([id])? == 1)
}

/// Ends a run. `false` when it has ended already: the first end stands.
pub(super) fn end(tx: &Tx<'_>, id: &str, outcome: &Outcome) -> Result<bool, StoreError> {
    let changed = tx
        .prepare_cached(
            "UPDATE runs SET state = ?2, stop_reason = ?3, error = ?4, text = ?5, ended_at = ?6
             WHERE id = ?1 AND state IN ('queued', 'running')",
        )?
        .execute(params![
            id,
            outcome.end.as_str(),
            outcome.stop_reason,
            outcome.error,
            outcome.text,
            time(outcome.ended_at)
        ])?;
    Ok(changed == 1)
}

/// Whether a run has not ended, as the transaction sees it.
pub(super) fn is_open(tx: &Tx<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(matches!(find(tx, id)?, Some(Taken::Open)))
}

/// The runs that have not ended, in the order in which they were taken in.
pub(super) fn open(db: &Connection) -> rusqlite::Result<Vec<Open>> {
    let mut rows = db.prepare(
        "SELECT id, session, state, asked FROM runs WHERE state IN ('queued', 'running') ORDER BY state = 'queued', seq",
    )?;
    let rows = rows.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?))
    })?;
    let mut open = Vec::new();
    for row in rows {
        let (id, session, state, asked) = row?;
        if let (Some(session), Ok(asked)) = (SessionKey::parse(&session), serde_json::from_str(&asked)) {
            open.push(Open { id, session, running: state == "running", asked });
        }
    }
    Ok(open)
}

/// Forgets runs that ended long ago.
pub(super) fn purge(tx: &Tx<'_>, now: UnixMs) -> Result<(), StoreError> {
    tx.execute("DELETE FROM runs WHERE ended_at < ?1", [time(UnixMs(now.0.saturating_sub(KEEP_MS)))])?;
    Ok(())
}

fn time(at: UnixMs) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Change, Store};

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn asked() -> Asked {
        Asked::of(Message::user("hi", NOW))
    }

    fn outcome(end: End) -> Outcome {
        Outcome { end, stop_reason: "stop".into(), error: None, text: "t".into(), ended_at: NOW }
    }

    #[tokio::test]
    async fn a_run_is_taken_in_once_and_ends_once() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let key = SessionKey::main();
        let take = async |id: &'static str, key: SessionKey| {
            store.write(move |tx| take_in(tx, id, &key, &asked(), NOW).map(Change::of)).await
        };
        assert_eq!(take("a", key.clone()).await.unwrap(), Taken::New);
        assert_eq!(take("a", key.clone()).await.unwrap(), Taken::Open);
        assert!(take("a", SessionKey::parse("other").unwrap()).await.is_err());
        let finish = async |id: &'static str, how| {
            store.write(move |tx| end(tx, id, &outcome(how)).map(Change::of)).await.unwrap()
        };
        assert!(finish("a", End::Aborted).await);
        assert!(!finish("a", End::Done).await);
        assert_eq!(take("a", key.clone()).await.unwrap(), Taken::Ended(outcome(End::Aborted)));
        store.write(move |tx| purge(tx, NOW.plus(KEEP_MS + 1)).map(Change::of)).await.unwrap();
        assert_eq!(take("a", key).await.unwrap(), Taken::New);
    }

    #[tokio::test]
    async fn a_queue_is_bounded_and_comes_back_in_order() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let ids: Vec<String> = (0..MAX_QUEUED).map(|n| format!("r{n}")).collect();
        let all = ids.clone();
        let full = store
            .write(move |tx| {
                for id in &all {
                    take_in(tx, id, &SessionKey::main(), &asked(), NOW)?;
                }
                begin(tx, &all[5])?;
                let full = take_in(tx, "more", &SessionKey::main(), &asked(), NOW).is_err();
                Ok::<_, RpcError>(Change::of(full))
            })
            .await
            .unwrap();
        assert!(full);
        let found: Vec<_> = store.load(open).unwrap().into_iter().map(|run| run.id).collect();
        assert_eq!((found.len(), found[0].as_str(), found[1].as_str()), (ids.len(), "r5", "r0"));
    }
}
