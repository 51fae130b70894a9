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
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};

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
pub struct Upgraded {
    /// The stream, out of hyper's hands.
    pub stream: Stream,
    /// Bytes that came behind the request head.
    pub read: Bytes,
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// The request's head.
    pub head: Arc<http::request::Parts>,
}

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upgraded({})", self.peer)
    }
}

/// What a request meets behind the chain.
pub trait Site: Send + Sync + 'static {
    /// How far the start has come.
    fn readiness(&self) -> Readiness;
    /// Milliseconds since the start.
    fn uptime_ms(&self) -> u64;
    /// Ends when the gateway stops: no further request is waited for then.
    fn stopping(&self) -> impl Future<Output = ()> + Send;
    /// Whether a new WebSocket may come in now, judged by its head alone.
    fn admit(&self, peer: SocketAddr, head: &http::request::Parts) -> Result<(), Reject>;
    /// Runs an upgraded connection to its end.
    fn connected(self: Arc<Self>, upgraded: Upgraded) -> impl Future<Output = ()> + Send;
}

/// A WebSocket that has been promised: what is left to do once the answer is written.
struct Opening {
    upgrading: OnUpgrade,
    head: Arc<http::request::Parts>,
}

/// Serves one socket to its end: HTTP/1.1, and the WebSocket that it may become. Who counts sockets counts this
/// future.
///
/// Cost: what HTTP needs is in a box that goes with the upgrade; a WebSocket is carried by what
/// [`Site::connected`] returns and a pointer.
pub async fn serve<S: Site>(stream: Stream, peer: SocketAddr, site: Arc<S>) {
    if let Some(upgraded) = Box::pin(exchange(stream, peer, &*site)).await {
        site.connected(upgraded).await;
    }
}

/// HTTP/1.1 until the end, or until a WebSocket comes out of it.
async fn exchange<S: Site>(stream: Stream, peer: SocketAddr, site: &S) -> Option<Upgraded> {
    let opening = Mutex::new(None);
    let service = service_fn(|request| {
        let answer = answer(request, peer, site, &opening);
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
        () = site.stopping() => return None,
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "http connection ended");
        return None;
    }
    let Opening { upgrading, head } = opening.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let Ok(upgraded) = upgrading.await else {
        tracing::debug!(%peer, "the peer left during the upgrade");
        return None;
    };
    match upgraded.downcast::<TokioIo<Stream>>() {
        Ok(parts) => Some(Upgraded { stream: parts.io.into_inner(), read: parts.read_buf, peer, head }),
        Err(_) => {
            tracing::error!(%peer, "an upgraded connection was of another type; this is a defect");
            None
        }
    }
}

/// The chain. Reads top to bottom; the first step that refuses answers.
fn answer<S: Site>(request: Request<Incoming>, peer: SocketAddr, site: &S, opening: &Mutex<Option<Opening>>) -> Answer {
    let result = upgrade::one_host(request.headers(), request.version()).and_then(|()| {
        if upgrade::is_wanted(request.headers()) {
            let (answer, promised) = open_websocket(request, peer, site)?;
            *opening.lock().unwrap_or_else(PoisonError::into_inner) = Some(promised);
            Ok(answer)
        } else {
            page_for(&request, site.readiness(), site.uptime_ms())
        }
    });
    result.unwrap_or_else(|reject| {
        tracing::info!(%peer, status = reject.status.as_u16(), reason = reject.reason, "http request refused");
        reject.into_answer()
    })
}

fn open_websocket<S: Site>(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    site: &S,
) -> Result<(Answer, Opening), Reject> {
    if site.readiness() != Readiness::Ready {
        return Err(reject::NOT_READY);
    }
    let accept = upgrade::accept(request.method(), request.version(), request.headers())?;
    let upgrading = hyper::upgrade::on(&mut request);
    let (head, _) = request.into_parts();
    site.admit(peer, &head)?;
    Ok((upgrade::switching_protocols(&accept), Opening { upgrading, head: Arc::new(head) }))
}

fn page_for(request: &Request<Incoming>, readiness: Readiness, uptime_ms: u64) -> Result<Answer, Reject> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(reject::METHOD_NOT_ALLOWED);
    }
    match request.uri().path() {
        "/" => {
            let host = request.headers().get(hyper::header::HOST).and_then(|host| host.to_str().ok());
            Ok(page::front(readiness, host.unwrap_or("127.0.0.1:18789")))
        }
        "/healthz" => Ok(page::live()),
        "/readyz" => Ok(page::ready(readiness)),
        "/startupz" => Ok(page::started(readiness, uptime_ms)),
        _ => Err(reject::NOT_FOUND),
    }
}
