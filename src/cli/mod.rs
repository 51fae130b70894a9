//! The command line, with the grammar of the incumbent: `alias openclaw=clawgate` serves for the commands there are.
//!
//! It owns what a person types and sees. What happens is in [`crate::client`] and [`crate::server`]. One file holds one
//! family of commands; all printing is in [`output`]; [`target`] decides which gateway a command talks to.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line makes no sense.

pub mod config;
mod context;
mod devices;
mod discover;
mod doctor;
mod error;
mod explain;
mod gateway;
mod gateway_service;
mod logs;
mod models;
mod node;
mod node_query;
mod nodes;
mod output;
mod qr;
mod security;
mod service;
mod status;
mod system;
mod talk;
mod target;
mod time;
#[cfg(feature = "tui")]
mod top;
mod trust;
mod tunnel;

use std::ffi::OsString;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use self::context::Context;
use self::error::CliError;
use self::output::{Json, Output};
use crate::client::error::CallError;
use crate::config::Profile;
use crate::limits::CLOSE_GRACE;
use crate::{server, task};

/// A high-performance gateway for OpenClaw, and its command line.
#[derive(Debug, Parser)]
#[command(name = "clawgate", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// Use the configuration and state of this profile (~/.openclaw-NAME); give it a gateway.port of its own
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "dev")]
    profile: Option<String>,
    /// Use the development profile (~/.openclaw-dev, port 19001)
    #[arg(long, global = true)]
    dev: bool,
    /// No colours
    #[arg(long, global = true)]
    no_color: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway, or talk to one
    Gateway(gateway::GatewayArgs),
    /// Ask the gateway how it is
    Health(status::HealthArgs),
    /// Show the gateway, who is there, and what works
    Status(status::StatusArgs),
    /// Show the gateway's log
    Logs(logs::LogsArgs),
    /// Chat channels
    #[command(subcommand)]
    Channels(status::ChannelsCommand),
    /// This machine as a node: offer its commands to a gateway
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Nodes: devices that offer commands
    #[command(subcommand)]
    Nodes(nodes::NodesCommand),
    /// Devices: who may connect, and with which tokens
    #[command(subcommand)]
    Devices(devices::DevicesCommand),
    /// Make a setup code, which pairs one phone or one node
    Qr(qr::QrArgs),
    /// Say something to the agent, and print its answer
    Agent(talk::AgentArgs),
    /// Talk with the agent, line by line
    Chat(talk::ChatArgs),
    /// Sessions: who talks with the agent about what
    #[command(subcommand)]
    Sessions(talk::SessionsCommand),
    /// Models that the agent may ask
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// People who ask to write to the agent
    #[command(subcommand)]
    Pairing(talk::PairingCommand),
    /// Commands that wait for a person's approval
    #[command(subcommand)]
    Approvals(talk::ApprovalsCommand),
    /// The gateway's view of the system
    #[command(subcommand)]
    System(system::SystemCommand),
    /// Watch the gateway: connections, latencies, nodes
    #[cfg(feature = "tui")]
    Top(top::TopArgs),
    /// The SSH tunnel to a remote gateway
    #[command(subcommand)]
    Tunnel(tunnel::TunnelCommand),
    /// Read and edit the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look for what makes this installation less safe than it could be
    #[command(subcommand)]
    Security(security::SecurityCommand),
    /// Find out what is wrong
    #[command(subcommand)]
    Doctor(doctor::DoctorCommand),
    /// Print the completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether an error is printed as JSON, too.
    fn prints_json(&self) -> Json {
        Json::asked(match self {
            Self::Nodes(command) => return command.prints_json(),
            Self::Devices(command) => return command.prints_json(),
            Self::Gateway(command) => command.prints_json(),
            Self::Health(command) => command.prints_json(),
            Self::Status(command) => command.prints_json(),
            Self::Logs(command) => command.prints_json(),
            Self::Channels(command) => command.prints_json(),
            Self::Node(command) => command.prints_json(),
            Self::Qr(args) => args.json,
            Self::System(command) => command.prints_json(),
            #[cfg(feature = "tui")]
            Self::Top(command) => command.prints_json(),
            Self::Tunnel(command) => command.prints_json(),
            Self::Security(command) => command.prints_json(),
            Self::Doctor(command) => command.prints_json(),
            Self::Agent(command) => command.prints_json(),
            Self::Chat(command) => command.prints_json(),
            Self::Sessions(command) => command.prints_json(),
            Self::Models(command) => command.prints_json(),
            Self::Pairing(command) => command.prints_json(),
            Self::Approvals(command) => command.prints_json(),
            Self::Config(command) => command.prints_json(),
            Self::Completion { .. } => false,
        })
    }
}

/// The whole grammar: for man pages, and whoever else reads it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with these arguments, the first of which is its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error, &args),
    };
    let output = Output::new(cli.no_color);
    let json = cli.command.prints_json();
    dispatch(cli, output).unwrap_or_else(|error| output.fail_as(&error, json))
}

/// What clap says to a command line that makes no sense, or to one that asks for help. Nothing was parsed, so `--json` is
/// looked for by hand.
fn misunderstood(error: &clap::Error, args: &[OsString]) -> ExitCode {
    if error.use_stderr() && args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
        // Who closes standard output does not want to know.
        let _ = Output::new(true).value(&CliError::Usage(text.to_owned()).report());
    }
    // Help that nobody reads is no failure.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

fn dispatch(cli: Cli, output: Output) -> Result<ExitCode, CliError> {
    let profile = match &cli.profile {
        Some(name) => Profile::parse(name)?,
        None if cli.dev => Profile::Dev,
        None => Profile::Default,
    };
    let context = || Context::new(profile, output);
    match cli.command {
        Command::Completion { shell } => complete(shell, output),
        Command::Config(command) => {
            let Context { paths, environment, .. } = context()?;
            let context = config::ConfigContext { paths, environment };
            output.streams(|out, err| config::run(command, &context, out, err))
        }
        Command::Gateway(command) => match command.action() {
            gateway::Action::Run(run) => serve(&run, context()?),
            gateway::Action::Talk(command) => talk(command.run(&context()?)),
            gateway::Action::Service(command) => command.run(&context()?),
        },
        Command::Health(command) => talk(command.run(&context()?)),
        Command::Status(command) => talk(command.run(&context()?)),
        Command::Logs(command) => talk(command.run(&context()?)),
        Command::Channels(command) => talk(command.run(&context()?)),
        Command::Node(command) => talk(command.run(&context()?)),
        Command::Nodes(command) => talk(command.run(&context()?)),
        Command::Devices(command) => talk(command.run(&context()?)),
        Command::Qr(args) => talk(args.run(&context()?)),
        Command::System(command) => talk(command.run(&context()?)),
        #[cfg(feature = "tui")]
        Command::Top(command) => talk(command.run(&context()?)),
        Command::Tunnel(command) => talk(command.run(&context()?)),
        Command::Security(command) => command.run(&context()?),
        Command::Doctor(command) => talk(command.run(&context()?)),
        Command::Agent(command) => talk(command.run(&context()?)),
        Command::Chat(command) => talk(command.run(&context()?)),
        Command::Sessions(command) => talk(command.run(&context()?)),
        Command::Models(command) => talk(command.run(&context()?)),
        Command::Pairing(command) => talk(command.run(&context()?)),
        Command::Approvals(command) => talk(command.run(&context()?)),
    }
}

/// Runs a command that talks to a gateway. One connection, one call: a second thread would have nothing to do.
fn talk(command: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    talk_until_done(Box::pin(command))
}

/// The runtime's machinery is made for each type of future; for this one it is made once.
fn talk_until_done(
    command: Pin<Box<dyn Future<Output = Result<ExitCode, CliError>> + '_>>,
) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CliError::other(format!("the runtime does not start: {error}")))?.block_on(async {
        let result = command.await;
        // A connection that was dropped, on whatever way out, still has its close frame to send.
        let farewell = async {
            while task::running() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // A gateway that does not take the farewell does not hold the command up.
        let _ = tokio::time::timeout(CLOSE_GRACE, farewell).await;
        result
    })
}

/// Runs the gateway in this process, until it is told to stop.
fn serve(run: &gateway::GatewayRun, context: Context) -> Result<ExitCode, CliError> {
    let options = server::Options {
        flags: run.flags()?,
        loaded: context.load()?,
        profile: context.profile,
        verbose: run.verbose,
        workers: run.workers,
    };
    server::run(options)?;
    Ok(ExitCode::SUCCESS)
}

fn complete(shell: clap_complete::Shell, output: Output) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "clawgate", &mut script);
    output.print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or SIGINT. Cancel safe.
async fn told_to_stop() {
    let signals = [tokio::signal::unix::SignalKind::terminate(), tokio::signal::unix::SignalKind::interrupt()];
    let mut signals = signals.map(tokio::signal::unix::signal);
    let [terminate, interrupt] = &mut signals;
    match (terminate, interrupt) {
        (Ok(terminate), Ok(interrupt)) => {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        // Then they end the process, as they do when nobody listens.
        _ => std::future::pending().await,
    }
}

/// Reads a result as what the method is known to give.
fn parse_result<T: DeserializeOwned>(method: &str, result: &RawValue) -> Result<T, CliError> {
    serde_json::from_str(result.get())
        .map_err(|error| CallError::Result { method: method.into(), why: error.to_string().into() }.into())
}

/// Reads a JSON object from the command line.
fn json_object(flag: &str, text: &str) -> Result<Box<RawValue>, CliError> {
    let usage = |why: String| CliError::Usage(format!("{flag} must be a JSON object: {why}"));
    let raw: Box<RawValue> = serde_json::from_str(text).map_err(|error| usage(error.to_string()))?;
    if raw.get().starts_with('{') { Ok(raw) } else { Err(usage(format!("{text} is none"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn takes_the_incumbents_command_lines() {
        for line in [
            "clawgate gateway",
            "clawgate gateway run --port 18789 --bind loopback --auth token --token t --verbose --allow-unconfigured",
            "clawgate gateway --port 19000 --bind lan",
            "clawgate gateway --tailscale funnel --auth password",
            "clawgate gateway call health",
            "clawgate gateway install --json",
            "clawgate gateway restart",
            "clawgate gateway call node.invoke --params {} --json --timeout 5000 --url wss://x --token t",
            "clawgate gateway health --json",
            "clawgate gateway probe --json --timeout 3000",
            "clawgate gateway fingerprint --json",
            "clawgate gateway status --deep --require-rpc",
            "clawgate --profile work gateway status --no-probe",
            "clawgate gateway discover --timeout 100 --json",
            "clawgate config schema --json",
            "clawgate gateway explain --for probe --json",
            "clawgate gateway trust wss://gw.example --fingerprint AB:CD",
            "clawgate gateway trust wss://gw.example --forget",
            "clawgate health --url wss://x --token t --tls-fingerprint sha256:00",
            "clawgate health --json --timeout 1000",
            "clawgate health --verbose",
            "clawgate status --deep",
            "clawgate status --all --json",
            "clawgate channels status --probe --channel telegram",
            "clawgate logs --limit 5 --json",
            "clawgate logs --follow --interval 500 --plain --no-color",
            "clawgate node run --host 127.0.0.1 --port 18789 --display-name buildbox",
            "clawgate node run --host gw --tls --tls-fingerprint AB --node-id n --context-path /gw --exec full",
            "clawgate node run --url wss://gw --token t --commands system.which --json",
            "clawgate node identity --json",
            "clawgate node install --host gw --port 7 --display-name box --force --print",
            "clawgate node status --json",
            "clawgate node restart",
            "clawgate node uninstall",
            "clawgate nodes status --connected --last-connected 24h --json",
            "clawgate nodes list",
            "clawgate nodes pending --json",
            "clawgate nodes approve r-1",
            "clawgate nodes reject r-1 --json",
            "clawgate nodes describe --node kitchen --json",
            "clawgate nodes rename --node kitchen --name Pantry",
            "clawgate nodes remove --node kitchen",
            "clawgate nodes invoke --node kitchen --command system.which --params {} --invoke-timeout 15000 --idempotency-key k",
            "clawgate devices list --password p",
            "clawgate devices approve",
            "clawgate devices approve r-1 --latest",
            "clawgate devices reject r-1",
            "clawgate devices remove d-1",
            "clawgate devices rename --device d-1 --name Phone",
            "clawgate devices rotate --device d-1 --role operator --scope operator.read --scope operator.write",
            "clawgate devices rotate --device d-1 --role operator --no-scopes",
            "clawgate devices revoke --device d-1 --role node --json",
            "clawgate system presence --json",
            "clawgate agent --message hello --json",
            "clawgate agent --agent main --session-key work -m hello --deliver --channel telegram --to 42",
            "clawgate chat --session-key work",
            "clawgate sessions list --limit 5 --json",
            "clawgate sessions show main",
            "clawgate sessions reset main",
            "clawgate sessions delete work --json",
            "clawgate models list",
            "clawgate models status --json",
            "clawgate models auth list --provider openai --json",
            "clawgate models auth paste-api-key --provider openai --profile-id openai:work",
            "clawgate models auth add --provider openai",
            "clawgate models auth logout openai:work --yes",
            "clawgate pairing list telegram",
            "clawgate pairing approve telegram ABCDEFGH",
            "clawgate approvals list --json",
            "clawgate approvals resolve a-1 allow-once",
            "clawgate approvals resolve a-1 allow-always --expires-in-days 7",
            "clawgate approvals grants list",
            "clawgate approvals grants revoke g-1 --json",
            "clawgate config get gateway.port --json",
            "clawgate config set gateway.remote.token abc",
            "clawgate tunnel up --ssh me@gw:2222 --ssh-identity /k",
            "clawgate tunnel down",
            "clawgate tunnel restart --json",
            "clawgate tunnel status --json",
            "clawgate tunnel logs --lines 5",
            "clawgate tunnel install --ssh me@gw --print",
            "clawgate tunnel uninstall --legacy",
            "clawgate tunnel ssh-config --write",
            "clawgate completion bash",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for line in [
            "clawgate",
            "clawgate nodes",
            "clawgate nodes approve",
            "clawgate nodes rename --node x",
            "clawgate gateway --port 0",
            "clawgate gateway --bind 0.0.0.0",
            "clawgate gateway --auth maybe",
            "clawgate devices rotate --device d",
            "clawgate devices revoke --device d --role admin",
            "clawgate health --timeout 0",
            "clawgate health --url wss://x --port 1",
            "clawgate logs --limit 0",
            "clawgate gateway trust wss://gw.example",
            "clawgate gateway explain --for fun",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn parameters_are_a_json_object() {
        assert_eq!(json_object("--params", "{\"b\":1.0}").unwrap().get(), "{\"b\":1.0}");
        for wrong in ["", "[]", "1", "{", "notjson"] {
            assert!(matches!(json_object("--params", wrong), Err(CliError::Usage(_))), "{wrong}");
        }
    }
}
