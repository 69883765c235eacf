//! Reads a database's address as people write it: a URL, or libpq's `name=value` words.
//!
//! Answers neutral data. Does not know the driver that will use it, opens no file, reads no
//! environment and asks no system who the user is. What is wrong is named and never repeated, since
//! the text holds a password. `url` is for any scheme, `parameters` is PostgreSQL's alone.

pub(super) mod keywords;
mod mysql;
mod parameters;
pub(super) mod url;

use std::fmt;
use std::path::PathBuf;

use super::mask::MASK;
pub use mysql::{MYSQL_FORM, MysqlDsn, MysqlHost, MysqlTls, mysql};

/// An address of PostgreSQL as a person could write it.
pub const POSTGRES_FORM: &str = "postgres://USER:PASSWORD@127.0.0.1:5432/replicon?sslmode=disable";

/// One node writes to one server: to fall over to another one is for the address to do.
const SEVERAL_HOSTS: &str = "the host: several are named; write one";

/// How PostgreSQL is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresDsn {
    /// The server.
    pub host: PgHost,
    /// The role to log in as.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// Whether the connection is encrypted, and what is checked.
    pub ssl: SslMode,
    /// The authorities that sign the server's certificate; `None` means those of the system.
    pub ssl_root_cert: Option<PathBuf>,
    /// The client's certificate; never without its key.
    pub ssl_cert: Option<PathBuf>,
    /// The key of that certificate; never without it.
    pub ssl_key: Option<PathBuf>,
    /// What the server shows as the name of the client.
    pub application_name: Option<String>,
    /// Settings of the server for each session, in the order in which they hold.
    pub options: Vec<(String, String)>,
    /// The names of parameters that have no effect, each once.
    pub unknown: Vec<String>,
}

/// Where a PostgreSQL server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PgHost {
    /// A name or an address.
    Tcp {
        /// Without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// A unix socket.
    Socket {
        /// The directory that holds it.
        dir: PathBuf,
        /// The number in its name.
        port: u16,
    },
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted where the server refuses it otherwise.
    Allow,
    /// Encrypted where the server can.
    Prefer,
    /// Always encrypted; anybody may be at the other end.
    Require,
    /// Always, and the certificate is signed by an authority that is trusted.
    VerifyCa,
    /// Always, and the certificate is the host's own.
    VerifyFull,
}

impl fmt::Debug for PostgresDsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, since a derived one would show the password. A setting may hold anything too.
        let settings: Vec<&str> = self.options.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("PostgresDsn")
            .field("host", &self.host)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| MASK))
            .field("database", &self.database)
            .field("ssl", &self.ssl)
            .field("ssl_root_cert", &self.ssl_root_cert)
            .field("ssl_cert", &self.ssl_cert)
            .field("ssl_key", &self.ssl_key)
            .field("application_name", &self.application_name)
            .field("options", &settings)
            .field("unknown", &self.unknown)
            .finish()
    }
}

impl fmt::Display for PgHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket { dir, port } => write!(f, "{}/.s.PGSQL.{port}", dir.display()),
        }
    }
}

/// Reads `postgres://…`, `postgresql://…` or `host=… dbname=…`.
///
/// # Errors
/// Which part is wrong and what would be right. Never the text itself.
pub fn postgres(text: &str) -> Result<PostgresDsn, String> {
    if text.trim().is_empty() {
        return Err(format!("it is empty; write {POSTGRES_FORM}"));
    }
    if text.contains('\0') {
        return Err("it holds a byte 0".to_owned());
    }
    let address = text.trim();
    let behind =
        address.strip_prefix("postgres://").or_else(|| address.strip_prefix("postgresql://"));
    let given = match behind {
        Some(behind) => of_url(url::split(behind)?),
        None if keywords::begin(text) => of_words(text)?,
        None => {
            return Err(format!(
                "it is neither a URL of PostgreSQL nor words such as host=127.0.0.1; write {POSTGRES_FORM}"
            ));
        }
    };
    parameters::assemble(given)
}

/// The query comes last, so that it overrides what stands before it, as in libpq.
fn of_url(url: url::Url) -> Vec<(String, String)> {
    let mut given = vec![
        ("user".to_owned(), url.user),
        ("password".to_owned(), url.password),
        ("host".to_owned(), url.host),
        ("port".to_owned(), url.port),
        ("dbname".to_owned(), url.path),
    ];
    given.extend(url.query);
    given
}

fn of_words(text: &str) -> Result<Vec<(String, String)>, String> {
    keywords::words(text)
        .map(|word| match word {
            Ok(word) => Ok((word.name.to_owned(), word.value)),
            Err(fault) => Err(fault.text.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests;
