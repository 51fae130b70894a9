//! One HTTP request, up to the upgrade: the chain of steps as one readable function.
//!
//! [`answer`] is the whole middleware: each step is a plain function that takes what the previous one
//! proved, and refuses with a [`reject::Reject`]. Everything here is bounded before it is believed: the head by
//! [`HEAD_BYTES`], [`MAX_HEADERS`] and [`HEAD_TIMEOUT`]; bodies are not read at all.
//!
//! A connection ends here, or becomes a WebSocket and is handed to [`crate::conn`].

pub mod page;
pub mod reject;
pub mod upgrade;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use self::reject::Reject;
use crate::net::stream::Stream;

/// Bytes of a request head.
pub const HEAD_BYTES: usize = 16 * 1024;
/// Header lines of a request.
pub const MAX_HEADERS: usize = 64;
/// Time a peer has to send its request head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers of ours: small and whole.
pub type Answer = Response<Full<Bytes>>;

/// How far the start has come, for the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// State is being loaded.
    Starting,
    /// Connections are taken.
    Ready,
    /// Connections are being ended.
    Draining,
}

/// A WebSocket whose upgrade has been accepted.
pub struct Upgraded<T> {
    /// The stream, out of hyper's hands.
    pub stream: Stream,
    /// Bytes that came behind the request head.
    pub read: Bytes,
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// The request's head.
    pub head: Arc<http::request::Parts>,
    /// When the peer began: at its accept, or when it had its last answer.
    pub since: Instant,
    /// What [`Site::admit`] gave.
    pub admitted: T,
}

impl<T> std::fmt::Debug for Upgraded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upgraded({})", self.peer)
    }
}

/// What a request meets behind the chain.
pub trait Site: Send + Sync + 'static {
    /// What is known of a request that was admitted.
    type Admitted: Send;
    /// How far the start has come.
    fn readiness(&self) -> Readiness;
    /// Milliseconds since the start.
    fn uptime_ms(&self) -> u64;
    /// The `Strict-Transport-Security` that every answer is to have.
    fn transport_security(&self) -> Option<HeaderValue> {
        None
    }
    /// Ends when no further request is waited for: the gateway stops, or needs the place of this socket.
    fn called_off(&self) -> impl Future<Output = ()> + Send;
    /// Whether a request for a page is one that an operator examines their proxy with: then it is noted, and answered
    /// with nothing.
    fn examine(&self, _peer: SocketAddr, _path: &str, _headers: &http::HeaderMap) -> bool {
        false
    }
    /// Whether a new WebSocket may come in now, judged by its head alone.
    fn admit(&self, peer: SocketAddr, head: &http::request::Parts) -> Result<Self::Admitted, Reject>;
    /// Hears of every refusal, for the counters.
    fn refused(&self, _reject: &Reject) {}
    /// Runs an upgraded connection to its end.
    fn connected(self: Arc<Self>, upgraded: Upgraded<Self::Admitted>) -> impl Future<Output = ()> + Send;
}

/// Who a connection is with, for all its requests.
#[derive(Clone, Copy, Debug)]
struct Peer {
    address: SocketAddr,
    /// It came through TLS.
    is_secure: bool,
}

/// A WebSocket that has been promised: what is left to do once the answer is written.
struct Opening<T> {
    upgrading: OnUpgrade,
    head: Arc<http::request::Parts>,
    admitted: T,
}

/// What the requests of one connection leave behind.
struct Visit<T> {
    since: Instant,
    opening: Option<Opening<T>>,
}

/// Serves one socket, accepted at `since`, to its end: HTTP/1.1, and the WebSocket that it may become. Who counts
/// sockets counts this future.
///
/// Cost: what HTTP needs is in a box that goes with the upgrade; a WebSocket is carried by what
/// [`Site::connected`] returns and a pointer.
pub async fn serve<S: Site>(stream: Stream, address: SocketAddr, since: Instant, site: Arc<S>) {
    if let Some(upgraded) = Box::pin(exchange(stream, address, since, &*site)).await {
        site.connected(upgraded).await;
    }
}

/// HTTP/1.1 until the end, or until a WebSocket comes out of it.
async fn exchange<S: Site>(
    stream: Stream,
    address: SocketAddr,
    since: Instant,
    site: &S,
) -> Option<Upgraded<S::Admitted>> {
    let peer = Peer { address, is_secure: matches!(stream, Stream::Tls(_)) };
    let visit = Mutex::new(Visit { since, opening: None });
    let service = service_fn(|request| {
        let answer = answer(request, peer, site, &visit);
        async move { Ok::<_, Infallible>(answer) }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HEAD_BYTES)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // Answers are made at once, so a stop cuts off none that is owed.
    let served = tokio::select! {
        served = http => served,
        () = site.called_off() => return None,
    };
    if let Err(error) = served {
        tracing::debug!(peer = %address, %error, "http connection ended");
        return None;
    }
    let Visit { since, opening } = visit.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Opening { upgrading, head, admitted } = opening?;
    let Ok(upgraded) = upgrading.await else {
        tracing::debug!(peer = %address, "the peer left during the upgrade");
        return None;
    };
    match upgraded.downcast::<TokioIo<Stream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner();
            Some(Upgraded { stream, read: parts.read_buf, peer: address, head, since, admitted })
        }
        Err(_) => {
            tracing::error!(peer = %address, "an upgraded connection was of another type; this is a defect");
            None
        }
    }
}

/// The chain. Reads top to bottom; the first step that refuses answers.
fn answer<S: Site>(request: Request<Incoming>, peer: Peer, site: &S, visit: &Mutex<Visit<S::Admitted>>) -> Answer {
    let mut visit = visit.lock().unwrap_or_else(PoisonError::into_inner);
    let result = upgrade::one_host(request.headers(), request.version()).and_then(|()| {
        if upgrade::is_wanted(request.headers()) {
            let (answer, promised) = open_websocket(request, peer.address, site)?;
            visit.opening = Some(promised);
            Ok(answer)
        } else {
            // A connection that a proxy keeps open has served others before: their time is not the next one's.
            visit.since = Instant::now();
            page_for(&request, peer, site)
        }
    });
    let mut answer = result.unwrap_or_else(|reject| {
        tracing::info!(peer = %peer.address, status = reject.status.as_u16(), reason = reject.reason, "http request refused");
        site.refused(&reject);
        reject.into_answer()
    });
    secure(answer.headers_mut(), site.transport_security());
    answer
}

/// What every answer says, whatever it is: that it is what it is called, that where it was asked from is nobody's business,
/// and what the operator says of TLS (RFC 6797).
fn secure(headers: &mut HeaderMap, transport_security: Option<HeaderValue>) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Some(value) = transport_security {
        headers.insert(STRICT_TRANSPORT_SECURITY, value);
    }
}

fn open_websocket<S: Site>(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    site: &S,
) -> Result<(Answer, Opening<S::Admitted>), Reject> {
    if site.readiness() != Readiness::Ready {
        return Err(reject::NOT_READY);
    }
    let accept = upgrade::accept(request.method(), request.version(), request.headers())?;
    let upgrading = hyper::upgrade::on(&mut request);
    let (head, _) = request.into_parts();
    let admitted = site.admit(peer, &head)?;
    Ok((upgrade::switching_protocols(&accept), Opening { upgrading, head: Arc::new(head), admitted }))
}

fn page_for<S: Site>(request: &Request<Incoming>, peer: Peer, site: &S) -> Result<Answer, Reject> {
    let readiness = site.readiness();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(reject::METHOD_NOT_ALLOWED);
    }
    match request.uri().path() {
        "/" => {
            let host = request.headers().get(hyper::header::HOST).and_then(|host| host.to_str().ok());
            Ok(page::front(readiness, host.unwrap_or("127.0.0.1:18789"), peer.is_secure))
        }
        "/healthz" => Ok(page::live()),
        "/readyz" => Ok(page::ready(readiness)),
        "/startupz" => Ok(page::started(readiness, site.uptime_ms())),
        path if site.examine(peer.address, path, request.headers()) => Ok(page::nothing()),
        _ => Err(reject::NOT_FOUND),
    }
}
