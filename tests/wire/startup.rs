//! How the gateway starts: what it says, what it refuses, what it answers to probes.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, cli, operator};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, HttpAnswer, Setup};
use crate::support::{PATIENCE, TOKEN};

#[test]
fn announces_itself_in_five_lines() {
    let gateway = Gateway::start();
    let said = gateway.stdout.text();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    let address = format!("127.0.0.1:{}", gateway.port);
    assert!(lines[0].starts_with("clawgate ") && lines[0].ends_with(&format!("listens on {address}")), "{said}");
    assert!(lines[1].contains("auth") && lines[1].contains("token, from "), "{said}");
    assert!(lines[2].contains(&format!("http://{address}/")), "{said}");
    assert!(lines[3].contains(gateway.state_dir().to_str().unwrap()), "{said}");
    assert!(lines[4].contains("connections"), "{said}");
    assert!(!said.contains(TOKEN), "a token that was given is not shown: {said}");
}

#[test]
fn a_generated_token_is_printed_once_and_lets_in() {
    let gateway = Setup::new().no_token().start();
    let said = gateway.stdout.text();
    let (_, rest) = said.split_once("made for this run: ").expect("the token is shown");
    let token = rest.split_whitespace().next().unwrap().to_owned();
    assert!(token.len() >= 32, "{token}");
    assert_eq!(said.matches(&token).count(), 1, "{said}");
    let mut params = operator();
    params["auth"] = json!({"token": token});
    gateway.client().connect(&params).unwrap();
    params["auth"] = json!({"token": "another"});
    gateway.client().connect(&params).unwrap_err();
    assert!(!gateway.stderr.text().contains(&token), "a secret in the log");
    for entry in std::fs::read_dir(gateway.state_dir().join("logs")).unwrap() {
        let log = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!log.contains(&token), "a secret in the log file");
    }
    let again = gateway.restart();
    assert!(!again.stdout.text().contains(&token), "each run has a token of its own");
}

#[test]
fn a_second_start_on_the_same_state_folder_names_the_pid() {
    let mut gateway = Gateway::start();
    let refusal = gateway.setup().refuses();
    assert!(refusal.stderr.contains(&format!("pid {}", gateway.pid())), "{}", refusal.stderr);
    assert_eq!(refusal.stdout, "");
    assert!(gateway.is_running());
    assert_eq!(gateway.get("/healthz").status, 200);
}

#[test]
fn a_state_folder_is_free_again_after_a_kill() {
    let gateway = Gateway::start();
    let setup = gateway.setup();
    drop(gateway);
    setup.start();
}

#[test]
fn a_taken_port_is_an_error_that_names_the_flag() {
    let gateway = Gateway::start();
    let refusal = Setup::new().port(gateway.port).refuses();
    assert!(refusal.stderr.contains("--port"), "{}", refusal.stderr);
    assert!(refusal.stderr.contains(&gateway.port.to_string()), "{}", refusal.stderr);
    assert_eq!(refusal.stdout, "");
}

#[test]
fn a_bind_beyond_loopback_without_auth_is_refused_and_names_the_key() {
    for (gateway, key) in [
        (json!({"bind": "lan"}), "gateway.auth.token"),
        (json!({"bind": "lan", "auth": {"mode": "none"}}), "gateway.auth.mode"),
    ] {
        let refusal = Setup::new().no_token().config(&json!({"gateway": gateway})).refuses();
        assert!(refusal.stderr.contains(key), "{gateway}: {}", refusal.stderr);
    }
}

#[test]
fn a_bind_to_all_addresses_with_a_token_is_taken() {
    let gateway = Setup::new().config(&json!({"gateway": {"bind": "lan"}})).start();
    assert!(gateway.stdout.text().contains("0.0.0.0:"), "{}", gateway.stdout.text());
    gateway.operator().call("health", &json!({})).unwrap();
}

#[test]
fn a_wrong_value_in_the_configuration_is_refused_with_its_place() {
    let setup = Setup::new();
    let file = setup.state_dir().join("openclaw.json");
    std::fs::write(&file, "{\n  gateway: {\n    port: \"many\",\n  },\n}\n").unwrap();
    let refusal = setup.refuses();
    assert!(refusal.stderr.contains("gateway.port"), "{}", refusal.stderr);
    assert!(refusal.stderr.contains("openclaw.json:3"), "{}", refusal.stderr);
}

#[test]
fn answers_the_probes() {
    let gateway = Gateway::start();
    let live = gateway.get("/healthz");
    assert_eq!((live.status, live.json()), (200, json!({"ok": true, "status": "live"})));
    let ready = gateway.get("/readyz");
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    let started = gateway.get("/startupz");
    let body = started.json();
    assert_eq!((started.status, &body["ok"], &body["status"]), (200, &json!(true), &json!("started")));
    assert!(body["version"].is_string() && body["uptimeMs"].is_u64(), "{body}");
    for answer in [live, ready, started] {
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        assert!(answer.head.contains("cache-control: no-store"), "{}", answer.head);
    }
    let head = gateway.http("HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status, &*head.body), (200, ""));
    let old = gateway.http("GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(old.status, 200, "the probes of old load balancers speak HTTP/1.0");
}

#[test]
fn is_not_ready_while_the_disk_takes_nothing_and_again_when_it_does() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let gateway = Setup::new().open_files(4096).start();
    let pid = Pid::from_raw(gateway.pid().cast_signed());
    let files_may_grow = |to: Option<u64>| {
        prlimit(pid, Resource::Fsize, Rlimit { current: to, maximum: None }).unwrap();
    };
    files_may_grow(Some(0));
    let device = Device::new(7);
    device.connect(&mut gateway.client(), &cli(&["operator.read"])).expect_err("a pairing that is not stored is none");
    let ready = gateway.get("/readyz");
    assert_eq!((ready.status, &ready.json()["failing"]), (503, &json!(["storage"])), "{}", ready.body);
    assert!(ready.json()["reason"].as_str().unwrap().contains("disk"), "{}", ready.body);
    assert_eq!(gateway.get("/healthz").status, 200);
    let health = gateway.operator().call("health", &json!({})).unwrap();
    assert_eq!((&health["ok"], &health["storage"]["ok"]), (&json!(false), &json!(false)), "{health}");
    files_may_grow(None);
    let until = Instant::now() + PATIENCE;
    // Nobody writes, so it looks by itself.
    while gateway.get("/readyz").status != 200 {
        assert!(Instant::now() < until, "it never notices that the disk takes writes again");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(gateway.operator().call("health", &json!({})).unwrap()["ok"], true);
    device.connect(&mut gateway.client(), &cli(&["operator.read"])).expect("it is paired now");
}

#[test]
fn says_on_its_front_page_that_it_runs_and_how_to_connect() {
    let gateway = Gateway::start();
    let page = gateway.get("/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-type: text/html"), "{}", page.head);
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    assert!(page.body.contains("is running") && page.body.contains("openclaw"), "{}", page.body);
    assert!(!page.body.contains(TOKEN));
    assert_eq!(gateway.get("/nothing-here").status, 404);
    let post = gateway.http("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(post.status, 405);
    assert!(post.head.contains("allow: get, head"), "{}", post.head);
}

#[test]
fn two_gateways_with_state_folders_of_their_own_run_side_by_side() {
    let (first, second) = (Gateway::start(), Gateway::start());
    let identity = |gateway: &Gateway| gateway.operator().call("gateway.identity.get", &json!({})).unwrap();
    assert_ne!(identity(&first)["deviceId"], identity(&second)["deviceId"]);
}

#[test]
fn keeps_its_state_to_itself() {
    let gateway = Gateway::start();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for entry in std::fs::read_dir(gateway.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), wanted, "{}", path.display());
    }
    assert!(gateway.state_dir().join("clawgate.sqlite").exists());
}

#[test]
fn keeps_its_identity_over_a_restart() {
    let gateway = Gateway::start();
    let identity = gateway.operator().call("gateway.identity.get", &json!({})).unwrap();
    let gateway = gateway.restart();
    assert_eq!(gateway.operator().call("gateway.identity.get", &json!({})).unwrap(), identity);
}

#[test]
fn running_out_of_open_files_turns_newcomers_away_and_nobody_else() {
    let gateway = Setup::new().open_files(100).start();
    let mut first = gateway.operator();
    let mut crowd = Vec::new();
    let refused = loop {
        match Client::open_with(gateway.port, "") {
            Ok(client) => crowd.push(client),
            Err(answer) => break answer,
        }
        assert!(crowd.len() < 100, "more connections than open files");
    };
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    first.call("health", &json!({})).unwrap();
    crowd.last_mut().unwrap().connect(&operator()).unwrap();
    // Beyond what the gateway turns away by itself: sockets that say nothing at all.
    let idle: Vec<_> =
        (0..200).filter_map(|_| std::net::TcpStream::connect(("127.0.0.1", gateway.port)).ok()).collect();
    first.call("health", &json!({})).unwrap();
    drop((crowd, idle));
    let until = std::time::Instant::now() + PATIENCE;
    while HttpAnswer::to(gateway.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status != 200 {
        assert!(std::time::Instant::now() < until, "it does not recover");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    gateway.operator().call("health", &json!({})).unwrap();
    first.call("health", &json!({})).unwrap();
}

#[test]
fn a_key_that_would_leave_in_clear_is_told_of_at_the_start() {
    let config = json!({"models": {"providers": {
        "far": {"baseUrl": "http://api.example.com/v1", "apiKey": "k", "models": [{"id": "m"}]},
        "near": {"baseUrl": "http://127.0.0.1:8080/v1", "apiKey": "k", "models": [{"id": "m"}]},
    }}});
    let gateway = Setup::new().config(&config).start();
    let lines = gateway.log_lines("plain http://");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("models.providers.far.baseUrl") && lines[0].contains("api.example.com"), "{lines:?}");
}
