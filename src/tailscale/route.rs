//! The route from the tailnet, or from the Internet, to a port of ours: `tailscale serve` or `tailscale funnel` held in
//! the foreground. Tailscale takes the route away when the command ends, and the command ends when this process does,
//! however it does.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::shutdown::Shutdown;
use crate::task;

/// First pause before a command that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A route that was held as long as this is no failing one.
const HELD: Duration = Duration::from_secs(60);
/// Time the command has to release its route.
const RELEASE: Duration = Duration::from_secs(3);
/// Lines of what the command said that are kept for the report of its end.
const LINES: usize = 8;
/// Bytes of such a line.
const LINE_BYTES: usize = 300;

/// Who the route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The tailnet.
    Serve,
    /// The Internet.
    Funnel,
}

impl Reach {
    /// The subcommand.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Funnel => "funnel",
        }
    }
}

/// A route to hold.
#[derive(Clone, Debug)]
pub struct Route {
    /// The `tailscale` program.
    pub command: PathBuf,
    /// Who it is for.
    pub reach: Reach,
    /// The port of loopback it leads to.
    pub port: u16,
}

impl Route {
    /// Finds `command`: a path, or a name that is looked for in `path`, the variable.
    ///
    /// # Errors
    /// There is no such program.
    pub fn find(command: &Path, path: Option<&str>) -> io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let is_program =
            |path: &Path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        let candidates = match command.components().count() {
            1 if !command.is_absolute() => {
                // A relative folder would be whichever the gateway was started in.
                let folders = std::env::split_paths(path.unwrap_or_default()).filter(|folder| folder.is_absolute());
                folders.map(|folder| folder.join(command)).collect()
            }
            _ => vec![command.to_owned()],
        };
        candidates.into_iter().find(|path| is_program(path)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Holds the route until the gateway stops, then releases it. A command that ends is started again, after longer
    /// and longer pauses.
    pub async fn hold(self, shutdown: Shutdown) {
        let mut pause = PAUSE;
        while !shutdown.has_begun() {
            let begun = Instant::now();
            match self.start() {
                Ok(child) => {
                    if let Some(end) = self.watch(child, &shutdown).await {
                        tracing::warn!(reach = self.reach.as_str(), "tailscale released the route: {end}");
                    } else {
                        tracing::info!(reach = self.reach.as_str(), "the route through Tailscale is released");
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(command = %self.command.display(), %error, "tailscale cannot be started");
                }
            }
            if begun.elapsed() >= HELD {
                pause = PAUSE;
            }
            tracing::info!(again_s = pause.as_secs(), "the route through Tailscale is claimed again");
            tokio::select! {
                () = sleep(pause) => {}
                () = shutdown.begun() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn start(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.command);
        command
            .args([self.reach.as_str(), "--yes", &format!("http://127.0.0.1:{}", self.port)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Of what is in our environment it needs these; the gateway's secrets are none of its business.
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| is_passed_on(name)))
            .kill_on_drop(true);
        die_with_us(&mut command);
        command.spawn()
    }

    /// Waits for the command's end, and says what it was; `None` when it was ours.
    async fn watch(&self, mut child: Child, shutdown: &Shutdown) -> Option<String> {
        let mut said = VecDeque::new();
        let (send, mut lines) = mpsc::channel(LINES);
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            task::spawn("tailscale output", read_lines(stdout, send.clone()));
            task::spawn("tailscale output", read_lines(stderr, send));
        }
        loop {
            tokio::select! {
                // Ends when the command has closed its output, which it does at its end.
                line = lines.recv() => match line {
                    Some(line) => self.note(line, &mut said),
                    None => break,
                },
                () = shutdown.begun() => {
                    release(&mut child).await;
                    return None;
                }
            }
        }
        // A command that lives on without its output would not tell us of its end.
        let status = match timeout(RELEASE, child.wait()).await {
            Ok(status) => status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            Err(_) => {
                release(&mut child).await;
                "it closed its output".to_owned()
            }
        };
        let said: Vec<String> = said.into();
        Some(if said.is_empty() { status } else { format!("{status}: {}", said.join(" / ")) })
    }

    fn note(&self, line: String, said: &mut VecDeque<String>) {
        if let Some(url) = line.split_whitespace().find(|word| word.starts_with("https://")) {
            tracing::info!(url, reach = self.reach.as_str(), "reached through Tailscale");
        }
        if said.len() == LINES {
            said.pop_front();
        }
        said.push_back(line);
    }
}

/// Whether a variable of ours is one that `tailscale` reads.
fn is_passed_on(name: &OsStr) -> bool {
    let known = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"];
    name.to_str().is_some_and(|name| known.contains(&name) || name.starts_with("TS_") || name.starts_with("TAILSCALE_"))
}

/// Asks the command to end, which releases its route, and insists after a while.
async fn release(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::TERM);
    }
    if timeout(RELEASE, child.wait()).await.is_err() {
        tracing::warn!("tailscale does not end, and is killed; see `tailscale serve status` for what it left");
        let _ = child.kill().await;
    }
}

/// Has the kernel end the command when this process ends without having said so.
#[cfg(target_os = "linux")]
fn die_with_us(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only two system calls are made, which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // The parent may have ended before the call above.
            match rustix::process::getppid() == Some(parent) {
                true => Ok(()),
                false => Err(io::ErrorKind::Interrupted.into()),
            }
        });
    }
}

/// Elsewhere it is killed when its handle is dropped, which a killed process does not come to.
#[cfg(not(target_os = "linux"))]
fn die_with_us(_: &mut Command) {}

/// Sends the lines of `output`, cut to a length that fits a log.
async fn read_lines(mut output: impl AsyncRead + Unpin, lines: mpsc::Sender<String>) {
    let (mut line, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        for byte in &buffer[..read] {
            match byte {
                b'\n' => {
                    let text = String::from_utf8_lossy(&line).trim().to_owned();
                    line.clear();
                    if !text.is_empty() && lines.send(text).await.is_err() {
                        return;
                    }
                }
                byte if line.len() < LINE_BYTES && !byte.is_ascii_control() => line.push(*byte),
                _ => {}
            }
        }
    }
    let text = String::from_utf8_lossy(&line).trim().to_owned();
    if !text.is_empty() {
        // Nobody reads any more: then nobody misses it.
        let _ = lines.send(text).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(folder: &Path, name: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_program_is_found_by_its_path_or_in_absolute_folders() {
        let folder = tempfile::tempdir().unwrap();
        let tailscale = program(folder.path(), "tailscale", 0o755);
        program(folder.path(), "text", 0o644);
        let path = format!(".:/nowhere:{}", folder.path().display());
        assert_eq!(Route::find(&tailscale, None).unwrap(), tailscale);
        assert_eq!(Route::find(Path::new("tailscale"), Some(&path)).unwrap(), tailscale);
        assert!(Route::find(Path::new("tailscale"), None).is_err());
        assert!(Route::find(Path::new("text"), Some(&path)).is_err(), "it is no program");
        assert!(Route::find(Path::new("/nowhere/tailscale"), Some(&path)).is_err());
    }
}
