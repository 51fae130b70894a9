//! `clawgate tunnel`: the SSH tunnel to a remote gateway, up for as long as it is wanted.
//!
//! `up` leaves a supervisor running ([`supervise`](crate::client::tunnel::supervise)), which is this same program as
//! `tunnel run`. Where the tunnel is installed as a service, `up`, `down` and `restart` tell the service manager.

mod service;

use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process, setsid};
use serde_json::json;

use self::service::{InstallFlags, SshConfigFlags, UninstallFlags, legacy, services};
use super::context::Context;
use super::error::CliError;
use super::output::{Output, Tone};
use super::target::{Target, scopes_for};
use super::time::ago;
use super::told_to_stop;
use crate::client::error::ConnectError;
use crate::client::tunnel::plan::Overrides;
use crate::client::tunnel::supervise::{Ended, Phase, Place, State, keep_up};
use crate::client::tunnel::{SshTarget, TunnelPlan};
use crate::clock::UnixMs;

/// Time for a tunnel to come up, and for the gateway behind it to greet.
const UP_WITHIN: Duration = Duration::from_secs(45);
/// Time for a supervisor to go.
const DOWN_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);
/// `tunnel run` ends with it when trying again is of no use until a person has done something: EX_CONFIG of sysexits.
const NEEDS_A_PERSON: u8 = 78;

/// `tunnel ...`.
#[derive(Debug, Subcommand)]
pub(super) enum TunnelCommand {
    /// Open the tunnel and keep it open
    Up(TunnelFlags),
    /// Close it
    Down(ShowFlags),
    /// Close it and open it again
    Restart(TunnelFlags),
    /// Show how it is
    Status(ShowFlags),
    /// Show what happened to it
    Logs(LogsFlags),
    /// Keep it open in the foreground, as a service manager wants it
    Run(TunnelFlags),
    /// Make it a service: a systemd user unit, or a LaunchAgent
    Install(InstallFlags),
    /// Take the service away
    Uninstall(UninstallFlags),
    /// Print the tunnel as an entry for ~/.ssh/config, for use without clawgate
    SshConfig(SshConfigFlags),
}

/// Which tunnel.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct TunnelFlags {
    /// The gateway's host: [user@]host[:port]; default: gateway.remote.sshTarget
    #[arg(long = "ssh", value_name = "TARGET")]
    target: Option<SshTarget>,
    /// A private key to use; default: gateway.remote.sshIdentity
    #[arg(long = "ssh-identity", value_name = "PATH")]
    identity: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How to show it.
#[derive(Clone, Debug, Args)]
pub(super) struct ShowFlags {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which lines.
#[derive(Clone, Debug, Args)]
pub(super) struct LogsFlags {
    /// Lines at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Go on as lines come
    #[arg(long)]
    follow: bool,
}

impl TunnelFlags {
    fn plan(&self, context: &Context) -> Result<TunnelPlan, CliError> {
        let config = context.load()?.config;
        let overrides = Overrides { target: self.target.clone(), identity: self.identity.clone() };
        Ok(TunnelPlan::from_config(&config, &overrides, context.profile.default_port())?)
    }
}

impl TunnelCommand {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        match self {
            Self::Up(flags) | Self::Restart(flags) | Self::Run(flags) => flags.json,
            Self::Down(flags) | Self::Status(flags) => flags.json,
            Self::Install(flags) => flags.prints_json(),
            Self::Uninstall(flags) => flags.prints_json(),
            Self::Logs(_) | Self::SshConfig(_) => false,
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        match self {
            Self::Up(flags) => up(context, &flags).await,
            Self::Down(flags) => {
                let was_up = down(context).await?;
                say(
                    context.output,
                    flags.json,
                    was_up,
                    if was_up { "The tunnel is down." } else { "No tunnel was up." },
                )
            }
            Self::Restart(flags) => {
                down(context).await?;
                up(context, &flags).await
            }
            Self::Status(flags) => status(context, flags.json),
            Self::Logs(flags) => logs(context, &flags).await,
            Self::Run(flags) => run(context, &flags).await,
            Self::Install(flags) => service::install(context, &flags),
            Self::Uninstall(flags) => service::uninstall(context, &flags),
            Self::SshConfig(flags) => service::ssh_config(context, &flags),
        }
    }
}

fn say(output: Output, as_json: bool, changed: bool, text: &str) -> Result<ExitCode, CliError> {
    match as_json {
        true => output.value(&json!({"ok": true, "changed": changed, "message": text}))?,
        false => output.line(text)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(context: &Context, flags: &TunnelFlags) -> Result<ExitCode, CliError> {
    let plan = flags.plan(context)?;
    let place = Place::new(&context.paths.state_dir);
    let services = services(context)?;
    let mut child = None;
    if services.is_in_charge() {
        services.start()?;
    } else if !place.is_supervised() {
        child = Some(spawn_supervisor(context, flags)?);
    }
    let started = Instant::now();
    let mut has_said = false;
    loop {
        let ended = match &mut child {
            Some(child) => child.try_wait().ok().flatten(),
            None => None,
        };
        // A supervisor that ended has said why in what it left behind.
        let state = if ended.is_some() { place.last_state() } else { place.state() };
        match (&state, ended) {
            (Some(state), None) if state.phase == Phase::Ready => break show(context.output, state, &plan, flags.json),
            (Some(state), None) if state.phase == Phase::NoGateway => {
                return Err(trouble("the tunnel is up, but ", state));
            }
            (Some(state), Some(_)) if state.phase == Phase::Stopped => return Err(trouble("", state)),
            (_, Some(_)) => {
                let log = place.log_file().display().to_string();
                return Err(CliError::with_advice("the tunnel's supervisor ended", format!("See {log}")));
            }
            (Some(State { problem: Some(problem), .. }), None) if !has_said => {
                has_said = true;
                let problem = problem.lines().next().unwrap_or_default();
                context.output.note(&format!(
                    "not yet: {problem}; trying again, up to {} s (Ctrl-C ends the wait, not the tunnel)",
                    UP_WITHIN.saturating_sub(started.elapsed()).as_secs()
                ));
            }
            _ => {}
        }
        if started.elapsed() > UP_WITHIN {
            let so_far = state.and_then(|state| state.problem).unwrap_or_else(|| "it is on its way".into());
            return Err(CliError::with_advice(
                format!("the tunnel is not up within {} s: {so_far}", UP_WITHIN.as_secs()),
                "It goes on trying. See: clawgate tunnel status; stop it: clawgate tunnel down",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The supervisor's words: the first line is what happened, the others what to do.
fn trouble(before: &str, state: &State) -> CliError {
    let problem = state.problem.clone().unwrap_or_else(|| "it says not why".into());
    let (what, advice) = match problem.split_once('\n') {
        Some((what, advice)) => (what.to_owned(), Some(advice.to_owned())),
        None => (problem, None),
    };
    CliError::Other { message: format!("{before}{what}"), advice }
}

/// Starts `tunnel run` as a process of its own, which no terminal ends.
fn spawn_supervisor(context: &Context, flags: &TunnelFlags) -> Result<std::process::Child, CliError> {
    let failed = |error: std::io::Error| CliError::other(format!("the tunnel's supervisor does not start: {error}"));
    let mut command = std::process::Command::new(std::env::current_exe().map_err(failed)?);
    command.args(context.profile.flags()).args(["tunnel", "run"]);
    if let Some(target) = &flags.target {
        command.args(["--ssh", &target.to_string()]);
    }
    if let Some(identity) = &flags.identity {
        command.arg("--ssh-identity").arg(std::path::absolute(identity).map_err(failed)?);
    }
    command
        .env("OPENCLAW_STATE_DIR", &context.paths.state_dir)
        .env("OPENCLAW_CONFIG_PATH", &context.paths.config_file)
        // It must not keep a folder from being unmounted, nor read what the person types.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec it makes one system call, and touches no memory.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(())
        });
    }
    command.spawn().map_err(failed)
}

/// Ends the supervisor; false when there was none.
async fn down(context: &Context) -> Result<bool, CliError> {
    let place = Place::new(&context.paths.state_dir);
    if !place.is_supervised() {
        return Ok(false);
    }
    let services = services(context)?;
    if services.is_in_charge() {
        // A manager starts again what ends without it.
        services.stop()?;
    }
    let started = Instant::now();
    let mut signal = Signal::TERM;
    loop {
        // Who holds the lock has written its number; it is asked only while the lock is held.
        if let Some(pid) = place.state().and_then(|state| Pid::from_raw(i32::try_from(state.pid).ok()?)) {
            let _ = kill_process(pid, signal);
        }
        let asked = Instant::now();
        while asked.elapsed() < DOWN_WITHIN {
            if !place.is_supervised() {
                return Ok(true);
            }
            tokio::time::sleep(LOOK).await;
        }
        if started.elapsed() > DOWN_WITHIN * 2 {
            return Err(CliError::other("the tunnel's supervisor does not end"));
        }
        signal = Signal::KILL;
    }
}

fn status(context: &Context, as_json: bool) -> Result<ExitCode, CliError> {
    let place = Place::new(&context.paths.state_dir);
    match place.state() {
        Some(state) => {
            print_state(context.output, &state, as_json)?;
            Ok(if state.phase == Phase::Ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        None => {
            let last = place.last_state().and_then(|state| state.problem);
            let legacy = legacy(&services(context)?);
            if as_json {
                context.output.value(&json!({"ok": true, "up": false, "lastProblem": last, "legacy": legacy}))?;
            } else {
                context.output.line("No tunnel is up. Open one: clawgate tunnel up")?;
                if let Some(problem) = last {
                    context.output.line(&format!("The last one ended: {problem}"))?;
                }
                for path in legacy {
                    let text = format!(
                        "An older tunnel service is there: {} (clawgate tunnel uninstall --legacy)",
                        path.display()
                    );
                    context.output.line(&text)?;
                }
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

fn show(output: Output, state: &State, plan: &TunnelPlan, as_json: bool) -> Result<ExitCode, CliError> {
    print_state(output, state, as_json)?;
    if !as_json && state.route != plan.to_string() {
        output.note(&format!("The configuration now says {plan}; to go there: clawgate tunnel restart"));
    }
    Ok(ExitCode::SUCCESS)
}

fn print_state(output: Output, state: &State, as_json: bool) -> Result<(), CliError> {
    if as_json {
        let mut report = serde_json::to_value(state).unwrap_or_default();
        report["ok"] = true.into();
        report["up"] = (state.phase == Phase::Ready).into();
        return output.value(&report);
    }
    let (tone, word) = match state.phase {
        Phase::Ready => (Tone::Good, "up"),
        Phase::Starting => (Tone::Warning, "on its way"),
        Phase::NoGateway => (Tone::Warning, "up, but the gateway does not let us in"),
        Phase::Waiting => (Tone::Bad, "down, and tried again in a moment"),
        Phase::Stopped => (Tone::Bad, "down, until somebody looks"),
    };
    let pids = match state.ssh_pid {
        Some(ssh) => format!("supervisor {}, ssh {ssh}", state.pid),
        None => format!("supervisor {}", state.pid),
    };
    output.fields(&[
        ("Tunnel", tone, format!("{word}, since {}", ago(UnixMs::now(), state.since_ms))),
        ("Route", Tone::Plain, state.route.clone()),
        ("Processes", Tone::Plain, pids),
        ("Restarts", Tone::Plain, if state.restarts > 0 { state.restarts.to_string() } else { String::new() }),
        ("Problem", Tone::Bad, state.problem.clone().unwrap_or_default()),
    ])
}

async fn logs(context: &Context, flags: &LogsFlags) -> Result<ExitCode, CliError> {
    let path = Place::new(&context.paths.state_dir).log_file();
    let failed = |error: std::io::Error| CliError::other(format!("{}: {error}", path.display()));
    let mut file = match std::fs::File::open(&path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return say(context.output, false, false, "No tunnel was ever up here.");
        }
        Err(error) => return Err(failed(error)),
    };
    let mut kept = std::collections::VecDeque::new();
    let mut line = String::new();
    while file.read_line(&mut line).map_err(failed)? > 0 {
        kept.push_back(std::mem::take(&mut line));
        if kept.len() > flags.lines {
            kept.pop_front();
        }
    }
    for line in kept {
        context.output.line(line.trim_end())?;
    }
    let mut at = file.stream_position().map_err(failed)?;
    if !flags.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        // The log may have been begun anew.
        let mut file = BufReader::new(std::fs::File::open(&path).map_err(failed)?);
        if file.get_ref().metadata().map_err(failed)?.len() < at {
            at = 0;
        }
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        let mut line = String::new();
        while file.read_line(&mut line).map_err(failed)? > 0 && line.ends_with('\n') {
            at += line.len() as u64;
            context.output.line(line.trim_end())?;
            line.clear();
        }
    }
}

async fn run(context: &Context, flags: &TunnelFlags) -> Result<ExitCode, CliError> {
    let plan = flags.plan(context)?;
    let place = Place::new(&context.paths.state_dir);
    let unusable = |error: std::io::Error| CliError::other(format!("the tunnel's lock cannot be had: {error}"));
    // Whoever asks whether a supervisor runs has the lock for a moment.
    let mut lock = None;
    for _ in 0..10 {
        lock = place.lock().map_err(unusable)?;
        if lock.is_some() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let Some(lock) = lock else {
        return Err(CliError::with_advice("a tunnel is up already", "See: clawgate tunnel status"));
    };
    // The kernel lets it go with the process, and not before.
    std::mem::forget(lock);
    let probe = async || -> Result<(), ConnectError> {
        // The configuration may have changed since.
        let target = match Target::through_tunnel(context, plan.local_port) {
            Ok(target) => target,
            Err(error) => {
                place.log(&format!("no credentials for the gateway: {error}"));
                return Ok(());
            }
        };
        match target.connect_directly(scopes_for(["health"])).await {
            Ok(connection) => {
                connection.close().await;
                Ok(())
            }
            Err(CliError::Connect { error, .. }) => Err(*error),
            Err(error) => {
                place.log(&format!("the gateway was not asked: {error}"));
                Ok(())
            }
        }
    };
    match keep_up(&plan, &place, probe, told_to_stop()).await {
        Ended::Stopped => Ok(ExitCode::SUCCESS),
        Ended::NeedsAPerson(error) => {
            let failure = CliError::Other { message: error.to_string(), advice: error.advice(&plan) };
            let _ = context.output.fail(&failure, flags.json);
            Ok(ExitCode::from(NEEDS_A_PERSON))
        }
    }
}
