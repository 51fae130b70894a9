//! Telegram from end to end: in by long polling, out through the outbox, with who may write in between.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::Which;
use crate::standin::{BotApi, Model, Wire};
use crate::support::client::Client;
use crate::support::gateway::Setup;
use crate::{config, open_setup};

const SOON: Duration = Duration::from_secs(20);

fn transcript(operator: &mut Client) -> Vec<Value> {
    let history = operator.call("chat.history", &json!({"sessionKey": "main"})).unwrap();
    history["messages"].as_array().unwrap().clone()
}

fn the_whole_flow(wire: Wire) {
    let (model, bot) = (Model::start(wire), BotApi::start());
    let gateway = open_setup(&model, &bot).start();
    let node = Which::start(&gateway);
    bot.write(42, "where is uname on the build box?");
    let sent = bot.wait_for(1, SOON);
    assert_eq!((sent[0].chat.as_str(), sent[0].text.as_str()), ("42", "uname is at /usr/bin/uname there."));
    assert_eq!((node.carried().len(), model.asked()), (1, 2));

    let mut operator = gateway.operator();
    let messages = transcript(&mut operator);
    let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "toolResult", "assistant"]);
    assert_eq!(messages[1]["content"][0]["name"], "system_which");
    assert!(messages[2].to_string().contains("/usr/bin/uname"));
    assert_eq!(messages[3]["content"][0]["text"], "uname is at /usr/bin/uname there.");
    let numbers: Vec<_> = messages.iter().map(|message| message["__openclaw"]["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    let status = operator.call("channels.status", &json!({})).unwrap();
    assert_eq!(status["channelAccounts"]["telegram"][0]["connected"], true, "{status}");
}

#[test]
fn a_message_becomes_a_tool_call_and_an_answer_over_the_openai_wire() {
    the_whole_flow(Wire::OpenAi);
}

#[test]
fn a_message_becomes_a_tool_call_and_an_answer_over_the_anthropic_wire() {
    the_whole_flow(Wire::Anthropic);
}

#[test]
fn the_flows_own_time_is_far_below_a_tenth_of_a_second() {
    const ROUNDS: usize = 20;
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = open_setup(&model, &bot).start();
    let node = Which::start(&gateway);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        bot.write(42, "where is uname?");
        let sent = bot.wait_for(round + 1, SOON);
        let took = sent[round].at - bot.delivered_at().unwrap();
        times.push(took - node.carried()[round].took);
    }
    times.sort_unstable();
    println!(
        "from the update's delivery to sendMessage, less the node's own time: median {:.1} ms, slowest {:.1} ms of {ROUNDS}",
        times[ROUNDS / 2].as_secs_f64() * 1e3,
        times[ROUNDS - 1].as_secs_f64() * 1e3
    );
    // An unoptimized build on a busy machine; the figure of docs/walkthrough.md is from a release build.
    assert!(times[ROUNDS / 2] < Duration::from_millis(500), "{times:?}");
}

#[test]
fn a_stranger_is_told_a_code_and_is_answered_once_let_in() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = Setup::new().config(&config(&model, Some(&bot), &json!({}))).start();
    bot.write(42, "echo hello");
    let invitation = bot.wait_for(1, SOON)[0].text.clone();
    assert!(invitation.contains("Your Telegram user id: <code>42</code>"), "{invitation}");
    let again = bot.write(42, "echo hello?");
    // Read before its author is let in, or it would be answered.
    while bot.offset() <= again {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut operator = gateway.operator();
    let list = operator.call("channels.pairing.list", &json!({})).unwrap();
    assert_eq!(list["requests"][0]["senderId"], "42");
    assert_eq!(model.asked(), 0, "a stranger's words reach no model");

    let code = invitation.rsplit("approve telegram ").next().unwrap().split('<').next().unwrap().trim().to_owned();
    let wrong = json!({"channel": "telegram", "accountId": "default", "requestId": "AAAAAAAA"});
    assert_eq!(operator.call("channels.pairing.approve", &wrong).unwrap_err()["code"], "NOT_FOUND");
    let right = json!({"channel": "telegram", "accountId": "default", "requestId": code.to_lowercase()});
    assert_eq!(operator.call("channels.pairing.approve", &right).unwrap()["senderId"], "42");
    assert!(operator.call("channels.pairing.approve", &right).is_err(), "a code is good once");
    assert_eq!(bot.wait_for(2, SOON)[1].text, "You are let in. Write to me.");
    bot.write(42, "echo hello at last");
    assert_eq!(bot.wait_for(3, SOON)[2].text, "hello at last");
}

#[test]
fn an_outage_and_a_flood_lose_and_double_nothing() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = open_setup(&model, &bot).start();
    bot.write(42, "echo one");
    bot.wait_for(1, SOON);
    bot.set_outage(true);
    bot.write(42, "echo two");
    // Other callers do not notice.
    let mut operator = gateway.operator();
    let started = Instant::now();
    for _ in 0..200 {
        operator.call("health", &json!({})).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    std::thread::sleep(Duration::from_millis(300));
    bot.flood(2);
    bot.set_outage(false);
    let sent = bot.wait_for(2, Duration::from_secs(60));
    assert_eq!(sent.iter().map(|message| message.text.as_str()).collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn a_long_answer_comes_in_parts_that_fit() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let _gateway = open_setup(&model, &bot).start();
    let words = "word ".repeat(1800);
    bot.write(42, &format!("echo {words}"));
    let sent = bot.wait_for(3, SOON);
    assert!(sent.iter().all(|message| message.text.len() <= 4096));
    assert_eq!(sent.iter().map(|message| message.text.split_whitespace().count()).sum::<usize>(), 1800);
}

#[test]
fn a_channel_is_stopped_and_started() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = open_setup(&model, &bot).start();
    let mut operator = gateway.operator();
    let channel = json!({"channel": "telegram"});
    operator.call("channels.stop", &channel).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    bot.write(42, "echo later");
    std::thread::sleep(Duration::from_millis(700));
    assert!(bot.sent().is_empty());
    operator.call("channels.start", &channel).unwrap();
    assert_eq!(bot.wait_for(1, SOON)[0].text, "later");
    let send = json!({"to": "42", "message": "by hand", "channel": "telegram", "idempotencyKey": "k1"});
    operator.call("send", &send).unwrap();
    operator.call("send", &send).unwrap();
    assert_eq!(bot.wait_for(2, SOON)[1].text, "by hand");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(bot.sent().len(), 2, "one idempotency key is one message");
}

#[test]
fn a_long_answer_is_shown_while_it_is_written_and_edited_at_a_bounded_rate() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = open_setup(&model, &bot).start();
    bot.flood_edits(1);
    let words = (0..30).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
    bot.write(42, &format!("drip **{words}**"));
    let mut operator = gateway.operator();
    // Each word takes 150 ms.
    let until = Instant::now() + SOON;
    while bot.sent().first().is_none_or(|message| !message.text.ends_with("</b>")) {
        assert!(Instant::now() < until, "{:?}", bot.sent());
        std::thread::sleep(Duration::from_millis(50));
    }
    let (sent, edits) = (bot.sent(), bot.edits());
    assert_eq!(sent.len(), 1, "the answer is the last edit of its beginning");
    assert_eq!(sent[0].text, format!("<b>{words}</b>"));
    assert!(sent[0].params["text"].as_str().unwrap().ends_with(" …"));
    let (last, previews) = edits.split_last().unwrap();
    assert_eq!((last.0, last.1.as_str()), (1, sent[0].text.as_str()));
    assert!(!previews.is_empty() && previews.iter().all(|(_, text, _)| text.ends_with(" …")), "{previews:?}");
    let gaps: Vec<_> = previews.windows(2).map(|pair| pair[1].2 - pair[0].2).collect();
    assert!(gaps.iter().all(|gap| *gap > Duration::from_millis(900)), "{gaps:?}");
    // Somebody has enough of it, long before its end.
    bot.write(42, &format!("drip {}", "word ".repeat(200)));
    bot.wait_for(2, SOON);
    operator.call("chat.abort", &json!({"sessionKey": "main"})).unwrap();
    let until = Instant::now() + SOON;
    while !bot.sent()[1].text.ends_with("(stopped)") {
        assert!(Instant::now() < until, "{:?}", bot.sent());
        std::thread::sleep(Duration::from_millis(20));
    }
    let history = transcript(&mut operator);
    assert_eq!(history.len(), 4);
}

#[test]
fn a_crash_in_the_middle_of_an_answer_leaves_one_message() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = open_setup(&model, &bot).start();
    bot.write(42, "drip one two three four five six seven eight nine ten eleven twelve");
    bot.wait_for(1, SOON);
    // Which message the beginning is was stored when an edit of it came.
    let until = Instant::now() + SOON;
    while bot.edits().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let setup = gateway.setup();
    drop(gateway);
    let _gateway = setup.start();
    let until = Instant::now() + SOON;
    while !bot.sent()[0].text.ends_with("twelve") {
        assert!(Instant::now() < until, "{:?}", bot.sent());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(bot.sent().len(), 1);
}

#[test]
fn new_and_stop_are_done_before_they_are_acknowledged() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let gateway = open_setup(&model, &bot).start();
    bot.write(42, "echo before");
    bot.wait_for(1, SOON);
    bot.write(42, "/new");
    bot.write(42, "echo after");
    let sent: Vec<_> = bot.wait_for(3, SOON).into_iter().map(|message| message.text).collect();
    assert_eq!(sent.iter().filter(|text| *text == "A new conversation begins.").count(), 1, "{sent:?}");
    assert_eq!(sent[2], "after");
    let mut operator = gateway.operator();
    assert_eq!(transcript(&mut operator).len(), 2);
    bot.write(42, "slow");
    bot.wait_for(4, SOON);
    bot.write(42, "/stop");
    assert_eq!(bot.wait_for(5, SOON)[4].text, "Stopped.");
    assert!(bot.sent()[3].text.ends_with("(stopped)"), "{:?}", bot.sent());
}
