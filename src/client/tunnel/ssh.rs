//! OpenSSH's client as a child of this process: it cannot outlive us, and says why it ended.
//!
//! On Linux the kernel kills it with the thread that started it (`PR_SET_PDEATHSIG`), so start it from a thread that
//! lives as long as the process: the main thread. Elsewhere a shell stands between, which sees our end of a pipe close.
//! Either holds when this process is killed with SIGKILL.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::diagnosis::SshFailure;
use super::holder::{self, Holder};
use super::known_hosts::KnownHosts;
use super::plan::TunnelPlan;
use crate::task;

/// Where the operating system keeps its own programs. A `ssh` in a folder of the user's is not looked for: it would get
/// the keys.
const FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin"];
/// Time between looks whether the port is open.
const LOOK: Duration = Duration::from_millis(25);
/// Time for `ssh` to go when it is asked to.
const GOODBYE: Duration = Duration::from_secs(2);
/// Bytes of what `ssh` said that are kept.
const SAID_BYTES: usize = 16 * 1024;

/// Why there is no tunnel.
#[derive(Debug, Error)]
pub enum TunnelError {
    /// OpenSSH is not installed.
    #[error("there is no OpenSSH client in {}", FOLDERS.join(", "))]
    NoClient,
    /// The local port is another program's.
    #[error("port {port} of this host is taken by {}", .holder.as_ref().map_or_else(|| "another program".to_owned(), Holder::to_string))]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        holder: Option<Holder>,
    },
    /// It cannot be started.
    #[error("{program} cannot be started: {error}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        error: std::io::Error,
    },
    /// It ended.
    #[error("no tunnel to {target}: {failure}")]
    Ended {
        /// Where to.
        target: String,
        /// Why.
        failure: SshFailure,
    },
    /// It is not up in time.
    #[error("no tunnel to {target} within {} s", .after.as_secs())]
    Slow {
        /// Where to.
        target: String,
        /// How long was waited.
        after: Duration,
    },
}

impl TunnelError {
    /// What to do about it.
    pub fn advice(&self, plan: &TunnelPlan) -> Option<String> {
        let by_hand = || match plan.target.port {
            Some(port) => format!("ssh -p {port} {}", without_port(plan)),
            None => format!("ssh {}", without_port(plan)),
        };
        Some(match self {
            Self::NoClient => "Install it: openssh-client on Debian, openssh-clients on Fedora.".into(),
            Self::PortTaken { port, .. } => format!(
                "Stop that program, or take another local port: clawgate config set gateway.remote.url ws://127.0.0.1:{}",
                port.saturating_add(1)
            ),
            Self::Ended { failure, .. } => match failure {
                SshFailure::HostKeyChanged { presented, known, forget, .. } => {
                    let mut lines = vec![
                        format!("known     {}", known.as_deref().unwrap_or("(cannot be read)")),
                        format!("presented {presented}"),
                        "Ask who runs the host whether its key was renewed. If it was, remove the old one:".to_owned(),
                    ];
                    lines.push(format!("  {}", forget.as_deref().unwrap_or("ssh-keygen -R HOST")));
                    lines.push(format!("and take the new one, comparing the fingerprint: {}", by_hand()));
                    lines.join("\n")
                }
                SshFailure::HostKeyUnknown => format!(
                    "Connect once by hand and compare the fingerprint that it shows with the host's own: {}\n(On the host: \
                     ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
                    by_hand()
                ),
                SshFailure::NoAccess(_) => format!(
                    "Give the host a key of yours: ssh-copy-id {}\nA key with a passphrase must be in the agent (ssh-add); \
                     another key is named by gateway.remote.sshIdentity.",
                    without_port(plan)
                ),
                SshFailure::Dns(_) => "Check gateway.remote.sshTarget, and the DNS of this machine.".into(),
                SshFailure::Unreachable(_) => format!("See whether the host answers: {}", by_hand()),
                SshFailure::PortTaken => format!(
                    "An entry for {} in your OpenSSH configuration may already forward port {}.",
                    plan.target.host, plan.local_port
                ),
                SshFailure::Lost(_) | SshFailure::Other(_) => format!("See by hand: {}", by_hand()),
            },
            Self::Slow { .. } => format!("See by hand: {}", by_hand()),
            Self::Start { .. } => return None,
        })
    }

    /// Why `ssh` ended, when that is it.
    pub const fn failure(&self) -> Option<&SshFailure> {
        match self {
            Self::Ended { failure, .. } => Some(failure),
            _ => None,
        }
    }
}

fn without_port(plan: &TunnelPlan) -> String {
    match &plan.target.user {
        Some(user) => format!("{user}@{}", plan.target.host),
        None => plan.target.host.clone(),
    }
}

/// A running client. Dropped, it is killed.
#[derive(Debug)]
pub struct Ssh {
    child: Child,
    target: String,
    port: u16,
    said: Arc<Mutex<String>>,
    listening: bool,
    /// What it was started with.
    arguments: Vec<OsString>,
}

impl Ssh {
    /// Starts it. `hear` is given every line it says.
    ///
    /// # Errors
    /// [`TunnelError`]: no client, or the port is taken.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(plan: &TunnelPlan, hear: impl Fn(&str) + Send + 'static) -> Result<Self, TunnelError> {
        let program = program("ssh").ok_or(TunnelError::NoClient)?;
        let port = plan.local_port;
        if !holder::is_free(port) {
            return Err(TunnelError::PortTaken { port, holder: holder::of(port) });
        }
        let mut command = bound_to_us(&program);
        // Its words are understood, so they must not be in another language.
        command
            .args(plan.arguments())
            .env("LC_ALL", "C")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|error| TunnelError::Start { program: program.display().to_string(), error })?;
        let said = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let said = Arc::clone(&said);
            task::spawn("ssh output", async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    hear(&line);
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    if said.len() + line.len() < SAID_BYTES {
                        said.push_str(&line);
                        said.push('\n');
                    }
                }
            });
        }
        let (target, arguments) = (plan.target.to_string(), plan.arguments());
        Ok(Self { child, target, port, said, listening: false, arguments })
    }

    /// The process; `None` when it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the local port is this client's, and open. Cancel safe.
    ///
    /// That it is open is not enough: another program may have been faster, and what is sent into the port is a secret.
    ///
    /// # Errors
    /// [`TunnelError`] when it ends instead, or `patience` is over.
    pub async fn listening(&mut self, patience: Duration) -> Result<(), TunnelError> {
        let started = Instant::now();
        while started.elapsed() < patience {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.ended_with(status).await);
            }
            if self.holds_its_port() {
                self.listening = true;
                return Ok(());
            }
            sleep(LOOK).await;
        }
        Err(TunnelError::Slow { target: self.target.clone(), after: patience })
    }

    #[cfg(target_os = "linux")]
    fn holds_its_port(&self) -> bool {
        !holder::is_free(self.port) && holder::of(self.port).is_some_and(|holder| holder.pid == self.child.id())
    }

    /// It ends when it cannot have the port, and it asks for the port before anything else comes through.
    #[cfg(not(target_os = "linux"))]
    fn holds_its_port(&self) -> bool {
        !holder::is_free(self.port) && holder::of(self.port).is_none_or(|holder| holder.name.as_deref() == Some("ssh"))
    }

    /// Waits for its end. Cancel safe.
    pub async fn ended(&mut self) -> TunnelError {
        match self.child.wait().await {
            Ok(status) => self.ended_with(status).await,
            Err(error) => TunnelError::Start { program: "ssh".into(), error },
        }
    }

    async fn ended_with(&self, status: ExitStatus) -> TunnelError {
        // The last words may still be on their way.
        sleep(LOOK).await;
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut failure = match SshFailure::of(&said) {
            SshFailure::Other(_) if status.code().is_none() => SshFailure::Lost("it was killed".into()),
            failure => failure,
        };
        if failure == SshFailure::PortTaken && !holder::is_free(self.port) {
            return TunnelError::PortTaken { port: self.port, holder: holder::of(self.port) };
        }
        if let SshFailure::HostKeyChanged { known, place, forget, .. } = &mut failure {
            let files = self.known_hosts().await;
            // A file that `ssh` does not look into was named by somebody else.
            *place = place.take().filter(|(path, _)| files.as_ref().is_some_and(|files| files.looks_into(path)));
            *forget = files.map(|files| files.forget(place.as_ref().map(|(path, _)| path.as_path())).into());
            if let Some((path, line)) = place {
                *known = fingerprint_in(path, *line).await;
            }
        }
        TunnelError::Ended { target: self.target.clone(), failure }
    }

    /// Where the client keeps the host's key, as it says itself.
    async fn known_hosts(&self) -> Option<KnownHosts> {
        let mut command = Command::new(program("ssh")?);
        command.arg("-G").args(&self.arguments).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(GOODBYE, command.output()).await.ok()?.ok()?;
        KnownHosts::of(&String::from_utf8_lossy(&output.stdout))
    }

    /// Ends it: asked first, then killed.
    pub async fn stop(mut self) {
        if let Some(pid) =
            self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw)
        {
            // It may be gone already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            if timeout(GOODBYE, self.child.wait()).await.is_err() {
                let _ = self.child.kill().await;
            }
        }
    }
}

/// A program of OpenSSH.
pub fn program(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// A command that does not outlive this process.
#[cfg(target_os = "linux")]
fn bound_to_us(program: &Path) -> Command {
    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
    let parent = getpid();
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec it makes two system calls, and touches no memory that another thread may hold.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::NotConnected.into()) }
        });
    }
    command
}

/// A command that does not outlive this process.
#[cfg(not(target_os = "linux"))]
fn bound_to_us(program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GUARD]).arg(program).stdin(Stdio::piped());
    command
}

/// Runs `"$0" "$@"` until it ends or standard input does, whichever is first. The writing end of that input is ours, and
/// the kernel closes it with us.
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "Linux has something better; the tests run everywhere"))]
const GUARD: &str = r#"exec 3<&0
"$0" "$@" </dev/null 3<&- & child=$!
trap 'kill "$child" 2>/dev/null' TERM INT HUP
(read -r _ <&3; kill "$child" 2>/dev/null) & guard=$!
exec 3<&-
wait "$child"; status=$?
kill "$guard" 2>/dev/null
exit "$status""#;

/// `SHA256:...` of the key at `line` of a file of known hosts.
async fn fingerprint_in(path: &Path, line: usize) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let entry = text.lines().nth(line.checked_sub(1)?)?.to_owned();
    let mut child = Command::new(program("ssh-keygen")?)
        .args(["-l", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(format!("{entry}\n").as_bytes()).await.ok()?;
    let output = timeout(GOODBYE, child.wait_with_output()).await.ok()?.ok()?;
    let shown = String::from_utf8_lossy(&output.stdout);
    shown.split_whitespace().find(|word| word.starts_with("SHA256:")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_alive(pid: i32) -> bool {
        rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }

    #[tokio::test]
    async fn the_guard_ends_its_child_when_the_pipe_closes() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", note.display());
        let mut guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "/bin/sh", "-c", &script])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = loop {
            if let Ok(text) = std::fs::read_to_string(&note)
                && let Ok(pid) = text.trim().parse()
            {
                break pid;
            }
            sleep(LOOK).await;
        };
        assert!(is_alive(pid));
        drop(guard.stdin.take());
        timeout(Duration::from_secs(5), guard.wait()).await.expect("it ends").unwrap();
        assert!(!is_alive(pid));
    }

    #[tokio::test]
    async fn a_taken_port_is_named_before_anything_starts() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = TunnelPlan {
            target: "nobody@127.0.0.1:1".parse().unwrap(),
            identity: None,
            host_keys: crate::config::model::HostKeyPolicy::Strict,
            local_port: taken.local_addr().unwrap().port(),
            remote_port: 1,
            ssh_config: None,
        };
        if program("ssh").is_none() {
            return;
        }
        let error = Ssh::start(&plan, |_| {}).unwrap_err();
        assert!(error.to_string().contains("taken by"), "{error}");
        assert!(error.advice(&plan).unwrap().contains("gateway.remote.url"));
    }
}
