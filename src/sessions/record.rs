//! Sessions and transcripts as they are kept: what a row holds, and the SQL.
//!
//! A transcript is append-only: rows get a number of their session (`n`, from 1) and an id, and never change. A reset
//! gives the session a new id; the old transcript stays for [`KEEP_MS`].

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::key::SessionKey;
use super::message::Message;
use crate::clock::UnixMs;
use crate::id;
use crate::store::{Schema, StoreError, Tx};

/// How long the transcript of a session that was reset stays.
pub const KEEP_MS: u64 = 30 * 24 * 3600 * 1000;
/// Characters of a title or a preview.
const PREVIEW_CHARS: usize = 120;

/// The tables of this domain.
pub const SCHEMA: Schema = Schema {
    domain: "sessions",
    steps: &["
        CREATE TABLE sessions (key TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT, WITHOUT ROWID;
        CREATE TABLE messages (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            session_id TEXT NOT NULL,
            n INTEGER NOT NULL,
            id TEXT NOT NULL UNIQUE,
            role TEXT NOT NULL,
            body TEXT NOT NULL,
            at INTEGER NOT NULL
        ) STRICT;
        CREATE UNIQUE INDEX messages_by_session ON messages (session_id, n);
        CREATE TABLE retired (session_id TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
        CREATE VIRTUAL TABLE messages_text USING fts5 (text, session_id UNINDEXED);
    "],
};

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Session {
    /// Of this transcript; another one after a reset.
    pub session_id: String,
    /// When the key was first used.
    pub created_at: UnixMs,
    /// When the row was last changed.
    pub updated_at: UnixMs,
    /// When somebody last said something.
    pub last_interaction_at: Option<UnixMs>,
    /// When a run last ended.
    pub last_activity_at: Option<UnixMs>,
    /// Messages of this transcript.
    pub messages: u64,
    /// A name that an operator gave.
    pub label: Option<String>,
    /// A name for people, from a channel.
    pub display_name: Option<String>,
    /// Which channel it came from first.
    pub channel: Option<String>,
    /// `operator` or `channel`.
    pub created_via: Option<String>,
    /// Its own model, `provider/model`.
    pub model: Option<String>,
    /// Beginning of the first thing a user said.
    pub title: Option<String>,
    /// Beginning of the last thing that was said.
    pub last_message: Option<String>,
    /// How the last run ended: `done`, `failed`, `killed`, `timeout`.
    pub status: Option<String>,
    /// Why, when it failed.
    pub last_run_error: Option<String>,
    /// Tokens read by the last answer.
    pub input_tokens: u64,
    /// Tokens written since the last reset.
    pub output_tokens: u64,
    /// Tokens of the last answer together: how full the window is.
    pub total_tokens: u64,
    /// Kept out of the list unless asked for.
    pub archived: bool,
    /// Kept on top of the list.
    pub pinned: bool,
    /// Settings of clients that mean nothing to the gateway, as they wrote them.
    pub settings: Map<String, Value>,
}

/// A message where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// Its number in the session, from 1.
    pub n: u64,
    /// The message as JSON.
    pub body: String,
}

impl Entry {
    /// The message with where it stands: `{"role":..,..,"__openclaw":{"id":..,"seq":..}}`. Where it belongs to a run it
    /// says to which: by that a client knows its own message again, and the answer to it.
    pub fn to_json(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Run<'a> {
            role: &'a str,
            #[serde(borrow, default, rename = "runId")]
            run_id: Option<std::borrow::Cow<'a, str>>,
        }
        let mut place = serde_json::json!({"id": self.id, "seq": self.n});
        let mut more = String::new();
        if let Ok(Run { role, run_id: Some(run_id) }) = serde_json::from_str(&self.body) {
            if role == "user" {
                let key = format!("{run_id}:user");
                place["idempotencyKey"] = serde_json::json!(key);
                more = format!(",\"idempotencyKey\":{}", serde_json::json!(key));
            }
            place["runId"] = serde_json::json!(run_id);
        }
        format!("{}{more},\"__openclaw\":{place}}}", self.body.strip_suffix('}').unwrap_or(&self.body))
    }

    /// The message.
    pub fn message(&self) -> Option<Message> {
        serde_json::from_str(&self.body).ok()
    }
}

/// What a message starts with, on one line.
pub fn preview(text: &str) -> String {
    let mut words = String::new();
    for word in text.split_whitespace() {
        if words.chars().count() + word.chars().count() >= PREVIEW_CHARS {
            words.extend(word.chars().take(PREVIEW_CHARS.saturating_sub(words.chars().count())));
            words.push('…');
            break;
        }
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    }
    words
}

fn decode(row: &str) -> Session {
    // Our own rows; what cannot be read (a row of a newer version) counts as empty rather than as the end.
    serde_json::from_str(row).unwrap_or_default()
}

/// All sessions.
pub(super) fn load(db: &Connection) -> rusqlite::Result<Vec<(SessionKey, Session)>> {
    let mut rows = db.prepare("SELECT key, row FROM sessions")?;
    let rows = rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut sessions = Vec::new();
    for row in rows {
        let (key, row) = row?;
        if let Some(key) = SessionKey::parse(&key) {
            sessions.push((key, decode(&row)));
        }
    }
    Ok(sessions)
}

/// One session, as the transaction sees it.
pub(super) fn get(tx: &Tx<'_>, key: &SessionKey) -> rusqlite::Result<Option<Session>> {
    tx.prepare_cached("SELECT row FROM sessions WHERE key = ?1")?
        .query_row([key.as_str()], |row| row.get::<_, String>(0))
        .optional()
        .map(|row| row.map(|row| decode(&row)))
}

/// Writes a session.
pub(super) fn put(tx: &Tx<'_>, key: &SessionKey, session: &Session) -> Result<(), StoreError> {
    let row = serde_json::to_string(session).unwrap_or_default();
    tx.prepare_cached("INSERT OR REPLACE INTO sessions (key, row) VALUES (?1, ?2)")?.execute((key.as_str(), row))?;
    Ok(())
}

/// Takes a session out; its transcript is retired.
pub(super) fn delete(tx: &Tx<'_>, key: &SessionKey, session: &Session, now: UnixMs) -> Result<(), StoreError> {
    retire(tx, &session.session_id, now)?;
    tx.prepare_cached("DELETE FROM sessions WHERE key = ?1")?.execute([key.as_str()])?;
    Ok(())
}

/// Notes that a transcript belongs to no session any more.
pub(super) fn retire(tx: &Tx<'_>, session_id: &str, now: UnixMs) -> Result<(), StoreError> {
    let at = i64::try_from(now.0).unwrap_or(i64::MAX);
    tx.prepare_cached("INSERT OR REPLACE INTO retired (session_id, at) VALUES (?1, ?2)")?.execute((session_id, at))?;
    Ok(())
}

/// Deletes transcripts at once, or all that were retired before `before`.
pub(super) fn purge(tx: &Tx<'_>, session_id: Option<&str>, before: UnixMs) -> Result<(), StoreError> {
    let before = i64::try_from(before.0).unwrap_or(i64::MAX);
    let of = "SELECT session_id FROM retired WHERE (?1 IS NULL AND at < ?2) OR session_id = ?1";
    tx.execute(
        &format!("DELETE FROM messages_text WHERE rowid IN (SELECT seq FROM messages WHERE session_id IN ({of}))"),
        params![session_id, before],
    )?;
    tx.execute(&format!("DELETE FROM messages WHERE session_id IN ({of})"), params![session_id, before])?;
    tx.execute(&format!("DELETE FROM retired WHERE session_id IN ({of})"), params![session_id, before])?;
    Ok(())
}

/// Appends a message to a session's transcript, and takes note of it in the row.
pub(super) fn append(
    tx: &Tx<'_>,
    session: &mut Session,
    message: &Message,
    run: Option<&str>,
) -> Result<Entry, StoreError> {
    session.messages += 1;
    let mut body = serde_json::to_string(message).unwrap_or_default();
    if let (Some(run), Some(b'}')) = (run, body.as_bytes().last()) {
        body.truncate(body.len() - 1);
        body.push_str(&format!(",\"runId\":{}}}", serde_json::json!(run)));
    }
    let entry = Entry { id: id::uuid(), n: session.messages, body };
    tx.prepare_cached("INSERT INTO messages (session_id, n, id, role, body, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            session.session_id,
            number(entry.n),
            entry.id,
            message.role(),
            entry.body,
            number(message.timestamp().0)
        ])?;
    let seq = tx.last_insert_rowid();
    let text = message.text();
    if !matches!(message, Message::ToolResult { .. }) && !text.is_empty() {
        tx.prepare_cached("INSERT INTO messages_text (rowid, text, session_id) VALUES (?1, ?2, ?3)")?.execute((
            seq,
            &text,
            &session.session_id,
        ))?;
        let shown = preview(&text);
        if matches!(message, Message::User { .. }) {
            session.title.get_or_insert_with(|| shown.clone());
            session.last_interaction_at = Some(message.timestamp());
        }
        session.last_message = Some(shown);
    }
    if let Message::Assistant { usage, .. } = message {
        session.input_tokens = usage.input;
        session.total_tokens = usage.total_tokens;
        session.output_tokens = session.output_tokens.saturating_add(usage.output);
    }
    session.updated_at = message.timestamp();
    Ok(entry)
}

/// The messages of a transcript with a number below `before`, the last `limit` of them with at most `max_bytes`
/// together, in order; one at least, however long it is.
pub(super) fn history(
    db: &Connection,
    session_id: &str,
    before: u64,
    limit: usize,
    max_bytes: usize,
) -> rusqlite::Result<Vec<Entry>> {
    let mut rows = db
        .prepare_cached("SELECT id, n, body FROM messages WHERE session_id = ?1 AND n < ?2 ORDER BY n DESC LIMIT ?3")?;
    let mut rows = rows.query(params![session_id, number(before), number(limit as u64)])?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let entry = entry(row)?;
        bytes += entry.body.len();
        if bytes > max_bytes && !entries.is_empty() {
            break;
        }
        entries.push(entry);
    }
    entries.reverse();
    Ok(entries)
}

/// The messages of a transcript behind number `after`, in order; `None` when they are more than `limit`, or have more
/// than `max_bytes` together.
pub(super) fn since(
    db: &Connection,
    session_id: &str,
    after: u64,
    limit: usize,
    max_bytes: usize,
) -> rusqlite::Result<Option<Vec<Entry>>> {
    let mut rows =
        db.prepare_cached("SELECT id, n, body FROM messages WHERE session_id = ?1 AND n > ?2 ORDER BY n LIMIT ?3 + 1")?;
    let mut rows = rows.query(params![session_id, number(after), number(limit as u64)])?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let entry = entry(row)?;
        bytes += entry.body.len();
        if bytes > max_bytes || entries.len() == limit {
            return Ok(None);
        }
        entries.push(entry);
    }
    Ok(Some(entries))
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// One message of a transcript.
pub(super) fn find(db: &Connection, session_id: &str, message_id: &str) -> rusqlite::Result<Option<Entry>> {
    db.prepare_cached("SELECT id, n, body FROM messages WHERE session_id = ?1 AND id = ?2")?
        .query_row((session_id, message_id), entry)
        .optional()
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let n: i64 = row.get(1)?;
    Ok(Entry { id: row.get(0)?, n: n.unsigned_abs(), body: row.get(2)? })
}

/// Something that a search has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// In which transcript.
    pub session_id: String,
    /// Which message.
    pub message_id: String,
    /// `user` or `assistant`.
    pub role: String,
    /// When.
    pub at: u64,
    /// Where it was found.
    pub snippet: String,
    /// Higher is better.
    pub score: f64,
}

/// Searches all transcripts for messages that hold every word, or a word that begins with it.
pub(super) fn search(db: &Connection, words: &str, limit: usize) -> rusqlite::Result<Vec<Hit>> {
    // In quotes nothing of a word is read as an operator.
    let query: Vec<_> = words.split_whitespace().map(|word| format!("\"{}\"*", word.replace('"', "\"\""))).collect();
    if query.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows = db.prepare_cached(
        "SELECT m.session_id, m.id, m.role, m.at, snippet(messages_text, 0, '', '', '…', 24), bm25(messages_text)
         FROM messages_text JOIN messages m ON m.seq = messages_text.rowid
         WHERE messages_text MATCH ?1 ORDER BY rank LIMIT ?2",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let hit = |row: &rusqlite::Row<'_>| {
        let at: i64 = row.get(3)?;
        Ok(Hit {
            session_id: row.get(0)?,
            message_id: row.get(1)?,
            role: row.get(2)?,
            at: at.unsigned_abs(),
            snippet: row.get(4)?,
            score: -row.get::<_, f64>(5)?,
        })
    };
    rows.query_map((query.join(" "), limit), hit)?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_is_one_bounded_line() {
        assert_eq!(preview(" a\n b "), "a b");
        let long = preview(&"word ".repeat(100));
        assert!(long.ends_with('…') && long.chars().count() <= PREVIEW_CHARS + 2, "{long}");
        assert!(preview(&"x".repeat(1000)).chars().count() <= PREVIEW_CHARS + 1);
    }
}
