//! The one list of every RPC method: each domain's table, mounted over its handle.

use serde::Deserialize;
use serde_json::json;

use crate::agent::{self, Agent};
use crate::approvals::{self, Approvals};
use crate::channels::{self, Channels};
use crate::devices::{self, Devices};
use crate::nodes::{self, Nodes};
use crate::rpc::dispatch::{Call, Method, Outcome, Router};
use crate::rpc::error::RpcError;
use crate::sessions::{self, Sessions};
use crate::system::{self, System};

/// The handles of all domains.
#[derive(Clone, Debug)]
pub struct Domains {
    /// Health, status, presence, the log.
    pub system: System,
    /// Pairing and tokens.
    pub devices: Devices,
    /// Nodes and their commands.
    pub nodes: Nodes,
    /// Sessions and transcripts.
    pub sessions: Sessions,
    /// A person's word for one command.
    pub approvals: Approvals,
    /// Runs, models, tools.
    pub agent: Agent,
    /// Where people write from.
    pub channels: Channels,
}

/// What this gateway has none of, and what user interfaces ask for all the same: answered with nothing, which is true.
pub const EMPTY: &[Method<()>] = &[
    Method { name: "commands.list", handler: |(), call| call.answer(&json!({"commands": []})) },
    Method { name: "cron.list", handler: no_jobs },
    Method {
        name: "cron.status",
        handler: |(), call| call.answer(&json!({"enabled": false, "jobs": 0, "nextWakeAtMs": null})),
    },
    Method { name: "cron.runs", handler: no_runs },
    Method {
        name: "plugins.list",
        handler: |(), call| call.answer(&json!({"plugins": [], "diagnostics": [], "mutationAllowed": false})),
    },
    Method { name: "progressCard.get", handler: |(), call| call.answer(&json!({"card": null})) },
    Method { name: "question.list", handler: |(), call| call.answer(&json!({"questions": []})) },
    Method { name: "sessions.branches.list", handler: |(), call| call.answer(&json!({"branches": []})) },
    Method { name: "sessions.companion.state", handler: |(), call| call.answer(&json!({"exchanges": []})) },
    // Somebody looks on, or not: nothing here is done for that alone.
    Method { name: "sessions.observer.visibility", handler: |(), call| call.answer(&json!({"ok": true})) },
    Method {
        name: "skills.status",
        handler: |(), call| call.answer(&json!({"workspaceDir": "", "managedSkillsDir": "", "skills": []})),
    },
    Method {
        name: "talk.catalog",
        handler: |(), call| {
            let none = json!({"ready": false, "providers": []});
            call.answer(&json!({"modes": [], "transports": [], "brains": [], "speech": none, "transcription": none,
                "realtime": none}))
        },
    },
    Method { name: "tasks.list", handler: |(), call| call.answer(&json!({"tasks": []})) },
    Method {
        name: "update.status",
        handler: |(), call| call.answer(&json!({"sentinel": null, "updateAvailable": null})),
    },
];

/// A page of no jobs, as whoever asked for one checks it.
fn no_jobs((): &(), call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    struct Params {
        limit: Option<u64>,
    }
    let Params { limit } = call.params()?;
    call.answer(&json!({"jobs": [], "total": 0, "offset": 0, "limit": limit.unwrap_or(50).clamp(1, 200),
        "hasMore": false, "nextOffset": null, "snapshotRevision": "none"}))
}

/// A page of what jobs have done: nothing.
fn no_runs((): &(), call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    struct Params {
        limit: Option<u64>,
    }
    let Params { limit } = call.params()?;
    call.answer(&json!({"entries": [], "total": 0, "offset": 0, "limit": limit.unwrap_or(50).clamp(1, 200),
        "hasMore": false, "nextOffset": null}))
}

/// The table of this gateway.
pub fn router(domains: &Domains) -> Router {
    let mut router = Router::default();
    router.mount(&domains.system, system::methods::METHODS);
    router.mount(&domains.devices, devices::methods::METHODS);
    router.mount(&domains.nodes, nodes::methods::METHODS);
    router.mount(&domains.sessions, sessions::methods::METHODS);
    router.mount(&domains.approvals, approvals::methods::METHODS);
    router.mount(&domains.agent, agent::methods::METHODS);
    router.mount(&domains.channels, channels::methods::METHODS);
    router.mount(&(), EMPTY);
    router
}
