//! What people see while a run is under way: that an answer is being written, and its beginning, which is edited as it
//! grows.
//!
//! The beginning is a message of its own until the end: it closes with an ellipsis, so that nobody takes it for the
//! answer, and the answer takes its place by a last edit, which the outbox makes. Who sends which message is decided on
//! disk: a preview is noted before it is sent, with its number afterwards, and only while the run is open. Whoever makes
//! the last edit waits until no other one is on its way ([`Previews::quiet`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::api::ApiError;
use super::update::Place;
use super::{Account, Switch, text};
use crate::channels::{Channels, record};
use crate::clock::UnixMs;
use crate::config::flow::Streaming;
use crate::rpc::error::RpcError;
use crate::sessions::key::SessionKey;
use crate::store::Change;

/// An answer that comes sooner needs no promise.
const SOON: Duration = Duration::from_millis(300);
/// How often those who wait see that an answer is being written: Telegram shows it for five seconds.
const TYPING_EVERY: Duration = Duration::from_secs(4);
/// Time between two edits of a preview. In a group Telegram takes twenty messages a minute.
const EDIT_EVERY: Duration = Duration::from_secs(1);
const EDIT_EVERY_IN_GROUPS: Duration = Duration::from_secs(4);

/// The longest pause that is believed to be wanted.
const LONGEST_WISH: Duration = Duration::from_secs(3600);

/// Longer than any call of the Bot API takes.
const LONG: Duration = Duration::from_secs(120);

/// The runs that may have an edit on its way.
#[derive(Debug, Default)]
pub(super) struct Previews(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Previews {
    /// Waits until nothing of this run's preview is on its way any more.
    pub(super) async fn quiet(&self, run_id: &str) {
        let gate = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(run_id).cloned();
        if let Some(gate) = gate {
            drop(gate.lock().await);
        }
    }

    /// Waits until nothing of any preview is on its way any more.
    pub(super) async fn all_quiet(&self) {
        let gates: Vec<_> = self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for gate in gates {
            drop(gate.lock().await);
        }
    }
}

/// Takes a run out of the list, however its company ends.
struct Listed<'a>(&'a Previews, &'a str);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.1);
    }
}

/// What a preview is.
enum Preview {
    None,
    Sent(i64),
    /// There is none, or nobody knows which message it is; none is tried.
    Over,
}

/// Keeps those who wait for a run company until it ends.
pub(super) async fn keep(channels: Channels, account: Arc<Account>, place: Place, key: SessionKey, run_id: String) {
    let gate = Arc::new(tokio::sync::Mutex::new(()));
    account.previews.0.lock().unwrap_or_else(PoisonError::into_inner).insert(run_id.clone(), Arc::clone(&gate));
    let _listed = Listed(&account.previews, &run_id);
    let _busy = gate.lock().await;
    let shows = account.settings.streaming == Streaming::Partial || account.settings.streaming == Streaming::Block;
    let every = if place.chat.starts_with('-') { EDIT_EVERY_IN_GROUPS } else { EDIT_EVERY };
    let mut preview = if shows { Preview::None } else { Preview::Over };
    let mut shown = String::new();
    let mut edit_at = Instant::now() + every;
    let mut type_at = Instant::now() + SOON;
    while *account.run.borrow() == Switch::On {
        // The end of the run ends the waiting, and everything with it.
        let next = if matches!(preview, Preview::Over) { type_at } else { edit_at.min(type_at) };
        let wait = next.saturating_duration_since(Instant::now());
        if !channels.agent().is_open(&run_id) || ended_within(&channels, &run_id, wait).await {
            return;
        }
        let now = Instant::now();
        if now >= type_at {
            type_at = now + TYPING_EVERY;
            tokio::select! {
                typed = account.api.typing(&place.chat, place.thread) => if let Err(error) = typed {
                    type_at += retry_after(&error);
                },
                // Nobody waits for a sign when the answer is there.
                true = ended_within(&channels, &run_id, LONG) => return,
            }
        }
        if now >= edit_at && !matches!(preview, Preview::Over) {
            edit_at = now + every;
            let said = channels.agent().said_so_far(&key, &run_id).unwrap_or_default();
            let beginning = text::beginning(&said, account.settings.text_limit);
            if beginning.is_empty() || beginning == shown {
                continue;
            }
            match show(&channels, &account, &place, &run_id, &preview, &beginning).await {
                Ok(is) => (preview, shown) = (is, beginning),
                Err(wait) => edit_at = Instant::now() + every.max(wait),
            }
        }
    }
}

async fn ended_within(channels: &Channels, run_id: &str, wait: Duration) -> bool {
    // A run that is not open any more has ended, whatever is known of it.
    matches!(channels.agent().wait(run_id, wait).await, Ok(Some(_)) | Err(_))
}

/// Sends the preview, or edits it. Otherwise how long to wait with the next try.
async fn show(
    channels: &Channels,
    account: &Account,
    place: &Place,
    run_id: &str,
    preview: &Preview,
    beginning: &str,
) -> Result<Preview, Duration> {
    match preview {
        Preview::Over => Ok(Preview::Over),
        Preview::Sent(message_id) => match account.api.edit(&place.chat, *message_id, beginning, false).await {
            Ok(()) => Ok(Preview::Sent(*message_id)),
            Err(error @ ApiError::Refused { code: 429, .. }) => Err(retry_after(&error)),
            // Lost, it comes with the next edit; refused, the last one will tell.
            Err(ApiError::Lost { .. }) => Err(Duration::ZERO),
            Err(ApiError::Refused { .. }) => Ok(Preview::Over),
        },
        Preview::None => {
            let (id, agent) = (run_id.to_owned(), channels.agent().clone());
            let begin = move |tx: &crate::store::Tx<'_>| {
                let may = agent.is_open_in(tx, &id)? && record::begin_preview(tx, &id, UnixMs::now())?;
                Ok::<_, RpcError>(Change::of(may))
            };
            if !channels.store().write(begin).await.unwrap_or(false) {
                return Ok(Preview::Over);
            }
            let sent = account.api.send(&place.chat, place.thread, place.reply_to, beginning, false).await;
            let (known, result) = match sent {
                Ok(Some(message_id)) => (Some(Some(message_id)), Ok(Preview::Sent(message_id))),
                // Whether it arrived nobody knows, or not as what: the answer will be a message of its own.
                Ok(None) | Err(ApiError::Lost { sent: true, .. }) => (None, Ok(Preview::Over)),
                Err(error @ (ApiError::Refused { code: 429, .. } | ApiError::Lost { sent: false, .. })) => {
                    (Some(None), Err(retry_after(&error)))
                }
                Err(ApiError::Refused { .. }) => (Some(None), Ok(Preview::Over)),
            };
            if let Some(message_id) = known {
                let id = run_id.to_owned();
                let note =
                    move |tx: &crate::store::Tx<'_>| record::set_preview(tx, &id, message_id).map(|()| Change::of(()));
                if let Err(error) = channels.store().write(note).await {
                    let error: crate::store::StoreError = error;
                    tracing::warn!(run = run_id, %error, "which message a preview is was not stored");
                    return Ok(Preview::Over);
                }
            }
            result
        }
    }
}

fn retry_after(error: &ApiError) -> Duration {
    match error {
        ApiError::Refused { retry_after: Some(after), .. } => (*after).min(LONGEST_WISH),
        _ => Duration::ZERO,
    }
}
