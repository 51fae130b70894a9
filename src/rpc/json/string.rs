//! JSON strings: finding what is special in them, escaping, unescaping.
//!
//! Everything works on blocks of 16 bytes: [`specials`] says which of them need a look, the rest is copied.

use super::scan::validate_bytes;
use super::{JsonError, RawString};

/// Bytes looked at together.
const BLOCK: usize = 16;
/// Blocks of a string after which it counts as long.
const SHORT_BLOCKS: usize = 4;

/// The offset of the first quote, backslash or control character from `at` on, or the length of `text`.
#[inline]
pub(super) fn special(text: &[u8], mut at: usize) -> usize {
    for _ in 0..SHORT_BLOCKS {
        let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk()) else { return special_near_end(text, at) };
        let hits = specials(block);
        if hits != 0 {
            return at + hits.trailing_zeros() as usize;
        }
        at += BLOCK;
    }
    special_far(text, at)
}

/// The same in a string that is known to be long.
fn special_far(text: &[u8], at: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { special_by_64(text, at) };
    }
    special_by_16(text, at)
}

fn special_by_16(text: &[u8], mut at: usize) -> usize {
    while let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        let hits = specials(block);
        if hits != 0 {
            return at + hits.trailing_zeros() as usize;
        }
        at += BLOCK;
    }
    special_near_end(text, at)
}

/// Two vectors of 32 bytes at a time, and one question about both.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn special_by_64(text: &[u8], mut at: usize) -> usize {
    use std::arch::x86_64::{
        __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256,
        _mm256_set1_epi8,
    };
    let quote = _mm256_set1_epi8(b'"'.cast_signed());
    let backslash = _mm256_set1_epi8(b'\\'.cast_signed());
    let last_control = _mm256_set1_epi8(0x1f);
    let specials = |half: &[u8; 32]| {
        // SAFETY: the 32 bytes that are loaded are there, at any alignment.
        let bytes = unsafe { _mm256_loadu_si256(half.as_ptr().cast::<__m256i>()) };
        let controls = _mm256_cmpeq_epi8(bytes, _mm256_min_epu8(bytes, last_control));
        let named = _mm256_or_si256(_mm256_cmpeq_epi8(bytes, quote), _mm256_cmpeq_epi8(bytes, backslash));
        _mm256_or_si256(controls, named)
    };
    while let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk::<64>()) {
        let ([low, high], _) = block.as_chunks() else { break };
        let (low, high) = (specials(low), specials(high));
        if _mm256_movemask_epi8(_mm256_or_si256(low, high)) != 0 {
            let (low, high) = (_mm256_movemask_epi8(low).cast_unsigned(), _mm256_movemask_epi8(high).cast_unsigned());
            return at + (u64::from(high) << 32 | u64::from(low)).trailing_zeros() as usize;
        }
        at += 64;
    }
    special_by_16(text, at)
}

/// The same for less than a block.
#[inline]
fn special_near_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    rest.iter().position(|byte| is_special(*byte)).map_or(text.len(), |run| at + run)
}

const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Which bytes of a block are special: bit 0 is the first byte.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn specials(block: &[u8; BLOCK]) -> u32 {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: every x86-64 has SSE2; the block has the 16 bytes that are loaded, at any alignment.
    unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast::<__m128i>());
        let quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"'.cast_signed()));
        let backslashes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\'.cast_signed()));
        let controls = _mm_cmpeq_epi8(bytes, _mm_min_epu8(bytes, _mm_set1_epi8(0x1f)));
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quotes, backslashes), controls)).cast_unsigned()
    }
}

/// Which bytes of a block are special: bit 0 is the first byte.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(super) fn specials(block: &[u8; BLOCK]) -> u32 {
    block.iter().rev().fold(0, |hits, byte| hits << 1 | u32::from(is_special(*byte)))
}

/// A block and what follows it, with spaces behind the end of the text.
#[inline]
fn window<'a>(rest: &'a [u8], padded: &'a mut [u8; 2 * BLOCK]) -> &'a [u8; 2 * BLOCK] {
    match rest.first_chunk() {
        Some(window) => window,
        None => {
            padded[..rest.len()].copy_from_slice(rest);
            padded
        }
    }
}

/// Writes the bytes of a window from `from` to `to`, at most a block of them; gives how many. What lies
/// behind them in `out` is overwritten, up to a block.
#[inline]
fn copy_run(window: &[u8; 2 * BLOCK], from: usize, to: usize, out: &mut [u8]) -> usize {
    out[..BLOCK].copy_from_slice(&window[from..from + BLOCK]);
    to - from
}

/// Appends `text` as a JSON string, quotes included. So a raw JSON value becomes the content of a string.
pub fn push_string(text: &str, out: &mut Vec<u8>) {
    /// What one block needs: every byte as `\u00xx`, and a run behind it that is not there.
    const ROOM: usize = 6 * BLOCK + BLOCK;
    let bytes = text.as_bytes();
    let mut write = out.len();
    out.resize(write + bytes.len() + bytes.len() / 4 + ROOM + 2, 0);
    out[write] = b'"';
    write += 1;
    let mut at = 0;
    while at < bytes.len() {
        if out.len() - write < ROOM + 1 {
            out.resize(out.len() + bytes.len() - at + ROOM, 0);
        }
        let rest = &bytes[at..];
        let mut padded = [b' '; 2 * BLOCK];
        let window = window(rest, &mut padded);
        let end = rest.len().min(BLOCK);
        let mut hits = specials(&window.as_chunks().0[0]);
        if hits == 0 && end == BLOCK {
            let run = special(bytes, at + BLOCK) - at;
            if out.len() - write < run + ROOM + 1 {
                out.resize(write + bytes.len() - at + ROOM + 1, 0);
            }
            out[write..write + run].copy_from_slice(&rest[..run]);
            write += run;
            at += run;
            continue;
        }
        let mut from = 0;
        while hits != 0 {
            let hit = hits.trailing_zeros() as usize;
            write += copy_run(window, from, hit, &mut out[write..]);
            write += write_escape(window[hit], &mut out[write..]);
            from = hit + 1;
            hits &= hits - 1;
        }
        write += copy_run(window, from, end, &mut out[write..]);
        at += end;
    }
    out[write] = b'"';
    out.truncate(write + 1);
}

/// Writes the escape of a special byte; gives its length.
#[inline]
fn write_escape(byte: u8, out: &mut [u8]) -> usize {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out[..6].copy_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            return 6;
        }
    };
    out[..2].copy_from_slice(&[b'\\', short]);
    2
}

/// What the inside of a valid JSON string says.
pub(super) fn unescape(inner: &str) -> String {
    let mut out = Vec::new();
    unescape_into(inner, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// Appends what the inside of a valid JSON string says: UTF-8, and never longer than `inner`.
fn unescape_into(inner: &str, out: &mut Vec<u8>) {
    let bytes = inner.as_bytes();
    let mut write = out.len();
    out.resize(write + bytes.len() + BLOCK, 0);
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let mut padded = [b' '; 2 * BLOCK];
        let window = window(rest, &mut padded);
        let end = rest.len().min(BLOCK);
        // Inside a valid string a special byte is a backslash, or was escaped by one.
        let mut hits = specials(&window.as_chunks().0[0]);
        if hits == 0 && end == BLOCK {
            let run = special(bytes, at + BLOCK) - at;
            out[write..write + run].copy_from_slice(&rest[..run]);
            write += run;
            at += run;
            continue;
        }
        let mut from = 0;
        while hits != 0 {
            let hit = hits.trailing_zeros() as usize;
            write += copy_run(window, from, hit, &mut out[write..]);
            let plain = match window[hit + 1] {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                quoted => quoted,
            };
            out[write] = plain;
            if plain == b'u' {
                let (character, escape_bytes) = unicode_escape(&window[hit..]);
                write += character.encode_utf8(&mut out[write..]).len();
                from = hit + escape_bytes;
            } else {
                write += 1;
                from = hit + 2;
            }
            hits = hits >> from << from;
        }
        if from < end {
            write += copy_run(window, from, end, &mut out[write..]);
            from = end;
        }
        at += from;
    }
    out.truncate(write);
}

/// The character that a valid `\u` escape or pair of them means, and how long that is.
fn unicode_escape(escape: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let digits = escape.get(at..at + 4).unwrap_or_default();
        digits.iter().fold(0, |unit, digit| unit << 4 | char::from(*digit).to_digit(16).unwrap_or(0))
    };
    let (code, escape_bytes) = match unit(2) {
        high @ 0xd800..0xdc00 => (0x10000 + ((high & 0x3ff) << 10 | unit(8) & 0x3ff), 12),
        code => (code, 6),
    };
    (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), escape_bytes)
}

/// Appends the JSON value that is the content of `string`, unescaped once and checked once.
///
/// # Errors
/// The content is not one JSON value; `at` counts in the unescaped content. `out` is as it was before.
pub fn splice(string: RawString<'_>, out: &mut Vec<u8>) -> Result<(), JsonError> {
    let start = out.len();
    unescape_into(string.inner(), out);
    let result = validate_bytes(&out[start..]);
    if result.is_err() {
        out.truncate(start);
    }
    result
}
