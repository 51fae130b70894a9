//! The other end of the wire: what the CLI, tests and the load test use to talk to a gateway.
//!
//! It owns the way from "which gateway, with which credentials" to an answered call. It knows nothing of
//! configuration files or terminals.
//!
//! * [`credentials`] decides where to connect and with what, and can say why;
//! * [`url_policy`] decides which URLs credentials may be sent to.

pub mod credentials;
pub mod url_policy;

pub use self::credentials::Purpose;
pub use self::url_policy::{GatewayUrl, UrlError};
