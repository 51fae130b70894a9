//! A connection that comes back: connects, says what happens, and connects again with jitter until it is of no use.
//!
//! [`Link`] has no task of its own: it works while somebody waits in [`Link::next`], and whoever stops waiting stops it.
//! Calls go over the [`Connection`] that [`Update::Up`] gives; one that was in flight when the connection broke fails
//! with [`CallError::Disconnected`](super::CallError::Disconnected) and is not made again, for nobody here knows whether
//! it ran.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::backoff::Backoff;
use super::connect::connect;
use super::connection::{Connection, Event, Events};
use super::error::{ConnectError, ConnectFailure, Disconnect, RemoteError};
use super::options::ConnectOptions;
use super::tls::TlsFailure;
use crate::id::random_bytes;

/// A connection that held this long had no trouble: the next wait is a short one again.
const PROVEN: Duration = Duration::from_secs(30);

/// What happened to a [`Link`].
#[derive(Debug)]
pub enum Update {
    /// The gateway greeted. The connection is the same until [`Update::Down`].
    Up(Connection),
    /// The gateway told something.
    Event(Event),
    /// The connection ended; the next attempt follows.
    Down(Disconnect),
    /// An attempt failed; the next one comes in `again_in`.
    Failed {
        /// Why.
        error: Box<ConnectError>,
        /// The wait.
        again_in: Duration,
    },
}

/// A connection that comes back.
///
/// ```no_run
/// use clawgate::client::{ConnectOptions, GatewayUrl, Link, Update};
/// use clawgate::rpc::scope::{Scope, ScopeSet};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let url = GatewayUrl::parse("ws://127.0.0.1:18789")?;
/// let mut link = Link::new(ConnectOptions::operator(url, ScopeSet::EMPTY.with(Scope::Read)));
/// while let Some(update) = link.next().await {
///     match update {
///         Update::Up(connection) => println!("connected to {}", connection.hello().server_version),
///         Update::Event(event) => println!("{}: {}", event.name, event.payload),
///         Update::Down(why) => println!("{why}"),
///         Update::Failed { error, again_in } => println!("{error}; again in {again_in:?}"),
///     }
/// }
/// // Trying again would be of no use: a person must do something first.
/// if let Some(error) = link.given_up() {
///     println!("{error}\n{}", error.advice().unwrap_or_default());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Link {
    options: ConnectOptions,
    backoff: Backoff,
    wait_for_approval: bool,
    failures: u32,
    /// What the gateway itself asked to be waited.
    floor: Option<Duration>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Waiting(Instant),
    Up { connection: Connection, events: Events, since: Instant },
    GivenUp(Option<Box<ConnectError>>),
}

impl Link {
    /// A link that begins with its first attempt at once.
    pub fn new(options: ConnectOptions) -> Self {
        Self {
            options,
            backoff: Backoff::default(),
            wait_for_approval: true,
            failures: 0,
            floor: None,
            phase: Phase::Waiting(Instant::now()),
        }
    }

    /// With other waits than the default: up to 1 s first, doubling to 30 s.
    #[must_use]
    pub fn with_backoff(self, backoff: Backoff) -> Self {
        Self { backoff, ..self }
    }

    /// Whether it goes on trying while this device waits for its approval on the gateway. Default true.
    #[must_use]
    pub fn wait_for_approval(self, wait: bool) -> Self {
        Self { wait_for_approval: wait, ..self }
    }

    /// The options of the next attempt: a token that the gateway gave belongs there.
    pub fn options_mut(&mut self) -> &mut ConnectOptions {
        &mut self.options
    }

    /// The connection, while there is one.
    pub fn connection(&self) -> Option<&Connection> {
        match &self.phase {
            Phase::Up { connection, .. } => Some(connection),
            Phase::Waiting(_) | Phase::GivenUp(_) => None,
        }
    }

    /// Why it does not try any more, after [`Link::next`] gave `None`.
    pub fn given_up(&self) -> Option<&ConnectError> {
        match &self.phase {
            Phase::GivenUp(error) => error.as_deref(),
            _ => None,
        }
    }

    /// The same, to keep.
    pub fn take_given_up(&mut self) -> Option<ConnectError> {
        match &mut self.phase {
            Phase::GivenUp(error) => error.take().map(|error| *error),
            _ => None,
        }
    }

    /// Waits for what happens next; `None` when trying again is of no use until a person has done something (see
    /// [`Link::given_up`]), or [`Link::close`] was called.
    ///
    /// Cancel safe: an attempt that is given up in the middle begins anew.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn next(&mut self) -> Option<Update> {
        match &mut self.phase {
            Phase::GivenUp(_) => None,
            Phase::Up { connection, events, since } => {
                if let Some(event) = events.next().await {
                    if &*event.name == "shutdown" {
                        self.floor = asked_wait(event.payload.get());
                    }
                    return Some(Update::Event(event));
                }
                let end = connection.ended().await;
                self.failures = if since.elapsed() >= PROVEN { 1 } else { self.failures + 1 };
                let wait = self.wait();
                self.phase = Phase::Waiting(Instant::now() + wait);
                Some(Update::Down(end))
            }
            Phase::Waiting(until) => {
                sleep_until(*until).await;
                match connect(&self.options).await {
                    Ok((connection, events)) => {
                        self.phase = Phase::Up { connection: connection.clone(), events, since: Instant::now() };
                        Some(Update::Up(connection))
                    }
                    Err(error) if needs_a_person(&error, self.wait_for_approval) => {
                        self.phase = Phase::GivenUp(Some(Box::new(error)));
                        None
                    }
                    Err(error) => {
                        self.failures += 1;
                        self.floor = error.refusal().and_then(refused_wait);
                        let again_in = self.wait();
                        self.phase = Phase::Waiting(Instant::now() + again_in);
                        Some(Update::Failed { error: Box::new(error), again_in })
                    }
                }
            }
        }
    }

    /// Closes the connection and tries no more.
    pub async fn close(&mut self) {
        if let Phase::Up { connection, .. } = std::mem::replace(&mut self.phase, Phase::GivenUp(None)) {
            connection.close().await;
        }
    }

    fn wait(&mut self) -> Duration {
        self.backoff.wait(self.failures, u32::from_ne_bytes(random_bytes()), self.floor.take())
    }
}

/// How long a gateway that goes wants to be left alone.
fn asked_wait(payload: &str) -> Option<Duration> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shutdown {
        retry_after_ms: Option<u64>,
        restart_expected_ms: Option<u64>,
    }
    // A gateway is not obeyed beyond what a client would wait anyway.
    const LONGEST_MS: u64 = 60_000;
    let shutdown: Shutdown = serde_json::from_str(payload).ok()?;
    let ms = shutdown.retry_after_ms.or(shutdown.restart_expected_ms)?;
    Some(Duration::from_millis(ms.min(LONGEST_MS)))
}

/// How long a gateway that refuses wants to be left alone: it locks out for minutes, not for hours.
fn refused_wait(refusal: &RemoteError) -> Option<Duration> {
    const LONGEST_MS: u64 = 600_000;
    Some(Duration::from_millis(refusal.retry_after_ms?.min(LONGEST_MS)))
}

/// Whether the same attempt would fail again until somebody does something. A wrong secret sent again and again would
/// lock this address out of the gateway.
fn needs_a_person(error: &ConnectError, wait_for_approval: bool) -> bool {
    match &error.cause {
        ConnectFailure::Refused(refusal) => refusal_needs_a_person(refusal, wait_for_approval),
        ConnectFailure::Tls(failure) => matches!(
            failure,
            TlsFailure::NotPinned { .. }
                | TlsFailure::Changed { .. }
                | TlsFailure::Untrusted { .. }
                | TlsFailure::Known(_)
        ),
        ConnectFailure::Http(answer) => answer.wants_login(),
        ConnectFailure::Address(_)
        | ConnectFailure::PlaintextEdge
        | ConnectFailure::EdgeValue(_)
        | ConnectFailure::Identity(_) => true,
        _ => false,
    }
}

fn refusal_needs_a_person(refusal: &RemoteError, wait_for_approval: bool) -> bool {
    let paused = refusal.details.as_ref().and_then(|details| details.get("pauseReconnect")?.as_bool());
    match refusal.specific_code() {
        "PAIRING_REQUIRED" => !wait_for_approval,
        _ if paused == Some(false) => false,
        "AUTH_RATE_LIMITED" => refusal.retry_after_ms.is_none(),
        "AUTH_TOKEN_MISSING"
        | "AUTH_TOKEN_MISMATCH"
        | "AUTH_PASSWORD_MISSING"
        | "AUTH_PASSWORD_MISMATCH"
        | "AUTH_BOOTSTRAP_TOKEN_INVALID"
        | "AUTH_DEVICE_TOKEN_MISMATCH"
        | "AUTH_SCOPE_MISMATCH"
        | "CONTROL_UI_DEVICE_IDENTITY_REQUIRED"
        | "DEVICE_IDENTITY_REQUIRED"
        | "CLIENT_VERSION_MISMATCH"
        | "PROTOCOL_MISMATCH" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(details: serde_json::Value, retry_after_ms: Option<u64>) -> RemoteError {
        let mut error = json!({"code": "INVALID_REQUEST", "message": "no", "details": details});
        error["retryAfterMs"] = json!(retry_after_ms);
        serde_json::from_value(error).unwrap()
    }

    #[test]
    fn s_39_a_wrong_secret_is_not_sent_again_and_again() {
        let stops = |code: &str| refusal_needs_a_person(&refusal(json!({"code": code}), None), true);
        for code in ["AUTH_TOKEN_MISMATCH", "AUTH_PASSWORD_MISSING", "AUTH_RATE_LIMITED", "DEVICE_IDENTITY_REQUIRED"] {
            assert!(stops(code), "{code}");
        }
        assert!(!stops("PAIRING_REQUIRED") && !stops("UNAVAILABLE"));
        assert!(refusal_needs_a_person(&refusal(json!({"code": "PAIRING_REQUIRED"}), None), false));
        assert!(!refusal_needs_a_person(&refusal(json!({"code": "AUTH_RATE_LIMITED"}), Some(300_000)), true));
        let unpaused = json!({"code": "AUTH_SCOPE_MISMATCH", "pauseReconnect": false});
        assert!(!refusal_needs_a_person(&refusal(unpaused, None), true));
    }

    #[test]
    fn no_refusal_keeps_a_client_away_for_good() {
        assert_eq!(refused_wait(&refusal(json!({}), Some(300_000))), Some(Duration::from_secs(300)));
        assert_eq!(refused_wait(&refusal(json!({}), Some(u64::MAX))), Some(Duration::from_secs(600)));
        assert_eq!(refused_wait(&refusal(json!({}), None)), None);
    }

    #[test]
    fn a_gateway_that_goes_may_ask_to_be_left_alone_for_a_while() {
        assert_eq!(asked_wait(r#"{"reason":"x","restartExpectedMs":null}"#), None);
        assert_eq!(asked_wait(r#"{"restartExpectedMs":1500}"#), Some(Duration::from_millis(1500)));
        assert_eq!(asked_wait(r#"{"retryAfterMs":99999999}"#), Some(Duration::from_secs(60)));
    }
}
