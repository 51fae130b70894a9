//! Bytes to messages. Start with [`Decoder::next`].

use super::{Role, apply_mask};
use crate::ws::close::{Close, CloseCode};
use crate::ws::message::{Message, Opcode, Text};

/// What a peer may make this side hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of a message, over all its fragments.
    pub max_message_bytes: usize,
    /// Fragments of a message.
    pub max_fragments: u32,
}

/// How a peer broke the protocol, or a limit. Each is the end of its connection; the [`Close`] made from it is
/// what to tell the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Close::from(*self).reason)]
pub enum ProtocolError {
    /// A reserved bit is set, though no extension was negotiated (RFC 6455, section 5.2).
    ReservedBits,
    /// An opcode that RFC 6455 reserves.
    UnknownOpcode,
    /// A client's frame that is not masked (section 5.1).
    NotMasked,
    /// A server's frame that is masked (section 5.1).
    Masked,
    /// A length in more bytes than it needs (section 5.2).
    LengthNotMinimal,
    /// A 64-bit length whose top bit is set (section 5.2).
    LengthOverflow,
    /// A control frame with more than 125 bytes (section 5.5).
    ControlTooLong,
    /// A control frame in fragments (section 5.5).
    ControlFragmented,
    /// A continuation, but no message is under way (section 5.4).
    UnexpectedContinuation,
    /// A new message, but the one under way is not finished (section 5.4).
    ExpectedContinuation,
    /// A close frame with half a code (section 5.5.1).
    CloseTooShort,
    /// A close code that may not be sent (section 7.4).
    CloseCode,
    /// A text or a close reason that is not UTF-8 (section 8.1).
    NotUtf8,
    /// A message of so many bytes, as far as its frames have said, is more than [`Limits::max_message_bytes`].
    TooBig(u64),
    /// More fragments than [`Limits::max_fragments`].
    TooManyFragments,
}

impl From<ProtocolError> for Close<'static> {
    fn from(error: ProtocolError) -> Self {
        use ProtocolError as E;
        const BROKEN: CloseCode = CloseCode::PROTOCOL_ERROR;
        match error {
            E::ReservedBits => Self::new(BROKEN, "reserved bits set"),
            E::UnknownOpcode => Self::new(BROKEN, "unknown opcode"),
            E::NotMasked => Self::new(BROKEN, "client frame not masked"),
            E::Masked => Self::new(BROKEN, "server frame masked"),
            E::LengthNotMinimal => Self::new(BROKEN, "frame length not in its shortest form"),
            E::LengthOverflow => Self::new(BROKEN, "frame length above 63 bits"),
            E::ControlTooLong => Self::new(BROKEN, "control frame above 125 bytes"),
            E::ControlFragmented => Self::new(BROKEN, "control frame in fragments"),
            E::UnexpectedContinuation => Self::new(BROKEN, "continuation without a message"),
            E::ExpectedContinuation => Self::new(BROKEN, "new message inside a fragmented one"),
            E::CloseTooShort => Self::new(BROKEN, "close frame with half a code"),
            E::CloseCode => Self::new(BROKEN, "invalid close code"),
            E::NotUtf8 => Self::new(CloseCode::INVALID_PAYLOAD, "text is not UTF-8"),
            E::TooBig(_) => Self::new(CloseCode::MESSAGE_TOO_BIG, "message too big"),
            E::TooManyFragments => Self::new(CloseCode::MESSAGE_TOO_BIG, "message in too many fragments"),
        }
    }
}

/// Turns received bytes into messages, in place.
///
/// It lives as long as its connection. Between messages it is 32 bytes or less and owns no memory; a frame cut
/// by the end of a read, and a message in fragments, it keeps on the heap until they are whole and delivered.
/// It grows with the bytes that come, never with the length that a frame declares.
///
/// ```
/// # use clawgate::ws::{codec::{Decoder, Limits, Role}, message::Message};
/// let mut decoder = Decoder::new(Role::Server, Limits { max_message_bytes: 65_536, max_fragments: 16 });
/// let received = &mut [0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2];
/// let mut input = &mut received[..];
/// while let Some(message) = decoder.next(&mut input)? {
///     let Message::Text(text) = message else { continue };
///     assert_eq!(&*text, "hi");
/// }
/// # Ok::<(), clawgate::ws::codec::ProtocolError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    unfinished: Option<Box<Unfinished>>,
    max_message_bytes: usize,
    max_fragments: u32,
    role: Role,
    /// A close frame or an error was seen: nothing that follows counts.
    ended: bool,
}

/// What came in pieces.
#[derive(Debug, Default)]
struct Unfinished {
    /// A frame whose end has not come, as received.
    frame: Vec<u8>,
    /// The payload of the fragments so far.
    message: Vec<u8>,
    /// How much of a text `message` is known to be UTF-8.
    checked_bytes: usize,
    /// Frames in `message`.
    fragments: u32,
    /// What `message` is going to be; `None` when no message is under way.
    opcode: Option<Opcode>,
    /// What the last `next` gave out.
    lent: Option<Lent>,
}

#[derive(Clone, Copy, Debug)]
enum Lent {
    Frame,
    Message,
}

/// Allocations up to this are used again while input goes on; all are freed when it is used up.
const KEPT_BYTES: usize = 64 * 1024;

/// The head of a frame, checked.
#[derive(Clone, Copy)]
struct FrameHead {
    fin: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    head_bytes: usize,
    payload_bytes: usize,
}

/// What the beginning of a frame says.
enum Measure {
    /// This many bytes are needed to say more, counted from the beginning of the frame.
    Short(usize),
    /// The whole frame is there.
    Whole(FrameHead),
}

/// Where the next message lies.
enum Ready<'a> {
    /// Nowhere yet.
    Nothing,
    /// In the input.
    Input(Opcode, &'a mut [u8]),
    /// In `Unfinished::frame`, after this many bytes.
    Frame(Opcode, usize),
    /// In `Unfinished::message`.
    Message(Opcode),
}

impl Decoder {
    /// A decoder at the beginning of a connection.
    pub fn new(role: Role, limits: Limits) -> Self {
        let Limits { max_message_bytes, max_fragments } = limits;
        Self { unfinished: None, max_message_bytes, max_fragments, role, ended: false }
    }

    /// Moves the limit of a message, from the next frame head on: a peer that has proved who it is may
    /// send more.
    pub fn set_max_message_bytes(&mut self, bytes: usize) {
        self.max_message_bytes = bytes;
    }

    /// Bytes that a message may have.
    pub const fn max_message_bytes(&self) -> usize {
        self.max_message_bytes
    }

    /// Heap bytes held for what is not finished: zero for a connection between messages.
    pub fn held_bytes(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| {
            size_of::<Unfinished>() + unfinished.frame.capacity() + unfinished.message.capacity()
        })
    }

    /// The next message, taken off the front of `input`.
    ///
    /// Call it until it gives `None`: all of `input` is used up then, an unfinished rest is kept here, and
    /// memory that was needed for a message is given back. A message that lies whole in `input` is unmasked
    /// there and borrowed from there. Control frames come out where they came in, also between fragments.
    /// What follows a close frame is swallowed (RFC 6455, section 5.5.1).
    ///
    /// # Errors
    /// The first breach of the protocol or of the limits, as early as its bytes show it, whatever pieces they
    /// come in. Nothing comes out of the decoder after it.
    #[inline]
    pub fn next<'m, 'a: 'm>(&'m mut self, input: &mut &'a mut [u8]) -> Result<Option<Message<'m>>, ProtocolError> {
        let ready = match self.advance(input) {
            Ok(ready) => ready,
            Err(error) => {
                self.ended = true;
                return Err(error);
            }
        };
        let (opcode, payload) = match (ready, &mut self.unfinished) {
            (Ready::Input(opcode, payload), _) => (opcode, payload),
            (Ready::Frame(opcode, at), Some(unfinished)) => (opcode, &mut unfinished.frame[at..]),
            (Ready::Message(opcode), Some(unfinished)) => (opcode, &mut unfinished.message[..]),
            (Ready::Nothing | Ready::Frame(..) | Ready::Message(_), _) => return Ok(None),
        };
        Ok(Some(match opcode {
            // SAFETY: `advance` gives out no text that is not UTF-8.
            Opcode::Text => Message::Text(unsafe { Text::new_unchecked(payload) }),
            Opcode::Binary | Opcode::Continuation => Message::Binary(payload),
            Opcode::Ping => Message::Ping(payload),
            Opcode::Pong => Message::Pong(payload),
            // `advance` gives out no close frame that is not valid.
            Opcode::Close => Message::Close(parse_close(payload).unwrap_or_default()),
        }))
    }

    /// Finds the next message, unmasks and checks it.
    #[inline]
    fn advance<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Ready<'a>, ProtocolError> {
        if self.ended {
            *input = &mut [];
            self.unfinished = None;
            return Ok(Ready::Nothing);
        }
        if self.unfinished.is_none() {
            match self.measure(None, input)? {
                Measure::Whole(head) if head.fin => {
                    let payload = unmasked(&head, input.split_off_mut(..head.frame_bytes()).unwrap_or_default());
                    self.check(head.opcode, payload)?;
                    return Ok(Ready::Input(head.opcode, payload));
                }
                Measure::Short(_) if input.is_empty() => return Ok(Ready::Nothing),
                Measure::Short(_) | Measure::Whole(_) => {}
            }
        }
        self.resume(input)
    }

    /// The same where something is unfinished, or is going to be.
    fn resume<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Ready<'a>, ProtocolError> {
        let mut unfinished = self.unfinished.take().unwrap_or_default();
        unfinished.take_back();
        let ready = loop {
            if unfinished.frame.is_empty() {
                match self.measure(Some(&unfinished), input)? {
                    Measure::Short(_) if input.is_empty() => break Ready::Nothing,
                    Measure::Short(need) => unfinished.fill_frame(need, input),
                    Measure::Whole(head) => {
                        let payload = unmasked(&head, input.split_off_mut(..head.frame_bytes()).unwrap_or_default());
                        if !unfinished.is_fragment(&head) {
                            self.check(head.opcode, payload)?;
                            break Ready::Input(head.opcode, payload);
                        }
                        if let Some(opcode) = unfinished.append(&head, payload)? {
                            break Ready::Message(opcode);
                        }
                    }
                }
            } else {
                match self.measure(Some(&unfinished), &unfinished.frame)? {
                    Measure::Short(_) if input.is_empty() => break Ready::Nothing,
                    Measure::Short(need) => unfinished.fill_frame(need, input),
                    Measure::Whole(head) => {
                        let mut frame = std::mem::take(&mut unfinished.frame);
                        let payload = unmasked(&head, &mut frame);
                        if !unfinished.is_fragment(&head) {
                            self.check(head.opcode, payload)?;
                            unfinished.frame = frame;
                            unfinished.lent = Some(Lent::Frame);
                            break Ready::Frame(head.opcode, head.head_bytes);
                        }
                        if let Some(opcode) = unfinished.append(&head, payload)? {
                            break Ready::Message(opcode);
                        }
                    }
                }
            }
        };
        if !unfinished.is_idle() {
            self.unfinished = Some(unfinished);
        }
        Ok(ready)
    }

    /// Reads and checks as much of a frame's head as `bytes` has, in the order of the bytes: how they were cut
    /// into reads decides nothing.
    #[inline]
    fn measure(&self, unfinished: Option<&Unfinished>, bytes: &[u8]) -> Result<Measure, ProtocolError> {
        let Some(&first) = bytes.first() else { return Ok(Measure::Short(2)) };
        if first & 0x70 != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let opcode = Opcode::from_bits(first & 0x0f).ok_or(ProtocolError::UnknownOpcode)?;
        let fin = first & 0x80 != 0;
        let mut room_bytes = self.max_message_bytes;
        if opcode.is_control() {
            if !fin {
                return Err(ProtocolError::ControlFragmented);
            }
            room_bytes = usize::MAX;
        } else {
            let under_way = unfinished.filter(|unfinished| unfinished.opcode.is_some());
            match (opcode, under_way) {
                (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
                (Opcode::Text | Opcode::Binary, Some(_)) => return Err(ProtocolError::ExpectedContinuation),
                (_, Some(message)) if message.fragments >= self.max_fragments => {
                    return Err(ProtocolError::TooManyFragments);
                }
                (_, Some(message)) => room_bytes = room_bytes.saturating_sub(message.message.len()),
                (_, None) => {}
            }
        }

        let Some(&second) = bytes.get(1) else { return Ok(Measure::Short(2)) };
        let masked = second & 0x80 != 0;
        match self.role {
            Role::Server if !masked => return Err(ProtocolError::NotMasked),
            Role::Client if masked => return Err(ProtocolError::Masked),
            Role::Server | Role::Client => {}
        }
        let short = second & 0x7f;
        if opcode.is_control() && short > 125 {
            return Err(ProtocolError::ControlTooLong);
        }
        let (declared, length_end) = match short {
            126 => {
                let Some(length) = bytes[2..].first_chunk() else { return Ok(Measure::Short(4)) };
                let length = u16::from_be_bytes(*length);
                if length < 126 {
                    return Err(ProtocolError::LengthNotMinimal);
                }
                (u64::from(length), 4)
            }
            127 => {
                let Some(length) = bytes[2..].first_chunk() else { return Ok(Measure::Short(10)) };
                let length = u64::from_be_bytes(*length);
                if length >> 63 != 0 {
                    return Err(ProtocolError::LengthOverflow);
                }
                if length <= u64::from(u16::MAX) {
                    return Err(ProtocolError::LengthNotMinimal);
                }
                (length, 10)
            }
            short => (u64::from(short), 2),
        };
        let payload_bytes = match usize::try_from(declared) {
            Ok(bytes) if bytes <= room_bytes => bytes,
            _ => {
                let before = self.max_message_bytes - room_bytes.min(self.max_message_bytes);
                return Err(ProtocolError::TooBig(declared.saturating_add(before as u64)));
            }
        };

        let (mask, head_bytes) = if masked {
            let Some(mask) = bytes[length_end..].first_chunk() else { return Ok(Measure::Short(length_end + 4)) };
            (Some(*mask), length_end + 4)
        } else {
            (None, length_end)
        };
        let head = FrameHead { fin, opcode, mask, head_bytes, payload_bytes };
        Ok(if bytes.len() < head.frame_bytes() { Measure::Short(head.frame_bytes()) } else { Measure::Whole(head) })
    }

    /// Checks the payload of a message or control frame that came in one frame.
    #[inline]
    fn check(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), ProtocolError> {
        match opcode {
            Opcode::Text => {
                simdutf8::basic::from_utf8(payload).map_err(|_| ProtocolError::NotUtf8)?;
            }
            Opcode::Close => {
                parse_close(payload)?;
                self.ended = true;
            }
            Opcode::Binary | Opcode::Continuation | Opcode::Ping | Opcode::Pong => {}
        }
        Ok(())
    }
}

impl Unfinished {
    /// Whether nothing is unfinished, nor lent.
    fn is_idle(&self) -> bool {
        self.frame.is_empty() && self.opcode.is_none() && self.lent.is_none()
    }

    /// Whether this frame is a piece of a message, not a whole one.
    fn is_fragment(&self, head: &FrameHead) -> bool {
        !head.opcode.is_control() && (!head.fin || self.opcode.is_some())
    }

    /// Takes back what the last `next` lent, now that it is over.
    fn take_back(&mut self) {
        match self.lent.take() {
            None => {}
            Some(Lent::Frame) => self.frame = emptied(std::mem::take(&mut self.frame)),
            Some(Lent::Message) => {
                self.message = emptied(std::mem::take(&mut self.message));
                self.checked_bytes = 0;
                self.fragments = 0;
                self.opcode = None;
            }
        }
    }

    /// Moves input into `frame` until that has `need` bytes or the input is used up.
    fn fill_frame(&mut self, need: usize, input: &mut &mut [u8]) {
        let count = input.len().min(need - self.frame.len());
        let bytes = input.split_off_mut(..count).unwrap_or_default();
        let len = self.frame.len();
        if len + count > self.frame.capacity() {
            // Twice what is there, but no more than the frame is going to have.
            self.frame.reserve_exact(need.min((len + count).max(2 * len)) - len);
        }
        self.frame.extend_from_slice(bytes);
    }

    /// Adds a fragment, unmasked. Gives the opcode of the message when that is whole now.
    ///
    /// Text is checked as it comes; a character may be cut by the end of a fragment, but not by the last.
    fn append(&mut self, head: &FrameHead, payload: &[u8]) -> Result<Option<Opcode>, ProtocolError> {
        let opcode = *self.opcode.get_or_insert(head.opcode);
        self.fragments += 1;
        self.message.extend_from_slice(payload);
        if opcode == Opcode::Text {
            self.checked_bytes += match simdutf8::compat::from_utf8(&self.message[self.checked_bytes..]) {
                Ok(text) => text.len(),
                Err(error) if error.error_len().is_none() && !head.fin => error.valid_up_to(),
                Err(_) => return Err(ProtocolError::NotUtf8),
            };
        }
        if !head.fin {
            return Ok(None);
        }
        self.lent = Some(Lent::Message);
        Ok(Some(opcode))
    }
}

impl FrameHead {
    fn frame_bytes(&self) -> usize {
        self.head_bytes.saturating_add(self.payload_bytes)
    }
}

/// The payload of a whole `frame`, unmasked where it lies.
#[inline]
fn unmasked<'a>(head: &FrameHead, frame: &'a mut [u8]) -> &'a mut [u8] {
    let payload = &mut frame[head.head_bytes..];
    if let Some(mask) = head.mask {
        apply_mask(payload, mask);
    }
    payload
}

/// The same allocation without content, or none where it was large.
fn emptied(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.capacity() > KEPT_BYTES {
        return Vec::new();
    }
    bytes.clear();
    bytes
}

/// Reads the payload of a close frame.
fn parse_close(payload: &[u8]) -> Result<Option<Close<'_>>, ProtocolError> {
    let Some((number, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(ProtocolError::CloseTooShort) };
    };
    let code = CloseCode::new(u16::from_be_bytes(*number)).ok_or(ProtocolError::CloseCode)?;
    let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::NotUtf8)?;
    Ok(Some(Close { code, reason }))
}
