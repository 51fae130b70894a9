//! What a message means now: the life of a connection as a machine without IO.
//!
//! ```text
//! Challenged --connect--> Connecting --accepted--> Open --> (closed by the driver)
//!     |                       |
//!     +----- refused ---------+--> (closed by the driver)
//! ```
//!
//! Input is text; output is a [`Step`] for the driver. Time is not here: deadlines are the driver's.

use std::borrow::Cow;

use super::connect::ConnectParams;
use crate::limits;
use crate::rpc::dispatch::Routed;
use crate::rpc::envelope::{EnvelopeError, Fault, Request};
use crate::rpc::error::RpcError;
use crate::ws::close::CloseCode;

/// Where the connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Challenged,
    Connecting,
    Open,
    /// A call runs that changes what the next ones are judged by.
    Held,
}

/// The id that an answer carries when the request had none that can be told. *Wire*.
const NO_ID: &str = "\"invalid\"";

/// What to do about a message.
#[derive(Debug)]
pub enum Step<'a> {
    /// Decide on this `connect`; take no further message meanwhile.
    Connect {
        /// Raw JSON of the request's id.
        id: &'a str,
        /// What the client says of itself.
        params: Box<ConnectParams>,
    },
    /// Route this request.
    Route(Request<'a>),
    /// Answer with an error and go on.
    Answer {
        /// Raw JSON of the request's id.
        id: Cow<'a, str>,
        /// The answer.
        error: RpcError,
    },
    /// Answer, where there is something to answer to, then close.
    Close {
        /// Raw JSON of the request's id, and the answer.
        answer: Option<(Cow<'a, str>, RpcError)>,
        /// Code of the close frame.
        code: CloseCode,
        /// Reason of the close frame.
        reason: String,
    },
}

impl Step<'_> {
    fn refuse<'a>(id: Option<&'a str>, error: RpcError) -> Step<'a> {
        let reason = error.message.clone().into_owned();
        Step::Close { answer: id.map(|id| (id.into(), error)), code: CloseCode::POLICY_VIOLATION, reason }
    }
}

/// The machine of one connection.
#[derive(Debug)]
pub struct Machine {
    phase: Phase,
    /// Calls in a row that no honest client makes: to another role's methods, or not calls at all.
    unwelcome: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self { phase: Phase::Challenged, unwelcome: 0 }
    }
}

impl Machine {
    /// Takes the next text message.
    pub fn message<'a>(&mut self, text: &'a str) -> Step<'a> {
        match self.phase {
            Phase::Challenged => self.first(text),
            // The driver reads nothing while it connects, so this is a client that did not wait for the answer
            // and whose frames were already here. It has no rights yet, and it may not queue.
            Phase::Connecting => Step::refuse(None, RpcError::invalid("a frame came before the answer to connect")),
            // The driver takes nothing while it is held; what comes all the same is judged as always.
            Phase::Open | Phase::Held => self.request(text),
        }
    }

    /// The first message must be a valid `connect` (contract 2; `behaviour.md`, step 3).
    fn first<'a>(&mut self, text: &'a str) -> Step<'a> {
        let request = match Request::parse(text) {
            Ok(request) => request,
            Err(error) => {
                let id = error.id.map(|id| id.as_str());
                return Step::refuse(id, RpcError::invalid(format!("invalid request frame: {}", error.fault)));
            }
        };
        let id = request.id.as_str();
        if request.method != "connect" {
            return Step::refuse(Some(id), RpcError::invalid("invalid handshake: first request must be connect"));
        }
        match ConnectParams::parse(request.params.map(|params| params.as_str())) {
            Ok(params) => {
                self.phase = Phase::Connecting;
                Step::Connect { id, params: Box::new(params) }
            }
            Err(error) => Step::refuse(Some(id), error),
        }
    }

    fn request<'a>(&mut self, text: &'a str) -> Step<'a> {
        match Request::parse(text) {
            Ok(request) if request.method == "connect" => {
                let error = RpcError::invalid("connect is only valid as the first request");
                self.answer(request.id.as_str().into(), error)
            }
            Ok(request) => Step::Route(request),
            Err(error) => {
                let id = error.id.map_or(NO_ID.into(), |id| id.as_str().into());
                let message = invalid_frame(&error);
                self.answer(id, RpcError::invalid(message))
            }
        }
    }

    fn answer<'a>(&mut self, id: Cow<'a, str>, error: RpcError) -> Step<'a> {
        if self.unwelcome_again() {
            return Step::Close {
                answer: Some((id, error)),
                code: CloseCode::POLICY_VIOLATION,
                reason: TOO_MANY.to_owned(),
            };
        }
        Step::Answer { id, error }
    }

    /// Notes how a request went; `Some` is the reason to close for.
    pub fn routed(&mut self, routed: Routed) -> Option<&'static str> {
        match routed {
            Routed::Routed => {
                self.unwelcome = 0;
                None
            }
            Routed::Held => {
                self.unwelcome = 0;
                self.phase = Phase::Held;
                None
            }
            Routed::WrongRole => self.unwelcome_again().then_some(TOO_MANY),
        }
    }

    fn unwelcome_again(&mut self) -> bool {
        self.unwelcome += 1;
        self.unwelcome >= limits::UNAUTHORIZED_CALLS
    }

    /// The client was let in.
    pub fn accepted(&mut self) {
        self.phase = Phase::Open;
    }

    /// The call that held the connection up is done.
    pub fn resume(&mut self) {
        if self.phase == Phase::Held {
            self.phase = Phase::Open;
        }
    }

    /// Whether the client is let in.
    pub const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Held)
    }

    /// Whether no message is to be taken now: a `connect` is being decided on, or a call holds the connection up.
    pub const fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Held)
    }
}

/// Reason of the close after too many calls that no honest client makes.
const TOO_MANY: &str = "too many invalid or unauthorized requests in a row";

fn invalid_frame(error: &EnvelopeError<'_>) -> String {
    match &error.fault {
        Fault::Json(fault) => format!("invalid request frame: not valid JSON: {fault}"),
        fault => format!("invalid request frame: at {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT: &str = r#"{"type":"req","id":"1","method":"connect","params":{"minProtocol":4,"maxProtocol":4,
        "client":{"id":"cli","version":"1","platform":"linux","mode":"cli"}}}"#;

    fn open() -> Machine {
        let mut machine = Machine::default();
        assert!(matches!(machine.message(CONNECT), Step::Connect { id: "\"1\"", .. }));
        machine.accepted();
        machine
    }

    #[test]
    fn refuses_anything_before_connect() {
        let mut machine = Machine::default();
        let Step::Close { answer: Some((id, error)), code, .. } =
            machine.message(r#"{"type":"req","id":"x1","method":"health"}"#)
        else {
            panic!()
        };
        assert_eq!((&*id, code), ("\"x1\"", CloseCode::POLICY_VIOLATION));
        assert_eq!(error.message, "invalid handshake: first request must be connect");
        for text in ["hello", "[]", "{}", r#"{"type":"event","event":"x"}"#] {
            assert!(matches!(Machine::default().message(text), Step::Close { answer: None, .. }), "{text}");
        }
    }

    #[test]
    fn refuses_a_frame_that_did_not_wait_for_the_answer() {
        let mut machine = Machine::default();
        assert!(matches!(machine.message(CONNECT), Step::Connect { .. }));
        assert!(matches!(machine.message(r#"{"type":"req","id":"2","method":"health"}"#), Step::Close { .. }));
    }

    #[test]
    fn refuses_a_second_connect_and_goes_on() {
        let mut machine = open();
        assert!(matches!(machine.message(CONNECT), Step::Answer { .. }));
        assert!(matches!(machine.message(r#"{"type":"req","id":"2","method":"health"}"#), Step::Route(_)));
    }

    #[test]
    fn answers_what_is_not_a_request() {
        let mut machine = open();
        for (text, wanted) in [
            ("{nope", "\"invalid\""),
            ("[1]", "\"invalid\""),
            (r#"{"type":"req","id":"a"}"#, "\"a\""),
            (r#"{"type":"req","id":"b","id":"c","method":"health"}"#, "\"invalid\""),
        ] {
            let Step::Answer { id, error } = machine.message(text) else { panic!("{text}") };
            assert!(id == wanted || text.contains("\"c\""), "{text}: {id}");
            assert!(error.message.starts_with("invalid request frame: "), "{text}: {}", error.message);
        }
    }

    #[test]
    fn closes_on_a_flood_of_unwelcome_calls_but_forgives_a_few() {
        let mut machine = open();
        for _ in 0..50 {
            for _ in 1..limits::UNAUTHORIZED_CALLS {
                assert_eq!(machine.routed(Routed::WrongRole), None);
            }
            machine.routed(Routed::Routed);
        }
        for _ in 1..limits::UNAUTHORIZED_CALLS {
            machine.message("x");
        }
        assert!(matches!(machine.message("x"), Step::Close { .. }));
    }
}
