//! What a model has answered so far: text, calls, tokens, and why it stopped. Bounded; without IO.

use serde_json::{Map, Value};

use crate::sessions::message::{Block, Usage};

/// Bytes of text of one answer.
const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Bytes of the arguments of one call.
const MAX_ARGUMENTS_BYTES: usize = 256 * 1024;
/// Calls in one answer.
const MAX_CALLS: usize = 64;
/// Bytes of an id or a name that a provider gives.
const MAX_NAME_BYTES: usize = 256;

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has said what it had to say.
    Done,
    /// It waits for its tools.
    ToolUse,
    /// It reached the limit of tokens.
    Length,
    /// It, or its provider, refuses.
    Refusal,
}

impl Stop {
    /// The word of the transcript.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "stop",
            Self::ToolUse => "toolUse",
            Self::Length => "length",
            Self::Refusal => "refusal",
        }
    }
}

/// A stream can't be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The provider says so, in the middle of the stream.
    #[error("the provider reports: {0}")]
    Provider(String),
    /// It is not what the API promises.
    #[error("the provider's stream is not understood: {0}")]
    Malformed(&'static str),
    /// It is more than this gateway takes.
    #[error("the model's answer is longer than this gateway takes: {0}")]
    TooLong(&'static str),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PartialCall {
    index: u64,
    id: String,
    name: String,
    arguments: String,
}

/// An answer as it grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    text: String,
    calls: Vec<PartialCall>,
    /// Tokens.
    pub usage: Usage,
    /// Why it stopped, once it has.
    pub stop: Option<Stop>,
}

impl Reply {
    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// More text.
    pub(super) fn say(&mut self, text: &str) -> Result<(), StreamError> {
        if self.text.len() + text.len() > MAX_TEXT_BYTES {
            return Err(StreamError::TooLong("its text"));
        }
        self.text.push_str(text);
        Ok(())
    }

    /// A call, or more of it: providers number the calls of an answer.
    pub(super) fn call(&mut self, index: u64, id: &str, name: &str, arguments: &str) -> Result<(), StreamError> {
        // Some servers give all calls of an answer the same number, each whole in one piece: another id with a name of its
        // own is another call.
        let is_other = |call: &PartialCall| {
            !id.is_empty() && !name.is_empty() && !call.id.is_empty() && !call.name.is_empty() && call.id != id
        };
        let at = match self.calls.iter().rposition(|call| call.index == index) {
            Some(at) if !is_other(&self.calls[at]) => at,
            _ if self.calls.len() == MAX_CALLS => return Err(StreamError::TooLong("its calls")),
            _ => {
                self.calls.push(PartialCall { index, ..PartialCall::default() });
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at];
        if call.id.len() + id.len() > MAX_NAME_BYTES || call.name.len() + name.len() > MAX_NAME_BYTES {
            return Err(StreamError::TooLong("the name of a call"));
        }
        if call.arguments.len() + arguments.len() > MAX_ARGUMENTS_BYTES {
            return Err(StreamError::TooLong("the arguments of a call"));
        }
        // Some servers repeat id and name with every piece.
        if call.id != id {
            call.id.push_str(id);
        }
        if call.name != name {
            call.name.push_str(name);
        }
        call.arguments.push_str(arguments);
        Ok(())
    }

    /// The answer as parts of a message. `fallback_id` makes the id of a call that has none.
    ///
    /// Arguments that are not a JSON object stay what they are, as a string: the tool will say what is wrong with them.
    pub fn blocks(&self, mut fallback_id: impl FnMut(u64) -> String) -> Vec<Block> {
        let mut blocks = Vec::with_capacity(1 + self.calls.len());
        if !self.text.is_empty() {
            blocks.push(Block::Text { text: self.text.clone() });
        }
        blocks.extend(self.calls.iter().filter(|call| !call.name.is_empty()).map(|call| {
            Block::ToolCall {
                id: if call.id.is_empty() { fallback_id(call.index) } else { call.id.clone() },
                name: call.name.clone(),
                arguments: match call.arguments.trim() {
                    "" => Value::Object(Map::new()),
                    text => serde_json::from_str(text)
                        .ok()
                        .filter(Value::is_object)
                        .unwrap_or_else(|| Value::String(call.arguments.clone())),
                },
            }
        }));
        blocks
    }

    /// Whether it asks for tools.
    pub fn wants_tools(&self) -> bool {
        self.calls.iter().any(|call| !call.name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(pieces: &[(u64, &str, &str, &str)]) -> Vec<(String, String)> {
        let mut reply = Reply::default();
        for (index, id, name, arguments) in pieces {
            reply.call(*index, id, name, arguments).unwrap();
        }
        let blocks = reply.blocks(|_| "made".to_owned());
        let call = |block: &Block| match block {
            Block::ToolCall { id, arguments, .. } => Some((id.clone(), arguments.to_string())),
            _ => None,
        };
        blocks.iter().filter_map(call).collect()
    }

    #[test]
    fn calls_are_told_apart_however_a_server_numbers_them() {
        let two = [("a".to_owned(), r#"{"x":1}"#.to_owned()), ("b".to_owned(), r#"{"x":2}"#.to_owned())];
        assert_eq!(calls(&[(0, "a", "f", r#"{"x":1}"#), (0, "b", "f", r#"{"x":2}"#)]), two, "all are number 0");
        assert_eq!(calls(&[(0, "a", "f", r#"{"x""#), (1, "b", "f", r#"{"x":2}"#), (0, "", "", ":1}")]), two);
        // Id and name with every piece, and a name in pieces.
        assert_eq!(calls(&[(0, "a", "f", r#"{"x""#), (0, "a", "f", ":1}")]), two[..1]);
        assert_eq!(calls(&[(0, "a", "f", ""), (0, "", "oo", r#"{"x":1}"#)]), two[..1]);
    }

    #[test]
    fn an_answer_is_bounded_in_calls_and_in_their_arguments() {
        let mut reply = Reply::default();
        for index in 0..MAX_CALLS as u64 {
            reply.call(index, "id", "f", "{}").unwrap();
        }
        assert!(reply.call(MAX_CALLS as u64, "id", "f", "{}").is_err());
        assert!(reply.call(0, "another", "f", "{}").is_err(), "nor by another id under the same number");
        assert!(reply.call(0, "id", "f", &"x".repeat(MAX_ARGUMENTS_BYTES)).is_err());
        assert!(Reply::default().say(&"x".repeat(MAX_TEXT_BYTES + 1)).is_err());
    }
}
