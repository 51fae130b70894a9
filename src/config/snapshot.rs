//! The configuration as the `config.get` method shows it: with its secrets taken out, and valid or not.
//!
//! ```json
//! {"path": "/home/u/.openclaw/openclaw.json", "exists": true, "raw": "{…}", "parsed": {}, "config": {},
//!  "valid": true, "issues": [], "warnings": [], "hash": "hmac-sha256:v1:…"}
//! ```
//!
//! `sourceConfig`, `resolved` and `runtimeConfig` are there for clients that look for them and equal `config`:
//! this gateway does not write defaults into what it shows. Of a file that is not valid nothing is shown but
//! what is wrong with it, since what cannot be read cannot be redacted.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};

use super::decode::Problem;
use super::load::{LoadError, Loaded, Source};
use super::redact::{redact, redact_text};

/// Makes the `hash` of a snapshot. The hash is keyed, so that it tells nothing about the secrets in the file
/// to who may read the snapshot; the key lives as long as the process.
#[derive(Debug)]
pub struct RevisionKey(hmac::Key);

impl RevisionKey {
    /// A key from random bytes.
    pub fn new(random: [u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &random))
    }

    /// The hash of a file's text; the same for the same text, and one of its own for no file.
    pub fn hash(&self, source: &Source) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        match &source.text {
            Some(text) => {
                context.update(b"1");
                context.update(text.as_bytes());
            }
            None => context.update(b"0"),
        }
        format!("hmac-sha256:v1:{}", URL_SAFE_NO_PAD.encode(context.sign()))
    }
}

/// The snapshot of a configuration that is in order.
pub fn snapshot(loaded: &Loaded, key: &RevisionKey) -> Value {
    let config = redact(loaded.document.root());
    let hash = key.hash(&loaded.source);
    let exists = loaded.source.text.is_some();
    json!({
        "path": loaded.source.path,
        "exists": exists,
        "raw": exists.then(|| redact_text(&loaded.document)),
        "parsed": config,
        "sourceConfig": config,
        "resolved": config,
        "runtimeConfig": config,
        "config": config,
        "valid": true,
        "hash": hash,
        "issues": [],
        "warnings": loaded.notices.iter().map(issue).collect::<Vec<_>>(),
        "legacyIssues": [],
        "configRevisionHash": hash,
    })
}

/// The snapshot of a file that is there and not in order.
pub fn invalid_snapshot(source: &Source, error: &LoadError, key: &RevisionKey) -> Value {
    json!({
        "path": source.path,
        "exists": source.text.is_some(),
        "raw": null,
        "parsed": null,
        "sourceConfig": {},
        "resolved": {},
        "runtimeConfig": {},
        "config": {},
        "valid": false,
        "hash": key.hash(source),
        "issues": issues(error),
        "warnings": [],
        "legacyIssues": [],
        "configRevisionHash": null,
    })
}

/// What is wrong, as `[{path, message, line?, column?, allowedValues?}]`.
pub fn issues(error: &LoadError) -> Value {
    match error {
        LoadError::Invalid { problems, .. } => problems.iter().map(issue).collect(),
        LoadError::Syntax { error, .. } => {
            let position = error.position;
            json!([{"path": "", "message": error.message, "line": position.line, "column": position.column}])
        }
        LoadError::Read { error, .. } => json!([{"path": "", "message": format!("it cannot be read: {error}")}]),
    }
}

/// One problem, in the same form.
pub fn issue(problem: &Problem) -> Value {
    let mut issue = json!({
        "path": problem.key.to_string(),
        "message": problem.message,
        "line": problem.position.line,
        "column": problem.position.column,
    });
    if !problem.allowed.is_empty() {
        issue["allowedValues"] = problem.allowed.into();
    }
    issue
}

#[cfg(test)]
mod tests {
    use super::super::Environment;
    use super::super::load::load;
    use super::super::paths::Paths;
    use super::super::redact::REDACTED;
    use super::*;

    fn of(text: Option<&str>) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { config_file: dir.path().join("c.json"), state_dir: dir.path().to_owned() };
        if let Some(text) = text {
            std::fs::write(&paths.config_file, text).unwrap();
        }
        let source = Source::read(&paths.config_file).unwrap();
        let key = RevisionKey::new([7; 32]);
        match load(paths, Environment::default()) {
            Ok(loaded) => snapshot(&loaded, &key),
            Err(error) => invalid_snapshot(&source, &error, &key),
        }
    }

    #[test]
    fn shows_a_valid_file_without_its_secrets() {
        let shown = of(Some("{gateway: {auth: {token: 's3cret'}}, other: 1} // c"));
        assert_eq!(shown["valid"], true);
        assert_eq!(shown["config"], json!({"gateway": {"auth": {"token": REDACTED}}, "other": 1}));
        assert_eq!(shown["raw"], format!("{{gateway: {{auth: {{token: \"{REDACTED}\"}}}}, other: 1}} // c"));
        assert!(!shown.to_string().contains("s3cret"));
    }

    #[test]
    fn shows_no_file_as_an_empty_configuration() {
        let shown = of(None);
        assert_eq!((&shown["exists"], &shown["valid"], &shown["raw"]), (&json!(false), &json!(true), &Value::Null));
        assert_ne!(shown["hash"], of(Some("{}"))["hash"]);
    }

    #[test]
    fn shows_of_a_broken_file_only_what_is_wrong() {
        let shown = of(Some("{gateway: {bind: 'everywhere', auth: {token: 's3cret'}}}"));
        assert_eq!((&shown["valid"], &shown["config"], &shown["raw"]), (&json!(false), &json!({}), &Value::Null));
        assert_eq!(shown["issues"][0]["path"], "gateway.bind");
        assert_eq!(shown["issues"][0]["allowedValues"][0], "loopback");
        let shown = of(Some("{gateway: {auth: {token: 's3cret'}}"));
        assert!(shown["issues"][0]["line"].is_number() && !shown.to_string().contains("s3cret"));
    }
}
