//! The RPC methods that read sessions and change their rows. What starts or ends a run is the agent's.
//!
//! Parameters that this gateway has no use for are ignored, not refused: clients of several releases list sessions in
//! ways of their own.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::key::{MAIN_KEY, SessionKey};
use super::message::{Block, Message, Usage};
use super::record::{self, Entry, Session};
use super::row::{Rows, runs_of};
use super::{Origin, Sessions};
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::catalog::Event;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::{ErrorCode, RpcError};

/// The table that `methods.rs` mounts.
pub const METHODS: &[Method<Sessions>] = &[
    Method { name: "sessions.list", handler: list },
    Method { name: "sessions.get", handler: get },
    Method { name: "sessions.describe", handler: describe },
    Method { name: "sessions.resolve", handler: resolve },
    Method { name: "sessions.patch", handler: patch },
    Method { name: "sessions.preview", handler: preview },
    Method { name: "sessions.search", handler: search },
    Method { name: "sessions.subscribe", handler: subscribe },
    Method { name: "sessions.unsubscribe", handler: unsubscribe },
    Method { name: "sessions.messages.subscribe", handler: messages_subscribe },
    Method { name: "sessions.messages.unsubscribe", handler: messages_unsubscribe },
    Method { name: "chat.history", handler: history },
    Method { name: "chat.message.get", handler: message_get },
    Method { name: "chat.inject", handler: inject },
];

/// Rows of a list unless the caller says otherwise, and at most.
const LIST: usize = 200;
const MAX_LIST: usize = 1000;
/// Messages of a history, likewise.
const HISTORY: usize = 200;
const MAX_HISTORY: usize = 1000;
/// Characters of one text block of a history, likewise. A longer one is cut; `chat.message.get` has the whole.
const BLOCK_CHARS: usize = 16_000;
const MAX_BLOCK_CHARS: usize = 500_000;
/// Bytes of messages, as they are kept, of one page of a history: whoever wants more asks for the next one.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// Messages and bytes that are told to a client which comes back; with more it reads the history anew.
const SINCE: usize = 200;
const SINCE_BYTES: usize = 1024 * 1024;
/// Bytes of a label, a name or a model of a session: its row is held in memory.
pub(crate) const MAX_NAME_BYTES: usize = 512;
/// Keys of one `sessions.preview`.
const MAX_PREVIEWS: usize = 64;
/// Hits of a search.
const MAX_HITS: usize = 100;

/// What names a session in parameters.
pub(crate) fn key(text: &str) -> Result<SessionKey, RpcError> {
    SessionKey::parse(text).ok_or_else(|| {
        RpcError::invalid(format!(
            "{:?} is not a session key; write it like {MAIN_KEY}",
            text.chars().take(80).collect::<String>()
        ))
    })
}

fn unknown(key: &SessionKey) -> RpcError {
    RpcError::new(ErrorCode::NotFound, format!("there is no session {key}; sessions.list shows those there are"))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListParams {
    limit: Option<usize>,
    offset: Option<usize>,
    /// The `nextCursor` of a former page: what changed in between moves no row out of the pages or into two of them,
    /// unless the row itself has moved.
    cursor: Option<String>,
    spawned_by: Option<String>,
    active_minutes: Option<u64>,
    sort_by: Option<String>,
    label: Option<String>,
    agent_id: Option<String>,
    search: Option<String>,
    archived: Option<Value>,
}

/// A page of the list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    ts: UnixMs,
    path: &'static str,
    count: usize,
    total_count: usize,
    limit_applied: usize,
    has_more: bool,
    next_offset: Option<usize>,
    next_cursor: Option<String>,
    database_path: Option<&'static str>,
    defaults: Value,
    sessions: Rows,
}

/// Where a row stands in the list: those that are pinned first, then the latest, then by key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    pinned: bool,
    activity: UnixMs,
    key: SessionKey,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = |place: &Self| Reverse((place.pinned, place.activity));
        order(self).cmp(&order(other)).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The form of a cursor: `1.1795000000000.agent:main:main`.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", u8::from(self.pinned), self.activity.0, self.key)
    }
}

impl Place {
    fn parse(cursor: &str) -> Option<Self> {
        let (pinned, rest) = cursor.split_once('.')?;
        let (activity, key) = rest.split_once('.')?;
        Some(Self { pinned: pinned == "1", activity: UnixMs(activity.parse().ok()?), key: SessionKey::parse(key)? })
    }
}

/// Where a client stands in a transcript: `before:SESSION_ID:N` to read on towards its beginning, `after:SESSION_ID:N`
/// to hear what has come since.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cursor {
    Before(String, u64),
    After(String, u64),
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (session_id, n) = rest.rsplit_once(':')?;
        let (session_id, n) = (session_id.to_owned(), n.parse().ok()?);
        match kind {
            "before" => Some(Self::Before(session_id, n)),
            "after" => Some(Self::After(session_id, n)),
            _ => None,
        }
    }
}

impl Sessions {
    fn list(&self, params: &ListParams, now: UnixMs) -> Result<List, RpcError> {
        let wants_archived = match &params.archived {
            Some(Value::Bool(archived)) => Some(*archived),
            Some(_) => None,
            None => Some(false),
        };
        let search = params.search.as_deref().map(str::to_lowercase).filter(|search| !search.is_empty());
        let by_interaction = params.sort_by.as_deref() == Some("lastInteractionAt");
        let activity = |session: &Session| {
            let latest = session.last_activity_at.max(session.last_interaction_at);
            match params.sort_by.as_deref() {
                Some("activity") => latest.unwrap_or(session.updated_at),
                Some("lastInteractionAt") => session.last_interaction_at.unwrap_or_default(),
                _ => session.updated_at,
            }
        };
        let since = params.active_minutes.map(|minutes| now.0.saturating_sub(minutes.saturating_mul(60_000)));
        let finds = |key: &SessionKey, session: &Session| {
            let Some(search) = &search else { return true };
            let texts = [&session.label, &session.display_name, &session.title, &session.last_message];
            key.as_str().contains(search.as_str())
                || texts.into_iter().flatten().any(|text| text.to_lowercase().contains(search.as_str()))
        };
        let pins = !by_interaction && params.sort_by.as_deref() != Some("activity");
        let place = |key: &SessionKey, session: &Session| Place {
            pinned: pins && session.pinned,
            activity: activity(session),
            key: key.clone(),
        };
        let mut rows: Vec<(Place, Arc<Session>)> = self
            .index()
            .iter()
            .filter(|(key, session)| {
                wants_archived.is_none_or(|wanted| session.archived == wanted)
                    && since.is_none_or(|since| activity(session).0 >= since)
                    && params.label.as_ref().is_none_or(|label| session.label.as_ref() == Some(label))
                    && params.agent_id.as_deref().is_none_or(|agent| agent == key.agent())
                    // No session of this gateway was begun by another one.
                    && params.spawned_by.is_none()
                    && finds(key, session)
            })
            .map(|(key, session)| (place(key, session), Arc::clone(session)))
            .collect();
        let total = rows.len();
        let limit = params.limit.unwrap_or(LIST).clamp(1, MAX_LIST);
        let mut skip = params.offset.unwrap_or(0);
        let mut before = 0;
        if let Some(cursor) = &params.cursor {
            let from = Place::parse(cursor).ok_or_else(|| {
                RpcError::invalid("invalid sessions.list params: at cursor: must be the nextCursor of a former answer")
            })?;
            rows.retain(|(place, _)| *place > from);
            (skip, before) = (0, total - rows.len());
        }
        // Only what is shown is put in order.
        let shown = skip.saturating_add(limit).min(rows.len());
        if shown < rows.len() {
            rows.select_nth_unstable_by(shown, |(a, _), (b, _)| a.cmp(b));
            rows.truncate(shown);
        }
        rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let cursor = rows.last().map(|(place, _)| place.to_string());
        let page: Vec<_> = rows.into_iter().skip(skip).map(|(place, session)| (place.key, session)).collect();
        let next = before + skip + page.len();
        let more = !page.is_empty() && next < total;
        let default = self.default_model();
        let (provider, model) = default.as_ref().and_then(|model| model.name.split_once('/')).unzip();
        let window = default.as_ref().map(|model| model.context_window);
        let defaults = json!({"modelProvider": provider, "model": model, "contextTokens": window});
        let runs = runs_of(page.iter().map(|(key, _)| key), &self.all_in_flight());
        Ok(List {
            ts: now,
            path: "",
            count: page.len(),
            total_count: total,
            limit_applied: limit,
            has_more: more,
            next_offset: more.then_some(next),
            next_cursor: cursor.filter(|_| more),
            database_path: None,
            defaults,
            sessions: Rows { sessions: page, runs, default, now },
        })
    }

    fn known(&self, key: &SessionKey) -> Result<Arc<Session>, RpcError> {
        self.get(key).ok_or_else(|| unknown(key))
    }
}

/// The first page of the list.
#[cfg(test)]
pub(super) fn list_for_test(sessions: &Sessions, limit: usize) -> Value {
    let params = ListParams { limit: Some(limit), ..ListParams::default() };
    serde_json::to_value(sessions.list(&params, UnixMs::now()).unwrap()).unwrap()
}

/// All pages of the list, by cursor: the keys of each.
#[cfg(test)]
pub(super) fn pages_for_test(sessions: &Sessions, limit: usize, mut between: impl FnMut()) -> Vec<Vec<String>> {
    let (mut pages, mut cursor) = (Vec::new(), None);
    loop {
        let params = ListParams { limit: Some(limit), cursor, ..ListParams::default() };
        let list = serde_json::to_value(sessions.list(&params, UnixMs::now()).unwrap()).unwrap();
        let keys = list["sessions"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap().to_owned());
        pages.push(keys.collect());
        cursor = list["nextCursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return pages;
        }
        between();
    }
}

fn list(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    let params = call.params()?;
    let now = call.now();
    call.answer(&sessions.list(&params, now)?)
}

#[derive(Deserialize)]
struct KeyParams {
    #[serde(alias = "sessionKey")]
    key: String,
}

fn get(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    struct Params {
        #[serde(alias = "sessionKey")]
        key: String,
        limit: Option<usize>,
    }
    let Params { key: text, limit } = call.params()?;
    let key = key(&text)?;
    let session = sessions.known(&key)?;
    let sessions = sessions.clone();
    call.spawn(async move {
        let limit = limit.unwrap_or(HISTORY).clamp(1, MAX_HISTORY);
        let entries = sessions.history(&session.session_id, u64::MAX, limit).await?;
        let row = sessions.row(&key, &session);
        Ok(json!({"session": row, "entry": row, "messages": projected(&entries, BLOCK_CHARS)}))
    })
}

fn describe(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    let KeyParams { key: text } = call.params()?;
    let key = key(&text)?;
    let row = sessions.get(&key).map(|session| sessions.row(&key, &session));
    call.answer(&json!({"session": row}))
}

fn resolve(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        key: Option<String>,
        session_id: Option<String>,
        label: Option<String>,
        short_id: Option<String>,
        reference: Option<Reference>,
        #[serde(default)]
        allow_missing: bool,
    }
    /// What the address of a Control UI's page says of a session.
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Reference {
        key: Option<String>,
        short_id: Option<String>,
    }
    let Params { key: text, session_id, label, short_id, reference, allow_missing } = call.params()?;
    let reference = reference.unwrap_or_default();
    let (text, short_id) = (text.or(reference.key), short_id.or(reference.short_id));
    let found = if let Some(short_id) = short_id {
        let found = by_short_id(sessions, &short_id)?;
        if found.len() > 1 {
            let row = |key: &SessionKey| json!({"key": key.as_str(), "agentId": key.agent()});
            let candidates: Vec<_> = found.iter().take(10).map(row).collect();
            return call.answer(&json!({"ok": false, "candidates": candidates}));
        }
        found.into_iter().next()
    } else if let Some(text) = text {
        let key = key(&text)?;
        // The main session is there for everybody, also before its first message.
        sessions.get(&key).map(|_| key.clone()).or_else(|| (key.as_str() == MAIN_KEY).then_some(key))
    } else if session_id.is_some() || label.is_some() {
        let index = sessions.index();
        let matches = |session: &Session| match (&session_id, &label) {
            (Some(id), _) => session.session_id == *id,
            (None, label) => session.label == *label,
        };
        index.iter().find(|(_, session)| matches(session)).map(|(key, _)| key.clone())
    } else {
        return Err(RpcError::invalid("invalid sessions.resolve params: needs key, sessionId or label"));
    };
    match found {
        Some(key) => call.answer(&json!({"ok": true, "key": key.as_str(), "agentId": key.agent()})),
        None if allow_missing => call.answer(&json!({"ok": false})),
        None => Err(RpcError::invalid("no session matches; sessions.list shows those there are")),
    }
}

/// The sessions whose keys end in a UUID that begins with these digits, of which there are eight at least; in order.
fn by_short_id(sessions: &Sessions, short_id: &str) -> Result<Vec<SessionKey>, RpcError> {
    let digits = short_id.trim().to_ascii_lowercase();
    if !(8..=32).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(RpcError::invalid("invalid sessions.resolve params: shortId is 8 to 32 hexadecimal digits"));
    }
    let has_it = |key: &&SessionKey| {
        let last = key.as_str().rsplit(':').next().unwrap_or_default().replace('-', "");
        last.len() == 32 && last.starts_with(&digits)
    };
    let mut found: Vec<_> = sessions.index().keys().filter(has_it).cloned().collect();
    found.sort();
    Ok(found)
}

/// Settings of a session that this gateway acts on; others are kept for the clients that wrote them.
fn patch(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    /// Rows stay small: their list is held in memory.
    const MAX_SETTINGS: usize = 32;
    const MAX_SETTING_BYTES: usize = 1024;
    let mut params: serde_json::Map<String, Value> = call.params()?;
    let text = params.remove("key").and_then(|key| key.as_str().map(str::to_owned)).unwrap_or_default();
    let key = key(&text)?;
    for ours in ["agentId", "expectedSessionId", "expectedLifecycleRevision"] {
        params.remove(ours);
    }
    let (sessions, now) = (sessions.clone(), call.now());
    let origin = Origin { via: Some("operator"), ..Origin::default() };
    call.spawn(async move {
        let change = move |session: &mut Session| {
            for (name, value) in params {
                let refuse = |wanted: &str| {
                    RpcError::invalid(format!("invalid sessions.patch params: at {name}: must be {wanted}"))
                };
                let text = || match &value {
                    Value::Null => Ok(None),
                    Value::String(text) if text.len() > MAX_NAME_BYTES => Err(refuse("shorter")),
                    Value::String(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
                    _ => Err(refuse("a string or null")),
                };
                let flag = || value.as_bool().ok_or_else(|| refuse("a boolean"));
                match name.as_str() {
                    "label" => session.label = text()?,
                    "displayName" => session.display_name = text()?,
                    "model" => session.model = text()?,
                    "archived" => session.archived = flag()?,
                    "pinned" => session.pinned = flag()?,
                    // What the gateway itself says of a session is not a client's to set.
                    "sessionId" | "status" | "channel" | "kind" | "updatedAt" | "createdAt" => {
                        return Err(RpcError::invalid(format!("sessions.patch cannot set {name}")));
                    }
                    _ if value.is_null() => drop(session.settings.remove(&name)),
                    _ => {
                        if value.to_string().len() > MAX_SETTING_BYTES || name.len() > 64 {
                            return Err(refuse("shorter"));
                        }
                        session.settings.insert(name, value);
                        if session.settings.len() > MAX_SETTINGS {
                            return Err(RpcError::invalid("a session keeps 32 settings at most"));
                        }
                    }
                }
            }
            Ok(())
        };
        let session = sessions.update(&key, origin, "patch", change, now).await?;
        let row = sessions.row(&key, &session);
        Ok(json!({"ok": true, "path": "", "key": key.as_str(), "entry": row, "session": row}))
    })
}

fn preview(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        keys: Vec<String>,
        limit: Option<usize>,
        max_chars: Option<usize>,
    }
    let Params { mut keys, limit, max_chars } = call.params()?;
    keys.truncate(MAX_PREVIEWS);
    let limit = limit.unwrap_or(12).clamp(1, 50);
    let max_chars = max_chars.unwrap_or(240).clamp(20, 2000);
    let (sessions, now) = (sessions.clone(), call.now());
    call.spawn(async move {
        let mut previews = Vec::with_capacity(keys.len());
        for text in keys {
            let session = SessionKey::parse(&text).and_then(|key| sessions.get(&key));
            let Some(session) = session else {
                previews.push(json!({"key": text, "status": "missing", "items": []}));
                continue;
            };
            let entries = sessions.history(&session.session_id, u64::MAX, limit).await?;
            let items: Vec<_> = entries
                .iter()
                .filter_map(Entry::message)
                .map(|message| (message.role(), message.text()))
                .filter(|(_, text)| !text.is_empty())
                .map(|(role, text)| {
                    let role = if role == "toolResult" { "tool" } else { role };
                    json!({"role": role, "text": text.chars().take(max_chars).collect::<String>()})
                })
                .collect();
            let status = if items.is_empty() { "empty" } else { "ok" };
            previews.push(json!({"key": text, "status": status, "items": items}));
        }
        Ok(json!({"ts": now, "previews": previews}))
    })
}

fn search(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        query: String,
        session_keys: Option<Vec<String>>,
        limit: Option<usize>,
    }
    let Params { query, session_keys, limit } = call.params()?;
    let limit = limit.unwrap_or(20).clamp(1, MAX_HITS);
    let keys: Option<Vec<_>> = session_keys.map(|keys| keys.iter().filter_map(|key| SessionKey::parse(key)).collect());
    let sessions = sessions.clone();
    call.spawn(async move {
        let words: String = query.chars().take(200).collect();
        let hits = sessions.0.store.read(move |db| record::search(db, &words, MAX_HITS)).await?;
        let by_id: HashMap<String, SessionKey> =
            sessions.index().iter().map(|(key, session)| (session.session_id.clone(), key.clone())).collect();
        let results: Vec<_> = hits
            .into_iter()
            .filter_map(|hit| Some((by_id.get(&hit.session_id)?, hit)))
            .filter(|(key, _)| keys.as_ref().is_none_or(|keys| keys.contains(key)))
            .map(|(key, hit)| {
                json!({"sessionKey": key.as_str(), "sessionId": hit.session_id, "messageId": hit.message_id,
                    "role": hit.role, "timestamp": hit.at, "snippet": hit.snippet, "score": hit.score})
            })
            .collect();
        let truncated = results.len() > limit;
        let results: Vec<_> = results.into_iter().take(limit).collect();
        Ok(json!({"results": results, "truncated": truncated}))
    })
}

fn subscribe(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    sessions.subscribers().follow_list(call.caller(), true);
    if call.raw_params() == "{}" {
        return call.answer(&json!({"subscribed": true}));
    }
    let params = call.params()?;
    let now = call.now();
    call.answer(&json!({"subscribed": true, "list": sessions.list(&params, now)?}))
}

fn unsubscribe(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    sessions.subscribers().follow_list(call.caller(), false);
    call.answer(&json!({"subscribed": false}))
}

fn messages_subscribe(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    let KeyParams { key: text } = call.params()?;
    let key = key(&text)?;
    sessions.subscribers().follow(&key, call.caller(), true);
    call.answer(&json!({"subscribed": true, "key": key.as_str()}))
}

fn messages_unsubscribe(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    let KeyParams { key: text } = call.params()?;
    let key = key(&text)?;
    sessions.subscribers().follow(&key, call.caller(), false);
    call.answer(&json!({"subscribed": false, "key": key.as_str()}))
}

/// What `chat.history`, and `chat.startup`, take.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HistoryParams {
    /// Which session.
    pub(crate) session_key: String,
    limit: Option<usize>,
    offset: Option<u64>,
    max_chars: Option<usize>,
    cursor: Option<String>,
}

impl Sessions {
    /// The answer of `chat.history`.
    pub(crate) async fn history_answer(&self, key: &SessionKey, params: HistoryParams) -> Result<Value, RpcError> {
        let limit = params.limit.unwrap_or(HISTORY).clamp(1, MAX_HISTORY);
        let max_chars = params.max_chars.unwrap_or(BLOCK_CHARS).clamp(100, MAX_BLOCK_CHARS);
        let session = self.get(key);
        let reset = || Ok(json!({"kind": "reset"}));
        let cursor = match (&params.cursor, &session) {
            (None, _) => None,
            (Some(_), None) => return reset(),
            (Some(text), Some(session)) => match Cursor::parse(text) {
                Some(Cursor::After(id, n)) if id == session.session_id && n <= session.messages => {
                    return self.since(key, session, n).await;
                }
                Some(Cursor::Before(id, n)) if id == session.session_id && n <= session.messages + 1 => Some(n),
                // It was reset, or this is no cursor of ours: the client takes a page from the end.
                _ => return reset(),
            },
        };
        let offset = params.offset.unwrap_or(0);
        let (entries, total) = match &session {
            None => (Vec::new(), 0),
            Some(session) => {
                let before = cursor.unwrap_or_else(|| (session.messages + 1).saturating_sub(offset));
                let id = session.session_id.clone();
                let page = move |db: &rusqlite::Connection| record::history(db, &id, before, limit, PAGE_BYTES);
                (self.0.store.read(page).await?, session.messages)
            }
        };
        let first = entries.first().map_or(1, |first| first.n);
        let more = first > 1;
        let mut answer = json!({
            "sessionKey": key.as_str(),
            "sessionId": session.as_ref().map(|session| session.session_id.as_str()),
            "agentId": key.agent(),
            "messages": projected(&entries, max_chars),
            "totalMessages": total,
            "hasMore": more,
            "thinkingLevel": "off",
        });
        if let Some(session) = &session {
            if more {
                answer["nextOffset"] = json!((session.messages + 1).saturating_sub(first));
                answer["nextCursor"] = json!(format!("before:{}:{first}", session.session_id));
            }
            // Of the end alone: it says how far a client knows the transcript.
            if cursor.is_none() && offset == 0 {
                answer["deltaCursor"] = json!(format!("after:{}:{}", session.session_id, session.messages));
            }
            answer["sessionInfo"] = self.row(key, session);
        }
        if let Some(run) = self.in_flight(key) {
            answer["inFlightRun"] = json!({"runId": run.run_id, "text": run.text});
        }
        Ok(answer)
    }

    /// What has come behind message `n`, for a client that comes back.
    async fn since(&self, key: &SessionKey, session: &Session, n: u64) -> Result<Value, RpcError> {
        let id = session.session_id.clone();
        let read = move |db: &rusqlite::Connection| record::since(db, &id, n, SINCE, SINCE_BYTES);
        let Some(entries) = self.0.store.read(read).await? else { return Ok(json!({"kind": "reset"})) };
        let last = entries.last().map_or(n, |last| last.n);
        let messages: Vec<_> = entries.iter().map(|entry| shown_message(key, session, entry)).collect();
        let mut answer = json!({"kind": "delta", "messages": messages,
            "deltaCursor": format!("after:{}:{last}", session.session_id), "sessionInfo": self.row(key, session)});
        if let Some(run) = self.in_flight(key) {
            answer["inFlightRun"] = json!({"runId": run.run_id, "text": run.text});
        }
        Ok(answer)
    }
}

fn history(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    let params: HistoryParams = call.params()?;
    let key = key(&params.session_key)?;
    sessions.opened(&key, call.caller());
    let sessions = sessions.clone();
    call.spawn(async move { sessions.history_answer(&key, params).await })
}

/// The history together with what a chat client asks for at its start.
fn message_get(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        session_key: String,
        message_id: String,
        max_chars: Option<usize>,
    }
    let Params { session_key, message_id, max_chars } = call.params()?;
    let session = sessions.known(&key(&session_key)?)?;
    let max_chars = max_chars.unwrap_or(MAX_BLOCK_CHARS).clamp(1, MAX_BLOCK_CHARS);
    let sessions = sessions.clone();
    call.spawn(async move {
        let id = session.session_id.clone();
        let found = sessions.0.store.read(move |db| record::find(db, &id, &message_id)).await?;
        Ok(match found {
            Some(entry) => json!({"ok": true, "message": whole(&entry, max_chars)}),
            None => json!({"ok": false, "unavailableReason": "not_found"}),
        })
    })
}

/// Appends an assistant's message that no model has written.
fn inject(sessions: &Sessions, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        session_key: String,
        message: String,
        label: Option<String>,
    }
    let Params { session_key, message, label } = call.params()?;
    let key = key(&session_key)?;
    sessions.known(&key)?;
    let (sessions, now) = (sessions.clone(), call.now());
    let text = label.map_or_else(|| message.clone(), |label| format!("[{label}]\n\n{message}"));
    let message = Message::Assistant {
        content: vec![Block::Text { text }],
        api: "none".to_owned(),
        provider: "clawgate".to_owned(),
        model: "gateway-injected".to_owned(),
        usage: Usage::default(),
        stop_reason: "injected".to_owned(),
        error_message: None,
        timestamp: now,
    };
    call.spawn(async move {
        let entries = sessions.append(&key, vec![message], now).await?;
        let Some(entry) = entries.first() else { return Ok(json!({"ok": false})) };
        let payload = json!({"runId": format!("inject-{}", id::uuid()), "sessionKey": key.as_str(), "seq": 0,
            "state": "final", "message": project(entry, MAX_BLOCK_CHARS)});
        sessions.hub().broadcast(Event::CHAT, &payload);
        Ok(json!({"ok": true, "messageId": entry.id}))
    })
}

/// A message as `session.message` carries it, without the session's row.
pub(super) fn shown_message(key: &SessionKey, session: &Session, entry: &Entry) -> Value {
    json!({
        "sessionKey": key.as_str(), "agentId": key.agent(), "sessionId": session.session_id,
        "message": project(entry, MAX_BLOCK_CHARS), "messageId": entry.id, "messageSeq": entry.n, "ancestorSessions": [],
    })
}

/// Messages as clients show them: with where they stand, long texts cut.
fn projected(entries: &[Entry], max_chars: usize) -> Vec<Value> {
    entries.iter().map(|entry| project(entry, max_chars)).collect()
}

fn project(entry: &Entry, max_chars: usize) -> Value {
    let mut value = whole(entry, max_chars);
    for block in value["content"].as_array_mut().into_iter().flatten() {
        // Pictures are large: chat.message.get has them.
        if block["type"] == "image"
            && let Some(image) = block.as_object_mut()
            && let Some(Value::String(data)) = image.remove("data")
        {
            image.insert("omitted".to_owned(), json!(true));
            image.insert("bytes".to_owned(), json!(data.len() / 4 * 3));
        }
    }
    value
}

/// The same with its pictures.
fn whole(entry: &Entry, max_chars: usize) -> Value {
    let mut value: Value = serde_json::from_str(&entry.to_json()).unwrap_or_default();
    for block in value["content"].as_array_mut().into_iter().flatten() {
        if let Some(text) = block["text"].as_str()
            && let Some((end, _)) = text.char_indices().nth(max_chars)
        {
            block["text"] = json!(format!("{}\n…(truncated)…", &text[..end]));
        }
    }
    value
}
