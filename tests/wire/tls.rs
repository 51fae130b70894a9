//! TLS of the gateway's own: the certificate, the handshake, its end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use clawgate::config::fingerprint::Fingerprint;
use ring::digest::{SHA256, digest};
use rustix::process::Signal;
use rustls::{HandshakeKind, ProtocolVersion};
use serde_json::{Value, json};

use crate::support::client::{Client, operator};
use crate::support::gateway::{Setup, program};
use crate::support::tls::Tunnel;

fn secure() -> Setup {
    Setup::new().config(&json!({"gateway": {"tls": {"enabled": true}}}))
}

fn sha256(bytes: &[u8]) -> Fingerprint {
    Fingerprint(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

fn operator_through(tunnel: &Tunnel) -> Client {
    let mut client = Client::open(tunnel.port);
    client.connect(&operator()).unwrap();
    client
}

#[test]
fn a_first_start_makes_a_certificate_and_says_its_fingerprints() {
    let gateway = secure().start();
    let said = gateway.stdout.text();
    assert!(said.contains(&format!("https://127.0.0.1:{}/", gateway.port)), "{said}");
    let tunnel = Tunnel::to(gateway.port);
    operator_through(&tunnel).call("health", &json!({})).unwrap();
    let leaf = sha256(&tunnel.last().leaf).to_string();
    assert!(said.contains(&format!("certificate sha256 {leaf}")), "{leaf}: {said}");
    let printed = Command::new(program())
        .args(["gateway", "fingerprint", "--json"])
        .env("OPENCLAW_STATE_DIR", gateway.state_dir())
        .output()
        .unwrap();
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(printed["certificate"]["sha256"], leaf);
    assert!(said.contains(printed["publicKey"]["sha256"].as_str().unwrap()), "{said}: {printed}");
    let gateway = gateway.restart();
    assert!(gateway.stdout.text().contains(&leaf), "a restart keeps it");
}

#[test]
fn both_versions_are_spoken_and_sessions_resumed() {
    let gateway = secure().start();
    for (version, number) in
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let tunnel = Tunnel::with(gateway.port, &[version], &[b"h2", b"http/1.1"]);
        operator_through(&tunnel);
        let first = tunnel.last();
        assert_eq!((first.version, &*first.protocol), (Some(number), &b"http/1.1"[..]));
        assert_eq!(first.kind, Some(HandshakeKind::Full));
        operator_through(&tunnel);
        assert_eq!(tunnel.last().kind, Some(HandshakeKind::Resumed), "{number:?}");
    }
}

#[test]
fn large_answers_and_an_orderly_end_come_through() {
    let gateway = secure().start();
    let tunnel = Tunnel::to(gateway.port);
    let mut client = operator_through(&tunnel);
    let ids: Vec<_> = (0..2_000).map(|_| client.send("status", &json!({}))).collect();
    for id in &ids {
        client.answer(id).unwrap();
    }
    gateway.signal(Signal::TERM);
    assert_eq!(client.closed(), (1012, "service restart".to_owned()));
}

#[test]
fn plain_http_is_told_to_use_tls() {
    let gateway = secure().start();
    let answer = gateway.get("/healthz");
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("https://"), "{}", answer.body);
    let tunnel = Tunnel::to(gateway.port);
    let mut client = operator_through(&tunnel);
    let status = client.call("status", &json!({})).unwrap();
    assert_eq!(status["gateway"]["refused"]["tls_only"], 1, "{status}");
}

#[test]
fn a_pair_that_is_none_refuses_the_start_and_names_the_file() {
    let setup = secure();
    let folder = setup.state_dir().join("gateway/tls");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("gateway-cert.pem"), "nonsense").unwrap();
    let refusal = setup.clone().refuses();
    assert!(refusal.stderr.contains("gateway-key.pem is not"), "{}", refusal.stderr);
    std::fs::write(folder.join("gateway-key.pem"), "nonsense").unwrap();
    let refusal = setup.refuses();
    assert!(refusal.stderr.contains("gateway-cert.pem (gateway.tls.certPath)"), "{}", refusal.stderr);
    let missing = json!({"gateway": {"tls": {"enabled": true, "autoGenerate": false}}});
    assert!(Setup::new().config(&missing).refuses().stderr.contains("autoGenerate"));
}

#[test]
fn s_36_a_handshake_that_does_not_come_counts_from_the_accept() {
    let gateway = secure().env("OPENCLAW_HANDSHAKE_TIMEOUT_MS", "600").start();
    // The time for all of it is one: a slow handshake leaves less for `connect`.
    let begun = Instant::now();
    let tunnel = Tunnel::to(gateway.port);
    let mut client = Client::open(tunnel.port);
    client.nonce();
    assert_eq!(client.closed().0, 1008);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let mut silent = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    silent.write_all(&[0x16, 3, 1]).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
