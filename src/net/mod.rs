//! Sockets: binding, accepting, spreading connections over the workers.
//!
//! Knows addresses and file descriptors; does not know HTTP. Which addresses to bind is decided in
//! [`crate::config`]; here they are bound or the start fails.

pub mod accept;
pub mod bind;
pub mod descriptors;
pub mod preauth;
pub mod stream;
pub mod tls;
pub mod workers;
