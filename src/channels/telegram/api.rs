//! Calls of the Bot API. The token is part of every URL, so no error here shows one.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Method, Request};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};

use super::update::Bot;
use crate::outgoing::{Outgoing, OutgoingError};
use crate::secret::Secret;

/// Bytes of one answer: a hundred updates with their longest texts.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// Time for an ordinary call.
const WITHIN: Duration = Duration::from_secs(20);
/// How long the Bot API may wait for updates, in seconds.
pub const POLL_S: u64 = 30;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The Bot API was not reached, or its answer not understood. `sent` tells whether it may have acted.
    #[error("the Bot API was not reached: {reason}")]
    Lost {
        /// What happened.
        reason: String,
        /// Whether the request may have been read.
        sent: bool,
    },
    /// It refuses.
    #[error("the Bot API answered {code}: {description}")]
    Refused {
        /// Its error code, that of HTTP.
        code: u16,
        /// Its words.
        description: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
}

/// The Bot API for one bot. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    outgoing: Outgoing,
    root: String,
    token: Secret,
}

#[derive(Deserialize)]
struct Envelope {
    ok: bool,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error_code: Option<u16>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(default)]
    retry_after: Option<u64>,
}

impl Api {
    /// The API below `root`, for the bot of that token.
    pub const fn new(outgoing: Outgoing, root: String, token: Secret) -> Self {
        Self { outgoing, root, token }
    }

    /// Who the bot is.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn me(&self) -> Result<Bot, ApiError> {
        let me = self.call("getMe", &json!({}), WITHIN).await?;
        let username = me["username"].as_str().unwrap_or_default().to_owned();
        Ok(Bot { id: me["id"].as_i64().unwrap_or_default(), username })
    }

    /// The updates from number `offset` on; waits for the first. The Bot API forgets those before it.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn updates(&self, offset: i64, wait_s: u64) -> Result<Vec<Value>, ApiError> {
        let params = json!({"offset": offset, "timeout": wait_s, "limit": 100, "allowed_updates": ["message"]});
        match self.call("getUpdates", &params, Duration::from_secs(wait_s) + WITHIN).await? {
            Value::Array(updates) => Ok(updates),
            _ => Err(ApiError::Lost { reason: "getUpdates gave no list".to_owned(), sent: true }),
        }
    }

    /// Any method.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn call(&self, method: &str, params: &Value, within: Duration) -> Result<Value, ApiError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/bot{}/{method}", self.root, self.token.expose()))
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("clawgate/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(params.to_string())))
            .map_err(|_| ApiError::Lost { reason: "apiRoot or botToken do not make a URL".to_owned(), sent: false })?;
        let lost = |error: OutgoingError| {
            let sent = !matches!(error, OutgoingError::Failed { sent: false, .. } | OutgoingError::Invalid(_));
            ApiError::Lost { reason: error.to_string(), sent }
        };
        let answer = self.outgoing.send(request, within).await.map_err(lost)?;
        let status = answer.status;
        let body = answer.whole(MAX_ANSWER_BYTES, within).await.map_err(lost)?;
        read(status, &body)
    }

    /// Sends a message: as HTML, or as plain text. Gives its number.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn send(
        &self,
        chat: &str,
        thread: Option<i64>,
        reply_to: Option<i64>,
        text: &str,
        is_html: bool,
    ) -> Result<Option<i64>, ApiError> {
        let mut params = json!({"chat_id": chat, "text": text, "link_preview_options": {"is_disabled": true}});
        if is_html {
            params["parse_mode"] = json!("HTML");
        }
        if let Some(thread) = thread {
            params["message_thread_id"] = json!(thread);
        }
        if let Some(message_id) = reply_to {
            params["reply_parameters"] = json!({"message_id": message_id, "allow_sending_without_reply": true});
        }
        let sent = self.call("sendMessage", &params, WITHIN).await?;
        Ok(sent["message_id"].as_i64())
    }

    /// Shows for some seconds that an answer is being written.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn typing(&self, chat: &str, thread: Option<i64>) -> Result<(), ApiError> {
        let mut params = json!({"chat_id": chat, "action": "typing"});
        if let Some(thread) = thread {
            params["message_thread_id"] = json!(thread);
        }
        self.call("sendChatAction", &params, WITHIN).await.map(|_| ())
    }
}

/// Reads an answer. Pure.
fn read(status: u16, body: &[u8]) -> Result<Value, ApiError> {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(body) else {
        // Something in between has answered: a proxy, a captive portal.
        return Err(ApiError::Refused {
            code: status,
            description: "not an answer of the Bot API".to_owned(),
            retry_after: None,
        });
    };
    if envelope.ok {
        return Ok(envelope.result);
    }
    let retry_after = envelope.parameters.and_then(|parameters| parameters.retry_after).map(Duration::from_secs);
    let description = envelope.description.unwrap_or_default();
    let description = description.chars().filter(|c| !c.is_control()).take(200).collect();
    Err(ApiError::Refused { code: envelope.error_code.unwrap_or(status), description, retry_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_retry_after() {
        assert_eq!(read(200, br#"{"ok":true,"result":[1]}"#), Ok(json!([1])));
        let flood =
            br#"{"ok":false,"error_code":429,"description":"Too Many Requests","parameters":{"retry_after":3}}"#;
        assert!(matches!(read(429, flood),
            Err(ApiError::Refused { code: 429, retry_after: Some(after), .. }) if after == Duration::from_secs(3)));
        assert!(matches!(read(502, b"<html>"), Err(ApiError::Refused { code: 502, .. })));
    }
}
