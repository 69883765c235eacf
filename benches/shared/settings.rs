//! What a benchmark is asked to do: by its arguments and by the environment.
//!
//! Knows nothing of what is measured.

use std::error::Error;

/// A result whose error is for the person who started the benchmark.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Under `target/`: a real file system, where `/tmp` may be memory.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// What was asked for.
pub struct Settings {
    /// `BENCH_ROUNDS`: how often everything is measured.
    pub rounds: usize,
    /// `BENCH_SECONDS`: how long one measurement takes.
    pub seconds: u64,
    filter: Option<String>,
}

impl Settings {
    /// Reads them; `None` where this is not a benchmark run but, say, `cargo test --all-targets`,
    /// which starts the program without `--bench`. `names` is what the argument may pick from.
    pub fn read(names: &[&str], seconds: u64) -> Outcome<Option<Self>> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        if !args.iter().any(|arg| arg == "--bench") {
            println!("nothing is measured without --bench: start it with cargo bench");
            return Ok(None);
        }
        let filter = args.into_iter().find(|arg| !arg.starts_with("--"));
        if let Some(filter) = &filter
            && !names.iter().any(|name| name.eq_ignore_ascii_case(filter))
        {
            let known = names.join(", ");
            return Err(format!("{filter:?} is none of the benchmarks here: {known}").into());
        }
        let rounds = from_env("BENCH_ROUNDS", 3)?;
        Ok(Some(Self {
            rounds: usize::try_from(rounds)?,
            seconds: from_env("BENCH_SECONDS", seconds)?,
            filter,
        }))
    }

    /// Whether that one is to run.
    pub fn wants(&self, name: &str) -> bool {
        let picked = |filter: &str| filter.eq_ignore_ascii_case(name);
        self.filter.as_deref().is_none_or(picked)
    }
}

/// A number above 0 from the environment.
pub fn from_env(key: &str, default: u64) -> Outcome<u64> {
    match std::env::var(key) {
        Err(_) => Ok(default),
        Ok(text) => match text.trim().parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{key}={text} is not a whole number above 0").into()),
        },
    }
}

/// A directory of the benchmark's own, removed when dropped.
pub fn scratch() -> Outcome<tempfile::TempDir> {
    std::fs::create_dir_all(SCRATCH)?;
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(SCRATCH)?;
    Ok(dir)
}

/// Removes it at once and waits until the file system has taken note, so that the next measurement
/// does not pay for it.
pub fn clear(dir: tempfile::TempDir) -> Outcome<()> {
    dir.close()?;
    std::fs::File::open(SCRATCH)?.sync_all()?;
    Ok(())
}
