//! The one list of every RPC method: each domain's table, mounted over its handle.

use crate::agent::{self, Agent};
use crate::approvals::{self, Approvals};
use crate::channels::{self, Channels};
use crate::devices::{self, Devices};
use crate::nodes::{self, Nodes};
use crate::rpc::dispatch::Router;
use crate::sessions::{self, Sessions};
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
    /// Sessions and transcripts.
    pub sessions: Sessions,
    /// A person's word for one command.
    pub approvals: Approvals,
    /// Runs, models, tools.
    pub agent: Agent,
    /// Where people write from.
    pub channels: Channels,
}

/// The table of this gateway.
pub fn router(domains: &Domains) -> Router {
    let mut router = Router::default();
    router.mount(&domains.system, system::methods::METHODS);
    router.mount(&domains.devices, devices::methods::METHODS);
    router.mount(&domains.nodes, nodes::methods::METHODS);
    router.mount(&domains.sessions, sessions::methods::METHODS);
    router.mount(&domains.approvals, approvals::methods::METHODS);
    router.mount(&domains.agent, agent::methods::METHODS);
    router.mount(&domains.channels, channels::methods::METHODS);
    router
}
