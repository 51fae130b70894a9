//! The operations of the hot path as counts of instructions, which a noisy machine does not change: under Valgrind's
//! Callgrind, by gungraun. One operation each, after a few turns that are not counted.
//!
//! Only with the feature `instructions` (without it this program does nothing), so that nothing else needs what it takes: `valgrind`, and the runner in the
//! version that `Cargo.lock` has of the library.
//!
//! ```console
//! $ cargo install gungraun-runner --version 0.20.0 --locked
//! $ cargo bench --features instructions --bench instructions
//! ```
//!
//! The allocator is the system's: Valgrind puts its own in its place, and counts what a program does between calls to it.

#![allow(missing_docs, reason = "the macros make public items of the benches")]

#[cfg(feature = "instructions")]
#[path = "parts/deciding.rs"]
mod deciding;
#[cfg(feature = "instructions")]
#[path = "parts/frames.rs"]
mod frames;
#[cfg(feature = "instructions")]
#[path = "parts/invoking.rs"]
mod invoking;
#[cfg(feature = "instructions")]
#[path = "parts/listeners.rs"]
mod listeners;

#[cfg(feature = "instructions")]
include!("parts/counted.rs");

#[cfg(not(feature = "instructions"))]
fn main() {}
