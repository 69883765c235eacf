//! Puts PostgreSQL's connection parameters together: libpq's names, meanings and defaults. Pure.
//!
//! Does not know whether they came from a URL or from words. What is wrong is named and never
//! repeated.

use std::net::Ipv6Addr;

use super::keywords::is_name;
use super::{POSTGRES_FORM, PgHost, PostgresDsn, SEVERAL_HOSTS, SslMode};

const DEFAULT_PORT: u16 = 5432;
/// Where libpq looks where no host is named, as distributions build it.
const SOCKET_DIRECTORY: &str =
    if cfg!(target_os = "macos") { "/tmp" } else { "/var/run/postgresql" };

/// An address made of names and values; of two with one name the last one holds.
///
/// # Errors
/// Which part is wrong.
pub fn assemble(given: Vec<(String, String)>) -> Result<PostgresDsn, String> {
    let mut read = Read::default();
    for (name, value) in given {
        read.take(&name, value)?;
    }
    read.finish()
}

/// What was read so far. An empty value is as good as none.
#[derive(Default)]
struct Read {
    host: String,
    hostaddr: String,
    port: String,
    user: String,
    password: String,
    database: String,
    ssl: String,
    root_cert: String,
    cert: String,
    key: String,
    application_name: String,
    options: String,
    search_path: String,
    unknown: Vec<String>,
}

impl Read {
    fn take(&mut self, name: &str, value: String) -> Result<(), String> {
        let held = match name {
            "host" => &mut self.host,
            "hostaddr" => &mut self.hostaddr,
            "port" => &mut self.port,
            "user" => &mut self.user,
            "password" => &mut self.password,
            "dbname" | "database" => &mut self.database,
            "sslmode" => &mut self.ssl,
            "sslrootcert" => &mut self.root_cert,
            "sslcert" => &mut self.cert,
            "sslkey" => &mut self.key,
            "application_name" => &mut self.application_name,
            "options" => &mut self.options,
            // Go's drivers hand it to the server. Without it the tables would be others.
            "search_path" => &mut self.search_path,
            "ssl" if value == "true" => {
                self.ssl = "require".to_owned();
                return Ok(());
            }
            _ => return self.note(name),
        };
        *held = value;
        Ok(())
    }

    /// A name that has no effect.
    fn note(&mut self, name: &str) -> Result<(), String> {
        if !is_name(name) {
            // Not shown: it may be a piece of a password.
            return Err("the name of a parameter: it is more than letters, digits, '_', '.' and \
                        '-'; is something before it missing its quotes or percent signs?"
                .to_owned());
        }
        if !self.unknown.iter().any(|known| known == name) {
            self.unknown.push(name.to_owned());
        }
        Ok(())
    }

    fn finish(mut self) -> Result<PostgresDsn, String> {
        if self.user.is_empty() {
            return Err(format!(
                "the user: none is named; write one, as USER in {POSTGRES_FORM} or as user=USER"
            ));
        }
        if self.host.is_empty() {
            self.host = std::mem::take(&mut self.hostaddr);
        } else if !self.hostaddr.is_empty() {
            self.note("hostaddr")?;
        }
        let (ssl, root_cert) = trust(&self.ssl, self.root_cert)?;
        if self.cert.is_empty() != self.key.is_empty() {
            return Err("sslcert and sslkey: one is missing; write both or none".to_owned());
        }
        let mut options = server_settings(&self.options)?;
        if !self.search_path.is_empty() {
            options.push(("search_path".to_owned(), self.search_path));
        }
        Ok(PostgresDsn {
            host: host(self.host, &self.port)?,
            database: if self.database.is_empty() { self.user.clone() } else { self.database },
            user: self.user,
            password: given(self.password),
            ssl,
            ssl_root_cert: given(root_cert).map(Into::into),
            ssl_cert: given(self.cert).map(Into::into),
            ssl_key: given(self.key).map(Into::into),
            application_name: given(self.application_name),
            options,
            unknown: self.unknown,
        })
    }
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn host(host: String, port: &str) -> Result<PgHost, String> {
    if host.contains(',') || port.contains(',') {
        return Err(SEVERAL_HOSTS.to_owned());
    }
    let port = self::port(port)?;
    if host.is_empty() {
        return Ok(PgHost::Socket { dir: SOCKET_DIRECTORY.into(), port });
    }
    if host.starts_with('/') {
        return Ok(PgHost::Socket { dir: host.into(), port });
    }
    if host.starts_with('@') {
        return Err("the host: an abstract socket cannot be used; write the directory of a unix \
                    socket, or a name"
            .to_owned());
    }
    let number = host.split_once('%').map_or(host.as_str(), |(number, _zone)| number);
    if host.contains(':') && number.parse::<Ipv6Addr>().is_err() {
        return Err(
            "the host: it holds a ':' and is no IPv6 address; a port is written apart, as \
                    port=5432"
                .to_owned(),
        );
    }
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || "/@[]".contains(c)) {
        return Err(
            "the host: write a name, an address, or the directory of a unix socket".to_owned()
        );
    }
    Ok(PgHost::Tcp { host, port })
}

fn port(text: &str) -> Result<u16, String> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0).ok_or_else(|| {
        "the port: write a number from 1 to 65535; in the user and the password of a URL write \
         '/' as %2F, '?' as %3F and '@' as %40"
            .to_owned()
    })
}

/// What `sslmode` means together with `sslrootcert`, as in libpq, and the file of the authorities.
fn trust(mode: &str, root_cert: String) -> Result<(SslMode, String), String> {
    let mode = match mode {
        "" if root_cert == "system" => SslMode::VerifyFull,
        "" | "prefer" => SslMode::Prefer,
        "disable" => SslMode::Disable,
        "allow" => SslMode::Allow,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => {
            return Err(
                "sslmode: write one of disable, allow, prefer, require, verify-ca, verify-full"
                    .to_owned(),
            );
        }
    };
    match (mode, root_cert.as_str()) {
        (SslMode::VerifyFull, "system") => Ok((mode, String::new())),
        // Anybody can have a certificate that the system trusts.
        (_, "system") => Err("sslmode: sslrootcert=system needs sslmode=verify-full".to_owned()),
        // Who names authorities wants them asked.
        (SslMode::Require, file) if !file.is_empty() => Ok((SslMode::VerifyCa, root_cert)),
        _ => Ok((mode, root_cert)),
    }
}

/// The settings of `-c name=value --name=value`, split as the server splits them.
fn server_settings(text: &str) -> Result<Vec<(String, String)>, String> {
    let wrong = || {
        "options: write -c NAME=VALUE, several with a space between; a space in a value is \
         written with a backslash before it"
            .to_owned()
    };
    let mut settings = Vec::new();
    let mut words = arguments(text).into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next().ok_or_else(wrong)?
        } else {
            let behind = word.strip_prefix("-c").or_else(|| word.strip_prefix("--"));
            behind.ok_or_else(wrong)?.to_owned()
        };
        let (name, value) = setting.split_once('=').ok_or_else(wrong)?;
        if !is_name(name) {
            return Err(wrong());
        }
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn arguments(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let taken = if c == '\\' { chars.next() } else { Some(c) };
        word.get_or_insert_with(String::new).extend(taken);
    }
    words.extend(word);
    words
}
