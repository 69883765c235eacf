//! Reads MySQL's address: a URL, or what Go's driver reads, `USER:PASSWORD@tcp(HOST:PORT)/DATABASE`.
//!
//! Go's form has no percent signs before the database: its last '/' ends the address, and the last
//! '@' before that the password, whatever either holds. Answers neutral data. What is wrong is named
//! and never repeated.

use std::fmt;
use std::path::PathBuf;

use super::MASK;
use super::keywords::is_name;
use super::url;

/// An address of MySQL as a person could write it.
pub const MYSQL_FORM: &str = "USER:PASSWORD@tcp(127.0.0.1:3306)/replicon";

const DEFAULT_HOST: &str = "127.0.0.1";
const DEFAULT_PORT: u16 = 3306;
/// Where Go's driver looks where `unix` has no path.
const DEFAULT_SOCKET: &str = "/tmp/mysql.sock";

/// Parameters of Go's driver, and of MySQL's own clients, that ask for nothing that is not done
/// anyway, or for nothing that is done here.
const SILENT: [&str; 18] = [
    "allowNativePasswords",
    "allowOldPasswords",
    "autocommit",
    "checkConnLiveness",
    "clientFoundRows",
    "collation",
    "columnsWithAlias",
    "connectionAttributes",
    "interpolateParams",
    "maxAllowedPacket",
    "multiStatements",
    "parseTime",
    "readTimeout",
    "rejectReadOnly",
    "strict",
    "timeout",
    "timeTruncate",
    "writeTimeout",
];

/// How MySQL or MariaDB is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct MysqlDsn {
    /// The server.
    pub host: MysqlHost,
    /// The user to log in as.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// Whether the connection is encrypted, and what is checked.
    pub tls: MysqlTls,
    /// The authorities that sign the server's certificate; `None` means those of the system.
    pub ssl_root_cert: Option<PathBuf>,
    /// The client's certificate; never without its key.
    pub ssl_cert: Option<PathBuf>,
    /// The key of that certificate; never without it.
    pub ssl_key: Option<PathBuf>,
    /// The names of parameters that have no effect, each once.
    pub unknown: Vec<String>,
}

/// Where a MySQL server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MysqlHost {
    /// A name or an address.
    Tcp {
        /// Without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// A unix socket.
    Socket(PathBuf),
}

/// MySQL's `ssl-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MysqlTls {
    /// Never encrypted.
    Disabled,
    /// Encrypted where the server can.
    Preferred,
    /// Always encrypted; anybody may be at the other end.
    Required,
    /// Always, and the certificate is signed by an authority that is trusted.
    VerifyCa,
    /// Always, and the certificate is the host's own.
    VerifyIdentity,
}

impl fmt::Debug for MysqlDsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, since a derived one would show the password.
        f.debug_struct("MysqlDsn")
            .field("host", &self.host)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| MASK))
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("ssl_root_cert", &self.ssl_root_cert)
            .field("ssl_cert", &self.ssl_cert)
            .field("ssl_key", &self.ssl_key)
            .field("unknown", &self.unknown)
            .finish()
    }
}

impl fmt::Display for MysqlHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Reads `mysql://…`, `mariadb://…`, or Go's form.
///
/// # Errors
/// Which part is wrong and what would be right. Never the text itself.
pub fn mysql(text: &str) -> Result<MysqlDsn, String> {
    let address = text.trim();
    if address.is_empty() {
        return Err(format!("it is empty; write {MYSQL_FORM}"));
    }
    if address.contains('\0') {
        return Err("it holds a byte 0".to_owned());
    }
    let behind = address.strip_prefix("mysql://").or_else(|| address.strip_prefix("mariadb://"));
    match behind {
        Some(behind) => of_url(url::split(behind)?),
        None if begins_with_scheme(address) => {
            Err(format!("it is the URL of something else than MySQL; write {MYSQL_FORM}"))
        }
        None => of_go(address),
    }
}

/// Such as `postgres://`; not `u:p://w@…`.
fn begins_with_scheme(text: &str) -> bool {
    let Some((scheme, behind)) = text.split_once("://") else { return false };
    let known = ["postgres", "postgresql", "redis", "sqlite", "http", "https"];
    known.contains(&scheme) && !behind.is_empty()
}

fn of_url(parts: url::Url) -> Result<MysqlDsn, String> {
    let host = if parts.host.starts_with('/') {
        MysqlHost::Socket(parts.host.into())
    } else {
        tcp(&parts.host, &parts.port)?
    };
    Read::new(host, parts.user, parts.password, parts.path).take_all(parts.query)?.finish()
}

fn of_go(text: &str) -> Result<MysqlDsn, String> {
    let (left, right) = text.rsplit_once('/').ok_or_else(|| {
        format!("the name of the database: no '/' stands before it; write {MYSQL_FORM}")
    })?;
    let (database, query) = right.split_once('?').unwrap_or((right, ""));
    let (login, address) = left.rsplit_once('@').unwrap_or(("", left));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let database = decoded("the name of the database", database)?;
    let read = Read::new(place(address)?, user.to_owned(), password.to_owned(), database);
    read.take_all(parameters(query)?)?.finish()
}

/// `tcp(HOST:PORT)`, `unix(PATH)`, either without its parentheses, or nothing.
fn place(address: &str) -> Result<MysqlHost, String> {
    const FORM: &str = "the address: write tcp(HOST:PORT) or unix(PATH) between '@' and the '/' of \
                        the database; in the value of a parameter write '/' as %2F";
    let (network, inner) = match address.split_once('(') {
        Some((network, rest)) => {
            let inner = rest.strip_suffix(')').filter(|inner| !inner.contains(['(', ')']));
            (network, inner.ok_or(FORM)?)
        }
        None => (address, ""),
    };
    match network {
        "" | "tcp" => {
            let (host, port) = url::host_and_port(inner)?;
            tcp(host, port)
        }
        "unix" if inner.is_empty() => Ok(MysqlHost::Socket(DEFAULT_SOCKET.into())),
        "unix" if inner.starts_with('/') => Ok(MysqlHost::Socket(inner.into())),
        "unix" => Err("the address: the path of a unix socket begins with '/'".to_owned()),
        _ => Err(FORM.to_owned()),
    }
}

fn tcp(host: &str, port: &str) -> Result<MysqlHost, String> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/@[]()".contains(c);
    if host.contains(strange) {
        return Err("the host: write a name or an address".to_owned());
    }
    let host = if host.is_empty() { DEFAULT_HOST } else { host };
    if port.is_empty() {
        return Ok(MysqlHost::Tcp { host: host.to_owned(), port: DEFAULT_PORT });
    }
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0);
    let port = port.ok_or("the port: write a number from 1 to 65535")?;
    Ok(MysqlHost::Tcp { host: host.to_owned(), port })
}

fn parameters(query: &str) -> Result<Vec<(String, String)>, String> {
    query.split('&').filter(|pair| !pair.is_empty()).map(parameter).collect()
}

fn parameter(pair: &str) -> Result<(String, String), String> {
    let (name, value) = pair
        .split_once('=')
        .ok_or("a parameter behind the '?' has no '='; in a value write '&' as %26")?;
    Ok((name.to_owned(), decoded("the value of a parameter", value)?))
}

fn decoded(what: &str, text: &str) -> Result<String, String> {
    url::decoded(text).ok_or_else(|| {
        format!("{what}: a '%' begins two hex digits, such as %2F for '/'; write '%' itself as %25")
    })
}

/// What was read so far. An empty value is as good as none.
struct Read {
    host: MysqlHost,
    user: String,
    password: String,
    database: String,
    tls: Option<MysqlTls>,
    root_cert: String,
    cert: String,
    key: String,
    unknown: Vec<String>,
}

impl Read {
    fn new(host: MysqlHost, user: String, password: String, database: String) -> Self {
        let (tls, unknown) = (None, Vec::new());
        let [root_cert, cert, key] = std::array::from_fn(|_| String::new());
        Self { host, user, password, database, tls, root_cert, cert, key, unknown }
    }

    fn take_all(mut self, query: Vec<(String, String)>) -> Result<Self, String> {
        for (name, value) in query {
            self.take(&name, value)?;
        }
        Ok(self)
    }

    fn take(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "tls" => self.tls = go_tls(&value)?,
            "ssl-mode" | "ssl_mode" | "sslmode" => self.tls = own_tls(&value)?,
            "ssl-ca" | "ssl_ca" => self.root_cert = value,
            "ssl-cert" | "ssl_cert" => self.cert = value,
            "ssl-key" | "ssl_key" => self.key = value,
            "socket" if value.starts_with('/') => self.host = MysqlHost::Socket(value.into()),
            "socket" => return Err("socket: the path of a unix socket begins with '/'".to_owned()),
            // times are UTC and texts UTF-8, whatever is asked for
            "loc" if value == "UTC" => {}
            "charset" if value.split(',').all(|name| name.starts_with("utf8")) => {}
            name if SILENT.contains(&name) => {}
            name => return self.note(name),
        }
        Ok(())
    }

    /// A name that has no effect.
    fn note(&mut self, name: &str) -> Result<(), String> {
        if !is_name(name) {
            // Not shown: it may be a piece of a password.
            return Err("the name of a parameter: it is more than letters, digits, '_', '.' and \
                        '-'; is a '/' or a '?' before it one of the password's?"
                .to_owned());
        }
        if !self.unknown.iter().any(|known| known == name) {
            self.unknown.push(name.to_owned());
        }
        Ok(())
    }

    fn finish(self) -> Result<MysqlDsn, String> {
        if self.user.is_empty() {
            return Err(format!("the user: none is named; write one, as USER in {MYSQL_FORM}"));
        }
        if self.database.is_empty() {
            return Err(format!(
                "the name of the database: none is given; write one behind the last '/', as in {MYSQL_FORM}"
            ));
        }
        if self.cert.is_empty() != self.key.is_empty() {
            return Err("ssl-cert and ssl-key: one is missing; write both or none".to_owned());
        }
        let tls = match (&self.host, self.tls) {
            // whose socket it is, the file system says
            (MysqlHost::Socket(_), Some(MysqlTls::VerifyCa | MysqlTls::VerifyIdentity)) => {
                MysqlTls::Required
            }
            (_, Some(tls)) => tls,
            // who names authorities wants them asked
            (MysqlHost::Tcp { .. }, None) if !self.root_cert.is_empty() => MysqlTls::VerifyCa,
            (_, None) => MysqlTls::Preferred,
        };
        Ok(MysqlDsn {
            host: self.host,
            user: self.user,
            password: given(self.password),
            database: self.database,
            tls,
            ssl_root_cert: given(self.root_cert).map(Into::into),
            ssl_cert: given(self.cert).map(Into::into),
            ssl_key: given(self.key).map(Into::into),
            unknown: self.unknown,
        })
    }
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// `tls`, as Go's driver has it.
fn go_tls(value: &str) -> Result<Option<MysqlTls>, String> {
    Ok(Some(match value.to_ascii_lowercase().as_str() {
        "" => return Ok(None),
        "true" | "1" => MysqlTls::VerifyIdentity,
        "skip-verify" => MysqlTls::Required,
        "preferred" => MysqlTls::Preferred,
        "false" | "0" => MysqlTls::Disabled,
        _ => {
            return Err(
                "tls: write one of true, skip-verify, preferred, false; what a Go program \
                        registers under a name of its own is not known here: ssl-ca=PATH names an \
                        authority"
                    .to_owned(),
            );
        }
    }))
}

/// `ssl-mode`, as MySQL's own clients have it.
fn own_tls(value: &str) -> Result<Option<MysqlTls>, String> {
    Ok(Some(match value.to_ascii_lowercase().replace('-', "_").as_str() {
        "" => return Ok(None),
        "disabled" => MysqlTls::Disabled,
        "preferred" => MysqlTls::Preferred,
        "required" => MysqlTls::Required,
        "verify_ca" => MysqlTls::VerifyCa,
        "verify_identity" => MysqlTls::VerifyIdentity,
        _ => {
            return Err("ssl-mode: write one of disabled, preferred, required, verify_ca, \
                        verify_identity"
                .to_owned());
        }
    }))
}

#[cfg(test)]
mod tests;
