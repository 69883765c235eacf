//! The disk: the few operations that durability is made of, behind a seam that a simulated disk
//! implements, and the orders in which they must be done.
//!
//! Knows nothing of logs, frames or storage.
//!
//! What holds on every [`Disk`]:
//! 1. Bytes written are durable when [`DiskFile::sync`] has returned `Ok` after the write.
//! 2. A created, renamed or removed name is durable when [`Disk::sync_dir`] of its directory has
//!    returned `Ok` afterwards; syncing the file alone does not do it.
//! 3. After a failed sync nothing is known of what was written since the last good one, and asking
//!    again proves nothing (the kernel marks the pages clean).

pub mod readonly;
pub mod sim;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file system, real or simulated.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates `path` for reading and writing; it must not exist. Mode 0640.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Renames within one directory, replacing `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in `dir`, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates one directory (mode 0750); `Ok` where it stands already.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Whether a file or directory of this name stands.
    fn exists(&self, path: &Path) -> bool;
    /// Which file stands under `path`: the same number as [`DiskFile::id`] of the same file.
    fn id(&self, path: &Path) -> io::Result<u64>;
    /// Bytes that a service without privileges may still write in `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// `fdatasync`.
    fn sync(&self) -> io::Result<()>;
    /// The file's length, in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Which file it is, whatever it is called by now.
    fn id(&self) -> io::Result<u64>;
}

/// Fills `buf` from `offset`, or as much of it as the file holds; returns how much that was.
///
/// # Errors
/// Those of [`DiskFile::read_at`].
pub fn read_full(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// The directory that `path` lies in; `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Renames and makes the new name durable.
///
/// # Errors
/// Those of the rename, or of the directory's sync (then the new name may or may not outlive a
/// power cut).
pub fn durable_rename(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    disk.rename(from, to)?;
    disk.sync_dir(parent(to))
}

/// Creates `dir` and every missing parent, each made durable in its own parent.
///
/// # Errors
/// Those of creating or syncing a directory.
pub fn durable_dir(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || disk.exists(dir) {
        return Ok(());
    }
    let above = parent(dir);
    if above != dir {
        durable_dir(disk, above)?;
    }
    disk.create_dir(dir)?;
    disk.sync_dir(above)
}

/// The machine's own file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl OsDisk {
    /// As the shared seam.
    #[must_use]
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

struct OsFile(File);

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o640);
        Ok(Box::new(OsFile(options.open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OsFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    #[allow(clippy::disallowed_methods)] // the one place
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        match std::fs::DirBuilder::new().mode(0o750).create(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn exists(&self, path: &Path) -> bool {
        // a dangling link or an unreadable file is there too: never taken for absent
        path.symlink_metadata().is_ok()
    }

    fn id(&self, path: &Path) -> io::Result<u64> {
        Ok(file_id(&std::fs::metadata(path)?))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let file = File::open(dir)?;
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the descriptor is open for the length of the call, and `stat` is written whole
        // before it is read, which a result of 0 promises.
        #[allow(unsafe_code)]
        let stat = unsafe {
            if libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            stat.assume_init()
        };
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Device and inode in one number; a clash would need two file systems and much bad luck.
fn file_id(metadata: &std::fs::Metadata) -> u64 {
    metadata.dev().rotate_left(40) ^ metadata.ino()
}

impl DiskFile for OsFile {
    fn id(&self) -> io::Result<u64> {
        Ok(file_id(&self.0.metadata()?))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.0, buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// An exclusive `flock` on a file of its own; released when dropped or when the process ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error(
        "{path} is held by another running process{holder}: one node owns its files alone; stop that one, or give this one paths of its own", path = path.display()
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// ` (pid N)`, where the holder wrote it.
        holder: String,
    },
    /// The lock file could not be opened or written.
    #[error("cannot lock {path}: {source}", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DirLock {
    /// Takes the lock at `path`, creating the file where it is missing.
    ///
    /// # Errors
    /// [`LockError::Held`] where another process has it, at once and without waiting.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let mut file = options.open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let holder = match pid.trim() {
                    "" => String::new(),
                    pid => format!(" (pid {pid})"),
                };
                return Err(LockError::Held { path: path.to_owned(), holder });
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(io(e)),
        }
        // the pid is for the other process's message only; the lock itself is the flock
        file.set_len(0).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.write_all(std::process::id().to_string().as_bytes()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let held = DirLock::take(&path).unwrap();
        let text = DirLock::take(&path).unwrap_err().to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        drop(held);
        assert!(DirLock::take(&path).is_ok());
    }

    #[test]
    fn every_created_parent_is_synced_into_its_own_parent() {
        let disk = sim::SimDisk::new();
        durable_dir(&disk, Path::new("/a/b/c")).unwrap();
        let after = disk.crash(sim::Persist::Nothing, 1);
        assert!(after.exists(Path::new("/a/b/c")));
    }
}
