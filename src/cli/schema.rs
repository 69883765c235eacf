//! `replicon schema`: the statements that a start would run in the database, and what stands in their
//! way. Changes nothing.

use std::process::ExitCode;

use super::sources::{self, Loaded};
use super::{FAILED, Global, WRONG};
use crate::clock::Clock;
use crate::config::{Config, StorageConfig};
use crate::node;
use crate::storage::AnyStorage;
use crate::storage::sql::report::TableReport;

/// Runs it. `all` asks for everything that an empty database would be given, without looking at one.
/// 0: nothing would be run; 1: something would; 2: something does not fit, or nobody answers.
pub fn run(global: &Global, all: bool) -> ExitCode {
    let Loaded { config, .. } = match sources::load(global, false) {
        Ok(loaded) => loaded,
        Err(problems) => {
            sources::print_problems(&problems);
            return ExitCode::from(WRONG);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: no runtime: {e}");
            return ExitCode::from(WRONG);
        }
    };
    let _inside = runtime.enter();
    let storage = node::open_storage(&config, &Clock::system());
    let Some(ddl) = ddl(&storage) else {
        eprintln!("error: storage_backend is no database: it has no schema");
        return ExitCode::from(WRONG);
    };
    if all || new_file(&config) {
        ddl.iter().for_each(|statement| println!("{statement};"));
        return ExitCode::from(if all { 0 } else { FAILED });
    }
    let report = runtime.block_on(report(&storage));
    match report {
        Ok(report) => print(&report),
        Err(e) => {
            eprintln!(
                "error: the database cannot be looked at: {e}; --all prints the whole schema"
            );
            ExitCode::from(WRONG)
        }
    }
}

/// To look into a file that is not there would make it.
fn new_file(config: &Config) -> bool {
    matches!(&config.storage, StorageConfig::Sqlite { path } if !path.exists())
}

fn ddl(storage: &AnyStorage) -> Option<Vec<String>> {
    match storage {
        AnyStorage::Postgres(sql) => Some(sql.ddl()),
        AnyStorage::Mysql(sql) => Some(sql.ddl()),
        AnyStorage::Sqlite(sql) => Some(sql.ddl()),
        AnyStorage::File(_) | AnyStorage::Noop(_) | AnyStorage::Memory(_) => None,
    }
}

async fn report(storage: &AnyStorage) -> Result<Vec<TableReport>, String> {
    let report = match storage {
        AnyStorage::Postgres(sql) => sql.report().await,
        AnyStorage::Mysql(sql) => sql.report().await,
        AnyStorage::Sqlite(sql) => sql.report().await,
        AnyStorage::File(_) | AnyStorage::Noop(_) | AnyStorage::Memory(_) => Ok(Vec::new()),
    };
    report.map_err(|e| e.to_string())
}

fn print(report: &[TableReport]) -> ExitCode {
    for table in report {
        if !table.extras.is_empty() {
            println!(
                "-- {} has more, which is left alone: {}",
                table.table,
                table.extras.join(", ")
            );
        }
        table.statements.iter().for_each(|statement| println!("{statement};"));
    }
    let misfits: Vec<&String> = report.iter().filter_map(|t| t.misfit.as_ref()).collect();
    for misfit in &misfits {
        eprintln!("error: {misfit}");
    }
    if !misfits.is_empty() {
        return ExitCode::from(WRONG);
    }
    if report.iter().all(|t| t.statements.is_empty()) {
        println!("-- nothing to do: the database has what a start needs");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(FAILED)
}
