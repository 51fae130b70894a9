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
