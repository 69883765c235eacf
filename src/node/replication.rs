//! Serving peers and pulling from them, and keeping this node's own history, put together: over the
//! configured storage, where that can be read by identity, and over the queue, which knows what is
//! final.
//!
//! Decides nothing that a part could decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::watch;

use super::StartError;
use crate::channel::auth::KeyDigest;
use crate::clock::Clock;
use crate::config::{Config, PeerConfig, QueueBackend};
use crate::event::Seq;
use crate::fsx::OsDisk;
use crate::http::Peers;
use crate::life::History;
use crate::queue::AnyQueue;
use crate::queue::file::look::LogFiles;
use crate::replicate::operate::{Operating, Operator};
use crate::replicate::peer::{self, Address, HttpPeer, Tls};
use crate::replicate::serve::{self, Held, Server, Serving};
use crate::replicate::status::Board;
use crate::replicate::wire::Caller;
use crate::replicate::{OutOfReach, Pace, Peering, Room, run_peer};
use crate::seq::Witness;
use crate::storage::AnyStorage;
use crate::storage::history::HistoryStore;
use crate::storage::mend::Mend;
use crate::task::Spine;
use crate::watermark::Watermark;
use crate::writer::history::Keeping;
use crate::writer::{self, Report};

/// Room for a page beside the one event that may be as large as a request.
const PAGE_BYTES: usize = 4 << 20;

/// What the rest of the node sees of it.
pub(super) struct Replication {
    /// How each peer stands.
    pub board: Arc<Board>,
    /// What HTTP serves.
    pub peers: Peers,
    /// What an operator may ask; nothing where nothing is pulled.
    pub operating: Option<Arc<dyn Operating>>,
}

/// What all of it is made from.
pub(super) struct Parts<'a> {
    pub config: &'a Config,
    pub queue: &'a Arc<AnyQueue>,
    pub clock: &'a Clock,
    pub spine: &'a Spine,
    pub stop: &'a watch::Sender<bool>,
    pub history: &'a Arc<History>,
    pub report: &'a Report,
}

/// Starts to pull where that is on; gives what is to be served.
pub(super) fn start(parts: &Parts<'_>, storage: &AnyStorage) -> Result<Replication, StartError> {
    let board = Arc::new(Board::new(parts.clock.clone()));
    let made = Made { board: board.clone(), held: Arc::default() };
    let over = match (storage, parts.queue.marks()) {
        (AnyStorage::Postgres(sql), Some(marks)) => Some(made.over(parts, sql, marks)?),
        (AnyStorage::Mysql(sql), Some(marks)) => Some(made.over(parts, sql, marks)?),
        (AnyStorage::Sqlite(sql), Some(marks)) => Some(made.over(parts, sql, marks)?),
        _ => None,
    };
    let (serving, operating) = over.unzip();
    let token = parts.config.replication.token.as_deref().map(KeyDigest::of);
    let peers = Peers { token, serving };
    Ok(Replication { board, peers, operating: operating.flatten() })
}

/// What is served, and what an operator may ask.
type Over = (Arc<dyn Serving>, Option<Arc<dyn Operating>>);

struct Made {
    board: Arc<Board>,
    held: Arc<Held>,
}

impl Made {
    fn over<S: HistoryStore + Mend + Clone>(
        &self,
        parts: &Parts<'_>,
        storage: &S,
        watermark: Arc<Watermark>,
    ) -> Result<Over, StartError> {
        let Parts { config, queue, clock, spine, stop, history, report } = *parts;
        let storage = Arc::new(storage.clone());
        // from here on the log forgets nothing that the storage was not told
        queue.keep_above(Seq(0), &BTreeMap::new());
        let modes = config.channels.all().map(|channel| (channel.name.clone(), channel.tag()));
        let keeping = Keeping {
            queue: queue.clone(),
            storage: storage.clone(),
            history: history.clone(),
            marks: watermark.clone(),
            log: log_files(config),
            origin: config.node_name.clone(),
            modes: Arc::new(modes.collect()),
            report: report.clone(),
            stop: stop.subscribe(),
        };
        drop(spine.task("history", writer::history::keep(keeping)));
        let pulled = config.replication.enabled.then(|| self.pull(parts, storage.clone()));
        let operating = pulled.transpose()?;
        let serving = Arc::new(Server {
            storage,
            me: config.node_name.clone(),
            life: history.settled(),
            meet: meet(queue.clone(), history.clone(), watermark.clone()),
            watermark,
            registry: config.channels.clone(),
            held: self.held.clone(),
            clock: clock.clone(),
            places: serve::places(),
        });
        Ok((serving, operating))
    }

    /// A task a peer.
    fn pull<S: Mend>(
        &self,
        parts: &Parts<'_>,
        storage: Arc<S>,
    ) -> Result<Arc<dyn Operating>, StartError> {
        let Parts { config, queue, clock, spine, stop, .. } = parts;
        let seen = (*queue).clone();
        let (resume, resumed) = watch::channel(0);
        let shared = Arc::new(Peering {
            storage,
            me: config.node_name.clone(),
            registry: config.channels.clone(),
            clock: (*clock).clone(),
            pace: Pace {
                batch_limit: config.replication.batch_limit,
                poll_interval: config.replication.poll_interval,
            },
            out_of_reach: OutOfReach::default(),
            held: self.held.clone(),
            board: self.board.clone(),
            seen: Box::new(move |seq: Seq| seen.seen(seq, Witness::Peer)),
            resume: resumed,
            life: parts.history.settled(),
        });
        let room = Room::default();
        let mut tls = None;
        let mut sources = BTreeMap::new();
        for configured in &config.replication.peers {
            self.board.expect(&configured.name);
            // connections of its own: pulling never waits for an operator
            let asked = source(parts, configured, &room, &mut tls)?;
            sources.insert(configured.name.clone(), asked);
            let source = source(parts, configured, &room, &mut tls)?;
            let run = run_peer(shared.clone(), configured.name.clone(), source, stop.subscribe());
            drop(spine.task(&format!("peer {}", configured.name), run));
        }
        let history = parts.history.clone();
        Ok(Arc::new(Operator::new(shared, sources, history, resume, stop.subscribe())))
    }
}

/// What a caller knows of this node is not given out again; one that has seen what this node does not
/// know shows that it went back.
fn meet(
    queue: Arc<AnyQueue>,
    history: Arc<History>,
    watermark: Arc<Watermark>,
) -> Box<serve::Meet> {
    Box::new(move |caller: &Caller| {
        let Some(known) = &caller.known else { return Ok(()) };
        let shown = watermark.with(|marks| marks.may_have_shown(known.seq));
        queue.seen(known.seq, Witness::Peer);
        if !history.meets(&known.id, shown) {
            return Ok(());
        }
        Err(format!(
            "{} has read events of this node, up to seq {} of node id {}, that this node does not know: it went back, and goes by a new id in a moment",
            caller.name, known.seq, known.id
        ))
    })
}

/// Where the log lies, if the queue is one.
fn log_files(config: &Config) -> Option<LogFiles> {
    (config.queue.backend == QueueBackend::File).then(|| LogFiles {
        disk: OsDisk::shared(),
        path: config.queue.path.clone(),
        ack_path: config.queue.ack_path.clone(),
        origin: config.node_name.clone(),
    })
}

fn source(
    parts: &Parts<'_>,
    configured: &PeerConfig,
    room: &Room,
    made: &mut Option<Tls>,
) -> Result<HttpPeer, StartError> {
    let config = parts.config;
    let wrong = |why: String| StartError::Peer { peer: configured.name.to_string(), why };
    let address = Address::parse(&configured.url).map_err(|e| wrong(e.to_string()))?;
    if address.tls && made.is_none() {
        *made = Some(peer::tls().map_err(|e| wrong(e.to_string()))?);
    }
    let token = config.replication.token.as_deref().unwrap_or_default();
    let mut token = HeaderValue::from_str(token)
        .map_err(|_| wrong("replication_token holds characters that no header may".to_owned()))?;
    token.set_sensitive(true);
    Ok(HttpPeer::new(peer::Options {
        tls: made.clone().filter(|_| address.tls),
        address,
        token,
        timeout: config.replication.http_timeout,
        most_page: config.http.max_body_bytes.max(PAGE_BYTES) + PAGE_BYTES,
        room: room.clone(),
        clock: parts.clock.clone(),
    }))
}
