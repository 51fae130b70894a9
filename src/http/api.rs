//! The endpoints of the HTTP API: which path is which, how much of a body is read, and how faults look.
//!
//! What they do is the business of [`crate::api`] and not known here. A body is read only of a caller who has proved who
//! it is, and never more than its endpoint takes and than there is for all together: [`read`].

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::Answer;
use super::body::Body;
use crate::api::fault::{Fault, Kind};

/// Time in which a body must have come.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// What the bytes of bodies are counted in.
const BODY_UNIT: usize = 1024;

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`.
    ChatCompletions,
    /// `GET /v1/models`.
    Models,
    /// `GET /v1/models/{id}`.
    Model,
    /// `POST /tools/invoke`.
    ToolsInvoke,
}

/// What there is over HTTP beside the WebSocket, for people: method and path, whether it is here, and what about it.
pub const TABLE: &[(&str, bool, &str)] = &[
    ("GET /", true, "the Control UI of `gateway.controlUi.root`, or a page that says how to connect"),
    (
        "GET /control-ui-config.json",
        true,
        "with `gateway.controlUi.root`: what a Control UI is told before it connects; below `gateway.controlUi.basePath`",
    ),
    ("GET /j/<shortcode>", true, "the setup code of a join URL, once, without auth"),
    ("GET /healthz, /readyz, /startupz", true, "probes, without auth; `/readyz` is 503 while the disk takes no writes"),
    (
        "POST /v1/chat/completions",
        true,
        "off until `gateway.http.endpoints.chatCompletions.enabled`; text and `data:` pictures, streaming, `user` and \
         `x-openclaw-session-key`, `x-openclaw-model`; `tools` of the caller and picture URLs are refused with 400",
    ),
    ("GET /v1/models, /v1/models/{id}", true, "the agent as a model; on and off with the above"),
    (
        "POST /tools/invoke",
        true,
        "the commands of approved nodes; `exec` and `nodes` answer 404, `gateway.tools.allow` opens `nodes` for administrators",
    ),
    ("POST /v1/embeddings", false, ""),
    ("POST /v1/responses", false, ""),
    ("POST /hooks/...", false, ""),
    ("/__openclaw__/... (canvas, avatars, media, plugins)", false, ""),
];

impl Endpoint {
    /// The endpoint of a path.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::ChatCompletions),
            "/v1/models" => Some(Self::Models),
            "/tools/invoke" => Some(Self::ToolsInvoke),
            _ => path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()).map(|_| Self::Model),
        }
    }

    /// Whether a path is where programs look for the API. What is not here is told to them in its shape.
    pub fn is_near(path: &str) -> bool {
        path.starts_with("/v1/") || path.starts_with("/tools/")
    }

    /// The one method it takes.
    pub const fn method(self) -> Method {
        match self {
            Self::ChatCompletions | Self::ToolsInvoke => Method::POST,
            Self::Models | Self::Model => Method::GET,
        }
    }

    /// Bytes of a body.
    pub const fn max_body_bytes(self) -> usize {
        match self {
            Self::ChatCompletions => 20 * 1024 * 1024,
            Self::ToolsInvoke => 2 * 1024 * 1024,
            Self::Models | Self::Model => 0,
        }
    }
}

/// Room for the bodies of all calls together.
#[derive(Debug)]
pub struct BodyRoom(Arc<Semaphore>);

impl BodyRoom {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / BODY_UNIT)))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Fault> {
        let units = u32::try_from(bytes.div_ceil(BODY_UNIT)).unwrap_or(u32::MAX);
        let full = |_| Fault::new(Kind::Unavailable, "the gateway is reading as much as it can; try again");
        Arc::clone(&self.0).try_acquire_many_owned(units).map_err(full)
    }
}

/// Reads a body of at most `endpoint.max_body_bytes()`. What it takes of `room` is taken until the second value is dropped.
///
/// # Errors
/// It is longer, does not come in time, breaks off, or there is no room for it.
pub async fn read(
    endpoint: Endpoint,
    mut body: Incoming,
    room: &BodyRoom,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Fault> {
    let most = endpoint.max_body_bytes();
    let too_large = || {
        let message = format!("the body is longer than {most} bytes, the most that this endpoint takes");
        Fault::new(Kind::TooLarge, message)
    };
    // What a length promises is refused before it is sent, and never believed for an allocation.
    if body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    let reading = async {
        let (mut whole, mut held) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Fault::invalid("the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > most {
                return Err(too_large());
            }
            let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * BODY_UNIT;
            let wants = whole.len() + data.len();
            if wants > has {
                // Buffers double as they grow, so the room is taken in the same steps.
                let more = room.take((wants - has).max(has.min(most - has)))?;
                match &mut held {
                    Some(held) => held.merge(more),
                    None => held = Some(more),
                }
            }
            whole.extend_from_slice(&data);
        }
        Ok((whole.freeze(), held))
    };
    let late = || Fault::new(Kind::BodyTimeout, format!("the body did not come within {} s", BODY_WITHIN.as_secs()));
    tokio::time::timeout(BODY_WITHIN, reading).await.map_err(|_| late())?
}

/// An answer in JSON.
pub fn json(body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Body::from(body));
    no_store(answer.headers_mut());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    answer
}

/// An answer that comes as server-sent events. It keeps `held` for as long.
pub fn events(pieces: mpsc::Receiver<Bytes>, held: Option<OwnedSemaphorePermit>) -> Answer {
    let mut answer = Response::new(Body::Stream(pieces, held));
    no_store(answer.headers_mut());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    // nginx, and those that took it over from there, would wait until a buffer is full.
    answer.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// A fault. The connection ends with it: what was sent of the body is not read.
pub fn fault(fault: &Fault) -> Answer {
    let mut answer = json(serde_json::to_vec(&fault.to_json()).unwrap_or_default());
    *answer.status_mut() = status(fault.kind);
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    match fault.kind {
        Kind::RateLimited { retry_after_ms } => {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1000)));
        }
        Kind::Unavailable => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))),
        Kind::Unauthorized => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        _ => {}
    }
    answer
}

/// A path of the API that is not served.
pub fn not_here() -> Answer {
    let here = "this gateway has /v1/chat/completions, /v1/models and /tools/invoke";
    fault(&Fault::new(Kind::NotFound, here).coded("not_found"))
}

/// Chat completions are off.
pub fn switched_off() -> Answer {
    let how = "off until gateway.http.endpoints.chatCompletions.enabled is true and the gateway was started again";
    fault(&Fault::new(Kind::NotFound, how).coded("switched_off"))
}

/// A method that the endpoint does not take.
pub fn wrong_method(endpoint: Endpoint) -> Answer {
    let message = format!("only {}", endpoint.method());
    let mut answer = fault(&Fault::invalid(message).coded("method_not_allowed"));
    *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let allow = match endpoint.method() {
        Method::POST => "POST",
        _ => "GET, HEAD",
    };
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

const fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Unauthorized => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn no_store(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_is_an_error_and_says_so_in_openais_shape() {
        for kind in Kind::ALL {
            let answer = fault(&Fault::new(kind, "what happened"));
            assert!(answer.status().is_client_error() || answer.status().is_server_error(), "{kind:?}");
            assert!(Fault::new(kind, "x").to_json()["error"]["type"].is_string());
        }
        assert_eq!(fault(&Fault::new(Kind::RateLimited { retry_after_ms: 1500 }, "x")).headers()[RETRY_AFTER], "2");
    }

    #[test]
    fn a_path_is_one_endpoint_or_none() {
        assert_eq!(Endpoint::of("/v1/models/openclaw%2Fmain"), Some(Endpoint::Model));
        for none in ["/v1/models/", "/v1/chat/completions/", "/V1/models", "/v1", "/tools/invoke/x"] {
            assert_eq!(Endpoint::of(none), None, "{none}");
        }
    }

    #[test]
    fn room_is_given_back() {
        let room = BodyRoom::new(4096);
        let held = room.take(3000).unwrap();
        assert_eq!(room.take(2000).unwrap_err().kind, Kind::Unavailable);
        drop(held);
        assert!(room.take(4096).is_ok());
    }
}
