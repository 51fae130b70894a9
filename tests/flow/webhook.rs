//! Telegram by webhook: what comes is believed when it carries the secret, and acknowledged when it is on disk.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config;
use crate::standin::{BotApi, Model, Wire};
use crate::support::gateway::{HttpAnswer, Setup, free_port};

const SOON: Duration = Duration::from_secs(20);
const SECRET: &str = "s3cret_-";

fn settings(model: &Model, bot: &BotApi, port: u16) -> Value {
    let telegram = json!({"dmPolicy": "open", "allowFrom": ["*"], "webhookUrl": "https://bot.example/hook",
        "webhookSecret": {"source": "env", "provider": "default", "id": "HOOK_SECRET"}, "webhookPath": "/hook",
        "webhookPort": port});
    config(model, Some(bot), &telegram)
}

/// Sends a request to the listener; its status, and whether the answer says that the gateway has taken the update.
fn post(port: u16, head: &str, body: &[u8]) -> (u16, bool) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let head = format!("{head}host: bot.example\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    // A listener that has refused may have closed already.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, answer.contains("x-openclaw-delivery-accepted: durable"))
}

fn bring(port: u16, secret: &str, update: &Value) -> (u16, bool) {
    let head = format!("POST /hook HTTP/1.1\r\nx-telegram-bot-api-secret-token: {secret}\r\n");
    post(port, &head, update.to_string().as_bytes())
}

#[test]
fn updates_come_by_webhook_once_each_in_any_order_and_also_across_a_crash() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let port = free_port();
    let gateway = Setup::new().env("HOOK_SECRET", SECRET).config(&settings(&model, &bot, port)).start();
    let webhook = bot.wait_for_webhook();
    assert_eq!((webhook.url.as_str(), webhook.secret.as_str()), ("https://bot.example/hook", SECRET));
    let texts = ["echo one", "echo two", "echo three"].map(|text| bot.update(42, json!({"text": text})));
    let [one, two, three] = &texts;
    assert_eq!(bring(port, SECRET, two), (200, true));
    assert_eq!(bot.wait_for(1, SOON)[0].text, "two");
    assert_eq!(bring(port, SECRET, one), (200, true));
    assert_eq!(bring(port, SECRET, two), (200, true), "brought again, it is acknowledged again");
    assert_eq!(bot.wait_for(2, SOON)[1].text, "one");
    assert_eq!(bring(port, SECRET, three), (200, true));
    let setup = gateway.setup();
    // What was acknowledged is on disk.
    drop(gateway);
    let gateway = setup.start();
    bot.wait_for_webhook();
    let status = gateway.operator().call("channels.status", &json!({})).unwrap();
    assert_eq!(status["channelAccounts"]["telegram"][0]["mode"], "webhook");
    gateway.stderr.wait_for(|line| line.contains("brings updates to the webhook")).unwrap();
    for update in &texts {
        assert_eq!(bring(port, SECRET, update), (200, true));
    }
    let last = bot.update(42, json!({"text": "echo four"}));
    assert_eq!(bring(port, SECRET, &last), (200, true));
    let until = std::time::Instant::now() + SOON;
    while bot.sent().last().is_none_or(|message| message.text != "four") {
        assert!(std::time::Instant::now() < until, "{:?}", bot.sent());
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent: Vec<_> = bot.sent().into_iter().map(|message| message.text).collect();
    // The third may have been on its way when the gateway was killed; then nobody knows whether it arrived.
    assert!(sent == ["two", "one", "three", "four"] || sent == ["two", "one", "four"], "{sent:?}");

    // From the webhook to polling by an edit of the file, and nothing is lost.
    bot.write(42, "echo five");
    let polling = config(&model, Some(&bot), &json!({"dmPolicy": "open", "allowFrom": ["*"]}));
    let _setup = gateway.setup().config(&polling);
    let until = std::time::Instant::now() + SOON;
    while bot.sent().last().is_none_or(|message| message.text != "five") {
        assert!(std::time::Instant::now() < until, "{:?}", bot.sent());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(bot.webhook().is_none());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens there any more");
}

#[test]
fn what_carries_no_secret_is_not_read_and_what_is_no_update_not_taken() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let port = free_port();
    let gateway = Setup::new().env("HOOK_SECRET", SECRET).config(&settings(&model, &bot, port)).start();
    bot.wait_for_webhook();
    gateway.stderr.wait_for(|line| line.contains("brings updates to the webhook")).unwrap();
    let update = bot.update(42, json!({"text": "echo no"}));
    for wrong in ["", "s3cret", "s3cret_-x", "S3CRET_-"] {
        assert_eq!(bring(port, wrong, &update), (401, false), "{wrong:?}");
    }
    let body = update.to_string();
    let twice = format!(
        "POST /hook HTTP/1.1\r\nx-telegram-bot-api-secret-token: {SECRET}\r\nx-telegram-bot-api-secret-token: {SECRET}\r\n"
    );
    assert_eq!(post(port, &twice, body.as_bytes()).0, 401);
    assert_eq!(post(port, "POST /hook HTTP/1.1\r\n", body.as_bytes()).0, 401);
    assert_eq!(post(port, "POST /other HTTP/1.1\r\n", body.as_bytes()).0, 404);
    let with_secret =
        |method: &str| format!("{method} /hook HTTP/1.1\r\nx-telegram-bot-api-secret-token: {SECRET}\r\n");
    assert_eq!(post(port, &with_secret("PUT"), body.as_bytes()).0, 405);
    assert_eq!(post(port, &with_secret("POST"), b"{").0, 400);
    assert_eq!(post(port, &with_secret("POST"), b"{\"update_id\": \"1\"}").0, 400);
    assert_eq!(post(port, &with_secret("POST"), &vec![b' '; 1024 * 1024 + 1]).0, 413);
    assert_eq!(post(port, "GET /healthz HTTP/1.1\r\n", b"").0, 200);
    let answer = HttpAnswer::to(port, b"POST /hook HTTP/1.1\r\nA B: c\r\n\r\n");
    assert!(answer.status == 400 && answer.head.contains("nosniff"), "{answer:?}");
    for _ in 0..100 {
        assert_eq!(bring(port, "wrong", &update).0, 401);
    }
    assert_eq!(gateway.log_lines("webhook request refused").len(), 60, "of those who knock, the log tells of some");
    assert_eq!(model.asked(), 0);
    assert!(bot.sent().is_empty());
    // An update that means nothing here is acknowledged, or it would come for ever.
    assert_eq!(bring(port, SECRET, &json!({"update_id": 999, "poll": {"id": "x"}})), (200, true));
    // Stopped, it takes nothing; what Telegram cannot bring it keeps.
    let mut operator = gateway.operator();
    operator.call("channels.stop", &json!({"channel": "telegram"})).unwrap();
    gateway.stderr.wait_for(|line| line.contains("a channel was switched") && line.contains("running=false")).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_certificate_of_ones_own_is_told_to_telegram_and_a_wrong_secret_stops_the_channel_alone() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let port = free_port();
    let setup = Setup::new().env("HOOK_SECRET", "not a secret");
    let certificate = setup.state_dir().join("bot.pem");
    std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let mut settings = settings(&model, &bot, port);
    settings["channels"]["telegram"]["webhookCertPath"] = json!(certificate);
    let gateway = setup.config(&settings).start();
    let status = gateway.operator().call("channels.status", &json!({})).unwrap();
    let error = status["channelAccounts"]["telegram"][0]["lastError"].as_str().unwrap().to_owned();
    assert!(error.contains("channels.telegram.webhookSecret must be"), "{error}");
    settings["channels"]["telegram"]["webhookSecret"] = json!(SECRET);
    let _setup = gateway.setup().config(&settings);
    assert!(bot.wait_for_webhook().has_certificate);
}

#[test]
fn an_album_by_webhook_is_acknowledged_when_it_is_on_disk_as_one_question() {
    let (model, bot) = (Model::start(Wire::OpenAi), BotApi::start());
    let port = free_port();
    let mut settings = settings(&model, &bot, port);
    settings["models"]["providers"]["local"]["models"][0]["input"] = json!(["text", "image"]);
    let _gateway = Setup::new().env("HOOK_SECRET", SECRET).config(&settings).start();
    bot.wait_for_webhook();
    let parts = bot.album(42, &[crate::node::PICTURE; 3], "look at them");
    let brought: Vec<_> =
        parts.into_iter().map(|part| std::thread::spawn(move || bring(port, SECRET, &part))).collect();
    for one in brought {
        assert_eq!(one.join().unwrap(), (200, true));
    }
    assert!(bot.wait_for(1, SOON)[0].text.contains("I see 3"), "{}", bot.sent()[0].text);
    assert_eq!(bot.sent().len(), 1);
}
