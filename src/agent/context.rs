//! What of a transcript goes to the model: the newest whole turns that fit its window. Pure.
//!
//! A turn begins with a message of the user and holds everything up to the next one, so that no result of a tool is
//! ever without its call. Start at [`fit`].

use crate::sessions::message::{Block, Message};

/// Bytes that are counted as one token: a little less than text has, so that the estimate errs on the safe side.
const BYTES_PER_TOKEN: usize = 3;
/// Tokens of a message beside its parts.
const MESSAGE_TOKENS: usize = 8;
/// Tokens of a picture.
const IMAGE_TOKENS: usize = 1600;

/// Tokens of `text`, estimated.
pub fn text_tokens(text: &str) -> usize {
    text.len().div_ceil(BYTES_PER_TOKEN)
}

/// Tokens of a message, estimated.
pub fn tokens(message: &Message) -> usize {
    let block = |block: &Block| match block {
        Block::Text { text } => text_tokens(text),
        Block::ToolCall { name, arguments, .. } => text_tokens(name) + text_tokens(&arguments.to_string()),
        Block::Image { .. } => IMAGE_TOKENS,
    };
    MESSAGE_TOKENS + message.content().iter().map(block).sum::<usize>()
}

/// The newest whole turns of `messages` that have at most `budget` tokens. `None` when not even the last one has.
///
/// What stands before the first message of a user is no turn, and left out.
pub fn fit(messages: &[Message], budget: usize) -> Option<&[Message]> {
    let mut start = None;
    let mut total = 0usize;
    for (at, message) in messages.iter().enumerate().rev() {
        total += tokens(message);
        if total > budget {
            break;
        }
        if matches!(message, Message::User { .. }) {
            start = Some(at);
        }
    }
    start.map(|at| &messages[at..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;
    use proptest::prelude::*;

    fn user(size: usize) -> Message {
        Message::user("x".repeat(size * BYTES_PER_TOKEN), UnixMs(0))
    }

    fn result(size: usize) -> Message {
        let content = vec![Block::Text { text: "x".repeat(size * BYTES_PER_TOKEN) }];
        let (tool_call_id, tool_name) = (String::new(), String::new());
        Message::ToolResult { tool_call_id, tool_name, content, is_error: false, timestamp: UnixMs(0) }
    }

    #[test]
    fn the_newest_whole_turns_stay() {
        let messages = [user(10), result(10), user(10), result(10), result(10)];
        assert_eq!(fit(&messages, 1000), Some(&messages[..]));
        assert_eq!(fit(&messages, 5 * 18 - 1), Some(&messages[2..]));
        assert_eq!(fit(&messages, 3 * 18), Some(&messages[2..]));
        assert_eq!(fit(&messages, 3 * 18 - 1), None);
        assert_eq!(fit(&[result(1), user(1)], 1000).map(<[_]>::len), Some(1));
        assert_eq!(fit(&[], 1000), None);
    }

    proptest! {
        #[test]
        fn what_stays_fits_and_begins_with_a_user(sizes in proptest::collection::vec((any::<bool>(), 0usize..50), 0..20), budget in 0usize..500) {
            let messages: Vec<_> = sizes.iter().map(|(is_user, size)| if *is_user { user(*size) } else { result(*size) }).collect();
            if let Some(kept) = fit(&messages, budget) {
                let begins_with_a_user = matches!(kept.first(), Some(Message::User { .. }));
                prop_assert!(begins_with_a_user);
                prop_assert!(kept.iter().map(tokens).sum::<usize>() <= budget);
                prop_assert!(messages.ends_with(kept));
            }
        }
    }
}
