//! What Redis has lost: found by comparing what it holds with what is known of it, counted, reported
//! once, and taken out of the accounts, so that nothing waits for it.
//!
//! Does not know how the link was had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::acks::check;
use super::book::Loss;
use super::claim::Claimed;
use super::connection::{Broken, next};
use super::entry::{EntryId, OVERHEAD};
use super::leases::Held;
use super::reader::Reader;
use super::scripts::Script;
use super::shared::{Link, Shared, lock};
use super::standing::Whole;
use crate::event::{ChannelName, Name, Seq};
use crate::queue::accounts::{Load, Outcome};
use crate::task;

/// How many events are looked at by one script, and bytes of payload: while it runs, Redis does nothing
/// else, and holds all of them.
const COUNTED: u64 = 2000;
const COUNTED_BYTES: u64 = 16 << 20;

/// What is counted of each channel.
pub(super) type Loads = BTreeMap<ChannelName, Load>;

/// What a stretch of the stream was counted to hold of ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub entries: u64,
    pub loads: Loads,
}

/// The first meeting of this start: the stream counted anew, where it holds less than is counted.
pub(super) async fn look_at_start(
    shared: &Shared,
    link: &Link,
    claimed: &Claimed,
) -> Result<Option<Counted>, Broken> {
    if claimed.adds_up() {
        return Ok(None);
    }
    count_all(shared, link).await.map(Some)
}

/// What the stream holds is recovered, and what it lacks is lost. `now` is what it was found to hold.
/// The last seq that the stream was given, as it stands then.
pub(super) async fn at_start(
    shared: &Arc<Shared>,
    link: &Link,
    claimed: &Claimed,
    now: Option<Counted>,
) -> Result<Seq, Broken> {
    // a report makes the witness say less
    let given = shared.given();
    for (channel, load) in &claimed.channels {
        shared.accounts.recovered(Some(channel), *load);
    }
    if let Some(now) = now {
        let missing = difference(&claimed.channels.iter().cloned().collect(), &now.loads);
        shared.accounts.resolved(missing.iter().map(|(c, load)| (Some(c), *load, Outcome::Lost)));
        let events: u64 = missing.values().map(|load| load.events).sum();
        let from = claimed.first.map_or(1, |first| first.first);
        let loss = Loss { from, to: claimed.last.0, events, exact: true, dead_letters: 0 };
        report(shared, loss, claimed.last).await;
        put_counts(link, &now).await?;
    }
    if let Some(loss) = while_down(shared, claimed) {
        let load = Load { events: loss.events, bytes: 0 };
        shared.accounts.recovered(None, load);
        shared.accounts.resolved([(None, load, Outcome::Lost)].into_iter());
        report(shared, loss, claimed.last).await;
    }
    if given <= claimed.last {
        return Ok(claimed.last);
    }
    // what peers were shown stays known to every later start
    raise(link, claimed.last, given).await?;
    Ok(given)
}

/// What is lost at most, where the stream went back while the node was down.
fn while_down(shared: &Shared, claimed: &Claimed) -> Option<Loss> {
    let record = lock(&shared.book).record.clone();
    if claimed.last.0 >= record.last {
        return None;
    }
    let given = shared.ceiling().saturating_sub(1).max(record.last);
    // what came after the witness is not known, but for its number
    let after = if record.closed { 0 } else { given - record.last };
    let to = record.last + after;
    let events = (record.queued + after).min(to - claimed.last.0);
    let dead_letters = record.dead_letters.saturating_sub(claimed.letters);
    Some(Loss { from: claimed.last.0 + 1, to, events, exact: false, dead_letters })
}

/// A later meeting: whether something was lost since. Then what is left is counted anew, and all of it
/// is read again.
pub(super) async fn while_up(
    shared: &Arc<Shared>,
    link: &Link,
    claimed: &Claimed,
) -> Result<bool, Broken> {
    let confirmed = shared.confirmed();
    // what is resolved meanwhile would be counted on one side alone
    let _gate = shared.gate.write().await;
    let waiting: u64 = queued(shared).values().map(|load| load.events).sum();
    let resolved = lock(&shared.leases).resolved_events() + shared.acks.events();
    // what was stored may stand there again, and nothing be lost
    let no_more = claimed.total <= waiting + resolved;
    let no_less = claimed.last == confirmed && claimed.adds_up();
    let letters_lost = shared.learn_dead(link).await?;
    if claimed.known && no_less && no_more && !letters_lost {
        return Ok(false);
    }
    if claimed.last > confirmed {
        // another process of this node wrote them, and nobody here knows of what channels
        shared.marks.with(|marks| marks.uncounted(claimed.last));
    }
    let mut reader = shared.reading.lock().await;
    reader.forget_behind(confirmed);
    let (delivered, through) = reader.delivered();
    let recounted = if claimed.adds_up() { None } else { Some(count_all(shared, link).await?) };
    let loads = recounted.as_ref().map(|counted| counted.loads.clone());
    let now = loads.unwrap_or_else(|| claimed.channels.iter().cloned().collect());
    let below = count(shared, link, EntryId::default(), delivered).await?.loads;
    let known = Known::ask(shared, link, &reader).await?;
    let aside = aside(shared, link, delivered, &known).await?;
    let letters = letters_for_good(shared, link, &known).await?;
    if let Some(counted) = &recounted {
        put_counts(link, counted).await?;
    }
    let (in_hand, there) = (loads_of(&known.held), loads_of(&known.held_there()));
    let reckoning = Reckoning { before: queued(shared), now, below, in_hand, there, aside };
    let (lost, again) = reckoning.reckon();

    shared.acks.clear();
    for (channel, load) in &again {
        shared.accounts.recovered(Some(channel), *load);
    }
    shared.accounts.resolved(lost.iter().map(|(c, load)| (Some(c), *load, Outcome::Lost)));
    let from = {
        let mut leases = lock(&shared.leases);
        let undelivered = Seq(through.0.saturating_add(1));
        let from = leases.oldest_parked().map_or(undelivered, |oldest| oldest.min(undelivered));
        leases.reckoned(&known.held.iter().map(|held| held.seq).collect(), &known.there);
        from.max(claimed.last.next().min(confirmed)).max(shared.begins())
    };
    lock(&shared.dead).forget(&letters);
    let dead_letters = letters.len() as u64;
    let events: u64 = lost.values().map(|load| load.events).sum();
    if events > 0 || dead_letters > 0 {
        let (from, to) = (from.0, confirmed.0.max(from.0));
        report(shared, Loss { from, to, events, exact: true, dead_letters }, claimed.last).await;
    } else {
        tracing::warn!(
            "Redis went back to an earlier state; everything that was accepted is stored or still there"
        );
    }
    reader.start_over(link.epoch);
    if claimed.last < confirmed {
        raise(link, claimed.last, confirmed).await?;
    }
    Ok(true)
}

/// What this process knows of entries that it has read.
struct Known {
    /// In somebody's hands.
    held: Vec<Held>,
    /// The entries in order, and what of each is resolved.
    standing: Vec<(Whole, Load)>,
    /// Those that the stream has, by their first seqs.
    there: BTreeSet<Seq>,
}

impl Known {
    async fn ask(shared: &Shared, link: &Link, reader: &Reader) -> Result<Self, Broken> {
        let (mut held, standing) = {
            let leases = lock(&shared.leases);
            (leases.all_held(), leases.standing())
        };
        let mut standing = standing;
        // what waits to be taken out stands there like what is resolved in part
        standing.extend(shared.acks.wholes().into_iter().map(|whole| (whole.clone(), whole.load)));
        standing.sort_by_key(|(whole, _)| whole.first);
        held.extend(reader.ahead().map(Held::of));
        let mut known = Self { held, standing, there: BTreeSet::new() };
        let mut firsts: BTreeSet<Seq> = known.standing.iter().map(|(w, _)| w.first).collect();
        firsts.extend(known.held.iter().map(|held| known.first_of(held.seq)));
        known.there = those_there(shared, link, firsts.into_iter().collect()).await?;
        Ok(known)
    }

    /// The first seq of the entry that holds an event.
    fn first_of(&self, seq: Seq) -> Seq {
        let behind = self.standing.partition_point(|(whole, _)| whole.first <= seq);
        let entry = self.standing.get(..behind).and_then(<[_]>::last);
        entry.filter(|(whole, _)| whole.has(seq)).map_or(seq, |(whole, _)| whole.first)
    }

    fn is_there(&self, seq: Seq) -> bool {
        self.there.contains(&self.first_of(seq))
    }

    /// In somebody's hands, and in the stream.
    fn held_there(&self) -> Vec<Held> {
        self.held.iter().filter(|held| self.is_there(held.seq)).cloned().collect()
    }

    /// What of a channel's entries from `first` on is resolved, and stands in the stream.
    fn resolved_from(&self, channel: &ChannelName, first: Seq) -> Load {
        let theirs = self.standing.iter().filter(|(whole, _)| {
            whole.channel == *channel && whole.first >= first && self.there.contains(&whole.first)
        });
        theirs.map(|(_, resolved)| *resolved).fold(Load::default(), Load::plus)
    }

    /// What of a channel's entries below `first` is in somebody's hands, and stands in the stream.
    fn held_below(&self, channel: &ChannelName, first: Seq) -> Load {
        let theirs = self.held.iter().filter(|held| {
            held.channel == *channel && self.first_of(held.seq) < first && self.is_there(held.seq)
        });
        theirs.map(|held| held.load).fold(Load::default(), Load::plus)
    }
}

/// The dead letters that are lost for good: their events do not come again, and nobody holds them.
async fn letters_for_good(shared: &Shared, link: &Link, known: &Known) -> Result<Vec<Seq>, Broken> {
    let mut lost = lock(&shared.dead).lost();
    let there = those_there(shared, link, lost.clone()).await?;
    let held: BTreeSet<Seq> = known.held.iter().map(|held| held.seq).collect();
    lost.retain(|seq| !there.contains(seq) && !held.contains(seq));
    Ok(lost)
}

/// What is known of the events of each channel.
struct Reckoning {
    /// Counted as queued.
    before: Loads,
    /// In the stream.
    now: Loads,
    /// Of those, what was read before.
    below: Loads,
    /// In somebody's hands.
    in_hand: Loads,
    /// Of those, what is in the stream.
    there: Loads,
    /// Set aside and unresolved, in the stream; of channels that are set aside.
    aside: Loads,
}

impl Reckoning {
    /// What is lost, and what was resolved and is in the stream again.
    fn reckon(&self) -> (Loads, Loads) {
        let of =
            |loads: &Loads, channel: &ChannelName| loads.get(channel).copied().unwrap_or_default();
        let (mut lost, mut again) = (Loads::new(), Loads::new());
        let channels = [&self.before, &self.now, &self.in_hand];
        for channel in channels.into_iter().flat_map(|loads| loads.keys()) {
            let there = of(&self.there, channel);
            let expected = self.aside.get(channel).copied().unwrap_or(there);
            let mut back = of(&self.below, channel).minus(expected);
            let left = of(&self.now, channel).plus(of(&self.in_hand, channel).minus(there));
            let before = of(&self.before, channel);
            // more than anybody knew of: another process of this node wrote it
            back = back.plus(left.minus(back).minus(before));
            let gone = before.plus(back).minus(left);
            if back.events > 0 {
                again.insert(channel.clone(), back);
            }
            if gone.events > 0 {
                lost.insert(channel.clone(), gone);
            }
        }
        (lost, again)
    }
}

fn queued(shared: &Shared) -> Loads {
    let (channels, _, _) = shared.accounts.snapshot();
    let queued = channels.into_iter().filter_map(|(channel, counts)| {
        let load = Load { events: counts.queued, bytes: counts.queued_bytes };
        Some((channel?, load))
    });
    queued.collect()
}

fn loads_of(held: &[Held]) -> Loads {
    let mut all = Loads::new();
    for Held { channel, load, .. } in held {
        let sum = all.entry(channel.clone()).or_default();
        *sum = sum.plus(*load);
    }
    all
}

/// By how much one is more than the other.
fn difference(more: &Loads, less: &Loads) -> Loads {
    let of = |channel: &ChannelName| less.get(channel).copied().unwrap_or_default();
    let lack = more.iter().map(|(channel, load)| (channel.clone(), load.minus(of(channel))));
    lack.filter(|(_, load)| load.events > 0).collect()
}

/// What stands in the stream unresolved, of what was read of channels that are set aside.
async fn aside(
    shared: &Shared,
    link: &Link,
    delivered: EntryId,
    known: &Known,
) -> Result<Loads, Broken> {
    let parked: Vec<(ChannelName, Option<Seq>)> = {
        let leases = lock(&shared.leases);
        let oldest = |channel: &ChannelName| leases.aside(channel).and_then(|a| a.oldest());
        let parked = leases.parked().into_iter().map(|parked| parked.channel);
        parked.map(|channel| (channel.clone(), oldest(&channel))).collect()
    };
    let mut all = Loads::new();
    for (channel, oldest) in parked {
        let first = oldest.map_or(Seq(u64::MAX), |oldest| known.first_of(oldest));
        let mut load = known.held_below(&channel, first);
        if oldest.is_some() {
            let counted = count(shared, link, EntryId::before(first), delivered).await?;
            let stands = counted.loads.get(&channel).copied().unwrap_or_default();
            load = load.plus(stands.minus(known.resolved_from(&channel, first)));
        }
        all.insert(channel, load);
    }
    Ok(all)
}

/// How many entries a script may look at.
fn at_once(shared: &Shared) -> u64 {
    let view = lock(&shared.view);
    let most = (COUNTED / view.an_entry.max(1)).max(1);
    (COUNTED_BYTES / view.biggest.max(1)).clamp(1, most)
}

/// What stands in the stream behind `from` and up to `to`.
async fn count(
    shared: &Shared,
    link: &Link,
    from: EntryId,
    to: EntryId,
) -> Result<Counted, Broken> {
    let most = at_once(shared);
    let mut all = Counted::default();
    let mut behind = from.to_string();
    loop {
        let mut call = link.scripts.call(Script::Count, 4, 128);
        call.arg(format!("({behind}")).arg(to.to_string()).arg(most).arg(OVERHEAD);
        let mut said = link.work.ask(&call).await?.list()?.into_iter();
        behind = next(&mut said)?.text()?;
        all.entries += next(&mut said)?.number()?;
        while let (Some(channel), Some(events), Some(bytes)) =
            (said.next(), said.next(), said.next())
        {
            let Ok(channel) = Name::new(&channel.text()?) else { continue };
            let load = Load { events: events.number()?, bytes: bytes.number()? };
            let sum = all.loads.entry(channel).or_default();
            *sum = sum.plus(load);
        }
        if behind.is_empty() {
            return Ok(all);
        }
    }
}

async fn count_all(shared: &Shared, link: &Link) -> Result<Counted, Broken> {
    tracing::warn!("the stream is not what is counted beside it: it is counted anew");
    let end = EntryId { first: u64::MAX, second: u64::MAX };
    count(shared, link, EntryId::default(), end).await
}

/// Puts what was counted in place of the counts beside the stream.
async fn put_counts(link: &Link, all: &Counted) -> Result<(), Broken> {
    let Counted { entries, loads } = all;
    let mut call = link.scripts.call(Script::Recount, 2 + 3 * loads.len(), 96 * loads.len());
    call.arg(&*link.run).arg(*entries);
    for (channel, load) in loads {
        call.arg(channel.as_str()).arg(load.events).arg(load.bytes);
    }
    let (word, _) = link.work.ask(&call).await?.word()?;
    check(&word, "recounted")
}

/// Those of these events that stand in the stream.
pub(super) async fn those_there(
    shared: &Shared,
    link: &Link,
    seqs: Vec<Seq>,
) -> Result<BTreeSet<Seq>, Broken> {
    let mut there = BTreeSet::new();
    for some in seqs.chunks(usize::try_from(at_once(shared)).unwrap_or(1)) {
        let mut call = link.scripts.call(Script::There, some.len(), 20 * some.len());
        for seq in some {
            call.arg(seq.0);
        }
        for reply in link.work.ask(&call).await?.list()? {
            there.insert(Seq(reply.number()?));
        }
    }
    Ok(there)
}

async fn raise(link: &Link, from: Seq, to: Seq) -> Result<(), Broken> {
    let mut call = link.scripts.call(Script::Raise, 3, 96);
    call.arg(&*link.run).arg(from.0).arg(to.0);
    let (word, _) = link.work.ask(&call).await?.word()?;
    check(&word, "raised")
}

/// Says it once, and keeps it with the witness that makes it the last report of this loss.
async fn report(shared: &Arc<Shared>, loss: Loss, last: Seq) {
    let queued: u64 = queued(shared).values().map(|load| load.events).sum();
    if loss.events == 0 && loss.dead_letters == 0 {
        // the stream is younger than the witness, which had nothing in it
        let keeping = shared.clone();
        let _ = task::blocking(move || {
            lock(&keeping.book).update(|record| (record.last, record.queued) = (last.0, queued))
        })
        .await;
        return;
    }
    tracing::error!(
        from = loss.from,
        to = loss.to,
        events = loss.events,
        "events are lost: {loss}"
    );
    lock(&shared.view).losses.push(loss.to_string());
    let keeping = shared.clone();
    let kept = task::blocking(move || lock(&keeping.book).report(&loss, last.0, queued)).await;
    if let Err(e) = kept {
        tracing::error!(
            "redis.state cannot be written: {e}; a restart would report the loss again"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(events: u64) -> Loads {
        let load = Load { events, bytes: events * 100 };
        [(Name::new("a").unwrap(), load)].into_iter().filter(|_| events > 0).collect()
    }

    fn events(loads: &Loads) -> u64 {
        loads.values().map(|load| load.events).sum()
    }

    /// Queued before; in the stream, of that read before; in hand, of that in the stream; lost, again.
    fn check(before: u64, stream: (u64, u64), hand: (u64, u64), expect: (u64, u64)) {
        let reckoning = Reckoning {
            before: of(before),
            now: of(stream.0),
            below: of(stream.1),
            in_hand: of(hand.0),
            there: of(hand.1),
            aside: Loads::new(),
        };
        let (lost, again) = reckoning.reckon();
        let got = (events(&lost), events(&again));
        assert_eq!(got, expect, "{before} {stream:?} {hand:?}");
        let left = stream.0 + hand.0 - hand.1;
        assert_eq!(before + got.1 - got.0, left, "the account is even");
    }

    #[test]
    fn what_is_neither_in_the_stream_nor_in_hand_is_lost() {
        // all of it is gone, but for what is in hand
        check(10, (0, 0), (0, 0), (10, 0));
        check(10, (0, 0), (4, 0), (6, 0));
        // an older state: two that were stored are there again, three of the newest are not
        check(10, (9, 2), (0, 0), (3, 2));
        // of four in hand it has three, and one that was stored
        check(10, (10, 4), (4, 3), (0, 1));
        // nothing is lost
        check(10, (10, 3), (3, 3), (0, 0));
        // another process wrote two more
        check(10, (12, 0), (0, 0), (0, 2));
    }

    #[test]
    fn what_is_set_aside_is_neither_lost_nor_new() {
        let reckoning = Reckoning {
            before: of(8),
            now: of(8),
            below: of(6),
            in_hand: of(2),
            there: of(2),
            aside: of(6),
        };
        assert_eq!(reckoning.reckon(), (Loads::new(), Loads::new()));
    }
}
