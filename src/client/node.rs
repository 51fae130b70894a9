//! The node's side of the wire: commands come as events, results go back as calls.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::connection::{Connection, Event};
use super::error::CallError;

/// A command to run, from the event `node.invoke.request`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvokeRequest {
    /// Names this invocation.
    pub id: String,
    /// This node.
    pub node_id: String,
    /// What to run.
    pub command: String,
    /// Its parameters, as JSON in a text; `None` when there are none.
    #[serde(default, rename = "paramsJSON")]
    pub params_json: Option<String>,
    /// How long the caller waits; `None` or 0 is for ever.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Two requests with the same key are the same request.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

impl InvokeRequest {
    /// Reads the request out of an event; `None` when it is another event.
    pub fn from_event(event: &Event) -> Option<Self> {
        (&*event.name == "node.invoke.request").then(|| serde_json::from_str(event.payload.get()).ok()).flatten()
    }
}

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, Serialize)]
pub struct NodeError {
    /// `INVALID_REQUEST`, `UNAVAILABLE`, ...
    pub code: String,
    /// For people.
    pub message: String,
}

/// `node.invoke.result`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InvokeResult<'a> {
    id: &'a str,
    node_id: &'a str,
    ok: bool,
    #[serde(rename = "payloadJSON", skip_serializing_if = "Option::is_none")]
    payload_json: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a NodeError>,
}

impl Connection {
    /// Answers a command with the JSON of its result, or with an error.
    ///
    /// # Errors
    /// As [`Connection::call`]. A result that comes too late is taken and ignored by the gateway.
    pub async fn respond(
        &self,
        request: &InvokeRequest,
        result: Result<&str, &NodeError>,
        deadline: Duration,
    ) -> Result<(), CallError> {
        let params = InvokeResult {
            id: &request.id,
            node_id: &request.node_id,
            ok: result.is_ok(),
            payload_json: result.ok(),
            error: result.err(),
        };
        self.call("node.invoke.result", &params, deadline).await.map(drop)
    }
}
