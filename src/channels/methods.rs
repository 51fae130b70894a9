//! The RPC methods of the domain.

use serde::Deserialize;
use serde_json::{Value, json};

use super::telegram::{ACCOUNT, CHANNEL, Health, text};
use super::{Channels, pairing, record};
use crate::clock::UnixMs;
use crate::config::flow::DmPolicy;
use crate::id;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::{ErrorCode, RpcError};
use crate::store::Change;

/// The table that `methods.rs` mounts.
pub const METHODS: &[Method<Channels>] = &[
    Method { name: "channels.status", handler: status },
    Method { name: "channels.start", handler: start },
    Method { name: "channels.stop", handler: stop },
    Method { name: "channels.logout", handler: logout },
    Method { name: "channels.pairing.list", handler: pairing_list },
    Method { name: "channels.pairing.approve", handler: pairing_approve },
    Method { name: "channels.pairing.dismiss", handler: pairing_dismiss },
    Method { name: "send", handler: send },
];

/// The name for people.
const LABEL: &str = "Telegram";

fn iso(at: UnixMs) -> String {
    at.to_rfc3339()
}

impl Channels {
    async fn status(&self, now: UnixMs) -> Result<Value, RpcError> {
        let (account, error) = (self.telegram(), self.telegram_error());
        if account.is_none() && error.is_none() {
            return Ok(json!({"ts": now, "channelOrder": [], "channelLabels": {}, "channels": {},
                "channelAccounts": {}, "channelDefaultAccountId": {}}));
        }
        let [waiting, failed, unknown] = self.store().read(|db| record::counts(db, CHANNEL, ACCOUNT)).await?;
        let health = account.as_ref().map(|account| account.health()).unwrap_or_default();
        let Health { running, connected, bot, last_error, started_at, stopped_at, last_inbound_at, last_outbound_at } =
            health;
        let last_error = last_error.or(error);
        let settings = account.as_ref().map(|account| account.settings());
        let mode = match settings.is_some_and(|settings| settings.webhook_url.is_some()) {
            true => "webhook",
            false => "polling",
        };
        let row = json!({
            "accountId": ACCOUNT, "name": bot.as_ref().map(|bot| bot.username.as_str()),
            "enabled": settings.is_some_and(|settings| settings.enabled), "configured": true, "linked": true,
            "running": running, "connected": connected, "mode": mode, "tokenSource": "config",
            "dmPolicy": settings.map(|settings| settings.dm_policy.as_str()),
            "allowFrom": settings.map(|settings| settings.allow_from.as_slice()),
            "lastError": last_error, "lastStartAt": started_at, "lastStopAt": stopped_at,
            "lastInboundAt": last_inbound_at, "lastOutboundAt": last_outbound_at,
            "outbox": {"waiting": waiting, "failed": failed, "unknown": unknown},
        });
        let summary = json!({"configured": true, "running": running, "connected": connected, "lastError": last_error,
            "mode": mode, "tokenSource": "config", "lastStartAt": started_at, "lastStopAt": stopped_at});
        Ok(json!({
            "ts": now, "channelOrder": [CHANNEL], "channelLabels": {CHANNEL: LABEL},
            "channelDetailLabels": {CHANNEL: "Telegram Bot"},
            "channelMeta": [{"id": CHANNEL, "label": LABEL, "detailLabel": "Telegram Bot"}],
            "channels": {CHANNEL: summary}, "channelAccounts": {CHANNEL: [row]},
            "channelDefaultAccountId": {CHANNEL: ACCOUNT},
        }))
    }
}

fn status(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "the state is known without a probe; the types are checked all the same")]
    struct Params {
        probe: Option<bool>,
        timeout_ms: Option<u64>,
        channel: Option<String>,
    }
    call.params::<Params>()?;
    let (now, channels) = (call.now(), channels.clone());
    call.spawn(async move { channels.status(now).await })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChannelParams {
    channel: String,
    account_id: Option<String>,
}

fn known(channels: &Channels, params: &ChannelParams) -> Result<std::sync::Arc<super::Account>, RpcError> {
    let account = params.account_id.as_deref().unwrap_or(ACCOUNT);
    let found = channels.telegram().filter(|_| params.channel == CHANNEL && account == ACCOUNT);
    found.ok_or_else(|| {
        let why = channels.telegram_error().filter(|_| params.channel == CHANNEL);
        RpcError::invalid(match why {
            Some(why) => why,
            None => "no such channel or account is configured; channels.status shows those there are".to_owned(),
        })
    })
}

fn switch(channels: &Channels, call: Call<'_>, on: bool) -> Result<Outcome, RpcError> {
    let params: ChannelParams = call.params()?;
    let account = known(channels, &params)?;
    account.set_running(on);
    call.answer(&json!({"channel": CHANNEL, "accountId": ACCOUNT, "started": on, "stopped": !on}))
}

fn start(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    switch(channels, call, true)
}

fn stop(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    switch(channels, call, false)
}

/// Stops the account. Its token stands in the configuration, which is the operator's.
fn logout(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    let params: ChannelParams = call.params()?;
    known(channels, &params)?.set_running(false);
    call.answer(&json!({"channel": CHANNEL, "accountId": ACCOUNT, "cleared": false, "loggedOut": true,
        "message": "stopped until the next start; take channels.telegram.botToken out of the configuration to keep it so"}))
}

fn pairing_list(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    let (now, channels) = (call.now(), channels.clone());
    call.spawn(async move {
        let requests = channels.store().read(move |db| record::requests(db, CHANNEL, now)).await?;
        let pairs = channels.telegram().is_some_and(|account| account.settings().dm_policy == DmPolicy::Pairing);
        let accounts = if pairs {
            json!([{"channel": CHANNEL, "channelLabel": LABEL, "accountId": ACCOUNT, "notifySupported": true}])
        } else {
            json!([])
        };
        let rows: Vec<_> = requests
            .iter()
            .map(|request| {
                json!({"requestId": request.id, "channel": CHANNEL, "channelLabel": LABEL,
                    "accountId": request.account, "senderId": request.sender,
                    "senderLabel": if request.label.is_empty() { &request.sender } else { &request.label },
                    "createdAt": iso(request.at), "lastSeenAt": iso(request.seen_at),
                    "expiresAt": iso(request.at.plus(record::CODE_TTL_MS)), "notifySupported": true})
            })
            .collect();
        Ok(json!({"accounts": accounts, "requests": rows, "commandOwnerConfigured": false,
            "limits": {"pendingPerAccount": record::MAX_REQUESTS, "ttlMs": record::CODE_TTL_MS}}))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PairingParams {
    channel: String,
    /// The request's id, or the code that the person was told.
    request_id: String,
    notify: Option<bool>,
}

fn find<'a>(requests: &'a [record::Request], named: &str) -> Option<&'a record::Request> {
    let code = pairing::normalized(named);
    requests.iter().find(|request| request.id == named || request.code == code)
}

fn no_request() -> RpcError {
    RpcError::new(
        ErrorCode::NotFound,
        "no pairing request has this id or code; it may have lapsed after an hour: let the person write again",
    )
}

fn pairing_approve(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    let PairingParams { channel, request_id, notify } = call.params()?;
    let account = known(channels, &ChannelParams { channel, account_id: None })?;
    let (now, channels) = (call.now(), channels.clone());
    call.spawn(async move {
        let (request, told) = channels
            .store()
            .write(move |tx| {
                let requests = record::requests(tx, CHANNEL, now)?;
                let request = find(&requests, &request_id).ok_or_else(no_request)?.clone();
                if !record::allow(tx, CHANNEL, ACCOUNT, &request.sender, now)? {
                    return Err(RpcError::unavailable("too many people are let in already"));
                }
                record::settle(tx, &request.id)?;
                let told = notify.unwrap_or(true);
                if told {
                    let to = record::To {
                        channel: CHANNEL,
                        account: ACCOUNT,
                        target: &request.chat,
                        thread: None,
                        reply_to: None,
                    };
                    record::put(tx, &format!("approved:{}", request.id), to, "You are let in. Write to me.", now)?;
                }
                Ok(Change::of((request, told)))
            })
            .await?;
        tracing::info!(channel = CHANNEL, sender_user_id = %request.sender, "a person was let in");
        account.wake();
        Ok(json!({"requestId": request.id, "senderId": request.sender,
            "notification": if told { "sent" } else { "not-requested" }, "commandOwnerBootstrap": "not-requested"}))
    })
}

fn pairing_dismiss(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    let PairingParams { channel, request_id, .. } = call.params()?;
    known(channels, &ChannelParams { channel, account_id: None })?;
    let (now, channels) = (call.now(), channels.clone());
    call.spawn(async move {
        channels
            .store()
            .write(move |tx| {
                let requests = record::requests(tx, CHANNEL, now)?;
                let request = find(&requests, &request_id).ok_or_else(no_request)?;
                record::settle(tx, &request.id)?;
                Ok::<_, RpcError>(Change::of(json!({"requestId": request.id, "senderId": request.sender})))
            })
            .await
    })
}

/// Sends a message through a channel, once for each idempotency key.
fn send(channels: &Channels, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        to: String,
        message: Option<String>,
        channel: Option<String>,
        account_id: Option<String>,
        thread_id: Option<String>,
        reply_to_id: Option<String>,
        idempotency_key: String,
    }
    let params: Params = call.params()?;
    let channel = params.channel.unwrap_or_else(|| CHANNEL.to_owned());
    let account = known(channels, &ChannelParams { channel, account_id: params.account_id })?;
    let text = params.message.unwrap_or_default();
    let parts = text::split(&text, account.settings().text_limit);
    if parts.is_empty() {
        return Err(RpcError::invalid("invalid send params: at message: must not be empty; media is not sent yet"));
    }
    let target = params.to.trim();
    let target = target.strip_prefix("telegram:").or_else(|| target.strip_prefix("tg:")).unwrap_or(target).to_owned();
    if target.is_empty() || target.len() > 64 {
        return Err(RpcError::invalid("invalid send params: at to: must be a chat id or @name"));
    }
    let number = |text: Option<String>, name: &str| {
        text.map(|text| text.trim().parse::<i64>())
            .transpose()
            .map_err(|_| RpcError::invalid(format!("invalid send params: at {name}: must be a number")))
    };
    let (thread, reply_to) = (number(params.thread_id, "threadId")?, number(params.reply_to_id, "replyToId")?);
    let (now, channels, key) = (call.now(), channels.clone(), params.idempotency_key);
    call.spawn(async move {
        let run_id = if key.trim().is_empty() { id::uuid() } else { key };
        let prefix = run_id.clone();
        channels
            .store()
            .write(move |tx| {
                for (at, part) in parts.iter().enumerate() {
                    let reply_to = reply_to.filter(|_| at == 0);
                    let to = record::To { channel: CHANNEL, account: ACCOUNT, target: &target, thread, reply_to };
                    if record::put(tx, &format!("send:{prefix}#{at}"), to, part, now)? == record::Put::Full {
                        let full = "too many messages wait to be sent; try again when some have left";
                        return Err(RpcError::unavailable(full).retryable(true));
                    }
                }
                Ok::<_, RpcError>(Change::of(()))
            })
            .await?;
        account.wake();
        Ok(json!({"runId": run_id, "channel": CHANNEL, "messageId": run_id, "status": "queued"}))
    })
}
