//! Secrets of the configuration: written out, or as a reference to where they are kept (contract 2.2).
//!
//! A reference is `{source: "env"|"file"|"exec", provider, id}`, or the short form `"${NAME}"` for a
//! variable. Which provider that means, whether the reference is well formed, and what the provider's answer
//! holds is decided here; reading the file and running the command is left to a [`ProviderAccess`]. One that
//! cannot be resolved is an error with the reason, never "not set". Start at [`SecretReader::read`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::Environment;
use super::keyword::keywords;
use crate::secret::Secret;

/// Stands where a secret was taken out for display. Never a secret itself.
pub const REDACTED: &str = "__OPENCLAW_REDACTED__";

/// The value of a key that holds a secret.
#[derive(Clone, Debug)]
pub enum SecretInput {
    /// The secret itself.
    Literal(Secret),
    /// Where it is kept.
    Ref(SecretRef),
    /// A text with a variable in the middle (`"a${NAME}z"`), and the variable is not set.
    Incomplete {
        /// Its name.
        variable: String,
    },
}

/// Where a secret is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// What kind of provider.
    pub source: SecretSource,
    /// Its name in `secrets.providers`: `[a-z][a-z0-9_-]{0,63}`.
    pub provider: String,
    /// Which of its secrets.
    pub id: String,
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source, self.provider, self.id)
    }
}

keywords! {
    /// Kinds of providers.
    SecretSource {
        /// Environment variables.
        Env = "env",
        /// A file.
        File = "file",
        /// A command.
        Exec = "exec",
        /// The secret store of an OpenClaw installation, which this gateway cannot read.
        Store = "store",
    }
}

impl SecretSource {
    /// What is wrong with `id` as an id of this source; `None` when nothing is.
    pub fn objection_to_id(self, id: &str) -> Option<&'static str> {
        match self {
            Self::Env | Self::Store => {
                let valid = (1..=128).contains(&id.len())
                    && id.starts_with(|c: char| c.is_ascii_uppercase())
                    && id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
                (!valid).then_some("must be a name in upper case, such as OPENCLAW_GATEWAY_TOKEN")
            }
            Self::File => (id != "value" && !id.starts_with('/'))
                .then_some("must be a JSON pointer such as \"/gateway/token\", or \"value\" for a whole file"),
            Self::Exec => {
                let valid = (1..=256).contains(&id.len())
                    && id.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/#-".contains(&b))
                    && !id.split('/').any(|part| matches!(part, "." | ".."));
                (!valid).then_some(
                    "must be up to 256 letters, digits and \"._:/#-\", without \".\" or \"..\" between slashes",
                )
            }
        }
    }
}

/// Whether `alias` can name a provider.
pub fn is_provider_alias(alias: &str) -> bool {
    (1..=64).contains(&alias.len())
        && alias.starts_with(|c: char| c.is_ascii_lowercase())
        && alias.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

/// `secrets`: which providers there are.
#[derive(Clone, Debug, Default)]
pub struct SecretProviders {
    /// `providers`, by name.
    pub providers: BTreeMap<String, Provider>,
    /// `defaults.env`: the name that means the environment without an entry. Default `default`.
    pub default_env: Option<String>,
}

/// One of `secrets.providers`.
#[derive(Clone, Debug)]
pub enum Provider {
    /// The environment, cut down to `allowlist` where there is one.
    Env {
        /// Names that may be read.
        allowlist: Option<Vec<String>>,
    },
    /// A file.
    File(FileProvider),
    /// A command.
    Exec(ExecProvider),
    /// A kind this gateway cannot read from.
    Unsupported {
        /// What it is, for the error.
        what: &'static str,
    },
}

/// A provider that is a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProvider {
    /// `path`.
    pub path: PathBuf,
    /// `mode: "singleValue"`: the whole file is the secret; otherwise it is a JSON object.
    pub single_value: bool,
    /// `maxBytes`. Default 1 MiB.
    pub max_bytes: usize,
}

/// A provider that is a command.
#[derive(Clone, Debug)]
pub struct ExecProvider {
    /// `command`: an absolute path.
    pub command: PathBuf,
    /// `args`.
    pub args: Vec<String>,
    /// `env`: variables the command gets.
    pub env: BTreeMap<String, Secret>,
    /// `passEnv`: variables of ours it gets too. It gets no others.
    pub pass_env: Vec<String>,
    /// `trustedDirs`: folders the command must be in, where there are any.
    pub trusted_dirs: Vec<PathBuf>,
    /// `jsonOnly`: its answer must be JSON. Default true.
    pub json_only: bool,
    /// `timeoutMs`. Default 5 s.
    pub timeout: Duration,
    /// `maxOutputBytes`. Default 1 MiB.
    pub max_output_bytes: usize,
}

/// Reads what providers are made of. Errors are reasons for people, without the secret.
pub trait ProviderAccess {
    /// The contents of the file.
    fn read_file(&self, provider: &FileProvider) -> Result<String, String>;
    /// What the command prints when it is given `request` on its standard input.
    fn run(&self, provider: &ExecProvider, request: &str) -> Result<String, String>;
}

/// For places where only the environment is at hand.
#[derive(Clone, Copy, Debug)]
pub struct EnvironmentOnly;

impl ProviderAccess for EnvironmentOnly {
    fn read_file(&self, _: &FileProvider) -> Result<String, String> {
        Err("files cannot be read here".to_owned())
    }

    fn run(&self, _: &ExecProvider, _: &str) -> Result<String, String> {
        Err("commands cannot be run here".to_owned())
    }
}

/// Everything that is needed to turn a [`SecretInput`] into the secret.
#[derive(Clone, Copy)]
pub struct SecretReader<'a> {
    /// Which providers there are.
    pub providers: &'a SecretProviders,
    /// The variables.
    pub environment: &'a Environment,
    /// The way to files and commands.
    pub access: &'a dyn ProviderAccess,
}

/// A secret that is configured and cannot be had. The text is the reason; it does not name the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unresolved(String);

impl SecretReader<'_> {
    /// The secret that `input` stands for, trimmed and not blank.
    ///
    /// # Errors
    /// [`Unresolved`] when it cannot be had, whatever the reason.
    pub fn read(&self, input: &SecretInput) -> Result<Secret, Unresolved> {
        match input {
            SecretInput::Literal(secret) => Ok(secret.clone()),
            SecretInput::Incomplete { variable } => Err(not_set(variable)),
            SecretInput::Ref(reference) => {
                let text = self.look_up(reference).map_err(Unresolved)?;
                match text.expose().trim() {
                    "" => Err(Unresolved(format!("{reference:?} is empty"))),
                    REDACTED => Err(Unresolved(format!("{reference:?} is a redaction placeholder, not a secret"))),
                    trimmed => Ok(Secret::new(trimmed)),
                }
            }
        }
    }

    fn look_up(&self, reference: &SecretRef) -> Result<Secret, String> {
        let SecretRef { source, provider: alias, id } = reference;
        let configured = self.providers.providers.get(alias);
        match (source, configured) {
            (SecretSource::Env, Some(Provider::Env { allowlist })) => {
                if allowlist.as_ref().is_some_and(|names| !names.contains(id)) {
                    return Err(format!("secrets.providers.{alias}.allowlist does not have {id}"));
                }
                self.variable(id)
            }
            (SecretSource::Env, _) if alias == self.providers.default_env.as_deref().unwrap_or("default") => self.variable(id),
            (SecretSource::File, Some(Provider::File(file))) => {
                let text = Secret::new(self.access.read_file(file)?);
                from_file(file, id, text.expose()).map(Secret::new)
            }
            (SecretSource::Exec, Some(Provider::Exec(command))) => {
                let request = json!({"protocolVersion": 1, "provider": alias, "ids": [id]}).to_string();
                let answer = Secret::new(self.access.run(command, &request)?);
                from_command(command, id, answer.expose()).map(Secret::new)
            }
            (_, Some(Provider::Unsupported { what })) => {
                Err(format!("secrets.providers.{alias} is {what}, which this gateway cannot read"))
            }
            (SecretSource::Store, _) => {
                Err("source \"store\" is the secret store of OpenClaw, which this gateway cannot read; use env, file or exec".to_owned())
            }
            (source, Some(_)) => Err(format!("secrets.providers.{alias} is not of source \"{source}\"")),
            (source, None) => Err(format!("there is no secrets.providers.{alias} of source \"{source}\"")),
        }
    }

    fn variable(&self, name: &str) -> Result<Secret, String> {
        self.environment.get(name).map(Secret::new).ok_or_else(|| not_set(name).0)
    }
}

fn not_set(variable: &str) -> Unresolved {
    Unresolved(format!("the environment variable {variable} is not set"))
}

fn from_file(file: &FileProvider, id: &str, text: &str) -> Result<String, String> {
    let path = file.path.display();
    if file.single_value {
        return match id {
            "value" => Ok(text.to_owned()),
            _ => Err(format!("{path} is one single value: its id is \"value\", not {id:?}")),
        };
    }
    let json: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| format!("{path} is not JSON (line {}, column {})", error.line(), error.column()))?;
    match json.pointer(id) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{path} has something else than a string at {id}")),
        None => Err(format!("{path} has nothing at {id}")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    protocol_version: u32,
    #[serde(default)]
    values: BTreeMap<String, String>,
    #[serde(default)]
    errors: BTreeMap<String, AnswerError>,
}

#[derive(Deserialize)]
struct AnswerError {
    code: Option<String>,
}

fn from_command(command: &ExecProvider, id: &str, text: &str) -> Result<String, String> {
    let name = command.command.display();
    let mut answer = match serde_json::from_str::<Answer>(text) {
        Ok(answer) if answer.protocol_version == 1 => answer,
        Ok(answer) => return Err(format!("{name} answered in protocol version {}, not 1", answer.protocol_version)),
        Err(_) if !command.json_only => return Ok(text.to_owned()),
        // The answer may hold secrets, so nothing of it is shown.
        Err(_) => return Err(format!("{name} did not answer with the JSON of the exec provider protocol")),
    };
    if let Some(value) = answer.values.remove(id) {
        return Ok(value);
    }
    // A code is shown only when it is one of the protocol's; anything else might be part of a secret.
    match answer.errors.get(id).and_then(|error| error.code.as_deref()) {
        Some(code @ ("NOT_FOUND" | "AMBIGUOUS_DUPLICATE_KEY")) => Err(format!("{name} answered {code} for {id:?}")),
        _ => Err(format!("{name} has no value for {id:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static str);

    impl ProviderAccess for Fixed {
        fn read_file(&self, _: &FileProvider) -> Result<String, String> {
            Ok(self.0.to_owned())
        }

        fn run(&self, _: &ExecProvider, request: &str) -> Result<String, String> {
            assert_eq!(request, r#"{"ids":["a/b"],"protocolVersion":1,"provider":"p"}"#);
            Ok(self.0.to_owned())
        }
    }

    fn read(
        provider: Option<Provider>,
        source: SecretSource,
        id: &str,
        answer: &'static str,
    ) -> Result<String, String> {
        let providers = SecretProviders {
            providers: provider.into_iter().map(|provider| ("p".to_owned(), provider)).collect(),
            default_env: None,
        };
        let environment = Environment::new([("SET", " value "), ("BLANK", "")]);
        let reader = SecretReader { providers: &providers, environment: &environment, access: &Fixed(answer) };
        let alias = if source == SecretSource::Env && providers.providers.is_empty() { "default" } else { "p" };
        let reference = SecretRef { source, provider: alias.to_owned(), id: id.to_owned() };
        reader
            .read(&SecretInput::Ref(reference))
            .map(|secret| secret.expose().to_owned())
            .map_err(|error| error.to_string())
    }

    fn file(single_value: bool) -> Option<Provider> {
        Some(Provider::File(FileProvider { path: "/s".into(), single_value, max_bytes: 1 }))
    }

    fn exec(json_only: bool) -> Option<Provider> {
        Some(Provider::Exec(ExecProvider {
            command: "/c".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            pass_env: Vec::new(),
            trusted_dirs: Vec::new(),
            json_only,
            timeout: Duration::from_secs(1),
            max_output_bytes: 1,
        }))
    }

    #[test]
    fn reads_a_variable() {
        assert_eq!(read(None, SecretSource::Env, "SET", ""), Ok("value".to_owned()));
        assert_eq!(read(Some(Provider::Env { allowlist: None }), SecretSource::Env, "SET", ""), Ok("value".to_owned()));
        assert!(read(None, SecretSource::Env, "BLANK", "").is_err());
        assert_eq!(
            read(None, SecretSource::Env, "NOPE", ""),
            Err("the environment variable NOPE is not set".to_owned())
        );
        let allowlist = Some(vec!["OTHER".to_owned()]);
        assert!(read(Some(Provider::Env { allowlist }), SecretSource::Env, "SET", "").is_err());
    }

    #[test]
    fn reads_a_file_whole_or_by_pointer() {
        assert_eq!(read(file(true), SecretSource::File, "value", "s3cret\n"), Ok("s3cret".to_owned()));
        assert!(read(file(true), SecretSource::File, "/x", "s3cret").is_err());
        let json = r#"{"a": {"b/c": "s3cret"}, "n": 1}"#;
        assert_eq!(read(file(false), SecretSource::File, "/a/b~1c", json), Ok("s3cret".to_owned()));
        for id in ["/a", "/n", "/nope"] {
            assert!(read(file(false), SecretSource::File, id, json).is_err(), "{id}");
        }
        let error = read(file(false), SecretSource::File, "/a", "s3cret").unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn reads_the_answer_of_a_command() {
        let ask = |json_only, answer| read(exec(json_only), SecretSource::Exec, "a/b", answer);
        assert_eq!(ask(true, r#"{"protocolVersion":1,"values":{"a/b":"s3cret"}}"#), Ok("s3cret".to_owned()));
        assert_eq!(ask(false, "s3cret\n"), Ok("s3cret".to_owned()));
        for answer in [
            "s3cret",
            r#"{"protocolVersion":2,"values":{"a/b":"s3cret"}}"#,
            r#"{"protocolVersion":1,"values":{"other":"s3cret"}}"#,
            r#"{"protocolVersion":1,"errors":{"a/b":{"code":"s3cret"}}}"#,
        ] {
            let error = ask(true, answer).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
        let not_found = r#"{"protocolVersion":1,"errors":{"a/b":{"code":"NOT_FOUND"}}}"#;
        assert!(ask(true, not_found).unwrap_err().contains("NOT_FOUND"));
    }

    #[test]
    fn a_reference_that_leads_nowhere_is_an_error() {
        for (provider, source) in [
            (None, SecretSource::File),
            (None, SecretSource::Store),
            (file(true), SecretSource::Exec),
            (exec(true), SecretSource::Env),
            (Some(Provider::Unsupported { what: "made by a plugin" }), SecretSource::Exec),
        ] {
            assert!(read(provider.clone(), source, "SET", "x").is_err(), "{provider:?} {source}");
        }
        assert!(read(file(true), SecretSource::File, "value", REDACTED).is_err());
        assert!(read(file(true), SecretSource::File, "value", " \n").is_err());
    }

    #[test]
    fn ids_have_the_grammar_of_their_source() {
        for (source, good, bad) in [
            (SecretSource::Env, &["A", "A_1"][..], &["", "a", "_A", "A-B"][..]),
            (SecretSource::File, &["/a/b", "value"], &["", "a/b"]),
            (SecretSource::Exec, &["a/b#c", "x.y:z"], &["", "a/../b", "./a", "/a", "a b"]),
        ] {
            assert!(good.iter().all(|id| source.objection_to_id(id).is_none()), "{source}");
            assert!(bad.iter().all(|id| source.objection_to_id(id).is_some()), "{source}");
        }
    }
}
