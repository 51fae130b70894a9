//! Nodes for the scenarios: connected, their commands approved, answering.

use std::rc::Rc;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::open_all;
use crate::args::Run;
use crate::calls::Calling;
use crate::client::{Engine, Wire};
use crate::control::Control;
use crate::identity::Identity;
use crate::progress::Progress;
use crate::target::Target;
use crate::wire::{COMMAND, ID_MARK, Template, Who};

/// What the keys of nodes that come back follow from: the same in every run, so that a gateway that is loaded again
/// meets the nodes it knows.
pub const SEED: &str = "nodes";

/// Connects `count` nodes and approves what they offer. Templates of calls to each of them: `payload_bytes` are
/// those of the call's parameters and of the node's answer.
pub fn connect(
    engine: &mut Engine,
    load: &mut Calling,
    run: &Run,
    target: &Target,
    count: u32,
    payload_bytes: [usize; 2],
) -> Result<Vec<Template>> {
    let identities: Vec<_> = (0..count).map(|number| Identity::new(SEED, number.into())).collect::<Result<_>>()?;
    let ids: Vec<String> = identities.iter().map(|identity| identity.device_id().to_owned()).collect();
    let wires: Vec<_> = identities
        .into_iter()
        .map(|identity| Wire::Gateway(Rc::clone(&target.gateway), Rc::new(Who::Node(identity))))
        .collect();
    let payload = json!({"x": "x".repeat(payload_bytes[1].saturating_sub(r#"{"x":""}"#.len()))}).to_string();
    let mut progress = Progress::new("nodes", run.progress);
    open_all(engine, load, run, &wires, &mut progress, |load, number, key| load.add_node(key, &ids[number], &payload))?;

    approve(target, &ids).context("approving the nodes' commands")?;
    let bins = "x".repeat(payload_bytes[0].saturating_sub(r#"{"bins":[""]}"#.len()));
    let run = clawgate::id::uuid();
    let calls = ids.iter().map(|id| {
        let params = json!({
            "nodeId": id, "command": COMMAND, "params": {"bins": [bins]}, "timeoutMs": 30_000,
            "idempotencyKey": format!("{run}-{ID_MARK}"),
        });
        Template::call("node.invoke", Some(&params))
    });
    Ok(calls.collect())
}

/// Approves what waits for approval of the nodes `ids`.
fn approve(target: &Target, ids: &[String]) -> Result<()> {
    let mut control = Control::connect(&target.gateway)?;
    let list = control.call("node.pair.list", Some(&json!({})))?.payload()?;
    for request in list["pending"].as_array().into_iter().flatten() {
        let (Some(id), Some(node)) = (request["requestId"].as_str(), request["nodeId"].as_str()) else { continue };
        if ids.iter().any(|id| id == node) {
            let params: Value = json!({"requestId": id});
            control.call("node.pair.approve", Some(&params))?.payload()?;
        }
    }
    Ok(())
}
