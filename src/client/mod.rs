//! The other end of the wire: what the CLI, tests and the load test use to talk to a gateway.
//!
//! It is a public API: `examples/operator.rs` and `examples/node.rs` are whole programs that use it.
//!
//! It owns the way from "which gateway, with which credentials" to an answered call. It knows nothing of
//! configuration files or terminals.
//!
//! * [`credentials`] decides where to connect and with what, and can say why;
//! * [`url_policy`] decides which URLs credentials may be sent to;
//! * [`tls`] decides which certificates will do, by pins, by the trust of the system, and by memory;
//! * [`tunnel`] keeps an SSH tunnel up to a gateway that listens on its own loopback;
//! * [`identity`] keeps the key of this device, and its tokens; [`run_token`] finds the one that a gateway on this host
//!   made for itself;
//! * [`connect()`] goes the way in, [`Connection`] calls methods, [`Events`] gives what the gateway tells by itself;
//! * [`Link`] is a connection that comes back;
//! * [`node`] answers commands, for clients with the role `node`;
//! * [`error`] says what went wrong, and what to do about it.

pub mod backoff;
mod connect;
mod connection;
pub mod credentials;
pub mod error;
mod frames;
pub mod identity;
mod link;
pub mod node;
mod options;
pub mod run_token;
pub mod setup_code;
mod stream;
pub mod tls;
pub mod tunnel;
mod upgrade;
pub mod url_policy;

pub use self::connect::{Hello, PROTOCOL, connect, knock};
pub use self::connection::{Connection, Event, Events};
pub use self::credentials::Purpose;
pub use self::error::{CallError, ConnectError};
pub use self::identity::Identity;
pub use self::link::{Link, Update};
pub use self::options::{Auth, ConnectOptions, EdgeHeader, Program};
pub use self::url_policy::{GatewayUrl, UrlError};

#[cfg(test)]
mod tests;
