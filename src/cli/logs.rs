//! `clawgate logs`: the end of the gateway's log, and what follows.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::{Output, Tone};
use super::parse_result;
use super::target::{GatewayFlags, Target, scopes_for};
use crate::client::error::CallError;
use crate::client::{Connection, Purpose};

const TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before the connection is tried again while following.
const RECONNECT: Duration = Duration::from_secs(2);

/// Which lines.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    gateway: GatewayFlags,
    /// Lines at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5000))]
    limit: u32,
    /// Bytes at most
    #[arg(long, value_name = "N", default_value_t = 250_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_bytes: u32,
    /// Go on as lines come, through restarts of the gateway
    #[arg(long)]
    follow: bool,
    /// Time between looks while following, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..))]
    interval: u64,
    /// No colours
    #[arg(long)]
    plain: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tail {
    file: String,
    cursor: u64,
    size: u64,
    lines: Vec<String>,
    truncated: bool,
    reset: bool,
}

impl LogsArgs {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        self.gateway.json
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let output = if self.plain { Output::new(true) } else { context.output };
        let mut cursor = None;
        loop {
            // Each connection has the time that `--timeout` gives.
            let target = Target::resolve(context, &self.gateway, Purpose::Call, TIMEOUT)?;
            let result = match target.connect(scopes_for(["logs.tail"])).await {
                Ok(connection) => self.follow(output, &target, &connection, &mut cursor).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => return Ok(ExitCode::SUCCESS),
                Err(error) if self.follow && cursor.is_some() && is_outage(&error) => {
                    output.note(&format!("{error}; trying again"));
                    tokio::time::sleep(RECONNECT).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn follow(
        &self,
        output: Output,
        target: &Target,
        connection: &Connection,
        cursor: &mut Option<u64>,
    ) -> Result<(), CliError> {
        loop {
            let mut params = json!({"limit": self.limit, "maxBytes": self.max_bytes});
            if let Some(cursor) = cursor {
                params["cursor"] = json!(cursor);
            }
            let raw = connection.call("logs.tail", &params, target.timeout()).await?;
            let tail: Tail = parse_result("logs.tail", &raw)?;
            if cursor.is_none() || tail.reset {
                self.head(output, &tail)?;
            }
            for line in &tail.lines {
                if self.gateway.json {
                    output.print(&record(line).to_string())?;
                } else {
                    output.print(&shown(output, line))?;
                }
            }
            if tail.truncated {
                let text = "Earlier lines are left out (--limit, --max-bytes).";
                if self.gateway.json {
                    output.print(&json!({"type": "notice", "message": text}).to_string())?;
                } else {
                    output.note(text);
                }
            }
            *cursor = Some(tail.cursor);
            if !self.follow {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(self.interval)) => {}
                end = connection.ended() => return Err(CallError::Disconnected(end).into()),
            }
        }
    }

    fn head(&self, output: Output, tail: &Tail) -> Result<(), CliError> {
        if self.gateway.json {
            let meta = json!({"type": "meta", "file": tail.file, "cursor": tail.cursor, "size": tail.size});
            output.print(&meta.to_string())
        } else {
            output.print(&output.paint(Tone::Faint, &format!("Log file: {}", tail.file)))
        }
    }
}

/// Whether the gateway may be back in a moment.
const fn is_outage(error: &CliError) -> bool {
    match error {
        CliError::Connect { error, .. } => error.refusal().is_none(),
        CliError::Call(CallError::Disconnected(_) | CallError::Timeout { .. }) => true,
        _ => false,
    }
}

/// A line of the log taken apart: this gateway's own form, and the incumbent's.
fn record(line: &str) -> Value {
    let Ok(parsed) = serde_json::from_str::<Value>(line) else {
        return json!({"type": "raw", "raw": line});
    };
    let meta = &parsed["_meta"];
    let name = |value: &Value| {
        let text = value.as_str()?;
        Some(serde_json::from_str::<Value>(text).ok()?["subsystem"].as_str()?.to_owned())
    };
    let first = name(&parsed["0"]);
    let message = match parsed["message"].as_str() {
        Some(message) => message.to_owned(),
        // The incumbent numbers the parts of a message; the first may be the subsystem.
        None => (usize::from(first.is_some())..10)
            .map_while(|at| match &parsed[at.to_string()] {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            })
            .collect::<Vec<_>>()
            .join(" "),
    };
    let mut record = json!({"type": "log", "message": message, "raw": line});
    let time = parsed["time"].as_str().or(meta["date"].as_str());
    let level = meta["logLevelName"].as_str().map(str::to_ascii_lowercase);
    for (key, value) in
        [("time", time.map(str::to_owned)), ("level", level), ("subsystem", first.or(name(&meta["name"])))]
    {
        if let Some(value) = value {
            record[key] = value.into();
        }
    }
    record
}

/// A line for people: time, level, subsystem, message.
fn shown(output: Output, line: &str) -> String {
    let record = record(line);
    let text = |key: &str| record[key].as_str();
    let Some(message) = text("message") else { return output.paint(Tone::Plain, line) };
    let level = text("level").unwrap_or_default();
    let tone = match level {
        "error" | "fatal" => Tone::Bad,
        "warn" => Tone::Warning,
        "debug" | "trace" => Tone::Faint,
        _ => Tone::Plain,
    };
    let parts = [
        text("time").map(|time| output.paint(Tone::Faint, time)),
        (!level.is_empty()).then(|| output.paint(tone, level)),
        text("subsystem").map(|subsystem| output.paint(Tone::Strong, subsystem)),
        Some(output.paint(Tone::Plain, message)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"time":"2026-11-22T12:00:00.000Z","_meta":{"logLevelName":"WARN","name":"{\"subsystem\":\"conn/driver\"}"},"message":"closed code=1008"}"#;
    const THEIRS: &str = r#"{"0":"{\"subsystem\":\"gateway/ws\"}","1":"res health","_meta":{"date":"2026-11-22T12:00:01Z","logLevelName":"INFO"}}"#;

    #[test]
    fn reads_both_forms_of_a_line() {
        let output = Output::plain();
        assert_eq!(shown(output, OURS), "2026-11-22T12:00:00.000Z warn conn/driver closed code=1008");
        assert_eq!(shown(output, THEIRS), "2026-11-22T12:00:01Z info gateway/ws res health");
        assert_eq!(shown(output, "no json\x1b[2J"), "no json\u{fffd}[2J");
        assert_eq!(shown(output, r#"{"0":"plain","_meta":{}}"#), "plain");
    }

    #[test]
    fn a_record_keeps_the_raw_line() {
        let record = record(OURS);
        assert_eq!((&record["type"], &record["raw"]), (&json!("log"), &json!(OURS)));
        assert_eq!(super::record("x"), json!({"type": "raw", "raw": "x"}));
    }
}
