//! Why a command failed: for people on standard error, for programs as JSON, and as an exit code.

use std::io;
use std::process::ExitCode;

use serde_json::{Value, json};
use thiserror::Error;

use crate::client::credentials::CredentialError;
use crate::client::error::{CallError, ConnectError, ConnectFailure, Disconnect, RemoteError, Stage};
use crate::client::identity::IdentityError;
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
    /// Nothing says where to connect, or with what.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
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
            Self::Call(error) => error.advice().into_iter().collect(),
            Self::Other { advice, .. } => advice.iter().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// `{"ok":false,"error":{"type":..,"message":..}}`, in the incumbent's three types.
    pub(super) fn to_json(&self) -> Value {
        let mut error = match self {
            Self::Call(CallError::Remote(remote)) => request_error(remote),
            Self::Connect { error, .. } => connect_error(error),
            Self::Call(CallError::Timeout { after, .. }) => {
                json!({"type": "gateway_transport_error", "kind": "timeout", "timeoutMs": millis(*after)})
            }
            Self::Call(CallError::Disconnected(end)) => closed_error(end),
            _ => json!({"type": "cli_error"}),
        };
        error["message"] = self.to_string().into();
        let advice = self.advice();
        if !advice.is_empty() {
            error["hint"] = advice.join("\n").into();
        }
        json!({"ok": false, "error": error})
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn request_error(remote: &RemoteError) -> Value {
    let mut error = json!({"type": "gateway_request_error", "code": remote.code, "retryable": remote.retryable});
    if let Some(details) = &remote.details {
        error["details"] = details.clone();
    }
    if let Some(ms) = remote.retry_after_ms {
        error["retryAfterMs"] = ms.into();
    }
    error
}

fn connect_error(error: &ConnectError) -> Value {
    let stage = match error.stage {
        Stage::Dns => "dns",
        Stage::Tcp => "tcp",
        Stage::Tls => "tls",
        Stage::Http => "http",
        Stage::Challenge => "challenge",
        Stage::Auth => "auth",
    };
    let mut value = match &error.cause {
        ConnectFailure::Refused(remote) => request_error(remote),
        ConnectFailure::Closed(end) => closed_error(end),
        ConnectFailure::Timeout => json!({"type": "gateway_transport_error", "kind": "timeout"}),
        _ => json!({"type": "gateway_transport_error", "kind": "unreachable"}),
    };
    value["stage"] = stage.into();
    value["url"] = error.url.to_string().into();
    value
}

fn closed_error(end: &Disconnect) -> Value {
    let mut error = json!({"type": "gateway_transport_error", "kind": "closed"});
    if let Disconnect::ByGateway { code, reason } = end {
        error["code"] = (*code).into();
        error["reason"] = reason.as_ref().into();
    }
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let error = CliError::Call(CallError::Remote(remote)).to_json();
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
        let error = unreachable.to_json();
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
