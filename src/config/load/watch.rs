//! Notices that files have changed: by watching the folders they lie in, for editors and renewals replace files rather
//! than write into them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// A watch over some files. Dropped, it ends.
#[derive(Debug)]
pub struct Watch {
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches `files`, which need not exist. Folders that can't be watched are given back with the reason.
    ///
    /// # Errors
    /// The system has no more room for watches.
    pub fn over(files: &[PathBuf]) -> notify::Result<(Self, Vec<(PathBuf, notify::Error)>)> {
        let changed = Arc::new(Notify::new());
        let (mut names, mut folders) = (BTreeSet::<OsString>::new(), BTreeSet::new());
        for file in files {
            // What a link leads to may be replaced in its own folder.
            for path in [Some(file.clone()), file.canonicalize().ok()].into_iter().flatten() {
                names.extend(path.file_name().map(Into::into));
                folders.extend(path.parent().map(Path::to_owned));
            }
        }
        let notify = Arc::clone(&changed);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return notify.notify_one() };
            let concerns = |path: &PathBuf| {
                path.file_name().is_some_and(|name| {
                    // Kubernetes swaps a link called `..data` beside the files.
                    names.contains(name) || name.as_encoded_bytes().starts_with(b"..")
                })
            };
            if !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(concerns) {
                notify.notify_one();
            }
        })?;
        let unwatched = folders
            .into_iter()
            .filter_map(|folder| Some((watcher.watch(&folder, RecursiveMode::NonRecursive).err()?, folder)))
            .map(|(error, folder)| (folder, error))
            .collect();
        Ok((Self { changed, _watcher: watcher }, unwatched))
    }

    /// Waits for a change; one that came since the last time counts. Cancel safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_made_written_or_replaced_is_noticed_and_its_neighbours_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        let (watch, unwatched) = Watch::over(&[file.clone(), folder.path().join("gone/b.json")]).unwrap();
        assert_eq!(unwatched.len(), 1, "a folder that is not there");
        let noticed = async || tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap();
        let settle = async || {
            while tokio::time::timeout(Duration::from_millis(200), watch.changed()).await.is_ok() {}
        };
        fs::write(&file, "1").unwrap();
        noticed().await;
        settle().await;
        fs::write(folder.path().join("draft"), "2").unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), watch.changed()).await.is_err());
        fs::rename(folder.path().join("draft"), &file).unwrap();
        noticed().await;
    }
}
