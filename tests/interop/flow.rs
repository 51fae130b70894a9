//! The flow with the real programs: their CLI and terminal UI talk with the agent, their node host runs what it asks for.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Cli;
use crate::gateway::Gateway;
use crate::node_host::NodeHost;
use crate::parts::{self, Release};
use crate::pending_request;
use crate::program::eventually;
use crate::standin::{BOT_TOKEN, BotApi, Model, Wire};

const SOON: Duration = Duration::from_secs(60);

fn settings(model: &Model, bot: &BotApi) -> Value {
    json!({
        "models": {"providers": {"local": model.provider()}},
        "agents": {"defaults": {"model": {"primary": "local/stand-in"}}},
        "channels": {"telegram": {"botToken": BOT_TOKEN, "apiRoot": bot.root(), "dmPolicy": "open", "allowFrom": ["*"]}},
    })
}

pub(crate) fn a_telegram_message_is_answered_with_what_a_real_node_says(release: Release) {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = Gateway::start_with(&settings(&model, &bot));
    let cli = Cli::of(release, &gateway);
    let _node = NodeHost::start(release, &gateway, "build box");
    let request = pending_request(&cli, "build box");
    cli.succeeds(["nodes", "approve", &request]);
    bot.write(42, "where is uname on the build box?");
    let sent = bot.wait_for(1, SOON);
    assert!(sent[0].text.starts_with("uname is at /") && sent[0].text.contains("/uname there."), "{}", sent[0].text);
    println!("Telegram: {}", sent[0].text);

    let history = json!({"sessionKey": "main"}).to_string();
    let history = cli.json(["gateway", "call", "chat.history", "--params", &history, "--json"]);
    let roles: Vec<_> = history["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["user", "assistant", "toolResult", "assistant"], "{history}");
    println!("{history:#}");
    // The same once more, now that everything is warm: the whole time, the node's included.
    let started = Instant::now();
    bot.write(42, "and once more?");
    let sent = bot.wait_for(2, SOON);
    println!("answered in {:.0} ms, the node's own time included", (sent[1].at - started).as_secs_f64() * 1e3);
}

/// The real node host, and the real command line of the person who is asked.
#[test]
fn a_real_node_runs_a_program_once_a_person_says_so() {
    parts::with(|| {
        let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
        let gateway = Gateway::start_with(&settings(&model, &bot));
        let cli = Cli::of(parts::CURRENT, &gateway);
        let _node = NodeHost::start(parts::CURRENT, &gateway, "build box");
        cli.succeeds(["nodes", "approve", &pending_request(&cli, "build box")]);
        let decide = |decision: &str| {
            let id = eventually("somebody is asked", SOON, || {
                let pending = cli.json(["approvals", "pending", "--json"]);
                Some(pending["approvals"][0]["id"].as_str()?.to_owned())
            });
            cli.succeeds(["approvals", "resolve", &id, decision]).says("resolved");
        };
        bot.write(42, "run uname -s");
        decide("deny");
        assert!(bot.wait_for(1, SOON)[0].text.contains("a person said no"), "{}", bot.sent()[0].text);
        bot.write(42, "run uname -s");
        decide("allow-always");
        assert!(bot.wait_for(2, SOON)[1].text.contains("Linux"), "{}", bot.sent()[1].text);
        bot.write(42, "run uname -s");
        assert!(bot.wait_for(3, SOON)[2].text.contains("Linux"), "nobody is asked again: {}", bot.sent()[2].text);
        cli.succeeds(["approvals", "grants", "list"]).says("uname -s");
    });
}

pub(crate) fn the_cli_talks_with_the_agent_and_sees_the_channel(release: Release) {
    let (model, bot) = (Model::start(Wire::Anthropic), BotApi::start());
    let gateway = Gateway::start_with(&settings(&model, &bot));
    let cli = Cli::of(release, &gateway);
    cli.succeeds(["agent", "--agent", "main", "--message", "echo the answer is 42"]).says("the answer is 42");
    let answer = cli.json(["agent", "--agent", "main", "--message", "echo again", "--json"]);
    assert_eq!(
        (&answer["status"], &answer["result"]["payloads"][0]["text"]),
        (&json!("ok"), &json!("again")),
        "{answer}"
    );
    let list = cli.json(["gateway", "call", "sessions.list", "--json"]);
    assert_eq!(list["sessions"][0]["lastMessagePreview"], "again", "{list}");
    cli.succeeds(["channels", "status"]).says("Gateway reachable").says("Telegram default").says("running");
    // The incumbent's `sessions` reads a file of its own on this machine, whatever the gateway: it must not fail.
    cli.succeeds(["sessions"]);
}

/// A terminal of tmux with its own server, closed when dropped.
struct Terminal(String);

impl Terminal {
    fn tmux(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("tmux").args(["-L", &self.0]).args(arguments).output().unwrap()
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    fn shows(&self, words: &str) {
        let started = Instant::now();
        while !self.screen().contains(words) {
            assert!(started.elapsed() < SOON, "the terminal does not show {words:?}:\n{}", self.screen());
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

pub(crate) fn the_terminal_ui_holds_a_conversation(release: Release) {
    if Command::new("tmux").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "tmux is not installed");
        println!("SKIPPED: tmux is not installed");
        return;
    }
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = Gateway::start_with(&settings(&model, &bot));
    let cli = Cli::of(release, &gateway);
    let terminal = Terminal(format!("interop-{}-{}", std::process::id(), gateway.port()));
    let line = parts::shell_line(&cli.command(["tui"]));
    terminal.tmux(&["new-session", "-d", "-x", "120", "-y", "40", &line]);
    terminal.shows("connected");
    thread::sleep(Duration::from_secs(1));
    terminal.tmux(&["send-keys", "-l", "echo a word from the model"]);
    terminal.shows("echo a word from the model");
    // What comes in one burst is pasted text to it, and an Enter in that a new line: people are slower.
    thread::sleep(Duration::from_millis(500));
    terminal.tmux(&["send-keys", "Enter"]);
    eventually("the model is asked", SOON, || (model.asked() > 0).then_some(()));
    // Once as it was typed, with `echo`, and once as the answer.
    let answered = || terminal.screen().lines().any(|line| line.trim() == "a word from the model");
    eventually("the answer is on the screen", SOON, || answered().then_some(()));
    println!("{}", terminal.screen());
}
