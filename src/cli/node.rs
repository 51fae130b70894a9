//! `clawgate node`: this machine as a node.
//!
//! Which gateway, with which key, and what is said about it; what a node does is in [`crate::node_host`].

use std::collections::BTreeMap;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::context::Context;
use super::error::CliError;
use super::output::{Output, Tone};
use super::service::file::NODE;
use super::service::{Kind, Order, ShowFlags, answer};
use super::target::{said, source_of};
use super::told_to_stop;
use crate::client::credentials::{self, Credential, CredentialError, Flags, Resolution, Source};
use crate::client::error::{ConnectError, Stage};
use crate::client::identity::DeviceTokens;
use crate::client::setup_code::SetupCode;
use crate::client::{Auth, ConnectOptions, Connection, Event, Identity, Link, Purpose, Update};
use crate::clock::UnixMs;
use crate::node_host::policy::Mode;
use crate::node_host::{self, CAPS, COMMANDS, NodeHost, Note};
use crate::rpc::scope::Role;

/// Time between reports of how busy this machine is.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// `node run` ends with it when trying again is of no use until a person has done something: EX_CONFIG of sysexits.
const NEEDS_A_PERSON: u8 = 78;

/// `node ...`.
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Offer this machine's commands to a gateway, in the foreground
    Run(RunFlags),
    /// Show the key by which gateways know this machine
    Identity(ShowFlags),
    /// Make it a service: a systemd user unit, or a LaunchAgent
    Install(InstallFlags),
    /// Take the service away
    Uninstall(ShowFlags),
    /// Show whether the service runs
    Status(ShowFlags),
    /// Start the service
    Start(ShowFlags),
    /// Stop the service
    Stop(ShowFlags),
    /// Stop the service and start it again
    Restart(ShowFlags),
}

/// Which gateway, and what it may do here.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct RunFlags {
    /// The gateway's host; default: the gateway of the configuration
    #[arg(long, value_name = "HOST", conflicts_with = "url")]
    host: Option<String>,
    /// The gateway's port
    #[arg(long, value_name = "PORT", conflicts_with = "url", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// What comes behind host and port in the gateway's URL
    #[arg(long, value_name = "PATH", requires = "host")]
    context_path: Option<String>,
    /// Speak TLS with the gateway
    #[arg(long, conflicts_with_all = ["url", "no_tls"])]
    tls: bool,
    /// Speak no TLS, whatever the configuration says
    #[arg(long, conflicts_with = "url")]
    no_tls: bool,
    /// The gateway's URL, in one
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A setup code, by which this machine is paired once without the gateway's secret: clawgate qr --node
    #[arg(long, value_name = "CODE", conflicts_with_all = ["host", "port", "context_path", "tls", "no_tls", "url", "token", "password", "tls_fingerprint"])]
    pair: Option<String>,
    /// The gateway's shared token (other users of this host can see it; OPENCLAW_GATEWAY_TOKEN is hidden from them)
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// The gateway's shared password (other users of this host can see it; OPENCLAW_GATEWAY_PASSWORD is hidden)
    #[arg(long, value_name = "PASSWORD")]
    password: Option<String>,
    /// The certificate of a wss:// gateway (SHA-256, as openssl prints it; several with commas)
    #[arg(long, value_name = "SHA256")]
    tls_fingerprint: Option<String>,
    /// Name of this node for people; default: the name of this machine
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,
    /// Name of this run for the gateway; default: another each time
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Offer these commands alone (with commas, or several times)
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    commands: Vec<String>,
    /// What may run here, instead of what exec-approvals.json says
    #[arg(long, value_name = "MODE")]
    exec: Option<Exec>,
    /// Print what happens as JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// What a gateway may run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Exec {
    /// Nothing
    Deny,
    /// What exec-approvals.json lists, and nothing else, whatever the gateway says
    Allowlist,
    /// That, and what the gateway says that a person has approved (the default)
    Ask,
    /// Everything: whoever controls the gateway controls this machine
    Full,
}

impl From<Exec> for Mode {
    fn from(exec: Exec) -> Self {
        match exec {
            Exec::Deny => Self::Deny,
            Exec::Allowlist => Self::Allowlist,
            Exec::Ask => Self::Ask,
            Exec::Full => Self::Full,
        }
    }
}

/// How to install.
#[derive(Clone, Debug, Args)]
pub(super) struct InstallFlags {
    #[command(flatten)]
    run: RunFlags,
    /// Print the service's file and change nothing
    #[arg(long)]
    print: bool,
    /// Write over an installed service (that is done without it, too)
    #[arg(long, hide = true)]
    force: bool,
}

impl NodeCommand {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        match self {
            Self::Run(flags) => flags.json,
            Self::Install(flags) => flags.run.json,
            Self::Identity(flags)
            | Self::Uninstall(flags)
            | Self::Status(flags)
            | Self::Start(flags)
            | Self::Stop(flags)
            | Self::Restart(flags) => flags.json,
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        match self {
            Self::Run(flags) => run(context, &flags).await,
            Self::Identity(flags) => identity(context, &flags),
            Self::Install(flags) => install(context, &flags),
            Self::Uninstall(flags) => SERVICE.obey(context, Order::Uninstall, &flags),
            Self::Status(flags) => service_status(context, &flags),
            Self::Start(flags) => SERVICE.obey(context, Order::Start, &flags),
            Self::Stop(flags) => SERVICE.obey(context, Order::Stop, &flags),
            Self::Restart(flags) => SERVICE.obey(context, Order::Restart, &flags),
        }
    }
}

const SERVICE: Kind =
    Kind { name: NODE, what: "The node host", install: "clawgate node install", foreground: "clawgate node run" };

fn service_status(context: &Context, flags: &ShowFlags) -> Result<ExitCode, CliError> {
    let services = SERVICE.services(context)?;
    let (file, runs) = (services.file(), services.runs());
    let (installed, active) = (file.exists(), runs && services.is_active());
    let text = match (installed, active) {
        (false, _) => "No such service is installed. Install it: clawgate node install".to_owned(),
        (true, true) => format!("The node host runs ({}).", file.display()),
        (true, false) if !runs => {
            format!("{} is there, but {} does not answer.", file.display(), services.manager_name())
        }
        (true, false) => "The node host is installed and does not run. See why: clawgate node run".to_owned(),
    };
    answer(context.output, flags.json, &text, json!({"installed": installed, "active": active, "file": file}))?;
    Ok(if active { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the service, with the flags of this command. Secrets are not among them: what the gateway gave this device when
/// it was paired is enough.
fn install(context: &Context, flags: &InstallFlags) -> Result<ExitCode, CliError> {
    let run = &flags.run;
    if run.pair.is_some() {
        return Err(CliError::with_advice(
            "a setup code serves once, and is nothing for a service's file",
            "Pair once in the foreground: clawgate node run --pair CODE. Then install with --url.",
        ));
    }
    if run.token.is_some() || run.password.is_some() {
        return Err(CliError::with_advice(
            "--token and --password are not written into a service's file",
            "Pair once in the foreground, with the secret: clawgate node run. Then install without it.",
        ));
    }
    let state_dir = &context.paths.state_dir;
    let identity = Identity::load_or_create(state_dir)?;
    let tokens = DeviceTokens::load(state_dir, &identity);
    // What would not even begin is not installed.
    let resolution = run.resolve(context, &tokens)?;
    let is_paired = tokens.get(&resolution.url, Role::Node).is_some();
    let from_environment = [&resolution.token, &resolution.password]
        .iter()
        .any(|credential| matches!(credential.source(), Some(Source::Variable(_))));
    if !is_paired && from_environment {
        return Err(CliError::with_advice(
            "the secret is in this terminal's environment, where the service will not find it",
            "Pair once in the foreground: clawgate node run. Then install.",
        ));
    }
    let services = SERVICE.services(context)?;
    let arguments = run.of_a_service(&resolution).arguments();
    let text = services.text(context, "OpenClaw node host (clawgate)", arguments, NEEDS_A_PERSON)?;
    if flags.print {
        context.output.print(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let runs = services.install(&text)?;
    let file = services.file();
    if run.json {
        return answer(context.output, true, "installed", json!({"file": file, "loaded": runs}));
    }
    services.say_installed(
        context.output,
        runs,
        "This machine is a node as long as it runs. See: clawgate node status",
    )?;
    Ok(ExitCode::SUCCESS)
}

fn identity(context: &Context, flags: &ShowFlags) -> Result<ExitCode, CliError> {
    let Some(identity) = Identity::load(&context.paths.state_dir)? else {
        return Err(CliError::with_advice(
            "this machine has no key yet",
            "One is made when it first connects: clawgate node run",
        ));
    };
    let (id, key) = (identity.id().to_string(), identity.public_key());
    if flags.json {
        context.output.value(&json!({"deviceId": id, "publicKey": key}))?;
    } else {
        context.output.fields(&[("Device", Tone::Plain, id), ("Public key", Tone::Plain, key)])?;
    }
    Ok(ExitCode::SUCCESS)
}

impl RunFlags {
    /// What they say to the decision about gateway and credentials.
    ///
    /// # Errors
    /// `--host` is no host.
    fn given(&self, tls: bool, default_port: u16) -> Result<Flags, CliError> {
        let mut flags = Flags {
            url: self.url.clone(),
            token: self.token.clone(),
            password: self.password.clone(),
            tls_fingerprint: self.tls_fingerprint.clone(),
            ..Flags::default()
        };
        let Some(host) = self.host.as_deref().map(str::trim) else {
            flags.port = self.port.or((self.tls || self.no_tls).then_some(default_port));
            return Ok(flags);
        };
        if host.is_empty() || host.contains(['/', '@', '?', '#']) {
            return Err(CliError::Usage(format!("--host {host:?} is no host; a whole URL goes to --url")));
        }
        let port = self.port.unwrap_or(default_port);
        if !self.is_elsewhere() {
            // The gateway of this host: what the configuration knows of it counts.
            flags.port = Some(port);
        } else {
            let bare = host.contains(':') && !host.starts_with('[');
            let host = if bare { format!("[{host}]") } else { host.to_owned() };
            let scheme = if tls { "wss" } else { "ws" };
            let path = self.context_path.as_deref().unwrap_or_default().trim_start_matches('/');
            flags.host = Some(format!("{scheme}://{host}:{port}/{path}"));
        }
        Ok(flags)
    }

    /// Whether `--host` names another machine.
    fn is_elsewhere(&self) -> bool {
        let is_loopback = |host: &str| matches!(host.trim(), "127.0.0.1" | "::1" | "[::1]" | "localhost");
        self.host.as_deref().is_some_and(|host| !is_loopback(host) || self.context_path.is_some())
    }

    /// The gateway and the credentials for it.
    fn resolve(&self, context: &Context, tokens: &DeviceTokens) -> Result<Resolution, CliError> {
        let given = Flags {
            url: self.url.clone(),
            token: self.token.clone(),
            password: self.password.clone(),
            ..Flags::default()
        };
        let (mut settings, variables) = said(context, &given)?;
        // A fingerprint makes no sense without TLS. Another host's TLS is not in our configuration.
        let is_elsewhere = self.is_elsewhere();
        let tls = (self.tls || self.tls_fingerprint.is_some() || (settings.tls && !is_elsewhere)) && !self.no_tls;
        settings.tls = tls;
        // `--host` of this machine names its gateway, wherever that was told to listen.
        let told = context.environment.get("OPENCLAW_GATEWAY_PORT").and_then(|port| port.parse().ok());
        let default_port = told.or(settings.port).filter(|_| !is_elsewhere).or(settings.default_port);
        let mut flags = self.given(tls, default_port.unwrap_or(credentials::DEFAULT_PORT))?;
        flags.has_device_token = self.pair.is_some();
        let explanation = credentials::explain(&flags, &variables, &settings, Purpose::NodeHost);
        match (explanation.outcome, explanation.url) {
            (Err(CredentialError::ExplicitNeeded(_)), Some(url)) if tokens.get(&url, Role::Node).is_some() => {
                flags.has_device_token = true;
                Ok(credentials::resolve(&flags, &variables, &settings, Purpose::NodeHost)?)
            }
            (outcome, _) => Ok(outcome?),
        }
    }

    /// The same with what a setup code says of the gateway.
    fn by_code(&self, code: Option<&SetupCode>) -> Self {
        let mut flags = self.clone();
        if let Some(code) = code {
            flags.url = Some(code.url.clone());
            flags.tls_fingerprint.clone_from(&code.tls_fingerprint);
        }
        flags
    }

    /// The same for a service, which has not this terminal's environment: the gateway that was named there is named by a
    /// flag.
    fn of_a_service(&self, resolution: &Resolution) -> Self {
        let mut flags = self.clone();
        match resolution.url_source {
            Source::Variable("OPENCLAW_GATEWAY_URL") => flags.url = Some(resolution.url.to_string()),
            Source::Variable(_) => flags.port = Some(resolution.url.port()),
            _ => {}
        }
        flags
    }

    /// The command line of the same node, without secrets.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = ["node", "run"].map(str::to_owned).to_vec();
        let mut add = |flag: &str, value: Option<String>| {
            arguments.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        add("--host", self.host.clone());
        add("--port", self.port.map(|port| port.to_string()));
        add("--context-path", self.context_path.clone());
        add("--url", self.url.clone());
        add("--tls-fingerprint", self.tls_fingerprint.clone());
        add("--display-name", self.display_name.clone());
        add("--node-id", self.node_id.clone());
        add("--commands", (!self.commands.is_empty()).then(|| self.commands.join(",")));
        add("--exec", self.exec.and_then(|exec| Some(exec.to_possible_value()?.get_name().to_owned())));
        let switches = [("--tls", self.tls), ("--no-tls", self.no_tls)];
        arguments.extend(switches.iter().filter(|(_, on)| *on).map(|(flag, _)| (*flag).to_owned()));
        arguments
    }

    /// Those of `offered` that are to be offered.
    fn select(&self, offered: Vec<String>) -> Result<Vec<String>, CliError> {
        let wanted: Vec<&str> = self.commands.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
        if let Some(unknown) = wanted.iter().find(|name| !COMMANDS.contains(name)) {
            return Err(CliError::Usage(format!(
                "--commands: there is no {unknown}; there are {}",
                COMMANDS.join(", ")
            )));
        }
        let is_wanted = |name: &String| wanted.is_empty() || wanted.contains(&name.as_str());
        let selected: Vec<String> = offered.into_iter().filter(is_wanted).collect();
        if selected.is_empty() {
            return Err(CliError::with_advice(
                format!("--commands: {} cannot be offered here", wanted.join(", ")),
                "system.run and system.run.prepare need a policy that lets something run (--exec, exec-approvals.json); \
                 system.notify needs notify-send (libnotify) and a desktop session.",
            ));
        }
        Ok(selected)
    }
}

/// What is said, to people or to programs.
#[derive(Clone, Copy)]
struct Voice {
    output: Output,
    json: bool,
}

impl Voice {
    /// Says that something happened. Whoever reads may have gone: the node goes on.
    fn say(self, event: &str, text: &str, more: Value) {
        let _ = if self.json {
            let mut line = json!({"event": event, "message": text});
            if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
                line.extend(more);
            }
            self.output.line(&line.to_string())
        } else {
            self.output.line(text)
        };
    }

    fn note(self, note: Note) {
        match note {
            Note::Ran { command, exit_code, timed_out, took } => {
                let how = match (timed_out, exit_code) {
                    (true, _) => "its time was over".to_owned(),
                    (false, Some(code)) => format!("exit {code}"),
                    (false, None) => "no exit code".to_owned(),
                };
                let text = format!("ran     {} ({how}, {} ms)", shown(&command), took.as_millis());
                let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                let more = json!({"command": command, "exitCode": exit_code, "timedOut": timed_out, "durationMs": ms});
                self.say("ran", &text, more);
            }
            Note::Denied { command, why } => {
                let text = format!("denied  {}: {why}", shown(&command));
                self.say("denied", &text, json!({"command": command, "reason": why}));
            }
            Note::Answered { command } => {
                self.say("answered", &format!("answered {command}"), json!({"command": command}))
            }
            Note::Unanswered { command, why } => {
                let text = format!("the gateway did not take the answer to {command}: {why}");
                self.say("unanswered", &text, json!({"command": command, "reason": why}));
            }
        }
    }
}

/// A command that fits a line.
fn shown(command: &str) -> String {
    const CHARS: usize = 160;
    match command.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}...", &command[..end]),
        None => command.to_owned(),
    }
}

async fn run(context: &Context, flags: &RunFlags) -> Result<ExitCode, CliError> {
    let voice = Voice { output: context.output, json: flags.json };
    let state_dir = &context.paths.state_dir;
    let identity = Arc::new(Identity::load_or_create(state_dir)?);
    let mut tokens = DeviceTokens::load(state_dir, &identity);
    let code = flags.pair.as_deref().map(|code| SetupCode::parse(code, UnixMs::now())).transpose();
    let code = code.map_err(|error| CliError::Usage(format!("--pair: {error}")))?;
    let flags = &flags.by_code(code.as_ref());
    let resolution = flags.resolve(context, &tokens)?;
    let policy_file = node_host::policy_file(state_dir);
    let host = NodeHost::new(
        node_host::Options {
            policy_file: policy_file.clone(),
            mode: flags.exec.map(Mode::from),
            environment: variables(),
        },
        move |note| voice.note(note),
    );
    let commands = flags.select(host.commands())?;
    let options = options(flags, &resolution, context, &identity, commands);
    introduce(voice, &options, &resolution, flags, &policy_file)?;

    let stored = tokens.get(&options.url, Role::Node);
    let mut session =
        Session { voice, host, options, awaits_approval: None, last_trouble: None, tunnel: resolution.tunnel };
    let shared = Auth {
        token: resolution.token.value().cloned(),
        password: resolution.password.value().cloned(),
        ..Auth::default()
    };
    // What the gateway gave this device is narrower than the secret of all; what somebody named just now is meant.
    let explicit = is_explicit(&resolution.token) || is_explicit(&resolution.password);
    let own = stored.map(|token| Auth { device_token: Some(token), ..Auth::default() });
    let has_shared = shared.token.is_some() || shared.password.is_some();
    let by_code = code.map(|code| Auth { bootstrap_token: Some(code.token), ..Auth::default() });
    let ways = match (own, explicit) {
        // What this machine got before may be of another time, but does no harm behind the code.
        (own, _) if by_code.is_some() => own.into_iter().collect(),
        (Some(own), false) if has_shared => vec![own, shared],
        (Some(own), true) => vec![shared, own],
        (Some(own), false) => vec![own],
        (None, _) => vec![shared],
    };
    let mut ways = by_code.into_iter().chain(ways).peekable();
    while let Some(auth) = ways.next() {
        session.options.auth = auth;
        let Some(error) = session.serve(&mut tokens).await else { return Ok(ExitCode::SUCCESS) };
        let code = error.refusal().map(|refusal| refusal.specific_code().to_owned()).unwrap_or_default();
        if code == "AUTH_DEVICE_TOKEN_MISMATCH"
            && let Err(error) = tokens.forget(&session.options.url, Role::Node)
        {
            voice.say("warning", &format!("the device token cannot be forgotten: {error}"), json!({}));
        }
        let other_may_do = matches!(
            code.as_str(),
            "AUTH_DEVICE_TOKEN_MISMATCH"
                | "AUTH_TOKEN_MISMATCH"
                | "AUTH_PASSWORD_MISMATCH"
                | "AUTH_SCOPE_MISMATCH"
                // The gateway takes another kind of secret by now; what it gave this device still counts.
                | "AUTH_TOKEN_MISSING"
                | "AUTH_PASSWORD_MISSING"
        );
        if ways.peek().is_none() || !other_may_do {
            let via = format!("Tried {}", provenance(&resolution));
            let failure = CliError::Connect { error: Box::new(error), via };
            let _ = context.output.fail(&failure, flags.json);
            return Ok(ExitCode::from(NEEDS_A_PERSON));
        }
        voice.say("retry", &format!("{error}; trying the other credential"), json!({}));
    }
    Ok(ExitCode::FAILURE)
}

fn is_explicit(credential: &Credential) -> bool {
    matches!(credential.source(), Some(Source::Flag(_) | Source::Variable(_)))
}

fn provenance(resolution: &Resolution) -> String {
    let Resolution { url, url_source, token, password, .. } = resolution;
    format!("{url} (from {url_source}), token: {}, password: {}", source_of(token), source_of(password))
}

/// The variables of this process that are text.
fn variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn options(
    flags: &RunFlags,
    resolution: &Resolution,
    context: &Context,
    identity: &Arc<Identity>,
    commands: Vec<String>,
) -> ConnectOptions {
    let mut options = ConnectOptions::node(resolution.url.clone(), Arc::clone(identity), commands);
    options.caps = CAPS.map(str::to_owned).into();
    options.edge.clone_from(&resolution.edge);
    options.tls.known = Some(context.paths.state_dir.clone());
    if let Some((pins, source)) = &resolution.pins {
        options.tls.pins.clone_from(pins);
        options.tls.pins_from = source.to_string();
    }
    let said =
        |text: &Option<String>| text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    options.program.display_name = Some(said(&flags.display_name).unwrap_or_else(machine));
    if let Some(id) = said(&flags.node_id) {
        options.program.instance_id = id;
    }
    options
}

/// Says who this is, before anything is tried.
fn introduce(
    voice: Voice,
    options: &ConnectOptions,
    resolution: &Resolution,
    flags: &RunFlags,
    policy_file: &std::path::Path,
) -> Result<(), CliError> {
    let name = options.program.display_name.clone().unwrap_or_default();
    let device = options.identity.as_ref().map(|identity| identity.id().to_string()).unwrap_or_default();
    if voice.json {
        let more =
            json!({"node": name, "deviceId": device, "url": options.url.to_string(), "commands": options.commands});
        voice.say("start", "the node host starts", more);
        return Ok(());
    }
    let list = policy_file.display();
    let runs = match flags.exec {
        Some(Exec::Deny) => "nothing (--exec deny)".to_owned(),
        Some(Exec::Allowlist) => format!("what {list} lists, and nothing else (--exec allowlist)"),
        Some(Exec::Ask) => format!("what a person approves there, and what {list} lists (--exec ask)"),
        Some(Exec::Full) => "whatever the gateway asks for (--exec full)".to_owned(),
        None if policy_file.exists() => format!("what {list} allows"),
        None => format!("what a person approves there (to change that: --exec, or {list})"),
    };
    voice.output.fields(&[
        ("Node", Tone::Plain, name),
        ("Device", Tone::Plain, device),
        ("Gateway", Tone::Plain, format!("{} (from {})", resolution.url, resolution.url_source)),
        ("Offers", Tone::Plain, options.commands.join(" ")),
        ("Runs", if flags.exec == Some(Exec::Full) { Tone::Warning } else { Tone::Plain }, runs),
    ])
}

/// A node and its link, until it is told to stop.
struct Session {
    voice: Voice,
    host: NodeHost,
    options: ConnectOptions,
    awaits_approval: Option<bool>,
    last_trouble: Option<String>,
    /// The URL is the local end of a tunnel.
    tunnel: bool,
}

type Report = Pin<Box<dyn Future<Output = Option<bool>>>>;

impl Session {
    /// Serves until it is told to stop (`None`), or until trying again is of no use.
    async fn serve(&mut self, tokens: &mut DeviceTokens) -> Option<ConnectError> {
        let mut link = Link::new(self.options.clone());
        let stop = told_to_stop();
        tokio::pin!(stop);
        let mut tick = interval_at(Instant::now() + REPORT_EVERY, REPORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report: Option<Report> = None;
        loop {
            let connection = link.connection().cloned();
            tokio::select! {
                () = &mut stop => {
                    self.host.end_all();
                    link.close().await;
                    self.voice.say("stop", "stopped", json!({}));
                    return None;
                }
                _ = tick.tick(), if connection.is_some() && report.is_none() => {
                    report = connection.as_ref().map(|connection| self.report(connection));
                }
                waits = async { match &mut report { Some(report) => report.await, None => std::future::pending().await } } => {
                    report = None;
                    self.learn(waits);
                }
                update = link.next() => match update {
                    Some(Update::Up(connection)) => {
                        self.up(&connection, tokens);
                        // A code serves once; from now on there is the token that it gave.
                        if let (Some(_), Some(token)) = (&self.options.auth.bootstrap_token, &connection.hello().device_token) {
                            self.options.auth = Auth { device_token: Some(token.clone()), ..Auth::default() };
                            link.options_mut().auth = self.options.auth.clone();
                        }
                        report = Some(self.report(&connection));
                    }
                    Some(Update::Event(event)) => {
                        let Some(connection) = &connection else { continue };
                        if self.heard(&event, connection) {
                            // What was refused before is taken now.
                            report = Some(self.report(connection));
                        }
                    }
                    Some(Update::Down(why)) => {
                        report = None;
                        // Whoever asked for what runs now will not get its answer.
                        self.host.end_all();
                        self.voice.say("down", &format!("{why}; trying again"), json!({}));
                    }
                    Some(Update::Failed { error, again_in }) => self.failed(&error, again_in),
                    None => return link.take_given_up(),
                },
            }
        }
    }

    fn report(&self, connection: &Connection) -> Report {
        Box::pin(self.host.report(connection))
    }

    fn up(&mut self, connection: &Connection, tokens: &mut DeviceTokens) {
        self.last_trouble = None;
        let hello = connection.hello();
        self.voice.say(
            "connected",
            &format!("connected to {} (gateway {})", self.options.url, hello.server_version),
            json!({"serverVersion": hello.server_version, "connId": hello.conn_id}),
        );
        if let Some(token) = &hello.device_token
            && let Err(error) = tokens.put(&self.options.url, Role::Node, token, &hello.scopes)
        {
            self.voice.say("warning", &format!("the device token cannot be kept: {error}"), json!({}));
        }
    }

    /// Whether the commands of this node wait for approval on the gateway.
    fn learn(&mut self, waits: Option<bool>) {
        if waits.is_none() || waits == self.awaits_approval {
            return;
        }
        match (self.awaits_approval, waits) {
            (_, Some(true)) => self.voice.say(
                "approval-pending",
                "What this node offers waits for approval on the gateway. There:\n  clawgate nodes pending\n  clawgate nodes \
                 approve <requestId>",
                json!({}),
            ),
            (Some(true), Some(false)) => self.voice.say("approved", "approved: its commands can be called", json!({})),
            _ => {}
        }
        self.awaits_approval = waits;
    }

    /// Takes an event; whether it says that this node was approved.
    fn heard(&mut self, event: &Event, connection: &Connection) -> bool {
        if &*event.name != "node.pair.resolved" {
            self.host.hear(event, connection);
            return false;
        }
        let payload: Value = serde_json::from_str(event.payload.get()).unwrap_or_default();
        match payload["decision"].as_str() {
            Some("approved") => {
                self.awaits_approval = Some(true);
                self.learn(Some(false));
                true
            }
            Some(decision) => {
                let text = format!("the request of this node was answered: {decision}");
                self.voice.say("approval", &text, json!({"decision": decision}));
                false
            }
            None => false,
        }
    }

    fn failed(&mut self, error: &ConnectError, again_in: Duration) {
        let mut advice = error.advice().unwrap_or_default();
        if self.tunnel && error.stage == Stage::Tcp {
            "That is the local end of an SSH tunnel; keep one open: clawgate tunnel up".clone_into(&mut advice);
        }
        let cause = error.cause.to_string();
        let more = json!({"retryInMs": again_in.as_millis() as u64});
        // The same trouble again and again is said once.
        if self.last_trouble.as_ref() != Some(&cause) {
            let text = if advice.is_empty() { error.to_string() } else { format!("{error}\n{advice}") };
            self.voice.say("failed", &format!("{text}\nTrying again, with pauses of up to 30 s."), more);
            self.last_trouble = Some(cause);
        } else if self.voice.json {
            self.voice.say("failed", &error.to_string(), more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(flags: RunFlags) -> Flags {
        flags.given(false, 18789).unwrap()
    }

    #[test]
    fn a_host_is_this_one_or_another() {
        let host = |host: &str, port| RunFlags { host: Some(host.into()), port, ..RunFlags::default() };
        for here in ["127.0.0.1", "localhost", "::1"] {
            let flags = given(host(here, Some(7)));
            assert_eq!((flags.port, flags.host), (Some(7), None), "{here}");
        }
        let elsewhere = given(host("gw.lan", None));
        assert_eq!((elsewhere.port, elsewhere.host.as_deref()), (None, Some("ws://gw.lan:18789/")));
        assert_eq!(given(host("fd00::1", Some(7))).host.as_deref(), Some("ws://[fd00::1]:7/"));
        let path = RunFlags { context_path: Some("/gw".into()), ..host("gw.lan", Some(443)) };
        assert_eq!(path.given(true, 1).unwrap().host.as_deref(), Some("wss://gw.lan:443/gw"));
        assert!(host("wss://gw", None).given(false, 1).is_err() && host("me@gw", None).given(false, 1).is_err());
        assert_eq!(given(RunFlags::default()).port, None);
    }

    #[test]
    fn a_service_runs_the_same_node_and_knows_no_secret() {
        let flags = RunFlags {
            host: Some("gw".into()),
            port: Some(7),
            tls: true,
            exec: Some(Exec::Allowlist),
            token: Some("t0ken".into()),
            commands: vec!["system.run".into(), "system.which".into()],
            ..RunFlags::default()
        };
        let line = flags.arguments().join(" ");
        assert_eq!(line, "node run --host gw --port 7 --commands system.run,system.which --exec allowlist --tls");
    }

    #[test]
    fn a_list_of_commands_only_takes_away() {
        let flags = |names: &[&str]| RunFlags {
            commands: names.iter().map(|name| (*name).to_owned()).collect(),
            ..RunFlags::default()
        };
        let all = || COMMANDS.map(str::to_owned).to_vec();
        assert_eq!(flags(&[]).select(all()).unwrap(), COMMANDS);
        assert_eq!(flags(&["system.which"]).select(all()).unwrap(), ["system.which"]);
        let none = flags(&["system.notify"]).select(vec!["system.which".into()]).unwrap_err();
        assert!(none.to_string().contains("system.notify cannot be offered here"), "{none}");
        assert!(flags(&["camera.snap"]).select(all()).unwrap_err().to_string().contains("camera.snap"));
    }
}
