//! What every command starts from: where things are, what the environment says, where to print.

use super::error::CliError;
use super::output::Output;
use crate::config::load::{self, Loaded};
use crate::config::{Environment, Paths, Profile};

/// What every command starts from.
#[derive(Clone, Debug)]
pub(super) struct Context {
    /// Which set of isolated defaults is in use.
    pub(super) profile: Profile,
    /// Where configuration and state are.
    pub(super) paths: Paths,
    /// The variables of the process.
    pub(super) environment: Environment,
    /// Where to print.
    pub(super) output: Output,
}

impl Context {
    /// The context of this process.
    ///
    /// # Errors
    /// The profile has no proper name, or there is no home directory and one is needed.
    pub(super) fn new(profile: Profile, output: Output) -> Result<Self, CliError> {
        let environment = load::process_environment();
        let paths = load::process_paths(&environment, &profile)?;
        Ok(Self { profile, paths, environment, output })
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// The file is broken; the text names file, line and key.
    pub(super) fn load(&self) -> Result<Loaded, CliError> {
        Ok(load::load(self.paths.clone(), self.environment.clone())?)
    }
}
