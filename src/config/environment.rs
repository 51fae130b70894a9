//! Environment variables as a plain map, so that what depends on them can be decided and tested anywhere.
//!
//! Values count as unset when nothing but white space is in them, and are trimmed when read. Three sources
//! fill the map, earlier ones win: the process, the `.env` file of the state directory, and `env.vars` of
//! the configuration file. This module does not read any of them; see [`super::load`].

use std::collections::BTreeMap;
use std::fmt;

/// Environment variables by name. `Debug` shows names only, for values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The environment of these variables; a later pair of the same name wins.
    pub fn new<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// The value of `name`, trimmed; `None` when it is not set or blank.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Adds those variables that are not set, or blank, so far.
    pub fn fill<K: Into<String>, V: Into<String>>(&mut self, pairs: impl IntoIterator<Item = (K, V)>) {
        for (name, value) in pairs {
            let name = name.into();
            if self.get(&name).is_none() {
                self.0.insert(name, value.into());
            }
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The assignments of a `.env` file: `NAME=value` lines, optionally after `export`. A value may stand in
/// single quotes (taken as it is) or double quotes (`\n`, `\"`, `\\` and the like are unescaped); an
/// unquoted one ends at ` #`. Lines that are nothing of the kind are skipped, as every reader of such files
/// does.
pub fn parse_dotenv(text: &str) -> Vec<(String, String)> {
    text.lines().filter_map(assignment).collect()
}

fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, value) = line.split_once('=')?;
    let name = name.trim_end();
    is_name(name).then(|| (name.to_owned(), dotenv_value(value.trim())))
}

fn dotenv_value(text: &str) -> String {
    if let Some(rest) = text.strip_prefix('\'')
        && let Some((value, _)) = rest.split_once('\'')
    {
        return value.to_owned();
    }
    if let Some(rest) = text.strip_prefix('"') {
        let mut value = String::new();
        let mut chars = rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => return value,
                '\\' => value.push(match chars.next() {
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some(other) => other,
                    None => '\\',
                }),
                c => value.push(c),
            }
        }
    }
    text.split_once(" #").map_or(text, |(value, _)| value.trim_end()).to_owned()
}

/// Whether `text` can name an environment variable: `[A-Za-z_][A-Za-z0-9_]*`.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What came of putting variables into a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Expanded {
    /// The text with every `${NAME}` replaced and every `$${NAME}` unescaped.
    Complete(String),
    /// The first variable that is not set.
    Missing(String),
}

/// Puts variables into `text`: `${NAME}` becomes the value of `NAME` (`[A-Z_][A-Z0-9_]*`), `$${NAME}` the
/// literal text `${NAME}`. Anything else that begins with `$` stays.
pub fn expand(text: &str, environment: &Environment) -> Expanded {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(name) = leading_reference(&rest[1..]) {
            let end = name.len() + "$${}".len();
            out.push_str(&rest[1..end]);
            rest = &rest[end..];
        } else if let Some(name) = leading_reference(rest) {
            match environment.get(name) {
                Some(value) => out.push_str(value),
                None => return Expanded::Missing(name.to_owned()),
            }
            rest = &rest[name.len() + "${}".len()..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    Expanded::Complete(out)
}

/// The name in a `${NAME}` that `text` begins with.
pub(super) fn leading_reference(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix("${")?.split_once('}')?;
    is_reference_name(name).then_some(name)
}

/// Whether `name` can stand in `${NAME}`: upper case only, so that text such as `${x}` stays what it is.
pub(super) fn is_reference_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_value_is_no_value() {
        let mut environment = Environment::new([("A", "  "), ("B", " b\n")]);
        assert_eq!(environment.get("A"), None);
        assert_eq!(environment.get("B"), Some("b"));
        environment.fill([("A", "filled"), ("B", "ignored")]);
        assert_eq!(environment.get("A"), Some("filled"));
        assert_eq!(environment.get("B"), Some("b"));
    }

    #[test]
    fn debug_shows_no_values() {
        assert_eq!(format!("{:?}", Environment::new([("TOKEN", "hunter2")])), r#"{"TOKEN"}"#);
    }

    #[test]
    fn reads_the_usual_forms_of_a_dotenv_file() {
        let text = "# comment\nA=1\nexport B = two # note\nC='a # $x'\nD=\"line\\nbreak \\\"q\\\"\" # n\nnonsense\n9X=1\nE=\nF=a#b\nG=\"open\n";
        let pairs = parse_dotenv(text);
        let expected = [
            ("A", "1"),
            ("B", "two"),
            ("C", "a # $x"),
            ("D", "line\nbreak \"q\""),
            ("E", ""),
            ("F", "a#b"),
            ("G", "\"open"),
        ];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn expands_references_and_nothing_else() {
        let environment = Environment::new([("HOST", "gw.example"), ("PORT_2", "1")]);
        for (text, expected) in [
            ("wss://${HOST}:${PORT_2}/x", "wss://gw.example:1/x"),
            ("$${HOST} ${HOST}", "${HOST} gw.example"),
            ("${host} $HOST $ ${} ${HOST", "${host} $HOST $ ${} ${HOST"),
            ("$$", "$$"),
            ("$${host}", "$${host}"),
            ("ä${HOST}ö", "ägw.exampleö"),
        ] {
            assert_eq!(expand(text, &environment), Expanded::Complete(expected.to_owned()), "{text}");
        }
        assert_eq!(expand("${HOST}${NOPE}", &environment), Expanded::Missing("NOPE".to_owned()));
    }
}
