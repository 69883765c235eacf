//! All metrics, in a registry of the node's own. The doc comment of each is its help text; the names
//! are held by a golden file.
//!
//! Knows nothing of who counts.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::queue::QueueStats;
use crate::queue::accounts::Counts;
use crate::replicate::status::{ChannelStatus, PeerStatus, Standing};

/// From 50 µs, a sync on a fast disk, to about 26 s.
fn seconds(name: &str, help: &str) -> prometheus::Result<Histogram> {
    let buckets = prometheus::exponential_buckets(0.000_05, 2.0, 20)?;
    Histogram::with_opts(HistogramOpts::new(name, help.trim()).buckets(buckets))
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ty = $make:expr;)+) => {
        /// Everything that is counted as it happens.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// All of them, at zero.
            ///
            /// # Errors
            /// Where a name or a label is not one, which a test excludes.
            pub fn new() -> prometheus::Result<Self> {
                let registry = Registry::new();
                $(
                    let help = concat!($($help),+);
                    let make: fn(&str) -> prometheus::Result<$kind> = $make;
                    let $field = make(help.trim())?;
                    registry.register(Box::new($field.clone()))?;
                )+
                Ok(Self { registry, $($field),+ })
            }
        }
    };
}

metrics! {
    /// Requests to the ingest route, by channel (empty where there is none of that name) and status.
    requests: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("replicon_http_requests_total", help), &["channel", "status"]);
    /// Connections open now.
    connections: IntGauge = |help| IntGauge::new("replicon_http_connections", help);
    /// Connections closed because a deadline passed or the limit was reached.
    closed_connections: IntCounterVec = |help| IntCounterVec::new(
        Opts::new("replicon_http_connections_closed_total", help), &["reason"]);
    /// Earlier members of a key given twice, cut out of accepted payloads.
    cut_members: IntCounter = |help| IntCounter::new("replicon_json_members_cut_total", help);
    /// Seconds from a whole body to its answer 202.
    ack_seconds: Histogram = |help| seconds("replicon_ack_seconds", help);
    /// Seconds that a sync of the log took; on Redis, that a group of requests was under way.
    sync_seconds: Histogram = |help| seconds("replicon_log_sync_seconds", help);
    /// Seconds that a write to storage took, failed ones included.
    write_seconds: Histogram = |help| seconds("replicon_storage_write_seconds", help);
}

type Pick = fn(&Counts) -> u64;

const EVENT_COUNTERS: [(&str, &str, Pick); 5] = [
    ("replicon_events_accepted_total", "Events made durable and answered with 202.", |c| {
        c.accepted
    }),
    ("replicon_events_recovered_total", "Events found unwritten in the queue at start.", |c| {
        c.recovered
    }),
    ("replicon_events_stored_total", "Events that storage confirmed.", |c| c.stored),
    ("replicon_events_dead_lettered_total", "Events kept as dead letters.", |c| c.dead_lettered),
    (
        "replicon_events_lost_total",
        "Events in damaged stretches of the log, or that Redis has lost.",
        |c| c.lost,
    ),
];

const QUEUE_GAUGES: [(&str, &str, Pick); 2] = [
    ("replicon_queue_events", "Events in the queue.", |c| c.queued),
    ("replicon_queue_bytes", "Bytes that the queue's events take.", |c| c.queued_bytes),
];

/// The queue's counts, all of one moment.
fn queue_families(stats: &QueueStats) -> prometheus::Result<Vec<MetricFamily>> {
    let mut families = Vec::new();
    for (name, help, pick) in EVENT_COUNTERS {
        let vec = IntCounterVec::new(Opts::new(name, help), &["channel"])?;
        for (channel, counts) in &stats.channels {
            let label = channel.as_ref().map_or("", |name| name.as_str());
            vec.with_label_values(&[label]).inc_by(pick(counts));
        }
        families.extend(vec.collect());
    }
    for (name, help, pick) in QUEUE_GAUGES {
        let vec = IntGaugeVec::new(Opts::new(name, help), &["channel"])?;
        for (channel, counts) in &stats.channels {
            let label = channel.as_ref().map_or("", |name| name.as_str());
            vec.with_label_values(&[label]).set(i64::try_from(pick(counts)).unwrap_or(i64::MAX));
        }
        families.extend(vec.collect());
    }
    Ok(families)
}

/// Name, help, and how it is read; what is not known yet has no series.
type Gauge<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);
/// Name, help, and how it is read; since process start.
type Counter<T> = (&'static str, &'static str, fn(&T) -> u64);

const OF_PEER: &[&str] = &["peer"];
const OF_CHANNEL: &[&str] = &["peer", "origin", "channel"];
const OF_STATE: &[&str] = &["peer", "origin", "channel", "state"];

const PEER_GAUGES: [Gauge<PeerStatus>; 2] = [
    ("replicon_peer_up", "Whether the peer answers as it should: 1, else 0.", |peer| {
        Some(f64::from(u8::from(peer.state == "connected")))
    }),
    ("replicon_peer_last_contact_seconds", "Seconds since the peer last answered.", |peer| {
        peer.last_contact_seconds
    }),
];

const PEER_COUNTERS: [Counter<PeerStatus>; 1] =
    [("replicon_peer_received_bytes_total", "Bytes received of the peer.", |peer| peer.bytes)];

const CHANNEL_GAUGES: [Gauge<ChannelStatus>; 2] = [
    ("replicon_replication_lag_events", "Events that are not here yet.", |of| {
        of.lag_events.map(|events| events as f64)
    }),
    (
        "replicon_replication_lag_seconds",
        "Seconds since the oldest event that is not here yet was accepted.",
        |of| of.lag_seconds,
    ),
];

const CHANNEL_COUNTERS: [Counter<ChannelStatus>; 3] = [
    ("replicon_replication_events_total", "Events received of the peer.", |of| of.events),
    (
        "replicon_replication_conflicts_total",
        "Of them, those whose identity stands here with other content.",
        |of| of.conflicts,
    ),
    ("replicon_replication_quarantined_total", "Of them, those that no table took.", |of| {
        of.quarantined
    }),
];

const STATE: (&str, &str) = (
    "replicon_replication_channel_state",
    "How a channel stands at the peer: 1 for the state that it is in, else 0.",
);

const STATES: [(Standing, &str); 5] = [
    (Standing::Unknown, "unknown"),
    (Standing::Current, "current"),
    (Standing::Behind, "behind"),
    (Standing::Paused, "paused"),
    (Standing::Stopped, "stopped"),
];

/// One to whom series belong, with the values of their labels.
type Labelled<'a, T> = (Vec<&'a str>, &'a T);

fn gauges<T>(
    (name, help, pick): Gauge<T>,
    labels: &[&str],
    all: &[Labelled<'_, T>],
) -> prometheus::Result<Vec<MetricFamily>> {
    let vec = GaugeVec::new(Opts::new(name, help), labels)?;
    for (values, of) in all {
        if let Some(value) = pick(of) {
            vec.with_label_values(values).set(value);
        }
    }
    Ok(vec.collect())
}

fn counters<T>(
    (name, help, pick): Counter<T>,
    labels: &[&str],
    all: &[Labelled<'_, T>],
) -> prometheus::Result<Vec<MetricFamily>> {
    let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
    for (values, of) in all {
        vec.with_label_values(values).inc_by(pick(of));
    }
    Ok(vec.collect())
}

/// A series for each state a channel may be in, so that one that it has left shows 0.
fn states(all: &[Labelled<'_, ChannelStatus>]) -> prometheus::Result<Vec<MetricFamily>> {
    let (name, help) = STATE;
    let vec = IntGaugeVec::new(Opts::new(name, help), OF_STATE)?;
    for (values, of) in all {
        for (state, word) in &STATES {
            let values: Vec<&str> = values.iter().copied().chain([*word]).collect();
            vec.with_label_values(&values).set(i64::from(of.state == *state));
        }
    }
    Ok(vec.collect())
}

fn labels_of<'a>(peer: &'a PeerStatus, of: &'a ChannelStatus) -> Vec<&'a str> {
    vec![peer.peer.as_str(), of.origin.as_str(), of.channel.as_str()]
}

/// How each peer stands, as the health answer has it.
fn replication_families(snapshot: &[PeerStatus]) -> prometheus::Result<Vec<MetricFamily>> {
    let peers: Vec<Labelled<'_, PeerStatus>> =
        snapshot.iter().map(|peer| (vec![peer.peer.as_str()], peer)).collect();
    let channels: Vec<Labelled<'_, ChannelStatus>> = snapshot
        .iter()
        .flat_map(|peer| peer.channels.iter().map(move |of| (peer, of)))
        .map(|(peer, of)| (labels_of(peer, of), of))
        .collect();
    let mut families = Vec::new();
    for gauge in PEER_GAUGES {
        families.extend(gauges(gauge, OF_PEER, &peers)?);
    }
    for counter in PEER_COUNTERS {
        families.extend(counters(counter, OF_PEER, &peers)?);
    }
    for gauge in CHANNEL_GAUGES {
        families.extend(gauges(gauge, OF_CHANNEL, &channels)?);
    }
    for counter in CHANNEL_COUNTERS {
        families.extend(counters(counter, OF_CHANNEL, &channels)?);
    }
    families.extend(states(&channels)?);
    Ok(families)
}

impl Metrics {
    /// The text of `/metrics`, with what the queue and the peers show at this moment.
    ///
    /// # Errors
    /// Where the encoder refuses, which a test excludes.
    pub fn render(&self, stats: &QueueStats, peers: &[PeerStatus]) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        let looked = queue_families(stats)?.into_iter().chain(replication_families(peers)?);
        families.extend(looked.filter(|family| !family.get_metric().is_empty()));
        let mut out = Vec::with_capacity(8192);
        TextEncoder::new().encode(&families, &mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(origin: &str, state: Standing, lag: Option<(u64, f64)>) -> ChannelStatus {
        ChannelStatus {
            origin: origin.to_owned(),
            channel: "events_raw".to_owned(),
            state,
            reason: None,
            cursor: 10,
            safe_seq: Some(20),
            lag_events: lag.map(|(events, _)| events),
            lag_seconds: lag.map(|(_, seconds)| seconds),
            events: 7,
            conflicts: 1,
            quarantined: 2,
            reading_again: false,
        }
    }

    fn peer(state: &'static str, contact: Option<f64>, channels: Vec<ChannelStatus>) -> PeerStatus {
        PeerStatus {
            peer: "dc2".to_owned(),
            node_id: None,
            state,
            reason: None,
            last_contact_seconds: contact,
            bytes: 4_096,
            channels,
        }
    }

    /// The lines that peers make, sorted.
    fn lines(peers: &[PeerStatus]) -> Vec<String> {
        let text = Metrics::new().unwrap().render(&QueueStats::default(), peers).unwrap();
        let text = String::from_utf8(text).unwrap();
        let ours = |line: &&str| {
            line.starts_with("replicon_peer_") || line.starts_with("replicon_replication_")
        };
        let mut lines: Vec<String> = text.lines().filter(ours).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn each_channel_of_a_peer_shows_its_lag_and_what_came_of_its_events() {
        let own = channel("dc2", Standing::Behind, Some((300, 1.5)));
        let relayed = channel("dc3", Standing::Current, Some((0, 0.0)));
        let lines = lines(&[peer("connected", Some(0.25), vec![own, relayed])]);
        let of = |origin: &str| format!("channel=\"events_raw\",origin=\"{origin}\",peer=\"dc2\"");
        let mut want = vec![
            "replicon_peer_up{peer=\"dc2\"} 1".to_owned(),
            "replicon_peer_last_contact_seconds{peer=\"dc2\"} 0.25".to_owned(),
            "replicon_peer_received_bytes_total{peer=\"dc2\"} 4096".to_owned(),
            format!("replicon_replication_lag_events{{{}}} 300", of("dc2")),
            format!("replicon_replication_lag_seconds{{{}}} 1.5", of("dc2")),
            format!("replicon_replication_lag_events{{{}}} 0", of("dc3")),
            format!("replicon_replication_lag_seconds{{{}}} 0", of("dc3")),
        ];
        for (origin, stands) in [("dc2", "behind"), ("dc3", "current")] {
            let of = of(origin);
            for (name, value) in [("events", 7), ("conflicts", 1), ("quarantined", 2)] {
                want.push(format!("replicon_replication_{name}_total{{{of}}} {value}"));
            }
            for word in ["unknown", "current", "behind", "paused", "stopped"] {
                let (name, value) = (STATE.0, u8::from(word == stands));
                want.push(format!("{name}{{{of},state=\"{word}\"}} {value}"));
            }
        }
        want.sort_unstable();
        assert_eq!(lines, want);
    }

    #[test]
    fn what_is_not_known_of_a_peer_is_not_shown_as_nothing() {
        let silent = channel("dc2", Standing::Unknown, None);
        let lines = lines(&[peer("unreachable", None, vec![silent])]);
        let has = |part: &str| lines.iter().any(|line| line.contains(part));
        assert!(has("replicon_peer_up{peer=\"dc2\"} 0"), "{lines:#?}");
        assert!(has("state=\"unknown\"} 1"), "{lines:#?}");
        assert!(!has("last_contact_seconds") && !has("lag_"), "{lines:#?}");
    }

    #[test]
    fn a_node_without_peers_shows_none() {
        assert_eq!(lines(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_state_has_the_word_that_the_health_answer_has() {
        for (state, word) in &STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), *word);
        }
    }
}
