//! Paths to a value inside a document: `gateway.auth.token`, `list[0].name`, `list.0`, `a["key.with.dots"]`.

use std::fmt;
use std::str::FromStr;

/// One step of a [`KeyPath`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A key of an object; a number also finds the element of a list.
    Key(String),
    /// `[n]`: an element of a list; also finds the key `n` of an object.
    Index(usize),
}

/// The way from the root of a document to a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPath(Vec<Step>);

/// Longest path that is read, in bytes.
const MAX_PATH_BYTES: usize = 1024;

/// A text that is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a configuration path: {reason}; write it like gateway.port, list[0] or map[\"a.key\"]")]
pub struct InvalidPath {
    text: String,
    reason: &'static str,
}

impl KeyPath {
    /// The steps, from the root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// This path and the key `key` of what is there.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    /// This path and the element `index` of what is there.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = Vec::with_capacity(self.0.len() + 1);
        steps.extend_from_slice(&self.0);
        steps.push(step);
        Self(steps)
    }
}

impl FromStr for KeyPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        parse(text.trim()).map_err(|reason| InvalidPath { text: text.chars().take(80).collect(), reason })
    }
}

fn parse(text: &str) -> Result<KeyPath, &'static str> {
    if text.len() > MAX_PATH_BYTES {
        return Err("it is longer than 1024 bytes");
    }
    let mut steps = Vec::new();
    let mut rest = text;
    loop {
        if rest.starts_with('[') {
            let (step, after) = bracket(rest)?;
            steps.push(step);
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                return Err("a key is missing");
            }
            steps.push(Step::Key(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        match rest.as_bytes().first() {
            None => return Ok(KeyPath(steps)),
            Some(b'.') => {
                rest = &rest[1..];
                if rest.starts_with('[') {
                    return Err("a key is missing");
                }
            }
            Some(b'[') => {}
            Some(_) => return Err("a bracket is followed by something else than \".\" or \"[\""),
        }
    }
}

/// Reads `[0]` or `["key"]`; also gives what comes after.
fn bracket(text: &str) -> Result<(Step, &str), &'static str> {
    let inner = &text[1..];
    for quote in ['"', '\''] {
        if let Some(quoted) = inner.strip_prefix(quote) {
            let mut key = String::new();
            let mut chars = quoted.char_indices();
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' => key.push(chars.next().ok_or("a quote is not closed")?.1),
                    c if c == quote => {
                        let after = quoted[at + 1..].strip_prefix(']').ok_or("a bracket is not closed")?;
                        return Ok((Step::Key(key), after));
                    }
                    c => key.push(c),
                }
            }
            return Err("a quote is not closed");
        }
    }
    let (index, after) = inner.split_once(']').ok_or("a bracket is not closed")?;
    if index.is_empty() || !index.bytes().all(|b| b.is_ascii_digit()) {
        return Err("in brackets there must be a number or a quoted key");
    }
    Ok((Step::Index(index.parse().map_err(|_| "an index is too large")?), after))
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.is_empty() || key.contains(['.', '[', ']', '"', '\\', ' ']) => {
                    write!(f, "[\"{}\"]", key.replace('\\', "\\\\").replace('"', "\\\""))?;
                }
                Step::Key(key) if at == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dots_brackets_and_quotes() {
        for (text, display) in [
            ("gateway.port", "gateway.port"),
            ("a.b[0]", "a.b[0]"),
            ("a.b.0.c", "a.b.0.c"),
            ("[1][2].x", "[1][2].x"),
            (r#"models["openai/v1.5"].alias"#, r#"models["openai/v1.5"].alias"#),
            (r"a['x y'][0]", r#"a["x y"][0]"#),
            (r#"a["q\"\\"]"#, r#"a["q\"\\"]"#),
            (" a ", "a"),
        ] {
            let path: KeyPath = text.parse().unwrap();
            assert_eq!(path.to_string(), display, "{text}");
            assert_eq!(path.to_string().parse::<KeyPath>().unwrap(), path, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_path() {
        let long = "a.".repeat(600);
        for text in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a[",
            "a[]",
            "a[x]",
            "a[-1]",
            "a[\"x",
            "a[\"x\"",
            "a[0]b",
            "a.[0]",
            "a[99999999999999999999]",
            &long,
        ] {
            assert!(text.parse::<KeyPath>().is_err(), "{text}");
        }
    }
}
