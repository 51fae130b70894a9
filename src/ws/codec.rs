//! The frame codec of RFC 6455: strict, resumable at any byte, without IO.
//!
//! [`Decoder`] takes received bytes in place and gives checked messages; it keeps what is incomplete, so its
//! caller keeps nothing. The encoders append whole frames to an output buffer. Neither side knows sockets,
//! timers or randomness (a client brings its own masks), and neither allocates for a message that comes
//! whole.
//!
//! Start with [`Decoder::next`]; [`FrameStart`] writes a payload whose length is not known beforehand.

mod decode;
mod encode;

pub use decode::{Decoder, Limits, ProtocolError};
pub use encode::{FrameStart, Head, close, frame, head};

/// Which end of the connection this is (RFC 6455, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes masked frames only.
    Server,
    /// Takes unmasked frames only.
    Client,
}

// Masking and unmasking are the same operation (RFC 6455, section 5.3).
use fastwebsockets::unmask as apply_mask;

#[cfg(test)]
mod tests;
