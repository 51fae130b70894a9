//! The command line as a person and a script meet it: the built program, real files, real environment, a real gateway.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clawgate::client::node::InvokeRequest;
use clawgate::client::{self, Auth, ConnectOptions, GatewayUrl, Identity};
use clawgate::secret::Secret;
use serde_json::{Value, json};

use support::account::{Account, closed_port};
use support::gateway::{Gateway, Setup};
use support::{PATIENCE, TOKEN};

#[test]
fn the_commands_a_person_types_first() {
    let gateway = Gateway::start();
    let account = Account::of(&gateway);
    assert!(account.ok(&["health"]).starts_with("OK ("));
    assert!(account.ok(&["gateway", "health"]).starts_with("Gateway health\nOK ("));
    assert!(account.ok(&["gateway", "call", "health"]).starts_with("Gateway call: health\n{\n"));
    let status = account.ok(&["status", "--deep"]);
    assert!(status.contains("token from OPENCLAW_GATEWAY_TOKEN") && status.contains("Connect    ok in"), "{status}");
    assert!(
        !status.contains("read-only"),
        "what the probe asked for says nothing of what the token is good for: {status}"
    );
    assert!(account.ok(&["gateway", "probe"]).starts_with("Reachable  yes"));
    assert!(account.ok(&["gateway", "status", "--require-rpc"]).contains("ok in"));
    assert_eq!(account.ok(&["nodes", "status"]), "Known: 0 · Paired: 0 · Connected: 0\n");
    assert_eq!(account.ok(&["nodes", "pending"]), "No node waits for approval.\n");
    assert_eq!(account.ok(&["devices", "list"]), "No device is paired, and none waits.\n");
    assert!(account.ok(&["channels", "status"]).contains("No chat channel"));
    assert!(account.ok(&["system", "presence"]).contains("gateway"));
    assert!(account.ok(&["logs", "--limit", "5"]).contains("Log file: "));
    assert!(account.ok(&["completion", "bash"]).contains("_clawgate"));
    for line in status.lines() {
        assert!(!line.contains('\x1b'), "no colours in a pipe: {line}");
    }
}

#[test]
fn colours_are_whole_and_names_are_stripped() {
    let setup = Setup::new().config(&json!({"gateway": {"bind": "lan", "auth": {"token": "short"}}}));
    let gateway = setup.arg("--bind").arg("loopback").start();
    let state = tempfile::tempdir().unwrap();
    let node = node(gateway.port, state.path(), "Kitchen \x1b[31mpi");
    let account = Account::of(&gateway)
        .env("FORCE_COLOR", "1")
        .env("OPENCLAW_STATE_DIR", gateway.state_dir().display().to_string());
    let url = format!("http://127.0.0.1:{}", gateway.port);
    for line in [
        "security audit",
        "status --all",
        "gateway status",
        "gateway probe",
        "gateway explain",
        "gateway discover",
        "health",
        "nodes status",
        "nodes list",
        "nodes pending",
        "nodes describe --node kitchen-31mpi",
        "devices list",
        "system presence",
        "approvals list",
        "sessions list",
        "models list",
        "qr --url wss://gw.example",
        &format!("doctor proxy {url}"),
    ] {
        let ran = account.run(&line.split(' ').collect::<Vec<_>>());
        let from_the_name = ran.out.matches("Kitchen \u{fffd}[31mpi").count();
        assert_eq!(ran.out.matches('\u{fffd}').count(), from_the_name, "{line}: {:?}", ran.out);
        assert!(!ran.out.contains("Kitchen \x1b"), "{line}: {:?}", ran.out);
    }
    for line in ["security audit", "qr --url wss://gw.example", "gateway probe"] {
        assert!(account.run(&line.split(' ').collect::<Vec<_>>()).out.contains("\x1b["), "{line}");
    }
    drop(gateway);
    node.join().unwrap();
}

#[test]
fn with_json_there_is_nothing_else_on_standard_output() {
    let gateway = Gateway::start();
    let account = Account::of(&gateway);
    assert_eq!(account.json(&["health", "--json"])["ok"], true);
    assert_eq!(account.json(&["gateway", "health", "--json"])["ok"], true);
    assert_eq!(account.json(&["gateway", "call", "node.list", "--json"])["nodes"], json!([]));
    assert_eq!(account.json(&["gateway", "probe", "--json"])["ok"], true);
    assert_eq!(account.json(&["gateway", "status", "--json"])["rpc"]["ok"], true);
    let status = account.json(&["status", "--all", "--json"]);
    assert_eq!((&status["gateway"]["reachable"], &status["health"]["ok"]), (&json!(true), &json!(true)));
    assert_eq!(account.json(&["channels", "status", "--json"])["channels"], json!({}));
    assert_eq!(account.json(&["nodes", "status", "--json"])["nodes"], json!([]));
    assert_eq!(account.json(&["nodes", "list", "--json"]), json!({"pending": [], "paired": []}));
    assert_eq!(account.json(&["nodes", "pending", "--json"]), json!([]));
    assert_eq!(account.json(&["devices", "list", "--json"])["paired"], json!([]));
    assert!(account.json(&["system", "presence", "--json"]).is_array());
    for line in account.ok(&["logs", "--limit", "3", "--json"]).lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn a_failure_is_one_and_a_mistake_is_two() {
    let gateway = Gateway::start();
    let account = Account::of(&gateway).env("OPENCLAW_GATEWAY_TOKEN", "not-the-secret");
    let refused = account.run(&["health"]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("token from OPENCLAW_GATEWAY_TOKEN (fingerprint "), "{}", refused.err);
    assert!(!refused.err.contains("not-the-secret"), "{}", refused.err);
    let refused = account.run(&["health", "--json"]);
    let report: Value = serde_json::from_str(&refused.out).unwrap();
    assert_eq!((refused.code, &report["ok"]), (1, &json!(false)));
    assert_eq!(report["error"]["details"]["code"], "AUTH_TOKEN_MISMATCH");
    assert!(refused.out.starts_with("{\n  \"ok\": false,"), "{}", refused.out);

    let account = Account::of(&gateway);
    let unknown = account.run(&["gateway", "call", "no.such.method", "--json"]);
    let report: Value = serde_json::from_str(&unknown.out).unwrap();
    assert_eq!((unknown.code, &report["error"]["type"]), (1, &json!("gateway_request_error")));
    assert_eq!(account.run(&["status"]).code, 0);
    for mistake in
        [&["nodes"][..], &["health", "--timeout", "soon"], &["gateway", "call", "health", "--params", "[]"], &["flarp"]]
    {
        let ran = account.run(mistake);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{mistake:?}: {}", ran.err);
    }
    let mistaken = account.run(&["health", "--json", "--timeout", "soon"]);
    let report: Value = serde_json::from_str(&mistaken.out).unwrap();
    assert_eq!((mistaken.code, &report["error"]["code"]), (2, &json!("USAGE")), "{}", mistaken.out);
    assert!(mistaken.err.contains("--timeout"), "{}", mistaken.err);
    for mistake in [&["doctor", "proxy", "rubbish"][..], &["gateway", "--token", ""], &["gateway", "--password", " "]] {
        let ran = account.run(mistake);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{mistake:?}: {}", ran.err);
    }
    let port = closed_port().to_string();
    let nobody = Account::new().env("OPENCLAW_GATEWAY_PORT", port);
    assert!(nobody.run(&["health"]).err.contains("Is the gateway running? Start it with: clawgate gateway"));
    assert_eq!(nobody.run(&["status"]).code, 1);
    assert_eq!(nobody.run(&["gateway", "status"]).code, 0);
    assert_eq!(nobody.run(&["gateway", "status", "--require-rpc"]).code, 1);
}

#[test]
fn a_refusal_says_what_the_gateway_takes_and_what_was_sent() {
    let config = json!({"gateway": {"auth": {"mode": "password", "password": "the-password"}}});
    let gateway = Setup::new().no_token().config(&config).start();
    let url = format!("ws://127.0.0.1:{}", gateway.port);
    let err = Account::new().fails(&["health", "--url", &url, "--token", "x"]);
    assert!(err.contains("This gateway takes a password; a token was sent."), "{err}");
    assert!(err.contains("--password, or set OPENCLAW_GATEWAY_PASSWORD, or gateway.auth.password"), "{err}");
    let gateway = Gateway::start();
    let url = format!("ws://127.0.0.1:{}", gateway.port);
    let err = Account::new().fails(&["health", "--url", &url, "--password", "x"]);
    assert!(
        err.contains("This gateway takes a token; a password was sent.") && !err.contains("remote.token."),
        "{err}"
    );
    // Its own account, whose file has no token: the gateway's is from a flag.
    let account = Account::new()
        .env("OPENCLAW_STATE_DIR", gateway.state_dir().display().to_string())
        .env("OPENCLAW_GATEWAY_PORT", gateway.port.to_string());
    let err = account.fails(&["health"]);
    assert!(err.contains("The gateway that runs here has a secret that"), "{err}");
}

#[test]
fn a_new_token_counts_when_config_set_returns() {
    let gateway = Setup::new().no_token().config(&json!({"gateway": {"auth": {"token": "the-first-token"}}})).start();
    let account = Account::new()
        .env("OPENCLAW_STATE_DIR", gateway.state_dir().display().to_string())
        .env("OPENCLAW_GATEWAY_PORT", gateway.port.to_string());
    assert!(account.ok(&["health"]).starts_with("OK"));
    assert_eq!(
        account.ok(&["config", "set", "gateway.auth.token", "the-second-token"]),
        "Updated gateway.auth.token.\n"
    );
    assert!(account.ok(&["health"]).starts_with("OK"));
    assert!(account.ok(&["config", "set", "gateway.tls.enabled", "true"]).contains("Restart the gateway to apply it."));
    let refused = account.run(&["config", "set", "gateway.auth.mode", "trusted-proxy"]);
    assert!(refused.err.contains("would not start") && refused.err.contains("does not take this"), "{}", refused.err);
    assert!(account.fails(&["config", "set", "gateway.auth.token", ""]).contains("can't be empty"));
    // Without a gateway there is nothing to restart.
    assert_eq!(Account::new().ok(&["config", "set", "gateway.mode", "remote"]), "Updated gateway.mode.\n");
}

#[test]
fn a_setup_code_speaks_of_the_flags_that_were_typed() {
    let gateway = Gateway::start();
    let account = Account::of(&gateway);
    let err = account.fails(&["qr"]);
    assert!(err.contains("only this host") && err.contains("clawgate qr --url wss://HOST"), "{err}");
    let err = account.fails(&["qr", "--url", "http://foo.example"]);
    assert!(err.contains("--url ") && !err.contains("request.publicUrl"), "{err}");
    let out = account.ok(&["qr", "--url", "wss://gw.example", "--no-ascii"]);
    assert!(out.contains("wss://gw.example (--url)"), "{out}");
}

#[test]
fn a_port_that_speaks_tls_is_told_to_who_came_without() {
    let gateway = Setup::new().config(&json!({"gateway": {"tls": {"enabled": true}}})).start();
    let url = format!("ws://127.0.0.1:{}", gateway.port);
    let err = Account::new().fails(&["health", "--url", &url, "--token", TOKEN]);
    assert!(err.contains(&format!("Is it wss://127.0.0.1:{}", gateway.port)), "{err}");
}

/// Contract 4.2 to 4.8, with real files and variables.
#[test]
fn credentials_come_from_where_the_contract_says() {
    let port = closed_port();
    let local = json!({"gateway": {"port": port, "auth": {"token": "a"}, "remote": {"token": "r", "password": "rp"}}});
    let account = Account::new().config(&local);
    let url = format!("ws://127.0.0.1:{port}");
    let tried = account.tried(&["health"]);
    assert!(tried.starts_with(&format!("{url} (from gateway.port), token from gateway.auth.token (")), "{tried}");
    assert!(tried.contains("password from gateway.remote.password"), "{tried}");
    let tried = account.tried(&["health", "--token", "x"]);
    assert!(tried.contains("token from --token") && !tried.contains("password"), "{tried}");
    let refused = account.run(&["health", "--url", &url]);
    assert!(refused.code == 1 && refused.err.contains("--url needs explicit credentials"), "{}", refused.err);

    let account = account.env("OPENCLAW_GATEWAY_TOKEN", "e").env("CLAWDBOT_GATEWAY_PASSWORD", "old");
    assert!(account.tried(&["health"]).contains("token from OPENCLAW_GATEWAY_TOKEN"));
    let refused = account.run(&["health", "--url", &url]);
    assert!(refused.err.contains("--url needs explicit credentials"), "{}", refused.err);
    let account = account.env("OPENCLAW_GATEWAY_URL", url.clone());
    let tried = account.tried(&["health"]);
    assert!(tried.contains("(from OPENCLAW_GATEWAY_URL), token from OPENCLAW_GATEWAY_TOKEN"), "{tried}");
    assert!(!tried.contains("password"), "{tried}");

    let mut remote = local.clone();
    remote["gateway"]["mode"] = json!("remote");
    remote["gateway"]["remote"]["url"] = json!(url);
    let account = Account::new().config(&remote).env("OPENCLAW_GATEWAY_TOKEN", "e");
    let tried = account.tried(&["health"]);
    assert!(tried.contains("(from gateway.remote.url), token from gateway.remote.token"), "{tried}");
    remote["gateway"]["remote"]["token"] = json!("");
    let account = Account::new().config(&remote).env("OPENCLAW_GATEWAY_TOKEN", "e");
    assert!(account.tried(&["health"]).contains("token from OPENCLAW_GATEWAY_TOKEN"));
    // Probes use the remote token alone.
    assert!(!account.run(&["status"]).out.contains("OPENCLAW_GATEWAY_TOKEN"));

    let public =
        Account::new().config(&json!({"gateway": {"mode": "remote", "remote": {"url": "ws://gw.example.com"}}}));
    let refused = public.run(&["health", "--json"]);
    assert!(refused.code == 1 && refused.err.contains("plaintext"), "{}", refused.err);
}

#[test]
fn a_secret_that_cannot_be_had_is_an_error_only_where_it_matters() {
    let port = closed_port();
    let reference = json!({"source": "env", "provider": "default", "id": "GW_SECRET"});
    let config = json!({"gateway": {"port": port, "auth": {"token": reference}, "remote": {"token": "r"}}});
    let account = Account::new().config(&config);
    let refused = account.run(&["health"]);
    assert!(refused.code == 1 && refused.err.contains("gateway.auth.token is a secret reference without a value"));
    assert!(account.tried(&["health", "--token", "x"]).contains("--token"));
    assert!(account.env("GW_SECRET", "s").tried(&["health"]).contains("token from gateway.auth.token"));

    // A command that would give the password is not run for a token.
    let home = tempfile::tempdir().unwrap();
    let (script, trace) = (home.path().join("ask"), home.path().join("asked"));
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", trace.display())).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let config = json!({
        "gateway": {"port": port, "auth": {"token": "t", "password": {"source": "exec", "provider": "ask", "id": "x"}}},
        "secrets": {"providers": {"ask": {"source": "exec", "command": script}}},
    });
    let account = Account::new().config(&config);
    assert!(account.tried(&["health"]).contains("token from gateway.auth.token"));
    assert!(!trace.exists());
}

#[test]
fn a_broken_configuration_stops_all_but_the_complete_command_line() {
    let gateway = Gateway::start();
    let account = Account::new().config(&json!({"gateway": {"port": "many"}}));
    let refused = account.run(&["health"]);
    assert!(refused.code == 1 && refused.err.contains("openclaw.json:1:"), "{}", refused.err);
    let url = format!("ws://127.0.0.1:{}", gateway.port);
    assert!(account.ok(&["health", "--url", &url, "--token", TOKEN]).starts_with("OK"));
}

#[test]
fn nobody_reading_is_no_failure() {
    let gateway = Gateway::start();
    let account = Account::of(&gateway);
    let mut child =
        account.command(&["status", "--all"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a node that answers every command with its name, until the gateway cuts it off. Gives why it ended.
fn node(port: u16, state: &Path, name: &str) -> std::thread::JoinHandle<String> {
    let identity = Arc::new(Identity::load_or_create(state).unwrap());
    let mut options = ConnectOptions::node(GatewayUrl::loopback(port), identity, vec!["system.which".into()]);
    options.auth = Auth { token: Some(Secret::new(TOKEN)), ..Auth::default() };
    options.program.display_name = Some(name.into());
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (connection, mut events) = client::connect(&options).await.unwrap();
            while let Some(event) = events.next().await {
                if let Some(request) = InvokeRequest::from_event(&event) {
                    let result = json!({"ran": request.command}).to_string();
                    connection.respond(&request, Ok(&result), Duration::from_secs(5)).await.unwrap();
                }
            }
            connection.ended().await.to_string()
        })
    })
}

#[test]
fn a_node_from_its_first_request_to_its_removal() {
    let gateway = Gateway::start();
    let account = Account::of(&gateway);
    let state = tempfile::tempdir().unwrap();
    let node = node(gateway.port, state.path(), "Kitchen \x1b[31mpi");
    let started = Instant::now();
    let pending = loop {
        assert!(started.elapsed() < PATIENCE, "the node's commands never wait for approval");
        let pending = account.json(&["nodes", "pending", "--json"]);
        if let Some(request) = pending.get(0) {
            break request.clone();
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let request = pending["requestId"].as_str().unwrap();
    let status = account.ok(&["nodes", "status"]);
    assert!(status.contains("Known: 1 · Paired: 1 · Connected: 1") && status.contains(request), "{status}");
    assert!(!status.contains('\x1b'), "a name cannot drive the terminal: {status:?}");
    let invoke = ["nodes", "invoke", "--node", "kitchen-31mpi", "--command", "system.which", "--params", "{}"];
    assert_eq!(account.run(&invoke).code, 1, "not before it is approved");
    let unknown = account.run(&["nodes", "approve", "nope"]);
    assert!(unknown.code == 1 && unknown.err.contains(request), "{}", unknown.err);
    assert_eq!(account.json(&["nodes", "approve", &request[..8]])["requestId"], request);
    assert_eq!(account.json(&invoke)["payload"], json!({"ran": "system.which"}));

    account.ok(&["nodes", "rename", "--node", "kitchen-31mpi", "--name", "Pantry"]);
    let described = account.ok(&["nodes", "describe", "--node", "pantry"]);
    assert!(described.contains("Name     Pantry") && described.contains("- system.which"), "{described}");
    let nodes = account.json(&["nodes", "status", "--connected", "--json"]);
    let id = nodes["nodes"][0]["nodeId"].as_str().unwrap();
    let by_prefix = ["nodes", "describe", "--node", &id[..12], "--json"];
    assert_eq!(account.json(&by_prefix)["displayName"], "Pantry");
    assert!(account.ok(&["nodes", "list"]).contains("Pantry"));
    assert!(account.ok(&["devices", "list"]).contains(&id[..12]));

    let removed = account.ok(&["nodes", "remove", "--node", "Pantry"]);
    assert!(removed.starts_with("Removed Pantry"), "{removed}");
    let end = node.join().unwrap();
    assert!(end.contains("closed the connection"), "{end}");
}

#[test]
fn a_device_from_its_request_to_its_removal() {
    let gateway = Gateway::start();
    let account = Account::of(&gateway);
    // A device that the gateway does not know and that is not on its host by its own account waits for approval; one
    // that is, and holds the secret, is paired at once.
    let state = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::load_or_create(state.path()).unwrap());
    let mut options = ConnectOptions::operator(GatewayUrl::loopback(gateway.port), Default::default());
    options.identity = Some(Arc::clone(&identity));
    options.auth = Auth { token: Some(Secret::new(TOKEN)), ..Auth::default() };
    options.program.display_name = Some("phone".into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (connection, _events) = runtime.block_on(client::connect(&options)).unwrap();
    let id = identity.id().to_string();

    let list = account.json(&["devices", "list", "--json"]);
    assert_eq!(list["paired"][0]["deviceId"], id);
    account.ok(&["devices", "rename", "--device", &id[..12], "--name", "My phone"]);
    assert!(account.ok(&["devices", "list"]).contains("My phone"));
    let rotated = account.json(&["devices", "rotate", "--device", &id, "--role", "operator"]);
    assert_eq!(rotated["role"], "operator");
    assert!(account.json(&["devices", "revoke", "--device", &id, "--role", "operator"])["revokedAtMs"].is_u64());
    assert!(account.ok(&["devices", "list"]).contains("revoked"));
    let unknown = account.run(&["devices", "remove", "nope"]);
    assert!(unknown.code == 1 && unknown.err.contains("unknown device: nope"), "{}", unknown.err);
    assert_eq!(account.ok(&["devices", "remove", &id]), format!("Removed {id}\n"));
    assert_eq!(account.json(&["devices", "list", "--json"])["paired"], json!([]));
    assert!(account.run(&["devices", "approve"]).err.contains("no device waits for approval"));
    drop(connection);
}

#[test]
fn a_gateway_that_made_its_token_is_reached_without_flags() {
    let gateway = Setup::new().no_token().start();
    let account = Account::new().env("OPENCLAW_STATE_DIR", gateway.state_dir().display().to_string());
    let port = gateway.port.to_string();
    assert!(account.ok(&["health", "--port", &port]).starts_with("OK"));
    let status = account.ok(&["status", "--port", &port]);
    assert!(status.contains("the token the running gateway made"), "{status}");
}

#[test]
fn the_security_audit_names_key_and_fix_and_fails_on_what_is_critical() {
    let account = Account::new().config(&json!({"gateway": {
        "bind": "lan", "auth": {"token": "short"}, "controlUi": {"allowedOrigins": ["*"]}, "trustedProxies": ["10.0.0.0/8"],
    }}));
    let ran = account.run(&["security", "audit", "--json"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let keys = |severity: &str| {
        let findings = report["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] == severity);
        findings.map(|finding| finding["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let critical = keys("critical");
    assert!(critical.contains(&"gateway.auth.token".to_owned()), "{critical:?}");
    assert!(critical.contains(&"gateway.controlUi.allowedOrigins".to_owned()), "{critical:?}");
    assert!(critical.iter().any(|key| key.ends_with("openclaw.json")), "others can read the file: {critical:?}");
    assert!(keys("warn").contains(&"gateway.trustedProxies".to_owned()), "{report}");
    assert_eq!(report["summary"]["critical"], critical.len());
    assert!(!ran.out.contains("\"short\""), "no secret is shown");
    for finding in report["findings"].as_array().unwrap() {
        assert!(
            !finding["what"].as_str().unwrap().is_empty() && !finding["fix"].as_str().unwrap().is_empty(),
            "{finding}"
        );
    }
    let typo = Account::new().config(&json!({"gatway": {"port": 1}}));
    assert!(typo.run(&["security", "audit"]).out.contains("gateway was probably meant"));
    let text = account.run(&["security", "audit"]);
    assert!(text.out.contains("fix: clawgate config set gateway.auth.token"), "{}", text.out);
    assert_eq!(Account::new().ok(&["security", "audit"]).trim(), "0 critical, 0 to look at, 0 to know");
}

#[test]
fn the_proxy_doctor_says_what_the_gateway_sees_and_what_to_add() {
    use std::io::{Read as _, Write as _};
    let gateway = Gateway::start();
    let account = Account::of(&gateway);
    // A proxy that adds one line to each request.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let port = gateway.port;
    std::thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && near.read(&mut byte).is_ok_and(|read| read > 0) {
                head.push(byte[0]);
            }
            head.truncate(head.len() - 2);
            head.extend_from_slice(b"X-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n");
            let mut far = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            far.write_all(&head).unwrap();
            let mut answer = Vec::new();
            far.read_to_end(&mut answer).unwrap();
            near.write_all(&answer).unwrap();
        }
    });
    let ran = account.run(&["doctor", "proxy", &url]);
    assert_eq!(ran.code, 1, "{}\n{}", ran.out, ran.err);
    assert!(ran.out.contains("hop       203.0.113.9 (client)"), "{}", ran.out);
    assert!(ran.out.contains("gateway.trustedProxies: [\"127.0.0.1\"]"), "{}", ran.out);
    let ran = account.run(&["doctor", "proxy", &format!("http://127.0.0.1:{port}/"), "--json"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}\n{}", ran.out, ran.err));
    assert_eq!(report["verdict"], "direct-local", "{report}");
    let ran = account.run(&["doctor", "proxy", "http://127.0.0.1:1/"]);
    assert!(ran.code == 1 && ran.err.contains("http://127.0.0.1:1/"), "{}", ran.err);
}
