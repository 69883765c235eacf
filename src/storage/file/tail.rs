//! Reading a file of lines back from its end: what of it stands, what is torn, what is not ours.
//! Reads only.
//!
//! Does not know how lines are written but for their first bytes.

use std::io;

use crate::event::{MAX_SEQ, Origin, Seq};
use crate::fsx::{DiskFile, read_full};

const CHUNK: u64 = 256 << 10;

/// What the end of the file looks like.
#[derive(Debug, PartialEq, Eq)]
pub struct Tail {
    /// The last seq of ours that stands.
    pub last: Option<Seq>,
    /// Where the next line goes.
    pub end: u64,
    /// How many bytes behind `end` are to be cut.
    pub cut: Option<u64>,
    /// Where the lines begin that nobody has confirmed: what stands from here on may be in the page
    /// cache alone.
    pub unconfirmed: u64,
    /// The last line is not ours and lacks its line feed.
    pub needs_feed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Whole, ours.
    Ours(Seq),
    /// Whole JSON without our identity.
    Foreign,
    /// No JSON: what a torn or lost page leaves.
    Broken {
        /// It begins as a line of ours does.
        ours: bool,
    },
}

/// Reads back to the last line below `first_unacked`, or to a line that is not ours.
pub fn read_back(file: &dyn DiskFile, origin: &Origin, first_unacked: Seq) -> io::Result<Tail> {
    let len = file.len()?;
    let prefix = prefix(origin);
    let mut file = Backwards::new(file);
    let feed = file.last_feed(len)?;
    let mut lines: Vec<(u64, Line)> = Vec::new();
    let mut at = feed;
    // from the last whole line back to the first that needs no more looking at
    let mut floor = None;
    while at > 0 {
        let start = file.last_feed(at - 1)?;
        let line = classify(&file.read(start, at - 1)?, &prefix);
        if line == Line::Foreign || matches!(line, Line::Ours(seq) if seq < first_unacked) {
            floor = Some(line);
            break;
        }
        lines.push((start, line));
        at = start;
    }
    let unconfirmed = at;
    let torn = file.read(feed, len)?;
    let mut ours_before = matches!(floor, Some(Line::Ours(_)));
    let mut last = match floor {
        Some(Line::Ours(seq)) => Some(seq),
        _ => None,
    };
    // whose garbage it is nobody can tell; if ours, events are missing before the next line
    let mut gap = false;
    for (start, line) in lines.into_iter().rev() {
        match line {
            Line::Ours(seq) if !gap && last.is_none_or(|l| seq > l) => {
                last = Some(seq);
                ours_before = true;
            }
            // garbage that nothing of ours precedes, and that does not look like ours, stays
            Line::Broken { ours: false } if !ours_before => gap = true,
            _ => {
                return Ok(Tail {
                    last,
                    end: start,
                    cut: Some(len - start),
                    unconfirmed,
                    needs_feed: false,
                });
            }
        }
    }
    let tail = settle_torn(&torn, &prefix, feed, len, last, ours_before);
    Ok(Tail { unconfirmed, ..tail })
}

/// What to do with the bytes after the last line feed.
fn settle_torn(
    torn: &[u8],
    prefix: &[u8],
    feed: u64,
    len: u64,
    last: Option<Seq>,
    ours_before: bool,
) -> Tail {
    if torn.is_empty() {
        return Tail { last, end: len, cut: None, unconfirmed: len, needs_feed: false };
    }
    let n = torn.len().min(prefix.len());
    if ours_before || torn[..n] == prefix[..n] {
        return Tail {
            last,
            end: feed,
            cut: Some(len - feed),
            unconfirmed: feed,
            needs_feed: false,
        };
    }
    Tail { last, end: len, cut: None, unconfirmed: len, needs_feed: true }
}

/// Whether a line of ours with this seq stands before `end`. Seqs rise, so the search ends early.
pub fn stands(file: &dyn DiskFile, end: u64, origin: &Origin, seq: Seq) -> io::Result<bool> {
    let prefix = prefix(origin);
    let mut file = Backwards::new(file);
    let mut at = end;
    while at > 0 {
        let start = file.last_feed(at - 1)?;
        match classify(&file.read(start, at - 1)?, &prefix) {
            Line::Ours(found) if found == seq => return Ok(true),
            Line::Ours(found) if found < seq => return Ok(false),
            Line::Foreign => return Ok(false),
            _ => at = start,
        }
    }
    Ok(false)
}

/// Which of these seqs, which rise, no line of ours before `end` has. Those below our first line are
/// not among them: it may be that their lines were moved away with what stood before it.
pub fn missing(
    file: &dyn DiskFile,
    end: u64,
    origin: &Origin,
    seqs: &[Seq],
) -> io::Result<Vec<Seq>> {
    let prefix = prefix(origin);
    let Some((_, first)) = Forwards::new(file, 0, end).ours(&prefix)? else {
        return Ok(Vec::new());
    };
    let mut wanted = seqs.iter().copied().filter(|seq| *seq >= first).peekable();
    let Some(lowest) = wanted.peek().copied() else { return Ok(Vec::new()) };
    // our lines rise: all that begin before `low` are below the lowest
    let (mut low, mut high) = (0, end);
    while high - low > CHUNK {
        let middle = low + (high - low) / 2;
        let mut lines = Forwards::new(file, middle, high);
        // the middle lies within a line
        lines.next()?;
        match lines.ours(&prefix)? {
            Some((start, seq)) if seq < lowest => low = start,
            _ => high = middle,
        }
    }
    let mut lines = Forwards::new(file, low, end);
    let mut missing = Vec::new();
    while wanted.peek().is_some() {
        let Some((_, found)) = lines.ours(&prefix)? else { break };
        while let Some(seq) = wanted.next_if(|seq| *seq < found) {
            missing.push(seq);
        }
        wanted.next_if_eq(&found);
    }
    missing.extend(wanted);
    Ok(missing)
}

fn prefix(origin: &Origin) -> Vec<u8> {
    format!("{{\"origin_dc\":\"{origin}\",\"origin_seq\":").into_bytes()
}

fn classify(line: &[u8], prefix: &[u8]) -> Line {
    let ours = line.starts_with(prefix);
    if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err() {
        return Line::Broken { ours };
    }
    if !ours {
        return Line::Foreign;
    }
    let digits = &line[prefix.len()..];
    let n = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let seq = std::str::from_utf8(&digits[..n]).ok().and_then(|text| text.parse().ok());
    // no seq of ours is beyond the bound: such a line is somebody's joke
    seq.filter(|seq| *seq <= MAX_SEQ).map_or(Line::Foreign, |seq| Line::Ours(Seq(seq)))
}

/// The whole lines of a stretch of a file, a window at a time.
struct Forwards<'a> {
    file: &'a dyn DiskFile,
    /// Where the next line begins.
    at: u64,
    end: u64,
    /// What was read behind it.
    window: Vec<u8>,
    /// How much of that is done.
    done: usize,
}

impl<'a> Forwards<'a> {
    fn new(file: &'a dyn DiskFile, at: u64, end: u64) -> Self {
        Self { file, at, end, window: Vec::new(), done: 0 }
    }

    /// Where the next line begins, and what it holds.
    fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let (start, mut line) = (self.at, Vec::new());
        loop {
            let rest = self.window.get(self.done..).unwrap_or_default();
            if let Some(len) = rest.iter().position(|byte| *byte == b'\n') {
                line.extend_from_slice(rest.get(..len).unwrap_or_default());
                self.done += len + 1;
                self.at = start + line.len() as u64 + 1;
                return Ok(Some((start, line)));
            }
            line.extend_from_slice(rest);
            let from = start + line.len() as u64;
            let want = CHUNK.min(self.end.saturating_sub(from));
            self.window = vec![0; usize::try_from(want).unwrap_or(0)];
            let n = read_full(self.file, &mut self.window, from)?;
            self.window.truncate(n);
            self.done = 0;
            if n == 0 {
                return Ok(None);
            }
        }
    }

    /// Where the next line of ours begins, and its seq.
    fn ours(&mut self, prefix: &[u8]) -> io::Result<Option<(u64, Seq)>> {
        while let Some((start, line)) = self.next()? {
            if let Line::Ours(seq) = classify(&line, prefix) {
                return Ok(Some((start, seq)));
            }
        }
        Ok(None)
    }
}

/// A file read from its end towards its beginning, a window at a time.
struct Backwards<'a> {
    file: &'a dyn DiskFile,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Backwards<'a> {
    fn new(file: &'a dyn DiskFile) -> Self {
        Self { file, window: Vec::new(), window_at: 0 }
    }

    fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let inside = from.checked_sub(self.window_at).and_then(|at| usize::try_from(at).ok());
        let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        if let Some(bytes) = inside.and_then(|at| self.window.get(at..at.checked_add(len)?)) {
            return Ok(bytes.to_vec());
        }
        let mut bytes = vec![0; len];
        let n = read_full(self.file, &mut bytes, from)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// The offset behind the last line feed before `end`; 0 where there is none.
    fn last_feed(&mut self, end: u64) -> io::Result<u64> {
        let mut end = end;
        while end > 0 {
            let window_end = self.window_at + self.window.len() as u64;
            if end <= self.window_at || end > window_end {
                let from = end.saturating_sub(CHUNK);
                self.window = vec![0; usize::try_from(end - from).unwrap_or(0)];
                let n = read_full(self.file, &mut self.window, from)?;
                self.window.truncate(n);
                self.window_at = from;
            }
            let upto = usize::try_from(end - self.window_at).unwrap_or(0).min(self.window.len());
            if let Some(i) = self.window[..upto].iter().rposition(|b| *b == b'\n') {
                return Ok(self.window_at + i as u64 + 1);
            }
            end = self.window_at;
        }
        Ok(0)
    }
}
