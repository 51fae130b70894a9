//! (being written)
#![allow(missing_docs)]
use crate::{
    clock::UnixMs,
    devices::Devices,
    hub::{Connection, Hub},
    rpc::error::RpcError,
    store::{Schema, Store, StoreError},
};
use std::collections::BTreeMap;
use std::sync::Arc;
pub mod policy;
pub const SCHEMA: Schema = Schema { domain: "nodes", steps: &[] };
#[derive(Clone, Debug)]
pub struct Nodes;
pub struct NodePolicy {
    pub allow_commands: Vec<String>,
    pub deny_commands: Vec<String>,
    pub plugin_tools: bool,
    pub allow_skills: bool,
}
pub struct Declared {
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    pub permissions: BTreeMap<String, bool>,
    pub path_env: Option<String>,
}
impl Nodes {
    pub fn open(_: Store, _: Hub, _: Devices, _: NodePolicy, _: UnixMs) -> Result<Self, StoreError> {
        Ok(Self)
    }
    pub async fn connected(&self, _: &Arc<Connection>, _: Declared, _: UnixMs) -> Result<(), RpcError> {
        Ok(())
    }
    pub fn disconnected(&self, _: &Connection) {}
    pub async fn run(self) {}
}
pub mod methods {
    use super::Nodes;
    use crate::rpc::dispatch::Method;
    pub const METHODS: &[Method<Nodes>] = &[];
}
