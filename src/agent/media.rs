//! Pictures: those that a node's command returns, and those that an answer shows. Pure.
//!
//! A result such as that of `camera.snap`, `{"format":"jpg","base64":"..."}`, becomes a picture for models that take
//! pictures, and a reference for the answer: a line of its own that says `MEDIA:pic-1a2b3c4d` shows the picture to whom
//! the answer goes. Such a reference leads to a picture of the same session and to nothing else: no file and no URL, so
//! whoever talks a model into writing one gains nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::tools::shown;
use crate::secret::SecretHash;
use crate::sessions::message::{Block, Message};

/// Bytes of a picture, decoded.
pub const MAX_IMAGE_BYTES: usize = 5 * 1024 * 1024;
/// Pictures of one message, in either direction.
pub const MAX_IMAGES: usize = 4;
/// What begins a line that shows a picture.
const MEDIA: &str = "MEDIA:";

/// The type of a picture by its first bytes; `None` for what is none that models and channels take.
pub fn mime_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some("image/png"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// A picture as a part of a message; `None` when it is none, or too large.
pub fn picture(bytes: &[u8]) -> Option<Block> {
    let mime_type = mime_type(bytes).filter(|_| bytes.len() <= MAX_IMAGE_BYTES)?.to_owned();
    Some(Block::Image { data: STANDARD.encode(bytes), mime_type })
}

/// The bytes of a picture.
pub fn bytes(data: &str) -> Option<Vec<u8>> {
    STANDARD.decode(data).ok()
}

/// What a node has returned, as parts of a message: text that is cut to what a model gets to see, and a picture where it
/// is one.
pub fn result(mut payload: Value) -> Vec<Block> {
    let text = |payload: &Value| Block::Text { text: shown(&payload.to_string()) };
    let encoded = match payload.get("base64") {
        Some(Value::String(data)) if data.len() / 4 * 3 <= MAX_IMAGE_BYTES + 3 => data.trim().to_owned(),
        _ => return vec![text(&payload)],
    };
    let Some(Block::Image { data, mime_type }) = bytes(&encoded).as_deref().and_then(picture) else {
        return vec![text(&payload)];
    };
    if let Some(fields) = payload.as_object_mut() {
        fields.remove("base64");
        fields.insert("picture".to_owned(), json!(format!("{mime_type}, {} bytes", data.len() / 4 * 3)));
        fields.insert("attach".to_owned(), json!(format!("{MEDIA}{}", name(&data))));
    }
    vec![text(&payload), Block::Image { data, mime_type }]
}

/// What a picture is called in `MEDIA:` lines.
fn name(data: &str) -> String {
    format!("pic-{}", &SecretHash::of(data).to_hex()[..8])
}

/// An answer without the lines that show pictures, and those pictures: of `messages`, the latest of that name. A line
/// that leads to none stays as it is.
pub fn attached(answer: &str, messages: &[Message]) -> (String, Vec<Block>) {
    let mut pictures: Vec<Block> = Vec::new();
    if !answer.contains(MEDIA) {
        return (answer.to_owned(), pictures);
    }
    let find = |wanted: &str| {
        let mut blocks = messages.iter().rev().flat_map(Message::content);
        blocks.find(|block| matches!(block, Block::Image { data, .. } if name(data) == wanted)).cloned()
    };
    let mut lines = Vec::new();
    for line in answer.lines() {
        let wanted = line.trim().strip_prefix(MEDIA).map(str::trim).filter(|_| pictures.len() < MAX_IMAGES);
        match wanted.and_then(find) {
            Some(picture) if pictures.contains(&picture) => {}
            Some(picture) => pictures.push(picture),
            None => lines.push(line),
        }
    }
    (lines.join("\n").trim().to_owned(), pictures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;

    const JPEG: [u8; 6] = [0xFF, 0xD8, 0xFF, 0xE0, 1, 2];

    fn returned(content: Vec<Block>) -> Message {
        let (tool_call_id, tool_name) = ("c".to_owned(), "camera_snap".to_owned());
        Message::ToolResult { tool_call_id, tool_name, content, is_error: false, timestamp: UnixMs(0) }
    }

    #[test]
    fn a_snapshot_is_a_picture_with_a_name_that_an_answer_can_show() {
        let snapshot = json!({"format": "jpg", "base64": STANDARD.encode(JPEG), "width": 2});
        let blocks = result(snapshot);
        let [Block::Text { text }, Block::Image { data, mime_type }] = blocks.as_slice() else { panic!("{blocks:?}") };
        let text: Value = serde_json::from_str(text).unwrap();
        assert_eq!((mime_type.as_str(), &text["width"], text.get("base64")), ("image/jpeg", &json!(2), None));
        assert_eq!(bytes(data).as_deref(), Some(&JPEG[..]));
        let reference = text["attach"].as_str().unwrap();
        let messages = [returned(blocks.clone())];
        let (said, pictures) = attached(&format!("Here it is.\n {reference} \n{reference}\nNice?"), &messages);
        assert_eq!((said.as_str(), pictures.as_slice()), ("Here it is.\nNice?", &blocks[1..]));
        for other in ["MEDIA:/etc/passwd", "MEDIA:https://x.example/a.jpg", "MEDIA:pic-00000000", "MEDIA:"] {
            assert_eq!(attached(other, &messages), (other.to_owned(), vec![]), "{other}");
        }
        assert!(attached(&format!("inline {reference}"), &messages).1.is_empty());
    }

    #[test]
    fn what_is_no_picture_stays_text() {
        for odd in [
            json!({"base64": "!"}),
            json!({"base64": STANDARD.encode("<svg/>")}),
            json!({"base64": 5}),
            json!([1]),
            json!({"base64": "A".repeat(MAX_IMAGE_BYTES * 2)}),
        ] {
            assert!(matches!(result(odd).as_slice(), [Block::Text { .. }]));
        }
    }
}
