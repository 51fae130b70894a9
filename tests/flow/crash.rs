//! `kill -9` at random moments of the flow: nothing acknowledged is lost, nothing is sent or executed twice.
//!
//! Every message is one of its kind, and so are the call and the answer that belong to it: what was lost, and what came
//! twice, has a number.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::Which;
use crate::open_setup;
use crate::standin::{BotApi, Model, Wire};

/// Kills of an ordinary run; `FLOW_KILLS` says another number.
const KILLS: usize = 6;
/// The longest from a message to the kill: of a quick answer, and of one that is written for about two seconds.
const SOON: Duration = Duration::from_millis(130);
const LATER: Duration = Duration::from_millis(3500);
/// How long the last answer may take: everything before it comes to its end first.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is said about message number `n`: the message, and its answer.
fn talk(n: usize) -> (String, String) {
    match n % 5 {
        0 | 2 => (format!("where is uname? {n}"), format!("uname is at /usr/bin/uname there. (question {n})")),
        4 => {
            let answer = format!("slowly a b c d e f g h i j k answer {n}.");
            (format!("drip {answer}"), answer)
        }
        _ => (format!("echo answer {n}."), format!("answer {n}.")),
    }
}

#[test]
fn nothing_is_lost_or_doubled_by_kill_nine() {
    let kills = std::env::var("FLOW_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let mut gateway = open_setup(&model, &bot).start();
    let node = Which::start(&gateway);
    for n in 0..kills {
        bot.write(42, &talk(n).0);
        let [a, b] = clawgate::id::random_bytes();
        let most = if n % 5 == 4 { LATER } else { SOON };
        std::thread::sleep(most.mul_f64(f64::from(u16::from_be_bytes([a, b])) / 65536.0));
        let setup = gateway.setup();
        // Dropped, it is killed.
        drop(gateway);
        gateway = setup.start();
        node.moved(gateway.port);
    }
    // The last one is left in peace, and everything before it comes to its end first: one run at a time a session.
    bot.write(42, "echo the end");
    let until = Instant::now() + PATIENCE;
    while bot.sent().last().is_none_or(|message| message.text != "the end") {
        assert!(Instant::now() < until, "the last answer did not come: {:?}", bot.sent().last());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut operator = gateway.operator();
    let messages = transcript(&mut operator);

    // Every message that was written stands in the transcript, once.
    let of = |role: &'static str| messages.iter().filter(move |message| message["role"] == role);
    let asked: Vec<_> = of("user").map(|message| message["content"][0]["text"].as_str().unwrap()).collect();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for text in &asked {
        *times.entry(text).or_default() += 1;
    }
    for n in 0..kills {
        assert_eq!(times.get(talk(n).0.as_str()), Some(&1), "message {n} was lost or doubled");
    }
    assert_eq!(asked.len(), kills + 1);
    // No call was carried out twice: neither one of the same key, nor one for the same question.
    let (mut keys, mut questions) = (BTreeMap::new(), BTreeMap::new());
    for carried in node.carried() {
        *keys.entry(carried.key).or_insert(0) += 1;
        *questions.entry(carried.params["question"].to_string()).or_insert(0) += 1;
    }
    assert!(keys.values().chain(questions.values()).all(|count| *count == 1), "executed twice: {questions:?}");
    // No answer was sent twice. What ends with an ellipsis is the beginning of one.
    let sent: Vec<_> = bot.sent().into_iter().map(|message| message.text).collect();
    let (begun, answers): (Vec<_>, Vec<_>) = sent.iter().partition(|text| text.ends_with(" …"));
    let mut arrived: BTreeMap<&str, usize> = BTreeMap::new();
    for text in &answers {
        *arrived.entry(text).or_default() += 1;
    }
    assert!(arrived.values().all(|count| *count == 1), "sent twice: {arrived:?}");
    let counts =
        operator.call("channels.status", &json!({})).unwrap()["channelAccounts"]["telegram"][0]["outbox"].clone();
    let unknown = usize::try_from(counts["unknown"].as_u64().unwrap()).unwrap();
    let whole = (0..kills).filter(|n| arrived.contains_key(talk(*n).1.as_str())).count();
    println!(
        "{kills} kills: {} messages, {} answers arrived, {whole} of them in full words, {unknown} may not have; {} calls; \
         {} beginnings are left, {} edits",
        kills + 1,
        answers.len(),
        questions.len(),
        begun.len(),
        bot.edits().len()
    );
    // An answer that did not arrive is one of which nobody knows whether it did, and counted as such.
    assert!(answers.len() <= kills + 1, "more answers than messages");
    assert!(answers.len() + unknown > kills, "an answer is missing: {} + {unknown} of {}", answers.len(), kills + 1);
    // Every run has ended with a whole turn.
    for message in of("assistant") {
        for call in message["content"].as_array().unwrap().iter().filter(|block| block["type"] == "toolCall") {
            let answered = messages.iter().any(|result| result["toolCallId"] == call["id"]);
            assert!(answered, "a call without its result: {call}");
        }
    }
}

/// The whole transcript, page by page.
fn transcript(operator: &mut crate::support::client::Client) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let mut params = json!({"sessionKey": "main", "limit": 200});
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let page = operator.call("chat.history", &params).unwrap();
        all.splice(0..0, page["messages"].as_array().unwrap().iter().cloned());
        cursor = page["nextCursor"].clone();
        if cursor.is_null() {
            return all;
        }
    }
}
