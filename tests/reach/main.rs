//! How the command line reaches a gateway from elsewhere: which one and with what, over TLS, through a tunnel. The
//! built program, real files, real sockets.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

#[path = "../support/mod.rs"]
mod support;

mod explain;
mod front;
mod library;
mod node;
mod service;
mod tls;
mod tunnel;
