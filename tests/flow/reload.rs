//! Edited settings of the agent and its channel take effect while the gateway runs.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::config;
use crate::standin::{BotApi, Model, Wire};
use crate::support::gateway::Setup;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn models_and_the_bot_are_changed_without_a_restart() {
    let (first, second) = (Model::start(Wire::OpenAi), Model::start(Wire::Anthropic));
    let (bot, other_bot) = (BotApi::start(), BotApi::start_as("77:other"));
    let nobody = json!({"dmPolicy": "allowlist", "allowFrom": [1]});
    let gateway = Setup::new().config(&config(&first, Some(&bot), &nobody)).start();
    bot.write(42, "echo too early");
    let until = Instant::now() + SOON;
    while bot.offset() == 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Another person, another model.
    let setup =
        gateway.setup().config(&config(&second, Some(&bot), &json!({"dmPolicy": "allowlist", "allowFrom": [42]})));
    gateway.stderr.wait_for(|line| line.contains("channels.telegram has changed")).unwrap();
    bot.write(42, "echo in time");
    assert_eq!(bot.wait_for(1, SOON)[0].text, "in time");
    assert_eq!((first.asked(), second.asked()), (0, 1));
    // Another bot: the old one is left alone.
    let open = json!({"dmPolicy": "open", "allowFrom": ["*"], "botToken": other_bot.token});
    let setup = setup.config(&config(&second, Some(&other_bot), &open));
    other_bot.write(7, "echo hello");
    assert_eq!(other_bot.wait_for(1, SOON)[0].text, "hello");
    // No bot at all.
    let setup = setup.config(&config(&second, None, &json!({})));
    let mut operator = gateway.operator();
    let until = Instant::now() + SOON;
    while operator.call("channels.status", &json!({})).unwrap()["channelOrder"] != json!([]) {
        assert!(Instant::now() < until, "the channel is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(setup);
}
