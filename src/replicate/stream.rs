//! The pages of one answer: fetched ahead while others are stored, and put together where several
//! wait, so that one transaction takes them.
//!
//! Does not know what they mean, nor where they come from.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::pull::{Failure, Outcome};
use super::status::Glimpse;
use super::wire::{Answer, Ask};
use super::{Pages, Received};

/// Pages fetched ahead.
const AHEAD: usize = 8;
/// The most rows that are put together.
const JOINED_ROWS: usize = 20_000;
/// How long the end of an answer is waited for.
const LAST_BYTES: Duration = Duration::from_millis(100);

/// An answer under way.
pub(super) struct Stream<P> {
    pages: Option<P>,
    limit: usize,
    ahead: VecDeque<Received>,
    end: Option<Result<(), Failure>>,
    /// The room of what was handed on.
    rooms: Vec<OwnedSemaphorePermit>,
    /// What was handed on last, as far as it says how far behind we are.
    pub glimpse: Option<Glimpse>,
}

impl<P> Default for Stream<P> {
    fn default() -> Self {
        Self {
            pages: None,
            limit: 0,
            ahead: VecDeque::new(),
            end: None,
            rooms: Vec::new(),
            glimpse: None,
        }
    }
}

impl<P: Pages> Stream<P> {
    /// The answer to that.
    pub fn new(pages: P, ask: &Ask) -> Self {
        Self { pages: Some(pages), limit: ask.limit, ..Self::default() }
    }

    /// The next page, with those behind it that have come already.
    pub async fn next(&mut self) -> Outcome {
        loop {
            if let Some(Received { mut answer, room }) = self.ahead.pop_front() {
                self.rooms.extend(room);
                while let Some(next) =
                    self.ahead.pop_front_if(|next| follows(&answer, &next.answer))
                {
                    self.rooms.extend(next.room);
                    join(&mut answer, next.answer);
                }
                self.glimpse = Some(Glimpse::of(&answer, self.limit));
                return Outcome::Page(Box::new(answer));
            }
            match self.end.take() {
                Some(Ok(())) => return Outcome::End,
                Some(Err(failure)) => return Outcome::Failed(failure),
                None => self.fetch().await,
            }
        }
    }

    /// Fetches one page more. Nothing is lost where the call is dropped.
    pub async fn fetch(&mut self) {
        let fetched = match &mut self.pages {
            Some(pages) => pages.next().await,
            None => Ok(None),
        };
        match fetched {
            Ok(Some(received)) => self.ahead.push_back(received),
            Ok(None) => (self.pages, self.end) = (None, Some(Ok(()))),
            Err(failure) => (self.pages, self.end) = (None, Some(Err(failure))),
        }
    }

    /// Lets the answer end, so that its connection can be used again. What is not there at once is
    /// not waited for.
    pub async fn finish(&mut self) {
        if self.pages.is_some() && self.ahead.is_empty() {
            let _ = tokio::time::timeout(LAST_BYTES, self.fetch()).await;
        }
    }

    /// Whether to fetch ahead.
    pub fn wants_more(&self) -> bool {
        self.pages.is_some() && self.ahead.len() < AHEAD
    }

    /// What was handed on is stored, or given up: its room is free.
    pub fn done(&mut self) -> Option<Glimpse> {
        self.rooms.clear();
        self.glimpse.take()
    }
}

/// Whether a page goes on where another one ends, and both may be stored as one.
fn follows(page: &Answer, next: &Answer) -> bool {
    page.echoed
        && next.echoed
        && next.from == page.next
        && (&next.node, &next.node_id, &next.schema) == (&page.node, &page.node_id, &page.schema)
        && page.rows.len() + next.rows.len() <= JOINED_ROWS
}

fn join(page: &mut Answer, next: Answer) {
    let Answer { safe, next: go_on, seen, now, behind, rows, unfit, .. } = next;
    page.rows.extend(rows);
    page.unfit.extend(unfit);
    (page.safe, page.next, page.seen, page.now) = (safe, go_on, seen, now);
    page.behind = behind;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;
    use crate::event::{Micros, Name, Seq};
    use crate::storage::event_store::StoredRow;

    struct Ready(VecDeque<Result<Option<Received>, Failure>>);

    impl Pages for Ready {
        async fn next(&mut self) -> Result<Option<Received>, Failure> {
            self.0.pop_front().unwrap_or(Ok(None))
        }
    }

    fn page(from: u64, last: u64, schema: &str) -> Result<Option<Received>, Failure> {
        let row = |seq| StoredRow {
            seq: Seq(seq),
            node_name: "dc2".to_owned(),
            received_at: Micros(1),
            payload: Bytes::from_static(b"{}"),
        };
        let answer = Answer {
            from: Seq(from),
            echoed: true,
            node: None,
            node_id: None,
            since: None,
            schema: Some(schema.to_owned()),
            safe: Some(Seq(1_000)),
            next: Seq(last + 1),
            seen: None,
            now: None,
            behind: None,
            rows: (from..=last).map(row).collect(),
            unfit: BTreeMap::new(),
        };
        Ok(Some(Received { answer, room: None }))
    }

    fn ask() -> Ask {
        Ask {
            origin: Name::new("dc2").unwrap(),
            channel: Name::new("a").unwrap(),
            direct: true,
            from: Seq(1),
            limit: 10,
            pages: 9,
            count: false,
        }
    }

    async fn seqs(stream: &mut Stream<Ready>) -> Vec<u64> {
        match stream.next().await {
            Outcome::Page(answer) => answer.rows.iter().map(|row| row.seq.0).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn pages_that_wait_are_put_together_where_they_follow_each_other() {
        let pages = [page(1, 2, "x"), page(3, 4, "x"), page(5, 5, "y"), page(9, 9, "y")];
        let mut stream = Stream::new(Ready(pages.into()), &ask());
        assert_eq!(seqs(&mut stream).await, [1, 2], "only one had come");
        for _ in 0..3 {
            assert!(stream.wants_more());
            stream.fetch().await;
        }
        assert_eq!(seqs(&mut stream).await, [3, 4], "another schema is another page");
        assert_eq!(seqs(&mut stream).await, [5], "a gap is not bridged");
        assert_eq!(seqs(&mut stream).await, [9]);
        assert!(matches!(stream.next().await, Outcome::End));

        let pages = [page(1, 2, "x"), page(3, 4, "x"), page(5, 5, "x")];
        let mut stream = Stream::new(Ready(pages.into()), &ask());
        for _ in 0..3 {
            stream.fetch().await;
        }
        assert_eq!(seqs(&mut stream).await, [1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_failure_comes_behind_the_pages_that_were_whole() {
        let lost = || Err(Failure::Cut("reset".to_owned()));
        let mut stream = Stream::new(Ready([page(1, 2, "x"), lost()].into()), &ask());
        stream.fetch().await;
        stream.fetch().await;
        assert!(!stream.wants_more());
        assert_eq!(seqs(&mut stream).await, [1, 2]);
        assert!(matches!(stream.next().await, Outcome::Failed(Failure::Cut(_))));
    }
}
