//! Long polling: asks for updates, hands them over, and asks for the next ones only when they are stored.

use std::sync::Arc;
use std::time::Duration;

use super::api::{ApiError, POLL_S};
use super::{Account, CHANNEL, receive, while_on};
use crate::channels::{Channels, record};
use crate::clock::UnixMs;
use crate::id;

/// The longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Polls while the account is to run.
pub(super) async fn run(channels: &Channels, account: &Arc<Account>) {
    while_on(account, || poll(channels, account)).await;
}

/// Polls until dropped. What was read of a request that is dropped was not stored, and comes again.
async fn poll(channels: &Channels, account: &Arc<Account>) {
    let mut failures = 0u32;
    loop {
        match round(channels, account).await {
            Ok(()) => {
                failures = 0;
                account.succeeded();
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

async fn round(channels: &Channels, account: &Arc<Account>) -> Result<(), ApiError> {
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
    let updates = account.api.updates(next, POLL_S).await?;
    if !updates.is_empty() {
        receive::all(channels, account, updates)
            .await
            .map_err(|error| ApiError::Lost { reason: error.message.into_owned(), sent: false })?;
    }
    Ok(())
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
