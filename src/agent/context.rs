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

/// Tokens that a question and its answer count for: what the provider says, and where it says nothing (a stream of some
/// servers has no usage) what they are estimated at, because a limit that never counts is none.
pub fn used(reported: u64, asked: usize, said: &str) -> u64 {
    match reported {
        0 => u64::try_from(asked.saturating_add(text_tokens(said))).unwrap_or(u64::MAX),
        reported => reported,
    }
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

/// Pictures that go to a model at once, and their bytes in base64: the newest.
const MAX_PICTURES: usize = 6;
const MAX_PICTURE_BYTES: usize = 16 * 1024 * 1024;

/// The messages as a model gets them: with the newest pictures, where it takes any; of the others it is told.
pub fn with_pictures(messages: &[Message], takes_pictures: bool) -> Vec<Message> {
    let (mut count, mut bytes) = (0, 0);
    let mut shown: Vec<Message> = messages.to_vec();
    for message in shown.iter_mut().rev() {
        let (Message::User { content, .. } | Message::Assistant { content, .. } | Message::ToolResult { content, .. }) =
            message;
        for block in content.iter_mut().rev() {
            let Block::Image { data, mime_type } = block else { continue };
            (count, bytes) = (count + 1, bytes + data.len());
            let why = match takes_pictures {
                false => "this model takes no pictures",
                true if count > MAX_PICTURES || bytes > MAX_PICTURE_BYTES => "an older one, not shown again",
                true => continue,
            };
            *block = Block::Text { text: format!("[a picture, {mime_type}: {why}]") };
        }
    }
    shown
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
    fn a_provider_that_counts_nothing_is_counted_for() {
        assert_eq!(used(12, 1000, "words"), 12);
        assert_eq!(used(0, 1000, "words"), 1000 + u64::try_from(text_tokens("words")).unwrap());
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

    #[test]
    fn a_model_gets_the_newest_pictures_or_is_told_of_them() {
        let picture = |n: usize| {
            let content = vec![Block::Image { data: n.to_string(), mime_type: "image/png".into() }];
            Message::User { content, timestamp: UnixMs(0), sender_label: None }
        };
        let messages: Vec<_> = (0..MAX_PICTURES + 2).map(picture).collect();
        let kept = |takes| {
            let shown = with_pictures(&messages, takes);
            let is_picture = |message: &Message| matches!(message.content()[0], Block::Image { .. });
            shown.iter().map(is_picture).collect::<Vec<_>>()
        };
        let mut newest = vec![true; MAX_PICTURES + 2];
        newest[..2].fill(false);
        assert_eq!(kept(true), newest);
        assert!(!kept(false).contains(&true));
        assert!(with_pictures(&messages, false)[0].text().contains("takes no pictures"));
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
