//! The steady path of a frame allocates nothing: counted, not believed.
//!
//! What runs here is what a connection's driver runs between its two system calls: decode, decide, dispatch,
//! encode. The allocator counts for the test's own thread only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System as SystemAllocator};
use std::cell::Cell;

#[path = "../benches/parts/frames.rs"]
mod frames;
#[path = "../benches/parts/invoking.rs"]
mod invoking;

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

/// Allocations of a thousand turns.
fn allocations(mut turn: impl FnMut()) -> u64 {
    let before = ALLOCATIONS.get();
    (0..1000).for_each(|_| turn());
    ALLOCATIONS.get() - before
}

#[test]
fn a_steady_health_and_a_steady_presence_list_allocate_nothing() {
    for (name, call) in frames::CALLS {
        let mut frames = frames::Frames::open(call);
        assert_eq!(allocations(|| assert!(frames.turn().len() > 40)), 0, "{name}");
    }
}

#[test]
fn a_steady_call_of_a_node_allocates_nothing_there_and_back() {
    let mut invoking = invoking::Invoking::new(64);
    let turn = || {
        assert_eq!(invoking.turn(), 1);
        invoking.number();
    };
    assert_eq!(allocations(turn), 0);
}
