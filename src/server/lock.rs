//! One gateway for one state folder (contract 1.4): a lock that the kernel lets go when the process dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{SHA256, digest};

use crate::disk;

/// Name of the lock file in the state folder. Its first line is the pid of its owner, its second the settings that were read
/// last ([`StateLock::note`]).
const NAME: &str = "clawgate.lock";

/// The lock; held as long as the value lives.
#[derive(Debug)]
pub struct StateLock {
    file: File,
}

/// The gateway that holds a state folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process, as far as the file says.
    pub pid: Option<u32>,
    /// The name of the settings that it read last ([`settings_name`]), and whether it took them.
    pub settings: Option<(String, bool)>,
}

/// A name for the text of a configuration, by which two programs can see whether they mean the same. Of the text it gives
/// nothing away that the reader of a state folder could not read there.
pub fn settings_name(text: Option<&str>) -> String {
    let digest = digest(&SHA256, text.unwrap_or_default().as_bytes());
    digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How often the lock is tried for: a program that only looks ([`holder`]) holds it for a moment.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// The gateway that runs on the state folder `dir`; `None` when there is none.
pub fn holder(dir: &Path) -> Option<Holder> {
    let file = File::open(dir.join(NAME)).ok()?;
    let Err(TryLockError::WouldBlock) = file.try_lock_shared() else { return None };
    Some(Holder::read(&file))
}

impl Holder {
    /// The owner writes right after it locks, and in place: a reader that is faster sees less.
    fn read(mut file: &File) -> Self {
        let mut text = String::new();
        let _ = file.rewind().and_then(|()| file.take(200).read_to_string(&mut text));
        let mut lines = text.lines();
        let pid = lines.next().and_then(|pid| pid.trim().parse().ok());
        let settings = lines.next().and_then(|line| match line.split_once(' ')? {
            (name, "applied") => Some((name.to_owned(), true)),
            (name, "refused") => Some((name.to_owned(), false)),
            _ => None,
        });
        Self { pid, settings }
    }
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another gateway runs on this state folder.
    #[error(
        "another gateway (pid {pid}) already runs on the state folder {}; stop it with `kill {pid}`, or start this one with --profile NAME and --port PORT to give it a state folder and a port of its own",
        dir.display()
    )]
    Held {
        /// Its process, as far as the file says.
        pid: String,
        /// The folder.
        dir: PathBuf,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock the state folder {}: {source}; {}", dir.display(), disk::advice(source))]
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
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(unusable)?;
        let mut tries = 1;
        while let Err(error) = file.try_lock() {
            match error {
                TryLockError::WouldBlock if tries < TRIES => std::thread::sleep(PAUSE),
                TryLockError::WouldBlock => {
                    let pid = Holder::read(&file).pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                    return Err(LockError::Held { pid, dir: dir.to_owned() });
                }
                TryLockError::Error(source) => return Err(unusable(source)),
            }
            tries += 1;
        }
        let lock = Self { file };
        lock.write("").map_err(unusable)?;
        Ok(lock)
    }

    /// Leaves word that the configuration with this text was read, and whether it is in force: whoever edited it waits for
    /// that.
    pub fn note(&self, text: Option<&str>, applied: bool) {
        let word = if applied { "applied" } else { "refused" };
        if let Err(error) = self.write(&format!("{} {word}\n", settings_name(text))) {
            tracing::debug!(%error, "the lock file does not say which settings are in force");
        }
    }

    fn write(&self, settings: &str) -> io::Result<()> {
        let text = format!("{}\n{settings}", std::process::id());
        // Longer first, then shorter: there is no moment without the pid.
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
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

    #[test]
    fn who_looks_learns_the_holder_and_the_settings_it_read_last() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        let lock = StateLock::take(dir.path()).unwrap();
        let pid = Some(std::process::id());
        assert_eq!(holder(dir.path()), Some(Holder { pid, settings: None }));
        lock.note(Some("{}"), true);
        assert_eq!(holder(dir.path()).unwrap().settings, Some((settings_name(Some("{}")), true)));
        lock.note(Some("{x"), false);
        assert_eq!(holder(dir.path()), Some(Holder { pid, settings: Some((settings_name(Some("{x")), false)) }));
        drop(lock);
        assert_eq!(holder(dir.path()), None);
    }
}
