//! A place where a node works: its directory and the database that it writes to; what is asked of
//! every database, and the words that each of them has for it.
//!
//! Knows nothing of what is tested.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{DATABASE, Numbered, SQLITE, both, set};
use crate::cli::write;
use crate::http;
use crate::support::Node;
use crate::support::mysql::{self, Mysql};
use crate::support::postgres::Postgres;
use crate::support::sqlite::sqlite;

/// The same test on several databases, each a test of its own: `…::postgres`, `…::mysql`. What is
/// named is how the site is made that the test is given.
macro_rules! on_each {
    ($test:ident: $($database:ident),+) => {
        mod $test {
            $(
                #[test]
                fn $database() {
                    super::$test(super::Site::$database());
                }
            )+
        }
    };
}
pub(crate) use on_each;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    MariaDb,
    MySql,
}

/// A database server.
pub(crate) enum Server {
    Postgres(Postgres),
    Mysql(Mysql),
}

macro_rules! each {
    ($self:ident, $server:ident => $body:expr) => {
        match $self {
            Self::Postgres($server) => $body,
            Self::Mysql($server) => $body,
        }
    };
}

impl Server {
    fn kind(&self) -> Kind {
        match self {
            Self::Postgres(_) => Kind::Postgres,
            Self::Mysql(server) => match server.kind() {
                mysql::Kind::MariaDb => Kind::MariaDb,
                mysql::Kind::MySql => Kind::MySql,
            },
        }
    }

    /// What a node is told of a database at that address.
    pub(crate) fn settings(&self, dsn: &str) -> Vec<String> {
        let name = match self {
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "mysql",
        };
        set(&[&format!("storage_backend={name}"), &format!("storage_{name}_dsn={dsn}")])
    }

    /// Makes a database; how a node reaches it.
    pub(crate) fn database(&self, name: &str) -> String {
        each!(self, server => server.database(name))
    }

    /// How a node reaches a database.
    pub(crate) fn dsn(&self, database: &str) -> String {
        each!(self, server => server.dsn(database))
    }

    fn sql(&self, database: &str, text: &str) -> String {
        match self {
            Self::Postgres(server) => server.psql(database, text),
            Self::Mysql(server) => server.sql(database, text),
        }
    }

    /// Runs SQL as the superuser, in a database that no node uses.
    pub(crate) fn admin(&self, text: &str) -> String {
        each!(self, server => server.admin(text))
    }

    /// Ends every session of the nodes; how many there were.
    pub(crate) fn end_sessions(&self) -> usize {
        each!(self, server => server.end_sessions())
    }

    /// Where it keeps its files.
    pub(crate) fn directory(&self) -> &Path {
        match self {
            Self::Postgres(server) => server.socket_dir(),
            Self::Mysql(server) => server.directory(),
        }
    }

    pub(crate) fn runs(&self) -> bool {
        each!(self, server => server.runs())
    }

    pub(crate) fn kill(&mut self) {
        each!(self, server => server.kill());
    }

    pub(crate) fn stop_orderly(&mut self) {
        each!(self, server => server.stop_orderly());
    }

    pub(crate) fn restart(&mut self) {
        each!(self, server => server.restart());
    }

    pub(crate) fn pause(&self) {
        each!(self, server => server.pause());
    }

    pub(crate) fn resume(&self) {
        each!(self, server => server.resume());
    }
}

/// A directory for a node, and the database that it writes to.
pub(crate) struct Site {
    dir: TempDir,
    /// Without one it is SQLite.
    server: Option<Arc<Server>>,
    /// Its own one there.
    database: String,
}

impl Site {
    pub(crate) fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), server: None, database: String::new() }
    }

    pub(crate) fn postgres() -> Self {
        Self::on(Server::Postgres(Postgres::start()))
    }

    pub(crate) fn postgres_over_tcp() -> Self {
        Self::on(Server::Postgres(Postgres::start_on_tcp()))
    }

    pub(crate) fn mariadb() -> Self {
        Self::on(Server::Mysql(Mysql::start(mysql::Kind::MariaDb)))
    }

    pub(crate) fn mariadb_over_tcp() -> Self {
        Self::on(Server::Mysql(Mysql::start_on_tcp(mysql::Kind::MariaDb)))
    }

    pub(crate) fn mysql() -> Self {
        Self::on(Server::Mysql(Mysql::start(mysql::Kind::MySql)))
    }

    pub(crate) fn mysql_over_tcp() -> Self {
        Self::on(Server::Mysql(Mysql::start_on_tcp(mysql::Kind::MySql)))
    }

    fn on(server: Server) -> Self {
        Self::on_shared(&Arc::new(server), DATABASE)
    }

    /// On a server that others use too, in a database of that name.
    pub(crate) fn on_shared(server: &Arc<Server>, database: &str) -> Self {
        server.database(database);
        let (server, database) = (Some(server.clone()), database.to_owned());
        Self { dir: tempfile::tempdir().unwrap(), server, database }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.server.as_deref().map_or(Kind::Sqlite, Server::kind)
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_deref().unwrap()
    }

    pub(crate) fn server_mut(&mut self) -> &mut Server {
        Arc::get_mut(self.server.as_mut().unwrap()).expect("a server of its own")
    }

    /// The server of a site that has MariaDB or MySQL.
    pub(crate) fn mysql_server(&self) -> &Mysql {
        match self.server() {
            Server::Mysql(server) => server,
            Server::Postgres(_) => panic!("this is PostgreSQL"),
        }
    }

    /// What a node is told of its storage.
    pub(crate) fn settings(&self) -> Vec<String> {
        match &self.server {
            Some(server) => server.settings(&server.dsn(&self.database)),
            None => set(&["storage_backend=sqlite", &format!("storage_sqlite_path={SQLITE}")]),
        }
    }

    /// A node that has started and listens. It may not be ready.
    pub(crate) fn start(&self, more: &[&str]) -> Node {
        Node::start(self.path(), &both(&self.settings(), more))
    }

    /// A node that is ready.
    pub(crate) fn serving(&self, more: &[&str]) -> Node {
        http::serving(self.path(), &both(&self.settings(), more))
    }

    /// Gives the node its channels.
    pub(crate) fn channels(&self, text: &str) {
        write(self.path(), "conf/channels.yml", text);
    }

    /// Runs SQL; what it prints, columns separated by `|`.
    pub(crate) fn sql(&self, text: &str) -> String {
        match &self.server {
            Some(server) => server.sql(&self.database, text),
            None => sqlite(&self.path().join(SQLITE), text),
        }
    }

    /// A query whose rows are one JSON object each.
    pub(crate) fn objects(&self, query: &str) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"))
        };
        self.sql(query).lines().map(parse).collect()
    }

    /// A query for a seq and a number.
    pub(crate) fn pairs(&self, query: &str) -> Vec<Numbered> {
        let pair = |line: &str| -> Option<Numbered> {
            let (seq, n) = line.split_once('|')?;
            Some((seq.parse().ok()?, n.parse().ok()?))
        };
        let text = self.sql(query);
        text.lines().map(|line| pair(line).unwrap_or_else(|| panic!("{query}: {line}"))).collect()
    }

    /// A number in the payload of `events_raw`, as SQL.
    fn member(&self, name: &str) -> String {
        match self.kind() {
            Kind::Sqlite => format!("json_extract(json_data, '$.{name}')"),
            Kind::Postgres => format!("json_data->>'{name}'"),
            Kind::MariaDb | Kind::MySql => format!("JSON_VALUE(json_data, '$.{name}')"),
        }
    }

    /// Every row of `events_raw`, in order of the seqs, with the `n` of its payload.
    pub(crate) fn numbers(&self) -> Vec<Numbered> {
        let n = self.member("n");
        self.pairs(&format!("SELECT origin_seq, {n} FROM events_raw ORDER BY origin_seq"))
    }

    /// The same with the `id` of the payload, as a ledger judges it.
    pub(crate) fn ids(&self) -> Vec<Value> {
        let id = self.member("id");
        let rows =
            self.pairs(&format!("SELECT origin_seq, {id} FROM events_raw ORDER BY origin_seq"));
        let line = |(seq, id): Numbered| json!({"origin_seq": seq, "json_data": {"id": id}});
        rows.into_iter().map(line).collect()
    }

    /// Its function that makes a JSON object out of names and values.
    pub(crate) fn object(&self) -> &'static str {
        match self.kind() {
            Kind::Postgres => "json_build_object",
            Kind::Sqlite | Kind::MariaDb | Kind::MySql => "json_object",
        }
    }

    /// Every row of `events_raw`, in order of the seqs; `received_at` in seconds since 1970.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let object = self.object();
        let (received_at, payload) = match self.kind() {
            Kind::Postgres => ("extract(epoch FROM received_at)::float8", "json_data"),
            Kind::Sqlite => ("(julianday(received_at) - 2440587.5) * 86400.0", "json(json_data)"),
            // MariaDB's is a text, which would stand there in quotes
            Kind::MariaDb | Kind::MySql => {
                ("unix_timestamp(received_at)", "json_extract(json_data, '$')")
            }
        };
        self.objects(&format!(
            "SELECT {object}('origin_dc', origin_dc, 'origin_seq', origin_seq, \
             'node_name', node_name, 'channel', channel, 'received_at', {received_at}, \
             'json_data', {payload}) FROM events_raw ORDER BY origin_seq"
        ))
    }
}
