//! `clawgate gateway discover`: gateways that can be found from here.
//!
//! It knocks where a gateway may be (this host's ports, `gateway.remote.url`, what the environment names) and sends no
//! credential: a gateway says what it is before it asks who comes. Beacons in the local network (mDNS) are not looked
//! for, and the output says so. What is found is a hint: pins and secrets come from nowhere but the configuration.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::output::{Table, Tone};
use crate::client::error::{ConnectError, ConnectFailure};
use crate::client::{self, ConnectOptions, GatewayUrl};
use crate::rpc::scope::ScopeSet;

const NO_MDNS: &str = "Gateways elsewhere in this network are not looked for: this program has no mDNS. Name one: --url, or gateway.remote.url.";

/// How long to look.
#[derive(Debug, Args)]
pub(super) struct DiscoverArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Time for each knock, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// A place where a gateway may be.
struct Place {
    url: GatewayUrl,
    why: &'static str,
}

impl DiscoverArgs {
    pub(super) const fn prints_json(&self) -> bool {
        self.json
    }

    /// Runs the command. That nothing is found is no failure.
    ///
    /// # Errors
    /// What went wrong, for [`super::output::Output::fail`].
    pub(super) async fn run(&self, context: &Context) -> Result<ExitCode, CliError> {
        let started = Instant::now();
        let mut found = Vec::new();
        // One after the other: what is not there refuses at once.
        for place in places(context) {
            if let Some(beacon) = knock(&place, Duration::from_millis(self.timeout)).await {
                found.push(beacon);
            }
        }
        if self.json {
            context.output.value(&json!({
                "timeoutMs": self.timeout,
                "durationMs": started.elapsed().as_millis(),
                "domains": [],
                "mdns": false,
                "count": found.len(),
                "beacons": found,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        if found.is_empty() {
            context.output.line("No gateway was found.")?;
        } else {
            let mut table = Table::new(["URL", "From", "TLS", "Latency"]);
            for beacon in &found {
                let text = |key: &str| beacon[key].as_str().unwrap_or_default().to_owned();
                table.row([
                    (Tone::Strong, text("wsUrl")),
                    (Tone::Plain, text("source")),
                    (Tone::Plain, if beacon["gatewayTls"] == true { "yes".into() } else { String::new() }),
                    (Tone::Plain, format!("{} ms", beacon["latencyMs"])),
                ]);
            }
            context.output.table(&table)?;
        }
        context.output.line(NO_MDNS)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn places(context: &Context) -> Vec<Place> {
    let config = context.load().ok().map(|loaded| loaded.config);
    let gateway = config.as_ref().map(|config| &config.gateway);
    let tls = gateway.is_some_and(|gateway| gateway.tls.enabled);
    let local = |port: u16, why| {
        let scheme = if tls { "wss" } else { "ws" };
        Some(Place { url: GatewayUrl::parse(&format!("{scheme}://127.0.0.1:{port}")).ok()?, why })
    };
    let named = |text: Option<&str>, why| Some(Place { url: GatewayUrl::parse(text?).ok()?, why });
    let variable = |name: &str| context.environment.get(name);
    let port = variable("OPENCLAW_GATEWAY_PORT").and_then(|port| port.parse().ok());
    let all = [
        named(variable("OPENCLAW_GATEWAY_URL"), "OPENCLAW_GATEWAY_URL"),
        port.and_then(|port| local(port, "OPENCLAW_GATEWAY_PORT")),
        gateway.and_then(|gateway| gateway.port).and_then(|port| local(port, "gateway.port")),
        named(gateway.and_then(|gateway| gateway.remote.url.as_deref()), "gateway.remote.url"),
        local(18789, "this host"),
        local(19001, "this host, profile dev"),
    ];
    let mut seen = BTreeSet::new();
    all.into_iter().flatten().filter(|place| seen.insert(place.url.to_string())).collect()
}

/// Sees who is there, without saying who asks: what greets like a gateway is one.
async fn knock(place: &Place, patience: Duration) -> Option<Value> {
    let started = Instant::now();
    let mut options = ConnectOptions::operator(place.url.clone(), ScopeSet::EMPTY);
    options.timeout = patience;
    let needs = match client::knock(&options).await {
        Ok(_) => None,
        // Somebody speaks TLS there, with a certificate that is not known here.
        Err(ConnectError { cause: ConnectFailure::Tls(client::tls::TlsFailure::Untrusted { .. }), .. }) => {
            Some("CERTIFICATE_UNKNOWN")
        }
        Err(_) => return None,
    };
    Some(json!({
        "wsUrl": place.url.to_string(),
        "host": place.url.host(),
        "port": place.url.port(),
        "gatewayTls": place.url.is_tls(),
        "source": place.why,
        // A gateway says it to those whom it lets in.
        "version": Value::Null,
        "needs": needs,
        "latencyMs": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}
