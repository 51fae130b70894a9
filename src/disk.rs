//! What to do about a disk that takes nothing: by the reason that the operating system gives.

use std::io::{Error, ErrorKind};

/// What a person does next, as the rest of a sentence that says which file or folder could not be used.
pub fn advice(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space on that disk",
        ErrorKind::ReadOnlyFilesystem => {
            "the state folder is on a read-only file system: make it writable, or choose another folder with OPENCLAW_STATE_DIR"
        }
        ErrorKind::PermissionDenied => {
            "the state folder is read-only for this user: check its mode, and that it belongs to the user who runs the gateway"
        }
        ErrorKind::NotADirectory | ErrorKind::NotFound => "check that the folder exists, and that it is a folder",
        _ => "check the disk, and that the folder belongs to the user who runs the gateway",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_follows_the_reason() {
        // ENOSPC, EROFS, EACCES: the numbers of Linux and of macOS are the same.
        for (errno, word) in [(28, "free some space"), (30, "read-only file system"), (13, "read-only for this user")] {
            assert!(advice(&Error::from_raw_os_error(errno)).contains(word), "{errno}");
        }
    }
}
