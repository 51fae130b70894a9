//! Model providers: one request, its answer as a stream, and what to do when that fails.
//!
//! Thin over two wires: [`openai`] and [`anthropic`] make bodies and read events, [`sse`] cuts the stream, [`reply`]
//! holds what has come; all of them without IO. [`ask`] is the one function that sends; [`next`] decides about another
//! attempt. Every answer is bounded in bytes, and in time: to its first byte, between two pieces, and by the run as a
//! whole.

pub mod anthropic;
pub mod openai;
pub mod reply;
pub mod sse;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::flow::{Api, MaxTokensField, Model};
use crate::outgoing::{Outgoing, OutgoingError};
use crate::secret::Secret;
use crate::sessions::message::Message;
use reply::{Reply, StreamError};

/// Time to the head of an answer: a model on a slow machine reads its prompt first.
const HEAD_WITHIN: Duration = Duration::from_secs(120);
/// Time between two pieces of an answer.
const PIECE_WITHIN: Duration = Duration::from_secs(90);
/// Bytes of a stream, whatever is in it.
const MAX_STREAM_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of an error's body.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// Characters of a provider's own words that are passed on.
const MAX_ERROR_CHARS: usize = 300;
/// Attempts with one model.
const ATTEMPTS: u32 = 3;
/// The longest that an attempt waits for another.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long a provider rests that does not work, where it does not say for how long.
const PROVIDER_REST: Duration = Duration::from_secs(15);
/// The longest rest of one, whatever it says.
const LONGEST_PROVIDER_REST: Duration = Duration::from_secs(600);

/// A tool as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// Letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// For the model.
    pub description: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

/// How a model is to choose its words; what is not said is the provider's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sampling {
    /// 0 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// -2 to 2. Of OpenAI's wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// -2 to 2. Of OpenAI's wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Of OpenAI's wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Words to stop at, 4 at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Tokens of one answer, where that is less than the model's own limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

impl Sampling {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What is asked of a model.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// How the provider calls the model.
    pub model: &'a str,
    /// Tokens the answer may have.
    pub max_tokens: u32,
    /// How OpenAI's wire is to be told that: its own models take another name than all others.
    pub max_tokens_field: &'a str,
    /// What the model is told before everything else.
    pub system: &'a str,
    /// The turns.
    pub messages: &'a [Message],
    /// What it may ask for.
    pub tools: &'a [ToolSpec],
    /// How it is to choose its words.
    pub sampling: &'a Sampling,
}

/// A model and the way to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Id of the provider.
    pub provider: String,
    /// Which wire.
    pub api: Api,
    /// Without a slash at the end.
    pub base_url: String,
    /// The key.
    pub key: Option<Secret>,
    /// The model.
    pub model: Model,
}

impl Endpoint {
    /// `provider/model`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.provider, self.model.id)
    }

    /// What OpenAI's wire calls the limit of an answer here: OpenAI's own models refuse the name that all others know.
    pub fn max_tokens_field(&self) -> &'static str {
        let is_openais = self.base_url.starts_with("https://api.openai.com/");
        match self.model.max_tokens_field {
            Some(field) => field.as_str(),
            None if is_openais => MaxTokensField::MaxCompletionTokens.as_str(),
            None => MaxTokensField::MaxTokens.as_str(),
        }
    }
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The key is not accepted.
    Auth,
    /// Too many requests.
    RateLimit,
    /// The account is out of credit.
    Unpaid,
    /// The provider's own.
    Server,
    /// No connection, or it broke.
    Network,
    /// Nothing came in time.
    Timeout,
    /// The request is longer than the model takes.
    ContextLength,
    /// The provider does not take the request.
    Invalid,
    /// The answer is not understood, or too long.
    Answer,
}

impl FailureKind {
    /// `errorKind` of the wire.
    pub const fn error_kind(self) -> &'static str {
        match self {
            Self::RateLimit | Self::Unpaid => "rate_limit",
            Self::Timeout => "timeout",
            Self::ContextLength => "context_length",
            _ => "unknown",
        }
    }
}

/// Why a model gave no answer. The message is for people and holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// What happened.
    pub message: String,
    /// Status of the answer, where there was one.
    pub status: Option<u16>,
    /// When the provider wants to be asked again.
    pub retry_after: Option<Duration>,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask the same model again after this time, or a little more by chance.
    Again(Duration),
    /// This key rests: ask with another one.
    OtherKey,
    /// Ask another model; this provider rests for this long.
    OtherModel(Duration),
    /// No other model would do better.
    GiveUp,
}

/// Decides after the failure of attempt number `attempt`, from 1. `has_other_key`: the provider can be asked with another
/// one. Pure.
pub fn next(failure: &Failure, attempt: u32, has_other_key: bool) -> Next {
    let wait = Duration::from_millis(500) * 2u32.saturating_pow(attempt.saturating_sub(1));
    let wait = failure.retry_after.unwrap_or(wait);
    let may_again = attempt < ATTEMPTS && wait <= LONGEST_WAIT;
    match failure.kind {
        FailureKind::Auth | FailureKind::Unpaid => Next::OtherKey,
        // Another key serves at once; the only one is waited for.
        FailureKind::RateLimit if has_other_key || !may_again => Next::OtherKey,
        FailureKind::ContextLength => Next::GiveUp,
        FailureKind::Invalid | FailureKind::Answer => Next::OtherModel(Duration::ZERO),
        _ if may_again => Next::Again(wait),
        _ => Next::OtherModel(failure.retry_after.unwrap_or_default().clamp(PROVIDER_REST, LONGEST_PROVIDER_REST)),
    }
}

/// Asks a model, and hands the text to `said` as it comes.
///
/// # Errors
/// See [`Failure`]; what was said until then was said.
///
/// # Cancel safety
/// Dropped, the request ends.
pub async fn ask(
    outgoing: &Outgoing,
    endpoint: &Endpoint,
    ask: &Ask<'_>,
    mut said: impl FnMut(&str),
) -> Result<Reply, Failure> {
    let read = match endpoint.api {
        Api::OpenAiCompletions => openai::read,
        Api::AnthropicMessages => anthropic::read,
    };
    let who = &endpoint.provider;
    let request = request(endpoint, ask)?;
    let hide = |failure: Failure| without_key(failure, endpoint.key.as_ref());
    let mut answer = outgoing.send(request, HEAD_WITHIN).await.map_err(|error| lost(who, &error))?;
    if !answer.is_success() {
        let (status, retry_after) = (answer.status, retry_after(&answer.headers, SystemTime::now()));
        let body = answer.whole(MAX_ERROR_BYTES, Duration::from_secs(10)).await.unwrap_or_default();
        return Err(hide(refused(who, status, &body, retry_after)));
    }
    let (mut events, mut reply, mut bytes) = (sse::Events::default(), Reply::default(), 0usize);
    let mut result = Ok(());
    loop {
        let chunk = answer.chunk(PIECE_WITHIN).await.map_err(|error| lost(who, &error))?;
        let before = reply.text().len();
        let mut each = |data: &[u8]| {
            if result.is_ok() {
                result = read(data, &mut reply);
            }
        };
        match &chunk {
            Some(chunk) => {
                bytes += chunk.len();
                if events.push(chunk, &mut each).is_err() || bytes > MAX_STREAM_BYTES {
                    result = Err(StreamError::TooLong("its stream"));
                }
            }
            None => events.end(&mut each),
        }
        if reply.text().len() > before {
            said(&reply.text()[before..]);
        }
        if let Err(error) = &result {
            let kind = match error {
                StreamError::Provider(said) if is_too_long(said) => FailureKind::ContextLength,
                StreamError::Provider(_) => FailureKind::Server,
                StreamError::Malformed(_) | StreamError::TooLong(_) => FailureKind::Answer,
            };
            return Err(hide(Failure { kind, message: format!("{who}: {error}"), status: None, retry_after: None }));
        }
        if chunk.is_none() {
            break;
        }
    }
    match reply.stop {
        Some(_) => Ok(reply),
        None => Err(Failure {
            kind: FailureKind::Network,
            message: format!("{who}: the stream ended in the middle of the answer"),
            status: None,
            retry_after: None,
        }),
    }
}

fn request(endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Request<Full<Bytes>>, Failure> {
    let (url, body) = match endpoint.api {
        Api::OpenAiCompletions => (format!("{}/chat/completions", endpoint.base_url), openai::request(ask)),
        Api::AnthropicMessages => {
            let base = endpoint.base_url.strip_suffix("/v1").unwrap_or(&endpoint.base_url);
            (format!("{base}/v1/messages"), anthropic::request(ask))
        }
    };
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "text/event-stream")
        .header(USER_AGENT, concat!("clawgate/", env!("CARGO_PKG_VERSION")));
    if endpoint.api == Api::AnthropicMessages {
        request = request.header("anthropic-version", "2023-06-01");
    }
    if let Some(key) = &endpoint.key {
        let (name, text) = match endpoint.api {
            Api::OpenAiCompletions => (AUTHORIZATION, format!("Bearer {}", key.expose())),
            Api::AnthropicMessages => (http::HeaderName::from_static("x-api-key"), key.expose().to_owned()),
        };
        let mut value =
            HeaderValue::from_str(&text).map_err(|_| invalid(endpoint, "the API key is not a header value"))?;
        value.set_sensitive(true);
        request = request.header(name, value);
    }
    request.body(Full::new(Bytes::from(body.to_string()))).map_err(|_| invalid(endpoint, "baseUrl is not a URL"))
}

fn invalid(endpoint: &Endpoint, what: &str) -> Failure {
    let message = format!("models.providers.{}: {what}", endpoint.provider);
    Failure { kind: FailureKind::Invalid, message, status: None, retry_after: None }
}

fn lost(who: &str, error: &OutgoingError) -> Failure {
    let kind = match error {
        OutgoingError::Timeout(_) => FailureKind::Timeout,
        OutgoingError::Invalid(_) => FailureKind::Invalid,
        OutgoingError::TooLong(_) => FailureKind::Answer,
        OutgoingError::Failed { .. } | OutgoingError::Broken(_) => FailureKind::Network,
    };
    Failure { kind, message: format!("{who}: {error}"), status: None, retry_after: None }
}

fn refused(who: &str, status: u16, body: &[u8], retry_after: Option<Duration>) -> Failure {
    let said = match serde_json::from_slice::<Value>(body) {
        Ok(body) => error_text(body.get("error").unwrap_or(&body)),
        Err(_) => shown(&String::from_utf8_lossy(body)),
    };
    let kind = match status {
        401 | 403 => FailureKind::Auth,
        402 => FailureKind::Unpaid,
        429 => FailureKind::RateLimit,
        408 => FailureKind::Timeout,
        400 | 413 | 422 if is_too_long(&said) => FailureKind::ContextLength,
        500.. => FailureKind::Server,
        _ => FailureKind::Invalid,
    };
    Failure { kind, message: format!("{who} answered {status}: {said}"), status: Some(status), retry_after }
}

/// Whether a provider's words say that the request does not fit the model.
fn is_too_long(said: &str) -> bool {
    let long = ["context length", "context_length", "prompt is too long", "maximum context", "context size"];
    let said = said.to_ascii_lowercase();
    long.iter().any(|words| said.contains(words))
}

/// Some providers quote the key that they refuse, and their words are shown to people.
fn without_key(mut failure: Failure, key: Option<&Secret>) -> Failure {
    // What is shorter is no secret, and stands in many words.
    if let Some(key) = key.map(|key| key.expose()).filter(|key| key.len() >= 8) {
        failure.message = failure.message.replace(key, "(the key)");
    }
    failure
}

/// When a provider wants to be asked again: seconds, a date (RFC 9110, section 10.2.3), or milliseconds in the header
/// that some of them add.
fn retry_after(headers: &http::HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let seconds =
        |text: &str, unit: f64| text.parse::<f64>().ok().and_then(|n| Duration::try_from_secs_f64(n * unit).ok());
    let ms = text("retry-after-ms").and_then(|text| seconds(text, 0.001));
    let date = |text: &str| httpdate::parse_http_date(text).ok().map(|at| at.duration_since(now).unwrap_or_default());
    ms.or_else(|| text(RETRY_AFTER.as_str()).and_then(|text| seconds(text, 1.0).or_else(|| date(text))))
}

/// What a provider's error object says, for people.
fn error_text(error: &Value) -> String {
    let text = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    shown(text.unwrap_or("no reason given"))
}

fn shown(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn failure(status: u16, body: &str, retry_after: Option<u64>) -> Failure {
        refused("p", status, body.as_bytes(), retry_after.map(Duration::from_secs))
    }

    #[test]
    fn what_follows_a_failure_depends_on_its_kind() {
        let alone = |failure: &Failure, attempt| next(failure, attempt, false);
        assert_eq!(alone(&failure(500, "", None), 1), Next::Again(Duration::from_millis(500)));
        assert_eq!(alone(&failure(500, "", None), 2), Next::Again(Duration::from_secs(1)));
        assert_eq!(alone(&failure(500, "", None), ATTEMPTS), Next::OtherModel(PROVIDER_REST));
        assert_eq!(alone(&failure(503, "", Some(1 << 20)), 1), Next::OtherModel(LONGEST_PROVIDER_REST));
        assert_eq!(alone(&failure(429, "", Some(2)), 1), Next::Again(Duration::from_secs(2)));
        assert_eq!(next(&failure(429, "", Some(2)), 1, true), Next::OtherKey);
        assert_eq!(alone(&failure(429, "", Some(3600)), 1), Next::OtherKey);
        assert_eq!(alone(&failure(401, "", None), 1), Next::OtherKey);
        assert_eq!(alone(&failure(402, "", None), 1), Next::OtherKey);
        assert_eq!(alone(&failure(404, "", None), 1), Next::OtherModel(Duration::ZERO));
        let long = failure(400, r#"{"error":{"message":"This model's maximum context length is 10"}}"#, None);
        assert_eq!(alone(&long, 1), Next::GiveUp);
    }

    #[test]
    fn a_provider_says_when_to_come_back_in_three_ways() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            retry_after(&pairs.collect(), now).map(|after| after.as_millis())
        };
        assert_eq!(after(&[("retry-after", "1.5")]), Some(1500));
        assert_eq!(after(&[("retry-after", "2"), ("retry-after-ms", "250")]), Some(250));
        assert_eq!(after(&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")]), Some(3000));
        assert_eq!(after(&[("retry-after", "Sun, 06 Nov 1994 08:49:30 GMT")]), Some(0));
        for none in ["", "soon", "-1", "NaN", "inf", "1e400"] {
            let value = HeaderValue::from_str(none).unwrap();
            assert_eq!(retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]), now), None, "{none}");
        }
    }

    #[test]
    fn a_key_that_a_provider_quotes_is_not_passed_on() {
        let failure = failure(401, r#"{"error":{"message":"Incorrect API key provided: sk-secret-1234."}}"#, None);
        let hidden = without_key(failure, Some(&Secret::new("sk-secret-1234")));
        assert_eq!(hidden.message, "p answered 401: Incorrect API key provided: (the key).");
    }

    #[test]
    fn a_providers_words_are_shown_in_one_bounded_line() {
        let failure = failure(400, &format!(r#"{{"error":{{"message":"a\nb{}"}}}}"#, "x".repeat(1000)), None);
        assert!(failure.message.starts_with("p answered 400: a bx") && failure.message.chars().count() < 400);
    }
}
