//! The same events through every storage: what the door takes is taken by all of them, and comes
//! back with the meaning that it had.
//!
//! Events come out of a seed (`TEST_SEED`), with the edges by hand before them. They go through
//! PostgreSQL, MariaDB, MySQL, SQLite and the file in process, batch by batch, each batch twice, as
//! where an answer is lost; and are compared with what was sent, by rules of the test's own.
//!
//! Attacks I5 (H5, H31).

mod edges;
mod generate;
mod meaning;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use replicon::channel::schema::{IndexSource, Schema, SchemaSource};
use replicon::channel::{Channel, Mode, Registry, validate};
use replicon::clock::Clock;
use replicon::event::{Event, Micros, ModeTag, Name, Seq};
use replicon::fsx::OsDisk;
use replicon::json::{Form, Profile, scan};
use replicon::storage::event_store::{EventStore, StoredRow, Wanted};
use replicon::storage::file::{FileStorage, Options as FileOptions};
use replicon::storage::sql::session::Backend;
use replicon::storage::sql::{Options, SqlStorage, mysql, postgres, sqlite};
use replicon::storage::{Contact, Storage};
use serde_json::value::RawValue;
use tempfile::TempDir;

use crate::sql_store::{mysql_server, server};
use crate::support::full_scale;
use crate::support::mysql::{Kind, Mysql};
use crate::support::postgres::Postgres;
use generate::Generator;
use meaning::{Meaning, meaning, members, same, same_tree, tree};

const ORIGIN: &str = "dc1";
/// A raw channel.
const RAW: &str = "events_raw";
/// A structured one without raw copies, with a column of every type and of every array.
const FIELDS: &str = "everything";
const DATABASE: &str = "differential";
const BATCH: usize = 500;
/// When so much is wrong, more says nothing.
const ENOUGH: usize = 20;

/// A column's name and its type.
type Column = (String, String);

fn columns() -> &'static [Column] {
    static COLUMNS: OnceLock<Vec<Column>> = OnceLock::new();
    COLUMNS.get_or_init(|| {
        let of_all = |(prefix, suffix): (&str, &str)| {
            let column =
                |ty: &str| (format!("{prefix}_{}", ty.replace(' ', "_")), format!("{ty}{suffix}"));
            edges::FIELDS.map(|(ty, _, _)| column(ty))
        };
        [("a", ""), ("many", "[]")].into_iter().flat_map(of_all).collect()
    })
}

fn schema() -> Schema {
    let index = |columns: &[&str]| IndexSource {
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        ..IndexSource::default()
    };
    let source = SchemaSource {
        table: FIELDS.to_owned(),
        columns: columns().iter().map(|(name, _)| name.clone()).collect(),
        field_types: columns().iter().cloned().collect(),
        indexes: vec![
            index(&["a_text", "a_inet"]),
            index(&["a_numeric", "a_timestamptz DESC"]),
            index(&["a_bytea"]),
        ],
        ..SchemaSource::default()
    };
    Schema::new(&source).unwrap()
}

/// What the door makes of an event: the payload that is kept, or why it is refused.
fn door(schema: Option<&Schema>, text: &str) -> Result<Bytes, String> {
    let body = Bytes::copy_from_slice(text.as_bytes());
    let items = scan(&body, Form::Json, &Profile::default()).map_err(|e| format!("{e:?}"))?;
    let payload = items[0].payload(&body);
    let mut violations = Vec::new();
    if let Some(schema) = schema {
        validate::validate(schema, &payload, 0, &mut violations);
    }
    if violations.is_empty() { Ok(payload) } else { Err(format!("{violations:?}")) }
}

/// Where events come from.
struct Maker {
    generator: Generator,
    schema: Schema,
    next: u64,
    made: usize,
    /// Events that were meant to be taken.
    refused: Vec<String>,
    /// How often each column held something.
    filled: BTreeMap<String, usize>,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Self {
            generator: Generator::new(seed),
            schema: schema(),
            next: 1,
            made: 0,
            refused: Vec::new(),
            filled: BTreeMap::new(),
        }
    }

    fn schema_of(&self, channel: &str) -> Option<&Schema> {
        (channel == FIELDS).then_some(&self.schema)
    }

    /// An event that was accepted. Seqs rise and are not dense.
    fn event(&mut self, channel: &str, payload: Bytes) -> Event {
        self.next += 1 + self.generator.below(3);
        self.made += 1;
        let at = 1_700_000_000_000_000 + self.generator.below(1 << 50);
        Event {
            seq: Seq(self.next),
            channel: Name::new(channel).unwrap(),
            mode: if channel == FIELDS { ModeTag::Structured } else { ModeTag::Raw },
            received_at: Micros(i64::try_from(at).unwrap()),
            payload,
        }
    }

    /// Every edge as an event of its own; of a type, as a field and as the elements of an array.
    fn edges(&mut self) -> Vec<Event> {
        let fields = |ty: &str, raw: &str| {
            let name = ty.replace(' ', "_");
            [format!("{{\"a_{name}\":{raw}}}"), format!("{{\"many_{name}\":[{raw},null,{raw}]}}")]
        };
        let mut events = Vec::new();
        let mut good: Vec<(&str, String)> = Vec::new();
        let mut bad: Vec<(&str, String)> = Vec::new();
        good.extend(edges::good_payloads().into_iter().map(|text| (RAW, text)));
        bad.extend(edges::bad_payloads().into_iter().map(|text| (RAW, text)));
        for (ty, taken, not) in edges::FIELDS {
            good.extend(taken.iter().flat_map(|raw| fields(ty, raw)).map(|text| (FIELDS, text)));
            bad.extend(not.iter().flat_map(|raw| fields(ty, raw)).map(|text| (FIELDS, text)));
        }
        for (channel, text) in bad {
            let taken = door(self.schema_of(channel), &text);
            assert!(taken.is_err(), "{channel}: the door takes {}", short(&text));
        }
        for (channel, text) in good {
            let payload = door(self.schema_of(channel), &text)
                .unwrap_or_else(|e| panic!("{channel}: the door refuses {}: {e}", short(&text)));
            events.push(self.event(channel, payload));
        }
        events
    }

    /// An object with some of the columns.
    fn fields(&mut self) -> String {
        let mut members = Vec::new();
        for (name, ty) in columns() {
            let value = match self.generator.below(20) {
                0..5 => self.generator.field(ty),
                5 => "null".to_owned(),
                _ => continue,
            };
            if value != "null" {
                *self.filled.entry(name.clone()).or_default() += 1;
            }
            members.push(format!("\"{name}\":{value}"));
        }
        format!("{{{}}}", members.join(","))
    }

    /// The next events, of both channels.
    fn batch(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < BATCH {
            let (channel, text) = if self.generator.once_in(2) {
                (RAW, self.generator.object())
            } else {
                (FIELDS, self.fields())
            };
            match door(self.schema_of(channel), &text) {
                Ok(payload) => events.push(self.event(channel, payload)),
                Err(why) => self.refused.push(format!("{why}: {}", short(&text))),
            }
        }
        events
    }

    /// A generator whose events the door refuses, or that leaves a type out, tests nothing.
    fn check_itself(&self) {
        let few = self.refused.len() * 50 <= self.made;
        assert!(few, "{} of {}: {:#?}", self.refused.len(), self.made, self.refused.first());
        for (name, _) in columns() {
            let times = self.filled.get(name).copied().unwrap_or(0);
            assert!(times * 20 >= self.made, "{name} held something {times} times");
        }
    }
}

/// A payload for a message.
fn short(text: &str) -> String {
    text.chars().take(1_500).collect()
}

/// What came back.
struct Got {
    seq: Seq,
    channel: String,
    node: String,
    received_at: Micros,
    payload: String,
}

impl Got {
    fn of(channel: &str, row: StoredRow) -> Self {
        Self {
            seq: row.seq,
            channel: channel.to_owned(),
            node: row.node_name,
            received_at: row.received_at,
            payload: String::from_utf8(row.payload.to_vec()).unwrap(),
        }
    }

    /// What is wrong with it beside what was sent.
    fn judge(&self, sent: &Event) -> Result<(), String> {
        let channel = sent.channel.as_str();
        if (self.seq, self.channel.as_str(), self.node.as_str()) != (sent.seq, channel, ORIGIN) {
            return Err(format!("{} of {} by {} stands", self.seq, self.channel, self.node));
        }
        if self.received_at != sent.received_at {
            return Err(format!("{:?} became {:?}", sent.received_at, self.received_at));
        }
        let text = std::str::from_utf8(&sent.payload).unwrap();
        let same = match channel {
            FIELDS => same_fields(text, &self.payload),
            _ if same_tree(&tree(text), &tree(&self.payload)) => Ok(()),
            _ => Err("another tree".to_owned()),
        };
        same.map_err(|why| format!("{why}: {} became {}", short(text), short(&self.payload)))
    }
}

/// Whether two objects have the same columns; null is absent.
fn same_fields(sent: &str, got: &str) -> Result<(), String> {
    let (sent, got) = (members(sent), members(got));
    let present = |fields: &BTreeMap<String, String>, name: &str| {
        fields.get(name).filter(|raw| *raw != "null").cloned()
    };
    for (name, ty) in columns() {
        match (present(&sent, name), present(&got, name)) {
            (None, None) => {}
            (Some(sent), Some(got)) if same(&meaning(ty, &sent)?, &meaning(ty, &got)?) => {}
            (sent, got) => return Err(format!("{name}: {sent:?} became {got:?}")),
        }
    }
    match got.keys().find(|name| !columns().iter().any(|(column, _)| column == *name)) {
        Some(name) => Err(format!("{name} was not sent")),
        None => Ok(()),
    }
}

/// Stores a batch, and again, as where the answer was lost.
async fn store<S: Storage>(storage: &S, batch: &[Event]) -> Result<(), String> {
    for time in ["first", "again"] {
        let stored = storage.append(batch).await;
        if matches!(&stored, Ok(refused) if refused.is_empty()) {
            continue;
        }
        // one by one, to tell whose fault it is
        let mut culprits = Vec::new();
        for event in batch {
            let one = storage.append(std::slice::from_ref(event)).await;
            if !matches!(&one, Ok(refused) if refused.is_empty()) {
                let text = String::from_utf8_lossy(&event.payload);
                culprits.push(format!("{one:?}: {}", short(&text)));
            }
        }
        culprits.truncate(3);
        return Err(format!("{time}: {stored:?}; alone: {culprits:#?}"));
    }
    Ok(())
}

/// Everything of a batch, in the order of its seqs.
async fn read_back<S: EventStore>(storage: &S, batch: &[Event]) -> Result<Vec<Got>, String> {
    let (first, last) = (batch[0].seq, batch[batch.len() - 1].seq);
    let mut got = Vec::new();
    for channel in [RAW, FIELDS] {
        let mut from = first;
        while from <= last {
            let wanted = Wanted {
                origin: Name::new(ORIGIN).unwrap(),
                channel: Name::new(channel).unwrap(),
                from,
                upto: last,
                rows: 150,
                bytes: 1 << 20,
            };
            let page = storage.read(&wanted).await.map_err(|e| e.to_string())?;
            assert!(page.next > from, "a page that goes nowhere: {wanted:?}");
            from = page.next;
            got.extend(page.rows.into_iter().map(|row| Got::of(channel, row)));
        }
    }
    got.sort_by_key(|got| got.seq);
    Ok(got)
}

async fn through<S: EventStore>(storage: &S, batch: &[Event]) -> Result<Vec<Got>, String> {
    store(storage, batch).await?;
    read_back(storage, batch).await
}

/// The file, read as whoever has nothing else reads it.
struct Lines {
    storage: FileStorage,
    path: PathBuf,
    read: u64,
}

/// A line of it.
#[derive(serde::Deserialize)]
struct Line {
    origin_dc: String,
    origin_seq: u64,
    node_name: String,
    channel: String,
    received_at: Box<RawValue>,
    json_data: Box<RawValue>,
}

impl Lines {
    fn new(path: PathBuf) -> Self {
        let storage = FileStorage::new(FileOptions {
            disk: OsDisk::shared(),
            path: path.clone(),
            sync_every: Duration::ZERO,
            origin: Name::new(ORIGIN).unwrap(),
            clock: Clock::system(),
            lock: true,
        });
        Self { storage, path, read: 0 }
    }

    async fn through(&mut self, batch: &[Event]) -> Result<Vec<Got>, String> {
        store(&self.storage, batch).await?;
        let mut file = File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        self.read += text.len() as u64;
        text.lines().map(Self::got).collect()
    }

    fn got(line: &str) -> Result<Got, String> {
        let read: Line = serde_json::from_str(line).map_err(|e| format!("{e}: {}", short(line)))?;
        let at = match meaning("timestamptz", read.received_at.get())? {
            Meaning::Moment(micros) if read.origin_dc == ORIGIN => micros,
            _ => return Err(format!("no line of ours: {}", short(line))),
        };
        Ok(Got {
            seq: Seq(read.origin_seq),
            channel: read.channel,
            node: read.node_name,
            received_at: Micros(at),
            payload: read.json_data.get().to_owned(),
        })
    }
}

/// The storages, and the servers under them, which go after them.
struct Storages {
    postgres: SqlStorage<postgres::Server>,
    mariadb: SqlStorage<mysql::Server>,
    mysql: SqlStorage<mysql::Server>,
    sqlite: SqlStorage<sqlite::Database>,
    file: Lines,
    _servers: (Postgres, Mysql, Mysql),
    _dir: TempDir,
}

fn sql<B: Backend>(backend: B) -> SqlStorage<B> {
    let channel = |name: &str, mode: Mode| Channel {
        name: Name::new(name).unwrap(),
        enabled: true,
        mode,
        store_raw: false,
        keys: Vec::new(),
    };
    let structured = Mode::Structured(Arc::new(schema()));
    let channels = vec![channel(RAW, Mode::Raw), channel(FIELDS, structured)];
    SqlStorage::new(
        backend,
        Options {
            origin: Name::new(ORIGIN).unwrap(),
            registry: Arc::new(Registry::new(channels).unwrap()),
            clock: Clock::system(),
        },
    )
}

impl Storages {
    fn start() -> Self {
        let postgres = Postgres::start();
        let (mariadb, mysql) = (Mysql::start(Kind::MariaDb), Mysql::start(Kind::MySql));
        postgres.database(DATABASE);
        mariadb.database(DATABASE);
        mysql.database(DATABASE);
        let dir = tempfile::tempdir().unwrap();
        Self {
            postgres: sql(server(&postgres, DATABASE)),
            mariadb: sql(mysql_server(&mariadb, DATABASE)),
            mysql: sql(mysql_server(&mysql, DATABASE)),
            sqlite: sql(sqlite::Database::new(dir.path().join("replicon.db"))),
            file: Lines::new(dir.path().join("events.jsonl")),
            _servers: (postgres, mariadb, mysql),
            _dir: dir,
        }
    }

    async fn connect(&self) {
        let contact = Contact {
            first_unacked: Seq(1),
            node_id: "a-node-id".to_owned(),
            ..Contact::default()
        };
        self.postgres.connect(&contact).await.unwrap();
        self.mariadb.connect(&contact).await.unwrap();
        self.mysql.connect(&contact).await.unwrap();
        self.sqlite.connect(&contact).await.unwrap();
        self.file.storage.connect(&contact).await.unwrap();
    }

    /// What is wrong with a batch in any of them.
    async fn check(&mut self, batch: &[Event]) -> Vec<String> {
        let (postgres, mariadb, mysql, sqlite, file) = tokio::join!(
            Box::pin(through(&self.postgres, batch)),
            Box::pin(through(&self.mariadb, batch)),
            Box::pin(through(&self.mysql, batch)),
            Box::pin(through(&self.sqlite, batch)),
            Box::pin(self.file.through(batch)),
        );
        let all = [
            ("PostgreSQL", postgres),
            ("MariaDB", mariadb),
            ("MySQL", mysql),
            ("SQLite", sqlite),
            ("the file", file),
        ];
        let mut wrong = Vec::new();
        for (name, got) in all {
            let wrong_here: Vec<String> = match got {
                Ok(got) if got.len() == batch.len() => {
                    got.iter().zip(batch).filter_map(|(got, sent)| got.judge(sent).err()).collect()
                }
                Ok(got) => vec![format!("{} of {} events came back", got.len(), batch.len())],
                Err(e) => vec![e],
            };
            wrong.extend(wrong_here.into_iter().map(|why| format!("{name}: {why}")));
        }
        wrong
    }
}

/// `TEST_SEED`, to make the events of a failed run again.
fn seed() -> u64 {
    let seed = std::env::var("TEST_SEED").ok();
    seed.and_then(|seed| seed.parse().ok()).unwrap_or(20_260_219)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_is_stored_by_every_storage_with_one_meaning() {
    let seed = seed();
    eprintln!("TEST_SEED={seed}");
    let mut storages = Storages::start();
    storages.connect().await;
    let mut maker = Maker::new(seed);
    let mut wrong = Vec::new();
    for batch in maker.edges().chunks(BATCH) {
        wrong.extend(storages.check(batch).await);
    }
    let by_hand = maker.made;
    let events = if full_scale() { 100_000 } else { 3_000 };
    while maker.made < by_hand + events && wrong.len() < ENOUGH {
        let batch = maker.batch();
        wrong.extend(storages.check(&batch).await);
    }
    let count = wrong.len();
    wrong.truncate(ENOUGH);
    assert!(wrong.is_empty(), "TEST_SEED={seed}: {count} differences: {wrong:#?}");
    maker.check_itself();
}
