//! What stands in a transcript: messages of the user, the assistant and its tools, as the wire shows them.
//!
//! ```json
//! {"role":"user","content":[{"type":"text","text":"hi"}],"timestamp":1795000000000}
//! {"role":"assistant","content":[{"type":"toolCall","id":"c1","name":"nodes","arguments":{}}],"stopReason":"toolUse",..}
//! {"role":"toolResult","toolCallId":"c1","toolName":"nodes","content":[{"type":"text","text":"{}"}],"isError":false,..}
//! ```
//!
//! Pure. A transcript is stored in the same form, one value a row.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::UnixMs;

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Block {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// The model asks for a tool.
    ToolCall {
        /// The provider's id of the call.
        id: String,
        /// Which tool.
        name: String,
        /// An object.
        arguments: Value,
    },
    /// A picture.
    Image {
        /// Base64.
        data: String,
        /// `image/jpeg`, ...
        mime_type: String,
    },
}

/// Tokens of one answer, as the provider counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Read.
    pub input: u64,
    /// Written.
    pub output: u64,
    /// Together.
    pub total_tokens: u64,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Message {
    /// What a person, or a program for one, has said.
    User {
        /// Its parts.
        content: Vec<Block>,
        /// When.
        timestamp: UnixMs,
        /// Who, where a channel knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender_label: Option<String>,
    },
    /// What the model has said.
    Assistant {
        /// Its parts.
        content: Vec<Block>,
        /// Which wire.
        api: String,
        /// Which provider.
        provider: String,
        /// Which model.
        model: String,
        /// What it cost.
        usage: Usage,
        /// `stop`, `toolUse`, `length`, `aborted`, `error`, `injected`.
        stop_reason: String,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error_message: Option<String>,
        /// When.
        timestamp: UnixMs,
    },
    /// What a tool gave back.
    ToolResult {
        /// Of which call.
        tool_call_id: String,
        /// Of which tool.
        tool_name: String,
        /// Its parts.
        content: Vec<Block>,
        /// Whether it failed.
        is_error: bool,
        /// When.
        timestamp: UnixMs,
    },
}

impl Message {
    /// A user's text.
    pub fn user(text: impl Into<String>, timestamp: UnixMs) -> Self {
        Self::User { content: vec![Block::Text { text: text.into() }], timestamp, sender_label: None }
    }

    /// `user`, `assistant` or `toolResult`.
    pub const fn role(&self) -> &'static str {
        match self {
            Self::User { .. } => "user",
            Self::Assistant { .. } => "assistant",
            Self::ToolResult { .. } => "toolResult",
        }
    }

    /// The parts.
    pub fn content(&self) -> &[Block] {
        match self {
            Self::User { content, .. } | Self::Assistant { content, .. } | Self::ToolResult { content, .. } => content,
        }
    }

    /// All text of it, parts on lines of their own.
    pub fn text(&self) -> String {
        let texts = self.content().iter().filter_map(|block| match block {
            Block::Text { text } => Some(text.as_str()),
            _ => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    /// The calls it asks for: id, name, arguments.
    pub fn calls(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.content().iter().filter_map(|block| match block {
            Block::ToolCall { id, name, arguments } => Some((id.as_str(), name.as_str(), arguments)),
            _ => None,
        })
    }

    /// When it was said.
    pub const fn timestamp(&self) -> UnixMs {
        match self {
            Self::User { timestamp, .. } | Self::Assistant { timestamp, .. } | Self::ToolResult { timestamp, .. } => {
                *timestamp
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_message_reads_as_the_wire_writes_it() {
        let call = json!({"role": "assistant", "content": [
            {"type": "text", "text": "a"}, {"type": "toolCall", "id": "1", "name": "nodes", "arguments": {"x": 1}}],
            "api": "openai-completions", "provider": "p", "model": "m",
            "usage": {"input": 1, "output": 2, "totalTokens": 3}, "stopReason": "toolUse", "timestamp": 5});
        let message: Message = serde_json::from_value(call.clone()).unwrap();
        assert_eq!(message.calls().map(|(id, name, _)| (id, name)).collect::<Vec<_>>(), [("1", "nodes")]);
        assert_eq!(serde_json::to_value(&message).unwrap(), call);
        let user = serde_json::to_value(Message::user("hi", UnixMs(1))).unwrap();
        assert_eq!(user, json!({"role": "user", "content": [{"type": "text", "text": "hi"}], "timestamp": 1}));
    }
}
