//! All connections: who is there, what waits for each, events to many.
//!
//! An event is encoded once; every recipient's [`outbox::Outbox`] holds the same bytes. The hub knows
//! grants and bytes. It does not know sockets, nor what the messages mean. Start at [`registry::Hub`].

pub mod outbox;
pub mod presence;
pub mod registry;

pub use registry::{Client, Connection, Hub};
