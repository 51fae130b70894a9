//! The claims of the domain as its callers see it: through the handle, and through its methods.

use std::task::{Poll, Waker};

use serde_json::{Value, json};

use super::methods::METHODS;
use super::pairing::{Manager, REQUEST_TTL_MS, Reason};
use super::record::Claims;
use super::*;
use crate::auth::device::DeviceKey;
use crate::auth::{Grant, Method};
use crate::hub::outbox::{Closing, Item};
use crate::hub::{Client, Connection};
use crate::rpc::dispatch::{Params, Router};
use crate::rpc::json::Raw;
use crate::rpc::scope::Scope;
use crate::secret::Secret;

const NOW: UnixMs = UnixMs(1_795_000_000_000);

fn open(store: &Store) -> Devices {
    Devices::open(store.clone(), Hub::new(1 << 20, 1 << 24), NOW).unwrap()
}

fn devices() -> Devices {
    open(&Store::open_in_memory(&[SCHEMA]).unwrap())
}

fn key(seed: u8) -> DeviceKey {
    DeviceKey::from_bytes([seed; 32]).unwrap()
}

fn scopes(names: &[&str]) -> ScopeSet {
    ScopeSet::parse(names.iter().copied())
}

fn asks(seed: u8, role: Role, names: &[&str]) -> PairingRequest {
    let claims = Claims {
        display_name: Some(format!("device {seed}").into()),
        platform: "linux".into(),
        device_family: Some("Linux".into()),
        client_id: "cli".into(),
        client_mode: "cli".into(),
    };
    PairingRequest { key: key(seed), role, scopes: scopes(names), claims, remote_ip: None, silent: false }
}

fn silently(seed: u8, role: Role, names: &[&str]) -> PairingRequest {
    PairingRequest { silent: true, ..asks(seed, role, names) }
}

const ADMIN: Manager = Manager { scopes: ScopeSet::EMPTY.with(Scope::Admin), device: None, connection: None };

/// Pairs silently and gives the token.
async fn pair(devices: &Devices, seed: u8, role: Role, names: &[&str]) -> String {
    match devices.request(silently(seed, role, names), NOW).await.unwrap() {
        Requested::Paired { token: Some(issued) } => issued.token.expose().to_owned(),
        other => panic!("{other:?}"),
    }
}

async fn wait(devices: &Devices, asks: PairingRequest, now: UnixMs) -> Box<str> {
    match devices.request(asks, now).await.unwrap() {
        Requested::Pending { request_id, .. } => request_id,
        other => panic!("{other:?}"),
    }
}

fn connect(devices: &Devices, grant: Grant) -> Arc<Connection> {
    let hub = &devices.0.hub;
    hub.register(hub.next_id(), grant, Client::default(), None, NOW)
}

fn operator(devices: &Devices, names: &[&str]) -> Arc<Connection> {
    connect(devices, Grant::for_test(Role::Operator, scopes(names), None))
}

/// A connection of the device of `seed`, let in by its token.
fn own(devices: &Devices, seed: u8, role: Role, names: &[&str]) -> Arc<Connection> {
    connect(devices, Grant::for_test(role, scopes(names), Some(key(seed))).by(Method::DeviceToken))
}

/// What waits for a connection, and whether it is closing.
fn drain(connection: &Connection) -> (Vec<Value>, Option<Closing>) {
    let mut texts = Vec::new();
    let closing = connection.outbox.drain(Waker::noop(), |item| {
        let mut out = Vec::new();
        match item {
            Item::Text(text) => out.extend_from_slice(&text),
            Item::Event(event, seq) => event.write(Some(seq), &mut out),
            Item::Ping | Item::Resume => return true,
        }
        texts.push(serde_json::from_slice(&out).unwrap());
        true
    });
    (texts, closing)
}

fn events(connection: &Connection, name: &str) -> Vec<Value> {
    drain(connection).0.into_iter().filter(|text| text["event"] == name).map(|text| text["payload"].clone()).collect()
}

/// Calls a method and gives `payload` or `error`.
async fn call(devices: &Devices, caller: &Arc<Connection>, method: &str, params: Value) -> Result<Value, Value> {
    let mut router = Router::default();
    router.mount(devices, METHODS);
    let (params, mut out) = (params.to_string(), Vec::new());
    drain(caller);
    router.route(caller, "\"1\"", method, Params::new(Raw::new(&params).unwrap()), NOW, &mut out);
    let answer: Value = if out.is_empty() {
        std::future::poll_fn(|cx| match drain(caller).0.into_iter().find(|text| text["type"] == "res") {
            Some(answer) => Poll::Ready(answer),
            None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await
    } else {
        serde_json::from_slice(&out).unwrap()
    };
    if answer["ok"] == true { Ok(answer["payload"].clone()) } else { Err(answer["error"].clone()) }
}

#[tokio::test]
async fn a_local_device_is_paired_at_once_and_gets_its_token_once() {
    let devices = devices();
    let watcher = operator(&devices, &["operator.pairing"]);
    let token = pair(&devices, 1, Role::Node, &["operator.admin"]).await;
    let id = key(1).device_id();
    let facts = devices.facts(id).unwrap();
    assert_eq!(facts.scopes(), ScopeSet::EMPTY, "a node has no scopes, whatever it says");
    assert!(matches!(devices.check_token(id, Role::Node, &token), TokenCheck::Ok { .. }));
    assert!(matches!(devices.request(silently(1, Role::Node, &[]), NOW).await.unwrap(), Requested::Covered));
    assert!(devices.ensure_token(id, Role::Node, NOW).await.unwrap().is_none());
    assert_eq!(events(&watcher, "device.pair.resolved")[0]["decision"], "approved");
}

#[tokio::test]
async fn a_device_keeps_its_request_while_it_retries_and_across_restarts() {
    let store = Store::open_in_memory(&[SCHEMA]).unwrap();
    let devices = open(&store);
    let watcher = operator(&devices, &["operator.pairing"]);
    let first = wait(&devices, asks(1, Role::Operator, &["operator.read"]), NOW).await;
    let later = wait(&devices, asks(2, Role::Operator, &["operator.read"]), NOW.plus(1)).await;
    for minute in 1..10 {
        let now = NOW.plus(minute * 60_000);
        assert_eq!(wait(&devices, asks(1, Role::Operator, &["operator.read"]), now).await, first);
        wait(&devices, asks(2, Role::Operator, &["operator.read"]), now).await;
        devices.tend(now).await;
        let order: Vec<_> = devices.pending(now).iter().map(|request| request.request_id.clone()).collect();
        assert_eq!(order, [later.clone(), first.clone()], "a retry does not make a request newer");
    }
    let requested = events(&watcher, "device.pair.requested");
    assert_eq!(requested.len(), 2, "one alert a request");
    assert_eq!(
        requested[0],
        json!({"requestId": &*first, "deviceId": key(1).device_id().to_string(), "publicKey": key(1).to_string(),
            "displayName": "device 1", "platform": "linux", "deviceFamily": "Linux", "clientId": "cli",
            "clientMode": "cli", "role": "operator", "roles": ["operator"], "scopes": ["operator.read"],
            "silent": false, "isRepair": false, "ts": NOW})
    );
    let restarted = open(&store);
    assert_eq!(restarted.pending(NOW).len(), 2);
    assert_eq!(wait(&restarted, asks(1, Role::Operator, &["operator.read"]), NOW).await, first);
    restarted.approve(&first, ADMIN, NOW).await.unwrap();
    assert!(restarted.facts(key(1).device_id()).is_some());
}

#[tokio::test]
async fn a_request_lapses_when_its_device_stops_asking() {
    let devices = devices();
    let watcher = operator(&devices, &["operator.pairing"]);
    let request_id = wait(&devices, asks(1, Role::Node, &[]), NOW).await;
    let later = NOW.plus(REQUEST_TTL_MS + 1);
    assert!(devices.pending(later).is_empty());
    devices.tend(later).await;
    assert_eq!(events(&watcher, "device.pair.resolved")[0]["decision"], "expired");
    assert!(matches!(devices.approve(&request_id, ADMIN, later).await, Err(PairingError::UnknownRequest)));
    assert_eq!(wait(&devices, asks(1, Role::Node, &[]), later).await, request_id, "the same wish has the same id");
}

#[tokio::test]
async fn approving_one_request_settles_what_it_covers() {
    let devices = devices();
    let read = wait(&devices, asks(1, Role::Operator, &["operator.read"]), NOW).await;
    let write = wait(&devices, asks(1, Role::Operator, &["operator.write"]), NOW).await;
    let pairing = wait(&devices, asks(1, Role::Operator, &["operator.pairing"]), NOW).await;
    let device = devices.approve(&write, ADMIN, NOW).await.unwrap();
    assert_eq!(device.scopes(), scopes(&["operator.write"]));
    let left: Vec<_> = devices.pending(NOW).iter().map(|request| request.request_id.clone()).collect();
    assert_eq!(left, [pairing]);
    assert!(matches!(devices.approve(&read, ADMIN, NOW).await, Err(PairingError::UnknownRequest)));
}

#[tokio::test]
async fn an_approved_device_gets_its_token_when_it_comes_back() {
    let devices = devices();
    let request_id = wait(&devices, asks(1, Role::Operator, &["operator.read"]), NOW).await;
    devices.approve(&request_id, ADMIN, NOW).await.unwrap();
    let id = key(1).device_id();
    let issued = devices.ensure_token(id, Role::Operator, NOW).await.unwrap().unwrap();
    assert_eq!(issued.scopes, scopes(&["operator.read"]));
    assert!(devices.ensure_token(id, Role::Operator, NOW).await.unwrap().is_none());
    assert!(devices.ensure_token(id, Role::Node, NOW).await.unwrap().is_none(), "no token for a role not approved");
    let check = |role, token: &Secret| devices.check_token(id, role, token.expose());
    assert_eq!(
        check(Role::Operator, &issued.token),
        TokenCheck::Ok { scopes: scopes(&["operator.read"]), issued_at: NOW }
    );
    assert_eq!(check(Role::Node, &issued.token), TokenCheck::WrongRole);
    assert_eq!(check(Role::Operator, &Secret::new("x")), TokenCheck::Unknown);
    assert_eq!(devices.check_token(key(9).device_id(), Role::Operator, "x"), TokenCheck::NotPaired);
}

#[tokio::test]
async fn a_rotated_token_is_void_and_says_so() {
    let devices = devices();
    let old = pair(&devices, 1, Role::Operator, &["operator.read", "operator.write"]).await;
    let id = key(1).device_id();
    let narrow = Some(scopes(&["operator.read"]));
    let rotated = devices.rotate(id, Role::Operator, narrow, ADMIN, NOW).await.unwrap();
    assert!(rotated.token.is_none(), "nobody but the device sees its token");
    assert_eq!(devices.check_token(id, Role::Operator, &old), TokenCheck::Rotated);
    let issued = devices.ensure_token(id, Role::Operator, NOW).await.unwrap().unwrap();
    assert_eq!(issued.scopes, scopes(&["operator.read"]));
    assert_eq!(devices.facts(id).unwrap().scopes(), scopes(&["operator.read", "operator.write"]));
}

#[tokio::test]
async fn a_revoked_role_comes_back_only_by_approval() {
    let devices = devices();
    let token = pair(&devices, 1, Role::Operator, &["operator.admin"]).await;
    let id = key(1).device_id();
    assert_eq!(devices.revoke(id, Role::Operator, ADMIN, NOW).await.unwrap(), NOW);
    assert_eq!(devices.revoke(id, Role::Operator, ADMIN, NOW.plus(5)).await.unwrap(), NOW);
    assert_eq!(devices.check_token(id, Role::Operator, &token), TokenCheck::Revoked);
    assert!(devices.ensure_token(id, Role::Operator, NOW).await.unwrap().is_none());
    let again = silently(1, Role::Operator, &["operator.read"]);
    let Requested::Pending { request_id, reason, .. } = devices.request(again, NOW).await.unwrap() else {
        panic!("a tombstone gave way")
    };
    assert_eq!(reason, Reason::RoleUpgrade);
    devices.approve(&request_id, ADMIN, NOW).await.unwrap();
    assert_eq!(devices.facts(id).unwrap().scopes(), scopes(&["operator.read"]), "its old scopes stay gone");
    assert_eq!(devices.check_token(id, Role::Operator, &token), TokenCheck::Rotated, "and so does its old token");
}

#[tokio::test]
async fn a_call_that_waits_behind_its_own_revocation_is_refused() {
    let devices = devices();
    pair(&devices, 1, Role::Operator, &["operator.admin"]).await;
    let pending = wait(&devices, asks(2, Role::Node, &[]), NOW).await;
    let id = key(1).device_id();
    let stolen = Manager { device: Some(id), ..ADMIN };
    let (revoked, approved) =
        tokio::join!(devices.revoke(id, Role::Operator, ADMIN, NOW), devices.approve(&pending, stolen, NOW));
    assert!(revoked.is_ok());
    assert!(matches!(approved, Err(PairingError::Denied(pairing::Denial::Gone))), "{approved:?}");
    assert_eq!(devices.len(), 1);
}

#[tokio::test]
async fn a_removed_device_leaves_nothing() {
    let store = Store::open_in_memory(&[SCHEMA]).unwrap();
    let devices = open(&store);
    let lost = Arc::new(Mutex::new(Vec::new()));
    devices.on_removed({
        let lost = lost.clone();
        move |id, role| lost.lock().unwrap().push((id, role))
    });
    let token = pair(&devices, 1, Role::Node, &[]).await;
    wait(&devices, asks(1, Role::Operator, &["operator.read"]), NOW).await;
    let id = key(1).device_id();
    devices.touch(id, Role::Node, true, None, NOW);
    devices.remove(id, ADMIN, NOW).await.unwrap();
    devices.touch(id, Role::Node, true, None, NOW);
    devices.tend(NOW).await;
    for devices in [devices, open(&store)] {
        assert!(devices.is_empty() && devices.pending(NOW).is_empty());
        assert_eq!(devices.check_token(id, Role::Node, &token), TokenCheck::NotPaired);
        assert!(matches!(devices.remove(id, ADMIN, NOW).await, Err(PairingError::UnknownDevice)));
    }
    assert_eq!(*lost.lock().unwrap(), [(id, Role::Node)]);
}

#[tokio::test]
async fn what_others_approved_for_a_role_goes_with_it() {
    const NODES: crate::store::Schema = crate::store::Schema {
        domain: "nodes",
        steps: &["CREATE TABLE surface (device_id BLOB PRIMARY KEY, role TEXT NOT NULL DEFAULT 'node',
            FOREIGN KEY (device_id, role) REFERENCES device_role (device_id, role) ON DELETE CASCADE) STRICT"],
    };
    let store = Store::open_in_memory(&[SCHEMA, NODES]).unwrap();
    let devices = open(&store);
    let surfaces = || store.load(|db| db.query_row("SELECT count(*) FROM surface", [], |row| row.get::<_, i64>(0)));
    for seed in [1, 2] {
        pair(&devices, seed, Role::Node, &[]).await;
        pair(&devices, seed, Role::Operator, &["operator.read"]).await;
        let id = *key(seed).device_id().as_bytes();
        store.load(move |db| db.execute("INSERT INTO surface (device_id) VALUES (?1)", [id])).unwrap();
    }
    devices.rename(key(1).device_id(), "x", ADMIN).await.unwrap();
    devices.revoke(key(1).device_id(), Role::Operator, ADMIN, NOW).await.unwrap();
    assert_eq!(surfaces().unwrap(), 2, "a change is no removal");
    devices.remove_role(key(1).device_id(), Role::Node, None, NOW).await.unwrap();
    assert_eq!(surfaces().unwrap(), 1);
    assert!(devices.facts(key(1).device_id()).unwrap().approval(Role::Node).is_none());
    devices.remove(key(2).device_id(), ADMIN, NOW).await.unwrap();
    assert_eq!(surfaces().unwrap(), 0);
}

#[tokio::test]
async fn revoking_closes_the_sockets_of_that_role_and_no_others() {
    let devices = devices();
    pair(&devices, 1, Role::Node, &[]).await;
    pair(&devices, 1, Role::Operator, &["operator.read"]).await;
    pair(&devices, 2, Role::Node, &[]).await;
    let node = own(&devices, 1, Role::Node, &[]);
    let operator = own(&devices, 1, Role::Operator, &["operator.read"]);
    let bystander = own(&devices, 2, Role::Node, &[]);
    let closed = |connection: &Connection| drain(connection).1.map(|closing| (closing.code.get(), closing.reason));
    devices.revoke(key(1).device_id(), Role::Node, ADMIN, NOW).await.unwrap();
    assert_eq!(closed(&node), Some((4001, "device token revoked".to_owned())));
    assert_eq!((closed(&operator), closed(&bystander)), (None, None));
    devices.remove(key(1).device_id(), ADMIN, NOW).await.unwrap();
    assert_eq!(closed(&operator), Some((4001, "device removed".to_owned())));
    assert_eq!(closed(&bystander), None);
}

#[tokio::test]
async fn a_new_pin_ends_the_sessions_under_the_old_one() {
    let devices = devices();
    pair(&devices, 1, Role::Node, &[]).await;
    let node = own(&devices, 1, Role::Node, &[]);
    let mut other = silently(1, Role::Node, &[]);
    other.claims.platform = "ios".into();
    let request_id = wait(&devices, other, NOW).await;
    assert!(drain(&node).1.is_none());
    devices.approve(&request_id, ADMIN, NOW).await.unwrap();
    assert!(drain(&node).1.is_some());
    assert_eq!(&*devices.facts(key(1).device_id()).unwrap().claims.platform, "ios");
}

#[tokio::test]
async fn a_flood_from_one_address_is_bounded_and_displaces_itself() {
    let devices = devices();
    let victim = wait(&devices, asks(1, Role::Node, &[]), NOW).await;
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..2 * pairing::MAX_REQUESTS_PER_SOURCE as u32 {
        let mut bytes = [8; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let (key, remote_ip) = (DeviceKey::from_bytes(bytes).unwrap(), "192.0.2.1".parse().ok());
        let request = PairingRequest { key, remote_ip, ..asks(2, Role::Node, &[]) };
        let devices = devices.clone();
        flood.spawn(async move { devices.request(request, NOW).await.map(drop) });
    }
    assert!(flood.join_all().await.into_iter().all(|asked| asked.is_ok()));
    let pending = devices.pending(NOW);
    assert_eq!(pending.len(), 1 + pairing::MAX_REQUESTS_PER_SOURCE);
    assert!(pending.iter().any(|request| request.request_id == victim));
}

#[tokio::test]
async fn sightings_are_written_behind_and_survive() {
    let store = Store::open_in_memory(&[SCHEMA]).unwrap();
    let devices = open(&store);
    pair(&devices, 1, Role::Node, &[]).await;
    let (id, ip) = (key(1).device_id(), "192.0.2.7".parse().ok());
    devices.touch(id, Role::Node, true, ip, NOW.plus(9));
    assert_eq!(open(&store).last_seen(id).unwrap(), LastSeen::default());
    devices.tend(NOW).await;
    let seen = open(&store).last_seen(id).unwrap();
    assert_eq!((seen.at, seen.remote_ip, seen.node_token_used_at), (Some(NOW.plus(9)), ip, Some(NOW.plus(9))));
    devices.rename(id, "label", ADMIN).await.unwrap();
    assert_eq!(open(&store).last_seen(id).unwrap(), seen, "a change of the device leaves its sightings");
}

#[tokio::test]
async fn lists_what_the_incumbents_clients_print() {
    let devices = devices();
    pair(&devices, 1, Role::Node, &[]).await;
    let id = key(1).device_id();
    devices.touch(id, Role::Node, true, "192.0.2.7".parse().ok(), NOW.plus(2));
    devices.rename(id, "Kitchen", ADMIN).await.unwrap();
    let _node = own(&devices, 1, Role::Node, &[]);
    let caller = operator(&devices, &["operator.pairing"]);
    let listed = call(&devices, &caller, "device.pair.list", json!({})).await.unwrap();
    assert_eq!(
        listed,
        json!({"pending": [], "paired": [{
            "deviceId": id.to_string(), "publicKey": key(1).to_string(), "displayName": "device 1",
            "platform": "linux", "deviceFamily": "Linux", "clientId": "cli", "clientMode": "cli",
            "operatorLabel": "Kitchen", "role": "node", "roles": ["node"], "scopes": [], "remoteIp": "192.0.2.7",
            "approvedVia": "silent", "createdAtMs": NOW, "approvedAtMs": NOW, "lastSeenAtMs": NOW.plus(2),
            "lastSeenReason": "connect", "connected": true,
            "tokens": [{"role": "node", "scopes": [], "createdAtMs": NOW, "lastUsedAtMs": NOW.plus(2)}],
        }]})
    );
}

#[tokio::test]
async fn approves_and_rejects_by_method() {
    let devices = devices();
    let caller = operator(&devices, &["operator.pairing", "operator.read"]);
    let id = wait(&devices, asks(1, Role::Operator, &["operator.read"]), NOW).await;
    let approved = call(&devices, &caller, "device.pair.approve", json!({"requestId": &*id})).await.unwrap();
    assert_eq!(approved["requestId"], *id);
    assert_eq!(approved["device"]["roles"], json!(["operator"]));
    assert_eq!(approved["device"]["approvedVia"], "owner");
    let id = wait(&devices, asks(2, Role::Operator, &["operator.write"]), NOW).await;
    let error = call(&devices, &caller, "device.pair.approve", json!({"requestId": &*id})).await.unwrap_err();
    assert_eq!(error["details"]["missingScope"], "operator.write");
    let rejected = call(&devices, &caller, "device.pair.reject", json!({"requestId": &*id})).await.unwrap();
    assert_eq!(rejected, json!({"requestId": &*id, "deviceId": key(2).device_id().to_string()}));
    let error = call(&devices, &caller, "device.pair.reject", json!({"requestId": &*id})).await.unwrap_err();
    assert_eq!(error["message"], "unknown requestId");
}

#[tokio::test]
async fn approving_a_node_needs_admin_in_the_words_that_clients_look_for() {
    let devices = devices();
    let id = wait(&devices, asks(1, Role::Node, &[]), NOW).await;
    let params = json!({"requestId": &*id});
    let caller = operator(&devices, &["operator.pairing"]);
    let error = call(&devices, &caller, "device.pair.approve", params.clone()).await.unwrap_err();
    assert!(error["message"].as_str().unwrap().starts_with("device pairing approval denied"), "{error}");
    let caller = operator(&devices, &["operator.admin"]);
    assert!(call(&devices, &caller, "device.pair.approve", params).await.is_ok());
}

#[tokio::test]
async fn under_its_own_token_a_device_sees_and_touches_itself_alone() {
    let devices = devices();
    pair(&devices, 1, Role::Operator, &["operator.pairing"]).await;
    pair(&devices, 2, Role::Operator, &["operator.pairing"]).await;
    let pending = wait(&devices, asks(3, Role::Operator, &[]), NOW).await;
    let caller = own(&devices, 1, Role::Operator, &["operator.pairing"]);
    let listed = call(&devices, &caller, "device.pair.list", json!({})).await.unwrap();
    assert_eq!(listed["pending"], json!([]));
    assert_eq!(listed["paired"].as_array().unwrap().len(), 1);
    let other = key(2).device_id().to_string();
    let attempts = [
        ("device.pair.approve", json!({"requestId": &*pending})),
        ("device.pair.reject", json!({"requestId": &*pending})),
        ("device.pair.remove", json!({"deviceId": other})),
        ("device.pair.rename", json!({"deviceId": other, "label": "x"})),
        ("device.token.rotate", json!({"deviceId": other, "role": "operator"})),
        ("device.token.revoke", json!({"deviceId": other, "role": "operator"})),
    ];
    for (method, params) in attempts {
        let error = call(&devices, &caller, method, params).await.unwrap_err();
        assert_eq!(error["details"]["reason"], "device-ownership-mismatch", "{method}: {error}");
    }
}

#[tokio::test]
async fn a_rotated_token_is_shown_to_its_own_device_alone() {
    let devices = devices();
    pair(&devices, 1, Role::Operator, &["operator.pairing"]).await;
    let id = key(1).device_id();
    let params = json!({"deviceId": id.to_string(), "role": "operator"});
    let own_session = own(&devices, 1, Role::Operator, &["operator.pairing"]);
    let other_session = own(&devices, 1, Role::Operator, &["operator.pairing"]);
    let answer = call(&devices, &own_session, "device.token.rotate", params.clone()).await.unwrap();
    assert_eq!(answer["tokenDelivery"], "in-band");
    let token = answer["token"].as_str().unwrap();
    assert!(matches!(devices.check_token(id, Role::Operator, token), TokenCheck::Ok { .. }));
    tokio::task::yield_now().await;
    assert!(drain(&own_session).1.is_some(), "it got its answer, and then had to go");
    assert!(drain(&other_session).1.is_some());
    let shared = connect(&devices, Grant::for_test(Role::Operator, ADMIN.scopes, Some(key(1))));
    let answer = call(&devices, &shared, "device.token.rotate", params).await.unwrap();
    assert_eq!(answer["tokenDelivery"], "withheld-cross-device");
    assert!(answer.get("token").is_none());
}

#[tokio::test]
async fn parameters_are_checked_strictly() {
    let devices = devices();
    let caller = operator(&devices, &["operator.admin"]);
    let refused = [
        ("device.pair.list", json!({"x": 1}), "unknown field `x`"),
        ("device.pair.approve", json!({}), "missing field `requestId`"),
        ("device.pair.approve", json!({"requestId": "nope"}), "unknown requestId"),
        ("device.pair.remove", json!({"deviceId": "nope"}), "unknown deviceId"),
        ("device.pair.rename", json!({"deviceId": "nope", "label": " "}), "at label: expected 1 to 64"),
        ("device.pair.rename", json!({"deviceId": "nope", "label": "x".repeat(65)}), "at label: expected 1 to 64"),
        ("device.token.rotate", json!({"deviceId": "nope", "role": "root"}), "at role: expected operator or node"),
        (
            "device.token.rotate",
            json!({"deviceId": "nope", "role": "node", "scopes": ["operator.read", "x"]}),
            "at scopes[1]: expected one of operator.admin",
        ),
        ("device.token.revoke", json!({"deviceId": "nope"}), "missing field `role`"),
    ];
    for (method, params, expected) in refused {
        let error = call(&devices, &caller, method, params).await.unwrap_err();
        assert_eq!(error["code"], "INVALID_REQUEST");
        assert!(error["message"].as_str().unwrap().contains(expected), "{method}: {error}");
    }
}

fn redeeming(seed: u8, code: &IssuedCode, pairs: bool) -> Redeeming {
    let PairingRequest { claims, .. } = asks(seed, Role::Node, &[]);
    Redeeming { setup_id: code.setup_id.clone(), key: key(seed), role: Role::Node, claims, pairs }
}

async fn code(devices: &Devices, access: setup::Access) -> IssuedCode {
    let issuer = setup::Issuer { device: None, by_settings: true };
    devices.issue_code(access, ADMIN, issuer, NOW).await.unwrap()
}

#[tokio::test]
async fn a_code_is_good_for_ten_minutes_and_its_outcome_is_told_for_twenty() {
    let store = Store::open_in_memory(&[SCHEMA]).unwrap();
    let devices = open(&store);
    let (used, lapses) = (code(&devices, setup::Access::Full).await, code(&devices, setup::Access::Full).await);
    let end = NOW.plus(setup::TTL_MS);
    assert_eq!(used.expires_at, end);
    assert!(devices.code(lapses.token.expose(), UnixMs(end.0 - 1)).is_some());
    assert!(devices.code(lapses.token.expose(), end).is_none());
    assert!(devices.redeem(redeeming(1, &lapses, true), end).await.unwrap().is_none(), "not by its name either");
    assert!(!devices.bind_code(&lapses.setup_id, key(1), end).await.unwrap());
    assert!(devices.is_empty(), "nobody was paired by it");
    let last = UnixMs(end.0 - 1);
    let tokens = devices.redeem(redeeming(1, &used, true), last).await.unwrap().unwrap();
    let roles: Vec<_> = tokens.iter().map(|(role, _)| *role).collect();
    assert_eq!(roles, [Role::Node, Role::Operator]);
    assert!(devices.redeem(redeeming(1, &used, true), last).await.unwrap().is_none(), "once");
    let (_, outcome) = devices.code_outcome(&used.setup_id, last).unwrap();
    assert!(!outcome.delivered && outcome.device == key(1).device_id());
    devices.code_delivered(&used.setup_id).await;
    let devices = open(&store);
    assert!(devices.code_outcome(&used.setup_id, last).unwrap().1.delivered);
    devices.tend(last.plus(setup::OUTCOME_TTL_MS + 1)).await;
    assert!(devices.0.read().codes.is_empty() && open(&store).0.read().codes.is_empty(), "then they are forgotten");
}

#[tokio::test]
async fn a_device_that_is_set_up_anew_has_new_tokens_and_the_old_ones_are_dead() {
    let devices = devices();
    let old = pair(&devices, 1, Role::Node, &[]).await;
    let socket = own(&devices, 1, Role::Node, &[]);
    let tokens = devices.redeem(redeeming(1, &code(&devices, setup::Access::Node).await, true), NOW).await;
    let new = tokens.unwrap().unwrap().remove(0).1;
    let id = key(1).device_id();
    assert_eq!(devices.check_token(id, Role::Node, &old), TokenCheck::Rotated);
    assert!(matches!(devices.check_token(id, Role::Node, new.token.expose()), TokenCheck::Ok { .. }));
    assert!(socket.outbox.is_closing(), "whoever holds the old one may be why");
    // Approved already, by somebody and for this role alone: the code brings the token and no more.
    let tokens = devices.redeem(redeeming(1, &code(&devices, setup::Access::Full).await, false), NOW).await;
    assert_eq!(tokens.unwrap().unwrap().len(), 1);
    assert!(devices.facts(id).unwrap().approval(Role::Operator).is_none());
    let stranger = devices.redeem(redeeming(2, &code(&devices, setup::Access::Full).await, false), NOW).await;
    assert!(stranger.unwrap().is_none() && devices.facts(key(2).device_id()).is_none());
}

#[tokio::test]
async fn a_code_makes_no_device_another_kind_of_device() {
    let devices = devices();
    pair(&devices, 1, Role::Node, &[]).await;
    let code = code(&devices, setup::Access::Node).await;
    let mut redeeming = redeeming(1, &code, true);
    redeeming.claims.platform = "macos".into();
    assert!(devices.redeem(redeeming, NOW).await.unwrap().is_none());
    assert_eq!(&*devices.facts(key(1).device_id()).unwrap().claims.platform, "linux");
    assert!(devices.code(code.token.expose(), NOW).is_some(), "it is as good as before");
}

#[tokio::test]
async fn who_is_being_closed_has_no_code_made_any_more() {
    let devices = devices();
    let caller = operator(&devices, &["operator.admin"]);
    let issuer = setup::Issuer { device: None, by_settings: true };
    let by = Manager { connection: Some(caller.id), ..ADMIN };
    devices.issue_code(setup::Access::Node, by, issuer, NOW).await.unwrap();
    caller.close(crate::ws::close::CloseCode::AUTH_CHANGED, "changed");
    devices.end_codes_by_settings().await;
    assert!(devices.0.read().codes.is_empty());
    let error = devices.issue_code(setup::Access::Node, by, issuer, NOW).await.unwrap_err();
    assert!(matches!(error, PairingError::Denied(_)), "{error:?}");
}

const DAY_MS: u64 = 86_400_000;

#[tokio::test]
async fn s_66_a_token_that_has_ended_is_replaced_by_another_credential_and_its_sockets_close() {
    let devices = devices();
    let old = pair(&devices, 1, Role::Operator, &["operator.read"]).await;
    let id = key(1).device_id();
    let end = |devices: &Devices| devices.token_end(&devices.facts(id).unwrap(), Role::Operator);
    assert_eq!(end(&devices), None, "without a setting it does not end");
    devices.set_token_life(TokenLife { max_age_ms: Some(30 * DAY_MS), idle_ms: None }, NOW);
    let ends_at = NOW.plus(30 * DAY_MS);
    assert_eq!(end(&devices), Some(ends_at));
    let socket = own(&devices, 1, Role::Operator, &["operator.read"]);
    let by_secret = connect(&devices, Grant::for_test(Role::Operator, scopes(&["operator.read"]), Some(key(1))));
    devices.tend(UnixMs(ends_at.0 - 1)).await;
    assert!(!socket.outbox.is_closing());
    assert!(devices.ensure_token(id, Role::Operator, UnixMs(ends_at.0 - 1)).await.unwrap().is_none());
    devices.tend(ends_at).await;
    assert!(socket.outbox.is_closing() && !by_secret.outbox.is_closing());
    let issued = devices.ensure_token(id, Role::Operator, ends_at).await.unwrap().expect("one in its place");
    assert_eq!(devices.check_token(id, Role::Operator, &old), TokenCheck::Rotated);
    assert!(matches!(devices.check_token(id, Role::Operator, issued.token.expose()), TokenCheck::Ok { .. }));
    assert_eq!(end(&devices), Some(ends_at.plus(30 * DAY_MS)));
}

/// Its age is looked at every few seconds. Whoever stole it must not win a whole life by its owner being faster than that.
#[tokio::test]
async fn s_66_a_socket_does_not_outlive_its_token_because_another_took_its_place() {
    let devices = devices();
    pair(&devices, 1, Role::Operator, &["operator.read"]).await;
    devices.set_token_life(TokenLife { max_age_ms: Some(DAY_MS), idle_ms: None }, NOW);
    let socket = own(&devices, 1, Role::Operator, &["operator.read"]);
    let by_secret = connect(&devices, Grant::for_test(Role::Operator, scopes(&["operator.read"]), Some(key(1))));
    let before = devices.cut_offs();
    devices
        .ensure_token(key(1).device_id(), Role::Operator, NOW.plus(DAY_MS))
        .await
        .unwrap()
        .expect("one in its place");
    assert!(socket.outbox.is_closing() && !by_secret.outbox.is_closing());
    assert_ne!(devices.cut_offs(), before, "nor one that is just being let in by it");
}

#[tokio::test]
async fn s_66_who_stays_connected_is_not_idle() {
    let devices = devices();
    pair(&devices, 1, Role::Node, &[]).await;
    devices.set_token_life(TokenLife { max_age_ms: None, idle_ms: Some(DAY_MS) }, NOW);
    let id = key(1).device_id();
    let end = || devices.token_end(&devices.facts(id).unwrap(), Role::Node).unwrap();
    assert_eq!(end(), NOW.plus(DAY_MS));
    let socket = own(&devices, 1, Role::Node, &[]);
    let later = NOW.plus(40 * DAY_MS);
    devices.tend(later).await;
    assert!(end() == later.plus(DAY_MS) && !socket.outbox.is_closing());
    devices.0.hub.unregister(socket.id);
    devices.tend(later.plus(40 * DAY_MS)).await;
    assert_eq!(end(), later.plus(DAY_MS), "from then on it is");
}
