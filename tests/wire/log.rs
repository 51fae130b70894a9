//! What goes wrong leaves one line in the log, with the reason.

use std::time::Duration;

use clawgate::ws::message::Opcode;
use serde_json::json;

use crate::support::client::{Client, Incoming, cli, node, operator, operator_with};
use crate::support::device::Device;
use crate::support::gateway::Gateway;

/// Does `misstep` on a new connection, and gives the lines that it left.
fn lines(gateway: &Gateway, misstep: impl FnOnce(&mut Client)) -> Vec<String> {
    let before = gateway.log_lines("").len();
    let mut client = gateway.client();
    client.nonce();
    misstep(&mut client);
    drop(client);
    gateway.log_lines("").split_off(before)
}

#[test]
fn every_refused_call_leaves_one_line_with_its_reason() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    let (device, mut deaf) = (Device::new(1), gateway.client());
    device.connect(&mut deaf, &node(&["system.which"])).unwrap();
    let asked = admin.event("node.pair.requested");
    admin.call("node.pair.approve", &json!({"requestId": asked["requestId"]})).unwrap();
    let invoke = |node_id: &str, key: &str| json!({"nodeId": node_id, "command": "system.which", "timeoutMs": 50, "idempotencyKey": key});
    for (method, params, reason) in [
        ("no.such", json!({}), "unknown method: no.such"),
        ("cron.add", json!({}), "cron.add is not implemented"),
        ("health", json!({"probe": 7}), "invalid health params"),
        ("node.event", json!({}), "unauthorized role: operator"),
        ("node.invoke", invoke("nope", "1"), "node not connected"),
        ("node.invoke", invoke(&device.id(), "2"), "node invoke timed out"),
        ("device.pair.remove", json!({"deviceId": "nope"}), "unknown deviceId"),
    ] {
        let lines = lines(&gateway, |client| {
            client.connect(&operator()).unwrap();
            client.call(method, &params).unwrap_err();
        });
        let about: Vec<_> = lines.iter().filter(|line| line.contains(reason)).collect();
        assert_eq!(about.len(), 1, "{method}: {lines:?}");
        assert!(about[0].contains(method), "{lines:?}");
    }
    let lines = lines(&gateway, |client| {
        client.connect(&operator_with(&["operator.read"])).unwrap();
        client.call("config.get", &json!({})).unwrap();
        client.call("node.invoke", &invoke(&device.id(), "3")).unwrap_err();
    });
    assert_eq!(lines.iter().filter(|line| line.contains("missing scope: operator.write")).count(), 1, "{lines:?}");
}

#[test]
fn every_bad_frame_leaves_one_line_with_its_reason() {
    let gateway = Gateway::start();
    for (text, reason) in
        [("{nope", "not valid JSON"), (r#"{"type":"req","id":"d","method":"health","method":"status"}"#, "method")]
    {
        let lines = lines(&gateway, |client| {
            client.connect(&operator()).unwrap();
            client.text(text);
            client.find(|frame| frame["ok"] == false);
        });
        let about: Vec<_> = lines.iter().filter(|line| line.contains("invalid request frame")).collect();
        assert!(about.len() == 1 && about[0].contains(reason), "{text}: {lines:?}");
    }
}

#[test]
fn a_flood_of_refused_calls_does_not_flood_the_log() {
    let gateway = Gateway::start();
    let lines = lines(&gateway, |client| {
        client.connect(&operator()).unwrap();
        let last = (0..2000).map(|_| client.send("no.such", &json!({}))).last().unwrap();
        client.answer(&last).unwrap_err();
    });
    let about = lines.iter().filter(|line| line.contains("no.such")).count();
    assert!((1..100).contains(&about), "{about} lines");
}

#[test]
fn what_a_client_says_of_itself_cannot_forge_a_line() {
    let gateway = Gateway::start();
    let lines = lines(&gateway, |client| {
        let mut params = cli(&["operator.read"]);
        params["client"]["platform"] = json!("linux\n2026-01-01T00:00:00Z  INFO forged");
        Device::new(1).connect(client, &params).unwrap_err();
    });
    assert_eq!(lines.iter().filter(|line| line.trim_start().starts_with("2026-01-01")).count(), 0, "{lines:?}");
    let lines = lines_of_close(&gateway);
    assert_eq!(lines.len(), 1, "{lines:?}");
}

/// A close reason of a client with a line feed in it.
fn lines_of_close(gateway: &Gateway) -> Vec<String> {
    lines(gateway, |client| {
        client.connect(&operator()).unwrap();
        client.frame(Opcode::Close, &[&1000u16.to_be_bytes()[..], b"bye\nforged \x1b[31m"].concat());
        client.closed();
        gateway.stderr.wait_for(|line| line.contains("closed by the client")).unwrap();
    })
    .into_iter()
    .filter(|line| line.contains("forged"))
    .collect()
}

#[test]
#[ignore = "takes a minute: pings come every 25 s, and are waited for as long"]
fn who_answers_pings_lives_and_who_does_not_is_closed() {
    let gateway = Gateway::start();
    let (mut live, mut dead) = (gateway.operator(), gateway.operator());
    let begun = std::time::Instant::now();
    let mut ticks = 0;
    let mut pings = 0;
    while begun.elapsed() < Duration::from_secs(62) {
        match live.next_within(Duration::from_secs(1)) {
            Some(Incoming::Ping(payload)) => {
                pings += 1;
                live.frame(Opcode::Pong, &payload);
            }
            Some(Incoming::Json(frame)) if frame["event"] == "tick" => ticks += 1,
            Some(Incoming::End { .. }) => panic!("it was closed"),
            _ => {}
        }
    }
    assert!(ticks >= 2 && pings >= 2, "{ticks} ticks, {pings} pings");
    live.call("health", &json!({})).unwrap();
    let (code, reason) = dead.closed();
    assert_eq!(code, 1008);
    assert!(reason.contains("sign of life"), "{reason}");
}
