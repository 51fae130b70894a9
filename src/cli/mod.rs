//! (being written)
pub mod config;

use crate::config::*;
use std::{ffi::OsString, process::ExitCode};
/// Runs the program.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().map(|a| a.into_string().unwrap_or_default()).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let profile = Profile::Default;
    let environment = load::process_environment();
    let Ok(paths) = load::process_paths(&environment, &profile) else { return ExitCode::FAILURE };
    let Ok(loaded) = load::load(paths, environment) else { return ExitCode::FAILURE };
    let flags = resolve::Flags {
        port: flag("--port").and_then(|p| p.parse().ok()),
        token: flag("--token").map(crate::secret::Secret::new),
        ..Default::default()
    };
    let workers = flag("--workers").and_then(|p| p.parse().ok());
    let verbose = args.iter().any(|a| a == "--verbose");
    match crate::server::run(crate::server::Options { flags, profile, loaded, verbose, workers }) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
