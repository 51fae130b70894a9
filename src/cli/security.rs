//! `clawgate security audit`: what the rules of [`crate::config::audit`] find in this installation.
//!
//! It reads the configuration and looks at files; it changes nothing and asks no gateway.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use super::output::Tone;
use crate::config::Config;
use crate::config::audit::{Entry, Facts, Finding, Severity, audit};
use crate::config::load::{FilesAndCommands, host_facts};
use crate::config::model::AuthMode;
use crate::config::resolve::{self, Credential, Flags, ServerAuth};
use crate::config::spelling::misspelt;
use crate::server::tls_files;

/// `security ...`.
#[derive(Debug, Subcommand)]
pub(super) enum SecurityCommand {
    /// List what should be changed, the worst first; fails when something is critical
    Audit(AuditArgs),
}

/// How to print it.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl SecurityCommand {
    /// Whether the result, and so an error, is printed as JSON.
    pub(super) fn prints_json(&self) -> bool {
        let Self::Audit(args) = self;
        args.json
    }

    /// Runs it.
    ///
    /// # Errors
    /// The configuration is broken, or nothing can be printed.
    pub(super) fn run(&self, context: &Context) -> Result<ExitCode, CliError> {
        let loaded = context.load()?;
        let access = FilesAndCommands { environment: &loaded.environment };
        // As the start would decide; a machine that is a client of another gateway is judged as if it were one.
        let flags = Flags { allow_unconfigured: true, ..Flags::default() };
        let (config, environment) = (&loaded.config, &loaded.environment);
        let port = context.profile.default_port();
        let start = resolve::start(config, environment, &flags, &host_facts(), port, &access);
        let refusal = start.as_ref().err().map(ToString::to_string);
        let auth =
            start.map(|start| start.auth).or_else(|_| resolve::server_auth(config, environment, &flags, &access));
        let auth = auth.ok();
        let entries = entries(context, config);
        let found = audit(&Facts {
            config,
            mode: auth.as_ref().map(|auth| auth.mode).or(config.gateway.auth.mode),
            refusal: refusal.as_deref(),
            secret: auth.as_ref().and_then(secret),
            entries: &entries,
            misspelt: &misspelt(&loaded.document),
        });
        let count = |severity| found.iter().filter(|finding| finding.severity == severity).count();
        let [critical, warn, info] = [Severity::Critical, Severity::Warn, Severity::Info].map(count);
        if self.prints_json() {
            let summary = json!({"critical": critical, "warn": warn, "info": info});
            context.output.value(&json!({"summary": summary, "findings": found}))?;
        } else {
            print(context, &found)?;
            context.output.line(&format!("{critical} critical, {warn} to look at, {info} to know"))?;
        }
        Ok(if critical > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn print(context: &Context, found: &[Finding]) -> Result<(), CliError> {
    let output = context.output;
    for finding in found {
        let tone = match finding.severity {
            Severity::Critical => Tone::Bad,
            Severity::Warn => Tone::Warning,
            Severity::Info => Tone::Faint,
        };
        output.painted(&[(tone, finding.severity.as_str()), (Tone::Plain, &format!("  {}", finding.key))])?;
        output.line(&format!("  {}", finding.what))?;
        output.line(&format!("  fix: {}", finding.fix))?;
    }
    Ok(())
}

/// The shared secret that clients must know.
fn secret(auth: &ServerAuth) -> Option<&Credential> {
    match auth.mode {
        AuthMode::Token => auth.token.as_ref(),
        AuthMode::Password | AuthMode::TrustedProxy => auth.password.as_ref(),
        AuthMode::None => None,
    }
}

/// The files of this installation that are there: those with secrets, those that decide what runs, and their folders.
fn entries(context: &Context, config: &Config) -> Vec<Entry> {
    let (state, file) = (&context.paths.state_dir, &context.paths.config_file);
    let tls = tls_files(&config.gateway.tls, &context.paths);
    let folders = [state.clone(), state.join("identity"), state.join("logs")];
    let mut secrets = vec![file.clone(), tls.key];
    secrets.extend(
        [
            ".env",
            "clawgate.sqlite",
            "clawgate.sqlite-wal",
            "sessions.sqlite",
            "sessions.sqlite-wal",
            "clawgate.run.json",
            "identity/device.json",
        ]
        .map(|name| state.join(name)),
    );
    // Copies of the configuration that editors and tools leave beside it hold the same secrets.
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = file.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let is_copy = |other: &str| other != name && (other.starts_with(&name) || *other == format!(".{name}.swp"));
    secrets.extend(beside.filter(|entry| is_copy(&entry.file_name().to_string_lossy())).map(|entry| entry.path()));
    let plain = [state.join("exec-approvals.json"), tls.cert];
    let mut entries: Vec<_> = secrets.iter().filter_map(|path| entry(path, true)).collect();
    entries.extend(folders.iter().chain(&plain).filter_map(|path| entry(path, false)));
    entries
}

fn entry(path: &Path, is_secret: bool) -> Option<Entry> {
    // What is not there, or cannot be looked at, is no finding.
    let metadata = std::fs::metadata(path).ok()?;
    Some(Entry {
        path: path.to_owned(),
        mode: metadata.mode(),
        is_own: metadata.uid() == rustix::process::getuid().as_raw(),
        is_secret,
        is_folder: metadata.is_dir(),
    })
}
