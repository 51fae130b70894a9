//! The wire of OpenAI's chat completions, which llama.cpp, vLLM, Ollama, LM Studio and many others speak too.
//!
//! [`request`] makes the body, [`read`] takes one event of the stream. Without IO.

use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{Reply, Stop, StreamError};
use super::{Ask, ToolSpec};
use crate::sessions::message::{Block, Message, Usage};

/// The body of `POST <baseUrl>/chat/completions`.
pub fn request(ask: &Ask<'_>) -> Value {
    let mut messages = vec![json!({"role": "system", "content": ask.system})];
    // This wire takes pictures of a user alone: what tools returned follows their results, which must stand together.
    let mut returned = Vec::new();
    for said in ask.messages {
        match said {
            Message::ToolResult { tool_name, content, .. } => {
                let pictures = content.iter().filter_map(picture);
                let before = returned.len();
                returned.extend(pictures);
                if returned.len() > before {
                    let note = json!({"type": "text", "text": format!("[what {tool_name} returned:]")});
                    returned.insert(before, note);
                }
            }
            _ => messages.extend(take_returned(&mut returned)),
        }
        messages.extend(message(said));
    }
    messages.extend(take_returned(&mut returned));
    let mut body = json!({
        "model": ask.model,
        "messages": messages,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    body[ask.max_tokens_field] = json!(ask.max_tokens);
    if !ask.tools.is_empty() {
        body["tools"] = ask.tools.iter().map(tool).collect();
    }
    let sampling = ask.sampling;
    let said = [
        ("temperature", sampling.temperature.map(Value::from)),
        ("top_p", sampling.top_p.map(Value::from)),
        ("frequency_penalty", sampling.frequency_penalty.map(Value::from)),
        ("presence_penalty", sampling.presence_penalty.map(Value::from)),
        ("seed", sampling.seed.map(Value::from)),
        ("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
    ];
    for (name, value) in said {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    body
}

fn tool(tool: &ToolSpec) -> Value {
    let function = json!({"name": tool.name, "description": tool.description, "parameters": tool.parameters});
    json!({"type": "function", "function": function})
}

fn take_returned(returned: &mut Vec<Value>) -> Option<Value> {
    (!returned.is_empty()).then(|| json!({"role": "user", "content": std::mem::take(returned)}))
}

fn picture(block: &Block) -> Option<Value> {
    let Block::Image { data, mime_type } = block else { return None };
    Some(json!({"type": "image_url", "image_url": {"url": format!("data:{mime_type};base64,{data}")}}))
}

fn message(message: &Message) -> Option<Value> {
    Some(match message {
        Message::User { content, .. } => {
            let has_image = content.iter().any(|block| matches!(block, Block::Image { .. }));
            if !has_image {
                return Some(json!({"role": "user", "content": message.text()}));
            }
            let parts: Vec<_> = content
                .iter()
                .filter_map(|block| match block {
                    Block::Text { text } => Some(json!({"type": "text", "text": text})),
                    Block::Image { .. } => picture(block),
                    Block::ToolCall { .. } => None,
                })
                .collect();
            json!({"role": "user", "content": parts})
        }
        Message::Assistant { .. } => {
            let calls: Vec<_> = message
                .calls()
                .map(|(id, name, arguments)| {
                    // The wire carries arguments as text; what was not an object is text already.
                    let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
                    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
                })
                .collect();
            let text = message.text();
            match (text.is_empty(), calls.is_empty()) {
                (true, true) => return None,
                (_, true) => json!({"role": "assistant", "content": text}),
                (true, false) => json!({"role": "assistant", "content": null, "tool_calls": calls}),
                (false, false) => json!({"role": "assistant", "content": text, "tool_calls": calls}),
            }
        }
        Message::ToolResult { tool_call_id, .. } => {
            json!({"role": "tool", "tool_call_id": tool_call_id, "content": message.text()})
        }
    })
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Tokens>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    /// What it says instead, when it refuses.
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// Takes the data of one event.
///
/// # Errors
/// See [`StreamError`].
pub fn read(data: &[u8], reply: &mut Reply) -> Result<(), StreamError> {
    if data == b"[DONE]" {
        reply.stop.get_or_insert(if reply.wants_tools() { Stop::ToolUse } else { Stop::Done });
        return Ok(());
    }
    let event: Event = serde_json::from_slice(data).map_err(|_| StreamError::Malformed("an event is not JSON"))?;
    if let Some(error) = event.error {
        return Err(StreamError::Provider(super::error_text(&error)));
    }
    if let Some(Tokens { prompt_tokens, completion_tokens }) = event.usage {
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        reply.usage = Usage { input: prompt_tokens, output: completion_tokens, total_tokens };
    }
    // One answer is asked for.
    let Some(choice) = event.choices.into_iter().next() else { return Ok(()) };
    let delta = choice.delta.unwrap_or_default();
    for text in [delta.content, delta.refusal].into_iter().flatten() {
        reply.say(&text)?;
    }
    for (at, call) in delta.tool_calls.unwrap_or_default().into_iter().enumerate() {
        let function = call.function.unwrap_or(Function { name: None, arguments: None });
        reply.call(
            call.index.unwrap_or(at as u64),
            call.id.as_deref().unwrap_or_default(),
            function.name.as_deref().unwrap_or_default(),
            function.arguments.as_deref().unwrap_or_default(),
        )?;
    }
    match choice.finish_reason.as_deref() {
        None => {}
        Some("tool_calls" | "function_call") => reply.stop = Some(Stop::ToolUse),
        Some("length") => reply.stop = Some(Stop::Length),
        Some("content_filter") => reply.stop = Some(Stop::Refusal),
        // Some servers say `stop` although they ask for tools.
        Some(_) => reply.stop = Some(if reply.wants_tools() { Stop::ToolUse } else { Stop::Done }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Sampling;
    use super::*;
    use crate::clock::UnixMs;

    fn replay(lines: &[&str]) -> Result<Reply, StreamError> {
        let mut reply = Reply::default();
        lines.iter().try_for_each(|line| read(line.as_bytes(), &mut reply))?;
        Ok(reply)
    }

    #[test]
    fn a_recorded_stream_with_text_and_a_call_in_pieces() {
        let reply = replay(&[
            r#"{"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"Let me "}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"look."}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"system_which","arguments":""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"bins\":"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"[\"uname\"]}"}}]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}"#,
            "[DONE]",
        ])
        .unwrap();
        assert_eq!((reply.stop, reply.usage.total_tokens, reply.text()), (Some(Stop::ToolUse), 15, "Let me look."));
        let blocks = reply.blocks(|_| unreachable!());
        assert_eq!(
            serde_json::to_value(blocks).unwrap(),
            json!([{"type": "text", "text": "Let me look."},
                {"type": "toolCall", "id": "call_1", "name": "system_which", "arguments": {"bins": ["uname"]}}])
        );
    }

    #[test]
    fn an_error_in_the_stream_is_the_providers() {
        let error = replay(&[r#"{"error":{"message":"overloaded","type":"server_error"}}"#]).unwrap_err();
        assert_eq!(error, StreamError::Provider("overloaded".to_owned()));
        assert!(replay(&["{"]).is_err());
    }

    #[test]
    fn a_turn_is_written_as_the_api_wants_it() {
        let now = UnixMs(0);
        let call = Block::ToolCall { id: "c".into(), name: "nodes".into(), arguments: json!({"a": 1}) };
        let messages = [
            Message::user("hi", now),
            Message::Assistant {
                content: vec![call],
                api: String::new(),
                provider: String::new(),
                model: String::new(),
                usage: Usage::default(),
                stop_reason: "toolUse".into(),
                error_message: None,
                timestamp: now,
            },
            Message::ToolResult {
                tool_call_id: "c".into(),
                tool_name: "nodes".into(),
                content: vec![Block::Text { text: "r".into() }],
                is_error: false,
                timestamp: now,
            },
        ];
        let ask = Ask {
            model: "m",
            max_tokens: 7,
            max_tokens_field: "max_tokens",
            system: "s",
            messages: &messages,
            tools: &[],
            sampling: &Sampling::default(),
        };
        assert_eq!(
            request(&ask)["messages"],
            json!([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"},
                {"role": "assistant", "content": null, "tool_calls":
                    [{"id": "c", "type": "function", "function": {"name": "nodes", "arguments": "{\"a\":1}"}}]},
                {"role": "tool", "tool_call_id": "c", "content": "r"}])
        );
    }

    #[test]
    fn pictures_that_tools_returned_follow_all_their_results() {
        let result = |id: &str| Message::ToolResult {
            tool_call_id: id.into(),
            tool_name: "camera_snap".into(),
            content: vec![
                Block::Text { text: id.into() },
                Block::Image { data: id.into(), mime_type: "image/png".into() },
            ],
            is_error: false,
            timestamp: UnixMs(0),
        };
        let messages = [Message::user("hi", UnixMs(0)), result("a"), result("b")];
        let sampling = Sampling::default();
        let ask = Ask {
            model: "m",
            max_tokens: 7,
            max_tokens_field: "max_completion_tokens",
            system: "s",
            messages: &messages,
            tools: &[],
            sampling: &sampling,
        };
        assert_eq!(request(&ask)["max_completion_tokens"], 7);
        let sent = request(&ask);
        let roles: Vec<_> = sent["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
        assert_eq!(roles, ["system", "user", "tool", "tool", "user"]);
        let urls = sent["messages"][4]["content"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|part| part["image_url"]["url"].as_str());
        assert_eq!(urls.collect::<Vec<_>>(), ["data:image/png;base64,a", "data:image/png;base64,b"]);
    }
}
