//! (being written)
use std::{ffi::OsString, process::ExitCode};
/// Runs the program.
pub fn run(_args: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::SUCCESS
}
