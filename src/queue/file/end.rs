//! Where the log of an earlier run ends: from its segments, from what was released, and from what its
//! slots bear witness to. Pure, but for showing readers the segments.
//!
//! Does not know how segments are found, nor what is done about damage.

use super::log::{Frame, Index, SegmentEnd};
use super::recovery::{Damage, Found};
use super::segment::{ChannelLoads, Header};
use crate::event::Seq;
use crate::queue::accounts::Load;

/// The segments that were found.
pub(super) struct Segments {
    /// Readable ones in order, with their headers.
    pub headers: Vec<Header>,
    /// What the last readable one holds.
    pub last: Option<Found>,
    /// The highest name, readable or not.
    pub highest: u64,
}

/// Where the log ends, as far as its segments tell.
pub(super) struct LogEnd {
    /// The last segment and its end.
    pub previous: Option<(u64, u64)>,
    /// Everything the log ever held, carried frames not included.
    pub totals: ChannelLoads,
    /// The last seq at or before that end.
    pub last: Seq,
    /// The last seq of all, carried frames included.
    pub reached: Seq,
    /// Whole frames behind the end.
    pub carried: Vec<Frame>,
    /// What is lost before it.
    pub damage: Vec<Damage>,
}

/// From the segments, and from what was released.
pub(super) fn log_end(segments: &Segments, released: Option<&(Seq, ChannelLoads)>) -> LogEnd {
    match (&segments.last, segments.headers.last()) {
        (Some(found), Some(header)) => LogEnd {
            previous: Some((header.begun, found.synced_end)),
            totals: found.totals.clone(),
            last: found.last,
            reached: found.reached().0,
            carried: found.carried.clone(),
            damage: found.damage.clone(),
        },
        // no segment is left: what was released is all that is known
        _ => {
            let (last, totals) = released.cloned().unwrap_or_default();
            let (carried, damage) = (Vec::new(), Vec::new());
            LogEnd { previous: None, totals, last, reached: last, carried, damage }
        }
    }
}

/// Shows readers the segments, each to its named end.
pub(super) fn index_segments(index: &Index, segments: &Segments, end: &LogEnd) {
    for (i, header) in segments.headers.iter().enumerate() {
        let begun = header.begun;
        let named = segments.headers[i + 1..].iter().find_map(|next| next.previous);
        let end = match (named, end.previous) {
            (Some((of, end)), _) if of == begun => end,
            (_, Some((of, end))) if of == begun => end,
            // its successor is gone, and the end with it: read to the end of the file
            _ => u64::MAX,
        };
        index.push(SegmentEnd { begun, end, closed: true });
    }
}

/// A log that ends before the last seq that the ack record knows to have been synced lost its tail.
pub(super) fn compare_with_witness(
    end: &mut LogEnd,
    witness: Option<(u64, u64)>,
) -> Option<Damage> {
    let (seq, events) = witness?;
    let carried: u64 = end.carried.iter().map(|f| u64::from(f.body.count)).sum();
    let have = end.totals.values().map(|l| l.events).sum::<u64>() + carried;
    if seq <= end.reached.0 || events <= have {
        return None;
    }
    let missing = events - have;
    let hidden = end.totals.entry(None).or_default();
    *hidden = hidden.plus(Load { events: missing, bytes: 0 });
    let segment = end.previous.map_or(0, |(begun, _)| begun);
    let damage =
        Damage { segment, from: end.reached.0 + 1, to: seq, events: missing, letters: false };
    end.last = end.last.max(Seq(seq));
    Some(damage)
}

/// Everything the log ever held, carried frames included.
pub(super) fn counts_with(end: &LogEnd) -> ChannelLoads {
    let mut counts = end.totals.clone();
    for (channel, load) in end.carried.iter().filter_map(|f| f.counts.as_ref()) {
        let total = counts.entry(Some(channel.clone())).or_default();
        *total = total.plus(*load);
    }
    counts
}
