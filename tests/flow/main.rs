//! The flow over real sockets: somebody writes, the agent asks a model, a node runs a command, the answer goes back.
//!
//! The gateway is a child process; the Bot API and the models are stand-ins, the node speaks the wire with the tests'
//! own client. `tests/interop` plays the same with the real node host.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and shows what it measured")]

#[path = "../standin/mod.rs"]
mod standin;
#[path = "../support/mod.rs"]
mod support;

mod api;
mod approvals;
mod chat;
mod crash;
mod list;
mod node;
mod pictures;
mod profiles;
mod reload;
mod telegram;
mod webhook;

use serde_json::{Value, json};
use standin::{BOT_TOKEN, BotApi, Model};
use support::gateway::Setup;

/// A configuration with a model, and a bot where there is one.
fn config(model: &Model, bot: Option<&BotApi>, telegram: &Value) -> Value {
    let mut config = json!({
        "models": {"providers": {"local": model.provider()}},
        "agents": {"defaults": {"model": {"primary": "local/stand-in"}}},
    });
    if let Some(bot) = bot {
        let mut settings = json!({"botToken": BOT_TOKEN, "apiRoot": bot.root()});
        for (key, value) in telegram.as_object().unwrap() {
            settings[key.as_str()] = value.clone();
        }
        config["channels"] = json!({"telegram": settings});
    }
    config
}

/// A gateway with a model, a bot, and everybody let in.
fn open_setup(model: &Model, bot: &BotApi) -> Setup {
    Setup::new().config(&config(model, Some(bot), &json!({"dmPolicy": "open", "allowFrom": ["*"]})))
}
