//! Channels: where people write to the agent from, and where its answers go.
//!
//! The handle is [`Channels`]. There is one channel, [`telegram`], with one account. What people wrote and what is to be
//! sent are on disk before anything else happens ([`record`]); who may write is decided by rules ([`telegram::update`])
//! and by operators ([`pairing`], [`methods`]). All of it runs beside the threads that carry frames: a Telegram that can't
//! be reached is nothing to anybody else. Edited settings take effect at once ([`Channels::set_telegram`]).

pub mod methods;
pub mod pairing;
pub mod record;
pub mod telegram;

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Mutex, watch};

pub use record::SCHEMA;

use crate::agent::{self, Agent, Answer, End, Outcome, Route};
use crate::clock::UnixMs;
use crate::rpc::error::RpcError;
use crate::sessions::message::Block;
use crate::store::{Change, Store, StoreError, Tx};
use telegram::{Account, Webhook};

/// Handle to the channels. Cheap to clone.
#[derive(Clone)]
pub struct Channels(Arc<Inner>);

struct Inner {
    store: Store,
    agent: Agent,
    runtime: tokio::runtime::Handle,
    telegram: Place,
    webhook: watch::Sender<Option<Webhook>>,
    /// One change of settings at a time.
    changing: Mutex<()>,
}

/// The account of the moment, which the agent looks up, too.
#[derive(Clone, Debug, Default)]
struct Place(Arc<RwLock<Placed>>);

#[derive(Clone, Debug, Default)]
struct Placed {
    account: Option<Arc<Account>>,
    /// Why there is none although one is configured.
    error: Option<String>,
}

impl Place {
    fn get(&self) -> Placed {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, placed: Placed) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = placed;
    }
}

impl From<Option<Result<Account, String>>> for Placed {
    fn from(telegram: Option<Result<Account, String>>) -> Self {
        match telegram {
            Some(Ok(account)) => Self { account: Some(Arc::new(account)), error: None },
            Some(Err(error)) => Self { account: None, error: Some(error) },
            None => Self::default(),
        }
    }
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").field("telegram", &self.telegram().is_some()).finish_non_exhaustive()
    }
}

impl Channels {
    /// The channels, not running yet. `store` must have been opened with [`SCHEMA`] and be the agent's. Becomes the
    /// [`agent::Channel`] of `agent`.
    pub fn new(
        store: Store,
        agent: Agent,
        runtime: tokio::runtime::Handle,
        telegram: Option<Result<Account, String>>,
    ) -> Self {
        let place = Place::default();
        place.set(telegram.into());
        agent.set_channel(Box::new(place.clone()));
        Self(Arc::new(Inner {
            store,
            agent,
            runtime,
            telegram: place,
            webhook: watch::Sender::new(None),
            changing: Mutex::default(),
        }))
    }

    /// Starts what is enabled. What was being sent when the last process ended is given up first.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn start(&self) -> Result<(), StoreError> {
        let unknown = self.0.store.write(|tx| Ok::<_, StoreError>(Change::of(record::give_up_unknown(tx)?))).await?;
        if unknown > 0 {
            tracing::warn!(
                unknown,
                "messages were being sent when the gateway ended; whether they arrived is not known"
            );
        }
        self.begin(&self.0.telegram.get());
        Ok(())
    }

    fn begin(&self, placed: &Placed) {
        if let Some(error) = &placed.error {
            tracing::error!(channel = telegram::CHANNEL, error, "the channel does not start");
        }
        if let Some(account) = &placed.account {
            telegram::run(self, account, &self.0.runtime);
            account.set_running(account.settings().enabled);
        }
    }

    /// Takes the account of an edited configuration instead of the one there is, unless it is the same. The old one
    /// brings to its end what it is sending. Says whether anything has changed.
    pub async fn set_telegram(&self, telegram: Option<Result<Account, String>>) -> bool {
        let _one = self.0.changing.lock().await;
        let (old, new) = (self.0.telegram.get(), Placed::from(telegram));
        let same = match (&old.account, &new.account) {
            (Some(old), Some(new)) => old.is_like(new),
            (None, None) => old.error == new.error,
            _ => false,
        };
        if same {
            return false;
        }
        if let Some(account) = old.account {
            account.retire().await;
        }
        self.0.telegram.set(new.clone());
        self.begin(&new);
        true
    }

    /// Where updates are brought to, while there is such a place: for whoever listens.
    pub fn webhook(&self) -> watch::Receiver<Option<Webhook>> {
        self.0.webhook.subscribe()
    }

    /// Takes in an update that was brought to the webhook. It is on disk when this is [`Ok`].
    ///
    /// # Errors
    /// It was not stored, and is to be brought again.
    pub async fn take_update(&self, webhook: &Webhook, update: serde_json::Value) -> Result<(), RpcError> {
        telegram::take_update(self, webhook, update).await
    }

    /// Forgets what is long done. To be called now and then.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn tend(&self, now: UnixMs) -> Result<(), StoreError> {
        self.0.store.write(move |tx| record::purge(tx, now).map(|()| Change::of(()))).await
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn agent(&self) -> &Agent {
        &self.0.agent
    }

    fn telegram(&self) -> Option<Arc<Account>> {
        self.0.telegram.get().account
    }

    fn telegram_error(&self) -> Option<String> {
        self.0.telegram.get().error
    }
}

impl agent::Channel for Place {
    /// Puts the answer of a run into the outbox.
    fn deliver(
        &self,
        tx: &Tx<'_>,
        run_id: &str,
        route: &Route,
        answer: Answer<'_>,
        now: UnixMs,
    ) -> Result<Box<dyn FnOnce() + Send>, RpcError> {
        let Some(account) = self.get().account.filter(|_| route.channel == telegram::CHANNEL) else {
            tracing::warn!(run = run_id, channel = %route.channel, "an answer has nowhere to go: there is no such channel");
            return Ok(Box::new(|| ()));
        };
        let preview = record::has_preview(tx, run_id)?.then_some(run_id);
        let text = said(answer.outcome, answer.text, preview.is_some());
        let to = |first: bool| record::To {
            channel: &route.channel,
            account: &route.account,
            target: &route.to,
            thread: route.thread,
            reply_to: route.reply_to.filter(|_| first),
        };
        let parts = telegram::text::split(&text, account.settings().text_limit);
        for (at, part) in parts.iter().enumerate() {
            let what = record::What { text: part, preview: preview.filter(|_| at == 0), picture: None };
            record::put_what(tx, &format!("{run_id}#{at}"), to(at == 0), what, now)?;
        }
        for (at, picture) in answer.pictures.iter().enumerate() {
            let Block::Image { data, .. } = picture else { continue };
            let Some(bytes) = agent::media::bytes(data) else { continue };
            let what = record::What { picture: Some(&bytes), ..record::What::default() };
            record::put_what(tx, &format!("{run_id}#picture{at}"), to(parts.is_empty() && at == 0), what, now)?;
        }
        Ok(Box::new(move || account.wake()))
    }

    fn fetch<'a>(&'a self, route: &'a Route, picture: &'a str) -> agent::Fetching<'a> {
        Box::pin(async move {
            match self.get().account.filter(|_| route.channel == telegram::CHANNEL) {
                Some(account) => account.picture(picture).await,
                None => Err("there is no such channel any more".to_owned()),
            }
        })
    }
}

/// What the other side gets to read of an outcome.
fn said(outcome: &Outcome, text: &str, has_preview: bool) -> String {
    match outcome.end {
        End::Done if outcome.text.is_empty() && outcome.stop_reason == "refusal" => {
            "I can't help with that.".to_owned()
        }
        // A preview of something that came to nothing ends all the same.
        End::Done if text.is_empty() && has_preview => "…".to_owned(),
        End::Done => text.to_owned(),
        // Nothing to say is nothing to send; what was shown of it is marked as all there will be.
        End::Aborted if has_preview => format!("{text}\n\n(stopped)"),
        End::Aborted => String::new(),
        End::Failed => {
            // The reason is for operators: it stands in the log and in the session.
            format!("Something went wrong, and there is no answer ({}). Please try again.", outcome.stop_reason)
        }
    }
}
