//! `POST /tools/invoke`: what a caller asks of a tool. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::{Fault, text};

/// Bytes of an idempotency key, at most.
const MAX_KEY_BYTES: usize = 512;

/// Values of a call: each takes many times the bytes that it is written in.
const MAX_VALUES: usize = 50_000;

/// A call, read and checked. Whether the caller may call the tool is not decided here.
#[derive(Debug)]
pub struct ToolCall {
    /// The tool; without space around it, never empty.
    pub name: String,
    /// What it is called with. An `action` beside it has been put in for `nodes`, which has several.
    pub args: Value,
    /// The session the caller names, as sent.
    pub session_key: Option<String>,
    /// The agent the caller names, as sent.
    pub agent_id: Option<String>,
    /// By which a call sent twice is known; at most 512 bytes, without control characters.
    pub idempotency_key: Option<String>,
}

/// Reads a request.
///
/// # Errors
/// It is not JSON, names no tool, or has a key that is none.
pub fn parse(body: &[u8]) -> Result<ToolCall, Fault> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        name: Option<String>,
        tool: Option<String>,
        action: Option<String>,
        args: Option<Value>,
        session_key: Option<String>,
        agent_id: Option<String>,
        idempotency_key: Option<String>,
    }
    let body = text(body)?;
    if values(body) > MAX_VALUES {
        return Err(Fault::invalid(format!("the body holds more than {MAX_VALUES} values")));
    }
    let body: Body = serde_json::from_str(body)
        .map_err(|error| Fault::invalid(format!("the body is not a call of a tool: {error}")))?;
    let name = body.name.or(body.tool).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Fault::invalid("tool: the name of one is needed"))?;
    let key = body.idempotency_key;
    if key.as_ref().is_some_and(|key| key.len() > MAX_KEY_BYTES || key.chars().any(char::is_control)) {
        return Err(Fault::invalid("idempotencyKey: 512 bytes without control characters at most"));
    }
    let mut args = body.args.unwrap_or_else(|| json!({}));
    if let (Some(action), Value::Object(args)) = (body.action, &mut args)
        && name == "nodes"
    {
        args.entry("action").or_insert_with(|| action.into());
    }
    Ok(ToolCall { name, args, session_key: body.session_key, agent_id: body.agent_id, idempotency_key: key })
}

/// How many values `json` holds, if it is JSON: of lists and objects, each but the first follows a comma.
fn values(json: &str) -> usize {
    let (mut values, mut is_text, mut is_escaped) = (1, false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b',' | b'[' | b'{' if !is_text => values += 1,
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_a_name_in_either_place_and_an_action_for_nodes() {
        let call = parse(br#"{"tool": " nodes ", "action": "list", "args": {"node": "n"}}"#).unwrap();
        assert_eq!((call.name.as_str(), call.args), ("nodes", json!({"node": "n", "action": "list"})));
        let call = parse(br#"{"name": "camera.snap", "action": "list"}"#).unwrap();
        assert_eq!((call.name.as_str(), call.args), ("camera.snap", json!({})));
        let kept = parse(br#"{"tool": "nodes", "action": "list", "args": {"action": "invoke"}}"#).unwrap();
        assert_eq!(kept.args, json!({"action": "invoke"}));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let long = format!(r#"{{"tool": "t", "idempotencyKey": "{}"}}"#, "k".repeat(MAX_KEY_BYTES + 1));
        let bad = [
            &b"{"[..],
            b"{}",
            b"[]",
            br#"{"tool": " "}"#,
            br#"{"tool": 1}"#,
            br#"{"tool": "t", "idempotencyKey": "\n"}"#,
        ];
        for body in bad.into_iter().chain([long.as_bytes(), b"{\"tool\": \"t\", \"else\": \"\xdd\"}"]) {
            assert!(parse(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_call_makes_no_more_memory_than_it_may() {
        let call = |args: &str| parse(format!(r#"{{"tool": "t", "args": {args}}}"#).as_bytes());
        assert!(call(&format!("[0{}]", ",0".repeat(MAX_VALUES))).is_err());
        let text = format!(r#"["{}\"[[,"]"#, ",".repeat(MAX_VALUES));
        assert!(call(&text).is_ok(), "what stands in a text is one value");
    }
}
