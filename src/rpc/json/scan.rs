//! One forward pass over a JSON text. Start with [`fields`]; [`skip_value`] has the grammar.
//!
//! Each scanning function takes the text and the offset where its part begins, and gives the offset behind it.

use std::fmt;

use super::string::{special, unescape};
use super::{JsonError, JsonFault, Raw};
use crate::limits::MAX_JSON_DEPTH;

/// Nesting is remembered as one bit a level.
const _: () = assert!(MAX_JSON_DEPTH <= 64);

type Scan<T = usize> = Result<T, JsonError>;

#[cold]
fn fail<T>(fault: JsonFault, at: usize) -> Scan<T> {
    Err(JsonError { fault, at })
}

/// Fails at `at`: with `fault` when there is a byte, as cut short when there is none.
#[cold]
fn unexpected<T>(text: &[u8], at: usize, fault: JsonFault) -> Scan<T> {
    fail(if at < text.len() { fault } else { JsonFault::End }, at.min(text.len()))
}

/// Checks that `text` is one JSON value, with or without space around it.
///
/// # Errors
/// The first byte that does not belong there.
pub fn validate(text: &str) -> Result<(), JsonError> {
    let bytes = text.as_bytes();
    let end = skip_value(bytes, skip_space(bytes, 0), 0)?;
    expect_end(bytes, end)
}

/// What [`fields`] found in an object.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a, const N: usize> {
    /// The values of the keys that were asked for, in that order.
    pub values: [Option<Raw<'a>>; N],
    /// The first key that came a second time; its first value is the one in `values`.
    pub duplicate: Option<Key<'a>>,
    /// The first key that was not asked for.
    pub unknown: Option<Key<'a>>,
}

/// A key as it stood in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    /// What stands between its quotes, escapes included.
    pub inner: &'a str,
    /// The offset of its opening quote.
    pub at: usize,
}

/// As it stands, cut after 64 bytes: peers choose keys, and errors are for people.
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.inner[..self.inner.floor_char_boundary(64)];
        write!(f, "{shown}{}", if shown.len() < self.inner.len() { "…" } else { "" })
    }
}

/// Reads the object that `text` is: the raw values of `keys`, and whether other keys or one of these twice
/// were there. All of the text is checked, also what nobody asked for.
///
/// Cheapest when `keys` stand in the order in which peers usually write them.
///
/// # Errors
/// The first byte that does not belong to a JSON object.
pub fn fields<'a, const N: usize>(text: &'a str, keys: &[&str; N]) -> Result<Fields<'a, N>, JsonError> {
    let bytes = text.as_bytes();
    let mut found = Fields { values: [None; N], duplicate: None, unknown: None };
    let mut at = skip_space(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        // Nonsense is reported as such, another value as the wrong one.
        skip_value(bytes, at, 0)?;
        return fail(JsonFault::NotAnObject, at);
    }
    at = skip_space(bytes, at + 1);
    if bytes.get(at) == Some(&b'}') {
        expect_end(bytes, at + 1)?;
        return Ok(found);
    }
    let mut likely = 0;
    loop {
        let key_start = at;
        if bytes.get(at) != Some(&b'"') {
            return unexpected(bytes, at, JsonFault::Key);
        }
        let (key_end, escaped) = skip_string(bytes, at)?;
        let key = Key { inner: &text[key_start + 1..key_end - 1], at: key_start };
        at = skip_space(bytes, key_end);
        if bytes.get(at) != Some(&b':') {
            return unexpected(bytes, at, JsonFault::Colon);
        }
        let value_start = skip_space(bytes, at + 1);
        let value_end = skip_value(bytes, value_start, 1)?;
        let position = if !escaped && keys.get(likely) == Some(&key.inner) {
            Some(likely)
        } else if escaped {
            let key = unescape(key.inner);
            keys.iter().position(|wanted| *wanted == key)
        } else {
            keys.iter().position(|wanted| *wanted == key.inner)
        };
        match position {
            Some(index) if found.values[index].is_none() => {
                found.values[index] = Some(Raw(&text[value_start..value_end]));
                likely = index + 1;
            }
            Some(_) => found.duplicate = found.duplicate.or(Some(key)),
            None => found.unknown = found.unknown.or(Some(key)),
        }
        at = skip_space(bytes, value_end);
        match bytes.get(at) {
            Some(b',') => at = skip_space(bytes, at + 1),
            Some(b'}') => {
                expect_end(bytes, at + 1)?;
                return Ok(found);
            }
            _ => return unexpected(bytes, at, JsonFault::Comma),
        }
    }
}

/// Checks one value that begins at `at`, `depth` levels inside others.
fn skip_value(text: &[u8], mut at: usize, mut depth: usize) -> Scan {
    let outer = depth;
    // The innermost level is the lowest bit; set for an object.
    let mut levels: u64 = 0;
    loop {
        // A value begins at `at`.
        match text.get(at) {
            Some(b'"') => at = skip_string(text, at)?.0,
            Some(b'-' | b'0'..=b'9') => at = skip_number(text, at)?,
            Some(open @ (b'{' | b'[')) => {
                if depth == MAX_JSON_DEPTH {
                    return fail(JsonFault::Depth, at);
                }
                let is_object = *open == b'{';
                let close = *open + 2;
                at = skip_space(text, at + 1);
                if text.get(at) != Some(&close) {
                    depth += 1;
                    levels = levels << 1 | u64::from(is_object);
                    if is_object {
                        at = skip_key(text, at)?;
                    }
                    continue;
                }
                at += 1;
            }
            Some(b't') => at = skip_word(text, at, b"true")?,
            Some(b'f') => at = skip_word(text, at, b"false")?,
            Some(b'n') => at = skip_word(text, at, b"null")?,
            _ => return unexpected(text, at, JsonFault::Value),
        }
        // A value ended before `at`.
        loop {
            if depth == outer {
                return Ok(at);
            }
            at = skip_space(text, at);
            let is_object = levels & 1 != 0;
            match text.get(at) {
                Some(b',') => {
                    at = skip_space(text, at + 1);
                    if is_object {
                        at = skip_key(text, at)?;
                    }
                    break;
                }
                Some(b'}') if is_object => {}
                Some(b']') if !is_object => {}
                _ => return unexpected(text, at, JsonFault::Comma),
            }
            at += 1;
            depth -= 1;
            levels >>= 1;
        }
    }
}

/// Checks a key and its colon; gives where the value begins.
#[inline]
fn skip_key(text: &[u8], at: usize) -> Scan {
    if text.get(at) != Some(&b'"') {
        return unexpected(text, at, JsonFault::Key);
    }
    let at = skip_space(text, skip_string(text, at)?.0);
    if text.get(at) != Some(&b':') {
        return unexpected(text, at, JsonFault::Colon);
    }
    Ok(skip_space(text, at + 1))
}

/// Checks the string whose opening quote is at `at`; says whether it has escapes.
#[inline]
fn skip_string(text: &[u8], at: usize) -> Scan<(usize, bool)> {
    let mut escaped = false;
    let mut at = at + 1;
    loop {
        at = special(text, at);
        match text.get(at) {
            Some(b'"') => return Ok((at + 1, escaped)),
            Some(b'\\') => {
                at = skip_escape(text, at)?;
                escaped = true;
            }
            _ => return unexpected(text, at, JsonFault::Control),
        }
    }
}

/// Checks the escape whose backslash is at `at`.
fn skip_escape(text: &[u8], at: usize) -> Scan {
    match text.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => match hex4(text, at + 2)? {
            0xd800..0xdc00 => {
                if text.get(at + 6) != Some(&b'\\') || text.get(at + 7) != Some(&b'u') {
                    return fail(JsonFault::Surrogate, at);
                }
                match hex4(text, at + 8)? {
                    0xdc00..0xe000 => Ok(at + 12),
                    _ => fail(JsonFault::Surrogate, at),
                }
            }
            0xdc00..0xe000 => fail(JsonFault::Surrogate, at),
            _ => Ok(at + 6),
        },
        _ => unexpected(text, at + 1, JsonFault::Escape),
    }
}

/// The four hex digits at `at`.
fn hex4(text: &[u8], at: usize) -> Scan<u32> {
    let mut value = 0;
    for offset in 0..4 {
        match text.get(at + offset).and_then(|digit| char::from(*digit).to_digit(16)) {
            Some(digit) => value = value << 4 | digit,
            None => return unexpected(text, at + offset, JsonFault::Escape),
        }
    }
    Ok(value)
}

/// Checks the number that begins at `at`.
#[inline]
fn skip_number(text: &[u8], mut at: usize) -> Scan {
    if text[at] == b'-' {
        at += 1;
    }
    at = if text.get(at) == Some(&b'0') { at + 1 } else { skip_digits(text, at)? };
    if text.get(at) == Some(&b'.') {
        at = skip_digits(text, at + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = text.get(at) {
            at += 1;
        }
        at = skip_digits(text, at)?;
    }
    match text.get(at) {
        Some(b'0'..=b'9') => fail(JsonFault::Number, at),
        _ => Ok(at),
    }
}

/// One digit or more.
#[inline]
fn skip_digits(text: &[u8], mut at: usize) -> Scan {
    let start = at;
    while text.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    if at == start { unexpected(text, at, JsonFault::Number) } else { Ok(at) }
}

#[inline]
fn skip_word(text: &[u8], at: usize, word: &[u8]) -> Scan {
    if text[at..].starts_with(word) { Ok(at + word.len()) } else { fail(JsonFault::Value, at) }
}

#[inline]
fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

#[inline]
fn expect_end(text: &[u8], at: usize) -> Scan<()> {
    let at = skip_space(text, at);
    if at == text.len() { Ok(()) } else { fail(JsonFault::Trailing, at) }
}
