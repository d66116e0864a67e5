//! The region's SQLite database: items, executions and their history.
//!
//! One connection serves everybody, used on the blocking threads one call at a time. Write-ahead log, and every commit is on
//! the disk before it is reported (`synchronous = FULL`): what was acknowledged survives a power cut.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rehost_control::ports::PortResult;
use rehost_control::{PortError, PortErrorKind};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

/// The layout of the tables below; a database with a higher number was written by a newer rehost.
const SCHEMA_VERSION: i64 = 2;

/// How long a call waits for another process (a backup, the `sqlite3` shell) to let go of the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE item (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE execution (
    name TEXT PRIMARY KEY,
    machine TEXT NOT NULL,
    definition TEXT NOT NULL,
    definition_hash TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    status TEXT NOT NULL,
    state TEXT NOT NULL,
    input TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    entered_at INTEGER NOT NULL,
    attempts TEXT NOT NULL,
    wake_at INTEGER,
    output TEXT,
    error TEXT,
    cause TEXT,
    revision INTEGER NOT NULL DEFAULT 0,
    awaited TEXT
) WITHOUT ROWID;
CREATE INDEX execution_by_status ON execution (status);
CREATE TABLE history (
    execution TEXT NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    event TEXT NOT NULL,
    state TEXT,
    detail TEXT NOT NULL,
    PRIMARY KEY (execution, seq)
) WITHOUT ROWID;
";

/// From layout 1 to 2: tasks that wait for a token.
const FROM_1_TO_2: &str = "
ALTER TABLE execution ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN awaited TEXT;
";

/// A handle of the database; clones share the connection.
#[derive(Clone)]
pub struct Database {
    connection: Arc<Mutex<Connection>>,
    path: Arc<Path>,
}

impl Database {
    /// Opens the database, making it and its tables if need be.
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, or was written by a newer version.
    pub fn open(path: &Path) -> PortResult<Self> {
        let connection = connect(path).map_err(|e| database_error(path, &e))?;
        let database = Self { connection: Arc::new(Mutex::new(connection)), path: Arc::from(path) };
        database.run(|t| prepare(t, path))?;
        Ok(database)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` as one transaction: committed when it succeeds, without effect when it fails.
    ///
    /// # Errors
    /// Those of `work`, and those of SQLite.
    pub async fn transact<T, F>(&self, work: F) -> PortResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, TransactionError> + Send + 'static,
    {
        let database = self.clone();
        let done = tokio::task::spawn_blocking(move || database.run(work)).await;
        done.unwrap_or_else(|e| Err(PortError::unavailable(format!("a call of the database was cut off: {e}"))))
    }

    fn run<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>) -> PortResult<T> {
        // A panic inside a transaction rolled it back: the connection itself is still good.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        attempt().map_err(|e| match e {
            TransactionError::Refused(e) => e,
            TransactionError::Sql(e) => database_error(&self.path, &e),
        })
    }
}

/// Why a transaction was rolled back.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// The work itself refused.
    #[error(transparent)]
    Refused(#[from] PortError),
    /// SQLite failed.
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

fn prepare(transaction: &Transaction<'_>, path: &Path) -> Result<(), TransactionError> {
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match version {
        0 => {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            Ok(())
        }
        1 => {
            transaction.execute_batch(FROM_1_TO_2)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            Ok(())
        }
        SCHEMA_VERSION => Ok(()),
        newer => Err(PortError::invalid(format!(
            "{} has layout {newer}, this rehost knows up to {SCHEMA_VERSION}: use the newer rehost that wrote it",
            path.display()
        ))
        .into()),
    }
}

fn database_error(path: &Path, error: &rusqlite::Error) -> PortError {
    let (kind, remedy) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => (PortErrorKind::Full, "make room on its file system"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (PortErrorKind::Unavailable, "another program holds it locked; end that program")
        }
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            (PortErrorKind::Denied, "give this user the right to write to it")
        }
        Some(ErrorCode::CannotOpen) => {
            (PortErrorKind::Unavailable, "check that its folder exists and may be written to")
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            (PortErrorKind::Invalid, "it is damaged: restore it from a backup")
        }
        _ => (PortErrorKind::Unavailable, "check the disk and the system's log"),
    };
    PortError::new(kind, format!("the database {} answers: {error}; {remedy}", path.display()))
}

/// The error for a row that does not hold what it must.
pub(crate) fn damaged(path: &Path, what: &str, why: impl std::fmt::Display) -> PortError {
    PortError::invalid(format!(
        "{what} in {} is damaged ({why}): restore the database from a backup, or delete that row",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_layout_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rehost.db");
        drop(Database::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = Database::open(&path).err().unwrap();
        assert_eq!(error.kind, PortErrorKind::Invalid);
        assert!(error.message.contains("layout 99"), "{error}");
    }

    #[test]
    fn what_is_no_database_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rehost.db");
        std::fs::write(&path, [b'x'; 4096]).unwrap();
        let error = Database::open(&path).err().unwrap();
        assert_eq!(error.kind, PortErrorKind::Invalid);
        assert!(error.message.contains("rehost.db") && error.message.contains("backup"), "{error}");
    }

    #[tokio::test]
    async fn a_refused_transaction_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("rehost.db")).unwrap();
        let refused: PortResult<()> = database
            .transact(|t| {
                t.execute("INSERT INTO item VALUES ('LOCK', 'x', 1, '{}')", [])?;
                Err(PortError::conflict("no").into())
            })
            .await;
        assert_eq!(refused.unwrap_err().kind, PortErrorKind::Conflict);
        let count =
            database.transact(|t| Ok(t.query_row("SELECT count(*) FROM item", [], |r| r.get::<_, i64>(0))?)).await;
        assert_eq!(count.unwrap(), 0);
    }
}
