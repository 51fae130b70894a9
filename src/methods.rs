//! The one list of every RPC method: each domain's table, mounted over its handle.

use crate::devices::{self, Devices};
use crate::nodes::{self, Nodes};
use crate::rpc::dispatch::Router;
use crate::system::{self, System};

/// The handles of all domains.
#[derive(Clone, Debug)]
pub struct Domains {
    /// Health, status, presence, the log.
    pub system: System,
    /// Pairing and tokens.
    pub devices: Devices,
    /// Nodes and their commands.
    pub nodes: Nodes,
}

/// The table of this gateway.
pub fn router(domains: &Domains) -> Router {
    let mut router = Router::default();
    router.mount(&domains.system, system::methods::METHODS);
    router.mount(&domains.devices, devices::methods::METHODS);
    router.mount(&domains.nodes, nodes::methods::METHODS);
    router
}
