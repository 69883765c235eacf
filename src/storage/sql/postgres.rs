//! The executor for PostgreSQL: a pool for writers, and a session of its own for the origin's lock.
//!
//! Does not know tables or events: statements come as text, rows as values.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::{
    PgConnectOptions, PgConnection, PgDatabaseError, PgPool, PgPoolOptions, PgRow, PgSslMode,
};
use sqlx::{AssertSqlSafe, Connection, Row as _};

use super::dialect::postgres::Postgres as Words;
use super::dialect::{Class, Dialect};
use super::pooled::{Pooled, answered};
use super::session::{
    Backend, Lock, NO_SIEVE, Param, Record, Session, Sifted, SqlError, TextRow, Within,
};
use super::table::Table;
use super::value::postgres;
use crate::event::Seq;

/// So much of a COPY is encoded before it is sent: the server reads while the next is encoded.
const COPY_CHUNK: usize = 256 << 10;

/// Where a server is, as whom and how to log in. Shows nothing of itself: it holds a password.
#[derive(Clone, Default)]
pub struct Address {
    /// A name or an address; empty where `socket` is set.
    pub host: String,
    /// The directory of a unix socket.
    pub socket: Option<PathBuf>,
    /// The port, or the number in the socket's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// libpq's `sslmode`, by its name.
    pub ssl_mode: &'static str,
    /// The authorities that are trusted; the system's where it is not set.
    pub ssl_root_cert: Option<PathBuf>,
    /// The client's certificate and its key.
    pub ssl_cert: Option<(PathBuf, PathBuf)>,
    /// What the server shows as the client's name.
    pub application_name: Option<String>,
    /// Settings of each session.
    pub settings: Vec<(String, String)>,
}

impl Address {
    fn options(&self) -> PgConnectOptions {
        let name = self.application_name.as_deref().unwrap_or("replicon");
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            .database(&self.database)
            .application_name(name)
            .ssl_mode(self.ssl_mode.parse().unwrap_or(PgSslMode::Prefer))
            .options(self.settings.iter().map(|(name, value)| (name, value)));
        options = match &self.socket {
            Some(dir) => options.socket(dir),
            None => options.host(&self.host),
        };
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(root) = &self.ssl_root_cert {
            options = options.ssl_root_cert(root);
        }
        if let Some((cert, key)) = &self.ssl_cert {
            options = options.ssl_client_cert(cert).ssl_client_key(key);
        }
        options
    }
}

/// How to reach a server.
#[derive(Clone)]
pub struct Options {
    /// Where, as whom, how.
    pub address: Address,
    /// `storage_postgres_connect_timeout_ms`.
    pub connect_timeout: Duration,
    /// `storage_postgres_max_open_conns`, one of which holds the lock.
    pub max_open: u32,
    /// `storage_postgres_conn_max_lifetime_min`.
    pub lifetime: Option<Duration>,
    /// `storage_origin_lock`.
    pub origin_lock: bool,
}

/// A PostgreSQL server.
pub struct Server {
    pool: PgPool,
    options: Options,
}

impl Server {
    /// Nothing is connected before it is needed.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(options.max_open.saturating_sub(1).max(1))
            .acquire_timeout(options.connect_timeout)
            .max_lifetime(options.lifetime)
            // a dead one shows by its first statement, which is tried again like any other
            .test_before_acquire(false)
            .after_connect(|connection, _| Box::pin(async move { set_up(connection).await }))
            .connect_lazy_with(options.address.options());
        Self { pool, options }
    }
}

async fn set_up(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    for statement in Words.session_setup() {
        sqlx::raw_sql(*statement).execute(&mut *connection).await?;
    }
    Ok(())
}

impl Backend for Server {
    type Session = Tx;
    type Lock = Held;

    fn dialect(&self) -> &dyn Dialect {
        &Words
    }

    async fn begin(&self) -> Result<Tx, SqlError> {
        answered(async { Pooled::begin(&self.pool).await.map(Tx).map_err(|e| at_login(&e)) }).await
    }

    async fn lock(&self, origin: &str) -> Result<Option<Held>, SqlError> {
        let options = self.options.address.options();
        let connect = PgConnection::connect_with(&options);
        let connected = tokio::time::timeout(self.options.connect_timeout, connect).await;
        let connected = connected.map_err(|_| SqlError::connection("no answer in time"))?;
        let mut connection = connected.map_err(|e| at_login(&e))?;
        answered(async { set_up(&mut connection).await.map_err(|e| at_login(&e)) }).await?;
        let Some(sql) = Words.origin_lock().filter(|_| self.options.origin_lock) else {
            return Ok(Some(Held(connection)));
        };
        let param = [Param::Text(origin.into())];
        let rows = async { fetch(&mut connection, sql, &param).await.map_err(|e| error(&e)) };
        let rows = answered(rows).await?;
        let had = rows.first().and_then(|row| row[0].as_deref()) == Some("true");
        Ok(had.then_some(Held(connection)))
    }

    fn lanes(&self) -> usize {
        usize::MAX
    }

    fn params<'v>(&self, record: &'v Record<'_>) -> Vec<Param<'v>> {
        let texts = postgres::binds(&record.head, &record.values).into_iter();
        texts.map(|text| text.map_or(Param::Null, Param::Text)).collect()
    }

    async fn execute_alone(&self, sql: &str) -> Result<(), SqlError> {
        let mut connection = self.pool.acquire().await.map_err(|e| at_login(&e))?;
        let statement = sqlx::raw_sql(AssertSqlSafe(sql));
        statement.execute(&mut *connection).await.map_err(|e| error(&e))?;
        Ok(())
    }
}

/// A transaction; rolled back when dropped.
pub struct Tx(Pooled<sqlx::Postgres>);

impl Session for Tx {
    async fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, SqlError> {
        let done = async { bound(sql, params).execute(&mut *self.0).await.map_err(|e| error(&e)) };
        Ok(answered(done).await?.rows_affected())
    }

    async fn rows(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<TextRow>, SqlError> {
        answered(async { fetch(&mut self.0, sql, params).await.map_err(|e| error(&e)) }).await
    }

    async fn rows_within(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        most: usize,
    ) -> Result<Within, SqlError> {
        let query = bound(sql, params);
        let found = async { self.0.within(query, texts, most).await.map_err(|e| error(&e)) };
        answered(found).await
    }

    async fn store(&mut self, table: &Table, rows: &[&Record<'_>]) -> Result<u64, SqlError> {
        let Some(sql) = Words.copy_in(table) else { return Ok(0) };
        answered(self.copy(&sql, rows)).await
    }

    /// By the table's CHECKs, asked of a copy of the rows that has none.
    async fn store_good(
        &mut self,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> Result<Sifted, SqlError> {
        let name = [Param::Text(table.name.as_str().into())];
        let checks = self.rows(Words.checks(), &name).await?;
        let text = |row: &TextRow, at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        let expressions: Vec<String> = checks.iter().map(|row| text(row, 1)).collect();
        if expressions.is_empty() {
            return Err(no_sieve("the table has no CHECK, or a trigger that may change its rows"));
        }
        let expressions: Vec<&str> = expressions.iter().map(String::as_str).collect();
        let found = match self.through_sieve(table, rows, &expressions).await {
            Err(e) if e.class != Class::Retry => return Err(no_sieve(&e.to_string())),
            found => found?,
        };
        let refusal = |row: &TextRow| {
            let check = checks.get(text(row, 1).parse::<usize>().ok()?)?;
            let text_of = format!("refused by constraint {}, table {}", text(check, 0), table.name);
            let error = SqlError { class: Class::Reject, code: "23514".to_owned(), text: text_of };
            Some((Seq(text(row, 0).parse().ok()?), error))
        };
        let refused: Vec<(Seq, SqlError)> = found.iter().filter_map(refusal).collect();
        let bad: BTreeSet<Seq> = refused.iter().map(|(seq, _)| *seq).collect();
        let good = rows.iter().copied().filter(|row| !bad.contains(&row.head.seq));
        let good: Vec<&Record<'_>> = good.collect();
        let stored = self.store(table, &good).await?;
        Ok(Sifted { stored, refused })
    }

    async fn rollback(self) {
        self.0.rollback().await;
    }

    async fn commit(self) -> Result<(), SqlError> {
        answered(async { self.0.commit().await.map_err(|e| error(&e)) }).await
    }
}

impl Tx {
    /// The rows that a CHECK refuses: seq, and which.
    async fn through_sieve(
        &mut self,
        table: &Table,
        rows: &[&Record<'_>],
        checks: &[&str],
    ) -> Result<Vec<TextRow>, SqlError> {
        for statement in Words.make_sieve(table) {
            self.execute(&statement, &[]).await?;
        }
        answered(self.copy(&Words.fill_sieve(table), rows)).await?;
        self.rows(&Words.refused(table, checks), &[]).await
    }

    async fn copy(&mut self, sql: &str, rows: &[&Record<'_>]) -> Result<u64, SqlError> {
        let mut copy = self.0.copy_in_raw(sql).await.map_err(|e| error(&e))?;
        let mut buffer = Vec::with_capacity(COPY_CHUNK + (COPY_CHUNK >> 2));
        for row in rows {
            postgres::copy_text(&row.head, &row.values, &mut buffer);
            if buffer.len() >= COPY_CHUNK {
                copy.send(&buffer[..]).await.map_err(|e| error(&e))?;
                buffer.clear();
            }
        }
        copy.send(&buffer[..]).await.map_err(|e| error(&e))?;
        copy.finish().await.map_err(|e| error(&e))
    }
}

/// The bad rows cannot be told from the good ones at once.
fn no_sieve(why: &str) -> SqlError {
    SqlError { class: Class::Reject, code: NO_SIEVE.to_owned(), text: why.to_owned() }
}

/// The session that holds the origin's lock.
pub struct Held(PgConnection);

impl Lock for Held {
    async fn ping(&mut self) -> Result<(), SqlError> {
        sqlx::raw_sql("SELECT 1").execute(&mut self.0).await.map_err(|e| error(&e))?;
        Ok(())
    }
}

type Bound<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Every parameter as text: one statement has one set of parameter types.
fn bound<'q>(sql: &str, params: &[Param<'_>]) -> Bound<'q> {
    let text = |param: &Param<'_>| match param {
        Param::Null => None,
        Param::Int(number) => Some(number.to_string()),
        Param::Real(number) => Some(format!("{number:?}")),
        Param::Text(text) => Some(text.clone().into_owned()),
        Param::Blob(bytes) => Some(super::value::hex(bytes)),
    };
    let query = sqlx::query(AssertSqlSafe(sql));
    params.iter().fold(query, |query, param| query.bind(text(param)))
}

async fn fetch(
    connection: &mut PgConnection,
    sql: &str,
    params: &[Param<'_>],
) -> Result<Vec<TextRow>, sqlx::Error> {
    let rows: Vec<PgRow> = bound(sql, params).fetch_all(connection).await?;
    rows.iter().map(texts).collect()
}

fn texts(row: &PgRow) -> Result<TextRow, sqlx::Error> {
    (0..row.len()).map(|i| row.try_get(i)).collect()
}

/// As [`error`], before any event is at hand: nothing then is the data's fault.
fn at_login(e: &sqlx::Error) -> SqlError {
    SqlError { class: Class::Retry, ..error(e) }
}

fn error(e: &sqlx::Error) -> SqlError {
    let sqlx::Error::Database(e) = e else {
        return SqlError::connection(match e {
            sqlx::Error::PoolTimedOut => "no connection in time".to_owned(),
            e => e.to_string(),
        });
    };
    let Some(e) = e.try_downcast_ref::<PgDatabaseError>() else {
        return SqlError::connection(e.to_string());
    };
    let class = match (e.code(), e.constraint()) {
        // no partition takes the row: the table's fault, not the event's
        ("23514", None) => Class::Fatal,
        (code, _) => Words.classify(code),
    };
    SqlError { class, code: e.code().to_owned(), text: text_of(e) }
}

/// Names of the database's own, and the server's words only where they cannot hold a value.
fn text_of(e: &PgDatabaseError) -> String {
    let shown = matches!(
        e.code().get(..2),
        Some("08" | "25" | "28" | "3D" | "42" | "53" | "55" | "57" | "58")
    );
    if shown {
        return e.message().to_owned();
    }
    let parts = [("constraint", e.constraint()), ("table", e.table()), ("column", e.column())];
    let parts: Vec<String> =
        parts.iter().filter_map(|(word, name)| Some(format!("{word} {}", (*name)?))).collect();
    match (e.code().get(..2), parts.is_empty()) {
        (Some("23"), false) => format!("refused by {}", parts.join(", ")),
        (Some("22"), _) => format!("a value is not one of its column's type {}", parts.join(", ")),
        (_, false) => format!("refused at {}", parts.join(", ")),
        (_, true) => "refused by the server".to_owned(),
    }
}
