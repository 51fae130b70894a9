//! A device: an Ed25519 key that signs challenges as the wire wants it.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::client::Client;

/// A device with a key of its own.
pub struct Device(Ed25519KeyPair);

/// Which line is signed.
#[derive(Clone, Copy)]
pub enum Payload {
    V2,
    V3,
}

impl Device {
    /// The device whose key is made from `seed`.
    pub fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes"))
    }

    /// `device.id`.
    pub fn id(&self) -> String {
        digest(&SHA256, self.0.public_key().as_ref()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// `device.publicKey`.
    pub fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.public_key())
    }

    /// `device` of a `connect` with `params`, signed at `signed_at_ms`.
    pub fn proof(&self, params: &Value, nonce: &str, signed_at_ms: u64, payload: Payload) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let client = &params["client"];
        let auth = &params["auth"];
        let token = ["token", "deviceToken", "bootstrapToken"].map(|key| text(&auth[key]));
        let token = token.into_iter().find(|token| !token.is_empty()).unwrap_or_default();
        let scopes: Vec<_> = params["scopes"].as_array().into_iter().flatten().map(text).collect();
        let mut line = [
            match payload {
                Payload::V2 => "v2".to_owned(),
                Payload::V3 => "v3".to_owned(),
            },
            self.id(),
            text(&client["id"]),
            text(&client["mode"]),
            text(&params["role"]),
            scopes.join(","),
            signed_at_ms.to_string(),
            token,
            nonce.to_owned(),
        ]
        .join("|");
        if let Payload::V3 = payload {
            let lower = |value: &Value| text(value).trim().to_ascii_lowercase();
            line += &format!("|{}|{}", lower(&client["platform"]), lower(&client["deviceFamily"]));
        }
        json!({
            "id": self.id(),
            "publicKey": self.public_key(),
            "signature": URL_SAFE_NO_PAD.encode(self.0.sign(line.as_bytes())),
            "signedAt": signed_at_ms,
            "nonce": nonce,
        })
    }

    /// Connects with `params` and this device's proof.
    pub fn connect(&self, client: &mut Client, params: &Value) -> Result<Value, Value> {
        let nonce = client.nonce();
        let mut params = params.clone();
        params["device"] = self.proof(&params, &nonce, now_ms(), Payload::V3);
        client.connect(&params)
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("not that far in the future")
}
