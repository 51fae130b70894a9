//! The opening handshake of RFC 6455, section 4.2: pure checks over the head.

use std::net::Ipv6Addr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use hyper::Response;

use super::Answer;
use super::body::Body;
use super::reject::{self, Reject};
use crate::address;
use crate::ws::accept::accept_for;

/// Exactly one Host header, made only of characters a host and port have (RFC 9112, section 3.2).
pub fn one_host(headers: &HeaderMap, version: Version) -> Result<(), Reject> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        // HTTP/1.0 had no Host; the probes of old load balancers speak it.
        (None, None) if version < Version::HTTP_11 => Ok(()),
        _ => Err(reject::BAD_HOST),
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets; then perhaps a port. Nothing may follow the bracket but that:
/// `[::1]evil.com` is loopback to one reader and not to the next (S-19).
fn is_host(host: &[u8]) -> bool {
    let (is_name, rest) = match host.iter().position(|b| *b == b']') {
        // Parsed and not only looked over: `[::1:::]` is no address, and readers differ in what they make of it.
        Some(end) if host[0] == b'[' => {
            let address = str::from_utf8(&host[1..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
            (address.is_some(), &host[end + 1..])
        }
        Some(_) => return false,
        None => {
            let end = host.iter().position(|b| *b == b':').unwrap_or(host.len());
            let is_letter = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            (end > 0 && host[..end].iter().all(is_letter), &host[end..])
        }
    };
    let port = match rest.strip_prefix(b":") {
        Some(digits) => str::from_utf8(digits).ok().and_then(address::port).is_some(),
        None => rest.is_empty(),
    };
    host.len() <= 300 && is_name && port
}

/// Whether the request asks for a WebSocket at all.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE) || headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// Checks the handshake and returns the value of `Sec-WebSocket-Accept`.
pub fn accept(method: &Method, version: Version, headers: &HeaderMap) -> Result<HeaderValue, Reject> {
    let complete = method == Method::GET
        && version == Version::HTTP_11
        && !has_body(headers)
        && has_token(headers, &CONNECTION, "upgrade")
        && has_token(headers, &UPGRADE, "websocket");
    if !complete {
        return Err(reject::BAD_UPGRADE);
    }
    if only(headers, &SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
        return Err(reject::BAD_VERSION);
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).ok_or(reject::BAD_UPGRADE)?;
    let accept = accept_for(key.as_bytes()).and_then(|accept| HeaderValue::try_from(accept).ok());
    accept.ok_or(reject::BAD_UPGRADE)
}

/// Whether a body follows. None may: two readers could see its end, and the first frame, in different places.
fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0")
}

/// The answer that ends the handshake. No extension and no subprotocol is ever negotiated.
pub fn switching_protocols(accept: &HeaderValue) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept.clone());
    answer
}

/// The value of a header that must stand exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a comma-separated list header holds `token`, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn without(name: &str, more: &[(&str, &str)]) -> HeaderMap {
        let kept: Vec<_> = GOOD.iter().filter(|(n, _)| *n != name).chain(more).copied().collect();
        headers(&kept)
    }

    #[test]
    fn answers_the_sample_of_the_rfc() {
        let accept = accept(&Method::GET, Version::HTTP_11, &headers(&GOOD)).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn refuses_an_incomplete_handshake() {
        let refused = |headers: &HeaderMap| accept(&Method::GET, Version::HTTP_11, headers).unwrap_err().reason;
        assert_eq!(refused(&without("connection", &[])), "bad_upgrade");
        assert_eq!(refused(&without("upgrade", &[("upgrade", "h2c")])), "bad_upgrade");
        assert_eq!(refused(&without("sec-websocket-key", &[])), "bad_upgrade");
        assert_eq!(refused(&without("sec-websocket-key", &[("sec-websocket-key", "c2hvcnQ=")])), "bad_upgrade");
        assert_eq!(refused(&without("", &[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")])), "bad_upgrade");
        assert_eq!(refused(&without("", &[("content-length", "4")])), "bad_upgrade");
        assert_eq!(refused(&without("", &[("transfer-encoding", "chunked")])), "bad_upgrade");
        assert_eq!(
            refused(&without("sec-websocket-version", &[("sec-websocket-version", "8")])),
            "bad_websocket_version"
        );
    }

    #[test]
    fn refuses_other_methods_and_versions() {
        assert!(accept(&Method::POST, Version::HTTP_11, &headers(&GOOD)).is_err());
        assert!(accept(&Method::GET, Version::HTTP_10, &headers(&GOOD)).is_err());
    }

    #[test]
    fn takes_exactly_one_plain_host() {
        let host = |pairs: &[(&str, &str)]| one_host(&headers(pairs), Version::HTTP_11).is_ok();
        for text in
            ["[::1]:18789", "[::1]", "localhost", "127.0.0.1:18789", "gw_1.tail-net.ts.net", "::ffff".trim_matches(':')]
        {
            assert!(host(&[("host", text)]), "{text}");
        }
        assert!(!host(&[]));
        assert!(!host(&[("host", "a"), ("host", "b")]));
        assert!(!host(&[("host", "localhost:18789@evil.com")]));
        for text in [
            "",
            "[::1]evil.com",
            "[::1",
            "::1",
            "a]",
            "[]",
            "a:",
            "a:b",
            "a:1:2",
            "a:65536",
            ":80",
            "[::1%eth0]",
            "a b",
        ] {
            assert!(!host(&[("host", text)]), "{text}");
        }
    }
}
