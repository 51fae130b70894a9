//! From an accepted socket to HTTP: its place among the strangers, the handshake of TLS, the listener it came to.
//!
//! Everything here happens before a byte of a request is believed, under one clock that began at the accept.

use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::admission::Admission;
use crate::auth::Verdict;
use crate::auth::ingress::Listener;
use crate::clock::monotonic_s;
use crate::conn::driver;
use crate::http::api::Endpoint;
use crate::http::files::Files;
use crate::http::reject::{self, Reject};
use crate::http::{self, Answer, Readiness, Site, Upgraded};
use crate::net::preauth::{Full, Slot};
use crate::net::stream::Stream;
use crate::net::tls::{HandshakeError, Tls};
use crate::sparing::{LeftOut, Sparing};
use crate::store::Fault;

/// What a worker runs for a socket.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Receives every socket, of all listeners.
#[derive(Debug)]
pub struct Reception {
    /// Who is behind the door.
    pub admission: Arc<Admission>,
    /// The certificate of the ordinary port.
    pub tls: Option<Arc<Tls>>,
    /// The port of loopback that only Tailscale on this host knows, and what it is for.
    pub tailscale: Option<(u16, Listener)>,
    /// What the log says of those who are turned away.
    pub said: Sparing,
}

impl Reception {
    /// What is to run for a socket that was just accepted.
    pub fn receive(&self, stream: TcpStream, peer: SocketAddr) -> Serving {
        let since = Instant::now();
        let listener = self.listener_of(&stream);
        let tls = self.tls.as_ref().filter(|_| listener == Listener::Main);
        let slot = match self.admission.enter(peer.ip()) {
            Ok(slot) => Arc::new(slot),
            Err(full) => {
                let reject = too_many(full);
                self.admission.count_refusal(reject.reason);
                self.say_turned_away(peer, &reject);
                if tls.is_none() {
                    // Nobody has been promised an answer, so one that does not fit is no loss.
                    let _ = stream.try_write(&reject.to_bytes(self.admission.transport_security()));
                }
                return Box::pin(ready(()));
            }
        };
        let admission = Arc::clone(&self.admission);
        let visit = Arc::new(Visit { admission, listener, slot });
        // Over TCP the connection is the future of HTTP and nothing around it.
        match tls {
            None => Box::pin(http::serve(Stream::Plain(stream), peer, since, visit)),
            Some(tls) => {
                let tls = Arc::clone(tls);
                Box::pin(async move {
                    if let Some(stream) = Box::pin(shake_hands(&tls, stream, peer, since, &visit)).await {
                        http::serve(stream, peer, since, visit).await;
                    }
                })
            }
        }
    }

    fn say_turned_away(&self, peer: SocketAddr, reject: &Reject) {
        if let Some(LeftOut(left_out)) = self.said.say(monotonic_s()) {
            tracing::warn!(%peer, reason = reject.reason, left_out, "connections are turned away; status counts them");
        }
    }

    fn listener_of(&self, stream: &TcpStream) -> Listener {
        self.tailscale
            .filter(|(port, _)| stream.local_addr().is_ok_and(|own| own.port() == *port))
            .map_or(Listener::Main, |(_, listener)| listener)
    }
}

/// The stream behind the handshake; `None` when there is none, which the log says.
async fn shake_hands(tls: &Tls, stream: TcpStream, peer: SocketAddr, since: Instant, visit: &Visit) -> Option<Stream> {
    let shaken = tokio::select! {
        shaken = tls.accept(stream, since + visit.admission.tls_timeout()) => shaken,
        () = visit.called_off() => return None,
    };
    match shaken {
        Ok(stream) => Some(stream),
        Err(HandshakeError::Plaintext(stream)) => {
            visit.refused(peer, &reject::TLS_ONLY);
            let _ = stream.try_write(&reject::TLS_ONLY.to_bytes(visit.admission.transport_security()));
            None
        }
        Err(error) => {
            visit.admission.count_refusal(match &error {
                HandshakeError::Timeout => "tls_timeout",
                _ => "tls_failed",
            });
            tracing::debug!(%peer, %error, "no TLS connection");
            None
        }
    }
}

pub(super) const fn too_many(full: Full) -> Reject {
    match full {
        Full::Client => reject::PREAUTH_CLIENT_FULL,
        Full::Shared => reject::PREAUTH_FULL,
    }
}

/// One socket on its way to a WebSocket.
#[derive(Debug)]
struct Visit {
    admission: Arc<Admission>,
    listener: Listener,
    slot: Arc<Slot>,
}

impl Site for Visit {
    /// Where the upgrade came from, and the generation of the settings under which that was judged.
    type Admitted = (Verdict, u64);

    fn readiness(&self) -> Readiness {
        self.admission.readiness()
    }

    fn fault(&self) -> Option<&'static str> {
        self.admission.fault().map(Fault::as_str)
    }

    fn uptime_ms(&self) -> u64 {
        self.admission.uptime_ms()
    }

    fn interface(&self) -> Option<&Files> {
        self.admission.files.as_ref()
    }

    async fn call(&self, peer: SocketAddr, endpoint: Endpoint, request: Request<Incoming>) -> Result<Answer, Reject> {
        Arc::clone(&self.admission).call(peer, self.listener, &self.slot, endpoint, request).await
    }

    fn join(&self, peer: SocketAddr, shortcode: &str, head: &::http::request::Parts) -> Result<Answer, Reject> {
        self.admission.join(peer, self.listener, &self.slot, shortcode, head)
    }

    fn examine(&self, peer: SocketAddr, path: &str, headers: &::http::HeaderMap) -> bool {
        self.admission.examine(peer, path, headers)
    }

    fn transport_security(&self) -> Option<::http::HeaderValue> {
        self.admission.transport_security()
    }

    async fn called_off(&self) {
        self.admission.call_off(&self.slot).await;
    }

    fn admit(&self, peer: SocketAddr, head: &::http::request::Parts) -> Result<Self::Admitted, Reject> {
        let (verdict, generation) = self.admission.judge(peer, head, self.listener)?;
        if let Some(client) = verdict.client().filter(|client| !client.is_loopback()) {
            self.slot.attribute(client).map_err(too_many)?;
        }
        Ok((verdict, generation))
    }

    fn refused(&self, peer: SocketAddr, reject: &Reject) {
        self.admission.refused_http(peer, reject);
    }

    fn connected(self: Arc<Self>, upgraded: Upgraded<Self::Admitted>) -> impl Future<Output = ()> + Send {
        let Upgraded { stream, read, peer, head, since, admitted: (verdict, generation) } = upgraded;
        let socket = self.admission.socket(peer, head, verdict, generation, since, Arc::clone(&self.slot));
        // Of this visit nothing stays: the place goes with the socket, and with it when the client is let in.
        let admission: Arc<Admission> = Arc::clone(&self.admission);
        driver::run(stream, read, socket, admission)
    }
}
