//! A node: offers a command, and does what operators ask of it, through restarts of the gateway.
//!
//! ```console
//! $ OPENCLAW_GATEWAY_TOKEN=... cargo run --example node
//! $ clawgate nodes pending --json && clawgate nodes approve <requestId>
//! $ clawgate nodes invoke --node example --command system.which --params '{"bins":["sh"]}'
//! ```
//!
//! `OPENCLAW_GATEWAY_URL` names another gateway than `ws://127.0.0.1:18789`; the node's key is kept in
//! `OPENCLAW_STATE_DIR`, without which it is a new node each time.

#![allow(clippy::print_stdout, reason = "an example says what it does")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clawgate::client::node::{InvokeRequest, NodeError};
use clawgate::client::{Auth, ConnectOptions, Connection, GatewayUrl, Identity, Link, Update};
use clawgate::secret::Secret;
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("OPENCLAW_GATEWAY_URL").unwrap_or_else(|_| "ws://127.0.0.1:18789".into());
    let identity = match std::env::var_os("OPENCLAW_STATE_DIR") {
        Some(folder) => Identity::load_or_create(Path::new(&folder))?,
        None => Identity::ephemeral(),
    };
    let commands = vec!["system.which".to_owned()];
    let mut options = ConnectOptions::node(GatewayUrl::parse(&url)?, Arc::new(identity), commands);
    options.auth = Auth { token: std::env::var("OPENCLAW_GATEWAY_TOKEN").ok().map(Secret::new), ..Auth::default() };
    options.program.display_name = Some("example".into());

    let mut link = Link::new(options);
    while let Some(update) = link.next().await {
        match update {
            Update::Up(connection) => println!("connected as {}", connection.hello().conn_id),
            Update::Event(event) => {
                if let (Some(request), Some(connection)) = (InvokeRequest::from_event(&event), link.connection()) {
                    answer(connection, &request).await;
                }
            }
            Update::Down(why) => println!("{why}"),
            Update::Failed { error, again_in } => println!("{error}; again in {} ms", again_in.as_millis()),
        }
    }
    match link.given_up() {
        Some(error) => Err(format!("{error}\n{}", error.advice().unwrap_or_default()).into()),
        None => Ok(()),
    }
}

/// Does one command. What fails to be answered is told by the gateway, in time.
async fn answer(connection: &Connection, request: &InvokeRequest) {
    println!("asked for {}", request.command);
    let result = match request.command.as_str() {
        "system.which" => Ok(which(request.params_json.as_deref())),
        other => Err(NodeError { code: "INVALID_REQUEST".into(), message: format!("there is no {other} here") }),
    };
    let sent = connection.respond(request, result.as_deref(), Duration::from_secs(10)).await;
    if let Err(error) = sent {
        println!("{error}");
    }
}

/// `{"bins":["sh"]}` to `{"bins":{"sh":"/bin/sh"}}`.
fn which(params: Option<&str>) -> String {
    let params: Value = params.and_then(|params| serde_json::from_str(params).ok()).unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |name: &str| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    let names = params["bins"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let found: serde_json::Map<_, _> = names
        .filter(|name| !name.contains('/'))
        .filter_map(|name| Some((name.to_owned(), json!(find(name)?.display().to_string()))))
        .collect();
    json!({ "bins": found }).to_string()
}
