//! Acknowledging: what is resolved is taken out of the stream, in the order in which leases ended.
//!
//! While Redis does not answer, what is resolved waits here; whoever acks goes on after a while. Does
//! not know leases.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::Cmd;
use tokio::sync::{Notify, oneshot};

use super::connection::{Broken, next};
use super::leases::Held;
use super::scripts::Script;
use super::shared::{Link, Shared, Stage, lock, stranger};
use crate::event::{ChannelName, Seq};
use crate::queue::accounts::Load;

/// How many of uncertain standing are taken out by one script.
const AT_ONCE: usize = 1000;
/// How often a link is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What one lease held and is resolved.
struct Job {
    id: u64,
    held: Vec<Held>,
    /// Redis has lost nothing since it was leased.
    sure: bool,
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
    left: Option<Vec<Vec<Held>>>,
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
    pub fn push(&self, held: Vec<Held>, sure: bool, trim: bool) -> oneshot::Receiver<()> {
        let (done, heard) = oneshot::channel();
        let mut jobs = self.lock();
        let id = jobs.next_id;
        jobs.next_id += 1;
        jobs.waiting.push_back(Job { id, held, sure, trim, done: Some(done) });
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

    /// These are resolved, and left the stream already.
    pub fn left(&self, held: Vec<Held>) {
        if !held.is_empty()
            && let Some(left) = &mut self.lock().left
        {
            left.push(held);
        }
    }

    /// Whether a seq waits here, or left while a reading was under way.
    pub fn holds(&self, seq: Seq) -> bool {
        let has = |held: &[Held]| held.binary_search_by_key(&seq, |held| held.seq).is_ok();
        let jobs = self.lock();
        let mut left = jobs.left.iter().flatten();
        jobs.waiting.iter().any(|job| has(&job.held)) || left.any(|held| has(held))
    }

    /// Forgets what waits: after a loss Redis may have it again, and then it comes again.
    pub fn clear(&self) {
        self.lock().waiting.clear();
    }

    /// How many events wait here.
    pub fn events(&self) -> u64 {
        self.lock().waiting.iter().map(|job| job.held.len() as u64).sum()
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
        let held = job.held.clone();
        Some(Job { id: job.id, held, sure: job.sure, trim: job.trim, done: None })
    }

    /// Redis knows of that one.
    fn finish(&self, id: u64) {
        let mut jobs = self.lock();
        let Some(job) = jobs.waiting.pop_front_if(|job| job.id == id) else { return };
        if let Some(left) = &mut jobs.left {
            left.push(job.held);
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
    let held = &job.held;
    if job.sure {
        let call = together(shared, link, held, job.trim);
        let (word, mut rest) = link.work.ask(&call).await?.word()?;
        if word == "partly" {
            let n = next(&mut rest)?.number()?;
            let text =
                format!("of {} events that were to be acknowledged the stream had {n}", held.len());
            // what was there is taken out: it must not be tried again as a whole
            shared.acks.finish(job.id);
            return Err(Broken::Odd(text));
        }
        check(&word, "acked")?;
    } else {
        for some in held.chunks(AT_ONCE) {
            let mut call = link.scripts.call(Script::AckEach, 2 + 3 * some.len(), 64 * some.len());
            call.arg(&*link.run).arg(&shared.keys.group);
            for Held { seq, channel, load } in some {
                call.arg(seq.0).arg(channel.as_str()).arg(load.bytes);
            }
            let (word, _) = link.work.ask(&call).await?.word()?;
            check(&word, "acked")?;
        }
    }
    let mut tried = lock(&shared.tried);
    if !tried.is_empty() {
        for held in held {
            tried.remove(&held.seq);
        }
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

fn together(shared: &Shared, link: &Link, held: &[Held], trim: bool) -> Cmd {
    let channels = by_channel(held);
    let tried: Vec<Seq> = {
        let tried = lock(&shared.tried);
        held.iter().map(|held| held.seq).filter(|seq| tried.contains(seq)).collect()
    };
    let args = 5 + 3 * channels.len() + tried.len() + held.len();
    let mut call = link.scripts.call(Script::Ack, args, 20 * args);
    let needed = if trim { lock(&shared.leases).first_unacked().0 } else { 0 };
    call.arg(&*link.run).arg(&shared.keys.group).arg(needed);
    call.arg(channels.len());
    for (channel, load) in channels {
        call.arg(channel.as_str()).arg(load.events).arg(load.bytes);
    }
    call.arg(tried.len());
    for seq in tried {
        call.arg(seq.0);
    }
    for held in held {
        call.arg(held.seq.0);
    }
    call
}

/// What events count, a channel each.
pub(super) fn by_channel(held: &[Held]) -> Vec<(&ChannelName, Load)> {
    let mut all: Vec<(&ChannelName, Load)> = Vec::new();
    for Held { channel, load, .. } in held {
        match all.iter_mut().find(|(known, _)| *known == channel) {
            Some((_, sum)) => *sum = sum.plus(*load),
            None => all.push((channel, *load)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Name;

    fn held(seqs: &[u64]) -> Vec<Held> {
        let held = |seq: &u64| Held {
            seq: Seq(*seq),
            channel: Name::new(if seq.is_multiple_of(2) { "even" } else { "odd" }).unwrap(),
            load: Load { events: 1, bytes: 100 },
        };
        seqs.iter().map(held).collect()
    }

    #[test]
    fn what_is_resolved_waits_in_order_and_its_owners_are_told() {
        let acks = Acks::default();
        let mut first = acks.push(held(&[1, 2]), true, true);
        let mut second = acks.push(held(&[3]), true, true);
        assert!(acks.holds(Seq(2)) && !acks.holds(Seq(4)));
        assert_eq!(acks.events(), 3);
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
        let _first = acks.push(held(&[1, 2]), true, true);
        let _second = acks.push(held(&[4]), true, true);
        acks.left(held(&[9]));
        let reading = acks.reading();
        acks.finish(0);
        acks.left(held(&[3]));
        assert!([1, 2, 3, 4].into_iter().all(|seq| acks.holds(Seq(seq))));
        assert!(!acks.holds(Seq(9)), "it left before the reading was sent");
        assert_eq!(acks.events(), 1, "none of them waits any more");
        drop(reading);
        assert!(!acks.holds(Seq(2)) && !acks.holds(Seq(3)) && acks.holds(Seq(4)));
        acks.finish(1);
        assert!(acks.is_empty() && !acks.holds(Seq(4)));
    }

    #[test]
    fn events_are_counted_by_channel() {
        let held = held(&[1, 2, 3]);
        let counted: Vec<(&str, u64)> =
            by_channel(&held).into_iter().map(|(c, load)| (c.as_str(), load.bytes)).collect();
        assert_eq!(counted, [("odd", 200), ("even", 100)]);
    }
}
