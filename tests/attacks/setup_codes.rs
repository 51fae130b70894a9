//! S-55: a setup code is one device's, once, and worth no more than it was made for.

use std::thread;

use serde_json::{Value, json};

use crate::support::client::{Client, cli, node, operator, operator_with};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, HttpAnswer, Setup};
use crate::{behind_a_proxy, code, from, with};

/// Has a code made. Its public name, and its token.
fn make(operator: &mut Client, params: &Value) -> (String, String) {
    use base64::Engine as _;
    let mut params = params.clone();
    params["publicUrl"] = json!("wss://gw.example");
    let made = operator.call("device.pair.setupCode", &params).unwrap();
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(made["setupCode"].as_str().unwrap()).unwrap();
    let payload: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!((&payload["url"], &payload["expiresAtMs"]), (&json!("wss://gw.example"), &made["expiresAtMs"]));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&made["setupId"]), text(&payload["bootstrapToken"]))
}

fn node_code(operator: &mut Client) -> (String, String) {
    make(operator, &json!({"bootstrapProfile": "node"}))
}

fn by(params: Value, token: &str) -> Value {
    with(params, "auth", json!({"bootstrapToken": token}))
}

/// Comes from elsewhere with a code, as a node host.
fn knock(gateway: &Gateway, device: &Device, token: &str) -> Result<Value, Value> {
    device.connect(&mut from(gateway, "203.0.113.9"), &by(node(&[]), token))
}

/// `connect` of a phone's app, which is a node first.
fn phone(token: &str) -> Value {
    let mut params = by(node(&[]), token);
    params["client"]["id"] = json!("openclaw-ios");
    params["client"]["platform"] = json!("iOS 18.1");
    params["client"]["deviceFamily"] = json!("iPhone");
    params
}

/// A connection of an administrator who is let in by their device's own token.
fn paired_admin(gateway: &Gateway, device: &Device) -> Client {
    let hello = device.connect(&mut gateway.client(), &cli(&["operator.admin"])).unwrap();
    let by_device = with(cli(&["operator.admin"]), "auth", json!({"deviceToken": hello["auth"]["deviceToken"]}));
    let mut own = gateway.client();
    device.connect(&mut own, &by_device).unwrap();
    own
}

#[test]
fn s_55_a_code_is_used_once_also_across_a_restart() {
    let gateway = behind_a_proxy();
    let (_, by_secret) = node_code(&mut gateway.operator());
    let (setup_id, token) = node_code(&mut paired_admin(&gateway, &Device::new(9)));
    let gateway = gateway.restart();
    let error = knock(&gateway, &Device::new(3), &by_secret).unwrap_err();
    // It may have been stopped to be given another secret.
    assert_eq!(code(&error), "AUTH_BOOTSTRAP_TOKEN_INVALID", "what the secret made does not outlive the run");
    let hello = knock(&gateway, &Device::new(1), &token).expect("a code outlives a restart");
    assert_eq!((&hello["auth"]["role"], &hello["auth"]["scopes"]), (&json!("node"), &json!([])));
    let own = hello["auth"]["deviceToken"].as_str().unwrap();
    let invalid =
        |gateway: &Gateway, device: u8| code(&knock(gateway, &Device::new(device), &token).unwrap_err()).to_owned();
    assert_eq!(invalid(&gateway, 2), "AUTH_BOOTSTRAP_TOKEN_INVALID", "another device");
    assert_eq!(invalid(&gateway, 1), "AUTH_BOOTSTRAP_TOKEN_INVALID", "nor the same again: it has a token of its own");
    let gateway = gateway.restart();
    assert_eq!(invalid(&gateway, 2), "AUTH_BOOTSTRAP_TOKEN_INVALID");
    let by_own = with(node(&[]), "auth", json!({"deviceToken": own}));
    Device::new(1).connect(&mut from(&gateway, "203.0.113.9"), &by_own).unwrap();
    let mut operator = gateway.operator();
    let became = operator.call("device.pair.setupStatus", &json!({"setupId": setup_id})).unwrap();
    assert_eq!(became["completion"]["deviceId"], Device::new(1).id(), "{became}");
    assert_eq!(became["completion"]["access"], "node");
    let listed = operator.call("device.pair.list", &json!({})).unwrap();
    let rows = listed["paired"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "the administrator's, and the one that was set up");
    assert!(rows.iter().any(|row| row["deviceId"] == Device::new(1).id() && row["approvedVia"] == "bootstrap"));
    let stored = std::fs::read(gateway.state_dir().join("clawgate.sqlite")).unwrap();
    assert!(
        !stored.windows(token.len()).any(|bytes| bytes == token.as_bytes()),
        "only a hash is kept, and not for long"
    );
}

#[test]
fn s_55_of_two_who_use_a_code_at_once_one_is_refused() {
    let gateway = behind_a_proxy();
    let mut operator = gateway.operator();
    for round in 0..5 {
        let (_, token) = node_code(&mut operator);
        let both: Vec<_> = thread::scope(|scope| {
            let knocking: Vec<_> = (0..2)
                .map(|one| {
                    let (gateway, token) = (&gateway, &token);
                    scope.spawn(move || knock(gateway, &Device::new(10 + 2 * round + one), token))
                })
                .collect();
            knocking.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(both.iter().filter(|answer| answer.is_ok()).count(), 1, "{both:?}");
        let refused = both.into_iter().find_map(Result::err).unwrap();
        assert_eq!(code(&refused), "AUTH_BOOTSTRAP_TOKEN_INVALID");
    }
}

#[test]
fn s_55_a_code_gives_what_it_was_made_for_and_nothing_more() {
    let gateway = behind_a_proxy();
    let mut operator = gateway.operator();
    let (_, token) = node_code(&mut operator);
    let elsewhere = || from(&gateway, "203.0.113.9");
    for wrong in [by(cli(&[]), &token), by(cli(&["operator.read"]), &token)] {
        let error = Device::new(1).connect(&mut elsewhere(), &wrong).unwrap_err();
        assert_eq!(code(&error), "AUTH_BOOTSTRAP_TOKEN_INVALID", "a node's code makes no operator");
    }
    assert!(elsewhere().connect(&by(node(&[]), &token)).is_err(), "nor does it serve who proves no key");
    knock(&gateway, &Device::new(1), &token).expect("who could not use it has not used it up");

    let (_, token) = make(&mut operator, &json!({"bootstrapProfile": "limited"}));
    let asks_admin = by(cli(&["operator.admin"]), &token);
    let error = Device::new(2).connect(&mut elsewhere(), &asks_admin).unwrap_err();
    assert_eq!(code(&error), "AUTH_BOOTSTRAP_TOKEN_INVALID");
    let mut app = elsewhere();
    let hello = Device::new(2).connect(&mut app, &phone(&token)).unwrap();
    let given = &hello["auth"]["deviceTokens"][0];
    let scopes =
        json!(["operator.approvals", "operator.questions", "operator.read", "operator.talk.secrets", "operator.write"]);
    assert_eq!((&given["role"], &given["scopes"]), (&json!("operator"), &scopes));
    assert_eq!(hello["auth"]["deviceTokens"].as_array().unwrap().len(), 1, "and the node's own is not among them");
    let mut ui = phone("");
    ui["role"] = json!("operator");
    ui["client"]["mode"] = json!("ui");
    ui["auth"] = json!({"deviceToken": given["deviceToken"]});
    for (asked, is_let_in) in [(json!(["operator.write"]), true), (json!(["operator.admin"]), false)] {
        let hello = Device::new(2).connect(&mut elsewhere(), &with(ui.clone(), "scopes", asked.clone()));
        assert_eq!(hello.is_ok(), is_let_in, "{asked}: {hello:?}");
    }
    // A node that was set up by a code still runs nothing before its commands are approved (S-73).
    let pending = operator.call("node.pair.list", &json!({})).unwrap();
    assert!(pending["paired"].as_array().unwrap().is_empty(), "{pending}");
}

#[test]
fn s_55_only_an_administrator_has_codes_made() {
    let gateway = Gateway::start();
    let params = json!({"publicUrl": "wss://gw.example"});
    for scopes in [&["operator.pairing", "operator.write"][..], &["operator.read"], &[]] {
        let mut client = gateway.client();
        client.connect(&operator_with(scopes)).unwrap();
        for (method, params) in
            [("device.pair.setupCode", &params), ("device.pair.setupStatus", &json!({"setupId": "x"}))]
        {
            assert_eq!(code(&client.call(method, params).unwrap_err()), "MISSING_SCOPE", "{method} with {scopes:?}");
        }
    }
    let mut admin = gateway.operator();
    let plain = admin.call("device.pair.setupCode", &json!({"publicUrl": "ws://gw.example"})).unwrap_err();
    assert!(plain["message"].as_str().unwrap().contains("wss://"), "{plain}");
    let near = admin.call("device.pair.setupCode", &json!({"publicUrl": "ws://192.168.1.5:18789"})).unwrap();
    assert_eq!((&near["access"], &near["accessDowngraded"]), (&json!("limited"), &json!(true)), "readable on its way");
    assert!(near["qrDataUrl"].as_str().unwrap().starts_with("data:image/png;base64,"));
    let lost = admin.call("device.pair.setupCode", &json!({})).unwrap_err();
    assert!(lost["message"].as_str().unwrap().contains("gateway.bind"), "{lost}");
    // So many and no more; none of them makes room for another.
    let made = (0..300)
        .map_while(|_| admin.call("device.pair.setupCode", &with(params.clone(), "includeQr", json!(false))).ok());
    assert_eq!(made.count(), 255);
}

#[test]
fn s_55_a_code_that_waits_for_approval_stays_its_first_keys() {
    let gateway = behind_a_proxy();
    let mut operator = gateway.operator();
    let (_, token) = make(&mut operator, &json!({"bootstrapProfile": "limited"}));
    // A node host is not what such a code is for, so somebody is asked.
    let waits = knock(&gateway, &Device::new(1), &token).unwrap_err();
    assert_eq!(code(&waits), "PAIRING_REQUIRED", "{waits}");
    assert_eq!(waits["details"]["recommendedNextStep"], "wait_then_retry");
    let other = Device::new(2).connect(&mut from(&gateway, "203.0.113.9"), &phone(&token)).unwrap_err();
    assert_eq!(code(&other), "AUTH_BOOTSTRAP_TOKEN_INVALID", "it is another's by now");
    let request = &waits["details"]["requestId"];
    operator.call("device.pair.approve", &json!({"requestId": request})).unwrap();
    let hello = knock(&gateway, &Device::new(1), &token).unwrap();
    assert!(hello["auth"]["deviceTokens"].is_null(), "what was approved is the node: {}", hello["auth"]);
    assert!(hello["auth"]["deviceToken"].is_string());

    let (_, token) = make(&mut operator, &json!({"bootstrapProfile": "limited"}));
    let waits = knock(&gateway, &Device::new(3), &token).unwrap_err();
    operator.call("device.pair.reject", &json!({"requestId": waits["details"]["requestId"]})).unwrap();
    let error = knock(&gateway, &Device::new(3), &token).unwrap_err();
    assert_eq!(code(&error), "AUTH_BOOTSTRAP_TOKEN_INVALID", "who was rejected does not come again by the same code");
}

/// A session that was let in by a code holds no more than one by its device's token, whatever the device may do besides.
#[test]
fn s_55_who_was_let_in_by_a_code_manages_its_own_device_and_no_other() {
    let gateway = behind_a_proxy();
    let mut operator = gateway.operator();
    let (own, other, waits) = (Device::new(1), Device::new(2), Device::new(3));
    own.connect(&mut gateway.client(), &cli(&["operator.read", "operator.pairing"])).unwrap();
    other.connect(&mut gateway.client(), &cli(&["operator.read"])).unwrap();
    let request = waits.connect(&mut from(&gateway, "203.0.113.9"), &cli(&["operator.read"])).unwrap_err();
    let request = request["details"]["requestId"].clone();
    let (_, token) = make(&mut operator, &json!({"bootstrapProfile": "limited"}));
    let mut params = by(cli(&[]), &token);
    params.as_object_mut().unwrap().remove("scopes");
    let mut session = from(&gateway, "203.0.113.9");
    let hello = own.connect(&mut session, &params).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!(["operator.pairing", "operator.read"]), "what it was approved for");
    let listed = session.call("device.pair.list", &json!({})).unwrap();
    let ids: Vec<_> = listed["paired"].as_array().unwrap().iter().map(|row| row["deviceId"].clone()).collect();
    assert_eq!((ids, &listed["pending"]), (vec![json!(own.id())], &json!([])), "it sees itself alone");
    for (method, params) in [
        ("device.pair.remove", json!({"deviceId": other.id()})),
        ("device.pair.rename", json!({"deviceId": other.id(), "label": "mine"})),
        ("device.token.rotate", json!({"deviceId": other.id(), "role": "operator"})),
        ("device.token.revoke", json!({"deviceId": other.id(), "role": "operator"})),
        ("device.pair.approve", json!({"requestId": request})),
        ("device.pair.reject", json!({"requestId": request})),
    ] {
        let error = session.call(method, &params).unwrap_err();
        assert_eq!(error["details"]["reason"], "device-ownership-mismatch", "{method}: {error}");
    }
    assert_eq!(code(&session.call("device.pair.setupCode", &json!({})).unwrap_err()), "MISSING_SCOPE");
    session.call("device.pair.rename", &json!({"deviceId": own.id(), "label": "mine"})).unwrap();
    session.call("device.token.rotate", &json!({"deviceId": own.id(), "role": "operator"})).unwrap();
    assert_eq!(session.closed().0, 4001, "its own right is one that it can end");
}

/// `GET` as the machine that joins sends it, from `address`.
fn fetch(gateway: &Gateway, path: &str, address: &str, more: &str) -> HttpAnswer {
    gateway.http(&format!(
        "GET {path} HTTP/1.1\r\nHost: gw.example\r\nX-Forwarded-For: {address}\r\n{more}Connection: close\r\n\r\n"
    ))
}

#[test]
fn s_55_a_join_url_is_fetched_once_and_is_worth_no_more_than_its_code() {
    let gateway = behind_a_proxy();
    let admin = Device::new(9);
    let mut own = paired_admin(&gateway, &admin);
    let mut operator = gateway.operator();
    let join = |operator: &mut Client, url: &str| {
        operator.call("device.pair.setupCode", &json!({"publicUrl": url, "joinUrl": true, "includeQr": false}))
    };
    let path = |made: &Value| made["joinUrl"].as_str().unwrap().strip_prefix("https://gw.example").unwrap().to_owned();
    let made = join(&mut operator, "wss://gw.example").unwrap();
    assert_eq!(made["access"], "node", "it is for a node host");
    let url = path(&made);
    assert_eq!(url.len(), "/j/".len() + 22, "{url}");
    // What is no plain GET of it takes nothing away from who comes by it.
    let head = format!("HEAD {url} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n");
    assert_eq!(gateway.http(&head).status, 404);
    assert_eq!(fetch(&gateway, &format!("{url}?x"), "203.0.113.9", "").status, 404);
    assert_eq!(fetch(&gateway, &url, "203.0.113.9", "Origin: https://evil.example\r\n").status, 403);
    let answer = fetch(&gateway, &url, "203.0.113.9", "");
    assert_eq!((answer.status, answer.json()["url"].as_str()), (200, Some("wss://gw.example")));
    assert!(answer.head.contains("content-type: application/json") && answer.head.contains("no-store"), "{answer:?}");
    let again = fetch(&gateway, &url, "203.0.113.9", "");
    assert_eq!((again.status, again.json()), (404, json!({"error": "not_found"})));
    let token = answer.json()["bootstrapToken"].as_str().unwrap().to_owned();
    knock(&gateway, &Device::new(1), &token).expect("it is the setup code's");
    // Void with the code, as that is with its maker's right.
    let void = path(&join(&mut own, "wss://gw.example").unwrap());
    operator.call("device.pair.remove", &json!({"deviceId": admin.id()})).unwrap();
    assert_eq!(fetch(&gateway, &void, "203.0.113.9", "").status, 404);
    // In one process alone: what is handed out in clear is not kept on disk.
    let lost = path(&join(&mut operator, "wss://gw.example").unwrap());
    let gateway = gateway.restart();
    assert_eq!(fetch(&gateway, &lost, "203.0.113.9", "").status, 404);
    // Guesses are counted by themselves, and block nobody else.
    let mut operator = gateway.operator();
    let good = path(&join(&mut operator, "wss://gw.example").unwrap());
    for number in 0..10 {
        assert_eq!(fetch(&gateway, &format!("/j/guess-guess-guess-gu{number:02}"), "203.0.113.7", "").status, 404);
    }
    let limited = fetch(&gateway, &good, "203.0.113.7", "");
    assert!(limited.status == 429 && limited.head.contains("retry-after: "), "{limited:?}");
    assert_eq!(fetch(&gateway, &format!("/behind/a/path{good}"), "203.0.113.8", "").status, 200);
    // Never where whoever listens could be faster.
    for plain in ["ws://192.168.1.5:18789", "ws://gw.local"] {
        let error = join(&mut operator, plain).unwrap_err();
        assert!(error["message"].as_str().unwrap().contains("wss://"), "{error}");
    }
    let local = join(&mut operator, "ws://127.0.0.1:18789").unwrap();
    assert!(local["joinUrl"].as_str().unwrap().starts_with("http://127.0.0.1:18789/j/"), "{local}");
    let params = json!({"publicUrl": "wss://gw.example", "joinUrl": true, "bootstrapProfile": "limited"});
    operator.call("device.pair.setupCode", &params).unwrap_err();
}

#[test]
fn s_55_a_voice_node_reads_and_talks_and_is_the_kind_of_thing_it_was_set_up_as() {
    let gateway = behind_a_proxy();
    let mut operator = gateway.operator();
    let profile = json!({"bootstrapProfile": "voice-node"});
    let (_, token) = make(&mut operator, &profile);
    let voice = |token: &str| {
        let mut params = by(node(&[]), token);
        (params["client"]["platform"], params["client"]["deviceFamily"]) = (json!("esp32 5.3"), json!("ESP32"));
        params
    };
    let hello = Device::new(1).connect(&mut from(&gateway, "203.0.113.9"), &voice(&token)).unwrap();
    let given = &hello["auth"]["deviceTokens"][0];
    assert_eq!((&given["role"], &given["scopes"]), (&json!("operator"), &json!(["operator.read", "operator.talk"])));
    let (_, token) = make(&mut operator, &profile);
    let waits = knock(&gateway, &Device::new(2), &token).unwrap_err();
    assert_eq!(code(&waits), "PAIRING_REQUIRED", "a computer is no voice in a room: {waits}");
}

#[test]
fn s_55_s_59_a_code_ends_with_the_right_of_whoever_had_it_made() {
    let gateway = behind_a_proxy();
    let admin = Device::new(9);
    let mut own = paired_admin(&gateway, &admin);
    let (_, token) = node_code(&mut own);
    let mut operator = gateway.operator();
    let (_, stays) = node_code(&mut operator);
    operator.call("device.pair.remove", &json!({"deviceId": admin.id()})).unwrap();
    let error = knock(&gateway, &Device::new(1), &token).unwrap_err();
    assert_eq!(code(&error), "AUTH_BOOTSTRAP_TOKEN_INVALID");
    knock(&gateway, &Device::new(2), &stays).expect("another's code is another matter");
}

#[test]
fn s_55_s_59_a_code_ends_with_the_secret_that_it_was_made_by() {
    let config = |token: &str| json!({"gateway": {"trustedProxies": ["127.0.0.1"], "auth": {"token": token}}});
    let gateway = Setup::new().no_token().config(&config("old")).start();
    let mut by_secret = gateway.client();
    by_secret.connect(&with(operator(), "auth", json!({"token": "old"}))).unwrap();
    let (_, token) = node_code(&mut by_secret);
    std::fs::write(gateway.state_dir().join("openclaw.json"), config("new").to_string()).unwrap();
    assert_eq!(by_secret.closed().0, 4001);
    gateway.stderr.wait_for(|line| line.contains("who gets in has changed")).unwrap();
    let mut by_new = gateway.client();
    by_new.connect(&with(operator(), "auth", json!({"token": "new"}))).unwrap();
    // What is asked after it is answered after it: the store takes one after the other.
    node_code(&mut by_new);
    let error = knock(&gateway, &Device::new(1), &token).unwrap_err();
    assert_eq!(code(&error), "AUTH_BOOTSTRAP_TOKEN_INVALID");
}
