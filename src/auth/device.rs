//! Device identity: an Ed25519 key, the name it gives, and the challenge it signs (contract 2.9).
//!
//! `device.id` is the SHA-256 of the raw public key in hex. What is signed is one line of text, fields
//! joined by `|`:
//!
//! ```text
//! v3|<deviceId>|<clientId>|<clientMode>|<role>|<scopes,>|<signedAtMs>|<token>|<nonce>|<platform>|<deviceFamily>
//! v2|<deviceId>|<clientId>|<clientMode>|<role>|<scopes,>|<signedAtMs>|<token>|<nonce>
//! ```
//!
//! The line has no escaping, so a field that holds a separator could stand for two (S-67): such fields are
//! refused before anything is verified. Start with [`verify`].

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::denied::Denied;
use crate::clock::UnixMs;
use crate::id::base64_url;
use crate::limits::SIGNATURE_SKEW_MS;
use crate::secret::hex;

/// Base64 with the URL-safe alphabet, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What precedes the 32 bytes of an Ed25519 key in a `SubjectPublicKeyInfo` (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Encodings of the points of small order, sign bit apart. Under such a key a signature made without any
/// private key can verify, so it identifies no one.
const SMALL_ORDER: [[u8; 32]; 7] = {
    const fn ends(first: u8, middle: u8, last: u8) -> [u8; 32] {
        let mut bytes = [middle; 32];
        bytes[0] = first;
        bytes[31] = last;
        bytes
    }
    [
        ends(0x00, 0x00, 0x00),
        ends(0x01, 0x00, 0x00),
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
            0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
            0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
        ],
        ends(0xec, 0xff, 0x7f),
        ends(0xed, 0xff, 0x7f),
        ends(0xee, 0xff, 0x7f),
    ]
};

/// A device's public key: 32 raw bytes that can identify someone (no point of small order).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceKey([u8; 32]);

impl DeviceKey {
    /// Reads the key as clients send it: 32 bytes in base64 (either alphabet, padded or not), or the PEM of
    /// its `SubjectPublicKeyInfo`. `None` for anything else and for keys of small order.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = match text.trim().strip_prefix("-----BEGIN PUBLIC KEY-----") {
            Some(rest) => {
                let body = rest.strip_suffix("-----END PUBLIC KEY-----")?;
                let spki = decode(&body.split_ascii_whitespace().collect::<String>())?;
                spki.strip_prefix(&SPKI_PREFIX)?.to_vec()
            }
            None => decode(text)?,
        };
        Self::from_bytes(bytes.try_into().ok()?)
    }

    /// Takes the raw key; `None` when it is of small order.
    pub fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        let mut unsigned = bytes;
        unsigned[31] &= 0x7f;
        (!SMALL_ORDER.contains(&unsigned)).then_some(Self(bytes))
    }

    /// The raw key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name this key gives its device.
    pub fn device_id(&self) -> DeviceId {
        let mut id = [0; 32];
        id.copy_from_slice(digest(&SHA256, &self.0).as_ref());
        DeviceId(id)
    }
}

/// The wire's form: base64, URL-safe, no padding.
impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64_url(&self.0))
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({self})")
    }
}

/// `device.id`: the SHA-256 of the public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId([u8; 32]);

impl DeviceId {
    /// Reads 64 lower-case hex digits; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 {
            return None;
        }
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(id))
    }

    /// The id with this raw digest: as it was stored.
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The raw digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The wire's form: 64 lower-case hex digits.
impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({self})")
    }
}

/// `connect.device`, as it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct SignedDevice<'a> {
    /// `device.id`.
    pub id: &'a str,
    /// `device.publicKey`.
    pub public_key: &'a str,
    /// `device.signature`: 64 bytes in base64.
    pub signature: &'a str,
    /// `device.signedAt`, milliseconds since the epoch; `None` when missing or not a whole number.
    pub signed_at_ms: Option<u64>,
    /// `device.nonce`; empty when missing.
    pub nonce: &'a str,
}

/// What the signature covers besides the device's own fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct SignedFields<'a> {
    /// `device.id`.
    pub device_id: &'a str,
    /// `client.id`.
    pub client_id: &'a str,
    /// `client.mode`.
    pub client_mode: &'a str,
    /// The role, its default included.
    pub role: &'a str,
    /// The scopes as sent.
    pub scopes: &'a [&'a str],
    /// `device.signedAt`.
    pub signed_at_ms: u64,
    /// `auth.token`, else `auth.deviceToken`, else `auth.bootstrapToken`, else nothing. Never the password.
    pub token: &'a str,
    /// The challenge.
    pub nonce: &'a str,
    /// `client.platform`.
    pub platform: &'a str,
    /// `client.deviceFamily`.
    pub device_family: &'a str,
}

impl SignedFields<'_> {
    /// The older line, which leaves platform and family out.
    pub fn payload_v2(&self) -> String {
        self.line("v2")
    }

    /// The present line. Platform and family are trimmed and their ASCII letters lowered.
    pub fn payload_v3(&self) -> String {
        let mut line = self.line("v3");
        for claim in [self.platform, self.device_family] {
            line.push('|');
            line.extend(claim.trim().chars().map(|c| c.to_ascii_lowercase()));
        }
        line
    }

    fn line(&self, version: &str) -> String {
        let Self { device_id, client_id, client_mode, role, signed_at_ms, token, nonce, .. } = self;
        let scopes = self.scopes.join(",");
        format!("{version}|{device_id}|{client_id}|{client_mode}|{role}|{scopes}|{signed_at_ms}|{token}|{nonce}")
    }

    /// The first field that holds what would make the line ambiguous; such a line is never verified.
    pub fn ambiguous(&self) -> Option<&'static str> {
        let fields = [
            ("device.id", self.device_id),
            ("client.id", self.client_id),
            ("client.mode", self.client_mode),
            ("role", self.role),
            ("auth", self.token),
            ("device.nonce", self.nonce),
            ("client.platform", self.platform),
            ("client.deviceFamily", self.device_family),
        ];
        let separates = |c: char| c == '|' || c.is_control();
        let scopes = self.scopes.iter().map(|scope| ("scopes", *scope));
        let comma = self.scopes.iter().any(|scope| scope.contains(','));
        let field = fields.into_iter().chain(scopes).find(|(_, text)| text.contains(separates)).map(|(name, _)| name);
        field.or(comma.then_some("scopes"))
    }
}

/// A device that holds its private key: it signed our challenge just now.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedDevice {
    /// Its key.
    pub key: DeviceKey,
    /// Its name.
    pub id: DeviceId,
    /// Whether platform and family were signed too (payload v3).
    pub binds_metadata: bool,
}

/// Checks what a device says of itself against its signature over `challenge`, in the order of the wire:
/// key, id, time, nonce, signature. `fields.device_id`, `signed_at_ms` and `nonce` are taken from `device`.
///
/// # Errors
/// The first thing that is wrong, as `Denied::Device*`.
pub fn verify(
    device: &SignedDevice<'_>,
    fields: SignedFields<'_>,
    challenge: &str,
    now: UnixMs,
) -> Result<VerifiedDevice, Denied> {
    let key = DeviceKey::parse(device.public_key).ok_or(Denied::DeviceKeyInvalid)?;
    let id = key.device_id();
    if DeviceId::parse(device.id) != Some(id) {
        return Err(Denied::DeviceIdMismatch);
    }
    let fresh = |at: &u64| now.0.abs_diff(*at) <= SIGNATURE_SKEW_MS;
    let signed_at_ms = device.signed_at_ms.filter(fresh).ok_or(Denied::DeviceSignatureExpired)?;
    let nonce = device.nonce.trim();
    if nonce.is_empty() {
        return Err(Denied::DeviceNonceMissing);
    }
    if nonce != challenge {
        return Err(Denied::DeviceNonceMismatch);
    }
    let fields = SignedFields { device_id: device.id, signed_at_ms, nonce, ..fields };
    if let Some(field) = fields.ambiguous() {
        return Err(Denied::DeviceFieldInvalid(field));
    }
    let signature = decode(device.signature).ok_or(Denied::DeviceSignatureInvalid)?;
    let public_key = UnparsedPublicKey::new(&ED25519, key.as_bytes());
    let signs = |payload: String| public_key.verify(payload.as_bytes(), &signature).is_ok();
    let binds_metadata = signs(fields.payload_v3());
    if !binds_metadata && !signs(fields.payload_v2()) {
        return Err(Denied::DeviceSignatureInvalid);
    }
    Ok(VerifiedDevice { key, id, binds_metadata })
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let url_safe: String = text
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            c => c,
        })
        .collect();
    BASE64.decode(url_safe).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    /// A device with a key made from `seed`.
    pub(crate) struct Device(Ed25519KeyPair);

    impl Device {
        pub(crate) fn new(seed: u8) -> Self {
            Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
        }

        pub(crate) fn key(&self) -> DeviceKey {
            DeviceKey::from_bytes(self.0.public_key().as_ref().try_into().unwrap()).unwrap()
        }

        pub(crate) fn id(&self) -> String {
            self.key().device_id().to_string()
        }

        pub(crate) fn sign(&self, payload: &str) -> String {
            base64_url(self.0.sign(payload.as_bytes()).as_ref())
        }
    }

    const NOW: UnixMs = UnixMs(1_700_000_000_000);

    fn fields<'a>(id: &'a str) -> SignedFields<'a> {
        SignedFields {
            device_id: id,
            client_id: "cli",
            client_mode: "cli",
            role: "operator",
            scopes: &["operator.read", "operator.write"],
            signed_at_ms: NOW.0,
            token: "tok",
            nonce: "n-1",
            platform: " Linux ",
            device_family: "Linux",
        }
    }

    /// Verifies a device whose proof was changed by `spoil`.
    fn outcome(spoil: impl Fn(&mut SignedDevice<'_>, &mut SignedFields<'_>)) -> Result<bool, Denied> {
        let device = Device::new(7);
        let (id, key) = (device.id(), device.key().to_string());
        let signature = device.sign(&fields(&id).payload_v3());
        let mut proof =
            SignedDevice { id: &id, public_key: &key, signature: &signature, signed_at_ms: Some(NOW.0), nonce: "n-1" };
        let mut fields = fields(&id);
        spoil(&mut proof, &mut fields);
        verify(&proof, fields, "n-1", NOW).map(|verified| verified.binds_metadata)
    }

    #[test]
    fn every_signed_field_is_bound() {
        assert_eq!(outcome(|_, _| ()), Ok(true));
        type Spoil = fn(&mut SignedDevice<'_>, &mut SignedFields<'_>);
        let spoils: [(Spoil, Denied); 15] = [
            (|d, _| d.public_key = "AAAA", Denied::DeviceKeyInvalid),
            (|d, _| d.id = "00", Denied::DeviceIdMismatch),
            (|d, _| d.signed_at_ms = None, Denied::DeviceSignatureExpired),
            (|d, _| d.signed_at_ms = Some(NOW.0 + 120_001), Denied::DeviceSignatureExpired),
            (|d, _| d.signed_at_ms = Some(NOW.0 - 120_001), Denied::DeviceSignatureExpired),
            (|d, _| d.nonce = " ", Denied::DeviceNonceMissing),
            (|d, _| d.nonce = "n-2", Denied::DeviceNonceMismatch),
            (|d, _| d.signature = "!", Denied::DeviceSignatureInvalid),
            (|d, _| d.signed_at_ms = Some(NOW.0 + 1), Denied::DeviceSignatureInvalid),
            (|_, f| f.token = "other", Denied::DeviceSignatureInvalid),
            (|_, f| f.scopes = &["operator.admin"], Denied::DeviceSignatureInvalid),
            (|_, f| f.role = "node", Denied::DeviceSignatureInvalid),
            (|_, f| f.client_id = "gateway-client", Denied::DeviceSignatureInvalid),
            (|_, f| f.platform = "ios", Denied::DeviceSignatureInvalid),
            (|_, f| f.device_family = "iPhone", Denied::DeviceSignatureInvalid),
        ];
        for (index, (spoil, denied)) in spoils.into_iter().enumerate() {
            assert_eq!(outcome(spoil), Err(denied), "spoil {index}");
        }
    }

    #[test]
    fn an_older_client_signs_without_metadata() {
        let device = Device::new(7);
        let id = device.id();
        let signature = device.sign(&fields(&id).payload_v2());
        let key = device.key().to_string();
        let proof =
            SignedDevice { id: &id, public_key: &key, signature: &signature, signed_at_ms: Some(NOW.0), nonce: "n-1" };
        assert!(!verify(&proof, fields(&id), "n-1", NOW).unwrap().binds_metadata);
    }

    #[test]
    fn s_67_a_separator_inside_a_field_is_refused() {
        for (client, scopes, platform) in
            [("cli|x", &["a"][..], ""), ("cli", &["a,b"], ""), ("cli", &["a|b"], ""), ("cli", &["a"], "linux\n")]
        {
            let denied = outcome(|_, f| (f.client_id, f.scopes, f.platform) = (client, scopes, platform)).unwrap_err();
            assert!(matches!(denied, Denied::DeviceFieldInvalid(_)), "{client} {scopes:?} {platform:?}: {denied:?}");
        }
    }

    #[test]
    fn a_key_may_come_raw_or_as_pem() {
        let key = Device::new(9).key();
        let text = key.to_string();
        let spki = [&SPKI_PREFIX[..], key.as_bytes()].concat();
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            base64::engine::general_purpose::STANDARD.encode(spki)
        );
        for form in [text.clone(), format!("{text}="), text.replace('-', "+").replace('_', "/"), pem] {
            assert_eq!(DeviceKey::parse(&form), Some(key), "{form}");
        }
        for form in ["", "AAAA", "not base64!", "-----BEGIN PUBLIC KEY-----\nAAAA"] {
            assert_eq!(DeviceKey::parse(form), None, "{form}");
        }
    }

    #[test]
    fn keys_that_identify_no_one_are_refused() {
        for point in SMALL_ORDER {
            let mut negative = point;
            negative[31] |= 0x80;
            assert_eq!(DeviceKey::from_bytes(point), None);
            assert_eq!(DeviceKey::from_bytes(negative), None);
        }
    }

    #[test]
    fn an_id_is_lower_case_hex() {
        let id = Device::new(1).id();
        assert_eq!(DeviceId::parse(&id).unwrap().to_string(), id);
        for text in [&id[1..], &id.to_uppercase(), ""] {
            assert_eq!(DeviceId::parse(text), None);
        }
    }
}
