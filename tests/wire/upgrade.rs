//! From the first byte to the upgrade: which requests become a WebSocket, and what the others are told.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, Incoming, UPGRADE, frame, operator};
use crate::support::gateway::{Gateway, HttpAnswer, Setup};
use clawgate::ws::message::Opcode;

/// Sends an upgrade that is refused, and checks that the log has one line about it.
fn refused(gateway: &Gateway, request: &str) -> HttpAnswer {
    let before = gateway.log_lines("http request refused").len();
    let answer = gateway.http(request);
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    let lines = gateway.log_lines("http request refused");
    assert_eq!(lines.len(), before + 1, "{lines:?}");
    assert!(lines[before].contains(&answer.status.to_string()), "{lines:?}");
    answer
}

#[test]
fn refuses_an_upgrade_that_is_none() {
    let gateway = Gateway::start();
    let without =
        |header: &str| -> String { UPGRADE.split_inclusive("\r\n").filter(|line| !line.starts_with(header)).collect() };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let host = "Host: 127.0.0.1\r\n";
    for (status, request) in [
        (400, format!("GET / HTTP/1.1\r\n{host}{}\r\n", without("Sec-WebSocket-Key"))),
        (400, format!("GET / HTTP/1.1\r\n{host}{UPGRADE}{key}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}{}Sec-WebSocket-Key: c2hvcnQ=\r\n\r\n", without("Sec-WebSocket-Key"))),
        (400, format!("GET / HTTP/1.1\r\n{host}{}\r\n", without("Connection"))),
        (400, format!("GET / HTTP/1.1\r\n{host}{}Upgrade: h2c\r\n\r\n", without("Upgrade"))),
        (400, format!("POST / HTTP/1.1\r\n{host}{UPGRADE}Content-Length: 0\r\n\r\n")),
        (400, format!("GET / HTTP/1.0\r\n{host}{UPGRADE}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{UPGRADE}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}Host: example.com\r\n{UPGRADE}\r\n")),
        (400, format!("GET / HTTP/1.1\r\nHost: 127.0.0.1@example.com\r\n{UPGRADE}\r\n")),
        (400, format!("GET / HTTP/1.1\r\nHost: \r\n{UPGRADE}\r\n")),
        (426, format!("GET / HTTP/1.1\r\n{host}{}\r\n", without("Sec-WebSocket-Version"))),
    ] {
        assert_eq!(refused(&gateway, &request).status, status, "{request}");
    }
}

#[test]
fn tells_another_version_of_websocket_which_one_it_speaks() {
    let gateway = Gateway::start();
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", UPGRADE.replace("Version: 13", "Version: 8"));
    let answer = refused(&gateway, &request);
    assert_eq!(answer.status, 426);
    assert!(answer.head.contains("sec-websocket-version: 13"), "{}", answer.head);
}

#[test]
fn a_flood_of_headers_is_cut_off() {
    let gateway = Gateway::start();
    let lines: String = (0..70).map(|number| format!("X-{number}: 1\r\n")).collect();
    let many = HttpAnswer::to(gateway.port, format!("GET / HTTP/1.1\r\nHost: x\r\n{UPGRADE}{lines}\r\n").as_bytes());
    assert_eq!(many.status, 431);
    let long = "a".repeat(20 * 1024);
    let large = HttpAnswer::to(gateway.port, format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n").as_bytes());
    assert_eq!(large.status, 431);
    assert_eq!(gateway.get("/healthz").status, 200);
}

#[test]
fn bytes_that_are_no_http_are_answered_400() {
    let gateway = Gateway::start();
    assert_eq!(HttpAnswer::to(gateway.port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").status, 400);
    assert_eq!(HttpAnswer::to(gateway.port, b"GET / HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n").status, 400);
    assert_eq!(gateway.get("/healthz").status, 200);
}

/// hyper answers these before any code of ours is asked; what it says is replaced on its way out.
#[test]
fn a_head_that_cannot_be_read_is_answered_as_any_other_refusal() {
    let security = json!({"gateway": {"http": {"securityHeaders": {"strictTransportSecurity": "max-age=300"}}}});
    let gateway = Setup::new().config(&security).start();
    let good = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let (bad, long) = ("GET / HTTP/1.1\r\nA B: c\r\n\r\n", "a".repeat(20 * 1024));
    for (status, says, request) in [
        (400, "no request of HTTP/1.1", bad.to_owned()),
        (400, "no request of HTTP/1.1", "GET / HTTP/1.1 x\r\n\r\n".to_owned()),
        (431, "16 KiB", format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n")),
        (431, "16 KiB", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n")),
    ] {
        let answer = gateway.http(&request);
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.body.contains(says), "{answer:?}");
        for line in [
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "strict-transport-security: max-age=300",
            "content-type: text/plain; charset=utf-8",
            "cache-control: no-store",
            "connection: close",
        ] {
            assert!(answer.head.contains(&format!("\r\n{line}")), "{status}: {} has no {line}", answer.head);
        }
        let length = format!("content-length: {}", answer.body.len());
        assert!(answer.head.contains(&length), "{answer:?}");
    }
    // Also behind a request that was answered, on the same connection.
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    stream.write_all(good.as_bytes()).unwrap();
    let first = std::io::Read::read(&mut stream, &mut [0; 4096]).unwrap();
    assert!(first > 0);
    stream.write_all(bad.as_bytes()).unwrap();
    let second = HttpAnswer::read(&mut stream);
    assert!(second.status == 400 && second.head.contains("nosniff"), "{second:?}");
    let status = gateway.operator().call("status", &json!({})).unwrap();
    assert_eq!(status["gateway"]["refused"], json!({"bad_head": 3, "head_too_large": 2}));
    assert_eq!(gateway.log_lines("reason=\"head_too_large\"").len(), 2);
}

#[test]
#[ignore = "takes the ten seconds that a head may take"]
fn a_head_that_does_not_come_is_not_waited_for() {
    let gateway = Gateway::start();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut rest).unwrap();
    let seconds = begun.elapsed().as_secs_f32();
    assert!((9.0..12.0).contains(&seconds), "{seconds}");
}

#[test]
#[ignore = "takes the ten seconds that a head may take"]
fn an_idle_connection_is_not_kept_for_ever() {
    let gateway = Gateway::start();
    let mut idle = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut silent = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    for stream in [&mut idle, &mut silent] {
        std::io::Read::read_to_end(stream, &mut Vec::new()).unwrap();
    }
}

#[test]
fn a_page_of_another_site_is_refused() {
    let gateway = Gateway::start();
    for origin in ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://127.0.0.1/x"] {
        let answer =
            refused(&gateway, &format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}Origin: {origin}\r\n\r\n"));
        assert_eq!(answer.status, 403, "{origin}");
        assert!(answer.body.contains("gateway.controlUi.allowedOrigins"), "{}", answer.body);
    }
    // A name that its owner has pointed at this host makes the page look like one of the same origin.
    let rebound = format!("GET / HTTP/1.1\r\nHost: evil.example\r\n{UPGRADE}Origin: http://evil.example\r\n\r\n");
    assert_eq!(refused(&gateway, &rebound).status, 403);
}

#[test]
fn a_page_of_its_own_or_of_a_listed_site_is_let_through() {
    let config = json!({"gateway": {"controlUi": {"allowedOrigins": ["https://ui.example"]}}});
    let gateway = Setup::new().config(&config).start();
    let own = format!("Origin: http://127.0.0.1:{}\r\n", gateway.port);
    for origin in [&*own, "Origin: http://localhost:5173\r\n", "Origin: https://ui.example\r\n"] {
        Client::open_with(gateway.port, origin).unwrap_or_else(|answer| panic!("{origin}: {answer:?}")).nonce();
    }
}

#[test]
fn a_proxy_that_is_not_listed_is_refused() {
    let gateway = Gateway::start();
    for header in ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-For:", "Forwarded: for=203.0.113.9", "X-Real-IP: ::1"] {
        let answer = refused(&gateway, &format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}{header}\r\n\r\n"));
        assert_eq!(answer.status, 403, "{header}");
        assert!(answer.body.contains("proxy_attribution_required"), "{}", answer.body);
    }
}

#[test]
fn a_listed_proxy_is_let_through_and_its_client_is_not_local() {
    let config = json!({"gateway": {"trustedProxies": ["127.0.0.1"]}});
    let gateway = Setup::new().config(&config).start();
    let mut client = Client::open_with(gateway.port, "X-Forwarded-For: 203.0.113.9\r\n").unwrap();
    let mut params = operator();
    params["client"]["id"] = json!("cli");
    let hello = client.connect(&params).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]), "without a device, from elsewhere, the secret gives no scopes");
}

#[test]
fn frames_may_come_right_behind_the_request() {
    let gateway = Gateway::start();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    let mut bytes = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}\r\n").into_bytes();
    let connect = json!({"type": "req", "id": "first", "method": "connect", "params": operator()});
    bytes.extend(frame(Opcode::Text, connect.to_string().as_bytes()));
    bytes.extend(frame(Opcode::Text, br#"{"type":"req","id":"second","method":"health"}"#));
    stream.write_all(&bytes).unwrap();
    let mut client = Client::upgraded(stream).unwrap();
    client.nonce();
    client.answer("first").unwrap();
    client.answer("second").unwrap();
}

#[test]
fn one_connection_serves_pages_and_then_becomes_a_websocket() {
    let gateway = Gateway::start();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\"live\"}") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
        seen.push(byte[0]);
    }
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}\r\n").as_bytes()).unwrap();
    Client::upgraded(stream).unwrap().connect(&operator()).unwrap();
}

#[test]
fn an_upgrade_with_a_body_is_refused() {
    let gateway = Gateway::start();
    // Where the body ends and the first frame begins, two readers could see differently.
    for body in ["Content-Length: 4\r\n\r\nabcd", "Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"] {
        let answer = refused(&gateway, &format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}{body}"));
        assert_eq!(answer.status, 400, "{body:?}");
    }
}

#[test]
fn no_extension_and_no_subprotocol_is_agreed_on() {
    let gateway = Gateway::start();
    let headers = "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat\r\n";
    let mut client = Client::open_with(gateway.port, headers).unwrap();
    client.connect(&operator()).unwrap();
    // A compressed frame has the first reserved bit set.
    let mut compressed = frame(Opcode::Text, b"{}");
    compressed[0] |= 0x40;
    client.bytes(&compressed);
    assert_eq!(client.closed(), (1002, "reserved bits set".to_owned()));
    assert!(matches!(client.next(), Incoming::End { .. }));
}
