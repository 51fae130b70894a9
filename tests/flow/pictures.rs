//! Pictures both ways: what somebody sends reaches a model that takes pictures, what a node takes reaches the chat.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config;
use crate::node::{PICTURE, Which};
use crate::standin::{BotApi, Model, Wire};
use crate::support::gateway::Setup;

const SOON: Duration = Duration::from_secs(20);

fn settings(model: &Model, bot: &BotApi, takes_pictures: bool) -> Value {
    let mut config = config(model, Some(bot), &json!({"dmPolicy": "open", "allowFrom": ["*"], "mediaMaxMb": 1}));
    if takes_pictures {
        config["models"]["providers"]["local"]["models"][0]["input"] = json!(["text", "image"]);
    }
    config["gateway"] = json!({"nodes": {"commands": {"allow": ["camera.snap"]}}});
    config
}

#[test]
fn a_picture_reaches_a_model_that_takes_pictures_and_others_are_told_of_it() {
    for (wire, takes, expected) in [
        (Wire::OpenAi, true, "I see 1 and read &quot;here&quot;."),
        (Wire::Anthropic, true, "I see 1 and read &quot;here&quot;."),
        (Wire::OpenAi, false, "[a picture, image/jpeg: this model takes no pictures]"),
    ] {
        let (model, bot) = (Model::start(wire), BotApi::start());
        let gateway = Setup::new().config(&settings(&model, &bot, takes)).start();
        bot.send_photo(42, PICTURE, "look here");
        let said = bot.wait_for(1, SOON)[0].text.clone();
        assert!(said.contains(expected) || (!takes && said.contains("There is no node")), "{said}");
        let mut operator = gateway.operator();
        let history = operator.call("chat.history", &json!({"sessionKey": "main"})).unwrap();
        let content = &history["messages"][0]["content"];
        assert_eq!((&content[0]["text"], &content[1]["omitted"]), (&json!("look here"), &json!(true)), "{content}");
        let id = &history["messages"][0]["__openclaw"]["id"];
        let whole = operator.call("chat.message.get", &json!({"sessionKey": "main", "messageId": id})).unwrap();
        assert_eq!(whole["message"]["content"][1]["data"], "/9j/4AAQSkZJRgAB");
    }
}

#[test]
fn an_album_is_one_question_and_its_pictures_come_together() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = Setup::new().config(&settings(&model, &bot, true)).start();
    bot.send_album(42, &[PICTURE, PICTURE, PICTURE], "look at them");
    assert!(bot.wait_for(1, SOON)[0].text.contains("I see 3"), "{}", bot.sent()[0].text);
    bot.write(42, "echo next");
    assert_eq!(bot.wait_for(2, SOON)[1].text, "next");
    let history = gateway.operator().call("chat.history", &json!({"sessionKey": "main"})).unwrap();
    let asked = history["messages"].as_array().unwrap().iter().filter(|message| message["role"] == "user").count();
    assert_eq!((asked, bot.sent().len()), (2, 2), "{history}");
}

#[test]
fn what_cannot_be_heard_is_answered_and_asks_no_model() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let _gateway = Setup::new().config(&settings(&model, &bot, true)).start();
    bot.send(42, json!({"voice": {"file_id": "v", "duration": 3}}));
    assert_eq!(bot.wait_for(1, SOON)[0].text, "I can't read voice messages yet. I understand text and pictures.");
    assert_eq!(model.asked(), 0);
}

#[test]
fn a_picture_that_is_too_large_or_none_is_said_to_be_so() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = Setup::new().config(&settings(&model, &bot, true)).start();
    bot.send_photo(42, &[PICTURE, &vec![0; 1_100_000]].concat(), "look large");
    bot.wait_for(1, SOON);
    bot.send_photo(42, b"<svg/>", "look none");
    bot.wait_for(2, SOON);
    let history = gateway.operator().call("chat.history", &json!({"sessionKey": "main"})).unwrap();
    let note = |at: usize| history["messages"][at]["content"][1]["text"].as_str().unwrap().to_owned();
    assert!(
        note(0).starts_with("[media unavailable: ") && note(0).contains("larger than 1000000 bytes"),
        "{}",
        note(0)
    );
    assert!(note(2).contains("no picture of a kind"), "{}", note(2));
}

#[test]
fn a_picture_that_a_node_takes_is_seen_by_the_model_and_sent_to_the_chat() {
    for wire in [Wire::OpenAi, Wire::Anthropic] {
        let (model, bot) = (Model::start(wire), BotApi::start());
        let gateway = Setup::new().config(&settings(&model, &bot, true)).start();
        let _node = Which::start_with(&gateway, &["camera.snap"]);
        bot.write(42, "snap");
        let sent = bot.wait_for(2, SOON);
        assert_eq!(sent[0].text, "Here it is (1 seen).", "the line that shows the picture is not said");
        assert_eq!((sent[1].photo.as_deref(), sent[1].chat.as_str()), (Some(PICTURE), "42"));
    }
}
