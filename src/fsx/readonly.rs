//! The machine's own file system, for those who only look: nothing is ever changed through it, and a
//! file system that was remounted read-only, or files of another user, can still be looked at.
//!
//! Knows nothing of what is looked at.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Disk, DiskFile, OsDisk, OsFile};

/// The disk; its files refuse to be written.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOnlyDisk;

impl ReadOnlyDisk {
    /// As the shared seam.
    #[must_use]
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnlyDisk {
    fn create(&self, _path: &Path) -> io::Result<Box<dyn DiskFile>> {
        refused()
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        // the descriptor itself takes no writes
        Ok(Box::new(OsFile(File::open(path)?)))
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn exists(&self, path: &Path) -> bool {
        OsDisk.exists(path)
    }

    fn id(&self, path: &Path) -> io::Result<u64> {
        OsDisk.id(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        OsDisk.free_bytes(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "as it was").unwrap();
        let disk = ReadOnlyDisk;
        let file = disk.open(&path).unwrap();
        let mut bytes = [0; 9];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 9);
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err());
        assert!(disk.create(&dir.path().join("g")).is_err());
        assert!(disk.remove(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "as it was");
    }
}
