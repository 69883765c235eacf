//! Reading a file of lines back from its end: what of it stands, what is torn, what is not ours.
//! Reads only.
//!
//! Does not know how lines are written but for their first bytes.

use std::io;

use crate::event::{Origin, Seq};
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
    let feed = last_feed(file, len)?;
    let mut lines: Vec<(u64, Line)> = Vec::new();
    let mut at = feed;
    // from the last whole line back to the first that needs no more looking at
    let mut floor = None;
    while at > 0 {
        let start = last_feed(file, at - 1)?;
        let line = classify(&read(file, start, at - 1)?, &prefix);
        if line == Line::Foreign || matches!(line, Line::Ours(seq) if seq < first_unacked) {
            floor = Some(line);
            break;
        }
        lines.push((start, line));
        at = start;
    }
    let torn = read(file, feed, len)?;
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
                return Ok(Tail { last, end: start, cut: Some(len - start), needs_feed: false });
            }
        }
    }
    Ok(settle_torn(&torn, &prefix, feed, len, last, ours_before))
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
        return Tail { last, end: len, cut: None, needs_feed: false };
    }
    let n = torn.len().min(prefix.len());
    if ours_before || torn[..n] == prefix[..n] {
        return Tail { last, end: feed, cut: Some(len - feed), needs_feed: false };
    }
    Tail { last, end: len, cut: None, needs_feed: true }
}

/// Whether a line of ours with this seq stands before `end`. Seqs rise, so the search ends early.
pub fn stands(file: &dyn DiskFile, end: u64, origin: &Origin, seq: Seq) -> io::Result<bool> {
    let prefix = prefix(origin);
    let mut at = end;
    while at > 0 {
        let start = last_feed(file, at - 1)?;
        match classify(&read(file, start, at - 1)?, &prefix) {
            Line::Ours(found) if found == seq => return Ok(true),
            Line::Ours(found) if found < seq => return Ok(false),
            Line::Foreign => return Ok(false),
            _ => at = start,
        }
    }
    Ok(false)
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
    seq.map_or(Line::Foreign, |seq| Line::Ours(Seq(seq)))
}

fn read(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
    let n = read_full(file, &mut bytes, from)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// The offset behind the last line feed before `end`; 0 where there is none.
fn last_feed(file: &dyn DiskFile, end: u64) -> io::Result<u64> {
    let mut end = end;
    while end > 0 {
        let from = end.saturating_sub(CHUNK);
        let bytes = read(file, from, end)?;
        if let Some(i) = bytes.iter().rposition(|b| *b == b'\n') {
            return Ok(from + i as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}
