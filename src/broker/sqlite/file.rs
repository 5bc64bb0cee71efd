//! The file: who may read it, which format it has, how its connection is set up, and which process may consume it.
//! What is stored in it is `store`'s business.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::broker::message::BrokerError;

/// Marks the file as a queue of this program, in SQLite's `application_id`: "dfbq".
const APPLICATION_ID: i32 = 0x6466_6271;

/// The format that this program reads and writes, in SQLite's `user_version`. A new one adds a step to [`migrate`].
const SCHEMA_VERSION: i32 = 1;

/// How long a statement waits for another process that writes to the file. Less than half of
/// [`crate::broker::PUBLISH_LIMIT`]: a publisher that comes during one wait has to sit through the next, and should
/// learn the reason and not only that time ran out.
pub(super) const BUSY_LIMIT: Duration = Duration::from_millis(1_500);

/// How long opening waits for others who open the same new file: SQLite refuses the change to WAL at once while
/// another connection makes it.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// Statements kept compiled: more than `store` has.
const STATEMENTS: usize = 64;

/// The log is cut to this size when it starts anew.
const LOG_LIMIT_BYTES: i64 = 4 * 1024 * 1024;

/// Only the user of the service reads the queue: it holds what its customers look for, sealed credentials among it.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// `path` with `suffix` at its end.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What to tell about an error of SQLite: another writer's lock passes by itself, everything else is the storage's.
pub(super) fn error(error: &rusqlite::Error) -> BrokerError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            BrokerError::Unavailable("another process writes to the queue's file".to_owned())
        }
        _ => BrokerError::Storage(error.to_string()),
    }
}

fn failed(path: &Path, what: &str, error: &io::Error) -> BrokerError {
    BrokerError::Storage(format!("{what} {}: {error}", path.display()))
}

/// Opens the queue at `path`, making folder, file and tables where there are none.
pub(super) fn open(path: &Path) -> Result<Connection, BrokerError> {
    create(path)?;
    let start = Instant::now();
    loop {
        match connect(path) {
            Err(Failure::Sql(sql))
                if matches!(sql.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
                    && start.elapsed() < OPEN_LIMIT =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            Err(Failure::Sql(sql)) => return Err(error(&sql)),
            Err(Failure::Refused(refusal)) => return Err(refusal),
            Ok(connection) => {
                protect(path)?;
                return Ok(connection);
            }
        }
    }
}

/// Makes what is missing. SQLite gives its `-wal` and `-shm` the mode of the file.
fn create(path: &Path) -> Result<(), BrokerError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
        made.map_err(|error| failed(folder, "cannot make the folder", &error))?;
    }
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(path);
    opened.map_err(|error| failed(path, "cannot write to", &error))?;
    Ok(())
}

/// Takes away the access that others have to a queue of ours.
fn protect(path: &Path) -> Result<(), BrokerError> {
    for path in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
        match std::fs::metadata(&path) {
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                let tightened = std::fs::set_permissions(&path, Permissions::from_mode(FILE_MODE));
                tightened
                    .map_err(|error| failed(&path, "others may read the queue, and it cannot be changed:", &error))?;
            }
            _ => {}
        }
    }
    Ok(())
}

enum Failure {
    Sql(rusqlite::Error),
    Refused(BrokerError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

fn connect(path: &Path) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        return Err(Failure::Refused(BrokerError::Storage(format!("{} is read-only", path.display()))));
    }
    // Before the first page is written, and before anything of a foreign file is touched.
    migrate(&mut connection, path)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        let reason = format!("{} is on a file system without shared memory for a write-ahead log", path.display());
        return Err(Failure::Refused(BrokerError::Storage(reason)));
    }
    // What is deleted is overwritten: requests must not stay readable after they are answered.
    connection.pragma_update(None, "secure_delete", "ON")?;
    connection.pragma_update(None, "journal_size_limit", LOG_LIMIT_BYTES)?;
    keep_plans(&connection)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Plans must not depend on bound values: a statement that was prepared with one queue's name would be prepared anew each
/// time it is bound, which took a third of the file's thread.
pub(super) fn keep_plans(connection: &Connection) -> rusqlite::Result<bool> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
}

/// Brings the file to [`SCHEMA_VERSION`].
fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Failure> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = transaction.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let refusal = if tables > 0 && application != APPLICATION_ID {
        Some(format!("{} is a database of another program", path.display()))
    } else if version > SCHEMA_VERSION {
        Some(format!(
            "{} was written by a newer release (format {version}; this one knows {SCHEMA_VERSION}): \
             run that release, or name another file",
            path.display()
        ))
    } else {
        None
    };
    if let Some(refusal) = refusal {
        return Err(Failure::Refused(BrokerError::Storage(refusal)));
    }
    if version < 1 {
        transaction.execute_batch(include_str!("schema.sql"))?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.commit()?;
    Ok(())
}

/// The right to consume the file: a lock of the operating system on `<path>.lock`, which ends with its process however
/// that ends. The file itself is not locked: SQLite's own locks on it are per process and would get in the way.
#[derive(Debug)]
pub(super) struct ConsumerLock {
    path: PathBuf,
    held: Option<File>,
}

impl ConsumerLock {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: beside(path, ".lock"), held: None }
    }

    /// Takes the lock, if this process has it not yet.
    pub(super) fn take(&mut self) -> Result<(), BrokerError> {
        if self.held.is_some() {
            return Ok(());
        }
        let path = &self.path;
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(path);
        let file = file.map_err(|error| failed(path, "cannot write to", &error))?;
        match file.try_lock() {
            Ok(()) => {
                self.held = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(BrokerError::InUse(format!(
                "another process already works this queue ({} is locked): the embedded queue serves one worker \
                 process; stop the other one, or use RabbitMQ for several",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed(path, "cannot lock", &error)),
        }
    }

    /// Whether this process consumes the file.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn folder_file_and_log_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/for/it/queue.db");
        let connection = open(&path).unwrap();
        let mut lock = ConsumerLock::new(&path);
        lock.take().unwrap();
        connection.execute("INSERT INTO retained VALUES ('pause', 1, x'00')", []).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        for suffix in ["", "-wal", "-shm", ".lock"] {
            assert_eq!(mode(&beside(&path, suffix)), 0o600, "{suffix}");
        }
    }

    #[test]
    fn access_that_others_have_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        drop(open(&path).unwrap());
        std::fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        drop(open(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let refusal = open(&path).unwrap_err().to_string();
        assert!(refusal.contains("newer release (format 7; this one knows 1)"), "{refusal}");
        let version: i32 =
            Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, 7);
    }

    #[test]
    fn a_foreign_database_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.db");
        let foreign = Connection::open(&path).unwrap();
        foreign.execute_batch("CREATE TABLE visits (url TEXT)").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let refusal = open(&path).unwrap_err().to_string();
        assert!(refusal.contains("another program"), "{refusal}");
        let tables: i64 = foreign.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!((tables, mode(&path)), (1, 0o644));
    }

    #[test]
    fn what_is_no_database_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "not a database, but long enough to be looked at as one").unwrap();
        assert!(matches!(open(&path), Err(BrokerError::Storage(_))));
        // A folder is none either.
        assert!(matches!(open(folder.path()), Err(BrokerError::Storage(_))));
    }

    #[test]
    fn one_lock_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let (mut one, mut other) = (ConsumerLock::new(&path), ConsumerLock::new(&path));
        one.take().unwrap();
        one.take().unwrap();
        let refusal = other.take().unwrap_err();
        assert!(matches!(&refusal, BrokerError::InUse(text) if text.contains("use RabbitMQ for several")), "{refusal}");
        assert!(!other.is_held());
        drop(one);
        other.take().unwrap();
    }

    #[test]
    fn many_open_a_new_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| open(&path).unwrap());
            }
        });
    }
}
