use std::collections::BTreeMap;

use super::*;
use crate::event::Name;

fn name(text: &str) -> ChannelName {
    Name::new(text).unwrap()
}

fn empty() -> Marks {
    Marks::new(Start { base: 100, ..Start::default() })
}

fn write(marks: &mut Marks, channel: &str, first: u64, last: u64) {
    marks.written([(&name(channel), Seq(first), Seq(last))].into_iter());
    marks.shown(Seq(last));
}

fn lease(marks: &mut Marks, id: u64, through: u64, firsts: &[(&str, u64)]) {
    let firsts = firsts.iter().map(|(channel, first)| (name(channel), Seq(*first))).collect();
    marks.leased(id, Seq(through), firsts);
}

#[test]
fn a_peer_between_what_was_found_and_what_is_new_has_seen_what_is_gone() {
    let mut marks = Marks::new(Start { assigned: Seq(100), end: Seq(100), ..Start::default() });
    assert!(marks.may_have_shown(Seq(100)) && !marks.may_have_shown(Seq(101)));
    let channel = Name::new("a").unwrap();
    marks.written([(&channel, Seq(900), Seq(902))].into_iter());
    assert!(!marks.may_have_shown(Seq(500)));
    assert!(marks.may_have_shown(Seq(899)), "right below what is not resolved yet");
    // under another id all of it is final
    marks.begin_anew_below(Seq(900));
    assert!(marks.may_have_shown(Seq(500)));
    let mut marks = empty();
    marks.begin_anew_below(Seq(2_000));
    assert_eq!(marks.safe(&channel), Seq(1_999), "what the other ids may have had is final");
    assert!(marks.may_have_shown(Seq(1_500)));
}

#[test]
fn what_the_storage_lacks_again_holds_its_channel_back_until_it_is_paid() {
    let mut marks = empty();
    write(&mut marks, "a", 1, 10);
    lease(&mut marks, 1, 10, &[("a", 1)]);
    marks.resolved(1);
    let asked = marks.changes(None).number;
    marks.owed(&name("a"), Some(Seq(4)));
    assert_eq!((marks.safe(&name("a")), marks.safe(&name("b"))), (Seq(3), Seq(10)));
    assert_eq!(marks.whole(), Seq(3));
    marks.owed(&name("a"), None);
    assert_eq!(marks.safe(&name("a")), Seq(10));
    assert_eq!(marks.changes(Some(asked)).channels, Some(vec![name("a")]));
}

#[test]
fn a_page_never_passes_a_batch_that_is_still_under_way() {
    let mut marks = empty();
    write(&mut marks, "a", 1, 400);
    assert_eq!(marks.safe(&name("a")), Seq(0));
    lease(&mut marks, 1, 200, &[("a", 1)]);
    lease(&mut marks, 2, 400, &[("a", 201)]);
    marks.resolved(2);
    assert_eq!(marks.safe(&name("a")), Seq(0), "1 to 200 are not stored yet");
    marks.resolved(1);
    assert_eq!(marks.safe(&name("a")), Seq(400));
}

#[test]
fn an_idle_channel_follows_the_last_seq_and_never_goes_back() {
    let mut marks = empty();
    write(&mut marks, "busy", 1, 100);
    assert_eq!(marks.safe(&name("idle")), Seq(100));
    write(&mut marks, "idle", 101, 101);
    assert_eq!(marks.safe(&name("idle")), Seq(100), "101 itself is not stored");
    lease(&mut marks, 1, 50, &[("busy", 1)]);
    assert_eq!(marks.safe(&name("idle")), Seq(100));
    lease(&mut marks, 2, 101, &[("busy", 51), ("idle", 101)]);
    assert_eq!(marks.safe(&name("idle")), Seq(100));
    marks.resolved(2);
    assert_eq!(marks.safe(&name("idle")), Seq(101));
    assert_eq!(marks.safe(&name("busy")), Seq(0));
}

#[test]
fn a_seq_whose_write_failed_is_passed_only_when_it_is_void() {
    let mut marks = empty();
    write(&mut marks, "a", 1, 1);
    lease(&mut marks, 1, 1, &[("a", 1)]);
    marks.resolved(1);
    // 2 to 9 were given out, and their write failed: nobody showed them
    assert_eq!(marks.safe(&name("a")), Seq(1));
    marks.void_below(Seq(10));
    assert_eq!(marks.safe(&name("a")), Seq(9));
}

#[test]
fn what_is_set_aside_counts_until_it_is_resolved() {
    let mut marks = empty();
    write(&mut marks, "a", 1, 10);
    write(&mut marks, "b", 11, 12);
    lease(&mut marks, 1, 12, &[("a", 1), ("b", 11)]);
    marks.parked(&name("a"), Seq(5));
    marks.resolved(1);
    assert_eq!(marks.safe(&name("a")), Seq(4), "1 to 4 were stored");
    assert_eq!(marks.safe(&name("b")), Seq(12), "another channel goes on");
    marks.parked_to(&name("a"), Seq(8));
    assert_eq!(marks.safe(&name("a")), Seq(7));
    marks.unparked(&name("a"));
    assert_eq!(marks.safe(&name("a")), Seq(12));
}

#[test]
fn after_a_start_the_backlog_is_unresolved_and_the_other_channels_are_free() {
    let start = Start {
        assigned: Seq(5_000),
        read: Seq(450),
        end: Seq(600),
        shown: Seq(600),
        backlog: vec![Some(name("a"))],
        parked: vec![(name("p"), Seq(20))],
        base: 7,
    };
    let mut marks = Marks::new(start.clone());
    assert_eq!(marks.safe(&name("a")), Seq(450));
    assert_eq!(marks.safe(&name("p")), Seq(19));
    assert_eq!(marks.safe(&name("idle")), Seq(5_000));
    lease(&mut marks, 1, 600, &[("a", 460)]);
    assert_eq!(marks.safe(&name("a")), Seq(459));
    marks.resolved(1);
    assert_eq!(marks.safe(&name("a")), Seq(5_000));

    // damage hid whose events they are
    let mut marks = Marks::new(Start { backlog: vec![None], ..start });
    assert_eq!(marks.safe(&name("idle")), Seq(450));
    assert_eq!(marks.safe(&name("p")), Seq(19));
    // the reader comes to the end without a further event: what was lost is resolved
    let end = marks.shown_to();
    marks.passed(end);
    assert_eq!(marks.safe(&name("idle")), Seq(5_000));
}

#[test]
fn before_its_log_is_met_nothing_is_safe_and_nobody_is_doubted() {
    let mut marks = Marks::unmet(100);
    assert_eq!(marks.safe(&name("a")), Seq(0));
    assert!(marks.may_have_shown(Seq(4_000)), "what is not known cannot be denied");
    let asked = marks.changes(None).number;
    marks.begin(Start {
        assigned: Seq(50),
        read: Seq(9),
        end: Seq(40),
        shown: Seq(40),
        backlog: vec![Some(name("a"))],
        ..Start::default()
    });
    assert_eq!((marks.safe(&name("a")), marks.safe(&name("idle"))), (Seq(9), Seq(50)));
    assert!(marks.may_have_shown(Seq(50)) && !marks.may_have_shown(Seq(51)));
    let changes = marks.changes(Some(asked));
    assert_eq!(changes.channels, None, "all may have gained");
    assert!(changes.number > asked);
    write(&mut marks, "a", 60, 60);
    assert!(marks.may_have_shown(Seq(60)) && !marks.may_have_shown(Seq(55)));
}

#[test]
fn what_s_has_passed_does_not_hold_it_back_when_it_is_read_again() {
    let mut marks = empty();
    write(&mut marks, "a", 1, 10);
    write(&mut marks, "b", 11, 20);
    lease(&mut marks, 1, 20, &[("a", 1), ("b", 11)]);
    marks.resolved(1);
    write(&mut marks, "a", 21, 30);
    // 3 and 4 come again, together with what was never read
    let (a, b) = (name("a"), name("b"));
    let again = [(&a, 3), (&a, 4), (&b, 12), (&a, 21)];
    marks.leased_again(2, Seq(21), again.map(|(channel, seq)| (channel, Seq(seq))).into_iter());
    assert_eq!((marks.safe(&a), marks.safe(&b)), (Seq(20), Seq(30)));
    marks.parked_again(&b, [Seq(13), Seq(14)].into_iter());
    assert_eq!(marks.safe(&b), Seq(30), "they were resolved once");
    marks.parked_again(&a, [Seq(5), Seq(25), Seq(22)].into_iter());
    marks.resolved(2);
    marks.passed(Seq(30));
    assert_eq!(marks.safe(&a), Seq(21), "22 and 25 were not");
    marks.unparked(&a);
    assert_eq!(marks.safe(&a), Seq(30));
}

#[test]
fn events_that_nobody_counted_hold_back_every_channel_until_they_are_read() {
    let mut marks = empty();
    write(&mut marks, "a", 1, 1);
    lease(&mut marks, 1, 1, &[("a", 1)]);
    marks.resolved(1);
    marks.uncounted(Seq(8));
    write(&mut marks, "b", 9, 9);
    let all = |marks: &Marks| ["a", "b", "idle"].map(|channel| marks.safe(&name(channel)).0);
    assert_eq!(all(&marks), [1, 1, 1]);
    lease(&mut marks, 2, 5, &[("c", 4)]);
    assert_eq!(all(&marks), [5, 5, 5]);
    assert_eq!(marks.safe(&name("c")), Seq(3));
    marks.resolved(2);
    let asked = marks.changes(None).number;
    lease(&mut marks, 3, 9, &[("b", 9)]);
    assert_eq!(all(&marks), [9, 8, 9]);
    let gained = marks.changes(Some(asked)).channels.unwrap();
    assert!(gained.contains(&name("c")), "what was stored before shows now: {gained:?}");
    assert_eq!(marks.whole(), Seq(8));
}

#[test]
fn changes_name_the_channels_that_gained_events() {
    let mut marks = empty();
    let all = Changes { number: 100, channels: None };
    for unknown in [None, Some(99), Some(101)] {
        assert_eq!(marks.changes(unknown), all, "{unknown:?}");
    }
    assert_eq!(marks.changes(Some(100)).channels, Some(vec![]));
    write(&mut marks, "a", 1, 1);
    write(&mut marks, "b", 2, 2);
    assert_eq!(marks.changes(Some(100)).channels, Some(vec![]), "nothing is safe yet");
    lease(&mut marks, 1, 1, &[("a", 1)]);
    lease(&mut marks, 2, 2, &[("b", 2)]);
    marks.resolved(2);
    let first = marks.changes(Some(100));
    assert_eq!(first.channels, Some(vec![name("b")]));
    marks.resolved(1);
    assert_eq!(marks.changes(Some(first.number)).channels, Some(vec![name("a")]));
    assert_eq!(marks.changes(Some(100)).channels, Some(vec![name("a"), name("b")]));
}

#[tokio::test]
async fn whoever_registers_before_the_look_misses_nothing() {
    let watermark = Watermark::new(Start::default());
    let mut bell = watermark.bell();
    let before = watermark.changes(None).number;
    watermark.with(|marks| {
        write(marks, "a", 1, 1);
        lease(marks, 1, 1, &[("a", 1)]);
        marks.resolved(1);
    });
    bell.changed().await.unwrap();
    assert_eq!(watermark.changes(Some(before)).channels, Some(vec![name("a")]));
}

#[test]
fn the_first_seq_of_each_channel_is_found_once() {
    let (a, b) = (name("a"), name("b"));
    let events = [(&a, 1), (&a, 2), (&b, 3), (&a, 4), (&b, 5)];
    let found = firsts(events.into_iter().map(|(channel, seq)| (channel, Seq(seq))));
    assert_eq!(found, [(a, Seq(1)), (b, Seq(3))]);
}

/// Small and seeded.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What is true, event by event.
#[derive(Default)]
struct Model {
    /// Unresolved events and their channels.
    open: BTreeMap<u64, usize>,
    assigned: u64,
    read: u64,
    leases: Vec<(u64, Vec<u64>)>,
    parked: Vec<u64>,
}

const CHANNELS: [&str; 4] = ["a", "b", "c", "rare"];

impl Model {
    fn safe(&self, channel: usize) -> u64 {
        let first = self.open.iter().find(|(_, of)| **of == channel);
        first.map_or(self.assigned, |(seq, _)| seq - 1)
    }

    fn write(&mut self, marks: &mut Marks, dice: &mut Dice) {
        // a gap now and then: a clock that jumped, or requests that were taken out
        let first = self.assigned + 1 + if dice.throw(5) == 0 { dice.throw(50) } else { 0 };
        let channel = if dice.throw(40) == 0 { 3 } else { dice.throw(3) as usize };
        let last = first + dice.throw(6);
        self.open.extend((first..=last).map(|seq| (seq, channel)));
        self.assigned = last;
        write(marks, CHANNELS[channel], first, last);
    }

    fn lease(&mut self, marks: &mut Marks, dice: &mut Dice, id: u64) {
        let most = 1 + dice.throw(12) as usize;
        let unread = self.open.range(self.read + 1..).map(|(seq, of)| (*seq, *of));
        let taken: Vec<(u64, usize)> = unread.take(most).collect();
        let Some((through, _)) = taken.last().copied() else {
            let end = marks.shown_to();
            marks.passed(end);
            return;
        };
        let names: Vec<(ChannelName, Seq)> =
            taken.iter().map(|(seq, of)| (name(CHANNELS[*of]), Seq(*seq))).collect();
        let firsts = firsts(names.iter().map(|(channel, seq)| (channel, *seq)));
        marks.leased(id, Seq(through), firsts);
        self.read = through;
        self.leases.push((id, taken.into_iter().map(|(seq, _)| seq).collect()));
    }

    fn end(&mut self, marks: &mut Marks, dice: &mut Dice) {
        if self.leases.is_empty() {
            return;
        }
        let at = dice.throw(self.leases.len() as u64) as usize;
        let (id, events) = self.leases.swap_remove(at);
        for seq in events {
            // one channel gets stuck now and then
            if self.open.get(&seq) == Some(&1) && dice.throw(8) == 0 {
                marks.parked(&name(CHANNELS[1]), Seq(seq));
                self.parked.push(seq);
            } else {
                self.open.remove(&seq);
            }
        }
        marks.resolved(id);
    }

    fn drain(&mut self, marks: &mut Marks) {
        for seq in self.parked.drain(..) {
            self.open.remove(&seq);
        }
        marks.unparked(&name(CHANNELS[1]));
    }
}

#[test]
fn random_orders_of_leases_never_show_more_than_is_resolved() {
    for seed in 1..=400_u64 {
        let (mut marks, mut model) = (empty(), Model::default());
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut before = [0; CHANNELS.len()];
        for id in 0..300 {
            match dice.throw(8) {
                0..3 => model.write(&mut marks, &mut dice),
                3..5 => model.lease(&mut marks, &mut dice, id),
                5..7 => model.end(&mut marks, &mut dice),
                _ => model.drain(&mut marks),
            }
            for (at, channel) in CHANNELS.iter().enumerate() {
                let safe = marks.safe(&name(channel)).0;
                let most = model.safe(at);
                assert!(
                    safe <= most,
                    "seed {seed}, step {id}: {channel} at {safe}, {most} is true"
                );
                assert!(
                    safe >= before[at],
                    "seed {seed}, step {id}: {channel} went back to {safe}"
                );
                before[at] = safe;
            }
        }
        while !model.leases.is_empty() {
            model.end(&mut marks, &mut dice);
        }
        while model.open.range(model.read + 1..).next().is_some() {
            model.lease(&mut marks, &mut dice, 1_000);
            model.end(&mut marks, &mut dice);
        }
        model.drain(&mut marks);
        for channel in CHANNELS {
            assert_eq!(
                marks.safe(&name(channel)).0,
                model.assigned,
                "seed {seed}: all is resolved"
            );
        }
    }
}
