//! A tunnel that stays: started again whenever it ends, until somebody stops it or a person must look.
//!
//! The supervisor holds a lock on `tunnel/lock` in the state directory for as long as it lives, so that one runs for one
//! state directory, and whoever wants to know whether one runs asks the kernel and no list of processes. Beside the
//! lock, `tunnel/state.json` says how it is, and `logs/tunnel.log` what happened.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::super::backoff::Backoff;
use super::super::error::ConnectError;
use super::plan::TunnelPlan;
use super::ssh::{Ssh, TunnelError};
use crate::clock::UnixMs;
use crate::id::random_bytes;
use crate::private_file::{Existing, write_private};

/// Time for the port to open.
const PATIENCE: Duration = Duration::from_secs(30);
/// A tunnel that held this long had no trouble: the next wait is a short one again.
const PROVEN: Duration = Duration::from_secs(30);
/// Time between looks for a gateway at the far end that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Time between looks whether `ssh` is gone, and how many there are: two seconds in all.
const GOODBYE_LOOK: Duration = Duration::from_millis(20);
const GOODBYE_LOOKS: u32 = 100;
/// Bytes of the log above which it is begun anew.
const LOG_BYTES: u64 = 1 << 20;

/// How a tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// `ssh` is on its way.
    Starting,
    /// A gateway greeted through it.
    Ready,
    /// The tunnel is there, and the gateway at its end lets us not in, or is not there.
    NoGateway,
    /// It ended and is started again in a moment.
    Waiting,
    /// It ended, and a person must do something first.
    Stopped,
}

/// `tunnel/state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The supervisor.
    pub pid: u32,
    /// `ssh`; `None` while there is none.
    pub ssh_pid: Option<u32>,
    /// How it is.
    pub phase: Phase,
    /// Where to, for people.
    pub route: String,
    /// Port of `127.0.0.1`.
    pub local_port: u16,
    /// Since when it is as it is.
    pub since_ms: UnixMs,
    /// How often `ssh` was started again.
    pub restarts: u32,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where the supervisor's files are.
#[derive(Clone, Debug)]
pub struct Place {
    state_dir: PathBuf,
}

impl Place {
    /// Those of `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    fn folder(&self) -> PathBuf {
        self.state_dir.join("tunnel")
    }

    /// The log.
    pub fn log_file(&self) -> PathBuf {
        self.state_dir.join("logs").join("tunnel.log")
    }

    fn lock_file(&self) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.folder().join("lock"))
    }

    /// Takes the lock; `None` when a supervisor has it.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether a supervisor runs.
    pub fn is_supervised(&self) -> bool {
        matches!(self.lock(), Ok(None))
    }

    /// How the tunnel is; `None` when no supervisor runs. What one left behind that was killed does not count.
    pub fn state(&self) -> Option<State> {
        if !self.is_supervised() {
            return None;
        }
        self.last_state()
    }

    /// What the last supervisor wrote, whether it runs or not.
    pub fn last_state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.folder().join("state.json")).ok()?).ok()
    }

    fn write(&self, state: &State) {
        let written = serde_json::to_vec_pretty(state)
            .map_err(io::Error::from)
            .and_then(|text| write_private(&self.folder().join("state.json"), &text, Existing::Replace));
        if let Err(error) = written {
            self.log(&format!("the state cannot be written: {error}"));
        }
    }

    /// Adds a line to the log.
    pub fn log(&self, text: &str) {
        let path = self.log_file();
        let append = || {
            if let Some(folder) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            if fs::metadata(&path).is_ok_and(|meta| meta.len() > LOG_BYTES) {
                fs::rename(&path, path.with_extension("log.1"))?;
            }
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            // One write a line, so that lines of two programs do not mix.
            file.write_all(format!("{} {text}\n", UnixMs::now().to_rfc3339()).as_bytes())
        };
        // A tunnel without a log is better than none.
        let _: io::Result<()> = append();
    }
}

/// How a supervisor ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// A person must do something first.
    NeedsAPerson(TunnelError),
}

/// Keeps the tunnel up until `stop` is done. `probe` asks the gateway at its end for a `hello-ok`.
///
/// The caller holds the lock of `place`.
pub async fn keep_up(
    plan: &TunnelPlan,
    place: &Place,
    probe: impl AsyncFn() -> Result<(), ConnectError>,
    stop: impl Future<Output = ()>,
) -> Ended {
    let mut stop = std::pin::pin!(stop);
    let mut state = State {
        pid: std::process::id(),
        ssh_pid: None,
        phase: Phase::Starting,
        route: plan.to_string(),
        local_port: plan.local_port,
        since_ms: UnixMs::now(),
        restarts: 0,
        problem: None,
    };
    let tell = |state: &mut State, phase: Phase, problem: Option<String>| {
        let changed = state.phase != phase || state.problem != problem;
        (state.phase, state.problem) = (phase, problem);
        if changed {
            state.since_ms = UnixMs::now();
            let why = state.problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
            place.log(&format!("{phase:?}{why}"));
        }
        place.write(state);
    };
    place.log(&format!("up: {plan}"));
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let problem = state.problem.take();
        tell(&mut state, Phase::Starting, problem);
        let round = one_round(plan, place, &probe, |ssh, phase, problem| {
            state.ssh_pid = ssh;
            tell(&mut state, phase, problem);
        });
        let error = tokio::select! {
            biased;
            () = &mut stop => break,
            error = round => error,
        };
        state.ssh_pid = None;
        let needs_a_person = match &error {
            // Keys and ports may come back to a tunnel that held; a changed host is never taken by itself.
            TunnelError::Ended { failure, .. } => match state.restarts {
                0 => failure.needs_a_person(),
                _ => matches!(failure, super::SshFailure::HostKeyChanged { .. } | super::SshFailure::HostKeyUnknown),
            },
            TunnelError::PortTaken { .. } => state.restarts == 0,
            TunnelError::NoClient | TunnelError::Start { .. } => true,
            TunnelError::Slow { .. } => false,
        };
        if needs_a_person {
            let advice = error.advice(plan).map_or_else(String::new, |advice| format!("\n{advice}"));
            tell(&mut state, Phase::Stopped, Some(format!("{error}{advice}")));
            return Ended::NeedsAPerson(error);
        }
        failures = if started.elapsed() >= PROVEN { 1 } else { failures + 1 };
        let wait = Backoff::default().wait(failures, u32::from_ne_bytes(random_bytes()), None);
        state.restarts += 1;
        tell(&mut state, Phase::Waiting, Some(error.to_string()));
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = sleep(wait) => {}
        }
    }
    // Dropped with its round, ssh was killed; it is gone before we are.
    let ssh = state.ssh_pid.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    for _ in 0..GOODBYE_LOOKS {
        if ssh.is_none_or(|ssh| rustix::process::test_kill_process(ssh).is_err()) {
            break;
        }
        sleep(GOODBYE_LOOK).await;
    }
    place.log("down");
    let _ = fs::remove_file(place.folder().join("state.json"));
    Ended::Stopped
}

/// Starts `ssh` once and stays until it ends.
async fn one_round(
    plan: &TunnelPlan,
    place: &Place,
    probe: &impl AsyncFn() -> Result<(), ConnectError>,
    mut tell: impl FnMut(Option<u32>, Phase, Option<String>),
) -> TunnelError {
    let log = place.clone();
    let mut ssh = match Ssh::start(plan, move |line| log.log(&format!("ssh: {line}"))) {
        Ok(ssh) => ssh,
        Err(error) => return error,
    };
    if let Err(error) = ssh.listening(PATIENCE).await {
        return error;
    }
    loop {
        let greeted = tokio::select! {
            error = ssh.ended() => return error,
            greeted = probe() => greeted,
        };
        match greeted {
            Ok(()) => {
                tell(ssh.pid(), Phase::Ready, None);
                return ssh.ended().await;
            }
            Err(error) => {
                let refused = error.refusal().is_some();
                let advice = error.advice().map_or_else(String::new, |advice| format!("\n{advice}"));
                tell(ssh.pid(), Phase::NoGateway, Some(format!("{error}{advice}")));
                if refused {
                    // A wrong secret asked again and again would lock this address out.
                    return ssh.ended().await;
                }
            }
        }
        tokio::select! {
            error = ssh.ended() => return error,
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}
