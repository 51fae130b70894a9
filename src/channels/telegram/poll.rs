//! Long polling: asks for updates, hands them over, and asks for the next ones only when they are stored.

use std::sync::Arc;
use std::time::Duration;

use super::api::{ApiError, POLL_S};
use super::{Account, CHANNEL, album, receive, while_on};
use crate::channels::{Channels, record};
use crate::clock::UnixMs;
use crate::id;

/// How long updates are left alone for which there is no room.
const HELD_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Polls while the account is to run.
pub(super) async fn run(channels: &Channels, account: &Arc<Account>) {
    while_on(account, || poll(channels, account)).await;
}

/// Polls until dropped. What was read of a request that is dropped was not stored, and comes again.
async fn poll(channels: &Channels, account: &Arc<Account>) {
    let (mut failures, mut held) = (0u32, false);
    loop {
        match round(channels, account).await {
            Ok(Round::Stored) => {
                (failures, held) = (0, false);
                account.succeeded();
            }
            // Telegram keeps what is not asked for; the Bot API is well.
            Ok(Round::Held(why)) => {
                account.succeeded();
                if !std::mem::replace(&mut held, true) {
                    tracing::warn!(channel = CHANNEL, why, "updates wait until there is room for them");
                }
                tokio::time::sleep(HELD_PAUSE).await;
            }
            Err(error) => {
                account.failed(&error);
                failures = failures.saturating_add(1);
                let pause = pause(&error, failures);
                if failures <= 3 || failures.is_multiple_of(20) {
                    tracing::warn!(channel = CHANNEL, %error, failures, ?pause, "reading updates failed");
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// What became of the updates that were asked for.
enum Round {
    Stored,
    /// Some can't be taken now: why.
    Held(String),
}

async fn round(channels: &Channels, account: &Arc<Account>) -> Result<Round, ApiError> {
    if account.health().bot.is_none() {
        let bot = account.api.me().await?;
        // A webhook of a former configuration would keep every update to itself.
        account.api.delete_webhook().await?;
        tracing::info!(channel = CHANNEL, bot = %bot.username, "the bot is known");
        account.lock().bot = Some(bot);
        account.succeeded();
    }
    let lost = |error: crate::store::StoreError| ApiError::Lost { reason: error.to_string(), sent: false };
    let (now, bot) = (UnixMs::now(), account.health().bot.unwrap_or_default().id);
    let next = channels.store().read(move |db| record::next_update(db, CHANNEL, bot, now)).await.map_err(lost)?;
    let mut updates = account.api.updates(next, POLL_S).await?;
    if updates.is_empty() {
        return Ok(Round::Stored);
    }
    // The rest of an album may be on its way: what is not acknowledged comes again, and with it what came meanwhile.
    let (mut parts, mut tries) = (0, 0);
    while album::count_in(&updates) > parts && tries < 3 {
        (parts, tries) = (album::count_in(&updates), tries + 1);
        tokio::time::sleep(album::PAUSE).await;
        updates = account.api.updates(next, 0).await?;
    }
    match receive::all(channels, account, updates).await {
        Ok(()) => Ok(Round::Stored),
        Err(error) if error.retryable == Some(true) => Ok(Round::Held(error.message.into_owned())),
        Err(error) => {
            Err(ApiError::Lost { reason: format!("updates were not stored: {}", error.message), sent: false })
        }
    }
}

/// How long to wait after a failure.
pub(super) fn pause(error: &ApiError, failures: u32) -> Duration {
    if let ApiError::Refused { retry_after: Some(after), .. } = error {
        return (*after).min(Duration::from_secs(3600));
    }
    let longest = match error {
        // A wrong token does not become right by asking often.
        ApiError::Refused { code: 401 | 404, .. } => Duration::from_secs(300),
        _ => LONGEST_PAUSE,
    };
    let pause = Duration::from_millis(500).saturating_mul(2u32.saturating_pow(failures.min(12) - 1)).min(longest);
    let [chance] = id::random_bytes::<1>();
    pause.mul_f64(0.5 + f64::from(chance) / 510.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_to_its_bound_and_obeys_retry_after() {
        let lost = ApiError::Lost { reason: String::new(), sent: false };
        assert!(pause(&lost, 1) <= Duration::from_millis(500));
        assert!(pause(&lost, 100) <= LONGEST_PAUSE && pause(&lost, 100) >= LONGEST_PAUSE / 2);
        let flood =
            ApiError::Refused { code: 429, description: String::new(), retry_after: Some(Duration::from_secs(7)) };
        assert_eq!(pause(&flood, 5), Duration::from_secs(7));
    }
}
