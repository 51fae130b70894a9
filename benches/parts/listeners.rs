//! Operators that one event goes to, without their sockets.

use std::sync::Arc;
use std::task::Waker;

use clawgate::auth::Grant;
use clawgate::clock::UnixMs;
use clawgate::hub::outbox::{EncodedEvent, Item};
use clawgate::hub::{Client, Connection, Hub};
use clawgate::limits;
use clawgate::rpc::catalog::Event;
use clawgate::rpc::scope::{Role, Scope, ScopeSet};
use clawgate::ws::codec::{self, FrameStart};
use clawgate::ws::message::Opcode;

/// The end of a run: an event of usual size that may not be left out.
const PAYLOAD: &[u8] = br#"{"runId":"5f2b8c1d9e7a4063b1c2d3e4f5a69788","sessionKey":"agent:main:main","seq":7,"state":"final","message":{"role":"assistant","content":[{"type":"text","text":"Done: the door is closed."}],"timestamp":1795000000000}}"#;

/// Operators, all of whom may have the event.
pub(crate) struct Listeners {
    hub: Hub,
    connections: Vec<Arc<Connection>>,
    output: Vec<u8>,
}

impl Listeners {
    /// `count` of them, who had the event a few times: their queues have their memory.
    pub(crate) fn new(count: usize) -> Self {
        let hub = Hub::new(limits::OUTBOX_BYTES, 1 << 30);
        let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY.with(Scope::Read), None);
        let now = UnixMs(1_795_000_000_000);
        let register = |_| hub.register(hub.next_id(), grant.clone(), Client::default(), None, now);
        let connections = (0..count).map(register).collect();
        let mut listeners = Self { hub, connections, output: Vec::with_capacity(64 * 1024) };
        for _ in 0..3 {
            assert_eq!(listeners.push(), count);
            assert!(listeners.deliver() > count * PAYLOAD.len());
        }
        listeners
    }

    /// Encodes the event once and queues it for everyone. How many took it.
    pub(crate) fn push(&self) -> usize {
        self.hub.broadcast_encoded(&Arc::new(EncodedEvent::new(Event::CHAT, PAYLOAD, None)))
    }

    /// Takes out what waits for each and frames it, as the drivers do before they write. How many bytes they were.
    pub(crate) fn deliver(&mut self) -> usize {
        let Self { connections, output, .. } = self;
        let mut bytes = 0;
        for connection in connections {
            output.clear();
            connection.outbox.drain(Waker::noop(), |item| {
                match item {
                    Item::Event(event, seq) => {
                        let frame = FrameStart::new(Opcode::Text, 200, None, output);
                        event.write(Some(seq), output);
                        frame.finish(output);
                    }
                    Item::Text(text) => codec::frame(Opcode::Text, &text, None, output),
                    Item::Ping | Item::Resume => {}
                }
                true
            });
            connection.outbox.settle();
            bytes += std::hint::black_box(&*output).len();
        }
        bytes
    }
}
