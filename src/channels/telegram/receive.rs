//! What is stored of updates: the run that a message starts, or the answer it gets, together with how far was read.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::Value;

use super::update::{Bot, Decision, Place, Update, decide};
use super::{ACCOUNT, Account, CHANNEL, album, company};
use crate::agent::{Accepted, Asked, Route, Taken};
use crate::channels::{Channels, pairing, record};
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::error::{ErrorCode, RpcError};
use crate::sessions::Origin;
use crate::sessions::key::SessionKey;
use crate::sessions::message::{Block, Message};
use crate::store::{Change, StoreError, Tx};
use crate::task;

/// What the model is told of where it speaks.
const MANNERS: &str = "This conversation is on Telegram: answer in short paragraphs, without tables. A tool that returns a \
                       picture gives an `attach` value; a line with that value alone shows the picture to the user.";

/// What is to happen once an update is stored.
enum After {
    /// A run has begun: its place, its session and its id.
    Began(Place, SessionKey, String),
    /// Something is in the outbox.
    Sent,
}

/// What somebody has told the bot to do with the session. It is done before the update is noted as taken in: after a
/// crash in between the update comes again, and doing it twice is doing it once.
#[derive(Clone, Copy, Debug)]
enum Command {
    Reset,
    Stop,
}

/// How far the updates of a batch were stored.
struct Stored {
    after: Vec<After>,
    /// Why it ended before the last one.
    held: Option<Held>,
    /// Those behind.
    rest: VecDeque<Value>,
}

enum Held {
    /// It can't be taken now.
    Full(RpcError),
    /// Something is to be done first.
    Command(Command, SessionKey, Place, i64),
}

/// Stores `updates`, in their order, each once. One that can't be taken now and everything behind it is left for the
/// next request.
///
/// # Errors
/// Nothing, or not all, was stored; what was is not taken in again.
pub(super) async fn all(channels: &Channels, account: &Arc<Account>, updates: Vec<Value>) -> Result<(), RpcError> {
    let _one = account.intake.lock().await;
    let mut updates = VecDeque::from(updates);
    loop {
        let Stored { after, held, rest } = store(channels, account, updates).await?;
        for after in after {
            account.lock().last_inbound_at = Some(UnixMs::now());
            match after {
                After::Began(place, key, run_id) => {
                    let company = company::keep(channels.clone(), Arc::clone(account), place, key, run_id);
                    task::spawn_on(&channels.0.runtime, "telegram.company", company);
                }
                After::Sent => account.wake(),
            }
        }
        match held {
            None => return Ok(()),
            Some(Held::Full(error)) => return Err(error),
            Some(Held::Command(command, key, place, update_id)) => {
                obey(channels, account, command, &key, place, update_id).await?;
            }
        }
        updates = rest;
    }
}

/// Stores updates up to the first that is to be obeyed or can't be taken, in one transaction.
async fn store(channels: &Channels, account: &Account, mut updates: VecDeque<Value>) -> Result<Stored, RpcError> {
    let bot = account.health().bot.unwrap_or_default();
    let (settings, dm_scope, handle) = (account.settings.clone(), account.dm_scope, channels.clone());
    let now = UnixMs::now();
    let op = move |tx: &Tx<'_>| {
        let (mut after, mut begun, mut held) = (Vec::new(), Vec::new(), None);
        while let Some(value) = updates.pop_front() {
            let Some(update_id) = value["update_id"].as_i64() else { continue };
            if record::is_seen(tx, CHANNEL, bot.id, update_id)? {
                // Noted once more, so that it is not asked for again: a part of an album was taken before its turn.
                record::set_seen(tx, CHANNEL, bot.id, update_id, now)?;
                continue;
            }
            let others = album::take_others(&mut updates, &value);
            // An update that is not understood is passed over, not read for ever.
            if let Ok(update) = serde_json::from_value::<Update>(value) {
                let mut parts = Vec::with_capacity(others.len());
                for part in others.iter().filter_map(|part| Update::deserialize(part).ok()) {
                    if !record::is_seen(tx, CHANNEL, bot.id, part.update_id)? {
                        parts.push(part);
                    }
                }
                let approved = |sender: &str| record::is_allowed(tx, CHANNEL, ACCOUNT, sender).unwrap_or(false);
                let decision = decide(&update, &parts, &settings, dm_scope, &bot, approved);
                match take(&handle, tx, &bot, update_id, decision, &mut begun, now) {
                    Ok(Taking::Done(more)) => after.extend(more),
                    Ok(Taking::First(command, key, place)) => {
                        // What hung on it is for the conversation behind it.
                        others.into_iter().rev().for_each(|part| updates.push_front(part));
                        held = Some(Held::Command(command, key, place, update_id));
                        break;
                    }
                    Err(error) if error.code == ErrorCode::Unavailable => {
                        held = Some(Held::Full(error));
                        break;
                    }
                    // It would be refused for ever, and everything behind it would wait.
                    Err(error) => tracing::error!(
                        channel = CHANNEL, update = update_id, error = %error.message, "an update is passed over"
                    ),
                }
                for part in parts {
                    record::set_seen(tx, CHANNEL, bot.id, part.update_id, now)?;
                }
            }
            record::set_seen(tx, CHANNEL, bot.id, update_id, now)?;
        }
        // Whoever waits for this may be dropped: what is stored begins all the same.
        let agent = handle.agent().clone();
        Ok::<_, RpcError>(Change::of(Stored { after, held, rest: updates }).publish(move || {
            for accepted in begun {
                agent.begin(accepted);
            }
        }))
    };
    channels.store().write(op).await
}

/// Does what was told, then notes it, with the answer.
async fn obey(
    channels: &Channels,
    account: &Account,
    command: Command,
    key: &SessionKey,
    place: Place,
    update_id: i64,
) -> Result<(), RpcError> {
    let now = UnixMs::now();
    let said = match command {
        Command::Stop => {
            channels.agent().settle(key).await;
            "Stopped."
        }
        Command::Reset => {
            channels.agent().reset(key, now).await?;
            "A new conversation begins."
        }
    };
    let bot = account.health().bot.unwrap_or_default();
    let note = move |tx: &Tx<'_>| {
        answer(tx, &bot, update_id, &place, said, now)?;
        record::set_seen(tx, CHANNEL, bot.id, update_id, now)?;
        Ok::<_, RpcError>(Change::of(()))
    };
    channels.store().write(note).await?;
    account.lock().last_inbound_at = Some(now);
    account.wake();
    Ok(())
}

/// What becomes of one message.
enum Taking {
    Done(Option<After>),
    First(Command, SessionKey, Place),
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
) -> Result<Taking, RpcError> {
    let say = |place: &Place, text: &str| answer(tx, bot, update_id, place, text, now);
    Ok(Taking::Done(match decision {
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
        Decision::Unread(place, what) => {
            say(&place, &format!("I can't read {what} yet. I understand text and pictures."))?;
            Some(After::Sent)
        }
        Decision::Reset(key, place) => return Ok(Taking::First(Command::Reset, key, place)),
        Decision::Stop(key, place) => return Ok(Taking::First(Command::Stop, key, place)),
        Decision::Ask { key, text, pictures, label, sender, place } => {
            let text = match &sender {
                Some(sender) => format!("[{sender}] {text}"),
                None => text,
            };
            let content = if text.is_empty() { Vec::new() } else { vec![Block::Text { text }] };
            let message = Message::User { content, timestamp: now, sender_label: sender };
            let asked = Asked {
                route: Some(Route {
                    channel: CHANNEL.to_owned(),
                    account: ACCOUNT.to_owned(),
                    to: place.chat.clone(),
                    thread: place.thread,
                    reply_to: place.reply_to,
                    pictures,
                }),
                extra_system: Some(MANNERS.to_owned()),
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
            is_new.then_some(After::Began(place, key, run_id))
        }
    }))
}

/// Puts a short answer into the outbox, one for each update.
fn answer(
    tx: &Tx<'_>,
    bot: &Bot,
    update_id: i64,
    place: &Place,
    text: &str,
    now: UnixMs,
) -> Result<record::Put, StoreError> {
    let to = record::To {
        channel: CHANNEL,
        account: ACCOUNT,
        target: &place.chat,
        thread: place.thread,
        reply_to: place.reply_to,
    };
    record::put(tx, &format!("telegram:{}:update:{update_id}", bot.id), to, text, now)
}
