//! Paths of the Control UI's files and of join URLs, as any stranger sends them, and bodies of `/v1/chat/completions` and
//! `/tools/invoke`.

use std::path::{Component, Path};

use crate::api::{completion, tool_call};
use crate::clock::UnixMs;
use crate::http::{files, join};
use crate::sessions::message::Message;

/// A path names something inside the folder, or nothing. A body that is taken is JSON whose last word is a user's, within
/// the ranges of the API; a call that is taken has a name and a key that can be printed.
pub fn check(data: &[u8]) {
    if let Some(name) = std::str::from_utf8(data).ok().and_then(files::relative) {
        assert!(!name.contains(['\0', '\\']) && !name.starts_with('/'), "{name:?}");
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
        assert!(Path::new(&name).components().all(inside), "{name:?} leads out of the folder");
        assert!(name.split('/').all(|part| !part.starts_with('.')), "{name:?} is hidden");
    }
    if let Some((path, code)) = std::str::from_utf8(data).ok().and_then(|path| Some((path, join::shortcode(path)?))) {
        assert!(path.ends_with(&format!("/j/{code}")) && (path.starts_with("/j/") || code.len() == 22), "{path:?}");
    }
    if let Ok(taken) = completion::parse(data, UnixMs(1)) {
        let body: serde_json::Value = serde_json::from_slice(data).expect("what was taken is JSON");
        assert!(body["messages"].as_array().is_some_and(|said| said.len() > taken.before.len()));
        assert!(matches!(&taken.message, Message::User { content, .. } if !content.is_empty()));
        assert!(taken.before.first().is_none_or(|first| matches!(first, Message::User { .. })));
        assert!(taken.user.as_ref().is_none_or(|user| !user.is_empty() && user.len() <= 256));
        let within = |value: Option<f64>, least, most| value.is_none_or(|value| (least..=most).contains(&value));
        assert!(within(taken.choice.temperature, 0.0, 2.0) && within(taken.choice.top_p, 0.0, 1.0));
        assert!(taken.choice.stop.len() <= 4 && taken.choice.stop.iter().all(|stop| !stop.is_empty()));
    }
    if let Ok(call) = tool_call::parse(data) {
        let body: serde_json::Value = serde_json::from_slice(data).expect("what was taken is JSON");
        assert!(!call.name.is_empty() && call.name.trim() == call.name);
        assert!(call.idempotency_key.is_none_or(|key| key.len() <= 512 && !key.contains(char::is_control)));
        assert!(call.name == "nodes" || body.get("args").is_none_or(|args| args.is_null() || *args == call.args));
    }
}
