//! Our own command line against the incumbent's gateway, where there is nothing but loopback.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::{TOKEN, free_port, write_config};
use crate::parts::Release;
use crate::program::{Output, run};

/// The incumbent takes its time to start, most of all on a busy machine.
const WITHIN: Duration = Duration::from_secs(180);

/// What our commands printed.
struct Session {
    folder: tempfile::TempDir,
}

impl Session {
    fn code(&self, name: &str) -> String {
        self.read(&format!("{name}.code"))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn text(&self, name: &str) -> String {
        assert_eq!(
            self.code(name),
            "0\n",
            "{name}: {}{}",
            self.read(&format!("{name}.out")),
            self.read(&format!("{name}.err"))
        );
        self.read(&format!("{name}.out"))
    }

    fn json(&self, name: &str) -> Value {
        let text = self.text(name);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"))
    }

    fn failure(&self, name: &str) -> Value {
        assert_eq!(self.code(name), "1\n", "{name}");
        serde_json::from_str(&self.read(&format!("{name}.out"))).unwrap()
    }
}

fn play(release: Release) -> Session {
    let home = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    write_config(home.path(), port, &serde_json::Value::Null);
    let gateway = release.command(home.path());
    let mut command = Command::new("unshare");
    command.args(["--net", "--map-root-user", "bash"]).arg(script());
    command.arg(env!("CARGO_BIN_EXE_clawgate")).arg(folder.path()).arg(port.to_string()).arg(TOKEN);
    command.arg(gateway.get_program()).args(gateway.get_args()).args(["gateway", "run"]);
    command.env_clear().envs(gateway.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // Where `ip` is.
    let path = gateway.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value).unwrap_or_default();
    command.env("PATH", format!("{}:/usr/sbin:/sbin", path.to_string_lossy())).current_dir(home.path());
    let Output { code, .. } = run(command, WITHIN);
    assert_eq!(code, Some(0), "the session ran to its end");
    Session { folder }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/incumbent.sh")
}

/// Namespaces of their own are not had everywhere.
fn can_be_alone() -> bool {
    let alone = Command::new("unshare").args(["--net", "--map-root-user", "ip", "link", "set", "lo", "up"]).output();
    let can = alone.is_ok_and(|output| output.status.success());
    if !can {
        let why = "network namespaces cannot be made here (unshare --net, ip)";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{why}");
        println!("SKIPPED: {why}");
    }
    can
}

pub(crate) fn our_cli_speaks_to_the_incumbents_gateway(release: Release, version: &str) {
    if !can_be_alone() {
        return;
    }
    let session = play(release);
    assert!(session.text("health").starts_with("OK ("));
    assert_eq!(session.json("health-json")["ok"], true);
    let status = session.text("status-deep");
    for part in ["Gateway", "token from gateway.auth.token", "Nodes", "0 known, 0 connected"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let status = session.json("status-json");
    assert_eq!((&status["gateway"]["reachable"], &status["gateway"]["version"]), (&json!(true), &json!(version)));
    let probe = session.json("probe");
    assert_eq!(
        (&probe["ok"], &probe["degraded"], &probe["targets"][0]["connect"]["rpcOk"]),
        (&json!(true), &json!(false), &json!(true))
    );
    assert!(session.text("gateway-status").contains("ok in"));
    assert_eq!(session.json("call")["ok"], true);
    assert_eq!(session.json("nodes-status")["nodes"], json!([]));
    assert_eq!(session.json("nodes-list"), json!({"pending": [], "paired": []}));
    assert_eq!(session.json("nodes-pending"), json!([]));
    assert_eq!(session.json("devices-list")["paired"], json!([]));
    assert!(session.json("presence").as_array().is_some_and(|rows| rows.iter().any(|row| row["mode"] == "gateway")));
    for line in session.text("logs").lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert_eq!(session.json("discover")["count"], 1, "it is found without credentials");

    assert_eq!(session.failure("wrong-token")["error"]["details"]["code"], "AUTH_TOKEN_MISMATCH");
    let unknown = session.failure("no-method");
    assert!(unknown["error"]["message"].as_str().unwrap().contains("unknown method"), "{unknown}");
    assert!(session.failure("no-node")["error"]["message"].as_str().unwrap().contains("nobody"));

    // Our node host there.
    session.text("node-approve");
    let found = session.json("node-which");
    assert!(found["payload"]["bins"]["sh"].as_str().unwrap().ends_with("/sh"), "{found}");
    // Whatever the gateway thinks of it, this machine asks for a person's approval.
    let run = session.read("node-run.out") + &session.read("node-run.err");
    assert!(run.contains("SYSTEM_RUN_DENIED: approval required"), "{run}");
    let prepared = session.json("node-prepare");
    assert!(prepared["payload"]["plan"]["argv"][0].as_str().unwrap().ends_with("/uname"), "{prepared}");
    let log = session.read("node.log");
    assert!(log.contains("connected to ws://127.0.0.1") && log.contains("denied  uname"), "{log}");
    assert_eq!(session.code("node"), "0\n", "it ends clean: {log}");
}
