//! What the last segment of an earlier run holds: which frames are known to be synced, which were
//! found behind them, and what is damaged. Reads only.
//!
//! Does not know the slots, nor what is done about damage. The rules stand in the parent.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::log::Frame;
use super::record::{Body, EventsFrame, Head, Kind, Names, open_dead};
use super::segment::{ChannelLoads, Frames, Header, Step};
use crate::event::{ChannelName, Seq};
use crate::fsx::DiskFile;
use crate::queue::accounts::Load;

/// Synced events that can no longer be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The segment's name.
    pub segment: u64,
    /// First seq that may be among them.
    pub from: u64,
    /// Last seq that may be among them.
    pub to: u64,
    /// How many they are.
    pub events: u64,
    /// Whether they are dead letters, in a segment of theirs. Their seqs do not rise, so a range would
    /// say nothing: all of a segment is one report.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub letters: bool,
}

impl Damage {
    /// Of a segment of dead letters.
    #[must_use]
    pub fn of_letters(segment: u64, events: u64) -> Self {
        Self { segment, from: 0, to: 0, events, letters: true }
    }

    /// Whether both report one stretch: found by the start and by the reader, it may begin a frame
    /// earlier or later.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let same_place = match self.letters {
            true => self.events == other.events,
            false => self.from == other.from || (self.to, self.events) == (other.to, other.events),
        };
        (self.segment, self.letters) == (other.segment, other.letters) && same_place
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { segment, from, to, events, letters } = self;
        if *letters {
            return match events {
                0 => write!(
                    f,
                    "what was decided about dead letters in segment {segment:020} of theirs, or all of it, cannot be read"
                ),
                1 => write!(f, "1 dead letter in segment {segment:020} of theirs cannot be read"),
                n => {
                    write!(f, "{n} dead letters in segment {segment:020} of theirs cannot be read")
                }
            };
        }
        write!(
            f,
            "{events} synced events between seq {from} and {to} in segment {segment:020} cannot be read"
        )
    }
}

/// What a segment was found to hold.
#[derive(Debug)]
pub struct Found {
    /// Everything the log held up to `synced_end`, what damage hid included.
    pub totals: ChannelLoads,
    /// The highest offset that a frame bears witness was synced; its end from now on.
    pub synced_end: u64,
    /// The last seq at or before it.
    pub last: Seq,
    /// Whole frames behind it: not known to be synced, perhaps in the page cache alone.
    pub carried: Vec<Frame>,
    /// What is lost before it.
    pub damage: Vec<Damage>,
}

impl Found {
    /// The last seq there is, and how many events the log held up to it.
    #[must_use]
    pub fn reached(&self) -> (Seq, u64) {
        let mut last = self.last;
        let mut events: u64 = self.totals.values().map(|l| l.events).sum();
        for frame in self.carried.iter().filter(|f| f.body.count > 0) {
            last = Seq(frame.first.0 + u64::from(frame.body.count) - 1);
            events += u64::from(frame.body.count);
        }
        (last, events)
    }
}

/// Whose events a frame holds, and what they count; `None` for frames that hold none.
#[must_use]
pub fn counts_of(
    head: &Head,
    payload: &bytes::Bytes,
    names: &mut Names,
) -> Option<(ChannelName, Load)> {
    match head.kind {
        Kind::Events => {
            let frame = EventsFrame::open(head, payload.clone(), names)?;
            let load = frame.load();
            Some((frame.channel, load))
        }
        Kind::Dead => {
            let (_, event) = open_dead(head, payload, names)?;
            Some((event.channel, Load { events: 1, bytes: head.frame_len() }))
        }
        Kind::Seal | Kind::Mark => None,
    }
}

enum Item {
    Frame(Head, Frame),
    Hole,
}

struct Scan {
    found: Found,
    segment: u64,
    /// Not yet known to be synced, in order of offset.
    waiting: VecDeque<(u64, Item)>,
    /// A damaged stretch whose end is not yet known: the seq before it.
    open_hole: Option<Seq>,
    running: u64,
}

/// Scans a whole segment, `len` bytes long, whose frames begin at `start`.
///
/// # Errors
/// What the disk says.
pub fn scan(file: Arc<dyn DiskFile>, header: &Header, start: u64, len: u64) -> io::Result<Found> {
    let mut names = Names::default();
    let mut frames = Frames::new(file, header.salt(), start);
    let found = Found {
        totals: header.before.clone(),
        synced_end: start,
        last: header.last,
        carried: Vec::new(),
        damage: Vec::new(),
    };
    let running = header.total().events;
    let mut scan =
        Scan { found, segment: header.begun, waiting: VecDeque::new(), open_hole: None, running };
    loop {
        match frames.next(len)? {
            Step::End => break,
            Step::Hole(at, _) => scan.waiting.push_back((at, Item::Hole)),
            Step::Frame(at, head, bytes) => {
                let counts = counts_of(&head, &bytes, &mut names);
                let body =
                    Body { kind: head.kind, bytes, crc: head.payload_crc, count: head.count };
                let frame = Frame { first: head.first, body, counts };
                scan.waiting.push_back((at, Item::Frame(head, frame)));
                scan.synced_to(head.synced_to);
            }
        }
    }
    Ok(scan.finish())
}

impl Scan {
    /// Everything before `offset` is now known to have been synced.
    fn synced_to(&mut self, offset: u64) {
        self.found.synced_end = self.found.synced_end.max(offset);
        while self.waiting.front().is_some_and(|(at, _)| *at < self.found.synced_end) {
            match self.waiting.pop_front() {
                Some((_, Item::Hole)) => self.open_hole = Some(self.found.last),
                Some((_, Item::Frame(head, frame))) => self.settle(&head, &frame),
                None => break,
            }
        }
    }

    fn settle(&mut self, head: &Head, frame: &Frame) {
        self.close_hole(head);
        self.running = head.running + u64::from(head.count);
        if head.count > 0 {
            self.found.last = head.last();
        }
        if let Some((channel, load)) = &frame.counts {
            let total = self.found.totals.entry(Some(channel.clone())).or_default();
            *total = total.plus(*load);
        }
    }

    fn close_hole(&mut self, next: &Head) {
        let events = next.running.saturating_sub(self.running);
        if let Some(before) = self.open_hole.take() {
            let to = if next.count > 0 { next.first.0.saturating_sub(1) } else { next.first.0 };
            if events > 0 {
                self.found.damage.push(Damage {
                    segment: self.segment,
                    from: before.0 + 1,
                    to: to.max(before.0 + 1),
                    events,
                    letters: false,
                });
            }
        }
        if events > 0 {
            let hidden = self.found.totals.entry(None).or_default();
            *hidden = hidden.plus(Load { events, bytes: 0 });
            self.running += events;
        }
    }

    fn finish(mut self) -> Found {
        // the frame that bore witness to a hole may itself be among those not known to be synced
        let next = self.waiting.iter().find_map(|(_, item)| match item {
            Item::Frame(head, _) => Some(*head),
            Item::Hole => None,
        });
        if let (Some(head), true) = (next, self.open_hole.is_some()) {
            self.close_hole(&head);
        }
        for (_, item) in self.waiting {
            if let Item::Frame(head, frame) = item
                && head.kind != Kind::Seal
            {
                self.found.carried.push(frame);
            }
        }
        self.found
    }
}
