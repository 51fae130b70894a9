//! The operator's side: the real CLI with a home of its own, and scripts that use the reference client's packages.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::{Gateway, TOKEN, write_config, write_remote};
use crate::parts::{self, Release};
use crate::program::{Output, run};

/// A command takes one to four seconds, and there may be much else to do for the machine.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// One operator with the CLI of one release, configured for one gateway.
#[derive(Debug)]
pub(crate) struct Cli {
    release: Release,
    home: TempDir,
}

impl Cli {
    /// A new operator on the gateway's own machine, who knows the shared secret and nothing else.
    pub(crate) fn of(release: Release, gateway: &Gateway) -> Self {
        let home = tempfile::tempdir().unwrap();
        write_config(home.path(), gateway.port(), &Value::Null);
        Self { release, home }
    }

    /// A new operator on another machine, who knows the gateway by its address, its certificate and the shared secret.
    pub(crate) fn elsewhere(release: Release, gateway: &Gateway, fingerprint: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        write_remote(home.path(), &gateway.url(), fingerprint);
        Self { release, home }
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub(crate) fn succeeds(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.code, Some(0), "the command above should have succeeded");
        output
    }

    /// Runs a command that must fail with exit code 1, the code of everything that the gateway refuses.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.code, Some(1), "the command above should have failed");
        output
    }

    /// Runs a command that must succeed and print JSON, and nothing else, on standard output.
    #[track_caller]
    pub(crate) fn json(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Value {
        let output = self.succeeds(arguments);
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("the output above is not JSON: {error}"))
    }

    /// A command that has not been started.
    pub(crate) fn command(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = self.release.command(self.home.path());
        command.args(arguments);
        command
    }

    fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        run(self.command(arguments), ENDS_WITHIN)
    }
}

/// Runs the quickstart of the reference client word for word as its README prints it, but for the gateway's address.
pub(crate) fn run_quickstart(gateway: &Gateway) -> Output {
    let readme = fs::read_to_string(parts::node_modules().join("@openclaw/gateway-client/README.md")).unwrap();
    let (_, section) = readme.split_once("## Node quickstart").expect("the README has a quickstart");
    let (_, code) = section.split_once("```ts\n").expect("the quickstart is TypeScript");
    let (code, _) = code.split_once("```").expect("the code ends");
    assert!(code.contains("ws://127.0.0.1:18789"), "the quickstart connects to the usual place:\n{code}");

    // Modules are looked up from the file's own folder.
    let home = tempfile::tempdir().unwrap();
    symlink(parts::node_modules(), home.path().join("node_modules")).unwrap();
    let file = home.path().join("quickstart.mts");
    fs::write(&file, code.replace("ws://127.0.0.1:18789", &gateway.url())).unwrap();
    let mut command = parts::node(home.path());
    command.arg(file);
    run_script_command(command)
}

/// Runs a script of this folder with the gateway's URL as its argument.
pub(crate) fn run_script(script: &str, gateway: &Gateway) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = parts::node(home.path());
    command.arg(parts::scripts().join(script)).arg(gateway.url());
    run_script_command(command)
}

fn run_script_command(mut command: Command) -> Output {
    command.env("OPENCLAW_GATEWAY_TOKEN", TOKEN);
    let output = run(command, ENDS_WITHIN);
    assert_eq!(output.code, Some(0), "the script above should have succeeded");
    output
}
