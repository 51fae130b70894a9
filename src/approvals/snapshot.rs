//! A request as `approval.get` and `approval.resolve` show it: one shape for every kind of approval, and for how it ended.

use serde_json::{Value, json};

use super::{Decision, Request};
use crate::clock::UnixMs;

impl Request {
    /// What may be decided: a command for no node can't be allowed for good.
    fn allowed_decisions(&self) -> &'static [&'static str] {
        match self.command.node_id {
            Some(_) => &["allow-once", "allow-always", "deny"],
            None => &["allow-once", "deny"],
        }
    }

    /// The request and how it stands. Its folder and plan are for those who ask for them by `exec.approval.get`.
    pub(super) fn snapshot(&self, id: &str, now: UnixMs) -> Value {
        let mut shown = json!({
            "id": id, "urlPath": format!("/approve/{id}"), "createdAtMs": self.created_at, "expiresAtMs": self.expires_at,
            "presentation": {
                "kind": "exec", "commandText": self.command.text(), "host": "node", "nodeId": self.command.node_id,
                "agentId": "main", "allowedDecisions": self.allowed_decisions(),
            },
        });
        let decision = *self.decided.borrow();
        let Some(ended_at) = self.decided_at.filter(|_| decision.is_some()).or_else(|| self.lapsed_at(now)) else {
            shown["status"] = json!("pending");
            if let Some(key) = &self.command.session_key {
                shown["sourceSessionKey"] = json!(key);
            }
            return shown;
        };
        shown["resolvedAtMs"] = json!(ended_at);
        shown["source"] = json!({"agentId": "main"});
        if let Some(key) = &self.command.session_key {
            shown["source"]["sessionKey"] = json!(key);
        }
        let (status, reason) = match decision {
            None => ("expired", "timeout"),
            Some(_) if self.withdrawn => ("cancelled", "run-aborted"),
            Some(Decision::Deny) => ("denied", "user"),
            Some(Decision::AllowOnce | Decision::AllowAlways) => ("allowed", "user"),
        };
        shown["status"] = json!(status);
        shown["reason"] = json!(reason);
        if let (Some(decision), false) = (decision, self.withdrawn) {
            shown["decision"] = json!(decision.as_str());
            shown["resolver"] = json!({"kind": "device", "id": self.decided_by});
        }
        shown
    }

    /// When it has lapsed with nobody's word.
    fn lapsed_at(&self, now: UnixMs) -> Option<UnixMs> {
        (self.decided_at.is_none() && now >= self.expires_at).then_some(self.expires_at)
    }
}
