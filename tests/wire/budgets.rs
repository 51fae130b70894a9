//! What strangers may take, and that they take it from nobody else.

use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

use clawgate::limits::PREAUTH_SOCKETS_CLIENT;
use clawgate::ws::message::Opcode;
use serde_json::json;

use crate::support::PATIENCE;
use crate::support::client::{Client, UPGRADE, fragment, operator};
use crate::support::gateway::{Gateway, Setup};

fn behind_a_proxy() -> Gateway {
    Setup::new().config(&json!({"gateway": {"trustedProxies": ["127.0.0.1"]}})).start()
}

fn from(gateway: &Gateway, address: &str) -> Result<Client, crate::support::gateway::HttpAnswer> {
    Client::open_with(gateway.port, &format!("X-Forwarded-For: {address}\r\n"))
}

#[test]
fn s_35_strangers_of_one_address_keep_no_other_out() {
    let gateway = behind_a_proxy();
    let flood: Vec<_> = (0..PREAUTH_SOCKETS_CLIENT).map(|_| from(&gateway, "203.0.113.9").unwrap()).collect();
    let refused = from(&gateway, "203.0.113.9").err().expect("it has too many");
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: "), "{refused:?}");
    from(&gateway, "203.0.113.10").unwrap().connect(&operator()).unwrap();
    let mut direct = gateway.operator();
    let refused = direct.call("status", &json!({})).unwrap()["gateway"]["refused"].clone();
    assert_eq!(refused, json!({"too_many_unauthenticated_from_client": 1}));
    drop(flood);
    let until = Instant::now() + PATIENCE;
    while from(&gateway, "203.0.113.9").is_err() {
        assert!(Instant::now() < until, "its places do not come back");
    }
}

#[test]
fn who_is_let_in_gives_the_place_back() {
    let gateway = behind_a_proxy();
    let connected: Vec<_> = (0..2 * PREAUTH_SOCKETS_CLIENT)
        .map(|_| {
            let mut client = from(&gateway, "203.0.113.9").expect("those before are no strangers any more");
            client.connect(&operator()).unwrap();
            client
        })
        .collect();
    assert_eq!(connected.len(), 2 * PREAUTH_SOCKETS_CLIENT);
}

#[test]
fn slow_heads_and_unfinished_messages_keep_nobody_out() {
    let gateway = behind_a_proxy();
    let head = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}X-Forwarded-For: 203.0.113.9\r\n");
    let slow: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let unfinished: Vec<_> = (0..PREAUTH_SOCKETS_CLIENT)
        .map(|_| {
            let mut client = from(&gateway, "203.0.113.9").unwrap();
            client.bytes(&fragment(Opcode::Text, &[b' '; 60 * 1024]));
            client
        })
        .collect();
    from(&gateway, "203.0.113.10").unwrap().connect(&operator()).unwrap();
    gateway.operator().call("health", &json!({})).unwrap();
    drop((slow, unfinished));
}

#[test]
fn the_share_of_a_client_can_be_set() {
    let gateway = Setup::new()
        .config(&json!({"gateway": {"trustedProxies": ["127.0.0.1"]}}))
        .env("OPENCLAW_MAX_PREAUTH_CONNECTIONS_PER_IP", "2")
        .start();
    let _two = [from(&gateway, "203.0.113.9").unwrap(), from(&gateway, "203.0.113.9").unwrap()];
    assert!(from(&gateway, "203.0.113.9").is_err());
}

#[test]
fn a_refusal_has_its_reason_on_the_wire_in_the_log_and_in_a_counter() {
    let config = json!({"gateway": {
        "trustedProxies": ["127.0.0.1"],
        "auth": {"mode": "trusted-proxy", "password": "p4ss", "trustedProxy": {
            "userHeader": "X-User", "requiredHeaders": ["X-Verified"], "allowUsers": ["alice"], "allowLoopback": true,
        }},
    }});
    let gateway = Setup::new().no_token().config(&config).start();
    let base = "X-Forwarded-For: 203.0.113.9\r\n";
    for (headers, reason, code) in [
        ("", "trusted_proxy_missing_header_X-Verified", "AUTH_TRUSTED_PROXY_HEADER_MISSING"),
        ("X-Verified: 1\r\n", "trusted_proxy_user_missing", "AUTH_TRUSTED_PROXY_USER_MISSING"),
        ("X-Verified: 1\r\nX-User: bob\r\n", "trusted_proxy_user_not_allowed", "AUTH_TRUSTED_PROXY_USER_NOT_ALLOWED"),
        (
            "X-Verified: 1\r\nX-User: alice\r\nX-User: bob\r\n",
            "trusted_proxy_user_ambiguous",
            "AUTH_TRUSTED_PROXY_USER_AMBIGUOUS",
        ),
    ] {
        let mut client = Client::open_with(gateway.port, &format!("{base}{headers}")).unwrap();
        let mut params = operator();
        params["client"]["id"] = json!("cli");
        params["auth"] = json!({});
        let details = client.connect(&params).unwrap_err()["details"].clone();
        assert_eq!((&details["code"], &details["authReason"]), (&json!(code), &json!(reason)), "{details}");
        let lines = gateway.log_lines(&format!("denied=\"{reason}\""));
        assert!(lines.len() == 1 && lines[0].contains("203.0.113.9"), "{reason}: {lines:?}");
    }
    let mut local = gateway.client();
    let mut params = operator();
    params["auth"] = json!({"password": "p4ss"});
    local.connect(&params).unwrap();
    let refused = local.call("status", &json!({})).unwrap()["gateway"]["refused"].clone();
    assert_eq!(refused["trusted_proxy_missing_header"], 1, "{refused}");
    assert_eq!(refused["trusted_proxy_user_not_allowed"], 1, "{refused}");
}

#[test]
fn s_35_where_there_is_no_room_the_oldest_stranger_goes_and_nobody_who_is_in() {
    let limits = json!({"limits": {"preauthSockets": 16}});
    let config = json!({
        "gateway": {"trustedProxies": ["127.0.0.1"]},
        "plugins": {"entries": {"clawgate": {"config": limits}}},
    });
    let gateway = Setup::new().config(&config).start();
    let mut first = from(&gateway, "198.51.100.1").unwrap();
    first.connect(&operator()).unwrap();
    let mut flood: Vec<_> = (0..16).map(|number| from(&gateway, &format!("203.0.113.{number}")).unwrap()).collect();
    for stranger in &mut flood {
        stranger.nonce();
    }
    // Thousands more may come: who means it comes in among them.
    from(&gateway, "198.51.100.2").unwrap().connect(&operator()).unwrap();
    assert_eq!(flood[0].closed(), (1013, "too many unauthenticated connections".to_owned()));
    flood[15].connect(&operator()).expect("it was not the oldest");
    // From elsewhere and without a device it has no scopes; it is answered all the same.
    assert_eq!(first.call("health", &json!({})).unwrap_err()["code"], "FORBIDDEN");
}
