//! The node's side: the real node host, with a home and so a device key of its own.

use std::time::Duration;

use tempfile::TempDir;

use crate::gateway::{Gateway, TOKEN};
use crate::parts::Release;
use crate::program::Program;

/// A running node host.
#[derive(Debug)]
pub(crate) struct NodeHost {
    program: Program,
    _home: TempDir,
}

impl NodeHost {
    /// Starts one that knows the gateway's address and shared secret. It connects when it is up.
    pub(crate) fn start(release: Release, gateway: &Gateway, name: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = release.command(home.path());
        command.args(["node", "run", "--host", "127.0.0.1", "--port", &gateway.port().to_string()]);
        command.args(["--display-name", name]).env("OPENCLAW_GATEWAY_TOKEN", TOKEN);
        let program = Program::start("node host", command, &home.path().join("node.log"));
        Self { program, _home: home }
    }

    /// Starts one that knows a setup code and nothing else.
    pub(crate) fn set_up_by(release: Release, code: &str, name: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = release.command(home.path());
        command.args(["node", "run", "--pair", &format!("oc-pair://{code}"), "--display-name", name]);
        let program = Program::start("node host", command, &home.path().join("node.log"));
        Self { program, _home: home }
    }

    /// Starts one that knows a join URL and nothing else.
    pub(crate) fn joined_by(release: Release, url: &str, name: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = release.command(home.path());
        command.args(["connect", url, "--display-name", name]);
        let program = Program::start("node host", command, &home.path().join("node.log"));
        Self { program, _home: home }
    }

    /// Everything it has printed.
    pub(crate) fn log(&self) -> String {
        self.program.log()
    }

    /// Stops it as a service manager would.
    pub(crate) fn stop(&mut self) {
        self.program.stop(Duration::from_secs(30));
    }
}
