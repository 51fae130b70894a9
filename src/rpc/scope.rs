//! Roles and scopes: the closed list of the wire, and which scope covers which (contract 2.10).

use std::fmt;

use serde::{Serialize, Serializer};

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A control client: CLI, Control UI, automation.
    Operator,
    /// A peripheral that offers commands.
    Node,
}

impl Role {
    /// The role of that name; exact, as on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "operator" => Some(Self::Operator),
            "node" => Some(Self::Node),
            _ => None,
        }
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Node => "node",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One operator scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scope {
    /// Everything an operator can do.
    Admin,
    /// Decide on exec and plugin approvals.
    Approvals,
    /// Manage device and node pairing.
    Pairing,
    /// Answer questions that agents ask.
    Questions,
    /// See state, sessions, events.
    Read,
    /// Hold voice conversations.
    Talk,
    /// Read the credentials of voice providers.
    TalkSecrets,
    /// Act: send, invoke, abort. Includes `read` and `talk`.
    Write,
}

impl Scope {
    /// The closed list, in the order of their names.
    pub const ALL: [Self; 8] = [
        Self::Admin,
        Self::Approvals,
        Self::Pairing,
        Self::Questions,
        Self::Read,
        Self::Talk,
        Self::TalkSecrets,
        Self::Write,
    ];

    /// The scope of that name, surrounding white space apart; `None` for a name the wire does not have.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "operator.admin",
            Self::Approvals => "operator.approvals",
            Self::Pairing => "operator.pairing",
            Self::Questions => "operator.questions",
            Self::Read => "operator.read",
            Self::Talk => "operator.talk",
            Self::TalkSecrets => "operator.talk.secrets",
            Self::Write => "operator.write",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of scopes, as granted (not closed under inclusion: see [`ScopeSet::covers`]).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// No scope.
    pub const EMPTY: Self = Self(0);

    /// Whether a holder of this set may do what needs `scope`: `admin` includes all, `write` includes
    /// `read` and `talk`; nothing else implies anything.
    pub fn covers(self, scope: Scope) -> bool {
        self.contains(Scope::Admin)
            || self.contains(scope)
            || (matches!(scope, Scope::Read | Scope::Talk) && self.contains(Scope::Write))
    }

    /// Whether this set covers every scope of `other`.
    pub fn covers_all(self, other: Self) -> bool {
        other.iter().all(|scope| self.covers(scope))
    }

    /// Whether `scope` itself is in the set.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// The set with `scope` added.
    #[must_use]
    pub const fn with(self, scope: Scope) -> Self {
        Self(self.0 | 1 << scope as u8)
    }

    /// Scopes in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of `self` that `cap` covers: a cap can only narrow.
    #[must_use]
    pub fn narrowed_to(self, cap: Self) -> Self {
        self.iter().filter(|scope| cap.covers(*scope)).collect()
    }

    /// What two sets have in common: those of either that the other covers.
    #[must_use]
    pub fn meet(self, other: Self) -> Self {
        self.narrowed_to(other).union(other.narrowed_to(self))
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes in the order of their names.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    /// Reads names; those the wire does not know are left out and grant nothing.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names.into_iter().filter_map(Scope::parse).collect()
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        scopes.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Scope::as_str)).finish()
    }
}

impl Serialize for ScopeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Scope::as_str))
    }
}

/// Whether a role that holds the scopes named `allowed` covers all that are named in `requested`. Blank
/// names don't count; a name outside the closed list is covered only by itself, and by `operator.admin` if it
/// is an operator's.
pub fn role_covers<'a>(
    role: Role,
    requested: impl IntoIterator<Item = &'a str>,
    allowed: impl IntoIterator<Item = &'a str> + Clone,
) -> bool {
    let held = ScopeSet::parse(allowed.clone());
    let named = |name: &str| allowed.clone().into_iter().any(|other| other.trim() == name);
    let covered = |name: &str| match role {
        Role::Operator => match Scope::parse(name) {
            Some(scope) => held.covers(scope),
            None => name.starts_with("operator.") && (held.contains(Scope::Admin) || named(name)),
        },
        Role::Node => name.starts_with("node.") && named(name),
    };
    requested.into_iter().map(str::trim).filter(|name| !name.is_empty()).all(covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_includes_all_and_write_includes_read() {
        let admin = ScopeSet::EMPTY.with(Scope::Admin);
        assert!(Scope::ALL.into_iter().all(|scope| admin.covers(scope)));
        let write = ScopeSet::EMPTY.with(Scope::Write);
        let covered: Vec<_> = Scope::ALL.into_iter().filter(|s| write.covers(*s)).collect();
        assert_eq!(covered, [Scope::Read, Scope::Talk, Scope::Write]);
        assert!(!ScopeSet::EMPTY.with(Scope::Read).covers(Scope::Write));
    }

    #[test]
    fn an_unknown_name_grants_nothing() {
        assert!(ScopeSet::parse(["operator.everything", "admin", ""]).is_empty());
    }

    #[test]
    fn an_empty_set_covers_only_itself() {
        assert!(ScopeSet::EMPTY.covers_all(ScopeSet::EMPTY));
        assert!(!ScopeSet::EMPTY.covers_all(ScopeSet::EMPTY.with(Scope::Read)));
    }
}
