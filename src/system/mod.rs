//! The gateway as seen through its own wire: health, status, presence, its identity, its log.
//!
//! What other domains add to these (channels, sessions, agents) is answered truthfully as absent until they
//! exist. Start at [`System`]; the shapes are in [`report`].

pub mod identity;
pub mod journal;
mod machine;
pub mod methods;
pub mod refusals;
pub mod report;
pub mod stability;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::clock::UnixMs;
use crate::hub::Hub;
use crate::hub::presence::Row;
use crate::store::{Fault, Store};
use identity::Identity;
use refusals::Refusals;
use stability::Recorder;

/// What the gateway knows of its own start, for its reports.
#[derive(Debug)]
pub struct Facts {
    /// Name of this run; new at every start.
    pub boot_id: String,
    /// Name of the machine.
    pub host: String,
    /// Operating system and its release.
    pub platform: String,
    /// Where the configuration lies.
    pub config_path: PathBuf,
    /// Where the state lies.
    pub state_dir: PathBuf,
    /// Folder of the log files.
    pub log_dir: PathBuf,
    /// What `config.get` answers at first: the configuration without its secrets, as JSON.
    pub config: Bytes,
    /// The gateway's own key.
    pub identity: Identity,
}

/// Handle of the domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct System(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    facts: Facts,
    hub: Hub,
    health_tail: Vec<Vec<u8>>,
    started: Instant,
    heartbeats: AtomicBool,
    refusals: Refusals,
    stability: Recorder,
    config: ArcSwap<Bytes>,
    stores: OnceLock<[Store; 2]>,
    sessions: OnceLock<Count>,
}

/// How many there are of something.
struct Count(Box<dyn Fn() -> usize + Send + Sync>);

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0)())
    }
}

impl System {
    /// The machine it runs on.
    fn machine(&self) -> Option<machine::Machine> {
        machine::look(&self.0.facts.state_dir, self.0.started.elapsed())
    }

    /// The domain of a gateway that has just started.
    pub fn new(facts: Facts, hub: Hub) -> Self {
        hub.presence().set_self(own_row(&facts));
        let health_tail = report::health_tail(&facts.state_dir);
        let heartbeats = AtomicBool::new(true);
        let config = ArcSwap::from_pointee(facts.config.clone());
        Self(Arc::new(Inner {
            config,
            stores: OnceLock::new(),
            sessions: OnceLock::new(),
            facts,
            hub,
            health_tail,
            started: Instant::now(),
            heartbeats,
            refusals: Refusals::default(),
            stability: Recorder::default(),
        }))
    }

    /// Whose faults make the gateway unfit: without a word of these, none is known.
    pub fn watch_stores(&self, stores: [Store; 2]) {
        // The first word counts; there is one start.
        let _ = self.0.stores.set(stores);
    }

    /// Who knows how many sessions there are: without a word of these, there is none.
    pub fn count_sessions(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        // The first word counts; there is one start.
        let _ = self.0.sessions.set(Count(Box::new(count)));
    }

    fn sessions(&self) -> usize {
        self.0.sessions.get().map_or(0, |count| (count.0)())
    }

    /// What keeps state from the disk, if anything does.
    pub fn fault(&self) -> Option<Fault> {
        self.0.stores.get()?.iter().find_map(Store::fault)
    }

    /// What it was started with.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Milliseconds since the start.
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What `config.get` answers.
    pub fn config(&self) -> Bytes {
        Bytes::clone(&self.0.config.load())
    }

    /// The file has changed: `config.get` answers this from now on.
    pub fn set_config(&self, config: Bytes) {
        self.0.config.store(Arc::new(config));
    }

    /// Who was not let in, by reason.
    pub fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// What was too large lately.
    pub fn stability(&self) -> &Recorder {
        &self.0.stability
    }

    fn health_tail(&self) -> &[Vec<u8>] {
        &self.0.health_tail
    }

    fn hub(&self) -> &Hub {
        &self.0.hub
    }

    fn heartbeats(&self) -> bool {
        self.0.heartbeats.load(Ordering::Relaxed)
    }

    fn set_heartbeats(&self, enabled: bool) {
        self.0.heartbeats.store(enabled, Ordering::Relaxed);
    }
}

fn own_row(facts: &Facts) -> Row {
    let version = env!("CARGO_PKG_VERSION");
    Row {
        host: Some(facts.host.clone().into()),
        version: Some(version.into()),
        platform: Some(facts.platform.clone().into()),
        mode: Some("gateway".into()),
        reason: Some("self".into()),
        instance_id: Some(facts.boot_id.clone().into()),
        text: Some(format!("Gateway: {} · clawgate {version} · mode gateway · reason self", facts.host)),
        ts: UnixMs::now(),
        ..Row::default()
    }
}
