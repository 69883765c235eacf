use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::event::{Micros, Name};
use crate::storage::event_store::StoredRow;

const QUICK: Duration = Duration::from_millis(5);

fn lane() -> Lane {
    Lane {
        origin: Name::new("dc2").unwrap(),
        channel: Name::new("a").unwrap(),
        direct: true,
        most: 100,
        pages: 4,
        print: "print".to_owned(),
    }
}

fn relay() -> Lane {
    Lane { direct: false, ..lane() }
}

fn answer(from: u64, seqs: &[u64], next: u64, safe: u64) -> Answer {
    let row = |seq: &u64| StoredRow {
        seq: Seq(*seq),
        node_name: "dc2".to_owned(),
        received_at: Micros(1),
        payload: Bytes::from_static(b"{}"),
    };
    Answer {
        from: Seq(from),
        echoed: true,
        node: Some("dc2".to_owned()),
        node_id: Some("id".to_owned()),
        since: None,
        schema: Some("print".to_owned()),
        safe: Some(Seq(safe)),
        next: Seq(next),
        seen: None,
        now: None,
        behind: None,
        rows: seqs.iter().map(row).collect(),
        unfit: BTreeMap::new(),
    }
}

fn page(answer: Answer) -> Outcome {
    Outcome::Page(Box::new(answer))
}

fn stored(rows: u64) -> Outcome {
    Outcome::Applied(Applied { stored: rows, ..Applied::default() }, QUICK)
}

fn stands_at(cursor: Option<u64>) -> Outcome {
    Outcome::Cursor { usual: cursor.map(Seq), again: None }
}

/// A state that has asked from behind its stored cursor.
fn asked(lane: Lane, cursor: Option<u64>) -> (State, Ask) {
    let (state, action) = step(State::new(lane), Outcome::Turn);
    assert!(matches!(action, Action::Load));
    let (state, action) = step(state, stands_at(cursor));
    let Action::Ask(ask) = action else { panic!("{action:?}") };
    (state, ask)
}

fn applying(state: State, outcome: Outcome) -> (State, Foreign) {
    let (state, action) = step(state, outcome);
    let Action::Apply(foreign) = action else { panic!("{action:?}") };
    (state, foreign)
}

fn resting(state: State, outcome: Outcome) -> (State, Rest) {
    let (state, action) = step(state, outcome);
    let Action::Rest(rest) = action else { panic!("{action:?}") };
    (state, rest)
}

#[test]
fn pages_follow_each_other_from_the_stored_cursor_on() {
    let (state, ask) = asked(lane(), Some(10));
    assert_eq!((ask.from, ask.limit, ask.pages, ask.count), (Seq(11), 100, 4, true));
    let (state, foreign) = applying(state, page(answer(11, &[12, 15], 16, 40)));
    assert_eq!((foreign.expect, foreign.to), (Some(Seq(10)), Seq(15)));
    let (state, action) = step(state, stored(2));
    assert!(matches!(action, Action::Take));
    let (state, foreign) = applying(state, page(answer(16, &[20], 41, 40)));
    // the last page reaches the horizon: what is behind its last row is nothing
    assert_eq!((foreign.expect, foreign.to), (Some(Seq(15)), Seq(40)));
    let (state, rest) = resting(state, stored(1));
    assert_eq!((rest, state.at()), (Rest::Idle, Seq(40)));
    let (_, action) = step(state, Outcome::Turn);
    let Action::Ask(ask) = action else { panic!("{action:?}") };
    assert_eq!((ask.from, ask.count), (Seq(41), false));
}

#[test]
fn an_empty_page_moves_memory_only_until_it_is_flushed() {
    let (state, _) = asked(lane(), Some(10));
    let (state, rest) = resting(state, page(answer(11, &[], 501, 500)));
    assert_eq!((rest, state.at(), state.wants_flush()), (Rest::Idle, Seq(500), true));
    // the next rows name the stored cursor, not the one in memory
    let (state, action) = step(state, Outcome::Turn);
    assert!(matches!(action, Action::Ask(Ask { from: Seq(501), .. })));
    let (state, foreign) = applying(state, page(answer(501, &[505], 506, 505)));
    assert_eq!((foreign.expect, foreign.to), (Some(Seq(10)), Seq(505)));
    let (state, _) = resting(state, stored(1));
    assert!(!state.wants_flush());

    let (state, _) = step(state, Outcome::Turn);
    let (state, _) = resting(state, page(answer(506, &[], 601, 600)));
    let (state, foreign) = applying(state, Outcome::Flush);
    assert_eq!((foreign.expect, foreign.to, foreign.rows.len()), (Some(Seq(505)), Seq(600), 0));
    let (state, _) = resting(state, Outcome::Applied(Applied::default(), QUICK));
    assert!(!state.wants_flush());
    let (_, rest) = resting(state, Outcome::Flush);
    assert_eq!(rest, Rest::Idle);
}

#[test]
fn a_horizon_that_fell_back_moves_nothing_and_blames_nobody() {
    let (state, _) = asked(lane(), Some(500));
    let before = state.at();
    let (state, rest) = resting(state, page(answer(501, &[], 501, 450)));
    assert_eq!((rest, state.at(), state.wants_flush()), (Rest::Idle, before, false));
}

#[test]
fn a_page_of_another_place_is_dropped() {
    let (state, _) = asked(lane(), Some(10));
    let (state, rest) = resting(state, page(answer(16, &[20], 21, 40)));
    assert_eq!(rest, Rest::Failed(Failure::Fault(Fault::Misplaced)));
    assert_eq!(state.at(), Seq(10));
}

#[test]
fn a_cursor_that_another_moved_is_read_anew_and_memory_is_dropped() {
    let (state, _) = asked(lane(), Some(400));
    let (state, _) = resting(state, page(answer(401, &[], 501, 500)));
    let (state, _) = step(state, Outcome::Turn);
    let (state, _) = applying(state, page(answer(501, &[502], 503, 600)));
    let stale = Applied { stale: true, ..Applied::default() };
    let (state, rest) = resting(state, Outcome::Applied(stale, QUICK));
    assert_eq!(rest, Rest::More);
    let (state, action) = step(state, Outcome::Turn);
    assert!(matches!(action, Action::Load));
    let (_, action) = step(state, stands_at(Some(450)));
    assert!(matches!(action, Action::Ask(Ask { from: Seq(451), .. })), "{action:?}");
}

#[test]
fn an_undecided_write_is_settled_by_the_stored_cursor() {
    for (kind, paused) in [(Kind::Retry, false), (Kind::Fatal, true)] {
        let (state, _) = asked(lane(), Some(10));
        let (state, _) = applying(state, page(answer(11, &[12], 13, 40)));
        let (state, rest) = resting(state, Outcome::NotApplied(kind, "why".to_owned()));
        assert_eq!(matches!(rest, Rest::Paused(_)), paused, "{rest:?}");
        let (_, action) = step(state, Outcome::Turn);
        assert!(matches!(action, Action::Load));
    }
}

#[test]
fn through_a_relay_and_at_an_old_peer_the_cursor_moves_to_the_last_row() {
    let old = Answer { echoed: false, safe: None, schema: None, ..answer(11, &[12], 13, 0) };
    for (lane, answer) in [(relay(), answer(11, &[12], 41, 40)), (lane(), old)] {
        let (state, _) = asked(lane.clone(), Some(10));
        let (_, foreign) = applying(state, page(answer));
        assert_eq!(foreign.to, Seq(12), "{lane:?}");
    }
    let (state, _) = asked(relay(), Some(10));
    let (state, rest) = resting(state, page(answer(11, &[], 501, 500)));
    assert_eq!((rest, state.at()), (Rest::Idle, Seq(10)));
}

#[test]
fn after_a_timeout_pages_are_half_as_big_down_to_one_event_and_grow_again() {
    let (mut state, ask) = asked(lane(), Some(10));
    assert_eq!(ask.limit, 100);
    for limit in [50, 25, 12, 6, 3, 1, 1] {
        let (next, rest) = resting(state, Outcome::Failed(Failure::TimedOut(QUICK)));
        assert!(matches!(rest, Rest::Failed(Failure::TimedOut(_))));
        let (next, action) = step(next, Outcome::Turn);
        let Action::Ask(ask) = action else { panic!("{action:?}") };
        assert_eq!((ask.limit, ask.pages), (limit, 1));
        state = next;
    }
    let (state, _) = applying(state, page(answer(11, &[11], 12, 40)));
    let (state, rest) = resting(state, stored(1));
    assert_eq!(rest, Rest::More);
    let (_, action) = step(state, Outcome::Turn);
    assert!(matches!(action, Action::Ask(Ask { limit: 2, .. })));
}

#[test]
fn a_slow_write_makes_pages_smaller() {
    let (state, _) = asked(lane(), Some(10));
    let (state, _) = applying(state, page(answer(11, &[11], 12, 11)));
    let slow = Outcome::Applied(Applied { stored: 1, ..Applied::default() }, 2 * SLOW);
    let (state, _) = resting(state, slow);
    let (_, action) = step(state, Outcome::Turn);
    assert!(matches!(action, Action::Ask(Ask { limit: 50, .. })), "{action:?}");
}

#[test]
fn a_peer_out_of_reach_makes_no_page_smaller() {
    let (state, _) = asked(lane(), Some(10));
    let (state, _) = resting(state, Outcome::Failed(Failure::Lost("refused".to_owned())));
    let (_, action) = step(state, Outcome::Turn);
    assert!(matches!(action, Action::Ask(Ask { limit: 100, .. })));
}

#[test]
fn an_answer_that_ends_early_goes_on_in_the_next_turn_unless_it_held_nothing() {
    let (state, _) = asked(lane(), Some(10));
    let (state, rest) = resting(state, Outcome::End);
    assert!(matches!(rest, Rest::Failed(Failure::Cut(_))), "{rest:?}");
    let (state, _) = step(state, Outcome::Turn);
    let (state, _) = applying(state, page(answer(11, &[12], 13, 40)));
    let (_, rest) = resting(state, stored(1));
    assert_eq!(rest, Rest::More, "one page was asked for");
    let (full, _) = asked(lane(), Some(10));
    let (full, _) = applying(full, page(answer(11, &[12], 13, 40)));
    let (full, action) = step(full, stored(1));
    assert!(matches!(action, Action::Take));
    assert_eq!(resting(full, Outcome::End).1, Rest::More);
}

#[test]
fn a_schema_is_judged_once_before_anything_of_it_is_stored() {
    let other = || Answer { schema: Some("other".to_owned()), ..answer(11, &[12], 13, 40) };
    let (state, _) = asked(lane(), Some(10));
    let (state, action) = step(state, page(other()));
    assert!(matches!(action, Action::Judge(ref print) if print == "other"));
    let misfit = state.clone();
    let (state, rest) = resting(state, Outcome::Schema(Ok(())));
    assert_eq!((rest, state.at()), (Rest::More, Seq(10)));
    let (state, _) = step(state, Outcome::Turn);
    let (_, foreign) = applying(state, page(other()));
    assert_eq!(foreign.rows.len(), 1);

    let (misfit, rest) = resting(misfit, Outcome::Schema(Err("no column n".to_owned())));
    assert_eq!(rest, Rest::Paused("no column n".to_owned()));
    // looked at again later, and judged again
    let (misfit, _) = step(misfit, Outcome::Turn);
    let (misfit, action) = step(misfit, page(other()));
    assert!(matches!(action, Action::Judge(_)));
    assert_eq!(misfit.at(), Seq(10));
}

#[test]
fn too_much_in_quarantine_stops_the_channel_until_an_operator_resumes_it() {
    let (state, _) = asked(lane(), Some(10));
    let (state, foreign) = applying(state, page(answer(11, &[12], 13, 40)));
    assert_eq!(foreign.streak, 0);
    let one = Applied { quarantined: 1, streak: 1, ..Applied::default() };
    let (state, _) = step(state, Outcome::Applied(one, QUICK));
    let (state, foreign) = applying(state, page(answer(13, &[14], 15, 40)));
    assert_eq!(foreign.streak, 1, "the storage goes on counting");
    let many = Applied { too_many: true, ..Applied::default() };
    let (state, rest) = resting(state, Outcome::Applied(many, QUICK));
    assert!(matches!(rest, Rest::Stopped(_)) && state.stopped().is_some());
    for outcome in [Outcome::Turn, Outcome::Flush, stands_at(None)] {
        assert!(matches!(resting(state.clone(), outcome).1, Rest::Stopped(_)));
    }
    let mut state = state;
    state.resume();
    assert!(matches!(step(state, Outcome::Turn).1, Action::Load));
}

#[test]
fn a_channel_that_the_peer_lacks_pauses() {
    let (state, _) = asked(lane(), Some(10));
    let (state, rest) = resting(state, Outcome::Failed(Failure::NotFound));
    assert!(matches!(rest, Rest::Paused(_)));
    assert!(matches!(step(state, Outcome::Turn).1, Action::Ask(_)));
}

#[test]
fn reading_again_has_a_cursor_of_its_own_until_it_has_come_to_the_usual_one() {
    let found = |at: u64, usual: u64| {
        let again = Some(("new".to_owned(), Seq(at)));
        Outcome::Cursor { usual: Some(Seq(usual)), again }
    };
    let (state, _) = step(State::new(lane()), Outcome::Turn);
    let (state, action) = step(state, found(40, 60));
    assert!(matches!(action, Action::Ask(Ask { from: Seq(41), .. })), "{action:?}");
    let (state, foreign) = applying(state, page(answer(41, &[42], 43, 60)));
    assert_eq!((foreign.again.as_deref(), foreign.expect), (Some("new"), Some(Seq(40))));
    let (state, _) = step(state, stored(1));
    assert_eq!(state.read_again(), None);
    // a crash in the middle: it is found where it was
    let (state, _) = step(State::new(lane()), Outcome::Turn);
    let (state, _) = step(state, found(42, 60));
    let (state, rest) = resting(state, page(answer(43, &[], 101, 100)));
    assert_eq!((rest, state.read_again()), (Rest::Idle, None), "not before it is stored");
    let (state, foreign) = applying(state, Outcome::Flush);
    assert_eq!((foreign.again.as_deref(), foreign.to), (Some("new"), Seq(100)));
    let (mut state, _) = resting(state, stored(0));
    assert_eq!(state.read_again(), Some(("new", Seq(100))));
    // then the usual one is followed
    state.forget();
    let (state, action) = step(state, Outcome::Turn);
    assert!(matches!(action, Action::Load));
    let (state, action) = step(state, stands_at(Some(100)));
    assert!(matches!(action, Action::Ask(Ask { from: Seq(101), .. })), "{action:?}");
    let (_, foreign) = applying(state, page(answer(101, &[102], 103, 102)));
    assert_eq!(foreign.again, None);
}

#[test]
fn what_was_forgotten_is_asked_for_from_the_stored_cursor_on() {
    let (state, _) = asked(lane(), Some(500));
    let (mut state, _) = resting(state, page(answer(501, &[], 601, 600)));
    state.forget();
    let (state, _) = step(state, Outcome::Turn);
    // the storage went back
    let (_, action) = step(state, stands_at(Some(400)));
    assert!(matches!(action, Action::Ask(Ask { from: Seq(401), .. })), "{action:?}");
}

#[test]
fn no_order_of_outcomes_moves_the_cursor_without_the_storage() {
    // every outcome in every order of three, from every phase that they lead to
    let outcomes: [fn() -> Outcome; 9] = [
        || Outcome::Turn,
        || stands_at(Some(10)),
        || page(answer(11, &[12], 13, 40)),
        || page(answer(11, &[], 41, 40)),
        || Outcome::End,
        || Outcome::Failed(Failure::TimedOut(QUICK)),
        || Outcome::Schema(Ok(())),
        || Outcome::NotApplied(Kind::Retry, String::new()),
        || Outcome::Flush,
    ];
    let mut states = vec![State::new(lane())];
    for _ in 0..4 {
        let mut next = Vec::new();
        for state in states {
            for outcome in outcomes {
                let (after, action) = step(state.clone(), outcome());
                if let Action::Apply(foreign) = &action {
                    assert_eq!(foreign.expect, after.stored, "{foreign:?}");
                    assert!(foreign.to >= after.stored.unwrap_or_default());
                }
                assert!(after.stored.is_none_or(|stored| stored == Seq(10)));
                next.push(after);
            }
        }
        next.sort_by_key(|state| format!("{state:?}"));
        next.dedup();
        states = next;
    }
    assert!(states.len() > 10, "{} states were looked at", states.len());
}
