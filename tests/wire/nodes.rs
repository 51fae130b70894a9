//! Nodes: approval, calls, and what becomes of them when somebody is slow, gone or wrong.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::client::{Client, Incoming, node};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, Setup};

const COMMANDS: &[&str] = &["system.which", "system.notify"];

/// A node that is connected.
struct Node {
    device: Device,
    client: Client,
}

impl Node {
    /// Connects the node of `seed` with the shared token.
    fn connect(gateway: &Gateway, seed: u8) -> Self {
        let (device, mut client) = (Device::new(seed), gateway.client());
        device.connect(&mut client, &node(COMMANDS)).expect("a node of this host is let in");
        Self { device, client }
    }

    /// The same, and lets `operator` approve what it offers.
    fn approved(gateway: &Gateway, operator: &mut Client, seed: u8) -> Self {
        let node = Self::connect(gateway, seed);
        approve(operator, &node.id());
        node
    }

    fn id(&self) -> String {
        self.device.id()
    }

    /// Waits for the next call.
    fn request(&mut self) -> Value {
        self.client.event("node.invoke.request")
    }

    /// Answers a call.
    fn answer(&mut self, request: &Value, payload: &Value) -> Value {
        let result = json!({
            "id": request["id"], "nodeId": request["nodeId"], "ok": true, "payloadJSON": payload.to_string(),
        });
        self.client.call("node.invoke.result", &result).expect("a result is taken")
    }
}

/// Approves what the node offers, as soon as its request is there.
fn approve(operator: &mut Client, node_id: &str) {
    let asked = operator.find(|frame| frame["event"] == "node.pair.requested" && frame["payload"]["nodeId"] == node_id);
    let request = json!({"requestId": asked["payload"]["requestId"]});
    operator.call("node.pair.approve", &request).expect("an operator may approve");
}

fn invocation(node_id: &str, key: &str) -> Value {
    json!({"nodeId": node_id, "command": "system.which", "params": {"bins": ["uname"]}, "idempotencyKey": key})
}

fn with(mut value: Value, key: &str, member: Value) -> Value {
    value[key] = member;
    value
}

fn listed(operator: &mut Client, node_id: &str) -> Option<Value> {
    let list = operator.call("node.list", &json!({})).expect("an operator may read");
    list["nodes"].as_array().expect("a list").iter().find(|row| row["nodeId"] == node_id).cloned()
}

#[test]
fn an_operator_reaches_a_node_once_it_is_approved() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::connect(&gateway, 1);
    let id = node.id();
    let asked = operator.event("node.pair.requested");
    assert_eq!((&asked["nodeId"], &asked["commands"]), (&json!(id), &json!(["system.notify", "system.which"])));
    let row = listed(&mut operator, &id).unwrap();
    assert_eq!(row["approvalState"], "pending-approval");
    assert_eq!((&row["connected"], &row["commands"]), (&json!(true), &json!([])));
    assert_eq!(row["pendingRequestId"], asked["requestId"]);
    let error = operator.call("node.invoke", &invocation(&id, "early")).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("not allowed"), "{error}");

    operator.call("node.pair.approve", &json!({"requestId": asked["requestId"]})).unwrap();
    assert_eq!(operator.event("node.pair.resolved")["decision"], "approved");
    assert_eq!(listed(&mut operator, &id).unwrap()["approvalState"], "approved");

    let call = operator.send("node.invoke", &invocation(&id, "k1"));
    let request = node.request();
    assert_eq!((&request["nodeId"], &request["command"]), (&json!(id), &json!("system.which")));
    assert_eq!(request["paramsJSON"], r#"{"bins":["uname"]}"#);
    assert_eq!(request["idempotencyKey"], "k1");
    assert_eq!(request["timeoutMs"], 30_000);
    let payload = json!({"bins": {"uname": "/usr/bin/uname"}});
    assert_eq!(node.answer(&request, &payload), json!({"ok": true}));
    let answer = operator.answer(&call).unwrap();
    assert_eq!((&answer["ok"], &answer["nodeId"]), (&json!(true), &json!(id)));
    assert_eq!(answer["payload"], payload);
    assert_eq!(answer["payloadJSON"], payload.to_string());
}

#[test]
fn after_a_restart_a_node_comes_back_without_a_new_approval() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let (device, mut client) = (Device::new(1), gateway.client());
    let hello = device.connect(&mut client, &node(COMMANDS)).unwrap();
    let token = hello["auth"]["deviceToken"].as_str().expect("a token goes with a pairing").to_owned();
    approve(&mut operator, &device.id());
    operator.call("node.rename", &json!({"nodeId": device.id(), "displayName": "Desk"})).unwrap();

    // In order, and by force: what was answered with ok is there.
    drop((operator, client));
    let gateway = gateway.restart();
    let setup = gateway.setup();
    gateway.signal(Signal::KILL);
    drop(gateway);
    let gateway = setup.start();

    let mut operator = gateway.operator();
    let row = listed(&mut operator, &device.id()).unwrap();
    assert_eq!((&row["displayName"], &row["connected"]), (&json!("Desk"), &json!(false)));
    let mut node = Node { device, client: gateway.client() };
    let mut params = crate::support::client::node(COMMANDS);
    params["auth"] = json!({"deviceToken": token});
    node.device.connect(&mut node.client, &params).unwrap();
    let call = operator.send("node.invoke", &invocation(&node.id(), "k1"));
    let request = node.request();
    node.answer(&request, &json!(1));
    assert_eq!(operator.answer(&call).unwrap()["payload"], 1);
    assert_eq!(operator.call("node.pair.list", &json!({})).unwrap()["pending"], json!([]));
}

#[test]
fn a_node_that_is_not_there_is_told_from_one_nobody_knows() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let node = Node::approved(&gateway, &mut operator, 1);
    let id = node.id();
    drop(node);
    gateway.stderr.wait_for(|line| line.contains("connection lost")).unwrap();
    for (node_id, known) in [(&*id, true), (&*"0".repeat(64), false), ("nope", false)] {
        let error = operator.call("node.invoke", &invocation(node_id, "k1")).unwrap_err();
        assert_eq!(error["code"], "UNAVAILABLE", "{node_id}");
        let details = &error["details"];
        assert_eq!((&details["code"], &details["known"]), (&json!("NOT_CONNECTED"), &json!(known)), "{node_id}");
        assert_eq!(details["nodeCommandDispatched"], false, "asking again is safe");
    }
    let error = operator.call("node.describe", &json!({"nodeId": "nope"})).unwrap_err();
    assert_eq!(error["code"], "INVALID_REQUEST");
}

#[test]
fn a_command_that_the_node_does_not_offer_is_refused() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    for command in ["system.run", "camera.snap", "no.such"] {
        let params = with(invocation(&node.id(), "k1"), "command", json!(command));
        let error = operator.call("node.invoke", &params).unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST", "{command}");
        assert!(error["message"].as_str().unwrap().contains(command), "{error}");
    }
    for (key, value, about) in [
        ("idempotencyKey", json!(""), "idempotencyKey"),
        ("timeoutMs", json!(-1), "timeoutMs"),
        ("colour", json!("red"), "colour"),
    ] {
        let error = operator.call("node.invoke", &with(invocation(&node.id(), "k1"), key, value)).unwrap_err();
        assert!(error["message"].as_str().unwrap().contains(about), "{error}");
    }
    // Nothing of it has reached the node: the first that does is this one.
    operator.send("node.invoke", &invocation(&node.id(), "good"));
    assert_eq!(node.request()["idempotencyKey"], "good");
}

#[test]
fn a_node_that_never_answers_is_waited_for_as_long_as_the_caller_said() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let begun = Instant::now();
    let call = operator.send("node.invoke", &with(invocation(&node.id(), "k1"), "timeoutMs", json!(300)));
    let request = node.request();
    assert!(request["timeoutMs"].as_u64().is_some_and(|ms| ms <= 300), "{request}");
    let error = operator.answer(&call).unwrap_err();
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(300) && waited < Duration::from_secs(3), "{waited:?}");
    assert_eq!((&error["code"], &error["details"]["code"]), (&json!("UNAVAILABLE"), &json!("TIMEOUT")));
    assert_eq!(error["details"]["nodeCommandDispatched"], true);
    assert_eq!(node.answer(&request, &json!(1)), json!({"ok": true, "ignored": true}), "too late is no fault of it");
    // The caller hears no more of it, and the next call is another.
    let call = operator.send("node.invoke", &invocation(&node.id(), "k2"));
    let request = node.request();
    node.answer(&request, &json!(2));
    assert_eq!(operator.answer(&call).unwrap()["payload"], 2);
}

#[test]
fn only_the_first_result_of_the_node_itself_counts() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let mut other = Node::approved(&gateway, &mut operator, 2);
    let call = operator.send("node.invoke", &invocation(&node.id(), "k1"));
    let request = node.request();
    let forged = json!({"id": request["id"], "nodeId": other.id(), "ok": true, "payloadJSON": "\"forged\""});
    assert_eq!(other.client.call("node.invoke.result", &forged).unwrap()["ignored"], true);
    let forged = with(forged, "nodeId", json!(node.id()));
    let error = other.client.call("node.invoke.result", &forged).unwrap_err();
    assert_eq!(error["message"], "nodeId mismatch");
    let unknown = json!({"id": "nope", "nodeId": node.id(), "ok": true});
    assert_eq!(node.client.call("node.invoke.result", &unknown).unwrap()["ignored"], true);
    assert_eq!(node.answer(&request, &json!("first")), json!({"ok": true}));
    assert_eq!(node.answer(&request, &json!("second")), json!({"ok": true, "ignored": true}));
    assert_eq!(operator.answer(&call).unwrap()["payload"], "first");
}

#[test]
fn the_nodes_own_error_reaches_the_caller() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let call = operator.send("node.invoke", &invocation(&node.id(), "k1"));
    let request = node.request();
    let error = json!({"code": "INVALID_PARAMS", "message": "bins must not be empty"});
    let result = json!({"id": request["id"], "nodeId": node.id(), "ok": false, "error": error});
    node.client.call("node.invoke.result", &result).unwrap();
    let answer = operator.answer(&call).unwrap_err();
    assert_eq!(answer["details"]["nodeError"], error);
    assert_eq!(answer["message"], "INVALID_PARAMS: bins must not be empty");
}

#[test]
fn a_node_that_goes_in_the_middle_takes_its_calls_along() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    for (seed, orderly) in [(1, true), (2, false)] {
        let mut node = Node::approved(&gateway, &mut operator, seed);
        let calls: Vec<_> =
            (0..10).map(|number| operator.send("node.invoke", &invocation(&node.id(), &number.to_string()))).collect();
        for _ in 0..10 {
            node.request();
        }
        let begun = Instant::now();
        if orderly {
            node.client.frame(clawgate::ws::message::Opcode::Close, &1000u16.to_be_bytes());
            node.client.closed();
        }
        drop(node);
        for call in calls {
            let error = operator.answer(&call).unwrap_err();
            assert_eq!(error["details"]["code"], "DISCONNECTED", "{error}");
            assert_eq!(error["details"]["nodeCommandDispatched"], true);
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_caller_that_goes_in_the_middle_disturbs_nobody() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let mut leaving = gateway.operator();
    leaving.send("node.invoke", &invocation(&node.id(), "gone"));
    let request = node.request();
    drop(leaving);
    gateway.stderr.wait_for(|line| line.contains("connection lost")).unwrap();
    assert_eq!(node.answer(&request, &json!(1))["ok"], true);
    let call = operator.send("node.invoke", &invocation(&node.id(), "k2"));
    let request = node.request();
    node.answer(&request, &json!(2));
    assert_eq!(operator.answer(&call).unwrap()["payload"], 2);
}

#[test]
fn progress_reaches_the_caller_who_asked_for_it() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut bystander = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let call = operator.send("node.invoke", &with(invocation(&node.id(), "k1"), "progress", json!(true)));
    let request = node.request();
    for (seq, chunk) in ["one", "two\n\u{1f980}"].into_iter().enumerate() {
        let progress = json!({"invokeId": request["id"], "nodeId": node.id(), "seq": seq, "chunk": chunk});
        assert_eq!(node.client.call("node.invoke.progress", &progress).unwrap()["ignored"], false);
        let event = operator.event("node.invoke.progress");
        assert_eq!((&event["seq"], &event["chunk"]), (&json!(seq), &json!(chunk)));
        assert_eq!(event["idempotencyKey"], "k1");
    }
    node.answer(&request, &json!(null));
    operator.answer(&call).unwrap();
    let late = json!({"invokeId": request["id"], "nodeId": node.id(), "seq": 2, "chunk": "late"});
    assert_eq!(node.client.call("node.invoke.progress", &late).unwrap()["ignored"], true);
    bystander.send("health", &json!({}));
    loop {
        match bystander.next() {
            Incoming::Json(frame) if frame["type"] == "res" => break,
            Incoming::Json(frame) => assert_ne!(frame["event"], "node.invoke.progress"),
            _ => {}
        }
    }
}

#[test]
fn a_command_is_cancelled_when_who_followed_it_is_gone() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    operator.send("node.invoke", &with(invocation(&node.id(), "k1"), "progress", json!(true)));
    let request = node.request();
    drop(operator);
    let cancelled = node.client.event("node.invoke.cancel");
    assert_eq!(cancelled["invokeId"], request["id"]);
}

#[test]
fn a_repeat_gets_the_one_answer() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let first = operator.send("node.invoke", &invocation(&node.id(), "same"));
    let second = operator.send("node.invoke", &invocation(&node.id(), "same"));
    let request = node.request();
    node.answer(&request, &json!(1));
    assert_eq!(operator.answer(&first).unwrap(), operator.answer(&second).unwrap());
    let third = operator.call("node.invoke", &invocation(&node.id(), "same")).unwrap();
    assert_eq!(third["payload"], 1);
    operator.send("node.invoke", &invocation(&node.id(), "other"));
    assert_eq!(node.request()["idempotencyKey"], "other", "the node was asked once");
}

#[test]
fn many_calls_to_many_nodes_each_get_their_own_answer() {
    const NODES: u8 = 8;
    const CALLS: usize = 100;
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut nodes: Vec<_> = (1..=NODES).map(|seed| Node::approved(&gateway, &mut operator, seed)).collect();
    let ids: Vec<_> = nodes.iter().map(Node::id).collect();
    let mut wanted = HashMap::new();
    for number in 0..CALLS {
        for id in &ids {
            let key = format!("{number} of {id}");
            let call = operator.send("node.invoke", &invocation(id, &key));
            wanted.insert(call, key);
        }
    }
    std::thread::scope(|scope| {
        for node in &mut nodes {
            scope.spawn(|| {
                let requests: Vec<_> = (0..CALLS).map(|_| node.request()).collect();
                // The last is answered first.
                for request in requests.iter().rev() {
                    node.answer(request, &request["idempotencyKey"]);
                }
            });
        }
        while !wanted.is_empty() {
            let answer = operator.find(|frame| frame["type"] == "res");
            let key = wanted.remove(answer["id"].as_str().unwrap()).expect("it was asked, and not answered yet");
            assert_eq!(answer["payload"]["payload"], key);
        }
    });
}

#[test]
fn large_parameters_and_results_pass() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let text = "\u{1f980} \"quoted\" \\ \n".repeat(20_000);
    let call = operator.send("node.invoke", &with(invocation(&node.id(), "k1"), "params", json!({"text": text})));
    let request = node.request();
    let params: Value = serde_json::from_str(request["paramsJSON"].as_str().unwrap()).unwrap();
    assert_eq!(params["text"], text);
    node.answer(&request, &params);
    assert_eq!(operator.answer(&call).unwrap()["payload"]["text"], text);
}

#[test]
fn a_node_that_does_not_read_is_closed_and_nobody_waits_for_it() {
    let limits = json!({"outboxBytes": 65_536, "totalOutboxBytes": 1_048_576});
    let config = json!({"plugins": {"entries": {"clawgate": {"config": {"limits": limits}}}}});
    let gateway = Setup::new().config(&config).start();
    let mut operator = gateway.operator();
    let mut deaf = Node::approved(&gateway, &mut operator, 1);
    let mut other = Node::approved(&gateway, &mut operator, 2);
    let large =
        |key: usize| with(invocation(&deaf.device.id(), &key.to_string()), "params", json!({"x": "x".repeat(400_000)}));
    // More than the kernel's buffers and the node's outbox hold together.
    let calls: Vec<_> = (0..24).map(|key| operator.send("node.invoke", &large(key))).collect();
    for call in calls {
        let error = operator.answer(&call).unwrap_err();
        let code = error["details"]["code"].as_str().unwrap();
        assert!(["UNAVAILABLE", "DISCONNECTED", "NOT_CONNECTED"].contains(&code), "{error}");
    }
    gateway.stderr.wait_for(|line| line.contains("slow consumer")).unwrap();
    let call = operator.send("node.invoke", &invocation(&other.id(), "k1"));
    let request = other.request();
    other.answer(&request, &json!(1));
    operator.answer(&call).unwrap();
    while !matches!(deaf.client.next(), Incoming::Close(1008, _) | Incoming::End { .. }) {}
    assert_eq!(gateway.log_lines("slow consumer").len(), 1);
}

#[test]
fn the_newer_connection_of_a_node_wins() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let old = Node::approved(&gateway, &mut operator, 1);
    let mut new = Node::connect(&gateway, 1);
    let call = operator.send("node.invoke", &invocation(&new.id(), "k1"));
    let request = new.request();
    new.answer(&request, &json!("new"));
    assert_eq!(operator.answer(&call).unwrap()["payload"], "new");
    drop(old);
    gateway.stderr.wait_for(|line| line.contains("connection lost") || line.contains("closed by")).unwrap();
    let call = operator.send("node.invoke", &invocation(&new.id(), "k2"));
    let request = new.request();
    new.answer(&request, &json!("still"));
    assert_eq!(operator.answer(&call).unwrap()["payload"], "still");
}

#[test]
fn a_removed_node_is_cut_off_at_once_and_must_be_approved_anew() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let id = node.id();
    let call = operator.send("node.invoke", &invocation(&id, "k1"));
    node.request();
    let begun = Instant::now();
    assert_eq!(operator.call("node.pair.remove", &json!({"nodeId": id})).unwrap(), json!({"nodeId": id}));
    let (code, reason) = node.client.closed();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(code, 4001);
    assert!(reason.contains("removed"), "{reason}");
    assert_eq!(operator.answer(&call).unwrap_err()["details"]["code"], "DISCONNECTED");
    assert_eq!(listed(&mut operator, &id), None);
    let _again = Node::connect(&gateway, 1);
    let error = operator.call("node.invoke", &invocation(&id, "k2")).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("approval"), "{error}");
    assert_eq!(listed(&mut operator, &id).unwrap()["approvalState"], "pending-approval");
}

#[test]
fn a_node_that_offers_more_than_was_approved_keeps_what_was() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let before = Node::approved(&gateway, &mut operator, 1);
    drop(before);
    let (device, mut client) = (Device::new(1), gateway.client());
    device.connect(&mut client, &node(&["system.which", "system.notify", "system.run"])).unwrap();
    let row = listed(&mut operator, &device.id()).unwrap();
    let commands = row["commands"].as_array().unwrap();
    assert!(commands.contains(&json!("system.which")) && !commands.contains(&json!("system.run")), "{row}");
    let asked = operator.event("node.pair.requested");
    assert!(asked["commands"].as_array().unwrap().contains(&json!("system.run")), "{asked}");
}

#[test]
fn what_nodes_ask_for_is_answered_truthfully() {
    let gateway = Gateway::start();
    let mut operator = gateway.operator();
    let mut node = Node::approved(&gateway, &mut operator, 1);
    let pulled = node.client.call("node.pending.pull", &json!({})).unwrap();
    assert_eq!(pulled["actions"], json!([]));
    let drained = node.client.call("node.pending.drain", &json!({})).unwrap();
    assert!(drained["items"].is_array(), "{drained}");
    assert_eq!(node.client.call("skills.bins", &json!({})).unwrap(), json!({"bins": []}));
    let tools = node.client.call("node.pluginTools.update", &json!({"tools": []})).unwrap();
    assert_eq!(tools, json!({"nodeId": node.id(), "tools": []}));
    let skills = node.client.call("node.skills.update", &json!({"skills": []})).unwrap();
    assert_eq!(skills, json!({"nodeId": node.id(), "skills": []}));
    let error = node.client.call("node.event", &json!({"event": 7})).unwrap_err();
    assert!(error["message"].as_str().unwrap().starts_with("invalid node.event params"), "{error}");
}
