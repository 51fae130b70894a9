//! Every refusal at the HTTP layer: the one place where status codes are chosen.
//!
//! The body says for people what happened and what to do; `reason` is for logs and counters.

use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION};
use http::{HeaderName, HeaderValue, StatusCode};
use hyper::Response;

use super::Answer;
use super::body::Body;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Status code; always an error.
    pub status: StatusCode,
    /// Short name, for logs and counters.
    pub reason: &'static str,
    /// For people.
    pub message: &'static str,
    header: Option<(HeaderName, &'static str)>,
}

/// Makes the constants and the list from one table.
macro_rules! rejects {
    ($($(#[doc = $doc:literal])+ $id:ident = $status:ident, $reason:literal, $header:expr, $message:literal;)+) => {
        $($(#[doc = $doc])+ pub const $id: Reject = Reject {
            status: StatusCode::$status, reason: $reason, message: $message, header: $header,
        };)+

        /// Every refusal.
        pub const ALL: &[Reject] = &[$($id,)+];
    };
}

rejects! {
    /// HTTP/1.1 requires exactly one Host (RFC 9112, section 3.2); two would let two readers see two targets.
    BAD_HOST = BAD_REQUEST, "bad_host", None, "the request needs exactly one valid Host header";
    /// What came is no head of HTTP/1.1 (RFC 9112).
    BAD_HEAD = BAD_REQUEST, "bad_head", None, "this is no request of HTTP/1.1";
    /// Its head is longer than is taken, or has more lines (RFC 6585, section 5).
    HEAD_TOO_LARGE = REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", None,
        "the head of the request is too large: 16 KiB and 64 header lines are taken";
    /// The handshake of RFC 6455, section 4.2.1 is not as it must be.
    BAD_UPGRADE = BAD_REQUEST, "bad_upgrade", None,
        "not a WebSocket handshake: it takes GET without a body, HTTP/1.1, Connection: Upgrade, Upgrade: websocket and one Sec-WebSocket-Key of 16 bytes in base64";
    /// Another version of WebSocket (RFC 6455, section 4.2.2).
    BAD_VERSION = UPGRADE_REQUIRED, "bad_websocket_version", Some((SEC_WEBSOCKET_VERSION, "13")),
        "this gateway speaks WebSocket version 13";
    /// The Origin is not allowed.
    ORIGIN = FORBIDDEN, "origin_not_allowed", None,
        "this origin may not connect; add it to gateway.controlUi.allowedOrigins";
    /// Forwarding headers from a peer that is not a trusted proxy.
    UNATTRIBUTABLE = FORBIDDEN, "proxy_attribution_required", None,
        "proxy_attribution_required: the request came through a proxy that is not in gateway.trustedProxies";
    /// No such page.
    NOT_FOUND = NOT_FOUND, "not_found", None, "no such page; the gateway's WebSocket is at /";
    /// Only GET and HEAD.
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED, "method_not_allowed", Some((ALLOW, "GET, HEAD")), "only GET and HEAD";
    /// Starting or draining.
    NOT_READY = SERVICE_UNAVAILABLE, "not_ready", Some((RETRY_AFTER, "1")), "the gateway is starting or stopping; try again";
    /// The descriptor limit is reached.
    FULL = SERVICE_UNAVAILABLE, "too_many_connections", Some((RETRY_AFTER, "5")),
        "the gateway holds as many connections as its open-file limit allows";
    /// Too many sockets that have not authenticated.
    PREAUTH_FULL = SERVICE_UNAVAILABLE, "too_many_unauthenticated", Some((RETRY_AFTER, "1")),
        "too many unauthenticated sockets; try again";
    /// The same, of one client or one peer.
    PREAUTH_CLIENT_FULL = SERVICE_UNAVAILABLE, "too_many_unauthenticated_from_client", Some((RETRY_AFTER, "2")),
        "too many unauthenticated sockets from this address; try again";
    /// Plain HTTP to a port of TLS.
    TLS_ONLY = BAD_REQUEST, "tls_only", None, "this port speaks TLS: use https:// or wss://";
    /// Of the webhook's listener: another method.
    POST_ONLY = METHOD_NOT_ALLOWED, "post_only", Some((ALLOW, "POST")), "only POST";
    /// Without the secret that Telegram was given.
    WEBHOOK_SECRET = UNAUTHORIZED, "webhook_secret", None,
        "X-Telegram-Bot-Api-Secret-Token is not channels.telegram.webhookSecret";
    /// A body that does not come to its end.
    BODY_TIMEOUT = REQUEST_TIMEOUT, "body_timeout", None, "the body did not come in time";
    /// A body longer than is taken, or one that broke off.
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE, "body_too_large", None, "the body is too large, or broke off";
    /// A body that is no update.
    BODY_NOT_JSON = BAD_REQUEST, "body_not_json", None, "the body is no update of the Bot API";
}

impl Reject {
    /// The response.
    pub fn into_answer(self) -> Answer {
        let mut answer = Response::new(Body::from(format!("{}\n", self.message)));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some((name, value)) = self.header {
            headers.insert(name, HeaderValue::from_static(value));
        }
        answer
    }

    /// The response as raw bytes, for a socket that never gets as far as a request.
    pub fn to_bytes(&self, transport_security: Option<HeaderValue>) -> Vec<u8> {
        let mut answer = self.clone().into_answer();
        super::secure(answer.headers_mut(), transport_security);
        let body = format!("{}\n", self.message);
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", self.status.as_u16()).into_bytes();
        for (name, value) in answer.headers() {
            bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        bytes.extend(format!("content-length: {}\r\n\r\n{body}", body.len()).into_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_an_error_with_a_name_of_its_own() {
        let names: std::collections::HashSet<_> = ALL.iter().map(|reject| reject.reason).collect();
        assert_eq!(names.len(), ALL.len());
        for reject in ALL {
            assert!(reject.status.is_client_error() || reject.status.is_server_error(), "{}", reject.reason);
            assert!(!reject.message.is_empty());
        }
    }
}
