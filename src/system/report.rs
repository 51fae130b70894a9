//! The shapes of `health`, `status` and `channels.status`.
//!
//! They carry what this gateway knows under the names the wire has for it; what it does not have (plugins,
//! channels, a list of sessions) is there and empty, because clients read those fields without asking.

use serde_json::{Value, json};

use super::System;
use crate::clock::UnixMs;
use crate::task;

/// The agent that every installation has.
pub const MAIN_AGENT: &str = "main";

impl System {
    /// `health` as JSON, also part of `hello-ok`. All but its time is encoded once.
    pub fn write_health(&self, now: UnixMs, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        let _ = match self.fault() {
            None => std::io::Write::write_all(out, br#"{"ok":true,"ts":"#),
            Some(fault) => std::io::Write::write_fmt(
                out,
                format_args!(r#"{{"ok":false,"storage":{{"ok":false,"error":"{}"}},"ts":"#, fault.as_str()),
            ),
        };
        let _ = std::io::Write::write_fmt(out, format_args!("{}", now.0));
        out.push(b',');
        let sessions = self.sessions();
        for (at, piece) in self.health_tail().iter().enumerate() {
            if at > 0 {
                let _ = std::io::Write::write_fmt(out, format_args!("{sessions}"));
            }
            out.extend_from_slice(piece);
        }
    }

    /// `status`.
    pub fn status(&self) -> Value {
        let (hub, sessions) = (self.hub(), self.sessions());
        json!({
            "runtimeVersion": env!("CARGO_PKG_VERSION"),
            "heartbeat": {
                "defaultAgentId": MAIN_AGENT,
                "agents": [{"agentId": MAIN_AGENT, "enabled": false, "every": "0m", "everyMs": null}],
            },
            "channelSummary": [],
            "queuedSystemEvents": [],
            "tasks": {
                "total": 0, "active": 0, "terminal": 0, "failures": 0,
                "byStatus": {
                    "queued": 0, "running": 0, "succeeded": 0, "failed": 0, "timed_out": 0, "cancelled": 0, "lost": 0,
                },
                "byRuntime": {"subagent": 0, "acp": 0, "cli": 0, "cron": 0},
            },
            "taskAudit": {
                "total": 0, "warnings": 0, "errors": 0,
                "byCode": {
                    "stale_queued": 0, "stale_running": 0, "lost": 0, "delivery_failed": 0, "missing_cleanup": 0,
                    "inconsistent_timestamps": 0,
                },
            },
            "sessions": {
                "paths": [], "count": sessions, "defaults": {"model": null, "contextTokens": null}, "recent": [],
                "byAgent": [{"agentId": MAIN_AGENT, "path": "", "count": sessions, "recent": []}],
            },
            "pid": std::process::id(),
            "processMemory": {"rssBytes": resident_bytes()},
            "gateway": {
                "name": "clawgate",
                "uptimeMs": self.uptime_ms(),
                "connections": hub.len(),
                "queuedBytes": hub.queued_bytes(),
                "tasks": task::running(),
                "taskPanics": task::panics(),
                "refused": self.refusals().counts(),
            },
        })
    }
}

/// `health` behind its time, in pieces: between them stands the number of sessions.
pub(super) fn health_tail(state_dir: &std::path::Path) -> Vec<Vec<u8>> {
    // No path holds a control character as it stands in JSON.
    const COUNT: &str = "\u{1}";
    let sessions = json!({"path": state_dir.display().to_string(), "count": COUNT, "recent": []});
    let tail = json!({
        "durationMs": 0,
        "plugins": {"loaded": [], "errors": []},
        "channels": {},
        "channelOrder": [],
        "channelLabels": {},
        "heartbeatSeconds": 0,
        "defaultAgentId": MAIN_AGENT,
        "agents": [{
            "agentId": MAIN_AGENT,
            "isDefault": true,
            "heartbeat": {
                "enabled": false, "every": "0m", "everyMs": null, "prompt": "", "target": "none", "ackMaxChars": 0,
            },
            "sessions": sessions,
        }],
        "sessions": sessions,
    });
    let tail = tail.to_string();
    tail[1..].split(&json!(COUNT).to_string()).map(|piece| piece.as_bytes().to_vec()).collect()
}

/// Resident memory of the process, in bytes; zero where the system does not say.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
