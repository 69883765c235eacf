//! The queue on Redis or Valkey: a stream that holds every accepted event until it is stored.
//!
//! Does not know schemas, storage or HTTP. Needs Redis 6.2, or any Valkey; what is newer is used where
//! it is there (`WAITAOF`), and never required. The format comes first; code that disagrees is wrong.
//!
//! # Keys (`S` = `queue_redis_stream`, `D` = `queue_redis_dlq_stream`)
//!
//! | key | what it is |
//! | --- | --- |
//! | `S` | a stream; an entry holds events of one request, with consecutive seqs: its id is `<first seq>-0`, its fields are `h` and then a `p` for each event |
//! | `S:owner` | a hash: `origin`, `node_id`, `run` (one start of one process), `beat` (when it last spoke, in seconds by the server's clock) |
//! | `S:counts` | a hash: `run`; `last`, the last seq that was added; `total`, the events in the stream; `entries`, how many hold them; `n:<channel>` and `b:<channel>`, events and bytes of a channel; `biggest`, bytes of payload of the longest entry; `dead_bytes`, `settled_bytes`, `foreign` |
//! | `S:tries` | a hash: how often an event was refused by the storage, by seq |
//! | `D` | a stream of dead letters: `seq`, `code`, `text`, `attempts`, `h`, `p`; or, of an entry that is not ours, `id`, `code`, `text` and its own fields behind them |
//! | `D:states` | a hash by seq (by id, of an entry that is not ours): `<dead, redriven or discarded> <id in D> <bytes> [<new seq>]` |
//!
//! `h` is `1 <r or s> <received_at in microseconds> <channel>`, `p` a payload byte for byte. A request of
//! more than 256 events, or of more than 64 KiB, makes several entries, which are added together. Beside
//! the stream its entries count whole, however many of their events are resolved. The last id of the
//! stream is set to the last seq that was added: so no entry of another writer comes between the seqs of
//! ours.
//!
//! `S` is read by the consumer group `queue_redis_group`, as `queue_redis_consumer`; a channel that is
//! set aside has a consumer of its own, `<consumer>:parked:<channel>`, so that its entries simply stay
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
//! Leases may share an entry; where a part of it is set aside, the entry waits with its channel's
//! consumer, and the rest is in hand.
//!
//! # Releasing
//!
//! An entry leaves the stream when all of its events are resolved. Until then this process knows which
//! are; to a later start all of them come again, and storage finds those that it has. A dead letter is
//! kept as long as its entry may stand, whatever was decided about it: by it its event is known. Where
//! Redis goes back over a letter and the entry stands, its event stays dead in this process, and the
//! letter is kept again before the entry leaves.
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
mod dead_index;
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
mod standing;

pub use address::{Address, Options};
pub use handle::RedisQueue;
pub use letters::read_all;
pub use open::{OpenError, events_left, losses, may_be_left, preflight};
