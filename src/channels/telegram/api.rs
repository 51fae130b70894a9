//! Calls of the Bot API. The token is part of every URL, so no error here shows one.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Method, Request};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};

use super::update::Bot;
use crate::id;
use crate::outgoing::{Outgoing, OutgoingError};
use crate::secret::Secret;
use crate::text;

/// Bytes of one answer: a hundred updates with their longest texts.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// Time for an ordinary call.
const WITHIN: Duration = Duration::from_secs(20);
/// Time for a call that carries a file.
const UPLOAD_WITHIN: Duration = Duration::from_secs(60);
/// The kinds of updates that are asked for.
const UPDATES: &[&str] = &["message"];
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
        let params = json!({"offset": offset, "timeout": wait_s, "limit": 100, "allowed_updates": UPDATES});
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
        self.post(method, "application/json", params.to_string().into(), within).await
    }

    async fn post(&self, method: &str, content_type: &str, body: Bytes, within: Duration) -> Result<Value, ApiError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/bot{}/{method}", self.root, self.token.expose()))
            .header(CONTENT_TYPE, content_type)
            .header(USER_AGENT, concat!("clawgate/", env!("CARGO_PKG_VERSION")));
        let (status, body) = self.exchange(request.body(Full::new(body)), MAX_ANSWER_BYTES, within).await?;
        read(status, &body)
    }

    async fn exchange(
        &self,
        request: Result<Request<Full<Bytes>>, http::Error>,
        max_bytes: usize,
        within: Duration,
    ) -> Result<(u16, Vec<u8>), ApiError> {
        let request = request
            .map_err(|_| ApiError::Lost { reason: "apiRoot or botToken do not make a URL".to_owned(), sent: false })?;
        let lost = |error: OutgoingError| {
            let sent = !matches!(error, OutgoingError::Failed { sent: false, .. } | OutgoingError::Invalid(_));
            ApiError::Lost { reason: error.to_string(), sent }
        };
        let answer = self.outgoing.send(request, within).await.map_err(lost)?;
        let status = answer.status;
        Ok((status, answer.whole(max_bytes, within).await.map_err(lost)?))
    }

    /// A file that somebody has sent, of `max_bytes` at most.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn file(&self, file_id: &str, max_bytes: usize) -> Result<Vec<u8>, ApiError> {
        let refused = |code, description: String| ApiError::Refused { code, description, retry_after: None };
        let file = self.call("getFile", &json!({"file_id": file_id}), WITHIN).await?;
        let too_large = || refused(413, format!("the file is larger than {max_bytes} bytes"));
        if file["file_size"].as_u64().is_some_and(|bytes| bytes > max_bytes as u64) {
            return Err(too_large());
        }
        let path = file["file_path"].as_str().filter(|path| is_file_path(path));
        let path = path.ok_or_else(|| refused(404, "getFile gave no path".to_owned()))?;
        let request = Request::builder()
            .uri(format!("{}/file/bot{}/{path}", self.root, self.token.expose()))
            .header(USER_AGENT, concat!("clawgate/", env!("CARGO_PKG_VERSION")));
        match self.exchange(request.body(Full::default()), max_bytes, WITHIN).await? {
            (200, body) => Ok(body),
            (status, _) => Err(refused(status, "the file was not given out".to_owned())),
        }
    }

    /// Sends a picture with a caption in HTML, or in plain text. Gives the message's number.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn send_photo(
        &self,
        chat: &str,
        thread: Option<i64>,
        reply_to: Option<i64>,
        picture: &[u8],
        caption: &str,
    ) -> Result<Option<i64>, ApiError> {
        let mut fields = vec![("chat_id", chat.to_owned())];
        if !caption.is_empty() {
            fields.extend([("caption", caption.to_owned()), ("parse_mode", "HTML".to_owned())]);
        }
        if let Some(thread) = thread {
            fields.push(("message_thread_id", thread.to_string()));
        }
        if let Some(message_id) = reply_to {
            let reply = json!({"message_id": message_id, "allow_sending_without_reply": true});
            fields.push(("reply_parameters", reply.to_string()));
        }
        let (content_type, body) = multipart(&fields, "photo", "picture", picture);
        let sent = self.post("sendPhoto", &content_type, body, UPLOAD_WITHIN).await?;
        Ok(sent["message_id"].as_i64())
    }

    /// Puts another text into a message of the bot: as HTML, or as plain text.
    ///
    /// # Errors
    /// See [`ApiError`]; that the text was the same already is none.
    pub async fn edit(&self, chat: &str, message_id: i64, text: &str, is_html: bool) -> Result<(), ApiError> {
        let mut params = json!({"chat_id": chat, "message_id": message_id, "text": text,
            "link_preview_options": {"is_disabled": true}});
        if is_html {
            params["parse_mode"] = json!("HTML");
        }
        match self.call("editMessageText", &params, WITHIN).await {
            Err(ApiError::Refused { code: 400, description, .. }) if description.contains("not modified") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Has updates brought to `url`, with `secret` in a header, and the certificate of that host where it is one of its
    /// own.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn set_webhook(&self, url: &str, secret: &Secret, certificate: Option<&[u8]>) -> Result<(), ApiError> {
        let fields = [
            ("url", url.to_owned()),
            ("secret_token", secret.expose().to_owned()),
            ("allowed_updates", json!(UPDATES).to_string()),
        ];
        match certificate {
            None => {
                let params = json!({"url": url, "secret_token": secret.expose(), "allowed_updates": UPDATES});
                self.call("setWebhook", &params, WITHIN).await?;
            }
            Some(certificate) => {
                let (content_type, body) = multipart(&fields, "certificate", "certificate.pem", certificate);
                self.post("setWebhook", &content_type, body, UPLOAD_WITHIN).await?;
            }
        }
        Ok(())
    }

    /// Has updates wait for [`Api::updates`]; none is lost.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn delete_webhook(&self) -> Result<(), ApiError> {
        self.call("deleteWebhook", &json!({}), WITHIN).await.map(|_| ())
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

/// Whether a path of the Bot API is one that can stand in a URL, and leads to nothing above it.
fn is_file_path(path: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"/-._".contains(&b);
    path.len() <= 1024 && path.bytes().all(letter) && !path.split('/').any(|part| matches!(part, "" | "." | ".."))
}

/// A form with a file in it: its content type, and its body.
fn multipart(fields: &[(&str, String)], file: &str, name: &str, bytes: &[u8]) -> (String, Bytes) {
    // No file holds what nobody could guess.
    let boundary = id::token();
    let mut body = Vec::with_capacity(bytes.len() + 1024);
    for (field, value) in fields {
        body.extend_from_slice(
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n").as_bytes(),
        );
    }
    body.extend_from_slice(
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{file}\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .as_bytes(),
    );
    body.extend_from_slice(bytes);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body.into())
}

/// Reads an answer. Pure.
fn read(status: u16, body: &[u8]) -> Result<Value, ApiError> {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(body) else {
        // Something in between has answered: a proxy, a captive portal. Where it gave up waiting, or lost the other side
        // in the middle, the Bot API may have acted.
        let reason = format!("something in between answered {status}, and not the Bot API");
        return Err(ApiError::Lost { reason, sent: matches!(status, 500 | 502 | 504) });
    };
    if envelope.ok {
        return Ok(envelope.result);
    }
    let retry_after = envelope.parameters.and_then(|parameters| parameters.retry_after).map(Duration::from_secs);
    let description = envelope.description.unwrap_or_default();
    let description = text::plain(&description, 200);
    Err(ApiError::Refused { code: envelope.error_code.unwrap_or(status), description, retry_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_file_leads_nowhere_else() {
        assert!(is_file_path("photos/file_7.jpg"));
        for odd in ["", "/x", "a//b", "../x", "photos/../../bot1:a/getMe", "a?b", "a b", "a\r\nb"] {
            assert!(!is_file_path(odd), "{odd:?}");
        }
    }

    #[test]
    fn an_answer_is_read_with_its_retry_after() {
        assert_eq!(read(200, br#"{"ok":true,"result":[1]}"#), Ok(json!([1])));
        let flood =
            br#"{"ok":false,"error_code":429,"description":"Too Many Requests","parameters":{"retry_after":3}}"#;
        assert!(matches!(read(429, flood),
            Err(ApiError::Refused { code: 429, retry_after: Some(after), .. }) if after == Duration::from_secs(3)));
        for (status, body) in [(503, &b"<html>"[..]), (200, b"<html>"), (302, b"")] {
            assert!(
                matches!(read(status, body), Err(ApiError::Lost { sent: false, .. })),
                "{status}: it was asked nothing"
            );
        }
        assert!(matches!(read(504, b"<html>"), Err(ApiError::Lost { sent: true, .. })), "it may have acted");
    }
}
