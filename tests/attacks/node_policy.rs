//! S-70 to S-78: what a node may be asked, and what it may say of itself.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Client, Incoming, node, operator_with};
use crate::support::device::Device;
use crate::support::gateway::Gateway;
use crate::{code, with};

/// A connected node, approved by `admin` for all that it offers.
fn approved(gateway: &Gateway, admin: &mut Client, device: &Device, commands: &[&str]) -> Client {
    let mut client = gateway.client();
    device.connect(&mut client, &node(commands)).expect("a node of this host is let in");
    let id = device.id();
    let asked = admin.find(|frame| frame["event"] == "node.pair.requested" && frame["payload"]["nodeId"] == id);
    admin.call("node.pair.approve", &json!({"requestId": asked["payload"]["requestId"]})).unwrap();
    client
}

fn invocation(device: &Device, command: &str, params: Value, key: &str) -> Value {
    json!({"nodeId": device.id(), "command": command, "params": params, "idempotencyKey": key, "timeoutMs": 200})
}

fn row(admin: &mut Client, device: &Device) -> Value {
    let list = admin.call("node.list", &json!({})).unwrap();
    let rows = list["nodes"].as_array().unwrap();
    rows.iter().find(|row| row["nodeId"] == device.id()).cloned().unwrap_or_else(|| panic!("{list}"))
}

/// Whether any call has come to the node.
fn was_asked(client: &mut Client) -> bool {
    std::iter::from_fn(|| client.next_within(Duration::from_millis(300)))
        .any(|incoming| matches!(incoming, Incoming::Json(frame) if frame["event"] == "node.invoke.request"))
}

#[test]
fn s_70_a_caller_that_says_approved_has_approved_nothing() {
    let gateway = Gateway::start();
    let (mut admin, device) = (gateway.operator(), Device::new(1));
    let mut host = approved(&gateway, &mut admin, &device, &["system.run"]);
    let mut writer = gateway.client();
    writer.connect(&operator_with(&["operator.write"])).unwrap();
    for (number, more) in [
        json!({"approved": true}),
        json!({"approved": true, "runId": "r1"}),
        json!({"approvalDecision": "allow-always", "runId": "r1"}),
        json!({"approvalDecision": "allow-once"}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut params = json!({"command": ["id"]});
        for (key, value) in more.as_object().unwrap() {
            params[key] = value.clone();
        }
        for caller in [&mut writer, &mut admin] {
            let call = invocation(&device, "system.run", params.clone(), &format!("{number}"));
            assert_eq!(caller.call("node.invoke", &call).unwrap_err()["code"], "INVALID_REQUEST", "{params}");
        }
    }
    assert!(!was_asked(&mut host), "nothing of it has reached the node");
    // What a node takes for the gateway's own word is not passed on from a caller, in whatever spelling.
    let params = json!({"command": ["id"], "approved": false, "security": "full", "ask": "off", "Approved": true});
    writer.send("node.invoke", &invocation(&device, "system.run", params, "plain"));
    let request = host.event("node.invoke.request");
    let sent: Value = serde_json::from_str(request["paramsJSON"].as_str().unwrap()).unwrap();
    let keys: Vec<_> = sent.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["command", "runId"], "{sent}");
}

#[test]
fn s_71_a_node_that_says_it_is_another_device_is_approved_anew() {
    let gateway = Gateway::start();
    let (mut admin, device) = (gateway.operator(), Device::new(1));
    drop(approved(&gateway, &mut admin, &device, &["system.notify"]));
    for (field, value) in [("platform", "macos"), ("deviceFamily", "iPhone"), ("platform", "linux;macos")] {
        let mut params = node(&["system.notify", "photos.latest"]);
        params["client"][field] = json!(value);
        let error = device.connect(&mut gateway.client(), &params).unwrap_err();
        assert_eq!(error["details"]["reason"], "metadata-upgrade", "{field} {value}: {error}");
    }
}

#[test]
fn s_72_a_command_that_was_added_waits_for_its_approval() {
    let gateway = Gateway::start();
    let (mut admin, device) = (gateway.operator(), Device::new(1));
    drop(approved(&gateway, &mut admin, &device, &["system.which"]));
    let mut host = gateway.client();
    device.connect(&mut host, &node(&["system.which", "system.run"])).unwrap();
    assert_eq!(row(&mut admin, &device)["commands"], json!(["system.which"]));
    let call = invocation(&device, "system.run", json!({"command": ["id"]}), "k");
    assert_eq!(admin.call("node.invoke", &call).unwrap_err()["code"], "INVALID_REQUEST");
    assert!(!was_asked(&mut host));
}

#[test]
fn s_73_a_paired_device_is_no_approved_node() {
    let gateway = Gateway::start();
    let (mut admin, device) = (gateway.operator(), Device::new(1));
    let mut host = gateway.client();
    device.connect(&mut host, &node(&["system.run", "system.which"])).unwrap();
    let shown = row(&mut admin, &device);
    assert_eq!((&shown["commands"], &shown["caps"]), (&json!([]), &json!([])), "{shown}");
    for command in ["system.run", "system.which"] {
        let call = invocation(&device, command, json!({"command": ["id"]}), command);
        assert_eq!(admin.call("node.invoke", &call).unwrap_err()["code"], "INVALID_REQUEST", "{command}");
    }
    assert!(!was_asked(&mut host));
}

#[test]
fn s_74_a_node_tells_of_no_runs_but_its_own() {
    let gateway = Gateway::start();
    let (mut admin, one, two) = (gateway.operator(), Device::new(1), Device::new(2));
    let mut first = approved(&gateway, &mut admin, &one, &["system.run"]);
    let mut second = approved(&gateway, &mut admin, &two, &["system.run"]);
    let params = json!({"command": ["id"], "runId": "r1"});
    admin.send("node.invoke", &with(invocation(&one, "system.run", params, "k"), "timeoutMs", json!(10_000)));
    first.event("node.invoke.request");
    let tell = |node: &mut Client, event: &str, run: &str| {
        let params = json!({"event": event, "payloadJSON": json!({"runId": run}).to_string()});
        node.call("node.event", &params).unwrap()["reason"].clone()
    };
    for event in ["exec.started", "exec.finished", "exec.denied"] {
        assert_eq!(tell(&mut second, event, "r1"), "unmatched_exec_event", "{event}: the run of another node");
        assert_eq!(tell(&mut first, event, "r2"), "unmatched_exec_event", "{event}: a run that nobody asked for");
    }
    assert_eq!(tell(&mut first, "exec.started", "r1"), "no_listener");
    // The connection that comes after has not been asked.
    let mut again = gateway.client();
    one.connect(&mut again, &node(&["system.run"])).unwrap();
    assert_eq!(tell(&mut again, "exec.finished", "r1"), "unmatched_exec_event");
}

#[test]
fn s_75_what_is_approved_is_what_was_shown() {
    let gateway = Gateway::start();
    let (mut admin, device) = (gateway.operator(), Device::new(1));
    let mut host = gateway.client();
    device.connect(&mut host, &node(&["system.notify"])).unwrap();
    let shown = admin.event("node.pair.requested")["requestId"].clone();
    // It comes back with more before the operator has decided.
    drop(host);
    let mut host = gateway.client();
    device.connect(&mut host, &node(&["system.notify", "system.run"])).unwrap();
    let now = admin.event("node.pair.requested")["requestId"].clone();
    assert_ne!(shown, now);
    assert!(admin.call("node.pair.approve", &json!({"requestId": shown})).is_err());
    assert_eq!(row(&mut admin, &device)["commands"], json!([]), "the old id approves nothing of the new");
    admin.call("node.pair.approve", &json!({"requestId": now})).unwrap();
    assert_eq!(row(&mut admin, &device)["commands"], json!(["system.notify", "system.run"]));
}

#[test]
fn s_76_a_platform_that_only_looks_like_one_offers_nothing() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    for (seed, platform, family) in [
        (1, "ｌｉｎｕｘ", "Linux"),
        (2, "my linux box", ""),
        (3, "l\u{131}nux", "x"),
        (4, "unknown", "my linux box"),
        (5, "macos\u{200b}", "Mac"),
    ] {
        let device = Device::new(seed);
        let mut params = node(&["system.run", "photos.latest"]);
        params["client"]["platform"] = json!(platform);
        params["client"]["deviceFamily"] = if family.is_empty() { Value::Null } else { json!(family) };
        let mut host = gateway.client();
        if device.connect(&mut host, &params).is_err() {
            continue;
        }
        let list = admin.call("node.pair.list", &json!({})).unwrap();
        let asked = list["pending"].as_array().unwrap().iter().find(|row| row["nodeId"] == device.id()).cloned();
        if let Some(asked) = asked {
            let commands = asked["commands"].to_string();
            assert!(!commands.contains("system.run") && !commands.contains("photos.latest"), "{platform:?}: {asked}");
        }
        let call = invocation(&device, "system.run", json!({"command": ["id"]}), platform);
        assert!(admin.call("node.invoke", &call).is_err(), "{platform:?}");
        assert!(!was_asked(&mut host));
    }
}

#[test]
fn s_77_what_a_node_may_run_is_no_business_of_the_node_and_every_change_is_logged() {
    let gateway = Gateway::start();
    let (mut admin, device) = (gateway.operator(), Device::new(1));
    let mut host = approved(&gateway, &mut admin, &device, &["system.notify"]);
    for method in ["node.pair.approve", "exec.approvals.node.set", "exec.approvals.set", "config.patch", "node.invoke"]
    {
        let error = host.call(method, &json!({})).unwrap_err();
        assert!(error["message"].as_str().unwrap().starts_with("unauthorized role"), "{method}: {error}");
    }
    let mut writer = gateway.client();
    writer.connect(&operator_with(&["operator.write", "operator.read"])).unwrap();
    for method in ["node.pair.approve", "exec.approvals.node.set", "exec.approvals.set", "config.patch"] {
        assert_eq!(code(&writer.call(method, &json!({})).unwrap_err()), "MISSING_SCOPE", "{method}");
    }
    let lines = gateway.log_lines("approved");
    assert!(lines.iter().any(|line| line.contains(&device.id()) && line.contains("system.notify")), "{lines:?}");
}

#[test]
fn s_78_what_would_change_more_than_was_asked_never_leaves_the_gateway() {
    let gateway = Gateway::start();
    let (mut admin, device) = (gateway.operator(), Device::new(1));
    let commands = &["system.run", "browser.proxy", "system.execApprovals.set", "system.execApprovals.get"];
    let mut host = approved(&gateway, &mut admin, &device, commands);
    for (number, (command, params)) in [
        ("system.run", json!({"command": ["rm", "-rf", "/"], "rawCommand": "ls"})),
        ("system.run", json!({"rawCommand": "ls"})),
        ("system.run", json!({"command": ["id"], "approved": true})),
        ("system.run", json!("id")),
        ("system.execApprovals.set", json!({"file": {}})),
        ("system.execApprovals.get", json!({})),
        ("browser.proxy", json!({"method": "POST", "path": "/profiles/create"})),
        ("browser.proxy", json!({"method": "DELETE", "path": "/profiles/%77ork"})),
        ("browser.proxy", json!({"method": "post", "path": "//reset-profile?x"})),
        ("browser.proxy", json!({"method": "GET", "path": "/tabs/../profiles"})),
        ("worker.start", json!({})),
    ]
    .into_iter()
    .enumerate()
    {
        let call = invocation(&device, command, params.clone(), &number.to_string());
        let error = admin.call("node.invoke", &call).unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST", "{command} {params}: {error}");
    }
    assert!(!was_asked(&mut host));
    // A key that comes twice is not left for two readers to read differently.
    let id = device.id();
    let twice = format!(
        r#"{{"type":"req","id":"twice","method":"node.invoke","params":{{"nodeId":"{id}","command":"system.run","idempotencyKey":"t","params":{{"command":["id"],"approved":false,"approved":true}}}}}}"#
    );
    admin.text(&twice);
    assert_eq!(admin.answer("twice").unwrap_err()["code"], "INVALID_REQUEST");
    assert!(!was_asked(&mut host));
}
