//! `connect` as it comes: any text as its parameters, and as the first frame of a connection.

use serde_json::Value;

use crate::conn::connect::{CLIENT_IDS, CLIENT_MODES, ConnectParams, PROTOCOL, PROTOCOL_PREVIOUS};
use crate::conn::machine::{Machine, Step};

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match ConnectParams::parse(Some(text)) {
        Ok(params) => accepted(text, &params),
        Err(error) => assert!(error.message.starts_with("invalid connect params: "), "{}", error.message),
    }
    // As a frame: it is refused, or it is a connect with the same parameters.
    let framed = format!(r#"{{"type":"req","id":"1","method":"connect","params":{text}}}"#);
    for frame in [text, framed.as_str()] {
        let mut machine = Machine::default();
        match machine.message(frame) {
            Step::Connect { .. } => assert!(machine.is_waiting() && !machine.is_open()),
            Step::Close { reason, .. } => assert!(!reason.is_empty()),
            Step::Route(_) | Step::Answer { .. } => panic!("something was done before connect: {frame}"),
        }
    }
}

fn accepted(text: &str, params: &ConnectParams) {
    let value: Value = serde_json::from_str(text).expect("what was parsed is JSON");
    assert!(value.is_object());
    assert!(CLIENT_IDS.contains(&&*params.client.id) && CLIENT_MODES.contains(&&*params.client.mode));
    assert!(params.min_protocol >= 1 && params.min_protocol <= params.max_protocol);
    if let Some(version) = params.negotiate() {
        assert!(version == PROTOCOL || version == PROTOCOL_PREVIOUS);
        assert!((params.min_protocol..=params.max_protocol).contains(&version));
    }
    for list in [&params.caps, &params.commands, params.scopes.as_ref().unwrap_or(&Vec::new())] {
        assert!(list.iter().all(|entry| !entry.is_empty()));
    }
    assert_eq!(value["role"].as_str(), params.role.as_deref());
    assert_eq!(value["client"]["id"].as_str(), Some(&*params.client.id));
    // A credential is in no text that is made of it.
    let auth = &params.auth;
    let shown = format!("{params:?}");
    for secret in [&auth.token, &auth.password, &auth.device_token, &auth.bootstrap_token].into_iter().flatten() {
        if secret.len() >= 12 && text.matches(secret.as_str()).count() == 1 {
            assert!(!shown.contains(secret.as_str()), "a credential is shown");
        }
    }
}
