//! Looks into a SQLite database beside the node that holds it, by the `sqlite3` program.
//!
//! Knows nothing of what is tested.

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs SQL on a database that is there; what it prints, columns separated by `|`.
pub fn sqlite(path: &Path, sql: &str) -> String {
    assert!(path.exists(), "no database at {}", path.display());
    let mut command = Command::new("sqlite3");
    // without the settings of whoever runs the tests; other writers are waited for
    command.args(["-init", "/dev/null", "-batch", "-bail", "-noheader", "-list"]);
    command.args(["-cmd", ".timeout 10000"]).arg(path).arg(sql).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|e| {
        panic!("sqlite3: {e}: tests/run installs it, or: apt-get install sqlite3")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{sql}\n{said}");
    String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
}
