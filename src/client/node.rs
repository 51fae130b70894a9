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

/// `node.invoke.progress`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InvokeProgress<'a> {
    invoke_id: &'a str,
    node_id: &'a str,
    seq: u64,
    chunk: &'a str,
}

/// What the gateway made of an event of a node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Told {
    /// It did something about it.
    #[serde(default)]
    pub handled: bool,
    /// What, or why not: `updated`, `awaiting_approval`, `unsupported_event`, ...
    #[serde(default)]
    pub reason: Option<String>,
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

    /// Sends a piece of a command's output while it runs: 16 KiB at most, counted from 0. Whether anybody follows; when
    /// nobody does, there is no use in sending more.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn progress(
        &self,
        request: &InvokeRequest,
        seq: u64,
        chunk: &str,
        deadline: Duration,
    ) -> Result<bool, CallError> {
        #[derive(Deserialize)]
        struct Taken {
            #[serde(default)]
            ignored: bool,
        }
        let params = InvokeProgress { invoke_id: &request.id, node_id: &request.node_id, seq, chunk };
        let taken: Taken = self.call_as("node.invoke.progress", &params, deadline).await?;
        Ok(!taken.ignored)
    }

    /// Tells the gateway what happens on this node: `node.host.stats`, `exec.finished`, ...
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn tell(&self, event: &str, payload: &impl Serialize, deadline: Duration) -> Result<Told, CallError> {
        let payload = serde_json::to_string(payload).map_err(|error| CallError::Params(error.to_string().into()))?;
        let params = serde_json::json!({"event": event, "payloadJSON": payload});
        self.call_as("node.event", &params, deadline).await
    }
}
