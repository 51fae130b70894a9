//! `kill -9` at random moments of the flow: nothing acknowledged is lost, nothing is sent or executed twice.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use crate::node::Which;
use crate::open_setup;
use crate::standin::{BotApi, Model, Wire};

/// Kills of an ordinary run; `FLOW_KILLS` says another number.
const KILLS: usize = 8;

#[test]
fn nothing_is_lost_or_doubled_by_kill_nine() {
    let kills = std::env::var("FLOW_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let mut gateway = open_setup(&model, &bot).start();
    let node = Which::start(&gateway);
    let mut written = 0;
    for kill in 0..kills {
        let text = if kill % 2 == 0 { format!("where is uname? {kill}") } else { format!("echo answer {kill}") };
        bot.write(42, &text);
        written += 1;
        let [a, b] = clawgate::id::random_bytes();
        std::thread::sleep(Duration::from_micros(u64::from(u16::from_be_bytes([a, b])) * 2));
        let setup = gateway.setup();
        // Dropped, it is killed.
        drop(gateway);
        gateway = setup.start();
        node.moved(gateway.port);
    }
    // The last one is left in peace, and everything before it comes to its end first: one run at a time a session.
    bot.write(42, "echo the end");
    written += 1;
    let mut waited = Duration::ZERO;
    while bot.sent().last().is_none_or(|message| message.text != "the end") {
        assert!(waited < Duration::from_secs(60), "the last answer did not come: {:?}", bot.sent());
        std::thread::sleep(Duration::from_millis(50));
        waited += Duration::from_millis(50);
    }
    let mut operator = gateway.operator();
    let history = operator.call("chat.history", &json!({"sessionKey": "main", "limit": 1000})).unwrap();
    let messages = history["messages"].as_array().unwrap();

    // Every message that was written stands in the transcript once.
    let asked: Vec<_> = messages.iter().filter(|message| message["role"] == "user").collect();
    let texts: std::collections::HashSet<_> = asked.iter().map(|message| message["content"].to_string()).collect();
    assert_eq!((asked.len(), texts.len()), (written, written), "lost or doubled");
    // No call was carried out twice.
    let mut calls: HashMap<String, usize> = HashMap::new();
    for carried in node.carried() {
        *calls.entry(carried.key).or_default() += 1;
    }
    assert!(calls.values().all(|count| *count == 1), "a tool was executed twice: {calls:?}");
    // No answer was sent twice: those that can be told apart came once, and of the others there are not too many.
    let mut echoes: Vec<_> =
        bot.sent().into_iter().map(|message| message.text).filter(|text| text.starts_with("answer")).collect();
    let arrived = echoes.len();
    echoes.sort_unstable();
    echoes.dedup();
    assert_eq!(echoes.len(), arrived, "an answer was sent twice");
    let counts =
        operator.call("channels.status", &json!({})).unwrap()["channelAccounts"]["telegram"][0]["outbox"].clone();
    let (sent, unknown) = (bot.sent().len(), counts["unknown"].as_u64().unwrap());
    println!(
        "{kills} kills: {written} messages, {sent} answers arrived, {unknown} may not have, {} tool calls",
        calls.len()
    );
    assert!(sent <= written, "{sent} answers to {written} messages");
    assert!(
        sent + usize::try_from(unknown).unwrap() >= written,
        "an answer is missing: {sent} + {unknown} of {written}"
    );
    // Every run has ended with a whole turn.
    for message in messages.iter().filter(|message| message["role"] == "assistant") {
        for call in message["content"].as_array().unwrap().iter().filter(|block| block["type"] == "toolCall") {
            let answered = messages.iter().any(|result| result["toolCallId"] == call["id"]);
            assert!(answered, "a call without its result: {call}");
        }
    }
}
