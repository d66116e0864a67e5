//! Who writes to the source: bursts of records, each durable before the next, with pauses between the bursts.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rehost_tests::random::Random;

use crate::history::{BLOCK, History, Write};

/// Blocks that are written again and again: a part of each disk.
const HOT_BLOCKS: u64 = 128;
const MOST_BLOCKS: u64 = 6;
/// Memory for direct I/O begins at a multiple of this.
const ALIGNMENT: usize = 4096;

/// How it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Most writes of a burst.
    pub(crate) burst: u64,
    /// The longest pause; a quarter of it is the shortest.
    pub(crate) pause: Duration,
}

/// A thread that writes to the disks.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Shared {
    history: Mutex<History>,
    /// Writes that are durable.
    done: AtomicUsize,
    resting: AtomicBool,
    bursting: AtomicBool,
    stopping: AtomicBool,
}

impl Writer {
    /// Starts to write to `disks`, which are as the history says; past the page cache if `direct`.
    pub(crate) fn start(history: History, disks: &[PathBuf], direct: bool, pace: Pace, seed: u64) -> Result<Self> {
        let files = disks.iter().map(|disk| open(disk, direct)).collect::<Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            history: Mutex::new(history),
            done: AtomicUsize::new(0),
            resting: AtomicBool::new(false),
            bursting: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.write(&files, pace, Random::new(seed))
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Writes that are durable.
    pub(crate) fn done(&self) -> usize {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// What was written until now.
    pub(crate) fn history(&self) -> History {
        self.shared.history().clone()
    }

    /// Writes no burst while this is set; waits for the end of one that has begun.
    pub(crate) fn rest(&self, rest: bool) {
        self.shared.resting.store(rest, Ordering::SeqCst);
        while rest && self.shared.bursting.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops it after the write that is under way; everything that was written.
    pub(crate) fn stop(&mut self) -> Result<History> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        }
        Ok(self.history())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, files: &[File], pace: Pace, mut random: Random) -> Result<()> {
        while !self.stopping() {
            // Said before it is asked, so that who wants it to rest sees the one or the other.
            self.bursting.store(true, Ordering::SeqCst);
            let rests = self.resting.load(Ordering::SeqCst);
            let written = if rests { Ok(()) } else { self.burst(files, 1 + random.below(pace.burst), &mut random) };
            self.bursting.store(false, Ordering::SeqCst);
            written?;
            let longest = u64::try_from(pace.pause.as_micros())?;
            thread::sleep(Duration::from_micros(longest / 4 + random.below(longest * 3 / 4 + 1)));
        }
        Ok(())
    }

    fn burst(&self, files: &[File], writes: u64, random: &mut Random) -> Result<()> {
        for _ in 0..writes {
            if self.stopping() {
                break;
            }
            let (write, content) = self.next(random);
            let file = files.get(write.disk).context("a disk")?;
            write_durably(file, &content, (write.block * BLOCK) as u64)?;
            self.done.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Notes the next write before it is made: at every moment the history has all that may be on the disks.
    fn next(&self, random: &mut Random) -> (Write, Vec<u8>) {
        let mut history = self.history();
        let disks = history.initial.len() as u64;
        let size = history.initial.first().map_or(0, Vec::len) / BLOCK;
        let place = |value: u64| usize::try_from(value).unwrap_or(0);
        let disk = place(random.below(disks));
        let blocks = 1 + random.below(MOST_BLOCKS);
        let within = if random.below(3) > 0 { HOT_BLOCKS.min(size as u64) } else { size as u64 };
        let block = random.below(within.saturating_sub(blocks) + 1);
        let write = Write { disk, block: place(block), blocks: place(blocks), zero: random.below(7) == 0 };
        history.writes.push(write);
        let content = history.content(history.writes.len(), &write);
        (write, content)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

fn open(disk: &PathBuf, direct: bool) -> Result<File> {
    let flags = if direct { rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC } else { rustix::fs::OFlags::DSYNC };
    let flags = i32::try_from(flags.bits())?;
    File::options().write(true).custom_flags(flags).open(disk).with_context(|| format!("open {}", disk.display()))
}

fn write_durably(file: &File, content: &[u8], offset: u64) -> std::io::Result<()> {
    let mut memory = vec![0; content.len() + ALIGNMENT];
    let begin = memory.as_ptr().align_offset(ALIGNMENT);
    let place = memory.get_mut(begin..begin + content.len()).unwrap_or_default();
    place.copy_from_slice(content);
    file.write_all_at(place, offset)
}
