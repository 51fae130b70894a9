//! JSON as text: checked and cut into spans, never built into a tree.
//!
//! A relay needs to know that a value is valid and where it ends, not what is in it. [`validate`] checks one
//! value, [`fields`] gives the raw values of an object's keys, and strings are escaped and unescaped so that
//! JSON can travel inside a JSON string (`paramsJSON`, `payloadJSON`). What a value means is not known here.
//!
//! Strict as RFC 8259 with I-JSON's rule for strings: no raw control characters, no lone surrogates, no comments,
//! no trailing commas, nesting bounded by [`MAX_JSON_DEPTH`](crate::limits::MAX_JSON_DEPTH). Numbers of any
//! size pass: their digits are relayed.
//!
//! Start with [`fields`].

mod fields;
mod scan;
mod string;

use std::borrow::Cow;

pub(in crate::rpc) use fields::fields_and_members;
pub use fields::{Fields, Key, Members, fields};
pub use scan::validate;
pub use string::{push_string, splice};

/// One valid JSON value as it stood in its text, without space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

impl<'a> Raw<'a> {
    /// Checks `text`, which may have space around the value.
    ///
    /// # Errors
    /// The first byte that does not belong there.
    pub fn new(text: &'a str) -> Result<Self, JsonError> {
        validate(text)?;
        Ok(Self(text.trim_matches([' ', '\t', '\n', '\r'])))
    }

    /// The text of the value.
    #[inline]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// The value as a string; `None` when it is something else.
    #[inline]
    pub fn as_string(self) -> Option<RawString<'a>> {
        self.0.starts_with('"').then_some(RawString(self.0))
    }

    /// The value as a boolean.
    pub fn as_bool(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The value as an integer, where it is written as one: `1`, but not `1.0` or `1e0`.
    pub fn as_u64(self) -> Option<u64> {
        self.0.parse().ok()
    }

    /// Whether it is an object.
    pub fn is_object(self) -> bool {
        self.0.starts_with('{')
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.0 == "null"
    }
}

/// One valid JSON string as it stood in its text, quotes and escapes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawString<'a>(&'a str);

impl<'a> RawString<'a> {
    /// The text, quotes and escapes included: fit to be echoed.
    #[inline]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// What stands between the quotes.
    #[inline]
    pub fn inner(self) -> &'a str {
        &self.0[1..self.0.len() - 1]
    }

    /// What the string says. Borrowed where it has no escapes.
    #[inline]
    pub fn decode(self) -> Cow<'a, str> {
        let inner = self.inner();
        // What is special inside a valid string is an escape.
        if string::special(inner.as_bytes(), 0) == inner.len() {
            Cow::Borrowed(inner)
        } else {
            Cow::Owned(string::unescape(inner))
        }
    }
}

/// Where and why a text is not JSON as this gateway takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault} at byte {at}")]
pub struct JsonError {
    /// What is wrong.
    pub fault: JsonFault,
    /// Bytes before the one that is wrong.
    pub at: usize,
}

/// What is wrong with a JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonFault {
    /// It ends in the middle of a value.
    #[error("unexpected end of JSON")]
    End,
    /// Something that no value begins with.
    #[error("expected a JSON value")]
    Value,
    /// An object key is not a string.
    #[error("expected an object key in quotes")]
    Key,
    /// No colon behind an object key.
    #[error("expected ':' after an object key")]
    Colon,
    /// Neither a comma nor the end of the array or object.
    #[error("expected ',' or the end of the array or object")]
    Comma,
    /// A number that RFC 8259 does not know: `01`, `1.`, `+1`.
    #[error("invalid number")]
    Number,
    /// A control character in a string, to be written as an escape.
    #[error("control character in a string")]
    Control,
    /// An escape that RFC 8259 does not know.
    #[error("invalid escape in a string")]
    Escape,
    /// Half of a surrogate pair.
    #[error("lone surrogate in a string")]
    Surrogate,
    /// Arrays and objects inside each other deeper than the limit.
    #[error("nested too deep")]
    Depth,
    /// Something behind the end of the value.
    #[error("unexpected text after the JSON value")]
    Trailing,
    /// Something else where an object is expected.
    #[error("expected a JSON object")]
    NotAnObject,
}

#[cfg(test)]
mod tests;
