//! Known attacks on gateways of this kind, each as a test that carries its row's id: `s_02_...` is row S-02 of
//! `docs/attacks.md`, which says for every row where its test is, or why there is none.
//!
//! Most are played over a socket against a running gateway, as a stranger would. What decides is tested beside the
//! rule; here it is that the rule is asked.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod browser_origin;
mod http_api;
mod limits;
mod node_policy;
mod proxy_headers;
mod scopes_pairing;
mod setup_codes;
mod table;

use serde_json::{Value, json};

use support::client::{Client, UPGRADE, cli};
use support::gateway::{Gateway, HttpAnswer, Setup};

const READ: &[&str] = &["operator.read"];

/// A gateway in token mode that believes a proxy on this host, so that its clients can come from anywhere.
fn behind_a_proxy() -> Gateway {
    Setup::new().config(&json!({"gateway": {"trustedProxies": ["127.0.0.1"]}})).start()
}

/// A gateway that takes the word of an authenticating proxy on this host.
fn trusting_a_proxy(more: &Value) -> Setup {
    let mut proxy = json!({"userHeader": "X-Forwarded-User", "allowUsers": ["alice@example.com"]});
    for (key, value) in more.as_object().unwrap() {
        proxy[key] = value.clone();
    }
    let auth = json!({"mode": "trusted-proxy", "trustedProxy": proxy});
    let ui = json!({"allowedOrigins": ["https://gw.example"]});
    Setup::new()
        .no_token()
        .config(&json!({"gateway": {"trustedProxies": ["127.0.0.1"], "auth": auth, "controlUi": ui}}))
}

/// What the proxy of [`trusting_a_proxy`] adds for Alice.
const ALICE: &str = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-User: alice@example.com\r\n";

/// What the browser adds on the page that the proxy of [`trusting_a_proxy`] serves.
const PAGE: &str = "Origin: https://gw.example\r\n";

/// A WebSocket of the client at `address`, through the proxy of [`behind_a_proxy`].
fn from(gateway: &Gateway, address: &str) -> Client {
    Client::open_with(gateway.port, &format!("X-Forwarded-For: {address}\r\n")).expect("a listed proxy is let through")
}

/// Sends an upgrade with these header lines, `Host` among them if it is to have one.
fn upgrade(gateway: &Gateway, lines: &str) -> HttpAnswer {
    gateway.http(&format!("GET / HTTP/1.1\r\n{UPGRADE}{lines}\r\n"))
}

/// `connect` of a command-line client with this token, without a device.
fn with_token(token: &str) -> Value {
    with(cli(READ), "auth", json!({"token": token}))
}

/// `connect` of the Control UI in a browser.
fn control_ui(scopes: &[&str]) -> Value {
    let mut params = cli(scopes);
    params["client"]["id"] = json!("openclaw-control-ui");
    params["client"]["mode"] = json!("webchat");
    params
}

fn with(mut value: Value, key: &str, member: Value) -> Value {
    value[key] = member;
    value
}

/// `details.code` of an error.
fn code(error: &Value) -> &str {
    error["details"]["code"].as_str().unwrap_or_default()
}
