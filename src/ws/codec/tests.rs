//! Every rule of RFC 6455 that the codec keeps, as a claim.

use super::*;
use crate::ws::close::{Close, CloseCode};
use crate::ws::message::{Message, Opcode};

const MASK: Option<[u8; 4]> = Some([0x37, 0xfa, 0x21, 0x3d]);
const LIMITS: Limits = Limits { max_message_bytes: 1 << 20, max_fragments: 8 };

/// A message that outlives its buffer.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
    Refused(ProtocolError),
}

impl From<Message<'_>> for Seen {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.to_owned()),
            Message::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Message::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Message::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Message::Close(close) => Self::Close(close.map(|c| (c.code.get(), c.reason.to_owned()))),
        }
    }
}

fn feed(decoder: &mut Decoder, bytes: &[u8], seen: &mut Vec<Seen>) {
    let mut bytes = bytes.to_vec();
    let mut input = &mut bytes[..];
    loop {
        match decoder.next(&mut input) {
            Ok(Some(message)) => seen.push(message.into()),
            Ok(None) => break assert!(input.is_empty(), "all input is used up"),
            Err(error) => break seen.push(Seen::Refused(error)),
        }
    }
}

fn decode_as(role: Role, limits: Limits, bytes: &[u8]) -> Vec<Seen> {
    let (mut seen, mut decoder) = (Vec::new(), Decoder::new(role, limits));
    feed(&mut decoder, bytes, &mut seen);
    seen
}

fn decode(bytes: &[u8]) -> Vec<Seen> {
    decode_as(Role::Server, LIMITS, bytes)
}

/// One frame; `first` is FIN, the reserved bits and the opcode.
fn raw_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame(Opcode::Text, payload, MASK, &mut out);
    out[0] = first;
    out
}

fn text(text: &str) -> Seen {
    Seen::Text(text.to_owned())
}

fn refused(error: ProtocolError) -> Vec<Seen> {
    vec![Seen::Refused(error)]
}

#[test]
fn a_connection_between_messages_is_small() {
    assert!(size_of::<Decoder>() <= 32, "{}", size_of::<Decoder>());
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut seen = Vec::new();
    let message = raw_frame(0x82, &[7; 300_000]);
    let (head, tail) = message.split_at(1000);
    feed(&mut decoder, head, &mut seen);
    assert!((1000..2000).contains(&decoder.held_bytes()), "grows with what came, not with what was declared");
    feed(&mut decoder, tail, &mut seen);
    assert_eq!(decoder.held_bytes(), 0);
    assert_eq!(seen, [Seen::Binary(vec![7; 300_000])]);
}

#[test]
fn what_follows_a_big_message_does_not_keep_its_memory() {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut seen = Vec::new();
    let message = raw_frame(0x82, &[7; 300_000]);
    feed(&mut decoder, &message[..1000], &mut seen);
    feed(&mut decoder, &[&message[1000..], &raw_frame(0x81, b"next")[..5]].concat(), &mut seen);
    assert_eq!(seen.len(), 1);
    assert!((1..1000).contains(&decoder.held_bytes()), "{}", decoder.held_bytes());
}

#[test]
fn unmasks_in_place() {
    let mut bytes = raw_frame(0x81, b"Hello");
    let range = bytes.as_ptr_range();
    let mut input = &mut bytes[..];
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let Ok(Some(Message::Text(text))) = decoder.next(&mut input) else { panic!("a text") };
    assert!(range.contains(&text.as_ptr()));
    assert_eq!(&*text, "Hello");
    assert_eq!(text.into_bytes(), b"Hello");
    assert_eq!(decoder.held_bytes(), 0);
}

#[test]
fn decodes_the_examples_of_section_5_7() {
    let server = |bytes: &[u8]| decode_as(Role::Client, LIMITS, bytes);
    assert_eq!(server(b"\x81\x05Hello"), [text("Hello")]);
    assert_eq!(decode(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), [text("Hello")]);
    assert_eq!(server(b"\x01\x03Hel\x80\x02lo"), [text("Hello")]);
    assert_eq!(server(b"\x89\x05Hello"), [Seen::Ping(b"Hello".into())]);
    assert_eq!(decode(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), [Seen::Pong(b"Hello".into())]);
    let long = [&b"\x82\x7e\x01\x00"[..], &[1; 256]].concat();
    assert_eq!(server(&long), [Seen::Binary(vec![1; 256])]);
    let longer = [&b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"[..], &[1; 65536]].concat();
    assert_eq!(server(&longer), [Seen::Binary(vec![1; 65536])]);
}

#[test]
fn resumes_at_every_byte() {
    let mut stream = Vec::new();
    for part in [
        raw_frame(0x81, "grüß dich".as_bytes()),
        raw_frame(0x01, &"κόσμε".as_bytes()[..3]),
        raw_frame(0x89, b"between"),
        raw_frame(0x00, &"κόσμε".as_bytes()[3..]),
        raw_frame(0x00, b""),
        raw_frame(0x80, b"!"),
        raw_frame(0x82, &[9; 130]),
        raw_frame(0x81, b""),
        raw_frame(0x88, b"\x03\xe8bye"),
        raw_frame(0x81, b"too late"),
    ] {
        stream.extend(part);
    }
    let expected = vec![
        text("grüß dich"),
        Seen::Ping(b"between".into()),
        text("κόσμε!"),
        Seen::Binary(vec![9; 130]),
        text(""),
        Seen::Close(Some((1000, "bye".to_owned()))),
    ];
    assert_eq!(decode(&stream), expected);
    for first in 0..=stream.len() {
        for second in [first, first + 1, first + 7, stream.len()] {
            let second = second.min(stream.len());
            let (mut seen, mut decoder) = (Vec::new(), Decoder::new(Role::Server, LIMITS));
            for piece in [&stream[..first], &stream[first..second], &stream[second..]] {
                feed(&mut decoder, piece, &mut seen);
            }
            assert_eq!(seen, expected, "cut at {first} and {second}");
            assert_eq!(decoder.held_bytes(), 0);
        }
    }
    let (mut seen, mut decoder) = (Vec::new(), Decoder::new(Role::Server, LIMITS));
    for byte in &stream {
        feed(&mut decoder, &[*byte], &mut seen);
    }
    assert_eq!(seen, expected);
}

#[test]
fn refuses_reserved_bits() {
    for bit in [0x10, 0x20, 0x40] {
        assert_eq!(decode(&raw_frame(0x81 | bit, b"x")), refused(ProtocolError::ReservedBits));
        assert_eq!(decode(&[0x81 | bit]), refused(ProtocolError::ReservedBits), "by the first byte alone");
    }
}

#[test]
fn refuses_reserved_opcodes() {
    for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        assert_eq!(decode(&raw_frame(0x80 | opcode, b"x")), refused(ProtocolError::UnknownOpcode));
    }
}

#[test]
fn a_server_takes_masked_frames_only_and_a_client_unmasked_ones() {
    let mut unmasked = Vec::new();
    frame(Opcode::Text, b"x", None, &mut unmasked);
    assert_eq!(decode(&unmasked), refused(ProtocolError::NotMasked));
    assert_eq!(decode_as(Role::Client, LIMITS, &unmasked), [text("x")]);
    assert_eq!(decode_as(Role::Client, LIMITS, &raw_frame(0x81, b"x")), refused(ProtocolError::Masked));
}

#[test]
fn refuses_a_length_in_more_bytes_than_it_needs() {
    for bytes in [&[0x82, 0xfe, 0, 125][..], &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]] {
        assert_eq!(decode(bytes), refused(ProtocolError::LengthNotMinimal));
    }
}

#[test]
fn refuses_a_length_above_63_bits() {
    assert_eq!(decode(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]), refused(ProtocolError::LengthOverflow));
}

#[test]
fn refuses_a_message_above_the_limit_by_its_head() {
    let limits = Limits { max_message_bytes: 200, ..LIMITS };
    assert_eq!(decode_as(Role::Server, limits, &raw_frame(0x82, &[0; 200])).len(), 1);
    assert_eq!(decode_as(Role::Server, limits, &[0x82, 0xfe, 0, 201]), refused(ProtocolError::TooBig(201)));
    let all = &[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(decode_as(Role::Server, limits, all), refused(ProtocolError::TooBig(u64::MAX >> 1)));
    let fragments = [raw_frame(0x02, &[0; 150]), raw_frame(0x80, &[0; 51])].concat();
    assert_eq!(decode_as(Role::Server, limits, &fragments), refused(ProtocolError::TooBig(201)), "over all fragments");
}

#[test]
fn the_limit_does_not_count_control_frames() {
    let limits = Limits { max_message_bytes: 4, ..LIMITS };
    let bytes = [raw_frame(0x02, &[1; 4]), raw_frame(0x89, &[0; 125]), raw_frame(0x80, b"")].concat();
    assert_eq!(decode_as(Role::Server, limits, &bytes), [Seen::Ping(vec![0; 125]), Seen::Binary(vec![1; 4])]);
}

#[test]
fn the_limit_can_be_raised() {
    let mut decoder = Decoder::new(Role::Server, Limits { max_message_bytes: 4, ..LIMITS });
    let mut seen = Vec::new();
    feed(&mut decoder, &raw_frame(0x81, b"1234"), &mut seen);
    decoder.set_max_message_bytes(5);
    feed(&mut decoder, &raw_frame(0x81, b"12345"), &mut seen);
    assert_eq!(seen, [text("1234"), text("12345")]);
}

#[test]
fn refuses_too_many_fragments_even_empty_ones() {
    let limits = Limits { max_fragments: 3, ..LIMITS };
    let mut bytes = [raw_frame(0x01, b"a"), raw_frame(0x00, b""), raw_frame(0x80, b"b")].concat();
    assert_eq!(decode_as(Role::Server, limits, &bytes), [text("ab")]);
    bytes = [raw_frame(0x01, b""), raw_frame(0x00, b""), raw_frame(0x00, b""), raw_frame(0x80, b"")].concat();
    assert_eq!(decode_as(Role::Server, limits, &bytes), refused(ProtocolError::TooManyFragments));
}

#[test]
fn refuses_long_control_frames() {
    for first in [0x88, 0x89, 0x8a] {
        assert_eq!(decode(&raw_frame(first, &[b'a'; 126])), refused(ProtocolError::ControlTooLong));
        assert_eq!(decode(&[first, 0xff]), refused(ProtocolError::ControlTooLong), "by two bytes alone");
    }
    assert_eq!(decode(&raw_frame(0x8a, &[3; 125])), [Seen::Pong(vec![3; 125])]);
}

#[test]
fn refuses_control_frames_in_fragments() {
    for first in [0x08, 0x09, 0x0a] {
        assert_eq!(decode(&raw_frame(first, b"")), refused(ProtocolError::ControlFragmented));
    }
}

#[test]
fn refuses_a_continuation_of_nothing() {
    for first in [0x00, 0x80] {
        assert_eq!(decode(&raw_frame(first, b"x")), refused(ProtocolError::UnexpectedContinuation));
    }
    let after = [raw_frame(0x01, b"a"), raw_frame(0x80, b"b"), raw_frame(0x80, b"c")].concat();
    assert_eq!(decode(&after), [text("ab"), Seen::Refused(ProtocolError::UnexpectedContinuation)]);
}

#[test]
fn refuses_a_message_inside_a_message() {
    for first in [0x01, 0x81, 0x02, 0x82] {
        let bytes = [raw_frame(0x01, b"a"), raw_frame(first, b"b")].concat();
        assert_eq!(decode(&bytes), refused(ProtocolError::ExpectedContinuation));
    }
}

#[test]
fn takes_control_frames_between_fragments() {
    let bytes = [raw_frame(0x02, b"a"), raw_frame(0x8a, b"p"), raw_frame(0x89, b"q"), raw_frame(0x80, b"b")].concat();
    assert_eq!(decode(&bytes), [Seen::Pong(b"p".into()), Seen::Ping(b"q".into()), Seen::Binary(b"ab".into())]);
}

#[test]
fn refuses_text_that_is_not_utf8() {
    let truncated = "κ".as_bytes()[..1].to_vec();
    let surrogate = b"\xed\xa0\x80".to_vec();
    let overlong = b"\xc0\xaf".to_vec();
    let above = b"\xf4\x90\x80\x80".to_vec();
    for payload in [truncated, surrogate, overlong, above, [vec![b'a'; 500], vec![0xff]].concat()] {
        assert_eq!(decode(&raw_frame(0x81, &payload)), refused(ProtocolError::NotUtf8));
        let cut = [raw_frame(0x01, &payload), raw_frame(0x80, b"")].concat();
        assert_eq!(decode(&cut), refused(ProtocolError::NotUtf8));
    }
}

#[test]
fn a_fragment_may_end_inside_a_character() {
    let whole = "añ€😀".as_bytes();
    for cut in 0..=whole.len() {
        let bytes = [raw_frame(0x01, &whole[..cut]), raw_frame(0x80, &whole[cut..])].concat();
        assert_eq!(decode(&bytes), [text("añ€😀")], "cut at {cut}");
    }
}

#[test]
fn refuses_bad_text_by_the_first_fragment_that_has_it() {
    for prefix in [&b"ok \xff"[..], b"\xf4\x90", b"\xed\xa0", b"\xc0"] {
        assert_eq!(decode(&raw_frame(0x01, prefix)), refused(ProtocolError::NotUtf8), "{prefix:x?}");
    }
    let split = [raw_frame(0x01, b"\xf4"), raw_frame(0x00, b"\x90")].concat();
    assert_eq!(decode(&split), refused(ProtocolError::NotUtf8));
}

#[test]
fn binary_is_not_checked() {
    assert_eq!(decode(&raw_frame(0x82, b"\xff")), [Seen::Binary(vec![0xff])]);
}

#[test]
fn a_close_needs_no_code() {
    assert_eq!(decode(&raw_frame(0x88, b"")), [Seen::Close(None)]);
    assert_eq!(decode(&raw_frame(0x88, b"\x0f\xa0")), [Seen::Close(Some((4000, String::new())))]);
}

#[test]
fn refuses_half_a_close_code() {
    assert_eq!(decode(&raw_frame(0x88, b"\x03")), refused(ProtocolError::CloseTooShort));
}

#[test]
fn refuses_close_codes_that_may_not_be_sent() {
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        assert_eq!(decode(&raw_frame(0x88, &code.to_be_bytes())), refused(ProtocolError::CloseCode), "{code}");
    }
}

#[test]
fn refuses_a_close_reason_that_is_not_utf8() {
    assert_eq!(decode(&raw_frame(0x88, b"\x03\xe8\xce")), refused(ProtocolError::NotUtf8));
}

#[test]
fn nothing_comes_after_a_close_or_an_error() {
    for end in [raw_frame(0x88, b""), raw_frame(0xf1, b"")] {
        let (mut seen, mut decoder) = (Vec::new(), Decoder::new(Role::Server, LIMITS));
        feed(&mut decoder, &end, &mut seen);
        feed(&mut decoder, &raw_frame(0x81, b"more"), &mut seen);
        feed(&mut decoder, &[0x81], &mut seen);
        assert_eq!((seen.len(), decoder.held_bytes()), (1, 0));
    }
}

#[test]
fn errors_say_how_to_close() {
    let code = |error: ProtocolError| Close::from(error).code;
    assert_eq!(code(ProtocolError::ReservedBits), CloseCode::PROTOCOL_ERROR);
    assert_eq!(code(ProtocolError::NotUtf8), CloseCode::INVALID_PAYLOAD);
    assert_eq!(code(ProtocolError::TooBig(1)), CloseCode::MESSAGE_TOO_BIG);
    assert_eq!(ProtocolError::NotMasked.to_string(), "client frame not masked");
}

#[test]
fn writes_lengths_in_their_shortest_form() {
    for (len, expected) in [
        (0, &[0x82, 0][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 126, 0, 126]),
        (65_535, &[0x82, 126, 0xff, 0xff]),
        (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        assert_eq!(&*head(Opcode::Binary, len, None), expected);
        let masked = head(Opcode::Binary, len, Some([1, 2, 3, 4]));
        assert_eq!(masked[1], expected[1] | 0x80);
        assert_eq!(masked[2..], [&expected[2..], &[1, 2, 3, 4]].concat());
    }
}

#[test]
fn a_frame_written_in_place_is_the_frame_written_at_once() {
    let lengths = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000];
    for expected_bytes in lengths {
        for len in lengths {
            for mask in [None, MASK] {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let (mut at_once, mut in_place) = (b"before".to_vec(), b"before".to_vec());
                frame(Opcode::Binary, &payload, mask, &mut at_once);
                let start = FrameStart::new(Opcode::Binary, expected_bytes, mask, &mut in_place);
                in_place.extend_from_slice(&payload);
                start.finish(&mut in_place);
                assert!(at_once == in_place, "expected {expected_bytes}, was {len}");
            }
        }
    }
}

#[test]
fn an_abandoned_frame_leaves_nothing() {
    let mut out = b"before".to_vec();
    let start = FrameStart::new(Opcode::Text, 1000, None, &mut out);
    out.extend_from_slice(b"half of someth");
    start.abandon(&mut out);
    assert_eq!(out, b"before");
}

#[test]
fn a_close_reason_is_cut_between_characters() {
    let long = "€".repeat(42);
    let mut out = Vec::new();
    close(Some(Close::new(CloseCode::POLICY_VIOLATION, &long)), MASK, &mut out);
    assert_eq!(decode(&out), [Seen::Close(Some((1008, "€".repeat(41))))]);
    out.clear();
    close(None, None, &mut out);
    assert_eq!(out, [0x88, 0]);
}
