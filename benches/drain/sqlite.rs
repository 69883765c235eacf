//! SQLite, beside its own shell.
//!
//! Every measurement has a fresh copy of the database as it was when the backlog was loaded: with the
//! tables and indexes that a node made there, and not a row in them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::backlog::Backlog;
use crate::rounds::{Comparison, Sample, Subject};
use crate::settings::{Outcome, clear, scratch};
use crate::shell::{Shell, in_path};
use crate::{COLUMNS, INDEX, TABLE, check_room, check_rows, count_rows};

const MISSING: &str = "sqlite3, SQLite's own shell, is not in PATH: apt-get install sqlite3";
/// What a node sets for each of its sessions.
const PRAGMAS: &str = "PRAGMA busy_timeout = 5000;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = OFF;
PRAGMA journal_size_limit = 67108864;";

/// Where everything lies.
struct Places {
    sqlite3: PathBuf,
    /// The directory of the database, with what SQLite puts beside it.
    home: PathBuf,
    /// What is written into.
    database: PathBuf,
    /// As it was when the backlog was loaded.
    loaded: PathBuf,
    /// The rows as `.import` reads them.
    rows: PathBuf,
    log: PathBuf,
}

struct Bench {
    places: Places,
    backlog: Backlog,
    events: usize,
}

/// Measures it and prints its lines.
pub fn run(events: usize, rounds: usize) -> Outcome<()> {
    let dir = scratch()?;
    check_room(dir.path(), events)?;
    let bench = Bench::new(dir.path(), events)?;
    let version = bench.places.shell()?.run("SELECT sqlite_version();")?.concat();
    let comparison = Comparison {
        title: format!(
            "drained into SQLite, beside .import of the same rows into the same table by sqlite3 {version}, in one transaction; no goal"
        ),
        subjects: &[
            Subject::Whole,
            Subject::Replicon(1),
            Subject::Replicon(2),
            Subject::Replicon(4),
        ],
        whole: "sqlite3 .import, in one go",
        batches: "",
        least: None,
    };
    comparison.run(rounds, |subject| bench.measure(subject))?;
    clear(dir)
}

impl Places {
    fn new(dir: &Path) -> Outcome<Self> {
        let home = dir.join("db");
        Ok(Self {
            sqlite3: in_path("sqlite3").into_iter().next().ok_or(MISSING)?,
            database: home.join("replicon.db"),
            home,
            loaded: dir.join("loaded.db"),
            rows: dir.join("rows.csv"),
            log: dir.join("sqlite3.log"),
        })
    }

    /// SQLite's shell on the database; no two at a time.
    fn shell(&self) -> Outcome<Shell> {
        let mut command = Command::new(&self.sqlite3);
        command.args(["-batch", "-bail"]).arg(&self.database);
        let mut shell = Shell::start(command, ".print", self.log.clone())?;
        shell.run(PRAGMAS)?;
        Ok(shell)
    }

    /// A database with the tables of the first and no row, on the disk when it returns.
    fn fresh(&self) -> Outcome<()> {
        std::fs::remove_dir_all(&self.home)?;
        std::fs::create_dir(&self.home)?;
        std::fs::copy(&self.loaded, &self.database)?;
        File::open(&self.database)?.sync_all()?;
        File::open(&self.home)?.sync_all()?;
        Ok(())
    }
}

impl Bench {
    /// Loads the backlog, and drains it once: for the rows, and so that nothing is measured cold.
    fn new(dir: &Path, events: usize) -> Outcome<Self> {
        let places = Places::new(dir)?;
        let storage = vec![
            "storage_backend=sqlite".to_owned(),
            format!("storage_sqlite_path={}", places.database.display()),
        ];
        let stands = || -> Outcome<bool> {
            let asked = format!(
                "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name = '{INDEX}';"
            );
            Ok(places.shell()?.run(&asked)? == ["1"])
        };
        let backlog = Backlog::load(dir.join("node"), storage, events, stands)?;
        let mut shell = places.shell()?;
        let moved = shell.run("PRAGMA wal_checkpoint(TRUNCATE);")?;
        if moved != ["0|0|0"] {
            return Err(format!("the log is not empty after a checkpoint: {moved:?}").into());
        }
        std::fs::copy(&places.database, &places.loaded)?;
        drop(shell);
        let bench = Self { places, backlog, events };
        bench.measure(Subject::Replicon(1))?;
        bench.take_rows()?;
        Ok(bench)
    }

    /// Writes the file from the rows that stand there.
    fn take_rows(&self) -> Outcome<()> {
        let rows = self.places.rows.display();
        self.places.shell()?.run(&format!(
            ".mode csv\n\
             .output '{rows}'\n\
             SELECT {COLUMNS} FROM {TABLE} ORDER BY origin_seq;\n\
             .output"
        ))?;
        File::open(&self.places.rows)?.sync_all()?;
        Ok(())
    }

    fn measure(&self, subject: Subject) -> Outcome<Sample> {
        if matches!(subject, Subject::Replicon(_)) {
            self.backlog.restore()?;
        }
        self.places.fresh()?;
        let sample = match subject {
            Subject::Whole => self.import()?,
            Subject::Batches => return Err("is not measured here".into()),
            Subject::Replicon(workers) => self.backlog.drain(workers)?,
        };
        check_rows(&self.places.shell()?.run(&count_rows())?, self.events)?;
        Ok(sample)
    }

    /// The rate at which the shell, started already, imports the rows in one transaction.
    fn import(&self) -> Outcome<Sample> {
        let mut shell = self.places.shell()?;
        shell.run(".mode csv")?;
        let rows = self.places.rows.display();
        let took = shell.time(&format!("BEGIN;\n.import '{rows}' {TABLE}\nCOMMIT;"))?;
        Ok(Sample { rate: self.events as f64 / took, with_start: None })
    }
}
