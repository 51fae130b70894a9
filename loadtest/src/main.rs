//! `loadtest`: loads a gateway of the OpenClaw wire, and says what it costs beside a server that does nothing.
//!
//! One thread does everything, on a core of its own. Read [`scenario::rpc`] first, the smallest scenario; then
//! [`client`], the engine under all of them; [`floor`] is what they are measured against, [`rounds`] how. What
//! comes out is in [`report`]. The README has the method and the meaning of each number.

#![allow(unreachable_pub, reason = "in a binary, pub says what a module shows to the others")]

mod args;
mod calls;
mod client;
mod control;
mod cores;
mod floor;
mod identity;
mod interrupt;
mod model;
mod procfs;
mod progress;
mod report;
mod rounds;
mod scenario;
mod stats;
mod target;
mod wire;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use args::{Arguments, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if !matches!(arguments.command, Command::Floor(_) | Command::Model { .. }) {
        interrupt::listen()?;
    }
    match arguments.command {
        Command::Rpc(it) => scenario::rpc::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Invoke(it) => scenario::invoke::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Fanout(it) => scenario::fanout::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Idle(it) => scenario::idle::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Connect(it) => scenario::connect::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Slow(it) => scenario::slow::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Storm(it) => scenario::storm::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Streams(it) => scenario::streams::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Soak(it) => scenario::soak::run(&it.scenario, &it.run)?.publish(&it.run),
        Command::Floor(service) => Ok(floor::serve(&service)?),
        Command::Model { deltas, places } => Ok(model::serve(deltas, places)?),
    }
}
