//! The composition root: configuration, bind, announce, run, drain, report. Reads top to bottom.
//!
//! Start at [`run`]. [`admission`] is the door; [`hello`] what a client learns when it is let in.

pub mod admission;
pub mod announce;
mod background;
mod calls;
pub mod doctor;
pub mod hello;
pub mod in_force;
mod join;
mod large;
pub mod lock;
pub mod logging;
mod own_addresses;
mod policy;
mod presented;
pub mod reception;
mod reload;
mod setup_code;
mod start_code;
mod webhook;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use crate::agent::profiles::{self, Profiles};
use crate::agent::{self, Agent};
use crate::api::Api;
use crate::approvals::{self, Approvals};
use crate::auth::RateLimits;
use crate::auth::ingress::Listener;
use crate::channels::{self, Channels};
use crate::client::run_token;
use crate::clock::{UnixMs, monotonic_s};
use crate::config::load::{FilesAndCommands, Loaded, host_facts};
use crate::config::model::{ConsoleStyle, LogLevel, TailscaleMode};
use crate::config::resolve::{self, Flags, Start};
use crate::config::secret_ref::SecretReader;
use crate::config::snapshot::{RevisionKey, snapshot};
use crate::config::{Config, Paths, Profile};
use crate::devices::{self, Devices};
use crate::http::{self, Readiness};
use crate::hub::Hub;
use crate::hub::outbox::EncodedEvent;
use crate::hub::registry::encode;
use crate::methods::{self, Domains};
use crate::net::preauth::{Bounds, Preauth};
use crate::net::tls::Tls;
use crate::net::{accept, bind, descriptors, tls, workers};
use crate::nodes::{self, Nodes};
use crate::outgoing::Outgoing;
use crate::rpc::catalog::Event;
use crate::secret::Secret;
use crate::sessions::{self, Sessions};
use crate::shutdown::Shutdown;
use crate::sparing::{LeftOut, Sparing};
use crate::store::Store;
use crate::system::identity::{self, Identity};
use crate::system::{Facts, System};
use crate::tailscale::route::Reach;
use crate::tailscale::{LocalApi, Route};
use crate::ws::close::CloseCode;
use crate::{disk, id, limits, task};

use admission::Admission;
use announce::Announcement;
use join::Joins;
use lock::StateLock;
pub(crate) use policy::tls_files;
use reception::Reception;
use reload::{Reload, Seen};
use setup_code::SetupCodes;

/// Pause between a change of the presence list and its broadcast, in which further changes join it.
const PRESENCE_PAUSE: Duration = Duration::from_millis(100);
/// Interval of the beat: one slot of the wheel.
const BEAT: Duration = Duration::from_secs(1);
/// Pause between two looks whether a disk that took nothing takes writes again.
const LOOK_AT_DISK: Duration = Duration::from_secs(2);
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
    #[error("cannot make the folder {}: {source}; {}", path.display(), disk::advice(source))]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error(
        "gateway.tailscale.mode is {mode:?}, and there is no program {command}: install Tailscale, set plugins.entries.clawgate.config.tailscale.command to its path, or set gateway.tailscale.mode to \"off\"",
        mode = mode.as_str(), command = command.display()
    )]
    NoTailscale { mode: TailscaleMode, command: PathBuf },
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
    // Where they are on for everything, they make a small process several times as large. Failing, it is only larger.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let Options { flags, profile, loaded, verbose, workers: count } = options;
    let revision = RevisionKey::new(id::random_bytes());
    let config_snapshot = snapshot(&loaded, &revision);
    let Loaded { paths, source, config, environment, notices, .. } = loaded;
    let access = FilesAndCommands { environment: &environment };
    let start = resolve::start(&config, &environment, &flags, &host_facts(), profile.default_port(), &access)?;
    let handshake_timeout = resolve::handshake_timeout(&config, &environment)?;
    let preauth = Bounds {
        total: config.limits.preauth_sockets,
        shared: config.limits.preauth_sockets / 2,
        client: resolve::preauth_sockets(&environment)?,
        ..Bounds::default()
    };
    make_private(&paths.state_dir)?;
    // Before the log: of a folder that cannot be used, this says why.
    let lock = Arc::new(StateLock::take(&paths.state_dir)?);
    let log_dir = config
        .logging
        .file
        .as_ref()
        .and_then(|file| file.parent())
        .map_or_else(|| paths.state_dir.join("logs"), Into::into);
    make_private(&log_dir)?;
    let _logging = logging::start(&log_dir, log_style(&config, verbose))?;
    let descriptors = descriptors::raise();
    let addresses: Vec<_> = start.listen.addresses.iter().map(|ip| SocketAddr::new(*ip, start.listen.port)).collect();
    let listeners = bind::bind_all(&addresses)?;
    let tls = open_tls(&config, &paths, &start)?;
    let tailscale = flags.tailscale.unwrap_or(config.gateway.tailscale);
    let managed = Managed::prepare(tailscale, &config, environment.get("PATH"))?;
    let generated = start.needs_token().then(|| Secret::new(id::token()));
    // For the commands of this user on this host; gone when the gateway is.
    let _published =
        generated.as_ref().map(|token| run_token::publish(&paths.state_dir, start.listen.port, token)).transpose()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let schemas = [identity::SCHEMA, devices::SCHEMA, nodes::SCHEMA, profiles::SCHEMA];
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
        devices.set_token_life(policy::token_life(&config), UnixMs::now());
        // A gateway that was stopped to be given another secret must not honour what was made by the one before.
        devices.end_codes_by_settings().await;
        let nodes = Nodes::open(store.clone(), hub.clone(), devices.clone(), policy::nodes(&config), now)?;
        // A file of its own: looking for a word in a year of talk is nothing that a pairing should wait for.
        let schemas = [sessions::SCHEMA, agent::SCHEMA, channels::SCHEMA, approvals::grants::SCHEMA];
        let talk = Store::open(&paths.state_dir.join("sessions.sqlite"), &schemas)?;
        let background = background::Background::start()?;
        policy::warn_of_what_leaves_in_clear(&config);
        let secrets = SecretReader { providers: &config.secrets, environment: &environment, access: &access };
        let outgoing = Outgoing::new();
        let sessions = Sessions::open(talk.clone(), hub.clone())?;
        let approvals = Approvals::new(talk.clone(), hub.clone());
        let profiles = Profiles::open(store.clone(), policy::routing(&config), background.handle())?;
        let agent = Agent::new(
            talk.clone(),
            sessions.clone(),
            nodes.clone(),
            approvals.clone(),
            outgoing.clone(),
            profiles,
            policy::agent(&config, &secrets).0,
            background.handle(),
        );
        let telegram = policy::telegram(&config, &secrets, &outgoing);
        let channels = Channels::new(talk.clone(), agent.clone(), background.handle(), telegram);
        let system = System::new(facts, hub.clone());
        system.watch_stores([store.clone(), talk.clone()]);
        let counted = sessions.clone();
        system.count_sessions(move || counted.len());
        let domains = Domains { system, devices, nodes, sessions, approvals, agent, channels };
        let mut router = methods::router(&domains);
        let doctor = doctor::Doctor::default();
        router.mount(&doctor, doctor::METHODS);
        let daemon = Arc::new(LocalApi::new(config.tailscale.socket.clone()));
        let joins = Joins::new(domains.devices.clone());
        let setup_codes = SetupCodes::new(setup_code::Place {
            devices: domains.devices.clone(),
            joins: joins.clone(),
            listen: start.listen.clone(),
            tls: tls.clone(),
            tailscale,
            daemon: Arc::clone(&daemon),
            settings: ArcSwap::from_pointee((config.clone(), start.auth.mode)),
        });
        router.mount(&setup_codes, setup_code::METHODS);
        let (asking, asked) = reload::Asking::channel();
        router.mount(&asking, reload::METHODS);
        let policy = policy::policy(&config, &start.auth, generated.as_ref());
        let limits = RateLimits::new(policy::rate_limits(&config));
        let shutdown = Shutdown::default();
        let admission = Admission::new(
            policy,
            limits,
            daemon,
            Preauth::new(preauth),
            handshake_timeout,
            shutdown.clone(),
            hub.clone(),
            domains.clone(),
            router,
        );
        let api = Api::new(domains.agent.clone(), domains.sessions.clone(), policy::api(&config));
        let calls = api.clone();
        let admission =
            Arc::new(admission.examining_for(doctor).joined_by(joins).serving(api, policy::interface(&config)));
        admission.set_transport_security(config.gateway.strict_transport_security.as_deref());

        let count = count.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
        let reception = Reception {
            admission: Arc::clone(&admission),
            tls: tls.clone(),
            tailscale: managed.as_ref().map(Managed::listener),
            said: Sparing::a_minute(1),
        };
        let serve: Arc<workers::Serve> = Arc::new(move |stream, peer| reception.receive(stream, peer));
        let workers = Arc::new(workers::Workers::start(count, &serve)?);
        admission.set_readiness(Readiness::Ready);
        let (route, managed) = managed.map(|managed| (managed.route, managed.socket)).unzip();
        for listener in listeners.into_iter().chain(managed) {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let (workers, shutdown, admission) = (Arc::clone(&workers), shutdown.clone(), Arc::clone(&admission));
            task::spawn("accept", async move {
                accept::accept_loop(listener, shutdown, |stream, peer| {
                    place(&workers, &admission, stream, peer, descriptors.connections);
                })
                .await;
            });
        }
        let held = route.map(|route| task::spawn("tailscale", route.hold(shutdown.clone())));
        task::spawn("beat", beat(hub.clone()));
        task::spawn("presence", broadcast_presence(hub.clone()));
        task::spawn("devices", domains.devices.clone().run());
        task::spawn("nodes", domains.nodes.clone().run());
        domains.agent.resume()?;
        calls.sweep();
        domains.channels.start().await?;
        task::spawn_on(&background.handle(), "webhook", webhook::serve(domains.channels.clone(), shutdown.clone()));
        task::spawn("tend", tend(domains.clone()));
        task::spawn("disk", look_at_disk([store.clone(), talk.clone()]));
        for notice in &notices {
            tracing::warn!("{}:{notice}", paths.config_file.display());
        }
        let mode = config.gateway.reload;
        lock.note(source.text.as_deref(), true);
        let reload = Reload {
            paths: paths.clone(),
            lock: Arc::clone(&lock),
            flags,
            listen: start.listen.clone(),
            tailscale,
            generated: generated.clone(),
            revision,
            admission: Arc::clone(&admission),
            system: domains.system.clone(),
            agent: domains.agent.clone(),
            channels: domains.channels.clone(),
            outgoing,
            nodes: domains.nodes.clone(),
            devices: domains.devices.clone(),
            setup_codes,
            tls: tls.clone(),
            running: config,
            seen: Seen { source, environment: environment.clone(), mode, unresolved: 0, fault: None, tls_fault: None },
        };
        task::spawn("reload", reload.run(signal(SignalKind::hangup())?, asked, shutdown.clone()));
        let mut signals = StopSignals::listen()?;
        let fingerprints = tls.as_ref().map(|tls| tls.fingerprints());
        Announcement { start: &start, generated: generated.as_ref(), paths: &paths, descriptors, fingerprints }.print();
        task::spawn("start code", async {
            // What the start has set off has run by then.
            tokio::time::sleep(SETTLE).await;
            start_code::release();
        });

        let signal = signals.next().await;
        shutdown.begin();
        admission.set_readiness(Readiness::Draining);
        let left = drain(&hub, &workers, signal, &mut signals).await;
        if let Some(held) = held {
            // It ends by the shutdown; what is waited for is that Tailscale has taken the route away.
            let _ = held.await;
        }
        // What a run still does is taken up again by the next start: its state is on disk.
        background.stop();
        talk.close().await;
        store.close().await;
        Ok(left)
    })
}

/// The certificate of the ordinary port, made now when it is wanted and missing.
fn open_tls(config: &Config, paths: &Paths, start: &Start) -> Result<Option<Arc<Tls>>, StartError> {
    let settings = &config.gateway.tls;
    if !settings.enabled {
        return Ok(None);
    }
    if settings.ca_path.is_some() {
        tracing::warn!(
            "gateway.tls.caPath has no effect: gateway.tls.certPath holds the whole chain, and clients prove themselves by gateway.auth"
        );
    }
    let (tls, was_made) = Tls::open(policy::tls_files(settings, paths), &policy::tls_names(start))?;
    if was_made {
        tracing::warn!(cert = %tls.files().cert.display(), "a self-signed certificate was made; clients must pin its fingerprint");
    }
    Ok(Some(Arc::new(tls)))
}

/// The way through Tailscale that the gateway keeps itself: a port of loopback that nobody else is told, and the route
/// to it.
struct Managed {
    socket: std::net::TcpListener,
    route: Route,
}

impl Managed {
    fn prepare(mode: TailscaleMode, config: &Config, path: Option<&str>) -> Result<Option<Self>, StartError> {
        let reach = match mode {
            TailscaleMode::Off => return Ok(None),
            TailscaleMode::Serve => Reach::Serve,
            TailscaleMode::Funnel => Reach::Funnel,
        };
        let command = &config.tailscale.command;
        let command =
            Route::find(command, path).map_err(|_| StartError::NoTailscale { mode, command: command.clone() })?;
        let address = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let socket = bind::bind_all(&[address])?.remove(0);
        let port = socket.local_addr()?.port();
        Ok(Some(Self { socket, route: Route { command, reach, port } }))
    }

    /// Its port, and what comes there.
    fn listener(&self) -> (u16, Listener) {
        let listener = match self.route.reach {
            Reach::Serve => Listener::TailscaleServe,
            Reach::Funnel => Listener::TailscaleFunnel,
        };
        (self.route.port, listener)
    }
}

/// Hands a socket to a worker, or tells it that there is no room.
fn place(
    workers: &workers::Workers,
    admission: &Admission,
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
    most: usize,
) {
    // A frame that is ready goes out now: what is worth joining has been joined before the write.
    let _ = stream.set_nodelay(true);
    if workers.load() >= most {
        static SAID: Sparing = Sparing::a_minute(1);
        if let Some(LeftOut(left_out)) = SAID.say(monotonic_s()) {
            tracing::warn!(%peer, most, left_out, "connections are turned away: the open-file limit is reached");
        }
        let _ = stream.try_write(&http::reject::FULL.to_bytes(admission.transport_security()));
        return;
    }
    if !workers.place(stream, peer) {
        tracing::warn!(%peer, "a connection was dropped: no worker takes it");
    }
}

/// Time from the start until what only the start has needed is let go of.
const SETTLE: Duration = Duration::from_secs(1);

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

/// Finds out when a disk that took nothing takes writes again.
async fn look_at_disk(stores: [Store; 2]) {
    loop {
        tokio::time::sleep(LOOK_AT_DISK).await;
        stores.iter().for_each(Store::look_again);
    }
}

/// Forgets what is long done, once a while.
async fn tend(domains: Domains) {
    let mut interval = tokio::time::interval(TEND);
    loop {
        interval.tick().await;
        let now = UnixMs::now();
        let (sessions, agent, channels, approvals) = (
            domains.sessions.tend(now).await,
            domains.agent.tend(now).await,
            domains.channels.tend(now).await,
            domains.approvals.tend(now).await,
        );
        if let Err(error) = sessions.and(agent).and(channels).and(approvals) {
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
