//! The words of `POST /v1/chat/completions`: a request to what is asked of the agent, and answers back. Pure.
//!
//! Of OpenAI's API this is the part that an agent can serve: the conversation, streaming, and how words are chosen. What
//! the agent does by itself (models, tools) is not the caller's to bring: see [`parse`].

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::fault::{Fault, text};
use crate::clock::UnixMs;
use crate::sessions::message::{Block, Message, Usage};

/// Bytes of the text of one message.
const MAX_TEXT_BYTES: usize = 512 * 1024;
/// Messages of a request.
const MAX_MESSAGES: usize = 2000;
/// Parts of a message.
const MAX_PARTS: usize = 256;
/// Pictures of the last message.
const MAX_IMAGES: usize = 8;
/// Bytes of one picture, decoded.
const MAX_IMAGE_BYTES: usize = 10 * 1024 * 1024;
/// Bytes of `user`.
const MAX_USER_BYTES: usize = 256;

/// A request, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The model it names, as it names it.
    pub model: String,
    /// What was said before.
    pub before: Vec<Message>,
    /// What is said now.
    pub message: Message,
    /// What the caller tells the model beside the conversation.
    pub system: Option<String>,
    /// Whose conversation it is: with it, there is a session that goes on.
    pub user: Option<String>,
    /// The answer is to come as it is made.
    pub stream: bool,
    /// A stream ends with the tokens that it took.
    pub include_usage: bool,
    /// How words are chosen.
    pub choice: Choice,
}

/// How words are chosen; within the ranges of the API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// 0 to 2.
    pub temperature: Option<f64>,
    /// 0 to 1.
    pub top_p: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// Any whole number.
    pub seed: Option<i64>,
    /// 4 at most, none of them empty.
    pub stop: Vec<String>,
    /// Tokens of the answer.
    pub max_tokens: Option<u32>,
}

/// A body. What is only looked at stays as it was written, and every list has its most: a body makes no more memory than a
/// few times its own size.
#[derive(Deserialize)]
struct Body<'a> {
    model: String,
    messages: AtMost<Said<'a>, MAX_MESSAGES>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default, borrow)]
    n: Option<&'a RawValue>,
    #[serde(default, borrow)]
    tools: Option<&'a RawValue>,
    #[serde(default, borrow)]
    tool_choice: Option<&'a RawValue>,
    #[serde(default, borrow)]
    functions: Option<&'a RawValue>,
    #[serde(default)]
    temperature: Option<f64>,
    #[serde(default)]
    top_p: Option<f64>,
    #[serde(default)]
    frequency_penalty: Option<f64>,
    #[serde(default)]
    presence_penalty: Option<f64>,
    #[serde(default)]
    seed: Option<i64>,
    #[serde(default)]
    stop: Option<TextOr<AtMost<String, 4>>>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Said<'a> {
    role: String,
    #[serde(default)]
    content: Option<TextOr<AtMost<Part, MAX_PARTS>>>,
    #[serde(default, borrow)]
    tool_calls: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    image_url: Option<TextOr<ImageUrl>>,
}

#[derive(Deserialize)]
struct ImageUrl {
    url: String,
}

/// A list of at most so many.
struct AtMost<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = AtMost<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if list.len() == MOST {
                        return Err(serde::de::Error::custom(format!("{MOST} at most")));
                    }
                    list.push(item);
                }
                Ok(AtMost(list))
            }
        }

        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// A text, or what stands in its place. Unlike an untagged enum it is read in one go.
enum TextOr<T> {
    Text(String),
    Other(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a list or an object in its place")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                T::deserialize(SeqAccessDeserializer::new(seq)).map(TextOr::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(TextOr::Other)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// Reads a request.
///
/// # Errors
/// It is not JSON, or not what this gateway serves; the message names the field.
pub fn parse(body: &[u8], now: UnixMs) -> Result<Completion, Fault> {
    let mut parser = serde_json::Deserializer::from_str(text(body)?);
    let body: Body = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let path = error.path().to_string();
        let place = if matches!(path.as_str(), "." | "?") { String::new() } else { format!("{path}: ") };
        Fault::invalid(format!("the body is not a chat completion request: {place}{}", error.inner()))
    })?;
    parser.end().map_err(|_| Fault::invalid("something follows the JSON of the body"))?;
    unsupported(&body)?;
    let choice = choice(&body)?;
    let (mut system, mut before) = (Vec::new(), Vec::new());
    let last = body.messages.0.len().saturating_sub(1);
    for (at, said) in body.messages.0.into_iter().enumerate() {
        let Said { role, content, tool_calls } = said;
        let place = format!("messages[{at}]");
        if is_some(tool_calls) {
            return Err(tools_are_ours(&place));
        }
        match role.as_str() {
            "system" | "developer" => {
                let (text, _) = content_of(content, false, &place)?;
                system.push(text);
            }
            "user" => {
                let (text, images) = content_of(content, at == last, &place)?;
                let mut content = Vec::new();
                if !text.trim().is_empty() {
                    content.push(Block::Text { text });
                }
                content.extend(images);
                if !content.is_empty() {
                    before.push(Message::User { content, timestamp: now, sender_label: None });
                }
            }
            "assistant" => {
                let (text, _) = content_of(content, false, &place)?;
                if !text.is_empty() {
                    before.push(assistant(text, now));
                }
            }
            "tool" | "function" => return Err(tools_are_ours(&place)),
            _ => return Err(Fault::invalid(format!("{place}.role: not one of system, developer, user, assistant"))),
        }
    }
    // What a conversation begins with is somebody's question.
    let first = before.iter().position(|message| matches!(message, Message::User { .. })).unwrap_or(before.len());
    before.drain(..first);
    let message = match before.pop() {
        Some(message @ Message::User { .. }) => message,
        _ => return Err(Fault::invalid("messages: the last one must be the user's, and not empty")),
    };
    let user = body.user.map(|user| user.trim().to_owned()).filter(|user| !user.is_empty());
    if user.as_ref().is_some_and(|user| user.len() > MAX_USER_BYTES) {
        return Err(Fault::invalid(format!("user: {MAX_USER_BYTES} bytes at most")));
    }
    Ok(Completion {
        model: body.model,
        before,
        message,
        system: (!system.is_empty()).then(|| system.join("\n\n")),
        user,
        stream: body.stream.unwrap_or(false),
        include_usage: body.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
        choice,
    })
}

fn tools_are_ours(place: &str) -> Fault {
    Fault::invalid(format!(
        "{place}: the agent calls the tools of this gateway's nodes by itself; tools of the caller are not served"
    ))
    .coded("unsupported")
}

fn unsupported(body: &Body<'_>) -> Result<(), Fault> {
    if is_some(body.tools) && body.tool_choice.is_none_or(|choice| choice.get() != "\"none\"") {
        return Err(tools_are_ours("tools"));
    }
    if is_some(body.functions) {
        return Err(tools_are_ours("functions"));
    }
    match body.n {
        Some(n) if serde_json::from_str::<f64>(n.get()).ok() != Some(1.0) => {
            Err(Fault::invalid("n: one answer at a time is made").coded("unsupported"))
        }
        _ => Ok(()),
    }
}

/// Whether there is anything: a list that is empty is nothing.
fn is_some(value: Option<&RawValue>) -> bool {
    value.is_some_and(|value| !value.get().bytes().filter(|byte| !byte.is_ascii_whitespace()).eq(*b"[]"))
}

fn choice(body: &Body<'_>) -> Result<Choice, Fault> {
    let within = |name: &str, value: Option<f64>, least: f64, most: f64| match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(Fault::invalid(format!("{name}: a number from {least} to {most}")))
        }
        value => Ok(value),
    };
    let tokens = |name: &str, value: Option<u64>| match value {
        Some(0) => Err(Fault::invalid(format!("{name}: at least 1"))),
        value => Ok(value.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX))),
    };
    let stop = match &body.stop {
        None => Vec::new(),
        Some(TextOr::Text(word)) => vec![word.clone()],
        Some(TextOr::Other(words)) => words.0.clone(),
    };
    if stop.iter().any(String::is_empty) {
        return Err(Fault::invalid("stop: 4 texts at most, none of them empty"));
    }
    let older = tokens("max_tokens", body.max_tokens)?;
    Ok(Choice {
        temperature: within("temperature", body.temperature, 0.0, 2.0)?,
        top_p: within("top_p", body.top_p, 0.0, 1.0)?,
        frequency_penalty: within("frequency_penalty", body.frequency_penalty, -2.0, 2.0)?,
        presence_penalty: within("presence_penalty", body.presence_penalty, -2.0, 2.0)?,
        seed: body.seed,
        stop,
        max_tokens: tokens("max_completion_tokens", body.max_completion_tokens)?.or(older),
    })
}

/// Text and pictures of a message; pictures only where they are wanted.
fn content_of(
    content: Option<TextOr<AtMost<Part, MAX_PARTS>>>,
    wants_images: bool,
    place: &str,
) -> Result<(String, Vec<Block>), Fault> {
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    match content {
        None => {}
        Some(TextOr::Text(text)) => texts.push(text),
        Some(TextOr::Other(AtMost(parts))) => {
            for Part { r#type, text, image_url } in parts {
                match (r#type.as_str(), text, image_url) {
                    ("text" | "input_text", Some(text), _) => texts.push(text),
                    // Of what was said before, the words are enough.
                    ("image_url", _, Some(_)) if !wants_images => {}
                    ("image_url", _, Some(TextOr::Text(url) | TextOr::Other(ImageUrl { url }))) => {
                        images.push(image(&url, place)?);
                    }
                    ("text" | "input_text" | "image_url", ..) => {
                        return Err(Fault::invalid(format!("{place}.content: a part lacks what its type says it has")));
                    }
                    _ => {
                        return Err(Fault::invalid(format!("{place}.content: parts are of type text or image_url"))
                            .coded("unsupported"));
                    }
                }
            }
        }
    }
    let text = texts.join("\n");
    if text.len() > MAX_TEXT_BYTES {
        return Err(Fault::invalid(format!("{place}.content: {MAX_TEXT_BYTES} bytes of text at most")));
    }
    if images.len() > MAX_IMAGES {
        return Err(Fault::invalid(format!("{place}.content: {MAX_IMAGES} pictures at most")));
    }
    Ok((text, images))
}

fn image(url: &str, place: &str) -> Result<Block, Fault> {
    let wrong = |what: &str| Fault::invalid(format!("{place}.content: {what}"));
    let Some(data) = url.strip_prefix("data:") else {
        return Err(wrong("pictures come as data: URLs; this gateway fetches none").coded("unsupported"));
    };
    let (mime_type, data) =
        data.split_once(";base64,").ok_or_else(|| wrong("a data: URL of a picture is in base64"))?;
    let mime_type = mime_type.to_ascii_lowercase();
    if !matches!(mime_type.as_str(), "image/jpeg" | "image/png" | "image/gif" | "image/webp") {
        return Err(wrong("pictures are jpeg, png, gif or webp"));
    }
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if data.is_empty() || !data.bytes().all(is_base64) {
        return Err(wrong("a picture is not base64"));
    }
    if data.len() / 4 * 3 > MAX_IMAGE_BYTES {
        return Err(wrong("a picture has 10 MiB at most"));
    }
    Ok(Block::Image { data: data.to_owned(), mime_type })
}

fn assistant(text: String, timestamp: UnixMs) -> Message {
    Message::Assistant {
        content: vec![Block::Text { text }],
        api: String::new(),
        provider: String::new(),
        model: String::new(),
        usage: Usage::default(),
        stop_reason: "injected".to_owned(),
        error_message: None,
        timestamp,
    }
}

/// `finish_reason` of the API for how a run stopped.
pub fn finish_reason(stop_reason: &str) -> &'static str {
    match stop_reason {
        "length" => "length",
        "refusal" => "content_filter",
        _ => "stop",
    }
}

/// What all pieces of one answer say of it.
#[derive(Clone, Debug)]
pub struct Answering {
    /// `chatcmpl-...`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that was named.
    pub model: String,
}

impl Answering {
    /// The whole answer.
    pub fn whole(&self, text: &str, stop_reason: &str, usage: Usage) -> Value {
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason(stop_reason)}],
            "usage": tokens(usage),
        })
    }

    /// The first event of a stream.
    pub fn begin(&self) -> String {
        self.event(&json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]), None)
    }

    /// More text.
    pub fn more(&self, text: &str) -> String {
        self.event(&json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]), None)
    }

    /// The end, with what it took where that was asked for, and the mark behind it.
    pub fn end(&self, stop_reason: &str, usage: Option<Usage>) -> String {
        let reason = finish_reason(stop_reason);
        let mut text = self.event(&json!([{"index": 0, "delta": {}, "finish_reason": reason}]), None);
        if let Some(usage) = usage {
            text.push_str(&self.event(&json!([]), Some(usage)));
        }
        text.push_str(DONE);
        text
    }

    /// An end that is none: what went wrong, and the mark behind it.
    pub fn fail(fault: &Fault) -> String {
        format!("data: {}\n\n{DONE}", json!({"error": fault.to_json()["error"]}))
    }

    fn event(&self, choices: &Value, usage: Option<Usage>) -> String {
        let mut chunk = json!({"id": self.id, "object": "chat.completion.chunk", "created": self.created,
            "model": self.model, "choices": choices});
        if let Some(usage) = usage {
            chunk["usage"] = tokens(usage);
        }
        format!("data: {chunk}\n\n")
    }
}

const DONE: &str = "data: [DONE]\n\n";

fn tokens(usage: Usage) -> Value {
    json!({"prompt_tokens": usage.input, "completion_tokens": usage.output, "total_tokens": usage.total_tokens})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: &Value) -> Result<Completion, Fault> {
        parse(body.to_string().as_bytes(), UnixMs(0))
    }

    #[test]
    fn a_conversation_is_what_was_said_and_what_is_said_now() {
        let completion = parsed(&json!({"model": "openclaw", "user": " u ", "stop": "end", "max_tokens": 9,
        "max_completion_tokens": 7, "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "assistant", "content": "I greet you"},
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "c"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]},
        ]}))
        .unwrap();
        assert_eq!((completion.system.as_deref(), completion.user.as_deref()), (Some("be brief"), Some("u")));
        let before: Vec<_> = completion.before.iter().map(|message| (message.role(), message.text())).collect();
        assert_eq!(before, [("user", "a".to_owned()), ("assistant", "b".to_owned())]);
        assert_eq!(completion.message.content().len(), 2);
        let choice = &completion.choice;
        assert_eq!((choice.max_tokens, choice.temperature, choice.stop.len()), (Some(7), Some(0.0), 1));
        assert!(completion.stream && completion.include_usage);
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_name() {
        let hi = json!([{"role": "user", "content": "hi"}]);
        let with = |key: &str, value: Value| {
            let mut body = json!({"model": "openclaw", "messages": hi});
            body[key] = value;
            parsed(&body)
        };
        for (key, value, why) in [
            ("messages", json!([]), "the last one"),
            ("messages", json!([{"role": "user", "content": " "}]), "the last one"),
            ("messages", json!([{"role": "assistant", "content": "x"}]), "the last one"),
            ("messages", json!([{"role": "tool", "content": "x"}]), "not served"),
            ("messages", json!([{"role": "king", "content": "x"}]), "messages[0].role"),
            ("messages", json!([{"role": "user", "content": [{"type": "input_audio"}]}]), "of type text"),
            (
                "messages",
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
                "fetches none",
            ),
            ("messages", json!("hi"), "messages"),
            ("model", Value::Null, "model"),
            ("tools", json!([{"type": "function"}]), "not served"),
            ("tools", json!({}), "not served"),
            ("n", json!(2), "one answer"),
            ("messages", json!([{"role": "user", "content": [{"type": "text"}]}]), "lacks"),
            ("messages", vec![json!({"role": "user", "content": "x"}); MAX_MESSAGES + 1].into(), "2000 at most"),
            ("messages", json!([{"role": "user", "content": vec![0; MAX_PARTS + 1]}]), "messages[0].content"),
            ("stop", json!(["a", "b", "c", "d", "e"]), "4 at most"),
            ("temperature", json!(2.1), "from 0 to 2"),
            ("top_p", json!(-0.1), "from 0 to 1"),
            ("seed", json!(1.5), "seed"),
            ("stop", json!(["a", ""]), "none of them empty"),
            ("max_tokens", json!(0), "at least 1"),
            ("user", json!("u".repeat(MAX_USER_BYTES + 1)), "user"),
        ] {
            let fault = with(key, value.clone()).unwrap_err();
            assert!(fault.message.contains(why), "{key} {value}: {}", fault.message);
        }
        for (key, value) in [
            ("tools", json!([])),
            ("n", json!(1)),
            ("functions", Value::Null),
            ("frob", json!(1)),
            ("stop", json!(["a", "b"])),
        ] {
            assert!(with(key, value).is_ok(), "{key}");
        }
        assert!(parse(b"{\"model\":", UnixMs(0)).is_err() && parse(b"\xff", UnixMs(0)).is_err());
    }

    #[test]
    fn a_stream_ends_with_its_reason_and_the_mark() {
        let answering = Answering { id: "chatcmpl-1".into(), created: 1, model: "openclaw".into() };
        let end = answering.end("length", Some(Usage { input: 1, output: 2, total_tokens: 3 }));
        let events: Vec<_> = end.split("\n\n").collect();
        assert!(events[0].contains(r#""finish_reason":"length""#) && events[1].contains(r#""total_tokens":3"#));
        assert_eq!(events[2..], ["data: [DONE]", ""]);
        assert!(Answering::fail(&Fault::failed("x")).ends_with("data: [DONE]\n\n"));
    }
}
