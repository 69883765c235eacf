//! P4: MariaDB, with a server of the benchmark's own.
//!
//! Every measurement has a fresh database with the tables as they were when the backlog was loaded:
//! those that a node made there, with their indexes, and not an event in them.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::backlog::Backlog;
use crate::load::BATCH;
use crate::mysql_server::Server;
use crate::rounds::{Comparison, Sample, Subject};
use crate::settings::{Outcome, clear, scratch};
use crate::shell::Shell;
use crate::{COLUMNS, INDEX, TABLE, check_room, check_rows};

/// Of the rate of LOAD DATA in one go.
const LEAST: f64 = 0.60;
/// What is written into.
const DATABASE: &str = "replicon";
/// As it was when the backlog was loaded.
const LOADED: &str = "loaded";

/// All that is needed for a measurement. The fields are dropped in this order: the server goes last.
struct Bench {
    admin: Shell,
    backlog: Backlog,
    events: usize,
    /// The rows as LOAD DATA reads them.
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
    let version = bench.admin.run("SELECT version();")?.concat();
    let comparison = Comparison {
        title: format!(
            "P4: drained into MariaDB {version}, beside LOAD DATA of the same rows into the same table"
        ),
        subjects: &[
            Subject::Whole,
            Subject::Batches,
            Subject::Replicon(1),
            Subject::Replicon(2),
            Subject::Replicon(4),
        ],
        whole: "LOAD DATA INFILE, in one go",
        batches: "INSERT, 1,000 rows each",
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
        let mut admin = server.shell("mysql")?;
        admin.run(&format!("CREATE DATABASE {DATABASE}; CREATE DATABASE {LOADED};"))?;
        let storage = vec![
            "storage_backend=mysql".to_owned(),
            format!("storage_mysql_dsn={}", server.dsn(DATABASE)),
        ];
        let mut shell = server.shell(DATABASE)?;
        let stands = || -> Outcome<bool> {
            let asked = format!(
                "SELECT count(*) FROM information_schema.statistics WHERE seq_in_index = 1 \
                 AND table_schema = '{DATABASE}' AND index_name = '{INDEX}';"
            );
            Ok(shell.run(&asked)? == ["1"])
        };
        let backlog = Backlog::load(dir.join("node"), storage, events, stands)?;
        drop(shell);
        copy_tables(&mut admin, DATABASE, LOADED)?;
        // the server writes the one, and we the other
        let (rows, script) = (server.home.join("rows"), dir.join("script"));
        let mut bench = Self { admin, backlog, events, rows, script, server };
        bench.measure(Subject::Replicon(1))?;
        bench.take_rows()?;
        Ok(bench)
    }

    /// Writes both files from the rows that stand there.
    fn take_rows(&self) -> Outcome<()> {
        self.server.shell(DATABASE)?.run(&format!(
            "SELECT {COLUMNS} INTO OUTFILE '{}' CHARACTER SET utf8mb4 FROM {TABLE} \
             ORDER BY origin_seq;",
            self.rows.display()
        ))?;
        let mut from = BufReader::with_capacity(1 << 20, File::open(&self.rows)?);
        from.get_ref().sync_all()?;
        let mut to = BufWriter::with_capacity(1 << 20, File::create(&self.script)?);
        let mut line = String::new();
        for _ in 0..self.events.div_ceil(BATCH) {
            writeln!(to, "INSERT INTO {TABLE} ({COLUMNS}) VALUES")?;
            for nth in 0..BATCH {
                line.clear();
                // one line is one row: a line break in a value is written otherwise
                from.read_line(&mut line)?;
                let end = if nth + 1 == BATCH { ";" } else { "," };
                writeln!(to, "({}){end}", values(&line))?;
            }
        }
        to.flush()?;
        to.get_ref().sync_all()?;
        Ok(())
    }

    /// A database with the tables of the first, and nothing left to write behind anybody's back.
    fn fresh(&mut self) -> Outcome<()> {
        self.admin.run(&format!("DROP DATABASE {DATABASE}; CREATE DATABASE {DATABASE};"))?;
        copy_tables(&mut self.admin, LOADED, DATABASE)?;
        self.server.settle()
    }

    fn measure(&mut self, subject: Subject) -> Outcome<Sample> {
        if matches!(subject, Subject::Replicon(_)) {
            self.backlog.restore()?;
        }
        self.fresh()?;
        let rows = self.rows.display();
        let sample = match subject {
            Subject::Whole => self.time(&format!(
                "LOAD DATA INFILE '{rows}' INTO TABLE {TABLE} CHARACTER SET utf8mb4 ({COLUMNS});"
            ))?,
            Subject::Batches => self.time(&format!("\\. {}", self.script.display()))?,
            Subject::Replicon(workers) => self.backlog.drain(workers)?,
        };
        let count =
            format!("SELECT concat(count(*), '|', count(DISTINCT origin_seq)) FROM {TABLE};");
        check_rows(&self.server.shell(DATABASE)?.run(&count)?, self.events)?;
        Ok(sample)
    }

    /// The rate at which the client, connected already, runs that.
    fn time(&self, text: &str) -> Outcome<Sample> {
        let mut shell = self.server.shell(DATABASE)?;
        shell.run("SELECT 1;")?;
        Ok(Sample { rate: self.events as f64 / shell.time(text)?, with_start: None })
    }
}

/// Every table of a database into another one, with its indexes and its rows.
fn copy_tables(admin: &mut Shell, from: &str, to: &str) -> Outcome<()> {
    for table in admin.run(&format!("SHOW TABLES FROM {from};"))? {
        admin.run(&format!(
            "CREATE TABLE {to}.{table} LIKE {from}.{table};\n\
             INSERT INTO {to}.{table} SELECT * FROM {from}.{table};"
        ))?;
    }
    Ok(())
}

/// A row of the file as a row of an INSERT. The escapes mean the same in both.
fn values(line: &str) -> String {
    let quoted = |value: &str| format!("'{}'", value.replace('\'', "''"));
    let values: Vec<String> = line.trim_end_matches('\n').split('\t').map(quoted).collect();
    values.join(",")
}
