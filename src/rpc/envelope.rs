//! The envelope of a frame: what it is, whom it answers, which method; the rest stays raw.
//!
//! ```json
//! {"type":"req","id":"1","method":"health","params":{}}
//! {"type":"res","id":"1","ok":true,"payload":{}}
//! {"type":"event","event":"tick","payload":{"ts":1},"seq":7}
//! ```
//!
//! One forward pass finds the spans and checks all of the JSON, so what is cut out here can be relayed as it is.
//! Methods, parameters and payloads mean nothing here.
//!
//! A gateway starts with [`Request::parse`], a client with [`Reply::parse`].

use std::borrow::Cow;
use std::fmt;

use super::json::{self, JsonError, Key, Members, Raw, RawString};

/// Bytes that a request id may have between its quotes. The gateway echoes it and keeps it while it works.
pub const MAX_ID_BYTES: usize = 256;
/// Bytes that the name of a method or event may have. The longest of the wire has about 40.
pub const MAX_NAME_BYTES: usize = 128;
/// Characters of `traceparent` and `expectedProfileId`. *Wire*.
const MAX_TAG_CHARS: usize = 128;

/// A call: `{"type":"req","id":"1","method":"health","params":{}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Chosen by the caller, not empty, at most [`MAX_ID_BYTES`]. Goes back as it stands, quotes included.
    pub id: RawString<'a>,
    /// Not empty, at most [`MAX_NAME_BYTES`].
    pub method: Cow<'a, str>,
    /// Any JSON value; an absent one means `{}`.
    pub params: Option<Raw<'a>>,
    /// Where the members of `params` stand in it, if that is an object.
    pub members: Members,
    /// W3C trace context, at most 128 characters.
    pub traceparent: Option<RawString<'a>>,
    /// The profile that the caller believes to talk to, 1 to 128 characters.
    pub expected_profile_id: Option<RawString<'a>>,
}

impl<'a> Request<'a> {
    /// Reads a request. Strict: no other keys, no key twice.
    ///
    /// # Errors
    /// The text is not JSON or not a request. Where the id can be told all the same, the error has it, so that
    /// the caller gets an answer.
    pub fn parse(text: &'a str) -> Result<Self, EnvelopeError<'a>> {
        const KEYS: [&str; 6] = ["type", "id", "method", "params", "traceparent", "expectedProfileId"];
        const PARAMS: usize = 3;
        let (fields, members) = json::fields_and_members(text, &KEYS, PARAMS)?;
        let [kind, id, method, params, traceparent, expected_profile_id] = fields.values;
        let read = || {
            if let Some(key) = fields.duplicate {
                return Err(Fault::Duplicate(key));
            }
            match kind {
                Some(kind) if says(kind, "req") => {}
                Some(_) => return Err(Fault::Not("type", "\"req\"")),
                None => return Err(Fault::Missing("type")),
            }
            if let Some(key) = fields.unknown {
                return Err(Fault::Unknown(key));
            }
            Ok(Self {
                id: read_id(id)?,
                method: read_name("method", method)?,
                params,
                members,
                traceparent: read_tag("traceparent", 0, traceparent)?,
                expected_profile_id: read_tag("expectedProfileId", 1, expected_profile_id)?,
            })
        };
        read().map_err(|fault| EnvelopeError { fault, id: read_id(id).ok() })
    }
}

/// What a gateway sends: the answer to a call, or news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Answers the request with the same id.
    Response(Response<'a>),
    /// Comes by itself.
    Event(Event<'a>),
}

/// An answer: `{"type":"res","id":"1","ok":true,"payload":{}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The id of the request.
    pub id: RawString<'a>,
    /// Whether the call succeeded.
    pub ok: bool,
    /// What the method gave.
    pub payload: Option<Raw<'a>>,
    /// What went wrong: an object with `code` and `message`.
    pub error: Option<Raw<'a>>,
}

/// News: `{"type":"event","event":"tick","payload":{"ts":1},"seq":7}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The name of the event.
    pub event: Cow<'a, str>,
    /// What it says.
    pub payload: Option<Raw<'a>>,
    /// Counts the events of this connection from 1; events for this connection alone have none.
    pub seq: Option<u64>,
    /// `{"presence":1,"health":2}`, on events about these.
    pub state_version: Option<Raw<'a>>,
}

impl<'a> Reply<'a> {
    /// Reads a response or an event. Keys that this client does not know are passed over: a newer gateway may
    /// have more to say.
    ///
    /// # Errors
    /// The text is not JSON, or neither of the two.
    pub fn parse(text: &'a str) -> Result<Self, EnvelopeError<'a>> {
        let fields = json::fields(text, &["type", "id", "ok", "event", "payload", "error", "seq", "stateVersion"])?;
        let [kind, id, ok, event, payload, error, seq, state_version] = fields.values;
        let read = || {
            if let Some(key) = fields.duplicate {
                return Err(Fault::Duplicate(key));
            }
            match kind {
                Some(kind) if says(kind, "res") => Ok(Self::Response(Response {
                    id: read_id(id)?,
                    ok: required("ok", ok)?.as_bool().ok_or(Fault::Not("ok", "a boolean"))?,
                    payload,
                    error: error.filter(|error| !error.is_null()),
                })),
                Some(kind) if says(kind, "event") => Ok(Self::Event(Event {
                    event: read_name("event", event)?,
                    payload,
                    seq: seq.map(|seq| seq.as_u64().ok_or(Fault::Not("seq", "an integer"))).transpose()?,
                    state_version,
                })),
                Some(_) => Err(Fault::Not("type", "\"res\" or \"event\"")),
                None => Err(Fault::Missing("type")),
            }
        };
        read().map_err(|fault| EnvelopeError { fault, id: read_id(id).ok() })
    }
}

fn required<'a>(key: &'static str, value: Option<Raw<'a>>) -> Result<Raw<'a>, Fault<'a>> {
    value.ok_or(Fault::Missing(key))
}

/// A string that is there, not empty, and at most `max_bytes` long as it is written.
fn bounded<'a>(key: &'static str, value: Option<Raw<'a>>, max_bytes: usize) -> Result<RawString<'a>, Fault<'a>> {
    let string = required(key, value)?.as_string().ok_or(Fault::Not(key, "a string"))?;
    match string.inner().len() {
        0 => Err(Fault::Not(key, "a string that is not empty")),
        bytes if bytes > max_bytes => Err(Fault::TooLong(key, max_bytes)),
        _ => Ok(string),
    }
}

fn read_id(value: Option<Raw<'_>>) -> Result<RawString<'_>, Fault<'_>> {
    bounded("id", value, MAX_ID_BYTES)
}

fn read_name<'a>(key: &'static str, value: Option<Raw<'a>>) -> Result<Cow<'a, str>, Fault<'a>> {
    Ok(bounded(key, value, MAX_NAME_BYTES)?.decode())
}

/// An optional string of `min` to [`MAX_TAG_CHARS`] characters.
fn read_tag<'a>(key: &'static str, min: usize, value: Option<Raw<'a>>) -> Result<Option<RawString<'a>>, Fault<'a>> {
    let Some(value) = value else { return Ok(None) };
    let string = value.as_string().ok_or(Fault::Not(key, "a string"))?;
    match string.decode().chars().count() {
        count if count < min => Err(Fault::Not(key, "a string that is not empty")),
        count if count > MAX_TAG_CHARS => Err(Fault::TooLong(key, MAX_TAG_CHARS)),
        _ => Ok(Some(string)),
    }
}

/// Whether the value is a string that says `text`.
fn says(value: Raw<'_>, text: &str) -> bool {
    value.as_string().is_some_and(|string| string.inner() == text || string.decode() == text)
}

/// A text that is not the frame it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct EnvelopeError<'a> {
    /// What is wrong with it.
    pub fault: Fault<'a>,
    /// The id that an answer can carry, where the frame has a usable one.
    pub id: Option<RawString<'a>>,
}

impl From<JsonError> for EnvelopeError<'_> {
    fn from(error: JsonError) -> Self {
        Self { fault: Fault::Json(error), id: None }
    }
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault<'a> {
    /// Not a JSON object, or not JSON.
    Json(JsonError),
    /// A key came twice.
    Duplicate(Key<'a>),
    /// A key that this kind of frame does not have.
    Unknown(Key<'a>),
    /// This key is needed.
    Missing(&'static str),
    /// The value of this key must be something else.
    Not(&'static str, &'static str),
    /// The value of this key is longer than this.
    TooLong(&'static str, usize),
}

/// `/method: must be a string`; never more than about 150 bytes, whatever the peer wrote.
impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Json(error) => error.fmt(f),
            Self::Duplicate(key) => write!(f, "/{key}: a key must not come twice (byte {})", key.at),
            Self::Unknown(key) => write!(f, "/{key}: no such key in this frame (byte {})", key.at),
            Self::Missing(key) => write!(f, "/{key}: must be present"),
            Self::Not(key, expected) => write!(f, "/{key}: must be {expected}"),
            Self::TooLong(key, max) => write!(f, "/{key}: must not be longer than {max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        match Request::parse(text) {
            Ok(request) => panic!("{request:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_request_gives_its_spans() {
        let text = r#" { "type" : "req","id":"7:\u0061","method":"node.invoke","params":{"a":[1,{"b":"}"}]} } "#;
        let request = Request::parse(text).unwrap();
        assert_eq!(request.id.as_str(), r#""7:\u0061""#);
        assert_eq!(request.id.decode(), "7:a");
        assert_eq!(request.method, "node.invoke");
        assert_eq!(request.params.map(Raw::as_str), Some(r#"{"a":[1,{"b":"}"}]}"#));
        assert_eq!((request.traceparent, request.expected_profile_id), (None, None));
    }

    #[test]
    fn params_may_be_absent_or_anything() {
        let absent = Request::parse(r#"{"type":"req","id":"1","method":"health"}"#).unwrap();
        assert_eq!(absent.params, None);
        for params in ["null", "1", "\"x\"", "[]", "{}"] {
            let text = format!(r#"{{"params":{params},"method":"m","id":"1","type":"req"}}"#);
            assert_eq!(Request::parse(&text).unwrap().params.map(Raw::as_str), Some(params));
        }
    }

    #[test]
    fn escaped_keys_and_names_are_what_they_say() {
        let request = Request::parse(r#"{"t\u0079pe":"r\u0065q","\u0069d":"1","method":"he\u0061lth"}"#).unwrap();
        assert_eq!(request.method, "health");
        assert_eq!(
            error(r#"{"type":"req","id":"1","method":"m","t\u0079pe":"req"}"#),
            r"/t\u0079pe: a key must not come twice (byte 36)"
        );
    }

    #[test]
    fn refuses_a_key_twice() {
        assert_eq!(
            error(r#"{"type":"req","id":"1","method":"m","params":{},"params":{}}"#),
            "/params: a key must not come twice (byte 48)"
        );
    }

    #[test]
    fn refuses_keys_that_a_request_does_not_have() {
        assert_eq!(
            error(r#"{"type":"req","id":"1","method":"m","ok":true}"#),
            "/ok: no such key in this frame (byte 36)"
        );
        let long = format!(r#"{{"type":"req","id":"1","method":"m","{}":true}}"#, "k".repeat(1 << 20));
        assert!(error(&long).len() < 150);
    }

    #[test]
    fn says_what_a_request_needs() {
        for (text, expected) in [
            (r#"{"id":"1","method":"m"}"#, "/type: must be present"),
            (r#"{"type":"res","id":"1","method":"m"}"#, "/type: must be \"req\""),
            (r#"{"type":"req","method":"m"}"#, "/id: must be present"),
            (r#"{"type":"req","id":1,"method":"m"}"#, "/id: must be a string"),
            (r#"{"type":"req","id":"","method":"m"}"#, "/id: must be a string that is not empty"),
            (r#"{"type":"req","id":"1"}"#, "/method: must be present"),
            (r#"{"type":"req","id":"1","method":null}"#, "/method: must be a string"),
            (r#"{"type":"req","id":"1","method":"m","traceparent":1}"#, "/traceparent: must be a string"),
            (
                r#"{"type":"req","id":"1","method":"m","expectedProfileId":""}"#,
                "/expectedProfileId: must be a string that is not empty",
            ),
            ("[]", "expected a JSON object at byte 0"),
            ("hello", "expected a JSON value at byte 0"),
            ("", "unexpected end of JSON at byte 0"),
            (r#"{"type":"req","id":"1","method":"m"} x"#, "unexpected text after the JSON value at byte 37"),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
    }

    #[test]
    fn bounds_ids_and_names() {
        let request = |id: usize, method: usize, trace: usize| {
            let (id, method, trace) = ("i".repeat(id), "m".repeat(method), "ü".repeat(trace));
            format!(r#"{{"type":"req","id":"{id}","method":"{method}","traceparent":"{trace}"}}"#)
        };
        assert!(Request::parse(&request(256, 128, 128)).is_ok());
        assert_eq!(error(&request(257, 1, 1)), "/id: must not be longer than 256");
        assert_eq!(error(&request(1, 129, 1)), "/method: must not be longer than 128");
        assert_eq!(error(&request(1, 1, 129)), "/traceparent: must not be longer than 128");
    }

    #[test]
    fn a_bad_request_can_be_answered_by_its_id() {
        let id = |text| Request::parse(text).unwrap_err().id.map(RawString::as_str);
        assert_eq!(id(r#"{"type":"req","extra":1,"id":"7"}"#), Some("\"7\""));
        assert_eq!(id(r#"{"type":"req","id":7,"method":"m"}"#), None);
        assert_eq!(id(r#"{"type":"req","id":"7","method":"m""#), None);
    }

    #[test]
    fn a_response_succeeds_or_says_why() {
        let Ok(Reply::Response(ok)) = Reply::parse(r#"{"type":"res","id":"1","ok":true,"payload":{"a":1}}"#) else {
            panic!("a response")
        };
        assert_eq!((ok.id.as_str(), ok.ok, ok.payload.map(Raw::as_str)), ("\"1\"", true, Some(r#"{"a":1}"#)));
        let Ok(Reply::Response(failed)) =
            Reply::parse(r#"{"type":"res","id":"1","ok":false,"error":{"code":"X","message":"y"}}"#)
        else {
            panic!("a response")
        };
        assert_eq!(failed.error.map(Raw::as_str), Some(r#"{"code":"X","message":"y"}"#));
        assert!(Reply::parse(r#"{"type":"res","id":"1"}"#).is_err());
    }

    #[test]
    fn an_event_may_be_counted_and_may_have_more_than_we_know() {
        let text = r#"{"type":"event","event":"presence","payload":[],"seq":18446744073709551615,
            "stateVersion":{"presence":1,"health":2},"sentAt":5}"#;
        let Ok(Reply::Event(event)) = Reply::parse(text) else { panic!("an event") };
        assert_eq!((&*event.event, event.seq), ("presence", Some(u64::MAX)));
        assert_eq!(event.state_version.map(Raw::as_str), Some(r#"{"presence":1,"health":2}"#));
        assert!(Reply::parse(r#"{"type":"event","event":"tick","seq":-1}"#).is_err());
        assert!(Reply::parse(r#"{"type":"req","id":"1","method":"m"}"#).is_err());
    }
}
