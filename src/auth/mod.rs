//! (being written)
#[allow(missing_docs)]
pub mod device;
use crate::rpc::scope::{Role, ScopeSet};
/// What a connection may do.
#[derive(Debug)]
pub struct Grant {
    role: Role,
    scopes: ScopeSet,
    device_id: Option<Box<str>>,
    device_token: bool,
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
        Self { role, scopes, device_id: device_id.map(Into::into), device_token: false }
    }
    /// Let in by its device token.
    pub const fn by_device_token(&self) -> bool {
        self.device_token
    }
    /// For tests.
    #[must_use]
    pub const fn with_device_token(mut self) -> Self {
        self.device_token = true;
        self
    }
}
