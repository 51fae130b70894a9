//! One HTTP request, up to the upgrade: the chain of steps as one readable function.
//!
//! [`answer`] is the whole middleware: each step is a plain function that takes what the previous one
//! proved, and refuses with a [`reject::Reject`]. Everything here is bounded before it is believed: the head by
//! what [`head`] says; a body is read by an endpoint of the HTTP API alone ([`api`]),
//! once it knows who sends it. The files of a Control UI ([`files`]) are for everybody.
//!
//! A connection ends here, or becomes a WebSocket and is handed to [`crate::conn`].

pub mod api;
pub mod body;
pub mod files;
pub mod head;
pub mod join;
pub mod page;
pub mod reject;
pub mod upgrade;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use self::api::Endpoint;
use self::body::Body;
use self::files::Files;
use self::head::Edge;
use self::reject::Reject;
use crate::net::stream::Stream;

/// Answers of ours.
pub type Answer = Response<Body>;

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
    /// Why the gateway is not fit for work although it runs; strangers read it.
    fn fault(&self) -> Option<&'static str> {
        None
    }
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
    /// The Control UI, where one is served.
    fn interface(&self) -> Option<&Files> {
        None
    }
    /// Answers a call of the HTTP API: who it is, whether they may, and then what they asked for. Dropped when the
    /// client leaves. Without an API there is no such path.
    fn call(
        &self,
        _peer: SocketAddr,
        _endpoint: Endpoint,
        _request: Request<Incoming>,
    ) -> impl Future<Output = Result<Answer, Reject>> + Send {
        std::future::ready(Err(reject::NOT_FOUND))
    }
    /// Answers who fetches what waits under the `shortcode` of a join URL. Where there is none, there is no such path.
    ///
    /// # Errors
    /// The refusal to answer with.
    fn join(&self, _peer: SocketAddr, _shortcode: &str, _head: &http::request::Parts) -> Result<Answer, Reject> {
        Err(reject::NOT_FOUND)
    }
    /// Whether a new WebSocket may come in now, judged by its head alone.
    fn admit(&self, peer: SocketAddr, head: &http::request::Parts) -> Result<Self::Admitted, Reject>;
    /// Hears of every refusal, for the counters and the log.
    fn refused(&self, _peer: SocketAddr, _reject: &Reject) {}
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
    /// The last request was a call of the API: its answer is owed.
    in_call: bool,
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
    let visit = Mutex::new(Visit { since, opening: None, in_call: false });
    let served = {
        let visiting = &visit;
        let service =
            service_fn(move |request| async move { Ok::<_, Infallible>(answer(request, peer, site, visiting).await) });
        let edge = Edge::new(TokioIo::new(stream), site.transport_security());
        let http = head::server().serve_connection(edge, service).with_upgrades();
        let mut http = std::pin::pin!(http);
        tokio::select! {
            served = &mut http => served,
            () = site.called_off() => {
                // What is not a call is answered at once: a stop cuts off nothing that is owed.
                if !locked(&visit).in_call {
                    return None;
                }
                http.as_mut().graceful_shutdown();
                http.await
            }
        }
    };
    if let Err(error) = served {
        if let Some(reject) = head::fault(&error) {
            site.refused(address, &reject);
        }
        tracing::debug!(peer = %address, %error, "http connection ended");
        return None;
    }
    let Visit { since, opening, .. } = visit.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Opening { upgrading, head, admitted } = opening?;
    let Ok(upgraded) = upgrading.await else {
        tracing::debug!(peer = %address, "the peer left during the upgrade");
        return None;
    };
    match upgraded.downcast::<Edge<TokioIo<Stream>>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner().into_inner();
            Some(Upgraded { stream, read: parts.read_buf, peer: address, head, since, admitted })
        }
        Err(_) => {
            tracing::error!(peer = %address, "an upgraded connection was of another type; this is a defect");
            None
        }
    }
}

fn locked<T>(visit: &Mutex<Visit<T>>) -> MutexGuard<'_, Visit<T>> {
    visit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The chain. Reads top to bottom; the first step that refuses answers.
async fn answer<S: Site>(
    request: Request<Incoming>,
    peer: Peer,
    site: &S,
    visit: &Mutex<Visit<S::Admitted>>,
) -> Answer {
    let result = match upgrade::one_host(request.headers(), request.version()) {
        Err(reject) => Err(reject),
        Ok(()) if upgrade::is_wanted(request.headers()) => {
            open_websocket(request, peer.address, site).map(|(answer, promised)| {
                locked(visit).opening = Some(promised);
                answer
            })
        }
        Ok(()) => {
            // A connection that a proxy keeps open has served others before: their time is not the next one's.
            locked(visit).since = Instant::now();
            respond(request, peer, site, visit).await
        }
    };
    let mut answer = result.unwrap_or_else(|reject| {
        site.refused(peer.address, &reject);
        reject.into_answer()
    });
    secure(answer.headers_mut(), site.transport_security());
    answer
}

/// What every answer says, whatever it is: that it is what it is called, that where it was asked from is nobody's business,
/// and what the operator says of TLS (RFC 6797).
pub(crate) fn secure(headers: &mut HeaderMap, transport_security: Option<HeaderValue>) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Some(value) = transport_security {
        headers.insert(STRICT_TRANSPORT_SECURITY, value);
    }
}

/// What is no WebSocket: a page of ours, an endpoint of the API, a join URL, or a file of the Control UI.
async fn respond<S: Site>(
    request: Request<Incoming>,
    peer: Peer,
    site: &S,
    visit: &Mutex<Visit<S::Admitted>>,
) -> Result<Answer, Reject> {
    let files = site.interface();
    locked(visit).in_call = false;
    if let Some(endpoint) = Endpoint::of(request.uri().path()) {
        let (asked, takes) = (request.method(), endpoint.method());
        let takes_it = *asked == takes || (*asked == Method::HEAD && takes == Method::GET);
        if !takes_it {
            return Ok(api::wrong_method(endpoint));
        }
        if site.readiness() != Readiness::Ready {
            return Err(reject::NOT_READY);
        }
        locked(visit).in_call = true;
        // It stays so until the next request: an answer that is made is owed until the client has it.
        return site.call(peer.address, endpoint, request).await;
    }
    if Endpoint::is_near(request.uri().path()) {
        return Ok(api::not_here());
    }
    if let Some(shortcode) = join::shortcode(request.uri().path()).map(str::to_owned) {
        if site.readiness() != Readiness::Ready {
            return Err(reject::NOT_READY);
        }
        let (head, _) = request.into_parts();
        return site.join(peer.address, &shortcode, &head);
    }
    let page = page_for(&request, peer, site);
    match (files, &page) {
        (Some(files), Err(reject)) if *reject == reject::NOT_FOUND => {
            match files.below(request.uri().path()).map(str::to_owned) {
                Some(rest) => Ok(files.get(&rest, request.headers()).await),
                None => page,
            }
        }
        _ => page,
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
        // With a Control UI there, its front page is the one.
        "/" if site.interface().is_none_or(|files| files.below("/").is_none()) => {
            let host = request.headers().get(hyper::header::HOST).and_then(|host| host.to_str().ok());
            Ok(page::front(readiness, host.unwrap_or("127.0.0.1:18789"), peer.is_secure))
        }
        "/healthz" => Ok(page::live()),
        "/readyz" => Ok(page::ready(readiness, site.fault())),
        "/startupz" => Ok(page::started(readiness, site.uptime_ms())),
        path if site.examine(peer.address, path, request.headers()) => Ok(page::nothing()),
        _ => Err(reject::NOT_FOUND),
    }
}
