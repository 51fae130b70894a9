//! The members of an object as spans. Start with [`fields`].

use std::fmt;
use std::ops::Range;

use super::scan::{Scan, Scanner};
use super::string::unescape;
use super::{JsonError, Raw};

/// What [`fields`] found in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
/// # Errors
/// The first byte that does not belong to a JSON object.
#[inline]
pub fn fields<'a, const N: usize>(text: &'a str, keys: &[&str; N]) -> Result<Fields<'a, N>, JsonError> {
    let mut sorting = Sorting::new(text, keys);
    let mut scanner = Scanner::new(text.as_bytes());
    let result = scanner.skip_only_object(|scanner, key| {
        let place = sorting.place(key);
        let start = scanner.at();
        scanner.skip_value(1)?;
        sorting.put(place, start..scanner.at());
        Ok(())
    });
    match result {
        Ok(()) => Ok(sorting.found),
        Err(fault) => Err(scanner.error(fault)),
    }
}

/// The same, and the spans of the members of one of the values, of that at `inner` in `keys`: who is to look into that
/// one need not scan it again.
///
/// # Errors
/// The first byte that does not belong to a JSON object.
#[inline]
pub(in crate::rpc) fn fields_and_members<'a, const N: usize>(
    text: &'a str,
    keys: &[&str; N],
    inner: usize,
) -> Result<(Fields<'a, N>, Members), JsonError> {
    let mut sorting = Sorting::new(text, keys);
    let mut members = Members::default();
    let mut scanner = Scanner::new(text.as_bytes());
    let result = scanner.skip_only_object(|scanner, key| {
        let place = sorting.place(key);
        let start = scanner.at();
        match place {
            Place::Of(index) if index == inner && scanner.peek() == Some(b'{') => members.skip(scanner)?,
            _ => scanner.skip_value(1)?,
        }
        sorting.put(place, start..scanner.at());
        Ok(())
    });
    match result {
        Ok(()) => Ok((sorting.found, members)),
        Err(fault) => Err(scanner.error(fault)),
    }
}

/// What a key is among those that were asked for.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// The one at this index.
    Of(usize),
    /// None of them, or one that has come already.
    Beside(Option<usize>, Key<'a>),
}

/// Puts members where their keys were asked for.
struct Sorting<'a, 'k, const N: usize> {
    text: &'a str,
    keys: &'k [&'k str; N],
    found: Fields<'a, N>,
    /// The key that most likely comes next: peers write keys in the order in which they are asked for.
    next: usize,
}

impl<'a, 'k, const N: usize> Sorting<'a, 'k, N> {
    #[inline]
    const fn new(text: &'a str, keys: &'k [&'k str; N]) -> Self {
        let found = Fields { values: [None; N], duplicate: None, unknown: None };
        Self { text, keys, found, next: 0 }
    }

    #[inline]
    fn place(&mut self, key: Range<usize>) -> Place<'a> {
        let at = key.start - 1;
        let inner = &self.text[key];
        let index = match self.keys.get(self.next) {
            Some(next) if *next == inner => Some(self.next),
            _ => self.find(inner),
        };
        match index {
            Some(index) if self.found.values[index].is_none() => {
                self.next = index + 1;
                Place::Of(index)
            }
            index => Place::Beside(index, Key { inner, at }),
        }
    }

    #[inline]
    fn find(&self, inner: &str) -> Option<usize> {
        match self.keys.iter().position(|key| *key == inner) {
            // Few keys are written with escapes, and none that is has been found.
            None if memchr::memchr(b'\\', inner.as_bytes()).is_some() => {
                let inner = unescape(inner);
                self.keys.iter().position(|key| *key == inner)
            }
            index => index,
        }
    }

    #[inline]
    fn put(&mut self, place: Place<'a>, value: Range<usize>) {
        let found = &mut self.found;
        match place {
            Place::Of(index) => found.values[index] = Some(Raw(&self.text[value])),
            Place::Beside(Some(_), key) => found.duplicate = found.duplicate.or(Some(key)),
            Place::Beside(None, key) => found.unknown = found.unknown.or(Some(key)),
        }
    }
}

/// Members that are remembered of an object. More have few; those are scanned again.
const MEMBERS: usize = 8;

/// Where the members of an object stand in its text: what the pass over all of the frame has found on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    spans: [Member; MEMBERS],
    /// How many there were; more than fit when they were too many.
    count: usize,
}

/// Offsets from the object's brace: of the key without its quotes, and of the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Member {
    key: [u32; 2],
    value: [u32; 2],
}

impl Members {
    /// Skips the object that the scanner is at, one level inside another.
    #[inline]
    fn skip(&mut self, scanner: &mut Scanner<'_>) -> Scan {
        let object = scanner.at();
        self.count = 0;
        scanner.skip_members(|scanner, key| {
            let value = scanner.at();
            scanner.skip_value(2)?;
            let offset = |at: usize| u32::try_from(at - object);
            if let (Some(span), Ok(key_start), Ok(key_end), Ok(value), Ok(end)) = (
                self.spans.get_mut(self.count),
                offset(key.start),
                offset(key.end),
                offset(value),
                offset(scanner.at()),
            ) {
                *span = Member { key: [key_start, key_end], value: [value, end] };
                self.count += 1;
            } else {
                self.count = MEMBERS + 1;
            }
            Ok(())
        })
    }

    /// What [`fields`] finds in `object`, whose members these are. `None` when it has to be asked.
    #[inline]
    pub(in crate::rpc) fn fields<'a, const N: usize>(
        &self,
        object: Raw<'a>,
        keys: &[&str; N],
    ) -> Option<Fields<'a, N>> {
        let spans = self.spans.get(..self.count).filter(|_| object.is_object())?;
        let mut sorting = Sorting::new(object.as_str(), keys);
        for Member { key, value } in spans {
            let place = sorting.place(key[0] as usize..key[1] as usize);
            sorting.put(place, value[0] as usize..value[1] as usize);
        }
        Some(sorting.found)
    }
}
