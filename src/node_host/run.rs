//! One command as a process of its own: bounded in time and output, gone with whoever waits for it.
//!
//! It leads a process group, and the group is killed when its time is over, and when the future that waits for it is
//! dropped. On Linux the kernel kills it, too, when the thread that started it ends without a word (`SIGKILL`): run it
//! from a thread that lives as long as the process. What a command leaves behind in the background on purpose, past its
//! own end, is not hunted.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

/// Bytes of output that are kept, of standard output and error together.
pub(super) const OUTPUT_BYTES: usize = 200_000;
/// Time for the last output of a command that has ended: what it started may still hold the pipe.
const LINGER: Duration = Duration::from_millis(250);
const READ_BYTES: usize = 16 * 1024;

/// What to run.
#[derive(Debug)]
pub(super) struct Spec<'a> {
    /// The file.
    pub(super) program: &'a Path,
    /// Arguments, with the name that the program is to see first.
    pub(super) argv: &'a [String],
    /// In which folder.
    pub(super) cwd: Option<&'a Path>,
    /// All of its environment.
    pub(super) environment: &'a BTreeMap<String, String>,
    /// How long it may take.
    pub(super) timeout: Duration,
}

/// How it went.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Its status; `None` when a signal ended it, or it did not start.
    pub(super) exit_code: Option<i32>,
    /// Its time was over.
    pub(super) timed_out: bool,
    /// The beginning of its output.
    pub(super) stdout: Vec<u8>,
    /// The beginning of its errors.
    pub(super) stderr: Vec<u8>,
    /// There was more.
    pub(super) truncated: bool,
    /// Why it did not start, or what signal ended it.
    pub(super) error: Option<String>,
}

/// Runs it to its end. `hear` is given what it says as it comes.
///
/// # Cancel safety
/// Dropped, it is killed with everything in its group.
pub(super) async fn run(spec: Spec<'_>, mut hear: impl FnMut(&[u8])) -> Ended {
    let mut ended = Ended::default();
    let mut command = Command::new(spec.program);
    if let Some((name, arguments)) = spec.argv.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(spec.environment);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    if let Some(cwd) = spec.cwd {
        command.current_dir(cwd);
    }
    bind_to_us(&mut command);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            ended.error = Some(not_started(&spec, &error));
            return ended;
        }
    };
    let mut group = Group::of(child.id());
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let mut status = None;
    let mut until = Instant::now() + spec.timeout;
    while status.is_none() || stdout.is_some() || stderr.is_some() {
        tokio::select! {
            count = read(&mut stdout, &mut out) => match count {
                0 => stdout = None,
                count => {
                    hear(&out[..count]);
                    let room = OUTPUT_BYTES.saturating_sub(ended.stdout.len() + ended.stderr.len());
                    ended.truncated |= keep(&mut ended.stdout, &out[..count], room);
                }
            },
            count = read(&mut stderr, &mut err) => match count {
                0 => stderr = None,
                count => {
                    hear(&err[..count]);
                    let room = OUTPUT_BYTES.saturating_sub(ended.stdout.len() + ended.stderr.len());
                    ended.truncated |= keep(&mut ended.stderr, &err[..count], room);
                }
            },
            end = child.wait(), if status.is_none() => {
                // Its number may be another's from now on.
                group.disarm();
                status = Some(end);
                until = Instant::now() + LINGER;
            }
            () = sleep_until(until) => match status {
                Some(_) => break,
                None => {
                    ended.timed_out = true;
                    group.kill();
                    until = Instant::now() + spec.timeout.max(LINGER);
                }
            },
        }
    }
    match status {
        Some(Ok(status)) => {
            use std::os::unix::process::ExitStatusExt as _;
            ended.exit_code = status.code();
            if let (Some(signal), false) = (status.signal(), ended.timed_out) {
                ended.error = Some(format!("ended by signal {signal}"));
            }
        }
        Some(Err(error)) => ended.error = Some(error.to_string()),
        None => {}
    }
    ended
}

/// Takes what there is room for; whether something was left out.
fn keep(kept: &mut Vec<u8>, piece: &[u8], room: usize) -> bool {
    kept.extend_from_slice(&piece[..piece.len().min(room)]);
    piece.len() > room
}

/// Reads; 0 at the end, however it came; never when there is nothing to read from.
async fn read(source: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match source {
        Some(source) => source.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

fn not_started(spec: &Spec<'_>, error: &io::Error) -> String {
    match spec.cwd {
        Some(cwd) if !cwd.is_dir() => format!("{} is no folder", cwd.display()),
        _ => format!("{} does not start: {error}", spec.program.display()),
    }
}

/// A process group, killed when this is dropped before the leader's end was seen.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        Self(leader.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw))
    }

    fn disarm(&mut self) {
        self.0 = None;
    }

    fn kill(&self) {
        if let Some(leader) = self.0 {
            // It may have ended by itself.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(target_os = "linux")]
fn bind_to_us(command: &mut Command) {
    use rustix::process::{getpid, getppid, set_parent_process_death_signal};
    let parent = getpid();
    // SAFETY: between fork and exec it makes two system calls, and touches no memory that another thread may hold.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn bind_to_us(_: &mut Command) {}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(text: &str, timeout: Duration) -> Ended {
        let argv = ["sh", "-c", text].map(str::to_owned);
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let program = Path::new("/bin/sh");
        run(Spec { program, argv: &argv, cwd: None, environment: &environment, timeout }, |_| {}).await
    }

    const LONG: Duration = Duration::from_secs(20);

    fn is_alive(pid: &str) -> bool {
        // A dead child of a dead parent waits for init, which a container may not have.
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[tokio::test]
    async fn a_command_says_what_it_said_and_how_it_ended() {
        let ended = shell("echo out; echo err >&2; env; exit 3", LONG).await;
        assert_eq!((ended.exit_code, ended.timed_out, ended.truncated), (Some(3), false, false));
        assert!(ended.stdout.starts_with(b"out\n") && ended.stderr == b"err\n" && ended.error.is_none());
        assert!(!String::from_utf8_lossy(&ended.stdout).contains("HOME="), "it has the environment that it was given");
        let killed = shell("kill -9 $$", LONG).await;
        assert_eq!((killed.exit_code, killed.error.as_deref()), (None, Some("ended by signal 9")));
    }

    #[tokio::test]
    async fn what_does_not_start_says_why() {
        let environment = BTreeMap::new();
        let argv = ["x".to_owned()];
        let spec = |program, cwd| Spec { program, argv: &argv, cwd, environment: &environment, timeout: LONG };
        let missing = run(spec(Path::new("/no/such/program"), None), |_| {}).await;
        assert!(missing.error.unwrap().contains("/no/such/program does not start: No such file"));
        let nowhere = run(spec(Path::new("/bin/true"), Some(Path::new("/no/such/folder"))), |_| {}).await;
        assert_eq!(nowhere.error.unwrap(), "/no/such/folder is no folder");
    }

    #[tokio::test]
    async fn output_is_bounded_and_the_command_goes_on() {
        let ended = shell("head -c 300000 /dev/zero; head -c 10 /dev/zero >&2; exit 0", LONG).await;
        assert_eq!((ended.stdout.len() + ended.stderr.len(), ended.truncated), (OUTPUT_BYTES, true));
        assert_eq!(ended.exit_code, Some(0));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn when_its_time_is_over_everything_it_started_goes() {
        let ended = shell("sleep 60 & echo $!; wait", Duration::from_millis(300)).await;
        assert!(ended.timed_out && ended.exit_code.is_none());
        let pid = String::from_utf8(ended.stdout).unwrap();
        while is_alive(&pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_command_goes_with_whoever_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("pid");
        let text = format!("sleep 60 & echo $! > {}; wait", note.display());
        let running = crate::task::spawn("test", async move {
            shell(&text, LONG).await;
        });
        let pid = loop {
            match std::fs::read_to_string(&note) {
                Ok(pid) if pid.ends_with('\n') => break pid,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(is_alive(&pid));
        running.abort();
        while is_alive(&pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_is_left_in_the_background_holds_nothing_up() {
        let ended = shell("sleep 5 & echo done", LONG).await;
        assert_eq!((ended.exit_code, &ended.stdout[..]), (Some(0), &b"done\n"[..]));
    }
}
