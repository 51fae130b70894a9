//! The key of a node: made from a seed, so that the same nodes can come back in a later run.

use anyhow::{Context as _, Result};
use clawgate::auth::device::DeviceKey;
use clawgate::id::base64_url;
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// An Ed25519 key and the texts that say it.
#[derive(Debug)]
pub struct Identity {
    key: Ed25519KeyPair,
    public_key: String,
    device_id: String,
}

impl Identity {
    /// The identity that follows from `seed` and `number`.
    pub fn new(seed: &str, number: u64) -> Result<Self> {
        let secret = digest(&SHA256, format!("loadtest|{seed}|{number}").as_bytes());
        let key = Ed25519KeyPair::from_seed_unchecked(secret.as_ref()).ok().context("an Ed25519 key from its seed")?;
        let public = DeviceKey::from_bytes(key.public_key().as_ref().try_into()?).context("a key of full order")?;
        Ok(Self { key, public_key: public.to_string(), device_id: public.device_id().to_string() })
    }

    /// `device.publicKey`.
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// `device.id`, and the node's name in calls.
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// `device.signature` over `payload`.
    pub fn sign(&self, payload: &str) -> String {
        base64_url(self.key.sign(payload.as_bytes()).as_ref())
    }
}
