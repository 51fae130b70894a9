//! SHA-256 fingerprints of certificates, in the spellings that tools print them in.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use crate::secret::hex;

/// SHA-256 of the DER form of a certificate or of a public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is not a fingerprint, and what it looks like instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it must be the 64 hex digits of a SHA-256 fingerprint, as `openssl x509 -noout -fingerprint -sha256` prints them, \
     but {0}"
)]
pub struct InvalidFingerprint(&'static str);

impl Fingerprint {
    /// SHA-256 of a certificate, or of a public key, in DER form.
    pub fn of(der: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(out)
    }

    /// Reads 64 hex digits of either case, alone or with a colon between every two, after an optional label:
    /// `sha256 Fingerprint=AB:CD:…` as OpenSSL prints it, or `sha256:abcd…`. Anything else is refused, for a
    /// pin that was read wrongly either never matches or matches less than was meant.
    ///
    /// # Errors
    /// [`InvalidFingerprint`] names the form that was seen.
    pub fn parse(text: &str) -> Result<Self, InvalidFingerprint> {
        let text = text.trim();
        let digits = match text.rsplit_once('=') {
            Some((label, digits)) => {
                let label = label.trim().to_ascii_lowercase();
                match label.strip_suffix("fingerprint").map_or(&*label, str::trim_end) {
                    "sha256" | "sha-256" => digits.trim(),
                    "sha1" | "sha-1" | "md5" => return Err(InvalidFingerprint("it is of another hash")),
                    _ => return Err(InvalidFingerprint("what stands before \"=\" is no label of one")),
                }
            }
            None => ["sha256:", "sha-256:"]
                .iter()
                .find(|label| text.get(..label.len()).is_some_and(|start| start.eq_ignore_ascii_case(label)))
                .map_or(text, |label| text[label.len()..].trim_start()),
        };
        let mut out = [0; 32];
        let bytes = digits.as_bytes();
        let colons = bytes.len() % 3 == 2 && bytes.iter().skip(2).step_by(3).all(|b| *b == b':');
        let (step, count) = if colons { (3, bytes.len() / 3 + 1) } else { (2, bytes.len() / 2) };
        if bytes.is_empty() || !bytes.chunks(step).all(|pair| pair.iter().take(2).all(u8::is_ascii_hexdigit)) {
            return Err(InvalidFingerprint("it has something else than hex digits, or colons elsewhere"));
        }
        match (count, colons || bytes.len() % 2 == 0) {
            (32, true) => {}
            (20, true) => return Err(InvalidFingerprint("it has 40 digits, like one of SHA-1")),
            (16, true) => return Err(InvalidFingerprint("it has 32 digits, like one of MD5")),
            _ => return Err(InvalidFingerprint("it has another number of digits")),
        }
        for (byte, pair) in out.iter_mut().zip(bytes.chunks(step)) {
            let digit = |b: u8| char::from(b).to_digit(16).unwrap_or_default();
            *byte = u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).unwrap_or_default();
        }
        Ok(Self(out))
    }

    /// As OpenSSL prints it: upper-case digits, a colon between every two.
    pub fn with_colons(&self) -> String {
        let hex = self.to_string().to_uppercase();
        hex.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair)).collect::<Vec<_>>().join(":")
    }
}

/// What a gateway's certificate is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The certificate itself: a new one is another, whatever its key.
    Certificate(Fingerprint),
    /// Its public key (`SubjectPublicKeyInfo`): a renewed certificate with the same key is still the one.
    PublicKey(Fingerprint),
}

impl Pin {
    /// Reads what [`Fingerprint::parse`] reads as the pin of a certificate, and as the pin of a public key
    /// `spki:` before the same, or `sha256//` before 44 characters of base64, as curl has it.
    ///
    /// # Errors
    /// [`InvalidFingerprint`].
    pub fn parse(text: &str) -> Result<Self, InvalidFingerprint> {
        let text = text.trim();
        let after = |label: &str| {
            text.get(..label.len()).is_some_and(|start| start.eq_ignore_ascii_case(label)).then(|| &text[label.len()..])
        };
        if let Some(base64) = after("sha256//") {
            let bytes = STANDARD.decode(base64).ok().and_then(|bytes| bytes.try_into().ok());
            return bytes
                .map(|bytes| Self::PublicKey(Fingerprint(bytes)))
                .ok_or(InvalidFingerprint("what follows \"sha256//\" is not the base64 of 32 bytes"));
        }
        match after("spki:") {
            Some(digits) => Fingerprint::parse(digits).map(Self::PublicKey),
            None => Fingerprint::parse(text).map(Self::Certificate),
        }
    }
}

impl fmt::Display for Pin {
    /// In a form that [`Pin::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(fingerprint) => f.write_str(&fingerprint.with_colons()),
            Self::PublicKey(fingerprint) => write!(f, "spki:{fingerprint}"),
        }
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
        for (text, seen) in [
            ("", "something else than hex"),
            ("sha256:", "something else than hex"),
            (&digits[2..], "another number"),
            (&digits[1..], "another number"),
            (&format!("{digits}00"), "another number"),
            (&format!("sha1 Fingerprint={}", &colons[..59]), "another hash"),
            (&format!("Fingerprint of={colons}"), "no label"),
            (&colons[..59], "SHA-1"),
            (&digits[..32], "MD5"),
            (&digits.replace('0', "g"), "something else than hex"),
            (&colons.replacen(':', "-", 1), "something else than hex"),
            (&format!("{}:", &colons[..94]), "something else than hex"),
            (&format!("{}é", &digits[..62]), "something else than hex"),
        ] {
            let error = Fingerprint::parse(text).unwrap_err().to_string();
            assert!(error.contains(seen), "{text}: {error}");
        }
        assert_eq!(Fingerprint::parse(&digits).unwrap().with_colons(), colons);
    }

    #[test]
    fn a_pin_is_of_a_certificate_or_of_its_key() {
        let print = Fingerprint::of(b"der");
        let curl = format!("sha256//{}", STANDARD.encode(print.0));
        for (text, pin) in [
            (print.with_colons(), Pin::Certificate(print)),
            (format!(" SPKI:{print} "), Pin::PublicKey(print)),
            (format!("spki:sha256:{print}"), Pin::PublicKey(print)),
            (curl.clone(), Pin::PublicKey(print)),
        ] {
            assert_eq!(Pin::parse(&text), Ok(pin), "{text}");
            assert_eq!(Pin::parse(&pin.to_string()), Ok(pin));
        }
        for text in ["spki:", "sha256//", &curl[..40], "md5//AAAA"] {
            assert!(Pin::parse(text).is_err(), "{text}");
        }
    }
}
