//! Why a command failed: for people on standard error, for programs as JSON, and as an exit code.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::client::credentials::CredentialError;
use crate::client::error::{CallError, ConnectError, ConnectFailure, Disconnect, RemoteError, Stage};
use crate::client::identity::IdentityError;
use crate::client::tunnel::PlanError;
use crate::config::load::LoadError;
use crate::config::paths::{InvalidProfile, NoHome};
use crate::server::StartError;

/// Why a command failed.
#[derive(Debug, Error)]
pub(super) enum CliError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// There is no gateway, or it does not let us in.
    #[error("{error}")]
    Connect {
        /// Why.
        error: Box<ConnectError>,
        /// Where URL and credentials came from.
        via: String,
    },
    /// The gateway did not do what it was asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The gateway did not do what it was asked, and the command knows better than the gateway what to do.
    #[error("{refusal}")]
    Refused {
        /// What the gateway answered.
        refusal: Box<RemoteError>,
        /// What to do.
        advice: Option<String>,
    },
    /// Nothing says where to connect, or with what.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The configuration describes no tunnel.
    #[error(transparent)]
    Tunnel(#[from] PlanError),
    /// The configuration file is broken.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// The key of this device cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no place for configuration and state.
    #[error(transparent)]
    NoHome(#[from] NoHome),
    /// The gateway did not start, or did not stay.
    #[error(transparent)]
    Start(#[from] StartError),
    /// `--profile` names none.
    #[error(transparent)]
    Profile(#[from] InvalidProfile),
    /// Anything else, with what to do about it.
    #[error("{message}")]
    Other {
        /// What happened.
        message: String,
        /// What to do.
        advice: Option<String>,
    },
    /// Standard output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// Whoever read our output has gone. Nothing to tell anyone.
    #[error("nobody reads the output")]
    Unread,
}

impl CliError {
    /// A failure in words.
    pub(super) fn other(message: impl Into<String>) -> Self {
        Self::Other { message: message.into(), advice: None }
    }

    /// A failure in words, and what to do about it.
    pub(super) fn with_advice(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Other { message: message.into(), advice: Some(advice.into()) }
    }

    /// 2 when the command line is wrong, 1 for other failures.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Profile(_) => ExitCode::from(2),
            Self::Unread => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    /// What to do, a line each.
    pub(super) fn advice(&self) -> Vec<String> {
        match self {
            Self::Connect { error, via } => error.advice().into_iter().chain([via.clone()]).collect(),
            Self::Refused { advice, .. } => advice.iter().cloned().collect(),
            Self::Call(error) => error.advice().into_iter().collect(),
            Self::Other { advice, .. } => advice.iter().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// The same for programs.
    pub(super) fn report(&self) -> Report<'_> {
        let mut body = match self {
            Self::Call(CallError::Remote(remote)) => Body::request(remote),
            Self::Refused { refusal, .. } => Body::request(refusal),
            Self::Call(CallError::Timeout { after, .. }) => {
                Body { timeout_ms: Some(millis(*after)), ..Body::transport("timeout") }
            }
            Self::Call(CallError::Disconnected(end)) => Body::closed(end),
            Self::Connect { error, .. } => Body::connect(error),
            Self::Usage(_) | Self::Profile(_) => Body { code: Some(Code::Answer("USAGE")), ..Body::default() },
            _ => Body::default(),
        };
        body.message = self.to_string();
        body.hint = Some(self.advice().join("\n")).filter(|hint| !hint.is_empty());
        Report { ok: false, error: body }
    }
}

/// `{"ok":false,"error":{"type":..,"message":..}}`, with the types and keys that the incumbent's command line prints.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    ok: bool,
    error: Body<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code<'a>>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retryable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// The code of an answer, or of a close frame.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Code<'a> {
    Answer(&'a str),
    Close(u16),
}

impl Default for Body<'_> {
    fn default() -> Self {
        Self {
            r#type: "cli_error",
            kind: None,
            code: None,
            message: String::new(),
            details: None,
            retryable: None,
            retry_after_ms: None,
            timeout_ms: None,
            reason: None,
            stage: None,
            url: None,
            hint: None,
        }
    }
}

impl<'a> Body<'a> {
    fn request(remote: &'a RemoteError) -> Self {
        Self {
            r#type: "gateway_request_error",
            code: Some(Code::Answer(&remote.code)),
            details: remote.details.as_ref(),
            retryable: Some(remote.retryable),
            retry_after_ms: remote.retry_after_ms,
            ..Self::default()
        }
    }

    fn transport(kind: &'static str) -> Self {
        Self { r#type: "gateway_transport_error", kind: Some(kind), ..Self::default() }
    }

    fn closed(end: &'a Disconnect) -> Self {
        match end {
            Disconnect::ByGateway { code, reason } => {
                Self { code: code.map(Code::Close), reason: Some(reason), ..Self::transport("closed") }
            }
            _ => Self::transport("closed"),
        }
    }

    fn connect(error: &'a ConnectError) -> Self {
        let body = match &error.cause {
            ConnectFailure::Refused(remote) => Self::request(remote),
            ConnectFailure::Closed(end) => Self::closed(end),
            ConnectFailure::Http(answer) if answer.wants_login() => {
                Self { code: Some(Code::Answer("EDGE_AUTH_REQUIRED")), ..Self::transport("edge-auth") }
            }
            ConnectFailure::Tls(_) => Self::transport("tls"),
            ConnectFailure::Timeout => Self { timeout_ms: Some(millis(error.after)), ..Self::transport("timeout") },
            _ => Self::transport("unreachable"),
        };
        let stage = match error.stage {
            Stage::Dns => "dns",
            Stage::Tcp => "tcp",
            Stage::Tls => "tls",
            Stage::Http => "http",
            Stage::Challenge => "challenge",
            Stage::Auth => "auth",
        };
        Self { stage: Some(stage), url: Some(error.url.to_string()), ..body }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::GatewayUrl;

    #[test]
    fn programs_get_the_same_facts_as_people() {
        let remote = RemoteError {
            code: "FORBIDDEN".into(),
            message: "missing scope: operator.write".into(),
            details: Some(json!({"code": "MISSING_SCOPE", "missingScope": "operator.write"})),
            retryable: false,
            retry_after_ms: None,
        };
        let json = |error: &CliError| serde_json::to_value(error.report()).unwrap();
        let error = json(&CliError::Call(CallError::Remote(remote)));
        assert_eq!((&error["ok"], &error["error"]["type"]), (&json!(false), &json!("gateway_request_error")));
        assert_eq!(error["error"]["details"]["missingScope"], "operator.write");
        assert!(error["error"]["hint"].as_str().unwrap().contains("operator.write"));

        let unreachable = CliError::Connect {
            error: Box::new(ConnectError {
                url: GatewayUrl::loopback(1),
                stage: Stage::Tcp,
                after: Duration::from_millis(1),
                cause: io::Error::from_raw_os_error(111).into(),
            }),
            via: "url: default".into(),
        };
        let error = json(&unreachable);
        assert_eq!((&error["error"]["kind"], &error["error"]["stage"]), (&json!("unreachable"), &json!("tcp")));
        assert_eq!(unreachable.advice().last().unwrap(), "url: default");
    }

    #[test]
    fn usage_is_two_and_failure_is_one() {
        let code = |error: CliError| format!("{:?}", error.exit_code());
        assert_eq!(code(CliError::Usage("x".into())), format!("{:?}", ExitCode::from(2)));
        assert_eq!(code(CliError::other("x")), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(code(CliError::Unread), format!("{:?}", ExitCode::SUCCESS));
    }
}
