//! `clawgate health`, `status` and `channels status`: how the gateway is.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::{Field, Output, Table, Tone};
use super::parse_result;
use super::target::{GatewayFlags, Target, scopes_for, source_of};
use super::time::{ago, span};
use crate::client::{Connection, GatewayUrl, Purpose};
use crate::clock::UnixMs;
use crate::rpc::scope::{Scope, ScopeSet};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// Let the gateway probe what it depends on
    #[arg(long)]
    verbose: bool,
}

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// Ask also for health, channels and the last heartbeat
    #[arg(long)]
    deep: bool,
    /// Everything, fit to be pasted into a report
    #[arg(long)]
    all: bool,
}

/// `channels ...`.
#[derive(Debug, Subcommand)]
pub(super) enum ChannelsCommand {
    /// Show the chat channels
    Status(ChannelsArgs),
}

/// Which channels.
#[derive(Debug, Args)]
pub(super) struct ChannelsArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// Let the gateway check the channels' credentials
    #[arg(long)]
    probe: bool,
    /// Only this channel
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
}

impl HealthArgs {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        self.gateway.json
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let target = Target::resolve(context, &self.gateway, Purpose::Call, TIMEOUT)?;
        let params = if self.verbose { json!({"probe": true}) } else { json!({}) };
        let connection = target.connect(scopes_for(["health"])).await?;
        let took = connection.hello().took;
        let result = target.call(&connection, "health", &params).await?;
        if self.gateway.json {
            context.output.json(result.get())?;
        } else {
            print_health(context.output, &parse_result("health", &result)?, took)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ChannelsCommand {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        let Self::Status(args) = self;
        args.gateway.json
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let Self::Status(args) = self;
        let target = Target::resolve(context, &args.gateway, Purpose::Call, TIMEOUT)?;
        let mut params = json!({"probe": args.probe, "timeoutMs": target.timeout().as_millis()});
        if let Some(channel) = &args.channel {
            params["channel"] = json!(channel);
        }
        let result = target.call_once("channels.status", &params).await?;
        if args.gateway.json {
            context.output.json(result.get())?;
        } else {
            print_channels(context.output, &parse_result("channels.status", &result)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The health report in a few lines. What a gateway does not report is left out.
pub(super) fn print_health(output: Output, health: &Value, took: Duration) -> Result<(), CliError> {
    let ok = health["ok"] != false;
    let (tone, word) = if ok { (Tone::Good, "OK") } else { (Tone::Bad, "NOT OK") };
    output.print(&format!("{} ({} ms)", output.paint(tone, word), took.as_millis()))?;
    if let Some(error) = health["storage"]["error"].as_str() {
        output.painted(&[(Tone::Bad, &format!("Storage: {error}; nothing that changes is kept"))])?;
    }
    let lag = &health["eventLoop"];
    if let (Some(p99), Some(max)) = (lag["delayP99Ms"].as_f64(), lag["delayMaxMs"].as_f64()) {
        let state = if lag["degraded"] == true { "degraded" } else { "ok" };
        output.line(&format!("Event loop: {state}, p99 {p99:.0} ms, max {max:.0} ms"))?;
    }
    let names = |key: &str, name: &str| -> Vec<String> {
        let rows = health[key].as_array().map_or(&[][..], Vec::as_slice);
        rows.iter().filter_map(|row| row[name].as_str().map(str::to_owned)).collect()
    };
    let agents = names("agents", "agentId");
    if !agents.is_empty() {
        output.line(&format!("Agents: {}", agents.join(", ")))?;
    }
    match health["heartbeatSeconds"].as_u64() {
        None => {}
        Some(0) => output.line("Heartbeat: off")?,
        Some(seconds) => output.line(&format!("Heartbeat: every {}", span(Duration::from_secs(seconds))))?,
    }
    let channels = channel_names(health);
    if !channels.is_empty() {
        output.line(&format!("Channels: {}", channels.join(", ")))?;
    }
    if let (Some(count), Some(path)) = (health["sessions"]["count"].as_u64(), health["sessions"]["path"].as_str()) {
        output.line(&format!("Sessions: {count} in {path}"))?;
    }
    Ok(())
}

/// Labels of the channels that a report has, in its order.
fn channel_names(report: &Value) -> Vec<String> {
    let order = report["channelOrder"].as_array().map_or(&[][..], Vec::as_slice);
    let label = |id: &str| report["channelLabels"][id].as_str().unwrap_or(id).to_owned();
    order.iter().filter_map(Value::as_str).map(label).collect()
}

fn print_channels(output: Output, report: &Value) -> Result<(), CliError> {
    let accounts = report["channelAccounts"].as_object();
    let mut table = Table::new(["Channel", "Account", "Configured", "Running", "Problem"]);
    for (id, rows) in accounts.into_iter().flatten() {
        let label = report["channelLabels"][id].as_str().unwrap_or(id);
        for account in rows.as_array().map_or(&[][..], Vec::as_slice) {
            let yes = |key: &str| match account[key].as_bool() {
                Some(true) => (Tone::Good, "yes".to_owned()),
                Some(false) => (Tone::Faint, "no".to_owned()),
                None => (Tone::Plain, String::new()),
            };
            table.row([
                (Tone::Strong, label.to_owned()),
                (Tone::Plain, account["accountId"].as_str().unwrap_or_default().to_owned()),
                yes("configured"),
                yes("running"),
                (Tone::Bad, account["lastError"].as_str().unwrap_or_default().to_owned()),
            ]);
        }
    }
    output.line("Gateway reachable.")?;
    if table.is_empty() { output.line("No chat channel is configured.") } else { output.table(&table) }
}

/// What came of an attempt to reach a gateway.
pub(super) struct Reached {
    /// The connection, when there is one.
    pub(super) connection: Option<Connection>,
    /// Why there is none.
    pub(super) error: Option<CliError>,
}

/// What a gateway says when it is asked.
#[derive(Default)]
pub(super) struct Details {
    pub(super) health: Option<Value>,
    pub(super) status: Option<Value>,
    pub(super) presence: Option<Value>,
    /// The first call that failed.
    pub(super) error: Option<CliError>,
}

impl Reached {
    pub(super) async fn connect(target: &Target, scopes: ScopeSet) -> Self {
        match target.connect(scopes).await {
            Ok(connection) => Self { connection: Some(connection), error: None },
            Err(error) => Self { connection: None, error: Some(error) },
        }
    }

    /// Asks for health, status and presence at once.
    pub(super) async fn read(&mut self, target: &Target) -> Details {
        let Some(connection) = &self.connection else { return Details::default() };
        let none = json!({});
        let (health, status, presence) = tokio::join!(
            target.call(connection, "health", &none),
            target.call(connection, "status", &none),
            target.call(connection, "system-presence", &none),
        );
        let mut details = Details::default();
        let mut take = |method: &str, result: Result<Box<serde_json::value::RawValue>, CliError>| match result
            .and_then(|raw| parse_result::<Value>(method, &raw))
        {
            Ok(value) => Some(value),
            Err(error) => {
                details.error.get_or_insert(error);
                None
            }
        };
        let (health, status, presence) =
            (take("health", health), take("status", status), take("system-presence", presence));
        Details { health, status, presence, ..details }
    }

    pub(super) fn latency_ms(&self) -> Option<u64> {
        let took = self.connection.as_ref()?.hello().took;
        u64::try_from(took.as_millis()).ok()
    }

    pub(super) fn scopes(&self) -> &[String] {
        self.connection.as_ref().map_or(&[], |connection| &connection.hello().scopes)
    }

    pub(super) fn server(&self) -> Option<Value> {
        let hello = self.connection.as_ref()?.hello();
        Some(json!({"version": hello.server_version, "connId": hello.conn_id}))
    }

    pub(super) fn to_json(&self, url: &GatewayUrl) -> Value {
        json!({
            "ok": self.error.is_none(),
            "url": url.to_string(),
            "latencyMs": self.latency_ms(),
            "capability": capability(self).replace('-', "_"),
            "auth": {"role": "operator", "scopes": self.scopes()},
            "server": self.server(),
            "error": self.error.as_ref().map(ToString::to_string),
        })
    }

    /// How it went, for people.
    pub(super) fn field(&self) -> Field {
        match (&self.connection, &self.error) {
            (Some(connection), _) => {
                let hello = connection.hello();
                let (took, version) = (hello.took.as_millis(), &hello.server_version);
                // Which scopes it has says nothing to people: no more are asked for than the command needs.
                ("Connect", Tone::Good, format!("ok in {took} ms, version {version}"))
            }
            (None, Some(error)) => ("Connect", Tone::Bad, error.to_string()),
            (None, None) => ("Connect", Tone::Plain, String::new()),
        }
    }

    /// What to do when it did not go well.
    pub(super) fn print_advice(&self, output: Output) -> Result<(), CliError> {
        self.error.iter().flat_map(CliError::advice).try_for_each(|advice| output.line(&advice))
    }
}

/// What the scopes amount to, in the incumbent's words.
pub(super) fn capability(reached: &Reached) -> String {
    if reached.connection.is_none() {
        return "unreachable".into();
    }
    let scopes = ScopeSet::parse(reached.scopes().iter().map(String::as_str));
    let word = [(Scope::Admin, "admin-capable"), (Scope::Write, "write-capable"), (Scope::Read, "read-only")];
    word.into_iter()
        .find(|(scope, _)| scopes.covers(*scope))
        .map_or("connected-no-operator-scope", |(_, word)| word)
        .into()
}

impl StatusArgs {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        self.gateway.json
    }

    /// Runs the command. A gateway that cannot be reached is part of the answer, and a failure.
    ///
    /// # Errors
    /// What went wrong, for [`Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let output = context.output;
        let target = Target::resolve(context, &self.gateway, Purpose::Probe, TIMEOUT)?;
        let mut reached = Reached::connect(&target, ScopeSet::EMPTY.with(Scope::Read)).await;
        let details = reached.read(&target).await;
        let deeper = match (&reached.connection, self.deep || self.all) {
            (Some(connection), true) => Some(Deeper::read(&target, connection).await),
            _ => None,
        };
        if self.gateway.json {
            output.value(&report(&target, &reached, &details, deeper.as_ref()))?;
        } else {
            self.print(output, &target, &reached, &details, deeper.as_ref())?;
        }
        Ok(if reached.error.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn print(
        &self,
        output: Output,
        target: &Target,
        reached: &Reached,
        details: &Details,
        deeper: Option<&Deeper>,
    ) -> Result<(), CliError> {
        let credentials = [("token", &target.resolution.token), ("password", &target.resolution.password)];
        let sent = credentials.iter().filter(|(_, credential)| credential.value().is_some());
        let sent: Vec<String> =
            sent.map(|(name, credential)| format!("{name} from {}", source_of(credential))).collect();
        let auth = if sent.is_empty() { "no token or password".into() } else { sent.join(", ") };
        let mut fields = vec![
            ("Gateway", Tone::Plain, format!("{} (from {})", target.resolution.url, target.resolution.url_source)),
            ("Auth", Tone::Plain, auth),
            reached.field(),
        ];
        if let Some(presence) = &details.presence {
            let host = own_presence(presence);
            let text = |key: &str| host.and_then(|host| host[key].as_str()).unwrap_or_default();
            fields.push(("Host", Tone::Plain, format!("{} {}", text("host"), text("platform")).trim().to_owned()));
            fields.push(("Present", Tone::Plain, presence.as_array().map_or(0, Vec::len).to_string()));
        }
        if let Some(status) = &details.status {
            let sessions = status["sessions"]["count"].as_u64();
            fields.push(("Sessions", Tone::Plain, sessions.map_or_else(String::new, |count| count.to_string())));
            let every = |agent: &Value| -> Option<String> {
                let every = if agent["enabled"].as_bool()? { agent["every"].as_str()? } else { "off" };
                Some(format!("{}: {every}", agent["agentId"].as_str()?))
            };
            let agents = status["heartbeat"]["agents"].as_array().map_or(&[][..], Vec::as_slice);
            fields.push(("Heartbeat", Tone::Plain, agents.iter().filter_map(every).collect::<Vec<_>>().join(", ")));
        }
        fields.push(("Calls", Tone::Warning, details.error.as_ref().map_or_else(String::new, ToString::to_string)));
        output.fields(&fields)?;
        reached.print_advice(output)?;
        let Some(deeper) = deeper else { return Ok(()) };
        deeper.print(output, reached)?;
        if self.all {
            if let Some(rows) = details.presence.as_ref().and_then(Value::as_array) {
                output.heading("Presence")?;
                output.table(&presence_table(rows, UnixMs::now()))?;
            }
            output.heading("Decision")?;
            output.line(&target.provenance())?;
        }
        Ok(())
    }
}

/// The gateway's own entry in the presence list.
fn own_presence(presence: &Value) -> Option<&Value> {
    presence.as_array()?.iter().find(|row| row["mode"] == "gateway" || row["reason"] == "self")
}

/// Who is there, as a table.
pub(super) fn presence_table(rows: &[Value], now: UnixMs) -> Table {
    let mut table = Table::new(["Host", "Mode", "System", "Version", "Reason", "Seen"]);
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        table.row([
            (Tone::Strong, text("host")),
            (Tone::Plain, text("mode")),
            (Tone::Plain, text("platform")),
            (Tone::Plain, text("version")),
            (Tone::Plain, text("reason")),
            (Tone::Plain, row["ts"].as_u64().map_or_else(String::new, |ts| ago(now, UnixMs(ts)))),
        ]);
    }
    table
}

/// What `--deep` asks for.
struct Deeper {
    health: Result<Value, CliError>,
    channels: Result<Value, CliError>,
    heartbeat: Result<Value, CliError>,
    nodes: Result<Value, CliError>,
}

impl Deeper {
    async fn read(target: &Target, connection: &Connection) -> Self {
        let ask = async |method: &str, params: Value| -> Result<Value, CliError> {
            let raw = target.call(connection, method, &params).await?;
            parse_result(method, &raw)
        };
        let timeout_ms = target.left().as_millis();
        let (health, channels, heartbeat, nodes) = tokio::join!(
            ask("health", json!({"probe": true})),
            ask("channels.status", json!({"probe": false, "timeoutMs": timeout_ms})),
            ask("last-heartbeat", json!({})),
            ask("node.list", json!({})),
        );
        Self { health, channels, heartbeat, nodes }
    }

    fn print(&self, output: Output, reached: &Reached) -> Result<(), CliError> {
        output.heading("Health")?;
        let took = reached.connection.as_ref().map_or(Duration::ZERO, |connection| connection.hello().took);
        match &self.health {
            Ok(health) => print_health(output, health, took)?,
            Err(error) => output.line(&error.to_string())?,
        }
        output.heading("Channels")?;
        match &self.channels {
            Ok(channels) => print_channels(output, channels)?,
            Err(error) => output.line(&error.to_string())?,
        }
        output.heading("Nodes")?;
        match &self.nodes {
            Ok(nodes) => {
                let rows = nodes["nodes"].as_array().map_or(&[][..], Vec::as_slice);
                let connected = rows.iter().filter(|row| row["connected"] == true).count();
                output.line(&format!("{} known, {connected} connected", rows.len()))?;
            }
            Err(error) => output.line(&error.to_string())?,
        }
        output.heading("Last heartbeat")?;
        match &self.heartbeat {
            Ok(Value::Null) => output.line("none"),
            Ok(heartbeat) => output.value(heartbeat),
            Err(error) => output.line(&error.to_string()),
        }
    }
}

/// `status --json`: the gateway's own report, with how it was reached.
fn report(target: &Target, reached: &Reached, details: &Details, deeper: Option<&Deeper>) -> Value {
    let mut report = match &details.status {
        Some(Value::Object(status)) => Value::Object(status.clone()),
        _ => json!({}),
    };
    report["gateway"] = json!({
        "url": target.resolution.url.to_string(),
        "urlSource": target.resolution.url_source.to_string(),
        "reachable": reached.error.is_none(),
        "connectLatencyMs": reached.latency_ms(),
        "version": reached.connection.as_ref().map(|connection| &connection.hello().server_version),
        "scopes": reached.scopes(),
        "capability": capability(reached).replace('-', "_"),
        "self": details.presence.as_ref().and_then(own_presence),
        "error": reached.error.as_ref().map(ToString::to_string),
    });
    if let Some(deeper) = deeper {
        let value = |result: &Result<Value, CliError>| match result {
            Ok(value) => value.clone(),
            Err(error) => json!(error.report()),
        };
        report["health"] = value(&deeper.health);
        report["channels"] = value(&deeper.channels);
        report["lastHeartbeat"] = value(&deeper.heartbeat);
        report["nodes"] = value(&deeper.nodes);
        report["presence"] = details.presence.clone().unwrap_or_default();
    }
    report
}
