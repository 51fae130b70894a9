//! The steady path of a frame allocates nothing: counted, not believed.
//!
//! What runs here is what a connection's driver runs between its two system calls: decode, decide, dispatch,
//! encode. The allocator counts for the test's own thread only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System as SystemAllocator};
use std::cell::Cell;
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

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { SystemAllocator.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { SystemAllocator.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { SystemAllocator.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One connection without its socket.
struct Frames {
    decoder: Decoder,
    machine: Machine,
    caller: Arc<Connection>,
    router: Router,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Frames {
    fn open() -> Self {
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
        let caller = hub.register(hub.next_id(), grant, Client::default(), None, UnixMs(0));
        let mut machine = Machine::default();
        let connect = r#"{"type":"req","id":"1","method":"connect","params":{"minProtocol":4,"maxProtocol":4,
            "client":{"id":"cli","version":"1","platform":"linux","mode":"cli"}}}"#;
        assert!(matches!(machine.message(connect), Step::Connect { .. }));
        machine.accepted();
        let limits = Limits { max_message_bytes: limits::MAX_PAYLOAD_BYTES, max_fragments: 16 };
        let decoder = Decoder::new(codec::Role::Server, limits);
        Self { decoder, machine, caller, router, input: Vec::with_capacity(4096), output: Vec::with_capacity(65536) }
    }

    /// Takes one request through, as the driver does.
    fn call(&mut self, text: &str) {
        self.input.clear();
        self.output.clear();
        codec::frame(Opcode::Text, text.as_bytes(), Some([1, 2, 3, 4]), &mut self.input);
        let mut input = &mut self.input[..];
        while let Some(Message::Text(text)) = self.decoder.next(&mut input).unwrap() {
            let Step::Route(request) = self.machine.message(text.into_str()) else { panic!("not a request") };
            let frame = FrameStart::new(Opcode::Text, 200, None, &mut self.output);
            let params = Params::new(request.params);
            let id = request.id.as_str();
            self.router.route(&self.caller, id, &request.method, params, UnixMs(1_795_354_332_288), &mut self.output);
            frame.finish(&mut self.output);
        }
        assert!(self.output.len() > 40);
    }

    /// Allocations of `calls` steady calls.
    fn allocations(&mut self, text: &str, calls: u32) -> u64 {
        // What is made once (thread-local buffers, the encoded list) is not the steady state.
        (0..3).for_each(|_| self.call(text));
        let before = ALLOCATIONS.get();
        (0..calls).for_each(|_| self.call(text));
        ALLOCATIONS.get() - before
    }
}

#[test]
fn a_steady_health_allocates_nothing() {
    let mut frames = Frames::open();
    assert_eq!(frames.allocations(r#"{"type":"req","id":"12:ab","method":"health","params":{}}"#, 1000), 0);
    assert!(frames.output.ends_with(b"}}"));
}

#[test]
fn a_steady_presence_list_allocates_nothing() {
    let mut frames = Frames::open();
    assert_eq!(frames.allocations(r#"{"type":"req","id":"12:ab","method":"system-presence"}"#, 1000), 0);
}
