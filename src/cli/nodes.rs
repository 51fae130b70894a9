//! `clawgate nodes`: see, approve, name, remove and call nodes.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::CliError;
use super::node_query;
use super::output::{Json, Table, Tone};
use super::target::{GatewayFlags, Target, scopes_for};
use super::time::{ago, parse_span};
use super::{json_object, parse_result};
use crate::client::{Connection, Purpose};
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::scope::ScopeSet;

/// Time for a command that only looks or edits.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for `nodes invoke`, all in all.
const INVOKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time the connection takes beside the invocation itself.
const INVOKE_MARGIN: Duration = Duration::from_secs(10);

/// `nodes ...`.
#[derive(Debug, Subcommand)]
pub(super) enum NodesCommand {
    /// Show nodes: connected or not, approved or not
    Status(ListArgs),
    /// Show pending requests and paired nodes
    List(ListArgs),
    /// Show requests that wait for approval
    Pending(GatewayFlags),
    /// Approve a node's commands
    Approve(RequestArgs),
    /// Reject a node's request
    Reject(RequestArgs),
    /// Show one node with its commands
    Describe(NodeArgs),
    /// Give a node another name
    Rename(RenameArgs),
    /// Remove a node; it is cut off at once
    Remove(NodeArgs),
    /// Run a command on a node
    Invoke(InvokeArgs),
}

/// Which nodes to show.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// Only nodes that are connected
    #[arg(long)]
    connected: bool,
    /// Only nodes that were connected within this time (90s, 30m, 24h, 7d)
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    last_connected: Option<Duration>,
}

/// Which request.
#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// The request's id or its beginning, from: nodes pending
    #[arg(value_name = "REQUEST_ID")]
    request_id: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// Which node.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// The node: its name, id, the beginning of its id, or its address
    #[arg(long, value_name = "NODE")]
    node: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// Which node, and its new name.
#[derive(Debug, Args)]
pub(super) struct RenameArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The new name
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
}

/// What to run where.
#[derive(Debug, Args)]
pub(super) struct InvokeArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The command, such as system.which
    #[arg(long, value_name = "COMMAND")]
    command: String,
    /// Its parameters: a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    params: String,
    /// Time for the node, in milliseconds; 0 is no limit
    #[arg(long, value_name = "MS", default_value_t = 15_000)]
    invoke_timeout: u64,
    /// Two invocations with the same key run once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

impl NodesCommand {
    /// How errors are printed. Commands whose result is JSON print their errors so, too.
    pub(super) fn prints_json(&self) -> Json {
        match self {
            Self::Status(args) | Self::List(args) => Json::asked(args.gateway.json),
            Self::Pending(flags) => Json::asked(flags.json),
            Self::Describe(args) | Self::Remove(args) => Json::asked(args.gateway.json),
            Self::Rename(args) => Json::asked(args.node.gateway.json),
            Self::Approve(args) | Self::Reject(args) => Json::result(args.gateway.json),
            Self::Invoke(args) => Json::result(args.node.gateway.json),
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        match self {
            Self::Status(args) => status(context, &args).await?,
            Self::List(args) => list(context, &args).await?,
            Self::Pending(flags) => pending(context, &flags).await?,
            Self::Approve(args) => approve(context, &args).await?,
            Self::Reject(args) => reject(context, &args).await?,
            Self::Describe(args) => describe(context, &args).await?,
            Self::Rename(args) => {
                let text = |node: &Node| format!("Renamed {} to {}", node.node_id, args.name);
                let params = |node: &Node| json!({"nodeId": node.node_id, "displayName": args.name});
                edit(context, &args.node, "node.rename", params, text).await?;
            }
            Self::Remove(args) => {
                let text = |node: &Node| {
                    // A node that knows the gateway's secret needs nobody to come back; what it may run waits again.
                    format!(
                        "Removed {} ({}). If it still has the gateway's token or password, it comes back when it next connects, \
                         and asks for its commands anew. To keep it out: stop its node host, or change the secret \
                         (clawgate config set gateway.auth.token \"...\").",
                        node.label(),
                        node.node_id
                    )
                };
                edit(context, &args, "node.pair.remove", |node| json!({"nodeId": node.node_id}), text).await?;
            }
            Self::Invoke(args) => invoke(context, &args).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A node, as `node.list` has it: what the tables show of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Node {
    pub(super) node_id: String,
    pub(super) display_name: Option<String>,
    pub(super) remote_ip: Option<String>,
    pub(super) connected: bool,
    client_id: Option<String>,
    client_mode: Option<String>,
    platform: Option<String>,
    device_family: Option<String>,
    model_identifier: Option<String>,
    version: Option<String>,
    core_version: Option<String>,
    path_env: Option<String>,
    caps: Vec<String>,
    commands: Vec<String>,
    paired: bool,
    approval_state: Option<String>,
    pending_request_id: Option<String>,
    pending_declared_caps: Vec<String>,
    pending_declared_commands: Vec<String>,
    connected_at_ms: Option<UnixMs>,
    last_connected_at_ms: Option<UnixMs>,
    last_seen_at_ms: Option<UnixMs>,
}

impl Node {
    /// What people call it.
    pub(super) fn label(&self) -> &str {
        [&self.display_name, &self.remote_ip]
            .into_iter()
            .flatten()
            .find(|text| !text.is_empty())
            .unwrap_or(&self.node_id)
    }

    fn last_connected(&self) -> Option<UnixMs> {
        self.last_connected_at_ms.or(self.connected_at_ms)
    }

    fn version(&self) -> &str {
        self.core_version.as_ref().or(self.version.as_ref()).map_or("", String::as_str)
    }

    fn status(&self, now: UnixMs) -> (Tone, String) {
        let since = self.connected_at_ms.map_or_else(String::new, |at| format!(" ({})", ago(now, at)));
        let (mut tone, mut text) = match (self.connected, self.paired) {
            (true, true) => (Tone::Good, format!("connected{since}")),
            (true, false) => (Tone::Warning, format!("connected{since}, not paired")),
            (false, true) => {
                let seen = self.last_seen_at_ms.or(self.last_connected_at_ms);
                (Tone::Faint, seen.map_or_else(|| "offline".into(), |at| format!("offline (seen {})", ago(now, at))))
            }
            (false, false) => (Tone::Faint, "offline, not paired".into()),
        };
        match self.approval_state.as_deref() {
            None | Some("approved") => {}
            Some(state) => {
                tone = Tone::Warning;
                text.push_str(&format!(", {}", approval(state)));
            }
        }
        (tone, text)
    }
}

/// An approval state for people.
fn approval(state: &str) -> String {
    match state {
        "pending-approval" => "approval pending".into(),
        "pending-reapproval" => "new commands wait for approval".into(),
        other => other.replace('-', " "),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeList {
    ts: UnixMs,
    nodes: Vec<Node>,
}

/// A request, as `node.pair.list` has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pending {
    request_id: String,
    node_id: String,
    display_name: Option<String>,
    remote_ip: Option<String>,
    platform: Option<String>,
    commands: Vec<String>,
    required_approve_scopes: Vec<String>,
    ts: UnixMs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PairList {
    pending: Vec<Pending>,
}

impl Pending {
    /// What people call the node.
    fn label(&self) -> String {
        self.display_name.clone().unwrap_or_else(|| short(&self.node_id))
    }
}

impl PairList {
    /// The request that is meant: by its id or by its beginning.
    fn request(&self, query: &str) -> Result<&Pending, CliError> {
        let words = ("node pairing request", "no node waits for approval", "clawgate nodes pending");
        pending_request(query, &self.pending, |request| &request.request_id, words)
    }
}

/// The request of `pending` that is meant: by its id or by its beginning. The words: what it is, that there is none, and the
/// command that shows them.
pub(super) fn pending_request<'a, T>(
    query: &str,
    pending: &'a [T],
    id: impl Fn(&T) -> &String,
    (what, none, look): (&str, &str, &str),
) -> Result<&'a T, CliError> {
    by_beginning(query, pending, &id).map_err(|why| {
        let ids: Vec<&str> = pending.iter().map(|request| id(request).as_str()).collect();
        let known = if ids.is_empty() { none.to_owned() } else { format!("pending: {}", ids.join(", ")) };
        why.error(&format!("{what} {query}"), &known, look)
    })
}

/// Why nothing is meant by the beginning of an id.
#[derive(Debug, PartialEq, Eq)]
enum Unclear {
    /// Nothing begins so.
    Unknown,
    /// All of these do.
    Ambiguous(Vec<String>),
}

impl Unclear {
    /// The error, for `what`; `known` is what there is, `look` the command that shows it.
    fn error(&self, what: &str, known: &str, look: &str) -> CliError {
        match self {
            Self::Unknown => {
                CliError::with_advice(format!("unknown {what} ({known})"), format!("Look again with: {look}"))
            }
            Self::Ambiguous(ids) => {
                CliError::with_advice(format!("ambiguous {what} (matches: {})", ids.join(", ")), "Give more of the id.")
            }
        }
    }
}

/// The one of `all` whose id is `query`, or begins with it; four characters at least.
fn by_beginning<'a, T>(query: &str, all: &'a [T], id: impl Fn(&T) -> &String) -> Result<&'a T, Unclear> {
    let query = query.trim();
    if let Some(found) = all.iter().find(|one| id(one) == query) {
        return Ok(found);
    }
    let matches: Vec<&T> = all.iter().filter(|one| query.len() >= 4 && id(one).starts_with(query)).collect();
    match matches[..] {
        [found] => Ok(found),
        [] => Err(Unclear::Unknown),
        _ => Err(Unclear::Ambiguous(matches.into_iter().map(|one| id(one).clone()).collect())),
    }
}

/// The beginning of an id: enough to tell nodes apart, and to name one.
pub(super) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}

/// Nodes that the flags ask for. `ts` is the gateway's time.
fn selected<'a>(nodes: &'a [Node], args: &ListArgs, ts: UnixMs) -> Vec<&'a Node> {
    let recent = |node: &Node| {
        args.last_connected.is_none_or(|within| {
            node.connected || node.last_connected().is_some_and(|at| u128::from(ts.since(at)) <= within.as_millis())
        })
    };
    nodes.iter().filter(|node| (!args.connected || node.connected) && recent(node)).collect()
}

/// `node.list`, with what an operator who may pair also sees: pending requests.
async fn fetch(target: &Target, methods: &[&str]) -> Result<(Connection, Box<RawValue>), CliError> {
    let scopes = scopes_for(["node.list", "node.pair.list"].iter().chain(methods).copied());
    let connection = target.connect(scopes).await?;
    let list = target.call(&connection, "node.list", &json!({})).await?;
    Ok((connection, list))
}

async fn status(context: &Context, args: &ListArgs) -> Result<(), CliError> {
    let output = context.output;
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let (_, raw) = fetch(&target, &[]).await?;
    let list: NodeList = parse_result("node.list", &raw)?;
    let nodes = selected(&list.nodes, args, list.ts);
    if args.gateway.json {
        if nodes.len() == list.nodes.len() {
            return output.json(raw.get());
        }
        let mut value: Value = parse_result("node.list", &raw)?;
        if let Some(rows) = value.get_mut("nodes").and_then(Value::as_array_mut) {
            rows.retain(|row| nodes.iter().any(|node| row["nodeId"] == *node.node_id));
        }
        return output.value(&value);
    }
    let count = |count: usize| count.to_string();
    let known = match nodes.len() == list.nodes.len() {
        true => count(nodes.len()),
        false => format!("{} (of {})", nodes.len(), list.nodes.len()),
    };
    let paired = count(nodes.iter().filter(|node| node.paired).count());
    let connected = count(nodes.iter().filter(|node| node.connected).count());
    output.line(&format!("Known: {known} · Paired: {paired} · Connected: {connected}"))?;
    let mut table = Table::new(["Node", "ID", "IP", "Status", "System", "Version"]);
    for node in &nodes {
        let system = node.device_family.as_ref().or(node.platform.as_ref()).cloned().unwrap_or_default();
        table.row([
            (Tone::Strong, node.label().into()),
            (Tone::Faint, short(&node.node_id)),
            (Tone::Plain, text(&node.remote_ip)),
            node.status(list.ts),
            (Tone::Plain, system),
            (Tone::Plain, node.version().into()),
        ]);
    }
    if !table.is_empty() {
        output.table(&table)?;
    }
    for node in nodes {
        if let Some(request) = &node.pending_request_id {
            output.line(&format!("{} waits for approval: clawgate nodes approve {request}", node.label()))?;
        }
    }
    Ok(())
}

fn pending_table(requests: &[Pending], now: UnixMs) -> Table {
    let mut table = Table::new(["Request", "Node", "IP", "System", "Asked"]);
    for request in requests {
        let name = request.display_name.clone().unwrap_or_else(|| short(&request.node_id));
        table.row([
            (Tone::Plain, request.request_id.clone()),
            (Tone::Strong, name),
            (Tone::Plain, text(&request.remote_ip)),
            (Tone::Plain, text(&request.platform)),
            (Tone::Plain, ago(now, request.ts)),
        ]);
    }
    table
}

async fn pending(context: &Context, flags: &GatewayFlags) -> Result<(), CliError> {
    let output = context.output;
    let target = Target::resolve(context, flags, Purpose::Call, TIMEOUT)?;
    let raw = target.call_once("node.pair.list", &json!({})).await?;
    if flags.json {
        let value: Value = parse_result("node.pair.list", &raw)?;
        return output.value(&value["pending"]);
    }
    let list: PairList = parse_result("node.pair.list", &raw)?;
    if list.pending.is_empty() {
        return output.line("No node waits for approval.");
    }
    output.table(&pending_table(&list.pending, UnixMs::now()))?;
    // Approving gives all of it: who decides has to see what it is.
    for request in &list.pending {
        let name = request.display_name.clone().unwrap_or_else(|| short(&request.node_id));
        let commands = if request.commands.is_empty() { "no command".to_owned() } else { request.commands.join(", ") };
        output.line(&format!("{name} asks for: {commands}"))?;
        output.line(&format!("  clawgate nodes approve {}", request.request_id))?;
    }
    Ok(())
}

async fn list(context: &Context, args: &ListArgs) -> Result<(), CliError> {
    let output = context.output;
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let (connection, nodes) = fetch(&target, &[]).await?;
    let pairs = target.call(&connection, "node.pair.list", &json!({})).await?;
    let list: NodeList = parse_result("node.list", &nodes)?;
    let paired: Vec<&Node> = selected(&list.nodes, args, list.ts).into_iter().filter(|node| node.paired).collect();
    if args.gateway.json {
        let (nodes, pairs): (Value, Value) =
            (parse_result("node.list", &nodes)?, parse_result("node.pair.list", &pairs)?);
        return output.value(&merged(&nodes, &pairs, &paired));
    }
    let pairs: PairList = parse_result("node.pair.list", &pairs)?;
    output.line(&format!("Pending: {} · Paired: {}", pairs.pending.len(), paired.len()))?;
    if !pairs.pending.is_empty() {
        output.heading("Pending")?;
        output.table(&pending_table(&pairs.pending, list.ts))?;
    }
    if !paired.is_empty() {
        output.heading("Paired")?;
        let mut table = Table::new(["Node", "ID", "IP", "Last connected"]);
        for node in paired {
            let last = node.last_connected().map_or_else(|| "unknown".into(), |at| ago(list.ts, at));
            table.row([
                (Tone::Strong, node.label().into()),
                (Tone::Faint, short(&node.node_id)),
                (Tone::Plain, text(&node.remote_ip)),
                (Tone::Plain, last),
            ]);
        }
        output.table(&table)?;
    }
    Ok(())
}

/// `{pending, paired}`: what the pairing store says of each paired node, with what is known of it now.
fn merged(nodes: &Value, pairs: &Value, paired: &[&Node]) -> Value {
    let rows = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let (now, stored) = (rows(nodes, "nodes"), rows(pairs, "paired"));
    let object = |rows: &[Value], id: &str| -> Map<String, Value> {
        rows.iter().find(|row| row["nodeId"] == id).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let paired: Vec<Value> = paired
        .iter()
        .map(|node| {
            let mut row = object(&stored, &node.node_id);
            row.extend(object(&now, &node.node_id));
            Value::Object(row)
        })
        .collect();
    json!({"pending": pairs["pending"], "paired": paired})
}

async fn approve(context: &Context, args: &RequestArgs) -> Result<(), CliError> {
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let look = scopes_for(["node.pair.list"]);
    let mut connection = target.connect(look).await?;
    let raw = target.call(&connection, "node.pair.list", &json!({})).await?;
    let list: PairList = parse_result("node.pair.list", &raw)?;
    let request = list.request(&args.request_id)?;
    // Approving powerful commands takes more than approving harmless ones; the gateway says how much.
    let needed = look.union(ScopeSet::parse(request.required_approve_scopes.iter().map(String::as_str)));
    if needed != look {
        connection = target.connect(needed).await?;
    }
    let result = target.call(&connection, "node.pair.approve", &json!({"requestId": request.request_id})).await?;
    if args.gateway.json || !context.output.is_for_person() {
        return context.output.json(result.get());
    }
    let commands = if request.commands.is_empty() { "no command".to_owned() } else { request.commands.join(", ") };
    context.output.line(&format!("Approved {} ({}): {commands}", request.label(), short(&request.node_id)))
}

async fn reject(context: &Context, args: &RequestArgs) -> Result<(), CliError> {
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let connection = target.connect(scopes_for(["node.pair.list", "node.pair.reject"])).await?;
    let raw = target.call(&connection, "node.pair.list", &json!({})).await?;
    let list: PairList = parse_result("node.pair.list", &raw)?;
    let request = list.request(&args.request_id)?;
    let result = target.call(&connection, "node.pair.reject", &json!({"requestId": request.request_id})).await?;
    if args.gateway.json || !context.output.is_for_person() {
        return context.output.json(result.get());
    }
    context.output.line(&format!("Rejected what {} ({}) asked for", request.label(), short(&request.node_id)))
}

async fn describe(context: &Context, args: &NodeArgs) -> Result<(), CliError> {
    let output = context.output;
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let (connection, list) = fetch(&target, &["node.describe"]).await?;
    let node = find(&list, &args.node)?;
    let raw = target.call(&connection, "node.describe", &json!({"nodeId": node.node_id})).await?;
    if args.gateway.json {
        return output.json(raw.get());
    }
    let node: Node = parse_result("node.describe", &raw)?;
    let program = [&node.client_id, &node.client_mode].map(text).join("/");
    let system = [&node.device_family, &node.model_identifier].map(text).join(" ");
    let (tone, status) = node.status(UnixMs::now());
    output.fields(&[
        ("Name", Tone::Strong, text(&node.display_name)),
        ("ID", Tone::Plain, node.node_id.clone()),
        ("Program", Tone::Plain, program.trim_matches('/').to_owned()),
        ("System", Tone::Plain, system.trim().to_owned()),
        ("Version", Tone::Plain, node.version().to_owned()),
        ("IP", Tone::Plain, text(&node.remote_ip)),
        ("PATH", Tone::Plain, text(&node.path_env)),
        ("Status", tone, status),
        ("Pending request", Tone::Plain, text(&node.pending_request_id)),
        ("Caps", Tone::Plain, node.caps.join(", ")),
        ("Pending caps", Tone::Plain, node.pending_declared_caps.join(", ")),
    ])?;
    let commands = |title: &str, commands: &[String]| {
        output.heading(title)?;
        let lines: Vec<String> = commands.iter().map(|command| format!("- {command}")).collect();
        output.line(if lines.is_empty() { "(none)".into() } else { lines.join("\n") }.as_str())
    };
    commands("Commands", &node.commands)?;
    if !node.pending_declared_commands.is_empty() {
        commands("Pending commands", &node.pending_declared_commands)?;
    }
    if let Some(request) = &node.pending_request_id {
        output.line(&format!("\nApprove it with: clawgate nodes approve {request}"))?;
    }
    Ok(())
}

/// Finds a node in the result of `node.list`.
fn find(list: &RawValue, query: &str) -> Result<Node, CliError> {
    let list: NodeList = parse_result("node.list", list)?;
    node_query::find(&list.nodes, query)
        .cloned()
        .map_err(|why| CliError::with_advice(why.to_string(), "See what there is with: clawgate nodes status"))
}

/// Finds a node and calls a method on it, over one connection.
async fn edit(
    context: &Context,
    args: &NodeArgs,
    method: &str,
    params: impl Fn(&Node) -> Value,
    text: impl Fn(&Node) -> String,
) -> Result<(), CliError> {
    let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
    let (connection, list) = fetch(&target, &[method]).await?;
    let node = find(&list, &args.node)?;
    let result = target.call(&connection, method, &params(&node)).await?;
    if args.gateway.json { context.output.json(result.get()) } else { context.output.line(&text(&node)) }
}

async fn invoke(context: &Context, args: &InvokeArgs) -> Result<(), CliError> {
    let params = json_object("--params", &args.params)?;
    let patience = match args.invoke_timeout {
        0 => Duration::from_secs(u64::from(u32::MAX)),
        ms => INVOKE_TIMEOUT.max(Duration::from_millis(ms) + INVOKE_MARGIN),
    };
    let target = Target::resolve(context, &args.node.gateway, Purpose::Call, patience)?;
    let connection = target.connect(scopes_for(["node.list", "node.invoke"])).await?;
    let list = target.call(&connection, "node.list", &json!({})).await?;
    let node = find(&list, &args.node.node)?;
    let params = json!({
        "nodeId": node.node_id,
        "command": args.command,
        "params": params,
        "timeoutMs": args.invoke_timeout,
        "idempotencyKey": args.idempotency_key.clone().unwrap_or_else(id::uuid),
    });
    let result = target.call(&connection, "node.invoke", &params).await?;
    context.output.json(result.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_status_says_what_is_to_be_done() {
        let now = UnixMs(10_000_000);
        let status = |value: Value| node(value).status(now);
        let connected =
            json!({"connected": true, "paired": true, "connectedAtMs": 9_940_000, "approvalState": "approved"});
        assert_eq!(status(connected), (Tone::Good, "connected (1m ago)".into()));
        let waiting = json!({"connected": true, "paired": true, "approvalState": "pending-approval"});
        assert_eq!(status(waiting), (Tone::Warning, "connected, approval pending".into()));
        let gone = json!({"connected": false, "paired": true, "lastSeenAtMs": 2_800_000});
        assert_eq!(status(gone), (Tone::Faint, "offline (seen 2h ago)".into()));
    }

    #[test]
    fn a_request_is_meant_by_the_beginning_of_its_id() {
        let pending = |id: &str| Pending { request_id: id.into(), ..Pending::default() };
        let list =
            PairList { pending: vec![pending("69552c35-aa"), pending("69552c35-bb"), pending("7"), pending("8000")] };
        let found = |query: &str| list.request(query).map(|request| request.request_id.clone());
        assert_eq!(found("69552c35-a").unwrap(), "69552c35-aa");
        assert_eq!((found("7").unwrap(), found("8000").unwrap()), ("7".into(), "8000".into()));
        let ambiguous = found("69552c35").unwrap_err().to_string();
        assert!(ambiguous.contains("69552c35-aa, 69552c35-bb"), "{ambiguous}");
        for unknown in ["800", "", "nope"] {
            assert!(found(unknown).unwrap_err().to_string().contains("unknown"), "{unknown}");
        }
    }

    #[test]
    fn filters_by_connection() {
        let nodes = [
            node(json!({"nodeId": "a", "connected": true})),
            node(json!({"nodeId": "b", "lastConnectedAtMs": 5_000})),
            node(json!({"nodeId": "c", "lastConnectedAtMs": 100})),
            node(json!({"nodeId": "d"})),
        ];
        let ids = |connected, within: Option<u64>| {
            let last_connected = within.map(Duration::from_millis);
            let args = ListArgs { gateway: GatewayFlags::default(), connected, last_connected };
            selected(&nodes, &args, UnixMs(6_000)).iter().map(|node| node.node_id.clone()).collect::<String>()
        };
        assert_eq!(
            (ids(false, None), ids(true, None), ids(false, Some(1_000))),
            ("abcd".into(), "a".into(), "ab".into())
        );
    }

    #[test]
    fn a_listed_node_carries_both_records() {
        let nodes = json!({"nodes": [{"nodeId": "a", "connected": true, "displayName": "new"}, {"nodeId": "x"}]});
        let pairs = json!({"pending": [], "paired": [{"nodeId": "a", "displayName": "old", "createdAtMs": 7}]});
        let merged = merged(&nodes, &pairs, &[&node(json!({"nodeId": "a"}))]);
        let expected = json!({"nodeId": "a", "connected": true, "displayName": "new", "createdAtMs": 7});
        assert_eq!(merged, json!({"pending": [], "paired": [expected]}));
    }

    #[test]
    fn a_pending_request_fits_eighty_columns() {
        let request = Pending {
            request_id: "cdb3f171-3a82-4f59-a5bb-94cc86e0aae6".into(),
            display_name: Some("kitchen".into()),
            platform: Some("linux".into()),
            ts: UnixMs(0),
            ..Pending::default()
        };
        let text = pending_table(&[request], UnixMs(120_000)).to_text();
        insta::assert_snapshot!(text, @r"
        ┌──────────────────────────────────────┬─────────┬────────┬────────┐
        │ Request                              ┆ Node    ┆ System ┆ Asked  │
        ╞══════════════════════════════════════╪═════════╪════════╪════════╡
        │ cdb3f171-3a82-4f59-a5bb-94cc86e0aae6 ┆ kitchen ┆ linux  ┆ 2m ago │
        └──────────────────────────────────────┴─────────┴────────┴────────┘
        ");
    }
}
