//! The HTTP API, as programs use it that speak OpenAI's chat completions or plain HTTP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::{Value, json};

use crate::config;
use crate::node::Which;
use crate::standin::{Model, Wire};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, HttpAnswer, Setup};
use crate::support::{PATIENCE, TOKEN};

fn setup(model: &Model, more: &Value) -> Setup {
    let mut config = config(model, None, &json!({}));
    config["gateway"] = json!({"http": {"endpoints": {"chatCompletions": {"enabled": true}}}});
    for (key, value) in more.as_object().unwrap() {
        config["gateway"][key.as_str()] = value.clone();
    }
    Setup::new().config(&config)
}

fn request(path: &str, token: &str, body: &Value) -> String {
    let (method, body) = if body.is_null() { ("GET", String::new()) } else { ("POST", body.to_string()) };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn call(gateway: &Gateway, path: &str, body: &Value) -> HttpAnswer {
    gateway.http(&request(path, TOKEN, body))
}

fn said(text: &str) -> Value {
    json!({"model": "openclaw", "messages": [{"role": "user", "content": text}]})
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

/// A stream under way: what is read of it, event by event.
struct Events(BufReader<TcpStream>);

impl Events {
    fn of(port: u16, request: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
        Self(reader)
    }

    /// The next event's data; `None` at the end of the stream.
    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            // What stands between are the sizes of chunks.
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim().to_owned());
            }
        }
    }

    fn all(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// Waits until a session's run is under way, or is not.
fn wait_for_run(client: &mut Client, key: &str, is_there: bool) {
    let until = Instant::now() + PATIENCE;
    loop {
        let history = client.call("chat.history", &json!({"sessionKey": key})).unwrap();
        if history["inFlightRun"].is_object() == is_there {
            return;
        }
        assert!(Instant::now() < until, "{history}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_completion_is_whole_or_streamed_and_leaves_no_session_behind() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    let answer = call(&gateway, "/v1/chat/completions", &said("echo one two three"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let whole = answer.json();
    let choice = &whole["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("one two three"), &json!("stop")));
    assert_eq!(whole["usage"], json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}));

    let body = with(said("echo one two three"), "stream", json!(true));
    let body = with(body, "stream_options", json!({"include_usage": true}));
    let events = Events::of(gateway.port, &request("/v1/chat/completions", TOKEN, &body)).all();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "one two three");
    assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], 15);

    let mut client = gateway.operator();
    let until = Instant::now() + PATIENCE;
    while client.call("sessions.list", &json!({})).unwrap()["count"] != 0 {
        assert!(Instant::now() < until, "a session stays");
    }
}

#[test]
fn a_user_has_a_session_that_goes_on_and_who_has_none_brings_what_was_said() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    for text in ["echo a", "echo b"] {
        let body = with(said(text), "user", json!("ann lee"));
        assert_eq!(call(&gateway, "/v1/chat/completions", &body).status, 200);
    }
    let mut client = gateway.operator();
    let history = client.call("chat.history", &json!({"sessionKey": "openai-user:ann%20lee"})).unwrap();
    assert_eq!(history["messages"].as_array().unwrap().len(), 4);

    let body = with(
        said("echo c"),
        "messages",
        json!([
            {"role": "system", "content": "Speak French."},
            {"role": "user", "content": "first"}, {"role": "assistant", "content": "second"},
            {"role": "user", "content": "echo third"},
        ]),
    );
    assert_eq!(call(&gateway, "/v1/chat/completions", &body).status, 200);
    let asked = model.last().unwrap();
    let texts: Vec<_> =
        asked["messages"].as_array().unwrap().iter().map(|message| message["content"].clone()).collect();
    assert!(texts[0].as_str().unwrap().ends_with("Speak French."));
    assert_eq!(texts[1..], [json!("first"), json!("second"), json!("echo third")]);
}

#[test]
fn who_leaves_takes_the_run_along() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    let mut client = gateway.operator();
    let slow = with(said("slow"), "user", json!("u"));
    let mut events =
        Events::of(gateway.port, &request("/v1/chat/completions", TOKEN, &with(slow.clone(), "stream", json!(true))));
    while !events.next().unwrap().contains("Well") {}
    wait_for_run(&mut client, "openai-user:u", true);
    drop(events);
    wait_for_run(&mut client, "openai-user:u", false);

    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    stream.write_all(request("/v1/chat/completions", TOKEN, &slow).as_bytes()).unwrap();
    wait_for_run(&mut client, "openai-user:u", true);
    drop(stream);
    wait_for_run(&mut client, "openai-user:u", false);
}

#[test]
fn a_run_that_fails_is_an_error_in_the_shape_of_the_api() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    model.refuse(&[404, 404]);
    let answer = call(&gateway, "/v1/chat/completions", &said("echo x"));
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (500, Some("run_failed")), "{}", answer.body);
    let body = with(said("echo x"), "stream", json!(true));
    let events = Events::of(gateway.port, &request("/v1/chat/completions", TOKEN, &body)).all();
    assert!(events[events.len() - 2].contains("answered 404: as planned"), "{events:?}");
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    for (body, why) in [
        (with(said("x"), "model", json!("gpt-6")), "no agent is called so"),
        (with(said("x"), "model", json!("openclaw/other")), "unknown agent"),
        (with(said("x"), "messages", json!([])), "the last one"),
        (with(said("x"), "tools", json!([{"type": "function"}])), "not served"),
    ] {
        let answer = call(&gateway, "/v1/chat/completions", &body);
        let error = answer.json()["error"].take();
        assert_eq!((answer.status, error["type"].as_str()), (400, Some("invalid_request_error")));
        assert!(error["message"].as_str().unwrap().contains(why), "{error}");
    }
}

#[test]
fn agents_are_models_and_nothing_is_served_that_was_not_asked_for() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    let list = call(&gateway, "/v1/models", &Value::Null).json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["openclaw", "openclaw/default", "openclaw/main"]);
    assert_eq!(call(&gateway, "/v1/models/openclaw%2Fdefault", &Value::Null).json()["id"], "openclaw/default");
    assert_eq!(call(&gateway, "/v1/models/gpt-6", &Value::Null).status, 404);
    assert_eq!(call(&gateway, "/v1/models", &json!({})).status, 405);
    for body in [Value::Null, json!({})] {
        let answer = call(&gateway, "/v1/embeddings", &body);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (404, Some("not_found")));
    }
    drop(gateway);
    let gateway = Setup::new().config(&config(&model, None, &json!({}))).start();
    let off = call(&gateway, "/v1/models", &Value::Null);
    assert_eq!(off.status, 404, "it is off until it is switched on");
    assert!(off.body.contains("chatCompletions.enabled"), "{}", off.body);
    assert_eq!(call(&gateway, "/v1/chat/completions", &said("echo x")).status, 404);
    assert_eq!(model.asked(), 0);
}

#[test]
fn a_tool_is_called_once_and_not_those_that_give_a_host_away() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({"tools": {"deny": ["system_notify"]}})).start();
    let node = Which::start(&gateway);
    let which = json!({"tool": "system_which", "args": {"bins": ["uname"]}, "idempotencyKey": "once"});
    for _ in 0..2 {
        let answer = call(&gateway, "/tools/invoke", &which);
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.json()["result"]["bins"]["uname"], "/usr/bin/uname");
    }
    assert_eq!(node.carried().len(), 1, "a repeat is no second call");
    for name in ["exec", "nodes", "gateway", "system_notify", "nothing"] {
        let answer = call(&gateway, "/tools/invoke", &json!({"tool": name, "args": {"command": ["id"]}}));
        assert_eq!((answer.status, answer.json()["ok"].as_bool()), (404, Some(false)), "{name}");
    }
    let answer = call(&gateway, "/tools/invoke", &json!({"args": {}}));
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(node.carried().len(), 1);
}

#[test]
fn a_stream_ends_when_the_secret_that_opened_it_is_another() {
    let model = Model::start(Wire::OpenAi);
    let auth = |token: &str| json!({"auth": {"mode": "token", "token": token}});
    let setup = setup(&model, &auth("before")).no_token();
    let gateway = setup.clone().start();
    let body = with(said("slow"), "stream", json!(true));
    let mut events = Events::of(gateway.port, &request("/v1/chat/completions", "before", &body));
    while !events.next().unwrap().contains("Well") {}
    let mut config = config(&model, None, &json!({}));
    config["gateway"] = auth("after");
    setup.config(&config);
    let rest = events.all();
    assert!(rest[0].contains("auth_changed") && rest[1] == "[DONE]", "{rest:?}");
}

#[test]
fn a_call_that_went_with_a_restart_does_not_come_back() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    for body in [said("slow"), with(said("slow"), "user", json!("u"))] {
        let body = with(body, "stream", json!(true));
        let mut events = Events::of(gateway.port, &request("/v1/chat/completions", TOKEN, &body));
        while !events.next().unwrap().contains("Well") {}
        std::mem::forget(events);
    }
    assert_eq!(gateway.operator().call("sessions.list", &json!({})).unwrap()["count"], 2);
    let asked = model.asked();
    let setup = gateway.setup();
    // Dropped, it is killed.
    drop(gateway);
    let gateway = setup.start();
    let mut client = gateway.operator();
    wait_for_run(&mut client, "openai-user:u", false);
    let until = Instant::now() + PATIENCE;
    while client.call("sessions.list", &json!({})).unwrap()["count"] != 1 {
        assert!(Instant::now() < until, "the session of a call stays");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(model.asked(), asked, "nobody waits for an answer");
}

#[test]
fn what_a_caller_sends_comes_back_in_part_at_most() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    let long = format!("forged\n2026-01-01 INFO {}", "x".repeat(100_000));
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "openclaw", "messages": long})),
        ("/tools/invoke", json!({"tool": "t", "args": {}, "action": [long]})),
        ("/tools/invoke", json!({"tool": long})),
    ] {
        let answer = call(&gateway, path, &body);
        let error = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(matches!(answer.status, 400 | 404) && error.len() < 600 && !error.contains('\n'), "{error}");
    }
    let lines = gateway.log_lines("http call failed");
    assert!(lines.len() == 3 && lines.iter().all(|line| line.len() < 1000), "{lines:?}");
}

#[test]
fn a_stop_lets_a_call_end_that_is_under_way() {
    let model = Model::start(Wire::OpenAi);
    let mut gateway = setup(&model, &json!({})).start();
    let body = with(said("pause"), "stream", json!(true));
    let mut events = Events::of(gateway.port, &request("/v1/chat/completions", TOKEN, &body));
    while !events.next().unwrap().contains("Wait") {}
    gateway.signal(rustix::process::Signal::TERM);
    let rest = events.all();
    assert!(rest.last().is_some_and(|event| event == "[DONE]"), "{rest:?}");
    assert!(gateway.wait().unwrap().success());
}

#[test]
fn a_reader_who_does_not_read_holds_nobody_up() {
    let model = Model::start(Wire::OpenAi);
    let gateway = setup(&model, &json!({})).start();
    let long = format!("echo {}", "word ".repeat(15_000));
    let body = with(said(&long), "stream", json!(true));
    let mut lazy: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
            stream.write_all(request("/v1/chat/completions", TOKEN, &body).as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(call(&gateway, "/v1/chat/completions", &said("echo x")).status, 200);
    // What they did not read is still theirs.
    let mut text = String::new();
    lazy[0].set_read_timeout(Some(PATIENCE)).unwrap();
    lazy[0].read_to_string(&mut text).unwrap();
    assert!(text.contains("data: [DONE]") && text.matches("word").count() == 15_000, "{}", text.len());
}
