//! `clawgate devices`: who may connect, and with which tokens.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::nodes::{pending_request, short};
use super::output::{Json, Table, Tone};
use super::parse_result;
use super::target::{GatewayFlags, Target, scopes_for};
use super::time::ago;
use crate::client::{Connection, Purpose};
use crate::clock::UnixMs;
use crate::rpc::scope::{Role, Scope, ScopeSet};

const TIMEOUT: Duration = Duration::from_secs(10);

/// `devices ...`.
#[derive(Debug, Subcommand)]
pub(super) enum DevicesCommand {
    /// Show pending requests and paired devices
    List(GatewayFlags),
    /// Approve a device that waits
    Approve(ApproveArgs),
    /// Reject a device that waits
    Reject(RequestArgs),
    /// Remove a paired device; it is cut off at once
    Remove(RemoveArgs),
    /// Give a device a label
    Rename(RenameArgs),
    /// Replace a device's token for a role
    Rotate(RotateArgs),
    /// Revoke a device's token for a role
    Revoke(TokenArgs),
    /// Make a URL by which one machine joins as a node: good for ten minutes, fetched once
    JoinCode(GatewayFlags),
}

/// Which request to approve.
#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    /// The request's id or its beginning; without it, the newest one is shown and nothing is approved
    #[arg(value_name = "REQUEST_ID")]
    request_id: Option<String>,
    /// Show the newest request, whatever the id
    #[arg(long)]
    latest: bool,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// Which request.
#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// The request's id or its beginning, from: devices list
    #[arg(value_name = "REQUEST_ID")]
    request_id: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// Which device.
#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The device's id, or the beginning of it
    #[arg(value_name = "DEVICE_ID")]
    device_id: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// Which device, and its label.
#[derive(Debug, Args)]
pub(super) struct RenameArgs {
    /// The device's id, or the beginning of it
    #[arg(long, value_name = "ID")]
    device: String,
    /// The label, at most 64 characters
    #[arg(long, value_name = "LABEL")]
    name: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// Which token.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// The device's id, or the beginning of it
    #[arg(long, value_name = "ID")]
    device: String,
    /// The role: operator or node
    #[arg(long, value_name = "ROLE", value_parser = role)]
    role: Role,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// Which token, and what the new one is good for.
#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    token: TokenArgs,
    /// A scope of the new token; may be given several times. Without any, it has the old one's
    #[arg(long, value_name = "SCOPE", num_args = 1.., conflicts_with = "no_scopes")]
    scope: Vec<String>,
    /// The new token has no scopes
    #[arg(long)]
    no_scopes: bool,
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| "must be operator or node".into())
}

impl DevicesCommand {
    /// Whether the result, and so an error, is printed as JSON.
    pub(super) fn prints_json(&self) -> Json {
        match self {
            Self::List(flags) => Json::asked(flags.json),
            Self::Approve(args) => Json::asked(args.gateway.json),
            Self::Reject(args) => Json::asked(args.gateway.json),
            Self::Remove(args) => Json::asked(args.gateway.json),
            Self::Rename(args) => Json::asked(args.gateway.json),
            Self::Rotate(args) => Json::result(args.token.gateway.json),
            Self::Revoke(args) => Json::result(args.gateway.json),
            Self::JoinCode(flags) => Json::asked(flags.json),
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let output = context.output;
        let target = |flags: &GatewayFlags| Target::resolve(context, flags, Purpose::Call, TIMEOUT);
        match self {
            Self::List(flags) => list(context, &flags).await?,
            Self::Approve(args) => return approve(context, &args).await,
            Self::Reject(args) => {
                let target = target(&args.gateway)?;
                let connection = target.connect(scopes_for(["device.pair.list", "device.pair.reject"])).await?;
                let raw = target.call(&connection, "device.pair.list", &json!({})).await?;
                let devices: Devices = parse_result("device.pair.list", &raw)?;
                let params = json!({"requestId": devices.request(&args.request_id)?.request_id});
                let result = target.call(&connection, "device.pair.reject", &params).await?;
                if args.gateway.json {
                    output.json(result.get())?;
                } else {
                    let value: Value = parse_result("device.pair.reject", &result)?;
                    output.line(&format!("Rejected {}", value["deviceId"].as_str().unwrap_or(&args.request_id)))?;
                }
            }
            Self::Remove(args) => {
                let target = target(&args.gateway)?;
                let (connection, devices) = fetch(&target).await?;
                let id = devices.id(&args.device_id)?;
                let result = target.call(&connection, "device.pair.remove", &json!({"deviceId": id})).await?;
                if args.gateway.json { output.json(result.get())? } else { output.line(&format!("Removed {id}"))? }
            }
            Self::Rename(args) => {
                let target = target(&args.gateway)?;
                let (connection, devices) = fetch(&target).await?;
                let id = devices.id(&args.device)?;
                let params = json!({"deviceId": id, "label": args.name});
                let result = target.call(&connection, "device.pair.rename", &params).await?;
                if args.gateway.json {
                    output.json(result.get())?;
                } else {
                    output.line(&format!("Renamed {id} to {}", args.name))?;
                }
            }
            Self::Rotate(RotateArgs { token, scope, no_scopes }) => {
                let scopes = (no_scopes || !scope.is_empty()).then_some(scope);
                change_token(context, &token, "device.token.rotate", scopes).await?;
            }
            Self::Revoke(token) => change_token(context, &token, "device.token.revoke", None).await?,
            Self::JoinCode(flags) => join_code(context, &target(&flags)?, flags.json).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a join URL, and what to type on the machine that is to join.
async fn join_code(context: &Context, target: &Target, is_json: bool) -> Result<(), CliError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Made {
        join_url: String,
    }
    const METHOD: &str = "device.pair.setupCode";
    let params = json!({"bootstrapProfile": "node", "includeQr": false, "joinUrl": true});
    let Made { join_url } = parse_result(METHOD, &target.call_once(METHOD, &params).await?)?;
    let command = format!("npx openclaw connect {join_url}");
    if is_json {
        return context.output.value(&json!({"joinUrl": join_url, "command": command}));
    }
    context.output.line(&join_url)?;
    context.output.line(&command)
}

/// A request, as `device.pair.list` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pending {
    request_id: String,
    device_id: String,
    display_name: Option<String>,
    client_id: Option<String>,
    platform: Option<String>,
    remote_ip: Option<String>,
    role: Option<String>,
    roles: Vec<String>,
    scopes: Vec<String>,
    is_repair: bool,
    ts: UnixMs,
}

/// A paired device, as `device.pair.list` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Paired {
    device_id: String,
    display_name: Option<String>,
    operator_label: Option<String>,
    client_id: Option<String>,
    remote_ip: Option<String>,
    roles: Vec<String>,
    scopes: Vec<String>,
    tokens: Vec<Token>,
    connected: Option<bool>,
    pending_node_surface: Option<PendingSurface>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Token {
    role: String,
    scopes: Vec<String>,
    revoked_at_ms: Option<UnixMs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PendingSurface {
    request_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Devices {
    pending: Vec<Pending>,
    paired: Vec<Paired>,
}

impl Pending {
    fn label(&self) -> String {
        label([&self.display_name, &self.client_id], &self.device_id)
    }

    fn roles(&self) -> Vec<&str> {
        match self.roles.is_empty() {
            true => self.role.iter().map(String::as_str).collect(),
            false => self.roles.iter().map(String::as_str).collect(),
        }
    }

    /// `operator: read, write; from 10.0.0.7`.
    fn wants(&self) -> String {
        let roles = self.roles().join(", ");
        let scopes = if self.scopes.is_empty() { String::new() } else { format!(": {}", brief(&self.scopes)) };
        let ip = self.remote_ip.as_deref().filter(|ip| !ip.is_empty());
        let from = ip.map(|ip| format!("; from {ip}")).unwrap_or_default();
        format!("{roles}{scopes}{from}")
    }

    /// What approving it would change.
    fn kind(&self, paired: &[Paired]) -> String {
        let known = paired.iter().find(|device| device.device_id == self.device_id);
        let kind = match known {
            None => "new",
            Some(device) if self.roles().iter().any(|role| !device.roles.iter().any(|known| known == role)) => {
                "role upgrade"
            }
            Some(device) => {
                let approved = ScopeSet::parse(device.scopes.iter().map(String::as_str));
                let asked = ScopeSet::parse(self.scopes.iter().map(String::as_str));
                if approved.covers_all(asked) { "re-approval" } else { "scope upgrade" }
            }
        };
        format!("{kind}{}", if self.is_repair { ", repair" } else { "" })
    }
}

impl Paired {
    fn label(&self) -> String {
        label([&self.operator_label, &self.display_name].into_iter().chain([&self.client_id]), &self.device_id)
    }
}

fn label<'a>(names: impl IntoIterator<Item = &'a Option<String>>, id: &str) -> String {
    names.into_iter().flatten().find(|name| !name.is_empty()).cloned().unwrap_or_else(|| short(id))
}

/// Scopes without the `operator.` that all of them have.
fn brief(scopes: &[String]) -> String {
    scopes.iter().map(|scope| scope.strip_prefix("operator.").unwrap_or(scope)).collect::<Vec<_>>().join(", ")
}

impl Devices {
    /// The request that is meant: by its id or by its beginning.
    fn request(&self, query: &str) -> Result<&Pending, CliError> {
        let words = ("device request", "no device waits for approval", "clawgate devices list");
        pending_request(query, &self.pending, |request| &request.request_id, words)
    }

    /// The id of a paired device that is meant: by itself or by its beginning.
    fn id(&self, query: &str) -> Result<String, CliError> {
        let query = query.trim();
        let ids = || self.paired.iter().map(|device| device.device_id.as_str());
        if let Some(id) = ids().find(|id| *id == query) {
            return Ok(id.to_owned());
        }
        let matches: Vec<&str> = ids().filter(|id| query.len() >= 6 && id.starts_with(query)).collect();
        match matches[..] {
            [id] => Ok(id.to_owned()),
            [] => Err(CliError::with_advice(
                format!("unknown device: {query}"),
                "See what there is with: clawgate devices list",
            )),
            _ => Err(CliError::with_advice(
                format!("ambiguous device: {query} (matches: {})", matches.join(", ")),
                "Give more of the id.",
            )),
        }
    }
}

async fn fetch(target: &Target) -> Result<(Connection, Devices), CliError> {
    let connection = target.connect(scopes_for(["device.pair.list"])).await?;
    let raw = target.call(&connection, "device.pair.list", &json!({})).await?;
    Ok((connection, parse_result("device.pair.list", &raw)?))
}

async fn list(context: &Context, flags: &GatewayFlags) -> Result<(), CliError> {
    let output = context.output;
    let target = Target::resolve(context, flags, Purpose::Call, TIMEOUT)?;
    let raw = target.call_once("device.pair.list", &json!({})).await?;
    if flags.json {
        return output.json(raw.get());
    }
    let devices: Devices = parse_result("device.pair.list", &raw)?;
    if devices.pending.is_empty() && devices.paired.is_empty() {
        return output.line("No device is paired, and none waits.");
    }
    if !devices.pending.is_empty() {
        output.print(&output.paint(Tone::Strong, &format!("Pending ({})", devices.pending.len())))?;
        output.table(&pending_table(&devices, UnixMs::now()))?;
        // The id of a device is the fingerprint of its key: what to compare with the device's own screen.
        output.line("What each wants, and its key (SHA-256), to compare with what the device shows:")?;
        for request in &devices.pending {
            output.line(&format!("  {}  {}", short(&request.request_id), request.wants()))?;
            output.line(&format!("  {:12}  {}", "", request.device_id))?;
        }
        output.line("Approve one with: clawgate devices approve REQUEST")?;
    }
    if !devices.paired.is_empty() {
        let gap = if devices.pending.is_empty() { "" } else { "\n" };
        output.print(&format!("{gap}{}", output.paint(Tone::Strong, &format!("Paired ({})", devices.paired.len()))))?;
        output.table(&paired_table(&devices.paired))?;
        for device in &devices.paired {
            if let Some(PendingSurface { request_id }) = &device.pending_node_surface {
                let name = device.label();
                output.line(&format!("The node {name} waits for approval: clawgate nodes approve {request_id}"))?;
            }
        }
    }
    Ok(())
}

fn pending_table(devices: &Devices, now: UnixMs) -> Table {
    let mut table = Table::new(["Request", "Device", "Kind", "Asked"]);
    for request in &devices.pending {
        table.row([
            (Tone::Plain, request.request_id.clone()),
            (Tone::Strong, request.label()),
            (Tone::Warning, request.kind(&devices.paired)),
            (Tone::Plain, ago(now, request.ts)),
        ]);
    }
    table
}

fn paired_table(devices: &[Paired]) -> Table {
    let mut table = Table::new(["Device", "ID", "Roles", "Scopes", "Tokens", "IP"]);
    for device in devices {
        let tokens = device.tokens.iter().map(|token| {
            let revoked = if token.revoked_at_ms.is_some() { " (revoked)" } else { "" };
            format!("{}{revoked}", token.role)
        });
        let tone = if device.connected == Some(true) { Tone::Good } else { Tone::Strong };
        table.row([
            (tone, device.label()),
            (Tone::Faint, short(&device.device_id)),
            (Tone::Plain, device.roles.join(", ")),
            (Tone::Plain, brief(&device.scopes)),
            (Tone::Plain, tokens.collect::<Vec<_>>().join(", ")),
            (Tone::Plain, device.remote_ip.clone().unwrap_or_default()),
        ]);
    }
    table
}

async fn approve(context: &Context, args: &ApproveArgs) -> Result<ExitCode, CliError> {
    let output = context.output;
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let (connection, devices) = fetch(&target).await?;
    let wanted = args.request_id.as_deref().filter(|_| !args.latest);
    let newest = || {
        let newest = devices.pending.iter().max_by_key(|request| request.ts);
        newest.ok_or_else(|| {
            CliError::with_advice("no device waits for approval", "Look again with: clawgate devices list")
        })
    };
    let request = wanted.map_or_else(newest, |id| devices.request(id))?;
    if wanted.is_none() {
        // What is approved must have been looked at: the newest one may have come this very moment.
        let id = &request.request_id;
        if args.gateway.json {
            output.value(
                &json!({"selected": {"requestId": id, "deviceId": request.device_id, "roles": request.roles(),
                "scopes": request.scopes}, "approveCommand": format!("clawgate devices approve {id}")}),
            )?;
        } else {
            output.line(&format!("Selected request {id}"))?;
            output.line(&format!("  Device: {} ({})", request.label(), request.device_id))?;
            if let Some(platform) = &request.platform {
                output.line(&format!("  System: {platform}"))?;
            }
            output.line(&format!("  Wants:  {}; {}", request.roles().join(", "), request.scopes.join(", ")))?;
            output.line(&format!("  Kind:   {}", request.kind(&devices.paired)))?;
        }
        output.note(&format!("Nothing is approved yet. Approve exactly this with: clawgate devices approve {id}"));
        return Ok(ExitCode::FAILURE);
    }
    // Nobody can give what they do not hold, and nodes are an admin's to let in.
    let held = devices.paired.iter().filter(|device| device.device_id == request.device_id);
    let scopes = held.flat_map(|device| &device.scopes).chain(&request.scopes);
    let mut needed = scopes_for(["device.pair.approve"]).union(ScopeSet::parse(scopes.map(String::as_str)));
    if request.roles().iter().any(|role| *role != Role::Operator.as_str()) {
        needed = needed.with(Scope::Admin);
    }
    let connection = raised(&target, connection, needed).await?;
    let params = json!({"requestId": request.request_id});
    let result = target.call(&connection, "device.pair.approve", &params).await?;
    if args.gateway.json {
        output.json(result.get())?;
    } else {
        output.line(&format!("Approved {} ({})", request.label(), request.device_id))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `connection` where it has the scopes already, else another one that has.
async fn raised(target: &Target, connection: Connection, needed: ScopeSet) -> Result<Connection, CliError> {
    if needed == scopes_for(["device.pair.list"]) {
        return Ok(connection);
    }
    target.connect(needed).await
}

async fn change_token(
    context: &Context,
    args: &TokenArgs,
    method: &str,
    scopes: Option<Vec<String>>,
) -> Result<(), CliError> {
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let (connection, devices) = fetch(&target).await?;
    let id = devices.id(&args.device)?;
    let token = devices.paired.iter().filter(|device| device.device_id == id).flat_map(|device| &device.tokens);
    let held = token.into_iter().find(|token| token.role == args.role.as_str()).map(|token| &token.scopes);
    // Whoever changes a token must hold what it is good for; a node's has no scopes, and is an admin's to change.
    let needed = match scopes.as_ref().or(held) {
        Some(scopes) if args.role == Role::Operator => ScopeSet::parse(scopes.iter().map(String::as_str)),
        _ => ScopeSet::EMPTY.with(Scope::Admin),
    };
    let connection = raised(&target, connection, scopes_for([method]).union(needed)).await?;
    let mut params = json!({"deviceId": id, "role": args.role});
    if let Some(scopes) = scopes {
        params["scopes"] = json!(scopes);
    }
    let result = target.call(&connection, method, &params).await?;
    // A new token is in the result, and nowhere else.
    let has_token = method == "device.token.rotate";
    if args.gateway.json || has_token || !context.output.is_for_person() {
        return context.output.json(result.get());
    }
    context.output.line(&format!("Revoked the token of {id} for the role {}", args.role.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Devices {
        serde_json::from_value(json!({
            "pending": [
                {"requestId": "f441e2a6-f5e8-4a5c-919c-bc9266a993d1", "deviceId": "aaaaaaaa", "displayName": "phone",
                 "role": "operator", "roles": ["operator"], "scopes": ["operator.read", "operator.write"], "ts": 60_000},
                {"requestId": "r-2", "deviceId": "cccccccc", "clientId": "cli", "role": "node", "isRepair": true, "ts": 0},
            ],
            "paired": [
                {"deviceId": "aaaaaaaa", "clientId": "cli", "roles": ["operator"], "scopes": ["operator.read"],
                 "tokens": [{"role": "operator", "scopes": ["operator.read"], "revokedAtMs": 5}]},
                {"deviceId": "aaaaaabb", "operatorLabel": "Kitchen", "displayName": "pi", "roles": ["node"],
                 "tokens": [{"role": "node"}], "connected": true, "remoteIp": "10.0.0.7"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn says_what_an_approval_would_change() {
        let devices = devices();
        let kinds: Vec<String> = devices.pending.iter().map(|request| request.kind(&devices.paired)).collect();
        assert_eq!(kinds, ["scope upgrade", "new, repair"]);
        let wants: Vec<String> = devices.pending.iter().map(Pending::wants).collect();
        assert_eq!(wants, ["operator: read, write", "node"]);
    }

    #[test]
    fn a_device_is_meant_by_the_beginning_of_its_id() {
        let devices = devices();
        assert_eq!(devices.id("aaaaaabb").unwrap(), "aaaaaabb");
        assert_eq!(devices.id("aaaaaab").unwrap(), "aaaaaabb");
        assert!(devices.id("aaaaaa").unwrap_err().to_string().contains("ambiguous"));
        assert!(devices.id("aaaa").unwrap_err().to_string().contains("unknown"));
    }

    #[test]
    fn tables_fit_eighty_columns() {
        let devices = devices();
        insta::assert_snapshot!(pending_table(&devices, UnixMs(180_000)).to_text(), @r"
        ┌──────────────────────────────────────┬────────┬───────────────┬────────┐
        │ Request                              ┆ Device ┆ Kind          ┆ Asked  │
        ╞══════════════════════════════════════╪════════╪═══════════════╪════════╡
        │ f441e2a6-f5e8-4a5c-919c-bc9266a993d1 ┆ phone  ┆ scope upgrade ┆ 2m ago │
        │ r-2                                  ┆ cli    ┆ new, repair   ┆ 3m ago │
        └──────────────────────────────────────┴────────┴───────────────┴────────┘
        ");
        insta::assert_snapshot!(paired_table(&devices.paired).to_text(), @r"
        ┌─────────┬──────────┬──────────┬────────┬────────────────────┬──────────┐
        │ Device  ┆ ID       ┆ Roles    ┆ Scopes ┆ Tokens             ┆ IP       │
        ╞═════════╪══════════╪══════════╪════════╪════════════════════╪══════════╡
        │ cli     ┆ aaaaaaaa ┆ operator ┆ read   ┆ operator (revoked) ┆          │
        │ Kitchen ┆ aaaaaabb ┆ node     ┆        ┆ node               ┆ 10.0.0.7 │
        └─────────┴──────────┴──────────┴────────┴────────────────────┴──────────┘
        ");
    }
}
