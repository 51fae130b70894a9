//! The composition root: configuration, bind, announce, run, drain, report. Reads top to bottom.
//!
//! Start at [`run`]. [`admission`] is the door; [`hello`] what a client learns when it is let in.

pub mod admission;
pub mod announce;
mod background;
pub mod hello;
pub mod lock;
pub mod logging;
mod policy;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use crate::agent::{self, Agent};
use crate::approvals::Approvals;
use crate::auth::RateLimits;
use crate::channels::{self, Channels};
use crate::client::run_token;
use crate::clock::{UnixMs, monotonic_s};
use crate::config::load::{FilesAndCommands, Loaded, host_facts};
use crate::config::model::{ConsoleStyle, LogLevel};
use crate::config::resolve::{self, Flags, Start};
use crate::config::secret_ref::SecretReader;
use crate::config::snapshot::{RevisionKey, snapshot};
use crate::config::{Config, Profile};
use crate::devices::{self, Devices};
use crate::http::{self, Readiness};
use crate::hub::Hub;
use crate::hub::outbox::EncodedEvent;
use crate::hub::registry::encode;
use crate::methods::{self, Domains};
use crate::net::stream::Stream;
use crate::net::{accept, bind, descriptors, workers};
use crate::nodes::{self, Nodes};
use crate::outgoing::Outgoing;
use crate::rpc::catalog::Event;
use crate::secret::Secret;
use crate::sessions::{self, Sessions};
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::system::identity::{self, Identity};
use crate::system::{Facts, System};
use crate::ws::close::CloseCode;
use crate::{id, limits, task};

use admission::Admission;
use announce::Announcement;
use lock::StateLock;

/// Pause between a change of the presence list and its broadcast, in which further changes join it.
const PRESENCE_PAUSE: Duration = Duration::from_millis(100);
/// Interval of the beat: one slot of the wheel.
const BEAT: Duration = Duration::from_secs(1);
/// How often what is long done is forgotten.
const TEND: Duration = Duration::from_secs(6 * 3600);

/// What the gateway is started with.
#[derive(Debug)]
pub struct Options {
    /// From the command line.
    pub flags: Flags,
    /// Which profile.
    pub profile: Profile,
    /// The configuration.
    pub loaded: Loaded,
    /// More on standard error.
    pub verbose: bool,
    /// Threads that carry connections; as many as cores when not said.
    pub workers: Option<usize>,
}

/// Why the gateway did not start, or did not stay.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the text of each variant says what it is")]
pub enum StartError {
    #[error(transparent)]
    Refused(#[from] resolve::Refusal),
    #[error(transparent)]
    Locked(#[from] lock::LockError),
    #[error(transparent)]
    Bind(#[from] bind::BindError),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error("cannot make the folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("cannot open the log: {0}")]
    Log(#[from] tracing_appender::rolling::InitError),
    #[error("the operating system refused what the gateway needs to run: {0}")]
    System(#[from] std::io::Error),
}

/// Runs the gateway until it is told to stop. Returns the number of connections that had not left by then.
///
/// # Errors
/// See [`StartError`].
pub fn run(options: Options) -> Result<usize, StartError> {
    let Options { flags, profile, loaded, verbose, workers: count } = options;
    let config_snapshot = snapshot(&loaded, &RevisionKey::new(id::random_bytes()));
    let Loaded { paths, config, environment, notices, .. } = loaded;
    let access = FilesAndCommands { environment: &environment };
    let start = resolve::start(&config, &environment, &flags, &host_facts(), profile.default_port(), &access)?;
    let handshake_timeout = resolve::handshake_timeout(&config, &environment)?;
    make_private(&paths.state_dir)?;
    let log_dir = config
        .logging
        .file
        .as_ref()
        .and_then(|file| file.parent())
        .map_or_else(|| paths.state_dir.join("logs"), Into::into);
    make_private(&log_dir)?;
    let _logging = logging::start(&log_dir, log_style(&config, verbose))?;
    let _lock = StateLock::take(&paths.state_dir)?;
    let descriptors = descriptors::raise();
    let addresses: Vec<_> = start.listen.addresses.iter().map(|ip| SocketAddr::new(*ip, start.listen.port)).collect();
    let listeners = bind::bind_all(&addresses)?;
    let generated = start.needs_token().then(|| Secret::new(id::token()));
    // For the commands of this user on this host; gone when the gateway is.
    let _published =
        generated.as_ref().map(|token| run_token::publish(&paths.state_dir, start.listen.port, token)).transpose()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let schemas = [identity::SCHEMA, devices::SCHEMA, nodes::SCHEMA];
        let store = Store::open(&paths.state_dir.join("clawgate.sqlite"), &schemas)?;
        let hub = Hub::new(config.limits.outbox_bytes, config.limits.total_outbox_bytes);
        let facts = Facts {
            boot_id: id::uuid(),
            host: policy::host_name(),
            platform: policy::platform(),
            config_path: paths.config_file.clone(),
            state_dir: paths.state_dir.clone(),
            log_dir,
            config: encode(&config_snapshot).into(),
            identity: Identity::load_or_make(&store).await?,
        };
        let now = UnixMs::now();
        let devices = Devices::open(store.clone(), hub.clone(), now)?;
        let nodes = Nodes::open(store.clone(), hub.clone(), devices.clone(), policy::nodes(&config), now)?;
        // A file of its own: looking for a word in a year of talk is nothing that a pairing should wait for.
        let schemas = [sessions::SCHEMA, agent::SCHEMA, channels::SCHEMA];
        let talk = Store::open(&paths.state_dir.join("sessions.sqlite"), &schemas)?;
        let background = background::Background::start()?;
        let secrets = SecretReader { providers: &config.secrets, environment: &environment, access: &access };
        let outgoing = Outgoing::new();
        let sessions = Sessions::open(talk.clone(), hub.clone())?;
        let approvals = Approvals::new(hub.clone());
        let agent = Agent::new(
            talk.clone(),
            sessions.clone(),
            nodes.clone(),
            approvals.clone(),
            outgoing.clone(),
            policy::agent(&config, &secrets),
            background.handle(),
        );
        let telegram = policy::telegram(&config, &secrets, &outgoing);
        let channels = Channels::new(talk.clone(), agent.clone(), background.handle(), telegram);
        let system = System::new(facts, hub.clone());
        let domains = Domains { system, devices, nodes, sessions, approvals, agent, channels };
        let router = methods::router(&domains);
        let policy = policy::policy(&config, &start, generated.as_ref());
        let limits = RateLimits::new(policy::rate_limits(&config));
        let shutdown = Shutdown::default();
        let admission = Arc::new(Admission::new(
            policy,
            limits,
            handshake_timeout,
            shutdown.clone(),
            hub.clone(),
            domains.clone(),
            router,
        ));

        let count = count.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
        let site = Arc::clone(&admission);
        let serve: Arc<workers::Serve> =
            Arc::new(move |stream, peer| Box::pin(http::serve(Stream::Plain(stream), peer, Arc::clone(&site))));
        let workers = Arc::new(workers::Workers::start(count, &serve)?);
        admission.set_readiness(Readiness::Ready);
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let (workers, shutdown) = (Arc::clone(&workers), shutdown.clone());
            task::spawn("accept", async move {
                accept::accept_loop(listener, shutdown, |stream, peer| {
                    place(&workers, stream, peer, descriptors.connections);
                })
                .await;
            });
        }
        task::spawn("beat", beat(hub.clone()));
        task::spawn("presence", broadcast_presence(hub.clone()));
        task::spawn("devices", domains.devices.clone().run());
        task::spawn("nodes", domains.nodes.clone().run());
        domains.agent.resume()?;
        domains.channels.start().await?;
        task::spawn("tend", tend(domains.clone()));
        for notice in &notices {
            tracing::warn!("{}:{notice}", paths.config_file.display());
        }
        let mut signals = StopSignals::listen()?;
        Announcement { start: &start, generated: generated.as_ref(), paths: &paths, descriptors }.print();

        let signal = signals.next().await;
        shutdown.begin();
        admission.set_readiness(Readiness::Draining);
        let left = drain(&hub, &workers, signal, &mut signals).await;
        // What a run still does is taken up again by the next start: its state is on disk.
        background.stop();
        talk.close().await;
        store.close().await;
        Ok(left)
    })
}

/// Hands a socket to a worker, or tells it that there is no room.
fn place(workers: &workers::Workers, stream: tokio::net::TcpStream, peer: SocketAddr, most: usize) {
    // A frame that is ready goes out now: what is worth joining has been joined before the write.
    let _ = stream.set_nodelay(true);
    if workers.load() >= most {
        tracing::warn!(%peer, most, "a connection was turned away: the open-file limit is reached");
        let _ = stream.try_write(&http::reject::FULL.to_bytes());
        return;
    }
    if !workers.place(stream, peer) {
        tracing::warn!(%peer, "a connection was dropped: no worker takes it");
    }
}

/// Gives every connection its ping and its tick, one slot a second.
async fn beat(hub: Hub) {
    let mut interval = tokio::time::interval(BEAT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for slot in 0.. {
        interval.tick().await;
        let tick = Arc::new(EncodedEvent::new(Event::TICK, &encode(&json!({"ts": UnixMs::now()})), None));
        hub.beat(slot, &tick, monotonic_s());
    }
}

/// Forgets what is long done, once a while.
async fn tend(domains: Domains) {
    let mut interval = tokio::time::interval(TEND);
    loop {
        interval.tick().await;
        let now = UnixMs::now();
        let (sessions, agent, channels) =
            (domains.sessions.tend(now).await, domains.agent.tend(now).await, domains.channels.tend(now).await);
        if let Err(error) = sessions.and(agent).and(channels) {
            tracing::warn!(%error, "what is long done was not deleted");
        }
    }
}

/// Sends the presence list after it has changed, once for a burst of changes.
async fn broadcast_presence(hub: Hub) {
    let changed = hub.presence().changed();
    loop {
        changed.notified().await;
        tokio::time::sleep(PRESENCE_PAUSE).await;
        let mut payload = br#"{"presence":"#.to_vec();
        payload.extend_from_slice(&hub.presence().json());
        payload.push(b'}');
        let version = encode(&hub.state_version());
        hub.broadcast_encoded(&Arc::new(EncodedEvent::new(Event::PRESENCE, &payload, Some(&version))));
    }
}

/// The signals to stop, from the moment it is made.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next one. Cancel safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Ends all connections in order: the event, the close frame, then a deadline. A second signal ends the wait.
async fn drain(hub: &Hub, workers: &workers::Workers, signal: &'static str, signals: &mut StopSignals) -> usize {
    let connections = hub.connections();
    tracing::info!(signal, connections = connections.len(), "stopping");
    hub.broadcast(Event::SHUTDOWN, &json!({"reason": "gateway stopping", "restartExpectedMs": null}));
    hub.close_where(CloseCode::SERVICE_RESTART, "service restart", |_| true);
    let deadline = tokio::time::Instant::now() + limits::DRAIN_DEADLINE;
    let gone = async {
        while workers.load() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = gone => {}
        () = tokio::time::sleep_until(deadline) => {}
        _ = signals.next() => {}
    }
    let all = connections.len();
    // A connection is its driver's as long as its socket lives; besides that only this list holds it.
    let left: Vec<_> = connections.into_iter().filter(|connection| Arc::strong_count(connection) > 1).collect();
    for connection in &left {
        tracing::warn!(conn = %connection.id, client = &*connection.client.id, "did not leave in time");
    }
    tracing::info!(ended = all - left.len(), left = left.len(), "stopped");
    left.len()
}

fn make_private(path: &std::path::Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StartError::Folder { path: path.to_owned(), source })
}

fn log_style(config: &Config, verbose: bool) -> logging::Style {
    let level = |level: LogLevel| match level {
        LogLevel::Silent => LevelFilter::OFF,
        LogLevel::Fatal | LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let file = level(config.logging.level);
    let console = config.logging.console_level.map_or(file, level);
    logging::Style {
        console: if verbose { console.max(LevelFilter::DEBUG) } else { console },
        file,
        json: config.logging.console_style == ConsoleStyle::Json,
    }
}

/// The addresses of `start`, the one to show first.
fn shown_address(start: &Start) -> SocketAddr {
    let ip = start.listen.addresses.first().copied().unwrap_or(IpAddr::from([127, 0, 0, 1]));
    SocketAddr::new(ip, start.listen.port)
}
