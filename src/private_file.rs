//! Files that hold secrets: mode 0600, whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::id;

/// What becomes of a file that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and writing fails with `AlreadyExists`.
    Keep,
    /// It is replaced.
    Replace,
}

/// How long another program may hold a folder.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Has a folder for itself until the handle is dropped, among those who ask for it here; made where it is missing. It is
/// the folder that is locked, for a file's name is another file after each write.
///
/// # Errors
/// It cannot be had, or another program does not give it away.
pub(crate) fn lock_folder(folder: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let handle = File::open(folder)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(handle),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Err(Errno::WOULDBLOCK) => {
                let busy = format!("another program holds {}", folder.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, busy));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes a file of mode 0600 in a folder of mode 0700, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8], existing: Existing) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let draft = path.with_extension(format!("{}.tmp", id::uuid()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        // The mode at creation is cut by the umask, never widened; this is for those who set 0o777.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        match existing {
            // A link, unlike a rename, fails when the name is taken.
            Existing::Keep => fs::hard_link(&draft, path),
            Existing::Replace => fs::rename(&draft, path),
        }
    };
    let written = write();
    if !(written.is_ok() && existing == Existing::Replace) {
        // The draft holds a secret: it must not stay, whatever else went wrong.
        let _ = fs::remove_file(&draft);
    }
    written
}
