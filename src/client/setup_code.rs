//! Setup codes, as `clawgate qr` and `openclaw qr` print them: where a gateway is, and a token by which it pairs one
//! device. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::clock::UnixMs;
use crate::secret::Secret;

/// What a code is written with where it is to be typed or clicked.
const SCHEME: &str = "oc-pair://";
/// Bytes of a code; what is longer is none.
const MAX_BYTES: usize = 4096;

/// A setup code.
#[derive(Clone, Debug)]
pub struct SetupCode {
    /// The gateway.
    pub url: String,
    /// The token: for [`Auth::bootstrap_token`](super::Auth::bootstrap_token).
    pub token: Secret,
    /// The certificate of the gateway, where it is one of its own.
    pub tls_fingerprint: Option<String>,
    /// When the code ends, if it says so.
    pub expires_at: Option<UnixMs>,
}

/// Why a text is no setup code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSetupCode {
    /// It is not one.
    #[error("this is no setup code: copy the whole of what `clawgate qr --node` prints, from oc-pair:// on")]
    Malformed,
    /// It has ended.
    #[error("this setup code has ended: have another one made, by `clawgate qr --node`")]
    Ended,
}

impl SetupCode {
    /// Reads a code, with or without `oc-pair://`.
    ///
    /// # Errors
    /// See [`NoSetupCode`].
    pub fn parse(text: &str, now: UnixMs) -> Result<Self, NoSetupCode> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Payload {
            url: String,
            bootstrap_token: String,
            expires_at_ms: Option<u64>,
            tls_fingerprint: Option<String>,
        }
        let text = text.trim();
        let code = text.strip_prefix(SCHEME).unwrap_or(text).trim_end_matches(['/', '=']);
        let bytes = (code.len() <= MAX_BYTES).then(|| URL_SAFE_NO_PAD.decode(code).ok()).flatten();
        let payload: Payload =
            bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or(NoSetupCode::Malformed)?;
        let Payload { url, bootstrap_token, expires_at_ms, tls_fingerprint } = payload;
        if url.is_empty() || bootstrap_token.is_empty() {
            return Err(NoSetupCode::Malformed);
        }
        let expires_at = expires_at_ms.map(UnixMs);
        if expires_at.is_some_and(|at| at <= now) {
            return Err(NoSetupCode::Ended);
        }
        Ok(Self { url, token: Secret::new(bootstrap_token), tls_fingerprint, expires_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_with_and_without_its_scheme_until_it_ends() {
        let code = |json: &str| URL_SAFE_NO_PAD.encode(json);
        let good = code(r#"{"url":"wss://gw.example","bootstrapToken":"t","expiresAtMs":10,"tlsFingerprint":"AB"}"#);
        for text in [good.clone(), format!("oc-pair://{good}"), format!(" oc-pair://{good}\n"), format!("{good}==")] {
            let read = SetupCode::parse(&text, UnixMs(9)).unwrap();
            assert!(read.url == "wss://gw.example" && read.token.matches("t"), "{text}");
            assert_eq!((read.tls_fingerprint.as_deref(), read.expires_at), (Some("AB"), Some(UnixMs(10))));
        }
        assert_eq!(SetupCode::parse(&good, UnixMs(10)).unwrap_err(), NoSetupCode::Ended);
        for wrong in
            ["", "oc-pair://", "!", &code("{}"), &code(r#"{"url":"","bootstrapToken":"t"}"#), &"A".repeat(5000)]
        {
            assert_eq!(SetupCode::parse(wrong, UnixMs(0)).unwrap_err(), NoSetupCode::Malformed, "{wrong}");
        }
    }
}
