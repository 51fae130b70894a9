//! Answers: what they look like, and the right to give one later.

use std::sync::Arc;

use serde::Serialize;

use super::super::error::RpcError;
use super::log_refusal;
use crate::hub::Connection;
use crate::hub::outbox::{Pushed, spare};

/// Keeps the requests of a connection waiting until it is dropped; see [`Call::hold`]. To be dropped after everything
/// that the call is about: the answer, and the close if there is one.
#[derive(Debug)]
#[must_use]
pub struct Hold(Arc<Connection>);

impl Hold {
    pub(super) const fn new(caller: Arc<Connection>) -> Self {
        Self(caller)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.outbox.push_resume();
    }
}

/// The right to answer one call, once. Dropped unused it answers `UNAVAILABLE`, so that no caller hangs.
#[derive(Debug)]
pub struct Responder {
    caller: Arc<Connection>,
    method: &'static str,
    id: KeptId,
    answered: bool,
}

impl Responder {
    pub(super) fn new(caller: Arc<Connection>, method: &'static str, id: &str) -> Self {
        Self { caller, method, id: KeptId::new(id), answered: false }
    }

    /// Who called.
    pub const fn caller(&self) -> &Arc<Connection> {
        &self.caller
    }

    /// Says `payload` to a caller that waits for more: a response under the same id, of which another one follows.
    pub fn interim(&self, payload: &impl Serialize) -> Pushed {
        let json = crate::hub::registry::encode(payload);
        let mut out = Vec::with_capacity(json.len() + self.id.as_str().len() + 48);
        let _: Result<(), RpcError> = write_ok(&mut out, self.id.as_str(), |out| {
            out.extend_from_slice(&json);
            Ok(())
        });
        self.caller.outbox.push_text(out)
    }

    /// Answers with `payload`.
    pub fn answer(self, payload: &impl Serialize) -> Pushed {
        match serde_json::to_vec(payload) {
            Ok(json) => self.answer_with(json.len(), |out| out.extend_from_slice(&json)),
            Err(error) => self.fail(&RpcError::unavailable(format!("the answer could not be encoded: {error}"))),
        }
    }

    /// Answers with what `write` appends: one JSON value of about `size_hint` bytes.
    pub fn answer_with(mut self, size_hint: usize, write: impl FnOnce(&mut Vec<u8>)) -> Pushed {
        self.answered = true;
        let mut out = spare::take(size_hint + self.id.as_str().len() + 48);
        // The closure cannot fail, so neither can this.
        let _: Result<(), RpcError> = write_ok(&mut out, self.id.as_str(), |out| {
            write(out);
            Ok(())
        });
        self.caller.outbox.push_text(out)
    }

    /// Answers with an error.
    pub fn fail(mut self, error: &RpcError) -> Pushed {
        self.answered = true;
        log_refusal(&self.caller, self.method, error);
        let mut out = Vec::with_capacity(256);
        write_error(&mut out, self.id.as_str(), error);
        self.caller.outbox.push_text(out)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            let mut out = Vec::with_capacity(256);
            let error = RpcError::unavailable("the gateway gave this call up; see its log").retryable(false);
            write_error(&mut out, self.id.as_str(), &error);
            self.caller.outbox.push_text(out);
        }
    }
}

/// Appends a response with a payload: `{"type":"res","id":..,"ok":true,"payload":..}`. On an error nothing
/// is appended.
pub fn write_ok(
    out: &mut Vec<u8>,
    id: &str,
    payload: impl FnOnce(&mut Vec<u8>) -> Result<(), RpcError>,
) -> Result<(), RpcError> {
    let start = out.len();
    out.extend_from_slice(br#"{"type":"res","id":"#);
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(br#","ok":true,"payload":"#);
    payload(out).inspect_err(|_| out.truncate(start))?;
    out.push(b'}');
    Ok(())
}

/// Appends a response with an error.
pub fn write_error(out: &mut Vec<u8>, id: &str, error: &RpcError) {
    out.extend_from_slice(br#"{"type":"res","id":"#);
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(br#","ok":false,"error":"#);
    out.extend_from_slice(&crate::hub::registry::encode(error));
    out.push(b'}');
}

/// A request's id until its answer. Nearly all are no longer than a UUID and need no memory of their own.
#[derive(Debug)]
enum KeptId {
    Short([u8; Self::SHORT_BYTES], u8),
    Long(Box<str>),
}

impl KeptId {
    /// A UUID in its quotes.
    const SHORT_BYTES: usize = 38;

    fn new(id: &str) -> Self {
        let mut bytes = [0; Self::SHORT_BYTES];
        match (bytes.get_mut(..id.len()), u8::try_from(id.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(id.as_bytes());
                Self::Short(bytes, length)
            }
            _ => Self::Long(id.into()),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            // SAFETY: `new` has copied as many bytes of a `str`, all of it; nothing writes to them since.
            Self::Short(bytes, length) => unsafe { str::from_utf8_unchecked(&bytes[..usize::from(*length)]) },
            Self::Long(id) => id,
        }
    }
}
