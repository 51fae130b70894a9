//! One forward pass over a JSON text. [`Scanner::skip_value`] has the grammar.

use std::ops::Range;

use super::string::special;
use super::{JsonError, JsonFault};
use crate::limits::MAX_JSON_DEPTH;

/// Nesting is remembered as one bit a level.
const _: () = assert!(MAX_JSON_DEPTH <= 64);

/// Checks that `text` is one JSON value, with or without space around it.
///
/// # Errors
/// The first byte that does not belong there.
pub fn validate(text: &str) -> Result<(), JsonError> {
    validate_bytes(text.as_bytes())
}

/// The same for a text that is UTF-8 by its making.
pub(super) fn validate_bytes(text: &[u8]) -> Result<(), JsonError> {
    let mut scanner = Scanner::new(text);
    scanner.skip_only_value().map_err(|fault| scanner.error(fault))
}

/// The text and how far it is read. On a fault, `at` is the byte to blame.
pub(super) struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
}

pub(super) type Scan<T = ()> = Result<T, JsonFault>;

impl<'t> Scanner<'t> {
    /// At the beginning of `text`.
    pub(super) const fn new(text: &'t [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// How far the text is read.
    #[inline]
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// The next byte.
    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// The fault with the byte to blame.
    #[cold]
    pub(super) fn error(&self, fault: JsonFault) -> JsonError {
        let cut_short = self.at >= self.text.len();
        JsonError { fault: if cut_short { JsonFault::End } else { fault }, at: self.at.min(self.text.len()) }
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Skips `byte`, or blames what is there instead.
    #[inline]
    fn expect(&mut self, byte: u8, otherwise: JsonFault) -> Scan {
        if self.peek() != Some(byte) {
            return Err(otherwise);
        }
        self.at += 1;
        Ok(())
    }

    /// A value and nothing else.
    fn skip_only_value(&mut self) -> Scan {
        self.skip_space();
        self.skip_value(0)?;
        self.expect_end()
    }

    fn expect_end(&mut self) -> Scan {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(JsonFault::Trailing) }
    }

    /// An object and nothing else; see [`Scanner::skip_members`].
    #[inline]
    pub(super) fn skip_only_object(&mut self, member: impl FnMut(&mut Self, Range<usize>) -> Scan) -> Scan {
        self.skip_space();
        if self.peek() != Some(b'{') {
            // Nonsense is reported as such, another value as the wrong one.
            let start = self.at;
            self.skip_value(0)?;
            self.at = start;
            return Err(JsonFault::NotAnObject);
        }
        self.skip_members(member)?;
        self.expect_end()
    }

    /// An object from its opening brace on, which is there. `member` is told where each key stands, without its quotes,
    /// and has to skip the value.
    #[inline]
    pub(super) fn skip_members(&mut self, mut member: impl FnMut(&mut Self, Range<usize>) -> Scan) -> Scan {
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key_start = self.at + 1;
            self.expect(b'"', JsonFault::Key)?;
            self.skip_string_rest()?;
            let key = key_start..self.at - 1;
            self.skip_space();
            self.expect(b':', JsonFault::Colon)?;
            self.skip_space();
            member(self, key)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(JsonFault::Comma),
            }
            self.skip_space();
        }
    }

    /// One value, `outer` levels inside others.
    #[inline]
    pub(super) fn skip_value(&mut self, outer: usize) -> Scan {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.skip_string_rest()
            }
            _ => self.skip_other_value(outer),
        }
    }

    fn skip_other_value(&mut self, outer: usize) -> Scan {
        let mut depth = outer;
        // The innermost level is the lowest bit; set for an object.
        let mut levels: u64 = 0;
        loop {
            // A value begins here.
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.skip_string_rest()?;
                }
                Some(b'-' | b'0'..=b'9') => self.skip_number()?,
                Some(open @ (b'{' | b'[')) => {
                    if depth == MAX_JSON_DEPTH {
                        return Err(JsonFault::Depth);
                    }
                    self.at += 1;
                    self.skip_space();
                    // ASCII has the closing brackets two behind the opening ones.
                    if self.peek() == Some(open + 2) {
                        self.at += 1;
                    } else {
                        depth += 1;
                        levels = levels << 1 | u64::from(open == b'{');
                        if open == b'{' {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                Some(b't') => self.skip_word(b"true")?,
                Some(b'f') => self.skip_word(b"false")?,
                Some(b'n') => self.skip_word(b"null")?,
                _ => return Err(JsonFault::Value),
            }
            // A value has ended.
            while depth > outer {
                let in_object = levels & 1 != 0;
                self.skip_space();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.skip_space();
                        if in_object {
                            self.skip_key()?;
                        }
                        break;
                    }
                    Some(b'}') if in_object => {}
                    Some(b']') if !in_object => {}
                    _ => return Err(JsonFault::Comma),
                }
                self.at += 1;
                depth -= 1;
                levels >>= 1;
                if depth == outer {
                    return Ok(());
                }
            }
            if depth == outer {
                return Ok(());
            }
        }
    }

    /// A key, its colon, and the space around that.
    #[inline]
    fn skip_key(&mut self) -> Scan {
        self.expect(b'"', JsonFault::Key)?;
        self.skip_string_rest()?;
        self.skip_space();
        self.expect(b':', JsonFault::Colon)?;
        self.skip_space();
        Ok(())
    }

    /// A string from behind its opening quote.
    #[inline]
    fn skip_string_rest(&mut self) -> Scan {
        loop {
            self.at = special(self.text, self.at);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.skip_escape()?,
                _ => return Err(JsonFault::Control),
            }
        }
    }

    /// An escape from its backslash on.
    fn skip_escape(&mut self) -> Scan {
        let start = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                let unit = self.skip_hex4()?;
                if !(0xd800..0xe000).contains(&unit) {
                    return Ok(());
                }
                // The other half must follow.
                if unit < 0xdc00 && self.text[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    if let 0xdc00..0xe000 = self.skip_hex4()? {
                        return Ok(());
                    }
                }
                self.at = start;
                Err(JsonFault::Surrogate)
            }
            _ => Err(JsonFault::Escape),
        }
    }

    /// Four hex digits.
    fn skip_hex4(&mut self) -> Scan<u32> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|digit| char::from(digit).to_digit(16)).ok_or(JsonFault::Escape)?;
            value = value << 4 | digit;
            self.at += 1;
        }
        Ok(value)
    }

    #[inline]
    fn skip_number(&mut self) -> Scan {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if let Some(b'0'..=b'9') = self.peek() {
                return Err(JsonFault::Number);
            }
        } else {
            self.skip_digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.skip_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.skip_digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    #[inline]
    fn skip_digits(&mut self) -> Scan {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(JsonFault::Number) } else { Ok(()) }
    }

    #[inline]
    fn skip_word(&mut self, word: &[u8]) -> Scan {
        if !self.text[self.at..].starts_with(word) {
            return Err(JsonFault::Value);
        }
        self.at += word.len();
        Ok(())
    }
}
