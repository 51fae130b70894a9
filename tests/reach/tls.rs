//! Contract 4.10, `wss://` with the built program: pins, normal trust, first use, changes, and headers for a proxy.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::front::{Authority, Front, Shown};
use crate::support::TOKEN;
use crate::support::account::Account;
use crate::support::gateway::Gateway;

/// An account in remote mode, with `remote` added to what reaches `front`.
fn account(front: &Front, authority: &Authority, remote: &Value) -> Account {
    let mut config = json!({"gateway": {"mode": "remote", "remote": {
        "url": front.url(), "token": TOKEN, "transport": "direct"}}});
    for (key, value) in remote.as_object().unwrap() {
        config["gateway"]["remote"][key] = value.clone();
    }
    Account::new().config(&config).env("SSL_CERT_FILE", authority.file.display().to_string())
}

#[test]
fn a_self_signed_gateway_is_reached_by_its_pin_and_not_without() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, authority, shown) = (Gateway::start(), Authority::in_folder(folder.path()), Shown::self_signed());
    let front = Front::start(gateway.port, &shown, None);

    let account = account(&front, &authority, &json!({}));
    let refused = account.fails(&["health"]);
    for part in ["not trusted: it is self-signed", "negotiating TLS", &shown.colons(), "gateway.remote.tlsFingerprint"]
    {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert!(front.heads().is_empty(), "nothing was sent");
    let failure: Value = serde_json::from_str(&account.run(&["health", "--json"]).out).unwrap();
    assert_eq!((&failure["error"]["stage"], &failure["error"]["kind"]), (&json!("tls"), &json!("tls")));

    // What openssl prints is taken as it is, by the command that the error told of.
    account.ok(&["config", "set", "gateway.remote.tlsFingerprint", &shown.openssl_fingerprint()]);
    assert!(account.ok(&["health"]).starts_with("OK"));
    assert!(account.ok(&["gateway", "explain"]).contains("1 pinned by gateway.remote.tlsFingerprint"));
    let other = Shown::self_signed();
    account.ok(&["config", "set", "gateway.remote.tlsFingerprint", &format!("{}, {}", other.colons(), shown.colons())]);
    assert!(account.ok(&["health"]).starts_with("OK"), "any of several will do");
    account.ok(&["config", "set", "gateway.remote.tlsFingerprint", &other.colons()]);
    let refused = account.fails(&["health"]);
    assert!(refused.contains(&other.colons()) && refused.contains(&shown.colons()), "{refused}");

    let url = front.url();
    let by_flag = ["health", "--url", &url, "--token", TOKEN, "--tls-fingerprint", &shown.colons()];
    assert!(account.ok(&by_flag).starts_with("OK"));
    let wrong = account.run(&["config", "set", "gateway.remote.tlsFingerprint", &shown.colons()[..59]]);
    assert!(wrong.code == 1 && wrong.err.contains("SHA-1"), "{}", wrong.err);
}

#[test]
fn the_first_trusted_certificate_is_kept_and_another_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, authority) = (Gateway::start(), Authority::in_folder(folder.path()));
    let (first, second) = (authority.issue(|_| {}), authority.issue(|_| {}));
    let front = Front::start(gateway.port, &first, None);
    let account = account(&front, &authority, &json!({}));
    assert!(account.ok(&["health"]).starts_with("OK"));
    let file = account.state_dir().join("identity/gateway-certificates.json");
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("localhost:{}", front.port)));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(account.ok(&["health"]).starts_with("OK"));

    front.show(&second);
    let before = front.heads().len();
    let refused = account.fails(&["health"]);
    assert!(refused.contains("has changed") && refused.contains(&first.colons()), "{refused}");
    assert!(refused.contains(&second.colons()), "{refused}");
    assert_eq!(front.heads().len(), before, "nothing was sent");
    // The command to accept it stands in the error, and works as it stands.
    let command = refused.lines().find_map(|line| line.trim().strip_prefix("clawgate ")).unwrap();
    account.ok(&command.split(' ').collect::<Vec<_>>());
    assert!(account.ok(&["health"]).starts_with("OK"));
    front.show(&first);
    assert!(account.fails(&["health"]).contains("has changed"));
    assert!(account.ok(&["gateway", "trust", &front.url(), "--forget"]).contains("is forgotten"));
    assert!(account.ok(&["health"]).starts_with("OK"));
}

#[test]
fn an_expired_certificate_and_a_wrong_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, authority) = (Gateway::start(), Authority::in_folder(folder.path()));
    let expired = authority.issue(|params| params.not_after = rcgen::date_time_ymd(2021, 1, 1));
    let front = Front::start(gateway.port, &expired, None);
    let account = account(&front, &authority, &json!({}));
    assert!(account.fails(&["health"]).contains("it has expired"));
    front.show(&authority.issue(|params| params.subject_alt_names = vec![]));
    let refused = account.fails(&["health"]);
    assert!(refused.contains("it is not for localhost"), "{refused}");
    assert!(!account.state_dir().join("identity/gateway-certificates.json").exists(), "neither is remembered");
}

#[test]
fn s_86_a_proxy_gets_its_headers_over_tls_from_the_configured_gateway_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, authority) = (Gateway::start(), Authority::in_folder(folder.path()));
    let shown = authority.issue(|_| {});
    let front = Front::start(gateway.port, &shown, Some("x-edge-pass: p4ss\r\n"));
    let none = account(&front, &authority, &json!({}));
    let refused = none.fails(&["health"]);
    assert!(refused.contains("https://login.example/start") && !refused.contains("s3cret"), "{refused}");
    assert!(refused.contains("gateway.remote.edgeAuth"), "{refused}");
    let failure: Value = serde_json::from_str(&none.run(&["health", "--json"]).out).unwrap();
    assert_eq!((&failure["error"]["code"], &failure["error"]["stage"]), (&json!("EDGE_AUTH_REQUIRED"), &json!("http")));

    let reference = json!({"source": "env", "provider": "default", "id": "EDGE_PASS"});
    let edge = account(&front, &authority, &json!({"edgeAuth": {"X-Edge-Pass": reference}}));
    let refused = edge.fails(&["health"]);
    assert!(refused.contains("edgeAuth.x-edge-pass") && refused.contains("EDGE_PASS is not set"), "{refused}");
    let edge = edge.env("EDGE_PASS", "p4ss");
    assert!(edge.ok(&["health"]).starts_with("OK"));
    let explained = edge.ok(&["gateway", "explain"]);
    assert!(explained.contains("x-edge-pass") && !explained.contains("p4ss"), "{explained}");

    // The same gateway by another road: the headers stay at home.
    edge.fails(&["health", "--url", &front.url(), "--token", TOKEN]);
    assert!(!front.heads().last().unwrap().contains("p4ss"));
}
