//! What can go wrong with the state file, said for the person who has to act.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ErrorCode as Sqlite;

use crate::disk;
use crate::rpc::error::RpcError;

/// A failure of the store. Cheap to clone: one failed commit answers every operation of its batch.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or its folder could not be made, read or written.
    #[error("can't use the state file {path}: {source}; {}", disk::advice(.source))]
    File {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// Another process has it open.
    #[error(
        "the state file {path} is in use by another process; stop the other gateway, or give this one a state folder of its own"
    )]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It is not a state file of this program, or it is damaged.
    #[error(
        "{path} is not a readable clawgate state file ({what}); move it away to start with an empty one, or restore a copy"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A newer gateway wrote it.
    #[error(
        "the state file {path} was written by a newer clawgate ({domain} is at version {found}, this one knows {known}); install that version again, or use another state folder"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Which part of the schema.
        domain: String,
        /// Its version in the file.
        found: i64,
        /// The latest version this program knows.
        known: i64,
    },
    /// No room to write. Nothing of the operation was kept.
    #[error("the disk that holds the state file is full; nothing was changed: free some space on it")]
    Full,
    /// The state file can't be written. Nothing of the operation was kept.
    #[error("the state file can't be written ({0}); nothing was changed")]
    Failed(Arc<rusqlite::Error>),
    /// SQLite undid the whole transaction in the middle of it, as it does when the disk is full or failing.
    #[error("the state file could not take the change (is the disk full, or failing?); nothing was changed")]
    Undone,
    /// The store has been closed, or the operation panicked; the log has more.
    #[error("the store gave the operation up; nothing was changed")]
    Abandoned,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(Sqlite::DiskFull) => Self::Full,
            _ => Self::Failed(Arc::new(error)),
        }
    }
}

/// Why the last change was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No room on the disk.
    Full,
    /// The disk takes no writes, or fails.
    Failing,
}

impl Fault {
    /// What it is, for whoever asks, strangers included: no path, no number.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "the disk that holds the state is full",
            Self::Failing => "the state cannot be written to disk",
        }
    }
}

impl StoreError {
    /// What of it lasts until the disk takes writes again.
    pub(super) const fn fault(&self) -> Fault {
        match self {
            Self::Full => Fault::Full,
            _ => Fault::Failing,
        }
    }

    /// An error of opening `path`.
    pub(super) fn opening(path: &std::path::Path, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => Self::InUse { path },
            Some(Sqlite::NotADatabase | Sqlite::DatabaseCorrupt) => Self::Unreadable { path, what: error.to_string() },
            Some(Sqlite::CannotOpen | Sqlite::ReadOnly | Sqlite::PermissionDenied) => {
                Self::File { path, source: Arc::new(io::Error::other(error)) }
            }
            _ => error.into(),
        }
    }
}

impl From<StoreError> for RpcError {
    fn from(error: StoreError) -> Self {
        Self::unavailable(error.to_string()).retryable(true)
    }
}

impl From<rusqlite::Error> for RpcError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::from(error).into()
    }
}
