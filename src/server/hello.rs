//! The payload of `hello-ok`: what a client learns when it is let in.
//!
//! Shape: the wire's `HelloOk`. What is the same for every client of a role is encoded once at start.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::json;

use crate::clock::UnixMs;
use crate::devices::IssuedToken;
use crate::hub::{Connection, Hub};
use crate::limits;
use crate::rpc::catalog::{Audience, EVENTS, Event};
use crate::rpc::dispatch::Router;
use crate::rpc::scope::{Role, Scope};
use crate::system::System;
use crate::system::report::MAIN_AGENT;

/// Writes greetings.
#[derive(Debug)]
pub struct Hello {
    operator_features: String,
    node_features: String,
}

impl Hello {
    /// Prepares what does not change while the gateway runs.
    pub fn new(router: &Router) -> Self {
        Self { operator_features: features(router, Role::Operator), node_features: features(router, Role::Node) }
    }

    /// The payload for `connection`, which speaks `protocol`, of a gateway in `auth_mode`. `tokens` go with it, once: that
    /// of the connection's role, and those of other roles that a setup code gave.
    #[expect(clippy::too_many_arguments, reason = "one call, from the one function that lets clients in")]
    pub fn payload(
        &self,
        connection: &Connection,
        protocol: u32,
        tokens: &[(Role, IssuedToken)],
        auth_mode: &str,
        system: &System,
        hub: &Hub,
        now: UnixMs,
    ) -> Vec<u8> {
        let grant = &connection.grant;
        let features = match grant.role() {
            Role::Operator => &self.operator_features,
            Role::Node => &self.node_features,
        };
        let mut auth = json!({"role": grant.role(), "scopes": grant.scopes()});
        let is_own = |(role, _): &&(Role, IssuedToken)| *role == grant.role();
        if let Some((_, issued)) = tokens.iter().find(is_own) {
            auth["deviceToken"] = json!(issued.token.expose());
            auth["issuedAtMs"] = json!(issued.issued_at);
            let others = tokens.iter().filter(|token| !is_own(token)).map(|(role, issued)| {
                json!({
                    "deviceToken": issued.token.expose(), "role": role, "scopes": issued.scopes,
                    "issuedAtMs": issued.issued_at,
                })
            });
            let others: Vec<_> = others.collect();
            if !others.is_empty() {
                auth["deviceTokens"] = json!(others);
            }
        }
        let may_read = grant.scopes().covers(Scope::Read);
        let presence = if may_read { hub.presence().json() } else { bytes::Bytes::from_static(b"[]") };
        let mut health = Vec::with_capacity(512);
        system.write_health(now, &mut health);
        let snapshot_rest = json!({
            "stateVersion": hub.state_version(),
            "uptimeMs": system.uptime_ms(),
            "sessionDefaults": {
                "defaultAgentId": MAIN_AGENT, "mainKey": "main", "mainSessionKey": "agent:main:main", "scope": "per-sender",
            },
            "authMode": auth_mode,
        })
        .to_string();
        let server = json!({
            "version": env!("CARGO_PKG_VERSION"), "connId": connection.id.to_string(), "bootId": system.facts().boot_id,
        });
        let policy = json!({
            "maxPayload": limits::MAX_PAYLOAD_BYTES,
            "maxBufferedBytes": hub.outbox_bytes(),
            "tickIntervalMs": limits::TICK_INTERVAL.as_millis(),
        });
        let mut text = String::with_capacity(features.len() + presence.len() + snapshot_rest.len() + 512);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            r#"{{"type":"hello-ok","protocol":{protocol},"server":{server},"features":{features},"snapshot":{{"presence":"#
        );
        text.push_str(&String::from_utf8_lossy(&presence));
        text.push_str(r#","health":"#);
        text.push_str(&String::from_utf8_lossy(&health));
        let _ = write!(text, r#",{},"auth":{auth},"policy":{policy}}}"#, &snapshot_rest[1..]);
        text.into_bytes()
    }
}

/// The methods a role may call and the events it may see, as JSON.
fn features(router: &Router, role: Role) -> String {
    let seen = |event: &&&Event| match event.audience {
        Audience::Everyone | Audience::ReadersAndNodes | Audience::Targeted => true,
        Audience::Operators | Audience::Holders(_) | Audience::Followers => role == Role::Operator,
    };
    // One name may stand for events of several kinds.
    let events: BTreeSet<_> = EVENTS.iter().filter(seen).map(|event| event.name).collect();
    json!({"methods": router.names(role), "events": events, "capabilities": []}).to_string()
}
