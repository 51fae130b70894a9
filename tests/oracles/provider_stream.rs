//! What is promised of a provider's stream, whatever comes: no panic, bounded, and where the bytes are cut does not matter.
//!
//! Input: a byte whose lowest bit chooses the wire and whose rest says where to cut, then the stream.

use clawgate::agent::providers::reply::Reply;
use clawgate::agent::providers::sse::Events;
use clawgate::agent::providers::{anthropic, openai};
use clawgate::sessions::message::{Block, Message, Usage};

fn replay(is_openai: bool, pieces: &[&[u8]]) -> (Reply, bool) {
    let read = if is_openai { openai::read } else { anthropic::read };
    let (mut events, mut reply, mut failed) = (Events::default(), Reply::default(), false);
    for piece in pieces {
        failed |= events.push(piece, |data| failed = failed || read(data, &mut reply).is_err()).is_err();
    }
    events.end(|data| failed = failed || read(data, &mut reply).is_err());
    (reply, failed)
}

pub(crate) fn check(data: &[u8]) {
    let Some((&choice, stream)) = data.split_first() else { return };
    let is_openai = choice & 1 == 0;
    let (first, second) = stream.split_at(usize::from(choice >> 1).min(stream.len()));
    let whole = replay(is_openai, &[stream]);
    assert_eq!(whole, replay(is_openai, &[first, second]), "where it is cut matters");
    let (reply, _) = whole;
    let content = reply.blocks(|index| format!("call-{index}"));
    for block in &content {
        if let Block::ToolCall { id, name, arguments } = block {
            assert!(!id.is_empty() && !name.is_empty());
            assert!(arguments.is_object() || arguments.is_string());
        }
    }
    // What stands in a transcript reads as it was written.
    let message = Message::Assistant {
        content,
        api: String::new(),
        provider: String::new(),
        model: String::new(),
        usage: Usage::default(),
        stop_reason: "stop".to_owned(),
        error_message: None,
        timestamp: clawgate::clock::UnixMs(1),
    };
    let text = serde_json::to_string(&message).expect("it can be written");
    let read: Message = serde_json::from_str(&text).expect("it can be read");
    assert_eq!(read.text(), message.text());
}
