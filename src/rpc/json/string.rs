//! JSON strings: what is special in them, escaping, unescaping.
//!
//! Start with [`special`]: everything here copies the runs between the bytes it finds.

use super::scan::validate;
use super::{JsonError, RawString};

/// The offset of the first quote, backslash or control character from `at` on, or the length of `text`.
#[inline]
pub(super) fn special(text: &[u8], mut at: usize) -> usize {
    // Keys, ids and runs between escapes are short: words first.
    for _ in 0..4 {
        let Some(word) = text.get(at..).and_then(|rest| rest.first_chunk()) else { return special_in_rest(text, at) };
        let hits = special_bytes(u64::from_le_bytes(*word));
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    special_in_long(text, at)
}

/// For long strings: blocks that the compiler turns into vector instructions.
fn special_in_long(text: &[u8], mut at: usize) -> usize {
    const BLOCK: usize = 32;
    while let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk::<BLOCK>()) {
        if block.iter().fold(false, |hit, byte| hit | is_special(*byte)) {
            break;
        }
        at += BLOCK;
    }
    special_in_rest(text, at)
}

fn special_in_rest(text: &[u8], at: usize) -> usize {
    text.get(at..)
        .and_then(|rest| rest.iter().position(|byte| is_special(*byte)))
        .map_or(text.len(), |found| at + found)
}

#[inline]
const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Marks the special bytes of a little-endian word by their top bit. Exact up to the first one.
#[inline]
const fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const TOPS: u64 = ONES << 7;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let zero_in_quote = quote.wrapping_sub(ONES) & !quote;
    let zero_in_backslash = backslash.wrapping_sub(ONES) & !backslash;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word;
    (zero_in_quote | zero_in_backslash | below_space) & TOPS
}

/// Appends `text` as a JSON string, quotes included. So a raw JSON value becomes the content of a string.
pub fn push_string(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + bytes.len() / 8 + 2);
    out.push(b'"');
    let mut start = 0;
    loop {
        let at = special(bytes, start);
        out.extend_from_slice(&bytes[start..at]);
        let Some(&byte) = bytes.get(at) else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
            }
        }
        start = at + 1;
    }
    out.push(b'"');
}

/// What the inside of a valid JSON string says.
pub(super) fn unescape(inner: &str) -> String {
    let mut out = Vec::with_capacity(inner.len());
    unescape_into(inner, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// Appends what the inside of a valid JSON string says.
fn unescape_into(inner: &str, out: &mut Vec<u8>) {
    let bytes = inner.as_bytes();
    let mut start = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[start..]) {
        let at = start + found;
        out.extend_from_slice(&bytes[start..at]);
        start = at + 2;
        match bytes.get(at + 1) {
            Some(b'b') => out.push(0x08),
            Some(b'f') => out.push(0x0c),
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b't') => out.push(b'\t'),
            Some(b'u') => {
                let (character, end) = unicode_escape(inner, at);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                start = end;
            }
            Some(other) => out.push(*other),
            None => break,
        }
    }
    out.extend_from_slice(bytes.get(start..).unwrap_or_default());
}

/// The character that the `\u` escape at `at` means, and where the escape ends.
fn unicode_escape(inner: &str, at: usize) -> (char, usize) {
    let unit =
        |at: usize| inner.get(at + 2..at + 6).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    let first = unit(at);
    if let 0xd800..0xdc00 = first {
        let second = unit(at + 6);
        let code = 0x10000 + ((first & 0x3ff) << 10 | second & 0x3ff);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), at + 12);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), at + 6)
}

/// Appends the JSON value that is the content of `string`, unescaped once and checked once.
///
/// # Errors
/// The content is not one JSON value; `at` counts in the unescaped content. `out` is as it was before.
pub fn splice(string: RawString<'_>, out: &mut Vec<u8>) -> Result<(), JsonError> {
    let start = out.len();
    unescape_into(string.inner(), out);
    let content = std::str::from_utf8(&out[start..]).unwrap_or_default();
    let result = validate(content);
    if result.is_err() {
        out.truncate(start);
    }
    result
}
