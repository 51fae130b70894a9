//! `clawgate models`: which models the agent may ask, and the keys of their providers.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::{Command, ExitCode};

use clap::Subcommand;
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::{Table, Tone};
use super::talk::{call, print, rows, text};
use super::target::GatewayFlags;
use crate::clock::UnixMs;

/// `models ...`.
#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// Show the configured models
    List(GatewayFlags),
    /// Show which of them can be asked now, and the keys of their providers
    Status(GatewayFlags),
    /// Look after the keys of providers that the gateway keeps
    #[command(subcommand)]
    Auth(AuthCommand),
}

/// `models auth ...`.
#[derive(Debug, Subcommand)]
pub(super) enum AuthCommand {
    /// Show the keys by name, and whether they serve; never the keys themselves
    List {
        /// Only those of this provider
        #[arg(long, value_name = "ID")]
        provider: Option<String>,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
    /// Keep a key, read from standard input
    #[command(alias = "add")]
    PasteApiKey {
        /// Of which provider: one of models.providers
        #[arg(long, value_name = "ID")]
        provider: String,
        /// Under which name; default: PROVIDER:default
        #[arg(long, value_name = "ID")]
        profile_id: Option<String>,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
    /// Forget a key
    Logout {
        /// Its name, as `models auth list` shows it
        profile_id: String,
        /// Without being asked
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
}

impl ModelsCommand {
    pub(super) const fn prints_json(&self) -> bool {
        let (Self::List(flags)
        | Self::Status(flags)
        | Self::Auth(
            AuthCommand::List { gateway: flags, .. }
            | AuthCommand::PasteApiKey { gateway: flags, .. }
            | AuthCommand::Logout { gateway: flags, .. },
        )) = self;
        flags.json
    }

    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        match self {
            Self::List(flags) => list(context, &flags, None).await?,
            Self::Status(flags) => list(context, &flags, Some("models.authStatus")).await?,
            Self::Auth(command) => command.run(context).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(context: &Context, flags: &GatewayFlags, and: Option<&str>) -> Result<(), CliError> {
    // For programs it is one document, whatever it takes to make it.
    let quiet = GatewayFlags { json: false, ..flags.clone() };
    let asking = if and.is_some() { &quiet } else { flags };
    let Some(list) = call(context, asking, "models.list", &json!({})).await? else { return Ok(()) };
    let auth = match and {
        Some(method) => call(context, asking, method, &json!({})).await?,
        None => None,
    };
    if flags.json {
        return context.output.value(&json!({"models": list["models"], "auth": auth}));
    }
    let mut table = Table::new(["Model", "Name", "Context", "State"]);
    for row in rows(&list, "models") {
        let (tone, state) = match row["unavailableReason"].as_str() {
            None => (Tone::Good, "ready".to_owned()),
            Some(reason) => (Tone::Bad, reason.to_owned()),
        };
        table.row([
            (Tone::Strong, format!("{}/{}", text(row, "provider"), text(row, "id"))),
            (Tone::Plain, text(row, "name")),
            (Tone::Plain, row["contextWindow"].to_string()),
            (tone, state),
        ]);
    }
    let empty = "No models: set models.providers in the configuration.";
    print(context.output, &table, empty, rows(&list, "models").is_empty())?;
    match auth {
        Some(auth) => keys(context, &auth, None),
        None => Ok(()),
    }
}

/// The keys by name.
fn keys(context: &Context, auth: &Value, only: Option<&str>) -> Result<(), CliError> {
    let mut table = Table::new(["Key", "Provider", "Kept in", "State"]);
    let mut count = 0;
    let providers = rows(auth, "providers").iter();
    for provider in providers.filter(|provider| only.is_none_or(|only| provider["provider"] == only)) {
        for profile in rows(provider, "profiles") {
            count += 1;
            let (tone, state) = match profile["cooldownUntil"].as_u64() {
                None => (Tone::Good, "serves".to_owned()),
                Some(until) => {
                    let left = UnixMs(until).since(UnixMs::now()) / 1000;
                    (Tone::Bad, format!("rests for {left} s: {}", text(profile, "reason")))
                }
            };
            let kept = if profile["source"] == "config" { "the configuration" } else { "the gateway" };
            table.row([
                (Tone::Strong, text(profile, "profileId")),
                (Tone::Plain, text(provider, "provider")),
                (Tone::Plain, kept.to_owned()),
                (tone, state),
            ]);
        }
    }
    print(context.output, &table, "No keys: the providers are asked without one.", count == 0)
}

impl AuthCommand {
    async fn run(self, context: &Context) -> Result<(), CliError> {
        let output = context.output;
        match self {
            Self::List { provider, gateway } => {
                if let Some(auth) = call(context, &gateway, "models.authStatus", &json!({})).await? {
                    keys(context, &auth, provider.as_deref())?;
                }
            }
            Self::PasteApiKey { provider, profile_id, gateway } => {
                let key = read_key(context, &provider)?;
                let mut params = json!({"provider": provider, "apiKey": key});
                if let Some(profile_id) = profile_id {
                    params["profileId"] = json!(profile_id);
                }
                if let Some(kept) = call(context, &gateway, "models.authSetApiKey", &params).await? {
                    output.line(&format!("Kept as {}.", text(&kept, "profileId")))?;
                    if let Some(warning) = kept["warning"].as_str() {
                        output.line(warning)?;
                    }
                }
            }
            Self::Logout { profile_id, yes, gateway } => {
                let provider = profile_id.split(':').next().unwrap_or_default();
                if !yes && std::io::stdin().is_terminal() && !gateway.json {
                    output.line(&format!("Forget the key {profile_id}? Its provider still takes it. [y/N]"))?;
                    if !read_line()?.trim().eq_ignore_ascii_case("y") {
                        return Ok(());
                    }
                }
                let params = json!({"provider": provider, "profileIds": [profile_id]});
                if call(context, &gateway, "models.authLogout", &params).await?.is_some() {
                    output.line(&format!("{profile_id} is forgotten."))?;
                }
            }
        }
        Ok(())
    }
}

/// The key from standard input; a terminal does not show it.
fn read_key(context: &Context, provider: &str) -> Result<String, CliError> {
    let is_terminal = std::io::stdin().is_terminal();
    let echo = |word: &str| {
        if is_terminal {
            // Where there is no stty the key is seen, which is not worth refusing it.
            let _ = Command::new("stty").arg(word).status();
        }
    };
    if is_terminal {
        context.output.line(&format!("The API key of {provider} (it is not shown):"))?;
    }
    echo("-echo");
    let read = read_line();
    echo("echo");
    let key = read?.trim().to_owned();
    if key.is_empty() {
        return Err(CliError::other("no key came on standard input"));
    }
    Ok(key)
}

fn read_line() -> Result<String, CliError> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| CliError::other(format!("standard input: {error}")))?;
    Ok(line)
}
