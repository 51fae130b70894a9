//! Programs under test: run to their end within a deadline, or kept running until dropped.
//!
//! Each is the leader of a process group of its own, because some start others; nobody outlives the test.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// What a program that ran to its end left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Asserts that the program printed `words`.
    #[track_caller]
    pub(crate) fn says(self, words: &str) -> Self {
        assert!(self.stdout.contains(words) || self.stderr.contains(words), "expected {words:?} in the output above");
        self
    }

    /// Asserts that the program did not print `words`.
    #[track_caller]
    pub(crate) fn does_not_say(self, words: &str) -> Self {
        assert!(
            !self.stdout.contains(words) && !self.stderr.contains(words),
            "unexpected {words:?} in the output above"
        );
        self
    }
}

/// Runs `command` to its end and tells the test's output about it. Panics past `deadline`.
pub(crate) fn run(mut command: Command, deadline: Duration) -> Output {
    let mut stdout = tempfile::tempfile().unwrap();
    let mut stderr = tempfile::tempfile().unwrap();
    command.stdin(Stdio::null()).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let line = words_of(&command);
    let started = Instant::now();
    let mut child = command.process_group(0).spawn().unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
    let status = wait(&mut child, deadline);
    kill_group(&child);
    let output = Output {
        code: status.and_then(|status| status.code()),
        stdout: whole_text(&mut stdout),
        stderr: whole_text(&mut stderr),
    };
    println!("$ {line}\n{}{}", output.stdout, output.stderr);
    match status {
        Some(status) => println!("[{status}, {:.1} s]\n", started.elapsed().as_secs_f32()),
        None => panic!("{line} was still running after {deadline:?}"),
    }
    output
}

/// A program that runs until it is stopped or dropped, with its output in a file.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Program {
    /// Starts `command`; its output is appended to the file `log`.
    pub(crate) fn start(name: &'static str, mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", words_of(&command)));
        Self { child, name, log: log.to_owned() }
    }

    /// Everything it has printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Asks it to stop (SIGTERM) and waits until it has. Panics past `deadline`.
    pub(crate) fn stop(&mut self, deadline: Duration) -> ExitStatus {
        if self.ended().is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        }
        let status = wait(&mut self.child, deadline);
        kill_group(&self.child);
        status.unwrap_or_else(|| panic!("the {} did not stop within {deadline:?} of SIGTERM", self.name))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        kill_group(&self.child);
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let skip = log.lines().count().saturating_sub(40);
            let tail: Vec<_> = log.lines().skip(skip).collect();
            println!("--- the last lines of the {} ---\n{}\n", self.name, tail.join("\n"));
        }
    }
}

/// Asks `question` until it has an answer. Panics past `deadline`.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, deadline: Duration, mut question: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

fn kill_group(leader: &Child) {
    // The group is gone if nobody is left in it.
    let _ = kill_process_group(Pid::from_child(leader), Signal::KILL);
}

fn whole_text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The command as one would type it, with programs and scripts by their file names.
fn words_of(command: &Command) -> String {
    let word = |word: &std::ffi::OsStr| match Path::new(word).is_absolute() {
        true => Path::new(word).file_name().unwrap_or(word).to_string_lossy().into_owned(),
        false => word.to_string_lossy().into_owned(),
    };
    std::iter::once(command.get_program()).chain(command.get_args()).map(word).collect::<Vec<_>>().join(" ")
}
