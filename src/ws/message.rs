//! What a WebSocket carries: opcodes, and messages that borrow from a receive buffer.
//!
//! Knows nothing of frames and fragments; [`super::codec`] makes these. Start with [`Message`].

use std::fmt;
use std::ops::Deref;

use super::close::Close;

/// The meaning of a frame (RFC 6455, section 5.2). The other ten values are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message under way.
    Continuation = 0x0,
    /// A text message, or the first fragment of one.
    Text = 0x1,
    /// A binary message, or the first fragment of one.
    Binary = 0x2,
    /// The last frame of a side.
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping, or stands alone.
    Pong = 0xA,
}

impl Opcode {
    /// The opcode with this number; `None` for a reserved one.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    /// Whether it is a control frame: short, never fragmented, allowed between fragments (section 5.5).
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// A whole message, or a control frame. Borrows from the receive buffer, or from the decoder where it had to
/// be put together from pieces.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Text, checked to be UTF-8.
    Text(Text<'a>),
    /// Bytes. Mutable, because they are the receiver's alone.
    Binary(&'a mut [u8]),
    /// To be answered with a pong of the same payload, at most 125 bytes.
    Ping(&'a [u8]),
    /// Answers a ping.
    Pong(&'a [u8]),
    /// The peer is done; `None` when it gave no code.
    Close(Option<Close<'a>>),
}

/// The text of a message: UTF-8 that its receiver may overwrite.
///
/// Reads as `&str`. Parsers that work in place take it apart with [`Text::into_bytes`].
#[derive(PartialEq, Eq)]
pub struct Text<'a>(
    /// Invariant: UTF-8.
    &'a mut [u8],
);

impl<'a> Text<'a> {
    /// Checks `bytes`; `None` when they are not UTF-8.
    #[inline]
    pub fn new(bytes: &'a mut [u8]) -> Option<Self> {
        simdutf8::basic::from_utf8(bytes).is_ok().then_some(Self(bytes))
    }

    /// Takes bytes that were checked piece by piece.
    ///
    /// # Safety
    /// `bytes` are UTF-8.
    #[inline]
    pub(super) unsafe fn new_unchecked(bytes: &'a mut [u8]) -> Self {
        debug_assert!(std::str::from_utf8(bytes).is_ok());
        Self(bytes)
    }

    /// The text, for as long as the buffer is lent.
    #[inline]
    pub fn into_str(self) -> &'a str {
        // SAFETY: the invariant of the field; nobody can write to it but `into_bytes`, which ends `self`.
        unsafe { std::str::from_utf8_unchecked(self.0) }
    }

    /// The bytes, to be changed at will: the text is gone then.
    #[inline]
    pub fn into_bytes(self) -> &'a mut [u8] {
        self.0
    }
}

impl Deref for Text<'_> {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        // SAFETY: as in `into_str`.
        unsafe { std::str::from_utf8_unchecked(self.0) }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_opcodes_are_unknown() {
        let known: Vec<u8> = (0..=255).filter(|bits| Opcode::from_bits(*bits).is_some()).collect();
        assert_eq!(known, [0x0, 0x1, 0x2, 0x8, 0x9, 0xA]);
        assert!(known.iter().all(|bits| Opcode::from_bits(*bits).map(|opcode| opcode as u8) == Some(*bits)));
    }

    #[test]
    fn text_is_utf8_or_nothing() {
        assert_eq!(Text::new(&mut "κόσμε".to_owned().into_bytes()).as_deref(), Some("κόσμε"));
        assert!(Text::new(&mut [0xce]).is_none());
    }
}
