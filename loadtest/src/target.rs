//! Which gateway is loaded: the one at a URL, or one that is started for the run.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::args::Run;
use crate::client::Gateway;
use crate::cores::Cores;
use crate::interrupt;
use crate::procfs::Process;
use crate::wire::Credentials;

/// Time a spawned gateway has to open its port.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time it has to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The gateway under test, and the division of the machine.
#[derive(Debug)]
pub struct Target {
    /// How to reach it.
    pub gateway: Rc<Gateway>,
    /// What to measure; `None` when nobody said which process it is.
    pub process: Option<Process>,
    /// Time from start to the first accepted connection, of a spawned gateway.
    pub ready_after: Option<Duration>,
    /// Which core is whose.
    pub cores: Cores,
    spawned: Option<Spawned>,
}

/// A gateway that lives as long as the run, in a state folder that lives as long as it.
#[derive(Debug)]
struct Spawned {
    child: Child,
    folder: TempDir,
}

impl Target {
    /// Finds or starts the gateway that `run` says.
    pub fn find(run: &Run) -> Result<Self> {
        Self::find_with(run, &Value::Null)
    }

    /// The same; one that is started gets this configuration.
    pub fn find_with(run: &Run, config: &Value) -> Result<Self> {
        match &run.spawn {
            Some(program) => Self::spawn(program, run, config),
            None => Self::attach(run),
        }
    }

    fn attach(run: &Run) -> Result<Self> {
        let authority = authority(&run.url)?;
        let address = authority
            .to_socket_addrs()
            .with_context(|| format!("looking up {authority}"))?
            .min_by_key(|address| !address.is_ipv4())
            .with_context(|| format!("{authority} has no address"))?;
        ensure!(
            address.ip().is_loopback() || run.i_own_this_host,
            "{} is not this machine. To load a gateway over the network is an attack unless it is yours: \
             say --i-own-this-host if it is",
            address.ip()
        );
        ensure!(
            run.token.is_some() || run.password.is_some(),
            "no credentials: give --token or --password, or set OPENCLAW_GATEWAY_TOKEN"
        );
        let cores = match run.pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            Some(pid) if run.server_cores.is_empty() => Cores::beside(pid, run.client_core)?,
            _ => Cores::divide(&run.server_cores, run.client_core, 1)?,
        };
        cores.settle()?;
        let credentials = Credentials { token: run.token.clone(), password: run.password.clone() };
        let gateway = Rc::new(Gateway { address, host: authority.to_owned(), credentials });
        Ok(Self { gateway, process: run.pid.map(Process::new), ready_after: None, cores, spawned: None })
    }

    fn spawn(program: &Path, run: &Run, config: &Value) -> Result<Self> {
        let cores = Cores::divide(&run.server_cores, run.client_core, run.workers.unwrap_or(1).into())?;
        let folder = tempfile::Builder::new().prefix("loadtest-").tempdir().context("a state folder")?;
        if !config.is_null() {
            fs::write(folder.path().join("openclaw.json"), config.to_string())?;
        }
        // Free a moment ago is as good as can be had without the gateway's help.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let token = clawgate::id::token();
        let log = File::create(folder.path().join("output.log"))?;
        let mut command = Command::new(program);
        command.args(["gateway", "--port", &port.to_string(), "--token", &token]);
        if let Some(workers) = run.workers {
            command.args(["--workers", &workers.to_string()]);
        }
        command
            .args(&run.spawn_arg)
            .env("OPENCLAW_HOME", folder.path())
            .env("OPENCLAW_STATE_DIR", folder.path())
            .env("OPENCLAW_CONFIG_PATH", folder.path().join("openclaw.json"))
            .env_remove("OPENCLAW_GATEWAY_TOKEN")
            .env_remove("OPENCLAW_GATEWAY_PASSWORD")
            .env_remove("OPENCLAW_GATEWAY_PORT")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let begun = Instant::now();
        let child = cores.on_server(|| command.spawn())?.with_context(|| format!("starting {}", program.display()))?;
        let process = Process::new(child.id());
        let mut spawned = Spawned { child, folder };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        spawned.wait_for(address, begun)?;
        let ready_after = Some(begun.elapsed());
        let credentials = Credentials { token: Some(token), password: None };
        let gateway = Rc::new(Gateway { address, host: address.to_string(), credentials });
        Ok(Self { gateway, process: Some(process), ready_after, cores, spawned: Some(spawned) })
    }

    /// Where a spawned gateway keeps its state.
    pub fn state_folder(&self) -> Option<&Path> {
        self.spawned.as_ref().map(|spawned| spawned.folder.path())
    }
}

impl Spawned {
    fn wait_for(&mut self, address: SocketAddr, begun: Instant) -> Result<()> {
        loop {
            if let Ok(stream) = TcpStream::connect(address) {
                drop(stream);
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the gateway ended at once ({status}):\n{}", self.last_words());
            }
            ensure!(
                begun.elapsed() < START_TIMEOUT,
                "the gateway did not open its port within {} s:\n{}",
                START_TIMEOUT.as_secs(),
                self.last_words()
            );
            interrupt::check()?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn last_words(&self) -> String {
        let output = fs::read_to_string(self.folder.path().join("output.log")).unwrap_or_default();
        let lines: Vec<_> = output.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while begun.elapsed() < STOP_TIMEOUT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `host:port` of a URL.
fn authority(url: &str) -> Result<&str> {
    let rest = match url.split_once("://") {
        Some(("ws", rest)) => rest,
        Some(("wss", _)) => bail!("{url}: TLS is not spoken here; load the gateway's plain port"),
        Some((scheme, _)) => bail!("{url}: {scheme}:// is no WebSocket"),
        None => url,
    };
    let authority = rest.trim_end_matches('/');
    if authority.contains('/') || authority.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(anyhow!("{url}: expected ws://HOST:PORT"));
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_host_and_a_port() {
        assert_eq!(authority("ws://127.0.0.1:1/").unwrap(), "127.0.0.1:1");
        assert_eq!(authority("localhost:2").unwrap(), "localhost:2");
        for wrong in ["wss://h:1", "http://h:1", "ws://h", "ws://h:1/path"] {
            assert!(authority(wrong).is_err(), "{wrong}");
        }
    }
}
