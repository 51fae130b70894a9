//! The state file: made for its owner alone, opened for this process alone.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// Statements kept prepared.
const CACHED_STATEMENTS: usize = 64;

/// Opens the file at `path`, making it (mode 0600) and its folder (mode 0700) when they are not there.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    make(path).map_err(|source| StoreError::File { path: path.to_owned(), source: Arc::new(source) })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(|error| StoreError::opening(path, error))?;
    configure(&db).map_err(|error| StoreError::opening(path, error))?;
    Ok(db)
}

/// A database in memory, configured alike.
pub(super) fn open_in_memory() -> Result<Connection, StoreError> {
    let db = Connection::open_in_memory()?;
    configure(&db)?;
    Ok(db)
}

/// SQLite makes a missing file with the process's umask, and its side files (`-wal`) with the mode of the
/// main one. So the main one exists, with the right mode, before SQLite sees the path.
fn make(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        // The new name must be on disk before anything in the file is called durable.
        Ok(file) => file.sync_all().and_then(|()| File::open(folder.unwrap_or(Path::new(".")))?.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mode = fs::metadata(path)?.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(path = %path.display(), mode = format_args!("{:03o}", mode & 0o777),
                    "the state file could be read by others; its mode is 0600 again");
                fs::set_permissions(path, Permissions::from_mode(0o600))?;
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    // Whoever else has the file keeps it: there is nothing to wait for.
    db.busy_timeout(Duration::ZERO)?;
    // Before the first access, so that SQLite takes the lock for good and needs no `-shm` file: the indexes in
    // memory are right only while nobody else writes.
    db.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // FULL syncs the log at every commit: what is acknowledged survives a loss of power, not only a crash.
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "journal_size_limit", 16 << 20)?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.pragma_update(None, "trusted_schema", false)?;
    Ok(())
}
