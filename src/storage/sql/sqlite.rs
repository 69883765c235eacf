//! The executor for SQLite: one connection that writes, in WAL mode, and a lock file beside the
//! database.
//!
//! Does not know tables or events. The lock is a file of its own, since opening and closing the
//! database's file would drop SQLite's own locks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Row as _, TypeInfo as _, ValueRef as _};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::dialect::sqlite::Sqlite as Words;
use super::dialect::{Class, Dialect};
use super::pooled::within;
use super::session::{Backend, Lock, Param, Record, Session, Sifted, SqlError, TextRow, Within};
use super::table::Table;
use super::value::sqlite;
use crate::event::Seq;
use crate::fsx::{DirLock, OsDisk, durable_dir, parent};

/// Parameters of one INSERT: so many that its cost is shared, and one text that stays prepared.
const BINDS: usize = 2_000;
/// Rows that are read ahead of whoever takes them, of whatever size.
const AHEAD: usize = 16;

/// A database in a file.
pub struct Database {
    path: PathBuf,
    connection: Arc<Mutex<Option<SqliteConnection>>>,
}

impl Database {
    /// Nothing is opened before it is needed.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, connection: Arc::default() }
    }

    async fn open(&self) -> Result<SqliteConnection, SqlError> {
        let dir = parent(&self.path).to_owned();
        let made = crate::task::blocking(move || durable_dir(&OsDisk, &dir)).await;
        made.map_err(|e| SqlError::connection(format!("its directory cannot be made: {e}")))?;
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .statement_cache_capacity(64)
            .row_buffer_size(AHEAD);
        let mut connection =
            SqliteConnection::connect_with(&options).await.map_err(|e| at_open(&e, &self.path))?;
        for statement in Words.session_setup() {
            let run = sqlx::raw_sql(*statement).execute(&mut connection).await;
            run.map_err(|e| at_open(&e, &self.path))?;
        }
        Ok(connection)
    }
}

impl Backend for Database {
    type Session = Tx;
    type Lock = Held;

    fn dialect(&self) -> &dyn Dialect {
        &Words
    }

    async fn begin(&self) -> Result<Tx, SqlError> {
        let mut connection = self.connection.clone().lock_owned().await;
        if connection.is_none() {
            *connection = Some(self.open().await?);
        }
        let mut tx = Tx { connection: Some(connection), broken: true };
        tx.run("BEGIN IMMEDIATE").await?;
        Ok(tx)
    }

    async fn lock(&self, _origin: &str) -> Result<Option<Held>, SqlError> {
        let mut name = self.path.clone().into_os_string();
        name.push(".lock");
        let (path, dir) = (PathBuf::from(name), parent(&self.path).to_owned());
        let taken = crate::task::blocking(move || {
            durable_dir(&OsDisk, &dir).map_err(|e| e.to_string())?;
            DirLock::take(&path).map_err(|e| e.to_string())
        });
        let lock = taken.await.map_err(SqlError::connection)?;
        Ok(Some(Held(lock)))
    }

    fn lanes(&self) -> usize {
        usize::MAX
    }

    fn params<'v>(&self, record: &'v Record<'_>) -> Vec<Param<'v>> {
        sqlite::binds(&record.head, &record.values)
    }

    async fn execute_alone(&self, sql: &str) -> Result<(), SqlError> {
        let mut tx = self.begin().await?;
        tx.run(sql).await?;
        tx.commit().await
    }
}

/// A transaction on the one connection that writes.
pub struct Tx {
    connection: Option<OwnedMutexGuard<Option<SqliteConnection>>>,
    /// Neither committed nor rolled back: the connection is closed, which rolls back.
    broken: bool,
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let (true, Some(connection)) = (self.broken, &mut self.connection) {
            **connection = None;
        }
    }
}

impl Tx {
    fn connection(&mut self) -> Result<&mut SqliteConnection, SqlError> {
        let connection = self.connection.as_mut().and_then(|guard| guard.as_mut());
        connection.ok_or_else(|| SqlError::connection("the database is closed"))
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        let connection = self.connection()?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map_err(|e| error(&e))?;
        Ok(())
    }
}

impl Session for Tx {
    async fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, SqlError> {
        let done = bound(sql, params).execute(self.connection()?).await.map_err(|e| error(&e))?;
        Ok(done.rows_affected())
    }

    async fn rows(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<TextRow>, SqlError> {
        let rows = bound(sql, params).fetch_all(self.connection()?).await.map_err(|e| error(&e))?;
        rows.iter().map(texts).collect::<Result<_, _>>().map_err(|e| error(&e))
    }

    async fn rows_within(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        most: usize,
    ) -> Result<Within, SqlError> {
        let query = bound(sql, params);
        let found = within::<sqlx::Sqlite, _>(self.connection()?, query, texts, most).await;
        // an answer that nobody takes ends by itself
        found.map(|(found, _)| found).map_err(|e| error(&e))
    }

    async fn store(&mut self, table: &Table, rows: &[&Record<'_>]) -> Result<u64, SqlError> {
        let mut stored = 0;
        let most = (BINDS / table.columns.len()).max(1);
        let whole = Words.insert(table, most);
        for chunk in rows.chunks(most) {
            let params: Vec<Param<'_>> =
                chunk.iter().flat_map(|row| sqlite::binds(&row.head, &row.values)).collect();
            stored += if chunk.len() == most {
                self.execute(&whole, &params).await?
            } else {
                self.execute(&Words.insert(table, chunk.len()), &params).await?
            };
        }
        Ok(stored)
    }

    async fn store_good(
        &mut self,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> Result<Sifted, SqlError> {
        let most = (BINDS / table.columns.len()).max(1);
        let mut sifted = Sifted::default();
        for chunk in rows.chunks(most) {
            let params: Vec<Param<'_>> =
                chunk.iter().flat_map(|row| sqlite::binds(&row.head, &row.values)).collect();
            let stored = self.rows(&Words.insert_or_ignore(table, chunk.len()), &params).await?;
            let seq = |row: &TextRow| row.first()?.as_ref()?.parse().ok().map(Seq);
            let taken: BTreeSet<Seq> = stored.iter().filter_map(seq).collect();
            sifted.stored += taken.len() as u64;
            for row in chunk.iter().filter(|row| !taken.contains(&row.head.seq)) {
                // why it was ignored, in the database's words
                let params = sqlite::binds(&row.head, &row.values);
                match self.execute(&Words.insert(table, 1), &params).await {
                    Err(e) if e.class == Class::Reject => sifted.refused.push((row.head.seq, e)),
                    stored => sifted.stored += stored?,
                }
            }
        }
        Ok(sifted)
    }

    async fn rollback(mut self) {
        self.broken = self.run("ROLLBACK").await.is_err();
    }

    async fn commit(mut self) -> Result<(), SqlError> {
        self.run("COMMIT").await?;
        self.broken = false;
        Ok(())
    }
}

/// The lock file, held.
pub struct Held(#[allow(dead_code)] DirLock);

impl Lock for Held {
    /// A `flock` is held as long as its file is open.
    async fn ping(&mut self) -> Result<(), SqlError> {
        Ok(())
    }
}

type Bound<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn bound<'q>(sql: &str, params: &[Param<'_>]) -> Bound<'q> {
    let query = sqlx::query(AssertSqlSafe(sql));
    params.iter().fold(query, |query, param| match param {
        Param::Null => query.bind(None::<String>),
        Param::Int(number) => query.bind(*number),
        Param::Real(number) => query.bind(*number),
        Param::Text(text) => query.bind(text.clone().into_owned()),
        Param::Blob(bytes) => query.bind(bytes.clone().into_owned()),
    })
}

/// Floating numbers come as they are, everything else as text.
fn texts(row: &SqliteRow) -> Result<TextRow, sqlx::Error> {
    let text = |i| {
        let real = row.try_get_raw(i)?.type_info().name() == "REAL";
        if real {
            return Ok(row.try_get::<Option<f64>, _>(i)?.map(|number| format!("{number:?}")));
        }
        row.try_get_unchecked::<Option<String>, _>(i)
    };
    (0..row.len()).map(text).collect()
}

/// SQLITE_CONSTRAINT_TRIGGER: RAISE() in a trigger.
const RAISED: &str = "1811";

fn at_open(e: &sqlx::Error, path: &Path) -> SqlError {
    let SqlError { code, text, .. } = error(e);
    let text = format!("{} cannot be opened: {text}", path.display());
    SqlError { class: Class::Retry, code, text }
}

fn error(e: &sqlx::Error) -> SqlError {
    let sqlx::Error::Database(e) = e else {
        return SqlError::connection(e.to_string());
    };
    let code = e.code().map(|code| code.into_owned()).unwrap_or_default();
    // its words hold names of columns and constraints, and of no row; a trigger's may hold anything
    let text = match code.as_str() {
        RAISED => "a trigger refuses it".to_owned(),
        _ => e.message().to_owned(),
    };
    SqlError { class: Words.classify(&code), code, text }
}
