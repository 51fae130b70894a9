//! A person's account, and the commands that are typed there: the built program, a home folder, an environment.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::gateway::{Gateway, program};
use super::{PATIENCE, TOKEN};

/// A person's account: a home folder, and nothing in the environment.
pub struct Account {
    pub home: TempDir,
    env: Vec<(&'static str, String)>,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Account {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), env: Vec::new() }
    }

    /// One whose commands find `gateway` by themselves.
    pub fn of(gateway: &Gateway) -> Self {
        Self::new().env("OPENCLAW_GATEWAY_PORT", gateway.port.to_string()).env("OPENCLAW_GATEWAY_TOKEN", TOKEN)
    }

    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub fn config(self, config: &Value) -> Self {
        let folder = self.home.path().join(".openclaw");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("openclaw.json"), config.to_string()).unwrap();
        self
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = finish(self.command(args));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}\n{}\n{}", ran.out, ran.err);
        ran.out
    }

    /// Runs a command that must print one JSON document and nothing else.
    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(args);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}\n{out}"))
    }

    /// Runs a command that must fail, and gives what it printed for people.
    pub fn fails(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 1, "{args:?}\n{}\n{}", ran.out, ran.err);
        ran.err
    }

    /// The state folder of its commands.
    pub fn state_dir(&self) -> std::path::PathBuf {
        self.home.path().join(".openclaw")
    }

    /// Where a command that finds no gateway says that URL and credentials came from.
    pub fn tried(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
        let line = ran.err.lines().find_map(|line| line.trim().strip_prefix("Tried ")).unwrap_or(&ran.err);
        line.split("; configuration:").next().unwrap().to_owned()
    }
}

/// Runs a command to its end, which must come.
pub fn finish(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    ended.recv_timeout(PATIENCE).map(Result::unwrap).unwrap_or_else(|_| {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("{command:?} does not end")
    })
}

/// A port that nobody listens on.
pub fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
