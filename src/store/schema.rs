//! Versions of the tables: each domain numbers its own.
//!
//! The file holds one table of ours, `schema`, with the version every domain is at. Opening it brings all
//! of them forward in one transaction, or changes nothing.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::StoreError;

/// `CLGW`: marks the file as ours (SQLite's `application_id`).
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"CLGW");

/// The tables of one domain.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Whose tables: `devices`, `nodes`, ...
    pub domain: &'static str,
    /// SQL that brings the tables from version `i` to `i + 1`. Only ever appended to.
    pub steps: &'static [&'static str],
}

/// Brings every domain to its latest version.
pub(super) fn migrate(db: &mut Connection, path: &Path, schemas: &[Schema]) -> Result<(), StoreError> {
    let opening = |error| StoreError::opening(path, error);
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(opening)?;
    let id: i32 = tx.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(opening)?;
    let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(opening)?;
    match (id, tables) {
        (APPLICATION_ID, _) => {}
        (0, 0) => {
            tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(opening)?;
            tx.execute_batch(
                "CREATE TABLE schema (domain TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID",
            )
            .map_err(opening)?;
        }
        _ => return Err(StoreError::Unreadable { path: path.to_owned(), what: "another program made it".to_owned() }),
    }
    for Schema { domain, steps } in schemas {
        let found: i64 = tx
            .query_row("SELECT version FROM schema WHERE domain = ?1", [domain], |row| row.get(0))
            .optional()
            .map_err(opening)?
            .unwrap_or(0);
        let known = i64::try_from(steps.len()).unwrap_or(i64::MAX);
        let missing = usize::try_from(found)
            .ok()
            .and_then(|found| steps.get(found..))
            .ok_or_else(|| StoreError::Newer { path: path.to_owned(), domain: (*domain).to_owned(), found, known })?;
        if !missing.is_empty() {
            for step in missing {
                tx.execute_batch(step).map_err(opening)?;
            }
            tx.execute("INSERT OR REPLACE INTO schema (domain, version) VALUES (?1, ?2)", (domain, known))
                .map_err(opening)?;
        }
    }
    tx.commit().map_err(opening)
}
