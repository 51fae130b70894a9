//! The RPC methods of the domain.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::grants::Grant;
use super::{Approvals, Command, Decision};
use crate::hub::Connection;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::{ErrorCode, RpcError};

/// The table that `methods.rs` mounts.
pub const METHODS: &[Method<Approvals>] = &[
    Method { name: "approval.get", handler: get_any },
    Method { name: "approval.resolve", handler: resolve_any },
    Method { name: "exec.approval.request", handler: request },
    Method { name: "exec.approval.get", handler: get },
    Method { name: "exec.approval.list", handler: list },
    Method { name: "exec.approval.resolve", handler: resolve },
    Method { name: "exec.approval.waitDecision", handler: wait },
    Method { name: "exec.approval.grants.list", handler: grants_list },
    Method { name: "exec.approval.grants.revoke", handler: grants_revoke },
    Method { name: "plugin.approval.list", handler: none },
    Method { name: "openclaw.approval.list", handler: none },
];

/// Days that a grant may be given for.
const MAX_GRANT_DAYS: u64 = 3650;
/// Grants of one list.
const MAX_GRANT_ROWS: usize = 500;
/// Bytes of a command, all arguments together.
pub(crate) const MAX_COMMAND_BYTES: usize = 16 * 1024;

fn request(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        id: Option<String>,
        command: Option<String>,
        command_argv: Option<Vec<String>>,
        cwd: Option<String>,
        node_id: Option<String>,
        session_key: Option<String>,
        timeout_ms: Option<u64>,
        #[serde(default)]
        two_phase: bool,
    }
    let params: Params = call.params()?;
    let command_argv = params.command_argv.filter(|argv| !argv.is_empty()).or_else(|| Some(vec![params.command?]));
    let command_argv = command_argv
        .filter(|argv| argv.iter().map(String::len).sum::<usize>() <= MAX_COMMAND_BYTES)
        .ok_or_else(|| {
            RpcError::invalid("invalid exec.approval.request params: needs command or commandArgv of 16 KiB at most")
        })?;
    let command = Command {
        command_argv,
        cwd: params.cwd,
        node_id: params.node_id,
        session_key: params.session_key,
        mutable_file_operand: None,
    };
    let (now, timeout) = (call.now(), params.timeout_ms.map(Duration::from_millis));
    let (id, expires_at) = approvals.request(params.id, command, timeout, now)?;
    let accepted = json!({"id": id, "status": "accepted", "createdAtMs": now, "expiresAtMs": expires_at});
    if params.two_phase {
        return call.answer(&accepted);
    }
    let approvals = approvals.clone();
    call.spawn(async move {
        let decision = approvals.wait(&id).await.map(Decision::as_str);
        Ok(json!({"id": id, "decision": decision, "createdAtMs": now, "expiresAtMs": expires_at}))
    })
}

#[derive(Deserialize)]
struct IdParams {
    id: String,
}

fn get(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    let IdParams { id } = call.params()?;
    let row = approvals.requests().get(&id).map(|request| {
        let mut row = request.row(&id);
        row["decision"] = json!(request.decided.borrow().map(Decision::as_str));
        row
    });
    match row {
        Some(row) => call.answer(&row),
        None => Err(RpcError::new(ErrorCode::NotFound, "no approval has this id")),
    }
}

fn list(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    let now = call.now();
    let mut rows: Vec<Value> = {
        let requests = approvals.requests();
        requests.iter().filter(|(_, request)| request.is_pending(now)).map(|(id, request)| request.row(id)).collect()
    };
    rows.sort_by_key(|row| row["createdAtMs"].as_u64());
    call.answer(&rows)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResolveParams {
    id: String,
    /// Of which kind the request is, where a method takes every kind.
    kind: Option<String>,
    decision: String,
    grant_expires_in_days: Option<u64>,
}

impl ResolveParams {
    /// What was decided, and for how many days where that is said.
    fn decision(&self, method: &str) -> Result<(Decision, Option<u64>), RpcError> {
        let invalid = |what: String| Err(RpcError::invalid(format!("invalid {method} params: {what}")));
        let days = self.grant_expires_in_days;
        if days.is_some_and(|days| !(1..=MAX_GRANT_DAYS).contains(&days)) {
            return invalid(format!("at grantExpiresInDays: must be 1 to {MAX_GRANT_DAYS}"));
        }
        match self.decision.as_str() {
            "allow-once" => Ok((Decision::AllowOnce, None)),
            "allow-always" => Ok((Decision::AllowAlways, days)),
            "deny" => Ok((Decision::Deny, None)),
            _ => invalid("at decision: must be allow-once, allow-always or deny".to_owned()),
        }
    }
}

fn resolve(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    let params: ResolveParams = call.params()?;
    let (decision, days) = params.decision("exec.approval.resolve")?;
    let (id, by, now) = (params.id, shown(call.caller()), call.now());
    if decision == Decision::AllowAlways {
        let approvals = approvals.clone();
        return call.spawn(async move {
            approvals.grant(&id, &by, days, now).await?;
            Ok(json!({"ok": true}))
        });
    }
    approvals.resolve(&id, decision, &by, now)?;
    call.answer(&json!({"ok": true}))
}

/// There is no approval of this id: clients look for these words.
fn unknown() -> RpcError {
    RpcError::new(ErrorCode::NotFound, "approval not found: it may have lapsed, or the gateway was restarted")
}

fn get_any(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    let IdParams { id } = call.params()?;
    let shown = approvals.requests().get(&id).map(|request| request.snapshot(&id, call.now()));
    call.answer(&json!({"approval": shown.ok_or_else(unknown)?}))
}

/// The first word counts; whoever comes later is told what it was.
fn resolve_any(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    let params: ResolveParams = call.params()?;
    let (decision, days) = params.decision("approval.resolve")?;
    if !approvals.requests().contains_key(&params.id) || params.kind.as_deref() != Some("exec") {
        return Err(unknown());
    }
    let (id, by, now, approvals) = (params.id, shown(call.caller()), call.now(), approvals.clone());
    call.spawn(async move {
        let decided = match decision {
            Decision::AllowAlways => approvals.grant(&id, &by, days, now).await,
            Decision::AllowOnce | Decision::Deny => approvals.resolve(&id, decision, &by, now),
        };
        let shown = approvals.requests().get(&id).map(|request| request.snapshot(&id, now)).ok_or_else(unknown)?;
        match decided {
            Err(error) if shown["status"] == "pending" => Err(error),
            decided => Ok(json!({"applied": decided.is_ok(), "approval": shown})),
        }
    })
}

fn grants_list(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    struct Params {
        limit: Option<usize>,
    }
    let Params { limit } = call.params()?;
    let approvals = approvals.clone();
    call.spawn(async move {
        let grants = approvals.grants().await?;
        let limit = limit.unwrap_or(MAX_GRANT_ROWS).clamp(1, MAX_GRANT_ROWS);
        Ok(json!({"grants": grants.iter().take(limit).map(Grant::row).collect::<Vec<_>>()}))
    })
}

fn grants_revoke(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        grant_id: String,
    }
    let Params { grant_id } = call.params()?;
    let (approvals, by, now) = (approvals.clone(), shown(call.caller()), call.now());
    call.spawn(async move {
        let outcome = approvals.revoke(grant_id.clone(), by, now).await?;
        tracing::info!(grant = %grant_id, outcome, "a standing grant was to be revoked");
        Ok(json!({"outcome": outcome}))
    })
}

/// Who has decided, for people.
fn shown(caller: &Connection) -> String {
    let user = caller.grant.user().map(str::to_owned);
    let name = user.or_else(|| caller.client.display_name.as_deref().map(str::to_owned));
    name.unwrap_or_else(|| caller.client.id.to_string()).chars().filter(|c| !c.is_control()).take(64).collect()
}

fn wait(approvals: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    let IdParams { id } = call.params()?;
    if !approvals.requests().contains_key(&id) {
        return Err(RpcError::new(ErrorCode::NotFound, "no approval has this id"));
    }
    let approvals = approvals.clone();
    call.spawn(async move {
        let decision = approvals.wait(&id).await.map(Decision::as_str);
        Ok(json!({"id": id, "decision": decision}))
    })
}

/// There are no plugins here, so none of their approvals waits.
fn none(_: &Approvals, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.answer(&json!([]))
}
