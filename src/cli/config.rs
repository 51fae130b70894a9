//! `clawgate config`: reads and edits the configuration file, with the grammar of `openclaw config`.
//!
//! Writes keep comments and order, leave the file 0600, and never leave one that is not valid in itself (contract 4.13). One
//! with which a gateway would not start is written with a warning: keys are set one after the other, and on the way from one
//! configuration to another there are such (a mode before its password). A gateway that runs goes on with what it had.
//! What is printed has its secrets taken out. Start at [`run`]; [`judge`] says what a start would say.

mod judge;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use crate::config::decode::{Decoded, Problem};
use crate::config::edit::EditError;
use crate::config::load::{FilesAndCommands, LoadError, SaveError, Source, check, load, save, with_dotenv};
use crate::config::model::ReloadMode;
use crate::config::raw::{Document, Member, Node, Value, parse_value};
use crate::config::redact::redact_text;
use crate::config::restart::waiting_for_restart;
use crate::config::schema::{self, schema};
use crate::config::secret_ref::SecretSource;
use crate::config::snapshot::{issue, issues};
use crate::config::{Config, Environment, KeyPath, Paths};
use crate::server::lock::{self, settings_name};

/// How long a gateway that runs may take to read what was written, and how often that is looked for.
const READ_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

const PATH_HELP: &str = "Where: gateway.port, list[0], map[\"a.key\"]";

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the path of the configuration file
    File {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a value, secrets redacted
    Get {
        /// Which value
        #[arg(help = PATH_HELP)]
        path: KeyPath,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set a value
    Set(SetArgs),
    /// Remove a value
    Unset {
        /// Which value
        #[arg(help = PATH_HELP)]
        path: KeyPath,
        /// Check the result and write nothing
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the settings that clawgate reads, as a JSON Schema
    Schema {
        /// For the incumbent's grammar: it is JSON either way
        #[arg(long, hide = true)]
        json: bool,
    },
    /// Check the configuration file without starting anything
    Validate {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `config set`. `Debug` leaves the value out: it may be a secret.
#[derive(clap::Args)]
pub struct SetArgs {
    #[arg(help = PATH_HELP)]
    path: KeyPath,
    /// JSON or JSON5; what is neither is taken as a string
    #[arg(required_unless_present = "ref_id", conflicts_with = "ref_id", allow_hyphen_values = true)]
    value: Option<String>,
    /// Take the value as strict JSON only
    #[arg(long)]
    strict_json: bool,
    /// Older name of --strict-json; also print the result as JSON
    #[arg(long)]
    json: bool,
    /// Check the result and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Set a reference to a secret: what kind of provider
    #[arg(long, value_name = "SOURCE", requires = "ref_id")]
    ref_source: Option<SecretSource>,
    /// Set a reference to a secret: the name of the provider
    #[arg(long, value_name = "ALIAS", requires = "ref_id")]
    ref_provider: Option<String>,
    /// Set a reference to a secret: which of the provider's
    #[arg(long, value_name = "ID", requires = "ref_source", requires = "ref_provider")]
    ref_id: Option<String>,
}

impl fmt::Debug for SetArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetArgs").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What the commands work on.
#[derive(Clone, Debug)]
pub struct ConfigContext {
    /// Where the file is.
    pub paths: Paths,
    /// The process's variables.
    pub environment: Environment,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error("{0} is not set in {1}")]
    NotSet(KeyPath, String),
    #[error("the value is not JSON: {0}")]
    NotJson(String),
    #[error("nothing was written, because the result would not be valid:\n{}", lines(.0))]
    Invalid(Vec<Problem>),
    #[error("{0} is a secret and can't be empty. Is a variable not set? To remove it: clawgate config unset {0}")]
    Empty(KeyPath),
    #[error("the configuration is managed from outside ({0} is set) and cannot be changed here")]
    ReadOnly(&'static str),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {} {}", problem.key, problem.message)).collect::<Vec<_>>().join("\n")
}

/// What a command has to say.
struct Done {
    /// For people, or what was asked for.
    text: String,
    /// For programs, where that is something else.
    json: Option<serde_json::Value>,
    /// What a person should know beside it.
    warnings: Vec<String>,
}

impl From<String> for Done {
    fn from(text: String) -> Self {
        Self { text, json: None, warnings: Vec::new() }
    }
}

impl ConfigCommand {
    /// Whether the result, and so an error, is printed as JSON.
    pub(super) const fn prints_json(&self) -> bool {
        match self {
            Self::File { json } | Self::Get { json, .. } | Self::Unset { json, .. } | Self::Validate { json } => *json,
            Self::Set(args) => args.json,
            Self::Schema { .. } => true,
        }
    }
}

/// Runs `command`. What was asked for goes to `out`, warnings and failures to `err`; with `--json`, failures
/// go to `out`, too, as `{"ok": false, "error": {"type", "message"}}`.
///
/// # Errors
/// When `out` or `err` cannot be written to.
pub fn run(
    command: ConfigCommand,
    context: &ConfigContext,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<ExitCode> {
    let json = command.prints_json();
    let outcome = match command {
        ConfigCommand::File { json } => return file(context, json, out),
        ConfigCommand::Validate { json } => return validate(context, json, out, err),
        ConfigCommand::Schema { .. } => {
            return writeln!(out, "{}", pretty(&schema())).map(|()| ExitCode::SUCCESS);
        }
        ConfigCommand::Get { path, json } => get(context, &path, json).map(Done::from),
        ConfigCommand::Set(args) => set(context, &args),
        ConfigCommand::Unset { path, dry_run, .. } => unset(context, &path, dry_run),
    };
    match outcome {
        Ok(done) => {
            match done.json.filter(|_| json) {
                Some(value) => writeln!(out, "{}", pretty(&value))?,
                None => writeln!(out, "{}", done.text)?,
            }
            done.warnings.iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            if json {
                let error = json!({"type": "cli_error", "message": failure.to_string()});
                writeln!(out, "{}", pretty(&json!({"ok": false, "error": error})))?;
            }
            writeln!(err, "error: {failure}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn file(context: &ConfigContext, json: bool, out: &mut dyn Write) -> io::Result<ExitCode> {
    let path = &context.paths.config_file;
    match json {
        true => writeln!(out, "{}", pretty(&json!({"path": path})))?,
        false => writeln!(out, "{}", path.display())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn validate(context: &ConfigContext, json: bool, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<ExitCode> {
    let path = &context.paths.config_file;
    let shown = path.display();
    let loaded = load(context.paths.clone(), context.environment.clone());
    let hurdle = loaded.as_ref().ok().and_then(|loaded| {
        let access = FilesAndCommands { environment: &loaded.environment };
        judge::start(&loaded.config, &loaded.environment, &loaded.paths, Some(&access))
    });
    match loaded {
        Ok(_) if hurdle.is_some() => {
            let hurdle = hurdle.unwrap_or_default();
            let message = format!("a gateway would not start with {shown}: {hurdle}");
            if json {
                let report = json!({
                    "ok": false,
                    "error": {"type": "cli_error", "message": message},
                    "valid": false,
                    "path": path,
                    "issues": [{"path": "", "message": hurdle}],
                });
                writeln!(out, "{}", pretty(&report))?;
            }
            writeln!(err, "error: {message}")?;
            Ok(ExitCode::FAILURE)
        }
        Ok(loaded) if json => {
            let mut warnings: Vec<_> = loaded.notices.iter().map(issue).collect();
            warnings.extend(
                judge::page(&loaded.config).map(|message| json!({"path": judge::PAGE_KEY, "message": message})),
            );
            writeln!(out, "{}", json!({"valid": true, "path": path, "warnings": warnings}))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(loaded) => {
            match loaded.source.text {
                Some(_) => writeln!(out, "Valid: {shown}")?,
                None => writeln!(out, "Valid: there is no {shown}, so the defaults hold")?,
            }
            for notice in &loaded.notices {
                writeln!(out, "{shown}:{notice}")?;
            }
            if let Some(message) = judge::page(&loaded.config) {
                writeln!(out, "{shown}: {} {message}", judge::PAGE_KEY)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if json {
                let message = format!("{shown} is not valid");
                let report = json!({
                    "ok": false,
                    "error": {"type": "cli_error", "message": message},
                    "valid": false,
                    "path": path,
                    "issues": issues(&error),
                });
                writeln!(out, "{}", pretty(&report))?;
            }
            writeln!(err, "error: {error}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn get(context: &ConfigContext, path: &KeyPath, json: bool) -> Result<String, Failure> {
    let file = &context.paths.config_file;
    let document = Source::read(file)?.document()?;
    // Whether a value is a secret depends on the way to it, so all of it is redacted first.
    let redacted = Document::parse(redact_text(&document)).map_err(EditError::from)?;
    match redacted.get(path).map(|node| &node.value) {
        None => Err(Failure::NotSet(path.clone(), file.display().to_string())),
        Some(Value::String(text)) if !json => Ok(text.clone()),
        Some(value) => Ok(pretty(value)),
    }
}

fn set(context: &ConfigContext, args: &SetArgs) -> Result<Done, Failure> {
    let candidates = candidates(args)?;
    let is_empty = |value: &Value| matches!(value, Value::String(text) if text.trim().is_empty());
    if schema::is_secret(&args.path.to_string()) && candidates.iter().any(is_empty) {
        // It would count as none, and whoever holds the old one would be locked out.
        return Err(Failure::Empty(args.path.clone()));
    }
    let edit = Edit::begin(context)?;
    let current = edit.document.get(&args.path).map(|node| node.value.to_json());
    let mut refused = None;
    for value in &candidates {
        if current.as_ref() == Some(&value.to_json()) {
            let json = json!({"ok": true, "changed": false, "configPath": edit.source.path, "message": "No change"});
            return Ok(Done { json: Some(json), ..Done::from("No change".to_owned()) });
        }
        match edit.check(edit.document.set(&args.path, value)?) {
            Ok(edited) => return edit.finish(&edited, args.dry_run, &format!("Updated {}.", args.path)),
            Err(failure) => refused = refused.or(Some(failure)),
        }
    }
    Err(refused.unwrap_or(Failure::Invalid(Vec::new())))
}

fn unset(context: &ConfigContext, path: &KeyPath, dry_run: bool) -> Result<Done, Failure> {
    let edit = Edit::begin(context)?;
    let Some(edited) = edit.document.unset(path)? else {
        return Err(Failure::NotSet(path.clone(), context.paths.config_file.display().to_string()));
    };
    edit.finish(&edit.check(edited)?, dry_run, &format!("Removed {path}."))
}

/// The values that the arguments may mean, the likelier first. `12345` is a number where one is allowed, and
/// a string where only a string is: a token, say.
fn candidates(args: &SetArgs) -> Result<Vec<Value>, Failure> {
    if let (Some(source), Some(provider), Some(id)) = (args.ref_source, &args.ref_provider, &args.ref_id) {
        return Ok(vec![reference(source, provider, id)]);
    }
    let text = args.value.as_deref().unwrap_or_default();
    if args.strict_json || args.json {
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| Failure::NotJson(error.to_string()))?;
    }
    match parse_value(text) {
        Ok(node) if args.strict_json || args.json => Ok(vec![node.value]),
        Ok(node) => Ok(vec![node.value, Value::String(text.to_owned())]),
        Err(error) if args.strict_json || args.json => Err(Failure::NotJson(error.message)),
        Err(_) => Ok(vec![Value::String(text.to_owned())]),
    }
}

fn reference(source: SecretSource, provider: &str, id: &str) -> Value {
    let members = [("source", source.as_str()), ("provider", provider), ("id", id)].map(|(key, text)| Member {
        key: key.to_owned(),
        key_span: 0..0,
        node: Node { value: Value::String(text.to_owned()), span: 0..0 },
    });
    Value::Object(members.into())
}

/// One change to the file, from reading it to writing it.
struct Edit {
    paths: Paths,
    source: Source,
    document: Document,
    environment: Environment,
}

/// A result that is valid.
struct Edited {
    document: Document,
    config: Config,
    notices: Vec<Problem>,
    environment: Environment,
}

impl Edit {
    fn begin(context: &ConfigContext) -> Result<Self, Failure> {
        for name in ["OPENCLAW_CONFIG_READONLY", "OPENCLAW_NIX_MODE"] {
            if context.environment.get(name) == Some("1") {
                return Err(Failure::ReadOnly(name));
            }
        }
        let environment = with_dotenv(context.environment.clone(), &context.paths)?;
        let source = Source::read(&context.paths.config_file)?;
        let document = source.document()?;
        Ok(Self { paths: context.paths.clone(), source, document, environment })
    }

    fn check(&self, document: Document) -> Result<Edited, Failure> {
        match check(&document, self.environment.clone()) {
            Ok((decoded, environment)) => {
                Ok(Edited { document, config: decoded.config, notices: decoded.notices, environment })
            }
            Err(problems) => Err(Failure::Invalid(problems)),
        }
    }

    fn finish(&self, edited: &Edited, dry_run: bool, done: &str) -> Result<Done, Failure> {
        let path = &self.source.path;
        // What was not valid before tells nothing.
        let before = check(&self.document, self.environment.clone()).ok().map(|(decoded, _)| decoded);
        let mut warnings = self.warnings(edited, before.as_ref());
        let mut text = done.to_owned();
        let mut needs_restart = false;
        if dry_run {
            text = format!("Nothing was written: {} would be valid.", path.display());
        } else {
            save(&self.source, &edited.document)?;
            // Where no gateway runs there is none to be told, or to be restarted.
            if lock::holder(&self.paths.state_dir).is_some() {
                let before = before.map(|before| before.config);
                warnings.extend(self.unread(edited, before.as_ref()));
                needs_restart = before.is_none_or(|before| !waiting_for_restart(&before, &edited.config).is_empty());
            }
        }
        if needs_restart {
            text.push_str(" Restart the gateway to apply it.");
        }
        let json = json!({
            "ok": true, "changed": !dry_run, "dryRun": dry_run, "operations": 1, "configPath": path, "message": text,
            "needsRestart": needs_restart, "warnings": warnings,
        });
        Ok(Done { text, json: Some(json), warnings })
    }

    /// What is new in the result, allowed, and hardly meant.
    fn warnings(&self, edited: &Edited, before: Option<&Decoded>) -> Vec<String> {
        let notices = before.map_or(&[][..], |before| &before.notices);
        let is_new = |notice: &&Problem| {
            !notices.iter().any(|before| (&before.key, &before.message) == (&notice.key, &notice.message))
        };
        let mut warnings: Vec<String> =
            edited.notices.iter().filter(is_new).map(|notice| format!("{} {}", notice.key, notice.message)).collect();
        let page = judge::page(&edited.config)
            .filter(|page| before.and_then(|it| judge::page(&it.config)).as_ref() != Some(page));
        warnings.extend(page.map(|message| format!("{} {message}", judge::PAGE_KEY)));
        // What a command gives is not asked for at each edit, and another environment may have the variable.
        let hurdle = judge::start(&edited.config, &edited.environment, &self.paths, None);
        warnings.extend(hurdle.map(|hurdle| format!("a gateway would not start with this: {hurdle}")));
        warnings
    }

    /// Waits until the gateway that runs has read what was written, so that the next command meets the new settings; says
    /// why it has not.
    fn unread(&self, edited: &Edited, before: Option<&Config>) -> Option<String> {
        let is_off = |config: &Config| config.gateway.reload == ReloadMode::Off;
        if is_off(&edited.config) && before.is_none_or(is_off) {
            return Some(
                "gateway.reload.mode is \"off\": the gateway reads this when it is told to (kill -HUP), or starts"
                    .to_owned(),
            );
        }
        let name = settings_name(Some(edited.document.text()));
        let started = Instant::now();
        while started.elapsed() < READ_WITHIN {
            match lock::holder(&self.paths.state_dir)?.settings {
                Some((read, true)) if read == name => return None,
                Some((read, false)) if read == name => {
                    return Some(
                        "the running gateway does not take this, and goes on with what it had: see clawgate logs"
                            .to_owned(),
                    );
                }
                _ => std::thread::sleep(LOOK),
            }
        }
        Some(
            "the running gateway has not read this yet; until it has, the old settings count: see clawgate logs"
                .to_owned(),
        )
    }
}

fn pretty(value: &impl Serialize) -> String {
    // A tree of plain values always has a JSON form.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: ConfigCommand,
    }

    struct Home(tempfile::TempDir);

    impl Home {
        fn with(text: &str) -> Self {
            let home = Self(tempfile::tempdir().unwrap());
            fs::write(home.file(), text).unwrap();
            home
        }

        fn file(&self) -> std::path::PathBuf {
            self.0.path().join("openclaw.json")
        }

        fn text(&self) -> String {
            fs::read_to_string(self.file()).unwrap()
        }

        /// Whether it succeeded, standard output, standard error.
        fn run(&self, args: &[&str]) -> (bool, String, String) {
            self.run_in(args, &[])
        }

        fn run_in(&self, args: &[&str], environment: &[(&str, &str)]) -> (bool, String, String) {
            let command = Cli::try_parse_from([&["config"], args].concat()).unwrap().command;
            let context = ConfigContext {
                paths: Paths { config_file: self.file(), state_dir: self.0.path().to_owned() },
                environment: Environment::new(environment.iter().copied()),
            };
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = run(command, &context, &mut out, &mut err).unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (code == ExitCode::SUCCESS, text(out), text(err))
        }
    }

    #[test]
    fn schema_is_json() {
        let (ok, out, _) = Home::with("{}").run(&["schema"]);
        let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(ok && schema["properties"]["gateway"]["properties"]["port"]["type"] == "integer");
    }

    #[test]
    fn file_prints_the_path() {
        let home = Home::with("{}");
        let path = home.file().display().to_string();
        assert_eq!(home.run(&["file"]), (true, format!("{path}\n"), String::new()));
        let (_, out, _) = home.run(&["file", "--json"]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap(), json!({"path": path}));
    }

    #[test]
    fn get_prints_values_in_the_order_of_the_file_and_no_secrets() {
        let home = Home::with("{gateway: {port: 0x10, bind: 'lan', auth: {token: 's3cret', mode: 'token'}}}");
        assert_eq!(home.run(&["get", "gateway.port"]).1, "16\n");
        assert_eq!(home.run(&["get", "gateway.bind"]).1, "lan\n");
        assert_eq!(home.run(&["get", "gateway.bind", "--json"]).1, "\"lan\"\n");
        assert_eq!(home.run(&["get", "gateway.auth.token"]).1, "__OPENCLAW_REDACTED__\n");
        let expected = "{\n  \"token\": \"__OPENCLAW_REDACTED__\",\n  \"mode\": \"token\"\n}\n";
        assert_eq!(home.run(&["get", "gateway.auth"]).1, expected);
        let (ok, out, err) = home.run(&["get", "gateway.nope"]);
        assert!(!ok && out.is_empty() && err.contains("gateway.nope is not set"), "{err}");
        let (ok, out, err) = home.run(&["get", "gateway.nope", "--json"]);
        assert!(!ok && err.starts_with("error: ") && out.contains("\"cli_error\""), "{out}");
    }

    #[test]
    fn set_keeps_comments_order_and_privacy() {
        let home = Home::with("// mine\n{\n  gateway: {\n    port: 1, // kept\n  },\n  other: {},\n}\n");
        let (ok, out, err) = home.run(&["set", "gateway.remote.token", "s3cret token"]);
        assert!(ok, "{err}");
        assert_eq!(out, "Updated gateway.remote.token.\n");
        let said = Home::with("{}").run(&["set", "gateway.handshakeTimeoutMs", "5000"]).1;
        assert_eq!(said, "Updated gateway.handshakeTimeoutMs.\n", "no gateway runs here");
        let text = home.text();
        assert!(text.starts_with("// mine\n{\n  gateway: {\n    port: 1, // kept\n"), "{text}");
        assert!(text.contains("token: \"s3cret token\""), "{text}");
        assert_eq!(fs::metadata(home.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(home.run(&["set", "gateway.remote.token", "s3cret token"]).1, "No change\n");
    }

    #[test]
    fn set_makes_a_file_where_there_is_none() {
        let home = Home::with("");
        fs::remove_file(home.file()).unwrap();
        assert!(home.run(&["set", "gateway.port", "19001"]).0);
        assert_eq!(home.text(), "{\n  \"gateway\": {\n    \"port\": 19001\n  }\n}\n");
    }

    #[test]
    fn set_takes_values_as_json_and_else_as_strings() {
        let home = Home::with("{}");
        for (path, value, expected) in [
            ("gateway.port", "19001", json!(19001)),
            ("gateway.auth.token", "12345", json!("12345")),
            ("gateway.bind", "lan", json!("lan")),
            ("gateway.bind", "'auto'", json!("auto")),
            ("channels.x", "{b: [1, true], a: null}", json!({"b": [1, true], "a": null})),
            ("channels.y", "a, b", json!("a, b")),
            ("channels.z", "-5", json!(-5)),
        ] {
            let (ok, _, err) = home.run(&["set", path, value]);
            assert!(ok, "{path} {value}: {err}");
            let document = Document::parse(home.text()).unwrap();
            assert_eq!(document.get(&path.parse().unwrap()).unwrap().value.to_json(), expected, "{path} {value}");
        }
        for strict in ["--strict-json", "--json"] {
            assert!(!home.run(&["set", "channels.y", "{a: 1}", strict]).0);
            assert!(!home.run(&["set", "gateway.auth.token", "12345", strict]).0);
            assert!(home.run(&["set", "channels.y", "{\"a\": 1}", strict]).0);
        }
    }

    #[test]
    fn set_writes_a_reference_to_a_secret() {
        let home = Home::with("{}");
        let args =
            ["set", "gateway.auth.token", "--ref-source", "env", "--ref-provider", "default", "--ref-id", "TOKEN"];
        assert!(home.run(&args).0);
        let json = Document::parse(home.text()).unwrap().root().value.to_json();
        assert_eq!(json["gateway"]["auth"]["token"], json!({"source": "env", "provider": "default", "id": "TOKEN"}));
        for wrong in [&args[..6], &["set", "a"], &["set", "a", "1", "--ref-id", "X"], &["set", "a..b", "1"]] {
            assert!(Cli::try_parse_from([&["config"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_does_not_validate_is_not_written() {
        let home = Home::with("{gateway: {port: 1}}");
        let (ok, out, err) = home.run(&["set", "gateway.bind", "0.0.0.0"]);
        assert!(!ok && out.is_empty());
        assert!(err.contains("gateway.bind must be one of") && err.contains("use \"lan\""), "{err}");
        assert!(!home.run(&["set", "gateway.port.x", "1"]).0);
        let (ok, _, err) = home.run(&["set", "gateway.port", "99999", "--dry-run"]);
        assert!(!ok && err.contains("but is 99999\n"), "{err}");
        assert!(home.run(&["set", "gateway.port", "2", "--dry-run"]).0);
        assert_eq!(home.text(), "{gateway: {port: 1}}");
    }

    #[test]
    fn with_json_a_document_comes_out() {
        let home = Home::with("{}");
        for (args, message) in [
            (&["set", "gateway.port", "1", "--json"][..], "Updated gateway.port."),
            (&["set", "gateway.port", "1", "--json"], "No change"),
            (&["set", "gateway.port", "2", "--json", "--dry-run"], "Nothing was written"),
            (&["unset", "gateway.port", "--json"], "Removed gateway.port."),
        ] {
            let (ok, out, err) = home.run(args);
            let report: serde_json::Value = serde_json::from_str(&out).unwrap();
            assert!(
                ok && err.is_empty() && report["message"].as_str().unwrap().starts_with(message),
                "{args:?}: {out}"
            );
        }
    }

    #[test]
    fn an_empty_secret_is_refused() {
        let home = Home::with("{gateway: {auth: {token: 't'}}}");
        for (path, value) in [
            ("gateway.auth.token", ""),
            ("gateway.auth.password", " "),
            ("channels.telegram.botToken", "\"\""),
            ("gateway.remote.edgeAuth.x-edge", ""),
            ("models.providers.local.apiKey", ""),
        ] {
            let (ok, _, err) = home.run(&["set", path, value]);
            assert!(!ok && err.contains(&format!("{path} is a secret and can't be empty")), "{err}");
        }
        assert!(home.text().contains("'t'"));
        assert!(home.run(&["set", "gateway.customBindHost", "127.0.0.1"]).0);
    }

    #[test]
    fn what_a_start_would_refuse_is_written_with_a_warning_and_not_valid() {
        let home = Home::with("{}");
        let (ok, _, err) = home.run(&["set", "gateway.auth.mode", "password"]);
        assert!(
            ok && err.contains("warning: a gateway would not start with this: ")
                && err.contains("gateway.auth.password")
        );
        let (ok, out, err) = home.run(&["validate"]);
        assert!(!ok && out.is_empty() && err.contains("would not start"), "{err}");
        let (ok, out, _) = home.run(&["validate", "--json"]);
        assert!(!ok && out.contains("\"valid\": false") && out.contains("gateway.auth.password"), "{out}");
        let (ok, _, err) = home.run(&["set", "gateway.auth.password", "s3cret"]);
        assert!(ok && err.is_empty(), "{err}");
        assert!(home.run(&["validate"]).0);
        let (ok, _, err) = home.run(&["set", "gateway.controlUi.root", "/nope"]);
        assert!(ok && err.contains("warning: gateway.controlUi.root"), "{err}");
        assert!(home.run(&["validate"]).1.contains("gateway.controlUi.root"));
        // A client of another gateway starts none.
        let home = Home::with("{gateway: {mode: 'remote', auth: {mode: 'password'}}}");
        assert!(home.run(&["validate"]).0);
        assert_eq!(home.run(&["set", "gateway.remote.url", "ws://127.0.0.1:1"]).2, "");
    }

    #[test]
    fn a_misspelt_key_is_set_with_a_warning() {
        let home = Home::with("{}");
        let (ok, out, err) = home.run(&["set", "gatway.port", "1"]);
        assert!(ok && out == "Updated gatway.port.\n" && err.contains("warning: gatway is no key"), "{err}");
        assert_eq!(home.run(&["set", "gateway.bind", "lan", "--dry-run"]).2.matches("gatway").count(), 0, "said once");
        assert!(home.run(&["validate"]).1.contains("gateway was probably meant"));
    }

    #[test]
    fn a_gateway_that_runs_is_waited_for() {
        let home = Home::with("{}");
        let lock = lock::StateLock::take(home.0.path()).unwrap();
        let file = home.file();
        let gateway = std::thread::spawn(move || {
            for applied in [true, false] {
                let before = fs::read_to_string(&file).unwrap();
                while fs::read_to_string(&file).unwrap() == before {
                    std::thread::sleep(Duration::from_millis(5));
                }
                lock.note(Some(&fs::read_to_string(&file).unwrap()), applied);
            }
            lock
        });
        std::thread::sleep(Duration::from_millis(20));
        let (_, out, err) = home.run(&["set", "gateway.port", "7"]);
        assert_eq!((&*out, &*err), ("Updated gateway.port. Restart the gateway to apply it.\n", ""));
        let (_, _, err) = home.run(&["set", "gateway.auth.token", "t"]);
        assert!(err.contains("the running gateway does not take this"), "{err}");
        drop(gateway.join().unwrap());
    }

    #[test]
    fn unset_removes_and_says_when_there_is_nothing() {
        let home = Home::with("{\n  a: 1, // one\n  b: 2,\n}\n");
        assert_eq!(home.run(&["unset", "b"]).1, "Removed b.\n");
        assert_eq!(home.text(), "{\n  a: 1, // one\n}\n");
        let (ok, _, err) = home.run(&["unset", "b"]);
        assert!(!ok && err.contains("b is not set"), "{err}");
    }

    #[test]
    fn a_managed_configuration_is_not_written() {
        let home = Home::with("{a: 1}");
        for name in ["OPENCLAW_CONFIG_READONLY", "OPENCLAW_NIX_MODE"] {
            let (ok, _, err) = home.run_in(&["unset", "a"], &[(name, "1")]);
            assert!(!ok && err.contains(name), "{err}");
        }
        assert!(home.run_in(&["unset", "a"], &[("OPENCLAW_NIX_MODE", "0")]).0);
    }

    #[test]
    fn validate_lists_everything_that_is_wrong() {
        let home = Home::with("{gateway: {port: 1}}");
        assert!(home.run(&["validate"]).1.starts_with("Valid: "));
        let (ok, out, _) = home.run(&["validate", "--json"]);
        assert!(ok && out.contains("\"valid\":true"), "{out}");
        fs::write(home.file(), "{gateway: {\n  port: 0,\n  mode: 'x',\n}}").unwrap();
        let (ok, out, err) = home.run(&["validate"]);
        assert!(!ok && out.is_empty());
        assert_eq!(err.lines().count(), 2);
        assert!(err.contains("openclaw.json:2:9: gateway.port"), "{err}");
        let (ok, out, err) = home.run(&["validate", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(!ok && err.starts_with("error: "));
        assert_eq!(report["issues"][1]["allowedValues"], json!(["local", "remote"]));
    }
}
