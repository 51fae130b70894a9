//! From a request to its handler and back: role, scope, parameters, answer.
//!
//! A domain lists its methods as [`Method`]s over its own handle; [`Router::mount`] puts them into the one
//! table. A handler answers at once, straight into the connection's outgoing bytes, or takes a
//! [`Responder`] and answers later. Either way every request gets exactly one response: a responder that
//! is dropped answers for itself.

mod respond;

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::catalog::{self, Access};
use super::envelope::Request;
use super::error::{ErrorCode, RpcError};
use super::json::{self, Fields, JsonError, Members, Raw};
use super::scope::Role;
use crate::clock::{UnixMs, monotonic_s};
use crate::hub::Connection;
use crate::sparing::{LeftOut, Sparing};
use crate::{task, text};

pub use respond::{Hold, Responder, write_error, write_ok};

/// What a handler did with a call.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is written.
    Answered,
    /// A [`Responder`] holds the call.
    Later,
    /// The same, and until the [`Hold`] of the call is dropped no further request of its connection is taken.
    Held,
}

/// A handler of a domain whose handle is `S`.
pub type Handler<S> = fn(&S, Call<'_>) -> Result<Outcome, RpcError>;

/// One method of a domain. Its access is in [`catalog::METHODS`].
#[derive(Debug)]
pub struct Method<S> {
    /// Name on the wire.
    pub name: &'static str,
    /// What answers it.
    pub handler: Handler<S>,
}

/// The parameters of a call: JSON that the envelope scanner has validated, not yet looked at.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    json: Option<Raw<'a>>,
    members: Option<&'a Members>,
}

thread_local! {
    /// What typed parsing works in: the parser overwrites its input, and the frame must stay as it is.
    static PARSER: RefCell<(Vec<u8>, simd_json::Buffers)> = RefCell::default();
}

/// Bytes of parameters above which the parser's memory is given back after use.
const KEPT_BYTES: usize = 64 * 1024;
/// Characters of what is said of wrong parameters.
const MAX_ERROR_CHARS: usize = 400;

impl<'a> Params<'a> {
    /// Those of a request. It may have none, which means `{}`.
    pub const fn of(request: &'a Request<'a>) -> Self {
        Self { json: request.params, members: Some(&request.members) }
    }

    /// Wraps JSON that came in no frame.
    pub const fn new(json: Raw<'a>) -> Self {
        Self { json: Some(json), members: None }
    }

    /// The raw JSON.
    pub fn raw(self) -> &'a str {
        // `null` is how some clients write that there are none.
        self.json.filter(|json| !json.is_null()).map_or("{}", Raw::as_str)
    }

    /// The values of `keys` as they stand, as by [`json::fields`]; mostly without another look at the text.
    ///
    /// # Errors
    /// They are not an object.
    #[inline]
    pub fn fields<const N: usize>(self, keys: &[&str; N]) -> Result<Fields<'a, N>, JsonError> {
        match self.json.zip(self.members).and_then(|(json, members)| members.fields(json, keys)) {
            Some(fields) => Ok(fields),
            None => json::fields(self.raw(), keys),
        }
    }

    /// Parses into `T`. The error names the path.
    pub fn parse<T: DeserializeOwned>(self, method: &str) -> Result<T, RpcError> {
        let refuse = |path: &str, what: String| {
            let place = if path == "." { String::new() } else { format!(" at {path}:") };
            // It may quote what was sent, whole.
            RpcError::invalid(text::plain(&format!("invalid {method} params:{place} {what}"), MAX_ERROR_CHARS))
        };
        PARSER.with_borrow_mut(|(input, buffers)| {
            input.clear();
            input.extend_from_slice(self.raw().as_bytes());
            let parsed = simd_json::Deserializer::from_slice_with_buffers(input, buffers)
                .map_err(|error| refuse(".", plain(&error)))
                .and_then(|mut parser| {
                    serde_path_to_error::deserialize(&mut parser)
                        .map_err(|error| refuse(&error.path().to_string(), plain(error.inner())))
                });
            if input.capacity() > KEPT_BYTES {
                *input = Vec::new();
                *buffers = simd_json::Buffers::default();
            }
            parsed
        })
    }
}

/// simd-json's errors for people: what was said, without the position in a buffer they never saw.
fn plain(error: &simd_json::Error) -> String {
    match error.error() {
        simd_json::ErrorType::Serde(message) => message.clone(),
        other => {
            // `ExpectedInteger` -> "expected integer"
            let name = format!("{other:?}");
            let mut words = String::with_capacity(name.len() + 4);
            for (at, letter) in name.char_indices() {
                if at > 0 && letter.is_ascii_uppercase() {
                    words.push(' ');
                }
                words.push(letter.to_ascii_lowercase());
            }
            words
        }
    }
}

/// One request on its way to a handler.
#[derive(Debug)]
pub struct Call<'a> {
    caller: &'a Arc<Connection>,
    method: &'static str,
    id: &'a str,
    params: Params<'a>,
    now: UnixMs,
    out: &'a mut Vec<u8>,
}

impl<'a> Call<'a> {
    /// A call that the gateway makes itself, past the router: `caller` has no socket, and what is answered later
    /// goes to its outbox.
    pub const fn internal(
        caller: &'a Arc<Connection>,
        method: &'static str,
        params: Raw<'a>,
        now: UnixMs,
        out: &'a mut Vec<u8>,
    ) -> Self {
        Self { caller, method, id: "\"internal\"", params: Params::new(params), now, out }
    }

    /// Who calls.
    pub const fn caller(&self) -> &'a Arc<Connection> {
        self.caller
    }

    /// When the request was read.
    pub const fn now(&self) -> UnixMs {
        self.now
    }

    /// The raw JSON of the parameters.
    pub fn raw_params(&self) -> &'a str {
        self.params.raw()
    }

    /// The parameters, not looked at.
    pub const fn unread_params(&self) -> Params<'a> {
        self.params
    }

    /// Takes the parameters as `T`.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T, RpcError> {
        self.params.parse(self.method)
    }

    /// For a method without parameters: refuses any.
    pub fn no_params(&self) -> Result<(), RpcError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Empty {}
        if self.raw_params() == "{}" {
            return Ok(());
        }
        self.params::<Empty>().map(|Empty {}| ())
    }

    /// Answers with `payload`.
    pub fn answer(self, payload: &impl Serialize) -> Result<Outcome, RpcError> {
        write_ok(self.out, self.id, |out| {
            serde_json::to_writer(out, payload)
                .map_err(|error| RpcError::unavailable(format!("the answer could not be encoded: {error}")))
        })?;
        Ok(Outcome::Answered)
    }

    /// Answers with a payload that is JSON already.
    pub fn answer_json(self, payload: &[u8]) -> Result<Outcome, RpcError> {
        self.answer_with(|out| out.extend_from_slice(payload))
    }

    /// Answers with what `write` appends: one JSON value.
    pub fn answer_with(self, write: impl FnOnce(&mut Vec<u8>)) -> Result<Outcome, RpcError> {
        write_ok(self.out, self.id, |out| {
            write(out);
            Ok(())
        })?;
        Ok(Outcome::Answered)
    }

    /// Takes the call away, to be answered later from anywhere.
    pub fn later(self) -> Responder {
        Responder::new(Arc::clone(self.caller), self.method, self.id)
    }

    /// Keeps the later requests of this connection waiting, for a call that changes what they are judged by. The handler
    /// then returns [`Outcome::Held`].
    pub fn hold(&self) -> Hold {
        Hold::new(Arc::clone(self.caller))
    }

    /// Answers later with what `future` gives.
    pub fn spawn<T, F>(self, future: F) -> Result<Outcome, RpcError>
    where
        T: Serialize,
        F: Future<Output = Result<T, RpcError>> + Send + 'static,
    {
        let method = self.method;
        let responder = self.later();
        task::spawn(method, async move {
            match future.await {
                Ok(payload) => responder.answer(&payload),
                Err(error) => responder.fail(&error),
            };
        });
        Ok(Outcome::Later)
    }
}

type Mounted = Box<dyn Fn(Call<'_>) -> Result<Outcome, RpcError> + Send + Sync>;

struct Entry {
    name: &'static str,
    access: Access,
    handler: Mounted,
}

/// The table of every method this gateway has.
#[derive(Default)]
pub struct Router {
    /// A fast hash: callers only look up, they cannot insert.
    methods: FxHashMap<&'static str, Entry>,
}

/// How a request went, for the connection's flood guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// It reached a handler, or failed for a reason of its own.
    Routed,
    /// It was for another role: nothing an honest client does often.
    WrongRole,
    /// It reached a handler that must be done before the next request is taken.
    Held,
}

impl Router {
    /// Adds a domain's methods.
    ///
    /// # Panics
    /// When a method is not in the catalogue, or is mounted twice: a defect that every test run shows.
    pub fn mount<S: Clone + Send + Sync + 'static>(&mut self, handle: &S, methods: &'static [Method<S>]) {
        for method in methods {
            let Some(access) = catalog::access(method.name) else {
                panic!("the catalogue has no method {}", method.name);
            };
            let handle = handle.clone();
            let handler = method.handler;
            let entry = Entry { name: method.name, access, handler: Box::new(move |call| handler(&handle, call)) };
            assert!(self.methods.insert(method.name, entry).is_none(), "{} is mounted twice", method.name);
        }
    }

    /// Names of the methods that `role` may call, sorted: what `hello-ok` announces.
    pub fn names(&self, role: Role) -> Vec<&'static str> {
        let mut names: Vec<_> =
            self.methods.values().filter(|entry| entry.access.role() == role).map(|entry| entry.name).collect();
        names.sort_unstable();
        names
    }

    /// Routes one request. The answer, if it is there at once, is appended to `out` as a whole text.
    ///
    /// `id` is the raw JSON string, quotes included. Order: does the method exist, may this role call it, do the
    /// scopes cover it, then the handler.
    pub fn route(
        &self,
        caller: &Arc<Connection>,
        id: &str,
        method: &str,
        params: Params<'_>,
        now: UnixMs,
        out: &mut Vec<u8>,
    ) -> Routed {
        let start = out.len();
        let answer = self.admit(caller, method).and_then(|entry| {
            let call = Call { caller, method: entry.name, id, params, now, out };
            (entry.handler)(call).map_err(|error| (Routed::Routed, error))
        });
        match answer {
            Ok(Outcome::Answered) => Routed::Routed,
            Ok(later @ (Outcome::Later | Outcome::Held)) => {
                out.truncate(start);
                if later == Outcome::Held { Routed::Held } else { Routed::Routed }
            }
            Err((routed, error)) => {
                out.truncate(start);
                log_refusal(caller, method, &error);
                write_error(out, id, &error);
                routed
            }
        }
    }

    fn admit(&self, caller: &Connection, method: &str) -> Result<&Entry, (Routed, RpcError)> {
        let entry = self.methods.get(method);
        // A method that does not exist needs admin, so that its absence tells a lesser caller nothing.
        let access = entry
            .map(|entry| entry.access)
            .or_else(|| catalog::access(method))
            .unwrap_or(Access::Operator(super::scope::Scope::Admin));
        let role = caller.grant.role();
        if access.role() != role {
            return Err((
                Routed::WrongRole,
                RpcError::invalid(format!("unauthorized role: {role} (this method is for the role {})", access.role())),
            ));
        }
        if let Access::Operator(scope) = access
            && !caller.grant.scopes().covers(scope)
        {
            return Err((Routed::Routed, RpcError::missing_scope(scope.as_str(), &[scope.as_str()])));
        }
        entry.ok_or_else(|| (Routed::Routed, absent(method)))
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.methods.keys()).finish()
    }
}

/// Lines a second about refused calls; a flood of them is counted, not written.
const LINES_PER_SECOND: u32 = 20;

/// Writes one line about a call that was refused or failed, unless too many were written this second.
pub fn log_refusal(caller: &Connection, method: &str, error: &RpcError) {
    static LINES: Sparing = Sparing::a_second(LINES_PER_SECOND);
    let Some(LeftOut(left_out)) = LINES.say(monotonic_s()) else { return };
    // Both may hold text of the client: as `Debug` it cannot break out of its line.
    let (code, reason) = (error.code.as_str(), &error.message);
    tracing::info!(conn = %caller.id, ?method, code, ?reason, left_out, "call refused");
}

/// The answer to a method that is not here: known to the wire, or to nobody.
fn absent(method: &str) -> RpcError {
    let shown: String = method.chars().filter(|c| !c.is_control()).take(100).collect();
    if catalog::access(method).is_some() {
        RpcError::new(
            ErrorCode::Unavailable,
            format!("{shown} is not implemented by this gateway (clawgate {})", env!("CARGO_PKG_VERSION")),
        )
        .with_details(serde_json::json!({"code": "METHOD_NOT_IMPLEMENTED", "method": shown}))
        .retryable(false)
    } else {
        RpcError::invalid(format!("unknown method: {shown}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Grant;
    use crate::hub::{Client, Hub};
    use crate::rpc::scope::{Scope, ScopeSet};
    use serde_json::{Value, json};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its parsing is tested")]
    struct Named {
        name: String,
        count: Option<u32>,
    }

    const METHODS: &[Method<u32>] = &[
        Method { name: "health", handler: |answer, call| call.answer(answer) },
        Method {
            name: "node.invoke",
            handler: |_, call| {
                drop(call.later());
                Ok(Outcome::Later)
            },
        },
        Method {
            name: "node.rename",
            handler: |_, call| {
                let _: Named = call.params()?;
                call.answer(&true)
            },
        },
        Method { name: "node.event", handler: |_, call| call.answer(&true) },
    ];

    fn call(scopes: ScopeSet, method: &str, params: &str) -> (Routed, Value, Arc<Connection>) {
        let hub = Hub::new(1 << 16, 1 << 20);
        let grant = Grant::for_test(Role::Operator, scopes, None);
        let caller = hub.register(hub.next_id(), grant, Client::default(), None, UnixMs(0));
        let mut router = Router::default();
        router.mount(&42, METHODS);
        let (params, mut out) = (Params::new(Raw::new(params).unwrap()), Vec::new());
        let routed = router.route(&caller, "\"1\"", method, params, UnixMs(0), &mut out);
        let answer = if out.is_empty() { Value::Null } else { serde_json::from_slice(&out).unwrap() };
        (routed, answer, caller)
    }

    fn all() -> ScopeSet {
        ScopeSet::EMPTY.with(Scope::Admin)
    }

    #[test]
    fn answers_with_the_callers_id() {
        let (routed, answer, _) = call(ScopeSet::EMPTY.with(Scope::Read), "health", "{}");
        assert_eq!(routed, Routed::Routed);
        assert_eq!(answer, json!({"type":"res","id":"1","ok":true,"payload":42}));
    }

    #[test]
    fn a_missing_scope_is_forbidden() {
        let (_, answer, _) = call(ScopeSet::EMPTY.with(Scope::Read), "node.rename", "{}");
        assert_eq!(answer["error"]["details"]["missingScope"], "operator.pairing");
    }

    #[test]
    fn a_nodes_method_is_not_for_operators() {
        let (routed, answer, _) = call(all(), "node.event", "{}");
        assert_eq!(routed, Routed::WrongRole);
        assert_eq!(answer["error"]["code"], "INVALID_REQUEST");
    }

    #[test]
    fn tells_unknown_from_not_implemented() {
        let (_, answer, _) = call(all(), "no.such", "{}");
        assert_eq!(answer["error"]["message"], "unknown method: no.such");
        let (_, answer, _) = call(all(), "cron.list", "{}");
        assert_eq!(answer["error"]["details"]["code"], "METHOD_NOT_IMPLEMENTED");
        let (_, answer, _) = call(ScopeSet::EMPTY.with(Scope::Read), "no.such", "{}");
        assert_eq!(answer["error"]["details"]["code"], "MISSING_SCOPE");
    }

    #[test]
    fn wrong_parameters_are_named_by_path() {
        let message = |params| {
            let (_, answer, _) = call(all(), "node.rename", params);
            answer["error"]["message"].as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(message(r#"{"name":"a","count":"x"}"#), "invalid node.rename params: at count: expected unsigned");
        assert_eq!(message("{}"), "invalid node.rename params: missing field `name`");
        assert!(message(r#"{"name":"a","colour":1}"#).contains("unknown field `colour`"));
        let long = format!(r#"{{"name":"a","{}\n":1}}"#, "x".repeat(10_000));
        assert!(message(&long).len() < 500 && !message(&long).contains('\n'), "what was sent does not come back whole");
    }

    #[test]
    fn a_dropped_responder_answers_for_itself() {
        let (_, answer, caller) = call(all(), "node.invoke", "{}");
        assert_eq!(answer, Value::Null);
        assert!(caller.outbox.queued_bytes() > 0);
    }
}
