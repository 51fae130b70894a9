//! The wire over real sockets: a gateway as a child process, and clients that behave, misbehave, or are gone.
//!
//! One file a topic, in the order of a connection's life. What a decision is belongs to the unit tests beside the
//! rule; here is what a peer sees of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod budgets;
mod compatibility;
mod devices;
mod doctor;
mod handshake;
mod log;
mod nodes;
mod reload;
mod requests;
mod roles;
mod slow;
mod startup;
mod stop;
mod tailscale;
mod tls;
mod upgrade;
