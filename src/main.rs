//! The `clawgate` binary: the allocator, and the way into [`clawgate::cli`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    clawgate::cli::run(std::env::args_os())
}
