//! The settings of the agent and its channels: `models`, `agents`, `session`, `channels.telegram`.
//!
//! Types only, like [`super::model`]: what exists here is within its range. The keys are the incumbent's, so one file
//! serves both. Where to start: [`Models`], [`Agents`], [`Telegram`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

use super::keyword::keywords;
use super::secret_ref::SecretInput;

/// `auth`, beside `gateway.auth`: which keys of a provider are used in which order. It holds no key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthProfiles {
    /// `profiles`: id and provider, in the order of the file.
    pub profiles: Vec<(String, String)>,
    /// `order`, by provider: these profiles and no others.
    pub order: BTreeMap<String, Vec<String>>,
}

/// `models`.
#[derive(Clone, Debug, Default)]
pub struct Models {
    /// `providers`, by id.
    pub providers: BTreeMap<String, Provider>,
}

/// One of `models.providers`.
#[derive(Clone, Debug)]
pub struct Provider {
    /// `baseUrl`: `http(s)://host[:port][/path]`, without a slash at the end.
    pub base_url: String,
    /// `apiKey`; a server on this machine may need none.
    pub api_key: Option<SecretInput>,
    /// `api`. Default `openai-completions`.
    pub api: Api,
    /// `models`.
    pub models: Vec<Model>,
}

keywords! {
    /// `models.providers.<id>.api`: the wire that a provider speaks.
    Api {
        /// `POST <baseUrl>/chat/completions`, streamed.
        OpenAiCompletions = "openai-completions",
        /// `POST <baseUrl>/v1/messages`, streamed.
        AnthropicMessages = "anthropic-messages",
    }
}

keywords! {
    /// `models.providers.<id>.models[].compat.maxTokensField`.
    MaxTokensField {
        /// The name that everybody knows.
        MaxTokens = "max_tokens",
        /// The name that OpenAI's own models take.
        MaxCompletionTokens = "max_completion_tokens",
    }
}

/// One of a provider's `models`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// `id`: how the provider calls it.
    pub id: String,
    /// `name`: for people. Default: the id.
    pub name: String,
    /// `contextWindow`, tokens. Default 128,000.
    pub context_window: u32,
    /// `maxTokens`: of one answer. Default 8,192.
    pub max_tokens: u32,
    /// `compat.maxTokensField`. Default: by the provider.
    pub max_tokens_field: Option<MaxTokensField>,
    /// `reasoning`. Default false.
    pub reasoning: bool,
    /// `input`: what it takes beside text.
    pub input: Vec<String>,
}

/// `agents.defaults`, for the one agent there is.
#[derive(Clone, Debug)]
pub struct Agents {
    /// `model.primary`, or `model` as a string: `provider/model`.
    pub primary: Option<String>,
    /// `model.fallbacks`.
    pub fallbacks: Vec<String>,
    /// `timeoutSeconds`: the longest run. Default 10 min.
    pub timeout: Duration,
    /// `maxConcurrent`: runs that go on at a time, all sessions together; others wait. 1 to 4096. Default 256.
    pub max_concurrent: usize,
}

impl Default for Agents {
    fn default() -> Self {
        Self { primary: None, fallbacks: Vec::new(), timeout: Duration::from_secs(600), max_concurrent: 256 }
    }
}

keywords! {
    /// `session.dmScope`: which session a direct message belongs to.
    DmScope {
        /// The agent's main one, whoever writes.
        Main = "main",
        /// One a person.
        PerPeer = "per-peer",
        /// One a person and channel.
        PerChannelPeer = "per-channel-peer",
        /// One a person, channel and account.
        PerAccountChannelPeer = "per-account-channel-peer",
    }
}

keywords! {
    /// `channels.telegram.dmPolicy`: who may write to the bot.
    DmPolicy {
        /// Whom an operator has approved, beside `allowFrom`.
        Pairing = "pairing",
        /// `allowFrom` alone.
        Allowlist = "allowlist",
        /// Whom `allowFrom` covers; `"*"` covers everybody.
        Open = "open",
        /// Nobody.
        Disabled = "disabled",
    }
}

keywords! {
    /// `channels.telegram.groupPolicy`: who may speak to the bot in a group.
    GroupPolicy {
        /// Everybody there.
        Open = "open",
        /// `groupAllowFrom`, or `allowFrom` where that is not set.
        Allowlist = "allowlist",
        /// Nobody.
        Disabled = "disabled",
    }
}

keywords! {
    /// `channels.telegram.streaming`, or its `mode`: whether an answer is shown while it is written.
    Streaming {
        /// It comes when it is whole.
        Off = "off",
        /// Its beginning is sent, and edited as it grows.
        Partial = "partial",
        /// As `partial`: the incumbent sends it in blocks.
        Block = "block",
        /// As `off`, with the typing indicator: the incumbent shows a status that it edits.
        Progress = "progress",
    }
}

/// `channels.telegram`.
#[derive(Clone, Debug)]
pub struct Telegram {
    /// `enabled`. Default true where there is a token.
    pub enabled: bool,
    /// `botToken`.
    pub bot_token: Option<SecretInput>,
    /// `apiRoot`. Default `https://api.telegram.org`; no slash at the end.
    pub api_root: String,
    /// `dmPolicy`. Default `pairing`.
    pub dm_policy: DmPolicy,
    /// `allowFrom`: numeric ids of people, `*` for everybody; prefixes `telegram:` and `tg:` are taken off.
    pub allow_from: Vec<String>,
    /// `groupPolicy`. Default `allowlist`.
    pub group_policy: GroupPolicy,
    /// `groupAllowFrom`; empty: as `allowFrom`.
    pub group_allow_from: Vec<String>,
    /// `groups`: which groups, by chat id or `*`; `None` when not said.
    pub groups: Option<BTreeMap<String, Group>>,
    /// `textChunkLimit`: characters of one message, 1 to 4096. Default 4000.
    pub text_limit: usize,
    /// `webhookUrl`: updates come by webhook instead of polling.
    pub webhook_url: Option<String>,
    /// `webhookSecret`; needed with a webhook.
    pub webhook_secret: Option<SecretInput>,
    /// `webhookPath`. Default `/telegram-webhook`; never `/healthz`.
    pub webhook_path: String,
    /// `webhookHost`: the address that the listener for the webhook binds. Default `127.0.0.1`.
    pub webhook_host: IpAddr,
    /// `webhookPort`. Default 8787.
    pub webhook_port: u16,
    /// `webhookCertPath`: a self-signed certificate of `webhookUrl`'s host, PEM, which Telegram is told to trust.
    pub webhook_cert_path: Option<PathBuf>,
    /// `agents.entries.main.groupChat.mentionPatterns`, or else `messages.groupChat.mentionPatterns`: what the bot is called
    /// in groups, beside its user name. Regular expressions, in any case of letters.
    pub mention_patterns: Vec<Pattern>,
    /// `streaming`. Default `partial`.
    pub streaming: Streaming,
    /// `mediaMaxMb`, in bytes: of one picture, either way. Default 100 MB; this gateway takes 5 MiB at most.
    pub media_max_bytes: u64,
}

/// A regular expression. Matching takes time in proportion to the text, whatever the pattern is.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Bytes that a pattern may take once it is compiled.
    const MAX_BYTES: usize = 256 * 1024;

    /// Compiles a pattern.
    ///
    /// # Errors
    /// It is none, or too large; the text says why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let compiled = RegexBuilder::new(text).case_insensitive(true).size_limit(Self::MAX_BYTES).build();
        compiled.map(Self).map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())
    }

    /// Whether it occurs in `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

/// One of `channels.telegram.groups`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `requireMention`. Default true.
    pub require_mention: bool,
    /// `enabled`. Default true.
    pub enabled: bool,
    /// `groupPolicy`, where this group has one of its own.
    pub group_policy: Option<GroupPolicy>,
    /// `allowFrom`, where this group has one of its own.
    pub allow_from: Vec<String>,
}

impl Default for Group {
    fn default() -> Self {
        Self { require_mention: true, enabled: true, group_policy: None, allow_from: Vec::new() }
    }
}

/// Everything about the agent and its channels.
#[derive(Clone, Debug)]
pub struct Flow {
    /// `auth`.
    pub auth: AuthProfiles,
    /// `models`.
    pub models: Models,
    /// `agents.defaults`.
    pub agents: Agents,
    /// `session.dmScope`. Default `main`.
    pub dm_scope: DmScope,
    /// `channels.telegram`.
    pub telegram: Option<Telegram>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            auth: AuthProfiles::default(),
            models: Models::default(),
            agents: Agents::default(),
            dm_scope: DmScope::Main,
            telegram: None,
        }
    }
}
