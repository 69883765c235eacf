//! How nodes of the simulation pull: the real steps, and what the task of a peer does around them.
//!
//! Does not know the network; answers are handed in.

use std::time::Duration;

use bytes::Bytes;
use replicon::event::Seq;
use replicon::replicate::life::{Lives, Meeting};
use replicon::replicate::pull::{Action, Failure, Outcome, Rest, step};
use replicon::replicate::wire;
use replicon::storage::Kind;
use replicon::storage::event_store::Foreign;

use super::node::{CHANNELS, LaneKey, Node, Pulled};
use super::world::{Asked, Happening, World};

impl World {
    /// All channels of all peers, from their stored cursors on.
    pub(super) fn begin(&mut self, me: usize) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != me) {
            let ids = self.nodes[me].store.ids.get(&peer).cloned().unwrap_or_default();
            self.nodes[me].lives.insert(peer, Lives::new(ids));
            for on in 0..CHANNELS.len() {
                self.open(me, (peer, peer, on));
            }
        }
    }

    fn open(&mut self, me: usize, key: LaneKey) {
        let token = self.count;
        let node = &mut self.nodes[me];
        let state = Some(Node::fresh(key));
        node.lanes.insert(key, Pulled { state, token });
        let epoch = node.epoch;
        self.after(0, 3, Happening::Turn(me, epoch, key, token));
    }

    /// A turn, unless the channel has moved on since it was planned.
    pub(super) fn turn(
        &mut self,
        me: usize,
        epoch: u64,
        key: LaneKey,
        token: u64,
    ) -> Result<(), String> {
        if self.waits(me, epoch, key, token) {
            return self.feed(me, key, Outcome::Turn);
        }
        Ok(())
    }

    /// Whether the channel still waits for this.
    fn waits(&self, me: usize, epoch: u64, key: LaneKey, token: u64) -> bool {
        let node = &self.nodes[me];
        node.epoch == epoch && node.lanes.get(&key).is_some_and(|lane| lane.token == token)
    }

    /// Steps until something has to be waited for.
    fn feed(&mut self, me: usize, key: LaneKey, mut outcome: Outcome) -> Result<(), String> {
        loop {
            let token = self.count;
            let node = &mut self.nodes[me];
            let Some(lane) = node.lanes.get_mut(&key) else { return Ok(()) };
            let Some(state) = lane.state.take() else { return Ok(()) };
            let (state, action) = step(state, outcome);
            (lane.state, lane.token) = (Some(state), token);
            let epoch = node.epoch;
            match action {
                Action::Load => {
                    let (usual, again) = node.load(key);
                    let again = again.map(|(id, seq)| (id, Seq(seq)));
                    outcome = Outcome::Cursor { usual: usual.map(Seq), again };
                }
                Action::Ask(ask) => {
                    let known = node.knows(key.0);
                    self.send(Asked { by: me, epoch, key, token, ask, known });
                    return Ok(());
                }
                Action::Judge(print) => return Err(format!("a schema to judge: {print}")),
                Action::Take => return Err("one page was asked for".to_owned()),
                Action::Apply(foreign) => {
                    self.after(0, 8, Happening::Applies(me, epoch, key, token, foreign));
                    return Ok(());
                }
                Action::Rest(rest) => return self.rests(me, key, token, rest),
            }
        }
    }

    fn rests(&mut self, me: usize, key: LaneKey, token: u64, rest: Rest) -> Result<(), String> {
        let (low, high) = match rest {
            Rest::More => (0, 1),
            Rest::Idle => (5, 20),
            Rest::Failed(_) | Rest::Storage(_) => (10, 40),
            Rest::Paused(why) | Rest::Stopped(why) => return Err(format!("stopped: {why}")),
        };
        let epoch = self.nodes[me].epoch;
        self.after(low, high, Happening::Turn(me, epoch, key, token));
        self.finish(me, key);
        Ok(())
    }

    /// A peer goes by another id: it is kept what is to be read again, then the id is followed.
    fn part(&mut self, me: usize, peer: usize, id: &str, since: u64) {
        self.nodes[me].keep_again(peer, id, since);
        if self.chance(20) {
            self.down(me, |_| {});
            return;
        }
        self.nodes[me].accept(peer, id, since);
        for on in 0..CHANNELS.len() {
            self.open(me, (peer, peer, on));
        }
    }

    /// What was read again up to the usual cursor is followed by that one alone.
    fn finish(&mut self, me: usize, (peer, of, on): LaneKey) {
        let node = &mut self.nodes[me];
        let lane = node.lanes.get_mut(&(peer, of, on));
        let Some(state) = lane.and_then(|lane| lane.state.as_mut()) else { return };
        let Some((id, at)) = state.read_again().map(|(id, at)| (id.to_owned(), at.0)) else {
            return;
        };
        state.forget();
        let usual = node.store.cursors.get(&(of, on)).copied();
        let key = (of, on, id);
        if node.store.again.get(&key) == Some(&at) && usual <= Some(at) {
            node.store.again.remove(&key);
        }
    }

    pub(super) fn flush(&mut self, me: usize) -> Result<(), String> {
        self.after(30, 90, Happening::Flush(me));
        let lanes = &self.nodes[me].lanes;
        let wants = |lane: &Pulled| lane.state.as_ref().is_some_and(|state| state.wants_flush());
        let dirty: Vec<LaneKey> =
            lanes.iter().filter(|(_, lane)| wants(lane)).map(|(key, _)| *key).collect();
        for key in dirty {
            self.feed(me, key, Outcome::Flush)?;
        }
        Ok(())
    }

    /// A page is stored, whoever still waits for it.
    pub(super) fn applies(
        &mut self,
        me: usize,
        epoch: u64,
        key: LaneKey,
        token: u64,
        foreign: &Foreign,
    ) -> Result<(), String> {
        if self.nodes[me].epoch != epoch {
            return Ok(());
        }
        let (peer, of, on) = key;
        let waits = self.waits(me, epoch, key, token);
        if peer == of && !waits {
            // one task a peer: nothing was under way when its history parted
            return Ok(());
        }
        let applied = self.nodes[me].apply(of, on, foreign)?;
        if !applied.stale {
            if peer == of {
                self.nodes[me].passes(of, foreign.to.0);
            }
            self.seen.pages += 1;
            self.seen.relayed += if peer == of { 0 } else { foreign.rows.len() as u64 };
            self.no_gap(me, of, on)?;
        }
        if !waits {
            return Ok(());
        }
        let outcome = if self.chance(3) {
            // it is committed, and nobody is told
            Outcome::NotApplied(Kind::Retry, "the answer was lost".to_owned())
        } else {
            Outcome::Applied(applied, Duration::from_millis(1))
        };
        self.feed(me, key, outcome)
    }

    /// Everything at or below the cursor that its origin still has is here.
    fn no_gap(&self, me: usize, of: usize, on: usize) -> Result<(), String> {
        let store = &self.nodes[me].store;
        let cursor = store.cursors.get(&(of, on)).copied().unwrap_or(0);
        for event in self.nodes[of].log.iter().filter(|e| e.channel == on && e.seq <= cursor) {
            if store.rows.get(&(of, event.seq)) != Some(&(on, event.number)) {
                return Err(format!(
                    "dc{me} stands at {cursor} in channel {} of dc{of}, and has not {}",
                    CHANNELS[on], event.seq
                ));
            }
        }
        Ok(())
    }

    /// An answer, or what came instead.
    pub(super) fn delivered(
        &mut self,
        asked: &Asked,
        result: Result<Bytes, Failure>,
    ) -> Result<(), String> {
        let (me, key) = (asked.by, asked.key);
        if !self.waits(me, asked.epoch, key, asked.token) {
            return Ok(());
        }
        let (peer, of, _) = key;
        let current = self.nodes[peer].life.clone();
        let node = &mut self.nodes[me];
        let decoded = result.and_then(|bytes| Ok(wire::decode(&asked.ask, &bytes)?));
        // one connection a peer: what was answered under an id before is not read after its end
        let decoded = decoded.and_then(|answer| match answer.node_id.as_deref() {
            Some(id) if id == current => Ok(answer),
            _ => Err(Failure::Cut("reset".to_owned())),
        });
        let answer = match decoded {
            Ok(answer) => answer,
            Err(failure) => {
                self.seen.garbled += u64::from(matches!(failure, Failure::Fault(_)));
                if !failure.answered() {
                    *node.failures.entry(peer).or_default() += 1;
                }
                self.relays(me);
                return self.feed(me, key, Outcome::Failed(failure));
            }
        };
        node.failures.insert(peer, 0);
        if peer == of {
            let lives = node.lives.entry(peer).or_default();
            match lives.meet(&current, answer.since) {
                Meeting::Known => {}
                Meeting::First => {
                    lives.accepted(&current);
                    node.store.ids.entry(peer).or_default().push(current);
                }
                Meeting::Again(since) => {
                    self.part(me, peer, &current, since.0);
                    return Ok(());
                }
                Meeting::Returned => return Err(format!("dc{me}: {current} of dc{peer} returned")),
            }
        }
        self.relays(me);
        self.feed(me, key, Outcome::Page(Box::new(answer)))
    }

    /// Who cannot be reached is pulled from the others, and no longer when it is back.
    fn relays(&mut self, me: usize) {
        let all = self.nodes.len();
        for of in (0..all).filter(|of| *of != me) {
            let out = self.nodes[me].failures.get(&of).is_some_and(|count| *count >= 3);
            for peer in (0..all).filter(|peer| *peer != me && *peer != of) {
                for on in 0..CHANNELS.len() {
                    let key = (peer, of, on);
                    let open = self.nodes[me].lanes.contains_key(&key);
                    if out && !open {
                        self.open(me, key);
                    } else if !out && open {
                        self.nodes[me].lanes.remove(&key);
                    }
                }
            }
        }
    }
}
