//! After `hello-ok`: requests, their answers, and everything that is neither.

use std::collections::HashSet;
use std::time::Instant;

use clawgate::ws::message::Opcode;
use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::client::{Client, Incoming, fragment, frame, operator, operator_with};
use crate::support::gateway::{Gateway, Setup};

fn with_scopes(gateway: &Gateway, scopes: &[&str]) -> Client {
    let mut client = gateway.client();
    client.connect(&operator_with(scopes)).expect("it is let in");
    client
}

#[test]
fn a_missing_scope_is_named() {
    let gateway = Gateway::start();
    let mut client = with_scopes(&gateway, &["operator.read"]);
    client.call("health", &json!({})).unwrap();
    let error = client.call("node.invoke", &json!({})).unwrap_err();
    assert_eq!(error["code"], "FORBIDDEN");
    let details = &error["details"];
    assert_eq!(details["code"], "MISSING_SCOPE");
    assert_eq!(details["missingScope"], "operator.write");
    assert_eq!(details["requiredScopes"], json!(["operator.write"]));
    let error = client.call("device.pair.list", &json!({})).unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.pairing");
}

#[test]
fn write_covers_read_and_admin_covers_all() {
    let gateway = Gateway::start();
    with_scopes(&gateway, &["operator.write"]).call("health", &json!({})).unwrap();
    with_scopes(&gateway, &["operator.admin"]).call("device.pair.list", &json!({})).unwrap();
    let error = with_scopes(&gateway, &["operator.approvals"]).call("health", &json!({})).unwrap_err();
    assert_eq!(error["code"], "FORBIDDEN");
    let error = with_scopes(&gateway, &["operator.everything"]).call("health", &json!({})).unwrap_err();
    assert_eq!(error["code"], "FORBIDDEN", "a scope that does not exist gives nothing");
}

#[test]
fn a_method_that_nobody_knows_is_unknown() {
    let gateway = Gateway::start();
    let error = gateway.operator().call("no.such", &json!({})).unwrap_err();
    assert_eq!((&error["code"], &error["message"]), (&json!("INVALID_REQUEST"), &json!("unknown method: no.such")));
    let error = with_scopes(&gateway, &["operator.read"]).call("no.such", &json!({})).unwrap_err();
    assert_eq!(error["code"], "FORBIDDEN", "what exists is told to those who may know");
}

#[test]
fn a_method_of_the_wire_that_is_not_here_says_so() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    for method in ["cron.run", "cron.add", "wizard.start"] {
        let error = client.call(method, &json!({})).unwrap_err();
        assert_eq!(error["code"], "UNAVAILABLE", "{error}");
        assert_eq!(error["details"]["code"], "METHOD_NOT_IMPLEMENTED");
        assert_eq!(error["details"]["method"], method);
        assert_eq!(error["retryable"], false);
    }
}

#[test]
fn invalid_parameters_are_named_by_their_path() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let mut refused = |method: &str, params: Value| {
        let error = client.call(method, &params).unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST", "{method} {params}");
        error["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(refused("health", json!({"probe": 7})).split(": ").next(), Some("invalid health params"));
    assert!(refused("health", json!({"probe": 7})).contains(" at probe:"));
    assert!(refused("health", json!({"x": 1})).contains("x"));
    assert!(refused("health", json!([])).starts_with("invalid health params:"));
    assert!(refused("logs.tail", json!({"limit": 0})).contains("at limit"));
    assert!(refused("device.pair.rename", json!({"deviceId": "x"})).contains("label"));
    assert!(refused("set-heartbeats", json!({"enabled": "yes"})).contains("at enabled"));
}

#[test]
fn every_method_for_operators_answers() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    let hello = client.connect(&operator()).unwrap();
    let methods = hello["features"]["methods"].as_array().unwrap();
    assert!(methods.len() > 15, "{methods:?}");
    for method in methods {
        // Whatever it thinks of these parameters, it answers.
        if let Err(error) = client.call(method.as_str().unwrap(), &json!({})) {
            assert!(error["code"].is_string() && error["message"].is_string(), "{method}: {error}");
        }
    }
}

#[test]
fn no_answer_shows_a_secret() {
    let secret = "a-secret-of-the-configuration";
    let config = json!({
        "gateway": {"auth": {"mode": "token", "token": secret}, "remote": {"token": secret, "password": secret}},
        "channels": {"telegram": {"botToken": secret}},
    });
    let gateway = Setup::new().no_token().config(&config).start();
    let mut client = gateway.client();
    let mut params = operator();
    params["auth"]["token"] = json!(secret);
    let hello = client.connect(&params).unwrap();
    let methods = hello["features"]["methods"].as_array().unwrap();
    for method in methods {
        let answer = client.call(method.as_str().unwrap(), &json!({}));
        let shown = answer.map_or_else(|error| error.to_string(), |payload| payload.to_string());
        assert!(!shown.contains(secret), "{method}: {shown}");
    }
    assert!(!hello.to_string().contains(secret) && !gateway.stdout.text().contains(secret));
    assert!(!gateway.stderr.text().contains(secret));
}

#[test]
fn a_frame_that_is_no_request_is_answered_and_the_connection_lives() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    for (text, id) in [
        ("{nope", "invalid"),
        ("", "invalid"),
        ("[1]", "invalid"),
        (r#"{"type":"req","method":"health"}"#, "invalid"),
        (r#"{"type":"req","id":7,"method":"health"}"#, "invalid"),
        (r#"{"type":"req","id":"","method":"health"}"#, "invalid"),
    ] {
        client.text(text);
        let error = client.answer(id).unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST", "{text}");
        assert!(error["message"].as_str().unwrap().starts_with("invalid request frame: "), "{text}: {error}");
    }
    client.call("health", &json!({})).unwrap();
    for (text, id, about) in [
        (r#"{"type":"req","id":"a"}"#, "a", "method"),
        (r#"{"type":"req","id":"b","method":"health","colour":1}"#, "b", "colour"),
        (r#"{"type":"res","id":"c","ok":true}"#, "c", "type"),
        (r#"{"type":"req","id":"d","method":"health","method":"status"}"#, "d", "method"),
        (r#"{"type":"req","id":"e","method":"health","params":{},"params":{}}"#, "e", "params"),
    ] {
        client.text(text);
        let error = client.answer(id).unwrap_err();
        assert!(error["message"].as_str().unwrap().contains(about), "{text}: {error}");
    }
    client.call("health", &json!({})).unwrap();
}

#[test]
fn a_flood_of_frames_that_are_no_requests_is_closed() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    for _ in 0..10 {
        client.text("{nope");
    }
    let (code, reason) = client.closed();
    assert_eq!(code, 1008);
    assert!(reason.contains("too many"), "{reason}");
}

#[test]
fn json_that_is_nested_too_deep_is_refused() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    client.text(&format!(
        r#"{{"type":"req","id":"deep","method":"health","params":{}{}}}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    ));
    let frame = client.find(|frame| frame["type"] == "res" && frame["ok"] == false);
    assert_eq!(frame["error"]["code"], "INVALID_REQUEST");
    client.call("health", &json!({})).unwrap();
}

#[test]
fn a_message_above_25_mib_is_too_big() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let bytes = frame(Opcode::Text, &vec![b' '; 26 << 20]);
    client.try_bytes(&bytes);
    let (code, reason) = client.closed();
    assert_eq!((code, &*reason), (1009, "message too big"));
    assert_eq!(gateway.log_lines("message too big").len(), 1);
    let noted = gateway.operator().call("diagnostics.stability", &json!({})).unwrap();
    assert_eq!(noted["events"][0]["surface"], "gateway.ws.inbound");
    assert_eq!(
        (&noted["events"][0]["bytes"], &noted["events"][0]["limitBytes"]),
        (&json!(26 << 20), &json!(25 << 20)),
        "sizes, and nothing of what was in it"
    );
}

#[test]
fn a_message_in_too_many_fragments_is_refused() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let mut bytes = fragment(Opcode::Text, b" ");
    bytes.extend(fragment(Opcode::Continuation, b" ").repeat(2000));
    client.try_bytes(&bytes);
    assert_eq!(client.closed(), (1009, "message in too many fragments".to_owned()));
}

#[test]
fn a_large_request_and_one_in_fragments_are_taken() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let request = |id: &str| json!({"type": "req", "id": id, "method": "health", "params": {}}).to_string();
    client.text(&format!("{}{}", request("large"), " ".repeat(20 << 20)));
    client.answer("large").unwrap();
    let text = request("pieces");
    let (first, rest) = text.split_at(10);
    client.bytes(&fragment(Opcode::Text, first.as_bytes()));
    client.frame(Opcode::Ping, b"between");
    client.bytes(&frame(Opcode::Continuation, rest.as_bytes()));
    loop {
        match client.next() {
            Incoming::Pong(payload) => assert_eq!(payload, b"between"),
            Incoming::Json(frame) if frame["id"] == "pieces" => break assert_eq!(frame["ok"], true),
            Incoming::Json(_) | Incoming::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_binary_frame_is_refused() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    client.frame(Opcode::Binary, br#"{"type":"req","id":"1","method":"health"}"#);
    assert_eq!(client.closed().0, 1003);
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    client.frame(Opcode::Text, b"{\"type\":\"req\",\"id\":\"\xff\",\"method\":\"health\"}");
    assert_eq!(client.closed(), (1007, "text is not UTF-8".to_owned()));
    assert_eq!(gateway.log_lines("text is not UTF-8").len(), 1);
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    for payload in [&b""[..], b"are you there", &[7; 125]] {
        client.frame(Opcode::Ping, payload);
        loop {
            match client.next() {
                Incoming::Pong(echoed) => break assert_eq!(echoed, payload),
                Incoming::Json(_) | Incoming::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    client.frame(Opcode::Pong, b"that nobody asked for");
    client.call("health", &json!({})).unwrap();
}

#[test]
fn a_close_is_echoed_and_ends_the_connection() {
    let gateway = Gateway::start();
    for (payload, code, reason) in [
        ([&1000u16.to_be_bytes()[..], b"bye"].concat(), 1000, "bye"),
        (4000u16.to_be_bytes().to_vec(), 4000, ""),
        (vec![], 1005, ""),
    ] {
        let mut client = gateway.operator();
        client.frame(Opcode::Close, &payload);
        // What comes behind a close frame does not count.
        client.try_bytes(&frame(Opcode::Text, b"{nope"));
        assert_eq!(client.closed(), (code, reason.to_owned()));
    }
}

#[test]
fn events_are_numbered_per_connection_from_1() {
    let gateway = Gateway::start();
    let mut watcher = gateway.operator();
    let mut last = 0;
    for _ in 0..3 {
        let mut other = gateway.operator();
        other.call("system-event", &json!({"text": "someone is there", "host": "desk"})).unwrap();
        // Changes within a tenth of a second are one event.
        let frame = watcher.find(|frame| frame["event"] == "presence");
        let seq = frame["seq"].as_u64().expect("a number");
        assert_eq!(seq, last + 1);
        assert!(frame["stateVersion"]["presence"].is_u64(), "{frame}");
        assert!(frame["payload"]["presence"].is_array(), "{frame}");
        last = seq;
    }
    let mut late = gateway.operator();
    late.call("system-event", &json!({"text": "someone else is there"})).unwrap();
    assert_eq!(late.find(|frame| frame["event"] == "presence")["seq"], 1);
    assert!(watcher.find(|frame| frame["event"] == "presence")["seq"].as_u64() > Some(last));
}

#[test]
fn every_request_of_a_burst_is_answered_once() {
    const REQUESTS: usize = 2000;
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let mut bytes = Vec::new();
    for number in 0..REQUESTS {
        // Answered at once, answered later, and refused.
        let method = ["health", "device.pair.rename", "no.such"][number % 3];
        let params = if number % 3 == 1 { json!({"deviceId": "0".repeat(64), "label": "x"}) } else { json!({}) };
        let request = json!({"type": "req", "id": number.to_string(), "method": method, "params": params});
        bytes.extend(frame(Opcode::Text, request.to_string().as_bytes()));
    }
    let mut writer = client.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
    let mut answered = HashSet::new();
    while answered.len() < REQUESTS {
        let answer = client.find(|frame| frame["type"] == "res");
        let id: usize = answer["id"].as_str().unwrap().parse().unwrap();
        assert!(answered.insert(id), "{id} was answered twice");
        assert_eq!(answer["ok"], id.is_multiple_of(3), "{answer}");
    }
    writing.join().unwrap().unwrap();
    // Nothing more than that: the next answer is the next request's.
    client.text(r#"{"type":"req","id":"last","method":"health"}"#);
    assert_eq!(client.find(|frame| frame["type"] == "res")["id"], "last");
}

#[test]
fn answers_of_one_kind_come_in_order() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let requests: Vec<_> = (0..500).map(|_| client.send("health", &json!({}))).collect();
    for id in requests {
        assert_eq!(client.find(|frame| frame["type"] == "res")["id"], id);
    }
}

#[test]
fn ids_go_back_as_they_came() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    for id in ["1", "a:b-c", "\u{1f980}", "with \"quotes\" and \\", &"x".repeat(200)] {
        client.text(&json!({"type": "req", "id": id, "method": "health"}).to_string());
        client.answer(id).unwrap();
    }
}

#[test]
fn the_log_of_a_running_gateway_can_be_read() {
    let gateway = Gateway::start();
    let mut client = gateway.operator();
    let until = Instant::now() + PATIENCE;
    // The file is written behind what happens.
    let lines = loop {
        let mut tail = client.call("logs.tail", &json!({"limit": 5})).unwrap();
        assert!(tail["cursor"].is_u64() && tail["size"].is_u64(), "{tail}");
        match tail["lines"].take() {
            Value::Array(lines) if !lines.is_empty() => break lines,
            none => assert!(Instant::now() < until, "{none}"),
        }
    };
    assert!(lines.len() <= 5);
    let line: Value = serde_json::from_str(lines[0].as_str().unwrap()).unwrap();
    assert!(line["time"].is_string() && line["message"].is_string() && line["_meta"]["logLevelName"].is_string());
}
