//! A small record kept in two alternating checksummed slots of one file: a torn or failed write
//! leaves the other slot whole.
//!
//! Does not know what the record says.
//!
//! Slot k begins at k MiB: `magic "\xF5RCSLOT\n" | crc u32 of [12, 24 + length) | length u32 |
//! generation u64 | record (JSON)`. The higher good generation counts.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{u32_at, u64_at};
use crate::fsx::{Disk, DiskFile, durable_rename, read_full};

const MAGIC: [u8; 8] = *b"\xF5RCSLOT\n";
const SLOT: u64 = 1 << 20;
const HEAD: usize = 24;

/// The file and where its next record goes.
pub struct Slots<T> {
    file: Box<dyn DiskFile>,
    generation: u64,
    record: PhantomData<T>,
}

/// What was found at a path.
pub enum Found<T> {
    /// No file.
    Absent,
    /// Not a byte of ours: never to be touched.
    Foreign,
    /// Ours, and neither slot can be read.
    Damaged(Slots<T>),
    /// Ours.
    Good(Slots<T>, T),
}

impl<T: Serialize + DeserializeOwned> Slots<T> {
    /// Looks at the file at `path`, changing nothing.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(disk: &dyn Disk, path: &Path) -> io::Result<Found<T>> {
        if !disk.exists(path) {
            return Ok(Found::Absent);
        }
        let file = disk.open(path)?;
        let mut ours = false;
        let mut best: Option<(u64, T)> = None;
        for at in [0, SLOT] {
            let (mine, record) = read_slot(&*file, at)?;
            ours |= mine;
            if let Some((generation, record)) = record
                && best.as_ref().is_none_or(|(g, _)| generation > *g)
            {
                best = Some((generation, record));
            }
        }
        Ok(match best {
            _ if !ours => Found::Foreign,
            None => Found::Damaged(Self { file, generation: 0, record: PhantomData }),
            Some((generation, record)) => {
                Found::Good(Self { file, generation, record: PhantomData }, record)
            }
        })
    }

    /// Creates the file with its first record, durable under its name.
    ///
    /// # Errors
    /// What the disk says; then the file does not stand under `path`.
    pub fn create(disk: &dyn Disk, path: &Path, record: &T) -> io::Result<Self> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        if disk.exists(&new) {
            disk.remove(&new)?;
        }
        let mut slots = Self { file: disk.create(&new)?, generation: 0, record: PhantomData };
        slots.write(record)?;
        durable_rename(disk, &new, path)?;
        Ok(slots)
    }

    /// Writes the record into the older slot and syncs it. After a failure the same slot is written
    /// again by the next call: a sync is never just repeated.
    ///
    /// # Errors
    /// What the disk says; the record before stays good.
    pub fn write(&mut self, record: &T) -> io::Result<()> {
        let json = serde_json::to_vec(record).map_err(io::Error::other)?;
        if json.len() as u64 > SLOT - HEAD as u64 {
            return Err(io::Error::other("the record is longer than its slot"));
        }
        let generation = self.generation + 1;
        let mut bytes = Vec::with_capacity(HEAD + json.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&json);
        let crc = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&bytes, (generation % 2) * SLOT)?;
        self.file.sync()?;
        self.generation = generation;
        Ok(())
    }
}

type Slot<T> = (bool, Option<(u64, T)>);

fn read_slot<T: DeserializeOwned>(file: &dyn DiskFile, at: u64) -> io::Result<Slot<T>> {
    let mut head = [0; HEAD];
    let n = read_full(file, &mut head, at)?;
    if n < MAGIC.len() || head[..8] != MAGIC {
        return Ok((false, None));
    }
    let length = u32_at(&head, 12) as usize;
    if n < HEAD || length as u64 > SLOT - HEAD as u64 {
        return Ok((true, None));
    }
    let mut bytes = vec![0; HEAD + length];
    let n = read_full(file, &mut bytes, at)?;
    if n < bytes.len() || crc32c::crc32c(&bytes[12..]) != u32_at(&bytes, 8) {
        return Ok((true, None));
    }
    let record = serde_json::from_slice(&bytes[HEAD..]).ok();
    Ok((true, record.map(|record| (u64_at(&head, 16), record))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsx::sim::{Fault, MODES, Op, SimDisk};

    fn read(disk: &SimDisk) -> Option<u32> {
        match Slots::<u32>::open(disk, Path::new("/s")).unwrap() {
            Found::Good(_, n) => Some(n),
            _ => None,
        }
    }

    #[test]
    fn a_crash_at_any_moment_leaves_the_last_record_or_the_one_being_written() {
        for mode in MODES {
            for seed in 0..50 {
                let disk = SimDisk::new();
                let mut slots = Slots::create(&disk, Path::new("/s"), &0u32).unwrap();
                for n in 1..6u32 {
                    disk.fail(Some(Op::Sync), Fault::Once(0));
                    assert!(slots.write(&n).is_err());
                    let found = read(&disk.crash(mode, seed)).unwrap();
                    assert!(found == n || found == n - 1, "{found} at {n}");
                    disk.heal();
                    slots.write(&n).unwrap();
                    assert_eq!(read(&disk.crash(mode, seed)), Some(n));
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_told_apart() {
        let disk = SimDisk::new();
        disk.create(Path::new("/s")).unwrap().write_at(b"offset=12\n", 0).unwrap();
        assert!(matches!(Slots::<u32>::open(&disk, Path::new("/s")).unwrap(), Found::Foreign));
    }
}
