//! The settings this gateway reads, as a JSON Schema: `clawgate config schema`.
//!
//! One table, [`KEYS`], kept by hand beside [`super::decode`]. A test gives every key of it a wrong value and expects
//! the decoder to complain, and looks for every key of the decoder's own sample in it, so that neither knows a key that
//! the other does not. Keys that are not here belong to other programs and are allowed, as everywhere.

use serde_json::{Map, Value, json};

use super::flow::{DmPolicy, DmScope, GroupPolicy, Streaming};
use super::keyword::Keyword;
use super::model::{AuthMode, Bind, ConsoleStyle, HostKeyPolicy, LogLevel, Mode, ReloadMode, TailscaleMode, Transport};

/// What a key holds.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Switch,
    Number(u64, u64),
    Text,
    Texts,
    Word(&'static [&'static str]),
    Secret,
    Secrets,
    Scopes,
    ScopesByName,
    TextOrFalse,
    SecretProviders,
}

/// A key, what it holds, its default where it has a simple one, and what it does.
struct Key(&'static str, Kind, &'static str, &'static str);

const DAY_MS: u64 = 86_400_000;

/// Every key, in the order of the model.
#[rustfmt::skip]
const KEYS: &[Key] = &[
    Key("gateway.mode", Kind::Word(Mode::WORDS), "", "Whether this machine runs a gateway or is a client of another one."),
    Key("gateway.port", Kind::Number(1, 65_535), "18789", "Port of WebSocket and HTTP."),
    Key("gateway.bind", Kind::Word(Bind::WORDS), "\"loopback\"", "On which addresses to listen."),
    Key("gateway.customBindHost", Kind::Text, "", "Addresses for bind \"custom\", with commas between them."),
    Key("gateway.auth.mode", Kind::Word(AuthMode::WORDS), "", "What lets a caller in. Unset: a configured password selects \"password\", else \"token\"."),
    Key("gateway.auth.token", Kind::Secret, "", "The shared token."),
    Key("gateway.auth.password", Kind::Secret, "", "The shared password."),
    Key("gateway.auth.allowTailscale", Kind::Switch, "", "Tailscale identities let in; default true with tailscale.mode \"serve\"."),
    Key("gateway.auth.identityScopes", Kind::ScopesByName, "{}", "What a vouched-for identity is granted for one connection."),
    Key("gateway.auth.trustedProxy.userHeader", Kind::Text, "", "The header that names the user."),
    Key("gateway.auth.trustedProxy.requiredHeaders", Kind::Texts, "[]", "Headers that must be there."),
    Key("gateway.auth.trustedProxy.allowUsers", Kind::Texts, "[]", "Users who may come in; empty lets every user in."),
    Key("gateway.auth.trustedProxy.allowLoopback", Kind::Switch, "false", "The proxy may be on this host."),
    Key("gateway.auth.trustedProxy.deviceAutoApprove.enabled", Kind::Switch, "false", "Users of the proxy pair devices unasked."),
    Key("gateway.auth.trustedProxy.deviceAutoApprove.scopes", Kind::Scopes, "[]", "What such a device gets."),
    Key("gateway.auth.rateLimit.maxAttempts", Kind::Number(1, 1_000_000), "10", "Wrong credentials before an address is locked."),
    Key("gateway.auth.rateLimit.windowMs", Kind::Number(1, DAY_MS), "60000", "Time in which they are counted."),
    Key("gateway.auth.rateLimit.lockoutMs", Kind::Number(1, DAY_MS), "300000", "Time for which an address is locked."),
    Key("gateway.auth.rateLimit.exemptLoopback", Kind::Switch, "true", "Programs on this host are not counted."),
    Key("gateway.trustedProxies", Kind::Texts, "[]", "Addresses and CIDRs of proxies whose headers are believed."),
    Key("gateway.allowRealIpFallback", Kind::Switch, "false", "X-Real-IP counts where X-Forwarded-For is missing."),
    Key("gateway.controlUi.enabled", Kind::Switch, "true", "Serve the Control UI."),
    Key("gateway.controlUi.root", Kind::Text, "", "A folder to serve in place of the built-in pages."),
    Key("gateway.controlUi.basePath", Kind::Text, "\"\"", "Path of the Control UI."),
    Key("gateway.controlUi.allowedOrigins", Kind::Texts, "[]", "Origins of pages that may connect: scheme://host[:port], or *."),
    Key("gateway.controlUi.allowInsecureAuth", Kind::Switch, "false", "A Control UI on this host may do without a device identity."),
    Key("gateway.controlUi.dangerouslyAllowHostHeaderOriginFallback", Kind::Switch, "false", "An Origin that equals Host is allowed everywhere."),
    Key("gateway.tailscale.mode", Kind::Word(TailscaleMode::WORDS), "\"off\"", "How the tailnet reaches this gateway."),
    Key("gateway.remote.url", Kind::Text, "", "The gateway that clients on this machine use in mode \"remote\"."),
    Key("gateway.remote.transport", Kind::Word(Transport::WORDS), "\"ssh\"", "How it is reached."),
    Key("gateway.remote.token", Kind::Secret, "", "Its token."),
    Key("gateway.remote.password", Kind::Secret, "", "Its password."),
    Key("gateway.remote.sshTarget", Kind::Text, "", "[user@]host[:port] of the tunnel."),
    Key("gateway.remote.sshIdentity", Kind::Text, "", "Path of a private key for the tunnel."),
    Key("gateway.remote.sshHostKeyPolicy", Kind::Word(HostKeyPolicy::WORDS), "\"strict\"", "Whose word counts for the SSH host's key."),
    Key("gateway.remote.remotePort", Kind::Number(1, 65_535), "", "The gateway's port at the far end of the tunnel; default: that of url."),
    Key("gateway.remote.tlsFingerprint", Kind::Text, "", "SHA-256 pins of its certificate, or \"spki:\" of its key, with commas between them."),
    Key("gateway.remote.edgeAuth", Kind::Secrets, "{}", "Headers for a proxy in front of url, by name; sent over wss:// only."),
    Key("gateway.tls.enabled", Kind::Switch, "false", "Listen with TLS."),
    Key("gateway.tls.autoGenerate", Kind::Switch, "true", "Make a self-signed certificate when there is none."),
    Key("gateway.tls.certPath", Kind::Text, "", "The certificate, PEM."),
    Key("gateway.tls.keyPath", Kind::Text, "", "Its key, PEM."),
    Key("gateway.tls.caPath", Kind::Text, "", "No effect here: certPath holds the whole chain, and clients prove themselves by gateway.auth."),
    Key("gateway.reload.mode", Kind::Word(ReloadMode::WORDS), "\"hybrid\"", "Whether edits of this file take effect while the gateway runs."),
    Key("gateway.nodes.commands.allow", Kind::Texts, "[]", "Commands of nodes beyond the defaults of their platform."),
    Key("gateway.nodes.commands.deny", Kind::Texts, "[]", "Commands that no node runs; wins over everything."),
    Key("gateway.nodes.allowCommands", Kind::Texts, "[]", "Older name of commands.allow."),
    Key("gateway.nodes.denyCommands", Kind::Texts, "[]", "Older name of commands.deny."),
    Key("gateway.nodes.pluginTools.enabled", Kind::Switch, "true", "Nodes may publish tools for agents."),
    Key("gateway.nodes.allowSkills", Kind::Switch, "true", "Nodes may publish skills."),
    Key("gateway.nodes.pairing.autoApproveLocal", Kind::Switch, "true", "Truly local devices pair silently."),
    Key("gateway.nodes.pairing.autoApproveCidrs", Kind::Texts, "[]", "Where new nodes pair unasked from."),
    Key("gateway.handshakeTimeoutMs", Kind::Number(1, 600_000), "15000", "Time from accept to hello-ok."),
    Key("gateway.http.securityHeaders.strictTransportSecurity", Kind::TextOrFalse, "false", "Value of that header."),
    Key("gateway.http.endpoints.chatCompletions.enabled", Kind::Switch, "false", "Serve /v1/chat/completions and /v1/models."),
    Key("gateway.tools.deny", Kind::Texts, "[]", "Tools that /tools/invoke does not call."),
    Key("gateway.tools.allow", Kind::Texts, "[]", "Tools that it calls for administrators although they can do anything, such as nodes."),
    Key("agents.defaults.model.primary", Kind::Text, "", "The model of the agent, \"provider/model\"; default: the first there is."),
    Key("agents.defaults.model.fallbacks", Kind::Texts, "[]", "Models to go on with when it fails, in order."),
    Key("agents.defaults.timeoutSeconds", Kind::Number(1, 604_800), "", "Time that one run may take."),
    Key("session.dmScope", Kind::Word(DmScope::WORDS), "\"main\"", "Which direct messages share a session."),
    Key("channels.telegram.enabled", Kind::Switch, "", "Serve the bot; default true with a botToken."),
    Key("channels.telegram.botToken", Kind::Secret, "", "The token of the bot."),
    Key("channels.telegram.apiRoot", Kind::Text, "\"https://api.telegram.org\"", "The Bot API server."),
    Key("channels.telegram.dmPolicy", Kind::Word(DmPolicy::WORDS), "\"pairing\"", "Who may write to the bot directly."),
    Key("channels.telegram.groupPolicy", Kind::Word(GroupPolicy::WORDS), "\"allowlist\"", "In which groups it answers."),
    Key("channels.telegram.textChunkLimit", Kind::Number(1, 4096), "4000", "Characters of one message."),
    Key("channels.telegram.webhookUrl", Kind::Text, "", "Where the Bot API sends updates, in place of polling."),
    Key("channels.telegram.webhookSecret", Kind::Secret, "", "What it proves itself with there."),
    Key("channels.telegram.webhookPath", Kind::Text, "\"/telegram-webhook\"", "Path of the webhook here."),
    Key("channels.telegram.webhookHost", Kind::Text, "\"127.0.0.1\"", "The address that the listener for the webhook binds."),
    Key("channels.telegram.webhookPort", Kind::Number(1, 65_535), "8787", "Its port."),
    Key("channels.telegram.webhookCertPath", Kind::Text, "", "A self-signed certificate of webhookUrl's host, PEM, for Telegram to trust."),
    Key("channels.telegram.streaming.mode", Kind::Word(Streaming::WORDS), "\"partial\"", "Whether answers grow while they are written; \"block\" is as \"partial\" here, \"progress\" as \"off\"."),
    Key("channels.telegram.mediaMaxMb", Kind::Number(1, 2000), "100", "Size of a picture, either way; 5 MiB at most here."),
    Key("secrets.providers", Kind::SecretProviders, "{}", "Where SecretRefs lead, by name: [a-z][a-z0-9_-]{0,63}."),
    Key("secrets.defaults.env", Kind::Text, "", "The name that means the environment without an entry; default: default."),
    Key("logging.level", Kind::Word(LogLevel::WORDS), "\"info\"", "What goes to the log."),
    Key("logging.consoleLevel", Kind::Word(LogLevel::WORDS), "", "What goes to the console; default: level."),
    Key("logging.consoleStyle", Kind::Word(ConsoleStyle::WORDS), "\"pretty\"", "Lines for people, or JSON."),
    Key("logging.file", Kind::Text, "", "Also log there."),
    Key("plugins.entries.clawgate.config.limits.outboxBytes", Kind::Number(65_536, 1 << 30), "4194304", "Bytes that may wait for one connection."),
    Key("plugins.entries.clawgate.config.limits.totalOutboxBytes", Kind::Number(1 << 20, 64 << 30), "268435456", "Bytes that may wait for all connections together."),
    Key("plugins.entries.clawgate.config.limits.preauthSockets", Kind::Number(16, 1 << 20), "16384", "Sockets that may be open without having authenticated, all together."),
    Key("plugins.entries.clawgate.config.deviceTokens.maxAgeDays", Kind::Number(1, 3650), "", "Days after which a device's token ends; default: never."),
    Key("plugins.entries.clawgate.config.deviceTokens.idleDays", Kind::Number(1, 3650), "", "Days without use after which it ends; default: never."),
    Key("plugins.entries.clawgate.config.tailscale.socket", Kind::Text, "\"/var/run/tailscale/tailscaled.sock\"", "Where the local Tailscale daemon listens."),
    Key("plugins.entries.clawgate.config.tailscale.command", Kind::Text, "\"tailscale\"", "The tailscale program."),
    Key("plugins.entries.device-pair.config.publicUrl", Kind::Text, "", "The address that setup codes lead to."),
    Key("plugins.entries.clawgate.config.tunnel.sshConfig", Kind::Text, "", "OpenSSH configuration file for the tunnel (ssh -F)."),
];

impl Kind {
    fn schema(self) -> Value {
        let texts = json!({"type": "array", "items": {"type": "string"}});
        match self {
            Self::Switch => json!({"type": "boolean"}),
            Self::Number(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
            Self::Text => json!({"type": "string"}),
            Self::Texts | Self::Scopes => texts,
            Self::Word(words) => json!({"enum": words}),
            Self::Secret => json!({"$ref": "#/$defs/secret"}),
            Self::Secrets => json!({"type": "object", "additionalProperties": {"$ref": "#/$defs/secret"}}),
            Self::ScopesByName => json!({"type": "object", "additionalProperties": texts}),
            Self::TextOrFalse => json!({"anyOf": [{"type": "string"}, {"const": false}]}),
            Self::SecretProviders => {
                json!({"type": "object", "additionalProperties": {"$ref": "#/$defs/secretProvider"}})
            }
        }
    }
}

/// The names of all keys, in the order of the model.
pub fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|Key(path, ..)| *path)
}

/// Whether the key holds a secret that this gateway reads.
pub fn is_secret(path: &str) -> bool {
    KEYS.iter().any(|Key(key, kind, ..)| match kind {
        Kind::Secret => path == *key,
        Kind::Secrets => path.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '['])),
        _ => false,
    }) || (path.starts_with("models.providers.") && path.ends_with(".apiKey"))
}

/// The schema.
pub fn schema() -> Value {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "openclaw.json, as far as clawgate reads it",
        "type": "object",
        "properties": {},
        "$defs": {"secret": {"anyOf": [
            {"type": "string"},
            {
                "type": "object",
                "properties": {
                    "source": {"enum": ["env", "file", "exec", "store"]},
                    "provider": {"type": "string"},
                    "id": {"type": "string"},
                },
                "required": ["source", "provider", "id"],
            },
        ]}, "secretProvider": secret_provider()},
    });
    for Key(path, kind, default, help) in KEYS {
        let mut schema = kind.schema();
        schema["description"] = (*help).into();
        // The table's defaults are JSON; a test reads them all.
        if let Ok(default) = serde_json::from_str::<Value>(default) {
            schema["default"] = default;
        }
        place(&mut root, path, schema);
    }
    root
}

/// One of `secrets.providers`: by its source, what it is made of. Others are kept, and give no secret here.
fn secret_provider() -> Value {
    let texts = json!({"type": "array", "items": {"type": "string"}});
    let bytes = json!({"type": "integer", "minimum": 1, "maximum": 64 << 20, "default": 1 << 20});
    let is = |source: &str| json!({"properties": {"source": {"const": source}}, "required": ["source"]});
    json!({
        "type": "object",
        "properties": {"source": {"enum": ["env", "file", "exec", "store"]}},
        "allOf": [
            {"if": is("env"), "then": {"properties": {
                "allowlist": {"type": "array", "items": {"type": "string"}, "description": "Names that may be read."},
            }}},
            {"if": is("file"), "then": {"required": ["path"], "properties": {
                "path": {"type": "string"},
                "mode": {"enum": ["json", "singleValue"], "default": "json",
                    "description": "A JSON object of secrets, or one secret."},
                "maxBytes": bytes,
            }}},
            {"if": is("exec"), "then": {"properties": {
                "command": {"type": "string", "description": "An absolute path."},
                "args": texts,
                "env": {"type": "object", "additionalProperties": {"type": "string"},
                    "description": "Variables that it gets."},
                "passEnv": {"type": "array", "items": {"type": "string"},
                    "description": "Variables of the gateway's that it gets, too; no others."},
                "trustedDirs": {"type": "array", "items": {"type": "string"},
                    "description": "Folders that it must be in."},
                "jsonOnly": {"type": "boolean", "default": true, "description": "Its answer must be JSON."},
                "timeoutMs": {"type": "integer", "minimum": 1, "maximum": 600_000, "default": 5000},
                "maxOutputBytes": bytes,
            }}},
        ],
    })
}

fn place(root: &mut Value, path: &str, schema: Value) {
    let mut at = root;
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let properties = &mut at["properties"];
        if properties.is_null() {
            *properties = Value::Object(Map::new());
        }
        let child = &mut properties[name];
        if names.peek().is_none() {
            *child = schema;
            return;
        }
        if child.is_null() {
            *child = json!({"type": "object"});
        }
        at = child;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Environment;
    use super::super::decode::{self, decode};
    use super::super::raw::Document;
    use super::*;

    fn at(path: &str, value: &str) -> String {
        path.split('.').rev().fold(value.to_owned(), |inner, name| format!("{{\"{name}\": {inner}}}"))
    }

    #[test]
    fn the_decoder_reads_every_key_of_the_table() {
        for Key(path, ..) in KEYS {
            let document = Document::parse(at(path, "[{}]")).unwrap();
            let problems = decode(&document, &Environment::default()).expect_err(path);
            assert!(problems.iter().any(|problem| problem.key.to_string().starts_with(path)), "{path}");
        }
    }

    #[test]
    fn the_defaults_of_the_table_are_valid() {
        for Key(path, _, default, _) in KEYS.iter().filter(|key| !key.2.is_empty()) {
            let document = Document::parse(at(path, default)).unwrap();
            assert!(decode(&document, &Environment::default()).is_ok(), "{path}: {default}");
        }
    }

    #[test]
    fn the_table_has_every_key_that_the_decoder_reads() {
        fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(members) if !members.contains_key("source") => {
                    for (name, value) in members {
                        leaves(value, &format!("{path}.{name}"), found);
                    }
                }
                _ => drop(found.insert(path.trim_start_matches('.').to_owned())),
            }
        }
        let sample = Document::parse(decode::tests::EVERY_KEY.to_owned()).unwrap();
        let mut found = BTreeSet::new();
        leaves(&sample.root().value.to_json(), "", &mut found);
        assert!(found.len() > 50, "{found:?}");
        for path in found {
            let listed = KEYS.iter().any(|key| path == key.0 || path.starts_with(&format!("{}.", key.0)));
            assert!(listed, "{path} is not in the table");
        }
    }

    #[test]
    fn a_schema_says_kind_range_words_and_default() {
        let schema = schema();
        let gateway = &schema["properties"]["gateway"]["properties"];
        assert_eq!((&gateway["port"]["maximum"], &gateway["port"]["default"]), (&json!(65_535), &json!(18_789)));
        assert_eq!(gateway["bind"]["enum"][0], "loopback");
        assert_eq!(gateway["auth"]["properties"]["token"]["$ref"], "#/$defs/secret");
        let providers = &schema["properties"]["secrets"]["properties"]["providers"]["additionalProperties"];
        let named = providers["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        assert!(schema.pointer(named).unwrap().to_string().contains("singleValue"));
    }
}
