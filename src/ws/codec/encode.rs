//! Messages to bytes: frames appended to an output buffer.
//!
//! A server passes no mask; a client passes four fresh random bytes for each frame (RFC 6455, section 5.3).

use std::ops::Deref;

use super::apply_mask;
use crate::limits::CLOSE_REASON_BYTES;
use crate::ws::close::Close;
use crate::ws::message::Opcode;

/// The first bytes of a frame, 2 to 14 of them.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; 14],
    len: u8,
}

impl Deref for Head {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The head of an unfragmented frame whose payload has `payload_bytes`.
#[inline]
pub fn head(opcode: Opcode, payload_bytes: usize, mask: Option<[u8; 4]>) -> Head {
    let mut bytes = [0; 14];
    bytes[0] = 0x80 | opcode as u8;
    let mut len = length_end(payload_bytes);
    match len {
        2 => bytes[1] = payload_bytes as u8,
        4 => {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            bytes[1] = 127;
            bytes[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        bytes[1] |= 0x80;
        bytes[len..len + 4].copy_from_slice(&mask);
        len += 4;
    }
    Head { bytes, len: len as u8 }
}

/// Where the length field of a frame ends: it takes the shortest form.
#[inline]
const fn length_end(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// Appends a frame.
#[inline]
pub fn frame(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let head = head(opcode, payload.len(), mask);
    out.reserve(head.len() + payload.len());
    out.extend_from_slice(&head);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut out[start..], mask);
    }
}

/// Appends a close frame. A reason that is too long is cut before the character that exceeds 123 bytes.
pub fn close(close: Option<Close<'_>>, mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let mut payload = [0; 2 + CLOSE_REASON_BYTES];
    let mut len = 0;
    if let Some(Close { code, reason }) = close {
        let reason = &reason.as_bytes()[..reason.floor_char_boundary(CLOSE_REASON_BYTES)];
        len = 2 + reason.len();
        payload[..2].copy_from_slice(&code.get().to_be_bytes());
        payload[2..len].copy_from_slice(reason);
    }
    frame(Opcode::Close, &payload[..len], mask, out);
}

/// A frame whose payload is written straight into the output.
///
/// Room for the head is left by a guess of the length; [`FrameStart::finish`] moves the payload where the guess
/// was wrong, which costs a copy of it.
///
/// ```
/// # use clawgate::ws::{codec::FrameStart, message::Opcode};
/// let mut out = Vec::new();
/// let frame = FrameStart::new(Opcode::Text, 200, None, &mut out);
/// out.extend_from_slice(br#"{"type":"res"}"#);
/// frame.finish(&mut out);
/// assert_eq!(out, b"\x81\x0e{\"type\":\"res\"}");
/// ```
#[derive(Debug)]
#[must_use = "the frame has no head until it is finished"]
pub struct FrameStart {
    at: usize,
    room_bytes: usize,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
}

impl FrameStart {
    /// Starts a frame at the end of `out`, which must only be appended to until the frame is finished.
    #[inline]
    pub fn new(opcode: Opcode, expected_bytes: usize, mask: Option<[u8; 4]>, out: &mut Vec<u8>) -> Self {
        let at = out.len();
        let room_bytes = length_end(expected_bytes) + if mask.is_some() { 4 } else { 0 };
        out.extend_from_slice(&[0; 14][..room_bytes]);
        Self { at, room_bytes, opcode, mask }
    }

    /// Writes the head, now that everything behind it in `out` is the payload.
    #[inline]
    pub fn finish(self, out: &mut Vec<u8>) {
        let payload_start = self.at + self.room_bytes;
        let head = head(self.opcode, out.len() - payload_start, self.mask);
        if head.len() != self.room_bytes {
            out.splice(self.at..payload_start, head.iter().copied());
        } else {
            out[self.at..payload_start].copy_from_slice(&head);
        }
        if let Some(mask) = self.mask {
            apply_mask(&mut out[self.at + head.len()..], mask);
        }
    }

    /// Takes the frame back: `out` is as it was before.
    pub fn abandon(self, out: &mut Vec<u8>) {
        out.truncate(self.at);
    }
}
