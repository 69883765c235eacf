//! Finds the configuration: which file, which environment, which channels.
//!
//! Does not judge what it says.

use std::path::{Path, PathBuf};

use super::Global;
use crate::config::{self, ChannelsSource, Config, Problem, Settings};

/// A configuration and where it came from.
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// `configuration: …`, for the first log line.
    pub source: String,
}

const BUILT_IN: &str = "built-in defaults";

/// Reads it all.
///
/// # Errors
/// Everything that is wrong, a line each.
pub fn load(global: &Global, strict: bool) -> Result<Loaded, Vec<Problem>> {
    let path = config_path(global);
    let file = match &path {
        Some(path) => Some((path.display().to_string(), read(path)?)),
        None => None,
    };
    let source = file.as_ref().map_or_else(|| BUILT_IN.to_owned(), |(label, _)| label.clone());
    let env = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let (settings, mut problems) = Settings::read(file, env, &global.set, strict);
    let built = channels(&settings, path.as_deref()).and_then(|c| config::build(settings, c));
    match built {
        Ok(config) if problems.is_empty() => Ok(Loaded { config, source }),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

fn config_path(global: &Global) -> Option<PathBuf> {
    let named = global.config.clone();
    let named = named.or_else(|| std::env::var_os("REPLICON_CONFIG").map(PathBuf::from));
    // a named file must be there; the usual places may be empty
    named.or_else(|| {
        let usual = ["conf/replicon.conf", "/etc/replicon/replicon.conf"];
        usual.iter().map(PathBuf::from).find(|path| path.exists())
    })
}

fn read(path: &Path) -> Result<String, Vec<Problem>> {
    std::fs::read_to_string(path).map_err(|e| {
        let text = format!("cannot be read: {e}; name another file with --config");
        vec![Problem::new(path.display().to_string(), text)]
    })
}

/// The channels file: as named; where nothing is named, also beside the configuration; the built-in
/// one only with the built-in configuration.
fn channels(settings: &Settings, conf: Option<&Path>) -> Result<ChannelsSource, Vec<Problem>> {
    let named = PathBuf::from(settings.text("channels_file"));
    let mut candidates = vec![named.clone()];
    if !settings.is_explicit("channels_file") {
        let beside = conf.and_then(Path::parent).map(|dir| dir.join("channels.yml"));
        candidates.extend(beside);
    }
    match candidates.into_iter().find(|path| path.exists()) {
        Some(path) => {
            let text = read(&path)?;
            Ok(ChannelsSource::File { label: path.display().to_string(), text })
        }
        None if conf.is_none() && !settings.is_explicit("channels_file") => {
            Ok(ChannelsSource::Embedded)
        }
        None => Ok(ChannelsSource::Missing { path: named.display().to_string() }),
    }
}

/// Prints problems, one a line, and how many there are.
pub fn print_problems(problems: &[Problem]) {
    for problem in problems {
        eprintln!("error: {problem}");
    }
    match problems.len() {
        1 => eprintln!("replicon: 1 error in the configuration; nothing was started"),
        n => eprintln!("replicon: {n} errors in the configuration; nothing was started"),
    }
}
