//! What a model sends as a call of a tool: any name, any arguments, against some nodes.
//!
//! Whatever it is, it becomes a call that the nodes' list allows, or a refusal in words. Nothing runs a program but
//! [`Plan::Exec`], which a person is asked about; nothing reaches a node that is not there.

use arbitrary::Unstructured;
use serde_json::{Value, json};

use super::{flip, pick, some};
use crate::agent::media;
use crate::agent::tools::{MAX_RESULT_CHARS, Plan, offer, plan, shown};
use crate::nodes::Callable;
use crate::sessions::message::Block;

const COMMANDS: [&str; 7] =
    ["camera.snap", "location.get", "system.which", "system.notify", "a.b", "a_b", "x-a-very-long-name.of-a-command"];
const NAMES: [&str; 5] = ["build box", "phone", "Phone", "aa", "\u{202e}x\n"];
const TOOLS: [&str; 8] = ["nodes", "exec", "camera_snap", "system_which", "a_b", "system_run", "", "NODES"];

fn nodes(u: &mut Unstructured<'_>) -> Vec<Callable> {
    let count = u.int_in_range(0..=3).unwrap_or(0);
    let node = |at: usize, u: &mut Unstructured<'_>| Callable {
        id: format!("{at}{at}"),
        name: pick(u, &NAMES).to_owned(),
        platform: "linux".to_owned(),
        commands: some(u, &COMMANDS).into_iter().map(str::to_owned).collect(),
        runs_programs: flip(u),
    };
    (0..count).map(|at| node(at, u)).collect()
}

/// Arguments as a model might write them: a call that makes sense, or any text.
fn arguments(u: &mut Unstructured<'_>) -> Value {
    let word = |u: &mut Unstructured<'_>| {
        let odd = ["", "system.run", " SYSTEM.run", "system.run.prepare", "camera.snap", "rm", "\0", "00", "phone"];
        json!(pick(u, &odd))
    };
    if flip(u) {
        let text = String::from_utf8_lossy(rest(u)).into_owned();
        // What is not an object stays text, as `providers::reply` keeps it.
        return serde_json::from_str(&text).unwrap_or(Value::String(text));
    }
    let mut arguments = json!({"action": pick(u, &["list", "describe", "invoke", "dance"])});
    for key in ["node", "command", "params", "timeoutMs", "cwd"] {
        match u.int_in_range(0..=5).unwrap_or(0) {
            0 => {}
            1 => arguments[key] = word(u),
            2 => arguments[key] = json!([word(u), word(u)]),
            3 => arguments[key] = json!({"command": [word(u)], "approved": true}),
            4 => arguments[key] = json!(u.arbitrary::<i64>().unwrap_or(0)),
            _ => arguments[key] = Value::Null,
        }
    }
    arguments
}

/// All bytes that are left.
fn rest<'a>(u: &mut Unstructured<'a>) -> &'a [u8] {
    let length = u.len();
    u.bytes(length).unwrap_or_default()
}

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let nodes = nodes(u);
    let tools = offer(&nodes);
    let mut names = std::collections::HashSet::new();
    for tool in &tools {
        let name = &tool.spec.name;
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        assert!(plain && (1..=64).contains(&name.len()) && names.insert(name.clone()), "{name:?}");
    }
    let name = pick(u, &TOOLS);
    let arguments = arguments(u);
    match plan(&tools, &nodes, name, &arguments) {
        Plan::Say(said, _) => assert!(!said.is_empty()),
        Plan::Invoke { node_id, command, timeout_ms, .. } => {
            let node = nodes.iter().find(|node| node.id == node_id).expect("a node of the list");
            assert!(!command.trim().to_ascii_lowercase().starts_with("system.run"), "{command:?} runs unasked");
            assert!((1..=120_000).contains(&timeout_ms));
            // A command that no list has is still asked for by name, so that the node's own refusal can be told.
            let listed = node.commands.contains(&command);
            assert!(listed || name == "nodes" || arguments.get("node").is_some(), "{name} {command}");
        }
        Plan::Exec { node_id, argv, timeout_ms, .. } => {
            assert!(nodes.iter().any(|node| node.id == node_id && node.runs_programs));
            assert!(name == "exec" && !argv.is_empty() && (1..=120_000).contains(&timeout_ms));
        }
    }
    // What comes back is bounded, and a picture only when it is one.
    for block in media::result(arguments) {
        match block {
            Block::Text { text } => assert!(text.chars().count() <= MAX_RESULT_CHARS + 80),
            Block::Image { data, mime_type } => {
                let bytes = media::bytes(&data).expect("base64");
                assert!(media::mime_type(&bytes) == Some(mime_type.as_str()) && bytes.len() <= media::MAX_IMAGE_BYTES);
            }
            Block::ToolCall { .. } => panic!("a result asks for a tool"),
        }
    }
    let text = String::from_utf8_lossy(data);
    assert!(shown(&text).chars().count() <= MAX_RESULT_CHARS + 80);
    let (said, pictures) = media::attached(&text, &[]);
    assert!(pictures.is_empty() && said.len() <= text.len());
}
