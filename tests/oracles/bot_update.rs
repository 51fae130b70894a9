//! What is promised of an update of the Bot API, whatever is in it: no panic, bounded, and an answer that fits.
//!
//! Input: an update as JSON; what is none must be refused, not worse.

use clawgate::channels::telegram::text;
use clawgate::channels::telegram::update::{Bot, Decision, Update, decide};
use clawgate::config::flow::{DmPolicy, DmScope, GroupPolicy, Streaming, Telegram};

fn settings() -> Telegram {
    Telegram {
        enabled: true,
        bot_token: None,
        api_root: "https://api.telegram.org".to_owned(),
        dm_policy: DmPolicy::Open,
        allow_from: vec!["*".to_owned()],
        group_policy: GroupPolicy::Open,
        group_allow_from: Vec::new(),
        groups: None,
        text_limit: 4096,
        webhook_url: None,
        webhook_secret: None,
        webhook_path: String::new(),
        webhook_host: [127, 0, 0, 1].into(),
        webhook_port: 8787,
        webhook_cert_path: None,
        streaming: Streaming::Partial,
        mention_patterns: Vec::new(),
        media_max_bytes: 1_000_000,
    }
}

pub(crate) fn check(data: &[u8]) {
    let Ok(update) = serde_json::from_slice::<Update>(data) else { return };
    let bot = Bot { id: 99, username: "HomeBot".to_owned() };
    let decision =
        decide(&update, std::slice::from_ref(&update), &settings(), DmScope::PerChannelPeer, &bot, |_| false);
    if let Decision::Ask { key, text: said, pictures, label, .. } = decision {
        assert!(key.as_str().starts_with("agent:main:telegram:"));
        assert!((!said.trim().is_empty() || !pictures.is_empty()) && said.chars().count() <= 17 * 1024);
        let plain = |id: &String| id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        assert!(pictures.iter().all(|id| !id.is_empty() && id.len() <= 256 && plain(id)));
        assert!(label.chars().count() <= 64 && !label.chars().any(char::is_control));
        for limit in [16, 100, text::MAX_UNITS] {
            for part in text::split(&said, limit) {
                assert!(text::units(&part) <= limit, "{part:?}");
                let html = text::html(&part);
                assert!(!html.contains("<script") && html.matches("<pre>").count() == html.matches("</pre>").count());
            }
        }
    }
}
