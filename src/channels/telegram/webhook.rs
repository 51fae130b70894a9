//! The webhook: Telegram brings updates to a URL of the operator's, from where a proxy leads them here.
//!
//! This says where the listener is to be, tells the Bot API about it, and takes in what comes; the listener itself is the
//! server's, which asks [`Webhook::is_from_telegram`] before it reads a body. Updates may come side by side and in any
//! order, so each is known by its own number.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use super::api::ApiError;
use super::poll::pause;
use super::{Account, CHANNEL, album, while_on};
use crate::channels::Channels;
use crate::rpc::error::RpcError;
use crate::secret::Secret;

/// Where updates are brought to.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// What to listen on.
    pub address: SocketAddr,
    /// The one path.
    pub path: String,
    secret: Secret,
    account: Arc<Account>,
}

impl Webhook {
    /// Whether a request carries the secret that Telegram was given: `X-Telegram-Bot-Api-Secret-Token`. Takes the same
    /// time whatever it carries.
    pub fn is_from_telegram(&self, token: Option<&str>) -> bool {
        self.secret.matches(token.unwrap_or_default())
    }

    /// Whether this is the same place for the same account.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.account, &other.account)
    }

    /// The listener cannot be there.
    pub fn failed(&self, why: &str) {
        let mut health = self.account.lock();
        health.connected = false;
        health.last_error = Some(format!("the webhook's listener: {why}"));
    }
}

/// Whether Telegram takes this as a secret.
pub(super) fn is_secret(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// Takes updates while the account is to run.
pub(super) async fn run(channels: &Channels, account: &Arc<Account>) {
    while_on(account, || open(channels, account)).await;
}

/// Takes the place away when nobody takes updates any more.
struct Published<'a>(&'a watch::Sender<Option<Webhook>>);

impl Drop for Published<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// Says where the place is, tells the Bot API, and stays until dropped. What the Bot API cannot bring meanwhile it keeps.
async fn open(channels: &Channels, account: &Arc<Account>) {
    let (Some(url), Some(secret)) = (&account.settings.webhook_url, &account.secret) else {
        return std::future::pending().await;
    };
    let webhook = Webhook {
        address: SocketAddr::new(account.settings.webhook_host, account.settings.webhook_port),
        path: account.settings.webhook_path.clone(),
        secret: secret.clone(),
        account: Arc::clone(account),
    };
    let _published = Published(&channels.0.webhook);
    channels.0.webhook.send_replace(Some(webhook));
    let mut failures = 0u32;
    loop {
        match tell(account, url, secret).await {
            Ok(()) => break,
            Err(error) => {
                account.failed(&error);
                failures = failures.saturating_add(1);
                let pause = pause(&error, failures);
                if failures <= 3 || failures.is_multiple_of(20) {
                    tracing::warn!(channel = CHANNEL, %error, failures, ?pause, "the webhook could not be set");
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    account.succeeded();
    tracing::info!(channel = CHANNEL, "the Bot API brings updates to the webhook");
    std::future::pending().await
}

async fn tell(account: &Account, url: &str, secret: &Secret) -> Result<(), ApiError> {
    if account.health().bot.is_none() {
        let bot = account.api.me().await?;
        tracing::info!(channel = CHANNEL, bot = %bot.username, "the bot is known");
        account.lock().bot = Some(bot);
    }
    let certificate = match account.settings.webhook_cert_path.clone() {
        None => None,
        Some(path) => {
            let shown = path.display().to_string();
            let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
            let read = read.map_err(std::io::Error::other).and_then(|read| read);
            Some(read.map_err(|error| ApiError::Lost {
                reason: format!("channels.telegram.webhookCertPath: {shown}: {error}"),
                sent: false,
            })?)
        }
    };
    account.api.set_webhook(url, secret, certificate.as_deref()).await
}

/// Takes in an update that was brought. It is on disk when this is [`Ok`].
///
/// # Errors
/// It was not stored: it is to be brought again.
pub async fn take_update(channels: &Channels, webhook: &Webhook, update: Value) -> Result<(), RpcError> {
    let account = &webhook.account;
    // Who the bot is decides what a mention is.
    if account.health().bot.is_none() {
        return Err(RpcError::unavailable("the bot is not known yet").retryable(true));
    }
    album::gather(channels, account, update).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_what_telegram_takes() {
        assert!(is_secret("Aa0_-") && is_secret(&"x".repeat(256)));
        assert!(!is_secret("") && !is_secret(&"x".repeat(257)) && !is_secret("a b") && !is_secret("a:b"));
    }
}
