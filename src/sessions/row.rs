//! A session as lists and events show it, and the list: written straight from what is kept, without a tree of JSON in
//! between, because a page has a thousand rows.

use std::collections::HashMap;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::key::{self, SessionKey};
use super::record::Session;
use super::{DefaultModel, InFlight};
use crate::clock::UnixMs;

/// What a row says of itself: no setting of a client stands in for it.
const OWN: &[&str] = &[
    "key",
    "sessionId",
    "kind",
    "agentId",
    "isMain",
    "chatType",
    "createdAt",
    "updatedAt",
    "snapshotAt",
    "archived",
    "pinned",
    "inputTokens",
    "outputTokens",
    "totalTokens",
    "totalTokensFresh",
    "hasActiveRun",
    "activeRunIds",
    "label",
    "displayName",
    "channel",
    "createdVia",
    "modelProvider",
    "model",
    "derivedTitle",
    "lastMessagePreview",
    "status",
    "lastRunError",
    "lastInteractionAt",
    "lastActivityAt",
];

/// One row.
pub(super) struct Row<'a> {
    pub key: &'a SessionKey,
    pub session: &'a Session,
    /// The run that is under way.
    pub run: Option<&'a str>,
    /// The model of sessions that name none.
    pub default: Option<&'a DefaultModel>,
    pub now: UnixMs,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { key, session, run, default, now } = self;
        let own = session.model.as_deref().or(default.map(|model| model.name.as_str()));
        let (provider, model) = match own.and_then(|model| model.split_once('/')) {
            Some((provider, model)) => (Some(provider), Some(model)),
            None => (None, own),
        };
        let status = if run.is_some() { Some("running") } else { session.status.as_deref() };
        let mut row = serializer.serialize_map(None)?;
        row.serialize_entry("key", key.as_str())?;
        row.serialize_entry("sessionId", &session.session_id)?;
        row.serialize_entry("kind", key.kind())?;
        row.serialize_entry("agentId", key.agent())?;
        row.serialize_entry("isMain", &(key.as_str() == key::MAIN_KEY))?;
        row.serialize_entry("chatType", key.kind())?;
        row.serialize_entry("createdAt", &session.created_at)?;
        row.serialize_entry("updatedAt", &session.updated_at)?;
        row.serialize_entry("snapshotAt", now)?;
        row.serialize_entry("archived", &session.archived)?;
        row.serialize_entry("pinned", &session.pinned)?;
        row.serialize_entry("inputTokens", &session.input_tokens)?;
        row.serialize_entry("outputTokens", &session.output_tokens)?;
        row.serialize_entry("totalTokens", &session.total_tokens)?;
        row.serialize_entry("totalTokensFresh", &true)?;
        row.serialize_entry("hasActiveRun", &run.is_some())?;
        row.serialize_entry("activeRunIds", run.as_slice())?;
        for (name, value) in [
            ("label", session.label.as_deref()),
            ("displayName", session.display_name.as_deref()),
            ("channel", session.channel.as_deref()),
            ("createdVia", session.created_via.as_deref()),
            ("modelProvider", provider),
            ("model", model),
            ("derivedTitle", session.title.as_deref()),
            ("lastMessagePreview", session.last_message.as_deref()),
            ("status", status),
            ("lastRunError", session.last_run_error.as_deref()),
        ] {
            if let Some(value) = value {
                row.serialize_entry(name, value)?;
            }
        }
        for (name, value) in
            [("lastInteractionAt", session.last_interaction_at), ("lastActivityAt", session.last_activity_at)]
        {
            if let Some(value) = value {
                row.serialize_entry(name, &value)?;
            }
        }
        for (name, value) in session.settings.iter().filter(|(name, _)| !OWN.contains(&name.as_str())) {
            row.serialize_entry(name, value)?;
        }
        row.end()
    }
}

/// The rows of a page.
pub(super) struct Rows {
    pub sessions: Vec<(SessionKey, Arc<Session>)>,
    /// The runs that are under way in them.
    pub runs: HashMap<SessionKey, String>,
    pub default: Option<DefaultModel>,
    pub now: UnixMs,
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.sessions.iter().map(|(key, session)| Row {
            key,
            session,
            run: self.runs.get(key).map(String::as_str),
            default: self.default.as_ref(),
            now: self.now,
        }))
    }
}

/// Which of these sessions have a run under way.
pub(super) fn runs_of<'a>(
    sessions: impl Iterator<Item = &'a SessionKey>,
    in_flight: &HashMap<SessionKey, InFlight>,
) -> HashMap<SessionKey, String> {
    sessions.filter_map(|key| Some((key.clone(), in_flight.get(key)?.run_id.clone()))).collect()
}
