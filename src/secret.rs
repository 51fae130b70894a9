//! Secrets: held so that they are wiped, never printed, and compared in constant time.

use std::fmt;

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// A secret text (a token, a password). `Debug` shows nothing of it; the memory is wiped on drop.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Takes a secret in.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that must send or hash it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is this secret. Both sides are hashed first, so neither the time nor the
    /// length says anything about the secret.
    pub fn matches(&self, candidate: &str) -> bool {
        SecretHash::of(&self.0) == SecretHash::of(candidate)
    }

    /// Eight hex digits that let two people see whether they hold the same secret, and no more.
    pub fn fingerprint(&self) -> String {
        SecretHash::of(&self.0).to_hex()[..8].to_owned()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// SHA-256 of a secret: what is stored and compared. Equality takes constant time.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Hashes `secret`.
    pub fn of(secret: &str) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
        Self(out)
    }

    /// Reads the form that [`SecretHash::to_hex`] writes; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return None;
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
        }
        Some(Self(out))
    }

    /// 64 lower-case hex digits.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// Lower-case hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever was supplied, the comparison is of 32 bytes with 32 bytes, in constant time: neither a common beginning nor
    /// the length shows (S-30).
    #[test]
    fn s_30_secrets_are_compared_as_digests_of_one_length() {
        let secret = Secret::new("correct horse");
        assert_eq!(size_of::<SecretHash>(), 32);
        for wrong in ["", "c", "correct hors", "correct horse ", &"correct horse".repeat(1000)] {
            assert!(!secret.matches(wrong), "{wrong:.20}");
        }
        assert!(secret.matches("correct horse"));
    }

    #[test]
    fn matches_only_itself() {
        let secret = Secret::new("pässwörd");
        assert!(secret.matches("pässwörd"));
        for wrong in ["", "pässwör", "pässwörd\0", "PÄSSWÖRD"] {
            assert!(!secret.matches(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn never_prints_itself() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?} {:?}", SecretHash::of("hunter2")).contains("hunter2"));
    }

    #[test]
    fn a_hash_survives_its_hex_form() {
        let hash = SecretHash::of("x");
        assert!(SecretHash::from_hex(&hash.to_hex()) == Some(hash));
        assert!(SecretHash::from_hex("zz").is_none());
    }
}
