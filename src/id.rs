//! Identifiers: types, and their text forms. The random ones are made here and nowhere else.

use std::fmt;

/// Number of a connection since start. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// Fills a buffer from the operating system's random source.
///
/// # Panics
/// When the operating system has none to give: nothing that follows could be safe.
#[expect(clippy::expect_used, reason = "a gateway without randomness must not go on")]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A random UUID (RFC 9562, version 4) in its usual text form: request ids, nonces.
pub fn uuid() -> String {
    uuid_from(random_bytes())
}

/// The UUID that `bytes` make, version and variant bits set.
pub fn uuid_from(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = crate::secret::hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A new bearer token: 32 random bytes in URL-safe base64 without padding. It begins with no `-`, so that it can be written
/// behind an option of a command line.
pub fn token() -> String {
    loop {
        let token = base64_url(&random_bytes::<32>());
        if !token.starts_with('-') {
            return token;
        }
    }
}

/// URL-safe base64 without padding: the wire's form of keys, signatures and tokens.
pub fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_no_option() {
        assert!((0..2000).all(|_| !token().starts_with('-')));
    }

    #[test]
    fn a_uuid_carries_its_version() {
        assert_eq!(uuid_from([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid().len(), 36);
    }
}
