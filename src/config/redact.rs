//! Takes the secrets out of a configuration that is shown to somebody.
//!
//! What is a secret is told by the key's name and by the form of the value, because most keys belong to
//! programs and plugins that this gateway does not know. It errs on the side of hiding. References
//! (`"${NAME}"`, `{source, provider, id}`) are not secrets, except that an `id` is hidden: people put the
//! secret itself there by mistake. Start at [`redact`]; [`redact_text`] does the same to the text.

use std::ops::Range;

use serde_json::{Map, Value as Json};

use super::environment::leading_reference;
use super::raw::{Document, Node, Value};
pub use super::secret_ref::REDACTED;

/// `node` as JSON, every secret in it replaced by [`REDACTED`].
pub fn redact(node: &Node) -> Json {
    redact_value(&node.value, Sensitivity::Open)
}

/// The text of `document`, every secret replaced by a string that holds [`REDACTED`]. Comments that mention
/// something like a secret lose their contents.
pub fn redact_text(document: &Document) -> String {
    let mut cuts: Vec<(Range<usize>, String)> = Vec::new();
    find_secrets(document.root(), Sensitivity::Open, &mut |span| cuts.push((span, format!("\"{REDACTED}\""))));
    let text = document.text();
    for span in document.comments() {
        let comment = &text[span.clone()];
        if mentions_secret(comment) {
            let hidden = if comment.starts_with("//") { format!("// {REDACTED}") } else { format!("/* {REDACTED} */") };
            cuts.push((span, hidden));
        }
    }
    cuts.sort_by_key(|(span, _)| span.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (span, replacement) in cuts {
        out.push_str(&text[at..span.start]);
        out.push_str(&replacement);
        at = span.end;
    }
    out.push_str(&text[at..]);
    out
}

/// What the way to a value says about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sensitivity {
    Open,
    /// Strings and numbers are secrets.
    Secret,
    /// Whatever is in it is a secret: a map from header names to their values.
    AllSecret,
}

impl Sensitivity {
    fn of_member(self, key: &str) -> Self {
        match self {
            Self::AllSecret => Self::AllSecret,
            _ if key == "edgeAuth" => Self::AllSecret,
            _ if is_secret_name(key) => Self::Secret,
            _ => Self::Open,
        }
    }
}

fn redact_value(value: &Value, sensitivity: Sensitivity) -> Json {
    match value {
        _ if hides(value, sensitivity) => REDACTED.into(),
        Value::Array(nodes) => nodes.iter().map(|node| redact_value(&node.value, sensitivity)).collect(),
        Value::Object(members) => {
            let reference = is_reference(value);
            let members = members.iter().map(|member| {
                let sensitivity = member_sensitivity(reference, sensitivity, &member.key);
                (member.key.clone(), redact_value(&member.node.value, sensitivity))
            });
            Json::Object(members.collect::<Map<_, _>>())
        }
        other => other.to_json(),
    }
}

fn find_secrets(node: &Node, sensitivity: Sensitivity, found: &mut dyn FnMut(Range<usize>)) {
    match &node.value {
        value if hides(value, sensitivity) => found(node.span.clone()),
        Value::Array(nodes) => nodes.iter().for_each(|node| find_secrets(node, sensitivity, found)),
        value @ Value::Object(members) => {
            let reference = is_reference(value);
            for member in members {
                find_secrets(&member.node, member_sensitivity(reference, sensitivity, &member.key), found);
            }
        }
        _ => {}
    }
}

fn member_sensitivity(reference: bool, sensitivity: Sensitivity, key: &str) -> Sensitivity {
    match (reference, key) {
        (true, "id") => Sensitivity::Secret,
        (true, _) => Sensitivity::Open,
        (false, key) => sensitivity.of_member(key),
    }
}

/// Whether this very value is to be hidden.
fn hides(value: &Value, sensitivity: Sensitivity) -> bool {
    match value {
        Value::String(text) => match sensitivity {
            _ if text.is_empty() || is_variable(text) => false,
            Sensitivity::Open => is_secret_text(text),
            Sensitivity::Secret | Sensitivity::AllSecret => true,
        },
        Value::Number(_) => sensitivity != Sensitivity::Open,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

/// `"${NAME}"` and nothing else.
fn is_variable(text: &str) -> bool {
    leading_reference(text).is_some_and(|name| name.len() + "${}".len() == text.len())
}

fn is_reference(value: &Value) -> bool {
    ["source", "provider", "id"].iter().all(|key| value.get(key).is_some_and(|node| node.value.as_str().is_some()))
}

/// Whether a key of that name usually holds a secret: `token`, `botToken`, `API_KEY`, `clientSecret`.
fn is_secret_name(key: &str) -> bool {
    let name: String = key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    // Counts and places, not secrets.
    let harmless =
        ["tokens", "tokencount", "tokenlimit", "tokenbudget", "file", "path", "provider", "providers", "url", "env"];
    if harmless.iter().any(|suffix| name.ends_with(suffix)) || name == "secrets" {
        return false;
    }
    let anywhere = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "apikey",
        "privatekey",
        "credential",
        "authorization",
        "serviceaccount",
    ];
    let at_end = ["token", "cookie", "accesskey", "encryptkey", "signingkey", "encryptionkey", "authkey", "jwt"];
    anywhere.iter().any(|word| name.contains(word))
        || at_end.iter().any(|word| name.ends_with(word))
        // The convention of environment variables.
        || (key.ends_with("_KEY") || key.ends_with("_PASS") || key.ends_with("_PAT"))
}

/// Whether a text is a secret whatever its key: a URL with a password, a key file, a token of a known form.
fn is_secret_text(text: &str) -> bool {
    let userinfo = text.split_once("://").and_then(|(_, rest)| {
        let authority = rest.split(['/', '?', '#']).next()?;
        authority.rsplit_once('@')
    });
    let query = text.split_once('?').is_some_and(|(_, query)| {
        query
            .split('&')
            .any(|pair| pair.split_once('=').is_some_and(|(name, value)| !value.is_empty() && is_secret_name(name)))
    });
    let prefixes = ["sk-", "ghp_", "github_pat_", "xoxb-", "xoxp-", "xapp-", "Bearer ", "Basic ", "AKIA", "glpat-"];
    userinfo.is_some() || query || text.contains("-----BEGIN") || prefixes.iter().any(|prefix| text.starts_with(prefix))
}

/// Whether a comment may hold a secret: a word that names one, or a text that is one.
fn mentions_secret(comment: &str) -> bool {
    comment
        .split(|c: char| c.is_whitespace() || matches!(c, ':' | '=' | ',' | '"' | '\'' | '{' | '}' | '(' | ')'))
        .any(|word| is_secret_name(word) || is_secret_text(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = r#"{
  gateway: {
    auth: { mode: "token", token: "s3cret", password: 1234, maxTokens: 5 },
    remote: { url: "ws://h", token: { source: "env", provider: "default", id: "s3cret" }, password: "${PW}" },
    edgeAuth: { "X-Any": "s3cret", nested: ["s3cret"] },
  },
  env: { vars: { GROQ_API_KEY: "s3cret", DEPLOY_KEY: "s3cret", PLAIN: "x", HOOK: "https://h/x?token=s3cret" } },
  channels: { telegram: { botToken: "s3cret", tokenFile: "/t" }, list: [{ apiKeys: ["s3cret"] }] },
  models: { baseUrl: "http://u:s3cret@h/v1", any: "sk-s3cret", empty: { token: "" } }, // token: s3cret
  /* the password is s3cret */ n: null, // harmless
  secrets: { providers: { f: { source: "file", path: "/s" } } },
}"#;

    #[test]
    fn hides_secrets_and_nothing_else() {
        let json = redact(Document::parse(TEXT).unwrap().root());
        assert_eq!(
            json,
            json!({
                "gateway": {
                    "auth": {"mode": "token", "token": REDACTED, "password": REDACTED, "maxTokens": 5},
                    "remote": {
                        "url": "ws://h",
                        "token": {"source": "env", "provider": "default", "id": REDACTED},
                        "password": "${PW}",
                    },
                    "edgeAuth": {"X-Any": REDACTED, "nested": [REDACTED]},
                },
                "env": {"vars": {"GROQ_API_KEY": REDACTED, "DEPLOY_KEY": REDACTED, "PLAIN": "x", "HOOK": REDACTED}},
                "channels": {"telegram": {"botToken": REDACTED, "tokenFile": "/t"}, "list": [{"apiKeys": [REDACTED]}]},
                "models": {"baseUrl": REDACTED, "any": REDACTED, "empty": {"token": ""}},
                "n": null,
                "secrets": {"providers": {"f": {"source": "file", "path": "/s"}}},
            })
        );
    }

    #[test]
    fn the_redacted_text_is_the_redacted_document() {
        let document = Document::parse(TEXT).unwrap();
        let text = redact_text(&document);
        assert!(!text.contains("s3cret") && !text.contains("1234"), "{text}");
        assert!(text.contains("// harmless") && text.contains("// __OPENCLAW_REDACTED__"), "{text}");
        let redacted = Document::parse(text).unwrap();
        assert_eq!(redacted.root().value.to_json(), redact(document.root()));
    }

    #[test]
    fn knows_the_names_of_secrets() {
        for name in [
            "token",
            "authToken",
            "bot_token",
            "PASSWORD",
            "clientSecret",
            "API_KEY",
            "apiKey",
            "privateKey",
            "AWS_SECRET_ACCESS_KEY",
            "sessionCookie",
            "Authorization",
            "serviceAccount",
            "MY_KEY",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "maxTokens",
            "tokenFile",
            "passwordFile",
            "mainKey",
            "mode",
            "secrets",
            "secretProvider",
            "key",
            "tokenUrl",
            "author",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
