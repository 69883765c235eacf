//! A simulated disk on which one thread, the ack keeper, writes only where the script lets it.
//!
//! Knows nothing of the script. Reads, and every other thread's operations, pass as they are.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use replicon::event::Seq;
use replicon::fsx::sim::{Persist, SimDisk};
use replicon::fsx::{Disk, DiskFile};
use replicon::queue::file::Options;
use replicon::queue::file::ack::{AckRecord, WRITER};
use replicon::queue::file::slots::{Found, Slots};

use crate::support::sim::{ACK, options};

/// Small enough that a script fills a dozen of them.
pub const SEGMENT: u64 = 10_700;

/// The simulated disk, on which the ack keeper writes only where it is let: it wakes by real time, and
/// a script must come to the same operations each time.
#[derive(Clone, Debug)]
pub struct Gated {
    /// The disk itself.
    pub disk: SimDisk,
    open: Arc<AtomicBool>,
}

struct GatedFile {
    file: Box<dyn DiskFile>,
    open: Arc<AtomicBool>,
}

impl Gated {
    /// With a keeper that may not write.
    pub fn new(disk: SimDisk) -> Self {
        Self { disk, open: Arc::default() }
    }

    /// For a queue on it.
    pub fn options(&self) -> Options {
        Options { disk: Arc::new(self.clone()), segment_bytes: SEGMENT, ..options(&self.disk) }
    }

    /// Whether the ack keeper may write from now on.
    pub fn let_keeper(&self, write: bool) {
        self.open.store(write, Ordering::SeqCst);
    }

    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(GatedFile { file, open: self.open.clone() })
    }
}

impl Disk for Gated {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }

    fn id(&self, path: &Path) -> io::Result<u64> {
        self.disk.id(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }
}

impl DiskFile for GatedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let keeper = std::thread::current().name() == Some("ack keeper");
        if keeper && !self.open.load(Ordering::SeqCst) {
            return Err(io::Error::other("not now"));
        }
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn id(&self) -> io::Result<u64> {
        self.file.id()
    }
}

/// Up to which seq everything is released, as a start on this disk would read it.
pub fn released(disk: &SimDisk) -> Seq {
    match Slots::<AckRecord>::open(disk, Path::new(ACK)).unwrap() {
        Found::Good(_, record) => record.consumers.get(WRITER).map_or(Seq(0), |p| Seq(p.released)),
        _ => Seq(0),
    }
}

/// The same where nothing survives but what was synced: below it nothing may ever come again.
pub fn durably_released(disk: &SimDisk) -> Seq {
    released(&disk.crash(Persist::Nothing, 1))
}
