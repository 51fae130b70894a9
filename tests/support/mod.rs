//! What the tests over real sockets share: a gateway as a child process, a client that can also misbehave, and a
//! device that signs.
//!
//! Nothing here knows a single test. The client is built on the gateway's own frame codec, in the client's role;
//! the signed payload of a device is spelled out here once more, so that a change of it is seen.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test program uses a part of it")]

pub mod account;
pub mod client;
pub mod device;
pub mod gateway;
pub mod tls;

use std::time::Duration;

/// The token of the gateways under test.
pub const TOKEN: &str = "t0k";

/// How long to wait for what must come. Generous: the machine may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);
