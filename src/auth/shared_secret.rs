//! The gateway's own secret: a token or a password (contract 2.1).
//!
//! The mode selects both the configured secret and the field that carries it. Compared are SHA-256 digests
//! in constant time, so neither content nor length shows in the time (S-30).

use super::denied::Denied;
use crate::secret::SecretHash;

/// Which secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedSecret {
    /// `gateway.auth.token`.
    Token,
    /// `gateway.auth.password`.
    Password,
}

impl SharedSecret {
    /// Compares what was `supplied` with what is `configured`. An empty text is nothing supplied.
    ///
    /// # Errors
    /// Not configured, missing, or mismatch, in this order.
    pub fn check(self, configured: Option<&SecretHash>, supplied: Option<&str>) -> Result<(), Denied> {
        let (not_configured, missing, mismatch) = match self {
            Self::Token => (Denied::TokenNotConfigured, Denied::TokenMissing, Denied::TokenMismatch),
            Self::Password => (Denied::PasswordNotConfigured, Denied::PasswordMissing, Denied::PasswordMismatch),
        };
        let configured = configured.ok_or(not_configured)?;
        let supplied = supplied.filter(|text| !text.is_empty()).ok_or(missing)?;
        if SecretHash::of(supplied) == *configured { Ok(()) } else { Err(mismatch) }
    }
}
