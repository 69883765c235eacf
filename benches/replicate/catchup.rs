//! P5: a peer that was away for all events, beside a subscription that was disabled meanwhile.
//!
//! One server holds the origin's database, the peer's, and those of PostgreSQL's own replication: the
//! same rows, put there in transactions of a thousand. Over a long link the peer is compared with itself
//! over the same proxy without a delay.

use std::path::Path;
use std::time::Duration;

use replicon::clock::Clock;

use crate::child::Running;
use crate::figures::{Spread, ratio, short};
use crate::load::{BATCH, load};
use crate::pair::{Place, drained, pull_rate};
use crate::proxy::{Link, Proxy};
use crate::server::Server;
use crate::settings::{Outcome, clear, scratch};
use crate::shell::Shell;

/// Of the rate of PostgreSQL's own.
const LEAST: f64 = 1.0;
/// Of the rate without a delay.
const LEAST_FAR: f64 = 0.8;
/// One way of the long link.
const ONE_WAY: Duration = Duration::from_millis(50);
/// How often a subscriber is looked at.
const EVERY: Duration = Duration::from_millis(20);
/// How long the making of a table may take.
const MAKING: Duration = Duration::from_secs(30);

/// Who catches up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// PostgreSQL's own replication.
    Postgres,
    /// A node beside the other one.
    Replicon,
    /// By way of the proxy.
    Near,
    /// The same, with a delay.
    Far,
}

/// The fields are dropped in this order: the server goes last.
struct Bench {
    admin: Shell,
    /// Runs until all is measured.
    source: Running,
    link: Proxy,
    events: usize,
    dir: std::path::PathBuf,
    server: Server,
}

/// Measures it and prints its lines.
pub fn run(events: usize, rounds: usize, beside: bool, far: bool) -> Outcome<()> {
    let dir = scratch()?;
    let mut bench = Bench::new(dir.path(), events)?;
    let mut subjects = Vec::new();
    if beside {
        bench.publish()?;
        subjects.extend([Subject::Postgres, Subject::Replicon]);
    }
    if far {
        subjects.extend([Subject::Near, Subject::Far]);
    }
    let mut rates: Vec<Vec<f64>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for turn in 0..subjects.len() {
            let who = (round + turn) % subjects.len();
            rates[who].push(bench.measure(subjects[who])?);
        }
    }
    print(&subjects, &rates);
    drop(bench);
    clear(dir)
}

impl Bench {
    /// Starts the server and the origin, and has it store all events.
    fn new(dir: &Path, events: usize) -> Outcome<Self> {
        let server = Server::start_with(dir, &["wal_level=logical"])?;
        let mut admin = server.psql("postgres")?;
        for database in ["origin", "publisher"] {
            admin.run(&format!("CREATE DATABASE {database};"))?;
        }
        let source = Place::new(dir, "dc1", &server, "origin").start(None)?;
        let rate = load(source.addr, &(0..events))?;
        println!("\nloaded: {}/s", short(rate));
        drained(&source)?;
        let link = Proxy::new();
        link.aim(Some(&source.addr.to_string()));
        Ok(Self { admin, source, link, events, dir: dir.to_owned(), server })
    }

    /// The same rows in a table of a publisher's, in small transactions; and a slot that remembers all
    /// of them.
    fn publish(&mut self) -> Outcome<()> {
        let rows = self.dir.join("rows");
        self.server.psql("origin")?.run(&format!(
            "\\copy (SELECT * FROM events_raw ORDER BY origin_seq) to '{}'",
            rows.display()
        ))?;
        let mut psql = self.server.psql("publisher")?;
        psql.run(TABLE)?;
        psql.run("CREATE PUBLICATION events FOR TABLE events_raw;")?;
        psql.run("SELECT pg_create_logical_replication_slot('events', 'pgoutput');")?;
        let text = std::fs::read_to_string(&rows)?;
        let lines: Vec<&str> = text.lines().collect();
        let script = self.dir.join("script");
        let mut out = String::with_capacity(text.len() + text.len() / 100);
        for some in lines.chunks(BATCH) {
            out.push_str("COPY events_raw FROM STDIN;\n");
            out.push_str(&some.join("\n"));
            out.push_str("\n\\.\n");
        }
        std::fs::write(&script, out)?;
        psql.run(&format!("\\i '{}'", script.display()))?;
        Ok(())
    }

    fn measure(&mut self, subject: Subject) -> Outcome<f64> {
        match subject {
            Subject::Postgres => self.subscribe(),
            Subject::Replicon => self.pull(&self.source.addr.to_string()),
            Subject::Near => self.pull_over(Link::Open),
            Subject::Far => self.pull_over(Link::Far(ONE_WAY)),
        }
    }

    fn fresh(&mut self, database: &str) -> Outcome<()> {
        self.admin.run(&format!(
            "DROP DATABASE IF EXISTS {database} WITH (FORCE);\nCREATE DATABASE {database};\nCHECKPOINT;"
        ))?;
        Ok(())
    }

    fn pull_over(&mut self, link: Link) -> Outcome<f64> {
        self.link.set(link);
        let addr = self.link.addr.clone();
        self.pull(&addr)
    }

    /// A new node pulls everything from there.
    fn pull(&mut self, addr: &str) -> Outcome<f64> {
        self.fresh("peer")?;
        let place = Place::new(&self.dir, "dc2", &self.server, "peer").pulling("dc1", addr);
        let node = place.start(None)?;
        let rate = pull_rate(&node, self.events as u64)?;
        node.end(libc::SIGTERM)?;
        place.forget()?;
        self.check("peer")?;
        Ok(rate)
    }

    /// A subscription is made from the slot as it was before the first row.
    fn subscribe(&mut self) -> Outcome<f64> {
        self.fresh("subscriber")?;
        self.server
            .psql("publisher")?
            .run("SELECT pg_copy_logical_replication_slot('events', 'turn');")?;
        let mut psql = self.server.psql("subscriber")?;
        psql.run(TABLE)?;
        let address = self.server.dsn("publisher");
        let clock = Clock::system();
        psql.run(&format!(
            "CREATE SUBSCRIPTION turn CONNECTION '{address}' PUBLICATION events \
             WITH (create_slot = false, slot_name = 'turn', copy_data = false);"
        ))?;
        let last = self.server.psql("publisher")?.run(HIGHEST)?.concat();
        let mut first = None;
        let rate = loop {
            // a look into an index takes no time of those who apply; rows are counted once
            let highest = psql.run(HIGHEST)?.concat();
            let at = clock.mono();
            if highest == last {
                let Some((begin, before)) = first.filter(|(begin, _)| *begin < at) else {
                    return Err("applied within one look: set BENCH_EVENTS to more".into());
                };
                break (self.events as u64 - before) as f64 / (at - begin).as_secs_f64();
            }
            if highest != "0" && first.is_none() {
                let rows: u64 = psql.run("SELECT count(*) FROM events_raw;")?.concat().parse()?;
                first = Some((clock.mono(), rows));
            } else if highest == "0" && at > MAKING {
                return Err("PostgreSQL's subscription does not begin".into());
            }
            std::thread::sleep(EVERY);
        };
        psql.run(
            "ALTER SUBSCRIPTION turn DISABLE;\n\
             ALTER SUBSCRIPTION turn SET (slot_name = NONE);\n\
             DROP SUBSCRIPTION turn;",
        )?;
        self.server.psql("publisher")?.run(DROP_SLOT)?;
        self.check("subscriber")?;
        Ok(rate)
    }

    /// All of them are there, each once.
    fn check(&self, database: &str) -> Outcome<()> {
        let asked = "SELECT count(*), count(DISTINCT origin_seq) FROM events_raw;";
        let answer = self.server.psql(database)?.run(asked)?;
        let due = format!("{0}|{0}", self.events);
        if answer == [due.as_str()] {
            return Ok(());
        }
        Err(format!("rows and seqs in {database}: {answer:?}, where {due} are due").into())
    }
}

/// As a node makes it, its index included.
const TABLE: &str = "CREATE TABLE events_raw (origin_dc text NOT NULL, origin_seq bigint NOT NULL, \
    node_name text NOT NULL, channel text NOT NULL, received_at timestamptz NOT NULL, \
    json_data jsonb NOT NULL, PRIMARY KEY (origin_dc, origin_seq));\n\
    CREATE INDEX events_raw_origin_channel_seq ON events_raw (origin_dc, channel, origin_seq);";

/// The highest seq that is there.
const HIGHEST: &str =
    "SELECT coalesce(max(origin_seq), 0) FROM events_raw WHERE origin_dc = 'dc1';";

/// Its walsender may still be on its way out.
const DROP_SLOT: &str = "DO $$ BEGIN FOR i IN 1..100 LOOP \
    IF (SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = 'turn') THEN EXIT; END IF; \
    PERFORM pg_sleep(0.05); END LOOP; \
    PERFORM pg_drop_replication_slot('turn'); END $$;";

fn print(subjects: &[Subject], rates: &[Vec<f64>]) {
    println!(
        "\nP5: a peer catches up, beside PostgreSQL's own logical replication of the same rows"
    );
    println!("{:<44} {:>24} {:>21} {:>7}", "", "rows/s", "ratio", "goal");
    let of = |wanted: Subject| {
        let at = subjects.iter().position(|subject| *subject == wanted)?;
        rates.get(at)
    };
    for (subject, ours) in subjects.iter().zip(rates) {
        let (name, floor, least) = match subject {
            Subject::Postgres => ("logical replication, transactions of 1,000", None, None),
            Subject::Replicon => ("replicon", of(Subject::Postgres), Some(LEAST)),
            Subject::Near => ("replicon, by way of a proxy", of(Subject::Postgres), None),
            Subject::Far => ("replicon, 100 ms away", of(Subject::Near), Some(LEAST_FAR)),
        };
        let beside = floor.map(|floor| {
            Spread::of(ours.iter().zip(floor).map(|(ours, floor)| ours / floor).collect())
        });
        let goal = match (beside, least) {
            (Some(beside), Some(least)) => {
                let word = if beside.median >= least { "reached" } else { "missing" };
                format!(">={least:.2} {word}")
            }
            _ => String::new(),
        };
        println!(
            "{name:<44} {:>24} {:>21} {goal}",
            Spread::of(ours.clone()).show(short),
            beside.map_or_else(String::new, |beside| beside.show(ratio)),
        );
    }
}
