//! Enums whose values are words of the configuration file and of command line flags.

/// A closed set of words.
pub trait Keyword: Copy + 'static {
    /// Every value.
    const ALL: &'static [Self];
    /// The words, in the same order.
    const WORDS: &'static [&'static str];

    /// The value of exactly that word.
    fn parse(text: &str) -> Option<Self> {
        Self::WORDS.iter().position(|word| *word == text).map(|at| Self::ALL[at])
    }
}

/// A word that is not in a closed set; what a command line flag says of a wrong value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be one of {}", .0.join(", "))]
pub struct UnknownWord(&'static [&'static str]);

impl UnknownWord {
    /// Not one of the words of `K`.
    pub const fn of<K: Keyword>() -> Self {
        Self(K::WORDS)
    }
}

/// Declares an enum whose values are words of the configuration file, in the order in which errors list them.
macro_rules! keywords {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $crate::config::keyword::Keyword for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];
            const WORDS: &'static [&'static str] = &[$($word,)+];
        }

        impl $name {
            /// The word of the file and of the flags.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::config::keyword::UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                use $crate::config::keyword::{Keyword, UnknownWord};
                Self::parse(text).ok_or_else(|| UnknownWord::of::<Self>())
            }
        }
    };
}

pub(super) use keywords;
