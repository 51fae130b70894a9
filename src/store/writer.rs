//! The one thread that writes: takes what is queued, runs it in one transaction, syncs once, tells all.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::{Connection, Savepoint, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::{Standing, StoreError};

/// Operations of one transaction at most: bounds how long the first of them waits for the last.
const BATCH: usize = 256;

/// One queued operation.
pub(super) type Job = Box<dyn FnOnce(&Savepoint<'_>) -> Ran + Send>;

/// An operation that ran, and waits for the commit.
pub(super) struct Ran {
    /// Whether its writes stand; otherwise they are rolled back.
    pub(super) keep: bool,
    /// Publishes and answers, once it is known whether the transaction is on disk.
    pub(super) finish: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// What the thread is asked to do.
pub(super) enum Ask {
    /// Run an operation.
    Write(Job),
    /// Look at the database, between transactions.
    Load(Box<dyn FnOnce(&Connection) + Send>),
    /// Write something that changes nothing, to see whether the disk takes it.
    Probe,
    /// Finish what is queued before this, and close the file.
    Close(oneshot::Sender<()>),
}

/// Serves `queue` until it ends or is told to close.
pub(super) fn run(mut db: Connection, mut queue: mpsc::Receiver<Ask>, standing: &Standing) {
    let mut next = queue.blocking_recv();
    while let Some(ask) = next.take() {
        match ask {
            Ask::Write(first) => {
                let mut batch = vec![first];
                while batch.len() < BATCH {
                    match queue.try_recv() {
                        Ok(Ask::Write(job)) => batch.push(job),
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                commit(&mut db, batch, standing);
            }
            Ask::Load(look) => look(&db),
            Ask::Probe => {
                let written = db.execute("UPDATE schema SET version = version", []);
                standing.set(written.map_err(StoreError::from).err().map(|error| error.fault()));
            }
            Ask::Close(done) => {
                queue.close();
                if let Err((_, error)) = db.close() {
                    tracing::warn!(%error, "the state file was not closed in order; nothing is lost");
                }
                let _ = done.send(());
                return;
            }
        }
        if next.is_none() {
            next = queue.blocking_recv();
        }
    }
}

/// Runs `batch` in one transaction and finishes every operation in order.
fn commit(db: &mut Connection, batch: Vec<Job>, standing: &Standing) {
    let mut ran = Vec::with_capacity(batch.len());
    let before = db.total_changes();
    let committed = execute(db, batch, &mut ran)
        .inspect_err(|error| tracing::error!(%error, operations = ran.len(), "changes of state were not stored"));
    match &committed {
        Err(error) => standing.set(Some(error.fault())),
        // One that wrote nothing says nothing of the disk.
        Ok(()) if db.total_changes() != before => standing.set(None),
        Ok(()) => {}
    }
    for Ran { finish, .. } in ran {
        finish(committed.clone());
    }
}

/// Runs each of `batch` in a savepoint of its own, then commits. Operations that ran are in `ran`, whatever
/// the result; one that panicked is not, and answers `Abandoned` by being dropped.
fn execute(db: &mut Connection, batch: Vec<Job>, ran: &mut Vec<Ran>) -> Result<(), StoreError> {
    let mut tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for job in batch {
        let savepoint = tx.savepoint()?;
        let kept = match catch_unwind(AssertUnwindSafe(|| job(&savepoint))) {
            Ok(done) => {
                let keep = done.keep;
                ran.push(done);
                if keep { savepoint.commit() } else { savepoint.finish() }
            }
            Err(_) => {
                tracing::error!("an operation on the store panicked; this is a defect, please report it");
                savepoint.finish()
            }
        };
        // Some failures (a full disk) make SQLite undo the whole transaction under our feet; going on would
        // start another one without the operations that ran before.
        if tx.is_autocommit() {
            return Err(StoreError::Undone);
        }
        kept?;
    }
    tx.commit().map_err(StoreError::from)
}
