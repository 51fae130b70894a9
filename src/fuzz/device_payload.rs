//! What a device signs: no two claims give one line, keys and ids read back as they were written, and only a signature of
//! that key over that line is taken.

use arbitrary::Unstructured;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::{flip, pick};
use crate::auth::device::{DeviceId, DeviceKey, SignedDevice, SignedFields, verify};
use crate::clock::UnixMs;
use crate::id::base64_url;
use crate::limits::SIGNATURE_SKEW_MS;

const WORDS: [&str; 16] = [
    "",
    "cli",
    "linux",
    "Linux",
    " linux ",
    "ui",
    "a|b",
    "a,b",
    "operator",
    "node",
    "operator.read",
    "operator.admin",
    "x\ny",
    "ｌ",
    "1",
    "|",
];

/// Claims, as a client sends them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claims<'a> {
    texts: [&'a str; 5],
    role: &'a str,
    scopes: Vec<&'a str>,
    token: &'a str,
    signed_at_ms: u64,
}

fn text<'a>(u: &mut Unstructured<'a>) -> &'a str {
    if flip(u) { pick(u, &WORDS) } else { u.arbitrary::<&str>().map_or("", |text| text) }
}

impl<'a> Claims<'a> {
    fn draw(u: &mut Unstructured<'a>) -> Self {
        let texts = [text(u), text(u), text(u), text(u), text(u)];
        let count = u.int_in_range(0..=3).unwrap_or(0);
        let scopes = (0..count).map(|_| text(u)).collect();
        Self { texts, role: text(u), scopes, token: text(u), signed_at_ms: u.arbitrary().unwrap_or(0) }
    }

    fn fields<'f>(&'f self, device_id: &'f str) -> SignedFields<'f> {
        let [client_id, client_mode, platform, device_family, nonce] = self.texts;
        SignedFields {
            device_id,
            client_id,
            client_mode,
            role: self.role,
            scopes: &self.scopes,
            signed_at_ms: self.signed_at_ms,
            token: self.token,
            nonce,
            platform,
            device_family,
        }
    }

    /// As the line has them: platform and family without case and outer white space, no scopes like one empty scope.
    fn plain(&self) -> impl PartialEq + std::fmt::Debug {
        let [client_id, client_mode, platform, device_family, nonce] = self.texts;
        let lower = |text: &str| text.trim().to_ascii_lowercase();
        let scopes = if self.scopes == [""] { Vec::new() } else { self.scopes.clone() };
        let texts =
            [client_id.to_owned(), client_mode.to_owned(), nonce.to_owned(), lower(platform), lower(device_family)];
        (texts, self.role.to_owned(), scopes.join(","), self.token.to_owned(), self.signed_at_ms)
    }
}

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let seed: [u8; 32] = [u.arbitrary().unwrap_or(0); 32];
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("32 bytes");
    let key = DeviceKey::parse(&base64_url(pair.public_key().as_ref())).expect("an honest key");
    let id = key.device_id().to_string();
    let (one, two) = (Claims::draw(u), Claims::draw(u));
    let (first, second) = (one.fields(&id), two.fields(&id));
    let lines = |fields: &SignedFields<'_>| (fields.payload_v3(), fields.payload_v2());
    if first.ambiguous().is_none() && second.ambiguous().is_none() {
        let same = lines(&first).0 == lines(&second).0;
        assert_eq!(same, one.plain() == two.plain(), "one line, one claim: {first:?} {second:?}");
    }
    assert!(!lines(&first).0.starts_with("v2|") && !lines(&first).1.starts_with("v3|"), "no line is of both versions");

    // Signed over the first, presented with the second.
    let signature = base64_url(pair.sign(lines(&first).0.as_bytes()).as_ref());
    let now = UnixMs(two.signed_at_ms.saturating_add(u.int_in_range(0..=SIGNATURE_SKEW_MS * 2).unwrap_or(0)));
    let nonce = two.texts[4];
    let public_key = key.to_string();
    let device = SignedDevice {
        id: &id,
        public_key: &public_key,
        signature: &signature,
        signed_at_ms: Some(two.signed_at_ms),
        nonce,
    };
    let challenge = if flip(u) { nonce.trim() } else { "another" };
    if let Ok(verified) = verify(&device, second, challenge, now) {
        assert_eq!((verified.key, verified.id), (key, key.device_id()));
        assert!(
            now.0.abs_diff(two.signed_at_ms) <= SIGNATURE_SKEW_MS && nonce.trim() == challenge && !challenge.is_empty()
        );
        assert!(second.ambiguous().is_none());
        assert!(verified.binds_metadata, "only the present line was signed");
    }

    // Keys and ids of any text.
    let any = text(u);
    if let Some(id) = DeviceId::parse(any) {
        assert_eq!(id.to_string(), any);
    }
    if let Some(key) = DeviceKey::parse(any) {
        assert_eq!(DeviceKey::parse(&key.to_string()), Some(key));
    }
}
