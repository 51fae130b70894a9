//! Why a call over HTTP was not answered as asked. The status code of each kind is chosen in `http::api`. Pure.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::rpc::error::{ErrorCode, RpcError};
use crate::text::plain;

/// Characters of a message that was made for one fault.
const MAX_MESSAGE_CHARS: usize = 400;

/// A body as the text that JSON is (RFC 8259, 8.1). A parser alone would let pass what it skips.
///
/// # Errors
/// It is not UTF-8.
pub fn text(body: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(body)
        .map_err(|error| Fault::invalid(format!("the body is not UTF-8, from byte {} on", error.valid_up_to())))
}

/// What kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is not what the endpoint takes.
    Invalid,
    /// It does not say, or not truly, who asks.
    Unauthorized,
    /// Who asks may not.
    Forbidden,
    /// There is no such thing here.
    NotFound,
    /// The body did not come in time.
    BodyTimeout,
    /// The body is longer than the endpoint takes.
    TooLarge,
    /// Too many wrong credentials.
    RateLimited {
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
    },
    /// Not now.
    Unavailable,
    /// What was asked for was tried, and failed.
    Failed,
}

impl Kind {
    /// One of each, for tests of tables.
    pub const ALL: [Self; 9] = [
        Self::Invalid,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::BodyTimeout,
        Self::TooLarge,
        Self::RateLimited { retry_after_ms: 1 },
        Self::Unavailable,
        Self::Failed,
    ];

    /// `error.type` of the body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid | Self::BodyTimeout | Self::TooLarge => "invalid_request_error",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Failed => "api_error",
        }
    }
}

/// A fault, for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// What happened and what to do, for people. Holds no secret.
    pub message: Cow<'static, str>,
    /// `error.code`: a short name for programs, where there is one.
    pub code: Option<&'static str>,
}

impl Fault {
    /// A fault without a code. A message may quote what a caller sent: of what is not the gateway's own words,
    /// [`MAX_MESSAGE_CHARS`] are kept, and nothing that could forge a line of the log.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        let message = match message.into() {
            Cow::Borrowed(own) => Cow::Borrowed(own),
            Cow::Owned(made) => Cow::Owned(plain(&made, MAX_MESSAGE_CHARS)),
        };
        Self { kind, message, code: None }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// It was tried, and failed.
    pub fn failed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// A scope is missing.
    pub fn missing_scope(scope: &str) -> Self {
        Self { code: Some("missing_scope"), ..Self::new(Kind::Forbidden, format!("missing scope: {scope}")) }
    }

    /// The same, with a code.
    #[must_use]
    pub fn coded(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The body: the error object of OpenAI's API, beside `ok: false`, which the callers of tools look at.
    pub fn to_json(&self) -> Value {
        let error = json!({"message": self.message, "type": self.kind.as_str(), "param": null, "code": self.code});
        json!({"ok": false, "error": error})
    }
}

impl From<RpcError> for Fault {
    fn from(error: RpcError) -> Self {
        let kind = match error.code {
            ErrorCode::InvalidRequest => Kind::Invalid,
            ErrorCode::Forbidden => Kind::Forbidden,
            _ => Kind::Unavailable,
        };
        Self::new(kind, error.message)
    }
}
