//! Devices: signatures, pairing, tokens, removal.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::client::{Client, cli};
use crate::support::device::{Device, Payload, now_ms};
use crate::support::gateway::{Gateway, Setup};

const READ: &[&str] = &["operator.read"];

/// Pairs `device` as a command-line client with these scopes; gives its connection and its token.
fn pair(gateway: &Gateway, device: &Device, scopes: &[&str]) -> (Client, String) {
    let mut client = gateway.client();
    let hello = device.connect(&mut client, &cli(scopes)).expect("a client of this host is let in");
    let token = hello["auth"]["deviceToken"].as_str().expect("a token goes with a pairing");
    (client, token.to_owned())
}

/// `connect` with a device token alone.
fn with_device_token(scopes: &[&str], token: &str) -> Value {
    let mut params = cli(scopes);
    params["auth"] = json!({"deviceToken": token});
    params
}

/// A gateway behind a proxy on this host, so that clients can come from elsewhere.
fn behind_a_proxy() -> Gateway {
    Setup::new().config(&json!({"gateway": {"trustedProxies": ["127.0.0.1"]}})).start()
}

fn from_elsewhere(gateway: &Gateway) -> Client {
    Client::open_with(gateway.port, "X-Forwarded-For: 203.0.113.9\r\n").expect("a listed proxy is let through")
}

#[test]
fn a_client_of_this_host_is_paired_silently_and_gets_its_token_once() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let mut client = gateway.client();
    let hello = device.connect(&mut client, &cli(READ)).unwrap();
    let auth = &hello["auth"];
    assert!(auth["deviceToken"].as_str().is_some_and(|token| token.len() >= 32), "{auth}");
    assert!(auth["issuedAtMs"].is_u64(), "{auth}");
    assert_eq!(auth["scopes"], json!(READ));
    let hello = device.connect(&mut gateway.client(), &cli(READ)).unwrap();
    assert_eq!(hello["auth"].get("deviceToken"), None, "only its hash is kept");
    assert!(!gateway.stderr.text().contains(auth["deviceToken"].as_str().unwrap()), "a secret in the log");
}

#[test]
fn the_older_signature_is_taken_too() {
    let gateway = Gateway::start();
    for payload in [Payload::V3, Payload::V2] {
        let mut client = gateway.client();
        let mut params = cli(READ);
        params["device"] = Device::new(1).proof(&params, &client.nonce(), now_ms(), payload);
        client.connect(&params).unwrap();
    }
}

#[test]
fn what_is_wrong_with_a_proof_is_told_and_logged_once() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let params = cli(READ);
    let now = now_ms();
    let signed = |nonce: &str, at: u64| device.proof(&params, nonce, at, Payload::V3);
    let changed = |nonce: &str, key: &str, value: Value| {
        let mut proof = signed(nonce, now);
        proof[key] = value;
        proof
    };
    type Spoil<'a> = &'a dyn Fn(&str) -> Value;
    let cases: [(&str, Spoil<'_>); 9] = [
        ("DEVICE_AUTH_PUBLIC_KEY_INVALID", &|nonce| changed(nonce, "publicKey", json!("AAAA"))),
        ("DEVICE_AUTH_DEVICE_ID_MISMATCH", &|nonce| changed(nonce, "id", json!(Device::new(2).id()))),
        ("DEVICE_AUTH_SIGNATURE_EXPIRED", &|nonce| signed(nonce, now - 125_000)),
        ("DEVICE_AUTH_SIGNATURE_EXPIRED", &|nonce| signed(nonce, now + 125_000)),
        ("DEVICE_AUTH_NONCE_REQUIRED", &|nonce| changed(nonce, "nonce", json!(""))),
        ("DEVICE_AUTH_NONCE_MISMATCH", &|_| signed("the nonce of another connection", now)),
        ("DEVICE_AUTH_SIGNATURE_INVALID", &|nonce| changed(nonce, "signature", json!(URL_SAFE_NO_PAD.encode([7; 64])))),
        ("DEVICE_AUTH_SIGNATURE_INVALID", &|nonce| changed(nonce, "signedAt", json!(now + 1))),
        ("DEVICE_AUTH_PUBLIC_KEY_INVALID", &|nonce| {
            // A point of small order: any signature would do.
            changed(nonce, "publicKey", json!(URL_SAFE_NO_PAD.encode([0; 32])))
        }),
    ];
    for (number, (code, spoil)) in cases.into_iter().enumerate() {
        let mut client = gateway.client();
        let mut params = params.clone();
        params["device"] = spoil(&client.nonce());
        let error = client.connect(&params).unwrap_err();
        assert_eq!(error["details"]["code"], code, "case {number}: {error}");
        let (close, reason) = client.closed();
        assert_eq!(close, 1008);
        let lines = gateway.log_lines("client refused");
        assert_eq!(lines.len(), number + 1, "{lines:?}");
        assert!(lines[number].contains(&reason), "{reason}: {lines:?}");
    }
    let (mut client, _) = pair(&gateway, &device, &["operator.pairing"]);
    let listed = client.call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["paired"].as_array().map(Vec::len), Some(1), "nothing else was paired: {listed}");
    assert_eq!(listed["pending"], json!([]));
}

#[test]
fn every_signed_field_is_bound() {
    let gateway = Gateway::start();
    for (pointer, value) in [
        ("/client/id", json!("gateway-client")),
        ("/client/mode", json!("backend")),
        ("/client/platform", json!("ios")),
        ("/client/deviceFamily", json!("iPhone")),
        ("/scopes", json!(["operator.admin"])),
        ("/role", json!("node")),
    ] {
        let mut client = gateway.client();
        let mut params = cli(READ);
        params["device"] = Device::new(1).proof(&params, &client.nonce(), now_ms(), Payload::V3);
        *params.pointer_mut(pointer).unwrap() = value;
        let error = client.connect(&params).unwrap_err();
        assert_eq!(error["details"]["code"], "DEVICE_AUTH_SIGNATURE_INVALID", "{pointer}: {error}");
    }
}

#[test]
fn a_proof_serves_once() {
    let gateway = Gateway::start();
    let mut client = gateway.client();
    let mut params = cli(READ);
    params["device"] = Device::new(1).proof(&params, &client.nonce(), now_ms(), Payload::V3);
    client.connect(&params).unwrap();
    let error = gateway.client().connect(&params).unwrap_err();
    assert_eq!(error["details"]["code"], "DEVICE_AUTH_NONCE_MISMATCH");
}

#[test]
fn a_device_token_is_enough_to_come_back() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (_, token) = pair(&gateway, &device, READ);
    let hello = device.connect(&mut gateway.client(), &with_device_token(READ, &token)).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!(READ));
    assert_eq!(gateway.log_lines("by=device-token").len(), 1);
    // Older clients have one field for both kinds of token.
    let mut params = cli(READ);
    params["auth"] = json!({"token": token});
    device.connect(&mut gateway.client(), &params).unwrap();
    let gateway = gateway.restart();
    device.connect(&mut gateway.client(), &with_device_token(READ, &token)).unwrap();
}

#[test]
fn a_device_token_serves_its_device_alone_and_for_what_was_approved() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (_, token) = pair(&gateway, &device, READ);
    let other = Device::new(2);
    pair(&gateway, &other, READ);
    let error = other.connect(&mut gateway.client(), &with_device_token(READ, &token)).unwrap_err();
    assert_eq!(error["details"]["code"], "AUTH_DEVICE_TOKEN_MISMATCH");
    assert_eq!(error["details"]["recommendedNextStep"], "update_auth_credentials");
    let error = device.connect(&mut gateway.client(), &with_device_token(&["operator.admin"], &token)).unwrap_err();
    assert_eq!(error["details"]["code"], "AUTH_SCOPE_MISMATCH");
    let error = gateway.client().connect(&with_device_token(READ, &token)).unwrap_err();
    assert_eq!(error["details"]["code"], "DEVICE_IDENTITY_REQUIRED", "a token without its device is nothing");
}

#[test]
fn a_wrong_shared_token_with_a_device_is_told_to_try_the_device_token() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    pair(&gateway, &device, READ);
    let mut params = cli(READ);
    params["auth"] = json!({"token": "wrong"});
    let details = device.connect(&mut gateway.client(), &params).unwrap_err()["details"].take();
    assert_eq!(details["code"], "AUTH_TOKEN_MISMATCH");
    assert_eq!(details["canRetryWithDeviceToken"], true);
    assert_eq!(details["recommendedNextStep"], "retry_with_device_token");
}

#[test]
fn a_device_from_elsewhere_waits_for_approval() {
    let gateway = behind_a_proxy();
    let mut operator = gateway.operator();
    let device = Device::new(1);
    let mut client = from_elsewhere(&gateway);
    let error = device.connect(&mut client, &cli(READ)).unwrap_err();
    assert_eq!(error["code"], "NOT_PAIRED");
    let details = &error["details"];
    assert_eq!((&details["code"], &details["reason"]), (&json!("PAIRING_REQUIRED"), &json!("not-paired")));
    let request = details["requestId"].as_str().unwrap();
    let (code, reason) = client.closed();
    assert_eq!(code, 1008);
    assert!(reason.contains("pairing required") && reason.contains(request), "{reason}");
    let lines = gateway.log_lines("client refused");
    assert!(lines.len() == 1 && lines[0].contains("pairing required"), "{lines:?}");

    let asked = operator.event("device.pair.requested");
    assert_eq!((&asked["requestId"], &asked["deviceId"]), (&json!(request), &json!(device.id())));
    let listed = operator.call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["pending"][0]["requestId"], request);
    assert_eq!(listed["pending"][0]["remoteIp"], "203.0.113.9");
    assert_eq!(listed["paired"], json!([]));

    let again = device.connect(&mut from_elsewhere(&gateway), &cli(READ)).unwrap_err();
    assert_eq!(again["details"]["requestId"], request, "a retry is the same request");

    let approved = operator.call("device.pair.approve", &json!({"requestId": request})).unwrap();
    assert_eq!(approved["device"]["deviceId"], device.id());
    assert_eq!(operator.event("device.pair.resolved")["decision"], "approved");
    let hello = device.connect(&mut from_elsewhere(&gateway), &cli(READ)).unwrap();
    assert!(hello["auth"]["deviceToken"].is_string(), "{}", hello["auth"]);
    let error = operator.call("device.pair.approve", &json!({"requestId": request})).unwrap_err();
    assert_eq!(error["message"], "unknown requestId");
}

#[test]
fn a_rejected_device_stays_out() {
    let gateway = behind_a_proxy();
    let mut operator = gateway.operator();
    let device = Device::new(1);
    let error = device.connect(&mut from_elsewhere(&gateway), &cli(READ)).unwrap_err();
    let request = error["details"]["requestId"].as_str().unwrap();
    operator.call("device.pair.reject", &json!({"requestId": request})).unwrap();
    assert_eq!(operator.event("device.pair.resolved")["decision"], "rejected");
    assert_eq!(operator.call("device.pair.list", &json!({})).unwrap()["pending"], json!([]));
    device.connect(&mut from_elsewhere(&gateway), &cli(READ)).unwrap_err();
}

#[test]
fn a_waiting_request_outlives_a_restart() {
    let gateway = behind_a_proxy();
    let error = Device::new(1).connect(&mut from_elsewhere(&gateway), &cli(READ)).unwrap_err();
    let gateway = gateway.restart();
    let listed = gateway.operator().call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["pending"][0]["requestId"], error["details"]["requestId"]);
}

#[test]
fn another_platform_than_was_approved_is_no_silent_matter() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    pair(&gateway, &device, READ);
    let mut params = cli(READ);
    params["client"]["platform"] = json!("macos");
    let error = device.connect(&mut gateway.client(), &params).unwrap_err();
    assert_eq!(error["details"]["code"], "PAIRING_REQUIRED");
    assert_eq!(error["details"]["reason"], "metadata-upgrade");
}

#[test]
fn the_owner_of_the_secret_on_this_host_may_widen_its_scopes() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    pair(&gateway, &device, READ);
    let hello = device.connect(&mut gateway.client(), &cli(&["operator.admin"])).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!(["operator.admin"]));
}

#[test]
fn a_device_can_be_listed_and_renamed() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (_client, _) = pair(&gateway, &device, READ);
    let mut operator = gateway.operator();
    operator.call("device.pair.rename", &json!({"deviceId": device.id(), "label": "laptop"})).unwrap();
    let listed = operator.call("device.pair.list", &json!({})).unwrap();
    let row = &listed["paired"][0];
    assert_eq!(row["deviceId"], device.id());
    assert_eq!(row["publicKey"], device.public_key());
    assert_eq!(row["operatorLabel"], "laptop");
    assert_eq!((&row["role"], &row["scopes"], &row["connected"]), (&json!("operator"), &json!(READ), &json!(true)));
    assert!(row["tokens"][0].get("token").is_none(), "{row}");
    for (params, about) in [
        (json!({"deviceId": "nope", "label": "x"}), "unknown deviceId"),
        (json!({"deviceId": device.id(), "label": " "}), "at label"),
        (json!({"deviceId": device.id(), "label": "x".repeat(65)}), "at label"),
    ] {
        let error = operator.call("device.pair.rename", &params).unwrap_err();
        assert!(error["message"].as_str().unwrap().contains(about), "{params}: {error}");
    }
}

#[test]
fn a_removed_device_is_cut_off_at_once() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (mut client, token) = pair(&gateway, &device, READ);
    let mut operator = gateway.operator();
    let begun = Instant::now();
    let removed = operator.call("device.pair.remove", &json!({"deviceId": device.id()})).unwrap();
    assert_eq!(removed, json!({"deviceId": device.id()}));
    let (code, reason) = client.closed();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(code, 4001);
    assert!(reason.contains("removed"), "{reason}");
    device.connect(&mut gateway.client(), &with_device_token(READ, &token)).unwrap_err();
    let error = operator.call("device.pair.remove", &json!({"deviceId": device.id()})).unwrap_err();
    assert_eq!(error["message"], "unknown deviceId");
    drop(operator);
    let gateway = gateway.restart();
    device.connect(&mut gateway.client(), &with_device_token(READ, &token)).unwrap_err();
}

#[test]
fn nothing_more_is_done_for_a_device_that_was_removed() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (mut client, _) = pair(&gateway, &device, &["operator.admin"]);
    // It removes itself, and goes on asking in the same breath.
    let removal = client.send("device.pair.remove", &json!({"deviceId": device.id()}));
    client.answer(&removal).unwrap();
    assert_eq!(client.closed().0, 4001);
}

#[test]
fn a_revoked_token_ends_its_connections_and_lets_nobody_in() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (mut client, token) = pair(&gateway, &device, READ);
    let revoked =
        gateway.operator().call("device.token.revoke", &json!({"deviceId": device.id(), "role": "operator"})).unwrap();
    assert!(revoked["revokedAtMs"].is_u64(), "{revoked}");
    let (code, reason) = client.closed();
    assert_eq!(code, 4001);
    assert!(reason.contains("revoked"), "{reason}");
    let error = device.connect(&mut gateway.client(), &with_device_token(READ, &token)).unwrap_err();
    assert_eq!(error["details"]["code"], "AUTH_DEVICE_TOKEN_MISMATCH");
    let error = device.connect(&mut gateway.client(), &cli(READ)).unwrap_err();
    assert_eq!(error["details"]["code"], "PAIRING_REQUIRED", "what an owner took back does not come back by itself");
}

#[test]
fn a_rotated_token_replaces_the_old_one() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (client, old) = pair(&gateway, &device, &["operator.pairing"]);
    drop(client);
    let rotate = json!({"deviceId": device.id(), "role": "operator"});
    let answer = gateway.operator().call("device.token.rotate", &rotate).unwrap();
    assert_eq!(answer["tokenDelivery"], "withheld-cross-device", "an operator does not see another device's token");
    assert_eq!(answer.get("token"), None);
    let error = device.connect(&mut gateway.client(), &with_device_token(&["operator.pairing"], &old)).unwrap_err();
    assert_eq!(error["details"]["code"], "AUTH_DEVICE_TOKEN_MISMATCH");
}

#[test]
fn under_its_own_token_a_device_manages_itself_alone() {
    let gateway = Gateway::start();
    let (mine, other) = (Device::new(1), Device::new(2));
    let (_, token) = pair(&gateway, &mine, &["operator.pairing"]);
    pair(&gateway, &other, READ);
    let mut client = gateway.client();
    mine.connect(&mut client, &with_device_token(&["operator.pairing"], &token)).unwrap();
    let listed = client.call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["paired"].as_array().map(Vec::len), Some(1), "{listed}");
    let error = client.call("device.pair.remove", &json!({"deviceId": other.id()})).unwrap_err();
    assert_eq!(error["code"], "FORBIDDEN");
    assert_eq!(gateway.log_lines("device pairing removal denied").len(), 1);
    let rotated = client.call("device.token.rotate", &json!({"deviceId": mine.id(), "role": "operator"})).unwrap();
    let token = rotated["token"].as_str().expect("its own token is given to it").to_owned();
    assert_eq!(client.closed().0, 4001);
    mine.connect(&mut gateway.client(), &with_device_token(&["operator.pairing"], &token)).unwrap();
}

#[test]
fn many_devices_pair_at_the_same_time() {
    let gateway = Gateway::start();
    std::thread::scope(|scope| {
        for seed in 1..=24 {
            let gateway = &gateway;
            scope.spawn(move || pair(gateway, &Device::new(seed), READ));
        }
    });
    let listed = gateway.operator().call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["paired"].as_array().map(Vec::len), Some(24));
}
