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
use crate::program::{Program, eventually, run};

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
    is_secure: bool,
}

impl Gateway {
    /// Starts one on a free port and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_as(false, &Value::Null)
    }

    /// Starts one that speaks TLS with a certificate that it makes itself.
    pub(crate) fn start_secure() -> Self {
        Self::start_as(true, &Value::Null)
    }

    /// A plain one with more settings, by their top-level keys.
    pub(crate) fn start_with(more: &Value) -> Self {
        Self::start_as(false, more)
    }

    /// One that serves a Control UI's files below `base`, with more settings.
    pub(crate) fn start_with_ui(files: &Path, base: &str, more: &Value) -> Self {
        let ui = format!(", controlUi: {{ root: \"{}\", basePath: \"{base}\" }} }}", files.display());
        Self::start_on(false, more, |gateway| format!("{}{ui}", gateway.strip_suffix(" }").unwrap()))
    }

    fn start_as(is_secure: bool, more: &Value) -> Self {
        Self::start_on(is_secure, more, |gateway| gateway)
    }

    fn start_on(is_secure: bool, more: &Value, edit: impl Fn(String) -> String) -> Self {
        let home = tempfile::tempdir().unwrap();
        let port = free_port();
        write_gateway(home.path(), &edit(local(port, is_secure)), more);
        let program = launch(home.path());
        let mut gateway = Self { program, port, home, is_secure };
        gateway.wait_until_ready();
        gateway
    }

    /// Runs a command of clawgate's own beside it, which must succeed.
    pub(crate) fn says(&self, command: &str, args: &[&str]) {
        let mut program = clawgate(PathBuf::from(env!("CARGO_BIN_EXE_clawgate")), self.home.path());
        program.arg(command).args(args);
        assert_eq!(run(program, Duration::from_secs(30)).code, Some(0));
    }

    /// SHA-256 of its certificate in hex, as OpenSSL has it.
    pub(crate) fn fingerprint(&self) -> String {
        let cert = self.home.path().join(".openclaw/gateway/tls/gateway-cert.pem");
        let said =
            Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(cert).output();
        let said = String::from_utf8(said.expect("openssl is installed").stdout).unwrap();
        said.trim().split_once('=').expect("a fingerprint").1.replace(':', "").to_lowercase()
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
        format!("{}://127.0.0.1:{}", if self.is_secure { "wss" } else { "ws" }, self.port)
    }

    fn wait_until_ready(&mut self) {
        let (port, is_secure) = (self.port, self.is_secure);
        let program = &mut self.program;
        eventually("the gateway is ready", STARTS_WITHIN, || {
            if let Some(status) = program.ended() {
                panic!("the gateway ended at its start: {status}\n{}", program.log());
            }
            is_ready(port, is_secure).then_some(())
        });
    }
}

/// Writes the configuration that a gateway on `port` and its local clients share.
pub(crate) fn write_config(home: &Path, port: u16, more: &Value) {
    write_gateway(home, &local(port, false), more);
}

/// Writes the configuration of a client of the gateway at `url`, whose certificate it pins.
pub(crate) fn write_remote(home: &Path, url: &str, fingerprint: &str) {
    let remote =
        format!("{{ url: \"{url}\", transport: \"direct\", token: \"{TOKEN}\", tlsFingerprint: \"{fingerprint}\" }}");
    write_gateway(home, &format!("{{ mode: \"remote\", remote: {remote} }}"), &Value::Null);
}

fn local(port: u16, is_secure: bool) -> String {
    let auth = format!("{{ mode: \"token\", token: \"{TOKEN}\" }}");
    let tls = format!("{{ enabled: {is_secure} }}");
    format!("{{ mode: \"local\", port: {port}, bind: \"loopback\", auth: {auth}, tls: {tls} }}")
}

fn write_gateway(home: &Path, gateway: &str, more: &Value) {
    let folder = home.join(".openclaw");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let file = folder.join("openclaw.json");
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

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn is_ready(port: u16, is_secure: bool) -> bool {
    let ask = || -> std::io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut status_line = [0; 12];
        stream.read_exact(&mut status_line)?;
        // In plain HTTP, one that speaks TLS says that it does.
        Ok(&status_line == if is_secure { b"HTTP/1.1 400" } else { b"HTTP/1.1 200" })
    };
    ask().unwrap_or(false)
}
