//! # replicon: the map
//!
//! A channel is a log; everything else is a cursor over it.
//!
//! ```text
//! clients ──HTTP──▶ http::ingest ─▶ ingest::Door ─▶ Queue.append ──(durable)──▶ 202
//!                   (key, size)     (validate, one      │  file log | Redis stream
//!                                    identity each)     ▼
//!                                               writer × N ─▶ Storage.append ─▶ Queue.ack
//!                                                                │  sqlite | postgres | mysql | file | noop
//! ```
//!
//! The modules are declared in the order in which data flows; each begins with what it must not know.
//!
//! **An event is posted.** [`http`] accepts the connection, finds the channel, checks the key before
//! it reads the body, reads it within its limits and inflates it. [`ingest`] has [`json`] check the
//! bytes in one pass and [`channel`] the schema, and hands the payloads over as one batch. The queue
//! ([`queue`]) reserves room, encodes the frame in the request's own task, and gives it to the log
//! thread ([`queue::file::appender`]), which gives out identities ([`seq`]), writes all waiting
//! frames, syncs once, counts, and answers all of them: 202.
//!
//! **An event is stored.** A [`writer`] leases what was synced ([`queue::file::reader`]), skips what
//! is a dead letter already, has [`storage`] write it, and acks. The released position is a prefix
//! ([`queue::file::ack`]); a keeper makes it durable and deletes segments that nobody needs.
//!
//! **The node restarts after a crash.** [`queue::file::open`] locks the directory, reads the slots,
//! the segments' headers and the last segment ([`queue::file::recovery`]), draws the next seq above
//! everything that might be in use, and begins one new segment that holds what was found behind the
//! last known sync. Unacked events are leased again under their old seqs; storage skips what it has.
//!
//! **A peer catches up.** [`watermark`] knows, for each channel, up to which seq all is final;
//! [`replicate::serve`] takes that horizon first and then reads ([`storage::event_store`]). There,
//! [`replicate`] runs a task a peer: [`replicate::pull`] decides each step, and a page goes into the
//! tables in one transaction with its cursor.
//!
//! **A storage or a node goes back.** [`writer::history`] tells the storage what is released before the
//! log may forget it, sees where either shows less, writes again what the log holds, and draws a new
//! node id ([`life`]); peers read again from where the histories part.
//!
//! **What must always hold.** 202 means synced here (durable ack). An event gets one identity, before
//! the 202, and no two events ever share one. A request is accepted whole or not at all. An accepted
//! event ends as one row or one dead letter. A record is released only after that. An outage
//! dead-letters nothing. After a failed write or sync of the log its segment is closed for good.
//! Damage is found, bounded and named, and never keeps a node from starting. What uses memory,
//! connections or disk has a ceiling. Every event is accounted for in every scrape. No secret is ever
//! printed.

pub mod event;

pub mod clock;

pub mod task;

pub mod cli;

pub mod config;
pub mod control;

pub mod node;

pub mod http;

pub mod ingest;

pub mod json;

pub mod channel;

pub mod life;
pub mod seq;
pub mod watermark;

pub mod queue;

pub mod fsx;

pub mod writer;

pub mod replicate;
pub mod storage;

pub mod health;

pub mod metrics;

pub mod telemetry;
