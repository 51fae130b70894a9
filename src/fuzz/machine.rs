//! The machine of a connection under any sequence of frames and of what the driver tells it.

use arbitrary::Unstructured;

use super::{flip, pick};
use crate::conn::machine::{Machine, Step};
use crate::limits;
use crate::rpc::dispatch::Routed;

const FRAMES: [&str; 12] = [
    r#"{"type":"req","id":"1","method":"connect","params":{"minProtocol":4,"maxProtocol":4,"client":{"id":"cli","version":"1","platform":"linux","mode":"cli"}}}"#,
    r#"{"type":"req","id":"2","method":"connect","params":{}}"#,
    r#"{"type":"req","id":"3","method":"health"}"#,
    r#"{"type":"req","id":"4","method":"node.event","params":{"a":[1,2,{"b":null}]}}"#,
    r#"{"type":"req","id":"5","id":"6","method":"health"}"#,
    r#"{"type":"res","id":"7","ok":true}"#,
    r#"{"type":"event","event":"tick"}"#,
    r#"{"type":"req","method":"health"}"#,
    r#"{"type":"req","id":8,"method":"health"}"#,
    "{nope",
    "",
    "[]",
];

/// What a driver would know, kept beside the machine.
#[derive(Default)]
struct Model {
    connected: bool,
    /// A connect was handed out and not decided yet.
    deciding: bool,
    held: bool,
    unwelcome: u32,
}

/// See the module's head.
///
/// # Panics
/// When a promise is broken.
pub fn check(data: &[u8]) {
    let u = &mut Unstructured::new(data);
    let mut machine = Machine::default();
    let mut model = Model::default();
    for _ in 0..64 {
        if u.is_empty() {
            return;
        }
        // A driver takes nothing while the machine waits; some inputs do all the same.
        if machine.is_waiting() && !flip(u) {
            if model.deciding {
                machine.accepted();
                (model.deciding, model.connected) = (false, true);
            } else {
                machine.resume();
                model.held = false;
            }
            assert!(!machine.is_waiting() && machine.is_open());
            continue;
        }
        let frame = if flip(u) { pick(u, &FRAMES) } else { u.arbitrary::<&str>().unwrap_or_default() };
        if !step(&mut machine, &mut model, frame, u) {
            return;
        }
        assert_eq!(machine.is_open(), model.connected);
        assert_eq!(machine.is_waiting(), model.deciding || model.held);
    }
}

/// Takes one frame; `false` when the connection ends.
fn step(machine: &mut Machine, model: &mut Model, frame: &str, u: &mut Unstructured<'_>) -> bool {
    match machine.message(frame) {
        Step::Connect { id, params } => {
            assert!(!model.connected && !model.deciding, "one connect a connection");
            assert!(id.starts_with('"') && params.min_protocol <= params.max_protocol);
            model.deciding = true;
        }
        Step::Route(request) => {
            assert!(model.connected, "nothing is routed before connect");
            assert!(request.method != "connect");
            let routed = pick(u, &[Routed::Routed, Routed::WrongRole, Routed::Held]);
            let close = machine.routed(routed);
            match routed {
                Routed::WrongRole => model.unwelcome += 1,
                Routed::Routed => model.unwelcome = 0,
                Routed::Held => (model.unwelcome, model.held) = (0, true),
            }
            assert_eq!(close.is_some(), model.unwelcome >= limits::UNAUTHORIZED_CALLS);
            return close.is_none();
        }
        Step::Answer { id, error } => {
            assert!(model.connected && !error.message.is_empty());
            assert!(serde_json::from_str::<String>(&id).is_ok(), "an id is a string of JSON: {id}");
            model.unwelcome += 1;
            assert!(model.unwelcome < limits::UNAUTHORIZED_CALLS);
        }
        Step::Close { answer, reason, .. } => {
            assert!(!reason.is_empty());
            assert!(
                !model.connected || model.unwelcome + 1 >= limits::UNAUTHORIZED_CALLS,
                "an open connection bears a fault"
            );
            if let Some((id, _)) = answer {
                assert!(serde_json::from_str::<String>(&id).is_ok(), "{id}");
            }
            return false;
        }
    }
    true
}
