//! Appends through the file queue by many tasks, beside one thread that writes the same bytes and
//! syncs them: the best that a group commit could do if every task's frame were in every group.
//!
//! Knows no HTTP and no JSON.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use replicon::clock::Clock;
use replicon::event::{Batch, Name};
use replicon::fsx::OsDisk;
use replicon::queue::accounts::Ceilings;
use replicon::queue::file::record::Salt;
use replicon::queue::file::{FileQueue, Options, SyncMode};
use replicon::queue::{AppendError, Queue};
use replicon::task::{self, Spine};
use tokio::runtime::Runtime;

use crate::settings::{Outcome, Settings, clear, scratch};
use crate::{Piece, batch, put_frame, report};

/// Every number of tasks with every number of events a batch.
pub fn run(settings: &Settings) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let time = Duration::from_secs(settings.seconds);
    for events in [1, 100] {
        let batch = batch(events)?;
        let mut frame = Vec::new();
        put_frame(&batch, Salt::of(&[7; 16]), &mut frame);
        for tasks in [1, 64, 256] {
            let (mut ours, mut floor) = (Vec::new(), Vec::new());
            for _ in 0..settings.rounds {
                ours.push(queue(&runtime, tasks, &batch, time)?);
                floor.push(bare(tasks, &frame, time)?);
            }
            let piece = Piece {
                name: format!("append, {tasks} tasks, {events} each"),
                bytes: frame.len(),
                events,
            };
            report(&piece, &ours, &floor);
        }
    }
    Ok(())
}

/// Nanoseconds an append, through the queue.
fn queue(runtime: &Runtime, tasks: usize, batch: &Batch, time: Duration) -> Outcome<f64> {
    let dir = scratch()?;
    let (clock, spine) = (Clock::system(), Spine::default());
    let queue = Arc::new(FileQueue::open(options(dir.path(), &clock, &spine)?)?);
    queue.identity_certain()?;
    let start = clock.mono();
    let until = start + time;
    let appended = runtime.block_on(async {
        let running: Vec<_> = (0..tasks)
            .map(|_| {
                let one = append_until(queue.clone(), batch.clone(), clock.clone(), until);
                task::spawn(one)
            })
            .collect();
        let mut appended = 0;
        for one in running {
            appended += one.await??;
        }
        Outcome::Ok(appended)
    });
    let took = clock.mono() - start;
    spine.stopping();
    queue.close();
    drop(queue);
    clear(dir)?;
    Ok(took.as_nanos() as f64 / appended? as f64)
}

/// One task: the next append when the last one is durable.
async fn append_until(
    queue: Arc<FileQueue>,
    batch: Batch,
    clock: Clock,
    until: Duration,
) -> Result<u64, AppendError> {
    let mut appended = 0;
    while clock.mono() < until {
        queue.append(batch.clone()).await?;
        appended += 1;
    }
    Ok(appended)
}

/// Nanoseconds a frame, where one thread writes `tasks` frames at a time and syncs.
fn bare(tasks: usize, frame: &[u8], time: Duration) -> Outcome<f64> {
    let dir = scratch()?;
    let clock = Clock::system();
    let group = frame.repeat(tasks);
    let mut file = File::create(dir.path().join("floor"))?;
    let start = clock.mono();
    let mut frames = 0;
    while clock.mono() - start < time {
        file.write_all(&group)?;
        file.sync_data()?;
        frames += tasks;
    }
    let took = clock.mono() - start;
    drop(file);
    clear(dir)?;
    Ok(took.as_nanos() as f64 / frames as f64)
}

fn options(dir: &Path, clock: &Clock, spine: &Spine) -> Outcome<Options> {
    let histogram = prometheus::HistogramOpts::new("sync_seconds", "Seconds that syncs take.");
    Ok(Options {
        disk: OsDisk::shared(),
        path: dir.join("queue").join("ingest.log"),
        ack_path: dir.join("queue").join("ingest.ack"),
        origin: Name::new("dc1")?,
        clock: clock.clone(),
        sync: SyncMode::Ack,
        segment_bytes: 64 << 20,
        ceilings: Ceilings { max_events: 1 << 40, max_bytes: 1 << 50, channel_share: 1.0 },
        min_free_bytes: 256 << 20,
        dead_letter_max_bytes: 1 << 30,
        lock: true,
        spine: spine.clone(),
        sync_seconds: prometheus::Histogram::with_opts(histogram)?,
    })
}
