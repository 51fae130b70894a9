//! `clawgate system`: who is there.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::parse_result;
use super::status::presence_table;
use super::target::{GatewayFlags, Target};
use crate::client::Purpose;
use crate::clock::UnixMs;

const TIMEOUT: Duration = Duration::from_secs(30);

/// `system ...`.
#[derive(Debug, Subcommand)]
pub(super) enum SystemCommand {
    /// Show who is connected
    Presence(GatewayFlags),
}

impl SystemCommand {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        let Self::Presence(flags) = self;
        flags.json
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        let Self::Presence(flags) = self;
        let target = Target::resolve(context, &flags, Purpose::Call, TIMEOUT)?;
        let raw = target.call_once("system-presence", &json!({})).await?;
        if flags.json {
            context.output.json(raw.get())?;
        } else {
            let rows: Vec<Value> = parse_result("system-presence", &raw)?;
            context.output.table(&presence_table(&rows, UnixMs::now()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
