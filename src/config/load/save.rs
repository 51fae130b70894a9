//! Writing the configuration file: all of it or nothing, readable by its owner only, with the last one kept.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Gid, Uid, fchown, flock};

use super::super::raw::Document;
use super::{LoadError, Source};

/// How long another writer may take.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing was written. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Somebody else changed the file in the meantime.
    #[error("{} was changed by another program in the meantime, and nothing was written. Look at the change, then try again", .0.display())]
    Changed(PathBuf),
    /// The file is a symbolic link.
    #[error("{} is a symbolic link, which a write would replace by a file. Set OPENCLAW_CONFIG_PATH to the file it points to", .0.display())]
    Symlink(PathBuf),
    /// Another program is writing and does not finish.
    #[error("{} is being written by another program. Try again", .0.display())]
    Busy(PathBuf),
    /// The disk or the rights.
    #[error("{} cannot be written: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file that is there cannot be read, so nothing can be said about what a write would undo.
    #[error(transparent)]
    Unreadable(#[from] LoadError),
}

/// Writes `document` in place of `source`, the file it was made from.
///
/// The new file is complete on disk before it takes the old one's name; the old text is kept beside it as
/// `openclaw.json.bak`. Both have mode 0600 and the owner that the file had. The folder is locked meanwhile,
/// so two of these never undo each other.
///
/// # Errors
/// [`SaveError`]; the file is then untouched.
pub fn save(source: &Source, document: &Document) -> Result<Source, SaveError> {
    let path = &source.path;
    let failed = |error| SaveError::Io { path: path.clone(), error };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let folder = File::open(folder).map_err(failed)?;
    lock(&folder, path)?;
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        return Err(SaveError::Symlink(path.clone()));
    }
    if Source::read(path)? != *source {
        return Err(SaveError::Changed(path.clone()));
    }
    let owner = fs::metadata(path).ok().map(|meta| (meta.uid(), meta.gid()));
    if let Some(old) = &source.text {
        replace(&with_suffix(path, ".bak"), old, owner).map_err(failed)?;
    }
    replace(path, document.text(), owner).map_err(failed)?;
    folder.sync_all().map_err(failed)?;
    Ok(Source { path: path.clone(), text: Some(document.text().to_owned()) })
}

/// Locks the folder until the handle is closed. Locking the file would lock a name that the rename moves.
fn lock(folder: &File, path: &Path) -> Result<(), SaveError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SaveError::Busy(path.to_owned())),
            Err(error) => return Err(SaveError::Io { path: path.to_owned(), error: error.into() }),
        }
    }
}

fn replace(path: &Path, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let temporary = with_suffix(path, &format!(".{}.tmp", std::process::id()));
    // The folder is locked, so one that is there was left by a process of this id that died.
    let _ = fs::remove_file(&temporary);
    let written = write_new(&temporary, text, owner).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_new(path: &Path, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let made = file.metadata()?;
    // Root edits the file of the user the gateway runs as: it must stay readable to that user.
    if let Some((uid, gid)) = owner
        && (made.uid(), made.gid()) != (uid, gid)
    {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn document(text: &str) -> Document {
        Document::parse(text).unwrap()
    }

    #[test]
    fn makes_the_file_and_its_folder_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/openclaw.json");
        let source = Source::read(&path).unwrap();
        let saved = save(&source, &document("{a: 1}")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{a: 1}");
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(saved, Source::read(&path).unwrap());
    }

    #[test]
    fn keeps_the_last_one_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openclaw.json");
        fs::write(&path, "{old: 1}").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let source = save(&Source::read(&path).unwrap(), &document("{new: 1}")).unwrap();
        save(&source, &document("{newer: 1}")).unwrap();
        let backup = dir.path().join("openclaw.json.bak");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{newer: 1}");
        assert_eq!(fs::read_to_string(&backup).unwrap(), "{new: 1}");
        assert_eq!((mode(&path), mode(&backup)), (0o600, 0o600));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn does_not_undo_the_change_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openclaw.json");
        fs::write(&path, "{a: 1}").unwrap();
        let source = Source::read(&path).unwrap();
        fs::write(&path, "{a: 2}").unwrap();
        assert!(matches!(save(&source, &document("{a: 3}")), Err(SaveError::Changed(_))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(save(&source, &document("{a: 3}")), Err(SaveError::Changed(_))));
        assert!(!path.exists());
    }

    #[test]
    fn of_writers_at_once_one_wins_and_the_others_know() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openclaw.json");
        fs::write(&path, "{}").unwrap();
        let source = Source::read(&path).unwrap();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|n| {
                    scope.spawn({
                        let source = &source;
                        move || save(source, &document(&format!("{{n: {n}}}")))
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        assert!(
            outcomes
                .iter()
                .flat_map(|outcome| outcome.as_ref().err())
                .all(|error| matches!(error, SaveError::Changed(_)))
        );
    }

    #[test]
    fn refuses_to_replace_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("target"), dir.path().join("openclaw.json"));
        fs::write(&target, "{}").unwrap();
        symlink(&target, &path).unwrap();
        let source = Source::read(&path).unwrap();
        assert!(matches!(save(&source, &document("{a: 1}")), Err(SaveError::Symlink(_))));
        assert_eq!(fs::read_to_string(&target).unwrap(), "{}");
    }
}
