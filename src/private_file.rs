//! Files that hold secrets: mode 0600, whole or not at all.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::id;

/// What becomes of a file that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and writing fails with `AlreadyExists`.
    Keep,
    /// It is replaced.
    Replace,
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
