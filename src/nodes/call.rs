//! Calls that the gateway itself makes for its agent: the same road as an operator's `node.invoke`, and the same rules.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use serde_json::{Value, json};

use super::{Guard, Nodes, invoke};
use crate::auth::Grant;
use crate::clock::UnixMs;
use crate::hub::outbox::Item;
use crate::hub::{Client, Connection};
use crate::rpc::dispatch::{Call, Handler, Outcome};
use crate::rpc::error::RpcError;
use crate::rpc::json::Raw;

/// What the gateway's own agent is called as a caller.
pub(super) const AGENT: &str = "clawgate-agent";

/// A connected node, and the commands that the agent may call on it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callable {
    /// Its id.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Its platform.
    pub platform: String,
    /// Commands, sorted.
    pub commands: Vec<String>,
    /// Whether it runs programs, each of which a person approves.
    pub runs_programs: bool,
}

impl Nodes {
    /// The connected nodes with what the agent may call: what an operator with `operator.write` may, but for
    /// `system.run`, which a person approves one by one.
    pub fn callable(&self) -> Vec<Callable> {
        let inner = &*self.0;
        let mut found: Vec<_> = inner
            .live
            .all()
            .iter()
            .map(|session| {
                let name = inner.known().get(session.node_id).and_then(|record| record.name.clone());
                let name = name.or_else(|| session.connection.client.display_name.clone());
                let effective = session.effective.load();
                let plain =
                    |command: &&Arc<str>| Guard::of(command) == Guard::Plain && !command.starts_with("system.run");
                Callable {
                    id: session.node_id.to_string(),
                    name: name.map_or_else(|| session.node_id.to_string(), Into::into),
                    platform: session.connection.client.platform.to_string(),
                    runs_programs: effective.command("system.run").is_some(),
                    commands: effective.surface.commands.iter().filter(plain).map(ToString::to_string).collect(),
                }
            })
            .collect();
        found.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        found
    }

    /// Calls a command of a node for the agent and waits for the answer: the `payload` of `node.invoke`.
    ///
    /// # Errors
    /// As `node.invoke` of an operator with `operator.write`: `code: message`.
    ///
    /// # Cancel safety
    /// Dropped, nobody waits for the answer any more, and the node is told to stop; it may have carried the command out.
    pub async fn call(
        &self,
        node_id: &str,
        command: &str,
        params: &Value,
        timeout_ms: u64,
        key: &str,
    ) -> Result<Value, String> {
        // Whatever the caller has made of the model's words: a program runs by `run_approved` or not at all.
        if command.trim().to_ascii_lowercase().starts_with("system.run") {
            return Err("INVALID_REQUEST: system.run needs a person's approval".to_owned());
        }
        self.call_by(invoke::invoke, node_id, command, params, timeout_ms, key).await
    }

    /// Has a node say what it would run: the `plan` of `system.run.prepare`, with the program's whole path and folder.
    /// `None` where the node makes no plans.
    ///
    /// # Errors
    /// As [`Nodes::call`].
    ///
    /// # Cancel safety
    /// As [`Nodes::call`].
    pub async fn prepare_run(&self, node_id: &str, params: &Value, key: &str) -> Result<Option<Value>, String> {
        const PREPARE: &str = "system.run.prepare";
        const PREPARE_MS: u64 = 15_000;
        let session = self.0.live.find(node_id.as_bytes());
        if session.is_none_or(|session| session.effective.load().command(PREPARE).is_none()) {
            return Ok(None);
        }
        let mut answer = self.call_by(invoke::invoke, node_id, PREPARE, params, PREPARE_MS, key).await?;
        Ok(Some(answer["plan"].take()).filter(Value::is_object))
    }

    /// Runs a program that a person has approved: `system.run` with these parameters, as `node.invoke` takes them.
    ///
    /// # Errors
    /// As [`Nodes::call`].
    ///
    /// # Cancel safety
    /// As [`Nodes::call`].
    pub async fn run_approved(
        &self,
        node_id: &str,
        params: &Value,
        timeout_ms: u64,
        key: &str,
    ) -> Result<Value, String> {
        self.call_by(invoke::invoke_approved, node_id, "system.run", params, timeout_ms, key).await
    }

    async fn call_by(
        &self,
        invoke: Handler<Self>,
        node_id: &str,
        command: &str,
        params: &Value,
        timeout_ms: u64,
        key: &str,
    ) -> Result<Value, String> {
        let asked = json!({
            "nodeId": node_id, "command": command, "params": params, "timeoutMs": timeout_ms, "idempotencyKey": key,
        })
        .to_string();
        let client = Client { id: AGENT.into(), mode: "backend".into(), ..Client::default() };
        let caller = self.0.hub.internal(Grant::for_agent(), client, UnixMs::now());
        // However this ends: also when the run is stopped while the node is at work.
        let _ends = Ends { nodes: self, caller: &caller };
        let refused = |error: &RpcError| format!("{}: {}", error.code.as_str(), error.message);
        let mut out = Vec::new();
        let begun = {
            let raw = Raw::new(&asked).map_err(|error| error.to_string())?;
            invoke(self, Call::internal(&caller, "node.invoke", raw, UnixMs::now(), &mut out))
        };
        let answer = match begun.map_err(|error| refused(&error))? {
            Outcome::Answered => out,
            Outcome::Later | Outcome::Held => answer_to(&caller).await?,
        };
        let mut answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        if answer["ok"] == true {
            return Ok(answer["payload"]["payload"].take());
        }
        let error = &answer["error"];
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
        Err(format!("{}: {}", text("code"), text("message")))
    }
}

/// Calls off what a caller of the gateway's own has begun, when it has gone.
struct Ends<'a> {
    nodes: &'a Nodes,
    caller: &'a Connection,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.nodes.0.caller_gone(self.caller);
    }
}

/// The first text that comes for a connection of the gateway's own.
async fn answer_to(caller: &Connection) -> Result<Vec<u8>, String> {
    poll_fn(|context| {
        let mut first = None;
        let closing = caller.outbox.drain(context.waker(), |item| {
            if let Item::Text(text) = item {
                first.get_or_insert(text);
            }
            true
        });
        match (first, closing) {
            (Some(text), _) => Poll::Ready(Ok(text)),
            (None, Some(closing)) => Poll::Ready(Err(closing.reason)),
            (None, None) => Poll::Pending,
        }
    })
    .await
}
