//! What the gateway itself costs on the main road: `node.invoke` in, the request out to the node, its result in, the
//! answer out to the caller. No sockets: frames go from the router to the outboxes and are taken out there.

use std::hint::black_box;
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
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const NOW: UnixMs = UnixMs(1_795_000_000_000);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct World {
    hub: Hub,
    devices: Devices,
    nodes: Nodes,
    router: Router,
    admin: Arc<Connection>,
}

impl World {
    fn new() -> Self {
        let store = Store::open_in_memory(&[devices::SCHEMA, nodes::SCHEMA]).expect("a store in memory");
        let hub = Hub::new(1 << 22, 1 << 28);
        let devices = Devices::open(store.clone(), hub.clone(), NOW).expect("an empty store");
        let policy = NodePolicy { allow_commands: vec!["bench.echo".to_owned()], ..NodePolicy::default() };
        let nodes = Nodes::open(store, hub.clone(), devices.clone(), policy, NOW).expect("an empty store");
        let mut router = Router::default();
        router.mount(&nodes, nodes::methods::METHODS);
        let admin = Grant::for_test(Role::Operator, ScopeSet::EMPTY.with(Scope::Admin), None);
        let admin = hub.register(hub.next_id(), admin, Client::default(), None, NOW);
        Self { hub, devices, nodes, router, admin }
    }

    /// A node with its command approved.
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

    async fn approve_all(&self) {
        let list = self.call(&self.admin, "node.pair.list", "{}");
        let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
        for request in list["payload"]["pending"].as_array().into_iter().flatten() {
            self.call(&self.admin, "node.pair.approve", &format!(r#"{{"requestId":{}}}"#, request["requestId"]));
            while take(&self.admin, |_| ()) == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Routes a request; what is answered at once.
    fn call(&self, caller: &Arc<Connection>, method: &str, params: &str) -> Vec<u8> {
        let mut out = Vec::new();
        self.route(caller, method, params, &mut out);
        out
    }

    fn route(&self, caller: &Arc<Connection>, method: &str, params: &str, out: &mut Vec<u8>) {
        let params = Raw::new(params).expect("JSON");
        self.router.route(caller, "\"1\"", method, Params::new(Some(params)), NOW, out);
    }
}

/// Takes out what waits for a connection.
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

fn bench(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let world = World::new();
    let node = runtime.block_on(async {
        let node = world.node(0).await;
        world.approve_all().await;
        node
    });
    take(&node, |_| ());
    let node_id = node.grant.device().expect("a device").to_string();
    let caller = Grant::for_test(Role::Operator, ScopeSet::EMPTY.with(Scope::Write), None);
    let caller = world.hub.register(world.hub.next_id(), caller, Client::default(), None, NOW);

    let mut group = c.benchmark_group("invoke");
    // Counts on from size to size: a key that comes again with other parameters is refused.
    let mut number = 0u64;
    for bytes in [64, 4096] {
        let text = "x".repeat(bytes);
        let (mut out, mut params) = (Vec::with_capacity(1 << 16), String::new());
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("there_and_back_{bytes}"), |b| {
            b.iter(|| {
                use std::fmt::Write as _;
                number += 1;
                params.clear();
                let _ = write!(
                    params,
                    r#"{{"nodeId":"{node_id}","command":"bench.echo","params":{{"text":"{text}"}},"idempotencyKey":"{number:032x}","timeoutMs":15000}}"#
                );
                world.route(&caller, "node.invoke", &params, &mut out);
                params.clear();
                take(&node, |frame| {
                    let at = memchr::memmem::find(frame, br#""id":""#).expect("an id") + 6;
                    let id = std::str::from_utf8(&frame[at..at + 32]).expect("hex");
                    let _ = write!(
                        params,
                        r#"{{"id":"{id}","nodeId":"{node_id}","ok":true,"payloadJSON":"{{\"text\":\"{text}\"}}"}}"#
                    );
                });
                out.clear();
                world.route(&node, "node.invoke.result", &params, &mut out);
                out.clear();
                assert_eq!(take(&caller, |frame| { black_box(frame); }), 1);
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("list");
    group.sample_size(20);
    let (mut out, mut nodes) = (Vec::new(), 1);
    group.bench_function("ten_thousand_nodes", |b| {
        runtime.block_on(async {
            for number in nodes..10_000 {
                world.node(number).await;
            }
        });
        nodes = 10_000;
        b.iter(|| {
            out.clear();
            world.route(&world.admin, "node.list", "{}", &mut out);
            black_box(out.len())
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
