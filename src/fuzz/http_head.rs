//! The head of a request up to the upgrade: any method, version and header lines, as text.
//!
//! The first line is `METHOD VERSION`, each further one `Name: value`. What a stricter reader would not understand must not
//! be taken for an upgrade.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use crate::auth::HeaderView;
use crate::auth::Verdict;
use crate::auth::ingress::{IngressPolicy, Listener};
use crate::auth::origin::OriginPolicy;
use crate::http::upgrade;

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let mut lines = data.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(|b| *b == b' ');
    let Ok(method) = Method::from_bytes(words.next().unwrap_or_default()) else { return };
    let version = match words.next() {
        Some(b"HTTP/1.0") => Version::HTTP_10,
        Some(b"HTTP/2.0") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let wanted = upgrade::is_wanted(&headers);
    let host_is_good = upgrade::one_host(&headers, version).is_ok();
    let accepted = upgrade::accept(&method, version, &headers);

    if host_is_good && let Some(host) = headers.get(HOST) {
        assert_eq!(headers.get_all(HOST).iter().count(), 1);
        let text = host.to_str().expect("a good host is plain text");
        let authority: http::uri::Authority = text.parse().expect("it is an authority to every reader");
        assert!(!text.contains('@') && authority.host().len() <= text.len());
        assert!(
            authority.port().is_some() == (text.len() > authority.host().len()),
            "{text}: nothing but a port follows"
        );
    }
    if let Ok(answer) = &accepted {
        assert!(wanted && method == Method::GET && version == Version::HTTP_11);
        assert_eq!(headers.get_all(SEC_WEBSOCKET_KEY).iter().count(), 1);
        assert_eq!(headers.get_all(SEC_WEBSOCKET_VERSION).iter().collect::<Vec<_>>(), ["13"]);
        let key = STANDARD.decode(&headers[SEC_WEBSOCKET_KEY]).expect("the key is base64");
        assert_eq!((key.len(), answer.len()), (16, 28));
        assert!(headers.contains_key(CONNECTION) && headers.contains_key(UPGRADE));
        assert!(!headers.contains_key(http::header::TRANSFER_ENCODING), "no body hides behind it");
        let answer = upgrade::switching_protocols(answer);
        assert_eq!(answer.headers().len(), 3, "nothing is negotiated");
    }
    if let Err(reject) = &accepted {
        assert!(reject.status.is_client_error());
        // Both forms of the refusal can be made, whatever the request was.
        assert!(reject.to_bytes(None).starts_with(b"HTTP/1.1 4"));
    }
    // What comes after the checks: a foreign page never passes, whatever else stands there.
    let view: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let view = HeaderView::new(&view);
    let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
    let verdict = Verdict::of(loopback, view, Listener::Main, &IngressPolicy::default());
    let origin = OriginPolicy::default().check_request(view, verdict.is_local());
    if origin.is_ok() && view.has("origin") {
        let text = view.single("origin").expect("one origin").expect("it is there").to_ascii_lowercase();
        let (_, authority) = text.split_once("://").expect("an origin has a scheme");
        let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
        let own = ["localhost", "127.", "[", "10.", "192.168.", "169.254.", "172.", "100."];
        let private =
            own.iter().any(|start| name.starts_with(start)) || name.ends_with(".local") || name.ends_with(".ts.net");
        assert!(private || authority.starts_with('['), "{text} is a page of this host or its network");
    }
}
