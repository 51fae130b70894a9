//! One call of a node's command, there and back, between the scanner and the outboxes.

use std::sync::Arc;
use std::task::Waker;

use clawgate::auth::{DeviceKey, Grant};
use clawgate::clock::UnixMs;
use clawgate::devices::record::Claims;
use clawgate::devices::{self, Devices, PairingRequest};
use clawgate::hub::outbox::{Item, spare};
use clawgate::hub::{Client, Connection, Hub};
use clawgate::nodes::{self, Declared, NodePolicy, Nodes};
use clawgate::rpc::dispatch::{Params, Router};
use clawgate::rpc::envelope::Request;
use clawgate::rpc::scope::{Role, Scope, ScopeSet};
use clawgate::store::Store;

const NOW: UnixMs = UnixMs(1_795_000_000_000);

/// The gateway without its sockets.
pub(crate) struct World {
    hub: Hub,
    devices: Devices,
    nodes: Nodes,
    router: Router,
    /// May do everything.
    pub(crate) admin: Arc<Connection>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    pub(crate) fn new() -> Self {
        let store = Store::open_in_memory(&[devices::SCHEMA, nodes::SCHEMA]).expect("a store in memory");
        let hub = Hub::new(1 << 22, 1 << 28);
        let devices = Devices::open(store.clone(), hub.clone(), NOW).expect("an empty store");
        let policy = NodePolicy { allow_commands: vec!["bench.echo".to_owned()], ..NodePolicy::default() };
        let nodes = Nodes::open(store, hub.clone(), devices.clone(), policy, NOW).expect("an empty store");
        let mut router = Router::default();
        router.mount(&nodes, nodes::methods::METHODS);
        let admin = operator(&hub, Scope::Admin);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { hub, devices, nodes, router, admin, runtime }
    }

    /// Nodes, paired and connected, that declare one command each. How many there are tells them from those of another
    /// call.
    pub(crate) fn nodes(&self, numbers: std::ops::Range<u32>) -> Vec<Arc<Connection>> {
        self.runtime.block_on(async {
            let mut nodes = Vec::new();
            for number in numbers {
                nodes.push(self.node(number).await);
            }
            nodes
        })
    }

    async fn node(&self, number: u32) -> Arc<Connection> {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let key = DeviceKey::from_bytes(key).expect("no key of small order");
        let claims = Claims { client_id: "node-host".into(), client_mode: "node".into(), ..Claims::default() };
        let asks =
            PairingRequest { key, role: Role::Node, scopes: ScopeSet::EMPTY, claims, remote_ip: None, silent: true };
        self.devices.request(asks, NOW).await.expect("paired");
        let grant = Grant::for_test(Role::Node, ScopeSet::EMPTY, Some(key));
        let client = Client {
            id: "node-host".into(),
            display_name: Some(format!("node {number}").into()),
            platform: "linux".into(),
            device_family: Some("Linux".into()),
            version: "2026.9.6".into(),
            mode: "node".into(),
            ..Client::default()
        };
        let node = self.hub.register(self.hub.next_id(), grant, client, None, NOW);
        let declared = Declared { commands: vec!["bench.echo".to_owned()], ..Declared::default() };
        self.nodes.connected(&node, declared, NOW).await.expect("connected");
        node
    }

    /// Approves what waits.
    fn approve(&self) {
        let mut list = Vec::new();
        self.route(&self.admin, &request("node.pair.list", "{}"), &mut list);
        let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
        for pending in list["payload"]["pending"].as_array().into_iter().flatten() {
            let params = format!(r#"{{"requestId":{}}}"#, pending["requestId"]);
            self.runtime.block_on(async {
                self.route(&self.admin, &request("node.pair.approve", &params), &mut Vec::new());
                while take(&self.admin, |_| ()) == 0 {
                    tokio::task::yield_now().await;
                }
            });
        }
    }

    /// Takes one frame's text through scanner and router.
    pub(crate) fn route(&self, caller: &Arc<Connection>, text: &str, out: &mut Vec<u8>) {
        out.clear();
        let request = Request::parse(text).expect("a request");
        self.router.route(caller, request.id.as_str(), &request.method, Params::of(&request), NOW, out);
    }
}

fn operator(hub: &Hub, scope: Scope) -> Arc<Connection> {
    let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY.with(scope), None);
    hub.register(hub.next_id(), grant, Client::default(), None, NOW)
}

/// A request's text.
pub(crate) fn request(method: &str, params: &str) -> String {
    format!(r#"{{"type":"req","id":"2c3f0a3e-6a05-4c9b-9f2d-0d6e2b7f6a11","method":"{method}","params":{params}}}"#)
}

/// A node with an approved command, and an operator who calls it.
pub(crate) struct Invoking {
    world: World,
    caller: Arc<Connection>,
    node: Arc<Connection>,
    out: Vec<u8>,
    /// The next call; an idempotency key serves once.
    call: String,
    /// Its result, but for the number that the gateway gives the call.
    result: String,
    calls: u64,
}

impl Invoking {
    /// Calls before the steady state: all that is made when it is first needed is there.
    const WARM_UP: u64 = 500;

    /// Pairs the node, approves its command, and calls it with a text of `bytes` until the state is steady.
    pub(crate) fn new(bytes: usize) -> Self {
        let world = World::new();
        let node = world.nodes(0..1).remove(0);
        world.approve();
        let caller = operator(&world.hub, Scope::Write);
        take(&node, |_| ());
        let node_id = node.grant.device().expect("a device").to_string();
        let (text, no_id) = ("x".repeat(bytes), "0".repeat(32));
        let call = format!(
            r#"{{"nodeId":"{node_id}","command":"bench.echo","params":{{"text":"{text}"}},"idempotencyKey":"{no_id}","timeoutMs":15000}}"#
        );
        let result =
            format!(r#"{{"id":"{no_id}","nodeId":"{node_id}","ok":true,"payloadJSON":"{{\"text\":\"{text}\"}}"}}"#);
        let (call, result) = (request("node.invoke", &call), request("node.invoke.result", &result));
        let mut invoking = Self { world, caller, node, out: Vec::with_capacity(1 << 16), call, result, calls: 0 };
        for _ in 0..Self::WARM_UP {
            invoking.number();
            assert_eq!(invoking.turn(), 1);
        }
        invoking.number();
        invoking
    }

    /// Gives the next call a key of its own.
    pub(crate) fn number(&mut self) {
        self.calls += 1;
        let mut digits = [b'0'; 32];
        let mut number = self.calls;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        put(&mut self.call, r#""idempotencyKey":""#, std::str::from_utf8(&digits).expect("digits"));
    }

    /// The call, the request to the node, its result, the answer to the caller: how many answers there were.
    pub(crate) fn turn(&mut self) -> usize {
        let Self { world, caller, node, out, call, result, .. } = self;
        world.route(caller, call, out);
        take(node, |frame| {
            let at = memchr::memmem::find(frame, br#""id":""#).expect("an id") + 6;
            put(result, r#""params":{"id":""#, std::str::from_utf8(&frame[at..at + 32]).expect("hex"));
        });
        world.route(node, result, out);
        take(caller, |frame| {
            std::hint::black_box(frame);
        })
    }
}

/// Takes out what waits for a connection. How many texts they were.
fn take(connection: &Connection, mut look: impl FnMut(&[u8])) -> usize {
    let mut taken = 0;
    connection.outbox.drain(Waker::noop(), |item| {
        if let Item::Text(text) = item {
            taken += 1;
            look(&text);
            spare::give_back(text);
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
