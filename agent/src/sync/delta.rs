//! A pass over what is marked: collect, read, send.
//!
//! Nothing is collected while something collected earlier is under way, so one number does for all passes, also for those
//! of an agent that was killed: whatever is pending was collected before it is read, and is settled when that is durable.
//!
//! Granules larger than a digest's chunk are compared in chunks first: most of a large granule did not change.

use std::collections::VecDeque;

use rehost_protocol::{DigestChunk, DigestId, FINE_DIGEST_CHUNK, ZeroOrDigest, digest_chunk};

use super::{
    buffer::Buffer,
    driver::Driver,
    error::Halt,
    ledger::Settled,
    outbox::Outgoing,
    plan::{Chunk, Run, chunks},
    rescan::differences,
};
use crate::{
    planted,
    tracker::{ByteRange, MarksLost, Pass},
};

/// The number of every pass.
pub(super) const PASS: Pass = Pass::FIRST;
/// Fine digest requests under way.
const PIPELINE: usize = 256;
/// What became durable is settled after this many reads.
const SETTLE_EVERY: u32 = 64;

/// A read whose digests were asked for, each with its run.
struct Asked {
    chunk: Chunk,
    ids: Vec<DigestId>,
}

impl Driver<'_> {
    /// Moves the marks of every tracked disk to pending.
    pub(super) fn collect(&mut self) -> Result<(), MarksLost> {
        self.trackers().try_for_each(|tracker| tracker.collect(PASS))
    }

    /// Whether nothing was written to any tracked disk since [`Driver::collect`].
    pub(super) fn is_quiet(&mut self) -> Result<bool, MarksLost> {
        let mut quiet = true;
        for tracker in self.trackers() {
            quiet &= tracker.is_quiet()?;
        }
        Ok(quiet)
    }

    /// What is marked on the tracked disks, in bytes; the board shows it.
    pub(super) fn backlog(&mut self) -> u64 {
        let mut total = 0;
        for (place, disk) in self.disks.iter().enumerate().filter(|(_, disk)| disk.covered) {
            let bytes = disk.lease.tracker.as_ref().map_or(0, |tracker| tracker.backlog_bytes());
            self.control.board.set_backlog(place, bytes);
            total += bytes;
        }
        total
    }

    /// Sends everything that is pending; returns whether there was anything.
    pub(super) fn send_pending(&mut self) -> Result<bool, Halt> {
        let mut any = false;
        for place in 0..self.disks.len() {
            let Some(disk) = self.disks.get(place).filter(|disk| disk.covered) else { continue };
            let Some(tracker) = &disk.lease.tracker else { continue };
            let (pending, fine) = (tracker.pending(), disk.has_large_granules());
            any |= !pending.is_empty();
            if fine {
                self.send_differing_runs(place, &pending)?;
            } else {
                self.send_runs(place, &pending)?;
            }
        }
        Ok(any)
    }

    fn send_runs(&mut self, place: usize, pending: &[ByteRange]) -> Result<(), Halt> {
        for chunk in chunks(pending) {
            let (buffer, range) = (self.read_chunk(place, &chunk)?, chunk.range());
            self.queue_runs(place, buffer, chunk.runs, range)?;
        }
        Ok(())
    }

    /// Compares these stretches of a disk block by block, and sends what differs.
    pub(super) fn send_differing_runs(&mut self, place: usize, pending: &[ByteRange]) -> Result<(), Halt> {
        let mut coming = chunks(pending);
        let mut under_way: VecDeque<Asked> = VecDeque::new();
        let mut asked = 0;
        loop {
            while asked < PIPELINE {
                let Some(chunk) = coming.next() else { break };
                let ids = self.ask_runs(place, &chunk.runs)?;
                asked += ids.len();
                under_way.push_back(Asked { chunk, ids });
            }
            let Some(Asked { chunk, ids }) = under_way.pop_front() else { return Ok(()) };
            asked -= ids.len();
            let buffer = self.read_chunk(place, &chunk)?;
            let differing = self.differing_runs(place, &buffer, &chunk.runs, &ids)?;
            self.queue_runs(place, buffer, differing, chunk.range())?;
        }
    }

    pub(super) fn ask_runs(&mut self, place: usize, runs: &[Run]) -> Result<Vec<DigestId>, Halt> {
        runs.iter().map(|run| self.ask(place, run.offset, run.length as u64, DigestChunk::Fine)).collect()
    }

    /// The parts of these runs that are not on the volume yet.
    pub(super) fn differing_runs(
        &mut self,
        place: usize,
        buffer: &Buffer,
        runs: &[Run],
        ids: &[DigestId],
    ) -> Result<Vec<Run>, Halt> {
        let mut differing = Vec::new();
        for (run, id) in runs.iter().zip(ids) {
            self.compare_run(place, buffer, *run, *id, &mut differing)?;
        }
        Ok(differing)
    }

    fn compare_run(
        &mut self,
        place: usize,
        buffer: &Buffer,
        run: Run,
        mut id: DigestId,
        differing: &mut Vec<Run>,
    ) -> Result<(), Halt> {
        let bytes = buffer.bytes().get(run.at..run.at + run.length).unwrap_or_default();
        let step = usize::try_from(FINE_DIGEST_CHUNK).unwrap_or(usize::MAX);
        let own: Vec<ZeroOrDigest> = bytes.chunks(step).map(|chunk| digest_chunk(&self.key, chunk)).collect();
        let (mut at, end) = (run.offset, run.offset + run.length as u64);
        while at < end {
            let answer = self.ledger.wait_for_answer(id)?;
            answer.check(at, end, DigestChunk::Fine)?;
            let base = usize::try_from(at - run.offset).unwrap_or(usize::MAX);
            for found in differences(own.get(base / step..), &answer.runs) {
                let skip = usize::try_from(found.first).unwrap_or(usize::MAX).saturating_mul(step);
                let length = usize::try_from(found.count).unwrap_or(usize::MAX).saturating_mul(step);
                let length = length.min(run.length.saturating_sub(base + skip));
                let offset = at + found.first * FINE_DIGEST_CHUNK;
                differing.push(Run { offset, at: run.at + base + skip, length });
            }
            at += answer.covered;
            if at < end {
                id = self.ask(place, at, end - at, DigestChunk::Fine)?;
            }
        }
        Ok(())
    }

    fn read_chunk(&mut self, place: usize, chunk: &Chunk) -> Result<Buffer, Halt> {
        self.reads = self.reads.wrapping_add(1);
        if self.reads.is_multiple_of(SETTLE_EVERY) {
            self.settle_durable();
        }
        let mut buffer = self.free_buffer()?;
        if let Some(disk) = self.disks.get_mut(place) {
            disk.source.read_all(&chunk.reads, &mut buffer)?;
        }
        Ok(buffer)
    }

    pub(super) fn queue_runs(
        &mut self,
        place: usize,
        buffer: Buffer,
        runs: Vec<Run>,
        range: ByteRange,
    ) -> Result<(), Halt> {
        let sent: u64 = runs.iter().map(|run| run.length as u64).sum();
        self.control.board.add_worked(sent);
        if planted::is("settle-on-send") {
            self.settle(Settled { place, range });
        }
        self.queue(Outgoing::Runs { buffer, runs, settled: Settled { place, range } })
    }

    /// Waits until everything that was queued is durable, and settles it.
    pub(super) fn settle_all(&mut self) -> Result<(), Halt> {
        self.flush()?;
        self.settle_acknowledged();
        Ok(())
    }

    /// Everything that was collected is durable: nothing is under way.
    pub(super) fn settle_acknowledged(&mut self) {
        if planted::is("read-before-clear") {
            let _ = self.collect();
        }
        // The ledger's stretches are part of it, but for granules that lie in two of them.
        drop(self.ledger.take_settled());
        for disk in &mut self.disks {
            let whole = ByteRange { offset: 0, length: disk.source.size() };
            if let Some(tracker) = disk.lease.tracker.as_mut().filter(|_| disk.covered) {
                tracker.settle(whole, PASS);
            }
        }
    }

    /// Settles what the ledger says is durable.
    pub(super) fn settle_durable(&mut self) {
        for settled in self.ledger.take_settled() {
            self.settle(settled);
        }
    }

    fn settle(&mut self, settled: Settled) {
        if let Some(disk) = self.disks.get_mut(settled.place) {
            disk.settle(settled.range);
        }
    }
}

impl super::driver::DriverDisk {
    /// Marks stand for more than a digest does: it pays to compare first.
    pub(super) fn has_large_granules(&self) -> bool {
        self.lease.tracker.as_ref().is_some_and(|tracker| tracker.granule_bytes() > FINE_DIGEST_CHUNK)
    }

    /// This stretch is durable.
    pub(super) fn settle(&mut self, range: ByteRange) {
        if let Some(tracker) = self.lease.tracker.as_mut().filter(|_| self.covered) {
            tracker.settle(range, PASS);
        }
    }
}
