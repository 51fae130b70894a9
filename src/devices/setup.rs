//! The rules of setup codes: what a code gives, to whom without asking, how long it is good. Pure.
//!
//! An administrator has a code made for one device that is not paired yet; whoever presents its token first, and proves a
//! key, is that device (S-55). The code is used up in the transaction that pairs the device, so that of two who present it
//! at once one is refused. It gives no more than it was made for, and never the right to pair others.

use crate::auth::client::Client;
use crate::auth::device::{DeviceId, DeviceKey};
use crate::auth::pins;
use crate::clock::UnixMs;
use crate::rpc::scope::{Role, Scope, ScopeSet};
use crate::secret::SecretHash;

/// How long a code is good.
pub const TTL_MS: u64 = 10 * 60 * 1000;
/// How long it is told what became of a code, from its use on.
pub const OUTCOME_TTL_MS: u64 = 20 * 60 * 1000;
/// Codes that are out at a time: a site that is being set up fits.
pub const MAX_OPEN: usize = 256;
/// Outcomes that are remembered; the oldest gives way.
pub const MAX_OUTCOMES: usize = 1024;

/// What a code gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A node, and an operator with everything but the right to pair devices.
    Full,
    /// A node, and an operator who administers nothing.
    Limited,
    /// A node alone.
    Node,
    /// A node, and an operator who reads and talks: a voice in a room.
    VoiceNode,
}

impl Access {
    /// The word in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Limited => "limited",
            Self::Node => "node",
            Self::VoiceNode => "voice-node",
        }
    }

    /// The word on the wire, which has three.
    pub const fn on_the_wire(self) -> &'static str {
        match self {
            Self::VoiceNode => Self::Limited.as_str(),
            access => access.as_str(),
        }
    }

    /// Reads the word; `None` for any other.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Full, Self::Limited, Self::Node, Self::VoiceNode].into_iter().find(|access| access.as_str() == text)
    }

    /// The roles.
    pub const fn roles(self) -> &'static [Role] {
        match self {
            Self::Full | Self::Limited | Self::VoiceNode => &[Role::Node, Role::Operator],
            Self::Node => &[Role::Node],
        }
    }

    /// What the device may do as an operator.
    pub fn scopes(self) -> ScopeSet {
        let limited = [Scope::Approvals, Scope::Questions, Scope::Read, Scope::TalkSecrets, Scope::Write];
        match self {
            Self::Full => limited.into_iter().chain([Scope::Admin]).collect(),
            Self::Limited => limited.into_iter().collect(),
            Self::Node => ScopeSet::EMPTY,
            Self::VoiceNode => ScopeSet::EMPTY.with(Scope::Read).with(Scope::Talk),
        }
    }

    /// Whether a device is paired by such a code without asking: it connects as a node and is the kind of program that
    /// such codes are made for. Any other waits for someone, though the code stays its own meanwhile.
    pub fn is_for(self, client: &Client<'_>) -> bool {
        if client.mode != "node" {
            return false;
        }
        let is_on = |platform: &str, families: &[&str]| {
            pins::same_platform(client.platform, platform)
                && families.iter().any(|family| pins::same_device_family(client.device_family, family))
        };
        match (self, client.id) {
            (Self::Node, "node-host") => true,
            (Self::VoiceNode, "node-host") => is_on("esp32", &["ESP32"]),
            (Self::Full | Self::Limited, "openclaw-ios") => is_on("ios", &["iPhone", "iPad", "iOS"]),
            (Self::Full | Self::Limited, "openclaw-android") => is_on("android", &["Android"]),
            _ => false,
        }
    }
}

/// A code that was made.
#[derive(Clone, Debug)]
pub struct SetupCode {
    /// Its public name, by which its maker asks what became of it.
    pub setup_id: Box<str>,
    /// What it gives.
    pub access: Access,
    /// Who had it made.
    pub issuer: Issuer,
    /// When it ends.
    pub expires_at: UnixMs,
    /// How far it has come.
    pub state: State,
}

/// Who had a code made: it is void once they lose their right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// Their device, if they have one.
    pub device: Option<DeviceId>,
    /// They are here by something that the settings say (a secret, a proxy's word), and not by their device's token.
    pub by_settings: bool,
}

/// How far a code has come.
#[derive(Clone, Debug)]
pub enum State {
    /// It is good.
    Open {
        /// Of its token.
        hash: SecretHash,
        /// The key that presented it first; no other may.
        key: Option<DeviceKey>,
    },
    /// It was used, once and for all.
    Used(Outcome),
}

/// What became of a code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which device it paired.
    pub device: DeviceId,
    /// How that device calls itself.
    pub name: Option<Box<str>>,
    /// When.
    pub at: UnixMs,
    /// The device's tokens are on their way to it. Until then, and for good if it left before, nobody knows.
    pub delivered: bool,
}

impl SetupCode {
    /// Whether `presented` is the token of this code, and it may still be used. Compares hashes, in constant time.
    pub fn is(&self, presented: SecretHash, now: UnixMs) -> bool {
        matches!(self.state, State::Open { hash, .. } if hash == presented) && now < self.expires_at
    }

    /// Whether `key` may use it now.
    pub fn serves(&self, key: &DeviceKey, now: UnixMs) -> bool {
        matches!(self.state, State::Open { key: bound, .. } if bound.is_none_or(|bound| bound == *key))
            && now < self.expires_at
    }

    /// Whether it is still out.
    pub fn is_open(&self, now: UnixMs) -> bool {
        matches!(self.state, State::Open { .. }) && now < self.expires_at
    }

    /// Whether nobody needs it any more.
    pub fn is_over(&self, now: UnixMs) -> bool {
        match &self.state {
            State::Open { .. } => now >= self.expires_at,
            State::Used(outcome) => now.since(outcome.at) > OUTCOME_TTL_MS,
        }
    }

    /// Whether it is void once `device` has lost a right: it was made by that device, or waits with it for approval.
    pub fn hangs_on(&self, device: DeviceId) -> bool {
        match self.state {
            State::Open { key, .. } => {
                self.issuer.device == Some(device) || key.is_some_and(|key| key.device_id() == device)
            }
            State::Used(_) => false,
        }
    }
}

/// Whether `code`, one of `codes`, is forgotten when another is made: it is over, or its outcome is the oldest of too many.
pub fn gives_way(code: &SetupCode, codes: &[SetupCode], now: UnixMs) -> bool {
    let State::Used(outcome) = &code.state else { return code.is_over(now) };
    let is_later = |other: &&SetupCode| matches!(&other.state, State::Used(other) if other.at > outcome.at);
    code.is_over(now) || codes.iter().filter(is_later).count() >= MAX_OUTCOMES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_gives_the_right_to_pair_others() {
        for access in [Access::Full, Access::Limited, Access::Node, Access::VoiceNode] {
            assert!(!access.scopes().contains(Scope::Pairing));
            assert_eq!(Access::parse(access.as_str()), Some(access));
        }
        assert!(Access::Full.scopes().contains(Scope::Admin) && !Access::Limited.scopes().contains(Scope::Admin));
        assert!(Access::Node.scopes().is_empty() && Access::Node.roles() == [Role::Node]);
        let voice = Access::VoiceNode;
        assert!(
            voice.scopes() == ScopeSet::EMPTY.with(Scope::Read).with(Scope::Talk) && voice.on_the_wire() == "limited"
        );
        assert_eq!(Access::parse("control-ui"), None);
    }

    #[test]
    fn a_code_pairs_only_the_kind_of_client_it_is_for() {
        let node = Client { id: "node-host", mode: "node", platform: "linux", device_family: "Linux" };
        let phone = Client { id: "openclaw-ios", mode: "node", platform: "iOS 18.1", device_family: "iPhone" };
        let voice = Client { platform: "ESP32 5.2", device_family: "esp32", ..node };
        assert!(
            Access::VoiceNode.is_for(&voice) && !Access::VoiceNode.is_for(&node) && !Access::VoiceNode.is_for(&phone)
        );
        assert!(Access::Node.is_for(&node) && !Access::Full.is_for(&node) && !Access::Limited.is_for(&node));
        assert!(Access::Full.is_for(&phone) && Access::Limited.is_for(&phone) && !Access::Node.is_for(&phone));
        for other in [
            Client { mode: "ui", ..phone },
            Client { platform: "linux", ..phone },
            Client { device_family: "", ..phone },
            Client { id: "openclaw-android", ..phone },
            Client { id: "cli", mode: "cli", ..node },
        ] {
            assert!(!Access::Full.is_for(&other) && !Access::Node.is_for(&other), "{other:?}");
        }
    }

    #[test]
    fn a_code_serves_its_first_key_until_it_ends_or_is_used() {
        let keys = [1, 2].map(|seed| {
            use ring::signature::KeyPair as _;
            let pair = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
            DeviceKey::from_bytes(pair.public_key().as_ref().try_into().unwrap()).unwrap()
        });
        let hash = SecretHash::of("token");
        let mut code = SetupCode {
            setup_id: "s".into(),
            access: Access::Node,
            issuer: Issuer { device: Some(keys[1].device_id()), by_settings: false },
            expires_at: UnixMs(1000),
            state: State::Open { hash, key: None },
        };
        assert!(code.is(hash, UnixMs(999)) && !code.is(hash, UnixMs(1000)) && !code.is(SecretHash::of("x"), UnixMs(1)));
        assert!(code.serves(&keys[0], UnixMs(999)) && code.serves(&keys[1], UnixMs(999)));
        code.state = State::Open { hash, key: Some(keys[0]) };
        assert!(code.serves(&keys[0], UnixMs(999)) && !code.serves(&keys[1], UnixMs(999)));
        assert!(!code.serves(&keys[0], UnixMs(1000)) && code.is_over(UnixMs(1000)));
        assert!(code.hangs_on(keys[0].device_id()) && code.hangs_on(keys[1].device_id()));
        let outcome = Outcome { device: keys[0].device_id(), name: None, at: UnixMs(500), delivered: false };
        code.state = State::Used(outcome);
        assert!(!code.is(hash, UnixMs(600)) && !code.serves(&keys[0], UnixMs(600)) && !code.is_over(UnixMs(1001)));
        assert!(!code.hangs_on(keys[0].device_id()), "what was used is history, not a right");
    }
}
