//! Standing grants: a command that a person has allowed for good runs unasked, that very command and nothing like it.

use serde_json::{Value, json};

use crate::config;
use crate::node::Which;
use crate::standin::{Model, Wire};
use crate::support::account::Account;
use crate::support::client::{Client, operator_with};
use crate::support::gateway::Setup;

/// Has the agent run something, and gives what the run said at its end.
fn run(client: &mut Client, command: &str, key: &str) -> Value {
    let params = json!({"sessionKey": "main", "message": format!("run {command}"), "idempotencyKey": key});
    client.call("chat.send", &params).unwrap();
    client.call("agent.wait", &json!({"runId": key, "timeoutMs": 20_000})).unwrap()
}

#[test]
fn allowed_always_is_that_command_until_it_is_revoked_also_after_a_restart() {
    let model = Model::start(Wire::OpenAi);
    let gateway = Setup::new().config(&config(&model, None, &json!({}))).start();
    let node = Which::start(&gateway);
    let ran = || node.carried().into_iter().filter(|carried| carried.command == "system.run").count();
    let mut client = gateway.operator();
    let params = json!({"sessionKey": "main", "message": "run make -j 2", "idempotencyKey": "k1"});
    client.call("chat.send", &params).unwrap();
    let asked = client.event("exec.approval.requested");
    let always = json!({"id": asked["id"], "decision": "allow-always"});
    client.call("exec.approval.resolve", &always).unwrap();
    assert_eq!(client.event("exec.approval.resolved")["decision"], "allow-always");
    assert_eq!(client.call("agent.wait", &json!({"runId": "k1", "timeoutMs": 20_000})).unwrap()["status"], "ok");
    assert_eq!(ran(), 1);

    let setup = gateway.setup();
    drop(gateway);
    let gateway = setup.start();
    node.moved(gateway.port);
    let mut client = gateway.operator();
    while client.call("node.list", &json!({})).unwrap()["nodes"][0]["connected"] != true {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(run(&mut client, "make -j 2", "k2")["status"], "ok");
    assert_eq!(ran(), 2, "nobody was asked");
    let grants = client.call("exec.approval.grants.list", &json!({})).unwrap();
    let grant = &grants["grants"][0];
    assert_eq!(
        (grant["command"].as_str(), grant["useCount"].as_u64(), &grant["expiresAtMs"]),
        (Some("make -j 2"), Some(1), &Value::Null)
    );
    // One more argument is another command.
    let params = json!({"sessionKey": "main", "message": "run make -j 2 install", "idempotencyKey": "k3"});
    client.call("chat.send", &params).unwrap();
    let asked = client.event("exec.approval.requested");
    assert_eq!(asked["request"]["command"], "make -j 2 install");
    client.call("exec.approval.resolve", &json!({"id": asked["id"], "decision": "deny"})).unwrap();

    let mut writer = gateway.client();
    writer.connect(&operator_with(&["operator.write"])).unwrap();
    let refused = writer.call("exec.approval.grants.list", &json!({})).unwrap_err();
    assert_eq!(refused["details"]["missingScope"], "operator.approvals");
    let revoke = json!({"grantId": grant["grantId"]});
    assert_eq!(client.call("exec.approval.grants.revoke", &revoke).unwrap()["outcome"], "revoked");
    client.call("agent.wait", &json!({"runId": "k3", "timeoutMs": 20_000})).unwrap();
    let params = json!({"sessionKey": "main", "message": "run make -j 2", "idempotencyKey": "k4"});
    client.call("chat.send", &params).unwrap();
    client.event("exec.approval.requested");
    assert_eq!(ran(), 2, "it is asked for again");
}

#[test]
fn a_model_runs_no_program_under_another_name() {
    let model = Model::start(Wire::OpenAi);
    let gateway = Setup::new().config(&config(&model, None, &json!({}))).start();
    let node = Which::start(&gateway);
    let mut client = gateway.operator();
    for (n, name) in ["system.run", " system.run", "System.Run", "system.run.prepare"].into_iter().enumerate() {
        let key = format!("k{n}");
        let params = json!({"sessionKey": "main", "message": format!("sneak {name}"), "idempotencyKey": key});
        client.call("chat.send", &params).unwrap();
        let end = client.call("agent.wait", &json!({"runId": key, "timeoutMs": 20_000})).unwrap();
        let said = end["result"]["payloads"][0]["text"].as_str().unwrap().to_owned();
        assert!(said.contains("a person is asked"), "{said}");
    }
    assert!(node.carried().is_empty(), "{:?}", node.carried());
}

#[test]
fn what_a_node_plans_to_run_is_what_is_shown_approved_and_run() {
    let model = Model::start(Wire::OpenAi);
    let gateway = Setup::new().config(&config(&model, None, &json!({}))).start();
    let node = Which::start_with(&gateway, &["system.run", "system.run.prepare"]);
    let mut client = gateway.operator();
    let params = json!({"sessionKey": "main", "message": "run make -j 2", "idempotencyKey": "k1"});
    client.call("chat.send", &params).unwrap();
    let asked = client.event("exec.approval.requested");
    assert_eq!(
        (&asked["request"]["command"], &asked["request"]["cwd"]),
        (&json!("/usr/bin/make -j 2"), &json!("/work"))
    );
    assert_eq!(asked["request"]["mutableFileOperand"]["path"], "/work/2");
    client.call("exec.approval.resolve", &json!({"id": asked["id"], "decision": "allow-always"})).unwrap();
    client.call("agent.wait", &json!({"runId": "k1", "timeoutMs": 20_000})).unwrap();
    // The same words, but the script is another by now.
    client
        .call("chat.send", &json!({"sessionKey": "main", "message": "run make -j 2", "idempotencyKey": "k2"}))
        .unwrap();
    let asked = client.event("exec.approval.requested");
    client.call("exec.approval.resolve", &json!({"id": asked["id"], "decision": "deny"})).unwrap();
    client.call("agent.wait", &json!({"runId": "k2", "timeoutMs": 20_000})).unwrap();
    let carried = node.carried();
    let run = carried.iter().find(|carried| carried.command == "system.run").unwrap();
    assert_eq!((&run.params["command"], &run.params["cwd"]), (&json!(["/usr/bin/make", "-j", "2"]), &json!("/work")));
    assert_eq!((&run.params["systemRunPlan"]["argv"], &run.params["approved"]), (&run.params["command"], &json!(true)));
}

/// `clawgate node run`; dropped, it is killed.
struct Host(std::process::Child);

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn our_own_node_host_runs_what_a_person_says_and_nothing_else() {
    let model = Model::start(Wire::OpenAi);
    let gateway = Setup::new().config(&config(&model, None, &json!({}))).start();
    let machine = Account::of(&gateway);
    let mut command = machine.command(&["node", "run", "--display-name", "box", "--port", &gateway.port.to_string()]);
    let mut client = gateway.operator();
    let _host = Host(command.stdout(std::process::Stdio::null()).spawn().unwrap());
    let pending = client.event("node.pair.requested");
    client.call("node.pair.approve", &json!({"requestId": pending["requestId"]})).unwrap();

    let asked = |client: &mut Client, command: &str, key: &str, decision: Option<&str>| {
        let params = json!({"sessionKey": "main", "message": format!("run {command}"), "idempotencyKey": key});
        client.call("chat.send", &params).unwrap();
        let shown = decision.map(|decision| {
            let asked = client.event("exec.approval.requested");
            let params = json!({"id": asked["id"], "kind": "exec", "decision": decision});
            let resolved = client.call("approval.resolve", &params).unwrap();
            assert_eq!(resolved["applied"], true, "{resolved}");
            asked["request"]["command"].as_str().unwrap().to_owned()
        });
        let end = client.call("agent.wait", &json!({"runId": key, "timeoutMs": 20_000})).unwrap();
        (shown, end["result"]["payloads"][0]["text"].as_str().unwrap().to_owned())
    };
    let (shown, said) = asked(&mut client, "uname -s", "k1", Some("deny"));
    assert!(shown.is_some_and(|shown| shown.ends_with("/uname -s")), "its whole path is shown");
    assert!(said.contains("a person said no"), "{said}");
    let (_, said) = asked(&mut client, "uname -s", "k2", Some("allow-always"));
    assert!(said.contains(r#""exitCode":0"#) || said.contains("exitCode&quot;:0"), "{said}");
    let (_, said) = asked(&mut client, "uname -s", "k3", None);
    assert!(said.contains("exitCode"), "allowed for good: {said}");
    let (_, said) = asked(&mut client, "uname -r", "k4", Some("deny"));
    assert!(said.contains("a person said no"), "another command is asked about: {said}");
}

#[test]
fn an_approval_is_shown_in_every_state_and_the_first_word_counts() {
    let gateway = Setup::new().start();
    let mut client = gateway.operator();
    let mut request = |id: &str, node: Value| {
        let params = json!({"id": id, "commandArgv": ["ls", "-l"], "nodeId": node, "twoPhase": true,
            "sessionKey": "agent:main:main", "timeoutMs": if id == "late" { 1 } else { 60_000 }});
        client.call("exec.approval.request", &params).unwrap();
    };
    request("one", json!("aa"));
    request("two", json!("aa"));
    request("late", Value::Null);
    let mut other = gateway.operator();
    let mut get = |id: &str| client.call("approval.get", &json!({"id": id})).unwrap()["approval"].clone();
    let pending = get("one");
    assert_eq!((&pending["status"], &pending["sourceSessionKey"]), (&json!("pending"), &json!("agent:main:main")));
    assert_eq!(pending["presentation"]["commandText"], "ls -l");
    assert_eq!(pending["presentation"]["allowedDecisions"], json!(["allow-once", "allow-always", "deny"]));
    // A millisecond is longer than some answers take.
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(get("late")["status"], "expired");
    assert_eq!(get("late")["presentation"]["allowedDecisions"], json!(["allow-once", "deny"]), "no node, no grant");
    let mut resolve = |id: &str, decision: &str| {
        other.call("approval.resolve", &json!({"id": id, "kind": "exec", "decision": decision}))
    };
    assert_eq!(resolve("one", "deny").unwrap()["approval"]["status"], "denied");
    let second = resolve("one", "allow-once").unwrap();
    assert_eq!((&second["applied"], &second["approval"]["decision"]), (&json!(false), &json!("deny")));
    let always = resolve("two", "allow-always").unwrap();
    assert_eq!((&always["applied"], &always["approval"]["status"]), (&json!(true), &json!("allowed")));
    let late = resolve("late", "allow-once").unwrap();
    assert_eq!((&late["applied"], &late["approval"]["status"]), (&json!(false), &json!("expired")));
    let unknown = resolve("none", "deny").unwrap_err();
    assert!(unknown["message"].as_str().unwrap().contains("approval not found"), "{unknown}");
}
