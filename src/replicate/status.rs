//! What is seen of replication: each peer with its state, each of its channels with its lag. Read by
//! the health answer, the metrics and `replicon peers`.
//!
//! Lag is measured: in events by what the peer counted, in seconds by its own clock and the moment of
//! acceptance of the oldest event that is not here yet. Does not know what anybody does about it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::wire::{Answer, age_seconds};
use crate::clock::Clock;
use crate::event::{ChannelName, Micros, Origin, Seq};

/// How a channel stands at a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Nothing has been heard of it yet.
    Unknown,
    /// Everything that was safe is here.
    Current,
    /// More is to come.
    Behind,
    /// It waits and is looked at again now and then.
    Paused,
    /// It waits for an operator.
    Stopped,
}

/// A channel of an origin at a peer.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelStatus {
    /// Whose events; another one than the peer where it relays.
    pub origin: String,
    /// The channel.
    pub channel: String,
    /// How it stands.
    pub state: Standing,
    /// Why, where it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Everything at or below it is here.
    pub cursor: u64,
    /// Up to here the peer has said that everything is final.
    pub safe_seq: Option<u64>,
    /// Events that are not here yet, as the peer counted them; absent while nobody has counted.
    pub lag_events: Option<u64>,
    /// Seconds since the oldest event that is not here yet was accepted; where the peer is silent,
    /// since it was last heard.
    pub lag_seconds: Option<f64>,
    /// Events received, since process start.
    pub events: u64,
    /// Of them, those whose identity stands here with other content.
    pub conflicts: u64,
    /// Of them, those that no table took.
    pub quarantined: u64,
    /// Whether the origin is read again under a new node id.
    pub reading_again: bool,
}

/// A peer.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Its configured name.
    pub peer: String,
    /// Its id, as it was accepted or is being read again.
    pub node_id: Option<String>,
    /// `connected`, `unreachable`, or `stopped`.
    pub state: &'static str,
    /// What is wrong, where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds since it last answered.
    pub last_contact_seconds: Option<f64>,
    /// Bytes received of it, since process start.
    pub bytes: u64,
    /// Its channels.
    pub channels: Vec<ChannelStatus>,
}

#[derive(Debug)]
struct ChannelEntry {
    state: Standing,
    reason: Option<String>,
    cursor: Seq,
    safe: Option<Seq>,
    lag_events: Option<u64>,
    /// By the monotonic clock: what was accepted by then is here, as far as the peer has said.
    had_at: Option<Duration>,
    events: u64,
    conflicts: u64,
    quarantined: u64,
    again: bool,
}

impl Default for ChannelEntry {
    fn default() -> Self {
        Self {
            state: Standing::Unknown,
            reason: None,
            cursor: Seq(0),
            safe: None,
            lag_events: None,
            had_at: None,
            events: 0,
            conflicts: 0,
            quarantined: 0,
            again: false,
        }
    }
}

#[derive(Debug, Default)]
struct PeerEntry {
    node_id: Option<String>,
    reason: Option<String>,
    stopped: bool,
    contact: Option<Duration>,
    bytes: u64,
    channels: BTreeMap<(Origin, ChannelName), ChannelEntry>,
}

/// All of it.
#[derive(Debug)]
pub struct Board {
    clock: Clock,
    peers: Mutex<BTreeMap<Origin, PeerEntry>>,
}

/// A page, as far as it says how far behind we are.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse {
    rows: u64,
    more: bool,
    safe: Option<Seq>,
    behind: Option<u64>,
    /// Seconds by the peer's clock since its last event was accepted.
    age: Option<f64>,
}

impl Glimpse {
    /// Of a page that was asked for with that limit.
    #[must_use]
    pub fn of(answer: &Answer, limit: usize) -> Self {
        let last = answer.rows.last().map(|row| row.received_at);
        let age = |now: Micros| last.map(|at| age_seconds(now, at));
        Self {
            rows: answer.rows.len() as u64,
            more: answer.has_more(limit),
            safe: answer.safe,
            behind: answer.behind,
            age: answer.now.and_then(age),
        }
    }
}

impl Board {
    /// An empty one.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, peers: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Origin, PeerEntry>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer<T>(&self, peer: &Origin, change: impl FnOnce(&mut PeerEntry) -> T) -> T {
        change(self.lock().entry(peer.clone()).or_default())
    }

    fn channel(
        &self,
        peer: &Origin,
        of: &(Origin, ChannelName),
        change: impl FnOnce(&mut ChannelEntry),
    ) {
        self.peer(peer, |entry| change(entry.channels.entry(of.clone()).or_default()));
    }

    /// A peer that is configured, before anything is heard of it.
    pub fn expect(&self, peer: &Origin) {
        self.peer(peer, |_| {});
    }

    /// It has answered, so many bytes in all by now.
    pub fn answered(&self, peer: &Origin, bytes: u64) {
        let now = self.clock.mono();
        self.peer(peer, |entry| {
            entry.contact = Some(now);
            entry.bytes = bytes;
        });
    }

    /// What is wrong with the peer as a whole; `None` where nothing is. Whether that was news.
    pub fn trouble(&self, peer: &Origin, reason: Option<&str>) -> bool {
        self.peer(peer, |entry| {
            // what stopped for good stays so
            if entry.stopped || entry.reason.as_deref() == reason {
                return false;
            }
            entry.reason = reason.map(str::to_owned);
            true
        })
    }

    /// The origin stops for good.
    pub fn stop(&self, peer: &Origin, reason: &str) {
        self.peer(peer, |entry| {
            (entry.stopped, entry.reason) = (true, Some(reason.to_owned()));
        });
    }

    /// The id that the peer goes by.
    pub fn id(&self, peer: &Origin, id: Option<&str>) {
        self.peer(peer, |entry| entry.node_id = id.map(str::to_owned));
    }

    /// How a channel stands. Whether that was news.
    pub fn stands(
        &self,
        peer: &Origin,
        of: &(Origin, ChannelName),
        state: Standing,
        reason: Option<String>,
    ) -> bool {
        let mut news = false;
        self.channel(peer, of, |entry| {
            news = entry.state != state || entry.reason != reason;
            (entry.state, entry.reason) = (state, reason);
        });
        news
    }

    /// Whether the channel is read again under a new id.
    pub fn again(&self, peer: &Origin, of: &(Origin, ChannelName), again: bool) {
        self.channel(peer, of, |entry| entry.again = again);
    }

    /// What is not pulled from the peer any more is forgotten: channels of these origins are.
    pub fn retain(&self, peer: &Origin, pulled: impl Fn(&Origin) -> bool) {
        self.peer(peer, |entry| entry.channels.retain(|(origin, _), _| pulled(origin)));
    }

    /// A page was received and is stored; everything up to `cursor` is here.
    pub fn took(
        &self,
        peer: &Origin,
        of: &(Origin, ChannelName),
        cursor: Seq,
        glimpse: Glimpse,
        aside: (u64, u64),
    ) {
        let now = self.clock.mono();
        self.channel(peer, of, |entry| {
            entry.cursor = cursor;
            entry.safe = glimpse.safe.or(entry.safe);
            entry.events += glimpse.rows;
            entry.conflicts += aside.0;
            entry.quarantined += aside.1;
            if glimpse.more {
                let left = entry.lag_events.map(|lag| lag.saturating_sub(glimpse.rows));
                entry.lag_events = glimpse.behind.or(left);
                // what comes next was accepted no earlier than this page's last event
                let age = glimpse.age.and_then(|age| Duration::try_from_secs_f64(age).ok());
                entry.had_at = age.map(|age| now.saturating_sub(age)).or(entry.had_at);
            } else {
                (entry.lag_events, entry.had_at) = (Some(0), Some(now));
            }
        });
    }

    /// The peer has said that nothing has come since: what is current is current now.
    pub fn quiet(&self, peer: &Origin) {
        let now = self.clock.mono();
        self.peer(peer, |entry| {
            entry.contact = Some(now);
            for channel in entry.channels.values_mut() {
                if channel.state == Standing::Current {
                    channel.had_at = Some(now);
                }
            }
        });
    }

    /// Everything, as of now.
    #[must_use]
    pub fn snapshot(&self) -> Vec<PeerStatus> {
        let now = self.clock.mono();
        let peers = self.lock();
        peers.iter().map(|(name, entry)| entry.status(name, now)).collect()
    }

    /// What is wrong, a line each.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let peers = self.lock();
        let mut lines = Vec::new();
        for (name, entry) in &*peers {
            lines.extend(entry.reason.iter().map(|reason| format!("peer {name}: {reason}")));
            for ((origin, channel), of) in &entry.channels {
                let red = matches!(of.state, Standing::Paused | Standing::Stopped);
                if let (true, Some(reason)) = (red, &of.reason) {
                    lines.push(format!("peer {name}, channel {channel} of {origin}: {reason}"));
                }
            }
        }
        lines
    }
}

impl PeerEntry {
    fn status(&self, name: &Origin, now: Duration) -> PeerStatus {
        let since = |at: Duration| now.saturating_sub(at).as_secs_f64();
        let silent = self.reason.is_some() || self.contact.is_none();
        let channels = self.channels.iter().map(|((origin, channel), entry)| {
            let current = entry.state == Standing::Current && !silent;
            ChannelStatus {
                origin: origin.to_string(),
                channel: channel.to_string(),
                state: entry.state.clone(),
                reason: entry.reason.clone(),
                cursor: entry.cursor.0,
                safe_seq: entry.safe.map(|seq| seq.0),
                lag_events: entry.lag_events,
                lag_seconds: if current { Some(0.0) } else { entry.had_at.map(since) },
                events: entry.events,
                conflicts: entry.conflicts,
                quarantined: entry.quarantined,
                reading_again: entry.again,
            }
        });
        PeerStatus {
            peer: name.to_string(),
            node_id: self.node_id.clone(),
            state: match (self.stopped, silent) {
                (true, _) => "stopped",
                (false, true) => "unreachable",
                (false, false) => "connected",
            },
            reason: self.reason.clone().or_else(|| self.contact.is_none().then(unasked)),
            last_contact_seconds: self.contact.map(since),
            bytes: self.bytes,
            channels: channels.collect(),
        }
    }
}

/// Why a peer that was not asked yet is not connected.
fn unasked() -> String {
    "it has not answered yet".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Name;

    const GLIMPSE: Glimpse =
        Glimpse { rows: 10, more: true, safe: Some(Seq(900)), behind: None, age: Some(60.0) };

    fn board() -> (Board, Clock, Origin, (Origin, ChannelName)) {
        let clock = Clock::manual(Micros(1_790_000_000_000_000));
        clock.advance(Duration::from_secs(1_000));
        let peer = Name::new("dc2").unwrap();
        let of = (peer.clone(), Name::new("a").unwrap());
        (Board::new(clock.clone()), clock, peer, of)
    }

    fn channel(board: &Board) -> ChannelStatus {
        board.snapshot().remove(0).channels.remove(0)
    }

    #[test]
    fn lag_is_what_the_peer_counted_and_how_old_the_oldest_missing_event_is() {
        let (board, clock, peer, of) = board();
        board.answered(&peer, 5);
        board.stands(&peer, &of, Standing::Behind, None);
        board.took(&peer, &of, Seq(10), Glimpse { behind: Some(200), ..GLIMPSE }, (0, 0));
        assert_eq!(channel(&board).lag_events, Some(200));
        board.took(&peer, &of, Seq(20), GLIMPSE, (1, 2));
        let status = channel(&board);
        assert_eq!((status.lag_events, status.events), (Some(190), 20));
        assert_eq!((status.conflicts, status.quarantined), (1, 2));
        clock.advance(Duration::from_secs(5));
        let seconds = channel(&board).lag_seconds.unwrap();
        assert!((seconds - 65.0).abs() < 0.001, "{seconds}");

        board.took(&peer, &of, Seq(900), Glimpse { more: false, ..GLIMPSE }, (0, 0));
        board.stands(&peer, &of, Standing::Current, None);
        let status = channel(&board);
        assert_eq!((status.lag_events, status.lag_seconds), (Some(0), Some(0.0)));
    }

    #[test]
    fn a_silent_peer_makes_the_lag_of_a_current_channel_grow() {
        let (board, clock, peer, of) = board();
        board.answered(&peer, 5);
        board.took(&peer, &of, Seq(900), Glimpse { more: false, ..GLIMPSE }, (0, 0));
        board.stands(&peer, &of, Standing::Current, None);
        clock.advance(Duration::from_secs(20));
        board.quiet(&peer);
        assert!(board.trouble(&peer, Some("refused")));
        assert!(!board.trouble(&peer, Some("refused")), "told once");
        clock.advance(Duration::from_secs(30));
        let status = board.snapshot().remove(0);
        assert_eq!((status.state, status.reason.as_deref()), ("unreachable", Some("refused")));
        let seconds = status.channels[0].lag_seconds.unwrap();
        assert!((seconds - 30.0).abs() < 0.001, "{seconds}");
        assert_eq!(board.troubles(), ["peer dc2: refused"]);
    }

    #[test]
    fn what_waits_is_said_with_its_reason() {
        let (board, _, peer, of) = board();
        let why = || Some("no such column".to_owned());
        assert!(board.stands(&peer, &of, Standing::Paused, why()));
        assert!(!board.stands(&peer, &of, Standing::Paused, why()));
        assert_eq!(board.troubles(), ["peer dc2, channel a of dc2: no such column"]);
        // what a relay lacked is nobody's trouble when the origin itself is back
        let relayed = (Name::new("dc3").unwrap(), of.1.clone());
        board.stands(&peer, &relayed, Standing::Paused, why());
        assert_eq!(board.troubles().len(), 2);
        board.retain(&peer, |origin| *origin == peer);
        assert_eq!(board.troubles(), ["peer dc2, channel a of dc2: no such column"]);
    }
}
