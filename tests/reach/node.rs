//! This machine as a node: `clawgate node run` against a gateway, from the first approval to the end.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::TOKEN;
use crate::support::account::Account;
use crate::support::gateway::{Gateway, Lines, Setup};
use crate::tunnel::eventually;

/// `clawgate node run`, with a home and so a key of its own. Dropped, it is killed.
struct Host {
    child: Child,
    said: Lines,
    account: Account,
}

impl Host {
    fn start(account: Account, args: &[&str]) -> Self {
        let mut command = account.command(&["node", "run", "--display-name", "shed"]);
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = Lines::of(child.stdout.take().unwrap());
        Self { child, said, account }
    }

    fn says(&self, text: &str) {
        assert!(self.said.wait_for(|line| line.contains(text)).is_some(), "never {text:?}: {}", self.said.text());
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn approve(operator: &Account) {
    let request = eventually("the node asks for approval", || {
        let pending = operator.json(&["nodes", "pending", "--json"]);
        Some(pending.get(0)?["requestId"].as_str()?.to_owned())
    });
    operator.ok(&["nodes", "approve", &request]);
}

fn node_id(operator: &Account) -> String {
    operator.json(&["nodes", "status", "--json"])["nodes"][0]["nodeId"].as_str().unwrap().to_owned()
}

/// `node.invoke` as it is on the wire: what it gave, or why it did not.
fn invoke(operator: &Account, node: &str, command: &str, params: &Value) -> Result<Value, String> {
    let asked = json!({"nodeId": node, "command": command, "params": params, "idempotencyKey": params.to_string()});
    let ran = operator.run(&["gateway", "call", "node.invoke", "--params", &asked.to_string(), "--json"]);
    let answer: Value =
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}{}", ran.out, ran.err));
    if ran.code == 0 { Ok(answer["payload"].clone()) } else { Err(answer["error"]["message"].to_string()) }
}

#[test]
fn a_node_waits_for_approval_runs_what_its_own_policy_allows_and_ends_clean() {
    let setup = Setup::new();
    let gateway = setup.clone().start();
    let operator = Account::of(&gateway);
    let mut host = Host::start(Account::of(&gateway), &["--port", &gateway.port.to_string()]);
    host.says("approval on the gateway");
    approve(&operator);
    host.says("approved");
    let node = node_id(&operator);

    let run = |params: Value| invoke(&operator, &node, "system.run", &params);
    let found = invoke(&operator, &node, "system.which", &json!({"bins": ["sh", "no-such"]})).unwrap();
    assert!(found["bins"]["sh"].as_str().unwrap().ends_with("/sh") && found["bins"]["no-such"].is_null(), "{found}");
    // Whatever an operator is allowed on the gateway: this machine decides.
    assert!(run(json!({"command": ["uname"]})).unwrap_err().contains("SYSTEM_RUN_DENIED: approval required"));
    host.says("denied  uname");
    std::fs::write(
        host.account.state_dir().join("exec-approvals.json"),
        r#"{"version":1,"agents":{"*":{"allowlist":[{"pattern":"env"},{"pattern":"sh"},{"pattern":"/**/uname"}]}}}"#,
    )
    .unwrap();
    let ran = run(json!({"command": ["uname"]})).unwrap();
    assert_eq!((&ran["stdout"], &ran["exitCode"], &ran["success"]), (&json!("Linux\n"), &json!(0), &json!(true)));
    for program in ["sh", "env", "id"] {
        assert!(run(json!({"command": [program]})).unwrap_err().contains("approval required"), "{program}");
    }
    assert!(run(json!({"command": ["uname"], "env": {"LD_PRELOAD": "x"}})).unwrap_err().contains("LD_PRELOAD"));
    let prepared = invoke(&operator, &node, "system.run.prepare", &json!({"command": ["uname", "-a"]})).unwrap();
    assert!(prepared["plan"]["argv"][0].as_str().unwrap().ends_with("/uname"), "{prepared}");

    // What the gateway gave it is enough from now on, and it comes back by itself.
    eventually("it says how busy it is", || {
        let described = operator.json(&["nodes", "describe", "--node", &node, "--json"]);
        described.to_string().contains("memoryTotalBytes").then_some(())
    });
    let port = gateway.port;
    drop(gateway);
    host.says("trying again");
    let gateway = setup.port(port).start();
    eventually("the node comes back", || {
        let status = operator.run(&["nodes", "status", "--json"]);
        let status: Value = serde_json::from_str(&status.out).ok()?;
        (status["nodes"][0]["connected"] == true).then_some(())
    });
    assert_eq!(run(json!({"command": ["uname"]})).unwrap()["stdout"], "Linux\n");

    kill_process(host.pid(), Signal::TERM).unwrap();
    assert!(host.child.wait().unwrap().success(), "{}", host.said.text());
    host.says("stopped");
    drop(gateway);
}

#[cfg(target_os = "linux")]
#[test]
fn a_command_is_bounded_followed_and_gone_with_whoever_asked_for_it() {
    let gateway = Gateway::start();
    let operator = Account::of(&gateway);
    let host = Host::start(Account::of(&gateway), &["--port", &gateway.port.to_string(), "--exec", "full"]);
    host.says("whatever the gateway asks for");
    approve(&operator);
    host.says("approved");
    let node = node_id(&operator);

    let slow = json!({"command": ["sh", "-c", "echo begun; sleep 60"], "timeoutMs": 400});
    let slow = invoke(&operator, &node, "system.run", &slow).unwrap();
    assert_eq!(
        (&slow["timedOut"], &slow["success"], &slow["stdout"]),
        (&json!(true), &json!(false), &json!("begun\n"))
    );
    let secrets = json!({"command": ["env"]});
    let secrets = invoke(&operator, &node, "system.run", &secrets).unwrap()["stdout"].to_string();
    assert!(secrets.contains("HOME=") && !secrets.contains(TOKEN) && !secrets.contains("OPENCLAW"), "{secrets}");

    // A caller follows the output, and goes: so does the command, with all that it started.
    let mut follower = gateway.operator();
    let command = json!(["sh", "-c", "sleep 60 & echo pid $!; wait"]);
    let asked = json!({"nodeId": node, "command": "system.run", "params": {"command": command}, "progress": true,
        "idempotencyKey": "followed"});
    follower.send("node.invoke", &asked);
    let piece = follower.event("node.invoke.progress");
    let chunk = piece["chunk"].as_str().unwrap().to_owned();
    let pid = chunk.trim().strip_prefix("pid ").unwrap().to_owned();
    assert!(is_alive(&pid), "{chunk}");
    drop(follower);
    eventually("the command is gone", || (!is_alive(&pid)).then_some(()));

    // And when the node's program is killed.
    let begun = json!({"command": ["sh", "-c", "echo $$ > \"$HOME/pid\"; exec sleep 60"]});
    let (asker, file) = (operator, host.account.home.path().join("pid"));
    let asking = std::thread::spawn(move || invoke(&asker, &node, "system.run", &begun));
    let pid = eventually("the command runs", || std::fs::read_to_string(&file).ok().filter(|pid| pid.ends_with('\n')));
    kill_process(host.pid(), Signal::KILL).unwrap();
    eventually("the command is gone", || (!is_alive(pid.trim())).then_some(()));
    assert!(asking.join().unwrap().is_err());
}

#[cfg(target_os = "linux")]
fn is_alive(pid: &str) -> bool {
    // A dead child of a dead parent waits for init, which a container may not have.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_node_says_what_keeps_it_out() {
    let gateway = Gateway::start();
    let port = gateway.port.to_string();
    let person = Account::new();
    let run = |args: &[&str]| {
        let ran = person.run(&[&["node", "run"], args].concat());
        (ran.code, ran.err)
    };
    let (code, said) = run(&["--url", "ws://127.0.0.1:1"]);
    assert!(code == 1 && said.contains("--url needs explicit credentials"), "{said}");
    let (code, said) = run(&["--host", "192.168.1.2"]);
    assert!(code == 1 && said.contains("OPENCLAW_GATEWAY_TOKEN"), "{said}");
    let (code, said) = run(&["--host", "gw.example.com", "--token", "t"]);
    assert!(code == 1 && said.contains("wss://"), "{said}");
    let (code, said) = run(&["--port", &port, "--token", "wrong"]);
    assert!(code == 78 && said.contains("token mismatch"), "{code}: {said}");
    let (code, said) = run(&["--commands", "camera.snap"]);
    assert!(code == 2 && said.contains("camera.snap"), "{said}");

    assert!(person.json(&["node", "identity", "--json"])["deviceId"].as_str().unwrap().len() == 64);
    assert!(Account::new().fails(&["node", "identity"]).contains("clawgate node run"));
}

#[test]
fn a_node_whose_token_was_taken_asks_to_be_approved_again() {
    let gateway = Gateway::start();
    let operator = Account::of(&gateway);
    let config = json!({"gateway": {"port": gateway.port, "auth": {"mode": "token", "token": TOKEN}}});
    let start = |account| Host::start(account, &["--exec", "deny"]);
    let mut host = start(Account::new().config(&config));
    host.says("Offers   system.which system.execApprovals.get");
    host.says("connected to");
    let device = operator.json(&["devices", "list", "--json"])["paired"][0]["deviceId"].as_str().unwrap().to_owned();
    kill_process(host.pid(), Signal::INT).unwrap();
    assert!(host.child.wait().unwrap().success());
    operator.ok(&["devices", "revoke", "--device", &device, "--role", "node"]);

    let account = std::mem::replace(&mut host.account, Account::new());
    let host = start(account);
    host.says("trying the other credential");
    // The secret of all does not give back what was taken from this device: a person does.
    host.says("clawgate devices approve");
    let request = operator.json(&["devices", "list", "--json"])["pending"][0]["requestId"].as_str().unwrap().to_owned();
    operator.ok(&["devices", "approve", &request]);
    host.says("connected to");
}

#[test]
fn a_setup_code_pairs_a_node_without_the_secret_and_is_not_needed_again() {
    let gateway = Gateway::start();
    let operator = Account::of(&gateway);
    let url = format!("ws://127.0.0.1:{}", gateway.port);
    let made = operator.json(&["qr", "--node", "--url", &url, "--json"]);
    let code = format!("oc-pair://{}", made["setupCode"].as_str().unwrap());
    let host = Host::start(Account::new(), &["--pair", &code]);
    host.says("connected to");
    approve(&operator);
    host.says("approved");
    // The gateway of this machine is where the environment says.
    let account = Account::new().env("OPENCLAW_GATEWAY_PORT", gateway.port.to_string());
    let mut here = account.command(&["node", "run", "--host", "127.0.0.1", "--json"]);
    let mut here = here.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let line = Lines::of(here.stdout.take().unwrap()).wait_for(|line| line.contains("\"url\""));
    here.kill().unwrap();
    here.wait().unwrap();
    assert!(line.is_some_and(|line| line.contains(&format!("127.0.0.1:{}", gateway.port))));
    // The code is used up.
    let account = Account::new();
    let other = account.run(&["node", "run", "--pair", &code]);
    assert!(other.code == 78 && !other.out.contains("connected to"), "{}{}", other.out, other.err);
    assert_eq!(account.run(&["node", "run", "--pair", "oc-pair://x"]).code, 2);
    assert!(account.fails(&["node", "install", "--pair", &code]).contains("serves once"));
}
