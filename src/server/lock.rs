//! One gateway for one state folder (contract 1.4): a lock that the kernel lets go when the process dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the lock file in the state folder. It holds the pid of its owner.
const NAME: &str = "clawgate.lock";

/// The lock; held as long as the value lives.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another gateway runs on this state folder.
    #[error(
        "another gateway (pid {pid}) already runs on the state folder {}; stop it with `kill {pid}`, or start this one with --profile NAME to give it a state folder and port of its own",
        dir.display()
    )]
    Held {
        /// Its process, as far as the file says.
        pid: String,
        /// The folder.
        dir: PathBuf,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock the state folder {}: {source}; check that it belongs to the user who runs the gateway", dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl StateLock {
    /// Takes the lock of the folder `dir`.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { dir: dir.to_owned(), source };
        let path = dir.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The owner writes its pid right after it locks; a reader that is faster sees an old one or none.
                let _ = file.take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let known = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
                let pid = if known { pid } else { "unknown" }.to_owned();
                return Err(LockError::Held { pid, dir: dir.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_learns_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        let error = StateLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }
}
