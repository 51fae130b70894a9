//! The token that a gateway makes for one run, left where a client of the same user on the same host finds it.
//!
//! A gateway in token mode without a configured token makes one at its start (contract 2.1). Without this file
//! every command on that host would need `--token`. The file is `clawgate.run.json` in the state directory, mode
//! 0600, and goes when the gateway goes: whoever can read it can read the state itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::private_file::{Existing, write_private};
use crate::secret::Secret;

/// Name of the file in the state directory.
const NAME: &str = "clawgate.run.json";

#[derive(Serialize, Deserialize)]
struct Run {
    pid: i32,
    port: u16,
    token: Zeroizing<String>,
}

/// The file, for as long as the gateway runs: dropping it removes it.
#[derive(Debug)]
pub struct PublishedToken {
    path: PathBuf,
}

impl Drop for PublishedToken {
    fn drop(&mut self) {
        // A file that stays is told from a living one by its pid.
        let _ = fs::remove_file(&self.path);
    }
}

/// Leaves the token of the gateway that listens on `port` in `state_dir`.
///
/// # Errors
/// The file cannot be written.
pub fn publish(state_dir: &Path, port: u16, token: &Secret) -> io::Result<PublishedToken> {
    let path = state_dir.join(NAME);
    let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let run = Run { pid, port, token: Zeroizing::new(token.expose().to_owned()) };
    let text = Zeroizing::new(serde_json::to_string(&run)?);
    write_private(&path, text.as_bytes(), Existing::Replace)?;
    Ok(PublishedToken { path })
}

/// The port and the token of the gateway that now runs on `state_dir`; `None` when there is none, or it has a
/// configured secret.
pub fn find(state_dir: &Path) -> Option<(u16, Secret)> {
    let text = Zeroizing::new(fs::read(state_dir.join(NAME)).ok()?);
    let run: Run = serde_json::from_slice(&text).ok()?;
    test_kill_process(Pid::from_raw(run.pid)?).ok()?;
    Some((run.port, Secret::new(run.token.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_found_while_the_gateway_runs() {
        let state = tempfile::tempdir().unwrap();
        let published = publish(state.path(), 7, &Secret::new("t")).unwrap();
        let (port, token) = find(state.path()).unwrap();
        assert!(port == 7 && token.matches("t"));
        drop(published);
        assert!(find(state.path()).is_none());
    }

    #[test]
    fn a_dead_gateways_token_is_no_token() {
        let state = tempfile::tempdir().unwrap();
        // Above the largest pid there can be.
        fs::write(state.path().join(NAME), r#"{"pid":2147483647,"port":7,"token":"t"}"#).unwrap();
        assert!(find(state.path()).is_none());
    }
}
