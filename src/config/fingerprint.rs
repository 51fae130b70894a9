//! SHA-256 fingerprints of certificates, in the spellings that tools print them in.

use std::fmt;

use crate::secret::hex;

/// SHA-256 of a certificate's DER form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it must be the 64 hex digits of a SHA-256 fingerprint, as `openssl x509 -noout -fingerprint -sha256` prints them"
)]
pub struct InvalidFingerprint;

impl Fingerprint {
    /// Reads 64 hex digits of either case, alone or with a colon between every two, after an optional label:
    /// `sha256 Fingerprint=AB:CD:…` as OpenSSL prints it, or `sha256:abcd…`. Anything else is refused, for a
    /// pin that was read wrongly either never matches or matches less than was meant.
    pub fn parse(text: &str) -> Result<Self, InvalidFingerprint> {
        let text = text.trim();
        let digits = match text.rsplit_once('=') {
            Some((_, digits)) => digits.trim(),
            None => ["sha256:", "sha-256:"]
                .iter()
                .find(|label| text.get(..label.len()).is_some_and(|start| start.eq_ignore_ascii_case(label)))
                .map_or(text, |label| text[label.len()..].trim_start()),
        };
        let mut out = [0; 32];
        let step = match digits.len() {
            64 => 2,
            95 if digits.as_bytes().iter().skip(2).step_by(3).all(|b| *b == b':') => 3,
            _ => return Err(InvalidFingerprint),
        };
        for (byte, pair) in out.iter_mut().zip(digits.as_bytes().chunks(step)) {
            let digit = |b: u8| char::from(b).to_digit(16).ok_or(InvalidFingerprint);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).map_err(|_| InvalidFingerprint)?;
        }
        Ok(Self(out))
    }
}

impl fmt::Display for Fingerprint {
    /// 64 lower-case hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_tools_print() {
        let digits: String = (0..32).map(|n| format!("{:02x}", n * 7)).collect();
        let colons = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
            .collect::<Vec<_>>()
            .join(":");
        for text in [
            digits.clone(),
            digits.to_uppercase(),
            colons.clone(),
            format!("SHA256 Fingerprint={colons}"),
            format!("sha256 Fingerprint={colons}\n"),
            format!("sha256:{digits}"),
            format!("SHA-256: {colons}"),
        ] {
            assert_eq!(Fingerprint::parse(&text).map(|pin| pin.to_string()), Ok(digits.clone()), "{text}");
        }
        for text in [
            "",
            "sha256:",
            &digits[2..],
            &format!("{digits}00"),
            &format!("sha1 Fingerprint={}", &colons[..59]),
            &digits.replace('0', "g"),
            &colons.replacen(':', "-", 1),
            &format!("{}:", &colons[..94]),
        ] {
            assert_eq!(Fingerprint::parse(text), Err(InvalidFingerprint), "{text}");
        }
    }
}
