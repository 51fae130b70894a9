//! clawgate: the Gateway of an OpenClaw installation.
//!
//! Operators (the CLI, the Control UI, native apps) and nodes (devices that offer commands) connect over
//! one WebSocket port and speak JSON frames: `req`, `res`, `event`. The gateway decides who may come in,
//! carries calls between them, and owns pairing and state.
//!
//! # Where to start reading
//!
//! * the life of a request: [`ws::codec`] → [`rpc::envelope`] → [`conn`] → [`rpc::dispatch`] → a domain
//!   ([`nodes`], [`devices`], [`system`]) → [`hub::outbox`] → the socket;
//! * who gets in: [`auth`];
//! * how it starts and stops: [`server`].
//!
//! # Layers
//!
//! Imports point down or stay in their folder; `tests/tidy.rs` checks it.
//!
//! ```text
//! 5 composition   main  cli  server  methods
//! 4 domains       devices nodes system sessions approvals agent channels
//! 3 drivers       http  conn::driver  hub::registry  rpc::dispatch
//! 2 adapters      private_file  net  tailscale  store  client  outgoing  config::load  host_stats  node_host
//! 1 decisions     auth  conn::machine  hub::outbox  config::resolve  ws::codec
//! 0 words         address  id  limits  secret  clock  text  wake  rpc::{envelope,error,scope}  ws::{message,close}
//! ```
//!
//! `docs/architecture.md` has the reasons.

pub mod address;
pub mod agent;
pub mod api;
pub mod approvals;
pub mod auth;
pub mod channels;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod conn;
pub mod devices;
pub mod disk;
#[cfg(feature = "internals")]
pub mod fuzz;
pub mod host_stats;
pub mod http;
pub mod hub;
pub mod id;
pub mod limits;
pub mod methods;
pub mod net;
pub mod node_host;
pub mod nodes;
pub mod outgoing;
mod private_file;
mod qr;
pub mod rpc;
pub mod secret;
pub mod server;
pub mod sessions;
pub mod shutdown;
pub mod sparing;
pub mod spread;
pub mod store;
pub mod system;
pub mod tailscale;
pub mod task;
pub mod text;
pub mod wake;
pub mod ws;
