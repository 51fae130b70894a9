//! `clawgate gateway trust`: a person accepts the certificate of a gateway, or lets it be forgotten.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use crate::client::GatewayUrl;
use crate::client::tls::known::KnownGateways;
use crate::config::fingerprint::Fingerprint;

/// Which certificate of which gateway.
#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// The gateway: wss://HOST[:PORT]
    #[arg(value_name = "URL")]
    url: String,
    /// Accept the certificate with this SHA-256, as openssl prints it, whoever issued it
    #[arg(long, value_name = "SHA256", required_unless_present = "forget")]
    fingerprint: Option<String>,
    /// Forget the gateway: the next certificate that passes normal trust is its first
    #[arg(long, conflicts_with = "fingerprint")]
    forget: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl TrustArgs {
    /// Whether an error is printed as JSON, too.
    pub(super) const fn prints_json(&self) -> bool {
        self.json
    }

    /// Runs the command.
    ///
    /// # Errors
    /// The URL or the fingerprint is none, or the file cannot be read or written.
    pub(super) fn run(&self, context: &Context) -> Result<ExitCode, CliError> {
        let url = GatewayUrl::parse(&self.url).map_err(|error| CliError::Usage(error.to_string()))?;
        if !url.is_tls() {
            return Err(CliError::Usage(format!("{url} has no certificate: only wss:// has")));
        }
        let failed = |error: crate::client::tls::known::KnownError| CliError::other(error.to_string());
        let mut known = KnownGateways::load(&context.paths.state_dir).map_err(failed)?;
        let fingerprint = match &self.fingerprint {
            Some(text) => {
                Some(Fingerprint::parse(text).map_err(|error| CliError::Usage(format!("--fingerprint: {error}")))?)
            }
            None => None,
        };
        let was_known = match fingerprint {
            Some(fingerprint) => known.accept(&url, fingerprint).map(|()| true),
            None => known.forget(&url),
        }
        .map_err(failed)?;
        if self.json {
            let sha256 = fingerprint.map(|fingerprint| fingerprint.to_string());
            context.output.value(&json!({"ok": true, "url": url.to_string(), "sha256": sha256, "known": was_known}))?;
        } else {
            context.output.line(&match (fingerprint, was_known) {
                (Some(fingerprint), _) => {
                    format!("{url} is the gateway with the certificate {}.", fingerprint.with_colons())
                }
                (None, true) => {
                    format!("{url} is forgotten. The next certificate that passes normal trust is its first.")
                }
                (None, false) => format!("{url} was not known."),
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
