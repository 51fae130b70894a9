//! The examples of the library, as a reader runs them, against a gateway that goes and comes back.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::TOKEN;
use crate::support::account::Account;
use crate::support::gateway::{Gateway, Lines, Setup};
use crate::tunnel::eventually;

/// An example that runs. Dropped, it is killed.
struct Example {
    child: Child,
    said: Lines,
}

impl Example {
    /// `None` when it was not built: `cargo test --test reach` alone builds no examples, `cargo test` does.
    fn start(name: &str, port: u16, args: &[&str]) -> Option<Self> {
        let tests = std::env::current_exe().unwrap();
        let program: PathBuf = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
        if !program.exists() {
            assert!(std::env::var_os("CI").is_none(), "{} is missing", program.display());
            println!("SKIPPED: there is no {}; build it: cargo build --examples", program.display());
            return None;
        }
        let mut child = Command::new(&program)
            .args(args)
            .env("OPENCLAW_GATEWAY_URL", format!("ws://127.0.0.1:{port}"))
            .env("OPENCLAW_GATEWAY_TOKEN", TOKEN)
            .env_remove("OPENCLAW_STATE_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Lines::of(child.stdout.take().unwrap());
        Some(Self { child, said })
    }

    fn says(&self, text: &str) {
        assert!(self.said.wait_for(|line| line.contains(text)).is_some(), "never {text:?}: {}", self.said.text());
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_operator_of_the_examples_asks_and_ends() {
    let gateway = Gateway::start();
    let Some(mut operator) = Example::start("operator", gateway.port, &["--once"]) else { return };
    operator.says("health: ok is true");
    assert!(operator.child.wait().unwrap().success());
}

#[test]
fn the_node_of_the_examples_serves_and_comes_back_after_a_restart() {
    let setup = Setup::new();
    let gateway = setup.clone().start();
    let port = gateway.port;
    let Some(node) = Example::start("node", port, &[]) else { return };
    node.says("connected as");
    let account = Account::of(&gateway);
    let request = eventually("the node asks for approval", || {
        let pending = account.json(&["nodes", "pending", "--json"]);
        Some(pending.get(0)?["requestId"].as_str()?.to_owned())
    });
    account.ok(&["nodes", "approve", &request]);
    let invoke =
        ["nodes", "invoke", "--node", "example", "--command", "system.which", "--params", r#"{"bins":["sh"]}"#];
    let answer = account.json(&invoke);
    assert!(answer["payload"]["bins"]["sh"].as_str().unwrap().ends_with("/sh"), "{answer}");
    drop(gateway);
    node.says("again in");
    let _gateway = setup.port(port).start();
    let connected = || account.json(&["nodes", "status", "--json"])["nodes"][0]["connected"] == json!(true);
    eventually("the node is back", || connected().then_some(()));
    assert!(account.json(&invoke)["payload"]["bins"]["sh"].is_string());
}
