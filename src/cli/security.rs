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
use crate::config::audit::{Entry, Facts, Finding, Severity, audit};
use crate::config::load::FilesAndCommands;
use crate::config::resolve::{self, Flags};
use crate::config::spelling::misspelt;

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
        let auth = resolve::server_auth(&loaded.config, &loaded.environment, &Flags::default(), &access);
        let entries = entries(context);
        let mode = auth.ok().map(|auth| auth.mode);
        let found =
            audit(&Facts { config: &loaded.config, mode, entries: &entries, misspelt: &misspelt(&loaded.document) });
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

/// The files of this installation that are there.
fn entries(context: &Context) -> Vec<Entry> {
    let state = &context.paths.state_dir;
    let mut entries = Vec::new();
    for (path, is_secret) in [
        (context.paths.config_file.clone(), true),
        (state.clone(), false),
        (state.join("clawgate.sqlite"), true),
        (state.join("clawgate.sqlite-wal"), true),
        (state.join("clawgate.run.json"), true),
        (state.join("identity"), false),
        (state.join("identity/device.json"), true),
        (state.join("logs"), false),
    ] {
        entries.extend(entry(&path, is_secret));
    }
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
