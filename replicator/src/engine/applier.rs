//! Applies what a session has received, in that order: decryption of the next block need not wait for the page cache.
//!
//! Blocks that arrive together are handed over together: scattered changes are thousands of small ones, and each hand-over
//! wakes a thread.
//!
//! Commits travel through the same queue, so the committer hears of a barrier when everything before it is applied.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use rehost_link::transport::Sender;
use rehost_protocol::{ByteCount, ByteOffset, DiskIndex};

use super::{
    admission::{Disk, Disks},
    blocks::Blocks,
    committer::{Commit, Committer, Failure},
    journal::{Journal, Room},
    refusal::Refusal,
    session::{find, send_error},
};

/// Hand-overs that may wait to be written; each has a buffer that goes round.
const BUFFERS: usize = 8;

/// What is to be done to the volumes.
pub(super) enum Operation {
    /// Bytes of disks.
    Write(Blocks),
    /// A range that is zero.
    Zero { disk: DiskIndex, offset: ByteOffset, length: ByteCount },
    /// Everything before it shall be durable.
    Commit(Commit),
    /// Somebody wants to know when everything before it is applied.
    Applied(mpsc::Sender<()>),
}

/// Handle of a session's applier, and through it of its committer.
pub(super) struct Applier {
    queue: Option<mpsc::SyncSender<Operation>>,
    free: mpsc::Receiver<Blocks>,
    /// Received, and not handed over yet.
    gathered: Option<Blocks>,
    failure: Arc<Failure>,
    thread: Option<JoinHandle<()>>,
    /// Something may be queued that changes a volume.
    pending: bool,
}

impl Applier {
    pub(super) fn start(disks: Arc<Disks>, sender: Sender, committer: Committer) -> io::Result<Self> {
        let (queue, operations) = mpsc::sync_channel(BUFFERS);
        let (put_back, free) = mpsc::channel();
        for _ in 0..BUFFERS {
            // The other end is in this function's hands.
            let _ = put_back.send(Blocks::default());
        }
        let failure = committer.failure_slot();
        let worker = Worker { disks, sender, committer, failure: failure.clone(), put_back };
        let thread = thread::Builder::new().name("applier".into()).spawn(move || worker.run(&operations))?;
        Ok(Self { queue: Some(queue), free, gathered: None, failure, thread: Some(thread), pending: false })
    }

    /// Takes a block of `length` bytes, which `unpack` appends; it is handed over with those that follow, at [`Self::flush`]
    /// at the latest. Waits while all buffers are under way.
    pub(super) fn write(
        &mut self,
        (disk, offset): (DiskIndex, ByteOffset),
        length: usize,
        unpack: impl FnOnce(&mut Vec<u8>) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        if self.gathered.as_ref().is_some_and(|blocks| !blocks.has_room(length)) {
            self.flush()?;
        }
        let mut blocks = match self.gathered.take() {
            Some(blocks) => blocks,
            None => self.free.recv().map_err(|_| self.ended())?,
        };
        blocks.add(disk, offset, unpack)?;
        let full = blocks.is_full();
        self.gathered = Some(blocks);
        if full { self.flush() } else { Ok(()) }
    }

    /// Hands over what was gathered: nothing else is here to go with it.
    pub(super) fn flush(&mut self) -> Result<(), Refusal> {
        match self.gathered.take() {
            Some(blocks) => self.queue(Operation::Write(blocks)),
            None => Ok(()),
        }
    }

    /// Queues an operation after everything before it; waits while the queue is full.
    pub(super) fn apply(&mut self, operation: Operation) -> Result<(), Refusal> {
        self.flush()?;
        self.queue(operation)
    }

    fn queue(&mut self, operation: Operation) -> Result<(), Refusal> {
        self.pending |= match &operation {
            Operation::Write(_) | Operation::Zero { .. } => true,
            // The journal comes to the volumes.
            Operation::Commit(commit) => commit.checkpoint.is_some(),
            Operation::Applied(_) => false,
        };
        let sent = self.queue.as_ref().map(|queue| queue.send(operation));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// Waits until everything queued is applied, for whoever reads the volumes.
    pub(super) fn wait_until_applied(&mut self) -> Result<(), Refusal> {
        self.flush()?;
        if self.pending {
            let (done, applied) = mpsc::channel();
            self.apply(Operation::Applied(done))?;
            applied.recv().map_err(|_| self.ended())?;
            self.pending = false;
        }
        Ok(())
    }

    /// The failure that ended the applier or the committer.
    pub(super) fn failure(&self) -> Option<Refusal> {
        self.failure.refusal()
    }

    /// Applies and commits what is queued, and ends.
    pub(super) fn finish(&mut self) {
        // A worker that has ended has said why.
        let _ = self.flush();
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }

    /// The worker is gone, and has said why before it went.
    fn ended(&self) -> Refusal {
        let unknown =
            || Refusal::new(rehost_protocol::ErrorCode::Io, "the thread that writes to the volumes has ended");
        self.failure().unwrap_or_else(unknown)
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.finish();
    }
}

struct Worker {
    disks: Arc<Disks>,
    sender: Sender,
    committer: Committer,
    failure: Arc<Failure>,
    put_back: mpsc::Sender<Blocks>,
}

impl Worker {
    fn run(mut self, operations: &mpsc::Receiver<Operation>) {
        let result = operations.iter().try_for_each(|operation| self.apply(operation));
        // What came before a failure is made durable all the same.
        self.committer.finish();
        if let Err(refusal) = result {
            self.failure.note(refusal.clone());
            // The session may be waiting for a frame: the agent that hears of it ends the connection.
            send_error(&self.sender, &refusal);
        }
    }

    fn apply(&self, operation: Operation) -> Result<(), Refusal> {
        match operation {
            Operation::Write(mut blocks) => {
                for (disk, offset, bytes) in blocks.iter() {
                    self.write(find(&self.disks, disk)?, offset, bytes)?;
                }
                blocks.clear();
                // Nobody takes it any more if the session is over.
                let _ = self.put_back.send(blocks);
            }
            Operation::Zero { disk, offset, length } => self.zero(find(&self.disks, disk)?, offset, length)?,
            Operation::Commit(commit) => self.commit(commit)?,
            // Nobody waits any more if the session is over.
            Operation::Applied(done) => drop(done.send(())),
        }
        Ok(())
    }

    fn write(&self, disk: &Disk, offset: ByteOffset, bytes: &[u8]) -> Result<(), Refusal> {
        if self.is_journaled(disk, |journal| journal.write(&disk.member, offset.0, bytes))? {
            return Ok(());
        }
        disk.volume.write(offset, bytes)
    }

    fn zero(&self, disk: &Disk, offset: ByteOffset, length: ByteCount) -> Result<(), Refusal> {
        if self.is_journaled(disk, |journal| journal.zero(&disk.member, offset.0, length.0))? {
            return Ok(());
        }
        disk.volume.zero(offset, length)
    }

    /// Whether the journal took a change; else the volume may be written to directly: it does not count as a checkpoint.
    fn is_journaled(
        &self,
        disk: &Disk,
        change: impl FnOnce(&Journal) -> Result<Room, Refusal>,
    ) -> Result<bool, Refusal> {
        if !disk.is_consistent() {
            return Ok(false);
        }
        if let Some(journal) = self.disks.journal()
            && change(journal)? == Room::Taken
        {
            return Ok(true);
        }
        self.committer.spill()?;
        Ok(false)
    }

    /// A barrier is made durable meanwhile; a checkpoint is waited for: what comes after it must not become part of it.
    fn commit(&self, commit: Commit) -> Result<(), Refusal> {
        if commit.checkpoint.is_some() {
            return self.committer.checkpoint(commit);
        }
        let journal = self.disks.journal().map(|journal| journal.barrier()).transpose()?;
        self.committer.barrier(commit, journal.unwrap_or_default());
        Ok(())
    }
}
