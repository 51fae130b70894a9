//! Reads `auth`, `models`, `agents`, `session` and `channels.telegram`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::super::flow::{
    Agents, Api, AuthProfiles, DmPolicy, DmScope, Flow, Group, GroupPolicy, Model, Models, Pattern, Provider,
    Streaming, Telegram,
};
use super::super::key_path::KeyPath;
use super::super::keyword::Keyword as _;
use super::super::raw::{Node, Value};
use super::{Problem, Reader, Section};

/// Telegram's own limit of one message.
const TELEGRAM_TEXT: u64 = 4096;
/// Patterns by which a bot is called.
const MAX_PATTERNS: usize = 64;

impl<'a> Reader<'a> {
    pub(super) fn flow(&mut self, root: &Section<'a>) -> Flow {
        let [auth, models, agents, session, channels] =
            ["auth", "models", "agents", "session", "channels"].map(|key| self.section(root, key));
        let defaults = self.section(&agents, "defaults");
        let telegram = channels.get("telegram").is_some().then(|| self.section(&channels, "telegram"));
        Flow {
            auth: self.auth_profiles(&auth),
            models: self.models(&models),
            agents: self.agents(&defaults),
            dm_scope: self.keyword(&session, "dmScope", |_| None).unwrap_or(DmScope::Main),
            telegram: telegram.map(|section| {
                let mention_patterns = self.mention_patterns(root, &agents);
                Telegram { mention_patterns, ..self.telegram(&section) }
            }),
        }
    }

    /// The agent's own patterns, where it has any: an empty list of its own means none.
    fn mention_patterns(&mut self, root: &Section<'a>, agents: &Section<'a>) -> Vec<Pattern> {
        let (entries, messages) = (self.section(agents, "entries"), self.section(root, "messages"));
        let main = self.section(&entries, "main");
        let own = self.section(&main, "groupChat");
        let all = self.section(&messages, "groupChat");
        let chosen = if own.get("mentionPatterns").is_some() { own } else { all };
        let mut patterns = Vec::new();
        for (path, node) in self.elements(&chosen, "mentionPatterns") {
            let Some(text) = self.string(path.clone(), node) else { continue };
            match Pattern::parse(&text) {
                _ if patterns.len() == MAX_PATTERNS => {
                    self.notice(path, node, format!("is left out: {MAX_PATTERNS} patterns are taken at most"));
                    break;
                }
                Ok(pattern) => patterns.push(pattern),
                Err(why) => self.notice(path, node, format!("is no regular expression and is left out: {why}")),
            }
        }
        patterns
    }

    fn auth_profiles(&mut self, s: &Section<'a>) -> AuthProfiles {
        let (profiles, order) = (self.section(s, "profiles"), self.section(s, "order"));
        let mut found = AuthProfiles::default();
        for member in profiles.members {
            let profile = self.section(&profiles, &member.key);
            if let Some(provider) = self.text(&profile, "provider") {
                found.profiles.push((member.key.clone(), provider));
            }
        }
        for member in order.members {
            found.order.insert(member.key.clone(), self.texts(&order, &member.key));
        }
        found
    }

    fn models(&mut self, s: &Section<'a>) -> Models {
        let providers = self.section(s, "providers");
        let mut found = BTreeMap::new();
        for member in providers.members {
            let section = self.section(&providers, &member.key);
            if let Some(provider) = self.model_provider(&section) {
                found.insert(member.key.clone(), provider);
            }
        }
        Models { providers: found }
    }

    fn model_provider(&mut self, s: &Section<'a>) -> Option<Provider> {
        let base_url = self.parsed(s, "baseUrl", base_url);
        let api_key = self.secret(s, "apiKey");
        let api =
            match s.get("api") {
                None => Some(Api::OpenAiCompletions),
                Some(node) => {
                    let word = self.text(s, "api")?;
                    let api = Api::parse(&word);
                    if api.is_none() {
                        // The incumbent knows more wires than this gateway: its file stays good.
                        self.notice(s.path.key("api"), node, format!(
                        "is {word:?}, a wire this gateway does not speak (it speaks {}); the provider is left out",
                        Api::WORDS.join(", "),
                    ));
                    }
                    api
                }
            };
        let models = self.objects(s, "models");
        let models = models.iter().filter_map(|section| self.model(section)).collect();
        let (Some(base_url), Some(api)) = (base_url, api) else {
            if s.get("baseUrl").is_none()
                && let Some(node) = self.document.get(&s.path)
            {
                self.notice(s.path.clone(), node, "has no baseUrl; the provider is left out".to_owned());
            }
            return None;
        };
        Some(Provider { base_url, api_key, api, models })
    }

    fn model(&mut self, s: &Section<'a>) -> Option<Model> {
        let id = self.text(s, "id")?;
        let tokens = |found: Option<u64>, default| found.and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
        let compat = self.section(s, "compat");
        Some(Model {
            max_tokens_field: self.keyword(&compat, "maxTokensField", |_| None),
            name: self.text(s, "name").unwrap_or_else(|| id.clone()),
            context_window: tokens(self.integer(s, "contextWindow", 1024..=100_000_000), 128_000),
            max_tokens: tokens(self.integer(s, "maxTokens", 1..=10_000_000), 8192),
            reasoning: self.boolean(s, "reasoning").unwrap_or(false),
            input: self.texts(s, "input"),
            id,
        })
    }

    fn agents(&mut self, s: &Section<'a>) -> Agents {
        let default = Agents::default();
        let (primary, fallbacks) = match s.get("model") {
            Some(Node { value: Value::String(_), .. }) => (self.text(s, "model"), Vec::new()),
            _ => {
                let model = self.section(s, "model");
                (self.text(&model, "primary"), self.texts(&model, "fallbacks"))
            }
        };
        let timeout = self.integer(s, "timeoutSeconds", 1..=7 * 24 * 3600).map(Duration::from_secs);
        let at_once = self.integer(s, "maxConcurrent", 1..=4096).and_then(|runs| usize::try_from(runs).ok());
        Agents {
            primary,
            fallbacks,
            timeout: timeout.unwrap_or(default.timeout),
            max_concurrent: at_once.unwrap_or(default.max_concurrent),
        }
    }

    fn telegram(&mut self, s: &Section<'a>) -> Telegram {
        let bot_token = self.secret(s, "botToken");
        let groups = s.get("groups").is_some().then(|| {
            let groups = self.section(s, "groups");
            groups.members.iter().map(|member| (member.key.clone(), self.group(&groups, &member.key))).collect()
        });
        let webhook_url = self.parsed(s, "webhookUrl", base_url);
        let webhook_secret = self.secret(s, "webhookSecret");
        if webhook_url.is_some()
            && webhook_secret.is_none()
            && let Some(node) = s.get("webhookUrl")
        {
            let message = "needs webhookSecret beside it: without one anybody could send updates".to_owned();
            self.problem(s.path.key("webhookUrl"), node, message);
        }
        let dm_policy = self.keyword(s, "dmPolicy", |_| None).unwrap_or(DmPolicy::Pairing);
        let allow_from = self.ids(s, "allowFrom");
        Telegram {
            enabled: self.boolean(s, "enabled").unwrap_or(bot_token.is_some()),
            bot_token,
            api_root: self.parsed(s, "apiRoot", base_url).unwrap_or_else(|| "https://api.telegram.org".to_owned()),
            dm_policy,
            allow_from,
            group_policy: self.keyword(s, "groupPolicy", |_| None).unwrap_or(GroupPolicy::Allowlist),
            group_allow_from: self.ids(s, "groupAllowFrom"),
            groups,
            text_limit: self
                .integer(s, "textChunkLimit", 1..=TELEGRAM_TEXT)
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(4000),
            webhook_url,
            webhook_secret,
            webhook_path: self.parsed(s, "webhookPath", url_path).unwrap_or_else(|| "/telegram-webhook".to_owned()),
            webhook_host: self.parsed(s, "webhookHost", address).unwrap_or(IpAddr::from([127, 0, 0, 1])),
            webhook_port: self
                .integer(s, "webhookPort", 1..=65535)
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or(8787),
            webhook_cert_path: self.path(s, "webhookCertPath"),
            mention_patterns: Vec::new(),
            streaming: self.streaming(s),
            media_max_bytes: self.integer(s, "mediaMaxMb", 1..=2000).unwrap_or(100) * 1_000_000,
        }
    }

    /// `streaming`: a word, `{ mode: word }`, or a boolean as in old files.
    fn streaming(&mut self, s: &Section<'a>) -> Streaming {
        let found = match s.get("streaming") {
            Some(Node { value: Value::Bool(on), .. }) => Some(if *on { Streaming::Partial } else { Streaming::Off }),
            Some(Node { value: Value::Object(_), .. }) => {
                let section = self.section(s, "streaming");
                self.keyword(&section, "mode", |_| None)
            }
            _ => self.keyword(s, "streaming", |_| None),
        };
        if let (Some(word @ (Streaming::Block | Streaming::Progress)), Some(node)) = (found, s.get("streaming")) {
            let instead = if word == Streaming::Block { Streaming::Partial } else { Streaming::Off };
            self.notice(
                s.path.key("streaming"),
                node,
                format!(
                    "is {:?}, which this gateway does not have; it does as with {:?}",
                    word.as_str(),
                    instead.as_str(),
                ),
            );
        }
        found.unwrap_or(Streaming::Partial)
    }

    fn group(&mut self, groups: &Section<'a>, key: &str) -> Group {
        let section = self.section(groups, key);
        Group {
            require_mention: self.boolean(&section, "requireMention").unwrap_or(true),
            enabled: self.boolean(&section, "enabled").unwrap_or(true),
            group_policy: self.keyword(&section, "groupPolicy", |_| None),
            allow_from: self.ids(&section, "allowFrom"),
        }
    }

    /// Ids of people, as numbers or in quotes, with or without the channel's prefix.
    fn ids(&mut self, section: &Section<'a>, key: &str) -> Vec<String> {
        let mut ids = Vec::new();
        for (path, node) in self.elements(section, key) {
            let id = match &node.value {
                Value::Number(text) => Some(text.clone()),
                _ => self.string(path, node),
            };
            let Some(id) = id else { continue };
            let lower = id.to_ascii_lowercase();
            let bare = lower.strip_prefix("telegram:").or_else(|| lower.strip_prefix("tg:")).unwrap_or(&lower);
            ids.push(bare.to_owned());
        }
        ids
    }

    /// The objects of a list.
    fn objects(&mut self, section: &Section<'a>, key: &str) -> Vec<Section<'a>> {
        let mut found = Vec::new();
        for (path, node) in self.elements(section, key) {
            match node.value.as_object() {
                Some(members) => found.push(Section { path, members }),
                None => self.problem(path, node, "must be an object".to_owned()),
            }
        }
        found
    }

    fn notice(&mut self, key: KeyPath, node: &Node, message: String) {
        let position = self.document.position(node.span.start);
        self.notices.push(Problem { key, position, message, allowed: &[] });
    }
}

fn base_url(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    let wanted = || "it must be http(s)://host[:port][/path], without user, query or fragment".to_owned();
    let url = url::Url::parse(text).map_err(|_| wanted())?;
    let valid = matches!(url.scheme(), "http" | "https")
        && url.host().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if valid { Ok(text.to_owned()) } else { Err(wanted()) }
}

fn url_path(text: &str) -> Result<String, String> {
    let valid = text.len() > 1
        && text.starts_with('/')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b))
        && !text.split('/').any(|part| matches!(part, "." | ".."))
        // Of the listener itself.
        && text != "/healthz";
    if valid { Ok(text.to_owned()) } else { Err("it must be a path such as /telegram-webhook".to_owned()) }
}

fn address(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    text.parse().map_err(|_| "it must be an address of this machine such as 127.0.0.1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::super::Environment;
    use super::super::super::raw::Document;
    use super::super::{Decoded, decode};
    use super::*;

    fn decoded(text: &str) -> Decoded {
        decode(&Document::parse(text).unwrap(), &Environment::default()).unwrap_or_else(|p| panic!("{p:?}"))
    }

    #[test]
    fn reads_the_incumbents_keys() {
        let flow = decoded(
            r#"{
              agents: { defaults: { model: { primary: "local/m", fallbacks: ["other/n"] }, timeoutSeconds: 30 } },
              auth: { profiles: { "local:b": { provider: "local", mode: "api_key" } }, order: { local: ["local:b"] } },
              models: { mode: "merge", providers: { local: { baseUrl: "http://127.0.0.1:1234/v1/", apiKey: "k",
                api: "openai-completions", models: [{ id: "m", contextWindow: 4096, cost: { input: 0 } }] } } },
              channels: { telegram: { botToken: "1:a", allowFrom: [12, "tg:34", "*"], groups: { "-1": {} } } },
            }"#,
        )
        .config
        .flow;
        assert_eq!(flow.agents.primary.as_deref(), Some("local/m"));
        assert_eq!(flow.auth.profiles, [("local:b".to_owned(), "local".to_owned())]);
        assert_eq!(flow.auth.order["local"], ["local:b"]);
        let provider = &flow.models.providers["local"];
        assert_eq!((provider.base_url.as_str(), provider.models[0].context_window), ("http://127.0.0.1:1234/v1", 4096));
        let telegram = flow.telegram.unwrap();
        assert!(telegram.enabled && telegram.dm_policy == DmPolicy::Pairing);
        assert_eq!(telegram.allow_from, ["12", "34", "*"]);
        assert!(telegram.groups.unwrap()["-1"].require_mention);
    }

    #[test]
    fn a_wire_of_others_is_left_out_with_a_notice() {
        let decoded = decoded(r#"{models: {providers: {g: {baseUrl: "https://g.example", api: "google-x"}}}}"#);
        assert!(decoded.config.flow.models.providers.is_empty());
        assert_eq!(decoded.notices.len(), 1);
    }

    #[test]
    fn streaming_is_a_word_or_a_mode_and_what_is_not_here_is_said() {
        let streaming = |value: &str| {
            let decoded = decoded(&format!(r#"{{channels: {{telegram: {{botToken: "1:a", streaming: {value}}}}}}}"#));
            (decoded.config.flow.telegram.unwrap().streaming, decoded.notices.len())
        };
        assert_eq!(streaming(r#""off""#), (Streaming::Off, 0));
        assert_eq!(streaming(r#"{mode: "partial", preview: {toolProgress: false}}"#), (Streaming::Partial, 0));
        assert_eq!(streaming("true"), (Streaming::Partial, 0));
        assert_eq!(streaming("{}"), (Streaming::Partial, 0));
        assert_eq!(streaming(r#"{mode: "progress"}"#), (Streaming::Progress, 1));
    }

    #[test]
    fn a_webhook_needs_its_secret() {
        let text = r#"{channels: {telegram: {botToken: "1:a", webhookUrl: "https://h.example/t"}}}"#;
        assert!(decode(&Document::parse(text).unwrap(), &Environment::default()).is_err());
    }
}
