//! What was too large, or came too slowly out: a short memory of the last of these, for `diagnostics.stability`.
//!
//! It holds sizes, limits and reasons of this program's own; nothing that a client has sent. Names and shape are those of
//! the wire's clients, which read them with `openclaw gateway stability`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;

/// Events that are remembered.
const CAPACITY: usize = 1000;
/// Events that an answer has unless it is asked for another number.
const USUAL_LIMIT: usize = 50;

/// Where something was too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Surface {
    /// A message of somebody who is not let in yet.
    #[serde(rename = "gateway.ws.preauth")]
    Preauth,
    /// A message of a client.
    #[serde(rename = "gateway.ws.inbound")]
    Inbound,
    /// What waits to be written to a client.
    #[serde(rename = "gateway.ws.outbound_buffer")]
    Outbound,
}

/// What was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was not taken, and the connection was closed.
    Rejected,
    /// Events that may be left out were left out.
    Truncated,
}

/// One event: `payload.large`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Large {
    /// Where.
    pub surface: Surface,
    /// What was done.
    pub action: Action,
    /// Bytes there were, or would have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// How many, where it is more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Why, as a word.
    pub reason: &'static str,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Recorded {
    seq: u64,
    ts: UnixMs,
    r#type: &'static str,
    #[serde(flatten)]
    large: Large,
}

const TYPE: &str = "payload.large";

/// The last events.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<Recorded>,
    recorded: u64,
}

/// What a reader asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Query {
    limit: Option<usize>,
    r#type: Option<String>,
    since_seq: Option<u64>,
}

impl Query {
    /// The limit, if it is one.
    pub(super) fn limit(&self) -> Option<usize> {
        Some(self.limit.unwrap_or(USUAL_LIMIT)).filter(|limit| (1..=CAPACITY).contains(limit))
    }
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Snapshot {
    generated_at: String,
    capacity: usize,
    count: usize,
    dropped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seq: Option<u64>,
    events: Vec<Recorded>,
    summary: Summary,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    by_type: BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_large: Option<LargeSummary>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct LargeSummary {
    count: usize,
    rejected: usize,
    truncated: usize,
    chunked: usize,
    by_surface: BTreeMap<Surface, usize>,
}

impl Recorder {
    /// Remembers one; forgets the oldest when there are too many.
    pub fn record(&self, large: Large, now: UnixMs) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.recorded += 1;
        let recorded = Recorded { seq: recent.recorded, ts: now, r#type: TYPE, large };
        if recent.events.len() == CAPACITY {
            recent.events.pop_front();
        }
        recent.events.push_back(recorded);
    }

    /// The events that are asked for, the newest `limit` of them, and a summary of all.
    pub(super) fn snapshot(&self, query: &Query, limit: usize, now: UnixMs) -> Snapshot {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = query.r#type.as_deref().map(str::trim).is_none_or(|wanted| wanted.is_empty() || wanted == TYPE);
        let since = query.since_seq.unwrap_or(0);
        let events: Vec<_> = recent.events.iter().filter(|event| wanted && event.seq > since).copied().collect();
        let mut summary = Summary::default();
        for event in &events {
            *summary.by_type.entry(event.r#type).or_default() += 1;
            let of_large = summary.payload_large.get_or_insert_default();
            of_large.count += 1;
            match event.large.action {
                Action::Rejected => of_large.rejected += 1,
                Action::Truncated => of_large.truncated += 1,
            }
            *of_large.by_surface.entry(event.large.surface).or_default() += 1;
        }
        Snapshot {
            generated_at: now.to_rfc3339(),
            capacity: CAPACITY,
            count: events.len(),
            dropped: recent.recorded - recent.events.len() as u64,
            first_seq: events.first().map(|event| event.seq),
            last_seq: events.last().map(|event| event.seq),
            events: events[events.len().saturating_sub(limit)..].to_vec(),
            summary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LARGE: Large = Large {
        surface: Surface::Inbound,
        action: Action::Rejected,
        bytes: Some(70_000),
        limit_bytes: Some(65_536),
        count: None,
        reason: "ws_payload_limit",
    };

    #[test]
    fn the_newest_are_shown_and_all_are_counted() {
        let recorder = Recorder::default();
        for ms in 0..1100 {
            recorder.record(LARGE, UnixMs(ms));
        }
        let query = Query { limit: Some(1), since_seq: Some(1000), ..Query::default() };
        let shown = serde_json::to_value(recorder.snapshot(&query, query.limit().unwrap(), UnixMs(0))).unwrap();
        assert_eq!(
            shown,
            json!({
                "generatedAt": "1970-01-01T00:00:00.000Z", "capacity": 1000, "count": 100, "dropped": 100,
                "firstSeq": 1001, "lastSeq": 1100,
                "events": [{"seq": 1100, "ts": 1099, "type": "payload.large", "surface": "gateway.ws.inbound",
                    "action": "rejected", "bytes": 70000, "limitBytes": 65536, "reason": "ws_payload_limit"}],
                "summary": {"byType": {"payload.large": 100}, "payloadLarge": {"count": 100, "rejected": 100,
                    "truncated": 0, "chunked": 0, "bySurface": {"gateway.ws.inbound": 100}}},
            })
        );
        let other = Query { r#type: Some("other".to_owned()), ..Query::default() };
        assert_eq!(recorder.snapshot(&other, 50, UnixMs(0)).count, 0);
        assert_eq!(Query { limit: Some(1001), ..Query::default() }.limit(), None);
    }
}
