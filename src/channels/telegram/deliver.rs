//! Sends what waits in the outbox, one message at a time, each at most once.

use std::time::Duration;

use super::api::ApiError;
use super::{ACCOUNT, Account, CHANNEL, Switch, poll, text};
use crate::channels::Channels;
use crate::channels::record::{self, Outgoing, Sent};
use crate::clock::UnixMs;
use crate::rpc::error::RpcError;
use crate::store::Change;

/// Tries of one message.
const ATTEMPTS: u32 = 8;
/// The longest pause between two of them, unless the Bot API wants more.
const LONGEST_PAUSE_MS: u64 = 60_000;
/// How long a channel that sent nothing looks away, should a wake-up have been missed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Sends while the account is to run.
pub(super) async fn run(channels: &Channels, account: &Account) {
    let mut switch = account.run.subscribe();
    loop {
        match switch.wait_for(|switch| *switch != Switch::Off).await.map(|switch| *switch) {
            Ok(Switch::On) => {}
            _ => return,
        }
        // A message that is on its way is brought to its end, also when the channel is stopped.
        let wait = match one(channels, account).await {
            Ok(None) => continue,
            Ok(Some(wait)) => wait,
            Err(error) => {
                tracing::error!(channel = CHANNEL, error = %error.message, "the outbox cannot be read");
                Duration::from_secs(5)
            }
        };
        tokio::select! {
            () = account.waiting.notified() => {}
            () = tokio::time::sleep(wait) => {}
            _ = switch.wait_for(|switch| *switch != Switch::On) => {}
        }
    }
}

/// Sends the next message. Otherwise how long to wait for one.
async fn one(channels: &Channels, account: &Account) -> Result<Option<Duration>, RpcError> {
    let now = UnixMs::now();
    let taken = channels
        .store()
        .write(move |tx| Ok::<_, RpcError>(Change::of(record::take(tx, CHANNEL, ACCOUNT, now)?)))
        .await?;
    let message = match taken {
        Ok(message) => message,
        Err(next) => {
            let wait = next.map_or(LOOK_AGAIN, |next| Duration::from_millis(next.since(now).max(10)));
            return Ok(Some(wait.min(LOOK_AGAIN)));
        }
    };
    let seq = message.seq;
    let preview = match &message.preview {
        None => None,
        Some(run_id) => {
            account.previews.quiet(run_id).await;
            let id = run_id.clone();
            channels.store().read(move |db| record::preview(db, &id)).await?
        }
    };
    let result = match preview {
        None => send(account, &message).await,
        Some(message_id) => edit(account, &message, message_id).await,
    };
    match &result {
        Ok(_) => account.succeeded(),
        Err(error) if is_of_account(error) => account.failed(error),
        Err(_) => {}
    }
    // What meets every message is not tried with each.
    let pause = result.as_ref().err().filter(|error| is_of_account(error));
    let pause = pause.map(|error| poll::pause(error, message.attempts + 1).min(LOOK_AGAIN));
    let sent = match judge(result, message.attempts + 1, UnixMs::now()) {
        // Made twice, an edit is made once.
        Sent::Unknown(why) if preview.is_some() => Sent::Later(UnixMs::now().plus(1000), why),
        Sent::Never(why) if preview.is_some() => {
            tracing::warn!(channel = CHANNEL, why, "a preview cannot be edited any more: the answer follows it");
            let again =
                move |tx: &crate::store::Tx<'_>| Ok::<_, RpcError>(Change::of(record::without_preview(tx, seq)?));
            channels.store().write(again).await?;
            return Ok(None);
        }
        sent => sent,
    };
    match &sent {
        Sent::Yes(_) => account.lock().last_outbound_at = Some(UnixMs::now()),
        Sent::Later(_, why) => {
            tracing::warn!(channel = CHANNEL, why, attempts = message.attempts + 1, "a message waits for another try")
        }
        Sent::Never(why) => tracing::warn!(channel = CHANNEL, why, "a message was not sent"),
        Sent::Unknown(why) => {
            tracing::warn!(channel = CHANNEL, why, "whether a message arrived is not known; it is not sent again");
        }
    }
    channels.store().write(move |tx| Ok::<_, RpcError>(Change::of(record::sent(tx, seq, &sent)?))).await?;
    Ok(pause)
}

/// Puts the answer in the place of its preview.
async fn edit(account: &Account, message: &Outgoing, message_id: i64) -> Result<Option<i64>, ApiError> {
    let Outgoing { target, text, .. } = message;
    let mut result = account.api.edit(target, message_id, &text::html(text), true).await;
    if is_of_tags(&result) {
        result = account.api.edit(target, message_id, text, false).await;
    }
    result.map(|()| Some(message_id))
}

async fn send(account: &Account, message: &Outgoing) -> Result<Option<i64>, ApiError> {
    let Outgoing { target, thread, reply_to, text, .. } = message;
    if let Some(picture) = &message.picture {
        return account.api.send_photo(target, *thread, *reply_to, picture, &text::html(text)).await;
    }
    let result = account.api.send(target, *thread, *reply_to, &text::html(text), true).await;
    if is_of_tags(&result) {
        return account.api.send(target, *thread, *reply_to, text, false).await;
    }
    result
}

/// Whether the tags of a text were not understood: the words matter more.
fn is_of_tags<T>(result: &Result<T, ApiError>) -> bool {
    matches!(result, Err(ApiError::Refused { code: 400, description, .. }) if description.contains("parse"))
}

/// Whether it is the network's or the account's fault, and none of this message: the token is wrong (401, 404), or
/// somebody else has answered.
const fn is_of_account(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { code: 401 | 404, .. } | ApiError::Lost { .. })
}

/// What the answer to try number `attempt` means. Pure.
fn judge(result: Result<Option<i64>, ApiError>, attempt: u32, now: UnixMs) -> Sent {
    let pause = (500u64 << attempt.min(16)).min(LONGEST_PAUSE_MS);
    let error = match result {
        Ok(message_id) => return Sent::Yes(message_id),
        Err(error) => error,
    };
    let why = error.to_string();
    match error {
        ApiError::Refused { retry_after: Some(after), .. } => {
            let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).min(24 * 3600 * 1000);
            Sent::Later(now.plus(ms), why)
        }
        ApiError::Refused { code: 429 | 500.., .. } if attempt < ATTEMPTS => Sent::Later(now.plus(pause), why),
        // The message is well: it waits for a token that is right.
        ApiError::Refused { code: 401 | 404, .. } => Sent::Later(now.plus(LONGEST_PAUSE_MS), why),
        ApiError::Refused { .. } => Sent::Never(why),
        // Not a byte has left: the network comes back one day.
        ApiError::Lost { sent: false, .. } => Sent::Later(now.plus(pause), why),
        ApiError::Lost { sent: true, .. } => Sent::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    #[test]
    fn only_what_surely_did_not_arrive_is_sent_again() {
        let refused = |code, after: Option<u64>| {
            let retry_after = after.map(Duration::from_secs);
            Err(ApiError::Refused { code, description: String::new(), retry_after })
        };
        let lost = |sent| Err(ApiError::Lost { reason: String::new(), sent });
        assert_eq!(judge(Ok(Some(7)), 1, NOW), Sent::Yes(Some(7)));
        assert!(matches!(judge(refused(429, Some(3)), 99, NOW), Sent::Later(at, _) if at == NOW.plus(3000)));
        assert!(matches!(judge(refused(502, None), 1, NOW), Sent::Later(..)));
        assert!(matches!(judge(refused(502, None), ATTEMPTS, NOW), Sent::Never(_)));
        assert!(matches!(judge(refused(403, None), 1, NOW), Sent::Never(_)));
        for wrong_token in [401, 404] {
            assert!(matches!(judge(refused(wrong_token, None), 99, NOW), Sent::Later(..)));
        }
        assert!(matches!(judge(lost(false), 99, NOW), Sent::Later(..)));
        assert!(matches!(judge(lost(true), 1, NOW), Sent::Unknown(_)));
    }
}
