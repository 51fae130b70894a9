//! What outlives the process: one SQLite file in the state folder, written by one thread.
//!
//! The store runs the operations of the domains one after the other, many to a transaction, and answers none
//! of them before the transaction is on disk. It knows files, transactions and threads; it knows no table of
//! any domain. A domain brings its [`Schema`], keeps an index in memory for its readers, and changes that
//! index only in what it hands to [`Change::publish`]. So:
//!
//! * a decision that changes state is made on the writer's thread, against the transaction: there is nothing
//!   to race with, and no stale copy to write back;
//! * readers never wait, and never see what is not on disk;
//! * whoever is told `ok` is told the truth, also after `kill -9` or a loss of power (contract 5.1).
//!
//! Start at [`Store::write`].

mod error;
mod file;
mod schema;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

pub use error::{Fault, StoreError};
pub use schema::Schema;

use writer::{Ask, Ran};

/// Operations that may wait for the writer; more wait in their own tasks.
const QUEUE: usize = 1024;

/// The transaction of an operation, up to its own savepoint. Read and write through it; it commits by itself.
pub type Tx<'a> = rusqlite::Savepoint<'a>;

/// What an operation gives back: its value, and what readers are to see once it is on disk.
pub struct Change<T> {
    value: T,
    publish: Option<Box<dyn FnOnce() + Send>>,
}

impl<T> Change<T> {
    /// A change with nothing to publish.
    pub const fn of(value: T) -> Self {
        Self { value, publish: None }
    }

    /// Runs `publish` after the commit and before the caller hears of it, on the writer's thread, in the order
    /// of the operations; also when the caller no longer waits. It must not block and not panic.
    #[must_use]
    pub fn publish(self, publish: impl FnOnce() + Send + 'static) -> Self {
        Self { publish: Some(Box::new(publish)), ..self }
    }
}

/// Handle to the state file. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    queue: mpsc::Sender<Ask>,
    standing: Standing,
}

/// Whether the last change came to disk, as the writer leaves it for others.
#[derive(Clone, Debug, Default)]
struct Standing(Arc<AtomicU8>);

impl Standing {
    fn set(&self, fault: Option<Fault>) {
        let code = match fault {
            None => 0,
            Some(Fault::Full) => 1,
            Some(Fault::Failing) => 2,
        };
        let before = self.0.swap(code, Ordering::AcqRel);
        if before != 0 && code == 0 {
            tracing::info!("the state is written to disk again");
        }
    }

    fn get(&self) -> Option<Fault> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Fault::Full),
            _ => Some(Fault::Failing),
        }
    }
}

impl Store {
    /// Opens the state file at `path`, or makes it, and starts its writer.
    ///
    /// The file has mode 0600 from its first byte on, and belongs to this process until it is closed. Every
    /// one of `schemas` is at its latest version afterwards.
    ///
    /// # Errors
    /// The file can't be used, is in use, is not ours, or comes from a newer version.
    pub fn open(path: &Path, schemas: &[Schema]) -> Result<Self, StoreError> {
        Self::start(file::open(path)?, path, schemas)
    }

    /// A store that lives as long as the process: for tests and benches.
    ///
    /// # Errors
    /// SQLite can't make it, or a step of `schemas` is wrong.
    pub fn open_in_memory(schemas: &[Schema]) -> Result<Self, StoreError> {
        Self::start(file::open_in_memory()?, Path::new(":memory:"), schemas)
    }

    fn start(mut db: Connection, path: &Path, schemas: &[Schema]) -> Result<Self, StoreError> {
        schema::migrate(&mut db, path, schemas)?;
        let (queue, asks) = mpsc::channel(QUEUE);
        let standing = Standing::default();
        let seen = standing.clone();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer::run(db, asks, &seen))
            .map_err(|source| StoreError::File { path: path.to_owned(), source: Arc::new(source) })?;
        Ok(Self { queue, standing })
    }

    /// Runs `op` in a transaction and returns its value when that is on disk.
    ///
    /// Operations run one at a time, in the order they were queued; an operation sees the writes of those
    /// before it. One that returns an error leaves nothing behind, and the others of its transaction stand. Its
    /// error too is given only after the commit, since it may rest on what was committed with it.
    ///
    /// # Errors
    /// What `op` returns; or, as a [`StoreError`], that the transaction was not stored.
    ///
    /// # Cancel safety
    /// Dropped before the operation is queued, nothing happens; dropped after, the operation is carried out
    /// and published all the same.
    pub async fn write<T, E, F>(&self, op: F) -> Result<T, E>
    where
        F: FnOnce(&Tx<'_>) -> Result<Change<T>, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = move |tx: &Tx<'_>| {
            let result = op(tx);
            let keep = result.is_ok();
            let finish = move |committed: Result<(), StoreError>| {
                let answer = committed.map_err(E::from).and(result).map(|Change { value, publish }| {
                    if let Some(publish) = publish {
                        publish();
                    }
                    value
                });
                // Whoever asked may have gone: the change stands.
                let _ = reply.send(answer);
            };
            Ran { keep, finish: Box::new(finish) }
        };
        self.queue.send(Ask::Write(Box::new(job))).await.map_err(|_| StoreError::Abandoned)?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Abandoned.into()))
    }

    /// Reads on the writer's thread and blocks until it is done: for building an index at start.
    ///
    /// # Errors
    /// What `read` returns; [`StoreError::Abandoned`] when the store is closed or its queue is full.
    pub fn load<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        let look = move |db: &Connection| {
            let _ = reply.send(read(db));
        };
        self.queue.try_send(Ask::Load(Box::new(look))).map_err(|_| StoreError::Abandoned)?;
        Ok(answer.recv().map_err(|_| StoreError::Abandoned)??)
    }

    /// Reads on the writer's thread, between two transactions: for queries that are small and bounded, because writes
    /// wait for them. Sees everything that was acknowledged before the call.
    ///
    /// # Errors
    /// What `read` returns; [`StoreError::Abandoned`] when the store is closed.
    ///
    /// # Cancel safety
    /// Dropped, the read may happen all the same.
    pub async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let look = move |db: &Connection| {
            let _ = reply.send(read(db));
        };
        self.queue.send(Ask::Load(Box::new(look))).await.map_err(|_| StoreError::Abandoned)?;
        Ok(answer.await.map_err(|_| StoreError::Abandoned)??)
    }

    /// What kept the last change from the disk; `None` when it came there. It lasts until a write succeeds.
    pub fn fault(&self) -> Option<Fault> {
        self.standing.get()
    }

    /// While there is a fault, tries whether the disk takes writes again: nobody may come who would write.
    pub fn look_again(&self) {
        if self.fault().is_some() {
            // A full queue has writes in it, which tell as much.
            let _ = self.queue.try_send(Ask::Probe);
        }
    }

    /// Carries out what is queued and closes the file; later writes fail. Another process may open it then.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Ask::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("queued", &(QUEUE - self.queue.capacity())).finish()
    }
}

#[cfg(test)]
mod tests;
