//! SSH tunnels to gateways that listen on the loopback of their own host (contract 4.11).
//!
//! * [`plan`] says which tunnel: from the configuration to the arguments of OpenSSH's client. Pure.
//! * [`ssh`] runs that client as a child that cannot outlive us, and says why it ended.
//! * [`known_hosts`] says how a host's key is forgotten, when it was renewed. Pure.
//! * [`holder`] names the program that has a port.
//! * [`supervise`] keeps a tunnel up for as long as it runs, and leaves its state where `status` finds it.
//!
//! Keys, agents, jump hosts and known hosts are OpenSSH's: nothing of them is read here.

pub mod diagnosis;
pub mod holder;
pub mod known_hosts;
pub mod plan;
pub mod ssh;
pub mod supervise;

pub use self::diagnosis::SshFailure;
pub use self::plan::{PlanError, SshTarget, TunnelPlan};
pub use self::ssh::{Ssh, TunnelError};
