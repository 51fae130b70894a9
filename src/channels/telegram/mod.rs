//! Telegram: updates come in by long polling or by a webhook, answers go out through the outbox.
//!
//! An update is read, decided about and stored with its number in a single transaction; only then is the Bot API told
//! that it may forget it: by the next request, or by the answer of the webhook. So a crash neither loses nor doubles what
//! people wrote. Where to start reading: [`update`] (what an update means), [`receive`] (what is stored of it), [`poll`]
//! and [`webhook`] (how it comes), [`company`] (what people see while they wait), [`deliver`]; [`text`] and [`api`] below
//! them.

mod album;
pub mod api;
mod company;
mod deliver;
mod poll;
mod receive;
pub mod text;
pub mod update;
mod webhook;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

pub use webhook::{Webhook, take_update};

use crate::agent::media;
use crate::clock::UnixMs;
use crate::config::flow::{DmScope, Telegram as Settings};
use crate::outgoing::Outgoing;
use crate::secret::Secret;
use crate::sessions::message::Block;
use crate::task;
use api::Api;
use company::Previews;
use update::Bot;

use super::Channels;

/// The name of the channel.
pub const CHANNEL: &str = "telegram";
/// The one account there is.
pub const ACCOUNT: &str = "default";

/// How the account is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether it is to run.
    pub running: bool,
    /// Whether the last request to the Bot API succeeded.
    pub connected: bool,
    /// Who the bot is, once that is known.
    pub bot: Option<Bot>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it was started.
    pub started_at: Option<UnixMs>,
    /// When it was stopped.
    pub stopped_at: Option<UnixMs>,
    /// When somebody last wrote.
    pub last_inbound_at: Option<UnixMs>,
    /// When something was last sent.
    pub last_outbound_at: Option<UnixMs>,
}

/// Whether an account is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    Off,
    On,
    /// Never again: another account has taken its place.
    Gone,
}

/// One bot.
#[derive(Debug)]
pub struct Account {
    settings: Settings,
    dm_scope: DmScope,
    token: Secret,
    /// Of the webhook, where there is one.
    secret: Option<Secret>,
    api: Api,
    health: Mutex<Health>,
    /// Whether it is to run.
    run: watch::Sender<Switch>,
    /// The outbox has something.
    waiting: Notify,
    /// One batch of updates at a time, in whatever way they come.
    intake: tokio::sync::Mutex<()>,
    previews: Previews,
    gathered: album::Gathered,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

/// How long another account waits for what this one is sending.
const RETIRE_WITHIN: Duration = Duration::from_secs(25);

impl Account {
    /// The bot of `token`, not running yet. `secret` is that of its webhook.
    ///
    /// # Errors
    /// A webhook without a secret that Telegram takes.
    pub fn new(
        settings: Settings,
        dm_scope: DmScope,
        token: Secret,
        secret: Option<Secret>,
        outgoing: Outgoing,
    ) -> Result<Self, String> {
        if settings.webhook_url.is_some() && !secret.as_ref().is_some_and(|secret| webhook::is_secret(secret.expose()))
        {
            return Err("channels.telegram.webhookSecret must be 1 to 256 letters, digits, _ or -".to_owned());
        }
        let api = Api::new(outgoing, settings.api_root.clone(), token.clone());
        Ok(Self {
            settings,
            dm_scope,
            token,
            secret,
            api,
            health: Mutex::default(),
            run: watch::Sender::new(Switch::Off),
            waiting: Notify::new(),
            intake: tokio::sync::Mutex::default(),
            previews: Previews::default(),
            gathered: album::Gathered::default(),
            tasks: Mutex::default(),
        })
    }

    /// Whether the other one is the same bot with the same settings.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let secrets = |account: &Self| account.secret.as_ref().map(|secret| secret.expose().to_owned());
        // Settings show every field but the secrets, which are compared as what they lead to.
        format!("{:?}{:?}", self.settings, self.dm_scope) == format!("{:?}{:?}", other.settings, other.dm_scope)
            && self.token.matches(other.token.expose())
            && secrets(self) == secrets(other)
    }

    /// Stops for good, and waits for what is being sent.
    pub(super) async fn retire(&self) {
        self.set_running(false);
        self.run.send_replace(Switch::Gone);
        self.wake();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = async {
            for task in tasks {
                // One that panicked has said so.
                let _ = task.await;
            }
            // An edit that arrived after the answer would take its place, and the next account knows nothing of it.
            self.previews.all_quiet().await;
        };
        if tokio::time::timeout(RETIRE_WITHIN, ended).await.is_err() {
            tracing::warn!(channel = CHANNEL, "the channel of the former settings still sends something");
        }
    }

    /// A picture that somebody has sent.
    pub(super) async fn picture(&self, file_id: &str) -> Result<Block, String> {
        let most = usize::try_from(self.settings.media_max_bytes).unwrap_or(usize::MAX).min(media::MAX_IMAGE_BYTES);
        let bytes = self.api.file(file_id, most).await.map_err(|error| error.to_string())?;
        media::picture(&bytes)
            .ok_or_else(|| "it is no picture of a kind that is taken (jpeg, png, gif, webp)".to_owned())
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.lock().clone()
    }

    /// What the operator has set.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Something waits in the outbox.
    pub fn wake(&self) {
        self.waiting.notify_one();
    }

    /// Starts or stops it.
    pub fn set_running(&self, running: bool) {
        let now = UnixMs::now();
        {
            let mut health = self.lock();
            if health.running == running {
                return;
            }
            health.running = running;
            if running {
                health.started_at = Some(now);
            } else {
                health.stopped_at = Some(now);
                health.connected = false;
            }
        }
        self.run.send_if_modified(|switch| {
            let wanted = if running { Switch::On } else { Switch::Off };
            *switch != Switch::Gone && std::mem::replace(switch, wanted) != wanted
        });
        tracing::info!(channel = CHANNEL, running, "a channel was switched");
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &api::ApiError) {
        let mut health = self.lock();
        health.connected = false;
        health.last_error = Some(error.to_string());
    }

    fn succeeded(&self) {
        let mut health = self.lock();
        if !std::mem::replace(&mut health.connected, true) {
            tracing::info!(channel = CHANNEL, "the Bot API answers");
        }
        health.last_error = None;
    }
}

/// Runs the account's loops on `runtime` until it retires; they do nothing while it is stopped.
pub(super) fn run(channels: &Channels, account: &Arc<Account>, runtime: &tokio::runtime::Handle) {
    let (c, a) = (channels.clone(), Arc::clone(account));
    let intake = if account.settings.webhook_url.is_some() {
        task::spawn_on(runtime, "telegram.webhook", async move { webhook::run(&c, &a).await })
    } else {
        task::spawn_on(runtime, "telegram.poll", async move { poll::run(&c, &a).await })
    };
    let (c, a) = (channels.clone(), Arc::clone(account));
    let deliver = task::spawn_on(runtime, "telegram.deliver", async move { deliver::run(&c, &a).await });
    account.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend([intake, deliver]);
}

/// Runs `work` whenever the account is to run, until it retires; dropped, `work` must leave nothing half done.
async fn while_on<F: Future<Output = ()>>(account: &Account, work: impl Fn() -> F) {
    let mut switch = account.run.subscribe();
    loop {
        match switch.wait_for(|switch| *switch != Switch::Off).await.map(|switch| *switch) {
            Ok(Switch::On) => {}
            _ => return,
        }
        tokio::select! {
            () = work() => {}
            _ = switch.wait_for(|switch| *switch != Switch::On) => {}
        }
    }
}
