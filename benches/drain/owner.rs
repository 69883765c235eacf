//! Whom a database server of the benchmark's own runs as: such servers refuse to be root.
//!
//! Knows no database.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::settings::Outcome;

/// A user and its group; nothing for whoever we are.
#[derive(Clone, Copy)]
pub struct Owner(Option<(u32, u32)>);

impl Owner {
    /// For servers in that directory, which is ours: where we are root, the first of these users
    /// that there is.
    pub fn of(dir: &Path, names: &[&str]) -> Outcome<Self> {
        if std::fs::metadata(dir)?.uid() != 0 {
            return Ok(Self(None));
        }
        let users = std::fs::read_to_string("/etc/passwd")?;
        let ids = |name: &&str| -> Option<(u32, u32)> {
            let line = users.lines().find(|line| line.split(':').next() == Some(*name))?;
            let mut ids = line.split(':').skip(2);
            Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
        };
        match names.iter().find_map(ids) {
            Some(ids) => Ok(Self(Some(ids))),
            None => {
                Err(format!("it does not run as root, and there is no user of {names:?}").into())
            }
        }
    }

    /// Gives it directories under `dir`, or elsewhere.
    pub fn give(self, dir: &Path, places: &[&Path]) -> Outcome<()> {
        if let Self(Some((user, group))) = self {
            for place in places {
                chown(place, Some(user), Some(group))?;
            }
            // its way leads through ours
            std::fs::set_permissions(dir, Permissions::from_mode(0o711))?;
        }
        Ok(())
    }

    /// A program as that user, in its directory, with an empty environment.
    pub fn command(self, program: &Path, home: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(home).env_clear().stdin(Stdio::null());
        if let Self(Some((user, group))) = self {
            command.uid(user).gid(group);
        }
        command
    }
}
