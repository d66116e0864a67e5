//! Reads what is left while the file systems are frozen: into memory that is there already, by threads that wait already.
//!
//! Until the thaw nothing here logs, writes a file or waits for anybody but these threads: whoever writes to a frozen file
//! system is stuck, and must not be waited for.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
};

use rehost_direct::BLOCK;

use super::{
    buffer::{Buffer, Pool, STEP},
    error::SyncError,
    plan::Run,
    source::{FrozenReader, Source},
};
use crate::tracker::ByteRange;

/// Buffers for what is left: as many megabytes.
const RESERVE: usize = 24;
const THREADS: usize = 8;
/// The smallest run is one granule.
const MOST_RUNS: usize = STEP / BLOCK;

/// What is left fits into this; bytes.
pub(super) const MOST_LEFT: u64 = (RESERVE * STEP) as u64;

/// A buffer full of runs of one disk.
pub(super) struct Job {
    /// The disk's place.
    pub(super) place: usize,
    pub(super) buffer: Buffer,
    pub(super) runs: Vec<Run>,
    filled: usize,
    reader: Option<Arc<FrozenReader>>,
    failed: Option<io::Error>,
}

/// The threads, and what they read.
pub(super) struct FrozenReads {
    readers: Vec<Arc<FrozenReader>>,
    empty: Vec<Job>,
    full: Vec<Job>,
    started: usize,
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Job>,
    threads: Vec<JoinHandle<()>>,
}

/// Why not everything was read.
#[derive(Debug)]
pub(super) enum Shortfall {
    /// It does not fit into the memory that was set aside.
    TooMuch,
    /// A disk, given by its place, cannot be read there.
    Unreadable(usize, u64, io::Error),
}

impl FrozenReads {
    /// Starts the threads.
    pub(super) fn start<'s>(sources: impl Iterator<Item = &'s Source>) -> Result<Self, SyncError> {
        let readers = sources.map(|source| source.frozen_reader().map(Arc::new)).collect::<Result<_, _>>()?;
        let (jobs, waiting) = mpsc::sync_channel(RESERVE);
        let (finished, done) = mpsc::sync_channel(RESERVE);
        let waiting = Arc::new(Mutex::new(waiting));
        let start = |_| {
            let (waiting, finished) = (Arc::clone(&waiting), finished.clone());
            let builder = thread::Builder::new().name("frozen-read".to_owned());
            builder.spawn(move || work(&waiting, &finished)).map_err(|e| SyncError::System(e.to_string()))
        };
        let threads = (0..THREADS).map(start).collect::<Result<_, _>>()?;
        let empty = Vec::with_capacity(RESERVE);
        let full = Vec::with_capacity(RESERVE);
        Ok(Self { readers, empty, full, started: 0, jobs: Some(jobs), done, threads })
    }

    /// Gathers all of the memory; false if part of it is still under way.
    pub(super) fn prepare(&mut self, pool: &mut Pool) -> bool {
        if !pool.fill_reserve(RESERVE) {
            return false;
        }
        while let Some(buffer) = pool.take_reserved() {
            let runs = Vec::with_capacity(MOST_RUNS);
            self.empty.push(Job { place: 0, buffer, runs, filled: 0, reader: None, failed: None });
        }
        true
    }

    /// Lets the threads read these ranges of a disk. Allocates nothing.
    pub(super) fn add(&mut self, place: usize, ranges: &[ByteRange]) -> Result<(), Shortfall> {
        let Some(mut job) = self.next_job(place) else { return Err(Shortfall::TooMuch) };
        for range in ranges {
            let mut at = range.offset;
            while at < range.end() {
                if job.is_full() {
                    self.dispatch(job);
                    job = self.next_job(place).ok_or(Shortfall::TooMuch)?;
                }
                at += job.take(ByteRange { offset: at, length: range.end() - at });
            }
        }
        self.dispatch(job);
        Ok(())
    }

    /// Waits until everything was read.
    pub(super) fn finish(&mut self) -> Result<(), Shortfall> {
        let mut failure = None;
        while self.started > 0 {
            let Ok(mut job) = self.done.recv() else { break };
            self.started -= 1;
            if let Some(error) = job.failed.take() {
                let at = job.runs.first().map_or(0, |run| run.offset);
                failure = Some(Shortfall::Unreadable(job.place, at, error));
            }
            self.full.push(job);
        }
        failure.map_or(Ok(()), Err)
    }

    /// What was read, in the order of the disks.
    pub(super) fn take(&mut self) -> Vec<Job> {
        let mut jobs = std::mem::take(&mut self.full);
        jobs.sort_by_key(|job| (job.place, job.runs.first().map(|run| run.offset)));
        self.full.reserve(RESERVE);
        jobs
    }

    /// Gives back all memory that holds nothing of use.
    pub(super) fn clear(&mut self, pool: &mut Pool) {
        self.full.drain(..).chain(self.empty.drain(..)).for_each(|job| pool.give_back(job.buffer));
    }

    fn next_job(&mut self, place: usize) -> Option<Job> {
        let mut job = self.empty.pop()?;
        job.place = place;
        job.reader = self.readers.get(place).cloned();
        Some(job)
    }

    fn dispatch(&mut self, job: Job) {
        if job.runs.is_empty() {
            return self.empty.push(job);
        }
        // The threads live as long as this does.
        if let Some(Ok(())) = self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            self.started += 1;
        }
    }
}

impl Drop for FrozenReads {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Job {
    fn is_full(&self) -> bool {
        self.filled >= STEP || self.runs.len() >= MOST_RUNS
    }

    /// Takes the beginning of a range; says how many bytes of it.
    fn take(&mut self, range: ByteRange) -> u64 {
        let room = STEP - self.filled;
        let length = usize::try_from(range.length).unwrap_or(usize::MAX).min(room);
        self.runs.push(Run { offset: range.offset, at: self.filled, length });
        // Only at the disk's end a run is no multiple of a block.
        self.filled += length.next_multiple_of(BLOCK);
        length as u64
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(reader) = &self.reader else { return Ok(()) };
        for run in &self.runs {
            let end = run.at + run.length.next_multiple_of(BLOCK);
            reader.read(run.offset, self.buffer.space().get_mut(run.at..end).unwrap_or_default())?;
        }
        self.buffer.set_length(self.filled);
        Ok(())
    }
}

fn work(waiting: &Mutex<Receiver<Job>>, finished: &SyncSender<Job>) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut job) = next else { return };
        job.failed = job.read().err();
        if finished.send(job).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::DiskSource;
    use rehost_model::VolumeId;
    use rehost_protocol::DiskIndex;
    use std::{fs::File, os::unix::fs::FileExt as _};

    fn source(directory: &std::path::Path, size: u64) -> (Source, File) {
        let path = directory.join("disk.img");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        let disk = DiskSource { index: DiskIndex(0), path, volume: VolumeId::generate(), size_bytes: size };
        (Source::open(&disk).unwrap(), file)
    }

    #[test]
    fn what_fits_is_read_and_more_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let size = 40 * STEP as u64 + 512;
        let (source, file) = source(directory.path(), size);
        for block in 0..40 * 256_u64 {
            file.write_all_at(&block.to_be_bytes(), block * 4096).unwrap();
        }
        file.write_all_at(&[9; 512], size - 512).unwrap();
        let (mut pool, _put_back) = Pool::new();
        let mut reads = FrozenReads::start([&source].into_iter()).unwrap();
        assert!(reads.prepare(&mut pool));
        let mut ranges: Vec<_> = (0..100).map(|n| ByteRange { offset: n * 3 * 8192, length: 8192 }).collect();
        ranges.push(ByteRange { offset: 10 * STEP as u64, length: 2 * STEP as u64 });
        ranges.push(ByteRange { offset: size - 512, length: 512 });
        reads.add(0, &ranges).unwrap();
        reads.finish().unwrap();
        let mut read = 0;
        for job in reads.take() {
            for run in &job.runs {
                read += run.length as u64;
                let bytes = &job.buffer.bytes()[run.at..run.at + run.length];
                if run.length == 512 {
                    assert!(bytes.iter().all(|byte| *byte == 9));
                } else {
                    assert_eq!(bytes[..8], (run.offset / 4096).to_be_bytes());
                }
            }
            pool.give_back(job.buffer);
        }
        assert_eq!(read, ranges.iter().map(|range| range.length).sum::<u64>());
        reads.clear(&mut pool);
        assert!(reads.prepare(&mut pool));
        let all = [ByteRange { offset: 0, length: MOST_LEFT + 4096 }];
        assert!(matches!(reads.add(0, &all), Err(Shortfall::TooMuch)));
        reads.finish().unwrap();
        reads.clear(&mut pool);
        assert!(pool.fill_reserve(RESERVE));
    }
}
