//! The official Control UI, in a real browser: its files from the npm package, served by the gateway.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::{Gateway, TOKEN};
use crate::parts;
use crate::program::run;
use crate::standin::{Model, Wire};

/// Debian's browser.
const BROWSER: &str = "/usr/bin/chromium";

#[test]
fn the_control_ui_connects_lists_sessions_and_chats() {
    parts::with(|| {
        if Path::new(BROWSER).exists() {
            return open_and_chat();
        }
        let why = format!("there is no {BROWSER}; install Debian's package chromium");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{why}");
        println!("SKIPPED: {why}");
    });
}

fn open_and_chat() {
    let model = Model::start(Wire::OpenAi);
    let settings = json!({
        "models": {"providers": {"local": model.provider()}},
        "agents": {"defaults": {"model": {"primary": "local/stand-in"}}},
    });
    let files = parts::node_modules().join("openclaw/dist/control-ui");
    let gateway = Gateway::start_with_ui(&files, "/ui", &settings);
    gateway.says("agent", &["--session-key", "other", "--message", "echo hello to the list"]);

    let profile = tempfile::tempdir().unwrap();
    let mut browser = parts::node(profile.path());
    let url = format!("http://127.0.0.1:{}/ui/#token={TOKEN}", gateway.port());
    browser.arg(parts::scripts().join("control_ui.mjs")).args([
        &url,
        &profile.path().join("chromium").display().to_string(),
        "shout good morning",
    ]);
    let output = run(browser, Duration::from_secs(90));
    assert_eq!(output.code, Some(0));
    let saw: Value = serde_json::from_str(output.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(saw["mine"], 1, "its own message stands there once");
    assert_eq!(saw["refused"], json!([]), "every file and page that it asks for is there");
    let complaints = saw["complaints"].as_array().unwrap();
    assert!(complaints.is_empty(), "{complaints:?}");
}
