//! The file log: every accepted event on this node's own disk before its 202.
//!
//! Does not know schemas, storage or HTTP. The format comes first; code that disagrees is wrong.
//!
//! # Files, beside each other (`P` = `queue_file_path`)
//!
//! | file | what it is |
//! | --- | --- |
//! | `P.<20 digits>` | a segment of the log; the digits are the first seq free when it was begun, so that names sort in order |
//! | `P.dead.<20 digits>` | a segment of the dead-letter log: same format, frames of kind 3 (a letter) and 4 (what became of one) |
//! | `P.parked.<channel>.<20 digits>` | a segment of the log of a channel that is set aside: same format |
//! | `P….new` | a segment being made; never read, removed by the next start |
//! | `P.lock`, `node.state.lock` | held with `flock` by the node |
//! | `queue_file_ack_path` | two alternating slots: how far the log is released |
//! | `node.state` | two alternating slots: who owns the directory, which seqs may be in use, the node's ids, how far the storage was told of released events |
//!
//! All numbers are little endian. CRC is CRC-32C. A *salted* checksum is XORed with a half of the
//! first 8 bytes of the segment's random id, so that another segment's bytes never pass for this
//! one's. Files are never recycled, and no process appends to a file that an earlier one wrote.
//!
//! # Segment
//!
//! ```text
//! header copy 1 | header copy 2 | frame | frame | …
//! ```
//!
//! Both copies are `block` bytes (a multiple of 4096, found in the header; without a readable copy 1
//! every multiple of 4096 up to 1 MiB is tried for copy 2):
//!
//! ```text
//! magic "\xF5RCSEG\r\n" | crc u32 of [12, length) | length u32 | version u16 | log kind u8 | 0
//! | block u32 | id 16 bytes | begun u64 (the digits of the name)
//! | events and bytes before this segment (u64, u64)
//! | previous segment: present u8, begun u64, end u64 | last seq before its frames u64
//! | origin (length u8, bytes)
//! | channels u32 × (length u8, name, events before u64, bytes before u64); "" holds what damage hid
//! ```
//!
//! The checksum is looked at before the version. `end` is the named end of the previous segment:
//! up to there it was synced; what stands behind it is void, or was copied into this segment.
//!
//! # Frame
//!
//! ```text
//!  0 magic F5 52 43 4C (F5 never occurs in UTF-8)
//!  4 kind u8 (1 events, 2 seal, 3 dead letter, 4 mark) | 0 0 0
//!  8 payload length u32 (at most 512 MiB)
//! 12 count u32        events in it
//! 16 first seq u64    their seqs are consecutive
//! 24 running u64      events in the log before it
//! 32 synced_to u64    offset up to which this segment was synced before it was written
//! 40 payload crc u32, salted
//! 44 header crc u32 of [0, 44), salted
//! 48 payload
//! ```
//!
//! Payload of an events frame, one request: `received_at i64 | mode u8 | channel (length u8, bytes) |
//! count × length u32 | the events' bytes`.
//!
//! # Recovery
//!
//! A start reads the headers, the slots and the last segment. A stretch at offset x that is no valid
//! frame is **damage** exactly when a later valid frame has `synced_to > x`, or a next segment names
//! an end beyond x; damage is reported with its seq range and, from the running counts, the number
//! of events in it. Otherwise it is a **torn tail** of requests that were never answered, and is left
//! behind. The start then writes one new segment under a temporary name: a header that names the
//! highest `synced_to` as the last segment's end, then the valid frames found behind it; syncs it,
//! renames it, syncs the directory. Nothing is cut and nothing is copied twice.
//!
//! A log that ends before the last synced seq that its slots bear witness to is reported.
//!
//! A segment is deleted when all of it is released and, where the storage can be read by identity, was
//! told so.

pub mod ack;
pub mod appender;
pub mod dead;
mod end;
pub mod handle;
pub mod log;
pub mod look;
pub mod open;
mod parked;
mod parking;
pub mod reader;
pub mod record;
pub mod recovery;
mod redrive;
mod restore;
pub mod segment;
pub mod slots;
pub mod state;

pub use appender::SyncMode;
pub use handle::{FileQueue, Kept};
pub use open::{OpenError, Options, inspect};
