//! Power cuts on a real file system: an ext4 image on a loop device, shut down by the ioctl that
//! forgets what was not flushed; and a real disk that fills up.
//!
//! Needs root and loop devices; skipped with a word where they are missing.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::ledger::{Dice, Ledger, check_accounts};
use crate::support::{Node, full_scale, stored, wait_until};

/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`, and the flag that flushes neither data nor journal
/// (linux/fs/ext4/ext4.h).
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587D;
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

/// An ext4 file system in a file; unmounted when dropped.
struct Image {
    dir: tempfile::TempDir,
    mounted: bool,
}

fn ran(program: &str, args: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Image {
    /// A fresh one of so many MiB, mounted; `None`, with a word, where this machine cannot.
    fn new(mib: u64) -> Option<Self> {
        let mut image = Self { dir: tempfile::tempdir().unwrap(), mounted: false };
        let file = File::create(image.file()).unwrap();
        file.set_len(mib << 20).unwrap();
        std::fs::create_dir(image.root()).unwrap();
        let made = ran("mkfs.ext4", &["-q", image.file().to_str().unwrap()]);
        match made.and_then(|()| image.mount()) {
            Ok(()) => {
                image.mounted = true;
                Some(image)
            }
            Err(e) => {
                eprintln!("SKIPPED: needs root, loop devices and mkfs.ext4 ({e})");
                None
            }
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn mount(&self) -> Result<(), String> {
        let (file, root) = (self.file(), self.root());
        ran("mount", &["-o", "loop", file.to_str().unwrap(), root.to_str().unwrap()])
    }

    /// The file system is gone this instant, with everything that was not flushed.
    fn cut_power(&self) {
        let root = File::open(self.root()).unwrap();
        let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
        // SAFETY: the descriptor is open, and the kernel reads four bytes from a valid address.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// As after the power came back: the journal is replayed by the mount.
    fn come_back(&mut self) {
        ran("umount", &[self.root().to_str().unwrap()]).unwrap();
        self.mounted = false;
        self.mount().unwrap();
        self.mounted = true;
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            let _ = ran("umount", &[self.root().to_str().unwrap()]);
        }
    }
}

const SMALL: [&str; 8] = [
    "--set",
    "max_body_bytes=16KiB",
    "--set",
    "max_batch_items=100",
    "--set",
    "queue_segment_bytes=256KiB",
    "--set",
    "min_free_bytes=1MiB",
];

fn cut_under_load(image: &Image, ledger: &Ledger, cycle: usize, dice: &mut Dice) {
    let node = Node::start(&image.root(), &SMALL);
    let moment = Duration::from_millis(dice.throw(5, 300));
    let seeds: Vec<u64> = (0..4).map(|_| dice.throw(1, 1 << 40)).collect();
    let addr = node.addr.clone();
    std::thread::scope(|scope| {
        for seed in seeds {
            let addr = addr.as_str();
            scope.spawn(move || ledger.post_until_it_breaks(addr, cycle, Dice::new(seed)));
        }
        std::thread::sleep(moment);
        ledger.power(true);
        image.cut_power();
        // a moment in which the node could answer what it must not
        std::thread::sleep(Duration::from_millis(50));
        node.kill();
    });
    ledger.power(false);
}

#[test]
fn what_was_accepted_survives_power_cuts_on_a_real_file_system() {
    let Some(mut image) = Image::new(256) else { return };
    let cycles = if full_scale() { 200 } else { 20 };
    let (ledger, mut dice) = (Ledger::default(), Dice::new(0xe474));
    for cycle in 0..cycles {
        cut_under_load(&image, &ledger, cycle, &mut dice);
        image.come_back();
        if cycle % 5 == 4 {
            // twice within a moment: the second takes what the first start had not made durable
            let node = Node::start(&image.root(), &SMALL);
            std::thread::sleep(Duration::from_millis(dice.throw(0, 100)));
            image.cut_power();
            node.kill();
            image.come_back();
        }
    }
    let node = Node::start(&image.root(), &SMALL);
    node.wait_drained();
    check_accounts(&node.get("/metrics").body);
    let health = node.health();
    assert!(health["damage"].as_array().unwrap().is_empty(), "{health}");
    assert_eq!(node.stop().code(), Some(0));
    assert!(ledger.accepted() > 100, "{}", ledger.accepted());
    ledger.judge(&stored(&image.root()));
}

/// Fills the disk to the last block; the file to remove when room is wanted.
fn fill(root: &Path) -> PathBuf {
    let path = root.join("filler");
    let mut file = File::options().create(true).append(true).open(&path).unwrap();
    let block = vec![0u8; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    path
}

#[test]
fn a_real_disk_that_fills_up_loses_nothing_and_serves_again_within_five_seconds_of_space() {
    let Some(image) = Image::new(32) else { return };
    let node = super::http::serving(
        &image.root(),
        &[&SMALL[..6], &["--set", "min_free_bytes=0"]].concat(),
    );
    let mut ids = Vec::new();
    let mut post = |id: u64| {
        let answer = node.post(&format!("{{\"id\":{id},\"pad\":\"{}\"}}", "x".repeat(2000)));
        match answer.status {
            202 => ids.push(id),
            503 => {}
            other => panic!("{other}: {}", answer.body),
        }
        answer.status
    };
    for id in 0..50 {
        assert_eq!(post(id), 202);
    }
    let filler = fill(&image.root());
    let mut id = 50;
    wait_until(Duration::from_secs(60), "a refusal", || {
        id += 1;
        if post(id) == 503 { Ok(()) } else { Err(format!("{id} taken")) }
    });
    for _ in 0..20 {
        id += 1;
        post(id);
    }
    std::fs::remove_file(filler).unwrap();
    let freed = Instant::now();
    wait_until(Duration::from_secs(30), "a 202", || {
        id += 1;
        if post(id) == 202 { Ok(()) } else { Err(node.get("/readyz").body) }
    });
    let took = freed.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?} after space came back");
    for words in ["its segment is closed and a new one begun", "the log goes on in a new segment"] {
        super::words::stands_in_the_readme(&node, words);
    }
    node.wait_drained();
    assert_eq!(node.stop().code(), Some(0));
    let mut found: Vec<u64> =
        stored(&image.root()).iter().map(|l| l["json_data"]["id"].as_u64().unwrap()).collect();
    let all = found.len();
    found.dedup();
    assert_eq!(found.len(), all, "stored twice");
    for id in ids {
        assert!(found.contains(&id), "{id} was accepted and is gone");
    }
}
