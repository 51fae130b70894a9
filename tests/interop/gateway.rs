//! The gateway under test: clawgate as cargo built it, or what `INTEROP_GATEWAY` names.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::parts;
use crate::program::{Program, eventually};

/// The shared secret of every gateway here.
pub(crate) const TOKEN: &str = "interop-f3b0c44298fc1c149afbf4c8";

/// The incumbent takes its time to start and to drain, most of all on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(90);
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// A running gateway on loopback with a home of its own.
#[derive(Debug)]
pub(crate) struct Gateway {
    program: Program,
    port: u16,
    home: TempDir,
}

impl Gateway {
    /// Starts one on a free port and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&Value::Null)
    }

    /// The same with more settings, by their top-level keys.
    pub(crate) fn start_with(more: &Value) -> Self {
        let home = tempfile::tempdir().unwrap();
        let port = free_port();
        write_config(home.path(), port, more);
        let program = launch(home.path());
        let mut gateway = Self { program, port, home };
        gateway.wait_until_ready();
        gateway
    }

    /// Stops it as a service manager would, and starts it again on the same port with the same state.
    pub(crate) fn restart(&mut self) {
        let status = self.program.stop(STOPS_WITHIN);
        assert!(status.success(), "a gateway that was asked to stop ends well: {status}");
        self.program = launch(self.home.path());
        self.wait_until_ready();
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    fn wait_until_ready(&mut self) {
        let port = self.port;
        let program = &mut self.program;
        eventually("the gateway is ready", STARTS_WITHIN, || {
            if let Some(status) = program.ended() {
                panic!("the gateway ended at its start: {status}\n{}", program.log());
            }
            is_ready(port).then_some(())
        });
    }
}

/// Writes the configuration that a gateway on `port` and its local clients share.
pub(crate) fn write_config(home: &Path, port: u16, more: &Value) {
    let folder = home.join(".openclaw");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let file = folder.join("openclaw.json");
    let auth = format!("{{ mode: \"token\", token: \"{TOKEN}\" }}");
    let gateway = format!("{{ mode: \"local\", port: {port}, bind: \"loopback\", auth: {auth} }}");
    let more: String =
        more.as_object().into_iter().flatten().map(|(key, value)| format!("  {key}: {value},\n")).collect();
    fs::write(&file, format!("{{\n  update: {{ checkOnStart: false }},\n  gateway: {gateway},\n{more}}}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn launch(home: &Path) -> Program {
    let mut command = match std::env::var("INTEROP_GATEWAY") {
        Ok(name) if name == "openclaw" => parts::CURRENT.command(home),
        Ok(path) => clawgate(PathBuf::from(path).canonicalize().unwrap(), home),
        Err(_) => clawgate(env!("CARGO_BIN_EXE_clawgate").into(), home),
    };
    command.args(["gateway", "run"]);
    Program::start("gateway", command, &home.join("gateway.log"))
}

fn clawgate(binary: PathBuf, home: &Path) -> Command {
    let mut command = Command::new(binary);
    command.current_dir(home).env_clear().env("HOME", home).env("RUST_BACKTRACE", "1");
    command
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn is_ready(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut status_line = [0; 12];
        stream.read_exact(&mut status_line)?;
        Ok(&status_line == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
