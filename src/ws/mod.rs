//! RFC 6455 without IO: frames in, messages out, and back.
//!
//! Owns the wire format of WebSocket: [`codec`] turns received bytes into checked messages and writes frames,
//! [`message`] and [`close`] are the words for them. It does not know sockets, the upgrade, or what a
//! message says; extensions are not negotiated, so their bits are an error.
//!
//! Start with [`codec::Decoder::next`].

pub mod accept;
pub mod close;
pub mod codec;
pub mod message;
