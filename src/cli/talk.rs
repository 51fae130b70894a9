//! `clawgate agent`, `chat`, `sessions`, `pairing` and `approvals`: talking with the agent, and looking after
//! those who do.

use std::io::BufRead as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::{Output, Table, Tone};
use super::parse_result;
use super::target::{GatewayFlags, Target, scopes_for};
use super::time::ago;
use crate::client::{Connection, Purpose};
use crate::clock::UnixMs;
use crate::id;

/// Time for a question about the state.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a whole run, unless `--timeout` says another.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);

/// `agent`.
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// What to say
    #[arg(long, short, value_name = "TEXT")]
    message: String,
    /// In which session
    #[arg(long, value_name = "KEY", default_value = "main")]
    session_key: String,
    /// Which agent; there is one, main
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Send the answer to --channel --to as well
    #[arg(long, requires_all = ["channel", "to"])]
    deliver: bool,
    /// The channel to send it through
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// Whom to send it to
    #[arg(long, value_name = "ID")]
    to: Option<String>,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// `chat`.
#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// In which session
    #[arg(long, value_name = "KEY", default_value = "main")]
    session_key: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// `sessions ...`.
#[derive(Debug, Subcommand)]
pub(super) enum SessionsCommand {
    /// Show the sessions, the latest first
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        /// Only those that hold this text in their key, name or last message
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
    /// Show what was said in a session
    Show {
        /// The session's key
        key: String,
        /// How many messages at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
    /// Begin a session anew
    Reset(SessionArgs),
    /// Delete a session and what was said in it
    Delete(SessionArgs),
}

/// Which session.
#[derive(Debug, Args)]
pub(super) struct SessionArgs {
    /// The session's key
    key: String,
    #[command(flatten)]
    gateway: GatewayFlags,
}

/// `pairing ...`.
#[derive(Debug, Subcommand)]
pub(super) enum PairingCommand {
    /// Show who asks to be let in
    List {
        /// The channel
        channel: Option<String>,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
    /// Let somebody in
    Approve {
        /// The channel: telegram
        channel: String,
        /// The code that the person was told
        code: String,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
}

/// `approvals ...`.
#[derive(Debug, Subcommand)]
pub(super) enum ApprovalsCommand {
    /// Show the commands that wait for approval
    List(GatewayFlags),
    /// Decide about one
    Resolve {
        /// Its id
        id: String,
        /// What to say
        #[arg(value_enum)]
        decision: Decision,
        /// With allow-always: for how many days; without it until it is revoked
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3650))]
        expires_in_days: Option<u64>,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
    /// Commands that may run without asking again
    #[command(subcommand)]
    Grants(GrantsCommand),
}

/// `approvals grants ...`.
#[derive(Debug, Subcommand)]
pub(super) enum GrantsCommand {
    /// Show them, with how often each was used
    List(GatewayFlags),
    /// Let one be asked for again
    Revoke {
        /// Its id
        id: String,
        #[command(flatten)]
        gateway: GatewayFlags,
    },
}

/// What to say to a command that waits.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Decision {
    /// It may run, once
    AllowOnce,
    /// It may run, now and whenever the very same command is asked for in the same folder of the same node
    AllowAlways,
    /// It may not
    Deny,
}

impl AgentArgs {
    pub(super) const fn prints_json(&self) -> bool {
        self.gateway.json
    }

    /// Asks, and waits for the answer.
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let target = Target::resolve(context, &self.gateway, Purpose::Call, RUN_TIMEOUT)?;
        let connection = target.connect(scopes_for(["agent", "agent.wait"])).await?;
        let mut params = json!({"message": self.message, "sessionKey": self.session_key, "idempotencyKey": id::uuid()});
        for (name, value) in [("agentId", self.agent), ("channel", self.channel), ("to", self.to)] {
            if let Some(value) = value {
                params[name] = json!(value);
            }
        }
        if self.deliver {
            params["deliver"] = json!(true);
        }
        let result = ask(&target, &connection, "agent", &params).await?;
        if self.gateway.json {
            context.output.value(&result)?;
        } else if let Some(text) = said(&result) {
            context.output.print(text)?;
        }
        Ok(ended(context.output, &result))
    }
}

/// Starts a run and waits for its end.
async fn ask(target: &Target, connection: &Connection, method: &str, params: &Value) -> Result<Value, CliError> {
    let begun = target.call(connection, method, params).await?;
    let begun: Value = parse_result(method, &begun)?;
    let wait = json!({"runId": begun["runId"], "timeoutMs": target.left().as_millis()});
    let result = target.call(connection, "agent.wait", &wait).await?;
    parse_result("agent.wait", &result)
}

fn said(result: &Value) -> Option<&str> {
    result["result"]["payloads"][0]["text"].as_str()
}

fn ended(output: Output, result: &Value) -> ExitCode {
    if result["status"] == "ok" {
        return ExitCode::SUCCESS;
    }
    let why = result["error"].as_str().or_else(|| result["stopReason"].as_str()).unwrap_or("no answer in time");
    output.note(&format!("there is no answer: {why}"));
    ExitCode::FAILURE
}

impl ChatArgs {
    pub(super) const fn prints_json(&self) -> bool {
        self.gateway.json
    }

    /// Reads lines and prints answers, until the input ends.
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        context.output.note("one line, one message; /new begins a new conversation, Ctrl-D ends");
        loop {
            let read = tokio::task::spawn_blocking(|| {
                let mut line = String::new();
                std::io::stdin().lock().read_line(&mut line).map(|bytes| (bytes > 0).then_some(line))
            });
            let line = read.await.ok().and_then(Result::ok).flatten();
            let Some(line) = line else { return Ok(ExitCode::SUCCESS) };
            if line.trim().is_empty() {
                continue;
            }
            // Each message has the whole time, and a gateway that was restarted meanwhile is no obstacle.
            let target = Target::resolve(context, &self.gateway, Purpose::Call, RUN_TIMEOUT)?;
            let connection = target.connect(scopes_for(["chat.send", "agent.wait"])).await?;
            let params =
                json!({"sessionKey": self.session_key, "message": line.trim_end(), "idempotencyKey": id::uuid()});
            let begun = target.call(&connection, "chat.send", &params).await?;
            let begun: Value = parse_result("chat.send", &begun)?;
            if begun["status"] != "started" {
                context.output.note("done");
                continue;
            }
            let wait = json!({"runId": begun["runId"], "timeoutMs": target.left().as_millis()});
            let result = target.call(&connection, "agent.wait", &wait).await?;
            let result: Value = parse_result("agent.wait", &result)?;
            if let Some(text) = said(&result) {
                context.output.print(text)?;
            }
            ended(context.output, &result);
        }
    }
}

/// Calls a method and gives what it says; with `--json`, prints it.
pub(super) async fn call(
    context: &Context,
    flags: &GatewayFlags,
    method: &str,
    params: &Value,
) -> Result<Option<Value>, CliError> {
    let target = Target::resolve(context, flags, Purpose::Call, TIMEOUT)?;
    let result = target.call_once(method, params).await?;
    if flags.json {
        context.output.json(result.get())?;
        return Ok(None);
    }
    parse_result(method, &result).map(Some)
}

pub(super) fn rows<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

pub(super) fn print(output: Output, table: &Table, empty: &str, is_empty: bool) -> Result<(), CliError> {
    if is_empty { output.line(empty) } else { output.table(table) }
}

impl SessionsCommand {
    pub(super) const fn prints_json(&self) -> bool {
        match self {
            Self::List { gateway, .. } | Self::Show { gateway, .. } => gateway.json,
            Self::Reset(args) | Self::Delete(args) => args.gateway.json,
        }
    }

    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let output = context.output;
        match self {
            Self::List { limit, search, gateway } => {
                let mut params = json!({"limit": limit});
                if let Some(search) = search {
                    params["search"] = json!(search);
                }
                if let Some(list) = call(context, &gateway, "sessions.list", &params).await? {
                    let mut table = Table::new(["Key", "Updated", "Tokens", "Last message"]);
                    let now = UnixMs::now();
                    for row in rows(&list, "sessions") {
                        let updated = row["updatedAt"].as_u64().map(|at| ago(now, UnixMs(at))).unwrap_or_default();
                        table.row([
                            (Tone::Strong, text(row, "key")),
                            (Tone::Plain, updated),
                            (Tone::Plain, row["totalTokens"].to_string()),
                            (Tone::Plain, text(row, "lastMessagePreview")),
                        ]);
                    }
                    print(output, &table, "No sessions.", rows(&list, "sessions").is_empty())?;
                }
            }
            Self::Show { key, limit, gateway } => {
                let params = json!({"sessionKey": key, "limit": limit});
                if let Some(history) = call(context, &gateway, "chat.history", &params).await? {
                    if history["sessionId"].is_null() {
                        let advice = "See which there are: clawgate sessions list";
                        return Err(CliError::with_advice(format!("there is no session {key}"), advice));
                    }
                    for message in rows(&history, "messages") {
                        show(output, message)?;
                    }
                }
            }
            Self::Reset(SessionArgs { key, gateway }) => {
                if call(context, &gateway, "sessions.reset", &json!({"key": key})).await?.is_some() {
                    output.line(&format!("{key} begins anew."))?;
                }
            }
            Self::Delete(SessionArgs { key, gateway }) => {
                if let Some(result) = call(context, &gateway, "sessions.delete", &json!({"key": key})).await? {
                    let word = if result["deleted"] == true { "is deleted" } else { "was not there" };
                    output.line(&format!("{key} {word}."))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One message of a transcript.
fn show(output: Output, message: &Value) -> Result<(), CliError> {
    let role = message["role"].as_str().unwrap_or_default();
    let who = if role == "toolResult" { text(message, "toolName") } else { role.to_owned() };
    for block in rows(message, "content") {
        let said = match block["type"].as_str() {
            Some("text") => text(block, "text"),
            Some("toolCall") => format!("calls {} {}", text(block, "name"), block["arguments"]),
            Some(other) => format!("[{other}]"),
            None => continue,
        };
        output.print(&format!("{} {said}", output.paint(Tone::Strong, &format!("{who}:"))))?;
    }
    Ok(())
}

impl PairingCommand {
    pub(super) const fn prints_json(&self) -> bool {
        let (Self::List { gateway, .. } | Self::Approve { gateway, .. }) = self;
        gateway.json
    }

    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let output = context.output;
        match self {
            Self::List { channel, gateway } => {
                let params = channel.map_or_else(|| json!({}), |channel| json!({"channel": channel}));
                if let Some(list) = call(context, &gateway, "channels.pairing.list", &params).await? {
                    let mut table = Table::new(["Channel", "Sender", "Name", "Expires", "Request"]);
                    for row in rows(&list, "requests") {
                        table.row([
                            (Tone::Plain, text(row, "channel")),
                            (Tone::Strong, text(row, "senderId")),
                            (Tone::Plain, text(row, "senderLabel")),
                            (Tone::Plain, text(row, "expiresAt")),
                            (Tone::Plain, text(row, "requestId")),
                        ]);
                    }
                    print(output, &table, "Nobody asks to be let in.", rows(&list, "requests").is_empty())?;
                }
            }
            Self::Approve { channel, code, gateway } => {
                let params = json!({"channel": channel, "accountId": "default", "requestId": code, "notify": true});
                if let Some(result) = call(context, &gateway, "channels.pairing.approve", &params).await? {
                    output.line(&format!("{} is let in.", text(&result, "senderId")))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How a grant stands, for people.
fn grant_state(row: &Value, now: UnixMs) -> (Tone, String) {
    match (row["revokedAtMs"].as_u64(), row["expiresAtMs"].as_u64()) {
        (Some(at), _) => (Tone::Bad, format!("revoked {}", ago(now, UnixMs(at)))),
        (None, None) => (Tone::Good, "until revoked".to_owned()),
        (None, Some(at)) if at <= now.0 => (Tone::Bad, "expired".to_owned()),
        (None, Some(at)) => (Tone::Good, format!("{} days left", (at - now.0).div_ceil(24 * 3600 * 1000))),
    }
}

impl ApprovalsCommand {
    pub(super) const fn prints_json(&self) -> bool {
        let (Self::List(gateway)
        | Self::Resolve { gateway, .. }
        | Self::Grants(GrantsCommand::List(gateway) | GrantsCommand::Revoke { gateway, .. })) = self;
        gateway.json
    }

    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let output = context.output;
        match self {
            Self::List(gateway) => {
                if let Some(list) = call(context, &gateway, "exec.approval.list", &json!({})).await? {
                    let mut table = Table::new(["Id", "Command", "Folder", "Node", "Session"]);
                    let waiting = list.as_array().map_or(&[][..], Vec::as_slice);
                    for row in waiting {
                        let request = &row["request"];
                        table.row([
                            (Tone::Plain, text(row, "id")),
                            (Tone::Strong, text(request, "command")),
                            (Tone::Plain, text(request, "cwd")),
                            (Tone::Plain, super::nodes::short(&text(request, "nodeId")).to_string()),
                            (Tone::Plain, text(request, "sessionKey")),
                        ]);
                    }
                    print(output, &table, "Nothing waits for approval.", waiting.is_empty())?;
                }
            }
            Self::Resolve { id, decision, expires_in_days, gateway } => {
                let word = match decision {
                    Decision::AllowOnce => "allow-once",
                    Decision::AllowAlways => "allow-always",
                    Decision::Deny => "deny",
                };
                let mut params = json!({"id": id, "decision": word});
                if let Some(days) = expires_in_days {
                    params["grantExpiresInDays"] = json!(days);
                }
                if call(context, &gateway, "exec.approval.resolve", &params).await?.is_some() {
                    output.line(&format!("{id}: {word}."))?;
                }
            }
            Self::Grants(GrantsCommand::List(gateway)) => {
                if let Some(list) = call(context, &gateway, "exec.approval.grants.list", &json!({})).await? {
                    let mut table = Table::new(["Id", "Command", "Folder", "Used", "State"]);
                    let now = UnixMs::now();
                    for row in rows(&list, "grants") {
                        let (tone, state) = grant_state(row, now);
                        table.row([
                            (Tone::Plain, text(row, "grantId")),
                            (Tone::Strong, text(row, "command")),
                            (Tone::Plain, text(row, "cwd")),
                            (Tone::Plain, row["useCount"].to_string()),
                            (tone, state),
                        ]);
                    }
                    let empty = "No command runs without being asked for.";
                    print(output, &table, empty, rows(&list, "grants").is_empty())?;
                }
            }
            Self::Grants(GrantsCommand::Revoke { id, gateway }) => {
                let params = json!({"grantId": id});
                if let Some(result) = call(context, &gateway, "exec.approval.grants.revoke", &params).await? {
                    let outcome = text(&result, "outcome");
                    output.line(&format!("{id}: {outcome}."))?;
                    if outcome == "not-found" {
                        return Ok(ExitCode::FAILURE);
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
