//! The control socket: by it commands reach a running node, which holds its directory alone. A command
//! that holds the directory itself carries out the same requests, by the same code.
//!
//! It lies beside the queue, mode 0600: whoever may open it may change the queue's files anyhow. One
//! JSON line asks, JSON lines answer, `done` or `failed` is the last. Does not know the command line,
//! nor HTTP.

use std::fs::{File, Permissions};
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::event::Seq;
use crate::fsx::parent;
use crate::queue::AnyQueue;
use crate::queue::file::dead::Filter;
use crate::replicate::operate::{Ended, Narrow, Operating, Operation, Tell, Told};
use crate::task;

/// Connections served at once; more wait in the kernel.
const MAX_CONNECTIONS: u32 = 8;
/// The longest request.
const MAX_REQUEST: usize = 64 << 10;
/// The time for a request to come, and for an answer's line to be taken.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest path that the address of a unix socket holds.
const MAX_ADDRESS: usize = 107;
/// Answers on their way.
const REPLIES: usize = 64;

const NO_REPLICATION: &str = "replication is off on this node: set replication_enabled = true, with replication_peer, replication_token and node_name, and restart it";

/// What a node may be asked to show or to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// End the red state that damage left.
    AcknowledgeDamage,
    /// Put dead letters back, as new events.
    RetryDead {
        /// Which.
        filter: Filter,
    },
    /// Give dead letters up.
    DiscardDead {
        /// Which.
        filter: Filter,
    },
    /// Show how the peers stand.
    Peers,
    /// Try rows in quarantine again, then let stopped channels go on.
    RetryQuarantined {
        /// Only of this channel.
        channel: Option<String>,
        /// Only of this origin.
        origin: Option<String>,
    },
    /// Put back this node's own events that are missing here.
    Recover {
        /// The peer that has them.
        peer: String,
    },
}

/// What is answered, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// So much of it is done.
    Progress {
        /// Letters, or rows.
        done: u64,
        /// Of so many.
        of: u64,
    },
    /// How a peer stands, as the health answer shows it.
    Peer {
        /// The peer with its channels.
        peer: serde_json::Value,
    },
    /// A line for people while the work goes on.
    Line {
        /// The line.
        text: String,
    },
    /// A dead letter was put back.
    Redriven {
        /// Its seq.
        old: u64,
        /// The new event's.
        new: u64,
    },
    /// The last line: it is done.
    Done {
        /// To how many.
        count: u64,
        /// The same for people.
        text: String,
    },
    /// The last line: why it is not, or not wholly.
    Failed {
        /// For people.
        text: String,
    },
}

/// What a process has to carry requests out with.
#[derive(Clone)]
pub struct Hands {
    /// The queue that it holds.
    pub queue: Arc<AnyQueue>,
    /// What an operator may ask of replication; nothing where this process does not pull.
    pub replication: Option<Arc<dyn Operating>>,
}

/// Why a running node was not asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens, or this user may not.
    #[error("{path} cannot be reached: {source}", path = path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The request is longer than a node takes.
    #[error("too many seqs for one request; name fewer, or choose by channel and reason")]
    TooLong,
    /// It went away under way.
    #[error(
        "the node went away before it had answered ({0}); look what it has done, then ask again"
    )]
    Broken(String),
}

/// The socket of the node whose `queue_file_path` this is.
#[must_use]
pub fn socket_path(queue_path: &Path) -> PathBuf {
    parent(queue_path).join("replicon.sock")
}

/// A socket that is listened on; its file goes with it.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes it, in place of one that a killed node left: only for whoever holds the directory.
    ///
    /// # Errors
    /// What the system says, and where a file that is no socket has the name.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match path.symlink_metadata() {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("a file that is no socket has this name")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let (address, _open) = address_of(path)?;
        let socket = UnixSocket::new_stream()?;
        socket.bind(address)?;
        // before anybody can connect
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self { listener: socket.listen(MAX_CONNECTIONS)?, path: path.to_owned() })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The path, or where it is too long for an address, one by way of its open directory.
fn address_of(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= MAX_ADDRESS {
        return Ok((path.to_owned(), None));
    }
    let dir = File::open(parent(path))?;
    let name = path.file_name().unwrap_or_default();
    let open = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    Ok((open.join(name), Some(dir)))
}

/// Makes the socket beside a queue that this process holds, and serves it until `stop`. Without one a
/// node runs all the same.
#[must_use]
pub fn start(
    queue_path: &Path,
    hands: Hands,
    stop: watch::Receiver<bool>,
) -> Option<JoinHandle<()>> {
    let path = socket_path(queue_path);
    match Socket::bind(&path) {
        Ok(socket) => Some(task::spawn(serve(socket, hands, stop))),
        Err(e) => {
            tracing::warn!(
                "the control socket {} cannot be made: {e}; this node runs without it, and must be stopped for `replicon log repair --acknowledge`, `replicon dlq retry` and `replicon dlq discard`; `replicon peers` and `replicon recover` do not reach it",
                path.display()
            );
            None
        }
    }
}

/// Answers until `stop` is true, and then ends what is under way, as far as it ends soon.
pub async fn serve(socket: Socket, hands: Hands, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, socket.listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let hands = hands.clone();
                task::spawn(async move {
                    converse(stream, &hands).await;
                    drop(place);
                });
            }
            Err(e) => {
                tracing::error!("the control socket takes no connection: {e}");
                task::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    drop(socket);
    let _ = tokio::time::timeout(DEADLINE, places.acquire_many(MAX_CONNECTIONS)).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // the guard that comes back must not live on across the next wait
    let _ = stop.wait_for(|stop| *stop).await.map(drop);
}

/// One connection: one request, and its answer.
async fn converse(stream: UnixStream, hands: &Hands) {
    let (reading, mut writing) = stream.into_split();
    let request = tokio::time::timeout(DEADLINE, read_request(reading)).await;
    match request.unwrap_or_else(|_| Err("no request came in time".to_owned())) {
        Ok(request) => {
            let (replies, mut heard) = mpsc::channel(REPLIES);
            // its end of the channel goes with it: a client that went away holds nothing up
            let answer = async move {
                while let Some(reply) = heard.recv().await {
                    if write_line(&mut writing, &reply).await.is_err() {
                        break;
                    }
                }
            };
            tokio::join!(execute(hands, request, replies), answer);
        }
        Err(text) => {
            let _ = write_line(&mut writing, &Reply::Failed { text }).await;
        }
    }
}

async fn read_request(stream: OwnedReadHalf) -> Result<Request, String> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(MAX_REQUEST as u64));
    let read = reader.read_until(b'\n', &mut line).await;
    read.map_err(|e| format!("the request cannot be read: {e}"))?;
    if line.last() != Some(&b'\n') {
        return Err(format!("the request was cut off, or is longer than {MAX_REQUEST} bytes"));
    }
    serde_json::from_slice(&line).map_err(|e| {
        format!(
            "the request is not understood ({e}): the command and the node must be of one version"
        )
    })
}

async fn write_line(writing: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let line = line_of(reply)?;
    tokio::time::timeout(DEADLINE, writing.write_all(&line)).await?
}

fn line_of(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

/// Carries out a request with what this process holds. It goes on to its end though nobody hears the
/// replies: whoever asked may have gone, and half of it would be worse.
pub async fn execute(hands: &Hands, request: Request, replies: mpsc::Sender<Reply>) {
    let Hands { queue, replication } = hands;
    let result = match (&**queue, request) {
        (_, Request::Peers) => peers(replication.as_deref(), &replies).await,
        (_, Request::RetryQuarantined { channel, origin }) => {
            let narrow = Narrow { channel, origin };
            operate(replication.as_deref(), &replies, |all, tell| all.retry(narrow, tell)).await
        }
        (_, Request::Recover { peer }) => {
            operate(replication.as_deref(), &replies, |all, tell| all.recover(peer, tell)).await
        }
        (AnyQueue::Memory(_), _) => Err("this node's queue is no log on disk".to_owned()),
        (_, Request::AcknowledgeDamage) => acknowledge(queue.clone()).await,
        (_, Request::RetryDead { filter }) => retry(queue, &filter, &replies).await,
        (AnyQueue::File(file), Request::DiscardDead { filter }) => {
            discarded(file.discard_dead(&filter).await)
        }
        (AnyQueue::Redis(redis), Request::DiscardDead { filter }) => {
            discarded(redis.discard_dead(&filter).await)
        }
    };
    let last = match result {
        Ok((count, text)) => Reply::Done { count, text },
        Err(text) => Reply::Failed { text },
    };
    let _ = replies.send(last).await;
}

/// Tells how every peer stands.
async fn peers(replication: Option<&dyn Operating>, replies: &mpsc::Sender<Reply>) -> Ended {
    let peers = replication.ok_or(NO_REPLICATION)?.peers();
    for peer in &peers {
        let peer = serde_json::to_value(peer).map_err(|e| e.to_string())?;
        let _ = replies.send(Reply::Peer { peer }).await;
    }
    Ok((peers.len() as u64, format!("{} peers", peers.len())))
}

/// Has replication do something, and passes on what it tells meanwhile.
async fn operate(
    replication: Option<&dyn Operating>,
    replies: &mpsc::Sender<Reply>,
    begin: impl FnOnce(&dyn Operating, Tell) -> Operation<'_>,
) -> Ended {
    let (tell, mut told) = mpsc::channel(REPLIES);
    // its end of the channel goes with the work
    let work = begin(replication.ok_or(NO_REPLICATION)?, tell);
    let passing = async {
        while let Some(told) = told.recv().await {
            let reply = match told {
                Told::Progress { done, of } => Reply::Progress { done, of },
                Told::Line(text) => Reply::Line { text },
            };
            let _ = replies.send(reply).await;
        }
    };
    tokio::join!(work, passing).0
}

fn letters(n: u64) -> String {
    if n == 1 { "1 dead letter".to_owned() } else { format!("{n} dead letters") }
}

fn discarded(result: Result<u64, String>) -> Result<(u64, String), String> {
    result.map(|n| (n, format!("discarded: {}", letters(n))))
}

async fn acknowledge(queue: Arc<AnyQueue>) -> Result<(u64, String), String> {
    let acknowledged = task::blocking(move || match &*queue {
        AnyQueue::File(file) => file.acknowledge_damage(),
        AnyQueue::Redis(redis) => redis.acknowledge_damage(),
        AnyQueue::Memory(_) => Ok(0),
    });
    match acknowledged.await {
        Ok(0) => Ok((0, "nothing was reported damaged".to_owned())),
        Ok(n) => {
            let reports = if n == 1 { "report" } else { "reports" };
            let text = format!("acknowledged: {n} {reports} of damage; the red state has ended");
            Ok((n as u64, text))
        }
        Err(e) => Err(format!("node.state cannot be written: {e}; nothing has changed")),
    }
}

/// Puts letters back, and tells of each. What the queue says between two of its waits is sent before
/// it goes on, so that no more than that is ever held.
async fn retry(
    queue: &AnyQueue,
    filter: &Filter,
    replies: &mpsc::Sender<Reply>,
) -> Result<(u64, String), String> {
    let of = match queue {
        AnyQueue::File(file) => file.count_dead(filter).await?,
        AnyQueue::Redis(redis) => redis.count_dead(filter).await?,
        AnyQueue::Memory(_) => 0,
    };
    let said = Mutex::new(Vec::new());
    let mut each =
        |old: Seq, new: Seq| said.lock().unwrap_or_else(PoisonError::into_inner).push((old, new));
    let work = async {
        match queue {
            AnyQueue::File(file) => file.retry_dead(filter, &mut each).await,
            AnyQueue::Redis(redis) => redis.retry_dead(filter, &mut each).await,
            AnyQueue::Memory(_) => Ok(0),
        }
    };
    tokio::pin!(work);
    let take = || std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
    let mut done = 0;
    loop {
        let (ended, put_back) = poll_fn(|cx| {
            let polled = work.as_mut().poll(cx);
            match (polled, take()) {
                (Poll::Ready(result), put_back) => Poll::Ready((Some(result), put_back)),
                (Poll::Pending, put_back) if put_back.is_empty() => Poll::Pending,
                (Poll::Pending, put_back) => Poll::Ready((None, put_back)),
            }
        })
        .await;
        for (old, new) in &put_back {
            let _ = replies.send(Reply::Redriven { old: old.0, new: new.0 }).await;
        }
        done += put_back.len() as u64;
        let _ = replies.send(Reply::Progress { done, of: of.max(done) }).await;
        if let Some(result) = ended {
            return result.map(|n| (n, format!("put back: {}", letters(n))));
        }
    }
}

/// Asks the node that listens at `path`; `hear` gets every reply, the last is `Done` or `Failed`.
///
/// # Errors
/// [`CallError`].
pub async fn call(
    path: &Path,
    request: &Request,
    hear: &mut (dyn FnMut(Reply) + Send),
) -> Result<(), CallError> {
    let unreachable = |source| CallError::Unreachable { path: path.to_owned(), source };
    let broken = |e: io::Error| CallError::Broken(e.to_string());
    let line = line_of(request).map_err(broken)?;
    if line.len() > MAX_REQUEST {
        return Err(CallError::TooLong);
    }
    let (address, _open) = address_of(path).map_err(unreachable)?;
    let mut stream = UnixStream::connect(address).await.map_err(unreachable)?;
    stream.write_all(&line).await.map_err(broken)?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next_line().await.map_err(broken)? {
        let reply: Reply = serde_json::from_str(&line).map_err(|e| broken(e.into()))?;
        let last = matches!(reply, Reply::Done { .. } | Reply::Failed { .. });
        hear(reply);
        if last {
            return Ok(());
        }
    }
    Err(CallError::Broken("the connection ended".to_owned()))
}

/// As [`call`], on a queue that this process holds.
pub async fn here(queue: &Arc<AnyQueue>, request: Request, hear: &mut (dyn FnMut(Reply) + Send)) {
    let (replies, mut heard) = mpsc::channel(REPLIES);
    let hearing = async {
        while let Some(reply) = heard.recv().await {
            hear(reply);
        }
    };
    let hands = Hands { queue: queue.clone(), replication: None };
    tokio::join!(execute(&hands, request, replies), hearing);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::event::Micros;
    use crate::queue::accounts::Ceilings;
    use crate::queue::memory::MemoryQueue;

    fn hands() -> Hands {
        let most = Ceilings { max_events: 10, max_bytes: 1 << 20, channel_share: 1.0 };
        let queue = AnyQueue::Memory(MemoryQueue::new(most, Clock::manual(Micros(0))));
        Hands { queue: Arc::new(queue), replication: None }
    }

    async fn ask(path: &Path, bytes: &[u8]) -> String {
        let (address, _open) = address_of(path).unwrap();
        let mut stream = UnixStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_that_is_none_is_refused_with_a_word_and_the_socket_goes_with_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket_path(&dir.path().join("ingest.log"));
        let (stop, stopping) = watch::channel(false);
        let serving = task::spawn(serve(Socket::bind(&path).unwrap(), hands(), stopping));
        let long = [b"\"".repeat(MAX_REQUEST + 1), b"\n".to_vec()].concat();
        let requests: [(&[u8], &str); 7] = [
            (b"{\"delete_everything\":{}}\n", "of one version"),
            (b"\n", "not understood"),
            (b"\"acknowledge_damage\"\n", "no log on disk"),
            (b"\"peers\"\n", "replication is off"),
            (b"{\"retry_quarantined\":{}}\n", "replication is off"),
            (b"{\"recover\":{\"peer\":\"dc2\"}}\n", "replication is off"),
            (&long, "longer than 65536"),
        ];
        for (request, word) in requests {
            let answer = ask(&path, request).await;
            assert!(answer.starts_with("{\"failed\":") && answer.contains(word), "{answer}");
        }
        stop.send_replace(true);
        serving.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_longer_than_an_address_is_bound_and_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("replicon.sock");
        let (_stop, stopping) = watch::channel(false);
        let serving = task::spawn(serve(Socket::bind(&path).unwrap(), hands(), stopping));
        let mut last = None;
        call(&path, &Request::AcknowledgeDamage, &mut |reply| last = Some(reply)).await.unwrap();
        assert!(matches!(last, Some(Reply::Failed { .. })), "{last:?}");
        serving.abort();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone_and_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replicon.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(Socket::bind(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        std::fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
    }

    #[tokio::test]
    async fn nobody_listening_is_said_so() {
        let path = Path::new("/nowhere/s");
        let called = call(path, &Request::AcknowledgeDamage, &mut |_| {}).await;
        let text = called.unwrap_err().to_string();
        assert!(text.starts_with("/nowhere/s cannot be reached: "), "{text}");
    }
}
