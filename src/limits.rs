//! Every number that bounds what a peer may cost, with its unit, default and reason.
//!
//! Figures marked *wire* are part of the protocol and clients rely on them.

use std::time::Duration;

/// Bytes a message may have before the peer is authenticated. *Wire*: close 1009 above it.
pub const PREAUTH_PAYLOAD_BYTES: usize = 64 * 1024;
/// Bytes a message may have after `hello-ok`; said in `policy.maxPayload`. *Wire*.
pub const MAX_PAYLOAD_BYTES: usize = 25 * 1024 * 1024;
/// Sockets that may be open without having authenticated, all together. Beyond it the oldest goes.
pub const PREAUTH_SOCKETS: usize = 16 * 1024;
/// The same from one peer that many share: a trusted proxy that has not said yet for whom it speaks, or loopback, where
/// tunnels end. Room for all clients of a gateway that come back at once.
pub const PREAUTH_SOCKETS_SHARED: usize = PREAUTH_SOCKETS / 2;
/// The same from one client: an IPv4 address, an IPv6 /64. An office behind one address fits.
pub const PREAUTH_SOCKETS_CLIENT: usize = 64;
/// Bytes of unfinished messages of all such sockets together, beyond 4 KiB each.
pub const PREAUTH_HELD_BYTES: usize = 64 * 1024 * 1024;
/// Time a peer has for its TLS handshake; part of [`HANDSHAKE_TIMEOUT`].
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Default bytes that may wait for one connection; said in `policy.maxBufferedBytes`.
pub const OUTBOX_BYTES: usize = 4 * 1024 * 1024;
/// Fragments one message may be cut into.
pub const MAX_FRAGMENTS: usize = 1024;
/// JSON nesting the envelope scanner follows.
pub const MAX_JSON_DEPTH: usize = 64;
/// Time from accept to `hello-ok`. One number for gateway and client.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of the `tick` event; said in `policy.tickIntervalMs`. *Wire*: clients close at twice this.
pub const TICK_INTERVAL: Duration = Duration::from_secs(30);
/// Interval of WebSocket pings. Below the idle limits of common proxies (nginx 60 s, Cloudflare 100 s).
pub const PING_INTERVAL: Duration = Duration::from_secs(25);
/// Time a peer has to answer a ping, counted from when the ping was written.
pub const PONG_DEADLINE: Duration = Duration::from_secs(25);
/// How far `device.signedAt` may be from the gateway's clock, either way. *Wire*.
pub const SIGNATURE_SKEW_MS: u64 = 120_000;
/// Default deadline of `node.invoke`. *Wire*.
pub const INVOKE_TIMEOUT_MS: u32 = 30_000;
/// Calls to methods of the wrong role in a row before the connection is closed with 1008.
pub const UNAUTHORIZED_CALLS: u32 = 10;
/// Bytes of UTF-8 in a close reason: 125 less the two of the code (RFC 6455, section 5.5).
pub const CLOSE_REASON_BYTES: usize = 123;
/// Time a closing connection has to take its close frame.
pub const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// Bytes that the bodies of all calls of the HTTP API take together.
pub const API_BODY_BYTES: usize = 64 * 1024 * 1024;
/// Time a drain waits for connections to go before it reports who was left.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
