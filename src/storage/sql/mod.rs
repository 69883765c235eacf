//! SQL storage: one flow for all databases. Dialects are data, executors only bind and stream.
//!
//! Does not know the queue, HTTP, or which database it is. A batch is one transaction: the origin's
//! row is held for share first, so that two processes can never write as one node; then the rows go
//! by the fastest road, and only where one stands there already by the idempotent one, which compares
//! what stands with what would be written.

mod apply;
pub mod contact;
pub mod dialect;
mod history;
mod mend;
pub mod mysql;
mod pooled;
pub mod postgres;
mod replay;
pub mod report;
pub mod route;
pub mod schema;
pub mod session;
mod sift;
pub mod sqlite;
mod store;
pub mod table;
pub mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::history::Found;
use super::{Contact, Kind, Refused, Storage, StorageError};
use crate::channel::Registry;
use crate::clock::Clock;
use crate::event::{ChannelName, Event, Origin, Seq};
use contact::Ready;
use dialect::Class;
use history::Incarnation;
use route::{Moments, Part, Targets, route};
use session::{Backend, NO_SIEVE, Param, Record, Session, SqlError, TextRow};
use table::Table;

/// Where an error came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before events were written.
    Before,
    /// While this part was.
    Part(usize),
    /// When all were.
    Commit,
}

/// Two transactions that meet are tried again at once, so often.
const MEETINGS: usize = 20;

/// What a storage is told of its node.
#[derive(Clone)]
pub struct Options {
    /// `node_name`.
    pub origin: Origin,
    /// The channels.
    pub registry: Arc<Registry>,
    /// The time.
    pub clock: Clock,
}

/// A database as storage.
pub struct SqlStorage<B: Backend>(Arc<Inner<B>>);

struct Inner<B: Backend> {
    backend: B,
    options: Options,
    targets: Targets,
    /// The origin's lock; held while a contact is made, so that there is one at a time.
    lock: tokio::sync::Mutex<Option<B::Lock>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: Option<Arc<Ready>>,
    contact: Contact,
    /// The epoch that this process took last.
    taken: Option<u64>,
    /// The epoch that a contact of this process wrote last, whether or not its answer came.
    claimed: Option<u64>,
    /// When the contact was made, by the monotonic clock.
    met_at: Duration,
    /// What contacts found since somebody asked.
    found: Option<Found>,
    /// What it was told to be released, or showed when it was met.
    told: BTreeMap<String, Seq>,
    /// The server that was met.
    incarnation: Incarnation,
    /// Tables that refused a statement: looked at before they are written to again.
    suspects: BTreeSet<String>,
    /// Tables that refused rows lately: for so many batches refusals are looked for first.
    refusing: BTreeMap<String, u32>,
    /// Tables that were seen standing.
    standing: BTreeSet<String>,
    /// Whether a task keeps the lock.
    kept: bool,
}

impl<B: Backend> SqlStorage<B> {
    /// Nothing is connected before the first contact.
    #[must_use]
    pub fn new(backend: B, options: Options) -> Self {
        let targets = Targets::of(&options.registry);
        let (lock, state) = (tokio::sync::Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { backend, options, targets, lock, state }))
    }

    /// What the server says of its durability.
    #[must_use]
    pub fn facts(&self) -> Vec<(String, String)> {
        self.0.state().ready.as_ref().map(|ready| ready.facts.clone()).unwrap_or_default()
    }
}

impl<B: Backend> Inner<B> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contact of this epoch is none any more; a newer one stands.
    fn forget(&self, epoch: u64) {
        let mut state = self.state();
        if state.ready.as_ref().is_some_and(|ready| ready.epoch == epoch) {
            state.ready = None;
        }
    }

    /// Holds the origin's row to the end of the transaction; an error where it is not ours any more.
    async fn guard(
        &self,
        session: &mut B::Session,
        ready: &Ready,
        exclusive: bool,
    ) -> Result<(), SqlError> {
        let dialect = self.backend.dialect();
        let sql = if exclusive { dialect.node_row_exclusive() } else { dialect.node_row_share() };
        let rows = session.rows(&sql, &[self.origin()]).await.map_err(SqlError::before_events)?;
        let ours = |row: &TextRow| {
            row.get(1).cloned().flatten().as_deref() == Some(&ready.node_id)
                && row.get(2).cloned().flatten() == Some(ready.epoch.to_string())
        };
        if rows.first().is_some_and(ours) {
            return Ok(());
        }
        self.forget(ready.epoch);
        Err(SqlError {
            class: Class::Retry,
            code: "origin lock".to_owned(),
            text: format!(
                "another process has taken the origin {} in this database since: two nodes must never share a node_name",
                self.options.origin
            ),
        })
    }

    fn origin(&self) -> Param<'_> {
        Param::Text(self.options.origin.as_str().into())
    }

    async fn append(self: &Arc<Self>, events: &[Event]) -> Result<Vec<Refused>, StorageError> {
        let ready = self.ready().await?;
        let moments = Moments::of(events);
        let Options { origin, registry, .. } = &self.options;
        let parts = route(events, &moments, origin, registry, &self.targets)?;
        self.look_at_suspects(&parts).await?;
        // of a lone row its table alone can tell
        let many = events.len() > 1;
        let mut sieve = many;
        if many && self.expects_refusals(&parts) {
            match self.sift(&ready, &parts).await {
                Err(e) if e.code == NO_SIEVE => sieve = false,
                sifted => return sifted,
            }
        }
        let mut meetings = 0;
        loop {
            let Err((e, at)) = self.store(&ready, &parts).await else { return Ok(Vec::new()) };
            meetings += 1;
            match (e.class, at) {
                (Class::RetryAtOnce, _) if meetings < MEETINGS => {}
                (Class::Reject, At::Part(part))
                    if sieve && e.code != replay::CONFLICT && parts[part].rows.len() > 1 =>
                {
                    return match self.sift(&ready, &parts).await {
                        Err(none) if none.code == NO_SIEVE => Err(self.judge(e, at, &parts)),
                        sifted => sifted,
                    };
                }
                _ => return Err(self.judge(e, at, &parts)),
            }
        }
    }

    /// One transaction; the error says where it came up.
    async fn store(&self, ready: &Ready, parts: &[Part<'_>]) -> Result<(), (SqlError, At)> {
        let mut session = self.begin(ready).await?;
        for (at, part) in parts.iter().enumerate() {
            let rows: Vec<&Record<'_>> = part.rows.iter().collect();
            if let Err(e) = self.store_rows(&mut session, &part.table, &rows).await {
                session.rollback().await;
                if e.class == Class::AlreadyThere {
                    return self.replay(ready, parts, &BTreeSet::new()).await;
                }
                return Err((e, At::Part(at)));
            }
        }
        session.commit().await.map_err(|e| (e, At::Commit))
    }

    /// A transaction that holds the origin's row.
    async fn begin(&self, ready: &Ready) -> Result<B::Session, (SqlError, At)> {
        let begun = self.backend.begin().await;
        let mut session = begun.map_err(|e| (e.before_events(), At::Before))?;
        match self.guard(&mut session, ready, false).await {
            Ok(()) => Ok(session),
            Err(e) => {
                session.rollback().await;
                Err((e, At::Before))
            }
        }
    }

    /// Stores rows; an error too where the server took them, and some do not stand there.
    async fn store_rows(
        &self,
        session: &mut B::Session,
        table: &Table,
        rows: &[&Record<'_>],
    ) -> Result<(), SqlError> {
        let stored = session.store(table, rows).await?;
        self.all_taken(session, table, rows, stored).await
    }

    /// A trigger may drop rows without a word; one that puts them elsewhere is seen through its view.
    async fn all_taken(
        &self,
        session: &mut B::Session,
        table: &Table,
        rows: &[&Record<'_>],
        stored: u64,
    ) -> Result<(), SqlError> {
        let sent = rows.len();
        if stored >= sent as u64 {
            return Ok(());
        }
        let there = self.standing(session, table, rows).await?.len();
        if there == sent {
            return Ok(());
        }
        Err(SqlError {
            class: Class::Fatal,
            code: "rows dropped".to_owned(),
            text: format!(
                "of {sent} rows that it took {} do not stand there: has it a trigger that drops them?",
                sent - there
            ),
        })
    }

    /// An error as the writer is told it.
    fn judge(&self, e: SqlError, at: At, parts: &[Part<'_>]) -> StorageError {
        let SqlError { class, code, text } = e;
        let part = match at {
            At::Part(part) => parts.get(part),
            At::Before | At::Commit => None,
        };
        let channel = part.and_then(|part| part.channel.clone());
        let table = part.map_or("", |part| part.table.name.as_str());
        let (kind, channel) = match (class, at) {
            // not while events were written: the tables of our own, which a new contact looks at
            (Class::Fatal | Class::Reject | Class::AlreadyThere, At::Before) => {
                self.state().ready = None;
                (Kind::Retry, None)
            }
            (Class::Fatal, At::Part(_)) => {
                self.state().suspects.insert(table.to_owned());
                (Kind::Fatal, channel)
            }
            // a constraint that is looked at last: which event it is, the halves will tell
            (Class::Fatal, At::Commit) => (Kind::Fatal, None),
            (Class::Reject | Class::AlreadyThere, At::Part(_) | At::Commit) => {
                (Kind::Reject, channel)
            }
            (Class::Locked, _) => (Kind::Retry, channel),
            (Class::Retry | Class::RetryAtOnce, _) => (Kind::Retry, None),
        };
        let text = match kind {
            Kind::Fatal if !table.is_empty() => format!("table {table}: {text}"),
            _ => text,
        };
        StorageError { kind, code, text, channel }
    }

    /// Which events stand there with their content, behind every transaction that is under way.
    async fn stands(self: &Arc<Self>, events: &[Event]) -> Result<BTreeSet<Seq>, StorageError> {
        let ready = self.ready().await?;
        let moments = Moments::of(events);
        let Options { origin, registry, .. } = &self.options;
        let mut session = self.backend.begin().await.map_err(|e| self.judge(e, At::Before, &[]))?;
        let looked = async {
            self.guard(&mut session, &ready, true).await?;
            let mut there = BTreeSet::new();
            for event in events {
                let one = std::slice::from_ref(event);
                let stands = match route(one, &moments, origin, registry, &self.targets) {
                    Ok(parts) => self.all_equal(&mut session, &parts).await?,
                    // no row can be made of it today; one made earlier stands there all the same
                    Err(_) => self.any_identity(&mut session, event.seq).await?,
                };
                if stands {
                    there.insert(event.seq);
                }
            }
            Ok(there)
        };
        let looked = looked.await;
        session.rollback().await;
        looked.map_err(|e| self.judge(e, At::Before, &[]))
    }

    async fn any_identity(&self, session: &mut B::Session, seq: Seq) -> Result<bool, SqlError> {
        let dialect = self.backend.dialect();
        let params = [self.origin(), seq_param(seq)];
        for table in self.targets.structured.values().chain([&self.targets.raw]) {
            let known = self.columns_of(session, &table.name).await?;
            if !known.is_empty() && !session.rows(&dialect.stands(table), &params).await?.is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A seq as a parameter.
fn seq_param(seq: Seq) -> Param<'static> {
    // no seq reaches 2^53
    Param::Int(i64::try_from(seq.0).unwrap_or(i64::MAX))
}

/// The seq of a record, for maps.
fn seq_of(record: &Record<'_>) -> Seq {
    record.head.seq
}

impl<B: Backend> Storage for SqlStorage<B> {
    async fn connect(&self, contact: &Contact) -> Result<Option<Seq>, StorageError> {
        self.0.state().contact = contact.clone();
        self.0.ready().await.map(|ready| ready.last)
    }

    async fn append(&self, events: &[Event]) -> Result<Vec<Refused>, StorageError> {
        self.0.append(events).await
    }

    async fn stands(&self, events: &[Event]) -> Result<BTreeSet<Seq>, StorageError> {
        self.0.stands(events).await
    }

    fn lanes(&self) -> usize {
        self.0.backend.lanes()
    }

    async fn probe(&self, bytes: usize) -> Result<(), StorageError> {
        let outage = |e: SqlError| StorageError::retry(e.code, e.text);
        let mut session = self.0.backend.begin().await.map_err(outage)?;
        let param = [Param::Text("x".repeat(bytes).into())];
        let answered = session.rows(&self.0.backend.dialect().length_of(), &param).await;
        session.rollback().await;
        answered.map(drop).map_err(outage)
    }
}

/// The channel of a part in words.
fn whose(channel: Option<&ChannelName>) -> String {
    channel.map_or_else(|| "several channels".to_owned(), ToString::to_string)
}
