//! The JSON5 text of a configuration file as a tree that knows where everything stands.
//!
//! It knows JSON5 and paths, and nothing of what keys mean (see [`super::decode`]) or of files (see
//! [`super::load`]). Start at [`Document::parse`]; [`super::edit`] changes documents.
//!
//! Stricter than JSON5 in two points: a key may stand only once in an object, for two values of one setting
//! are a mistake that only shows when the wrong one wins; and a document is at most [`MAX_DOCUMENT_BYTES`]
//! long and [`MAX_DEPTH`] levels deep.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};
use serde::{Serialize, Serializer};

use super::key_path::{KeyPath, Step};

/// Bytes a document may have.
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// Levels of nesting a document may have.
pub const MAX_DEPTH: usize = 64;

/// JSON5 as its specification has it.
pub(super) const JSON5: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: true,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: true,
    allow_hexadecimal_numbers: true,
    allow_unary_plus_numbers: true,
    allow_bare_decimal_point_numbers: true,
    allow_non_finite_numbers: true,
    allow_extended_string_escapes: true,
};

/// A place in a text, as editors count: the first character is line 1, column 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A text that is not a document, and where it stops to be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where.
    pub position: Position,
    /// What is wrong there, without the place.
    pub message: String,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// The bytes of the text it was read from.
    pub span: Range<usize>,
}

/// A JSON5 value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A number as it is written: `18789`, `0x4965`, `+.5`, `Infinity`.
    Number(String),
    /// A string, unescaped.
    String(String),
    /// A list.
    Array(Vec<Node>),
    /// An object, in the order of the text; every key once.
    Object(Vec<Member>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The key, unescaped and without quotes.
    pub key: String,
    /// The bytes of the text the key was read from.
    pub key_span: Range<usize>,
    /// The value.
    pub node: Node,
}

impl Value {
    /// The members, when this is an object.
    pub fn as_object(&self) -> Option<&[Member]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The text, when this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number, when this is one.
    pub fn as_f64(&self) -> Option<f64> {
        let Self::Number(text) = self else { return None };
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1.0, digits),
            None => (1.0, text.strip_prefix('+').unwrap_or(text)),
        };
        let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            // Past 2^53 a float cannot tell neighbours apart anyway; nothing here counts that far.
            Some(hex) => {
                hex.bytes().try_fold(0.0, |sum, b| Some(sum * 16.0 + f64::from(char::from(b).to_digit(16)?)))?
            }
            None => digits.parse().ok()?,
        };
        Some(sign * magnitude)
    }

    /// The member of that key, when this is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_object()?.iter().find(|member| member.key == key).map(|member| &member.node)
    }

    /// As plain JSON, members sorted by key; see the `Serialize` implementation for the order of the text.
    /// Numbers that JSON cannot say become `null`.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Number(text) => match text.parse::<serde_json::Number>() {
                Ok(number) => number.into(),
                Err(_) => self.as_f64().map_or(serde_json::Value::Null, json_number),
            },
            Self::String(text) => text.as_str().into(),
            Self::Array(nodes) => nodes.iter().map(|node| node.value.to_json()).collect(),
            Self::Object(members) => {
                members.iter().map(|member| (member.key.clone(), member.node.value.to_json())).collect()
            }
        }
    }

    /// What kind of value this is, with an article: for error messages.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl Serialize for Value {
    /// As JSON with the members in the order of the text.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Array(nodes) => serializer.collect_seq(nodes.iter().map(|node| &node.value)),
            Self::Object(members) => {
                serializer.collect_map(members.iter().map(|member| (&member.key, &member.node.value)))
            }
            scalar => scalar.to_json().serialize(serializer),
        }
    }
}

/// Integers stay integers, so that `0x10` reads as 16 and not as 16.0.
#[expect(clippy::cast_possible_truncation, reason = "the guard keeps the value within the exact integers of an f64")]
fn json_number(number: f64) -> serde_json::Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT { (number as i64).into() } else { number.into() }
}

/// A parsed document; its root is an object. `Debug` does not show what is in it, for there are secrets.
#[derive(Clone, PartialEq)]
pub struct Document {
    text: String,
    root: Node,
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("bytes", &self.text.len()).finish_non_exhaustive()
    }
}

impl Document {
    /// The document of a file that does not exist.
    pub fn empty() -> Self {
        Self { text: "{}\n".to_owned(), root: Node { value: Value::Object(Vec::new()), span: 0..2 } }
    }

    /// Parses `text`. The root must be an object.
    ///
    /// # Errors
    /// [`SyntaxError`] at the first place where it is not JSON5, repeats a key, or is too deep.
    pub fn parse(text: impl Into<String>) -> Result<Self, SyntaxError> {
        let mut text = text.into();
        if text.starts_with('\u{feff}') {
            // Some editors put a byte order mark there; it says nothing about UTF-8.
            text.drain(..'\u{feff}'.len_utf8());
        }
        let root = parse_value(&text)?;
        if root.value.as_object().is_none() {
            let message = format!("the file must hold an object {{ … }}, not {}", root.value.kind());
            return Err(SyntaxError { position: position(&text, root.span.start), message });
        }
        Ok(Self { text, root })
    }

    /// The text, byte for byte.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The root object.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Where the byte at `offset` stands.
    pub fn position(&self, offset: usize) -> Position {
        position(&self.text, offset)
    }

    /// The value at `path`.
    pub fn get(&self, path: &KeyPath) -> Option<&Node> {
        path.steps().iter().try_fold(&self.root, |node, step| match (&node.value, step) {
            (Value::Object(_), Step::Key(key)) => node.value.get(key),
            (Value::Object(_), Step::Index(index)) => node.value.get(&index.to_string()),
            (Value::Array(nodes), step) => nodes.get(list_index(step)?),
            _ => None,
        })
    }

    /// The bytes of every comment, its marks included.
    pub fn comments(&self) -> Vec<Range<usize>> {
        let collect = CollectOptions { comments: CommentCollectionStrategy::Separate, tokens: false };
        let Ok(parsed) = parse_to_ast(&self.text, &collect, &JSON5) else { return Vec::new() };
        // The map has every comment twice: under the end of the token before it and the start of the next.
        let mut spans: Vec<_> = parsed
            .comments
            .into_iter()
            .flatten()
            .flat_map(|(_, comments)| {
                comments.iter().map(|comment| comment.range().start..comment.range().end).collect::<Vec<_>>()
            })
            .collect();
        spans.sort_unstable_by_key(|span| span.start);
        spans.dedup();
        spans
    }
}

/// Parses one JSON5 value of any kind, under the same rules as a document.
///
/// # Errors
/// As [`Document::parse`].
pub fn parse_value(text: &str) -> Result<Node, SyntaxError> {
    if text.len() > MAX_DOCUMENT_BYTES {
        let message = format!("the text is longer than {} MiB", MAX_DOCUMENT_BYTES >> 20);
        return Err(SyntaxError { position: Position { line: 1, column: 1 }, message });
    }
    let collect = CollectOptions { comments: CommentCollectionStrategy::Off, tokens: false };
    let parsed = parse_to_ast(text, &collect, &JSON5).map_err(|error| syntax_error(text, &error))?;
    let Some(value) = parsed.value else {
        return Err(SyntaxError { position: position(text, text.len()), message: "there is no value".to_owned() });
    };
    node(text, value, 1)
}

fn node(text: &str, value: ast::Value<'_>, depth: usize) -> Result<Node, SyntaxError> {
    let range = value.range();
    if depth > MAX_DEPTH {
        let message = format!("values are nested more than {MAX_DEPTH} deep");
        return Err(SyntaxError { position: position(text, range.start), message });
    }
    let value = match value {
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::BooleanLit(literal) => Value::Bool(literal.value),
        ast::Value::NumberLit(literal) => Value::Number(literal.value.to_owned()),
        ast::Value::StringLit(literal) => Value::String(literal.value.into_owned()),
        ast::Value::Array(array) => Value::Array(
            array.elements.into_iter().map(|element| node(text, element, depth + 1)).collect::<Result<_, _>>()?,
        ),
        ast::Value::Object(object) => {
            let mut seen = HashSet::new();
            let mut members = Vec::with_capacity(object.properties.len());
            for property in object.properties {
                let key_range = property.name.range();
                let key = property.name.into_string();
                if !seen.insert(key.clone()) {
                    let message = format!("the key {key:?} stands twice in this object; keep one of them");
                    return Err(SyntaxError { position: position(text, key_range.start), message });
                }
                let node = node(text, property.value, depth + 1)?;
                members.push(Member { key, key_span: key_range.start..key_range.end, node });
            }
            Value::Object(members)
        }
    };
    Ok(Node { value, span: range.start..range.end })
}

pub(super) fn syntax_error(text: &str, error: &jsonc_parser::errors::ParseError) -> SyntaxError {
    let mut message = error.kind().to_string();
    message[..1].make_ascii_lowercase();
    SyntaxError { position: position(text, error.range().start), message }
}

fn position(text: &str, offset: usize) -> Position {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    // Bytes that continue a character do not count as columns.
    let column = before[line_start..].iter().filter(|b| (**b & 0xC0) != 0x80).count();
    Position { line: before.iter().filter(|b| **b == b'\n').count() + 1, column: column + 1 }
}

pub(super) fn list_index(step: &Step) -> Option<usize> {
    match step {
        Step::Index(index) => Some(*index),
        Step::Key(key) => key.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> serde_json::Value {
        parse_value(text).unwrap().value.to_json()
    }

    fn error(text: &str) -> (usize, usize, String) {
        let error = Document::parse(text).unwrap_err();
        (error.position.line, error.position.column, error.message)
    }

    #[test]
    fn reads_all_of_json5() {
        let text = "// line\n{ /* block */ $schema: 'x', \"quoted\": \"a\\\nb\\x41\", häß_1: [+1, -.5, 5., 0xFf, 1e3,], n: null, t: true, }";
        let expected = serde_json::json!({
            "$schema": "x", "quoted": "abA", "häß_1": [1, -0.5, 5, 255, 1000.0], "n": null, "t": true
        });
        assert_eq!(json(text), expected);
        assert_eq!(json("\u{a0}[\u{2028}1,\u{b}\u{c}2\t]"), serde_json::json!([1, 2]));
        assert_eq!(json("[Infinity, -Infinity, NaN]"), serde_json::json!([null, null, null]));
    }

    #[test]
    fn drops_a_byte_order_mark() {
        assert_eq!(Document::parse("\u{feff}{a: 1}").unwrap().text(), "{a: 1}");
    }

    #[test]
    fn says_where_the_text_is_wrong() {
        assert_eq!(error("{\n  a: 1\n  b: 2\n}"), (2, 7, "expected comma".to_owned()));
        assert_eq!(
            error("{\n  ä: 'ö', b b: 2\n}"),
            (2, 13, "expected colon after the string or word in object property".to_owned())
        );
        let (line, column, message) = error("{a: 1,\n  'a': 2}");
        assert_eq!((line, column), (2, 3));
        assert!(message.contains("twice"), "{message}");
        assert_eq!(error("").2, "there is no value");
        assert!(error("[]").2.contains("a list"));
        for text in ["{", "{a:}", "{a:1}}", "{a:'x}", "{a:1} b", "{/*", "{a:01x}", "{'a' 1}", "{,}"] {
            error(text);
        }
    }

    #[test]
    fn bounds_length_and_depth() {
        let nested = |depth: usize| format!("{{a:{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(Document::parse(nested(MAX_DEPTH - 2)).is_ok());
        assert!(error(&nested(MAX_DEPTH - 1)).2.contains("deep"));
        assert!(Document::parse(nested(100_000)).is_err());
        assert!(error(&" ".repeat(MAX_DOCUMENT_BYTES + 1)).2.contains("MiB"));
    }

    #[test]
    fn finds_values_by_path() {
        let document = Document::parse("{a: {b: [10, {c: 'x'}], '0': 'zero', 'k.v': 1}}").unwrap();
        let get = |path: &str| document.get(&path.parse().unwrap()).map(|node| node.value.to_json().to_string());
        assert_eq!(get("a.b[0]").as_deref(), Some("10"));
        assert_eq!(get("a.b.0").as_deref(), Some("10"));
        assert_eq!(get("a.b[1].c").as_deref(), Some("\"x\""));
        assert_eq!(get("a[0]").as_deref(), Some("\"zero\""));
        assert_eq!(get("a[\"k.v\"]").as_deref(), Some("1"));
        for path in ["b", "a.b.c", "a.b[2]", "a.b[0].x", "a.b.x"] {
            assert_eq!(get(path), None, "{path}");
        }
    }

    #[test]
    fn spans_and_comments_are_where_they_say() {
        let text = "{ a: 'x', /* é */ b: 1 } // end";
        let document = Document::parse(text).unwrap();
        let member = &document.root().value.as_object().unwrap()[1];
        assert_eq!((&text[member.key_span.clone()], &text[member.node.span.clone()]), ("b", "1"));
        let comments: Vec<_> = document.comments().into_iter().map(|span| &text[span]).collect();
        assert_eq!(comments, ["/* é */", "// end"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[\\[\\]{}:,'\"a1 /*\n\\\\.+-]{0,60}") {
            let _ = Document::parse(text);
        }
    }
}
