//! S-50 to S-67: more rights than were given, and rights that outlive being taken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clawgate::ws::message::Opcode;
use serde_json::{Value, json};

use crate::support::TOKEN;
use crate::support::client::{ALL_SCOPES, Client, Incoming, cli, frame, node, operator, operator_with};
use crate::support::device::{Device, Payload, now_ms};
use crate::support::gateway::{Gateway, Setup};
use crate::{ALICE, PAGE, READ, behind_a_proxy, code, control_ui, from, trusting_a_proxy, with};

/// Pairs `device` as a local client with these scopes; gives its connection and its token.
fn pair(gateway: &Gateway, device: &Device, scopes: &[&str]) -> (Client, String) {
    let mut client = gateway.client();
    let hello = device.connect(&mut client, &cli(scopes)).expect("a client of this host is let in");
    (client, hello["auth"]["deviceToken"].as_str().expect("a token goes with a pairing").to_owned())
}

fn by_device_token(scopes: &[&str], token: &str) -> Value {
    with(cli(scopes), "auth", json!({"deviceToken": token}))
}

/// Asks for `scopes` from `address`, and gives the id of the request that then waits.
fn ask(gateway: &Gateway, device: &Device, address: &str, params: &Value) -> String {
    let error = device.connect(&mut from(gateway, address), params).unwrap_err();
    error["details"]["requestId"].as_str().unwrap_or_else(|| panic!("a request waits: {error}")).to_owned()
}

/// Tells the threads of a test to end, also when the test has failed: they would be waited for.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn paired_row(operator: &mut Client, device: &Device) -> Option<Value> {
    let listed = operator.call("device.pair.list", &json!({})).unwrap();
    listed["paired"].as_array().unwrap().iter().find(|row| row["deviceId"] == device.id()).cloned()
}

#[test]
fn s_50_a_shared_token_from_elsewhere_holds_no_scopes_without_a_device() {
    let gateway = behind_a_proxy();
    let mut client = from(&gateway, "203.0.113.9");
    let hello = client.connect(&with(cli(&ALL_SCOPES), "auth", json!({"token": TOKEN}))).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]));
    for method in ["config.get", "device.pair.list", "node.invoke", "health"] {
        assert_eq!(code(&client.call(method, &json!({})).unwrap_err()), "MISSING_SCOPE", "{method}");
    }
}

#[test]
fn s_51_a_page_behind_the_proxy_declares_no_scopes_for_itself() {
    let setup = trusting_a_proxy(&json!({
        "allowLoopback": true,
        "deviceAutoApprove": {"enabled": true, "scopes": ["operator.read", "operator.write"]},
    }));
    let gateway = setup.start();
    let open = |more: &str| Client::open_with(gateway.port, &format!("{ALICE}{PAGE}{more}")).unwrap();
    let hello = open("").connect(&control_ui(&ALL_SCOPES)).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]), "without a device it holds nothing");
    let device = Device::new(1);
    let origin = format!("Origin: http://127.0.0.1:{}\r\n", gateway.port);
    let page = |more: &str, scopes: &[&str]| {
        let mut client = Client::open_with(gateway.port, &format!("{ALICE}{PAGE}{more}")).unwrap();
        device.connect(&mut client, &control_ui(scopes)).map(|hello| hello["auth"].clone())
    };
    assert!(
        Client::open_with(gateway.port, &format!("{ALICE}{origin}")).is_err(),
        "a loopback page is not the proxy's"
    );
    let auth = page("", &ALL_SCOPES).unwrap();
    assert_eq!(auth["scopes"], json!(["operator.read", "operator.write"]), "what was approved, not what was asked");
    assert_eq!(auth.get("deviceToken"), None, "no token that outlives the proxy's word");
    let wanted = ["operator.read", "operator.write"];
    assert_eq!(page("X-OpenClaw-Scopes: operator.read\r\n", &wanted).unwrap()["scopes"], json!(["operator.read"]));
    assert_eq!(page("X-OpenClaw-Scopes: \r\n", &wanted).unwrap()["scopes"], json!([]), "empty is not absent");
    let wide = page("X-OpenClaw-Scopes: operator.admin, operator.read\r\n", &wanted).unwrap();
    assert_eq!(wide["scopes"], json!(["operator.read"]), "a cap gives nothing");
}

#[test]
fn s_52_rotation_widens_nothing() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    let (mut own, _) = pair(&gateway, &device, &["operator.read", "operator.pairing"]);
    let rotate = |client: &mut Client, role: &str, scopes: &[&str]| {
        let params = json!({"deviceId": device.id(), "role": role, "scopes": scopes});
        client.call("device.token.rotate", &params)
    };
    let mut admin = gateway.operator();
    for (role, scopes) in [("operator", &["operator.admin"][..]), ("operator", &["operator.write"]), ("node", &[])] {
        assert_eq!(rotate(&mut own, role, scopes).unwrap_err()["code"], "FORBIDDEN", "{role} {scopes:?}");
        assert_eq!(rotate(&mut admin, role, scopes).unwrap_err()["code"], "FORBIDDEN", "{role} {scopes:?}");
    }
    let mut weak = gateway.client();
    weak.connect(&operator_with(&["operator.pairing"])).unwrap();
    let error = rotate(&mut weak, "operator", &["operator.read"]).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("operator.read") || error["code"] == "FORBIDDEN", "{error}");
    assert_eq!(paired_row(&mut admin, &device).unwrap()["scopes"], json!(["operator.pairing", "operator.read"]));
}

#[test]
fn s_53_nobody_approves_what_they_do_not_hold() {
    let gateway = behind_a_proxy();
    let (device, host) = (Device::new(1), Device::new(2));
    let request = ask(&gateway, &device, "203.0.113.9", &cli(&["operator.admin"]));
    let node_request = ask(&gateway, &host, "203.0.113.9", &node(&["system.run"]));
    let mut weak = gateway.client();
    weak.connect(&operator_with(&["operator.pairing", "operator.read", "operator.write"])).unwrap();
    for id in [&request, &node_request] {
        let error = weak.call("device.pair.approve", &json!({"requestId": id})).unwrap_err();
        assert_eq!(error["code"], "FORBIDDEN", "{error}");
    }
    let mut admin = gateway.operator();
    admin.call("device.pair.approve", &json!({"requestId": node_request})).unwrap();
    host.connect(&mut from(&gateway, "203.0.113.9"), &node(&["system.run"])).unwrap();
    let asked = admin.event("node.pair.requested");
    let error = weak.call("node.pair.approve", &json!({"requestId": asked["requestId"]})).unwrap_err();
    assert_eq!(error["code"], "FORBIDDEN", "a shell is for an admin to give: {error}");
    admin.call("node.pair.approve", &json!({"requestId": asked["requestId"]})).unwrap();
}

#[test]
fn s_56_an_approval_of_nothing_is_nothing() {
    let gateway = behind_a_proxy();
    let device = Device::new(1);
    let request = ask(&gateway, &device, "203.0.113.9", &cli(&[]));
    let mut admin = gateway.operator();
    admin.call("device.pair.approve", &json!({"requestId": request})).unwrap();
    let hello = device.connect(&mut from(&gateway, "203.0.113.9"), &cli(&[])).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]));
    for scopes in [&ALL_SCOPES[..], READ] {
        let error = device.connect(&mut from(&gateway, "203.0.113.9"), &cli(scopes)).unwrap_err();
        assert_eq!(error["details"]["reason"], "scope-upgrade", "{scopes:?}");
    }
    // Not said is not all, either.
    let mut unsaid = cli(&[]);
    unsaid.as_object_mut().unwrap().remove("scopes");
    let hello = device.connect(&mut from(&gateway, "203.0.113.9"), &unsaid).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]));
}

#[test]
fn s_57_asking_again_moves_nobody_to_the_front_and_the_key_is_shown() {
    let gateway = behind_a_proxy();
    let (attacker, honest) = (Device::new(1), Device::new(2));
    let first = ask(&gateway, &attacker, "203.0.113.66", &cli(&["operator.admin"]));
    std::thread::sleep(Duration::from_millis(5));
    let second = ask(&gateway, &honest, "203.0.113.9", &cli(READ));
    let mut admin = gateway.operator();
    let order = |admin: &mut Client| {
        let listed = admin.call("device.pair.list", &json!({})).unwrap();
        listed["pending"].as_array().unwrap().iter().map(|row| row["requestId"].clone()).collect::<Vec<_>>()
    };
    let before = order(&mut admin);
    assert_eq!(before.len(), 2);
    for _ in 0..5 {
        assert_eq!(ask(&gateway, &attacker, "203.0.113.66", &cli(&["operator.admin"])), first);
    }
    assert_eq!(order(&mut admin), before);
    let listed = admin.call("device.pair.list", &json!({})).unwrap();
    for (row, device) in listed["pending"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row, if row["requestId"] == first { &attacker } else { &honest }))
    {
        assert_eq!((&row["deviceId"], &row["publicKey"]), (&json!(device.id()), &json!(device.public_key())));
    }
    for params in [json!({}), json!({"latest": true}), json!({"requestId": "latest"}), json!({"requestId": ""})] {
        assert!(admin.call("device.pair.approve", &params).is_err(), "{params}");
    }
    assert_ne!(first, second);
}

#[test]
fn s_58_a_device_that_retries_is_one_request_with_one_id() {
    let gateway = behind_a_proxy();
    let device = Device::new(1);
    let mut admin = gateway.operator();
    let request = ask(&gateway, &device, "203.0.113.9", &cli(READ));
    for number in 0..20 {
        assert_eq!(ask(&gateway, &device, &format!("203.0.113.{number}"), &cli(READ)), request);
    }
    admin.event("device.pair.requested");
    let more = std::iter::from_fn(|| admin.next_within(Duration::from_millis(300)))
        .filter(|incoming| matches!(incoming, Incoming::Json(frame) if frame["event"] == "device.pair.requested"));
    assert_eq!(more.count(), 0, "one alert, not one a retry");
    admin.call("device.pair.approve", &json!({"requestId": request})).unwrap();
    device.connect(&mut from(&gateway, "203.0.113.9"), &cli(READ)).unwrap();
}

#[test]
fn s_59_who_is_revoked_is_out_within_a_second_and_gets_nothing_more_done() {
    for (method, params) in [
        ("device.pair.remove", json!({})),
        ("device.token.revoke", json!({"role": "operator"})),
        ("device.token.rotate", json!({"role": "operator"})),
    ] {
        let gateway = Gateway::start();
        let device = Device::new(1);
        let (mut client, token) = pair(&gateway, &device, READ);
        let (mut second, _) = (gateway.client(), ());
        device.connect(&mut second, &by_device_token(READ, &token)).unwrap();
        let mut admin = gateway.operator();
        let begun = Instant::now();
        admin.call(method, &with(params.clone(), "deviceId", json!(device.id()))).unwrap();
        for client in [&mut client, &mut second] {
            assert_eq!(client.closed().0, 4001, "{method}");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{method}: {:?}", begun.elapsed());
        assert!(device.connect(&mut gateway.client(), &by_device_token(READ, &token)).is_err(), "{method}");
    }
}

#[test]
fn s_59_what_is_asked_behind_a_revocation_waits_for_it() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    for round in 0..10 {
        // Sent in one piece, so that the second request is there before the first is done.
        let device = Device::new(round + 1);
        pair(&gateway, &device, READ);
        let revoke = json!({"deviceId": device.id(), "role": "operator"});
        let request = |id: &str, method: &str, params: &Value| {
            let text = json!({"type": "req", "id": id, "method": method, "params": params}).to_string();
            frame(Opcode::Text, text.as_bytes())
        };
        let both = [request("one", "device.token.revoke", &revoke), request("two", "device.pair.list", &json!({}))];
        admin.bytes(&both.concat());
        admin.answer("one").unwrap();
        let listed = admin.answer("two").unwrap();
        let row = listed["paired"].as_array().unwrap().iter().find(|row| row["deviceId"] == device.id()).unwrap();
        assert!(row["tokens"][0]["revokedAtMs"].is_u64(), "round {round}: {row}");
        // Who removes itself gets its answer, and nothing that it asks after.
        let device = Device::new(100 + round);
        let (mut own, _) = pair(&gateway, &device, &["operator.admin"]);
        let remove = request("one", "device.pair.remove", &json!({"deviceId": device.id()}));
        own.bytes(&[remove, request("two", "health", &json!({}))].concat());
        own.answer("one").unwrap();
        match own.next() {
            Incoming::Close(code, _) => assert_eq!(code, 4001, "round {round}"),
            Incoming::Json(event) if event["type"] == "event" => assert_eq!(own.closed().0, 4001, "round {round}"),
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert_eq!(admin.call("health", &json!({})).unwrap()["ok"], true, "the connection goes on after it");
}

/// Between the decision on a connect and the registration of its socket there is a moment in which a revocation finds
/// nothing to close. A connect that is to get a token waits for the store in just that moment; so both are sent at once.
#[test]
fn s_59_no_connect_slips_through_while_its_device_is_revoked() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopping = StopOnDrop(&stop);
        // A store that is never idle takes several changes in one turn: what waits for it waits together.
        scope.spawn(|| {
            let mut writer = gateway.operator();
            let device = Device::new(1);
            pair(&gateway, &device, READ);
            while !stop.load(Ordering::Relaxed) {
                writer.call("device.pair.rename", &json!({"deviceId": device.id(), "label": "busy"})).unwrap();
            }
        });
        for round in 0..60_u8 {
            let device = Device::new(100 + round);
            pair(&gateway, &device, READ);
            let role = json!({"deviceId": device.id(), "role": "operator"});
            admin.call("device.token.rotate", &role).unwrap();
            let mut client = gateway.client();
            let mut params = cli(READ);
            params["device"] = device.proof(&params, &client.nonce(), now_ms(), Payload::V3);
            client.send("connect", &params);
            std::thread::sleep(Duration::from_micros(u64::from(round % 20) * 50));
            admin.call("device.token.revoke", &role).unwrap();
            loop {
                match client.next_within(Duration::from_secs(2)) {
                    Some(Incoming::Close(code, _)) => break assert!(matches!(code, 1008 | 4001), "{code}"),
                    Some(Incoming::End { .. }) => break,
                    Some(_) => {}
                    None => panic!("round {round}: a revoked device is still connected"),
                }
            }
            assert_eq!(paired_row(&mut admin, &device).unwrap()["connected"], false, "round {round}");
        }
    });
}

#[test]
fn s_60_a_revoked_token_comes_back_by_no_other_write() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    let device = Device::new(1);
    let (client, token) = pair(&gateway, &device, READ);
    drop(client);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopping = StopOnDrop(&stop);
        // Connects write sightings and tokens, renames write the record: none of them may write an older one.
        for number in 0..3 {
            let (device, stop, gateway, token) = (&device, &stop, &gateway, &token);
            scope.spawn(move || {
                let mut admin = gateway.operator();
                while !stop.load(Ordering::Relaxed) {
                    let _ = device.connect(&mut gateway.client(), &by_device_token(READ, token));
                    let rename = json!({"deviceId": device.id(), "label": format!("name {number}")});
                    admin.call("device.pair.rename", &rename).unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(50));
        admin.call("device.token.revoke", &json!({"deviceId": device.id(), "role": "operator"})).unwrap();
        for _ in 0..20 {
            let row = paired_row(&mut admin, &device).unwrap();
            assert_eq!((&row["scopes"], &row["roles"]), (&json!([]), &json!([])), "{row}");
            assert!(row["tokens"][0]["revokedAtMs"].is_u64(), "{row}");
        }
    });
    assert!(device.connect(&mut gateway.client(), &by_device_token(READ, &token)).is_err());
    let gateway = gateway.restart();
    assert!(device.connect(&mut gateway.client(), &by_device_token(READ, &token)).is_err());
    let row = paired_row(&mut gateway.operator(), &device).unwrap();
    assert!(row["tokens"][0]["revokedAtMs"].is_u64(), "{row}");
}

#[test]
fn s_61_a_revoked_role_is_nowhere_left() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    let device = Device::new(1);
    pair(&gateway, &device, READ);
    admin.call("device.token.revoke", &json!({"deviceId": device.id(), "role": "operator"})).unwrap();
    let row = paired_row(&mut admin, &device).unwrap();
    assert_eq!((row.get("role"), &row["roles"], &row["scopes"]), (None, &json!([]), &json!([])), "{row}");
    let error = device.connect(&mut gateway.client(), &cli(READ)).unwrap_err();
    assert_eq!(error["details"]["reason"], "role-upgrade");
}

#[test]
fn s_62_a_new_token_is_seen_by_its_device_alone() {
    let gateway = Gateway::start();
    let mut admin = gateway.operator();
    let device = Device::new(1);
    let (mut own, token) = pair(&gateway, &device, &["operator.read", "operator.pairing"]);
    let answer = admin.call("device.token.rotate", &json!({"deviceId": device.id(), "role": "operator"})).unwrap();
    assert_eq!(answer.get("token"), None, "{answer}");
    own.closed();
    let listed = admin.call("device.pair.list", &json!({})).unwrap().to_string();
    assert!(!listed.contains(&token) && !listed.contains("\"token\""), "{listed}");
    let hello = device.connect(&mut gateway.client(), &cli(READ)).unwrap();
    assert!(hello["auth"]["deviceToken"].is_string(), "the device gets it at its next connect: {}", hello["auth"]);
}

/// The store is told that the token was made a month and a day ago: nobody waits that long.
#[test]
fn s_66_a_token_that_is_too_old_lets_nobody_in_and_its_sockets_close_at_once() {
    let config = |life: Value| json!({"plugins": {"entries": {"clawgate": {"config": {"deviceTokens": life}}}}});
    let mut gateway = Setup::new().config(&config(json!({}))).start();
    let device = Device::new(1);
    let (_, token) = pair(&gateway, &device, READ);
    gateway.signal(rustix::process::Signal::TERM);
    gateway.wait().expect("it stops");
    let setup = gateway.setup();
    drop(gateway);
    let store = rusqlite::Connection::open(setup.state_dir().join("clawgate.sqlite")).unwrap();
    let month_ago = i64::try_from(now_ms()).unwrap() - 31 * 24 * 3600 * 1000;
    let changed = store.execute("UPDATE device_role SET issued_at_ms = ?1, last_used_at_ms = ?1", [month_ago]);
    assert_eq!(changed.unwrap(), 1);
    drop(store);
    let gateway = setup.start();
    let connect = |gateway: &Gateway| {
        let mut client = gateway.client();
        device.connect(&mut client, &by_device_token(READ, &token)).map(|_| client)
    };
    let mut inside = connect(&gateway).expect("without a limit it does not end");
    let limited = config(json!({"maxAgeDays": 30})).to_string();
    let begun = Instant::now();
    std::fs::write(gateway.state_dir().join("openclaw.json"), limited).unwrap();
    assert_eq!(inside.closed(), (4001, "device token expired".to_owned()));
    // Tokens are looked over every fifteen seconds; an edit does not wait for that.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let error = connect(&gateway).err().expect("it has ended");
    assert_eq!(error["details"]["authReason"], "device_token_expired", "{error}");
    // Who comes by another credential gets a new one.
    let hello = device.connect(&mut gateway.client(), &cli(READ)).unwrap();
    let fresh = hello["auth"]["deviceToken"].as_str().expect("a new token");
    device.connect(&mut gateway.client(), &by_device_token(READ, fresh)).unwrap();
}

#[test]
fn s_67_a_separator_in_a_signed_field_is_refused() {
    let gateway = Gateway::start();
    let device = Device::new(1);
    // Both say "a|b" in the line that is signed, in different fields.
    for (field, value) in
        [("platform", "linux|Linux"), ("deviceFamily", "x|y"), ("platform", "linux\u{0}"), ("deviceFamily", "a\nb")]
    {
        let mut params = cli(READ);
        params["client"][field] = json!(value);
        let error = device.connect(&mut gateway.client(), &params).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("DEVICE_AUTH") || text.contains("invalid connect params"), "{field} {value:?}: {error}");
    }
    let params = with(cli(&["operator.read,operator.admin"]), "auth", json!({"token": TOKEN}));
    assert!(device.connect(&mut gateway.client(), &params).is_err(), "a comma in a scope");
    // The same line under other fields is another line: the signature does not fit.
    let mut client = gateway.client();
    let params = cli(READ);
    let nonce = client.nonce();
    let mut moved = params.clone();
    moved["device"] = device.proof(&params, &nonce, now_ms(), Payload::V3);
    moved["client"]["platform"] = json!("macos");
    assert_eq!(code(&client.connect(&moved).unwrap_err()), "DEVICE_AUTH_SIGNATURE_INVALID");
    gateway.client().connect(&operator()).unwrap();
}
