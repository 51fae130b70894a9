//! One call of a node's command, there and back, between the router and the outboxes.

use std::sync::Arc;
use std::task::Waker;

use clawgate::auth::{DeviceKey, Grant};
use clawgate::clock::UnixMs;
use clawgate::devices::record::Claims;
use clawgate::devices::{self, Devices, PairingRequest};
use clawgate::hub::outbox::Item;
use clawgate::hub::{Client, Connection, Hub};
use clawgate::nodes::{self, Declared, NodePolicy, Nodes};
use clawgate::rpc::dispatch::{Params, Router};
use clawgate::rpc::json::Raw;
use clawgate::rpc::scope::{Role, Scope, ScopeSet};
use clawgate::store::Store;

const NOW: UnixMs = UnixMs(1_795_000_000_000);

/// A node with an approved command, and an operator who calls it.
pub(crate) struct Invoking {
    router: Router,
    caller: Arc<Connection>,
    node: Arc<Connection>,
    out: Vec<u8>,
    /// Parameters of the next call; an idempotency key serves once.
    call: String,
    /// Those of its result, but for the number that the gateway gives the call.
    result: String,
}

impl Invoking {
    /// Pairs the node, approves its command, and calls it a few times with a text of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let store = Store::open_in_memory(&[devices::SCHEMA, nodes::SCHEMA]).expect("a store in memory");
        let hub = Hub::new(1 << 22, 1 << 28);
        let devices = Devices::open(store.clone(), hub.clone(), NOW).expect("an empty store");
        let policy = NodePolicy { allow_commands: vec!["bench.echo".to_owned()], ..NodePolicy::default() };
        let nodes = Nodes::open(store, hub.clone(), devices.clone(), policy, NOW).expect("an empty store");
        let mut router = Router::default();
        router.mount(&nodes, nodes::methods::METHODS);
        let operator = |scope| {
            let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY.with(scope), None);
            hub.register(hub.next_id(), grant, Client::default(), None, NOW)
        };
        let (admin, caller) = (operator(Scope::Admin), operator(Scope::Write));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let node = runtime.block_on(async {
            let node = pair(&hub, &devices, &nodes).await;
            approve(&router, &admin).await;
            node
        });
        take(&node, |_| ());
        let node_id = node.grant.device().expect("a device").to_string();
        let (text, no_id) = ("x".repeat(bytes), "0".repeat(32));
        let call = format!(
            r#"{{"idempotencyKey":"{no_id}","nodeId":"{node_id}","command":"bench.echo","params":{{"text":"{text}"}},"timeoutMs":15000}}"#
        );
        let result =
            format!(r#"{{"id":"{no_id}","nodeId":"{node_id}","ok":true,"payloadJSON":"{{\"text\":\"{text}\"}}"}}"#);
        let mut invoking = Self { router, caller, node, out: Vec::with_capacity(1 << 16), call, result };
        for number in 1..=3 {
            invoking.number(number);
            assert_eq!(invoking.turn(), 1);
        }
        invoking.number(4);
        invoking
    }

    /// Gives the next call a key of its own.
    fn number(&mut self, number: u64) {
        put(&mut self.call, r#""idempotencyKey":""#, &format!("{number:032x}"));
    }

    /// The call, the request to the node, its result, the answer to the caller: how many answers there were.
    pub(crate) fn turn(&mut self) -> usize {
        let Self { router, caller, node, out, call, result } = self;
        route(router, caller, "node.invoke", call, out);
        take(node, |frame| {
            let at = memchr::memmem::find(frame, br#""id":""#).expect("an id") + 6;
            put(result, r#"{"id":""#, std::str::from_utf8(&frame[at..at + 32]).expect("hex"));
        });
        route(router, node, "node.invoke.result", result, out);
        take(caller, |frame| {
            std::hint::black_box(frame);
        })
    }
}

/// A node, paired and connected, that declares one command.
async fn pair(hub: &Hub, devices: &Devices, nodes: &Nodes) -> Arc<Connection> {
    let key = DeviceKey::from_bytes([7; 32]).expect("no key of small order");
    let claims = Claims { client_id: "node-host".into(), client_mode: "node".into(), ..Claims::default() };
    let asks = PairingRequest { key, role: Role::Node, scopes: ScopeSet::EMPTY, claims, remote_ip: None, silent: true };
    devices.request(asks, NOW).await.expect("paired");
    let grant = Grant::for_test(Role::Node, ScopeSet::EMPTY, Some(key));
    let client = Client { id: "node-host".into(), platform: "linux".into(), mode: "node".into(), ..Client::default() };
    let node = hub.register(hub.next_id(), grant, client, None, NOW);
    let declared = Declared { commands: vec!["bench.echo".to_owned()], ..Declared::default() };
    nodes.connected(&node, declared, NOW).await.expect("connected");
    node
}

/// Approves what waits.
async fn approve(router: &Router, admin: &Arc<Connection>) {
    let mut list = Vec::new();
    route(router, admin, "node.pair.list", "{}", &mut list);
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    for request in list["payload"]["pending"].as_array().into_iter().flatten() {
        let params = format!(r#"{{"requestId":{}}}"#, request["requestId"]);
        route(router, admin, "node.pair.approve", &params, &mut Vec::new());
        while take(admin, |_| ()) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

fn route(router: &Router, caller: &Arc<Connection>, method: &str, params: &str, out: &mut Vec<u8>) {
    out.clear();
    router.route(caller, "\"1\"", method, Params::new(Some(Raw::new(params).expect("JSON"))), NOW, out);
}

/// Takes out what waits for a connection. How many texts they were.
fn take(connection: &Connection, mut look: impl FnMut(&[u8])) -> usize {
    let mut taken = 0;
    connection.outbox.drain(Waker::noop(), |item| {
        if let Item::Text(text) = item {
            taken += 1;
            look(&text);
        }
        true
    });
    connection.outbox.settle();
    taken
}

/// Puts `value` where one as long begins, behind `key`.
fn put(json: &mut String, key: &str, value: &str) {
    let at = memchr::memmem::find(json.as_bytes(), key.as_bytes()).expect("the key") + key.len();
    json.replace_range(at..at + value.len(), value);
}
