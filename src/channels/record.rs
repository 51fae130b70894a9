//! What channels keep: how far each was read, who may write, and what is still to be sent.
//!
//! A message to be sent goes `pending` → `sending` → `sent`. It is `sending` on disk before the first byte leaves, so
//! that a crash in between leaves it `unknown`, and nothing is ever sent twice: whether such a message arrived nobody
//! can say, because the Bot API has no idempotency key.
//!
//! A message that ends a preview (the beginning of an answer, sent while it was still being written) is an edit of that
//! preview: to make it twice is to make it once, so it is made until it has surely been made. The preview itself is on
//! disk before it is sent, too: of one whose number is not known the answer is a message of its own.

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::UnixMs;
use crate::store::{Schema, StoreError, Tx};

/// How long a pairing code is good.
pub const CODE_TTL_MS: u64 = 3_600_000;
/// Pairing requests of one account that may wait.
pub const MAX_REQUESTS: usize = 3;
/// People who may write to one account by approval.
const MAX_ALLOWED: i64 = 10_000;
/// Messages of one account that may wait to be sent.
const MAX_OUTBOX: i64 = 10_000;
/// How long a message that was sent is remembered.
const KEEP_MS: u64 = 7 * 24 * 3600 * 1000;

/// The tables of this domain.
pub const SCHEMA: Schema = Schema {
    domain: "channels",
    steps: &[
        "
        CREATE TABLE read_up_to (
            channel TEXT NOT NULL, account TEXT NOT NULL, next INTEGER NOT NULL,
            PRIMARY KEY (channel, account)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE allowed (
            channel TEXT NOT NULL, account TEXT NOT NULL, sender TEXT NOT NULL, at INTEGER NOT NULL,
            PRIMARY KEY (channel, account, sender)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE requests (
            id TEXT PRIMARY KEY, channel TEXT NOT NULL, account TEXT NOT NULL, sender TEXT NOT NULL,
            label TEXT NOT NULL, chat TEXT NOT NULL, code TEXT NOT NULL, at INTEGER NOT NULL, seen_at INTEGER NOT NULL,
            UNIQUE (channel, account, sender)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE outbox (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            key TEXT NOT NULL UNIQUE,
            channel TEXT NOT NULL, account TEXT NOT NULL, target TEXT NOT NULL, thread INTEGER, reply_to INTEGER,
            text TEXT NOT NULL,
            state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, not_before INTEGER NOT NULL DEFAULT 0,
            error TEXT, message_id INTEGER, at INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX outbox_waiting ON outbox (channel, account, seq) WHERE state = 'pending';
        CREATE INDEX outbox_at ON outbox (at);
    ",
        "
        ALTER TABLE read_up_to ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
        CREATE TABLE seen (
            channel TEXT NOT NULL, account TEXT NOT NULL, id INTEGER NOT NULL, at INTEGER NOT NULL,
            PRIMARY KEY (channel, account, id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX seen_at ON seen (at);
        ALTER TABLE outbox ADD COLUMN picture BLOB;
        ALTER TABLE outbox ADD COLUMN preview TEXT;
        CREATE TABLE previews (run TEXT PRIMARY KEY, message_id INTEGER, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    ",
    ],
};

/// How long the number of an update is remembered: Telegram offers one for a day.
const SEEN_MS: u64 = 3 * 24 * 3600 * 1000;
/// After so long without updates their next number is any number.
const NUMBERS_ANEW_MS: u64 = 6 * 24 * 3600 * 1000;

/// Somebody who asked to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// For operators.
    pub id: String,
    /// Which account of the channel.
    pub account: String,
    /// Who, in the channel's terms.
    pub sender: String,
    /// A name for people.
    pub label: String,
    /// Where to answer.
    pub chat: String,
    /// What the person was told.
    pub code: String,
    /// When first.
    pub at: UnixMs,
    /// When last.
    pub seen_at: UnixMs,
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number.
    pub seq: i64,
    /// Whom or where.
    pub target: String,
    /// A thread there.
    pub thread: Option<i64>,
    /// Which message it answers.
    pub reply_to: Option<i64>,
    /// Markdown; with a picture what stands under it.
    pub text: String,
    /// A picture.
    pub picture: Option<Vec<u8>>,
    /// The run whose preview this ends, if it has one.
    pub preview: Option<String>,
    /// Tries before this one.
    pub attempts: u32,
}

fn time(at: UnixMs) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

fn at(value: i64) -> UnixMs {
    UnixMs(value.unsigned_abs())
}

/// From which update on to ask, for a bot that its number names; zero for all that the Bot API has. Numbers that follow no former one are possible after
/// a week of silence.
pub fn next_update(db: &Connection, channel: &str, bot: i64, now: UnixMs) -> rusqlite::Result<i64> {
    let found: Option<(i64, i64)> = db
        .prepare_cached("SELECT next, at FROM read_up_to WHERE channel = ?1 AND account = ?2")?
        .query_row((channel, bot.to_string()), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.filter(|(_, then)| now.since(at(*then)) < NUMBERS_ANEW_MS).map_or(0, |(next, _)| next))
}

/// Whether an update of a bot was taken in before.
pub fn is_seen(tx: &Tx<'_>, channel: &str, bot: i64, update_id: i64) -> Result<bool, StoreError> {
    let mut seen = tx.prepare_cached("SELECT 1 FROM seen WHERE channel = ?1 AND account = ?2 AND id = ?3")?;
    Ok(seen.exists((channel, bot.to_string(), update_id))?)
}

/// Notes that an update of a bot was taken in, and everything before it. Each bot numbers its own.
pub fn set_seen(tx: &Tx<'_>, channel: &str, bot: i64, update_id: i64, now: UnixMs) -> Result<(), StoreError> {
    let account = bot.to_string();
    tx.prepare_cached("INSERT OR IGNORE INTO seen (channel, account, id, at) VALUES (?1, ?2, ?3, ?4)")?.execute((
        channel,
        &account,
        update_id,
        time(now),
    ))?;
    tx.prepare_cached("INSERT OR REPLACE INTO read_up_to (channel, account, next, at) VALUES (?1, ?2, ?3, ?4)")?
        .execute((channel, &account, update_id.saturating_add(1), time(now)))?;
    Ok(())
}

/// Whether an operator has let this person in.
pub fn is_allowed(db: &Connection, channel: &str, account: &str, sender: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM allowed WHERE channel = ?1 AND account = ?2 AND sender = ?3")?
        .exists((channel, account, sender))
}

/// Lets a person in. `false` when as many are in as may be.
pub fn allow(tx: &Tx<'_>, channel: &str, account: &str, sender: &str, now: UnixMs) -> Result<bool, StoreError> {
    let count: i64 =
        tx.query_row("SELECT count(*) FROM allowed WHERE channel = ?1 AND account = ?2", (channel, account), |row| {
            row.get(0)
        })?;
    if count >= MAX_ALLOWED {
        return Ok(false);
    }
    tx.prepare_cached("INSERT OR IGNORE INTO allowed (channel, account, sender, at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![channel, account, sender, time(now)])?;
    Ok(true)
}

/// The requests that wait, those whose code has lapsed left out.
pub fn requests(db: &Connection, channel: &str, now: UnixMs) -> rusqlite::Result<Vec<Request>> {
    let since = time(UnixMs(now.0.saturating_sub(CODE_TTL_MS)));
    let mut rows = db.prepare_cached(
        "SELECT id, account, sender, label, chat, code, at, seen_at FROM requests WHERE channel = ?1 AND at > ?2
         ORDER BY at",
    )?;
    let rows = rows.query_map(params![channel, since], |row| {
        Ok(Request {
            id: row.get(0)?,
            account: row.get(1)?,
            sender: row.get(2)?,
            label: row.get(3)?,
            chat: row.get(4)?,
            code: row.get(5)?,
            at: at(row.get(6)?),
            seen_at: at(row.get(7)?),
        })
    })?;
    rows.collect()
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is new: the person is to be told the code.
    New,
    /// It waits already: the person was told.
    Waits,
    /// Too many wait.
    Full,
}

/// Takes a request in. Lapsed ones make room.
pub fn ask(tx: &Tx<'_>, channel: &str, request: &Request, now: UnixMs) -> Result<Asked, StoreError> {
    let since = time(UnixMs(now.0.saturating_sub(CODE_TTL_MS)));
    tx.execute("DELETE FROM requests WHERE at <= ?1", [since])?;
    let waiting = requests(tx, channel, now)?;
    let mut of_account = waiting.iter().filter(|known| known.account == request.account);
    if of_account.clone().any(|known| known.sender == request.sender) {
        tx.prepare_cached("UPDATE requests SET seen_at = ?4 WHERE channel = ?1 AND account = ?2 AND sender = ?3")?
            .execute(params![channel, request.account, request.sender, time(now)])?;
        return Ok(Asked::Waits);
    }
    if of_account.by_ref().count() >= MAX_REQUESTS {
        return Ok(Asked::Full);
    }
    tx.prepare_cached(
        "INSERT INTO requests (id, channel, account, sender, label, chat, code, at, seen_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
    )?
    .execute(params![
        request.id,
        channel,
        request.account,
        request.sender,
        request.label,
        request.chat,
        request.code,
        time(now)
    ])?;
    Ok(Asked::New)
}

/// Takes a request out.
pub fn settle(tx: &Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM requests WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Where a message goes.
#[derive(Clone, Copy, Debug)]
pub struct To<'a> {
    /// Which channel.
    pub channel: &'a str,
    /// Which of its accounts.
    pub account: &'a str,
    /// Whom or where.
    pub target: &'a str,
    /// A thread there.
    pub thread: Option<i64>,
    /// Which message it answers.
    pub reply_to: Option<i64>,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct What<'a> {
    /// Markdown.
    pub text: &'a str,
    /// A picture, of which the text is the caption.
    pub picture: Option<&'a [u8]>,
    /// The run whose preview it ends.
    pub preview: Option<&'a str>,
}

/// What became of something that was put into the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It waits.
    New,
    /// One of that key is there already.
    Known,
    /// Too many wait: it is not there.
    Full,
}

/// Puts a text into the outbox.
pub fn put(tx: &Tx<'_>, key: &str, to: To<'_>, text: &str, now: UnixMs) -> Result<Put, StoreError> {
    put_what(tx, key, to, What { text, ..What::default() }, now)
}

/// As [`put`], of anything.
pub fn put_what(tx: &Tx<'_>, key: &str, to: To<'_>, what: What<'_>, now: UnixMs) -> Result<Put, StoreError> {
    let waiting: i64 = tx
        .prepare_cached("SELECT count(*) FROM outbox WHERE channel = ?1 AND account = ?2 AND state = 'pending'")?
        .query_row((to.channel, to.account), |row| row.get(0))?;
    if waiting >= MAX_OUTBOX {
        tracing::warn!(
            channel = to.channel,
            account = to.account,
            "a message was dropped: {MAX_OUTBOX} wait to be sent"
        );
        return Ok(Put::Full);
    }
    let put = tx
        .prepare_cached(
            "INSERT OR IGNORE INTO outbox
             (key, channel, account, target, thread, reply_to, text, picture, preview, state, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'pending', ?10)",
        )?
        .execute(params![
            key,
            to.channel,
            to.account,
            to.target,
            to.thread,
            to.reply_to,
            what.text,
            what.picture,
            what.preview,
            time(now)
        ])?;
    Ok(if put == 1 { Put::New } else { Put::Known })
}

/// Notes that the preview of a run is about to be sent. `false` when there is one already.
pub fn begin_preview(tx: &Tx<'_>, run: &str, now: UnixMs) -> Result<bool, StoreError> {
    Ok(tx.prepare_cached("INSERT OR IGNORE INTO previews (run, at) VALUES (?1, ?2)")?.execute((run, time(now)))? == 1)
}

/// Notes which message the preview of a run is; `None` when it surely was not sent.
pub fn set_preview(tx: &Tx<'_>, run: &str, message_id: Option<i64>) -> Result<(), StoreError> {
    match message_id {
        Some(id) => tx.prepare_cached("UPDATE previews SET message_id = ?2 WHERE run = ?1")?.execute((run, id))?,
        None => tx.prepare_cached("DELETE FROM previews WHERE run = ?1")?.execute([run])?,
    };
    Ok(())
}

/// Whether a run has a preview, or may have.
pub fn has_preview(tx: &Tx<'_>, run: &str) -> Result<bool, StoreError> {
    Ok(tx.prepare_cached("SELECT 1 FROM previews WHERE run = ?1")?.exists([run])?)
}

/// Which message the preview of a run is, where that is known.
pub fn preview(db: &Connection, run: &str) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT message_id FROM previews WHERE run = ?1")?
        .query_row([run], |row| row.get(0))
        .optional()
        .map(Option::flatten)
}

/// A message that cannot be an edit of its preview any more, which is gone: it is to be sent as any other.
pub fn without_preview(tx: &Tx<'_>, seq: i64) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE outbox SET state = 'pending', preview = NULL WHERE seq = ?1")?.execute([seq])?;
    Ok(())
}

/// The next message to be sent, marked as `sending`: the oldest of a target that has none before it. Otherwise when to
/// look again, if any waits.
pub fn take(
    tx: &Tx<'_>,
    channel: &str,
    account: &str,
    now: UnixMs,
) -> Result<Result<Outgoing, Option<UnixMs>>, StoreError> {
    let first_of_target = "state = 'pending' AND channel = ?1 AND account = ?2 AND seq IN
        (SELECT min(seq) FROM outbox WHERE state = 'pending' AND channel = ?1 AND account = ?2 GROUP BY target)";
    let found = tx
        .prepare_cached(&format!(
            "SELECT seq, target, thread, reply_to, text, picture, preview, attempts FROM outbox
             WHERE {first_of_target} AND not_before <= ?3 ORDER BY seq LIMIT 1"
        ))?
        .query_row(params![channel, account, time(now)], |row| {
            Ok(Outgoing {
                seq: row.get(0)?,
                target: row.get(1)?,
                thread: row.get(2)?,
                reply_to: row.get(3)?,
                text: row.get(4)?,
                picture: row.get(5)?,
                preview: row.get(6)?,
                attempts: row.get(7)?,
            })
        })
        .optional()?;
    if let Some(outgoing) = found {
        tx.prepare_cached("UPDATE outbox SET state = 'sending', attempts = attempts + 1 WHERE seq = ?1")?
            .execute([outgoing.seq])?;
        return Ok(Ok(outgoing));
    }
    let next: Option<i64> = tx
        .prepare_cached(&format!("SELECT min(not_before) FROM outbox WHERE {first_of_target}"))?
        .query_row((channel, account), |row| row.get(0))?;
    Ok(Err(next.map(at)))
}

/// What became of a message that was being sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It arrived, as this message.
    Yes(Option<i64>),
    /// It did not, and is to be tried again then.
    Later(UnixMs, String),
    /// It did not, and never will.
    Never(String),
    /// Nobody can say: it is not tried again.
    Unknown(String),
}

/// Notes what became of a message.
pub fn sent(tx: &Tx<'_>, seq: i64, sent: &Sent) -> Result<(), StoreError> {
    let (state, not_before, error, message_id) = match sent {
        Sent::Yes(message_id) => ("sent", 0, None, *message_id),
        Sent::Later(then, why) => ("pending", time(*then), Some(why), None),
        Sent::Never(why) => ("failed", 0, Some(why), None),
        Sent::Unknown(why) => ("unknown", 0, Some(why), None),
    };
    tx.prepare_cached("UPDATE outbox SET state = ?2, not_before = ?3, error = ?4, message_id = ?5 WHERE seq = ?1")?
        .execute(params![seq, state, not_before, error, message_id])?;
    Ok(())
}

/// At start: what was being sent when the process ended. An edit of a message that is known is made again. Returns how
/// many there are of the others.
pub fn give_up_unknown(tx: &Tx<'_>) -> Result<usize, StoreError> {
    tx.execute(
        "UPDATE outbox SET state = 'pending' WHERE state = 'sending'
         AND preview IN (SELECT run FROM previews WHERE message_id IS NOT NULL)",
        [],
    )?;
    Ok(tx.execute(
        "UPDATE outbox SET state = 'unknown', error = 'the gateway ended while this was being sent' WHERE state = 'sending'",
        [],
    )?)
}

/// Counts of the outbox of an account: waiting, failed, unknown.
pub fn counts(db: &Connection, channel: &str, account: &str) -> rusqlite::Result<[i64; 3]> {
    db.query_row(
        "SELECT coalesce(sum(state IN ('pending', 'sending')), 0), coalesce(sum(state = 'failed'), 0),
                coalesce(sum(state = 'unknown'), 0) FROM outbox WHERE channel = ?1 AND account = ?2",
        (channel, account),
        |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]),
    )
}

/// Forgets what was sent long ago, and requests that have lapsed.
pub fn purge(tx: &Tx<'_>, now: UnixMs) -> Result<(), StoreError> {
    let before = time(UnixMs(now.0.saturating_sub(KEEP_MS)));
    tx.execute("DELETE FROM outbox WHERE at < ?1 AND state NOT IN ('pending', 'sending')", [before])?;
    tx.execute("DELETE FROM requests WHERE at <= ?1", [time(UnixMs(now.0.saturating_sub(CODE_TTL_MS)))])?;
    tx.execute("DELETE FROM seen WHERE at < ?1", [time(UnixMs(now.0.saturating_sub(SEEN_MS)))])?;
    tx.execute("DELETE FROM previews WHERE at < ?1", [before])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Change, Store};

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn to(target: &str) -> To<'_> {
        To { channel: "telegram", account: "default", target, thread: None, reply_to: None }
    }

    async fn run<T: Send + 'static>(
        store: &Store,
        op: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        store.write(move |tx| op(tx).map(Change::of)).await.unwrap()
    }

    #[tokio::test]
    async fn a_message_is_sent_once_and_in_order() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let order = run(&store, |tx| {
            assert_eq!(put(tx, "a", to("1"), "first", NOW)?, Put::New);
            assert_eq!(put(tx, "a", to("1"), "again", NOW)?, Put::Known);
            put(tx, "b", to("1"), "second", NOW)?;
            put(tx, "c", to("2"), "third", NOW)?;
            let first = take(tx, "telegram", "default", NOW)?.unwrap();
            sent(tx, first.seq, &Sent::Later(NOW.plus(5000), "429".into()))?;
            let other = take(tx, "telegram", "default", NOW)?.unwrap();
            sent(tx, other.seq, &Sent::Yes(Some(7)))?;
            assert_eq!(take(tx, "telegram", "default", NOW)?, Err(Some(NOW.plus(5000))));
            let again = take(tx, "telegram", "default", NOW.plus(5000))?.unwrap();
            Ok([first.text, other.text, again.text, again.attempts.to_string()])
        })
        .await;
        assert_eq!(order, ["first", "third", "first", "1"]);
        let counts = run(&store, |tx| {
            assert_eq!(give_up_unknown(tx)?, 1);
            Ok(counts(tx, "telegram", "default")?)
        })
        .await;
        assert_eq!(counts, [1, 0, 1], "what was being sent at the crash is not sent again");
    }

    #[tokio::test]
    async fn requests_are_few_and_lapse() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let request = |n: usize| Request {
            id: format!("id{n}"),
            account: "default".into(),
            sender: n.to_string(),
            label: String::new(),
            chat: n.to_string(),
            code: format!("CODE{n}"),
            at: NOW,
            seen_at: NOW,
        };
        run(&store, move |tx| {
            for n in 0..MAX_REQUESTS {
                assert_eq!(ask(tx, "telegram", &request(n), NOW)?, Asked::New);
            }
            assert_eq!(ask(tx, "telegram", &request(0), NOW)?, Asked::Waits);
            assert_eq!(ask(tx, "telegram", &request(9), NOW)?, Asked::Full);
            assert_eq!(requests(tx, "telegram", NOW)?.len(), MAX_REQUESTS);
            let later = NOW.plus(CODE_TTL_MS);
            assert!(requests(tx, "telegram", later)?.is_empty());
            assert_eq!(ask(tx, "telegram", &request(9), later)?, Asked::New);
            Ok(())
        })
        .await;
    }

    #[tokio::test]
    async fn an_update_is_known_again_and_numbers_may_begin_anew_after_a_week() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        run(&store, |tx| {
            assert_eq!(next_update(tx, "telegram", 99, NOW)?, 0);
            set_seen(tx, "telegram", 99, 700, NOW)?;
            assert!(is_seen(tx, "telegram", 99, 700)? && !is_seen(tx, "telegram", 99, 699)?);
            assert!(!is_seen(tx, "telegram", 98, 700)?);
            assert_eq!(next_update(tx, "telegram", 99, NOW)?, 701);
            let later = NOW.plus(NUMBERS_ANEW_MS);
            assert_eq!(next_update(tx, "telegram", 99, later)?, 0);
            set_seen(tx, "telegram", 99, 12, later)?;
            assert_eq!(next_update(tx, "telegram", 99, later)?, 13, "a lower number is a later one");
            purge(tx, NOW.plus(SEEN_MS + 1))?;
            assert!(!is_seen(tx, "telegram", 99, 700)? && is_seen(tx, "telegram", 99, 12)?);
            Ok(())
        })
        .await;
    }

    #[tokio::test]
    async fn the_end_of_a_preview_is_made_again_after_a_crash_and_a_message_is_not() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let counts = run(&store, |tx| {
            for run in ["known", "unsure"] {
                assert!(begin_preview(tx, run, NOW)? && !begin_preview(tx, run, NOW)?);
            }
            set_preview(tx, "known", Some(7))?;
            for (target, run) in [("1", Some("known")), ("2", Some("unsure")), ("3", None)] {
                put_what(tx, target, to(target), What { text: "t", picture: None, preview: run }, NOW)?;
                take(tx, "telegram", "default", NOW)?.unwrap();
            }
            assert_eq!(give_up_unknown(tx)?, 2);
            let again = take(tx, "telegram", "default", NOW)?.unwrap();
            assert_eq!((again.target.as_str(), preview(tx, "known")?, preview(tx, "unsure")?), ("1", Some(7), None));
            without_preview(tx, again.seq)?;
            assert_eq!(take(tx, "telegram", "default", NOW)?.unwrap().preview, None);
            Ok(counts(tx, "telegram", "default")?)
        })
        .await;
        assert_eq!(counts, [1, 0, 2]);
    }
}
