//! The rules of pairing under any sequence of requests, approvals, rotations and revocations.
//!
//! Beside the record stands a simple account of what was ever given since it was last taken: nobody may hold more.

use arbitrary::Unstructured;

use super::{flip, pick, some};
use crate::auth::DeviceKey;
use crate::clock::UnixMs;
use crate::devices::pairing::{
    self, Manager, Standing, Wanted, approve, make_room, may_be_silent, pins_changed, request_id, standing,
};
use crate::devices::record::{ApprovedVia, Claims, PairedDevice, PendingRequest, Token};
use crate::rpc::scope::{Role, Scope, ScopeSet};
use crate::secret::SecretHash;

const PLATFORMS: [&str; 6] = ["linux", "Linux 6.1", "macos", "darwin", "", "ios 17"];

struct World {
    device: Option<PairedDevice>,
    /// What the operator role was given since it was last revoked.
    given: ScopeSet,
    /// Hashes of tokens that must not come back.
    dead: Vec<SecretHash>,
    tokens: u64,
    now: u64,
}

fn scopes(u: &mut Unstructured<'_>) -> ScopeSet {
    some(u, &Scope::ALL).into_iter().collect()
}

fn role(u: &mut Unstructured<'_>) -> Role {
    pick(u, &[Role::Operator, Role::Operator, Role::Node])
}

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    bounds(u);
    let mut world = World { device: None, given: ScopeSet::EMPTY, dead: Vec::new(), tokens: 0, now: 1_000 };
    for _ in 0..40 {
        if u.is_empty() {
            return;
        }
        world.now += 1;
        match u.int_in_range(0..=4).unwrap_or(0) {
            0 | 1 => world.asks(u),
            2 => world.rotates(u),
            3 => world.revokes(u),
            _ => world.connects(),
        }
        world.holds();
    }
}

impl World {
    fn asks(&mut self, u: &mut Unstructured<'_>) {
        let key = DeviceKey::from_bytes([9; 32]).expect("a key");
        let role = role(u);
        let asked = if role == Role::Node { ScopeSet::EMPTY } else { scopes(u) };
        let claims = Claims {
            platform: (pick(u, &PLATFORMS)).into(),
            device_family: flip(u).then(|| (pick(u, &["Linux", "iPhone", ""])).into()),
            ..Claims::default()
        };
        let wanted =
            Wanted { role, scopes: asked, platform: &claims.platform, device_family: claims.device_family.as_deref() };
        let Standing::Missing(reason) = standing(self.device.as_ref(), &wanted) else {
            let device = self.device.as_ref().expect("only what is approved is covered");
            let approval = device.approval(role).expect("the role was approved");
            assert!(!approval.is_revoked() && approval.scopes.covers_all(asked));
            return;
        };
        let request = PendingRequest {
            request_id: request_id(&key, role, asked, &claims).into(),
            id: key.device_id(),
            key,
            role,
            scopes: asked,
            claims,
            remote_ip: None,
            is_repair: self.device.is_some(),
            created_at: UnixMs(self.now),
        };
        let was_revoked = self.device.as_ref().and_then(|device| device.approval(role)).is_some_and(|a| a.is_revoked());
        let silent = flip(u) && may_be_silent(self.device.as_ref(), role, reason);
        assert!(!silent || !was_revoked, "what was taken back does not come back by itself");
        let via = if silent { ApprovedVia::Silent } else { ApprovedVia::Owner };
        let after = approve(self.device.clone(), &request, via, UnixMs(self.now));
        if !silent {
            let manager = Manager { scopes: scopes(u), device: flip(u).then_some(request.id), connection: None };
            if manager.may_approve(&request, &after).is_err() {
                return;
            }
            let gained = after.approval(role).map_or(ScopeSet::EMPTY, |approval| approval.scopes);
            assert!(manager.scopes.covers_all(gained), "nobody gives what they lack");
            assert!(
                role == Role::Operator || manager.scopes.contains(Scope::Admin),
                "a node is for an admin to approve"
            );
        }
        if let Some(before) = &self.device {
            let same = before.claims.platform == after.claims.platform
                && before.claims.device_family == after.claims.device_family;
            assert_eq!(pins_changed(before, &after), !same);
        }
        if role == Role::Operator {
            self.given = if was_revoked { asked } else { self.given.union(asked) };
        }
        self.device = Some(after);
    }

    fn rotates(&mut self, u: &mut Unstructured<'_>) {
        let (role, wanted) = (role(u), flip(u).then(|| scopes(u)));
        let Some(device) = &mut self.device else { return };
        let manager = Manager { scopes: scopes(u), device: flip(u).then_some(device.id), connection: None };
        let Ok(granted) = manager.may_rotate(device, role, wanted) else { return };
        let approval = device.approval_mut(role).expect("what may be rotated is there");
        assert!(!approval.is_revoked(), "a revoked token is not replaced");
        assert!(approval.scopes.covers_all(granted) && manager.scopes.covers_all(granted), "rotation widens nothing");
        approval.token_scopes = granted;
        if let Token::Live { hash, .. } = approval.token {
            self.dead.push(hash);
        }
        approval.token = Token::Unissued;
    }

    fn revokes(&mut self, u: &mut Unstructured<'_>) {
        let (role, now) = (role(u), UnixMs(self.now));
        let Some(device) = &mut self.device else { return };
        let manager = Manager { scopes: scopes(u), device: flip(u).then_some(device.id), connection: None };
        if manager.may_revoke(device, role).is_err() {
            return;
        }
        let approval = device.approval_mut(role).expect("what may be revoked is there");
        if let Token::Live { hash, .. } = approval.token {
            approval.retired = Some(hash);
            self.dead.push(hash);
        }
        approval.token = Token::Revoked { at: now };
        (approval.scopes, approval.token_scopes) = (ScopeSet::EMPTY, ScopeSet::EMPTY);
        if role == Role::Operator {
            self.given = ScopeSet::EMPTY;
        }
    }

    /// The device comes by another credential and gets the token that it has not.
    fn connects(&mut self) {
        let (tokens, now) = (&mut self.tokens, UnixMs(self.now));
        for approval in self.device.iter_mut().flat_map(|device| &mut device.approvals) {
            if approval.token == Token::Unissued {
                *tokens += 1;
                approval.token = Token::Live { hash: SecretHash::of(&format!("token {tokens}")), issued_at: now };
            }
        }
    }

    fn holds(&self) {
        let Some(device) = &self.device else { return };
        for approval in &device.approvals {
            if approval.role == Role::Operator {
                assert!(self.given.covers_all(approval.scopes), "{:?} of {:?}", approval.scopes, self.given);
            } else {
                assert!(approval.scopes.is_empty(), "nodes have no scopes");
            }
            assert!(approval.scopes.covers_all(approval.token_scopes), "a token carries no more than was approved");
            assert!(!approval.is_revoked() || (approval.scopes.is_empty() && approval.token_scopes.is_empty()));
            if let Token::Live { hash, .. } = approval.token {
                assert!(!self.dead.contains(&hash), "a token that was taken away is back");
            }
        }
        assert!(device.approvals.len() <= 2, "one entry a role");
    }
}

/// The bounds on what waits, filled from any mix of sources.
fn bounds(u: &mut Unstructured<'_>) {
    let count = u.int_in_range(0..=40).unwrap_or(0);
    let mut waiting = Vec::new();
    for number in 0..count {
        let device = DeviceKey::from_bytes([u.int_in_range(2..=12).unwrap_or(2); 32]).expect("a key").device_id();
        let source = flip(u).then(|| std::net::IpAddr::from([10, 0, 0, u.int_in_range(0..=3).unwrap_or(0)]));
        let seen_at = UnixMs(u.int_in_range(0..=2 * pairing::REQUEST_TTL_MS).unwrap_or(0));
        let now = UnixMs(2 * pairing::REQUEST_TTL_MS);
        let Ok(leave) = make_room(&waiting, device, source, now) else { return };
        let lapsed = waiting.iter().filter(|waiting: &&pairing::Waiting| waiting.has_lapsed(now)).count();
        assert!(leave.len() <= lapsed + 1, "at most one that has not lapsed gives way");
        assert!(leave.windows(2).all(|pair| pair[0] < pair[1]) && leave.iter().all(|at| *at < waiting.len()));
        for at in leave.iter().rev() {
            waiting.remove(*at);
        }
        waiting.push(pairing::Waiting { device, source, seen_at });
        let of_device = waiting.iter().filter(|waiting| waiting.device == device && !waiting.has_lapsed(now)).count();
        assert!(of_device <= pairing::MAX_REQUESTS_PER_DEVICE + 1, "{number}");
    }
}
