//! An operator: connects, asks how the gateway is, and prints what the gateway tells, through restarts of it.
//!
//! ```console
//! $ OPENCLAW_GATEWAY_TOKEN=... cargo run --example operator
//! ```
//!
//! `OPENCLAW_GATEWAY_URL` names another gateway than `ws://127.0.0.1:18789`. With `--once` it ends after the first answer.

#![allow(clippy::print_stdout, reason = "an example says what it does")]

use std::time::Duration;

use clawgate::client::{Auth, ConnectOptions, GatewayUrl, Link, Program, Update};
use clawgate::rpc::scope::{Scope, ScopeSet};
use clawgate::secret::Secret;
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("OPENCLAW_GATEWAY_URL").unwrap_or_else(|_| "ws://127.0.0.1:18789".into());
    let once = std::env::args().any(|argument| argument == "--once");

    // On the gateway's own host its shared secret is enough; from elsewhere an `identity` is wanted, too.
    let mut options = ConnectOptions::operator(GatewayUrl::parse(&url)?, ScopeSet::EMPTY.with(Scope::Read));
    options.auth = Auth { token: std::env::var("OPENCLAW_GATEWAY_TOKEN").ok().map(Secret::new), ..Auth::default() };
    options.program = Program { display_name: Some("example".into()), ..Program::new("gateway-client", "backend") };

    let mut link = Link::new(options);
    while let Some(update) = link.next().await {
        match update {
            Update::Up(connection) => {
                let hello = connection.hello();
                println!("connected to version {} in {} ms", hello.server_version, hello.took.as_millis());
                let health: Value = connection.call_as("health", &(), Duration::from_secs(10)).await?;
                println!("health: ok is {}", health["ok"]);
                if once {
                    link.close().await;
                }
            }
            Update::Event(event) if &*event.name == "presence" => println!("presence: {}", event.payload),
            Update::Event(event) => println!("{}", event.name),
            Update::Down(why) => println!("{why}"),
            Update::Failed { error, again_in } => println!("{error}; again in {} ms", again_in.as_millis()),
        }
    }
    match link.given_up() {
        Some(error) => Err(format!("{error}\n{}", error.advice().unwrap_or_default()).into()),
        None => Ok(()),
    }
}
