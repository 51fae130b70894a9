//! `clawgate qr`: a setup code for a phone, or for a machine that becomes a node.
//!
//! The grammar is the incumbent's; `--node` is ours. The gateway makes the code, so it must run: codes are kept where
//! devices are. So `--url` names the address to write into the code, as there, and not the gateway to ask.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::Tone;
use super::parse_result;
use super::target::{GatewayFlags, Target};
use crate::client::Purpose;
use crate::client::error::CallError;
use crate::clock::UnixMs;
use crate::qr;

const TIMEOUT: Duration = Duration::from_secs(10);

/// What the code is for, and how to show it.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "one flag each, as on the command line")]
pub(super) struct QrArgs {
    /// Lead to gateway.remote.url first
    #[arg(long)]
    remote: bool,
    /// The address that the code leads to, instead of the one that the gateway finds
    #[arg(long, value_name = "URL", conflicts_with = "public_url")]
    url: Option<String>,
    /// The same
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// The gateway's shared token
    #[arg(long, value_name = "TOKEN", conflicts_with = "password")]
    token: Option<String>,
    /// The gateway's shared password
    #[arg(long, value_name = "PASSWORD")]
    password: Option<String>,
    /// Port of the gateway on this host
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The device administers nothing
    #[arg(long)]
    limited: bool,
    /// For a node host (openclaw node run --pair CODE): it is a node and nothing else
    #[arg(long, conflicts_with = "limited")]
    node: bool,
    /// For a voice in a room: a node, and an operator who reads and talks
    #[arg(long, conflicts_with_all = ["limited", "node"])]
    voice_node: bool,
    /// Print the code alone
    #[arg(long)]
    setup_code_only: bool,
    /// Do not draw the code
    #[arg(long)]
    no_ascii: bool,
    /// Print JSON, and nothing else, on standard output
    #[arg(long)]
    pub(super) json: bool,
    /// Time for everything, in milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
}

/// A code, as `device.pair.setupCode` gives it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    setup_code: String,
    gateway_url: String,
    url_source: String,
    auth: String,
    #[serde(default)]
    access: String,
    #[serde(default)]
    access_downgraded: bool,
    #[serde(default)]
    expires_at_ms: UnixMs,
}

impl QrArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, CliError> {
        const METHOD: &str = "device.pair.setupCode";
        let output = context.output;
        let flags = GatewayFlags {
            json: self.json,
            port: self.port,
            token: self.token.clone(),
            password: self.password.clone(),
            timeout: self.timeout,
            ..GatewayFlags::default()
        };
        let target = Target::resolve(context, &flags, Purpose::Call, TIMEOUT)?;
        let result = target.call_once(METHOD, &self.params()).await.map_err(|error| self.explained(error))?;
        if self.json {
            output.json(result.get())?;
            return Ok(ExitCode::SUCCESS);
        }
        let made: Made = parse_result(METHOD, &result)?;
        if made.access_downgraded {
            output.note(
                "this address is plain ws://, so the code gives limited access: with wss:// or Tailscale Serve it gives all",
            );
        }
        if self.setup_code_only {
            output.line(&made.setup_code)?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(drawn) = qr::for_terminal(&made.setup_code).filter(|_| !self.no_ascii && !self.node) {
            output.print(&drawn)?;
        }
        let left_s = made.expires_at_ms.since(UnixMs::now()) / 1000;
        for (name, value) in [
            ("Setup code", made.setup_code.as_str()),
            ("Gateway", &format!("{} ({})", made.gateway_url, self.in_flags(&made.url_source))),
            ("Access", &made.access),
            ("Auth", &made.auth),
            ("Good for", &format!("{} min, one device", left_s.div_ceil(60))),
        ] {
            output.painted(&[(Tone::Faint, &format!("{name}:")), (Tone::Plain, &format!(" {value}"))])?;
        }
        output.line(&match (self.node, self.voice_node) {
            (true, _) => {
                format!("\nOn the machine (or with openclaw): clawgate node run --pair oc-pair://{}", made.setup_code)
            }
            (_, true) => "\nGive it to the device. What waits for approval: clawgate devices list".to_owned(),
            _ => "\nScan it with the OpenClaw app. What waits for approval: clawgate devices list".to_owned(),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// The flag that names the address, where one was given.
    const fn address_flag(&self) -> Option<&'static str> {
        match (&self.url, &self.public_url) {
            (Some(_), _) => Some("--url"),
            (_, Some(_)) => Some("--public-url"),
            _ => None,
        }
    }

    /// What the gateway says of the request, in the words of the command line.
    fn in_flags(&self, text: &str) -> String {
        text.replace("request.publicUrl", self.address_flag().unwrap_or("request.publicUrl"))
    }

    /// A refusal of the gateway, with what the command line can do about it.
    fn explained(&self, error: CliError) -> CliError {
        match error {
            CliError::Call(CallError::Remote(mut refusal)) => {
                // Where no address was found, there is one more way than the gateway knows of.
                let advice = (self.address_flag().is_none() && refusal.code == "INVALID_REQUEST" && !self.remote)
                    .then(|| "Or name the address that devices can reach: clawgate qr --url wss://HOST".to_owned());
                refusal.message = self.in_flags(&refusal.message);
                CliError::Refused { refusal: Box::new(refusal), advice }
            }
            error => error,
        }
    }

    fn params(&self) -> Value {
        // The terminal draws for itself.
        let mut params = Map::from_iter([("includeQr".to_owned(), json!(false))]);
        if let Some(url) = self.url.as_ref().or(self.public_url.as_ref()) {
            params.insert("publicUrl".to_owned(), json!(url));
        }
        if self.remote {
            params.insert("preferRemoteUrl".to_owned(), json!(true));
        }
        let profile = [(self.limited, "limited"), (self.node, "node"), (self.voice_node, "voice-node")];
        if let Some((_, profile)) = profile.into_iter().find(|(is_wanted, _)| *is_wanted) {
            params.insert("bootstrapProfile".to_owned(), json!(profile));
        }
        params.into()
    }
}
