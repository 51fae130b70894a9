//! Several keys of one provider, and several models: what happens when one of them is refused.

use serde_json::{Value, json};

use crate::config;
use crate::standin::{Model, Wire};
use crate::support::client::{Client, operator_with};
use crate::support::gateway::{Gateway, Setup};

fn run(client: &mut Client, text: &str) -> Result<String, Value> {
    let id = client.send("agent", &json!({"message": text}));
    client.answer(&id)?;
    client.answer(&id).map(|end| end["result"]["payloads"][0]["text"].as_str().unwrap_or_default().to_owned())
}

fn keep(client: &mut Client, profile: &str, key: &str) -> Value {
    let params = json!({"provider": "local", "profileId": profile, "apiKey": key});
    client.call("models.authSetApiKey", &params).unwrap()
}

fn state(client: &mut Client, profile: &str) -> String {
    let status = client.call("models.authStatus", &json!({})).unwrap();
    assert!(!status.to_string().contains("model-key"), "no key is shown: {status}");
    let profiles = status["providers"][0]["profiles"].as_array().unwrap().clone();
    let found = profiles.iter().find(|found| found["profileId"] == profile).unwrap();
    found["reason"].as_str().or(found["status"].as_str()).unwrap().to_owned()
}

#[test]
fn a_refused_key_rests_also_after_a_restart_and_the_next_one_serves() {
    let model = Model::start(Wire::OpenAi);
    let gateway = Setup::new().config(&config(&model, None, &json!({}))).start();
    let mut client = gateway.operator();
    keep(&mut client, "local:a", "model-key-a");
    keep(&mut client, "local:b", "model-key-b");
    model.refuse_keys(&[("model-key-a", 401), ("model-key-b", 429)]);
    assert_eq!(run(&mut client, "echo one").unwrap(), "one");
    assert_eq!(model.keys(), ["model-key-a", "model-key-b", "model-key"], "the configuration's own comes last");
    let states = |client: &mut Client| ["local:a", "local:b", "local:config"].map(|profile| state(client, profile));
    assert_eq!(states(&mut client), ["auth", "rate_limit", "static"]);
    run(&mut client, "echo two").unwrap();
    assert_eq!(model.keys().len(), 4, "what rests is not asked");

    // It is known again, without waiting for the next failure.
    let gateway = gateway.restart();
    let mut client = gateway.operator();
    assert_eq!(states(&mut client), ["auth", "rate_limit", "static"]);
    model.refuse_keys(&[("model-key", 401)]);
    assert_eq!(run(&mut client, "echo three").unwrap(), "three", "of those that rest all are tried before giving up");
    assert_eq!(model.keys()[4..], ["model-key", "model-key-a"]);
    assert_eq!(state(&mut client, "local:a"), "static", "who serves has recovered");

    let gone = json!({"provider": "local", "profileIds": ["local:a"]});
    client.call("models.authLogout", &gone).unwrap();
    assert!(client.call("models.authLogout", &gone).is_err());
    let mut reader = gateway.client();
    reader.connect(&operator_with(&["operator.write"])).unwrap();
    let refused = reader.call("models.authSetApiKey", &json!({"provider": "local", "apiKey": "x"})).unwrap_err();
    assert_eq!(refused["details"]["missingScope"], "operator.admin");
}

#[test]
fn the_order_of_the_configuration_leaves_out_what_it_does_not_name() {
    let model = Model::start(Wire::OpenAi);
    let mut config = config(&model, None, &json!({}));
    config["auth"] = json!({"order": {"local": ["local:b"]}});
    let gateway = Setup::new().config(&config).start();
    let mut client = gateway.operator();
    keep(&mut client, "local:a", "model-key-a");
    keep(&mut client, "local:b", "model-key-b");
    run(&mut client, "echo x").unwrap();
    assert_eq!(model.keys(), ["model-key-b"]);
}

/// A gateway whose first model is behind `first`, and the second behind `second`.
fn two(first: &Model, second: &Model) -> Gateway {
    let mut config = config(first, None, &json!({}));
    config["models"]["providers"]["spare"] = second.provider();
    config["agents"]["defaults"]["model"]["fallbacks"] = json!(["spare/stand-in"]);
    Setup::new().config(&config).start()
}

#[test]
fn the_next_model_answers_when_a_provider_does_not() {
    let (first, second) = (Model::start(Wire::OpenAi), Model::start(Wire::Anthropic));
    let gateway = two(&first, &second);
    let mut client = gateway.operator();
    first.refuse(&[500, 500, 500]);
    assert_eq!(run(&mut client, "echo one").unwrap(), "one");
    assert_eq!((first.asked(), second.asked()), (3, 1), "it was asked again before it was given up");
    assert_eq!(run(&mut client, "echo two").unwrap(), "two");
    assert_eq!((first.asked(), second.asked()), (3, 2), "and rests");
    let list = client.call("models.list", &json!({})).unwrap();
    let rests = |at: usize| list["models"][at]["unavailableReason"].as_str().map(str::to_owned);
    assert_eq!((rests(0).as_deref(), rests(1)), (Some("cooldown"), None));
}
