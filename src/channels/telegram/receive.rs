//! What is stored of updates: the run that a message starts, or the answer it gets, together with how far was read.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::update::{Bot, Decision, Place, Update, decide};
use super::{ACCOUNT, Account, CHANNEL};
use crate::agent::{Accepted, Agent, Asked, Route, Taken};
use crate::channels::{Channels, pairing, record};
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::error::RpcError;
use crate::sessions::Origin;
use crate::sessions::key::SessionKey;
use crate::sessions::message::{Block, Message};
use crate::store::{Change, StoreError, Tx};
use crate::task;

/// How often those who wait see that an answer is being written: Telegram shows it for five seconds.
const TYPING_EVERY: Duration = Duration::from_secs(4);

/// What is to happen once an update is stored.
enum After {
    /// A run has begun: its place and its id.
    Began(Place, String),
    /// The session is to begin anew; the update is answered when it has.
    Reset(SessionKey, Place, i64),
    /// What the session does is to stop.
    Stop(SessionKey),
    /// Something is in the outbox.
    Sent,
}

/// Stores `updates`, in their order, in one transaction. One that can't be taken now and everything behind it is left
/// for the next request.
///
/// # Errors
/// Nothing, or not all, was stored; what was is not read again.
pub(super) async fn all(channels: &Channels, account: &Account, updates: Vec<Value>) -> Result<(), RpcError> {
    let bot = account.health().bot.unwrap_or_default();
    let own = bot.clone();
    let (settings, dm_scope, handle) = (account.settings.clone(), account.dm_scope, channels.clone());
    let now = UnixMs::now();
    let (after, full) = channels
        .store()
        .write(move |tx| {
            let mut next = record::next_update(tx, CHANNEL, ACCOUNT)?;
            let (mut after, mut begun, mut full) = (Vec::new(), Vec::new(), None);
            for value in updates {
                let update_id = value["update_id"].as_i64().unwrap_or(-1);
                // Read before: the Bot API had not heard of it.
                if update_id < next {
                    continue;
                }
                // An update that is not understood is passed over, not read for ever.
                if let Ok(update) = serde_json::from_value::<Update>(value) {
                    let approved = |sender: &str| record::is_allowed(tx, CHANNEL, ACCOUNT, sender).unwrap_or(false);
                    let decision = decide(&update, &settings, dm_scope, &own, approved);
                    match take(&handle, tx, &own, update_id, decision, &mut begun, now) {
                        Ok(more) => after.extend(more),
                        Err(error) => {
                            full = Some(error);
                            break;
                        }
                    }
                }
                next = update_id + 1;
            }
            record::set_next_update(tx, CHANNEL, ACCOUNT, next)?;
            // Whoever waits for this may be dropped: what is stored begins all the same.
            let agent = handle.agent().clone();
            Ok::<_, RpcError>(Change::of((after, full)).publish(move || {
                for accepted in begun {
                    agent.begin(accepted);
                }
            }))
        })
        .await?;
    for after in after {
        carry_on(channels, &bot, after).await;
    }
    full.map_or(Ok(()), Err)
}

/// Stores what becomes of one message.
fn take(
    channels: &Channels,
    tx: &Tx<'_>,
    bot: &Bot,
    update_id: i64,
    decision: Decision,
    begun: &mut Vec<Accepted>,
    now: UnixMs,
) -> Result<Option<After>, RpcError> {
    let say = |place: &Place, text: &str| answer(tx, bot, update_id, place, text, now);
    Ok(match decision {
        Decision::Ignore(why) => {
            tracing::debug!(channel = CHANNEL, update = update_id, why, "an update is ignored");
            None
        }
        Decision::Pair { sender, label, place } => {
            let code = pairing::code(&id::random_bytes());
            let request = record::Request {
                id: id::uuid(),
                account: ACCOUNT.to_owned(),
                sender: sender.clone(),
                label,
                chat: place.chat.clone(),
                code: code.clone(),
                at: now,
                seen_at: now,
            };
            tracing::info!(channel = CHANNEL, sender_user_id = %sender, "a stranger asks to be let in");
            if record::ask(tx, CHANNEL, &request, now)? == record::Asked::New {
                say(&place, &pairing::invitation(&sender, &code))?;
            }
            Some(After::Sent)
        }
        Decision::Greet(place) => {
            say(
                &place,
                "Hello. Write to me, and I answer. /new begins a new conversation, /stop stops what I am doing.",
            )?;
            Some(After::Sent)
        }
        Decision::Reset(key, place) => Some(After::Reset(key, place, update_id)),
        Decision::Stop(key, place) => {
            say(&place, "Stopped.")?;
            Some(After::Stop(key))
        }
        Decision::Ask { key, text, label, sender, place } => {
            let text = match &sender {
                Some(sender) => format!("[{sender}] {text}"),
                None => text,
            };
            let message = Message::User { content: vec![Block::Text { text }], timestamp: now, sender_label: sender };
            let asked = Asked {
                route: Some(Route {
                    channel: CHANNEL.to_owned(),
                    account: ACCOUNT.to_owned(),
                    to: place.chat.clone(),
                    thread: place.thread,
                    reply_to: place.reply_to,
                }),
                extra_system: Some(
                    "This conversation is on Telegram: answer in short paragraphs, without tables.".to_owned(),
                ),
                ..Asked::of(message)
            };
            let is_main = key.as_str() == crate::sessions::key::MAIN_KEY;
            let origin = Origin {
                channel: Some(CHANNEL.to_owned()),
                // The main session belongs to all channels.
                display_name: (!is_main).then_some(label),
                via: Some("channel"),
            };
            let run_id = format!("telegram:{}:{}:{}", bot.id, place.chat, place.message_id);
            let accepted = channels.agent().take_in(tx, &run_id, &key, origin, asked, now)?;
            let is_new = accepted.taken == Taken::New;
            begun.push(accepted);
            is_new.then_some(After::Began(place, run_id))
        }
    })
}

/// Puts a short answer into the outbox, one for each update.
fn answer(tx: &Tx<'_>, bot: &Bot, update_id: i64, place: &Place, text: &str, now: UnixMs) -> Result<bool, StoreError> {
    let to = record::To {
        channel: CHANNEL,
        account: ACCOUNT,
        target: &place.chat,
        thread: place.thread,
        reply_to: place.reply_to,
    };
    record::put(tx, &format!("telegram:{}:update:{update_id}", bot.id), to, text, now)
}

async fn carry_on(channels: &Channels, bot: &Bot, after: After) {
    let Some(account) = channels.telegram() else { return };
    account.lock().last_inbound_at = Some(UnixMs::now());
    match after {
        After::Began(place, run_id) => {
            task::spawn("telegram.typing", typing(channels.agent().clone(), Arc::clone(account), place, run_id));
        }
        After::Reset(key, place, update_id) => {
            let now = UnixMs::now();
            let said = match channels.agent().reset(&key, now).await {
                Ok(_) => "A new conversation begins.",
                Err(error) => {
                    tracing::warn!(session = %key, error = %error.message, "a session was not reset");
                    "That did not work; please try again."
                }
            };
            let bot = bot.clone();
            let put = move |tx: &Tx<'_>| answer(tx, &bot, update_id, &place, said, now).map(Change::of);
            if let Err(error) = channels.store().write(put).await {
                tracing::warn!(channel = CHANNEL, %error, "an answer was not stored");
            }
            account.wake();
        }
        After::Stop(key) => {
            channels.agent().stop(&key, None, "aborted");
            account.wake();
        }
        After::Sent => account.wake(),
    }
}

/// Shows that an answer is being written until it is.
async fn typing(agent: Agent, account: Arc<Account>, place: Place, run_id: String) {
    // An answer that comes at once needs no promise.
    tokio::time::sleep(Duration::from_millis(300)).await;
    while agent.is_open(&run_id) && *account.run.borrow() {
        if account.api.typing(&place.chat, place.thread).await.is_err() {
            return;
        }
        tokio::time::sleep(TYPING_EVERY).await;
    }
}
