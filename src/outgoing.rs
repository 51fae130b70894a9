//! HTTP that the gateway sends to others: model providers and channels. Bounded in bytes and in time.
//!
//! It knows requests, answers and their limits; it knows no API. TLS is rustls with ring and the trust store of the
//! operating system. No error shows a URL, because some APIs carry their token in it. Start at [`Outgoing::send`].

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_platform_verifier::BuilderVerifierExt as _;

/// Time to open a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections kept for one host.
const IDLE_PER_HOST: usize = 8;
/// How long they are kept.
const IDLE: Duration = Duration::from_secs(30);

/// Why a request has no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutgoingError {
    /// The URL or a header can't be sent.
    #[error("the request cannot be sent: {0}")]
    Invalid(String),
    /// No connection, or it broke before the answer began. `sent` tells whether the other side may have seen it.
    #[error("{reason}")]
    Failed {
        /// What happened.
        reason: String,
        /// Whether bytes of the request may have left.
        sent: bool,
    },
    /// Nothing came for too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is longer than the caller takes.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The answer broke off.
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// A client of HTTP/1.1 with a pool of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outgoing {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self::new()
    }
}

impl Outgoing {
    /// A client that trusts what the operating system trusts. Where that can't be read, `https` fails and `http`, as
    /// of a model on this machine, still works.
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls()).https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            // Only a request of which not a byte was written, because its idle connection had just been closed.
            .retry_canceled_requests(true)
            .build(connector);
        Self { client }
    }

    /// Sends `request` and waits for the head of the answer.
    ///
    /// # Errors
    /// No answer began within `within`.
    ///
    /// # Cancel safety
    /// Dropped, the exchange ends; what the other side has read it has read.
    pub async fn send(&self, mut request: Request<Full<Bytes>>, within: Duration) -> Result<Answer, OutgoingError> {
        let connection = capture_connection(&mut request);
        match tokio::time::timeout(within, self.client.request(request)).await {
            // A name that is not found, a handshake that hangs: nobody has seen the request.
            Err(_) if connection.connection_metadata().is_none() => {
                Err(OutgoingError::Failed { reason: format!("no connection within {within:?}"), sent: false })
            }
            Err(_) => Err(OutgoingError::Timeout(within)),
            Ok(Err(error)) => Err(OutgoingError::Failed { reason: reason(&error), sent: !error.is_connect() }),
            Ok(Ok(answer)) => {
                let (head, body) = answer.into_parts();
                Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
            }
        }
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Answer {
    /// Whether the status is a success.
    pub const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// Nothing came for `idle`, or the connection broke.
    pub async fn chunk(&mut self, idle: Duration) -> Result<Option<Bytes>, OutgoingError> {
        loop {
            return match tokio::time::timeout(idle, self.body.frame()).await {
                Err(_) => Err(OutgoingError::Timeout(idle)),
                Ok(None) => Ok(None),
                Ok(Some(Err(error))) => Err(OutgoingError::Broken(chain(&error))),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(Some(data)),
                    Err(_) => continue,
                },
            };
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// It is longer than `max_bytes`, or does not end within `within`.
    pub async fn whole(mut self, max_bytes: usize, within: Duration) -> Result<Vec<u8>, OutgoingError> {
        let read = async {
            let mut whole = Vec::new();
            while let Some(chunk) = self.chunk(within).await? {
                if whole.len() + chunk.len() > max_bytes {
                    return Err(OutgoingError::TooLong(max_bytes));
                }
                whole.extend_from_slice(&chunk);
            }
            Ok(whole)
        };
        tokio::time::timeout(within, read).await.unwrap_or(Err(OutgoingError::Timeout(within)))
    }
}

fn tls() -> rustls::ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = || rustls::ClientConfig::builder_with_provider(std::sync::Arc::clone(&provider));
    let trusted = builder()
        .with_safe_default_protocol_versions()
        .and_then(rustls::ConfigBuilder::with_platform_verifier)
        .map(|config| config.with_no_client_auth());
    trusted.unwrap_or_else(|error| {
        tracing::warn!(%error, "the trust store of this system cannot be used: requests over https will fail");
        #[expect(clippy::expect_used, reason = "ring has the protocol versions that rustls was built with")]
        let versions = builder().with_safe_default_protocol_versions().expect("ring knows TLS 1.2 and 1.3");
        versions.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
    })
}

fn reason(error: &hyper_util::client::legacy::Error) -> String {
    let what = if error.is_connect() { "no connection" } else { "the connection broke" };
    format!("{what}: {}", chain(error))
}

/// The innermost reason: the outer ones only say where it was.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
