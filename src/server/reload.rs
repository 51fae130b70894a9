//! Settings that change while the gateway runs: the edited file, read and judged whole, in force at once or not at all.
//!
//! What decides who gets in is applied (`gateway.auth`, `gateway.trustedProxies`, `gateway.controlUi.allowedOrigins`,
//! and what else is in [`crate::auth::Policy`]), and so are what nodes may do (`gateway.nodes`), the headers of answers
//! (`gateway.http.securityHeaders`), the agent's models and limits (`models`, `agents`), the channels (`channels`,
//! `session.dmScope`) and a renewed certificate; of the rest the log says that it waits for a restart. A file that is
//! broken, or with which the gateway would not have started, changes nothing.
//!
//! SIGHUP and `secrets.reload` do the same without waiting for an edit, and also read SecretRefs again: what they lead to is
//! not watched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::admission::Admission;
use super::lock::StateLock;
use super::policy;
use super::setup_code::SetupCodes;
use crate::agent::{self, Agent};
use crate::channels::{Channels, telegram};
use crate::clock::UnixMs;
use crate::config::load::watch::Watch;
use crate::config::load::{self, FilesAndCommands, LoadError, Loaded, Source};
use crate::config::model::{AuthMode, ReloadMode, TailscaleMode};
use crate::config::resolve::{self, Flags, ListenPlan, ServerAuth};
use crate::config::restart::waiting_for_restart;
use crate::config::secret_ref::SecretReader;
use crate::config::snapshot::{RevisionKey, invalid_snapshot, snapshot};
use crate::config::{Config, Environment, Paths};
use crate::devices::Devices;
use crate::hub::registry::encode;
use crate::net::tls::Tls;
use crate::nodes::Nodes;
use crate::outgoing::Outgoing;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::RpcError;
use crate::secret::Secret;
use crate::shutdown::Shutdown;
use crate::system::System;

/// How long a file must be left alone before it is read: editors write in steps.
const SETTLED: Duration = Duration::from_millis(200);
/// How often a file that never is left alone is waited for.
const MOST_WAITS: usize = 10;
/// How often the files are looked at unasked, for file systems that report nothing.
const LOOK: Duration = Duration::from_secs(30);

/// `secrets.reload`: the configuration is read again, with everything that its SecretRefs lead to.
pub(super) const METHODS: &[Method<Asking>] = &[Method { name: "secrets.reload", handler: ask }];

/// Who asks for it, and is told how many secrets could not be had, or why nothing was changed.
pub(super) type Asked = oneshot::Sender<Result<usize, String>>;

/// Handle to the asking. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Asking(mpsc::Sender<Asked>);

impl Asking {
    /// The handle, and where what is asked arrives. One waits at a time: the next reading serves whoever comes meanwhile.
    pub(super) fn channel() -> (Self, mpsc::Receiver<Asked>) {
        let (asking, asked) = mpsc::channel(1);
        (Self(asking), asked)
    }
}

fn ask(asking: &Asking, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    let (answer, told) = oneshot::channel();
    let busy = |_| RpcError::unavailable("the configuration is being read; try again in a moment").retryable(true);
    asking.0.try_send(answer).map_err(busy)?;
    call.spawn(async move {
        match told.await {
            Ok(Ok(unresolved)) => Ok(json!({"ok": true, "warningCount": unresolved})),
            Ok(Err(fault)) => Err(RpcError::unavailable(format!("nothing was changed: {fault}"))),
            Err(_) => Err(RpcError::unavailable("the gateway is stopping")),
        }
    })
}

/// What is reloaded, and what of the start does not change.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) paths: Paths,
    /// Where word is left of what was read.
    pub(super) lock: Arc<StateLock>,
    pub(super) flags: Flags,
    pub(super) listen: ListenPlan,
    pub(super) tailscale: TailscaleMode,
    /// The token that was made for this run.
    pub(super) generated: Option<Secret>,
    pub(super) revision: RevisionKey,
    pub(super) admission: Arc<Admission>,
    pub(super) system: System,
    pub(super) agent: Agent,
    pub(super) channels: Channels,
    pub(super) outgoing: Outgoing,
    pub(super) nodes: Nodes,
    pub(super) devices: Devices,
    pub(super) setup_codes: SetupCodes,
    pub(super) tls: Option<Arc<Tls>>,
    /// The configuration of the start.
    pub(super) running: Config,
    pub(super) seen: Seen,
}

/// What was read last.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) source: Source,
    pub(super) environment: Environment,
    pub(super) mode: ReloadMode,
    /// How many secrets of models and channels could not be had.
    pub(super) unresolved: usize,
    /// What was wrong with it.
    pub(super) fault: Option<String>,
    /// What was wrong with the certificate.
    pub(super) tls_fault: Option<String>,
}

/// What an edited file says, with what its SecretRefs lead to.
struct Edited {
    loaded: Loaded,
    auth: ServerAuth,
    flow: Flow,
}

/// What the agent and the channels are to have.
struct Flow {
    agent: agent::Settings,
    telegram: Option<Result<telegram::Account, String>>,
    /// How many of their secrets can't be had.
    unresolved: usize,
}

/// Why an edited configuration is not followed.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Broken(#[from] LoadError),
    #[error("{path}: {refusal}", path = path.display())]
    Refused { path: PathBuf, refusal: resolve::Refusal },
    #[error("{path}: gateway.auth.token is gone, and only a start makes a token: set one, or restart the gateway", path = path.display())]
    NoToken { path: PathBuf },
    #[error("the reading of the configuration failed; this is a defect")]
    Panicked,
}

impl Reload {
    /// Applies what changes until the gateway stops.
    pub(super) async fn run(mut self, mut hangup: Signal, mut asked: mpsc::Receiver<Asked>, shutdown: Shutdown) {
        let watch = self.watch();
        // What was written between the reading of the start and the watch has no event.
        if self.is_other().await {
            self.apply(false).await;
        }
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        loop {
            let (told, asker) = tokio::select! {
                () = changed(watch.as_ref()) => (false, None),
                _ = look.tick() => (false, None),
                _ = hangup.recv() => (true, None),
                // Never none: the other end is in the router, and this task holds that.
                asker = asked.recv() => (true, asker),
                () = shutdown.begun() => return,
            };
            if told {
                let by = if asker.is_some() { "secrets.reload" } else { "SIGHUP" };
                tracing::info!("{by}: reading the configuration again");
            }
            // Switched off, it still must be seen that it is switched on again.
            self.apply(told).await;
            if let Some(asker) = asker {
                // Who asked may have gone.
                let _ = asker.send(self.seen.fault.clone().map_or(Ok(self.seen.unresolved), Err));
            }
        }
    }

    /// Whether the files are not those that were read last.
    async fn is_other(&self) -> bool {
        let (paths, source, environment) =
            (self.paths.clone(), self.seen.source.clone(), self.seen.environment.clone());
        let same = tokio::task::spawn_blocking(move || {
            load::load(paths, load::process_environment())
                .is_ok_and(|loaded| loaded.source == source && loaded.environment == environment)
        });
        !same.await.unwrap_or_default()
    }

    fn watch(&self) -> Option<Watch> {
        let mut files = vec![self.paths.config_file.clone(), self.paths.state_dir.join(".env")];
        if let Some(tls) = &self.tls {
            files.extend([tls.files().cert.clone(), tls.files().key.clone()]);
        }
        match Watch::over(&files) {
            Ok((watch, unwatched)) => {
                for (folder, error) in unwatched {
                    tracing::warn!(folder = %folder.display(), %error, "changes here are noticed late: it cannot be watched");
                }
                Some(watch)
            }
            Err(error) => {
                tracing::warn!(%error, "changes of the configuration are noticed late: files cannot be watched");
                None
            }
        }
    }

    /// Reads the files and applies what is new in them. `told`: by a signal, so what is not new is said, too.
    async fn apply(&mut self, told: bool) {
        match self.read(told).await {
            Ok(None) => {}
            Ok(Some(edited))
                if !told
                    && self.seen.mode == ReloadMode::Off
                    && edited.loaded.config.gateway.reload == ReloadMode::Off => {}
            Ok(Some(edited)) => self.follow(edited).await,
            Err(_) if !told && self.seen.mode == ReloadMode::Off => return,
            Err(error) => self.complain(&error, told),
        }
        if told || self.seen.mode != ReloadMode::Off {
            self.renew_certificate().await;
        }
    }

    /// Off the thread that accepts: a SecretRef may run a command for seconds.
    async fn read(&self, told: bool) -> Result<Option<Edited>, Unusable> {
        let (paths, flags, listen, tailscale) =
            (self.paths.clone(), self.flags.clone(), self.listen.clone(), self.tailscale);
        let has_token = self.generated.is_some();
        let outgoing = self.outgoing.clone();
        let known = self.seen.fault.is_none().then(|| (self.seen.source.clone(), self.seen.environment.clone()));
        let read = tokio::task::spawn_blocking(move || {
            let loaded = load::load(paths, load::process_environment())?;
            let access = FilesAndCommands { environment: &loaded.environment };
            let path = loaded.source.path.clone();
            match resolve::reload(&loaded.config, &loaded.environment, &flags, &listen, tailscale, &access) {
                Err(refusal) => Err(Unusable::Refused { path, refusal }),
                Ok(auth) if auth.mode == AuthMode::Token && auth.token.is_none() && !has_token => {
                    Err(Unusable::NoToken { path })
                }
                // What is not new leads to no command that reads a secret, and to no line in the log.
                Ok(_) if !told && known == Some((loaded.source.clone(), loaded.environment.clone())) => Ok(None),
                Ok(auth) => {
                    let (config, environment) = (&loaded.config, &loaded.environment);
                    let secrets = SecretReader { providers: &config.secrets, environment, access: &access };
                    let (agent, keys) = policy::agent(config, &secrets);
                    let telegram = policy::telegram(config, &secrets, &outgoing);
                    let unresolved = keys + usize::from(matches!(telegram, Some(Err(_))));
                    Ok(Some(Edited { auth, flow: Flow { agent, telegram, unresolved }, loaded }))
                }
            }
        });
        read.await.unwrap_or(Err(Unusable::Panicked))
    }

    async fn follow(&mut self, edited: Edited) {
        let Edited { loaded, auth, flow: Flow { agent, telegram, unresolved } } = edited;
        self.system.set_config(encode(&snapshot(&loaded, &self.revision)).into());
        let path = loaded.source.path.display();
        for notice in &loaded.notices {
            tracing::warn!("{path}:{notice}");
        }
        let gateway = &loaded.config.gateway;
        self.admission.set_transport_security(gateway.strict_transport_security.as_deref());
        // Before the door: who comes in from here on finds what its node may do already judged anew.
        if self.nodes.configure(policy::nodes(&loaded.config)) {
            tracing::info!("configuration applied: what nodes may be asked to do has changed");
        }
        self.setup_codes.set(&loaded.config, auth.mode);
        self.devices.set_token_life(policy::token_life(&loaded.config), UnixMs::now());
        let policy = policy::policy(&loaded.config, &auth, self.generated.as_ref());
        let limits = policy::rate_limits(&loaded.config);
        match self.admission.apply(policy, limits) {
            Some(applied) => {
                tracing::info!(
                    generation = applied.generation,
                    auth = auth.mode.as_str(),
                    closed = applied.closed,
                    "configuration applied: who gets in has changed"
                );
                // Whoever had them made may be among those who have lost their right.
                self.devices.end_codes_by_settings().await;
            }
            None => tracing::info!("configuration read: who gets in is as before"),
        }
        policy::warn_of_what_leaves_in_clear(&loaded.config);
        self.agent.set_settings(agent);
        if self.channels.set_telegram(telegram).await {
            tracing::info!("configuration applied: channels.telegram has changed");
        }
        let waiting = waiting_for_restart(&self.running, &loaded.config);
        if !waiting.is_empty() {
            tracing::warn!(keys = waiting.join(", "), "these settings take effect when the gateway is restarted");
        }
        let Loaded { source, environment, config, .. } = loaded;
        self.lock.note(source.text.as_deref(), true);
        self.seen = Seen {
            source,
            environment,
            mode: config.gateway.reload,
            unresolved,
            fault: None,
            tls_fault: self.seen.tls_fault.take(),
        };
    }

    /// Says once what is wrong.
    fn complain(&mut self, error: &Unusable, told: bool) {
        let fault = error.to_string();
        if let Ok(source) = Source::read(&self.paths.config_file) {
            self.lock.note(source.text.as_deref(), false);
        }
        if self.seen.fault.as_ref() == Some(&fault) && !told {
            return;
        }
        if let Unusable::Broken(error) = error
            && let Ok(source) = Source::read(&self.paths.config_file)
        {
            self.system.set_config(encode(&invalid_snapshot(&source, error, &self.revision)).into());
        }
        for line in fault.lines() {
            tracing::error!("configuration not applied: {line}");
        }
        tracing::error!("the settings in force stay as they were");
        self.seen.fault = Some(fault);
    }

    async fn renew_certificate(&mut self) {
        let Some(tls) = self.tls.clone() else { return };
        let Ok(outcome) = tokio::task::spawn_blocking(move || tls.reload()).await else { return };
        match outcome {
            Ok(None) => self.seen.tls_fault = None,
            Ok(Some(fingerprints)) => {
                self.seen.tls_fault = None;
                tracing::info!(
                    certificate = %fingerprints.certificate,
                    public_key = %fingerprints.public_key,
                    "the certificate was renewed; connections stay"
                );
            }
            Err(error) => {
                let fault = error.to_string();
                if self.seen.tls_fault.as_ref() != Some(&fault) {
                    tracing::error!("{fault}; the certificate in force stays");
                    self.seen.tls_fault = Some(fault);
                }
            }
        }
    }
}

/// Waits for a change, and then until it is over.
async fn changed(watch: Option<&Watch>) {
    let Some(watch) = watch else { return std::future::pending().await };
    watch.changed().await;
    for _ in 0..MOST_WAITS {
        if timeout(SETTLED, watch.changed()).await.is_err() {
            return;
        }
    }
}
