//! The listener that Telegram's webhook leads to, on a port of its own (`channels.telegram.webhookPort`).
//!
//! It is there while a channel wants it, and takes one thing: updates, by POST to one path, with the secret that Telegram
//! was given. Before the secret is seen a peer costs a bounded head and ten seconds; the body is read after it, bounded in
//! bytes and time. The answer is 200 when the update is on disk, and only then. Runs beside the threads that carry frames.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::channels::Channels;
use crate::channels::telegram::Webhook;
use crate::clock::monotonic_s;
use crate::http::body::Body;
use crate::http::head::{self, Edge};
use crate::http::reject::{self, Reject};
use crate::http::{self, Answer};
use crate::net::{accept, bind};
use crate::shutdown::Shutdown;
use crate::sparing::{LeftOut, Sparing};
use crate::task;

/// The header that carries the secret.
const SECRET: &str = "x-telegram-bot-api-secret-token";
/// What tells a proxy that the gateway, and nobody else, has taken the update.
const ACCEPTED: &str = "x-openclaw-delivery-accepted";
/// Bytes of an update.
const BODY_BYTES: usize = 1024 * 1024;
/// Time for its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Sockets at a time. Telegram opens forty at most.
const SOCKETS: usize = 64;
/// Refusals a minute of which the log tells.
const REFUSALS_SAID: u32 = 60;
/// Pause before a port that is taken is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// Listens wherever a channel wants it, until `shutdown`.
pub(super) async fn serve(channels: Channels, shutdown: Shutdown) {
    let mut place = channels.webhook();
    loop {
        let wanted = tokio::select! {
            wanted = place.wait_for(Option::is_some) => match wanted {
                Ok(wanted) => wanted.clone(),
                Err(_) => return,
            },
            () = shutdown.begun() => return,
        };
        let Some(webhook) = wanted else { continue };
        tokio::select! {
            () = listen(&channels, &webhook, &shutdown) => {}
            _ = place.wait_for(|now| !is_there(now.as_ref(), &webhook)) => {}
            () = shutdown.begun() => return,
        }
    }
}

fn is_there(now: Option<&Webhook>, webhook: &Webhook) -> bool {
    now.is_some_and(|now| now.is(webhook))
}

async fn listen(channels: &Channels, webhook: &Webhook, shutdown: &Shutdown) {
    let listener = loop {
        let bound = bind::bind_all(&[webhook.address]).map_err(|error| error.to_string());
        let listener =
            bound.and_then(|mut bound| TcpListener::from_std(bound.remove(0)).map_err(|error| error.to_string()));
        match listener {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::error!("channels.telegram.webhookPort: {error}; trying again");
                webhook.failed(&error);
                tokio::time::sleep(BIND_AGAIN).await;
            }
        }
    };
    tracing::info!(address = %webhook.address, path = webhook.path, "listening for the webhook");
    let desk = Arc::new(Desk {
        channels: channels.clone(),
        webhook: webhook.clone(),
        place: channels.webhook(),
        refused: Sparing::a_minute(REFUSALS_SAID),
    });
    let room = Arc::new(Semaphore::new(SOCKETS));
    accept::accept_loop(listener, shutdown.clone(), |stream, peer| {
        let Ok(seat) = Arc::clone(&room).try_acquire_owned() else {
            let _ = stream.try_write(&reject::PREAUTH_FULL.to_bytes(None));
            return;
        };
        let desk = Arc::clone(&desk);
        task::spawn("webhook", async move {
            desk.receive(stream, peer).await;
            drop(seat);
        });
    })
    .await;
}

/// Takes what is brought to one place.
struct Desk {
    channels: Channels,
    webhook: Webhook,
    place: watch::Receiver<Option<Webhook>>,
    /// What the log says of those who are refused.
    refused: Sparing,
}

impl Desk {
    async fn receive(&self, stream: TcpStream, peer: SocketAddr) {
        let service = service_fn(|request| async move {
            let mut answer = self.answer(request).await.unwrap_or_else(|reject| {
                self.say_refused(peer, &reject);
                reject.into_answer()
            });
            http::secure(answer.headers_mut(), None);
            Ok::<_, Infallible>(answer)
        });
        let edge = Edge::new(TokioIo::new(stream), None);
        if let Err(error) = head::server().serve_connection(edge, service).await {
            if let Some(reject) = head::fault(&error) {
                self.say_refused(peer, &reject);
            }
            tracing::debug!(%peer, %error, "webhook connection ended");
        }
    }

    fn say_refused(&self, peer: SocketAddr, reject: &Reject) {
        if let Some(LeftOut(left_out)) = self.refused.say(monotonic_s()) {
            let status = reject.status.as_u16();
            tracing::info!(%peer, status, reason = reject.reason, left_out, "webhook request refused");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Reject> {
        let path = request.uri().path();
        if path == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = Response::new(Body::from(Bytes::from_static(b"ok\n")));
            // Who only asks this keeps no seat.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Ok(answer);
        }
        if path != self.webhook.path {
            return Err(reject::NOT_FOUND);
        }
        if request.method() != Method::POST {
            return Err(reject::POST_ONLY);
        }
        if !self.webhook.is_from_telegram(the_one(request.headers())) {
            return Err(reject::WEBHOOK_SECRET);
        }
        // Stopped, or replaced, while this connection stayed open.
        if !is_there(self.place.borrow().as_ref(), &self.webhook) {
            return Err(reject::NOT_READY);
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(request.into_body(), BODY_BYTES).collect()).await;
        let body = body.map_err(|_| reject::BODY_TIMEOUT)?.map_err(|_| reject::BODY_TOO_LARGE)?.to_bytes();
        let update: serde_json::Value = serde_json::from_slice(&body).map_err(|_| reject::BODY_NOT_JSON)?;
        if !update["update_id"].is_i64() {
            return Err(reject::BODY_NOT_JSON);
        }
        self.channels.take_update(&self.webhook, update).await.map_err(|error| {
            tracing::warn!(error = %error.message, "an update was not taken in; it is brought again");
            reject::NOT_READY
        })?;
        let mut answer = Response::new(Body::empty());
        answer.headers_mut().insert(ACCEPTED, hyper::header::HeaderValue::from_static("durable"));
        Ok(answer)
    }
}

/// The secret's header, where it comes once.
fn the_one(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(SECRET).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}
