//! The claims of the domain as its callers see it: operators and nodes on fake connections, over a store in memory.

use std::task::{Poll, Waker};

use serde_json::{Value, json};

use super::methods::METHODS;
use super::*;
use crate::auth::{DeviceKey, Grant, Method};
use crate::devices::record::Claims;
use crate::devices::{self, PairingRequest};
use crate::hub::Client;
use crate::hub::outbox::{Closing, Item};
use crate::rpc::dispatch::{Params, Router};
use crate::rpc::json::Raw;
use crate::rpc::scope::ScopeSet;

const NOW: UnixMs = UnixMs(1_795_000_000_000);

struct World {
    hub: Hub,
    store: Store,
    devices: Devices,
    nodes: Nodes,
    router: Router,
}

fn policy() -> NodePolicy {
    let allow = ["test.echo", "test.more", "system.run", "system.which", "browser.proxy", "camera.snap"];
    NodePolicy { allow_commands: allow.map(str::to_owned).into(), ..NodePolicy::default() }
}

impl World {
    fn new() -> Self {
        Self::over(Store::open_in_memory(&[devices::SCHEMA, SCHEMA]).unwrap())
    }

    /// A gateway that starts over this store.
    fn over(store: Store) -> Self {
        let hub = Hub::new(1 << 20, 1 << 26);
        let devices = Devices::open(store.clone(), hub.clone(), NOW).unwrap();
        let nodes = Nodes::open(store.clone(), hub.clone(), devices.clone(), policy(), NOW).unwrap();
        let mut router = Router::default();
        router.mount(&nodes, METHODS);
        Self { hub, store, devices, nodes, router }
    }

    fn operator(&self, scopes: &[&str]) -> Arc<Connection> {
        self.device_operator(scopes, None)
    }

    fn device_operator(&self, scopes: &[&str], device: Option<DeviceKey>) -> Arc<Connection> {
        let grant = Grant::for_test(Role::Operator, ScopeSet::parse(scopes.iter().copied()), device);
        self.hub.register(self.hub.next_id(), grant, Client::default(), None, NOW)
    }

    fn admin(&self) -> Arc<Connection> {
        self.operator(&["operator.admin"])
    }

    /// A connection of the node of `seed`, not yet connected.
    fn socket(&self, seed: u8, platform: &str) -> Arc<Connection> {
        let client = Client {
            id: "node-host".into(),
            display_name: Some(format!("node {seed}").into()),
            platform: platform.into(),
            mode: "node".into(),
            ..Client::default()
        };
        let grant = Grant::for_test(Role::Node, ScopeSet::EMPTY, Some(key(seed)));
        self.hub.register(self.hub.next_id(), grant, client, None, NOW)
    }

    async fn pair(&self, seed: u8) {
        let claims = Claims { client_id: "node-host".into(), client_mode: "node".into(), ..Claims::default() };
        let asks = PairingRequest {
            key: key(seed),
            role: Role::Node,
            scopes: ScopeSet::EMPTY,
            claims,
            remote_ip: None,
            silent: true,
        };
        self.devices.request(asks, NOW).await.unwrap();
    }

    async fn connect(&self, seed: u8, commands: &[&str]) -> Arc<Connection> {
        let node = self.socket(seed, "");
        self.nodes.connected(&node, declared(commands), NOW).await.unwrap();
        node
    }

    /// A paired node with these commands approved.
    async fn node(&self, seed: u8, commands: &[&str]) -> Arc<Connection> {
        self.pair(seed).await;
        let node = self.connect(seed, commands).await;
        self.approve(seed).await;
        drain(&node);
        node
    }

    async fn approve(&self, seed: u8) {
        let request_id = self.request_of(seed).expect("a request waits");
        self.ask(&self.admin(), "node.pair.approve", json!({"requestId": request_id})).await.unwrap();
    }

    fn request_of(&self, seed: u8) -> Option<String> {
        let known = self.nodes.0.known();
        Some(known.get(id(seed))?.request.as_ref()?.request_id.to_string())
    }

    /// Sends a request; its answer, if it is there at once.
    fn send(&self, caller: &Arc<Connection>, method: &str, params: &Value) -> Option<Result<Value, Value>> {
        let (params, mut out) = (params.to_string(), Vec::new());
        self.router.route(caller, "\"1\"", method, Params::new(Raw::new(&params).unwrap()), NOW, &mut out);
        (!out.is_empty()).then(|| result(serde_json::from_slice(&out).unwrap()))
    }

    /// Sends a request and waits for its answer.
    async fn ask(&self, caller: &Arc<Connection>, method: &str, params: Value) -> Result<Value, Value> {
        match self.send(caller, method, &params) {
            Some(answer) => answer,
            None => answer(caller).await,
        }
    }

    fn invoke(&self, caller: &Arc<Connection>, seed: u8, more: Value) -> Option<Result<Value, Value>> {
        let mut params = json!({"nodeId": id(seed).to_string(), "command": "test.echo", "idempotencyKey": "k"});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.send(caller, "node.invoke", &params)
    }

    async fn describe(&self, seed: u8) -> Value {
        self.ask(&self.admin(), "node.describe", json!({"nodeId": id(seed).to_string()})).await.unwrap()
    }
}

fn key(seed: u8) -> DeviceKey {
    DeviceKey::from_bytes([seed; 32]).unwrap()
}

fn id(seed: u8) -> DeviceId {
    key(seed).device_id()
}

fn declared(commands: &[&str]) -> Declared {
    Declared { commands: commands.iter().map(|name| (*name).to_owned()).collect(), ..Declared::default() }
}

fn result(frame: Value) -> Result<Value, Value> {
    if frame["ok"] == true { Ok(frame["payload"].clone()) } else { Err(frame["error"].clone()) }
}

/// What waits for a connection, and whether it is closing.
fn drain_all(connection: &Connection) -> (Vec<Value>, Option<Closing>) {
    let mut texts = Vec::new();
    let closing = connection.outbox.drain(Waker::noop(), |item| {
        let mut out = Vec::new();
        match item {
            Item::Text(text) => out.extend_from_slice(&text),
            Item::Event(event, seq) => event.write(Some(seq), &mut out),
            Item::Ping | Item::Resume => return true,
        }
        texts.push(serde_json::from_slice(&out).expect("every frame is JSON"));
        true
    });
    (texts, closing)
}

fn drain(connection: &Connection) -> Vec<Value> {
    drain_all(connection).0
}

/// The answers that wait for a caller.
fn answers(caller: &Connection) -> Vec<Result<Value, Value>> {
    drain(caller).into_iter().filter(|frame| frame["type"] == "res").map(result).collect()
}

async fn answer(caller: &Connection) -> Result<Value, Value> {
    std::future::poll_fn(|cx| match answers(caller).pop() {
        Some(answer) => Poll::Ready(answer),
        None => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

fn events(connection: &Connection, name: &str) -> Vec<Value> {
    drain(connection).into_iter().filter(|frame| frame["event"] == name).map(|frame| frame["payload"].clone()).collect()
}

/// The one call that a node has been asked.
fn request(node: &Connection) -> Value {
    let mut requests = events(node, "node.invoke.request");
    assert_eq!(requests.len(), 1, "{requests:?}");
    requests.remove(0)
}

fn answer_with(request: &Value, more: Value) -> Value {
    let mut params = json!({"id": request["id"], "nodeId": request["nodeId"], "ok": true});
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

// ---- the main road

#[tokio::test]
async fn a_call_reaches_the_node_and_its_answer_the_caller() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    let params = json!({"text": "quo\"te \\ \u{1f600} \n", "n": [1.50, -0.0, 1e300]});
    assert_eq!(world.invoke(&caller, 1, json!({"params": params, "timeoutMs": 15_000})), None);
    let asked = request(&node);
    let keys: Vec<_> = asked.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["command", "id", "idempotencyKey", "nodeId", "paramsJSON", "timeoutMs"]);
    assert_eq!(serde_json::from_str::<Value>(asked["paramsJSON"].as_str().unwrap()).unwrap(), params);
    assert_eq!((&asked["timeoutMs"], &asked["idempotencyKey"]), (&json!(15_000), &json!("k")));

    let payload = r#"{"bins":{"uname":"/usr/bin/uname"},"n":1.50}"#;
    let told = world.send(&node, "node.invoke.result", &answer_with(&asked, json!({"payloadJSON": payload})));
    assert_eq!(told, Some(Ok(json!({"ok": true}))));
    assert_eq!(
        answer(&caller).await,
        Ok(json!({"ok": true, "nodeId": id(1).to_string(), "command": "test.echo",
            "payload": {"bins": {"uname": "/usr/bin/uname"}, "n": 1.5}, "payloadJSON": payload,
            "effectiveTimeoutMs": 15_000}))
    );
    assert_eq!(world.nodes.waiting_calls(), 0);
    let counts = world.nodes.counts();
    assert_eq!((counts.begun, counts.answered, counts.late), (1, 1, 0));
}

#[tokio::test]
async fn payloads_come_in_every_form_that_nodes_use() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    for (at, (given, payload, text)) in [
        (json!({"payload": {"a": 1}}), json!({"a": 1}), json!(null)),
        (json!({"payloadJSON": null, "payload": [1]}), json!([1]), json!(null)),
        (json!({"payloadJSON": {"a": 2}}), json!({"a": 2}), json!(null)),
        (json!({"payloadJSON": "not json"}), json!({"payloadJSON": "not json"}), json!("not json")),
        (json!({"payloadJSON": deep}), json!({"payloadJSON": deep}), json!(deep)),
        (json!({"payloadJSON": "null"}), json!(null), json!("null")),
        (json!({"payloadJSON": "", "payload": 7}), json!(7), json!("")),
        (json!({"error": null}), json!(null), json!(null)),
    ]
    .into_iter()
    .enumerate()
    {
        world.invoke(&caller, 1, json!({"idempotencyKey": at.to_string()}));
        world.send(&node, "node.invoke.result", &answer_with(&request(&node), given.clone())).unwrap().unwrap();
        let got = answer(&caller).await.unwrap();
        assert_eq!((&got["payload"], &got["payloadJSON"]), (&payload, &text), "{given}");
    }
}

#[tokio::test]
async fn the_nodes_error_goes_to_the_caller() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    let fail = |error: Value, key: &str| {
        world.invoke(&caller, 1, json!({"idempotencyKey": key}));
        world.send(&node, "node.invoke.result", &answer_with(&request(&node), json!({"ok": false, "error": error})));
        answers(&caller).remove(0).unwrap_err()
    };
    let error = fail(json!({"code": "INVALID_REQUEST", "message": "bins required"}), "1");
    assert_eq!(
        error,
        json!({"code": "UNAVAILABLE", "message": "INVALID_REQUEST: bins required", "details": {
            "nodeError": {"code": "INVALID_REQUEST", "message": "bins required"}, "nodeCommandDispatched": true,
            "dispatch": "acked"}})
    );
    assert_eq!(fail(json!(null), "2")["message"], "node invoke failed");
    let not_ready = fail(json!({"code": "NODE_NOT_READY", "message": "cleaning up"}), "3");
    assert_eq!((&not_ready["details"]["code"], &not_ready["retryable"]), (&json!("NODE_NOT_READY"), &json!(true)));
}

#[tokio::test]
async fn the_callers_timeout_is_one_rule() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    for (at, (given, sent)) in [
        (json!({}), 30_000),
        (json!({"timeoutMs": 0}), 0),
        (json!({"timeoutMs": 1}), 1),
        (json!({"timeoutMs": 1e3}), 1000),
        (json!({"timeoutMs": u64::MAX}), 2_147_483_647),
        (json!({"timeoutMs": 1e300}), 2_147_483_647),
    ]
    .into_iter()
    .enumerate()
    {
        let mut given = given;
        given["idempotencyKey"] = json!(at.to_string());
        assert_eq!(world.invoke(&caller, 1, given), None);
        assert_eq!(request(&node)["timeoutMs"], sent);
    }
    for wrong in [json!(-1), json!(1.5), json!(null), json!("1000"), json!([1])] {
        let error = world.invoke(&caller, 1, json!({"timeoutMs": wrong})).unwrap().unwrap_err();
        assert!(error["message"].as_str().unwrap().contains("at timeoutMs"), "{wrong} {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_is_waited_for_as_long_as_the_caller_said() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    crate::task::spawn("nodes", world.nodes.clone().run());
    let caller = world.operator(&["operator.write"]);
    world.invoke(&caller, 1, json!({"timeoutMs": 0, "idempotencyKey": "for ever"}));
    world.invoke(&caller, 1, json!({"timeoutMs": 5000, "idempotencyKey": "long"}));
    world.invoke(&caller, 1, json!({"timeoutMs": 200, "idempotencyKey": "short"}));
    let asked = events(&node, "node.invoke.request");
    tokio::time::sleep(std::time::Duration::from_millis(190)).await;
    assert!(answers(&caller).is_empty());
    tokio::time::sleep(std::time::Duration::from_millis(40)).await;
    let error = answers(&caller).remove(0).unwrap_err();
    assert_eq!(
        error,
        json!({"code": "UNAVAILABLE", "message": "TIMEOUT: node invoke timed out", "retryable": false, "details": {
            "code": "TIMEOUT", "nodeError": {"code": "TIMEOUT", "message": "node invoke timed out"},
            "nodeCommandDispatched": true, "dispatch": "sent_unacked", "effectiveTimeoutMs": 200}})
    );
    // The late answer is told so, and nothing else happens.
    let late = world.send(&node, "node.invoke.result", &answer_with(&asked[2], json!({})));
    assert_eq!(late, Some(Ok(json!({"ok": true, "ignored": true}))));
    assert_eq!(world.nodes.counts().late, 1);
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(answers(&caller).len(), 1);
    tokio::time::sleep(std::time::Duration::from_secs(100_000)).await;
    assert!(answers(&caller).is_empty());
    assert_eq!(world.nodes.waiting_calls(), 1);
}

#[tokio::test]
async fn a_node_that_is_not_there_is_told_from_one_nobody_knows() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    world.nodes.disconnected(&node);
    let caller = world.operator(&["operator.write"]);
    let error = world.invoke(&caller, 1, json!({})).unwrap().unwrap_err();
    assert_eq!((&error["code"], &error["message"]), (&json!("UNAVAILABLE"), &json!("node not connected")));
    let details = &error["details"];
    assert_eq!((&details["code"], &details["dispatch"]), (&json!("NOT_CONNECTED"), &json!("not_sent")));
    assert_eq!((&details["known"], &error["retryable"]), (&json!(true), &json!(true)));
    for unknown in [id(9).to_string(), "mynode".to_owned(), id(1).to_string().to_uppercase()] {
        let error = world.invoke(&caller, 1, json!({"nodeId": unknown})).unwrap().unwrap_err();
        assert_eq!(error["details"]["code"], "NOT_CONNECTED");
        assert_eq!(error["details"]["known"], false);
    }
}

#[tokio::test]
async fn a_node_that_goes_in_the_middle_takes_its_calls_along() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let other = world.node(2, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    world.invoke(&caller, 1, json!({}));
    world.invoke(&caller, 2, json!({}));
    world.nodes.disconnected(&node);
    let error = answers(&caller).remove(0).unwrap_err();
    assert_eq!(error["message"], "DISCONNECTED: node disconnected (test.echo)");
    assert_eq!(error["details"]["dispatch"], "sent_unacked");
    assert_eq!(error["retryable"], false);
    // The other node's call goes on.
    world.send(&other, "node.invoke.result", &answer_with(&request(&other), json!({})));
    assert!(answers(&caller).remove(0).is_ok());
    assert_eq!(world.nodes.counts().disconnected, 1);
}

#[tokio::test]
async fn a_node_that_takes_nothing_more_fails_the_call_at_once() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    node.close(CloseCode::GOING_AWAY, "test");
    let caller = world.operator(&["operator.write"]);
    world.invoke(&caller, 1, json!({}));
    let error = answers(&caller).remove(0).unwrap_err();
    assert_eq!(error["message"], "UNAVAILABLE: failed to send invoke to node");
    assert_eq!((&error["details"]["dispatch"], &error["retryable"]), (&json!("not_sent"), &json!(true)));
    assert_eq!(world.nodes.waiting_calls(), 0);
}

#[tokio::test]
async fn only_the_nodes_own_connection_answers_and_only_once() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let thief = world.node(2, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    world.invoke(&caller, 1, json!({}));
    let asked = request(&node);
    let mut stolen = answer_with(&asked, json!({"payload": "stolen"}));
    let mismatch = world.send(&thief, "node.invoke.result", &stolen).unwrap().unwrap_err();
    assert_eq!(mismatch["message"], "nodeId mismatch");
    stolen["nodeId"] = json!(id(2).to_string());
    assert_eq!(world.send(&thief, "node.invoke.result", &stolen), Some(Ok(json!({"ok": true, "ignored": true}))));
    for wrong in ["", "x", &"0".repeat(32), &asked["id"].as_str().unwrap().to_uppercase()] {
        let ignored = world.send(&node, "node.invoke.result", &answer_with(&asked, json!({"id": wrong})));
        assert_eq!(ignored, Some(Ok(json!({"ok": true, "ignored": true}))), "{wrong}");
    }
    assert!(answers(&caller).is_empty());
    let mine = answer_with(&asked, json!({"payload": "mine"}));
    assert_eq!(world.send(&node, "node.invoke.result", &mine), Some(Ok(json!({"ok": true}))));
    assert_eq!(world.send(&node, "node.invoke.result", &mine), Some(Ok(json!({"ok": true, "ignored": true}))));
    let got = answers(&caller);
    assert_eq!((got.len(), &got[0].as_ref().unwrap()["payload"]), (1, &json!("mine")));
}

#[tokio::test]
async fn calls_to_one_node_are_bounded() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    for n in 0..=live::MAX_CALLS_PER_NODE {
        world.invoke(&caller, 1, json!({"idempotencyKey": n.to_string()}));
        drain(&node);
    }
    let error = answers(&caller).remove(0).unwrap_err();
    assert_eq!((&error["details"]["code"], &error["retryable"]), (&json!("NODE_BUSY"), &json!(true)));
    assert_eq!(world.nodes.waiting_calls(), usize::from(live::MAX_CALLS_PER_NODE));
    assert_eq!(world.nodes.counts().busy, 1);
}

#[tokio::test]
async fn parameters_are_checked_and_the_wrong_one_is_named() {
    let world = World::new();
    world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    for (params, expected) in [
        (json!({"command": "c", "idempotencyKey": "k"}), "missing field `nodeId`"),
        (json!({"nodeId": 1, "command": "c", "idempotencyKey": "k"}), "at nodeId: must be a string"),
        (json!({"nodeId": "n", "command": "", "idempotencyKey": "k"}), "at command: must not be empty"),
        (json!({"nodeId": "n", "command": "c"}), "missing field `idempotencyKey`"),
        (json!({"nodeId": "n", "command": "c", "idempotencyKey": "k".repeat(513)}), "at idempotencyKey:"),
        (json!({"nodeId": "n", "command": "c", "idempotencyKey": "k", "extra": 1}), "unknown field `extra`"),
        (json!({"nodeId": "n", "command": "c", "idempotencyKey": "k", "sessionKey": 1}), "at sessionKey"),
        (json!({"nodeId": "n", "command": "c", "idempotencyKey": "k", "progress": 1}), "at progress"),
        (json!([]), "expected a JSON object"),
    ] {
        let error = world.send(&caller, "node.invoke", &params).unwrap().unwrap_err();
        assert!(error["message"].as_str().unwrap().contains(expected), "{params} {error}");
    }
}

// ---- repeats

#[tokio::test]
async fn a_repeat_gets_the_one_answer() {
    let world = World::new();
    let node = world.node(1, &["test.echo", "test.more"]).await;
    let caller = world.device_operator(&["operator.write"], Some(key(7)));
    let again = world.device_operator(&["operator.write"], Some(key(7)));
    world.invoke(&caller, 1, json!({}));
    world.invoke(&again, 1, json!({}));
    let asked = request(&node);
    world.send(&node, "node.invoke.result", &answer_with(&asked, json!({"payload": 1})));
    assert_eq!(answers(&caller), answers(&again));
    // Also when the answer is long there.
    world.invoke(&again, 1, json!({}));
    assert!(request_count(&node) == 0 && answers(&again).remove(0).unwrap()["payload"] == 1);
    // Another key, command or caller is another call.
    world.invoke(&caller, 1, json!({"idempotencyKey": "other"}));
    world.invoke(&caller, 1, json!({"command": "test.more"}));
    world.invoke(&world.operator(&["operator.write"]), 1, json!({}));
    assert_eq!(request_count(&node), 3);
}

fn request_count(node: &Connection) -> usize {
    events(node, "node.invoke.request").len()
}

#[tokio::test]
async fn a_call_that_ended_without_an_answer_can_be_asked_anew() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.device_operator(&["operator.write"], Some(key(7)));
    world.invoke(&caller, 1, json!({"timeoutMs": 1}));
    world.nodes.0.sweep(deadline::now() + std::time::Duration::from_secs(1));
    world.invoke(&caller, 1, json!({}));
    assert_eq!(request_count(&node), 2);
}

// ---- progress

#[tokio::test]
async fn progress_goes_to_the_caller_who_asked_for_it() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    world.invoke(&caller, 1, json!({"progress": true, "idempotencyKey": "with"}));
    world.invoke(&caller, 1, json!({"idempotencyKey": "without"}));
    let asked = events(&node, "node.invoke.request");
    let tell = |asked: &Value, seq: u64, chunk: &str| {
        let params = json!({"invokeId": asked["id"], "nodeId": asked["nodeId"], "seq": seq, "chunk": chunk});
        world.send(&node, "node.invoke.progress", &params).unwrap().unwrap()["ignored"].as_bool().unwrap()
    };
    assert!(!tell(&asked[0], 0, "a\n"));
    assert!(tell(&asked[0], 0, "twice"));
    assert!(!tell(&asked[0], 1, "b"));
    assert!(tell(&asked[1], 0, "nobody listens"));
    let chunks: Vec<_> = events(&caller, "node.invoke.progress");
    assert_eq!(
        chunks[0],
        json!({"idempotencyKey": "with", "invokeId": asked[0]["id"], "nodeId": asked[0]["nodeId"], "seq": 0,
            "chunk": "a\n"})
    );
    assert_eq!(chunks.len(), 2);
    let large = json!({"invokeId": asked[0]["id"], "nodeId": asked[0]["nodeId"], "seq": 2, "chunk": "x".repeat(16385)});
    assert!(world.send(&node, "node.invoke.progress", &large).unwrap().is_err());
    // A node that was heard has begun.
    world.nodes.disconnected(&node);
    let dispatch: Vec<_> =
        answers(&caller).into_iter().map(|answer| answer.unwrap_err()["details"]["dispatch"].clone()).collect();
    assert_eq!(dispatch, [json!("acked"), json!("acked")]);
}

#[tokio::test]
async fn a_command_is_cancelled_when_who_followed_it_is_gone() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    world.invoke(&caller, 1, json!({"progress": true, "idempotencyKey": "with"}));
    world.invoke(&caller, 1, json!({"idempotencyKey": "without"}));
    let asked = events(&node, "node.invoke.request");
    world.nodes.disconnected(&caller);
    let cancelled = events(&node, "node.invoke.cancel");
    assert_eq!(cancelled, [json!({"invokeId": asked[0]["id"], "nodeId": asked[0]["nodeId"]})]);
    assert_eq!(world.nodes.waiting_calls(), 1);
}

#[tokio::test]
async fn a_command_is_cancelled_when_the_run_that_asked_for_it_is_stopped() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let (nodes, id) = (world.nodes.clone(), id(1).to_string());
    let params = json!({});
    let mut call = Box::pin(nodes.call(&id, "test.echo", &params, 30_000, "key"));
    assert!(std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await);
    let asked = events(&node, "node.invoke.request");
    drop(call);
    let cancelled = events(&node, "node.invoke.cancel");
    assert_eq!(cancelled, [json!({"invokeId": asked[0]["id"], "nodeId": asked[0]["nodeId"]})]);
    assert_eq!(world.nodes.waiting_calls(), 0);
}

// ---- what may be called

#[tokio::test]
async fn nothing_can_be_called_before_both_approvals() {
    let world = World::new();
    let caller = world.admin();
    let unpaired = world.socket(1, "");
    // Not paired: the store has nothing to hang its request on.
    world.nodes.connected(&unpaired, declared(&["system.run"]), NOW).await.unwrap();
    assert!(world.request_of(1).is_none());
    world.invoke(&caller, 1, json!({"command": "system.run"})).unwrap().unwrap_err();
    world.pair(2).await;
    let node = world.connect(2, &["system.run", "test.echo"]).await;
    for command in ["system.run", "test.echo"] {
        let error = world.invoke(&caller, 2, json!({"command": command})).unwrap().unwrap_err();
        assert_eq!(error["details"]["reason"], "command not approved");
        assert!(error["message"].as_str().unwrap().contains(&world.request_of(2).unwrap()));
    }
    assert_eq!(request_count(&node), 0);
    world.approve(2).await;
    assert_eq!(world.invoke(&caller, 2, json!({})), None);
    assert_eq!(request_count(&node), 1);
}

#[tokio::test]
async fn a_refusal_says_why() {
    let world = World::new();
    world.node(1, &["test.echo", "sms.send", "system.execApprovals.set"]).await;
    let caller = world.admin();
    let refuse = |command: &str| world.invoke(&caller, 1, json!({"command": command})).unwrap().unwrap_err();
    for (command, reason) in [
        ("sms.send", "command not allowlisted"),
        ("camera.clip", "command not allowlisted"),
        ("test.more", "command not declared by node"),
    ] {
        assert_eq!(refuse(command)["details"]["reason"], reason, "{command}");
    }
    for command in ["system.execApprovals.get", "system.execApprovals.set", "worker.launch.v1"] {
        assert!(refuse(command)["message"].as_str().unwrap().starts_with("node.invoke does not allow"), "{command}");
    }
    assert!(refuse("sms.send")["message"].as_str().unwrap().contains("none that the command policy knows"));
    world.node(2, &[]).await;
    let error = world.invoke(&caller, 2, json!({})).unwrap().unwrap_err();
    assert_eq!(error["details"]["reason"], "node did not declare commands");
}

#[tokio::test]
async fn hosts_files_and_browsers_are_for_admins() {
    let world = World::new();
    let node = world.node(1, &["browser.proxy", "test.echo"]).await;
    let writer = world.operator(&["operator.write"]);
    let call = json!({"command": "browser.proxy", "params": {"method": "GET", "path": "/tabs"}});
    let error = world.invoke(&writer, 1, call.clone()).unwrap().unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.admin");
    assert_eq!(world.invoke(&world.admin(), 1, call), None);
    let mutation = json!({"command": "browser.proxy", "params": {"method": "DELETE", "path": "/profiles/work"}});
    assert!(world.invoke(&world.admin(), 1, mutation).unwrap().is_err());
    assert_eq!(request_count(&node), 1);
    let reader = world.operator(&["operator.read"]);
    assert_eq!(world.invoke(&reader, 1, json!({})).unwrap().unwrap_err()["details"]["code"], "MISSING_SCOPE");
}

#[tokio::test]
async fn a_caller_cannot_approve_a_run() {
    let world = World::new();
    let node = world.node(1, &["system.run"]).await;
    let caller = world.operator(&["operator.write"]);
    let run = |params: Value| world.invoke(&caller, 1, json!({"command": "system.run", "params": params}));
    assert!(run(json!({"command": ["id"], "approved": true})).unwrap().is_err());
    assert!(run(json!({"command": ["id"], "rawCommand": "ls"})).unwrap().is_err());
    assert_eq!(request_count(&node), 0);
    assert_eq!(run(json!({"command": ["id"], "approved": false, "security": "full"})), None);
    let params: Value = serde_json::from_str(request(&node)["paramsJSON"].as_str().unwrap()).unwrap();
    let keys: Vec<_> = params.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["command", "runId"]);
}

#[tokio::test]
async fn what_policy_newly_lets_a_node_offer_is_asked_for() {
    let world = World::new();
    world.node(1, &["test.echo", "sms.send"]).await;
    let caller = world.admin();
    let mut allow = policy();
    allow.allow_commands.push("sms.send".to_owned());
    world.nodes.configure(allow);
    let error = world.invoke(&caller, 1, json!({"command": "sms.send"})).unwrap().unwrap_err();
    assert_eq!(error["details"]["reason"], "command not approved");
    while world.request_of(1).is_none() {
        tokio::task::yield_now().await;
    }
    world.approve(1).await;
    assert_eq!(world.invoke(&caller, 1, json!({"command": "sms.send"})), None);
    assert_eq!(world.describe(1).await["connected"], true);
}

#[tokio::test]
async fn other_settings_take_effect_on_live_nodes() {
    let world = World::new();
    world.node(1, &["test.echo"]).await;
    let caller = world.admin();
    let deny = NodePolicy { deny_commands: vec!["test.echo".to_owned()], ..policy() };
    world.nodes.configure(deny);
    let error = world.invoke(&caller, 1, json!({})).unwrap().unwrap_err();
    assert_eq!(error["details"]["reason"], "command not allowlisted");
    assert!(error["message"].as_str().unwrap().ends_with("is denied by gateway.nodes.commands.deny"));
    world.nodes.configure(policy());
    assert_eq!(world.invoke(&caller, 1, json!({})), None);
}

// ---- the race of two connections

#[tokio::test]
async fn the_newer_connection_wins_in_either_order() {
    for newer_first in [false, true] {
        let world = World::new();
        world.node(1, &["test.echo"]).await;
        let (old, new) = (world.socket(1, ""), world.socket(1, ""));
        let order = if newer_first { [&new, &old] } else { [&old, &new] };
        for node in order {
            world.nodes.connected(node, declared(&["test.echo"]), NOW).await.unwrap();
        }
        assert!(drain_all(&old).1.unwrap().reason.contains("newer connection of this node"));
        assert_eq!(drain_all(&new).1, None);
        // The old one's end does not end the new one's session.
        world.nodes.disconnected(&old);
        let caller = world.operator(&["operator.write"]);
        assert_eq!(world.invoke(&caller, 1, json!({})), None);
        let asked = request(&new);
        // Nor can it answer for it.
        let ignored = world.send(&old, "node.invoke.result", &answer_with(&asked, json!({})));
        assert_eq!(ignored, Some(Ok(json!({"ok": true, "ignored": true}))));
        world.send(&new, "node.invoke.result", &answer_with(&asked, json!({})));
        assert!(answers(&caller).remove(0).is_ok());
        assert_eq!(world.nodes.connected_count(), 1);
        world.nodes.disconnected(&new);
        assert_eq!(world.nodes.connected_count(), 0);
    }
}

#[tokio::test]
async fn calls_of_the_old_connection_end_with_it() {
    let world = World::new();
    let old = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    world.invoke(&caller, 1, json!({}));
    let asked = request(&old);
    let new = world.connect(1, &["test.echo"]).await;
    assert!(answers(&caller).remove(0).unwrap_err()["message"].as_str().unwrap().contains("node disconnected"));
    let ignored = world.send(&new, "node.invoke.result", &answer_with(&asked, json!({})));
    assert_eq!(ignored, Some(Ok(json!({"ok": true, "ignored": true}))));
}

/// Callers, nodes that answer, nodes that come back, deadlines: all at once, on threads of their own. Every call is
/// answered, and none twice.
#[tokio::test]
async fn every_call_is_answered_once_whatever_happens() {
    const CALLS: usize = 2000;
    let world = World::new();
    for seed in [1, 2] {
        world.node(seed, &["test.echo"]).await;
    }
    let current = Mutex::new([Vec::new(), Vec::new()]);
    let callers: Vec<_> = (0..3).map(|_| world.operator(&["operator.write"])).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|threads| {
        let working: Vec<_> = callers
            .iter()
            .map(|caller| {
                let world = &world;
                threads.spawn(move || {
                    let (mut count, mut sent) = (0, 0);
                    while count < CALLS {
                        if sent < CALLS && sent - count < 200 {
                            let seed = 1 + (sent % 2) as u8;
                            let more = json!({"idempotencyKey": sent.to_string(), "timeoutMs": sent % 7 * 5});
                            count += usize::from(world.invoke(caller, seed, more).is_some());
                            sent += 1;
                        }
                        count += answers(caller).len();
                    }
                    count
                })
            })
            .collect();
        for seed in [1, 2] {
            let (world, current, done, runtime) = (&world, &current, &done, &runtime);
            threads.spawn(move || {
                let _entered = runtime.enter();
                let mut round = 0u64;
                while !done.load(Ordering::Relaxed) {
                    let node = world.socket(seed, "");
                    runtime.block_on(world.nodes.connected(&node, declared(&["test.echo"]), NOW)).unwrap();
                    for _ in 0..50 {
                        for asked in events(&node, "node.invoke.request") {
                            round += 1;
                            // Some are answered twice, some never.
                            for _ in 0..[1, 2, 0][(round % 3) as usize] {
                                world
                                    .send(&node, "node.invoke.result", &answer_with(&asked, json!({})))
                                    .unwrap()
                                    .unwrap();
                            }
                        }
                        std::thread::yield_now();
                    }
                    // Some go before the next comes, some after.
                    let mut old = current.lock().unwrap();
                    let old = &mut old[usize::from(seed) - 1];
                    old.push(node);
                    if round.is_multiple_of(2) || old.len() > 3 {
                        old.drain(..).for_each(|node| world.nodes.disconnected(&node));
                    }
                }
            });
        }
        let sweeper = threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                world.nodes.0.sweep(deadline::now());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        for worker in working {
            assert_eq!(worker.join().unwrap(), CALLS);
        }
        done.store(true, Ordering::Relaxed);
        sweeper.join().unwrap();
    });
    // Nothing is left, and nothing comes after the last.
    for nodes in current.into_inner().unwrap() {
        nodes.iter().for_each(|node| world.nodes.disconnected(node));
    }
    world.nodes.0.sweep(deadline::now() + std::time::Duration::from_secs(60));
    assert_eq!((world.nodes.waiting_calls(), callers.iter().map(|caller| answers(caller).len()).sum()), (0, 0usize));
}

// ---- approval

#[tokio::test]
async fn a_request_is_announced_listed_and_decided() {
    let world = World::new();
    let watcher = world.operator(&["operator.pairing"]);
    world.pair(1).await;
    drain(&watcher);
    let node = world.connect(1, &["test.echo", "system.which"]).await;
    let announced = events(&watcher, "node.pair.requested").remove(0);
    let listed = world.ask(&watcher, "node.pair.list", json!({})).await.unwrap();
    assert_eq!(listed, json!({"pending": [announced], "paired": []}));
    assert_eq!(announced["commands"], json!(["system.which", "test.echo"]));
    assert_eq!(announced["requiredApproveScopes"], json!(["operator.admin", "operator.pairing"]));
    let described = world.describe(1).await;
    assert_eq!(described["approvalState"], "pending-approval");
    assert_eq!(described["pendingRequestId"], announced["requestId"]);
    assert_eq!((&described["commands"], &described["connected"]), (&json!([]), &json!(true)));

    let approve = json!({"requestId": announced["requestId"]});
    let error = world.ask(&watcher, "node.pair.approve", approve.clone()).await.unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.admin");
    let approved = world.ask(&world.admin(), "node.pair.approve", approve.clone()).await.unwrap();
    assert_eq!(approved["node"]["nodeId"], id(1).to_string());
    assert_eq!(approved["node"]["commands"], json!(["system.which", "test.echo"]));
    let resolved = json!({"requestId": announced["requestId"], "nodeId": id(1).to_string(), "decision": "approved",
        "ts": NOW});
    let heard = [&watcher, &node].map(|connection| events(connection, "node.pair.resolved"));
    assert_eq!(heard, [[resolved.clone()], [resolved]]);
    let described = world.describe(1).await;
    assert_eq!(described["approvalState"], "approved");
    assert_eq!(described["commands"], json!(["system.which", "test.echo"]));
    let error = world.ask(&world.admin(), "node.pair.approve", approve).await.unwrap_err();
    assert!(error["message"].as_str().unwrap().starts_with("unknown requestId"));
}

#[tokio::test]
async fn a_request_keeps_its_id_while_the_node_declares_the_same() {
    let world = World::new();
    let watcher = world.operator(&["operator.pairing"]);
    world.pair(1).await;
    let first = world.connect(1, &["test.echo"]).await;
    let asked = world.request_of(1).unwrap();
    world.nodes.disconnected(&first);
    world.connect(1, &["test.echo"]).await;
    assert_eq!(world.request_of(1), Some(asked.clone()));
    drain(&watcher);
    // Another declaration is another request; the old one can't be approved any more.
    world.connect(1, &["test.echo", "system.run"]).await;
    let now = world.request_of(1).unwrap();
    assert_ne!(now, asked);
    let news = drain(&watcher);
    let seen: Vec<_> = news.iter().map(|frame| (&frame["event"], &frame["payload"]["requestId"])).collect();
    assert_eq!(seen, [(&json!("node.pair.resolved"), &json!(asked)), (&json!("node.pair.requested"), &json!(now))]);
    let error = world.ask(&world.admin(), "node.pair.approve", json!({"requestId": asked})).await.unwrap_err();
    assert_eq!(error["details"]["code"], "UNKNOWN_REQUEST");
    assert_eq!(world.describe(1).await["approvalState"], "pending-approval");
}

#[tokio::test]
async fn approving_approves_what_was_shown() {
    let world = World::new();
    world.pair(1).await;
    world.connect(1, &["test.echo"]).await;
    let shown = world.request_of(1).unwrap();
    // Between the list and the approval the node comes back with more; the store learns of it only afterwards.
    let node = world.socket(1, "");
    world.nodes.0.live.leave(&node);
    let noting = world.nodes.note_session(Arc::clone(&node), id(1), true, NOW);
    world.nodes.join(id(1), &node, declared(&["test.echo", "system.run"]));
    world.ask(&world.admin(), "node.pair.approve", json!({"requestId": shown})).await.unwrap();
    let caller = world.admin();
    assert_eq!(world.invoke(&caller, 1, json!({})), None);
    let error = world.invoke(&caller, 1, json!({"command": "system.run"})).unwrap().unwrap_err();
    assert_eq!(error["details"]["reason"], "command not approved");
    noting.await.unwrap();
    assert_eq!(world.describe(1).await["approvalState"], "pending-reapproval");
}

#[tokio::test]
async fn more_is_held_back_and_less_is_fine() {
    let world = World::new();
    let first = world.node(1, &["test.echo", "test.more"]).await;
    world.nodes.disconnected(&first);
    world.connect(1, &["test.echo", "system.run"]).await;
    let described = world.describe(1).await;
    assert_eq!(
        (&described["commands"], &described["approvalState"]),
        (&json!(["test.echo"]), &json!("pending-reapproval"))
    );
    assert!(described["withheldCommands"]["system.run"].as_str().unwrap().contains("approval"));
    world.connect(1, &["test.more"]).await;
    let described = world.describe(1).await;
    assert_eq!((&described["commands"], &described["approvalState"]), (&json!(["test.more"]), &json!("approved")));
    assert_eq!(world.request_of(1), None);
}

#[tokio::test]
async fn a_rejected_node_may_ask_again() {
    let world = World::new();
    world.pair(1).await;
    world.connect(1, &["test.echo"]).await;
    let request_id = world.request_of(1).unwrap();
    let answer = world.ask(&world.admin(), "node.pair.reject", json!({"requestId": request_id})).await.unwrap();
    assert_eq!(answer, json!({"requestId": request_id, "nodeId": id(1).to_string()}));
    assert_eq!(world.describe(1).await["approvalState"], "unapproved");
    world.connect(1, &["test.echo"]).await;
    assert_eq!(world.request_of(1), Some(request_id));
}

#[tokio::test]
async fn approvals_and_names_outlive_a_restart() {
    let world = World::new();
    world.node(1, &["test.echo"]).await;
    let admin = world.admin();
    let renamed = json!({"nodeId": id(1).to_string(), "displayName": " Second Name "});
    let answer = world.ask(&admin, "node.rename", renamed).await.unwrap();
    assert_eq!(answer, json!({"nodeId": id(1).to_string(), "displayName": "Second Name"}));
    world.pair(2).await;
    world.connect(2, &["test.echo"]).await;
    let waiting = world.request_of(2);

    let restarted = World::over(world.store.clone());
    assert_eq!(restarted.request_of(2), waiting);
    let row = restarted.describe(1).await;
    assert_eq!((&row["displayName"], &row["connected"]), (&json!("Second Name"), &json!(false)));
    assert_eq!((&row["approvalState"], &row["commands"]), (&json!("approved"), &json!(["test.echo"])));
    let node = restarted.connect(1, &["test.echo"]).await;
    assert_eq!(restarted.invoke(&restarted.operator(&["operator.write"]), 1, json!({})), None);
    assert_eq!(request_count(&node), 1);
}

#[tokio::test]
async fn a_removed_node_is_cut_off_at_once() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let (admin, watcher) =
        (world.operator(&["operator.pairing", "operator.write"]), world.operator(&["operator.pairing"]));
    world.invoke(&admin, 1, json!({}));
    drain(&watcher);
    let removed = world.ask(&world.admin(), "node.pair.remove", json!({"nodeId": id(1).to_string()})).await.unwrap();
    assert_eq!(removed, json!({"nodeId": id(1).to_string()}));
    assert!(answers(&admin).remove(0).is_err());
    assert_eq!(drain_all(&node).1.unwrap().code, CloseCode::AUTH_CHANGED);
    assert_eq!(events(&watcher, "node.pair.resolved")[0]["decision"], "removed");
    assert!(world.invoke(&admin, 1, json!({})).unwrap().is_err());
    assert!(world.devices.facts(id(1)).is_none());
    let listed = world.ask(&admin, "node.pair.list", json!({})).await.unwrap();
    assert_eq!(listed, json!({"pending": [], "paired": []}));
    let again = world.ask(&admin, "node.pair.remove", json!({"nodeId": id(1).to_string()})).await.unwrap_err();
    assert_eq!(again["message"], "unknown nodeId");
    // To come back it needs both approvals anew.
    world.pair(1).await;
    world.connect(1, &["test.echo"]).await;
    assert_eq!(world.describe(1).await["approvalState"], "pending-approval");
}

#[tokio::test]
async fn a_device_by_its_own_token_manages_itself_alone() {
    let world = World::new();
    world.node(1, &["test.echo"]).await;
    world.pair(2).await;
    world.connect(2, &["test.echo"]).await;
    let scopes = ScopeSet::parse(["operator.pairing", "operator.write"]);
    let grant = Grant::for_test(Role::Operator, scopes, Some(key(2))).by(Method::DeviceToken);
    let own = world.hub.register(world.hub.next_id(), grant, Client::default(), None, NOW);
    let listed = world.ask(&own, "node.pair.list", json!({})).await.unwrap();
    assert_eq!((listed["pending"].as_array().unwrap().len(), &listed["paired"]), (1, &json!([])));
    for (method, params) in [
        ("node.pair.remove", json!({"nodeId": id(1).to_string()})),
        ("node.rename", json!({"nodeId": id(1).to_string(), "displayName": "x"})),
    ] {
        let error = world.ask(&own, method, params).await.unwrap_err();
        assert_eq!(error["details"]["code"], "DEVICE_OWNERSHIP", "{method}");
    }
    let request_id = world.request_of(2).unwrap();
    world.ask(&own, "node.pair.approve", json!({"requestId": request_id})).await.unwrap();
}

// ---- lists

#[tokio::test]
async fn nodes_are_listed_connected_first_then_by_name() {
    let world = World::new();
    let gone = world.node(1, &["test.echo"]).await;
    world.node(2, &["test.echo"]).await;
    world.pair(3).await;
    world.connect(3, &["test.echo"]).await;
    world.nodes.disconnected(&gone);
    let rename = json!({"nodeId": id(3).to_string(), "displayName": "A node"});
    world.ask(&world.admin(), "node.rename", rename).await.unwrap();
    let names = |list: &Value| -> Vec<String> {
        list["nodes"].as_array().unwrap().iter().map(|row| row["displayName"].as_str().unwrap().to_owned()).collect()
    };
    let list = world.ask(&world.admin(), "node.list", json!({})).await.unwrap();
    assert_eq!(names(&list), ["A node", "node 2", "node 1"]);
    assert_eq!(list["ts"], json!(NOW));
    assert!(list["nodes"][0]["pendingRequestId"].is_string());
    // Readers do not see what waits for approval.
    let reader = world.operator(&["operator.read"]);
    let list = world.ask(&reader, "node.list", json!({})).await.unwrap();
    assert_eq!(names(&list), ["A node", "node 2", "node 1"]);
    let row = list["nodes"][0].as_object().unwrap();
    assert!(!row.keys().any(|key| key.starts_with("pending")), "{row:?}");
    assert_eq!(row["approvalState"], "pending-approval");
    let error = world.ask(&reader, "node.describe", json!({"nodeId": "nope"})).await.unwrap_err();
    assert_eq!(error["message"], "unknown nodeId");
}

#[tokio::test]
async fn a_row_has_the_incumbents_fields() {
    let world = World::new();
    world.node(1, &["test.echo"]).await;
    let list = world.ask(&world.admin(), "node.list", json!({})).await.unwrap();
    assert_eq!(
        list["nodes"][0],
        json!({"nodeId": id(1).to_string(), "displayName": "node 1", "clientId": "node-host", "clientMode": "node", "caps": [], "commands": ["test.echo"], "sessionHost": false,
            "nodePluginTools": [], "approvalState": "approved", "connectedAtMs": NOW, "lastConnectedAtMs": NOW,
            "lastSeenAtMs": NOW, "lastSeenReason": "connect", "approvedAtMs": NOW, "paired": true, "connected": true})
    );
}

#[tokio::test]
async fn a_device_paired_as_a_node_is_listed_before_it_connects() {
    let world = World::new();
    world.pair(1).await;
    let admin = world.admin();
    let list = world.ask(&admin, "node.list", json!({})).await.unwrap();
    assert_eq!(list["nodes"].as_array().unwrap().len(), 1);
    let row = world.describe(1).await;
    assert_eq!((&row["nodeId"], &row["connected"]), (&json!(id(1).to_string()), &json!(false)));
    assert_eq!((&row["paired"], &row["approvalState"]), (&json!(true), &json!("unapproved")));
    let error = world.invoke(&admin, 1, json!({})).unwrap().unwrap_err();
    assert_eq!((&error["message"], &error["details"]["known"]), (&json!("node not connected"), &json!(true)));
    world.connect(1, &["test.echo"]).await;
    let list = world.ask(&admin, "node.list", json!({})).await.unwrap();
    assert_eq!(list["nodes"].as_array().unwrap().len(), 1);
}

// ---- what nodes tell

fn event(name: &str, payload: Value) -> Value {
    json!({"event": name, "payloadJSON": payload.to_string()})
}

#[tokio::test]
async fn host_stats_are_shown_and_kept() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let reader = world.operator(&["operator.read"]);
    let stats = json!({"cpuCount": 2, "loadAverage": [0.41, 0.78, 0.43], "memoryTotalBytes": 10, "memoryFreeBytes": 9});
    let tell = |payload: Value| world.send(&node, "node.event", &event("node.host.stats", payload)).unwrap().unwrap();
    assert_eq!(tell(json!({"cpuCount": 0}))["reason"], "invalid_payload");
    assert_eq!(
        tell(stats.clone()),
        json!({"ok": true, "event": "node.host.stats", "handled": true, "reason": "updated"})
    );
    assert_eq!(tell(stats.clone())["reason"], "throttled");
    let mut shown = stats;
    shown["updatedAtMs"] = json!(NOW);
    assert_eq!(events(&reader, "node.hostStats"), [json!({"nodeId": id(1).to_string(), "hostStats": shown})]);
    assert_eq!(world.describe(1).await["hostStats"], shown);
    world.nodes.disconnected(&node);
    // Written behind the node's back, in the order of the reports: let that begin first.
    tokio::task::yield_now().await;
    world.nodes.keep(id(1), |_| ()).await.unwrap();
    assert_eq!(World::over(world.store.clone()).describe(1).await["hostStats"], shown);
}

#[tokio::test]
async fn nothing_of_an_unapproved_node_is_shown_but_that_it_lives() {
    let world = World::new();
    world.pair(1).await;
    let node = world.connect(1, &["test.echo"]).await;
    let told = world.send(&node, "node.event", &event("node.host.stats", json!({}))).unwrap().unwrap();
    assert_eq!((&told["handled"], &told["reason"]), (&json!(false), &json!("awaiting_approval")));
    let alive = world.ask(&node, "node.event", event("node.presence.alive", json!({"trigger": "silent_push"}))).await;
    assert_eq!(alive.unwrap()["reason"], "persisted");
    let again = world.ask(&node, "node.event", event("node.presence.alive", json!({"trigger": "manual"}))).await;
    assert_eq!(again.unwrap()["reason"], "throttled");
    world.nodes.disconnected(&node);
    assert_eq!(world.describe(1).await["lastSeenReason"], "silent_push");
}

#[tokio::test]
async fn activity_is_counted_on_the_gateways_clock_and_ends_with_the_session() {
    let world = World::new();
    world.pair(1).await;
    let node = world.socket(1, "");
    let permissions = BTreeMap::from([("accessibility".to_owned(), true)]);
    world.nodes.connected(&node, Declared { permissions, ..declared(&["test.echo"]) }, NOW).await.unwrap();
    world.approve(1).await;
    let reader = world.operator(&["operator.read"]);
    let tell = |payload: Value| {
        world.send(&node, "node.event", &event("node.presence.activity", payload)).unwrap().unwrap()["reason"].clone()
    };
    assert_eq!(tell(json!({"idleSeconds": 10, "source": "app"})), "permission_required");
    assert_eq!(tell(json!({"idleSeconds": 9_999_999_999_u64})), "invalid_payload");
    assert_eq!(tell(json!({"action": "clear"})), "already_clear");
    assert_eq!(tell(json!({"idleSeconds": 10})), "updated");
    let shown = events(&reader, "node.presence").remove(0);
    assert_eq!(
        shown,
        json!({"nodeId": id(1).to_string(), "lastActiveAtMs": NOW.0 - 10_000, "presenceUpdatedAtMs": NOW})
    );
    let list = world.ask(&reader, "node.list", json!({})).await.unwrap();
    assert_eq!((&list["activeNodeId"], &list["nodes"][0]["active"]), (&json!(id(1).to_string()), &json!(true)));
    world.nodes.disconnected(&node);
    assert_eq!(events(&reader, "node.presence")[0]["lastActiveAtMs"], json!(null));
    let list = world.ask(&reader, "node.list", json!({})).await.unwrap();
    assert_eq!((&list["activeNodeId"], &list["nodes"][0]["active"]), (&json!(null), &json!(null)));
}

#[tokio::test]
async fn a_node_tells_only_of_runs_it_was_asked_for() {
    let world = World::new();
    let node = world.node(1, &["system.run"]).await;
    let other = world.node(2, &["system.run"]).await;
    let caller = world.operator(&["operator.write"]);
    let params = json!({"command": ["id"], "runId": "r1"});
    world.invoke(&caller, 1, json!({"command": "system.run", "params": params}));
    let tell = |node: &Arc<Connection>, name: &str, run: &str| {
        world.send(node, "node.event", &event(name, json!({"runId": run}))).unwrap().unwrap()["reason"].clone()
    };
    assert_eq!(tell(&other, "exec.started", "r1"), "unmatched_exec_event");
    assert_eq!(tell(&node, "exec.started", "r2"), "unmatched_exec_event");
    assert_eq!(tell(&node, "exec.started", "r1"), "no_listener");
    assert_eq!(tell(&node, "exec.finished", "r1"), "no_listener");
    assert_eq!(tell(&node, "exec.finished", "r1"), "unmatched_exec_event");
    assert_eq!(tell(&node, "voice.transcript", "r1"), "unsupported_event");
    // Nor of those of the connection before.
    world.invoke(&caller, 1, json!({"command": "system.run", "params": {"command": ["id"], "runId": "r3"}}));
    let again = world.connect(1, &["system.run"]).await;
    assert_eq!(tell(&again, "exec.started", "r3"), "unmatched_exec_event");
    assert_eq!(tell(&node, "exec.started", "r3"), "stale_connection");
}

#[tokio::test]
async fn tools_and_skills_are_published_by_their_node_alone() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let tool = |name: &str, command: &str| {
        json!({"pluginId": "p", "name": name, "description": "d", "command": command,
            "parameters": {"type": "object", "n": 1.50}})
    };
    let tools = json!({"tools": [tool("mine", "test.echo"), tool("not_approved", "test.more")]});
    let answer = world.ask(&node, "node.pluginTools.update", tools).await.unwrap();
    assert_eq!(answer, json!({"nodeId": id(1).to_string(), "tools": [tool("mine", "test.echo")]}));
    assert_eq!(world.describe(1).await["nodePluginTools"], answer["tools"]);
    let wrong = json!({"tools": [{"pluginId": "p", "name": "x", "description": "d", "extra": 1}]});
    let error = world.ask(&node, "node.pluginTools.update", wrong).await.unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("at tools[0]"), "{error}");
    let skill = json!({"name": "a-skill", "description": "d", "content": "# do"});
    let answer = world.ask(&node, "node.skills.update", json!({"skills": [skill]})).await.unwrap();
    assert_eq!(answer, json!({"nodeId": id(1).to_string(), "skills": [skill]}));
    assert_eq!(world.describe(1).await["nodeSkills"], json!([{"name": "a-skill", "description": "d"}]));
    let inventory = json!({"protocolFeatures": ["node-worker-supervisor-v6"], "workerHost": {"enabled": false}});
    let answer = world.ask(&node, "node.runnerInventory.update", inventory).await.unwrap();
    assert_eq!(answer, json!({"nodeId": id(1).to_string()}));
    assert_eq!(world.ask(&node, "skills.bins", json!({})).await.unwrap(), json!({"bins": []}));
    let error = world.ask(&node, "node.pluginSurface.refresh", json!({"surface": "canvas"})).await.unwrap_err();
    assert_eq!(error["message"], "canvas plugin surface unavailable");
    // The node's session ends what it published.
    world.nodes.disconnected(&node);
    assert_eq!(world.describe(1).await["nodePluginTools"], json!(null));
}

// ---- what waits for a node

#[tokio::test]
async fn work_waits_for_a_node_once_a_type() {
    let world = World::new();
    let node = world.node(1, &["test.echo"]).await;
    let caller = world.operator(&["operator.write"]);
    let leave = |kind: &str, more: Value| {
        let mut params = json!({"nodeId": id(1).to_string(), "type": kind});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.ask(&caller, "node.pending.enqueue", params)
    };
    let first = leave("location.request", json!({})).await.unwrap();
    assert_eq!((&first["wakeTriggered"], &first["revision"]), (&json!(false), &json!(1)));
    assert_eq!(leave("location.request", json!({})).await.unwrap()["queued"], first["queued"]);
    leave("status.request", json!({"priority": "high", "expiresInMs": 1000})).await.unwrap();
    assert!(leave("status.request", json!({"expiresInMs": 1})).await.is_err());
    assert!(leave("other", json!({})).await.is_err());
    let unknown = json!({"nodeId": id(9).to_string(), "type": "status.request"});
    assert!(world.ask(&caller, "node.pending.enqueue", unknown).await.is_err());

    let restarted = World::over(world.store.clone());
    let node_again = restarted.connect(1, &["test.echo"]).await;
    drop(node);
    let one = restarted.ask(&node_again, "node.pending.drain", json!({"maxItems": 1})).await.unwrap();
    assert_eq!((&one["items"][0]["type"], &one["hasMore"]), (&json!("status.request"), &json!(true)));
    let rest = restarted.ask(&node_again, "node.pending.drain", json!({})).await.unwrap();
    let types: Vec<_> = rest["items"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!((types, &rest["hasMore"]), (vec![&json!("location.request"), &json!("status.request")], &json!(false)));
    assert_eq!(rest["items"][1]["id"], "baseline-status");
}

#[tokio::test]
async fn a_command_that_needs_the_app_open_waits_for_it() {
    let world = World::new();
    world.pair(1).await;
    let node = world.socket(1, "iOS 18.4");
    world.nodes.connected(&node, declared(&["camera.snap"]), NOW).await.unwrap();
    world.approve(1).await;
    drain(&node);
    let caller = world.operator(&["operator.write"]);
    let mut queued = Vec::new();
    for n in 0..=64 {
        let call = json!({"command": "camera.snap", "idempotencyKey": n.to_string(), "params": {"n": n}});
        world.invoke(&caller, 1, call);
        let error = json!({"code": "NODE_BACKGROUND_UNAVAILABLE", "message": "open the app"});
        world.send(&node, "node.invoke.result", &answer_with(&request(&node), json!({"ok": false, "error": error})));
        let error = answer(&caller).await.unwrap_err();
        assert_eq!(error["details"]["code"], "QUEUED_UNTIL_FOREGROUND");
        queued.push(error["details"].clone());
    }
    // The one too many is told what had to go for it.
    assert_eq!(queued[63]["droppedActionIds"], json!([]));
    assert_eq!(queued[64]["droppedActionIds"].as_array().unwrap().len(), 1);
    let pulled = world.ask(&node, "node.pending.pull", json!({})).await.unwrap();
    let actions = pulled["actions"].as_array().unwrap();
    assert_eq!(actions.len(), 64);
    let kept: Vec<_> = actions.iter().map(|action| action["id"].clone()).collect();
    assert!(!kept.contains(&queued[64]["droppedActionIds"][0]));
    let some = actions.iter().find(|action| action["id"] == queued[64]["queuedActionId"]).unwrap();
    assert_eq!((&some["command"], &some["paramsJSON"]), (&json!("camera.snap"), &json!(r#"{"n":64}"#)));
    let acked = world.ask(&node, "node.pending.ack", json!({"ids": kept[..60]})).await.unwrap();
    assert_eq!(acked["remainingCount"], 4);
    // What is not allowed any more is not handed out.
    world.nodes.configure(NodePolicy { allow_commands: Vec::new(), ..policy() });
    assert_eq!(world.ask(&node, "node.pending.pull", json!({})).await.unwrap()["actions"], json!([]));
}
