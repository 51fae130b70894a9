//! Albums: several pictures that somebody sends at once come as an update each, one after the other. They are one question,
//! so nothing of an album is stored before the rest of it had the time to come.
//!
//! Polling leaves them with Telegram for a moment and asks again ([`is_in`]); a webhook answers all of them together
//! ([`gather`]). What comes too late is a question of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::update::MAX_ALBUM;
use super::{Account, receive};
use crate::channels::Channels;
use crate::rpc::error::RpcError;
use crate::task;

/// How long the next picture of an album may take.
pub(super) const PAUSE: Duration = Duration::from_millis(700);
/// Albums that a webhook gathers at a time; of more, each picture is a question of its own.
const MAX_GATHERED: usize = 32;

/// Which album an update is a part of: its chat and its id.
fn of(update: &Value) -> Option<(i64, &str)> {
    let message = &update["message"];
    let id = message["media_group_id"].as_str().filter(|id| !id.is_empty() && id.len() <= 64)?;
    Some((message["chat"]["id"].as_i64()?, id))
}

/// How many of these updates belong to albums.
pub(super) fn count_in(updates: &[Value]) -> usize {
    updates.iter().filter(|update| of(update).is_some()).count()
}

/// Takes the other parts of an update's album out of the queue.
pub(super) fn take_others(updates: &mut VecDeque<Value>, update: &Value) -> Vec<Value> {
    let Some(album) = of(update) else { return Vec::new() };
    let mut others = Vec::new();
    let mut rest = VecDeque::with_capacity(updates.len());
    for other in updates.drain(..) {
        if others.len() + 1 < MAX_ALBUM && of(&other) == Some(album) {
            others.push(other);
        } else {
            rest.push_back(other);
        }
    }
    *updates = rest;
    others
}

/// What became of an album.
type Done = watch::Receiver<Option<Result<(), RpcError>>>;

/// The albums that a webhook brings right now.
#[derive(Debug, Default)]
pub(super) struct Gathered(Mutex<HashMap<(i64, String), Gathering>>);

#[derive(Debug)]
struct Gathering {
    parts: Vec<Value>,
    done: Done,
}

/// Takes in an update that may be a part of an album, together with the others of it.
///
/// # Errors
/// It was not stored: it is to be brought again.
pub(super) async fn gather(channels: &Channels, account: &Arc<Account>, update: Value) -> Result<(), RpcError> {
    let Some(album) = of(&update).map(|(chat, id)| (chat, id.to_owned())) else {
        return receive::all(channels, account, vec![update]).await;
    };
    let mut done = match join(channels, account, album, update) {
        Ok(done) => done,
        Err(alone) => return receive::all(channels, account, vec![alone]).await,
    };
    let lost = || RpcError::unavailable("the album was not stored").retryable(true);
    let stored = done.wait_for(Option::is_some).await.map_err(|_| lost())?.clone();
    stored.unwrap_or_else(|| Err(lost()))
}

/// Puts a part to the others of its album, or begins one; gives it back where there is no room for that.
fn join(channels: &Channels, account: &Arc<Account>, album: (i64, String), part: Value) -> Result<Done, Value> {
    let mut all = account.gathered.0.lock().unwrap_or_else(PoisonError::into_inner);
    let is_full = all.len() >= MAX_GATHERED;
    match all.get_mut(&album) {
        Some(gathering) if gathering.parts.len() < MAX_ALBUM => {
            gathering.parts.push(part);
            return Ok(gathering.done.clone());
        }
        None if !is_full => {}
        _ => return Err(part),
    }
    let (tell, done) = watch::channel(None);
    all.insert(album.clone(), Gathering { parts: vec![part], done: done.clone() });
    drop(all);
    // On its own: who brought the first part may hang up.
    let (channels, account) = (channels.clone(), Arc::clone(account));
    task::spawn_on(&channels.0.runtime.clone(), "telegram.album", async move {
        tokio::time::sleep(PAUSE).await;
        let gathering = account.gathered.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&album);
        let parts = gathering.map(|gathering| gathering.parts).unwrap_or_default();
        tell.send_replace(Some(receive::all(&channels, &account, parts).await));
    });
    Ok(done)
}
