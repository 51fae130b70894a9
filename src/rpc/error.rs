//! Errors as the wire says them: one table of codes, one shape.
//!
//! ```json
//! {"code":"FORBIDDEN","message":"missing scope: operator.write",
//!  "details":{"code":"MISSING_SCOPE","missingScope":"operator.write","requiredScopes":["operator.write"]}}
//! ```
//!
//! Clients branch on `code` and `details.code`; `message` is for people.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

/// Makes the code enum, its wire text and its documentation from one table.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal;)+) => {
        /// The top-level `code` of an error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[doc = $doc])+ $name,)+ }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The text on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

codes! {
    /// The frame or its parameters are not what the method takes; the message names the path.
    InvalidRequest = "INVALID_REQUEST";
    /// The caller is known and may not do this; `details.code` says why.
    Forbidden = "FORBIDDEN";
    /// No such object.
    NotFound = "NOT_FOUND";
    /// The device is not paired, or not for this; `details.requestId` names the pending request.
    NotPaired = "NOT_PAIRED";
    /// The node is not connected. Nothing was sent: a retry is safe.
    NotConnected = "NOT_CONNECTED";
    /// The gateway can't do it now, or at all; see `retryable`.
    Unavailable = "UNAVAILABLE";
    /// The other side did not answer in time.
    Timeout = "TIMEOUT";
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// An error on the wire (the incumbent's `ErrorShape`).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RpcError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What happened, where, and what to do next.
    pub message: Cow<'static, str>,
    /// Structured particulars; `details.code` is what programs branch on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    /// Whether the same call may succeed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// When to try again, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl RpcError {
    /// An error with a code and a message.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), details: None, retryable: None, retry_after_ms: None }
    }

    /// `INVALID_REQUEST`.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// `UNAVAILABLE`.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// `FORBIDDEN` because a scope is missing (contract 2.10).
    pub fn missing_scope(missing: &str, required: &[&str]) -> Self {
        Self::new(ErrorCode::Forbidden, format!("missing scope: {missing}"))
            .with_details(json!({"code": "MISSING_SCOPE", "missingScope": missing, "requiredScopes": required}))
    }

    /// Adds details.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Says whether a retry can help.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = Some(retryable);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_shouted() {
        let texts: std::collections::HashSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        assert!(texts.iter().all(|t| t.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')));
    }

    #[test]
    fn a_missing_scope_says_which() {
        let error = serde_json::to_value(RpcError::missing_scope("operator.write", &["operator.write"])).unwrap();
        assert_eq!(
            error,
            json!({"code":"FORBIDDEN","message":"missing scope: operator.write","details":{"code":"MISSING_SCOPE",
                "missingScope":"operator.write","requiredScopes":["operator.write"]}})
        );
    }
}
