//! The wire of Anthropic's messages API.
//!
//! [`request`] makes the body, [`read`] takes one event of the stream. Without IO.

use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{Reply, Stop, StreamError};
use super::{Ask, ToolSpec};
use crate::sessions::message::{Block, Message};

/// The body of `POST <baseUrl>/v1/messages`.
pub fn request(ask: &Ask<'_>) -> Value {
    // Roles must alternate: what follows in the same role joins the message before it.
    let mut messages: Vec<(&'static str, Vec<Value>)> = Vec::new();
    for message in ask.messages {
        let (role, parts) = parts(message);
        match messages.last_mut() {
            _ if parts.is_empty() => {}
            Some((last, before)) if *last == role => before.extend(parts),
            _ => messages.push((role, parts)),
        }
    }
    let messages: Vec<_> =
        messages.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    let mut body = json!({
        "model": ask.model, "max_tokens": ask.max_tokens, "system": ask.system, "messages": messages, "stream": true,
    });
    if !ask.tools.is_empty() {
        body["tools"] = ask.tools.iter().map(tool).collect();
    }
    // This wire ends its range at 1, and takes one of the two.
    match (ask.sampling.temperature, ask.sampling.top_p) {
        (Some(temperature), _) => body["temperature"] = json!(temperature.min(1.0)),
        (None, Some(top_p)) => body["top_p"] = json!(top_p),
        (None, None) => {}
    }
    if !ask.sampling.stop.is_empty() {
        body["stop_sequences"] = json!(ask.sampling.stop);
    }
    body
}

fn tool(tool: &ToolSpec) -> Value {
    json!({"name": tool.name, "description": tool.description, "input_schema": tool.parameters})
}

fn parts(message: &Message) -> (&'static str, Vec<Value>) {
    let part = |block: &Block| match block {
        Block::Text { text } if text.is_empty() => None,
        Block::Text { text } => Some(json!({"type": "text", "text": text})),
        Block::ToolCall { id, name, arguments } => {
            let input = if arguments.is_object() { arguments.clone() } else { json!({}) };
            Some(json!({"type": "tool_use", "id": id, "name": name, "input": input}))
        }
        Block::Image { data, mime_type } => {
            let source = json!({"type": "base64", "media_type": mime_type, "data": data});
            Some(json!({"type": "image", "source": source}))
        }
    };
    match message {
        Message::User { content, .. } => ("user", content.iter().filter_map(part).collect()),
        Message::Assistant { content, .. } => ("assistant", content.iter().filter_map(part).collect()),
        Message::ToolResult { tool_call_id, content, is_error, .. } => {
            let content: Vec<_> = content.iter().filter_map(part).collect();
            let result =
                json!({"type": "tool_result", "tool_use_id": tool_call_id, "content": content, "is_error": is_error});
            ("user", vec![result])
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Start,
    },
    ContentBlockStart {
        index: u64,
        content_block: Part,
    },
    ContentBlockDelta {
        index: u64,
        delta: Delta,
    },
    MessageDelta {
        delta: End,
        #[serde(default)]
        usage: Option<Tokens>,
    },
    MessageStop,
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text {
        #[serde(default)]
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct End {
    #[serde(default)]
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
}

/// Takes the data of one event.
///
/// # Errors
/// See [`StreamError`].
pub fn read(data: &[u8], reply: &mut Reply) -> Result<(), StreamError> {
    let event: Event =
        serde_json::from_slice(data).map_err(|_| StreamError::Malformed("an event is not what the API describes"))?;
    match event {
        Event::MessageStart { message } => count(reply, message.usage),
        Event::ContentBlockStart { content_block: Part::Text { text }, .. } => reply.say(&text)?,
        Event::ContentBlockStart { index, content_block: Part::ToolUse { id, name } } => {
            reply.call(index, &id, &name, "")?;
        }
        Event::ContentBlockDelta { delta: Delta::Text { text }, .. } => reply.say(&text)?,
        Event::ContentBlockDelta { index, delta: Delta::InputJson { partial_json } } => {
            reply.call(index, "", "", &partial_json)?;
        }
        Event::MessageDelta { delta, usage } => {
            count(reply, usage);
            reply.stop = match delta.stop_reason.as_deref() {
                None => reply.stop,
                Some("tool_use") => Some(Stop::ToolUse),
                Some("max_tokens" | "model_context_window_exceeded") => Some(Stop::Length),
                Some("refusal") => Some(Stop::Refusal),
                Some(_) => Some(Stop::Done),
            };
        }
        Event::MessageStop => {
            reply.stop.get_or_insert(if reply.wants_tools() { Stop::ToolUse } else { Stop::Done });
        }
        Event::Error { error } => return Err(StreamError::Provider(super::error_text(&error))),
        Event::ContentBlockStart { .. } | Event::ContentBlockDelta { .. } | Event::Other => {}
    }
    Ok(())
}

fn count(reply: &mut Reply, tokens: Option<Tokens>) {
    let Some(Tokens { input_tokens, output_tokens }) = tokens else { return };
    let usage = &mut reply.usage;
    usage.input = input_tokens.unwrap_or(usage.input);
    usage.output = output_tokens.unwrap_or(usage.output);
    usage.total_tokens = usage.input.saturating_add(usage.output);
}

#[cfg(test)]
mod tests {
    use super::super::Sampling;
    use super::*;
    use crate::clock::UnixMs;

    #[test]
    fn a_recorded_stream_with_text_and_a_call_in_pieces() {
        let mut reply = Reply::default();
        for event in [
            r#"{"type":"message_start","message":{"id":"msg_1","role":"assistant","content":[],"usage":{"input_tokens":25,"output_tokens":1}}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Let me look."}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_1","name":"system_which","input":{}}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"bins\": [\"un"}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"ame\"]}"}}"#,
            r#"{"type":"content_block_stop","index":1}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":15}}"#,
            r#"{"type":"message_stop"}"#,
        ] {
            read(event.as_bytes(), &mut reply).unwrap();
        }
        assert_eq!((reply.stop, reply.usage.total_tokens), (Some(Stop::ToolUse), 40));
        assert_eq!(
            serde_json::to_value(reply.blocks(|_| unreachable!())).unwrap(),
            json!([{"type": "text", "text": "Let me look."},
                {"type": "toolCall", "id": "toolu_1", "name": "system_which", "arguments": {"bins": ["uname"]}}])
        );
    }

    #[test]
    fn an_error_in_the_stream_is_the_providers() {
        let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        let error = read(error.as_bytes(), &mut Reply::default()).unwrap_err();
        assert_eq!(error, StreamError::Provider("Overloaded".to_owned()));
    }

    #[test]
    fn roles_alternate_whatever_the_transcript_holds() {
        let now = UnixMs(0);
        let result = Message::ToolResult {
            tool_call_id: "c".into(),
            tool_name: "nodes".into(),
            content: vec![Block::Text { text: "r".into() }],
            is_error: true,
            timestamp: now,
        };
        let messages = [Message::user("a", now), Message::user("b", now), result, Message::user("c", now)];
        let sampling = Sampling { temperature: Some(2.0), stop: vec!["end".into()], ..Sampling::default() };
        let ask = Ask {
            model: "m",
            max_tokens: 7,
            max_tokens_field: "",
            system: "s",
            messages: &messages,
            tools: &[],
            sampling: &sampling,
        };
        let body = request(&ask);
        assert_eq!((&body["temperature"], &body["stop_sequences"]), (&json!(1.0), &json!(["end"])));
        assert_eq!(body["messages"].as_array().unwrap().len(), 1);
        assert_eq!(body["messages"][0]["content"].as_array().unwrap().len(), 4);
        assert_eq!(body["messages"][0]["content"][2]["is_error"], true);
    }
}
