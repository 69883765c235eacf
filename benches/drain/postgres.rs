//! P3: PostgreSQL, with a server of the benchmark's own.
//!
//! Every measurement has a fresh copy of the database as it was when the backlog was loaded: with the
//! tables and indexes that a node made there, and not a row in them.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::backlog::Backlog;
use crate::load::BATCH;
use crate::rounds::{Comparison, Sample, Subject};
use crate::server::Server;
use crate::settings::{Outcome, clear, scratch};
use crate::shell::Shell;
use crate::{COLUMNS, INDEX, TABLE, check_room, check_rows, count_rows};

/// Of the rate of `\copy` in one go.
const LEAST: f64 = 0.80;
/// What is written into.
const DATABASE: &str = "replicon";
/// As it was when the backlog was loaded.
const LOADED: &str = "loaded";

/// All that is needed for a measurement. The fields are dropped in this order: the server goes last.
struct Bench {
    admin: Shell,
    backlog: Backlog,
    events: usize,
    /// The rows as `\copy` reads them.
    rows: PathBuf,
    /// The same rows, in statements of a thousand.
    script: PathBuf,
    server: Server,
}

/// Measures it and prints its lines.
pub fn run(events: usize, rounds: usize) -> Outcome<()> {
    let dir = scratch()?;
    check_room(dir.path(), events)?;
    let mut bench = Bench::new(dir.path(), events)?;
    let version = bench.admin.run("SHOW server_version;")?.concat();
    let comparison = Comparison {
        title: format!(
            "P3: drained into PostgreSQL {version}, beside COPY of the same rows into the same table"
        ),
        subjects: &[
            Subject::Whole,
            Subject::Batches,
            Subject::Replicon(1),
            Subject::Replicon(2),
            Subject::Replicon(4),
        ],
        whole: "psql \\copy, in one go",
        batches: "psql COPY, 1,000 rows each",
        least: Some(LEAST),
    };
    comparison.run(rounds, |subject| bench.measure(subject))?;
    drop(bench);
    clear(dir)
}

impl Bench {
    /// Starts the server, loads the backlog, and drains it once: for the rows, and so that nothing is
    /// measured cold.
    fn new(dir: &Path, events: usize) -> Outcome<Self> {
        let server = Server::start(dir)?;
        let mut admin = server.psql("postgres")?;
        admin.run(&format!("CREATE DATABASE {DATABASE};"))?;
        let storage = vec![
            "storage_backend=postgres".to_owned(),
            format!("storage_postgres_dsn={}", server.dsn(DATABASE)),
        ];
        let mut psql = server.psql(DATABASE)?;
        let stands = || -> Outcome<bool> {
            let asked = format!(
                "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('{INDEX}') AND indisvalid;"
            );
            Ok(psql.run(&asked)? == ["1"])
        };
        let backlog = Backlog::load(dir.join("node"), storage, events, stands)?;
        drop(psql);
        admin.run(&format!("ALTER DATABASE {DATABASE} RENAME TO {LOADED};"))?;
        let (rows, script) = (dir.join("rows"), dir.join("script"));
        let mut bench = Self { admin, backlog, events, rows, script, server };
        bench.measure(Subject::Replicon(1))?;
        bench.take_rows()?;
        Ok(bench)
    }

    /// Writes both files from the rows that stand there.
    fn take_rows(&self) -> Outcome<()> {
        let rows = self.rows.display();
        self.server.psql(DATABASE)?.run(&format!(
            "\\copy (SELECT {COLUMNS} FROM {TABLE} ORDER BY origin_seq) to '{rows}'"
        ))?;
        let mut from = BufReader::with_capacity(1 << 20, File::open(&self.rows)?);
        from.get_ref().sync_all()?;
        let mut to = BufWriter::with_capacity(1 << 20, File::create(&self.script)?);
        let mut line = Vec::new();
        for _ in 0..self.events.div_ceil(BATCH) {
            writeln!(to, "COPY {TABLE} ({COLUMNS}) FROM STDIN;")?;
            for _ in 0..BATCH {
                line.clear();
                // one line is one row: a line break in a value is written otherwise
                from.read_until(b'\n', &mut line)?;
                to.write_all(&line)?;
            }
            writeln!(to, "\\.")?;
        }
        to.flush()?;
        to.get_ref().sync_all()?;
        Ok(())
    }

    /// An empty database with the tables of the first, and nothing left to write behind anybody's
    /// back.
    fn fresh(&mut self) -> Outcome<()> {
        self.admin.run(&format!(
            "DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE);\n\
             CREATE DATABASE {DATABASE} TEMPLATE {LOADED};\n\
             CHECKPOINT;"
        ))?;
        Ok(())
    }

    fn measure(&mut self, subject: Subject) -> Outcome<Sample> {
        if matches!(subject, Subject::Replicon(_)) {
            self.backlog.restore()?;
        }
        self.fresh()?;
        let rows = self.rows.display();
        let sample = match subject {
            Subject::Whole => self.time(&format!("\\copy {TABLE} ({COLUMNS}) from '{rows}'"))?,
            Subject::Batches => self.time(&format!("\\i '{}'", self.script.display()))?,
            Subject::Replicon(workers) => self.backlog.drain(workers)?,
        };
        check_rows(&self.server.psql(DATABASE)?.run(&count_rows())?, self.events)?;
        Ok(sample)
    }

    /// The rate at which psql, connected already, runs that.
    fn time(&self, text: &str) -> Outcome<Sample> {
        let mut psql = self.server.psql(DATABASE)?;
        psql.run("SELECT 1;")?;
        Ok(Sample { rate: self.events as f64 / psql.time(text)?, with_start: None })
    }
}
