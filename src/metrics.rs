//! All metrics, in a registry of the node's own. The doc comment of each is its help text; the names
//! are held by a golden file.
//!
//! Knows nothing of who counts.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::queue::QueueStats;
use crate::queue::accounts::Counts;

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
    /// Seconds that a sync of the log took.
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

impl Metrics {
    /// The text of `/metrics`.
    ///
    /// # Errors
    /// Where the encoder refuses, which a test excludes.
    pub fn render(&self, stats: &QueueStats) -> prometheus::Result<Vec<u8>> {
        let mut families = self.registry.gather();
        families.extend(queue_families(stats)?.into_iter().filter(|f| !f.get_metric().is_empty()));
        let mut out = Vec::with_capacity(8192);
        TextEncoder::new().encode(&families, &mut out)?;
        Ok(out)
    }
}
