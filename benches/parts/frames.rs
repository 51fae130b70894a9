//! One operator's connection without its socket: what its driver runs between two system calls.

use std::sync::Arc;

use clawgate::auth::Grant;
use clawgate::clock::UnixMs;
use clawgate::conn::machine::{Machine, Step};
use clawgate::hub::{Client, Connection, Hub};
use clawgate::limits;
use clawgate::rpc::dispatch::{Params, Router};
use clawgate::rpc::scope::{Role, Scope, ScopeSet};
use clawgate::system::identity::Identity;
use clawgate::system::{Facts, System, methods::METHODS};
use clawgate::ws::codec::{self, Decoder, FrameStart, Limits};
use clawgate::ws::message::{Message, Opcode};

const NOW: UnixMs = UnixMs(1_795_000_000_000);
/// The calls that are measured, by the names of their benches.
pub(crate) const CALLS: [(&str, &str); 2] = [
    ("health", r#"{"type":"req","id":"2c3f0a3e-6a05-4c9b","method":"health","params":{}}"#),
    ("system_presence", r#"{"type":"req","id":"2c3f0a3e-6a05-4c9b","method":"system-presence","params":{}}"#),
];

/// The connection, open, and one call that comes again and again.
pub(crate) struct Frames {
    decoder: Decoder,
    machine: Machine,
    caller: Arc<Connection>,
    router: Router,
    /// The call as a masked frame.
    sent: Vec<u8>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Frames {
    /// Lets the operator in, and answers the call a few times: what is made once is not the steady state.
    pub(crate) fn open(call: &str) -> Self {
        let hub = Hub::new(limits::OUTBOX_BYTES, 1 << 30);
        let facts = Facts {
            boot_id: "boot".to_owned(),
            host: "host".to_owned(),
            platform: "linux".to_owned(),
            config_path: "/c".into(),
            state_dir: "/s".into(),
            log_dir: "/l".into(),
            config: Default::default(),
            identity: Identity { device_id: String::new(), public_key: String::new() },
        };
        let mut router = Router::default();
        router.mount(&System::new(facts, hub.clone()), METHODS);
        let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY.with(Scope::Read), None);
        let caller = hub.register(hub.next_id(), grant, Client::default(), None, NOW);
        let mut machine = Machine::default();
        let connect = r#"{"type":"req","id":"1","method":"connect","params":{"minProtocol":4,"maxProtocol":4,
            "client":{"id":"cli","version":"1","platform":"linux","mode":"cli"}}}"#;
        assert!(matches!(machine.message(connect), Step::Connect { .. }));
        machine.accepted();
        let limits = Limits { max_message_bytes: limits::MAX_PAYLOAD_BYTES, max_fragments: 16 };
        let mut sent = Vec::new();
        codec::frame(Opcode::Text, call.as_bytes(), Some([1, 2, 3, 4]), &mut sent);
        let mut frames = Self {
            decoder: Decoder::new(codec::Role::Server, limits),
            machine,
            caller,
            router,
            input: vec![0; sent.len()],
            sent,
            output: Vec::with_capacity(64 * 1024),
        };
        for _ in 0..3 {
            let answer = frames.turn();
            assert!(memchr::memmem::find(answer, br#""id":"2c3f0a3e-6a05-4c9b","ok":true"#).is_some());
        }
        frames
    }

    /// From the frame as the socket gives it to the bytes of the answer.
    pub(crate) fn turn(&mut self) -> &[u8] {
        // The decoder unmasks in place: a fresh copy, as a read would make it.
        self.input.copy_from_slice(&self.sent);
        self.output.clear();
        let mut input = &mut self.input[..];
        while let Some(Message::Text(text)) = self.decoder.next(&mut input).expect("a valid frame") {
            let Step::Route(request) = self.machine.message(text.into_str()) else { panic!("not a request") };
            let frame = FrameStart::new(Opcode::Text, 200, None, &mut self.output);
            let (id, params) = (request.id.as_str(), Params::of(&request));
            let routed = self.router.route(&self.caller, id, &request.method, params, NOW, &mut self.output);
            frame.finish(&mut self.output);
            assert!(self.machine.routed(routed).is_none());
        }
        &self.output
    }
}
