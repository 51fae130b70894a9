//! S-10 to S-21: who pretends to be a proxy, or to be this host.

use std::io::Write;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::support::client::{Client, UPGRADE, cli, node, operator};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, Setup, free_port};
use crate::support::{PATIENCE, TOKEN};
use crate::{ALICE, PAGE, READ, behind_a_proxy, code, control_ui, trusting_a_proxy, upgrade, with};

/// An address of this machine that is not loopback; `None` where it has none.
fn own_address() -> Option<IpAddr> {
    let all = if_addrs::get_if_addrs().ok()?;
    all.iter().map(if_addrs::Interface::ip).find(|ip| ip.is_ipv4() && !ip.is_loopback() && !ip.is_unspecified())
}

/// A WebSocket that comes from `address` of this machine, to the same one.
fn open_from(address: IpAddr, port: u16, lines: &str) -> Client {
    let mut stream = TcpStream::connect((address, port)).expect("the gateway listens there");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\n{UPGRADE}{lines}\r\n").as_bytes()).unwrap();
    Client::upgraded(stream).unwrap_or_else(|answer| panic!("the upgrade was refused: {answer:?}"))
}

/// The only device that waits for approval.
fn waiting(gateway: &Gateway) -> Value {
    let listed = gateway.operator().call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["pending"].as_array().map(Vec::len), Some(1), "{listed}");
    listed["pending"][0].clone()
}

#[test]
fn s_10_a_loopback_hop_is_invalid_and_never_the_client() {
    for value in ["198.51.100.7, 127.0.0.1", "127.0.0.1, 198.51.100.7", "::1, 198.51.100.7, ::ffff:127.0.0.1"] {
        let gateway = behind_a_proxy();
        let mut client = Client::open_with(gateway.port, &format!("X-Forwarded-For: {value}\r\n")).unwrap();
        let error = Device::new(1).connect(&mut client, &cli(READ)).unwrap_err();
        assert_eq!(code(&error), "PAIRING_REQUIRED", "{value}: it is not local");
        assert_eq!(waiting(&gateway)["remoteIp"], "198.51.100.7", "{value}");
    }
    let gateway = behind_a_proxy();
    for value in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.0.0.1, 127.0.0.1", "0.0.0.0", "localhost", "", " , "] {
        let answer = upgrade(&gateway, &format!("Host: 127.0.0.1\r\nX-Forwarded-For: {value}\r\n"));
        assert_eq!(answer.status, 403, "{value}");
        assert!(answer.body.contains("proxy_attribution_required"), "{}", answer.body);
    }
}

#[test]
fn s_11_a_local_process_is_not_the_proxy_unless_the_operator_said_so() {
    let gateway = trusting_a_proxy(&json!({})).start();
    let mut forged = Client::open_with(gateway.port, &format!("{ALICE}{PAGE}")).unwrap();
    let error = forged.connect(&control_ui(READ)).unwrap_err();
    assert_eq!(error["details"]["authReason"], "trusted_proxy_loopback_source", "{error}");
    // Where the proxy is elsewhere, the headers alone give it away.
    let elsewhere = json!({"gateway": {"trustedProxies": ["198.51.100.1"], "auth": {
        "mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-Forwarded-User", "allowLoopback": true},
    }}});
    let gateway = Setup::new().no_token().config(&elsewhere).start();
    assert_eq!(upgrade(&gateway, &format!("Host: 127.0.0.1\r\n{ALICE}")).status, 403);
    assert_eq!(upgrade(&gateway, "Host: 127.0.0.1\r\nX-Forwarded-User: alice@example.com\r\n").status, 403);
}

#[test]
fn s_11_this_host_under_another_address_is_no_proxy() {
    let Some(own) = own_address() else { return };
    let setup = json!({"gateway": {
        "bind": "lan", "trustedProxies": [own.to_string()], "controlUi": {"allowedOrigins": ["https://gw.example"]},
        "auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-Forwarded-User", "allowLoopback": true}},
    }});
    let gateway = Setup::new().no_token().config(&setup).start();
    let mut forged = open_from(own, gateway.port, &format!("Host: {own}\r\n{ALICE}{PAGE}"));
    let error = forged.connect(&control_ui(READ)).unwrap_err();
    assert_eq!(error["details"]["authReason"], "trusted_proxy_local_interface_source", "{error}");
}

/// Forwards bytes from a port of its own to `to`, as socat, ssh -R or a port-forward would.
fn forwarder(to: u16) -> u16 {
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(("127.0.0.1", to)).unwrap();
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    port
}

#[test]
fn s_12_who_comes_through_a_forwarder_still_needs_the_secret() {
    let gateway = Gateway::start();
    let port = forwarder(gateway.port);
    for auth in [json!({}), json!({"token": "wrong"}), json!({"password": TOKEN}), json!({"deviceToken": TOKEN})] {
        for params in [cli(READ), operator(), node(&[]), control_ui(READ)] {
            let params = with(params, "auth", auth.clone());
            assert!(Client::open(port).connect(&params).is_err(), "{params}");
            assert!(Device::new(1).connect(&mut Client::open(port), &params).is_err(), "{params}");
        }
    }
    let listed = gateway.operator().call("device.pair.list", &json!({})).unwrap();
    assert_eq!((&listed["paired"], &listed["pending"]), (&json!([]), &json!([])), "nothing was paired, nothing asked");
}

#[test]
fn s_13_unattributable_traffic_is_refused_before_its_credentials_are_looked_at() {
    let gateway = Gateway::start();
    for number in 0..30 {
        let lines =
            format!("Host: 127.0.0.1\r\nX-Forwarded-For: 203.0.113.{number}\r\nAuthorization: Bearer {TOKEN}\r\n");
        let answer = upgrade(&gateway, &lines);
        assert_eq!(answer.status, 403);
        assert!(answer.body.contains("gateway.trustedProxies"), "{}", answer.body);
    }
    assert_eq!(gateway.log_lines("proxy_attribution_required").len(), 30);
    // Nothing was counted as a guess: the next one is heard.
    let error = gateway.client().connect(&with(cli(READ), "auth", json!({"token": "wrong"}))).unwrap_err();
    assert_eq!(code(&error), "AUTH_TOKEN_MISMATCH");
}

#[test]
fn s_14_tailscale_identity_opens_no_page_and_no_other_method() {
    let gateway = Gateway::start();
    let headers = "Tailscale-User-Login: alice@example.com\r\nX-Forwarded-For: 100.64.0.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: gw.tail.ts.net\r\n";
    for path in ["/", "/healthz", "/tools/invoke", "/v1/chat/completions", "/avatar/main", "/metrics"] {
        let with =
            gateway.http(&format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Connection: close\r\n\r\n"));
        let without = gateway.get(path);
        assert_eq!(with.status, without.status, "{path}");
        assert!(matches!(with.status, 200 | 403 | 404 | 405), "{path}: {}", with.status);
    }
    // Without Serve these are a stranger's headers.
    assert_eq!(upgrade(&gateway, &format!("Host: gw.tail.ts.net\r\n{headers}")).status, 403);
}

#[test]
fn s_15_an_open_door_is_not_published() {
    for (gateway, key) in [
        (json!({"auth": {"mode": "none"}, "tailscale": {"mode": "serve"}}), "gateway.auth"),
        (json!({"auth": {"mode": "none"}, "tailscale": {"mode": "funnel"}}), "gateway.auth"),
        (json!({"auth": {"mode": "token", "token": "x"}, "tailscale": {"mode": "funnel"}}), "gateway.auth"),
        (json!({"auth": {"mode": "none"}, "bind": "lan"}), "gateway.auth"),
        (json!({"auth": {"mode": "none"}, "bind": "custom", "customBindHost": "0.0.0.0"}), "gateway."),
    ] {
        let refusal = Setup::new().no_token().config(&json!({"gateway": gateway})).refuses();
        assert!(refusal.stderr.contains(key), "{gateway}: {}", refusal.stderr);
    }
}

#[test]
fn s_16_a_credential_that_is_only_there_opens_nothing() {
    let gateway = Gateway::start();
    for auth in [
        json!({"token": "x"}),
        json!({"token": "x", "deviceToken": TOKEN}),
        json!({"password": TOKEN}),
        json!({"token": " ", "password": "x"}),
        json!({"bootstrapToken": TOKEN}),
        json!({"approvalRuntimeToken": TOKEN, "agentRuntimeIdentityToken": TOKEN}),
    ] {
        for params in [cli(READ), operator(), node(&["system.run"]), control_ui(READ)] {
            let params = with(params, "auth", auth.clone());
            assert!(gateway.client().connect(&params).is_err(), "{params}");
            assert!(Device::new(1).connect(&mut gateway.client(), &params).is_err(), "{params}");
        }
    }
    let listed = gateway.operator().call("device.pair.list", &json!({})).unwrap();
    assert_eq!((&listed["paired"], &listed["pending"]), (&json!([]), &json!([])));
}

#[test]
fn s_17_a_neighbour_with_the_secret_and_forged_loopback_names_pairs_nothing_silently() {
    let Some(own) = own_address() else { return };
    let gateway = Setup::new().config(&json!({"gateway": {"bind": "lan"}})).start();
    let port = gateway.port;
    let origin = format!("Origin: http://127.0.0.1:{port}\r\n");
    // With a page's origin it gets no socket at all; without one, the device waits.
    let answer = {
        let mut stream = TcpStream::connect((own, port)).unwrap();
        stream
            .write_all(format!("GET / HTTP/1.1\r\n{UPGRADE}Host: 127.0.0.1:{port}\r\n{origin}\r\n").as_bytes())
            .unwrap();
        Client::upgraded(stream).map(|_| ()).unwrap_err()
    };
    assert_eq!(answer.status, 403);
    for params in [cli(&["operator.admin"]), operator(), node(&[])] {
        for host in ["127.0.0.1", "localhost", "[::1]"] {
            let mut client = open_from(own, port, &format!("Host: {host}:{port}\r\n"));
            let error = Device::new(1).connect(&mut client, &params).unwrap_err();
            assert_eq!(code(&error), "PAIRING_REQUIRED", "{host} {params}");
        }
    }
    let listed = gateway.operator().call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["paired"], json!([]));
}

#[test]
fn s_18_a_proxy_on_this_host_that_nobody_configured_makes_no_one_local() {
    let gateway = Gateway::start();
    for lines in [
        // As nginx, Caddy, Traefik, Cloudflare and a load balancer forward.
        "X-Real-IP: 203.0.113.9\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n",
        "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: gw.example\r\nVia: 2.0 Caddy\r\n",
        "X-Forwarded-Server: traefik\r\nX-Forwarded-Port: 443\r\n",
        "CF-Connecting-IP: 203.0.113.9\r\nCF-Ray: 1\r\nCDN-Loop: cloudflare\r\n",
        "X-Amzn-Trace-Id: Root=1\r\n",
    ] {
        assert_eq!(upgrade(&gateway, &format!("Host: 127.0.0.1\r\n{lines}")).status, 403, "{lines}");
    }
}

#[test]
fn s_19_an_empty_trace_of_a_proxy_is_a_trace() {
    let gateway = Gateway::start();
    for line in [
        "Forwarded:",
        "Forwarded: for=127.0.0.1",
        "X-Real-IP:",
        "X-Forwarded-For:",
        "Via: 1.1 x",
        "CF-Connecting-IP: 203.0.113.9",
        "True-Client-IP: 127.0.0.1",
        "X-Client-IP:",
        "Tailscale-Headers-Info: x",
    ] {
        let answer = upgrade(&gateway, &format!("Host: 127.0.0.1\r\n{line}\r\n"));
        assert_eq!(answer.status, 403, "{line}");
    }
    let fallback = json!({"gateway": {"trustedProxies": ["127.0.0.1"], "allowRealIpFallback": true}});
    let gateway = Setup::new().config(&fallback).start();
    for value in ["127.0.0.1", "::1", "", "garbage", "0.0.0.0"] {
        let answer = upgrade(&gateway, &format!("Host: 127.0.0.1\r\nX-Real-IP: {value}\r\n"));
        assert_eq!(answer.status, 403, "{value}");
    }
    for host in ["[::1]evil.com", "localhost:18789@evil.com", "user@localhost", "127.0.0.1/", "localhost:", "", "a b"] {
        let answer = upgrade(&gateway, &format!("Host: {host}\r\n"));
        assert!(matches!(answer.status, 400 | 403), "{host}: {}", answer.status);
    }
}

#[test]
fn s_20_many_strangers_who_look_local_are_noticed() {
    let gateway = Gateway::start();
    for seed in 1..=40 {
        Device::new(seed).connect(&mut gateway.client(), &cli(READ)).unwrap();
    }
    let lines = gateway.log_lines("paired without asking");
    assert_eq!(lines.len(), 1, "once, and not for each: {lines:?}");
    assert!(lines[0].contains("gateway.trustedProxies"), "{lines:?}");
}

#[test]
fn s_21_a_proxy_on_this_host_is_served_without_opening_the_lan() {
    let gateway = trusting_a_proxy(&json!({"allowLoopback": true})).start();
    assert!(gateway.stdout.text().contains("listens on 127.0.0.1:"), "{}", gateway.stdout.text());
    let scopes = |headers: &str| {
        let mut client = Client::open_with(gateway.port, &format!("{headers}{PAGE}")).unwrap();
        client.connect(&control_ui(READ)).map(|hello| hello["auth"]["scopes"].clone())
    };
    scopes(ALICE).unwrap();
    let mallory = ALICE.replace("alice", "mallory");
    assert_eq!(scopes(&mallory).unwrap_err()["details"]["authReason"], "trusted_proxy_user_not_allowed");
    let twice = format!("{ALICE}X-Forwarded-User: mallory@example.com\r\n");
    assert_eq!(scopes(&twice).unwrap_err()["details"]["authReason"], "trusted_proxy_user_ambiguous");
    let nobody = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-User: \r\n";
    assert_eq!(scopes(nobody).unwrap_err()["details"]["authReason"], "trusted_proxy_user_missing");
    // And who comes beside the proxy brings nothing by it.
    assert!(gateway.client().connect(&control_ui(READ)).is_err());
    assert!(gateway.client().connect(&operator()).is_err());
}
