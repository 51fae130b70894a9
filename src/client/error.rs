//! How talking to a gateway fails: where on the way, why, and what to do about it.
//!
//! [`ConnectError`] is about getting in, [`CallError`] about one call, [`Disconnect`] about the end of a connection
//! that was up. Each says in its text what happened; [`ConnectError::advice`] and [`CallError::advice`] say what to
//! do next, in one or two lines for a person.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::identity::IdentityError;
use super::tls::{Distrust, TlsFailure};
use super::url_policy::{GatewayUrl, UrlError};
use crate::ws::codec::ProtocolError;

/// A step on the way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The host's name is looked up.
    Dns,
    /// A TCP connection is opened.
    Tcp,
    /// TLS is negotiated.
    Tls,
    /// HTTP is upgraded to WebSocket.
    Http,
    /// The gateway's challenge is awaited.
    Challenge,
    /// `connect` was sent, `hello-ok` is awaited.
    Auth,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "looking up the name",
            Self::Tcp => "opening the TCP connection",
            Self::Tls => "negotiating TLS",
            Self::Http => "upgrading HTTP to WebSocket",
            Self::Challenge => "waiting for the gateway's challenge",
            Self::Auth => "authenticating",
        })
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
#[error("cannot connect to {url}: {cause} ({stage}, after {} ms)", .after.as_millis())]
pub struct ConnectError {
    /// Where to.
    pub url: GatewayUrl,
    /// How far it came.
    pub stage: Stage,
    /// How long it took.
    pub after: Duration,
    /// What happened.
    pub cause: ConnectFailure,
}

/// What happened on the way in.
#[derive(Debug, Error)]
pub enum ConnectFailure {
    /// The step did not end in time.
    #[error("no answer in time")]
    Timeout,
    /// The operating system says no.
    #[error("{}", plain_io(.0))]
    Io(#[from] io::Error),
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// The name has no address that credentials may be sent to.
    #[error(transparent)]
    Address(UrlError),
    /// TLS is not what was expected.
    #[error(transparent)]
    Tls(#[from] TlsFailure),
    /// There are headers for a proxy, and the URL is `ws://`.
    #[error("headers for a proxy are secrets, and are not sent over ws://")]
    PlaintextEdge,
    /// A header for a proxy has a value that no header can have.
    #[error("the value for the header {0} has characters that no header can have")]
    EdgeValue(http::HeaderName),
    /// What answered does not speak HTTP.
    #[error("what answers there does not speak HTTP ({0})")]
    NotHttp(hyper::Error),
    /// An HTTP answer that is not an upgrade.
    #[error("{0}")]
    Http(HttpAnswer),
    /// The upgrade is not one of RFC 6455.
    #[error("what answers there is not a WebSocket server ({0})")]
    NotWebSocket(&'static str),
    /// The gateway broke RFC 6455.
    #[error("the gateway broke the WebSocket protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// What came is not what a gateway says at this point.
    #[error("what answers there is not a gateway: {0}")]
    NotGateway(&'static str),
    /// The gateway refused `connect`.
    #[error("{0}")]
    Refused(RemoteError),
    /// It closed the connection.
    #[error("{0}")]
    Closed(Disconnect),
    /// The key of this device cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// An HTTP answer where a WebSocket was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Where it sends us, without the query.
    pub location: Option<String>,
    /// The beginning of what it says, when that is short text.
    pub says: Option<String>,
}

impl HttpAnswer {
    /// Whether it is what an identity-aware proxy says to somebody it does not know: the error `EDGE_AUTH_REQUIRED`.
    /// A gateway also answers 403, but names the key of its configuration that is to be changed.
    pub fn wants_login(&self) -> bool {
        let by_gateway = self.says.as_ref().is_some_and(|says| says.contains("gateway."));
        !by_gateway
            && (self.status.is_redirection() || matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

impl fmt::Display for HttpAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {} instead of a WebSocket", self.status)?;
        if let Some(location) = &self.location {
            write!(f, ", sent on to {location}")?;
        }
        self.says.as_ref().map_or(Ok(()), |says| write!(f, ": {says}"))
    }
}

/// An error that the gateway answered with.
#[derive(Clone, Debug, PartialEq, Deserialize, Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct RemoteError {
    /// Kind of failure: `INVALID_REQUEST`, `FORBIDDEN`, `UNAVAILABLE`, ...
    #[serde(default)]
    pub code: String,
    /// What the gateway says to people.
    #[serde(default)]
    pub message: String,
    /// Particulars; `details.code` is what programs branch on.
    #[serde(default)]
    pub details: Option<Value>,
    /// Whether the same call may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// When to try again.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

impl RemoteError {
    /// A text of `details`.
    pub fn detail(&self, key: &str) -> Option<&str> {
        self.details.as_ref()?.get(key)?.as_str()
    }

    /// `details.code`, else `code`.
    pub fn specific_code(&self) -> &str {
        self.detail("code").unwrap_or(&self.code)
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Disconnect {
    /// The gateway closed it.
    #[error("the gateway closed the connection{}", close_text(*.code, .reason))]
    ByGateway {
        /// The close code; `None` when it gave none.
        code: Option<u16>,
        /// What it said.
        reason: Box<str>,
    },
    /// It broke without a close frame.
    #[error("the connection was lost: {0}")]
    Lost(Arc<str>),
    /// Nothing came for twice the tick interval, so this side closed it.
    #[error("the gateway fell silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The gateway broke RFC 6455.
    #[error("the gateway broke the WebSocket protocol: {0}")]
    Protocol(ProtocolError),
    /// This side closed it.
    #[error("the connection is closed")]
    ByUs,
}

fn close_text(code: Option<u16>, reason: &str) -> String {
    match (code, reason) {
        (None, _) => String::new(),
        (Some(code), "") => format!(" ({code})"),
        (Some(code), reason) => format!(" ({code}: {reason})"),
    }
}

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CallError {
    /// The gateway answered with an error.
    #[error("{0}")]
    Remote(RemoteError),
    /// No answer in time. Whether the method ran is not known.
    #[error("no answer to {method} within {} ms", .after.as_millis())]
    Timeout {
        /// The method.
        method: Box<str>,
        /// How long the answer was awaited.
        after: Duration,
    },
    /// The connection ended before the answer. Whether the method ran is not known.
    #[error(transparent)]
    Disconnected(Disconnect),
    /// The parameters cannot be written as JSON.
    #[error("the parameters cannot be written as JSON: {0}")]
    Params(Box<str>),
    /// The result is not what the method is known to give.
    #[error("the result of {method} is not understood: {why}")]
    Result {
        /// The method.
        method: Box<str>,
        /// What is wrong with it.
        why: Box<str>,
    },
}

impl CallError {
    /// What to do about it.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Remote(error) => remote_advice(error),
            Self::Timeout { .. } => Some("Give it more time with --timeout MS, or look at: clawgate logs".into()),
            Self::Disconnected(Disconnect::ByUs) | Self::Params(_) | Self::Result { .. } => None,
            Self::Disconnected(_) => Some("See whether the gateway still runs: clawgate gateway status".into()),
        }
    }
}

impl ConnectError {
    /// What the gateway answered to `connect`, when it refused.
    pub const fn refusal(&self) -> Option<&RemoteError> {
        match &self.cause {
            ConnectFailure::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> Option<String> {
        let url = &self.url;
        let running = || match url.is_loopback() {
            true => "Is the gateway running? Start it with: clawgate gateway".to_owned(),
            false => format!("Is the gateway running, and is {} reachable from here?", url.authority()),
        };
        match &self.cause {
            ConnectFailure::Refused(error) => remote_advice(error),
            ConnectFailure::Io(_) | ConnectFailure::Timeout if self.stage == Stage::Tcp => Some(running()),
            ConnectFailure::Timeout if self.stage == Stage::Http || self.stage == Stage::Challenge => {
                Some(format!("Something listens on {}, but not a gateway that is ready.", url.authority()))
            }
            ConnectFailure::NoAddress => {
                Some(format!("Check the spelling of {:?}, and the DNS of this machine.", url.host()))
            }
            ConnectFailure::Io(_) if self.stage == Stage::Dns => {
                Some(format!("Check the spelling of {:?}, and the DNS of this machine.", url.host()))
            }
            ConnectFailure::Tls(failure) => tls_advice(failure, url),
            ConnectFailure::Timeout if self.stage == Stage::Tls => Some(format!(
                "Something listens on {}, but does not answer in TLS: is it ws:// there?",
                url.authority()
            )),
            ConnectFailure::PlaintextEdge => Some("Use wss:// in gateway.remote.url.".into()),
            ConnectFailure::EdgeValue(name) => Some(format!("Look at gateway.remote.edgeAuth.{name}: is it one line?")),
            ConnectFailure::Http(answer) if answer.wants_login() => Some(
                "A proxy in front of the gateway wants a login first. Give it its headers in gateway.remote.edgeAuth \
                 (over wss://), or reach the gateway past it: tailnet, SSH tunnel."
                    .into(),
            ),
            ConnectFailure::Http(answer) if answer.status == StatusCode::FORBIDDEN => {
                Some("The gateway said so itself: change its configuration on its host.".into())
            }
            ConnectFailure::Http(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
                Some("Try again.".into())
            }
            ConnectFailure::Http(answer) if answer.status.is_success() => Some(format!(
                "Check the port: is {} the gateway's? A proxy in front may also answer with a page of its own, such as a login.",
                url.authority()
            )),
            // A port that speaks TLS says so (a gateway's does, and nginx's), or answers with what is no HTTP.
            ConnectFailure::Http(answer)
                if !url.is_tls()
                    && answer.status == StatusCode::BAD_REQUEST
                    && answer.says.as_ref().is_some_and(|says| says.contains("TLS") || says.contains("HTTPS")) =>
            {
                Some(format!("Is it wss://{} there?", url.authority()))
            }
            ConnectFailure::NotHttp(_) if !url.is_tls() => {
                Some(format!("Is it wss://{} there? Else check the port: is it the gateway's?", url.authority()))
            }
            ConnectFailure::NotHttp(_)
            | ConnectFailure::Http(_)
            | ConnectFailure::NotWebSocket(_)
            | ConnectFailure::NotGateway(_) => Some(format!("Check the port: is {} the gateway's?", url.authority())),
            _ => None,
        }
    }
}

/// What to do about a certificate that will not do. A person decides; the command says what was decided.
fn tls_advice(failure: &TlsFailure, url: &GatewayUrl) -> Option<String> {
    let mut lines: Vec<String> =
        failure.fingerprints().iter().map(|(name, print)| format!("{name:9} {print}")).collect();
    let compare = "Compare with what the gateway's host says: clawgate gateway fingerprint (or openssl x509 -noout -fingerprint \
                   -sha256 -in CERT.pem)";
    match failure {
        TlsFailure::NotPinned { from, presented, .. } => {
            lines.extend([
                compare.to_owned(),
                format!("If it is the gateway's new one, set {from} to it (after a comma, to keep the old one, too):"),
                format!("  clawgate config set gateway.remote.tlsFingerprint {}", presented.fingerprint),
            ]);
        }
        TlsFailure::Changed { presented, .. } => lines.extend([
            "If nobody renewed the certificate, somebody else answers there.".to_owned(),
            compare.to_owned(),
            "If it is the gateway's new one, accept it:".to_owned(),
            format!("  clawgate gateway trust {url} --fingerprint {}", presented.fingerprint),
        ]),
        TlsFailure::Untrusted { why: Distrust::UnknownIssuer, presented } => lines.extend([
            compare.to_owned(),
            "If it is the gateway's, pin it, for gateway.remote.url with the first line, for another URL with the second:"
                .to_owned(),
            format!("  clawgate config set gateway.remote.tlsFingerprint {}", presented.fingerprint),
            format!("  clawgate gateway trust {url} --fingerprint {}", presented.fingerprint),
        ]),
        TlsFailure::Untrusted { why, .. } => lines.extend(match why {
            Distrust::Expired => Some("Renew the gateway's certificate, or pin it (gateway.remote.tlsFingerprint).".into()),
            Distrust::NotYet => Some("Is the clock of this machine right?".into()),
            Distrust::WrongName(_) => Some("Use a name that the certificate is for in the URL, or pin the certificate.".into()),
            Distrust::UnknownIssuer | Distrust::Other(_) => None,
        }),
        TlsFailure::NotTls => lines.push(format!("Is it ws:// on {}?", url.authority())),
        TlsFailure::Handshake(_) | TlsFailure::Known(_) => {}
    }
    Some(lines.join("\n")).filter(|text| !text.is_empty())
}

/// What to do about an error that the gateway answered with.
fn remote_advice(error: &RemoteError) -> Option<String> {
    let text = |key| error.detail(key).unwrap_or("?");
    Some(match error.specific_code() {
        "PAIRING_REQUIRED" => {
            let id = text("requestId");
            format!("Approve this device on the gateway's host: clawgate devices approve {id}")
        }
        "AUTH_TOKEN_MISSING" => missing_secret(error, "token", "password"),
        "AUTH_PASSWORD_MISSING" => missing_secret(error, "password", "token"),
        "AUTH_TOKEN_MISMATCH" | "AUTH_PASSWORD_MISMATCH" => match error.detail("secretSource") {
            Some(source) => format!(
                "The gateway has another secret than this command sent. The gateway's comes from {source}; its log and its first \
                 lines say the fingerprint. See what counts here: clawgate gateway explain"
            ),
            None => "The gateway has another secret than this command sent. Compare gateway.auth on the gateway's host with what \
                     counts here: clawgate gateway explain"
                .into(),
        },
        "AUTH_DEVICE_TOKEN_MISMATCH" | "AUTH_SCOPE_MISMATCH" => {
            "The stored device token is no longer good for this. Pass --token once, or have the device approved again: clawgate devices list".into()
        }
        "AUTH_RATE_LIMITED" => {
            let wait = error.retry_after_ms.map_or_else(|| "a few minutes".into(), |ms| format!("{} s", ms.div_ceil(1000)));
            format!("Too many wrong attempts from this address. Wait {wait}, then try again.")
        }
        "DEVICE_AUTH_SIGNATURE_EXPIRED" => "Set the clock of this machine, or of the gateway's.".into(),
        _ if error.message.contains("SYSTEM_RUN_DENIED") || error.message.contains("SYSTEM_RUN_DISABLED") => {
            "The node decides for itself what it runs. On that machine: list the program in ~/.openclaw/exec-approvals.json, or start \
             its node host with --exec. The agent's commands wait for a person here: clawgate approvals list"
                .into()
        }
        "MISSING_SCOPE" => {
            let granted = error.details.as_ref().and_then(|details| details.get("grantedScopes")?.as_array());
            let granted = granted.map(|all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
            let has = match granted.as_deref() {
                Some("") => "It has none".to_owned(),
                Some(granted) => format!("It has {granted}"),
                None => "It has less".to_owned(),
            };
            format!(
                "{has}, and needs {}. On the gateway's host an operator with more rights gives it: clawgate devices approve \
                 (what waits: clawgate devices list), or clawgate devices rotate --device ID --role operator --scope {}",
                text("missingScope"),
                text("missingScope")
            )
        }
        "PROTOCOL_MISMATCH" => "The gateway speaks another version of the protocol: update the older of the two.".into(),
        "METHOD_NOT_IMPLEMENTED" => return None,
        _ if error.retryable => match error.retry_after_ms {
            Some(ms) => format!("Try again in {ms} ms."),
            None => "Try again.".into(),
        },
        _ => return None,
    })
}

/// What to do when the gateway takes `kind` and there was none: what this side knows beside it stands in `details.sent`,
/// `details.isLocal` and `details.settings`, where the command line leaves it.
fn missing_secret(error: &RemoteError, kind: &str, other: &str) -> String {
    let sent = match error.detail("sent") {
        Some(sent) if sent == other => format!("This gateway takes a {kind}; a {other} was sent. "),
        _ => format!("This gateway takes a {kind}; none was sent. "),
    };
    let variable = format!("OPENCLAW_GATEWAY_{}", kind.to_uppercase());
    let is_local = error.details.as_ref().and_then(|details| details.get("isLocal")?.as_bool());
    let key = match is_local {
        Some(true) => format!("gateway.auth.{kind}"),
        Some(false) => format!("gateway.remote.{kind}"),
        None => format!("gateway.auth.{kind} (gateway.remote.{kind} for a remote gateway)"),
    };
    let settings = error.detail("settings").map_or_else(String::new, |text| format!("\n{text}"));
    format!("{sent}Pass --{kind}, or set {variable}, or {key}.{settings}")
}

/// An I/O error for people: the reason without the number of the operating system.
fn plain_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        io::ErrorKind::UnexpectedEof => "connection closed".into(),
        _ => {
            let text = error.to_string();
            let text = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
    }
}

pub(super) fn lost(error: &io::Error) -> Disconnect {
    Disconnect::Lost(plain_io(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed(stage: Stage, cause: impl Into<ConnectFailure>) -> ConnectError {
        ConnectError { url: GatewayUrl::loopback(1), stage, after: Duration::from_millis(3), cause: cause.into() }
    }

    fn remote(details: Value) -> RemoteError {
        serde_json::from_value(json!({"code": "NOT_PAIRED", "message": "no", "details": details})).unwrap()
    }

    #[test]
    fn says_what_happened_where_and_after_how_long() {
        let error = failed(Stage::Tcp, io::Error::from_raw_os_error(111));
        assert_eq!(
            error.to_string(),
            "cannot connect to ws://127.0.0.1:1: connection refused (opening the TCP connection, after 3 ms)"
        );
        assert_eq!(error.advice().unwrap(), "Is the gateway running? Start it with: clawgate gateway");
    }

    #[test]
    fn a_login_page_is_told_from_a_wrong_port() {
        let answer = |status, location: Option<&str>| {
            ConnectFailure::Http(HttpAnswer { status, location: location.map(Into::into), says: None })
        };
        let login = failed(Stage::Http, answer(StatusCode::FOUND, Some("https://login.example/")));
        let ours = HttpAnswer {
            says: Some("it is not in gateway.trustedProxies".into()),
            location: None,
            status: StatusCode::FORBIDDEN,
        };
        assert!(!ours.wants_login());
        assert!(login.to_string().contains("HTTP 302 Found instead of a WebSocket, sent on to https://login.example/"));
        assert!(login.advice().unwrap().contains("proxy"));
        assert!(failed(Stage::Http, answer(StatusCode::NOT_FOUND, None)).advice().unwrap().contains("port"));
    }

    #[test]
    fn a_refusal_says_who_must_do_what() {
        let error = failed(
            Stage::Auth,
            ConnectFailure::Refused(remote(json!({"code": "PAIRING_REQUIRED", "requestId": "r-1"}))),
        );
        assert_eq!(error.advice().unwrap(), "Approve this device on the gateway's host: clawgate devices approve r-1");
        let scope = CallError::Remote(remote(json!({"code": "MISSING_SCOPE", "missingScope": "operator.write"})));
        assert!(scope.advice().unwrap().starts_with("It has less, and needs operator.write"));
        let details =
            json!({"code": "MISSING_SCOPE", "missingScope": "operator.admin", "grantedScopes": ["operator.read"]});
        let advice = CallError::Remote(remote(details)).advice().unwrap();
        assert!(advice.starts_with("It has operator.read, and needs operator.admin"), "{advice}");
    }

    #[test]
    fn a_close_says_its_code_and_reason() {
        let close = |code, reason: &str| Disconnect::ByGateway { code, reason: reason.into() }.to_string();
        assert_eq!(close(None, ""), "the gateway closed the connection");
        assert_eq!(close(Some(1012), "service restart"), "the gateway closed the connection (1012: service restart)");
    }
}
