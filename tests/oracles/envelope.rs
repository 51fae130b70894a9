//! The envelope scanner against serde_json.
//!
//! Promises, for any text:
//! * what we take, serde_json takes, with the same values;
//! * what we refuse as JSON, serde_json refuses too, unless it is nested deeper than our limit;
//! * what we refuse as a request, a strict struct refuses too, or a rule of ours that is named here says so;
//! * the members of a request's parameters are found without another pass as with one;
//! * strings survive escaping, and JSON survives its way through a string.

use std::borrow::Cow;

use clawgate::rpc::dispatch::Params;
use clawgate::rpc::envelope::{EnvelopeError, Fault, MAX_ID_BYTES, MAX_NAME_BYTES, Reply, Request};
use clawgate::rpc::json::{self, JsonFault, Raw};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Strict<'a> {
    r#type: Cow<'a, str>,
    id: Cow<'a, str>,
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    traceparent: Option<Cow<'a, str>>,
    expected_profile_id: Option<Cow<'a, str>>,
}

/// Checks all promises on `data`, as far as it is UTF-8.
pub(crate) fn check(data: &[u8]) {
    let text = match std::str::from_utf8(data) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&data[..error.valid_up_to()]).unwrap_or_default(),
    };
    json_agrees(text);
    requests_agree(text);
    replies_agree(text);
    strings_survive(text);
}

fn json_agrees(text: &str) {
    match Raw::new(text) {
        Ok(raw) => {
            let theirs: &RawValue = serde_json::from_str(text).expect("serde_json takes what we take");
            assert_eq!(raw.as_str(), theirs.get());
            if let Some(string) = raw.as_string() {
                assert_eq!(string.decode(), serde_json::from_str::<String>(text).expect("a string"));
            }
            assert_eq!(raw.as_u64(), if raw.as_str() == "-0" { None } else { serde_json::from_str(text).ok() });
            assert_eq!(raw.as_bool(), serde_json::from_str(text).ok());
        }
        Err(error) if error.fault == JsonFault::Depth => {}
        Err(error) => {
            assert!(error.at <= text.len());
            assert!(serde_json::from_str::<Value>(text).is_err(), "serde_json takes what we refuse: {error}");
        }
    }
}

fn requests_agree(text: &str) {
    let theirs = serde_json::from_str::<Strict<'_>>(text);
    match Request::parse(text) {
        Ok(ours) => {
            let theirs = theirs.expect("a strict struct takes what we take");
            assert_eq!(theirs.r#type, "req");
            assert_eq!(ours.id.decode(), theirs.id);
            assert_eq!(ours.method, theirs.method);
            let params = ours.params.filter(|params| !params.is_null());
            assert_eq!(params.map(Raw::as_str), theirs.params.map(RawValue::get));
            assert_eq!(ours.traceparent.map(|text| text.decode()), theirs.traceparent);
            assert_eq!(ours.expected_profile_id.map(|text| text.decode()), theirs.expected_profile_id);
            // What the first pass noted of the members is what a second one finds.
            let params = Params::of(&ours);
            for keys in [["a", "b", "id"], ["b", "", "nodeId"]] {
                assert_eq!(params.fields(&keys), json::fields(params.raw(), &keys));
            }
        }
        Err(error) => {
            assert!(error.to_string().len() < 400);
            if let Ok(theirs) = theirs {
                assert!(stricter_on_purpose(&error, &theirs), "a strict struct takes what we refuse: {error}");
            }
            // An answer must be possible to any object with an id.
            if let (Some(id), Ok(Value::Object(object))) = (error.id, serde_json::from_str(text)) {
                assert!(object["id"] == *id.decode() || matches!(error.fault, Fault::Duplicate(_)));
            }
        }
    }
}

/// The rules that a request must keep beyond being such a struct.
fn stricter_on_purpose(error: &EnvelopeError<'_>, theirs: &Strict<'_>) -> bool {
    match error.fault {
        // RawValue looks into neither strings nor depth.
        Fault::Json(error) => matches!(error.fault, JsonFault::Depth | JsonFault::Surrogate),
        Fault::Not("type", _) => theirs.r#type != "req",
        Fault::Not("id", _) => theirs.id.is_empty(),
        Fault::Not("method", _) => theirs.method.is_empty(),
        // Null is not absent.
        Fault::Not("traceparent", _) => theirs.traceparent.is_none(),
        Fault::Not("expectedProfileId", _) => theirs.expected_profile_id.as_deref().is_none_or(str::is_empty),
        // Ids and names are measured as they are written, an escape has up to six bytes for one.
        Fault::TooLong("id", _) => theirs.id.len() > MAX_ID_BYTES / 6,
        Fault::TooLong("method", _) => theirs.method.len() > MAX_NAME_BYTES / 6,
        Fault::TooLong("traceparent", max) => {
            theirs.traceparent.as_ref().is_some_and(|text| text.chars().count() > max)
        }
        Fault::TooLong("expectedProfileId", max) => {
            theirs.expected_profile_id.as_ref().is_some_and(|text| text.chars().count() > max)
        }
        _ => false,
    }
}

fn replies_agree(text: &str) {
    let Ok(ours) = Reply::parse(text) else { return };
    // A number out of the range of f64 is valid JSON that `Value` can't hold.
    let Ok(theirs) = serde_json::from_str::<Value>(text) else { return };
    let value = |raw: Raw<'_>| serde_json::from_str::<Value>(raw.as_str()).expect("a value");
    match ours {
        Reply::Response(response) => {
            assert_eq!(theirs["type"], "res");
            assert_eq!(theirs["id"], *response.id.decode());
            assert_eq!(theirs["ok"], response.ok);
            assert_eq!(theirs.get("payload").cloned(), response.payload.map(value));
            assert_eq!(theirs.get("error").cloned().filter(|error| !error.is_null()), response.error.map(value));
        }
        Reply::Event(event) => {
            assert_eq!(theirs["type"], "event");
            assert_eq!(theirs["event"], *event.event);
            assert_eq!(theirs.get("payload").cloned(), event.payload.map(value));
            assert_eq!(theirs.get("seq").and_then(Value::as_u64), event.seq);
            assert_eq!(theirs.get("stateVersion").cloned(), event.state_version.map(value));
        }
    }
}

fn strings_survive(text: &str) {
    let mut quoted = b"before".to_vec();
    json::push_string(text, &mut quoted);
    let quoted = std::str::from_utf8(&quoted["before".len()..]).expect("UTF-8");
    assert_eq!(serde_json::from_str::<String>(quoted).expect("a JSON string"), text);
    let string = Raw::new(quoted).expect("a JSON string").as_string().expect("a JSON string");
    assert_eq!(string.decode(), text);

    let mut spliced = b"before".to_vec();
    match (json::splice(string, &mut spliced), json::validate(text)) {
        (Ok(()), Ok(())) => assert_eq!(&spliced["before".len()..], text.as_bytes()),
        (Err(ours), Err(theirs)) => {
            assert_eq!(ours, theirs);
            assert_eq!(spliced, b"before");
        }
        differ => panic!("{differ:?}"),
    }
}
