//! The rules over the agent: where its keys go, where they stand, and who talks to it.

use super::{Facts, Found, Severity};
use crate::config::flow::{DmPolicy, GroupPolicy};
use crate::config::in_clear::in_clear;
use crate::config::model::AuthMode;
use crate::config::secret_ref::SecretInput;

/// Judges it.
pub(super) fn flow(facts: &Facts<'_>, found: &mut Found) {
    for leak in in_clear(facts.config) {
        let severity = if leak.is_credential { Severity::Critical } else { Severity::Warn };
        let what = format!("plain http:// to {}: whoever is on the way reads {}", leak.host, leak.what);
        found.add(severity, leak.key, what, "use its https:// address, or a server in a network of your own");
    }
    let flow = &facts.config.flow;
    let mut written_out = Vec::new();
    for (id, provider) in &flow.models.providers {
        // A server of one's own is often given some word for a key.
        if let Some(SecretInput::Literal(key)) = &provider.api_key
            && key.expose().chars().count() >= super::SECRET_CHARS
        {
            written_out.push(format!("models.providers.{id}.apiKey"));
        }
    }
    if let Some(telegram) = &flow.telegram {
        for (key, secret) in [("botToken", &telegram.bot_token), ("webhookSecret", &telegram.webhook_secret)] {
            if matches!(secret, Some(SecretInput::Literal(_))) {
                written_out.push(format!("channels.telegram.{key}"));
            }
        }
    }
    for key in written_out {
        found.add(Severity::Info, key, super::WRITTEN_OUT, super::ELSEWHERE);
    }
    if let Some(telegram) = flow.telegram.as_ref().filter(|telegram| telegram.enabled) {
        let is_everybody = |list: &[String]| list.iter().any(|who| who == "*");
        let what = "writes to the agent, and with it to the tools of your nodes, at your cost";
        let fix = "let people be approved: set it to \"pairing\", or list their ids in allowFrom";
        if telegram.dm_policy == DmPolicy::Open && is_everybody(&telegram.allow_from) {
            let what = format!("everybody who finds the bot {what}");
            found.add(Severity::Critical, "channels.telegram.dmPolicy", what, fix);
        }
        if telegram.group_policy == GroupPolicy::Open {
            let what = format!("everybody in a group that the bot is in {what}");
            found.add(Severity::Warn, "channels.telegram.groupPolicy", what, "set it to \"allowlist\"");
        }
    }
    let gateway = &facts.config.gateway;
    if gateway.chat_completions && facts.mode == Some(AuthMode::None) {
        let what = "POST /v1/chat/completions runs the agent for every program of this machine, with all scopes";
        let fix = "set gateway.auth.mode to token, or switch the endpoint off";
        found.add(Severity::Critical, "gateway.http.endpoints.chatCompletions.enabled", what, fix);
    }
    if !gateway.allow_tools.is_empty() {
        let what = format!(
            "POST /tools/invoke also gives {}, which is closed by itself: whoever holds the shared secret has it",
            gateway.allow_tools.join(", ")
        );
        found.add(Severity::Warn, "gateway.tools.allow", what, "take out what no program of yours calls");
    }
}
