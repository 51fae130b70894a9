//! Channels: where people write to the agent from, and where its answers go.
//!
//! The handle is [`Channels`]. There is one channel, [`telegram`], with one account. What people wrote and what is to be
//! sent are on disk before anything else happens ([`record`]); who may write is decided by rules ([`telegram::update`])
//! and by operators ([`pairing`], [`methods`]). All of it runs beside the threads that carry frames: a Telegram that can't
//! be reached is nothing to anybody else.

pub mod methods;
pub mod pairing;
pub mod record;
pub mod telegram;

use std::sync::Arc;

pub use record::SCHEMA;

use crate::agent::{Agent, End, Outcome, Route};
use crate::clock::UnixMs;
use crate::rpc::error::RpcError;
use crate::store::{Change, Store, StoreError, Tx};
use telegram::Account;

/// Handle to the channels. Cheap to clone.
#[derive(Clone)]
pub struct Channels(Arc<Inner>);

struct Inner {
    store: Store,
    agent: Agent,
    runtime: tokio::runtime::Handle,
    telegram: Option<Arc<Account>>,
    /// Why there is none although one is configured.
    telegram_error: Option<String>,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").field("telegram", &self.0.telegram.is_some()).finish_non_exhaustive()
    }
}

impl Channels {
    /// The channels, not running yet. `store` must have been opened with [`SCHEMA`] and be the agent's. Takes the one
    /// hook that `agent` has for answers.
    pub fn new(
        store: Store,
        agent: Agent,
        runtime: tokio::runtime::Handle,
        telegram: Option<Result<Account, String>>,
    ) -> Self {
        let (telegram, telegram_error) = match telegram {
            Some(Ok(account)) => (Some(Arc::new(account)), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let account = telegram.clone();
        agent.on_answer(Box::new(move |tx, run_id, route, outcome, now| {
            deliver(tx, account.as_ref(), run_id, route, outcome, now)
        }));
        Self(Arc::new(Inner { store, agent, runtime, telegram, telegram_error }))
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
        if let Some(error) = &self.0.telegram_error {
            tracing::error!(channel = telegram::CHANNEL, error, "the channel does not start");
        }
        if let Some(account) = &self.0.telegram {
            telegram::run(self, account, &self.0.runtime);
            account.set_running(account.settings().enabled);
        }
        Ok(())
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

    fn telegram(&self) -> Option<&Arc<Account>> {
        self.0.telegram.as_ref()
    }
}

/// Puts the answer of a run into the outbox, in the transaction that ends the run.
fn deliver(
    tx: &Tx<'_>,
    account: Option<&Arc<Account>>,
    run_id: &str,
    route: &Route,
    outcome: &Outcome,
    now: UnixMs,
) -> Result<Box<dyn FnOnce() + Send>, RpcError> {
    let Some(account) = account.filter(|_| route.channel == telegram::CHANNEL) else {
        tracing::warn!(run = run_id, channel = %route.channel, "an answer has nowhere to go: there is no such channel");
        return Ok(Box::new(|| ()));
    };
    let text = said(outcome);
    let limit = account.settings().text_limit;
    for (at, part) in telegram::text::split(&text, limit).iter().enumerate() {
        let to = record::To {
            channel: &route.channel,
            account: &route.account,
            target: &route.to,
            thread: route.thread,
            reply_to: route.reply_to.filter(|_| at == 0),
        };
        record::put(tx, &format!("{run_id}#{at}"), to, part, now)?;
    }
    let account = Arc::clone(account);
    Ok(Box::new(move || account.wake()))
}

/// What the other side gets to read of an outcome.
fn said(outcome: &Outcome) -> String {
    match (outcome.end, outcome.text.is_empty()) {
        (End::Done, false) => outcome.text.clone(),
        (End::Done, true) if outcome.stop_reason == "refusal" => "I can't help with that.".to_owned(),
        // Nothing to say is nothing to send.
        (End::Done, true) | (End::Aborted, _) => String::new(),
        (End::Failed, _) => {
            // The reason is for operators: it stands in the log and in the session.
            format!("Something went wrong, and there is no answer ({}). Please try again.", outcome.stop_reason)
        }
    }
}
