//! What is kept of a device: plain values, as read from the store and shown to readers.

use std::net::IpAddr;

use crate::auth::device::{DeviceId, DeviceKey};
use crate::clock::UnixMs;
use crate::rpc::scope::{Role, ScopeSet};
use crate::secret::SecretHash;

/// What a client said of itself when it asked. Platform and family count for policy only as approved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Name for people.
    pub display_name: Option<Box<str>>,
    /// `linux`, `macos 26.1`, ...; may be empty.
    pub platform: Box<str>,
    /// `Linux`, `iPhone`, ...
    pub device_family: Option<Box<str>>,
    /// Kind of program: `cli`, `node-host`, ...
    pub client_id: Box<str>,
    /// `cli`, `node`, `ui`, ...
    pub client_mode: Box<str>,
}

/// How an approval came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovedVia {
    /// Someone with the right to do so approved the request.
    Owner,
    /// Nobody was asked: the client is on this host and holds the shared secret.
    Silent,
    /// Someone with the right to do so had a setup code made, and the device used it.
    SetupCode,
}

impl ApprovedVia {
    /// The word on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Silent => "silent",
            Self::SetupCode => "bootstrap",
        }
    }

    /// Reads the word; `None` for any other.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Owner, Self::Silent, Self::SetupCode].into_iter().find(|via| via.as_str() == text)
    }
}

/// A device that was approved.
#[derive(Clone, Debug)]
pub struct PairedDevice {
    /// Its name: the hash of its key.
    pub id: DeviceId,
    /// Its key.
    pub key: DeviceKey,
    /// What it said of itself, as approved: the pins for policy.
    pub claims: Claims,
    /// Name that an operator gave it.
    pub label: Option<Box<str>>,
    /// How the last approval came about.
    pub approved_via: ApprovedVia,
    /// First approval.
    pub created_at: UnixMs,
    /// Last approval.
    pub approved_at: UnixMs,
    /// What it may be; one entry a role.
    pub approvals: Vec<Approval>,
}

impl PairedDevice {
    /// The approval for `role`, revoked or not.
    pub fn approval(&self, role: Role) -> Option<&Approval> {
        self.approvals.iter().find(|approval| approval.role == role)
    }

    /// As [`PairedDevice::approval`], to change it.
    pub fn approval_mut(&mut self, role: Role) -> Option<&mut Approval> {
        self.approvals.iter_mut().find(|approval| approval.role == role)
    }

    /// Approvals that stand, the latest role last.
    pub fn standing_approvals(&self) -> impl DoubleEndedIterator<Item = &Approval> {
        self.approvals.iter().filter(|approval| !approval.is_revoked())
    }

    /// Every scope that is approved, over all roles.
    pub fn scopes(&self) -> ScopeSet {
        self.standing_approvals().fold(ScopeSet::EMPTY, |all, approval| all.union(approval.scopes))
    }
}

/// One role of a device.
#[derive(Clone, Debug)]
pub struct Approval {
    /// Which.
    pub role: Role,
    /// What was approved for it. Empty once revoked; always empty for nodes.
    pub scopes: ScopeSet,
    /// What its token carries: `scopes`, or less after a rotation that asked for less.
    pub token_scopes: ScopeSet,
    /// Its token.
    pub token: Token,
    /// The token before, to tell a client that holds it what happened.
    pub retired: Option<SecretHash>,
    /// When the role was approved.
    pub created_at: UnixMs,
    /// When the token was last replaced.
    pub rotated_at: Option<UnixMs>,
}

impl Approval {
    /// Whether the role was taken back.
    pub const fn is_revoked(&self) -> bool {
        matches!(self.token, Token::Revoked { .. })
    }
}

/// The token of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// None is out; the device gets one when it next connects by another credential.
    Unissued,
    /// One is out. Only its hash is known here.
    Live {
        /// Of the token.
        hash: SecretHash,
        /// When it was made.
        issued_at: UnixMs,
    },
    /// Taken back with the role, until someone approves the device anew: the tombstone.
    Revoked {
        /// Since when.
        at: UnixMs,
    },
}

/// A device that waits for someone to approve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRequest {
    /// Its number: a commitment to key, role, scopes and pins (see [`super::pairing::request_id`]).
    pub request_id: Box<str>,
    /// The device.
    pub id: DeviceId,
    /// Its key.
    pub key: DeviceKey,
    /// What it wants to be.
    pub role: Role,
    /// What it wants to do.
    pub scopes: ScopeSet,
    /// What it says of itself.
    pub claims: Claims,
    /// Where it asked from; `None` for a local client.
    pub remote_ip: Option<IpAddr>,
    /// Whether the device was paired already when it asked.
    pub is_repair: bool,
    /// When it first asked. Retries never change it, nor the order of requests (S-57).
    pub created_at: UnixMs,
}

/// When and from where a device was last seen. Written behind: after a crash it may be older than the truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastSeen {
    /// When it last connected.
    pub at: Option<UnixMs>,
    /// From where; `None` for a local client.
    pub remote_ip: Option<IpAddr>,
    /// When its operator token was last used.
    pub operator_token_used_at: Option<UnixMs>,
    /// When its node token was last used.
    pub node_token_used_at: Option<UnixMs>,
}

impl LastSeen {
    /// When the token of `role` was last used.
    pub const fn token_used_at(&self, role: Role) -> Option<UnixMs> {
        match role {
            Role::Operator => self.operator_token_used_at,
            Role::Node => self.node_token_used_at,
        }
    }

    /// Notes a use of the token of `role`.
    pub const fn token_used(&mut self, role: Role, now: UnixMs) {
        match role {
            Role::Operator => self.operator_token_used_at = Some(now),
            Role::Node => self.node_token_used_at = Some(now),
        }
    }
}
