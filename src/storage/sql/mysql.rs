//! The executor for MySQL and MariaDB: a pool for writers, and a session of its own for the origin's
//! lock.
//!
//! Does not know tables or events: statements come as text, rows as values. A statement that fails
//! leaves nothing of itself in its transaction, which is what telling bad rows from good ones rests
//! on; a deadlock undoes the whole transaction.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::mysql::{
    MySqlArguments, MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlPool,
    MySqlPoolOptions, MySqlRow, MySqlSslMode,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, MySql, Row as _, SqlSafeStr, Type,
    TypeInfo as _, ValueRef as _,
};

use super::dialect::mysql::Mysql as Words;
use super::dialect::{Class, Dialect};
use super::pooled::{Pooled, answered};
use super::session::{Backend, Lock, Param, Record, Session, Sifted, SqlError, TextRow, Within};
use super::table::Table;
use super::value::mysql;

/// Rows of one INSERT, at most: a power of two, and so is every smaller number that is used, so that
/// a few prepared statements serve batches of all lengths.
const ROWS: usize = 1_024;
/// As [`ROWS`], where bad ones are looked for among them.
const ROWS_WITH_BAD: usize = 64;
/// Parameters of one INSERT, at most.
const BINDS: usize = 16_384;
/// Bytes of one INSERT, at most; a row that alone has more is sent alone. Every server that is
/// written to takes as many.
const STATEMENT_BYTES: usize = 1 << 20;
/// What a statement weighs beside its parameters, and then some.
const STATEMENT_HEAD: usize = 64 << 10;
/// A statement with more parameters comes in as many lengths: it is not kept prepared.
const KEPT_BINDS: usize = 8;
/// Prepared statements of a session: each table's, in each of their lengths.
const STATEMENTS: usize = 256;
/// An idle session is closed before the server does it.
const IDLE: Duration = Duration::from_secs(20);

/// Why a login failed that sqlx gives a word of its own only.
const NO_TLS: &str = "the user logs in by caching_sha2_password, and the first login by that needs \
    TLS, on a unix socket too: let the server offer TLS and write tls=preferred or tls=skip-verify \
    (or tls=true, where its certificate is one to be trusted) into the DSN; or give the user \
    another way to log in: ALTER USER ... IDENTIFIED WITH mysql_native_password (which MySQL 9 has \
    no more)";
const NO_SUCH_LOGIN: &str = "the user logs in by a plugin that is not spoken here: use \
    caching_sha2_password or mysql_native_password";
const OTHER_SESSION: &str = "the session's time zone, mode or character set is not what was asked \
    for: does a proxy stand between that keeps SET to itself?";

/// Where a server is, as whom and how to log in. Shows nothing of itself: it holds a password.
#[derive(Clone, Default)]
pub struct Address {
    /// A name or an address; empty where `socket` is set.
    pub host: String,
    /// A unix socket.
    pub socket: Option<PathBuf>,
    /// The port.
    pub port: u16,
    /// The user.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// MySQL's `ssl-mode`, by its name.
    pub ssl_mode: &'static str,
    /// The authorities that are trusted; the system's where it is not set.
    pub ssl_root_cert: Option<PathBuf>,
    /// The client's certificate and its key.
    pub ssl_cert: Option<(PathBuf, PathBuf)>,
}

impl Address {
    fn options(&self) -> MySqlConnectOptions {
        // What a session is set to is the dialect's to say. The text of an INSERT is too long for a
        // line of a log.
        let mut options = MySqlConnectOptions::new()
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None::<String>)
            .set_names(false)
            .disable_statement_logging()
            .statement_cache_capacity(STATEMENTS)
            .port(self.port)
            .username(&self.user)
            .database(&self.database)
            .ssl_mode(self.ssl_mode.parse().unwrap_or(MySqlSslMode::Preferred));
        options = match &self.socket {
            Some(path) => options.socket(path),
            None => options.host(&self.host),
        };
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(root) = &self.ssl_root_cert {
            options = options.ssl_ca(root);
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
    /// `storage_mysql_connect_timeout_ms`.
    pub connect_timeout: Duration,
    /// `storage_mysql_max_open_conns`, one of which holds the lock.
    pub max_open: u32,
    /// `storage_mysql_conn_max_lifetime_min`.
    pub lifetime: Option<Duration>,
    /// `storage_origin_lock`.
    pub origin_lock: bool,
    /// Bytes of the largest event that is accepted: a server that would not take it is not written
    /// to.
    pub largest_event: usize,
}

/// A MySQL or MariaDB server.
pub struct Server {
    pool: MySqlPool,
    options: Options,
    inserts: Arc<Inserts>,
}

impl Server {
    /// Nothing is connected before it is needed.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let largest = options.largest_event;
        let pool = MySqlPoolOptions::new()
            .max_connections(options.max_open.saturating_sub(1).max(1))
            .acquire_timeout(options.connect_timeout)
            .max_lifetime(options.lifetime)
            .idle_timeout(IDLE)
            // a dead one shows by its first statement, which is tried again like any other
            .test_before_acquire(false)
            .before_acquire(|_, meta| {
                Box::pin(async move { Ok::<_, sqlx::Error>(meta.idle_for < IDLE) })
            })
            .after_connect(move |connection, _| {
                Box::pin(async move { set_up(connection, largest).await })
            })
            .connect_lazy_with(options.address.options());
        Self { pool, options, inserts: Arc::default() }
    }
}

/// Sets a session up, and reads back what a proxy could have kept to itself.
async fn set_up(connection: &mut MySqlConnection, largest: usize) -> Result<(), sqlx::Error> {
    for statement in Words.session_setup() {
        sqlx::raw_sql(*statement).execute(&mut *connection).await?;
    }
    let rows = fetch(connection, Words.read_back(), &[]).await?;
    let text = |at: usize| rows.first().and_then(|row| row.get(at).cloned().flatten());
    if text(0).as_deref() != Some("true") {
        return Err(sqlx::Error::Configuration(OTHER_SESSION.into()));
    }
    let packet: usize = text(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    // canonical texts are longer than what was sent: `1` becomes `1.0`
    let needed = largest.saturating_mul(2).max(STATEMENT_BYTES).saturating_add(STATEMENT_HEAD);
    if packet < needed {
        let wrong = format!(
            "the server's max_allowed_packet = {packet} is too small for the largest event that is accepted: make it at least {needed}"
        );
        return Err(sqlx::Error::Configuration(wrong.into()));
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
        let begun = async { Pooled::begin(&self.pool).await.map_err(|e| at_login(&e)) };
        let tx = answered(begun).await?;
        Ok(Tx { tx, inserts: self.inserts.clone(), packet: None })
    }

    async fn lock(&self, origin: &str) -> Result<Option<Held>, SqlError> {
        let options = self.options.address.options();
        let connect = async {
            let mut connection = MySqlConnection::connect_with(&options).await?;
            set_up(&mut connection, self.options.largest_event).await?;
            Ok::<_, sqlx::Error>(connection)
        };
        let connected = tokio::time::timeout(self.options.connect_timeout, connect).await;
        let connected = connected.map_err(|_| SqlError::connection("no answer in time"))?;
        let mut connection = connected.map_err(|e| at_login(&e))?;
        let Some(sql) = Words.origin_lock().filter(|_| self.options.origin_lock) else {
            return Ok(Some(Held { connection, origin: None }));
        };
        let had = answered(is_true(&mut connection, sql, origin)).await?;
        Ok(had.then(|| Held { connection, origin: Some(origin.to_owned()) }))
    }

    fn lanes(&self) -> usize {
        usize::MAX
    }

    fn params<'v>(&self, record: &'v Record<'_>) -> Vec<Param<'v>> {
        mysql::binds(&record.head, &record.values)
    }

    async fn execute_alone(&self, sql: &str) -> Result<(), SqlError> {
        let mut connection = self.pool.acquire().await.map_err(|e| at_login(&e))?;
        let run = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await;
        run.map_err(|e| error(&e))?;
        Ok(())
    }
}

/// The texts of INSERTs, which are long and few.
#[derive(Default)]
struct Inserts(Mutex<BTreeMap<(String, usize), Arc<str>>>);

impl Inserts {
    fn text(&self, table: &Table, rows: usize) -> Arc<str> {
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = texts.entry((table.name.clone(), rows));
        text.or_insert_with(|| Words.insert(table, rows).into()).clone()
    }
}

/// The first rows of a batch, as the parameters of one INSERT.
struct Insert<'v> {
    rows: usize,
    params: Vec<Param<'v>>,
    bytes: usize,
}

impl<'v> Insert<'v> {
    fn of(table: &Table, rows: &[&'v Record<'_>], most: usize) -> Self {
        let width = table.columns.len().max(1);
        let most = power_of_two((BINDS / width).clamp(1, most).min(rows.len()));
        let mut insert = Self { rows: 0, params: Vec::with_capacity(most * width), bytes: 0 };
        for row in rows.iter().take(most) {
            let params = mysql::binds(&row.head, &row.values);
            let bytes: usize = params.iter().map(weight).sum();
            if insert.rows > 0 && insert.bytes + bytes > STATEMENT_BYTES {
                break;
            }
            insert.params.extend(params);
            insert.bytes += bytes;
            insert.rows += 1;
        }
        insert.rows = power_of_two(insert.rows);
        insert.params.truncate(insert.rows * width);
        insert
    }
}

/// The largest power of two that is not above `number`; 0 for 0.
fn power_of_two(number: usize) -> usize {
    number.checked_ilog2().map_or(0, |exponent| 1 << exponent)
}

/// The bytes that a parameter takes in a statement, its type and its length included.
fn weight(param: &Param<'_>) -> usize {
    const HEAD: usize = 12;
    HEAD + match param {
        Param::Null => 0,
        Param::Int(_) | Param::Real(_) => 8,
        Param::Text(text) => text.len(),
        Param::Blob(bytes) => bytes.len(),
    }
}

/// A transaction.
pub struct Tx {
    tx: Pooled<MySql>,
    inserts: Arc<Inserts>,
    /// The session's `max_allowed_packet`, once it was asked for.
    packet: Option<usize>,
}

impl Session for Tx {
    /// A statement without parameters is not prepared: savepoints and DDL cannot be.
    async fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, SqlError> {
        let done = async {
            let done = if params.is_empty() {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.tx).await
            } else {
                bound(AssertSqlSafe(sql), params).execute(&mut *self.tx).await
            };
            done.map_err(|e| error(&e))
        };
        Ok(answered(done).await?.rows_affected())
    }

    async fn rows(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<TextRow>, SqlError> {
        answered(async { fetch(&mut self.tx, sql, params).await.map_err(|e| error(&e)) }).await
    }

    async fn rows_within(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        most: usize,
    ) -> Result<Within, SqlError> {
        let query = bound(AssertSqlSafe(sql), params);
        let found = async { self.tx.within(query, texts, most).await.map_err(|e| error(&e)) };
        answered(found).await
    }

    async fn store(&mut self, table: &Table, rows: &[&Record<'_>]) -> Result<u64, SqlError> {
        let mut rest = rows;
        let mut stored = 0;
        while !rest.is_empty() {
            let insert = Insert::of(table, rest, ROWS);
            stored += self.insert(table, &insert).await?;
            rest = rest.split_at(insert.rows).1;
        }
        Ok(stored)
    }

    /// Halves what is refused, down to the rows that are to blame: of a statement that failed nothing
    /// stands.
    async fn store_good(
        &mut self,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> Result<Sifted, SqlError> {
        let mut sifted = Sifted::default();
        let mut open = vec![rows];
        while let Some(rows) = open.pop() {
            if rows.is_empty() {
                continue;
            }
            let insert = Insert::of(table, rows, ROWS_WITH_BAD);
            let (rows, later) = rows.split_at(insert.rows);
            open.push(later);
            match (self.insert(table, &insert).await, rows) {
                (Ok(stored), _) => sifted.stored += stored,
                (Err(e), [row]) if e.class == Class::Reject => {
                    sifted.refused.push((row.head.seq, e));
                }
                (Err(e), rows) if e.class == Class::Reject => {
                    let (left, right) = rows.split_at(rows.len() / 2);
                    open.extend([right, left]);
                }
                (Err(e), _) => return Err(e),
            }
        }
        Ok(sifted)
    }

    async fn rollback(self) {
        self.tx.rollback().await;
    }

    async fn commit(self) -> Result<(), SqlError> {
        answered(async { self.tx.commit().await.map_err(|e| error(&e)) }).await
    }
}

impl Tx {
    async fn insert(&mut self, table: &Table, insert: &Insert<'_>) -> Result<u64, SqlError> {
        if insert.bytes > STATEMENT_BYTES {
            let (row, packet) = (insert.bytes + STATEMENT_HEAD, self.packet().await?);
            if row > packet {
                // the server would hang up
                let text = format!(
                    "a row of {row} bytes, table {}: the server's max_allowed_packet = {packet} is smaller",
                    table.name
                );
                let code = "max_allowed_packet".to_owned();
                return Err(SqlError { class: Class::Reject, code, text });
            }
        }
        let text = self.inserts.text(table, insert.rows);
        let query = bound(AssertSqlSafe(text), &insert.params).persistent(true);
        let done = async { query.execute(&mut *self.tx).await.map_err(|e| error(&e)) };
        Ok(answered(done).await?.rows_affected())
    }

    async fn packet(&mut self) -> Result<usize, SqlError> {
        if let Some(packet) = self.packet {
            return Ok(packet);
        }
        let rows = self.rows(Words.read_back(), &[]).await?;
        let text = rows.first().and_then(|row| row.get(1).cloned().flatten());
        let packet = text.and_then(|text| text.parse().ok()).unwrap_or(STATEMENT_BYTES);
        self.packet = Some(packet);
        Ok(packet)
    }
}

/// The session that holds the origin's lock.
pub struct Held {
    connection: MySqlConnection,
    /// Whose lock; nothing where `storage_origin_lock` is off.
    origin: Option<String>,
}

impl Lock for Held {
    async fn ping(&mut self) -> Result<(), SqlError> {
        let Some(origin) = &self.origin else {
            let asked = sqlx::raw_sql("SELECT 1").execute(&mut self.connection).await;
            return asked.map(drop).map_err(|e| error(&e));
        };
        if is_true(&mut self.connection, Words.origin_lock_held(), origin).await? {
            return Ok(());
        }
        Err(SqlError {
            class: Class::Retry,
            code: "origin lock".to_owned(),
            text: "the session holds the lock no more".to_owned(),
        })
    }
}

async fn is_true(
    connection: &mut MySqlConnection,
    sql: &str,
    origin: &str,
) -> Result<bool, SqlError> {
    let rows = fetch(connection, sql, &[Param::Text(origin.into())]).await;
    let rows = rows.map_err(|e| error(&e))?;
    Ok(rows.first().and_then(|row| row.first()?.as_deref()) == Some("true"))
}

type Bound<'q> = sqlx::query::Query<'q, MySql, MySqlArguments>;

fn bound<'q>(sql: impl SqlSafeStr, params: &[Param<'_>]) -> Bound<'q> {
    let query = sqlx::query(sql).persistent(params.len() <= KEPT_BINDS);
    params.iter().fold(query, |query, param| match param {
        Param::Null => query.bind(None::<String>),
        Param::Int(number) => query.bind(*number),
        Param::Real(number) => query.bind(*number),
        Param::Text(text) => query.bind(&**text),
        Param::Blob(bytes) => query.bind(&**bytes),
    })
}

async fn fetch(
    connection: &mut MySqlConnection,
    sql: &str,
    params: &[Param<'_>],
) -> Result<Vec<TextRow>, sqlx::Error> {
    let rows: Vec<MySqlRow> = bound(AssertSqlSafe(sql), params).fetch_all(connection).await?;
    rows.iter().map(texts).collect()
}

fn texts(row: &MySqlRow) -> Result<TextRow, sqlx::Error> {
    (0..row.len()).map(|at| text(row, at)).collect()
}

/// A column as text: what the dialect leaves as it is gets its one form here.
fn text(row: &MySqlRow, at: usize) -> Result<Option<String>, sqlx::Error> {
    let value = row.try_get_raw(at)?;
    if value.is_null() {
        return Ok(None);
    }
    let ty = value.type_info();
    let text = match ty.name() {
        "FLOAT" => format!("{:?}", f64::from(row.try_get_unchecked::<f32, _>(at)?)),
        "DOUBLE" => format!("{:?}", row.try_get_unchecked::<f64, _>(at)?),
        "DECIMAL" => mysql::decimal(&row.try_get_unchecked::<String, _>(at)?).to_owned(),
        // to the protocol it is bytes
        "JSON" => row.try_get_unchecked::<String, _>(at)?,
        _ if <str as Type<MySql>>::compatible(&ty) => row.try_get_unchecked::<String, _>(at)?,
        _ if <i64 as Type<MySql>>::compatible(&ty) => {
            row.try_get_unchecked::<i64, _>(at)?.to_string()
        }
        _ => super::value::hex(&row.try_get_unchecked::<Vec<u8>, _>(at)?),
    };
    Ok(Some(text))
}

/// As [`error`], before any event is at hand: nothing then is the data's fault.
fn at_login(e: &sqlx::Error) -> SqlError {
    let login = |text: &str| SqlError {
        class: Class::Retry,
        code: "login".to_owned(),
        text: text.to_owned(),
    };
    match e {
        sqlx::Error::Configuration(why) if why.to_string().starts_with("RSA") => login(NO_TLS),
        sqlx::Error::Configuration(why) => login(&why.to_string()),
        sqlx::Error::Protocol(why)
            if why.starts_with("unknown authentication plugin") || why.contains("cleartext") =>
        {
            login(NO_SUCH_LOGIN)
        }
        sqlx::Error::Tls(why) => login(&format!("TLS: {why}")),
        e => SqlError { class: Class::Retry, ..error(e) },
    }
}

fn error(e: &sqlx::Error) -> SqlError {
    let sqlx::Error::Database(e) = e else {
        return SqlError::connection(match e {
            sqlx::Error::PoolTimedOut => "no connection in time".to_owned(),
            e => e.to_string(),
        });
    };
    let Some(e) = e.try_downcast_ref::<MySqlDatabaseError>() else {
        return SqlError::connection(e.to_string());
    };
    let code = e.number().to_string();
    let text = Words.text_of(e.number(), e.message());
    SqlError { class: Words.classify(&code), code, text }
}
