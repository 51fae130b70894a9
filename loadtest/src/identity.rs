//! The key of a node: made from a seed, so that the same nodes can come back in a later run.

use std::sync::Arc;

use anyhow::Result;
use ring::digest::{SHA256, digest};

/// A key, and the name that gateways know it by.
#[derive(Debug)]
pub struct Identity {
    key: Arc<clawgate::client::Identity>,
    device_id: String,
}

impl Identity {
    /// The identity that follows from `seed` and `number`.
    pub fn new(seed: &str, number: u64) -> Result<Self> {
        let secret = digest(&SHA256, format!("loadtest|{seed}|{number}").as_bytes());
        let key = clawgate::client::Identity::from_seed(secret.as_ref().try_into()?);
        Ok(Self { device_id: key.id().to_string(), key: Arc::new(key) })
    }

    /// The key.
    pub fn key(&self) -> Arc<clawgate::client::Identity> {
        Arc::clone(&self.key)
    }

    /// `device.id`, and the node's name in calls.
    pub fn device_id(&self) -> &str {
        &self.device_id
    }
}
