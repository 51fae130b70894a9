//! The store's claims: isolation of operations, order, durability, and what it says when it can't.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use super::*;

const SCHEMAS: &[Schema] =
    &[Schema { domain: "test", steps: &["CREATE TABLE kv (k TEXT PRIMARY KEY, v INTEGER NOT NULL) STRICT"] }];

const STEP: &str = SCHEMAS[0].steps[0];

fn put(k: &str, v: i64) -> impl FnOnce(&Tx<'_>) -> Result<Change<i64>, StoreError> + Send + 'static {
    let k = k.to_owned();
    move |tx| {
        tx.prepare_cached("INSERT INTO kv (k, v) VALUES (?1, ?2)")?.execute((k, v))?;
        Ok(Change::of(v))
    }
}

fn rows(store: &Store) -> Vec<(String, i64)> {
    let read = |db: &Connection| {
        db.prepare("SELECT k, v FROM kv ORDER BY k")?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    store.load(read).unwrap()
}

/// Holds the writer until dropped, so that what is queued meanwhile becomes one batch.
fn hold(store: &Store) -> std::sync::mpsc::SyncSender<()> {
    let (release, held) = std::sync::mpsc::sync_channel(1);
    let wait = Ask::Load(Box::new(move |_| {
        let _ = held.recv();
    }));
    store.queue.try_send(wait).unwrap();
    release
}

/// Polls every future once, so that each is queued, in order.
async fn queue_all<F: Future + Unpin>(futures: &mut [F]) {
    std::future::poll_fn(|cx| {
        for future in futures.iter_mut() {
            assert!(std::pin::Pin::new(future).poll(cx).is_pending());
        }
        std::task::Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn what_is_acknowledged_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/state.sqlite");
    let store = Store::open(&path, SCHEMAS).unwrap();
    assert_eq!(store.write(put("a", 1)).await.unwrap(), 1);
    store.close().await;
    assert!(matches!(store.write(put("b", 2)).await, Err(StoreError::Abandoned)));
    assert_eq!(rows(&Store::open(&path, SCHEMAS).unwrap()), [("a".to_owned(), 1)]);
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path, SCHEMAS).unwrap();
    store.write(put("a", 1)).await.unwrap();
    let modes: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    assert!(modes.len() >= 2 && modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
}

#[tokio::test]
async fn an_operation_that_fails_leaves_its_neighbours_alone() {
    let store = Store::open_in_memory(SCHEMAS).unwrap();
    let release = hold(&store);
    let failing = |tx: &Tx<'_>| {
        tx.execute("INSERT INTO kv (k, v) VALUES ('half', 0)", [])?;
        put("a", 2)(tx)
    };
    let mut writes = [
        Box::pin(store.write(put("a", 1))) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>,
        Box::pin(store.write(failing)),
        Box::pin(store.write(put("b", 3))),
    ];
    queue_all(&mut writes).await;
    drop(release);
    let [a, half, b] = writes;
    assert_eq!(a.await.unwrap(), 1);
    assert!(matches!(half.await, Err(StoreError::Failed(_))));
    assert_eq!(b.await.unwrap(), 3);
    assert_eq!(rows(&store), [("a".to_owned(), 1), ("b".to_owned(), 3)]);
}

#[tokio::test]
async fn an_operation_that_panics_takes_nothing_with_it() {
    let store = Store::open_in_memory(SCHEMAS).unwrap();
    let panics = store.write::<(), StoreError, _>(|tx| {
        tx.execute("INSERT INTO kv (k, v) VALUES ('half', 0)", [])?;
        panic!("as planned")
    });
    assert!(matches!(panics.await, Err(StoreError::Abandoned)));
    assert_eq!(store.write(put("a", 1)).await.unwrap(), 1);
    assert_eq!(rows(&store), [("a".to_owned(), 1)]);
}

#[tokio::test]
async fn publishes_in_order_and_before_it_answers() {
    let store = Store::open_in_memory(SCHEMAS).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let release = hold(&store);
    let mut writes: Vec<_> = (0..50)
        .map(|n| {
            let seen = seen.clone();
            Box::pin(store.write(move |tx| {
                let change = put(&n.to_string(), n)(tx)?;
                Ok::<_, StoreError>(change.publish(move || seen.lock().unwrap().push(n)))
            }))
        })
        .collect();
    queue_all(&mut writes).await;
    assert!(seen.lock().unwrap().is_empty());
    drop(release);
    for (n, write) in (0..).zip(writes) {
        assert_eq!(write.await.unwrap(), n);
        assert!(seen.lock().unwrap().contains(&n));
    }
    assert_eq!(*seen.lock().unwrap(), (0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_undo_its_change() {
    let store = Store::open_in_memory(SCHEMAS).unwrap();
    let published = Arc::new(Mutex::new(false));
    let release = hold(&store);
    {
        let published = published.clone();
        let mut write = [Box::pin(store.write(move |tx| {
            Ok::<_, StoreError>(put("a", 1)(tx)?.publish(move || *published.lock().unwrap() = true))
        }))];
        queue_all(&mut write).await;
    }
    drop(release);
    assert_eq!(rows(&store).len(), 1);
    assert!(*published.lock().unwrap());
}

#[tokio::test]
async fn a_full_disk_fails_the_batch_and_publishes_nothing() {
    let store = Store::open_in_memory(SCHEMAS).unwrap();
    store.load(|db| db.pragma_update(None, "max_page_count", 8)).unwrap();
    let big = |tx: &Tx<'_>| {
        tx.execute("INSERT INTO kv (k, v) VALUES (?1, 0)", ["x".repeat(100_000)])?;
        Ok::<_, StoreError>(Change::of(()).publish(|| panic!("published what is not stored")))
    };
    let error = store.write(big).await.unwrap_err();
    assert!(matches!(error, StoreError::Undone), "{error:?}");
    assert_eq!(store.write(put("a", 1)).await.unwrap(), 1);
}

#[test]
fn a_second_process_is_told_that_the_file_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let _first = Store::open(&path, SCHEMAS).unwrap();
    let error = Store::open(&path, SCHEMAS).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn a_newer_file_is_refused_by_name_and_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let newer = Schema { domain: "test", steps: &[STEP, "CREATE TABLE more (x)"] };
    Store::open(&path, &[newer]).unwrap().close().await;
    let error = Store::open(&path, SCHEMAS).unwrap_err().to_string();
    assert!(error.contains("newer clawgate (test is at version 2, this one knows 1)"), "{error}");
}

#[tokio::test]
async fn an_older_file_is_brought_forward_and_keeps_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let store = Store::open(&path, SCHEMAS).unwrap();
    store.write(put("a", 1)).await.unwrap();
    store.close().await;
    let newer = Schema { domain: "test", steps: &[STEP, "UPDATE kv SET v = v + 41"] };
    assert_eq!(rows(&Store::open(&path, &[newer]).unwrap()), [("a".to_owned(), 42)]);
}

#[test]
fn a_file_of_another_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(matches!(Store::open(&path, SCHEMAS), Err(StoreError::Unreadable { .. })));
    std::fs::write(&path, "x".repeat(5000)).unwrap();
    assert!(matches!(Store::open(&path, SCHEMAS), Err(StoreError::Unreadable { .. })));
}

#[test]
fn a_path_that_cannot_be_used_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Store::open(&folder.path().join("file/state.sqlite"), SCHEMAS).unwrap_err();
    assert!(matches!(error, StoreError::File { .. }), "{error:?}");
}
