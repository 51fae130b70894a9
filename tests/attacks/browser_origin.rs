//! S-01 to S-08: pages in the victim's browser.

use serde_json::json;

use crate::support::TOKEN;
use crate::support::client::{Client, UPGRADE, cli, operator};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, Setup};
use crate::{ALICE, READ, behind_a_proxy, code, control_ui, from, trusting_a_proxy, upgrade, with, with_token};

/// The gateways of every auth mode, and what a good proxy would add to a request for each.
fn every_mode() -> Vec<(&'static str, Gateway, &'static str)> {
    let mode = |auth| Setup::new().no_token().config(&json!({"gateway": {"auth": auth}}));
    vec![
        ("none", mode(json!({"mode": "none"})).start(), ""),
        ("token", Gateway::start(), ""),
        ("password", mode(json!({"mode": "password", "password": "pw"})).start(), ""),
        ("trusted-proxy", trusting_a_proxy(&json!({"allowLoopback": true})).start(), ALICE),
    ]
}

#[test]
fn s_01_the_page_that_is_served_can_send_its_credentials_to_no_other_gateway() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.html"), "<html><script>alert(1)</script></html>").unwrap();
    let gateway = Setup::new().config(&json!({"gateway": {"controlUi": {"root": folder.path()}}})).start();
    let own = format!("127.0.0.1:{}", gateway.port);
    for (host, named) in [(own.clone(), true), ("gw.example".to_owned(), true), ("[::1]:1".to_owned(), false)] {
        let path = "/?gatewayUrl=wss://evil.example";
        let page = gateway.http(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        let policy = page.head.lines().find(|line| line.starts_with("content-security-policy: ")).unwrap();
        let connect = policy.split(';').find_map(|part| part.trim().strip_prefix("connect-src ")).unwrap();
        let sockets: Vec<_> = connect.split(' ').filter(|source| source.starts_with("ws")).collect();
        let expected = [format!("ws://{host}"), format!("wss://{host}")];
        assert!(page.status == 200 && sockets == if named { expected.as_slice() } else { &[] }, "{host}: {policy}");
        assert!(policy.contains("default-src 'self'") && !policy.contains("evil.example"), "{policy}");
    }
}

#[test]
fn s_02_every_origin_is_judged_whatever_the_mode_and_the_headers() {
    for (mode, gateway, headers) in every_mode() {
        let port = gateway.port;
        for more in ["", headers] {
            let lines = format!("Host: 127.0.0.1:{port}\r\nOrigin: https://evil.example\r\n{more}");
            let answer = upgrade(&gateway, &lines);
            assert_eq!(answer.status, 403, "{mode} with {more:?}: {}", answer.body);
        }
        // An origin in the second of two lines is no way around the first.
        let lines =
            format!("Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nOrigin: https://evil.example\r\n");
        assert_eq!(upgrade(&gateway, &lines).status, 403, "{mode}");
        assert_eq!(gateway.log_lines("origin_not_allowed").len(), 3, "{mode}");
    }
}

#[test]
fn s_03_a_page_that_guesses_on_loopback_is_locked_out_by_its_origin() {
    let setup = Setup::new().no_token();
    let gateway =
        setup.config(&json!({"gateway": {"auth": {"mode": "password", "password": "correct horse"}}})).start();
    let port = gateway.port;
    let page = |origin: &str| Client::open_with(port, &format!("Origin: {origin}\r\n")).unwrap();
    let guess = |password: &str| with(cli(READ), "auth", json!({"password": password}));
    for number in 0..10 {
        let error = page("http://localhost:3000").connect(&guess(&format!("guess {number}"))).unwrap_err();
        assert_eq!(code(&error), "AUTH_PASSWORD_MISMATCH", "guess {number}");
    }
    // Now even the right one is of no use to that page, and everybody else on this host is not concerned.
    let error = page("http://localhost:3000").connect(&guess("correct horse")).unwrap_err();
    assert_eq!(code(&error), "AUTH_RATE_LIMITED");
    assert!(error["retryAfterMs"].is_u64() || error["details"]["retryAfterMs"].is_u64(), "{error}");
    page("http://localhost:8080").connect(&guess("correct horse")).unwrap();
    gateway.client().connect(&guess("correct horse")).unwrap();
}

#[test]
fn s_03_a_page_that_has_guessed_the_secret_pairs_no_device_silently() {
    let gateway = Gateway::start();
    let origin = format!("Origin: http://127.0.0.1:{}\r\n", gateway.port);
    let mut page = Client::open_with(gateway.port, &origin).unwrap();
    let error = Device::new(1).connect(&mut page, &cli(READ)).unwrap_err();
    assert_eq!((code(&error), &error["details"]["reason"]), ("PAIRING_REQUIRED", &json!("not-paired")));
    let listed = gateway.operator().call("device.pair.list", &json!({})).unwrap();
    assert_eq!(listed["paired"], json!([]));
}

#[test]
fn s_04_nothing_is_done_before_connect_and_no_call_sets_a_path_to_run() {
    let gateway = Gateway::start();
    let hostile = json!({"raw": r#"{"gateway":{"cliPath":"/tmp/evil"}}"#, "baseHash": "x"});
    for method in ["config.apply", "config.set", "config.patch", "update.run"] {
        let mut client = gateway.client();
        client.nonce();
        let error = client.call(method, &hostile).unwrap_err();
        assert_eq!(error["message"], "invalid handshake: first request must be connect");
        assert_eq!(client.closed().0, 1008, "{method}");
    }
    let before = std::fs::read(gateway.state_dir().join("openclaw.json")).ok();
    let mut weak = gateway.client();
    weak.connect(&crate::support::client::operator_with(&["operator.write", "operator.pairing"])).unwrap();
    let mut admin = gateway.operator();
    for method in ["config.apply", "config.set", "config.patch", "update.run"] {
        assert_eq!(code(&weak.call(method, &hostile).unwrap_err()), "MISSING_SCOPE", "{method}");
        assert!(admin.call(method, &hostile).is_err(), "{method}");
    }
    assert_eq!(std::fs::read(gateway.state_dir().join("openclaw.json")).ok(), before);
}

#[test]
fn s_05_an_origin_is_scheme_host_and_port_and_nothing_else() {
    let listed = json!({"gateway": {"controlUi": {"allowedOrigins": ["https://good.example"]}}});
    let gateway = Setup::new().config(&listed).start();
    let refused = [
        "https://good.example/path",
        "https://good.example/",
        "https://user@good.example",
        "https://good.example:443@evil.example",
        "https://good.example.evil.example",
        "https://good.example#x",
        "https://good.example?x",
        "https://evil.example/https://good.example",
        "https://good.example https://evil.example",
        "good.example",
        "null",
        "https://",
    ];
    for origin in refused {
        let answer = upgrade(&gateway, &format!("Host: 127.0.0.1\r\nOrigin: {origin}\r\n"));
        assert_eq!(answer.status, 403, "{origin}");
    }
    for origin in ["https://good.example", "HTTPS://GOOD.example", "https://good.example:443"] {
        Client::open_with(gateway.port, &format!("Origin: {origin}\r\n")).unwrap_or_else(|_| panic!("{origin}"));
    }
}

#[test]
fn s_06_host_is_no_evidence_of_being_local() {
    let gateway = Gateway::start();
    // From loopback without any trace of a proxy, as a program or a container on this host can: the name only takes away.
    for host in ["anything.ts.net", "gateway.local", "127.0.0.1.evil.example", "192.168.1.5"] {
        let connect = || {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{UPGRADE}\r\n");
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            Client::upgraded(stream).unwrap()
        };
        let without = with(cli(READ), "auth", json!({}));
        assert!(connect().connect(&without).is_err(), "{host}: no token, no entry");
        let hello = connect().connect(&operator()).unwrap_or_else(|error| panic!("{host}: {error}"));
        let private = host == "192.168.1.5";
        assert_eq!(hello["auth"]["scopes"] == json!([]), !private, "{host}: {}", hello["auth"]);
        if !private {
            let error = Device::new(1).connect(&mut connect(), &cli(READ)).unwrap_err();
            assert_eq!(code(&error), "PAIRING_REQUIRED", "{host}: the device of a client that is not local waits");
        }
    }
    for path in ["/readyz", "/__openclaw__/canvas/", "/__openclaw__/a2ui/"] {
        let answer = gateway.http(&format!("GET {path} HTTP/1.1\r\nHost: x.ts.net\r\nConnection: close\r\n\r\n"));
        let plain = gateway.get(path);
        assert_eq!((answer.status, answer.body), (plain.status, plain.body), "{path}");
    }
}

#[test]
fn s_07_no_setting_turns_the_device_identity_of_pages_off() {
    let off = json!({"gateway": {
        "trustedProxies": ["127.0.0.1"],
        "controlUi": {
            "dangerouslyDisableDeviceAuth": true, "allowInsecureAuth": true, "allowedOrigins": ["http://gateway.lan"],
        },
    }});
    let gateway = Setup::new().config(&off).start();
    let headers = "X-Forwarded-For: 203.0.113.9\r\nOrigin: http://gateway.lan\r\n";
    let mut page = Client::open_with(gateway.port, headers).unwrap();
    let error = page.connect(&control_ui(&["operator.admin"])).unwrap_err();
    assert_eq!(code(&error), "CONTROL_UI_DEVICE_IDENTITY_REQUIRED");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("HTTPS") && message.contains("localhost"), "it says what to do: {message}");
}

#[test]
fn s_08_without_auth_a_foreign_page_is_refused_all_the_same() {
    let gateway = Setup::new().no_token().config(&json!({"gateway": {"auth": {"mode": "none"}}})).start();
    for origin in ["https://evil.example", "null", "http://127.0.0.1.evil.example"] {
        assert_eq!(upgrade(&gateway, &format!("Host: 127.0.0.1\r\nOrigin: {origin}\r\n")).status, 403, "{origin}");
    }
    // What a page can read without a WebSocket says nothing that a stranger may not know.
    for path in ["/", "/healthz", "/readyz", "/startupz"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\nConnection: close\r\n\r\n"
        );
        let answer = gateway.http(&request);
        assert!(!answer.head.contains("access-control-allow-origin"), "{path}: {}", answer.head);
    }
}

#[test]
fn s_08_a_wildcard_lends_no_page_the_secret_of_another() {
    let any = json!({"gateway": {"trustedProxies": ["127.0.0.1"], "controlUi": {"allowedOrigins": ["*"]}}});
    let gateway = Setup::new().config(&any).start();
    let page =
        |more: &str| Client::open_with(gateway.port, &format!("Origin: https://evil.example\r\n{more}")).unwrap();
    // It may open the socket; what it lacks is the credential.
    let error = page("X-Forwarded-For: 203.0.113.9\r\n").connect(&with(cli(READ), "auth", json!({}))).unwrap_err();
    assert!(!code(&error).is_empty(), "{error}");
    let error = page("").connect(&with_token("wrong")).unwrap_err();
    assert_eq!(code(&error), "AUTH_TOKEN_MISMATCH");
    drop(from(&behind_a_proxy(), "203.0.113.9"));
    let hello = page("").connect(&with_token(TOKEN)).unwrap();
    assert_eq!(hello["auth"]["scopes"], json!([]), "a page without a device holds nothing");
}
