//! The few pages of the gateway's own: the front page and the probes.

use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use hyper::Response;
use serde_json::json;

use super::body::Body;
use super::{Answer, Readiness};

/// `GET /`: that it runs, and how to connect. Says nothing a stranger may not know. `host` is the request's own
/// `Host`, of which [`super::upgrade::one_host`] has left nothing that could be markup. `is_secure`: over TLS.
pub fn front(readiness: Readiness, host: &str, is_secure: bool) -> Answer {
    let state = match readiness {
        Readiness::Starting => "is starting",
        Readiness::Ready => "is running",
        Readiness::Draining => "is stopping",
    };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
        _ => (host, if is_secure { "443" } else { "80" }),
    };
    let (scheme, node_flag) = if is_secure { ("wss", " --tls") } else { ("ws", "") };
    let body = include_str!("front.html")
        .replace("{{state}}", state)
        .replace("{{version}}", env!("CARGO_PKG_VERSION"))
        .replace("{{host}}", host)
        .replace("{{scheme}}", scheme)
        .replace("{{node_flag}}", node_flag)
        .replace("{{name}}", name)
        .replace("{{port}}", port);
    answer(StatusCode::OK, "text/html; charset=utf-8", body)
}

/// `GET /healthz`: the process is alive.
pub fn live() -> Answer {
    answer(StatusCode::OK, "application/json", r#"{"ok":true,"status":"live"}"#.to_owned())
}

/// `GET /readyz`: connections are taken; 503 while not, and while what changes cannot be kept (`fault`).
pub fn ready(readiness: Readiness, fault: Option<&str>) -> Answer {
    if let (Readiness::Ready, Some(fault)) = (readiness, fault) {
        let body = json!({"ready": false, "state": "failing", "failing": ["storage"], "reason": fault});
        return answer(StatusCode::SERVICE_UNAVAILABLE, "application/json", body.to_string());
    }
    let (status, ready) = match readiness {
        Readiness::Ready => (StatusCode::OK, true),
        Readiness::Starting | Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, false),
    };
    answer(status, "application/json", format!(r#"{{"ready":{ready},"state":"{}"}}"#, name(readiness)))
}

/// `GET /startupz`: the start is over; 503 until then. The shape is the incumbent's: its CLI asks here first.
pub fn started(readiness: Readiness, uptime_ms: u64) -> Answer {
    let (status, ok, word) = match readiness {
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, false, "starting"),
        Readiness::Ready | Readiness::Draining => (StatusCode::OK, true, "started"),
    };
    let version = env!("CARGO_PKG_VERSION");
    let body = format!(r#"{{"ok":{ok},"status":"{word}","version":"{version}","uptimeMs":{uptime_ms}}}"#);
    answer(status, "application/json; charset=utf-8", body)
}

/// An answer that says nothing but that the request has come.
pub fn nothing() -> Answer {
    answer(StatusCode::OK, "text/plain; charset=utf-8", "noted; the report is where it was asked for\n".to_owned())
}

const fn name(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Starting => "starting",
        Readiness::Ready => "ready",
        Readiness::Draining => "draining",
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
        ),
    );
    answer
}
