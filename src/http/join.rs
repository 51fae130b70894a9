//! The path of a join URL, `/j/<shortcode>`, perhaps behind a path of a proxy's, and its answers, as the incumbent's `connect`
//! reads them. What it leads to is [`super::Site::join`]'s business.

use http::StatusCode;
use http::header::RETRY_AFTER;

use super::{Answer, api};

/// Bytes of a shortcode before base64: 128 bits, nothing to guess.
pub const SHORTCODE_BYTES: usize = 16;
/// Characters of one.
const SHORTCODE_CHARS: usize = 22;

/// The shortcode of a path, if it is that of a join URL. What begins with `/j/` is one even where nothing can be under it:
/// no page of the Control UI is shown instead.
pub fn shortcode(path: &str) -> Option<&str> {
    let (before, code) = path.rsplit_once("/j/")?;
    let is_code = code.len() == SHORTCODE_CHARS
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    (is_code || before.is_empty()).then_some(code)
}

/// What waited under it: JSON.
pub fn found(payload: &str) -> Answer {
    api::json(payload.as_bytes().to_vec())
}

/// One that is used, over, or never was: all look the same.
pub fn not_found() -> Answer {
    refusal(StatusCode::NOT_FOUND, r#"{"error":"not_found"}"#)
}

/// Too many wrong ones.
pub fn rate_limited(retry_after_ms: u64) -> Answer {
    let mut answer = refusal(StatusCode::TOO_MANY_REQUESTS, r#"{"error":"rate_limited"}"#);
    answer.headers_mut().insert(RETRY_AFTER, retry_after_ms.div_ceil(1000).into());
    answer
}

fn refusal(status: StatusCode, body: &str) -> Answer {
    let mut answer = api::json(body.as_bytes().to_vec());
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_url_is_told_from_other_paths() {
        let code = "AAAAAAAAAAAAAAAAAAAA-_";
        assert_eq!(shortcode(&format!("/j/{code}")), Some(code));
        assert_eq!(shortcode(&format!("/oc/j/{code}")), Some(code));
        assert_eq!(shortcode("/j/short"), Some("short"));
        for other in ["/", "/j", "/oc/j/short", "/chat/j/AAAAAAAAAAAAAAAAAAAAAA/x"] {
            assert_eq!(shortcode(other), None, "{other}");
        }
    }
}
