//! The queue on Redis or Valkey: a stream that holds every accepted event until it is stored.
//!
//! Does not know schemas, storage or HTTP. Needs Redis 6.2, or any Valkey; what is newer is used where
//! it is there (`WAITAOF`), and never required. The format comes first; code that disagrees is wrong.
//!
//! # Keys (`S` = `queue_redis_stream`, `D` = `queue_redis_dlq_stream`)
//!
//! | key | what it is |
//! | --- | --- |
//! | `S` | a stream, an entry an event, with the id `<seq>-0` and the fields `h` and `p` |
//! | `S:owner` | a hash: `origin`, `node_id`, `run` (one start of one process), `beat` (when it last spoke, in seconds by the server's clock) |
//! | `S:counts` | a hash: `run`; `last`, the last seq that was added; `total` and `bytes`, what the stream holds of ours; `n:<channel>` and `b:<channel>`, the same a channel; `biggest`, the longest payload; `dead`, `dead_bytes`, `settled_bytes`, `foreign` |
//! | `S:tries` | a hash: how often an event was refused by the storage, by seq |
//! | `D` | a stream of dead letters: `seq`, `code`, `text`, `attempts`, `h`, `p`; or, of an entry that is not ours, `id`, `code`, `text` and its own fields behind them |
//! | `D:states` | a hash by seq (by id, of an entry that is not ours): `<dead, redriven or discarded> <id in D> <bytes> [<new seq>]` |
//!
//! `h` is `1 <r or s> <received_at in microseconds> <channel>`, `p` the payload byte for byte. `S` is
//! read by the consumer group `queue_redis_group`, as `queue_redis_consumer`; a channel that is set
//! aside has a consumer of its own, `<consumer>:parked:<channel>`, so that its events simply stay
//! pending, in order, and a start finds it set aside.
//!
//! Every key that a script touches is named to it. On a cluster all of them must lie in one slot, so
//! `S` and `D` need the same hash tag: `{replicon}:ingest` and `{replicon}:ingest:dlq`.
//!
//! # Appending
//!
//! One task appends, over one connection that nobody else uses, a few groups under way. A group is one
//! script with the events of some requests: it compares `run` and `last` with what the appender
//! believes, and then adds all of it or nothing. So groups take effect in the order in which they were
//! given seqs, or not at all. A group whose answer is lost is sent again with the same seqs and
//! contents until it is decided: `last` at or above its end means that it took effect. A request whose
//! group is undecided for `queue_redis_timeout_ms` is answered as open. An entry of another writer above
//! ours makes Redis refuse the group's first entry, hence all: its seqs are void, and the next ones are
//! drawn above that entry. Nothing is handed out before its group is decided.
//!
//! # Reading
//!
//! One script reads for a consumer, what is pending first: it compares `run`, so that a reading which
//! comes late hands out nothing. Where the stream holds less than is counted it reads nothing at all,
//! and where another consumer was handed new entries they are handed out once more, to us: so whoever
//! finds nothing new knows that everything up to there is in hand, set aside or resolved. Events go out
//! in the order of their seqs; what comes again after a loss, or was claimed from others, may be lower.
//!
//! # Releasing
//!
//! One script acknowledges, deletes and counts. Where the stream holds nothing but what we count, all
//! below the oldest pending entry goes by `XTRIM MINID`; the rest goes singly. `MAXLEN` never trims.
//!
//! # Loss
//!
//! Every script is told which start of which process asks. Where that is gone, where `last` is lower
//! than what was confirmed, or where the stream holds less than is counted, Redis has lost events: the
//! connection is given up, and what is left is counted before anything else is done. A node that was up
//! knows the range and the number of what is lost; one that was down knows a bound, by `redis.state`
//! beside `node.state`. Seqs go on above all that were ever given.
//!
//! # Entries of others
//!
//! What is not of this form (v1.0.2's, say) is moved whole to `D`, with the reason `foreign entry`, and
//! is never acknowledged otherwise.

mod acks;
mod address;
mod appender;
mod book;
mod claim;
mod connection;
mod dead;
mod durability;
mod entry;
mod handle;
mod inbox;
mod keeper;
mod leases;
mod letters;
mod loss;
mod open;
mod parking;
mod reader;
mod redrive;
mod scripts;
mod shared;

pub use address::{Address, Options};
pub use handle::RedisQueue;
pub use letters::read_all;
pub use open::{OpenError, events_left, losses, may_be_left, preflight};
