//! (being written)
use crate::rpc::scope::{Role, ScopeSet};
/// What a connection may do.
#[derive(Debug)]
pub struct Grant {
    role: Role,
    scopes: ScopeSet,
    device_id: Option<Box<str>>,
}
impl Grant {
    /// Its role.
    pub const fn role(&self) -> Role {
        self.role
    }
    /// Its scopes.
    pub const fn scopes(&self) -> ScopeSet {
        self.scopes
    }
    /// Its device.
    pub fn device_id(&self) -> Option<&str> {
        self.device_id.as_deref()
    }
    /// For tests.
    pub fn for_test(role: Role, scopes: ScopeSet, device_id: Option<&str>) -> Self {
        Self { role, scopes, device_id: device_id.map(Into::into) }
    }
}
