//! One connection to Redis, the answers that come over it, and why there are none.
//!
//! Does not know what is asked. No text here ever holds a payload or a password.

use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, TlsCertificates, Value,
};

use super::address::{Address, Options};

/// A vanished server's connection is noticed after about a minute, though nothing is sent.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why an answer did not come, or was none that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// No connection, or it ended, or nobody answered in time: what was asked may have been done.
    Silent(String),
    /// The server refused: its code, and what it said. Nothing was done.
    Refused { code: String, text: String },
    /// It answered what nobody understands.
    Odd(String),
}

impl Broken {
    pub fn odd(what: &str) -> Self {
        Self::Odd(format!("Redis answered something else than expected ({what})"))
    }

    /// Whether the server refused with this code; Redis 6 puts a script's line before it.
    pub fn says(&self, word: &str) -> bool {
        match self {
            Self::Refused { code, text } => code == word || text.contains(word),
            Self::Silent(_) | Self::Odd(_) => false,
        }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent(text) | Self::Odd(text) => f.write_str(text),
            Self::Refused { code, text } => write!(f, "{code}: {text}"),
        }
    }
}

impl From<RedisError> for Broken {
    fn from(e: RedisError) -> Self {
        match (e.kind(), e.code()) {
            (ErrorKind::Server(_) | ErrorKind::Extension, Some(code)) => {
                let text = e.detail().unwrap_or_default();
                // Redis repeats the first arguments of a command that it does not know
                let text = text.split(", with args").next().unwrap_or_default();
                Self::Refused { code: code.to_owned(), text: text.to_owned() }
            }
            (ErrorKind::AuthenticationFailed, _) => {
                let text =
                    "the login is refused; look at queue_redis_username and queue_redis_password";
                Self::Refused { code: "AUTH".to_owned(), text: text.to_owned() }
            }
            (ErrorKind::Io, _) => Self::Silent(e.to_string()),
            (_, _) => Self::Silent(format!("no answer from Redis: {}", e.category())),
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Reply(Value);

impl Reply {
    pub fn is_nil(&self) -> bool {
        matches!(self.0, Value::Nil)
    }

    pub fn bytes(self) -> Result<Bytes, Broken> {
        match self.0 {
            Value::BulkString(bytes) => Ok(bytes.into()),
            Value::SimpleString(text) => Ok(text.into_bytes().into()),
            Value::Okay => Ok(Bytes::from_static(b"OK")),
            Value::Int(n) => Ok(n.to_string().into_bytes().into()),
            _ => Err(Broken::odd("no text")),
        }
    }

    pub fn text(self) -> Result<String, Broken> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| Broken::odd("no UTF-8"))
    }

    /// A number, as such or as a text.
    pub fn number(self) -> Result<u64, Broken> {
        match self.0 {
            Value::Int(n) => u64::try_from(n).map_err(|_| Broken::odd("below zero")),
            _ => self.text()?.parse().map_err(|_| Broken::odd("no number")),
        }
    }

    pub fn list(self) -> Result<Vec<Self>, Broken> {
        match self.0 {
            Value::Array(items) | Value::Set(items) => Ok(items.into_iter().map(Self).collect()),
            Value::Map(pairs) => {
                Ok(pairs.into_iter().flat_map(|(k, v)| [Self(k), Self(v)]).collect())
            }
            Value::Nil => Ok(Vec::new()),
            _ => Err(Broken::odd("no list")),
        }
    }

    /// The texts of a flat list.
    pub fn texts(self) -> Result<Vec<String>, Broken> {
        self.list()?.into_iter().map(Self::text).collect()
    }

    /// The pairs of a flat list.
    pub fn pairs(self) -> Result<Vec<(String, String)>, Broken> {
        let mut texts = self.texts()?.into_iter();
        let mut pairs = Vec::new();
        while let (Some(key), Some(value)) = (texts.next(), texts.next()) {
            pairs.push((key, value));
        }
        Ok(pairs)
    }

    /// What a script says: a word, and what follows it.
    pub fn word(self) -> Result<(String, std::vec::IntoIter<Self>), Broken> {
        let mut items = self.list()?.into_iter();
        let word = items.next().ok_or_else(|| Broken::odd("an empty list"))?;
        Ok((word.text()?, items))
    }
}

/// The next of the things that a script says.
pub(super) fn next(items: &mut std::vec::IntoIter<Reply>) -> Result<Reply, Broken> {
    items.next().ok_or_else(|| Broken::odd("a list that is too short"))
}

/// A connection. Clones share it; what is sent first is answered first.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    connection: MultiplexedConnection,
    timeout: Duration,
}

impl Wire {
    /// Connects and logs in, within the timeout.
    pub async fn open(options: &Options) -> Result<Self, Broken> {
        let client = client(options)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.timeout))
            .set_response_timeout(None);
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        let opened = tokio::time::timeout(options.timeout * 2, opening).await;
        let connection = opened.map_err(|_| silent(options.timeout * 2))??;
        Ok(Self { connection, timeout: options.timeout })
    }

    /// Sends a command and waits for its answer, at most so long as a command may take.
    pub async fn ask(&self, command: &Cmd) -> Result<Reply, Broken> {
        self.ask_within(command, self.timeout).await
    }

    /// As [`Wire::ask`], with a timeout of its own.
    pub async fn ask_within(&self, command: &Cmd, timeout: Duration) -> Result<Reply, Broken> {
        let mut connection = self.connection.clone();
        let asked = tokio::time::timeout(timeout, connection.send_packed_command(command));
        let value = asked.await.map_err(|_| silent(timeout))??;
        Ok(Reply(value.extract_error()?))
    }

    /// Sends a command; the answer is awaited for ever. Nothing is sent before the first poll.
    pub async fn send(self, command: Cmd) -> Result<Reply, Broken> {
        let mut connection = self.connection;
        let value = connection.send_packed_command(&command).await?;
        Ok(Reply(value.extract_error()?))
    }

    /// How long a command may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

fn silent(after: Duration) -> Broken {
    Broken::Silent(format!("Redis has not answered within {} ms", after.as_millis()))
}

fn client(options: &Options) -> Result<Client, Broken> {
    let address = match &options.address {
        Address::Tcp { host, port } => ConnectionAddr::Tcp(host.clone(), *port),
        Address::Tls { host, port, .. } => ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure: false,
            tls_params: None,
        },
        Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
    };
    let mut login = RedisConnectionInfo::default().set_db(i64::from(options.db));
    if !options.username.is_empty() {
        login = login.set_username(&options.username);
    }
    match &options.password {
        Some(password) => login = login.set_password(password),
        // a user may have no password, and is logged in all the same
        None if !options.username.is_empty() => login = login.set_password(""),
        None => {}
    }
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
    let info = address.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp);
    match &options.address {
        Address::Tls { roots: Some(roots), .. } => {
            let certificates = TlsCertificates { client_tls: None, root_cert: Some(roots.clone()) };
            Ok(Client::build_with_tls(info, certificates)?)
        }
        _ => Ok(Client::open(info)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_shown_without_the_arguments_of_a_command() {
        let said = "unknown command 'EVALSHA', with args beginning with: 'abc' '{\"secret\":1}'";
        let error = redis::make_extension_error("ERR".to_owned(), Some(said.to_owned()));
        let broken = Broken::from(error);
        assert!(!broken.to_string().contains("secret"), "{broken}");
        assert!(broken.to_string().contains("unknown command 'EVALSHA'"), "{broken}");
    }

    #[test]
    fn a_flat_list_is_read_as_pairs_and_a_script_s_answer_as_a_word() {
        let text = |t: &str| Value::BulkString(t.as_bytes().to_vec());
        let flat = Reply(Value::Array(vec![text("a"), Value::Int(1), text("b"), text("2")]));
        let pairs = flat.clone().pairs().unwrap();
        assert_eq!(pairs, [("a".into(), "1".into()), ("b".into(), "2".into())]);
        let (word, mut rest) = flat.word().unwrap();
        assert_eq!((word.as_str(), next(&mut rest).unwrap().number()), ("a", Ok(1)));
        assert!(Reply(Value::Nil).list().unwrap().is_empty());
        assert!(Reply(Value::Okay).list().is_err());
    }
}
