//! From the upgrade to `hello-ok`: what a stranger may send, and what it costs.

use std::time::{Duration, Instant};

use clawgate::ws::message::Opcode;
use serde_json::{Value, json};

use crate::support::client::{ALL_SCOPES, Client, Incoming, fragment, frame, operator, operator_with};
use crate::support::gateway::{Gateway, Setup};

/// Runs `spoil` on a fresh connection; gives the close frame, of which the log has one line.
fn refused(gateway: &Gateway, spoil: impl FnOnce(&mut Client)) -> (u16, String) {
    let before = gateway.log_lines("client refused").len();
    let mut client = gateway.client();
    client.nonce();
    spoil(&mut client);
    let (code, reason) = client.closed();
    let lines = gateway.log_lines("client refused");
    assert_eq!(lines.len(), before + 1, "{lines:?}");
    assert!(lines[before].contains(&format!("code={code} ")), "{lines:?}");
    (code, reason)
}

#[test]
fn the_challenge_comes_first() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    let Incoming::Json(frame) = client.next() else { panic!("no text") };
    assert_eq!((&frame["type"], &frame["event"]), (&json!("event"), &json!("connect.challenge")));
    assert!(frame["payload"]["ts"].is_u64() && frame.get("seq").is_none(), "{frame}");
    let nonce = frame["payload"]["nonce"].as_str().unwrap().to_owned();
    assert!(nonce.len() >= 32, "{nonce}");
    assert_ne!(gateway.client().nonce(), nonce);
}

#[test]
fn hello_ok_has_all_that_the_schema_requires() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    let hello = client.connect(&operator()).unwrap();
    for (pointer, is_right) in [
        ("/type", (|v| v == "hello-ok") as fn(&Value) -> bool),
        ("/protocol", |v| *v == 4),
        ("/server/version", Value::is_string),
        ("/server/connId", Value::is_string),
        ("/features/methods", |v| v.as_array().is_some_and(|all| all.contains(&json!("health")))),
        ("/features/events", |v| v.as_array().is_some_and(|all| all.contains(&json!("tick")))),
        ("/snapshot/presence", |v| v.as_array().is_some_and(|rows| rows.iter().all(|row| row["ts"].is_u64()))),
        ("/snapshot/health", Value::is_object),
        ("/snapshot/stateVersion/presence", Value::is_u64),
        ("/snapshot/stateVersion/health", Value::is_u64),
        ("/snapshot/uptimeMs", Value::is_u64),
        ("/auth/role", |v| v == "operator"),
        ("/auth/scopes", |v| v.as_array().is_some_and(|all| all.len() == ALL_SCOPES.len())),
        ("/policy/maxPayload", |v| *v == 26_214_400),
        ("/policy/maxBufferedBytes", Value::is_u64),
        ("/policy/tickIntervalMs", |v| *v == 30_000),
    ] {
        assert!(hello.pointer(pointer).is_some_and(is_right), "{pointer} of {hello}");
    }
    let method = |name: &str| hello["features"]["methods"].as_array().unwrap().contains(&json!(name));
    assert!(method("device.pair.list") && !method("node.event") && !method("connect"), "{}", hello["features"]);
}

#[test]
fn nothing_of_the_state_is_shown_without_the_scope_to_read_it() {
    let gateway = Gateway::start();
    let hello = gateway.client().connect(&operator_with(&["operator.pairing"])).unwrap();
    assert_eq!(hello["snapshot"]["presence"], json!([]));
    assert_eq!(hello["auth"]["scopes"], json!(["operator.pairing"]));
}

#[test]
fn a_wrong_token_is_told_what_to_do() {
    let gateway = Gateway::start();
    let mut params = operator();
    params["auth"]["token"] = json!("wrong");
    let mut error = Value::Null;
    let close = refused(&gateway, |client| error = client.connect(&params).unwrap_err());
    assert_eq!(error["code"], "INVALID_REQUEST");
    let details = &error["details"];
    assert_eq!(details["code"], "AUTH_TOKEN_MISMATCH");
    assert_eq!(details["authReason"], "token_mismatch");
    assert_eq!(details["authProvided"], "token");
    assert_eq!(details["canRetryWithDeviceToken"], false);
    assert_eq!(details["recommendedNextStep"], "update_auth_credentials");
    assert_eq!(close.0, 1008);
    assert!(close.1.contains("token mismatch"), "{close:?}");
    assert!(!gateway.stderr.text().contains("wrong\""), "what a client sent as a secret is not logged");
}

#[test]
fn a_page_that_guesses_is_locked_out_and_the_host_itself_is_not() {
    let gateway = Gateway::start();
    let guess = |number: u32| {
        let mut params = operator();
        params["auth"]["token"] = json!(format!("guess {number}"));
        params
    };
    let page = || Client::open_with(gateway.port, "Origin: http://localhost:5173\r\n").unwrap();
    for number in 0..10 {
        let error = page().connect(&guess(number)).unwrap_err();
        assert_eq!(error["details"]["code"], "AUTH_TOKEN_MISMATCH");
    }
    let error = page().connect(&operator()).unwrap_err();
    assert_eq!(error["details"]["code"], "AUTH_RATE_LIMITED");
    assert_eq!(error["details"]["recommendedNextStep"], "wait_then_retry");
    assert!(error["retryAfterMs"].as_u64().is_some_and(|ms| ms > 0), "{error}");
    for number in 0..20 {
        gateway.client().connect(&guess(number)).unwrap_err();
    }
    gateway.operator();
}

#[test]
fn a_page_with_a_stale_token_locks_out_that_token_alone() {
    let gateway = Gateway::start();
    let mut stale = operator();
    stale["auth"]["token"] = json!("of last year");
    let page = || Client::open_with(gateway.port, "Origin: http://localhost:5173\r\n").unwrap();
    for _ in 0..20 {
        page().connect(&stale).unwrap_err();
    }
    page().connect(&operator()).unwrap();
}

#[test]
fn a_missing_token_is_told_so() {
    let gateway = Gateway::start();
    let mut params = operator();
    params["auth"] = json!({});
    let mut error = Value::Null;
    let close = refused(&gateway, |client| error = client.connect(&params).unwrap_err());
    assert_eq!((&error["code"], &error["details"]["code"]), (&json!("NOT_PAIRED"), &json!("DEVICE_IDENTITY_REQUIRED")));
    assert_eq!(close.0, 1008);
}

#[test]
fn a_password_gateway_takes_its_password_alone() {
    let config = json!({"gateway": {"auth": {"password": "pass phrase"}}});
    let gateway = Setup::new().no_token().config(&config).start();
    let with = |auth: Value| {
        let mut params = operator();
        params["auth"] = auth;
        gateway.client().connect(&params)
    };
    with(json!({"password": "pass phrase"})).unwrap();
    let error = with(json!({"password": "guess"})).unwrap_err();
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISMATCH");
    let error = with(json!({"token": "pass phrase"})).unwrap_err();
    assert_eq!(error["details"]["code"], "AUTH_PASSWORD_MISSING");
}

#[test]
fn the_first_request_must_be_connect() {
    let gateway = Gateway::start();
    let mut answer = Ok(Value::Null);
    let close = refused(&gateway, |client| answer = client.call("health", &json!({})));
    assert_eq!(answer.unwrap_err()["message"], "invalid handshake: first request must be connect");
    assert_eq!(close, (1008, "invalid handshake: first request must be connect".to_owned()));
}

#[test]
fn what_is_no_request_is_refused() {
    let gateway = Gateway::start();
    for text in ["hello", "", "[]", "null", "{}", r#"{"type":"event","event":"x"}"#, r#"{"type":"req""#] {
        let (code, reason) = refused(&gateway, |client| client.text(text));
        assert_eq!(code, 1008, "{text}");
        assert!(reason.contains("invalid request frame"), "{text}: {reason}");
    }
}

#[test]
fn invalid_parameters_are_named_by_their_path() {
    let gateway = Gateway::start();
    let spoiled = |path: &str, value: Value| {
        let mut params = operator();
        let (parent, key) = path.rsplit_once('/').unwrap();
        params.pointer_mut(parent).unwrap()[key] = value;
        let mut error = Value::Null;
        let close = refused(&gateway, |client| error = client.connect(&params).unwrap_err());
        assert_eq!((close.0, &error["code"]), (1008, &json!("INVALID_REQUEST")));
        error["message"].as_str().unwrap().to_owned()
    };
    assert!(spoiled("/client/id", json!("curl")).starts_with("invalid connect params: at client.id: "));
    assert!(spoiled("/client/version", json!(7)).starts_with("invalid connect params: at client.version: "));
    assert!(spoiled("/scopes", json!([1])).starts_with("invalid connect params: at scopes[0]: "));
    assert!(spoiled("/colour", json!("red")).contains("colour"));
    assert!(spoiled("/role", json!("king")).contains("invalid role"));
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    let gateway = Gateway::start();
    let params = operator().to_string();
    for (once, twice) in [
        (r#""auth":"#, r#""auth":{"token":"t0k"},"auth":"#),
        (r#""role":"#, r#""role":"node","role":"#),
        (r#""mode":"#, r#""mode":"cli","mode":"#),
    ] {
        assert!(params.contains(once), "{params}");
        let params = params.replacen(once, twice, 1);
        let request = format!(r#"{{"type":"req","id":"c","method":"connect","params":{params}}}"#);
        let (code, reason) = refused(&gateway, |client| client.text(&request));
        assert_eq!(code, 1008);
        assert!(reason.contains("duplicate"), "{reason}");
    }
}

#[test]
fn a_protocol_that_is_not_spoken_is_told_which_is() {
    let gateway = Gateway::start();
    for (min, max) in [(5, 9), (1, 2), (3, 3)] {
        let mut params = operator();
        (params["minProtocol"], params["maxProtocol"]) = (json!(min), json!(max));
        let mut error = Value::Null;
        let close = refused(&gateway, |client| error = client.connect(&params).unwrap_err());
        assert_eq!(close.0, 1002, "{min}..{max}");
        assert_eq!(error["details"]["code"], "PROTOCOL_MISMATCH");
        assert_eq!(error["details"]["expectedProtocol"], 4);
    }
}

#[test]
fn a_probe_may_speak_the_previous_protocol() {
    let gateway = Gateway::start();
    let mut params = operator();
    (params["minProtocol"], params["maxProtocol"]) = (json!(3), json!(3));
    params["client"]["id"] = json!("openclaw-probe");
    params["client"]["mode"] = json!("probe");
    assert_eq!(gateway.client().connect(&params).unwrap()["protocol"], 3);
}

#[test]
fn a_message_of_65_kib_is_too_much_of_a_stranger() {
    let gateway = Gateway::start();
    let close = refused(&gateway, |client| client.try_bytes(&frame(Opcode::Text, &vec![b' '; 65 * 1024])));
    assert_eq!(close, (1009, "preauth payload too large".to_owned()));
    // The head alone says enough.
    let close = refused(&gateway, |client| client.bytes(&frame(Opcode::Text, &vec![b' '; 65 * 1024])[..14]));
    assert_eq!(close, (1009, "preauth payload too large".to_owned()));
}

#[test]
fn a_connect_of_just_under_64_kib_is_read() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    client.nonce();
    let request = json!({"type": "req", "id": "c", "method": "connect", "params": operator()}).to_string();
    client.text(&format!("{request}{}", " ".repeat(64 * 1024 - request.len())));
    client.answer("c").unwrap();
}

#[test]
fn fragments_of_a_stranger_are_counted_together() {
    let gateway = Gateway::start();
    let close = refused(&gateway, |client| {
        client.bytes(&fragment(Opcode::Text, &[b' '; 32 * 1024]));
        client.try_bytes(&fragment(Opcode::Continuation, &[b' '; 32 * 1024]));
        client.try_bytes(&fragment(Opcode::Continuation, b" "));
    });
    assert_eq!(close, (1009, "preauth payload too large".to_owned()));
    let close = refused(&gateway, |client| {
        let mut flood = fragment(Opcode::Text, b"");
        flood.extend(fragment(Opcode::Continuation, b"").repeat(5000));
        client.try_bytes(&flood);
    });
    assert_eq!(close.0, 1009, "empty fragments cost nothing to send: {close:?}");
}

#[test]
fn frames_that_rfc_6455_forbids_are_refused() {
    let gateway = Gateway::start();
    let unmasked = [0x81, 2, b'{', b'}'].to_vec();
    let mut reserved = frame(Opcode::Text, b"{}");
    reserved[0] |= 0x10;
    let mut opcode_3 = frame(Opcode::Text, b"{}");
    opcode_3[0] = 0x83;
    let mut long_ping = frame(Opcode::Binary, &[0; 126]);
    long_ping[0] = 0x89;
    for (bytes, code) in [
        (unmasked, 1002),
        (reserved, 1002),
        (opcode_3, 1002),
        (long_ping, 1002),
        (fragment(Opcode::Ping, b""), 1002),
        // A length of 2^63, of 2^40, and one in more bytes than it needs.
        ([&[0x81, 0xff][..], &(1u64 << 63).to_be_bytes()].concat(), 1002),
        ([&[0x81, 0xff][..], &(1u64 << 40).to_be_bytes()].concat(), 1009),
        ([&[0x81, 0xfe][..], &2u16.to_be_bytes()].concat(), 1002),
        (frame(Opcode::Continuation, b"{}"), 1002),
        (frame(Opcode::Text, b"\xff\xfe"), 1007),
        (frame(Opcode::Text, b"\xed\xa0\x80"), 1007),
        (frame(Opcode::Close, &[3]), 1002),
        (frame(Opcode::Close, &1005u16.to_be_bytes()), 1002),
        (frame(Opcode::Binary, b"{}"), 1003),
    ] {
        assert_eq!(refused(&gateway, |client| client.bytes(&bytes)).0, code, "{bytes:x?}");
    }
}

#[test]
fn a_connect_may_come_in_single_bytes() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    let request = json!({"type": "req", "id": "c", "method": "connect", "params": operator()}).to_string();
    for byte in frame(Opcode::Text, request.as_bytes()) {
        client.bytes(&[byte]);
    }
    client.answer("c").unwrap();
}

#[test]
fn a_second_connect_is_answered_with_an_error() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let error = client.call("connect", &operator()).unwrap_err();
    assert_eq!(error["code"], "INVALID_REQUEST");
    assert!(error["message"].as_str().unwrap().contains("first request"), "{error}");
    client.call("health", &json!({})).unwrap();
}

#[test]
fn who_does_not_connect_in_time_is_closed() {
    for setup in [
        Setup::new().config(&json!({"gateway": {"handshakeTimeoutMs": 200}})),
        Setup::new()
            .config(&json!({"gateway": {"handshakeTimeoutMs": 60_000}}))
            .env("OPENCLAW_HANDSHAKE_TIMEOUT_MS", "200"),
    ] {
        let gateway = setup.start();
        let begun = Instant::now();
        let mut client = gateway.client();
        client.nonce();
        // Signs of life that are no connect do not help.
        client.frame(Opcode::Ping, b"");
        client.bytes(&frame(Opcode::Text, b"{}")[..3]);
        let (code, reason) = client.closed();
        assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
        assert_eq!(code, 1008);
        assert!(reason.contains("handshake timeout"), "{reason}");
        assert!(gateway.stderr.wait_for(|line| line.contains("handshake timeout")).is_some());
    }
}

#[test]
fn who_is_connected_is_not_subject_to_the_handshake_timeout() {
    let gateway = Setup::new().env("OPENCLAW_HANDSHAKE_TIMEOUT_MS", "300").start();
    let mut client = gateway.operator();
    let mut witness = gateway.client();
    witness.nonce();
    witness.closed();
    client.call("health", &json!({})).unwrap();
}

#[test]
fn who_leaves_before_connecting_leaves_nothing_behind() {
    let gateway = Setup::new().open_files(100).start();
    // More than fit at a time: each place must be free again.
    for _ in 0..100 {
        let mut client = gateway.client();
        client.nonce();
        client.frame(Opcode::Close, &1000u16.to_be_bytes());
        assert_eq!(client.closed().0, 1000);
    }
    gateway.operator();
}
