//! The rules of pairing: who is covered, who must ask, who may decide, what gives way in a flood. Pure.
//!
//! A request has no number of its own: its id is a hash of what is asked for. So it is the same however
//! often a device retries and across restarts (S-58), and approving an id can approve nothing but what that
//! id showed, whatever the device does meanwhile (S-57).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use ring::digest::{Context, SHA256};

use super::record::{Approval, ApprovedVia, Claims, PairedDevice, PendingRequest, Token};
use crate::auth::device::{DeviceId, DeviceKey};
use crate::auth::pins;
use crate::clock::UnixMs;
use crate::id::{self, ConnId};
use crate::rpc::scope::{Role, Scope, ScopeSet};

/// How long a request waits after its device last asked. The incumbent counts from the first time.
pub const REQUEST_TTL_MS: u64 = 5 * 60 * 1000;
/// Requests that wait at a time.
pub const MAX_REQUESTS: usize = 1024;
/// Requests from one address (one /64 of IPv6) that wait at a time: a site that is being set up fits.
pub const MAX_REQUESTS_PER_SOURCE: usize = 256;
/// Requests of one device that wait at a time: it may ask for different things.
pub const MAX_REQUESTS_PER_DEVICE: usize = 8;
/// Devices that can be paired.
pub const MAX_PAIRED: usize = 250_000;

/// What a client wants to be now.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its role.
    pub role: Role,
    /// Its scopes; nodes have none.
    pub scopes: ScopeSet,
    /// The platform it claims; may be empty.
    pub platform: &'a str,
    /// The device family it claims.
    pub device_family: Option<&'a str>,
}

/// Whether what is approved covers what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Covered,
    /// It does not.
    Missing(Reason),
}

/// Why a device must be approved, in the order in which it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It never was.
    NotPaired,
    /// It claims another platform or family than was approved.
    MetadataUpgrade,
    /// It never had this role, or the role was revoked.
    RoleUpgrade,
    /// It wants scopes that were not approved.
    ScopeUpgrade,
}

impl Reason {
    /// The word on the wire (`details.reason`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotPaired => "not-paired",
            Self::MetadataUpgrade => "metadata-upgrade",
            Self::RoleUpgrade => "role-upgrade",
            Self::ScopeUpgrade => "scope-upgrade",
        }
    }
}

/// Compares what is wanted with what was approved.
pub fn standing(paired: Option<&PairedDevice>, wanted: &Wanted<'_>) -> Standing {
    let Some(device) = paired else { return Standing::Missing(Reason::NotPaired) };
    let Claims { platform, device_family, .. } = &device.claims;
    let family = device_family.as_deref().unwrap_or("");
    if contradicts(platform, wanted.platform, wanted.role, pins::same_platform)
        || contradicts(family, wanted.device_family.unwrap_or(""), wanted.role, pins::same_device_family)
    {
        return Standing::Missing(Reason::MetadataUpgrade);
    }
    match device.approval(wanted.role) {
        Some(approval) if !approval.is_revoked() => {
            if approval.scopes.covers_all(wanted.scopes) {
                Standing::Covered
            } else {
                Standing::Missing(Reason::ScopeUpgrade)
            }
        }
        _ => Standing::Missing(Reason::RoleUpgrade),
    }
}

/// Whether a claim is not what was pinned. Silence is another claim; and a node adds nothing to what was left open, for its
/// platform decides what it may offer (S-71). The same rule as at the door (`auth::authorize`), so that what is approved
/// here lets in there.
fn contradicts(pinned: &str, claimed: &str, role: Role, same: fn(&str, &str) -> bool) -> bool {
    match pinned.trim() {
        "" => role == Role::Node && !claimed.trim().is_empty(),
        pinned => !same(claimed, pinned),
    }
}

/// Whether nobody need be asked, given that the client's way in allows it: a device not seen before, or an
/// operator that wants more on this host. Never what an owner took back or pinned, never a new role as node.
pub fn may_be_silent(paired: Option<&PairedDevice>, role: Role, reason: Reason) -> bool {
    match reason {
        Reason::NotPaired => true,
        Reason::MetadataUpgrade => false,
        Reason::RoleUpgrade => role == Role::Operator && paired.is_some_and(|device| device.approval(role).is_none()),
        Reason::ScopeUpgrade => role == Role::Operator,
    }
}

/// The id of a request: a hash of key, role, scopes and pins, in the form of a UUID.
pub fn request_id(key: &DeviceKey, role: Role, scopes: ScopeSet, claims: &Claims) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(b"clawgate device request\0");
    hash.update(key.as_bytes());
    let family = claims.device_family.as_deref().unwrap_or("");
    let mut add = |field: &str| {
        hash.update(&(field.len() as u64).to_be_bytes());
        hash.update(field.as_bytes());
    };
    for field in [role.as_str(), claims.platform.trim(), family.trim()] {
        add(field);
    }
    scopes.iter().map(Scope::as_str).for_each(add);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finish().as_ref()[..16]);
    id::uuid_from(bytes)
}

/// The device after `request` was approved.
pub fn approve(paired: Option<PairedDevice>, request: &PendingRequest, via: ApprovedVia, now: UnixMs) -> PairedDevice {
    let mut device = paired.unwrap_or_else(|| PairedDevice {
        id: request.id,
        key: request.key,
        claims: Claims::default(),
        label: None,
        approved_via: via,
        created_at: now,
        approved_at: now,
        approvals: Vec::with_capacity(1),
    });
    device.claims = request.claims.clone();
    device.approved_via = via;
    device.approved_at = now;
    let mut approval = Approval {
        role: request.role,
        scopes: request.scopes,
        token_scopes: request.scopes,
        token: Token::Unissued,
        retired: None,
        created_at: now,
        rotated_at: None,
    };
    match device.approval_mut(request.role) {
        Some(before) if before.is_revoked() => {
            // What was taken back does not come back with the role.
            approval.retired = before.retired;
            *before = approval;
        }
        Some(before) => {
            before.scopes = before.scopes.union(request.scopes);
            before.token_scopes = before.token_scopes.union(request.scopes);
        }
        None => device.approvals.push(approval),
    }
    device
}

/// Whether the pins of a device changed, so that sessions under the old ones must end.
pub fn pins_changed(before: &PairedDevice, after: &PairedDevice) -> bool {
    let pins = |device: &PairedDevice| (device.claims.platform.clone(), device.claims.device_family.clone());
    pins(before) != pins(after)
}

/// Who manages devices: what a session may do to which of them.
#[derive(Clone, Copy, Debug)]
pub struct Manager {
    /// What the session may do.
    pub scopes: ScopeSet,
    /// The device of a session that was let in by its device token. Without `operator.admin` it manages
    /// itself alone.
    pub device: Option<DeviceId>,
    /// Its connection, which outlives what it does to its own device by the answer.
    pub connection: Option<ConnId>,
}

/// Why a manager may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Its own device has been removed or revoked.
    Gone,
    /// It is let in by the token of another device.
    OtherDevice,
    /// Roles other than operator are for administrators.
    NeedsAdmin,
    /// It lacks a scope that it would give, keep alive or take away.
    MissingScope(Scope),
    /// The device has no such role, or it was revoked.
    NoSuchRole,
    /// The scope was never approved for the device.
    NotApproved(Scope),
}

impl Denial {
    /// The word on the wire (`details.reason`) and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "caller-revoked",
            Self::OtherDevice => "device-ownership-mismatch",
            Self::NeedsAdmin => "role-management-requires-admin",
            Self::MissingScope(_) => "caller-missing-scope",
            Self::NoSuchRole => "unknown-device-or-role",
            Self::NotApproved(_) => "scope-outside-approved-baseline",
        }
    }
}

impl Manager {
    /// Whether it holds `operator.admin`.
    pub fn is_admin(&self) -> bool {
        self.scopes.contains(Scope::Admin)
    }

    /// Whether it may see and touch `device` at all.
    pub fn reaches(&self, device: DeviceId) -> bool {
        self.is_admin() || self.device.is_none_or(|own| own == device)
    }

    /// Whether it may change anything of `role` at `device`.
    pub fn may_manage(&self, device: DeviceId, role: Role) -> Result<(), Denial> {
        if !self.reaches(device) {
            return Err(Denial::OtherDevice);
        }
        if role != Role::Operator && !self.is_admin() {
            return Err(Denial::NeedsAdmin);
        }
        Ok(())
    }

    /// Whether it holds all of `scopes`: nobody gives, keeps alive or takes what they lack (S-52, S-53).
    pub fn holds(&self, scopes: ScopeSet) -> Result<(), Denial> {
        match scopes.iter().find(|scope| !self.scopes.covers(*scope)) {
            Some(scope) => Err(Denial::MissingScope(scope)),
            None => Ok(()),
        }
    }

    /// Whether it may approve `request`, given what the device would then be.
    pub fn may_approve(&self, request: &PendingRequest, after: &PairedDevice) -> Result<(), Denial> {
        self.may_manage(request.id, request.role)?;
        // All that the role ends up with, and not only what is new: a request for little revives the rest.
        self.holds(after.approval(request.role).map_or(request.scopes, |approval| approval.scopes))
    }

    /// Whether it may remove `device`. Under its own token a device removes itself, unless it is more than an
    /// operator.
    pub fn may_remove(&self, device: &PairedDevice) -> Result<(), Denial> {
        if self.device.is_none() || self.is_admin() {
            return Ok(());
        }
        let roles = device.approvals.iter().map(|approval| approval.role);
        roles.chain([Role::Operator]).try_for_each(|role| self.may_manage(device.id, role))
    }

    /// The approval whose token it may replace, and the scopes of the new one: `wanted`, or those of the old.
    pub fn may_rotate(&self, device: &PairedDevice, role: Role, wanted: Option<ScopeSet>) -> Result<ScopeSet, Denial> {
        self.may_manage(device.id, role)?;
        let approval = device.approval(role).filter(|approval| !approval.is_revoked()).ok_or(Denial::NoSuchRole)?;
        let scopes = wanted.unwrap_or(approval.token_scopes);
        if let Some(scope) = scopes.iter().find(|scope| !approval.scopes.covers(*scope)) {
            return Err(Denial::NotApproved(scope));
        }
        self.holds(scopes)?;
        Ok(scopes)
    }

    /// Whether it may take `role` from `device`.
    pub fn may_revoke(&self, device: &PairedDevice, role: Role) -> Result<(), Denial> {
        self.may_manage(device.id, role)?;
        let approval = device.approval(role).ok_or(Denial::NoSuchRole)?;
        self.holds(approval.token_scopes)
    }
}

/// When tokens end (S-66). Without either, when they are revoked or replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenLife {
    /// Milliseconds from its making on.
    pub max_age_ms: Option<u64>,
    /// Milliseconds from its last use on.
    pub idle_ms: Option<u64>,
}

impl TokenLife {
    /// When a token ends that was made at `issued_at` and last used at `used_at`.
    pub fn ends_at(self, issued_at: UnixMs, used_at: Option<UnixMs>) -> Option<UnixMs> {
        let by_age = self.max_age_ms.map(|ms| issued_at.plus(ms));
        // A token that replaced another has the use of that one in its record.
        let by_idling = self.idle_ms.map(|ms| used_at.unwrap_or_default().max(issued_at).plus(ms));
        by_age.into_iter().chain(by_idling).min()
    }
}

/// Counts devices that were paired without asking. Many of them in a short time are hardly one person's: rather does
/// something on this host pass other people's connections on and hide that it does (S-20).
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentPairings {
    since: UnixMs,
    count: u32,
}

impl SilentPairings {
    /// How many in [`SilentPairings::WINDOW_MS`] are worth a warning.
    pub const NOTABLE: u32 = 20;
    /// The time that is looked at as one.
    pub const WINDOW_MS: u64 = 10 * 60 * 1000;

    /// One more. Says whether it is the one to warn about: once in a window, not for each.
    pub fn note(&mut self, now: UnixMs) -> bool {
        if now.0.abs_diff(self.since.0) > Self::WINDOW_MS {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count == Self::NOTABLE
    }
}

/// A request that waits, as the bounds see it.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Of which device.
    pub device: DeviceId,
    /// From where.
    pub source: Option<IpAddr>,
    /// When the device last asked.
    pub seen_at: UnixMs,
}

impl Waiting {
    /// Whether it has waited too long.
    pub fn has_lapsed(&self, now: UnixMs) -> bool {
        now.since(self.seen_at) > REQUEST_TTL_MS
    }
}

/// Every place is taken, each by another source: the newcomer has to come back later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Picks which of `waiting` give way to a request of `device` from `source`: what has lapsed, and at most one
/// more. A device displaces itself, a source displaces itself, and when all places are taken the source that
/// holds most of them gives one up; so a flood from one place pushes out nobody else.
///
/// Gives positions in `waiting`, in order.
pub fn make_room(
    waiting: &[Waiting],
    device: DeviceId,
    source: Option<IpAddr>,
    now: UnixMs,
) -> Result<Vec<usize>, Full> {
    let (mut leave, live): (Vec<_>, Vec<_>) = (0..waiting.len()).partition(|at| waiting[*at].has_lapsed(now));
    let source = neighbourhood(source);
    let stalest = |of: &dyn Fn(&Waiting) -> bool| {
        live.iter().copied().filter(|at| of(&waiting[*at])).min_by_key(|at| waiting[*at].seen_at)
    };
    let same_device = |waiting: &Waiting| waiting.device == device;
    let mut held: HashMap<Option<IpAddr>, usize> = HashMap::new();
    for at in &live {
        *held.entry(neighbourhood(waiting[*at].source)).or_default() += 1;
    }
    let of_device = live.iter().filter(|at| same_device(&waiting[**at])).count();
    let gives_way = if of_device >= MAX_REQUESTS_PER_DEVICE {
        stalest(&same_device)
    } else if held.get(&source).is_some_and(|count| *count >= MAX_REQUESTS_PER_SOURCE) {
        stalest(&|waiting| neighbourhood(waiting.source) == source)
    } else if live.len() >= MAX_REQUESTS {
        let (greediest, count) = held.into_iter().max_by_key(|(_, count)| *count).ok_or(Full)?;
        if count == 1 {
            return Err(Full);
        }
        stalest(&|waiting| neighbourhood(waiting.source) == greediest)
    } else {
        None
    };
    leave.extend(gives_way);
    leave.sort_unstable();
    Ok(leave)
}

/// The unit in which addresses are counted: an IPv4 address, or the /64 that one site of IPv6 has.
fn neighbourhood(address: Option<IpAddr>) -> Option<IpAddr> {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_000_000);
    const LINUX: Wanted<'_> =
        Wanted { role: Role::Operator, scopes: ScopeSet::EMPTY, platform: "linux", device_family: Some("Linux") };

    fn key(seed: u8) -> DeviceKey {
        DeviceKey::from_bytes([seed; 32]).unwrap()
    }

    fn scopes(names: &[&str]) -> ScopeSet {
        ScopeSet::parse(names.iter().copied())
    }

    fn claims(platform: &str, family: Option<&str>) -> Claims {
        Claims {
            platform: platform.into(),
            device_family: family.map(Into::into),
            client_id: "cli".into(),
            client_mode: "cli".into(),
            display_name: None,
        }
    }

    fn request(role: Role, names: &[&str]) -> PendingRequest {
        let (key, claims, scopes) = (key(7), claims("linux", Some("Linux")), scopes(names));
        let request_id = request_id(&key, role, scopes, &claims).into();
        let id = key.device_id();
        PendingRequest { request_id, id, key, role, scopes, claims, remote_ip: None, is_repair: false, created_at: NOW }
    }

    fn paired(role: Role, names: &[&str]) -> PairedDevice {
        approve(None, &request(role, names), ApprovedVia::Owner, NOW)
    }

    fn revoked(mut device: PairedDevice, role: Role) -> PairedDevice {
        let approval = device.approval_mut(role).unwrap();
        (approval.token, approval.scopes) = (Token::Revoked { at: NOW }, ScopeSet::EMPTY);
        device
    }

    fn manager(names: &[&str], device: Option<DeviceId>) -> Manager {
        Manager { scopes: scopes(names), device, connection: None }
    }

    #[test]
    fn what_is_missing_is_found_in_the_order_of_the_wire() {
        let device = paired(Role::Operator, &["operator.read"]);
        let other = Wanted { role: Role::Node, scopes: scopes(&["operator.admin"]), platform: "ios", ..LINUX };
        let missing = |device: Option<&PairedDevice>, wanted| standing(device, &wanted);
        assert_eq!(missing(None, other), Standing::Missing(Reason::NotPaired));
        assert_eq!(missing(Some(&device), other), Standing::Missing(Reason::MetadataUpgrade));
        let other = Wanted { platform: "linux", ..other };
        assert_eq!(missing(Some(&device), other), Standing::Missing(Reason::RoleUpgrade));
        let other = Wanted { role: Role::Operator, ..other };
        assert_eq!(missing(Some(&device), other), Standing::Missing(Reason::ScopeUpgrade));
        assert_eq!(missing(Some(&device), Wanted { scopes: scopes(&["operator.read"]), ..LINUX }), Standing::Covered);
    }

    #[test]
    fn an_empty_approval_covers_nothing_but_an_empty_wish() {
        let device = paired(Role::Operator, &[]);
        assert_eq!(standing(Some(&device), &LINUX), Standing::Covered);
        let wanted = Wanted { scopes: scopes(&["operator.read"]), ..LINUX };
        assert_eq!(standing(Some(&device), &wanted), Standing::Missing(Reason::ScopeUpgrade));
    }

    #[test]
    fn an_update_of_the_system_is_no_new_device() {
        let same = [
            ("macos 15.1", "macOS 26.0"),
            ("darwin", "macos 26.0"),
            ("win32", "windows"),
            ("iPadOS 18", "ios 26.1"),
            ("linux", "linux 6.18.44"),
            ("", "linux"),
            ("", ""),
        ];
        for (pinned, claimed) in same {
            let mut device = paired(Role::Operator, &[]);
            device.claims = claims(pinned, None);
            let wanted = Wanted { platform: claimed, ..LINUX };
            assert_eq!(standing(Some(&device), &wanted), Standing::Covered, "{pinned} {claimed}");
        }
        for (pinned, claimed) in [("linux", "ios"), ("ios", "macos"), ("linux", "linux-gnu"), ("1", "2"), ("linux", "")]
        {
            let mut device = paired(Role::Operator, &[]);
            device.claims = claims(pinned, None);
            let wanted = Wanted { platform: claimed, ..LINUX };
            let missing = Standing::Missing(Reason::MetadataUpgrade);
            assert_eq!(standing(Some(&device), &wanted), missing, "{pinned} {claimed}");
        }
    }

    /// What the door refuses must find its way to an approval here, and what is approved here must let in there.
    #[test]
    fn s_71_a_node_adds_nothing_to_what_was_left_open() {
        let mut device = paired(Role::Node, &[]);
        device.claims = claims("", None);
        let node = Wanted { role: Role::Node, ..LINUX };
        let missing = Standing::Missing(Reason::MetadataUpgrade);
        assert_eq!(standing(Some(&device), &Wanted { device_family: None, ..node }), missing);
        assert_eq!(standing(Some(&device), &Wanted { platform: "", ..node }), missing, "nor a family");
        let silent = Wanted { platform: "", device_family: None, ..node };
        assert_eq!(standing(Some(&device), &silent), Standing::Covered);
    }

    #[test]
    fn silence_never_gives_back_what_was_taken_nor_changes_a_pin() {
        let operator = paired(Role::Operator, &["operator.read"]);
        let node = paired(Role::Node, &[]);
        assert!(may_be_silent(None, Role::Node, Reason::NotPaired));
        assert!(may_be_silent(Some(&operator), Role::Operator, Reason::ScopeUpgrade));
        assert!(may_be_silent(Some(&node), Role::Operator, Reason::RoleUpgrade));
        assert!(!may_be_silent(Some(&operator), Role::Node, Reason::RoleUpgrade));
        assert!(!may_be_silent(Some(&operator), Role::Operator, Reason::MetadataUpgrade));
        let taken = revoked(operator, Role::Operator);
        assert!(!may_be_silent(Some(&taken), Role::Operator, Reason::RoleUpgrade));
    }

    #[test]
    fn a_request_is_named_by_what_it_asks_for() {
        let base = (key(1), Role::Operator, scopes(&["operator.read"]), claims("linux", Some("Linux")));
        let name = |(key, role, scopes, claims): &(_, _, _, _)| request_id(key, *role, *scopes, claims);
        let id = name(&base);
        assert_eq!(id, name(&base.clone()));
        assert_eq!(id.len(), 36);
        let other_name = Claims { display_name: Some("x".into()), ..base.3.clone() };
        assert_eq!(id, name(&(base.0, base.1, base.2, other_name)), "a name for people is no part of what is asked");
        let others = [
            (key(2), base.1, base.2, base.3.clone()),
            (base.0, Role::Node, base.2, base.3.clone()),
            (base.0, base.1, scopes(&["operator.write"]), base.3.clone()),
            (base.0, base.1, base.2, claims("linuxLinux", None)),
            (base.0, base.1, base.2, claims("linux", None)),
        ];
        for other in others {
            assert_ne!(id, name(&other), "{other:?}");
        }
    }

    #[test]
    fn approval_adds_and_never_revives() {
        let device = paired(Role::Operator, &["operator.admin"]);
        let more = request(Role::Node, &[]);
        let device = approve(Some(device), &more, ApprovedVia::Owner, NOW);
        assert_eq!(device.approvals.len(), 2);
        let again = request(Role::Operator, &["operator.read"]);
        let device = approve(Some(revoked(device, Role::Operator)), &again, ApprovedVia::Owner, NOW);
        assert_eq!(device.approval(Role::Operator).unwrap().scopes, scopes(&["operator.read"]));
        let device = approve(Some(device), &request(Role::Operator, &["operator.write"]), ApprovedVia::Owner, NOW);
        assert_eq!(device.approval(Role::Operator).unwrap().scopes, scopes(&["operator.read", "operator.write"]));
    }

    #[test]
    fn nobody_approves_more_than_they_hold() {
        let write = request(Role::Operator, &["operator.write"]);
        let after = approve(None, &write, ApprovedVia::Owner, NOW);
        let weak = manager(&["operator.pairing", "operator.read"], None);
        assert_eq!(weak.may_approve(&write, &after), Err(Denial::MissingScope(Scope::Write)));
        assert_eq!(manager(&["operator.pairing", "operator.write"], None).may_approve(&write, &after), Ok(()));
        let node = request(Role::Node, &[]);
        let after = approve(None, &node, ApprovedVia::Owner, NOW);
        assert_eq!(weak.may_approve(&node, &after), Err(Denial::NeedsAdmin));
        assert_eq!(manager(&["operator.admin"], None).may_approve(&node, &after), Ok(()));
    }

    #[test]
    fn a_request_for_little_is_weighed_by_all_that_it_revives() {
        let before = paired(Role::Operator, &["operator.admin"]);
        let little = request(Role::Operator, &[]);
        let after = approve(Some(before), &little, ApprovedVia::Owner, NOW);
        let weak = manager(&["operator.pairing"], None);
        assert_eq!(weak.may_approve(&little, &after), Err(Denial::MissingScope(Scope::Admin)));
    }

    #[test]
    fn under_its_own_token_a_device_manages_itself_alone() {
        let device = paired(Role::Operator, &["operator.pairing"]);
        let own = manager(&["operator.pairing"], Some(device.id));
        let other = manager(&["operator.pairing"], Some(key(9).device_id()));
        let admin = manager(&["operator.admin"], Some(key(9).device_id()));
        assert_eq!(own.may_remove(&device), Ok(()));
        assert_eq!(other.may_remove(&device), Err(Denial::OtherDevice));
        assert_eq!(other.may_rotate(&device, Role::Operator, None), Err(Denial::OtherDevice));
        assert_eq!(other.may_revoke(&device, Role::Operator), Err(Denial::OtherDevice));
        assert_eq!(admin.may_remove(&device), Ok(()));
        let node = paired(Role::Node, &[]);
        let own = manager(&["operator.pairing"], Some(node.id));
        assert_eq!(own.may_remove(&node), Err(Denial::NeedsAdmin));
        assert_eq!(own.may_rotate(&node, Role::Node, None), Err(Denial::NeedsAdmin));
    }

    #[test]
    fn rotation_stays_within_what_was_approved_and_what_the_caller_holds() {
        let device = paired(Role::Operator, &["operator.read", "operator.pairing"]);
        let admin = manager(&["operator.admin"], None);
        let weak = manager(&["operator.read"], None);
        let wanted = |names: &[&str]| Some(scopes(names));
        assert_eq!(admin.may_rotate(&device, Role::Operator, None), Ok(device.scopes()));
        assert_eq!(admin.may_rotate(&device, Role::Operator, wanted(&[])), Ok(ScopeSet::EMPTY));
        let admin_scope = Err(Denial::NotApproved(Scope::Admin));
        assert_eq!(admin.may_rotate(&device, Role::Operator, wanted(&["operator.admin"])), admin_scope);
        assert_eq!(admin.may_rotate(&device, Role::Node, None), Err(Denial::NoSuchRole));
        assert_eq!(weak.may_rotate(&device, Role::Operator, None), Err(Denial::MissingScope(Scope::Pairing)));
        assert_eq!(weak.may_rotate(&device, Role::Operator, wanted(&["operator.read"])).unwrap().iter().count(), 1);
        let taken = revoked(device, Role::Operator);
        assert_eq!(admin.may_rotate(&taken, Role::Operator, None), Err(Denial::NoSuchRole));
    }

    #[test]
    fn many_silent_pairings_are_noted_once_in_a_while() {
        let mut pairings = SilentPairings::default();
        let noted = |pairings: &mut SilentPairings, now: u64| (0..100).filter(|_| pairings.note(UnixMs(now))).count();
        assert_eq!((1..SilentPairings::NOTABLE).filter(|_| pairings.note(NOW)).count(), 0);
        assert!(pairings.note(NOW));
        assert_eq!(noted(&mut pairings, NOW.0 + SilentPairings::WINDOW_MS), 0, "once");
        assert_eq!(noted(&mut pairings, NOW.0 + SilentPairings::WINDOW_MS + 1), 1, "and once more later");
        let slowly = (0..100).filter(|n| pairings.note(UnixMs(NOW.0 + n * SilentPairings::WINDOW_MS * 2))).count();
        assert_eq!(slowly, 0);
    }

    fn from(source: &str, device: u32, seen_at: u64) -> Waiting {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&device.to_be_bytes());
        let device = DeviceKey::from_bytes(bytes).unwrap().device_id();
        Waiting { device, source: source.parse().ok(), seen_at: UnixMs(NOW.0 + seen_at) }
    }

    fn room_for(newcomer: Waiting, waiting: &[Waiting]) -> Result<Vec<usize>, Full> {
        make_room(waiting, newcomer.device, newcomer.source, UnixMs(NOW.0 + 1000))
    }

    #[test]
    fn a_flood_displaces_itself_and_nobody_else() {
        let mut waiting = vec![from("192.0.2.1", 0, 0)];
        waiting.extend((1..=MAX_REQUESTS_PER_SOURCE).map(|n| from("198.51.100.7", n as u32, 2000 - n as u64)));
        assert_eq!(room_for(from("198.51.100.7", 9999, 0), &waiting), Ok(vec![MAX_REQUESTS_PER_SOURCE]));
        assert_eq!(room_for(from("192.0.2.1", 9999, 0), &waiting), Ok(vec![]));
        assert_eq!(room_for(from("192.0.2.9", 9999, 0), &waiting), Ok(vec![]));
    }

    #[test]
    fn a_site_of_ipv6_counts_as_one_source() {
        let waiting: Vec<_> =
            (0..MAX_REQUESTS_PER_SOURCE).map(|n| from(&format!("2001:db8::{n:x}"), n as u32, n as u64)).collect();
        assert_eq!(room_for(from("2001:db8::ffff:1", 9999, 0), &waiting), Ok(vec![0]));
        assert_eq!(room_for(from("2001:db8:0:1::1", 9999, 0), &waiting), Ok(vec![]));
    }

    #[test]
    fn a_device_displaces_its_own_stalest_request() {
        let mut waiting: Vec<_> = (0..MAX_REQUESTS_PER_DEVICE).map(|n| from("192.0.2.1", 1, 10 + n as u64)).collect();
        waiting[3].seen_at = NOW;
        assert_eq!(room_for(from("192.0.2.1", 1, 0), &waiting), Ok(vec![3]));
        assert_eq!(room_for(from("192.0.2.1", 2, 0), &waiting), Ok(vec![]));
    }

    #[test]
    fn when_every_place_is_taken_the_greediest_source_gives_one_up() {
        let mut waiting: Vec<_> =
            (0..MAX_REQUESTS as u32).map(|n| from(&format!("10.0.{}.{}", n >> 8, n & 255), n, 5)).collect();
        assert_eq!(room_for(from("192.0.2.1", 5000, 0), &waiting), Err(Full));
        waiting[17].source = waiting[400].source;
        waiting[17].seen_at = UnixMs(NOW.0 + 6);
        assert_eq!(room_for(from("192.0.2.1", 5000, 0), &waiting), Ok(vec![400]));
    }

    #[test]
    fn what_has_lapsed_leaves_first() {
        let mut waiting = vec![from("192.0.2.1", 1, 0), from("192.0.2.1", 2, 1000)];
        waiting[0].seen_at = UnixMs(NOW.0 + 999 - REQUEST_TTL_MS);
        assert_eq!(room_for(from("192.0.2.1", 3, 0), &waiting), Ok(vec![0]));
    }

    #[test]
    fn s_66_a_token_ends_by_its_age_or_when_nobody_uses_it() {
        let (issued, used) = (UnixMs(1000), Some(UnixMs(5000)));
        let life = |max_age_ms, idle_ms| TokenLife { max_age_ms, idle_ms };
        assert_eq!(life(None, None).ends_at(issued, used), None);
        assert_eq!(life(Some(100), None).ends_at(issued, used), Some(UnixMs(1100)));
        assert_eq!(life(None, Some(100)).ends_at(issued, used), Some(UnixMs(5100)));
        assert_eq!(life(None, Some(100)).ends_at(issued, None), Some(UnixMs(1100)));
        assert_eq!(life(Some(9000), Some(100)).ends_at(issued, used), Some(UnixMs(5100)));
        assert_eq!(
            life(None, Some(100)).ends_at(UnixMs(7000), used),
            Some(UnixMs(7100)),
            "the use was of the one before"
        );
    }
}
