//! Why a WebSocket ends: the close codes, in one table.
//!
//! Every code that this gateway or its client sends has a name here; [`CloseCode`] also holds any other code
//! that a peer may send. Start with [`CloseCode::new`].

use std::fmt;

/// Makes the constants, their list and their meaning from one table.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $meaning:literal;)+) => {
        impl CloseCode {
            $($(#[doc = $doc])+ pub const $name: Self = Self($number);)+

            /// Every code with a name, in the order of their numbers.
            pub const NAMED: &'static [Self] = &[$(Self::$name,)+];

            /// What the code says in a few words; `None` for a code that is not in the table.
            pub const fn meaning(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($meaning),)+
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// The purpose is fulfilled.
    NORMAL = 1000, "normal closure";
    /// This side goes away: a drain, or a page that is left.
    GOING_AWAY = 1001, "going away";
    /// The peer broke RFC 6455, or speaks no version of the gateway protocol that is spoken here.
    PROTOCOL_ERROR = 1002, "protocol error";
    /// A kind of data that is not taken: binary messages.
    UNSUPPORTED_DATA = 1003, "unsupported data";
    /// A text that is not UTF-8.
    INVALID_PAYLOAD = 1007, "invalid payload";
    /// The peer may not go on: authentication, pairing, a slow consumer. The reason says which.
    POLICY_VIOLATION = 1008, "policy violation";
    /// A message above the limit.
    MESSAGE_TOO_BIG = 1009, "message too big";
    /// A fault of this side.
    INTERNAL_ERROR = 1011, "internal error";
    /// The gateway restarts; come back.
    SERVICE_RESTART = 1012, "service restart";
    /// The gateway can't take the connection now; come back later.
    TRY_AGAIN_LATER = 1013, "try again later";
    /// The client heard no tick for twice the interval (gateway protocol).
    TICK_TIMEOUT = 4000, "tick timeout";
    /// The credentials that let the peer in have been changed or revoked (gateway protocol).
    AUTH_CHANGED = 4001, "auth changed";
}

/// A close code that may stand in a close frame.
///
/// 1000 to 1003 and 1007 to 1014 (RFC 6455 section 7.4.1 and the IANA registry), 3000 to 4999 (section 7.4.2).
/// 1004 to 1006 and 1015 never go over the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The code with this number; `None` for one that no peer may send.
    pub const fn new(number: u16) -> Option<Self> {
        match number {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(number)),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// `1008 (policy violation)`.
impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => write!(f, "{} ({meaning})", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A code and the words that go with it: what a close frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close<'a> {
    /// What programs branch on.
    pub code: CloseCode,
    /// For people. At most 123 bytes when it came from a peer; the encoder cuts longer ones.
    pub reason: &'a str,
}

impl<'a> Close<'a> {
    /// A code with a reason.
    pub const fn new(code: CloseCode, reason: &'a str) -> Self {
        Self { code, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_may_be_sent_exist() {
        for number in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert_eq!(CloseCode::new(number), None, "{number}");
        }
        for number in [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4999] {
            assert_eq!(CloseCode::new(number).map(CloseCode::get), Some(number));
        }
    }

    #[test]
    fn every_named_code_is_valid_and_distinct() {
        assert!(CloseCode::NAMED.iter().all(|code| CloseCode::new(code.get()) == Some(*code)));
        assert!(CloseCode::NAMED.is_sorted_by(|a, b| a < b));
        assert_eq!(CloseCode::POLICY_VIOLATION.to_string(), "1008 (policy violation)");
    }
}
