//! Serving peers and pulling from them, put together: over the configured storage, where that can be
//! read by identity, and over the file log, which knows what is final.
//!
//! Decides nothing that a part could decide.

use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::watch;

use super::StartError;
use crate::channel::auth::KeyDigest;
use crate::clock::Clock;
use crate::config::{Config, PeerConfig};
use crate::event::Seq;
use crate::http::Peers;
use crate::queue::AnyQueue;
use crate::replicate::peer::{self, Address, HttpPeer, Tls};
use crate::replicate::serve::{self, Held, Life, Server, Serving};
use crate::replicate::status::Board;
use crate::replicate::wire::Caller;
use crate::replicate::{OutOfReach, Pace, Peering, Room, run_peer};
use crate::seq::Witness;
use crate::storage::AnyStorage;
use crate::storage::event_store::EventStore;
use crate::task::Spine;
use crate::watermark::Watermark;

/// Room for a page beside the one event that may be as large as a request.
const PAGE_BYTES: usize = 4 << 20;

/// What the rest of the node sees of it.
pub(super) struct Replication {
    /// To be told when this node's id is settled: nothing is served before.
    pub life: watch::Sender<Option<Life>>,
    /// How each peer stands.
    pub board: Arc<Board>,
    /// What HTTP serves.
    pub peers: Peers,
}

/// What all of it is made from.
pub(super) struct Parts<'a> {
    pub config: &'a Config,
    pub queue: &'a Arc<AnyQueue>,
    pub clock: &'a Clock,
    pub spine: &'a Spine,
    pub stop: &'a watch::Sender<bool>,
}

/// Starts to pull where that is on; gives what is to be served.
pub(super) fn start(parts: &Parts<'_>, storage: &AnyStorage) -> Result<Replication, StartError> {
    let (life, settled) = watch::channel(None);
    let board = Arc::new(Board::new(parts.clock.clone()));
    let made = Made { settled, board: board.clone(), held: Arc::default() };
    let serving = match (storage, &**parts.queue) {
        (AnyStorage::Postgres(sql), AnyQueue::File(log)) => {
            Some(made.over(parts, sql, log.marks())?)
        }
        (AnyStorage::Mysql(sql), AnyQueue::File(log)) => {
            Some(made.over(parts, sql, log.marks())?)
        }
        (AnyStorage::Sqlite(sql), AnyQueue::File(log)) => {
            Some(made.over(parts, sql, log.marks())?)
        }
        _ => None,
    };
    let token = parts.config.replication.token.as_deref().map(KeyDigest::of);
    Ok(Replication { life, board, peers: Peers { token, serving } })
}

struct Made {
    settled: watch::Receiver<Option<Life>>,
    board: Arc<Board>,
    held: Arc<Held>,
}

impl Made {
    fn over<S: EventStore + Clone>(
        &self,
        parts: &Parts<'_>,
        storage: &S,
        watermark: Arc<Watermark>,
    ) -> Result<Arc<dyn Serving>, StartError> {
        let Parts { config, queue, clock, .. } = parts;
        let storage = Arc::new(storage.clone());
        if config.replication.enabled {
            self.pull(parts, storage.clone())?;
        }
        let seen = (*queue).clone();
        Ok(Arc::new(Server {
            storage,
            me: config.node_name.clone(),
            life: self.settled.clone(),
            watermark,
            registry: config.channels.clone(),
            held: self.held.clone(),
            clock: (*clock).clone(),
            meet: Box::new(move |caller: &Caller| {
                // what a peer has seen of us is not given out again
                if let Some(known) = &caller.known {
                    seen.seen(known.seq, Witness::Peer);
                }
                Ok(())
            }),
            places: serve::places(),
        }))
    }

    /// A task a peer.
    fn pull<S: EventStore>(&self, parts: &Parts<'_>, storage: Arc<S>) -> Result<(), StartError> {
        let Parts { config, queue, clock, spine, stop } = parts;
        let seen = (*queue).clone();
        // nobody asks yet that stopped channels go on: they are looked at again by themselves
        let (_, resume) = watch::channel(0);
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
            resume,
        });
        let room = Room::default();
        let mut tls = None;
        for configured in &config.replication.peers {
            let source = source(parts, configured, &room, &mut tls)?;
            let run = run_peer(shared.clone(), configured.name.clone(), source, stop.subscribe());
            drop(spine.task(&format!("peer {}", configured.name), run));
        }
        Ok(())
    }
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
