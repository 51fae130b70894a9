//! A gateway as a child process, with a state folder of its own. Start at [`Setup`].

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::client::Client;
use super::{PATIENCE, TOKEN};

/// The program under test. `CLAWGATE_BIN` names another: a release build, an installed package.
pub fn program() -> PathBuf {
    std::env::var_os("CLAWGATE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_clawgate").into(), PathBuf::from)
}

/// How a gateway is started. A clone starts on the same state folder.
#[derive(Clone)]
pub struct Setup {
    state: Arc<TempDir>,
    port: Option<u16>,
    token: Option<&'static str>,
    env: Vec<(&'static str, String)>,
    args: Vec<String>,
    open_files: Option<u32>,
}

impl Setup {
    /// On a new state folder, on a free port of loopback, with [`TOKEN`].
    pub fn new() -> Self {
        Self {
            state: Arc::new(tempfile::tempdir().expect("a folder for state")),
            port: None,
            token: Some(TOKEN),
            env: Vec::new(),
            args: Vec::new(),
            open_files: None,
        }
    }

    /// Writes the configuration file.
    pub fn config(self, config: &Value) -> Self {
        std::fs::write(self.state_dir().join("openclaw.json"), config.to_string()).expect("a configuration file");
        self
    }

    /// Without `--token`.
    pub fn no_token(mut self) -> Self {
        self.token = None;
        self
    }

    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// On this port, and on no other.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// With a hard limit of open files.
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    fn command(&self, port: u16) -> Command {
        let mut command = match self.open_files {
            None => Command::new(program()),
            Some(limit) => {
                let mut shell = Command::new("sh");
                // Files that must not grow are an error to it, as a full disk is, and not its end.
                shell.args(["-c", &format!("trap '' XFSZ; ulimit -n {limit}; exec \"$0\" \"$@\"")]).arg(program());
                shell
            }
        };
        command
            .args(["gateway", "--port", &port.to_string(), "--workers", "2", "--verbose"])
            .args(&self.args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.state_dir())
            .env("OPENCLAW_STATE_DIR", self.state_dir())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(token) = self.token {
            command.args(["--token", token]);
        }
        command
    }

    /// Starts, and waits until connections are taken.
    pub fn start(self) -> Gateway {
        loop {
            let port = self.port.unwrap_or_else(free_port);
            let mut child = self.command(port).spawn().expect("the gateway starts");
            let stdout = Lines::of(child.stdout.take().expect("piped"));
            let stderr = Lines::of(child.stderr.take().expect("piped"));
            let gateway = Gateway { child, port, stdout, stderr, setup: self.clone() };
            // The last line of the announcement is written when everything is in place.
            if gateway.stdout.wait_for(|line| line.contains("stop with Ctrl-C")).is_some() {
                return gateway;
            }
            let said = gateway.stderr.to_end();
            // Another test program may have been faster than we with the port.
            assert!(self.port.is_none() && said.contains("--port"), "the gateway did not start:\n{said}");
        }
    }

    /// Runs a gateway that is expected to refuse its start.
    pub fn refuses(self) -> Refusal {
        let port = self.port.unwrap_or_else(free_port);
        let mut child = self.command(port).spawn().expect("the gateway starts");
        let stdout = Lines::of(child.stdout.take().expect("piped"));
        let stderr = Lines::of(child.stderr.take().expect("piped"));
        let status = wait(&mut child).unwrap_or_else(|| {
            drop(child.kill());
            panic!("it started after all: {}", stdout.text())
        });
        assert!(!status.success(), "it refused with exit code 0");
        Refusal { status, stderr: stderr.to_end(), stdout: stdout.to_end() }
    }
}

/// What a gateway left behind that did not start.
pub struct Refusal {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A gateway that runs. Dropped, it is killed.
pub struct Gateway {
    child: Child,
    pub port: u16,
    /// Standard output: the announcement.
    pub stdout: Lines,
    /// Standard error: the log.
    pub stderr: Lines,
    setup: Setup,
}

impl Gateway {
    /// One like most tests need it.
    pub fn start() -> Self {
        Setup::new().start()
    }

    /// How it was started, to start another like it.
    pub fn setup(&self) -> Setup {
        self.setup.clone()
    }

    pub fn state_dir(&self) -> &Path {
        self.setup.state_dir()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// A WebSocket before its `connect`.
    pub fn client(&self) -> Client {
        Client::open(self.port)
    }

    /// A connected operator with all scopes: the gateway's own kind of client, without a device.
    pub fn operator(&self) -> Client {
        let mut client = self.client();
        client.connect(&super::client::operator()).expect("the operator is let in");
        client
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for its end; `None` when it goes on.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        wait(&mut self.child)
    }

    /// Stops it in order, and starts one on the same state folder.
    pub fn restart(mut self) -> Self {
        self.signal(Signal::TERM);
        assert!(self.wait().expect("it stops").success());
        let setup = self.setup();
        drop(self);
        setup.start()
    }

    /// Sends raw bytes as an HTTP request, and reads the answer to its end.
    pub fn http(&self, request: &str) -> HttpAnswer {
        HttpAnswer::to(self.port, request.as_bytes())
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> HttpAnswer {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"))
    }

    /// The log lines that contain `needle`, of everything that happened before this call.
    pub fn log_lines(&self, needle: &str) -> Vec<String> {
        // A refusal of our own marks the present: the log is written in order.
        const MARK: &str = "the-log-is-read-to-here-";
        static MARKS: AtomicU16 = AtomicU16::new(0);
        let mark = format!("{MARK}{}", MARKS.fetch_add(1, Ordering::Relaxed));
        let mut client = self.client();
        client.text(&format!(r#"{{"type":"req","id":"1","method":"connect","params":{{"{mark}":1}}}}"#));
        client.closed();
        self.stderr.wait_for(|line| line.contains(&format!("{mark}`"))).expect("the mark is logged");
        let text = self.stderr.text();
        text.lines().filter(|line| line.contains(needle) && !line.contains(MARK)).map(str::to_owned).collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // A child that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            show(&self.stderr.text());
        }
    }
}

/// Prints the log of a gateway whose test failed: the test harness shows what such a test printed.
#[expect(clippy::print_stdout, reason = "it is for the person who reads the outcome of a test")]
fn show(log: &str) {
    println!("---- log of the gateway\n{log}");
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return Some(status);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A port that nobody listens on, below those that the kernel gives to outgoing connections.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 22_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs run side by side: each begins somewhere else.
    let offset = (u64::from(std::process::id()) * 7919 % u64::from(PORTS)) as u16;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + offset.wrapping_add(step) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What a child writes, line by line, as it comes.
#[derive(Clone)]
pub struct Lines(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    text: String,
    ended: bool,
}

impl Lines {
    pub fn of(output: impl Read + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let shared = Arc::clone(&lines.0);
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                shared.0.lock().expect("whole").text.push_str(&String::from_utf8_lossy(&line));
                shared.1.notify_all();
                line.clear();
            }
            shared.0.lock().expect("whole").ended = true;
            shared.1.notify_all();
        });
        lines
    }

    /// All of it so far.
    pub fn text(&self) -> String {
        self.0.0.lock().expect("whole").text.clone()
    }

    /// All of it, once the child has closed it.
    pub fn to_end(&self) -> String {
        let written = self.0.0.lock().expect("whole");
        let (written, _) = self.0.1.wait_timeout_while(written, PATIENCE, |written| !written.ended).expect("whole");
        written.text.clone()
    }

    /// The first line that `is_wanted`; `None` when none comes.
    pub fn wait_for(&self, is_wanted: impl Fn(&str) -> bool) -> Option<String> {
        let found = |written: &Written| written.text.lines().find(|line| is_wanted(line)).map(str::to_owned);
        let written = self.0.0.lock().expect("whole");
        let waiting = |written: &mut Written| !written.ended && found(written).is_none();
        let (written, _) = self.0.1.wait_timeout_while(written, PATIENCE, waiting).expect("whole");
        found(&written)
    }
}

/// The answer to a plain HTTP request.
#[derive(Debug)]
pub struct HttpAnswer {
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    pub body: String,
}

impl HttpAnswer {
    /// Sends `request` and reads to the end of the connection, which the request or the answer must ask for.
    pub fn to(port: u16, request: &[u8]) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the gateway listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // It may be refused before it is all sent.
        let _ = stream.write_all(request);
        Self::read(&mut stream)
    }

    /// Reads an answer to the end of the connection.
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                // The gateway may close while bytes of ours are under way; what it said before counts.
                Err(_) if !bytes.is_empty() => break,
                Err(error) => panic!("no answer: {error}"),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}
