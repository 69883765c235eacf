//! A disk that loses what a real one may lose: what was not synced is dropped, torn or reordered in
//! a crash, names included; the n-th operation fails once or for ever; it fills up.
//!
//! For tests and simulation. Knows nothing of logs or frames.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, parent};

/// What of the unsynced operations a crash leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persist {
    /// None: the disk holds what was synced and no more.
    Nothing,
    /// All: the page cache survived (`kill -9`).
    Everything,
    /// The first so many, in the order in which they were done.
    Prefix,
    /// Any of them: each 512-byte sector of a write and each name on its own.
    Scattered,
}

/// The four modes, for tests that try all.
pub const MODES: [Persist; 4] =
    [Persist::Nothing, Persist::Everything, Persist::Prefix, Persist::Scattered];

/// An operation to fail: counted from the moment it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Only the n-th (from 0).
    Once(u64),
    /// The n-th and every one after it.
    From(u64),
}

/// The kinds of operations that a fault may be limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `write_at`, `set_len`.
    Write,
    /// `sync`.
    Sync,
    /// `sync_dir`.
    SyncDir,
    /// Create, rename, remove, make a directory.
    Name,
    /// `read_at`; fails only where a fault names it.
    Read,
}

const SECTOR: usize = 512;

/// The simulated disk; clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    live: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    names: Vec<NameOp>,
    clock: u64,
    faults: Vec<(Option<Op>, Fault, u64)>,
    ops: u64,
    capacity: Option<u64>,
    history: Vec<(Op, PathBuf)>,
}

#[derive(Default, Clone)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
struct Pending {
    at: u64,
    change: Change,
    /// A sync of it failed: no later sync makes it durable.
    doomed: bool,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Dir,
}

#[derive(Clone)]
struct NameOp {
    at: u64,
    dir: PathBuf,
    add: Option<(PathBuf, Entry)>,
    del: Option<PathBuf>,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the shared seam.
    #[must_use]
    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Fails operations of `kind` (any, where `None`) as `fault` says, counted from now.
    pub fn fail(&self, kind: Option<Op>, fault: Fault) {
        self.lock().faults.push((kind, fault, 0));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Whether every fault that fails once has failed.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.lock()
            .faults
            .iter()
            .all(|(_, fault, seen)| matches!(fault, Fault::Once(n) if n < seen))
    }

    /// Bytes that all files together may hold; more is `ENOSPC`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// How many changing operations were done or tried.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// Every changing operation so far, in order, with the file or directory it was about.
    #[must_use]
    pub fn history(&self) -> Vec<(Op, PathBuf)> {
        self.lock().history.clone()
    }

    /// A file's bytes as a reader sees them now.
    #[must_use]
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        match state.live.get(path)? {
            Entry::File(id) => Some(state.inodes[*id].live.clone()),
            Entry::Dir => None,
        }
    }

    /// Replaces a file's bytes durably, as decay or an operator would. Creates nothing.
    pub fn corrupt(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.lock();
        if let Some(Entry::File(id)) = state.live.get(path).copied() {
            state.inodes[id] = Inode { live: bytes.clone(), durable: bytes, pending: Vec::new() };
        }
    }

    /// All files that stand now.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.lock();
        let files = state.live.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// The disk as the next start finds it after a power cut now; this one goes on unharmed.
    #[must_use]
    pub fn crash(&self, mode: Persist, seed: u64) -> Self {
        let state = self.lock();
        let mut dice = Dice(seed | 1);
        let cut = match mode {
            Persist::Nothing => 0,
            Persist::Everything | Persist::Scattered => u64::MAX,
            Persist::Prefix => dice.below(state.clock + 2),
        };
        let scattered = mode == Persist::Scattered;
        let mut names = state.durable.clone();
        for op in state.names.iter().filter(|op| op.at < cut) {
            if !scattered || dice.coin() {
                op.apply(&mut names);
            }
        }
        let mut inodes = Vec::with_capacity(state.inodes.len());
        for inode in &state.inodes {
            let mut data = inode.durable.clone();
            for pending in inode.pending.iter().filter(|p| p.at < cut) {
                if scattered {
                    pending.change.scatter(&mut data, &mut dice);
                } else {
                    pending.change.apply(&mut data);
                }
            }
            inodes.push(Inode { live: data.clone(), durable: data, pending: Vec::new() });
        }
        let next = State { inodes, live: names.clone(), durable: names, ..State::default() };
        Self(Arc::new(Mutex::new(next)))
    }
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(gone) = &self.del {
            names.remove(gone);
        }
        if let Some((path, entry)) = &self.add {
            names.insert(path.clone(), *entry);
        }
    }
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => data.resize(usize::try_from(*len).unwrap_or(0), 0),
            Self::Write(at, bytes) => put(data, usize::try_from(*at).unwrap_or(0), bytes),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Write(a, x), Self::Write(b, y)) => {
                *a < b + y.len() as u64 && *b < a + x.len() as u64
            }
            _ => true,
        }
    }

    fn scatter(&self, data: &mut Vec<u8>, dice: &mut Dice) {
        match self {
            Self::SetLen(_) if dice.coin() => self.apply(data),
            Self::SetLen(_) => {}
            Self::Write(at, bytes) => {
                let mut at = usize::try_from(*at).unwrap_or(0);
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let n = rest.len().min(SECTOR - at % SECTOR);
                    if dice.coin() {
                        put(data, at, &rest[..n]);
                    }
                    at += n;
                    rest = &rest[n..];
                }
            }
        }
    }
}

fn put(data: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[at..end].copy_from_slice(bytes);
}

impl State {
    /// Counts an operation, and fails it where a fault says so.
    fn op(&mut self, kind: Op, path: &Path) -> io::Result<()> {
        self.ops += 1;
        self.clock += 1;
        self.history.push((kind, path.to_owned()));
        self.meet_faults(|only| only.is_none_or(|only| only == kind))
    }

    /// A read changes nothing and is not counted among the operations.
    fn read_op(&mut self) -> io::Result<()> {
        self.meet_faults(|only| only == Some(Op::Read))
    }

    /// Counts an operation against the faults that are about it; the error of those that are due.
    fn meet_faults(&mut self, about: impl Fn(Option<Op>) -> bool) -> io::Result<()> {
        let mut failed = false;
        for (_, fault, seen) in self.faults.iter_mut().filter(|(only, ..)| about(*only)) {
            failed |= match fault {
                Fault::Once(n) => *seen == *n,
                Fault::From(n) => *seen >= *n,
            };
            *seen += 1;
        }
        if failed { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        let mut used = 0;
        for entry in self.live.values() {
            if let Entry::File(id) = entry {
                used += self.inodes[*id].live.len() as u64;
            }
        }
        used
    }

    fn rename_op(&mut self, dir: &Path, add: Option<(PathBuf, Entry)>, del: Option<PathBuf>) {
        let op = NameOp { at: self.clock, dir: dir.to_owned(), add, del };
        op.apply(&mut self.live);
        self.names.push(op);
    }
}

struct SimFile {
    disk: SimDisk,
    id: usize,
    path: PathBuf,
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        state.op(Op::Name, path)?;
        if state.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.inodes.push(Inode::default());
        let id = state.inodes.len() - 1;
        state.rename_op(parent(path), Some((path.to_owned(), Entry::File(id))), None);
        Ok(Box::new(SimFile { disk: self.clone(), id, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        match self.lock().live.get(path) {
            Some(Entry::File(id)) => {
                Ok(Box::new(SimFile { disk: self.clone(), id: *id, path: path.to_owned() }))
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.op(Op::Name, to)?;
        let entry = *state.live.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.rename_op(parent(to), Some((to.to_owned(), entry)), Some(from.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.op(Op::Name, path)?;
        if !state.live.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename_op(parent(path), None, Some(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.op(Op::SyncDir, dir)?;
        let names = std::mem::take(&mut state.names);
        for op in names {
            if op.dir == dir {
                op.apply(&mut state.durable);
            } else {
                state.names.push(op);
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        let inside = state.live.keys().filter(|path| parent(path) == dir);
        Ok(inside.filter_map(|p| p.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.op(Op::Name, dir)?;
        state.rename_op(parent(dir), Some((dir.to_owned(), Entry::Dir)), None);
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        path == Path::new("/") || path == Path::new(".") || self.lock().live.contains_key(path)
    }

    fn id(&self, path: &Path) -> io::Result<u64> {
        match self.lock().live.get(path) {
            Some(Entry::File(id)) => Ok(*id as u64),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity.map_or(u64::MAX, |most| most.saturating_sub(state.used())))
    }
}

impl DiskFile for SimFile {
    fn id(&self) -> io::Result<u64> {
        Ok(self.id as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        state.read_op()?;
        let data = &state.inodes[self.id].live;
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let n = buf.len().min(data.len() - at);
        buf[..n].copy_from_slice(&data[at..at + n]);
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let verdict = state.op(Op::Write, &self.path);
        let grows =
            (offset + buf.len() as u64).saturating_sub(state.inodes[self.id].live.len() as u64);
        let room = state.capacity.map_or(u64::MAX, |most| most.saturating_sub(state.used()));
        let full = grows > room;
        // a write that fails has often written a part
        let part = match (&verdict, full) {
            (Err(_), _) => buf.len() / 2,
            (Ok(()), true) => buf.len() - usize::try_from(grows - room).unwrap_or(0).min(buf.len()),
            (Ok(()), false) => buf.len(),
        };
        let part = if verdict.is_err() && full { 0 } else { part };
        if part > 0 {
            let at = state.clock;
            let change = Change::Write(offset, buf[..part].to_vec());
            let inode = &mut state.inodes[self.id];
            change.apply(&mut inode.live);
            inode.pending.push(Pending { at, change, doomed: false });
        }
        verdict?;
        if full { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let verdict = state.op(Op::Sync, &self.path);
        let inode = &mut state.inodes[self.id];
        if verdict.is_err() {
            inode.pending.iter_mut().for_each(|p| p.doomed = true);
            return verdict;
        }
        let pending = std::mem::take(&mut inode.pending);
        for p in pending {
            if p.doomed {
                inode.pending.push(p);
            } else {
                // a page written again is dirty again: what failed before is no longer in it
                inode.pending.retain(|old| !old.change.overlaps(&p.change));
                p.change.apply(&mut inode.durable);
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inodes[self.id].live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.op(Op::Write, &self.path)?;
        let at = state.clock;
        let inode = &mut state.inodes[self.id];
        let change = Change::SetLen(len);
        change.apply(&mut inode.live);
        inode.pending.push(Pending { at, change, doomed: false });
        Ok(())
    }
}

/// xorshift64*: small, seeded, good enough to scatter sectors.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_synced_is_gone_and_names_need_a_sync_of_their_own() {
        let disk = SimDisk::new();
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let file = disk.create(a).unwrap();
        file.write_at(b"synced", 0).unwrap();
        file.sync().unwrap();
        assert!(!disk.crash(Persist::Nothing, 1).exists(a), "a name is not durable by its file");
        disk.sync_dir(Path::new("/")).unwrap();
        file.write_at(b"lost", 6).unwrap();
        assert_eq!(disk.crash(Persist::Nothing, 1).bytes(a).unwrap(), b"synced");
        assert_eq!(disk.crash(Persist::Everything, 1).bytes(a).unwrap(), b"syncedlost");
        disk.rename(a, b).unwrap();
        assert!(disk.crash(Persist::Nothing, 1).exists(a));
        disk.sync_dir(Path::new("/")).unwrap();
        assert!(!disk.crash(Persist::Nothing, 1).exists(a));
    }

    #[test]
    fn after_a_failed_sync_a_second_one_proves_nothing() {
        let disk = SimDisk::new();
        let file = disk.create(Path::new("/a")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.write_at(b"x", 0).unwrap();
        disk.fail(Some(Op::Sync), Fault::Once(0));
        assert!(file.sync().is_err());
        assert!(file.sync().is_ok());
        assert_eq!(disk.crash(Persist::Nothing, 1).bytes(Path::new("/a")).unwrap(), b"");
    }

    #[test]
    fn a_full_disk_takes_a_part_and_says_so() {
        let disk = SimDisk::new();
        disk.set_capacity(Some(4));
        let file = disk.create(Path::new("/a")).unwrap();
        let error = file.write_at(b"123456", 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(disk.bytes(Path::new("/a")).unwrap(), b"1234");
    }
}
