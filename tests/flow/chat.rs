//! Chat on the socket: what clients send, what they hear, and how a run ends.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config;
use crate::node::Which;
use crate::standin::{Model, Wire};
use crate::support::client::{Client, operator_with};
use crate::support::gateway::{Gateway, Setup};

fn gateway(model: &Model) -> Gateway {
    Setup::new().config(&config(model, None, &json!({}))).start()
}

fn send(client: &mut Client, text: &str, key: &str) -> Value {
    client.call("chat.send", &json!({"sessionKey": "main", "message": text, "idempotencyKey": key})).unwrap()
}

/// The `chat` events of a run up to its end.
fn heard(client: &mut Client, run: &str) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        let event = client.find(|frame| frame["event"] == "chat" && frame["payload"]["runId"] == run)["payload"].take();
        let state = event["state"].as_str().unwrap().to_owned();
        events.push(event);
        if state != "delta" {
            return events;
        }
    }
}

#[test]
fn two_clients_of_one_session_hear_the_same_in_the_same_order() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let (mut a, mut b) = (gateway.operator(), gateway.operator());
    b.call("sessions.messages.subscribe", &json!({"key": "main"})).unwrap();
    assert_eq!(send(&mut a, "echo one two three", "k1")["status"], "started");
    let (of_a, of_b) = (heard(&mut a, "k1"), heard(&mut b, "k1"));
    let end = of_a.last().unwrap();
    assert_eq!((end["state"].as_str(), end["stopReason"].as_str()), (Some("final"), Some("stop")));
    assert_eq!(end["message"]["content"][0]["text"], "one two three");
    let said: String = of_a.iter().filter_map(|event| event["deltaText"].as_str()).collect();
    assert_eq!(said, "one two three");
    assert_eq!(of_a.last(), of_b.last());
    let appended = b.event("session.message");
    assert_eq!((appended["message"]["role"].as_str(), appended["messageSeq"].as_u64()), (Some("user"), Some(1)));
}

#[test]
fn one_key_is_one_run_also_after_a_restart() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut client = gateway.operator();
    assert_eq!(send(&mut client, "echo hi", "k1")["status"], "started");
    heard(&mut client, "k1");
    assert_eq!(send(&mut client, "echo hi", "k1")["status"], "ok");
    let again = json!({"sessionKey": "other", "message": "echo hi", "idempotencyKey": "k1"});
    assert_eq!(client.call("chat.send", &again).unwrap_err()["code"], "INVALID_REQUEST");
    let setup = gateway.setup();
    drop(gateway);
    let gateway = setup.start();
    let mut client = gateway.operator();
    assert_eq!(send(&mut client, "echo hi", "k1")["status"], "ok");
    let ended = client.call("agent.wait", &json!({"runId": "k1"})).unwrap();
    assert_eq!((ended["status"].as_str(), ended["result"]["payloads"][0]["text"].as_str()), (Some("ok"), Some("hi")));
    assert_eq!(model.asked(), 1);
    let history = client.call("chat.history", &json!({"sessionKey": "main"})).unwrap();
    assert_eq!(history["messages"].as_array().unwrap().len(), 2);
}

#[test]
fn an_abort_is_immediate_and_the_next_run_begins() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut client = gateway.operator();
    send(&mut client, "slow", "k1");
    let delta = client.find(|frame| frame["event"] == "chat" && frame["payload"]["state"] == "delta");
    assert_eq!(delta["payload"]["deltaText"], "Well");
    assert_eq!(send(&mut client, "echo next", "k2")["status"], "started");
    let history = client.call("chat.history", &json!({"sessionKey": "main"})).unwrap();
    assert_eq!(history["inFlightRun"], json!({"runId": "k1", "text": "Well"}), "the second waits");
    let started = Instant::now();
    let aborted = client.call("chat.abort", &json!({"sessionKey": "main", "runId": "k1"})).unwrap();
    assert_eq!(aborted["runIds"], json!(["k1"]));
    let end = heard(&mut client, "k1").pop().unwrap();
    assert_eq!((end["state"].as_str(), end["stopReason"].as_str()), (Some("aborted"), Some("aborted")));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(heard(&mut client, "k2").last().unwrap()["state"], "final");
    let history = client.call("chat.history", &json!({"sessionKey": "main"})).unwrap();
    let said = |at: usize| history["messages"][at]["content"][0]["text"].as_str().unwrap().to_owned();
    assert_eq!([said(0), said(1), said(2), said(3)], ["slow", "Well", "echo next", "next"]);
}

#[test]
fn no_more_runs_go_on_than_may_and_one_that_waits_is_stopped_at_once() {
    let model = Model::start(Wire::OpenAi);
    let mut config = config(&model, None, &json!({}));
    config["agents"]["defaults"]["maxConcurrent"] = json!(1);
    let gateway = Setup::new().config(&config).start();
    let mut client = gateway.operator();
    let ask = |client: &mut Client, session: &str, message: &str, key: &str| {
        let params = json!({"sessionKey": session, "message": message, "idempotencyKey": key});
        client.call("chat.send", &params).unwrap();
    };
    let end = |client: &mut Client, key: &str, within: u64| {
        client.call("agent.wait", &json!({"runId": key, "timeoutMs": within})).unwrap()
    };
    ask(&mut client, "one", "slow", "k1");
    ask(&mut client, "two", "echo hi", "k2");
    ask(&mut client, "three", "echo ho", "k3");
    assert_eq!(end(&mut client, "k2", 300)["status"], "timeout");
    client.call("chat.abort", &json!({"sessionKey": "three", "runId": "k3"})).unwrap();
    assert_eq!(end(&mut client, "k3", 5000)["stopReason"], "aborted");
    assert_eq!(end(&mut client, "k2", 100)["status"], "timeout", "it still waits");
    assert_eq!(model.asked(), 1);
    client.call("chat.abort", &json!({"sessionKey": "one", "runId": "k1"})).unwrap();
    assert_eq!(end(&mut client, "k2", 20_000)["status"], "ok");
    assert_eq!(model.asked(), 2, "what was stopped asked nobody");
}

#[test]
fn agent_answers_twice_and_a_failure_has_its_reason() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut client = gateway.operator();
    let id = client.send("agent", &json!({"message": "echo hi", "idempotencyKey": "a1"}));
    assert_eq!(client.answer(&id).unwrap()["status"], "accepted");
    let end = client.answer(&id).unwrap();
    assert_eq!((end["status"].as_str(), end["result"]["payloads"][0]["text"].as_str()), (Some("ok"), Some("hi")));

    model.refuse(&[404]);
    let id = client.send("agent", &json!({"message": "echo hi", "idempotencyKey": "a2"}));
    assert_eq!(client.answer(&id).unwrap()["status"], "accepted");
    let error = client.answer(&id).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("answered 404: as planned"), "{error}");
    assert_eq!(error["details"]["stopReason"], "provider_error");
    // What passes is tried again.
    model.refuse(&[500]);
    let id = client.send("agent", &json!({"message": "echo hi", "idempotencyKey": "a3"}));
    client.answer(&id).unwrap();
    assert_eq!(client.answer(&id).unwrap()["status"], "ok");
}

#[test]
fn sessions_are_listed_searched_renamed_reset_and_deleted() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut client = gateway.operator();
    client.call("sessions.subscribe", &json!({})).unwrap();
    let created =
        json!({"key": "work", "label": "Work", "message": "echo the quick brown fox", "idempotencyKey": "s1"});
    let created = client.call("sessions.create", &created).unwrap();
    assert_eq!((created["key"].as_str(), created["runId"].as_str()), (Some("agent:main:work"), Some("s1")));
    heard(&mut client, "s1");
    assert_eq!(client.event("sessions.changed")["sessionKey"], "agent:main:work");
    let list = client.call("sessions.list", &json!({"limit": 10})).unwrap();
    assert_eq!((list["count"].as_u64(), list["sessions"][0]["label"].as_str()), (Some(1), Some("Work")));
    let default = json!({"modelProvider": "local", "model": "stand-in", "contextTokens": 32000});
    assert_eq!((&list["defaults"], &list["sessions"][0]["model"]), (&default, &json!("stand-in")));
    assert_eq!(client.call("sessions.list", &json!({"spawnedBy": "agent:main:main"})).unwrap()["count"], 0);
    let found = client.call("sessions.search", &json!({"query": "quick fox"})).unwrap();
    assert_eq!(found["results"][0]["sessionKey"], "agent:main:work");
    client.call("sessions.patch", &json!({"key": "work", "label": null, "thinkingLevel": "high"})).unwrap();
    let described = client.call("sessions.describe", &json!({"key": "work"})).unwrap();
    assert_eq!(
        (described["session"]["label"].as_str(), described["session"]["thinkingLevel"].as_str()),
        (None, Some("high"))
    );
    let preview = client.call("sessions.preview", &json!({"keys": ["work", "none"]})).unwrap();
    assert_eq!(
        (preview["previews"][0]["status"].as_str(), preview["previews"][1]["status"].as_str()),
        (Some("ok"), Some("missing"))
    );
    let long = json!({"key": "work", "label": "x".repeat(513)});
    assert_eq!(client.call("sessions.patch", &long).unwrap_err()["code"], "INVALID_REQUEST");
    assert_eq!(client.call("sessions.create", &long).unwrap_err()["code"], "INVALID_REQUEST");
    let resolve = |client: &mut Client, params: Value| client.call("sessions.resolve", &params);
    // As the address of a page names a session: by its key, or by the beginning of the identifier that its key ends in.
    let by_key = json!({"reference": {"key": "agent:main:work", "slug": "work"}, "allowMissing": true});
    assert_eq!(resolve(&mut client, by_key).unwrap()["key"], "agent:main:work");
    for end in ["1", "2"] {
        let key = format!("dashboard:0a1b2c3d-0000-4000-8000-00000000000{end}");
        client.call("sessions.create", &json!({"key": key})).unwrap();
    }
    let short = |id: &str| json!({"shortId": id, "allowMissing": true});
    assert_eq!(resolve(&mut client, short("0a1b2c3d")).unwrap()["candidates"].as_array().unwrap().len(), 2);
    let one = resolve(&mut client, short("0a1b2c3d000040008000000000000002")).unwrap();
    assert_eq!(one["key"], "agent:main:dashboard:0a1b2c3d-0000-4000-8000-000000000002");
    assert_eq!(resolve(&mut client, short("ffffffff")).unwrap(), json!({"ok": false}));
    assert!(resolve(&mut client, short("0a1b")).is_err());
    for end in ["1", "2"] {
        let key = format!("dashboard:0a1b2c3d-0000-4000-8000-00000000000{end}");
        client.call("sessions.delete", &json!({"key": key})).unwrap();
    }
    client.call("sessions.reset", &json!({"key": "work"})).unwrap();
    let history = client.call("chat.history", &json!({"sessionKey": "work"})).unwrap();
    assert_eq!(history["messages"], json!([]));
    assert_eq!(client.call("sessions.delete", &json!({"key": "work"})).unwrap()["deleted"], true);
    assert_eq!(client.call("sessions.list", &json!({})).unwrap()["count"], 0);
    assert!(client.call("sessions.delete", &json!({"key": "main"})).is_err());
}

#[test]
fn a_reader_reads_and_does_not_write() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut reader = gateway.client();
    reader.connect(&operator_with(&["operator.read"])).unwrap();
    reader.call("sessions.list", &json!({})).unwrap();
    let refused = reader.call("chat.send", &json!({"sessionKey": "main", "message": "hi", "idempotencyKey": "r"}));
    assert_eq!(refused.unwrap_err()["details"]["missingScope"], "operator.write");
    assert_eq!(model.asked(), 0);
    let mut writer = gateway.client();
    writer.connect(&operator_with(&["operator.write"])).unwrap();
    let reset = writer.call("chat.send", &json!({"sessionKey": "main", "message": "/new", "idempotencyKey": "w"}));
    assert_eq!(reset.unwrap_err()["details"]["missingScope"], "operator.admin", "no more than sessions.reset may");
}

#[test]
fn a_program_runs_once_a_person_has_said_so_and_not_otherwise() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let node = Which::start(&gateway);
    let mut client = gateway.operator();
    let ran = || node.carried().into_iter().filter(|carried| carried.command == "system.run").collect::<Vec<_>>();

    send(&mut client, "run make -j 2", "k1");
    let asked = client.event("exec.approval.requested");
    assert_eq!(asked["request"]["command"], "make -j 2");
    assert_eq!(asked["request"]["commandArgv"], json!(["make", "-j", "2"]));
    assert_eq!(client.call("exec.approval.list", &json!({})).unwrap()[0]["id"], asked["id"]);
    assert!(ran().is_empty(), "nothing runs before the decision");
    let once = json!({"id": asked["id"], "decision": "allow-once"});
    client.call("exec.approval.resolve", &once).unwrap();
    assert_eq!(client.event("exec.approval.resolved")["decision"], "allow-once");
    let end = heard(&mut client, "k1").pop().unwrap();
    assert!(end["message"].to_string().contains("it ran"), "{end}");
    let params = &ran()[0].params;
    assert_eq!((&params["command"], &params["approved"]), (&json!(["make", "-j", "2"]), &json!(true)));
    assert!(client.call("exec.approval.resolve", &once).is_err());

    send(&mut client, "run rm -rf /", "k2");
    let asked = client.event("exec.approval.requested");
    client.call("exec.approval.resolve", &json!({"id": asked["id"], "decision": "deny"})).unwrap();
    let end = heard(&mut client, "k2").pop().unwrap();
    assert!(end["message"].to_string().contains("a person said no"), "{end}");

    // A run that is stopped takes its request back.
    send(&mut client, "run sleep 9", "k3");
    let asked = client.event("exec.approval.requested");
    client.call("chat.abort", &json!({"sessionKey": "main"})).unwrap();
    heard(&mut client, "k3");
    let late = json!({"id": asked["id"], "decision": "allow-once"});
    assert!(client.call("exec.approval.resolve", &late).is_err());
    assert_eq!(ran().len(), 1);

    let reader = operator_with(&["operator.read", "operator.write"]);
    let mut reader_client = gateway.client();
    reader_client.connect(&reader).unwrap();
    let refused = reader_client.call("exec.approval.list", &json!({})).unwrap_err();
    assert_eq!(refused["details"]["missingScope"], "operator.approvals");
}

#[test]
fn a_history_is_paged_by_cursor_and_caught_up_with() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut client = gateway.operator();
    for n in 0..3 {
        let key = format!("k{n}");
        send(&mut client, &format!("echo {n}"), &key);
        heard(&mut client, &key);
    }
    let mut page = |params: Value| {
        let mut all = json!({"sessionKey": "main", "limit": 4});
        for (key, value) in params.as_object().unwrap() {
            all[key.as_str()] = value.clone();
        }
        client.call("chat.history", &all).unwrap()
    };
    let seqs = |page: &Value| {
        let messages = page["messages"].as_array().unwrap().iter();
        messages.map(|message| message["__openclaw"]["seq"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let last = page(json!({}));
    assert_eq!((seqs(&last), last["hasMore"].as_bool()), (vec![3, 4, 5, 6], Some(true)));
    let first = page(json!({"cursor": last["nextCursor"]}));
    assert_eq!(
        (seqs(&first), first["hasMore"].as_bool(), &first["nextCursor"]),
        (vec![1, 2], Some(false), &Value::Null)
    );
    let known = last["deltaCursor"].clone();
    assert_eq!(page(json!({"cursor": known}))["messages"], json!([]));
    for odd in ["", "after", "after:x:1", "before:x:1", "after:x:y"] {
        assert_eq!(page(json!({"cursor": odd})), json!({"kind": "reset"}), "{odd}");
    }
    send(&mut client, "echo more", "k9");
    heard(&mut client, "k9");
    let since = client.call("chat.history", &json!({"sessionKey": "main", "cursor": known})).unwrap();
    let told = since["messages"].as_array().unwrap();
    assert_eq!((since["kind"].as_str(), told.len(), told[1]["messageSeq"].as_u64()), (Some("delta"), 2, Some(8)));
    assert_eq!(told[1]["message"]["content"][0]["text"], "more");
    client.call("sessions.reset", &json!({"key": "main"})).unwrap();
    let since = client.call("chat.history", &json!({"sessionKey": "main", "cursor": since["deltaCursor"]})).unwrap();
    assert_eq!(since["kind"], "reset");
}

#[test]
fn what_was_said_to_a_run_that_never_began_stays_said() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut client = gateway.operator();
    send(&mut client, "slow", "k1");
    client.find(|frame| frame["event"] == "chat" && frame["payload"]["state"] == "delta");
    send(&mut client, "echo waits", "k2");
    client.call("chat.abort", &json!({"sessionKey": "main"})).unwrap();
    let end = client.call("agent.wait", &json!({"runId": "k2"})).unwrap();
    assert_eq!(end["status"], "aborted");
    let history = client.call("chat.history", &json!({"sessionKey": "main"})).unwrap();
    let said: Vec<_> =
        history["messages"].as_array().unwrap().iter().map(|message| &message["content"][0]["text"]).collect();
    assert_eq!(said, ["slow", "Well", "echo waits"]);
}

#[test]
fn a_run_that_goes_on_for_ever_stops_by_itself_and_says_why() {
    let model = Model::start(Wire::OpenAi);
    let gateway = gateway(&model);
    let mut client = gateway.operator();
    for (text, reason, ms) in [("loop", "max_turns", 60_000), ("slow", "timeout", 2000)] {
        let params = json!({"sessionKey": "main", "message": text, "idempotencyKey": reason, "timeoutMs": ms});
        client.call("chat.send", &params).unwrap();
        let end = client.call("agent.wait", &json!({"runId": reason, "timeoutMs": 20_000})).unwrap();
        assert_eq!(end["stopReason"], reason, "{end}");
        assert!(end["error"].as_str().unwrap().contains(if reason == "timeout" { "after 2 s" } else { "32 times" }));
    }
    // Every call has its result, so that the conversation can go on.
    let history = client.call("chat.history", &json!({"sessionKey": "main", "limit": 500})).unwrap();
    let messages = history["messages"].as_array().unwrap();
    let count = |role: &str| messages.iter().filter(|message| message["role"] == role).count();
    assert_eq!((count("toolResult"), model.asked()), (32, 33));
}
