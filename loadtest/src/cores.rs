//! Which core the server runs on, and which one this program.
//!
//! A measurement means something when server and load do not take turns on one core. Children inherit the
//! affinity of the thread that starts them, so a server is started while this (single-threaded) program stands
//! on the server's cores; no code has to run in the child.

use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The division of the machine.
#[derive(Clone, Debug)]
pub struct Cores {
    /// Where servers that this program starts run.
    pub server: Vec<usize>,
    /// Where this program runs.
    pub client: Vec<usize>,
}

impl Cores {
    /// The division that is wanted: the first `server_count` cores for the server and the last one for this
    /// program, unless said otherwise.
    ///
    /// # Errors
    /// A core was named that this program may not use.
    pub fn divide(server: &[usize], client: Option<usize>, server_count: usize) -> Result<Self> {
        let allowed = Self::of(None)?;
        for core in server.iter().chain(&client) {
            ensure!(allowed.contains(core), "core {core} is not among those this program may use: {allowed:?}");
        }
        let client = match (client, &allowed[..]) {
            (Some(core), _) => vec![core],
            (None, [.., last]) if allowed.len() > 1 => vec![*last],
            _ => allowed.clone(),
        };
        let server = match server {
            [] => allowed.iter().copied().take(server_count.max(1)).collect(),
            named => named.to_vec(),
        };
        Ok(Self { server, client })
    }

    /// The division that a server made by itself: servers of this program go where that process is.
    pub fn beside(pid: Pid, client: Option<usize>) -> Result<Self> {
        let (server, allowed) = (Self::of(Some(pid))?, Self::of(None)?);
        let alone = allowed.iter().rev().find(|core| !server.contains(core)).copied();
        let client = client.or(alone).map_or(allowed, |core| vec![core]);
        Ok(Self { server, client })
    }

    /// Whether server and load have a core each.
    pub fn are_apart(&self) -> bool {
        !self.server.iter().any(|core| self.client.contains(core))
    }

    /// Puts this program where it belongs.
    pub fn settle(&self) -> Result<()> {
        sched_setaffinity(None, &set(&self.client)).context("choosing the core of the load")
    }

    /// Does `start` on the server's cores.
    pub fn on_server<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        sched_setaffinity(None, &set(&self.server)).context("choosing the core of the server")?;
        let started = start();
        self.settle()?;
        Ok(started)
    }

    fn of(pid: Option<Pid>) -> Result<Vec<usize>> {
        // Of this program: those it began with. It has moved by the time it divides them again.
        static OWN: OnceLock<Vec<usize>> = OnceLock::new();
        if let (None, Some(own)) = (pid, OWN.get()) {
            return Ok(own.clone());
        }
        let allowed = sched_getaffinity(pid).context("asking which cores a process may use")?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
        if pid.is_none() {
            // Nobody else sets it: this program has one thread.
            let _ = OWN.set(cores.clone());
        }
        Ok(cores)
    }
}

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    set
}
