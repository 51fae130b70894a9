//! A borrowed look at the headers of one request, without any HTTP library.
//!
//! The `http` layer makes the pairs; the rules ask. Every question says what it does with a header that
//! stands there twice, because that is where proxies and servers disagree.

/// The header lines of a request in the order they came: name (any case) and value.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeaderView<'a>(&'a [(&'a str, &'a [u8])]);

/// A header that must stand once stands several times, or its value is not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

impl<'a> HeaderView<'a> {
    /// A view over `lines`.
    pub fn new(lines: &'a [(&'a str, &'a [u8])]) -> Self {
        Self(lines)
    }

    /// Every value of `name`, in order. Names compare without case.
    pub fn values(self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// Whether `name` is there at all, be it empty.
    pub fn has(self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Whether the first value of `name` is there and not blank.
    pub fn is_filled(self, name: &str) -> bool {
        self.values(name).next().is_some_and(|value| !value.trim_ascii().is_empty())
    }

    /// The first value of `name`, if it is text.
    pub fn first(self, name: &str) -> Option<&'a str> {
        self.values(name).next().and_then(|value| str::from_utf8(value).ok())
    }

    /// The one value of `name`; `None` when it is not there.
    ///
    /// # Errors
    /// [`Ambiguous`] when it stands several times or is not UTF-8.
    pub fn single(self, name: &str) -> Result<Option<&'a str>, Ambiguous> {
        let mut values = self.values(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Ambiguous);
        }
        str::from_utf8(value).map(Some).map_err(|_| Ambiguous)
    }

    /// The names, as written.
    pub fn names(self) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_header_has_a_first_value_but_no_single_one() {
        let lines: &[(&str, &[u8])] = &[("X-User", b"alice"), ("x-user", b"mallory"), ("Host", b"h")];
        let headers = HeaderView::new(lines);
        assert_eq!(headers.first("x-USER"), Some("alice"));
        assert_eq!(headers.single("x-user"), Err(Ambiguous));
        assert_eq!(headers.single("host"), Ok(Some("h")));
        assert_eq!(headers.single("origin"), Ok(None));
    }
}
