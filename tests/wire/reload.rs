//! Settings that change while the gateway runs: who keeps a connection, who loses it, and what a broken file does.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::client::{Client, UPGRADE, cli, node, operator};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, Setup};
use crate::support::tls::Tunnel;

fn write(gateway: &Gateway, config: &Value) {
    write_text(gateway, &config.to_string());
}

/// As editors do it: a new file takes the place of the old one.
fn write_text(gateway: &Gateway, text: &str) {
    let draft = gateway.state_dir().join("openclaw.json.draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, gateway.state_dir().join("openclaw.json")).unwrap();
}

fn with_token(token: &str) -> Value {
    let mut params = operator();
    params["auth"] = json!({"token": token});
    params
}

fn start(config: &Value) -> Gateway {
    Setup::new().no_token().config(config).start()
}

fn logged(gateway: &Gateway, text: &str) -> String {
    gateway.stderr.wait_for(|line| line.contains(text)).unwrap_or_else(|| panic!("no line says {text:?}"))
}

#[test]
fn s_59_another_token_closes_who_came_by_the_old_one_and_no_device() {
    let gateway = start(&json!({"gateway": {"auth": {"token": "old"}}}));
    let mut by_token = gateway.client();
    by_token.connect(&with_token("old")).unwrap();
    let device = Device::new(1);
    let mut params = cli(&["operator.read"]);
    params["auth"] = json!({"token": "old"});
    let hello = device.connect(&mut gateway.client(), &params).unwrap();
    params["auth"] = json!({"deviceToken": hello["auth"]["deviceToken"]});
    let mut by_device = gateway.client();
    device.connect(&mut by_device, &params).unwrap();
    let mut undecided = gateway.client();
    undecided.nonce();
    write(&gateway, &json!({"gateway": {"auth": {"token": "new"}}}));
    let begun = Instant::now();
    let (code, reason) = by_token.closed();
    assert_eq!(code, 4001, "{reason}");
    assert!(reason.contains("gateway.auth.mode or its secret"), "{reason}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    by_device.call("health", &json!({})).unwrap();
    // Accepted before, decided after: it has to begin again.
    assert_eq!(undecided.connect(&with_token("new")).unwrap_err()["details"]["code"], "AUTH_CHANGED");
    assert_eq!(undecided.closed().0, 4001);
    gateway.client().connect(&with_token("old")).unwrap_err();
    gateway.client().connect(&with_token("new")).unwrap();
    let line = logged(&gateway, "configuration applied");
    assert!(line.contains("generation=2") && line.contains("closed=1"), "{line}");
}

#[test]
fn what_is_written_in_the_first_moments_of_a_gateway_is_followed() {
    // The moment between the reading of the start and the watch is short: more than one gateway meets it.
    let gateways: Vec<_> = (0..3)
        .map(|_| {
            let gateway = start(&json!({"gateway": {"auth": {"token": "old"}}}));
            write(&gateway, &json!({"gateway": {"auth": {"token": "new"}}}));
            gateway
        })
        .collect();
    for gateway in &gateways {
        logged(gateway, "configuration applied");
        gateway.client().connect(&with_token("new")).unwrap();
    }
}

#[test]
fn pages_come_and_go_with_the_list() {
    let origins = |list: &[&str]| json!({"gateway": {"auth": {"token": "t"}, "controlUi": {"allowedOrigins": list}}});
    let gateway = start(&origins(&["https://a.example"]));
    let open = |origin: &str| Client::open_with(gateway.port, &format!("Origin: https://{origin}\r\n"));
    assert!(open("b.example").is_err());
    let mut page = open("a.example").unwrap();
    page.connect(&with_token("t")).unwrap();
    let mut program = gateway.client();
    program.connect(&with_token("t")).unwrap();
    write(&gateway, &origins(&["https://a.example", "https://b.example"]));
    logged(&gateway, "generation=2");
    open("b.example").unwrap();
    // It has no device and so no scopes, but it is still there.
    assert_eq!(page.call("health", &json!({})).unwrap_err()["code"], "FORBIDDEN");
    write(&gateway, &origins(&["https://b.example"]));
    let (code, reason) = page.closed();
    assert!(code == 4001 && reason.contains("gateway.controlUi.allowedOrigins"), "{code} {reason}");
    assert!(open("a.example").is_err());
    program.call("health", &json!({})).unwrap();
}

#[test]
fn a_proxy_that_is_taken_off_the_list_takes_its_clients_with_it() {
    let proxies = |list: &[&str]| json!({"gateway": {"auth": {"token": "t"}, "trustedProxies": list}});
    let gateway = start(&proxies(&["127.0.0.1", "10.0.0.1"]));
    let forwarded = "X-Forwarded-For: 203.0.113.9\r\n";
    let mut proxied = Client::open_with(gateway.port, forwarded).unwrap();
    proxied.connect(&with_token("t")).unwrap();
    let mut direct = gateway.client();
    direct.connect(&with_token("t")).unwrap();
    write(&gateway, &proxies(&["10.0.0.1"]));
    let (code, reason) = proxied.closed();
    assert!(code == 4001 && reason.contains("gateway.trustedProxies"), "{code} {reason}");
    assert_eq!(Client::open_with(gateway.port, forwarded).err().expect("a stranger now").status, 403);
    direct.call("health", &json!({})).unwrap();
}

#[test]
fn a_broken_file_changes_nothing_and_the_log_says_where() {
    let gateway = start(&json!({"gateway": {"auth": {"token": "old"}}}));
    let mut client = gateway.client();
    client.connect(&with_token("old")).unwrap();
    for (text, place) in [
        ("{gateway: {\n  auth: {token: 'new'\n", ":2:9: unterminated object"),
        ("{gateway: {\n  auth: {token: 'new', mode: 'maybe'}}}", ":2:30: gateway.auth.mode"),
        ("{gateway: {auth: {token: 'new', password: 'p'}}}", "Set gateway.auth.mode"),
        ("{gateway: {auth: {mode: 'token', token: '${NOT_THERE}'}}}", "gateway.auth.token cannot be resolved"),
        ("{gateway: {auth: {mode: 'trusted-proxy'}}}", "userHeader"),
        ("{gateway: {}}", "gateway.auth.token is gone"),
    ] {
        write_text(&gateway, text);
        let line = logged(&gateway, place);
        assert!(line.contains("configuration not applied") && line.contains("openclaw.json"), "{line}");
        assert!(!line.contains("'new'"), "{line}");
    }
    client.call("health", &json!({})).unwrap();
    gateway.client().connect(&with_token("old")).unwrap();
    write_text(&gateway, "{gateway: {auth: {token: 'new'}}}");
    assert_eq!(client.closed().0, 4001);
    gateway.client().connect(&with_token("new")).unwrap();
}

#[test]
fn what_waits_for_a_restart_is_named() {
    let gateway = start(&json!({"gateway": {"auth": {"token": "t"}}}));
    let mut client = gateway.client();
    client.connect(&with_token("t")).unwrap();
    write(&gateway, &json!({"gateway": {"auth": {"token": "t"}, "bind": "lan", "handshakeTimeoutMs": 5000}}));
    let line = logged(&gateway, "when the gateway is restarted");
    assert!(line.contains("gateway.bind, gateway.handshakeTimeoutMs"), "{line}");
    let shown = client.call("config.get", &json!({})).unwrap();
    assert_eq!(shown["config"]["gateway"]["bind"], "lan", "{shown}");
}

#[test]
fn sighup_reads_the_file_where_edits_are_not_followed_and_what_a_secret_leads_to() {
    let setup = Setup::new().no_token();
    let secret = setup.state_dir().join("token");
    let keep = |text: &str| private(&secret, text);
    keep("old");
    let config = json!({
        "gateway": {
            "reload": {"mode": "off"},
            "auth": {"mode": "token", "token": {"source": "file", "provider": "own", "id": "value"}},
        },
        "secrets": {"providers": {"own": {"source": "file", "path": secret, "mode": "singleValue"}}},
    });
    let gateway = setup.config(&config).start();
    let mut client = gateway.client();
    client.connect(&with_token("old")).unwrap();
    let mut edited = config.clone();
    edited["gateway"]["trustedProxies"] = json!(["10.0.0.1"]);
    keep("new");
    write(&gateway, &edited);
    std::thread::sleep(Duration::from_millis(600));
    client.call("health", &json!({})).unwrap();
    gateway.signal(Signal::HUP);
    assert_eq!(client.closed().0, 4001);
    gateway.client().connect(&with_token("new")).unwrap();
}

fn private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_certificate_is_renewed_without_dropping_a_connection() {
    let config = json!({"gateway": {"auth": {"token": "t"}, "tls": {"enabled": true}}});
    let gateway = start(&config);
    let other = start(&config);
    let tunnel = Tunnel::to(gateway.port);
    let mut client = Client::open(tunnel.port);
    client.connect(&with_token("t")).unwrap();
    let before = tunnel.last().leaf;
    let folder = |gateway: &Gateway| gateway.state_dir().join("gateway/tls");
    std::fs::copy(folder(&other).join("gateway-cert.pem"), folder(&gateway).join("gateway-cert.pem")).unwrap();
    logged(&gateway, "the certificate in force stays");
    Client::open(tunnel.port).connect(&with_token("t")).unwrap();
    assert_eq!(tunnel.last().leaf, before);
    std::fs::copy(folder(&other).join("gateway-key.pem"), folder(&gateway).join("gateway-key.pem")).unwrap();
    logged(&gateway, "the certificate was renewed");
    Client::open(tunnel.port).connect(&with_token("t")).unwrap();
    assert_ne!(tunnel.last().leaf, before);
    client.call("health", &json!({})).unwrap();
}

#[test]
fn limits_on_guesses_are_in_force_at_once() {
    let limit = |most: u32| json!({"gateway": {"auth": {"token": "t", "rateLimit": {"maxAttempts": most}}, "trustedProxies": ["127.0.0.1"]}});
    let gateway = start(&limit(1_000));
    let guess = |number: u32| {
        let mut client = Client::open_with(gateway.port, "X-Forwarded-For: 203.0.113.9\r\n").unwrap();
        client.connect(&with_token(&format!("guess {number}"))).unwrap_err()["details"]["code"].clone()
    };
    assert!((0..20).all(|number| guess(number) == "AUTH_TOKEN_MISMATCH"));
    write(&gateway, &limit(2));
    logged(&gateway, "who gets in is as before");
    guess(20);
    assert_eq!(guess(21), "AUTH_RATE_LIMITED");
}

#[test]
fn scopes_are_lent_to_a_user_for_as_long_as_the_file_says() {
    let lends = |scopes: &[&str], users: &[&str]| {
        json!({"gateway": {
            "trustedProxies": ["127.0.0.1"],
            "controlUi": {"allowedOrigins": ["https://gw.example"]},
            "auth": {
                "mode": "trusted-proxy",
                "identityScopes": {"Alice@example.com": scopes},
                "trustedProxy": {"userHeader": "X-User", "allowUsers": users, "allowLoopback": true},
            },
        }})
    };
    let gateway = start(&lends(&["operator.read", "operator.write"], &[]));
    let connect = |user: &str, scopes: &[&str]| {
        let headers = format!("X-Forwarded-For: 203.0.113.9\r\nX-User: {user}\r\nOrigin: https://gw.example\r\n");
        let mut client = Client::open_with(gateway.port, &headers).unwrap();
        let mut params = cli(scopes);
        (params["client"]["id"], params["client"]["mode"]) = (json!("openclaw-control-ui"), json!("webchat"));
        params["auth"] = json!({});
        let hello = client.connect(&params).unwrap();
        (client, hello["auth"]["scopes"].clone())
    };
    let (mut writer, scopes) = connect("alice@example.com", &["operator.read", "operator.write", "operator.admin"]);
    assert_eq!(scopes, json!(["operator.read", "operator.write"]), "what the user is lent, of what it asks for");
    let (mut reader, scopes) = connect("alice@example.com", &["operator.read"]);
    assert_eq!(scopes, json!(["operator.read"]));
    let (mut bob, scopes) = connect("bob", &["operator.read"]);
    assert_eq!(scopes, json!([]), "nothing is lent to others");
    write(&gateway, &lends(&["operator.read"], &[]));
    let (code, reason) = writer.closed();
    assert!(code == 4001 && reason.contains("gateway.auth.identityScopes"), "{code} {reason}");
    reader.call("health", &json!({})).unwrap();
    write(&gateway, &lends(&["operator.read"], &["alice@example.com"]));
    let (code, reason) = bob.closed();
    assert!(code == 4001 && reason.contains("allowUsers"), "{code} {reason}");
    reader.call("health", &json!({})).unwrap();
}

#[test]
fn a_secret_of_a_command_lets_in_and_one_that_fails_lets_nobody_start() {
    let setup = Setup::new().no_token();
    let script = setup.state_dir().join("secret");
    let command = |text: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    };
    let config = json!({
        "gateway": {"auth": {"mode": "token", "token": {"source": "exec", "provider": "own", "id": "gw"}}},
        "secrets": {"providers": {"own": {"source": "exec", "command": script, "timeoutMs": 1000}}},
    });
    let setup = setup.config(&config);
    for failing in ["exit 1", "sleep 5", "echo nonsense"] {
        command(failing);
        let refusal = setup.clone().refuses();
        assert!(refusal.stderr.contains("gateway.auth.token cannot be resolved"), "{failing}: {}", refusal.stderr);
    }
    // What of the gateway's own variables a command sees is what its provider lists: here, none.
    command(r#"[ -z "$OPENCLAW_STATE_DIR" ] && echo '{"protocolVersion":1,"values":{"gw":"by-exec"}}'"#);
    let gateway = setup.start();
    gateway.client().connect(&with_token("by-exec")).unwrap();
}

#[test]
fn what_a_node_may_run_changes_while_it_is_connected() {
    let config = |nodes: Value| json!({"gateway": {"auth": {"token": "t"}, "nodes": nodes}});
    let gateway = start(&config(json!({})));
    let mut params = node(&["system.which", "camera.snap"]);
    params["auth"] = json!({"token": "t"});
    let device = Device::new(1);
    let mut host = gateway.client();
    device.connect(&mut host, &params).unwrap();
    let mut operator = gateway.client();
    operator.connect(&with_token("t")).unwrap();
    let pending = operator.call("node.pair.list", &json!({})).unwrap();
    operator.call("node.pair.approve", &json!({"requestId": pending["pending"][0]["requestId"]})).unwrap();
    let refused = |operator: &mut Client, command: &str| {
        let call = json!({"nodeId": device.id(), "command": command, "idempotencyKey": command, "timeoutMs": 50});
        let error = operator.call("node.invoke", &call).unwrap_err();
        (error["details"]["dispatch"] == "not_sent").then(|| error["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused(&mut operator, "system.which"), None, "it runs, and nobody answers");
    assert!(refused(&mut operator, "camera.snap").is_some(), "no default of its platform");
    write(&gateway, &config(json!({"commands": {"deny": ["system.which"]}})));
    logged(&gateway, "what nodes may be asked to do has changed");
    let why = refused(&mut operator, "system.which").expect("denied");
    assert!(why.contains("gateway.nodes.commands.deny"), "{why}");
    write(&gateway, &config(json!({"commands": {"allow": ["camera.snap"]}})));
    let until = Instant::now() + Duration::from_secs(5);
    while refused(&mut operator, "system.which").is_some() {
        assert!(Instant::now() < until, "what is no longer denied runs again");
        std::thread::sleep(Duration::from_millis(50));
    }
    // It is a command more than was approved: it waits for its own approval, and that is possible now.
    let why = refused(&mut operator, "camera.snap").expect("not approved yet");
    assert!(why.contains("approve"), "{why}");
    assert!(gateway.log_lines("restarted").is_empty(), "{:?}", gateway.log_lines("restarted"));
}

#[test]
fn every_answer_says_what_the_operator_says_of_tls() {
    let config = |value: Value| json!({"gateway": {"auth": {"token": "t"}, "http": {"securityHeaders": {"strictTransportSecurity": value}}}});
    let gateway = start(&config(json!("max-age=300")));
    let upgrade = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{UPGRADE}");
    let requests = [
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 200),
        ("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 200),
        ("GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
        ("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (&format!("{upgrade}Origin: https://evil.example\r\n\r\n"), 403),
    ];
    let said = |value: Option<&str>| {
        for (request, status) in requests {
            let answer = gateway.http(request);
            assert_eq!(answer.status, status, "{request}");
            let line = answer.head.lines().find_map(|line| line.strip_prefix("strict-transport-security: "));
            assert_eq!(line, value, "{request}");
            for always in ["\r\nx-content-type-options: nosniff", "\r\nreferrer-policy: no-referrer"] {
                assert!(answer.head.contains(always), "{request}: {}", answer.head);
            }
        }
    };
    said(Some("max-age=300"));
    write(&gateway, &config(json!(false)));
    logged(&gateway, "configuration read");
    said(None);
}

#[test]
fn a_secret_behind_a_reference_is_read_again_when_an_administrator_asks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let secret = |text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    secret("old");
    let gateway = start(&json!({
        "secrets": {"providers": {"disk": {"source": "file", "path": file, "mode": "singleValue"}}},
        "gateway": {"auth": {"mode": "token", "token": {"source": "file", "provider": "disk", "id": "value"}}},
        "models": {"providers": {"local": {
            "baseUrl": "http://127.0.0.1:1/v1", "models": [{"id": "m"}],
            "apiKey": {"source": "env", "provider": "default", "id": "NOT_THERE"},
        }}},
    }));
    let device = Device::new(1);
    let mut params = cli(&["operator.admin"]);
    params["auth"] = json!({"token": "old"});
    let hello = device.connect(&mut gateway.client(), &params).unwrap();
    params["auth"] = json!({"deviceToken": hello["auth"]["deviceToken"]});
    let mut admin = gateway.client();
    device.connect(&mut admin, &params).unwrap();
    secret("new");
    gateway.client().connect(&with_token("new")).unwrap_err();
    let answer = admin.call("secrets.reload", &json!({})).unwrap();
    assert_eq!(answer, json!({"ok": true, "warningCount": 1}), "what could not be had is a warning");
    gateway.client().connect(&with_token("new")).unwrap();
    gateway.client().connect(&with_token("old")).unwrap_err();
    std::fs::remove_file(&file).unwrap();
    let error = admin.call("secrets.reload", &json!({})).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("gateway.auth.token"), "{error}");
    gateway.client().connect(&with_token("new")).unwrap();
}
