//! Acknowledging: entries that are resolved whole are taken out of the stream, in the order in which they
//! became so.
//!
//! While Redis does not answer, what is resolved waits here; whoever acks goes on after a while. Does
//! not know leases.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::Cmd;
use tokio::sync::{Notify, oneshot};

use super::connection::{Broken, next};
use super::entry::sums;
use super::scripts::Script;
use super::shared::{Link, Shared, Stage, lock, stranger};
use super::standing::Whole;
use crate::event::Seq;

/// How many of uncertain standing are taken out by one script.
const AT_ONCE: usize = 1000;
/// How often a link is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What the end of one lease left resolved.
struct Job {
    id: u64,
    /// In rising order.
    wholes: Vec<Whole>,
    /// What lies below it in the stream may go with it, where nobody needs it.
    trim: bool,
    done: Option<oneshot::Sender<()>>,
}

/// What waits to be acknowledged.
#[derive(Default)]
pub(super) struct Acks {
    jobs: Mutex<Jobs>,
    bell: Notify,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    next_id: u64,
    /// What left since a reading was sent; `None` while none is under way.
    left: Option<Vec<Vec<Whole>>>,
}

/// A reading is under way: what leaves meanwhile stays known until this goes.
pub(super) struct Reading<'a>(&'a Acks);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.lock().left = None;
    }
}

impl Acks {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over what is resolved; the receiver is told when Redis knows.
    pub fn push(&self, wholes: Vec<Whole>, trim: bool) -> oneshot::Receiver<()> {
        let (done, heard) = oneshot::channel();
        let mut jobs = self.lock();
        let id = jobs.next_id;
        jobs.next_id += 1;
        jobs.waiting.push_back(Job { id, wholes, trim, done: Some(done) });
        drop(jobs);
        self.bell.notify_one();
        heard
    }

    /// Begun before a reading is sent: its answer may hold what is gone by the time that somebody
    /// looks at it. One at a time.
    pub fn reading(&self) -> Reading<'_> {
        self.lock().left = Some(Vec::new());
        Reading(self)
    }

    /// Whether the entry of a seq waits here, or left while a reading was under way.
    pub fn holds(&self, seq: Seq) -> bool {
        let has = |wholes: &[Whole]| {
            let behind = wholes.partition_point(|whole| whole.first <= seq);
            wholes.get(..behind).and_then(<[Whole]>::last).is_some_and(|whole| whole.has(seq))
        };
        let jobs = self.lock();
        let mut left = jobs.left.iter().flatten();
        jobs.waiting.iter().any(|job| has(&job.wholes)) || left.any(|wholes| has(wholes))
    }

    /// Forgets what waits: after a loss Redis may have it again, and then it comes again.
    pub fn clear(&self) {
        self.lock().waiting.clear();
    }

    /// How many events wait here.
    pub fn events(&self) -> u64 {
        let jobs = self.lock();
        jobs.waiting.iter().flat_map(|job| &job.wholes).map(|whole| whole.load.events).sum()
    }

    /// The entries that wait here.
    pub fn wholes(&self) -> Vec<Whole> {
        self.lock().waiting.iter().flat_map(|job| job.wholes.iter().cloned()).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Wakes the task, so that it sees that the queue stops.
    pub fn wake(&self) {
        self.bell.notify_one();
    }

    /// What comes next; it stays here until it is finished.
    fn first(&self) -> Option<Job> {
        let jobs = self.lock();
        let job = jobs.waiting.front()?;
        Some(Job { id: job.id, wholes: job.wholes.clone(), trim: job.trim, done: None })
    }

    /// Redis knows of that one.
    fn finish(&self, id: u64) {
        let mut jobs = self.lock();
        let Some(job) = jobs.waiting.pop_front_if(|job| job.id == id) else { return };
        if let Some(left) = &mut jobs.left {
            left.push(job.wholes);
        }
        drop(jobs);
        if let Some(done) = job.done {
            let _ = done.send(());
        }
    }
}

/// Runs until the queue stops and nothing waits, or it is over.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let stage = *shared.stage.borrow();
        if stage == Stage::Over || (stage > Stage::Runs && shared.acks.is_empty()) {
            return;
        }
        let Some(job) = shared.acks.first() else {
            shared.acks.bell.notified().await;
            continue;
        };
        let usable = |link: &Link| shared.why_broken(link.epoch).is_none();
        let Some(link) = shared.link().filter(usable) else {
            let mut link = shared.link.subscribe();
            let _ = tokio::time::timeout(LOOK, link.changed()).await;
            continue;
        };
        match acknowledge(&shared, &link, &job).await {
            Ok(()) => shared.acks.finish(job.id),
            Err(why) => shared.broken(link.epoch, why),
        }
    }
}

async fn acknowledge(shared: &Shared, link: &Link, job: &Job) -> Result<(), Broken> {
    let wholes = &job.wholes;
    if wholes.iter().all(|whole| whole.sure) {
        let call = together(shared, link, wholes, job.trim);
        let (word, mut rest) = link.work.ask(&call).await?.word()?;
        if word == "partly" {
            let n = next(&mut rest)?.number()?;
            let of = wholes.len();
            let text = format!("of {of} entries that were to be acknowledged the stream had {n}");
            // what was there is taken out: it must not be tried again as a whole
            shared.acks.finish(job.id);
            return Err(Broken::Odd(text));
        }
        check(&word, "acked")?;
    } else {
        for some in wholes.chunks(AT_ONCE) {
            let (word, _) = link.work.ask(&singly(shared, link, some)).await?.word()?;
            check(&word, "acked")?;
        }
    }
    let over = tried(shared, wholes);
    if !over.is_empty() {
        lock(&shared.tried).retain(|seq| over.binary_search(seq).is_err());
    }
    Ok(())
}

/// Whether a script said what it says when all is well.
pub(super) fn check(word: &str, well: &str) -> Result<(), Broken> {
    if word == well {
        return Ok(());
    }
    Err(stranger(word).unwrap_or_else(|| Broken::odd(word)))
}

/// Those of their events that were refused before, in rising order.
fn tried(shared: &Shared, wholes: &[Whole]) -> Vec<Seq> {
    let tried = lock(&shared.tried);
    if tried.is_empty() {
        return Vec::new();
    }
    wholes.iter().flat_map(|whole| tried.range(whole.first..whole.end())).copied().collect()
}

fn together(shared: &Shared, link: &Link, wholes: &[Whole], trim: bool) -> Cmd {
    let (channels, tried) =
        (sums(wholes.iter().map(|whole| (&whole.channel, whole.load))), tried(shared, wholes));
    let args = 5 + 3 * channels.len() + tried.len() + wholes.len();
    let mut call = link.scripts.call(Script::Ack, args, 20 * args);
    let needed = if trim { lock(&shared.leases).oldest_entry().0 } else { 0 };
    call.arg(&*link.run).arg(&shared.keys.group).arg(needed);
    call.arg(channels.len());
    for (channel, load) in channels {
        call.arg(channel.as_str()).arg(load.events).arg(load.bytes);
    }
    call.arg(tried.len());
    for seq in tried {
        call.arg(seq.0);
    }
    for whole in wholes {
        call.arg(whole.first.0);
    }
    call
}

fn singly(shared: &Shared, link: &Link, wholes: &[Whole]) -> Cmd {
    let tried = tried(shared, wholes);
    let args = 3 + tried.len() + 4 * wholes.len();
    let mut call = link.scripts.call(Script::AckEach, args, 20 * args);
    call.arg(&*link.run).arg(&shared.keys.group).arg(tried.len());
    for seq in tried {
        call.arg(seq.0);
    }
    for Whole { first, channel, load, .. } in wholes {
        call.arg(first.0).arg(channel.as_str()).arg(load.events).arg(load.bytes);
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Name;
    use crate::queue::accounts::Load;

    /// An entry each: its first seq, and how many events it holds.
    fn wholes(entries: &[(u64, u64)]) -> Vec<Whole> {
        let whole = |(first, events): &(u64, u64)| Whole {
            first: Seq(*first),
            channel: Name::new(if first.is_multiple_of(2) { "even" } else { "odd" }).unwrap(),
            load: Load { events: *events, bytes: 100 * events },
            sure: true,
        };
        entries.iter().map(whole).collect()
    }

    #[test]
    fn what_is_resolved_waits_in_order_and_its_owners_are_told() {
        let acks = Acks::default();
        let mut first = acks.push(wholes(&[(1, 3), (5, 1)]), true);
        let mut second = acks.push(wholes(&[(6, 1)]), true);
        let held: Vec<u64> = (0..9).filter(|seq| acks.holds(Seq(*seq))).collect();
        assert_eq!((held, acks.events()), (vec![1, 2, 3, 5, 6], 5));
        acks.finish(0);
        acks.finish(0);
        assert!(first.try_recv().is_ok() && second.try_recv().is_err());
        assert!(!acks.holds(Seq(2)));
        acks.clear();
        assert!(acks.is_empty() && second.try_recv().is_err());
    }

    #[test]
    fn what_leaves_while_a_reading_is_under_way_is_known_until_it_is_looked_at() {
        let acks = Acks::default();
        let _first = acks.push(wholes(&[(1, 2)]), true);
        let _second = acks.push(wholes(&[(4, 1)]), true);
        let _third = acks.push(wholes(&[(7, 2)]), true);
        acks.finish(0);
        assert!(!acks.holds(Seq(1)), "it left before the reading was sent");
        let reading = acks.reading();
        acks.finish(1);
        assert!(acks.holds(Seq(4)) && acks.holds(Seq(8)));
        assert_eq!(acks.events(), 2, "the first of them waits no more");
        drop(reading);
        assert!(!acks.holds(Seq(4)) && acks.holds(Seq(8)));
        acks.finish(2);
        assert!(acks.is_empty() && !acks.holds(Seq(8)));
    }
}
