//! Looking at a log from outside: what is in it, whether it is whole, its events. Takes no lock and
//! changes nothing, so that it works beside a running node too.
//!
//! Finds what a start would find, by the same code. What a running node changes meanwhile misleads
//! nobody: the ack record is read before the segments, so that it never bears witness to more than they
//! show; a listing whose segments vanish is begun again; what was released meanwhile is no loss; and a
//! tail that is not known to be synced is no damage. Does not know who asks, nor how it is shown.

mod one;
mod shown;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

pub use shown::{DamageLook, DeadLook, LogLook, ParkedLook, SegmentLook, Standing};

use self::one::{OneLog, Steps, Stream, next_event};
use self::shown::DEAD;
use super::ack::{AckRecord, WRITER};
use super::dead::{DeadState, damage_of, read_all};
use super::log::LogOptions;
use super::open::{OpenError, at, inspect, suffixed};
use super::parked;
use super::recovery::Damage;
use super::segment::{LogKind, begun_of};
use super::slots::{Found, Slots};
use super::state::{FoundState, NodeState, StateFile};
use crate::event::{ChannelName, Event, Name, Origin};
use crate::fsx::{Disk, parent};
use crate::queue::accounts::Load;

/// Where a log lies, and whose it must be.
#[derive(Clone, Debug)]
pub struct LogFiles {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// `queue_file_path`.
    pub path: PathBuf,
    /// `queue_file_ack_path`.
    pub ack_path: PathBuf,
    /// `node_name`.
    pub origin: Origin,
}

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stands {
    /// It is not released.
    pub waits: bool,
    /// In the log of a channel that is set aside.
    pub aside: bool,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this channel.
    pub channel: Option<String>,
    /// From this seq on.
    pub from: Option<u64>,
    /// Up to this seq.
    pub to: Option<u64>,
    /// At most so many.
    pub limit: Option<u64>,
}

/// All logs of a node, and the ack record that was read before them.
struct Survey {
    ack: Option<AckRecord>,
    main: OneLog,
    parked: Vec<(ChannelName, OneLog)>,
    dead: OneLog,
}

impl Survey {
    /// Those that hold events on their way, the main one first.
    fn queues(&self) -> impl Iterator<Item = (Option<&ChannelName>, &OneLog)> {
        let parked = self.parked.iter().map(|(channel, log)| (Some(channel), log));
        std::iter::once((None, &self.main)).chain(parked)
    }

    fn logs(&self) -> impl Iterator<Item = &OneLog> {
        self.queues().map(|(_, log)| log).chain(std::iter::once(&self.dead))
    }
}

impl LogFiles {
    /// Whether there is anything of a log.
    ///
    /// # Errors
    /// What the disk says.
    pub fn exist(&self) -> Result<bool, OpenError> {
        let dir = parent(&self.path);
        if !self.disk.exists(dir) {
            return Ok(false);
        }
        if self.disk.exists(&self.ack_path) || self.disk.exists(&StateFile::path(&self.path)) {
            return Ok(true);
        }
        let bases = [self.path.clone(), self.dead_base()];
        let segment = |name: &String| bases.iter().any(|base| begun_of(base, name).is_some());
        Ok(self.disk.list(dir).map_err(at(dir))?.iter().any(segment))
    }

    /// What the slots, the headers and the last segment show, whatever the backlog; `None` where there
    /// is no log yet. Dead letters are read whole.
    ///
    /// # Errors
    /// Where it is another node's, not ours, newer, or cannot be read.
    pub fn stat(&self) -> Result<Option<LogLook>, OpenError> {
        let Some(survey) = self.survey()? else { return Ok(None) };
        let mut damage = self.damage_of_letters(&survey.dead)?;
        for (channel, log) in survey.queues() {
            let lost = self.still_lost(&survey, channel, log.restored.damage.clone())?;
            damage.extend(log.named(&lost, Standing::Found));
        }
        self.look(&survey, damage).map(Some)
    }

    /// As [`LogFiles::stat`], after reading every frame of every log. `progress` is told how many
    /// bytes of how many are done.
    ///
    /// # Errors
    /// As [`LogFiles::stat`].
    pub fn check(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<LogLook>, OpenError> {
        let Some(survey) = self.survey()? else { return Ok(None) };
        let of = survey.logs().map(OneLog::bytes).sum();
        let mut steps = Steps { done: 0, of, tell: progress };
        let mut damage = Vec::new();
        for (channel, log) in survey.queues() {
            let (lost, resolved) = log.read_through(&mut steps).map_err(at(&log.options.base))?;
            let lost = self.still_lost(&survey, channel, lost)?;
            damage.extend(log.named(&lost, Standing::Found));
            damage.extend(log.named(&resolved, Standing::Resolved));
        }
        damage.extend(self.damage_of_letters(&survey.dead)?);
        steps.done += survey.dead.bytes();
        steps.at(0);
        self.look(&survey, damage).map(Some)
    }

    /// Calls `visit` for the wanted events in order of their seqs, with where each stands. What damage
    /// hides is passed over.
    ///
    /// # Errors
    /// As [`LogFiles::stat`].
    pub fn events(
        &self,
        wanted: &Wanted,
        visit: &mut dyn FnMut(&Event, Stands) -> ControlFlow<()>,
    ) -> Result<(), OpenError> {
        let Some(survey) = self.survey()? else { return Ok(()) };
        let (from, to) = (wanted.from.unwrap_or(0), wanted.to.unwrap_or(u64::MAX));
        let mut left = wanted.limit.unwrap_or(u64::MAX);
        let mut streams: Vec<Stream> = survey.queues().map(|(_, log)| log.stream(from)).collect();
        while left > 0 {
            let next = next_event(&mut streams).map_err(at(&self.path))?;
            let Some((event, stands)) = next.filter(|(event, _)| event.seq.0 <= to) else { break };
            let theirs = wanted.channel.as_ref().is_none_or(|c| c == event.channel.as_str());
            if event.seq.0 < from || !theirs {
                continue;
            }
            left -= 1;
            if visit(&event, stands).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The path of the dead-letter log, without the digits.
    #[must_use]
    pub fn dead_base(&self) -> PathBuf {
        suffixed(&self.path, ".dead")
    }

    fn survey(&self) -> Result<Option<Survey>, OpenError> {
        inspect(self.disk.clone(), &self.path, &self.ack_path, &self.origin)?;
        if !self.exist()? {
            return Ok(None);
        }
        // before the segments are listed
        let ack = self.ack()?;
        let position = ack.as_ref().and_then(|a| a.consumers.get(WRITER));
        let witness = ack.as_ref().map(|a| a.witness);
        let main = self.options(self.path.clone(), LogKind::Queue);
        let main = OneLog::find("log", main, position, witness)?;
        let mut channels = parked::channels(&*self.disk, &self.path).map_err(at(&self.path))?;
        let known = ack.iter().flat_map(|a| a.parked.keys()).filter_map(|c| Name::new(c).ok());
        channels.extend(known);
        channels.sort_unstable();
        channels.dedup();
        let find_parked = |channel: ChannelName| {
            let record = ack.as_ref().and_then(|a| a.parked.get(channel.as_str()));
            let (position, witness) = (record.map(|r| &r.position), record.map(|r| r.witness));
            let options = self.options(parked::base_of(&self.path, &channel), LogKind::Parked);
            let found = OneLog::find(&format!("parked {channel}"), options, position, witness);
            found.map(|log| (channel, log))
        };
        let parked = channels.into_iter().map(find_parked).collect::<Result<Vec<_>, _>>()?;
        let dead = OneLog::find(DEAD, self.options(self.dead_base(), LogKind::Dead), None, None)?;
        Ok(Some(Survey { ack, main, parked, dead }))
    }

    fn options(&self, base: PathBuf, kind: LogKind) -> LogOptions {
        let (disk, origin) = (self.disk.clone(), self.origin.clone());
        LogOptions { disk, base, kind, origin, segment_bytes: 0 }
    }

    /// The ack record; `None` where there is none that can be read.
    fn ack(&self) -> Result<Option<AckRecord>, OpenError> {
        for _ in 0..3 {
            let found = Slots::<AckRecord>::open(&*self.disk, &self.ack_path);
            match found.map_err(at(&self.ack_path))? {
                Found::Good(_, record) => return Ok(Some(record)),
                // a node may be writing one slot while the other is read
                Found::Damaged(_) => {}
                Found::Absent | Found::Foreign => break,
            }
        }
        Ok(None)
    }

    fn state(&self) -> Result<NodeState, OpenError> {
        let path = StateFile::path(&self.path);
        Ok(match StateFile::find(&*self.disk, &self.path).map_err(at(&path))? {
            FoundState::Good(state) => state.record,
            _ => NodeState::default(),
        })
    }

    /// What a node released since the survey is no loss: it was read there, or reported.
    fn still_lost(
        &self,
        survey: &Survey,
        channel: Option<&ChannelName>,
        mut lost: Vec<Damage>,
    ) -> Result<Vec<Damage>, OpenError> {
        if lost.is_empty() {
            return Ok(lost);
        }
        let now = self.ack()?;
        if now == survey.ack {
            return Ok(lost);
        }
        let place = now.as_ref().and_then(|ack| match channel {
            None => ack.consumers.get(WRITER).map(|p| (ack.oldest, p.released)),
            Some(channel) => {
                let record = ack.parked.get(channel.as_str());
                // one that has drained meanwhile has lost nothing either
                Some(record.map_or((u64::MAX, u64::MAX), |r| (r.oldest, r.position.released)))
            }
        });
        if let Some((oldest, released)) = place {
            lost.retain(|d| d.segment >= oldest && d.to > released);
        }
        Ok(lost)
    }

    fn look(&self, survey: &Survey, damage: Vec<DamageLook>) -> Result<LogLook, OpenError> {
        // after everything else: a running node reports what it finds
        let state = self.state()?;
        let named = |d: &Damage| match d.letters {
            true => survey.dead.named(std::slice::from_ref(d), Standing::Reported),
            false => survey.main.named(std::slice::from_ref(d), Standing::Reported),
        };
        let mut all: Vec<DamageLook> = state.damage.iter().flat_map(named).collect();
        for mut found in damage {
            if state.acknowledged.iter().any(|d| d.is_same(&found.damage)) {
                found.standing = Standing::Acknowledged;
            }
            if !all.iter().any(|d| d.damage.is_same(&found.damage)) {
                all.push(found);
            }
        }
        let (ack, any) = (survey.ack.as_ref(), |seq: &u64| *seq > 0);
        let parked = survey.parked.iter().map(|(channel, log)| {
            let waiting = log.waiting().into_values().fold(Load::default(), Load::plus);
            (channel.to_string(), ParkedLook { waiting, segments: log.segments.clone() })
        });
        Ok(LogLook {
            path: self.path.clone(),
            node_name: self.origin.to_string(),
            node_id: state.node_id,
            segments: survey.main.segments.clone(),
            released: ack.and_then(|a| a.consumers.get(WRITER)).map(|p| p.released).filter(any),
            witness: ack.map(|a| a.witness.0).filter(any),
            queued: survey.main.waiting(),
            parked: parked.collect(),
            dead_letters: self.dead_letters(&survey.dead)?,
            damage: all,
        })
    }

    fn damage_of_letters(&self, log: &OneLog) -> Result<Vec<DamageLook>, OpenError> {
        let damage = damage_of(&*self.disk, &log.options.base).map_err(at(&log.options.base))?;
        Ok(log.named(&damage, Standing::Found))
    }

    fn dead_letters(&self, log: &OneLog) -> Result<DeadLook, OpenError> {
        let segments = log.segments.clone();
        let mut look = DeadLook { bytes: log.bytes(), segments, ..DeadLook::default() };
        let counted = read_all(&*self.disk, &log.options.base, &mut |_, _| {}, &mut |letter| {
            *match letter.state {
                DeadState::Dead => &mut look.dead,
                DeadState::Redriving(_) => &mut look.redriving,
                DeadState::Redriven(_) => &mut look.redriven,
                DeadState::Discarded => &mut look.discarded,
            } += 1;
            Ok(())
        });
        counted.map_err(at(&log.options.base))?;
        Ok(look)
    }
}
