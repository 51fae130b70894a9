//! The gateway's own key pair, made at the first start: what `gateway.identity.get` shows.

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::id::base64_url;
use crate::secret::hex;
use crate::store::{Change, Schema, Store, StoreError};

/// The tables of this domain.
pub const SCHEMA: Schema = Schema {
    domain: "system",
    steps: &["CREATE TABLE identity (id INTEGER PRIMARY KEY CHECK (id = 1), pkcs8 BLOB NOT NULL) STRICT"],
};

/// The public half of the gateway's Ed25519 key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// SHA-256 of the raw public key, in hex: the same rule as for devices (contract 2.9).
    pub device_id: String,
    /// The raw public key, in base64url.
    pub public_key: String,
}

/// Why the gateway has no key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system has no random numbers.
    #[error("cannot make a key for the gateway: the operating system gives no random numbers")]
    Random,
    /// What is stored is not a key.
    #[error(
        "the gateway's key in the state file is damaged; restore a copy of the state file, or start with an empty one"
    )]
    Damaged,
}

impl Identity {
    /// Loads the key, or makes it at the first start.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn load_or_make(store: &Store) -> Result<Self, IdentityError> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::Random)?;
        let pkcs8: Vec<u8> = store
            .write(move |tx| {
                tx.execute("INSERT OR IGNORE INTO identity (id, pkcs8) VALUES (1, ?1)", [made.as_ref()])?;
                let kept = tx.query_row("SELECT pkcs8 FROM identity", [], |row| row.get(0))?;
                Ok::<_, StoreError>(Change::of(kept))
            })
            .await?;
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| IdentityError::Damaged)?;
        let public_key = pair.public_key().as_ref();
        Ok(Self { device_id: hex(digest(&SHA256, public_key).as_ref()), public_key: base64_url(public_key) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_made_once() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let first = Identity::load_or_make(&store).await.unwrap();
        assert_eq!(first, Identity::load_or_make(&store).await.unwrap());
        assert_eq!(first.device_id.len(), 64);
    }
}
