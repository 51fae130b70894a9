//! `clawgate gateway explain`: which gateway and which credentials a command uses here, and why not the others.
//!
//! It prints the decision of [`crate::client::credentials`], the same that every command makes. Of a secret it shows
//! eight digits of its SHA-256, by which two people can see whether they hold the same one.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::{Field, Output, Table, Tone};
use super::target::{GatewayFlags, said};
use crate::client::credentials::{self, Credential, Explanation, Outcome, Resolution, Source, UrlCandidate};
use crate::client::{GatewayUrl, Purpose};

/// What to explain.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// The kind of command
    #[arg(long = "for", value_name = "PURPOSE", default_value = "call")]
    purpose: For,
}

/// A kind of command.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum For {
    /// Commands that call a method
    Call,
    /// status, gateway status, gateway probe
    Probe,
    /// A node host
    NodeHost,
}

impl ExplainArgs {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        self.gateway.json
    }

    /// Runs the command. Nothing is sent. It fails when a command would have nothing to connect with.
    ///
    /// # Errors
    /// What went wrong, for [`Output::fail`].
    pub(super) fn run(&self, context: &Context) -> Result<ExitCode, CliError> {
        let purpose = match self.purpose {
            For::Call => Purpose::Call,
            For::Probe => Purpose::Probe,
            For::NodeHost => Purpose::NodeHost,
        };
        let given = self.gateway.given();
        let (settings, variables) = said(context, &given)?;
        let explanation = credentials::explain(&given, &variables, &settings, purpose);
        if self.gateway.json {
            context.output.value(&report(&explanation, context))?;
        } else {
            print(&explanation, context)?;
        }
        Ok(if explanation.outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn print(explanation: &Explanation, context: &Context) -> Result<(), CliError> {
    let output = context.output;
    let mut fields: Vec<Field> = Vec::new();
    match &explanation.outcome {
        Ok(resolution) => fields.extend(decision(resolution)),
        Err(error) => fields.push(("Refused", Tone::Bad, error.to_string())),
    }
    let exists = if context.paths.config_file.exists() { "" } else { " (not there: defaults)" };
    fields.push(("Config", Tone::Plain, format!("{}{exists}", context.paths.config_file.display())));
    output.fields(&fields)?;
    print_table(
        output,
        "URL",
        explanation.urls.iter().map(|candidate| {
            (candidate.source, candidate.text.as_deref().map(shown_url).unwrap_or_default(), &candidate.outcome)
        }),
    )?;
    for (heading, credential) in [("Token", &explanation.token), ("Password", &explanation.password)] {
        if !credential.candidates.is_empty() {
            print_table(
                output,
                heading,
                credential.candidates.iter().map(|candidate| {
                    let fingerprint = candidate.value.as_ref().map(crate::secret::Secret::fingerprint);
                    (candidate.source, fingerprint.unwrap_or_default(), &candidate.outcome)
                }),
            )?;
        }
    }
    Ok(())
}

fn decision(resolution: &Resolution) -> Vec<Field> {
    let Resolution { url, url_source, token, password, pins, edge, tunnel } = resolution;
    let secret = |credential: &Credential| match (credential.source(), credential.value()) {
        (Some(source), Some(value)) => format!("from {source}, fingerprint {}", value.fingerprint()),
        _ => String::new(),
    };
    let none = token.value().is_none() && password.value().is_none();
    let certificate = match pins {
        Some((pins, source)) => format!("{} pinned by {source}", pins.len()),
        None if url.is_tls() => "normal trust, and the one that was met first".into(),
        None => String::new(),
    };
    let headers: Vec<&str> = edge.iter().map(|header| header.name.as_str()).collect();
    vec![
        ("Gateway", Tone::Strong, format!("{url} (from {url_source})")),
        (
            "Way",
            Tone::Plain,
            if *tunnel { "through the SSH tunnel to gateway.remote.sshTarget" } else { "direct" }.into(),
        ),
        ("Token", Tone::Plain, secret(token)),
        ("Password", Tone::Plain, secret(password)),
        (
            "Sent",
            Tone::Warning,
            if none { "no token or password: this device's own token, if it has one" } else { "" }.into(),
        ),
        ("Certificate", Tone::Plain, certificate),
        ("Headers", Tone::Plain, headers.join(", ")),
    ]
}

fn print_table<'a>(
    output: Output,
    heading: &str,
    rows: impl Iterator<Item = (Source, String, &'a Outcome)>,
) -> Result<(), CliError> {
    output.heading(heading)?;
    let mut table = Table::new(["Source", "Value", "Outcome"]);
    for (source, value, outcome) in rows {
        let (tone, text) = described(outcome);
        table.row([(Tone::Plain, source.to_string()), (Tone::Plain, value), (tone, text)]);
    }
    output.table(&table)
}

fn described(outcome: &Outcome) -> (Tone, String) {
    match outcome {
        Outcome::Won => (Tone::Good, "used".into()),
        Outcome::Outranked => (Tone::Plain, "one above counts more".into()),
        Outcome::Unset => (Tone::Faint, "not set".into()),
        Outcome::Failed(why) => (Tone::Bad, format!("a reference without a value: {why}")),
        Outcome::NotNeeded => (Tone::Faint, "a reference that is not followed: it would not be sent".into()),
        Outcome::Excluded(why) => (Tone::Warning, format!("left out: {why}")),
    }
}

/// A URL without what it may hold of secrets.
fn shown_url(text: &str) -> String {
    match GatewayUrl::parse(text) {
        Ok(url) => url.to_string(),
        // The user part of a URL that is refused may be a password.
        Err(_) => match text.rsplit_once('@') {
            Some((before, host)) => {
                let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
                format!("{scheme}://…@{host}")
            }
            None => text.to_owned(),
        },
    }
}

/// `{"ok", "url", "urlSource", "error", "tunnel", "pins", "edgeHeaders", "candidates": {"url", "token", "password"}}`.
fn report(explanation: &Explanation, context: &Context) -> Value {
    let word = |outcome: &Outcome| match outcome {
        Outcome::Won => "used",
        Outcome::Outranked => "outranked",
        Outcome::Unset => "unset",
        Outcome::Failed(_) => "failed",
        Outcome::NotNeeded => "not-needed",
        Outcome::Excluded(_) => "excluded",
    };
    let why = |outcome: &Outcome| match outcome {
        Outcome::Failed(why) => Some(why.clone()),
        Outcome::Excluded(why) => Some((*why).to_owned()),
        _ => None,
    };
    let credential = |credential: &Credential| -> Vec<Value> {
        let rows = credential.candidates.iter().map(|candidate| {
            json!({
                "source": candidate.source.to_string(),
                "fingerprint": candidate.value.as_ref().map(crate::secret::Secret::fingerprint),
                "outcome": word(&candidate.outcome),
                "why": why(&candidate.outcome),
            })
        });
        rows.collect()
    };
    let url = |candidate: &UrlCandidate| {
        json!({
            "source": candidate.source.to_string(),
            "url": candidate.text.as_deref().map(shown_url),
            "outcome": word(&candidate.outcome),
            "why": why(&candidate.outcome),
        })
    };
    let resolution = explanation.outcome.as_ref().ok();
    json!({
        "ok": resolution.is_some(),
        "error": explanation.outcome.as_ref().err().map(ToString::to_string),
        "url": explanation.url.as_ref().map(ToString::to_string),
        "urlSource": resolution.map(|resolution| resolution.url_source.to_string()),
        "tunnel": resolution.is_some_and(|resolution| resolution.tunnel),
        "pins": resolution.and_then(|resolution| resolution.pins.as_ref()).map(|(pins, source)| json!({
            "source": source.to_string(),
            "pins": pins.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        "edgeHeaders": resolution.map(|resolution| {
            resolution.edge.iter().map(|header| header.name.as_str()).collect::<Vec<_>>()
        }),
        "configPath": context.paths.config_file,
        "candidates": {
            "url": explanation.urls.iter().map(url).collect::<Vec<_>>(),
            "token": credential(&explanation.token),
            "password": credential(&explanation.password),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_url_shows_no_password() {
        assert_eq!(shown_url("ws://user:s3cret@h"), "ws://…@h");
        assert_eq!(shown_url("ws://127.0.0.1:1/?token=s3cret"), "ws://127.0.0.1:1");
        assert_eq!(shown_url("ws://gw.example.com"), "ws://gw.example.com");
    }
}
