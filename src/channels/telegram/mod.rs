//! Telegram: updates come in by long polling, answers go out through the outbox.
//!
//! An update is read, decided about and stored together with the number of the next one in a single transaction; only
//! then is the Bot API told, by the next request, that it may forget it. So a crash neither loses nor doubles what
//! people wrote. Where to start reading: [`update`] (what an update means), [`receive`] (what is stored of it), [`poll`],
//! [`deliver`]; [`text`] and [`api`] below them.

pub mod api;
mod deliver;
mod poll;
mod receive;
pub mod text;
pub mod update;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::clock::UnixMs;
use crate::config::flow::{DmScope, Telegram as Settings};
use crate::outgoing::Outgoing;
use crate::secret::Secret;
use crate::task;
use api::Api;
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

/// One bot.
#[derive(Debug)]
pub struct Account {
    settings: Settings,
    dm_scope: DmScope,
    api: Api,
    health: Mutex<Health>,
    /// Whether it is to run.
    run: watch::Sender<bool>,
    /// The outbox has something.
    waiting: Notify,
}

impl Account {
    /// The bot of `token`, not running yet.
    pub fn new(settings: Settings, dm_scope: DmScope, token: Secret, outgoing: Outgoing) -> Self {
        let api = Api::new(outgoing, settings.api_root.clone(), token);
        Self {
            settings,
            dm_scope,
            api,
            health: Mutex::default(),
            run: watch::Sender::new(false),
            waiting: Notify::new(),
        }
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
        self.run.send_replace(running);
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

/// Runs the account's loops on `runtime` until the process ends; they do nothing while it is stopped.
pub fn run(channels: &Channels, account: &Arc<Account>, runtime: &tokio::runtime::Handle) {
    let (c, a) = (channels.clone(), Arc::clone(account));
    task::spawn_on(runtime, "telegram.poll", async move { poll::run(&c, &a).await });
    let (c, a) = (channels.clone(), Arc::clone(account));
    task::spawn_on(runtime, "telegram.deliver", async move { deliver::run(&c, &a).await });
}
