//! `clawgate gateway`: run it, ask whether it is there, call its methods.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::context::Context;
use super::discover::DiscoverArgs;
use super::error::CliError;
use super::explain::ExplainArgs;
use super::gateway_service::ServiceCommand;
use super::output::Tone;
use super::status::{Reached, capability, print_health};
use super::target::{GatewayFlags, Target, scopes_for, source_of};
use super::trust::TrustArgs;
use super::{json_object, parse_result};
use crate::client::Purpose;
use crate::client::credentials::Resolution;
use crate::clock::UnixMs;
use crate::config::decode::bind_hint;
use crate::config::model::{AuthMode, Bind, TailscaleMode};
use crate::config::resolve;
use crate::net::tls::certificate;
use crate::rpc::scope::{Scope, ScopeSet};
use crate::secret::Secret;
use crate::server::tls_files;

/// Time for a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// `gateway ...`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct GatewayArgs {
    #[command(subcommand)]
    command: Option<GatewayCommand>,
    #[command(flatten)]
    run: GatewayRun,
}

#[derive(Debug, Subcommand)]
enum GatewayCommand {
    /// Run the gateway in the foreground
    Run(GatewayRun),
    #[command(flatten)]
    Talk(TalkCommand),
    #[command(flatten)]
    Service(ServiceCommand),
}

/// What to do: be a gateway, or talk to one.
pub(super) enum Action {
    /// Be one.
    Run(Box<GatewayRun>),
    /// Talk to one.
    Talk(TalkCommand),
    /// Have one as a service.
    Service(ServiceCommand),
}

/// Commands that talk to a gateway.
#[derive(Debug, Subcommand)]
pub(super) enum TalkCommand {
    /// Call a method of the gateway
    Call(CallArgs),
    /// Ask the gateway how it is
    Health(GatewayFlags),
    /// Show configuration, address, and whether the gateway answers
    Status(StatusArgs),
    /// See which gateways can be reached, and what we may do there
    Probe(GatewayFlags),
    /// Show what clients pin of this gateway's certificate
    Fingerprint(FingerprintArgs),
    /// Find gateways that can be reached from here
    Discover(DiscoverArgs),
    /// Say which gateway and which credentials count here, and why
    Explain(ExplainArgs),
    /// Accept the certificate of a wss:// gateway, or forget it
    Trust(TrustArgs),
}

/// How to run the gateway. Flags win over the environment, and that over the configuration.
#[derive(Clone, Debug, Args)]
pub(super) struct GatewayRun {
    /// Port to listen on
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
    /// Addresses to listen on: loopback, lan, tailnet, auto, custom
    #[arg(long, value_name = "MODE", value_parser = bind)]
    pub(super) bind: Option<Bind>,
    /// What lets a client in: none, token, password, trusted-proxy
    #[arg(long, value_name = "MODE")]
    pub(super) auth: Option<AuthMode>,
    /// How Tailscale leads here: off, serve, funnel
    #[arg(long, value_name = "MODE")]
    pub(super) tailscale: Option<TailscaleMode>,
    /// The shared token (other users of this host can see it; OPENCLAW_GATEWAY_TOKEN is hidden from them)
    #[arg(long, value_name = "TOKEN")]
    pub(super) token: Option<String>,
    /// The shared password (other users of this host can see it; --password-file is hidden from them)
    #[arg(long, value_name = "PASSWORD", conflicts_with = "password_file")]
    pub(super) password: Option<String>,
    /// File to read the shared password from
    #[arg(long, value_name = "PATH")]
    pub(super) password_file: Option<PathBuf>,
    /// Threads that carry connections; default: one a core
    #[arg(long, value_name = "N")]
    pub(super) workers: Option<usize>,
    /// Run although gateway.mode is not local
    #[arg(long)]
    pub(super) allow_unconfigured: bool,
    /// Say more on standard error
    #[arg(long)]
    pub(super) verbose: bool,
}

fn bind(text: &str) -> Result<Bind, String> {
    text.parse().map_err(|error: crate::config::keyword::UnknownWord| match bind_hint(text) {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    })
}

impl GatewayRun {
    /// What the command line says, for [`resolve::start`].
    ///
    /// # Errors
    /// A secret is empty, or the password file cannot be read.
    pub(super) fn flags(&self) -> Result<resolve::Flags, CliError> {
        let password = match &self.password_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| CliError::other(format!("--password-file {}: {error}", path.display())))?;
                let text = text.trim();
                if text.is_empty() {
                    return Err(CliError::other(format!("--password-file {}: the file is empty", path.display())));
                }
                Some(Secret::new(text))
            }
            None => secret("--password", self.password.as_deref())?,
        };
        Ok(resolve::Flags {
            port: self.port,
            bind: self.bind,
            auth: self.auth,
            token: secret("--token", self.token.as_deref())?,
            password,
            tailscale: self.tailscale,
            allow_unconfigured: self.allow_unconfigured,
        })
    }
}

/// The secret of a flag. An empty one is most likely a variable that is not set: `--token "$TOKEN"`.
fn secret(flag: &str, text: Option<&str>) -> Result<Option<Secret>, CliError> {
    match text {
        Some(text) if text.trim().is_empty() => Err(CliError::Usage(format!(
            "{flag} is empty, and an empty secret lets everybody in. Is a variable not set?"
        ))),
        text => Ok(text.map(Secret::new)),
    }
}

/// Which method, with what.
#[derive(Debug, Args)]
pub(super) struct CallArgs {
    /// The method, such as health or node.list
    #[arg(value_name = "METHOD")]
    method: String,
    /// Its parameters: a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    params: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// Do not ask the gateway
    #[arg(long)]
    no_probe: bool,
    /// Fail when the gateway does not answer
    #[arg(long, conflicts_with = "no_probe")]
    require_rpc: bool,
    /// Look at more (this gateway has no more to look at)
    #[arg(long, hide = true)]
    deep: bool,
}

/// How to show it.
#[derive(Debug, Args)]
pub(super) struct FingerprintArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl GatewayArgs {
    /// Whether an error is printed as JSON, too.
    pub(super) fn prints_json(&self) -> bool {
        match &self.command {
            None | Some(GatewayCommand::Run(_)) => false,
            Some(GatewayCommand::Service(command)) => command.prints_json(),
            Some(GatewayCommand::Talk(TalkCommand::Call(args))) => args.gateway.json,
            Some(GatewayCommand::Talk(TalkCommand::Health(flags) | TalkCommand::Probe(flags))) => flags.json,
            Some(GatewayCommand::Talk(TalkCommand::Status(args))) => args.gateway.json,
            Some(GatewayCommand::Talk(TalkCommand::Fingerprint(args))) => args.json,
            Some(GatewayCommand::Talk(TalkCommand::Discover(args))) => args.prints_json(),
            Some(GatewayCommand::Talk(TalkCommand::Explain(args))) => args.prints_json(),
            Some(GatewayCommand::Talk(TalkCommand::Trust(args))) => args.prints_json(),
        }
    }

    /// What is asked for; to run the gateway when nothing else is.
    pub(super) fn action(self) -> Action {
        match self.command {
            None => Action::Run(Box::new(self.run)),
            Some(GatewayCommand::Run(run)) => Action::Run(Box::new(run)),
            Some(GatewayCommand::Talk(command)) => Action::Talk(command),
            Some(GatewayCommand::Service(command)) => Action::Service(command),
        }
    }
}

impl TalkCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        match self {
            Self::Call(args) => call(context, &args).await,
            Self::Health(flags) => health(context, &flags).await,
            Self::Status(args) => status(context, &args).await,
            Self::Probe(flags) => probe(context, &flags).await,
            Self::Fingerprint(args) => fingerprint(context, &args),
            Self::Discover(args) => args.run(context).await,
            Self::Explain(args) => args.run(context),
            Self::Trust(args) => args.run(context),
        }
    }
}

async fn call(context: &Context, args: &CallArgs) -> Result<ExitCode, CliError> {
    let params = json_object("--params", &args.params)?;
    let target = Target::resolve(context, &args.gateway, Purpose::Call, CALL_TIMEOUT)?;
    let result = target.call_once(&args.method, &params).await?;
    if !args.gateway.json {
        context.output.line(&format!("Gateway call: {}", args.method))?;
    }
    context.output.json(result.get())?;
    Ok(ExitCode::SUCCESS)
}

async fn health(context: &Context, flags: &GatewayFlags) -> Result<ExitCode, CliError> {
    let output = context.output;
    let target = Target::resolve(context, flags, Purpose::Call, CALL_TIMEOUT)?;
    let started = Instant::now();
    let result = target.call_once("health", &json!({})).await?;
    if flags.json {
        output.json(result.get())?;
    } else {
        let health: Value = parse_result("health", &result)?;
        output.line("Gateway health")?;
        print_health(output, &health, started.elapsed())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(context: &Context, args: &StatusArgs) -> Result<ExitCode, CliError> {
    let output = context.output;
    let loaded = context.load()?;
    let target = Target::resolve(context, &args.gateway, Purpose::Probe, CALL_TIMEOUT)?;
    let reached = match args.no_probe {
        true => None,
        false => Some(Reached::connect(&target, scopes_for(["health"])).await),
    };
    let failed = reached.as_ref().is_some_and(|reached| reached.error.is_some());
    let url = &target.resolution.url;
    let bind = loaded.config.gateway.bind;
    if args.gateway.json {
        output.value(&json!({
            "cli": {"version": env!("CARGO_PKG_VERSION")},
            "config": {"path": context.paths.config_file, "exists": loaded.source.text.is_some(), "valid": true},
            "stateDir": context.paths.state_dir,
            "gateway": {
                "bindMode": bind.as_str(),
                "port": url.port(),
                "portSource": target.resolution.url_source.to_string(),
                "probeUrl": url.to_string(),
            },
            "auth": {
                "token": source_of(&target.resolution.token),
                "password": source_of(&target.resolution.password),
            },
            "rpc": reached.as_ref().map(|reached| reached.to_json(url)),
        }))?;
    } else {
        let exists = if loaded.source.text.is_some() { "" } else { " (not there: defaults)" };
        let Resolution { token, password, url_source, .. } = &target.resolution;
        let mut fields = vec![
            ("Config", Tone::Plain, format!("{}{exists}", context.paths.config_file.display())),
            ("State", Tone::Plain, context.paths.state_dir.display().to_string()),
            ("Gateway", Tone::Plain, format!("{url} (from {url_source}), bind={bind}")),
            ("Auth", Tone::Plain, format!("token: {}, password: {}", source_of(token), source_of(password))),
            ("CLI", Tone::Plain, format!("clawgate {}", env!("CARGO_PKG_VERSION"))),
        ];
        fields.extend(reached.as_ref().map(Reached::field));
        output.fields(&fields)?;
        if let Some(reached) = &reached {
            reached.print_advice(output)?;
        }
    }
    Ok(if failed && args.require_rpc { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn probe(context: &Context, flags: &GatewayFlags) -> Result<ExitCode, CliError> {
    let output = context.output;
    let started = Instant::now();
    // What was named, and this host's own gateway beside it when that is another.
    let named = Target::resolve(context, flags, Purpose::Probe, PROBE_TIMEOUT)?;
    let local = GatewayFlags { port: Some(local_port(context, flags)), url: None, ..flags.clone() };
    let local = match named.resolution.url.is_loopback() {
        true => None,
        false => Some(Target::resolve(context, &local, Purpose::Probe, PROBE_TIMEOUT)?),
    };
    let targets: Vec<(&str, Target)> = match local {
        None => vec![("localLoopback", named)],
        Some(local) => {
            vec![(if flags.url.is_some() { "explicit" } else { "configRemote" }, named), ("localLoopback", local)]
        }
    };
    let mut rows = Vec::new();
    for (kind, target) in &targets {
        let mut reached = Reached::connect(target, ScopeSet::EMPTY.with(Scope::Read)).await;
        let details = reached.read(target).await;
        rows.push((*kind, target, reached, details));
    }
    let primary = rows.iter().find(|(_, _, reached, _)| reached.error.is_none());
    let ok = primary.is_some();
    if flags.json {
        let targets: Vec<Value> = rows
            .iter()
            .map(|(kind, target, reached, details)| {
                let rpc_ok = reached.error.is_none() && details.error.is_none();
                json!({
                    "id": kind,
                    "kind": kind,
                    "url": target.resolution.url.to_string(),
                    "active": true,
                    "connect": {
                        "ok": reached.error.is_none(),
                        "rpcOk": rpc_ok,
                        "latencyMs": reached.latency_ms(),
                        "error": reached.error.as_ref().or(details.error.as_ref()).map(ToString::to_string),
                    },
                    "auth": {"scopes": reached.scopes(), "capability": capability(reached).replace('-', "_")},
                    "server": reached.server(),
                    "health": details.health,
                    "summary": details.status,
                    "presence": details.presence,
                })
            })
            .collect();
        output.value(&json!({
            "ok": ok,
            "degraded": rows.iter().any(|(_, _, reached, details)| reached.error.is_none() && details.error.is_some()),
            "capability": primary.map_or_else(|| "unreachable".into(), |row| capability(&row.2).replace('-', "_")),
            "ts": UnixMs::now(),
            "durationMs": started.elapsed().as_millis(),
            "timeoutMs": rows.first().map(|row| row.1.timeout().as_millis()),
            "primaryTargetId": primary.map(|row| row.0),
            "targets": targets,
        }))?;
    } else {
        let (tone, word) = if ok { (Tone::Good, "yes") } else { (Tone::Bad, "no") };
        output.fields(&[("Reachable", tone, word.into())])?;
        for (kind, target, reached, details) in &rows {
            let name = match *kind {
                "localLoopback" => "This host",
                "configRemote" => "Remote",
                _ => "Given",
            };
            output.heading(name)?;
            let health = details.health.as_ref().map(|health| if health["ok"] == true { "ok" } else { "not ok" });
            output.fields(&[
                ("URL", Tone::Plain, format!("{} (from {})", target.resolution.url, target.resolution.url_source)),
                reached.field(),
                ("Health", Tone::Plain, health.unwrap_or_default().into()),
                ("Calls", Tone::Warning, details.error.as_ref().map_or_else(String::new, ToString::to_string)),
            ])?;
            reached.print_advice(output)?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads the certificate and nothing else: neither the key nor a running gateway is needed.
fn fingerprint(context: &Context, args: &FingerprintArgs) -> Result<ExitCode, CliError> {
    let output = context.output;
    let settings = context.load()?.config.gateway.tls;
    if !settings.enabled {
        return Err(CliError::other("this gateway speaks no TLS of its own: gateway.tls.enabled is false".to_owned()));
    }
    let cert = tls_files(&settings, &context.paths).cert;
    let found = certificate::fingerprints(&cert).map_err(|error| {
        CliError::other(format!("{error}. A gateway makes its certificate at its first start: clawgate gateway"))
    })?;
    if args.json {
        output.value(&json!({
            "path": cert,
            "certificate": {"sha256": found.certificate.to_string()},
            "publicKey": {"sha256": found.public_key.to_string()},
        }))?;
    } else {
        output.fields(&[
            ("Certificate", Tone::Plain, cert.display().to_string()),
            ("SHA-256", Tone::Plain, found.certificate.to_string()),
            (
                "Public key",
                Tone::Plain,
                format!("{} (stays when the certificate is renewed with its key)", found.public_key),
            ),
            ("Pin it", Tone::Plain, format!("clawgate config set gateway.remote.tlsFingerprint {}", found.certificate)),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The port of the gateway on this host, whatever mode is configured.
fn local_port(context: &Context, flags: &GatewayFlags) -> u16 {
    let configured = || context.load().ok().and_then(|loaded| loaded.config.gateway.port);
    let variable = context.environment.get("OPENCLAW_GATEWAY_PORT").and_then(|port| port.parse().ok());
    flags.port.or(variable).or_else(configured).unwrap_or_else(|| context.profile.default_port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_stands_for_the_password() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let run = GatewayRun {
            port: None,
            bind: None,
            auth: Some(AuthMode::Password),
            token: None,
            password: None,
            password_file: Some(path.clone()),
            workers: None,
            tailscale: None,
            allow_unconfigured: false,
            verbose: false,
        };
        assert!(run.flags().unwrap_err().to_string().contains("--password-file"));
        std::fs::write(&path, " \n").unwrap();
        assert!(run.flags().unwrap_err().to_string().contains("empty"));
        std::fs::write(&path, "s3cret\n").unwrap();
        assert!(run.flags().unwrap().password.unwrap().matches("s3cret"));
        let empty = |token: Option<&str>, password: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            let run = GatewayRun { token: text(token), password: text(password), password_file: None, ..run.clone() };
            run.flags().unwrap_err()
        };
        assert!(matches!(empty(Some(""), None), CliError::Usage(text) if text.contains("--token is empty")));
        assert!(matches!(empty(None, Some(" ")), CliError::Usage(text) if text.contains("--password is empty")));
    }

    #[test]
    fn a_wrong_bind_says_what_was_meant() {
        assert!(bind("0.0.0.0").unwrap_err().contains("use \"lan\""));
        assert_eq!(bind("lan"), Ok(Bind::Lan));
    }
}
