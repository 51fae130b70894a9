//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::floor;

/// Loads a gateway of the OpenClaw wire, and says what it costs beside a server that does nothing.
///
/// Every scenario is bounded in count and in time, keeps to this machine unless told otherwise, and prints a
/// table; --json and --html keep the result.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, max_term_width = 110)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The scenarios.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Operators call one method
    Rpc(Box<Common<Rpc>>),
    /// Operators call a command of nodes, through the gateway
    Invoke(Box<Common<Invoke>>),
    /// One event to many operators
    Fanout(Box<Common<Fanout>>),
    /// Connections that do nothing: what one costs in memory and CPU
    Idle(Box<Common<Idle>>),
    /// A storm of clients that come, are let in, and leave
    Connect(Box<Common<Connect>>),
    /// One that stops reading, among others that work
    Slow(Box<Common<Slow>>),
    /// Strangers with wrong tokens, while operators work
    Storm(Box<Common<Storm>>),
    /// Models that talk in many sessions, while operators work
    Streams(Box<Common<Streams>>),
    /// A mixture for a long time: whether memory grows
    Soak(Box<Common<Soak>>),
    /// A floor server (this program starts it by itself)
    #[command(hide = true)]
    Floor(floor::Service),
    /// A stand-in model (this program starts it by itself)
    #[command(hide = true)]
    Model {
        /// Deltas a second to each caller
        deltas: u32,
        /// Callers that there is room for
        places: u32,
    },
}

/// The options of a scenario, and those that all have.
#[derive(Debug, Args)]
pub struct Common<S: Args> {
    /// The scenario's own.
    #[command(flatten)]
    pub scenario: S,
    /// Where and how.
    #[command(flatten)]
    pub run: Run,
}

/// Options of every scenario.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// The gateway
    #[arg(long, default_value = "ws://127.0.0.1:18789", conflicts_with = "spawn", help_heading = "Gateway")]
    pub url: String,
    /// Shared token of the gateway
    #[arg(long, env = "OPENCLAW_GATEWAY_TOKEN", hide_env_values = true, help_heading = "Gateway")]
    pub token: Option<String>,
    /// Shared password of the gateway
    #[arg(long, env = "OPENCLAW_GATEWAY_PASSWORD", hide_env_values = true, help_heading = "Gateway")]
    pub password: Option<String>,
    /// The gateway's process: its CPU and memory are measured
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "spawn", help_heading = "Gateway")]
    pub pid: Option<u32>,
    /// Start this program as `PATH gateway --port N --token T` with a state folder of its own, measure it, stop it
    #[arg(long, value_name = "PATH", help_heading = "Gateway")]
    pub spawn: Option<PathBuf>,
    /// Worker threads of a spawned gateway (`--workers N`), each on a core of its own
    #[arg(long, requires = "spawn", value_parser = clap::value_parser!(u8).range(1..), help_heading = "Gateway")]
    pub workers: Option<u8>,
    /// One more argument for a spawned gateway
    #[arg(long, requires = "spawn", allow_hyphen_values = true, value_name = "ARG", help_heading = "Gateway")]
    pub spawn_arg: Vec<String>,
    /// Load a gateway that is not on this machine
    #[arg(long, help_heading = "Gateway")]
    pub i_own_this_host: bool,

    /// Seconds that are measured
    #[arg(long, value_parser = seconds, default_value = "10", value_name = "SECONDS", help_heading = "Load")]
    pub duration: Duration,
    /// Pieces the duration is cut into; gateway and floor take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "Load")]
    pub rounds: u32,
    /// Seconds of load before each measured piece; an open-loop rate climbs to its height in it
    #[arg(long, value_parser = seconds, default_value = "0.3", value_name = "SECONDS", help_heading = "Load")]
    pub warmup: Duration,
    /// Seconds over which connections are opened
    #[arg(long, value_parser = seconds, default_value = "0", value_name = "SECONDS", help_heading = "Load")]
    pub ramp: Duration,
    /// Let every operator be a program of its own (`client.instanceId`), with a row of its own in the presence list;
    /// otherwise they are one program with many connections
    #[arg(long, help_heading = "Load")]
    pub distinct: bool,
    /// Measure no floor
    #[arg(long, help_heading = "Load")]
    pub no_floor: bool,
    /// Loopback addresses to connect from (127.0.0.1, .2, ..): one has ports for about 28,000 connections.
    /// Chosen by the number of connections when not said
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "Load")]
    pub sources: Option<u16>,

    /// Cores of a spawned gateway and of the floor; the first ones when not said
    #[arg(long, value_delimiter = ',', value_name = "CORE,..", help_heading = "Machine")]
    pub server_cores: Vec<usize>,
    /// Core of this program; the last one when not said
    #[arg(long, value_name = "CORE", help_heading = "Machine")]
    pub client_core: Option<usize>,

    /// Write the result as JSON
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub json: Option<PathBuf>,
    /// Write the result as one HTML page with plots
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub html: Option<PathBuf>,
    /// Print how the result compares with an earlier one's JSON
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub compare: Option<PathBuf>,
    /// Show a progress line even where standard error is no terminal
    #[arg(long, help_heading = "Result")]
    pub progress: bool,
}

/// Options of `rpc`.
#[derive(Clone, Debug, Args)]
pub struct Rpc {
    /// The method
    #[arg(long, default_value = "system-presence")]
    pub method: String,
    /// Its parameters, as JSON
    #[arg(long, value_parser = json, value_name = "JSON")]
    pub params: Option<serde_json::Value>,
    /// How the calls come.
    #[command(flatten)]
    pub calls: Calls,
}

/// Options of `invoke`.
#[derive(Clone, Debug, Args)]
pub struct Invoke {
    /// Nodes that are called, in turns
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub nodes: u32,
    /// Bytes of the call's parameters, and of the node's answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=8_388_608))]
    pub payload_bytes: u32,
    /// How the calls come.
    #[command(flatten)]
    pub calls: Calls,
}

/// Options of `fanout`.
#[derive(Clone, Debug, Args)]
pub struct Fanout {
    /// Operators that get the event
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=200_000))]
    pub operators: u32,
    /// What makes the gateway send one
    #[arg(long, value_enum, default_value_t = Trigger::Heartbeat)]
    pub trigger: Trigger,
}

/// Options of `idle`.
#[derive(Clone, Debug, Args)]
pub struct Idle {
    /// Connections, authenticated
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub connections: u32,
    /// Let them be nodes with keys of their own instead of operators
    #[arg(long)]
    pub nodes: bool,
    /// Seconds between the last connection and the measurement
    #[arg(long, value_parser = seconds, default_value = "3", value_name = "SECONDS")]
    pub settle: Duration,
}

/// Options of `connect`.
#[derive(Clone, Debug, Args)]
pub struct Connect {
    /// Who comes
    #[arg(long, value_enum, default_value_t = Kind::Operator)]
    pub kind: Kind,
    /// Connections under way at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: u32,
    /// New nodes that are paired at most: the gateway keeps them
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub most: u32,
}

/// Who comes in a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Operators with the shared token or password
    Operator,
    /// Nodes that are paired: the signature is checked
    KnownNode,
    /// Nodes that nobody has seen: each is paired
    NewNode,
}

/// Options of `slow`.
#[derive(Clone, Debug, Args)]
pub struct Slow {
    /// Operators that work
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub operators: u32,
    /// Calls a second of `system-presence` over all of them
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: u32,
    /// Bytes that the slow one has coming; twice what the gateway holds for one, and what the kernel holds, when
    /// not said
    #[arg(long, value_parser = clap::value_parser!(u32).range(65_536..=1_073_741_824))]
    pub burst_bytes: Option<u32>,
    /// Seconds for which it reads nothing. The gateway gives a reason only to who reads again within its grace
    #[arg(long, value_parser = seconds, default_value = "0.6", value_name = "SECONDS")]
    pub stall: Duration,
}

/// Options of `storm`.
#[derive(Clone, Debug, Args)]
pub struct Storm {
    /// Operators that work
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub operators: u32,
    /// Calls a second of `system-presence` over all of them
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: u32,
    /// Strangers that come a second
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub storm: u32,
    /// Strangers that may be under way at a time
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub strangers: u32,
}

/// Options of `streams`.
#[derive(Clone, Debug, Args)]
pub struct Streams {
    /// Sessions in which the model talks, each with an operator of its own who listens
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub sessions: u32,
    /// Deltas a second that the model sends in each
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub deltas: u32,
    /// Operators that work
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub operators: u32,
    /// Calls a second of `system-presence` over all of them
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: u32,
}

/// Options of `soak`.
#[derive(Clone, Debug, Args)]
pub struct Soak {
    /// Operators that call
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub operators: u32,
    /// Nodes that are called
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub nodes: u32,
    /// Calls a second over all operators: of a hundred, 70 system-presence, 18 node.invoke, 10 health, 2 that tell
    /// everybody of something
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: u32,
    /// Operators a second that come and leave
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub churn: u32,
    /// Bytes of a node's parameters and answers
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=8_388_608))]
    pub payload_bytes: u32,
}

/// Options of scenarios that call.
#[derive(Clone, Debug, Args)]
pub struct Calls {
    /// Operators that call
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub connections: u32,
    /// Calls that each operator keeps in flight: the next one leaves when an answer comes (closed loop)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: u32,
    /// Calls a second over all operators, whether answers come or not (open loop): latency counts from when a
    /// call was due
    #[arg(long, conflicts_with = "depth", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: Option<u32>,
}

/// How loads with a choice of broadcast make the gateway send one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Trigger {
    /// `set-heartbeats`, told to all as `heartbeat`
    Heartbeat,
    /// `system-event`, told to all as `presence`
    Presence,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| "expected a number of seconds".to_owned())?;
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err("at most a day (86400)".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
