//! Sends what the driver decides, in that order.

use std::{
    sync::mpsc::{self, RecvTimeoutError, TryRecvError},
    time::{Duration, Instant},
};

use rehost_link::transport::Sender;
use rehost_model::Epoch;
use rehost_protocol::{
    AgentMessage, BlockCodec, ByteCount, ByteOffset, Consistency, DataBlock, DigestChunk, DigestId, DiskIndex,
    DiskProgress, Sequence, data_frame_prefix,
};

use super::{
    batch::{Batch, SMALL, on_the_wire},
    buffer::Buffer,
    control::SyncControl,
    error::Halt,
    ledger::{Barrier, Ledger, Settled, Ticket},
    pack::Packer,
    plan::Run,
    throttle::Throttle,
    zeros::{Segment, segments},
};

/// Most bytes of disk in one frame.
const FRAME: usize = 256 * 1024;
/// A barrier is sent after this much.
const BARRIER_BYTES: u64 = 8 << 20;
/// And after this long, if there is anything to be acknowledged.
const BARRIER_INTERVAL: Duration = Duration::from_millis(500);

/// What the driver hands over. A disk is given by its place in the configuration.
pub(super) enum Outgoing {
    /// Bytes of a disk.
    Block { place: usize, offset: u64, buffer: Buffer, first_copy: bool },
    /// Parts of a buffer, in ascending order, and what is settled with them.
    Runs { buffer: Buffer, runs: Vec<Run>, settled: Settled },
    /// A range that is zero.
    Zero { place: usize, offset: u64, length: u64, first_copy: bool },
    /// A question.
    Digests { place: usize, id: DigestId, offset: u64, length: u64, chunk: DigestChunk },
    /// Everything before it is to be acknowledged.
    Flush(Ticket),
    /// Everything before it is a checkpoint.
    Checkpoint { epoch: Epoch, consistency: Consistency, ticket: Ticket },
}

/// A disk, as the outbox knows it.
pub(super) struct OutDisk {
    pub(super) index: DiskIndex,
    /// The first copy was sent up to here.
    pub(super) mark: u64,
}

pub(super) struct Outbox<'a> {
    sender: Sender,
    ledger: &'a Ledger<'a>,
    control: &'a SyncControl,
    put_back: mpsc::Sender<Buffer>,
    disks: Vec<OutDisk>,
    packer: Packer,
    throttle: Throttle,
    /// Zeros that may still grow: place, offset, length.
    zeros: Option<(usize, u64, u64)>,
    seq: Sequence,
    /// Bytes of disk since the last barrier.
    since_barrier: u64,
    last_barrier: Instant,
    /// Something was sent that no barrier covers.
    uncovered: bool,
    /// What the next barrier settles.
    settles: Vec<Settled>,
    batch: Batch,
}

impl<'a> Outbox<'a> {
    pub(super) fn new(
        sender: Sender,
        ledger: &'a Ledger<'a>,
        control: &'a SyncControl,
        put_back: mpsc::Sender<Buffer>,
        disks: Vec<OutDisk>,
    ) -> Self {
        Self {
            sender,
            ledger,
            control,
            put_back,
            disks,
            packer: Packer::new(),
            throttle: Throttle::new(),
            zeros: None,
            seq: Sequence(0),
            since_barrier: 0,
            last_barrier: Instant::now(),
            uncovered: false,
            settles: Vec::new(),
            batch: Batch::new(),
        }
    }

    /// Sends until the driver is done, then says bye.
    pub(super) fn run(mut self, queue: &mpsc::Receiver<Outgoing>) -> Result<(), Halt> {
        loop {
            match self.next(queue) {
                Ok(outgoing) => self.handle(outgoing)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let due = self.since_barrier >= BARRIER_BYTES || self.last_barrier.elapsed() >= BARRIER_INTERVAL;
            if due && self.uncovered {
                self.barrier(None)?;
            }
        }
        if self.uncovered {
            self.barrier(None)?;
        }
        self.message(&AgentMessage::Bye)?;
        self.flush()
    }

    /// What the driver has decided; nothing stays in the batch while it thinks.
    fn next(&mut self, queue: &mpsc::Receiver<Outgoing>) -> Result<Outgoing, RecvTimeoutError> {
        match queue.try_recv() {
            Err(TryRecvError::Empty) => {}
            received => return received.map_err(|_| RecvTimeoutError::Disconnected),
        }
        if self.flush().is_err() {
            return Err(RecvTimeoutError::Disconnected);
        }
        queue.recv_timeout(BARRIER_INTERVAL)
    }

    fn handle(&mut self, outgoing: Outgoing) -> Result<(), Halt> {
        match outgoing {
            Outgoing::Block { place, offset, buffer, first_copy } => {
                let end = offset + buffer.bytes().len() as u64;
                self.block(place, offset, buffer.bytes())?;
                // Nobody takes it any more if the driver is gone.
                let _ = self.put_back.send(buffer);
                self.passed(place, end, first_copy);
                Ok(())
            }
            Outgoing::Runs { buffer, runs, settled } => self.runs(buffer, &runs, settled),
            Outgoing::Zero { place, offset, length, first_copy } => {
                self.zero(place, offset, length)?;
                self.passed(place, offset + length, first_copy);
                Ok(())
            }
            Outgoing::Digests { place, id, offset, length, chunk } => {
                self.flush_zeros()?;
                let (offset, length) = (ByteOffset(offset), ByteCount(length));
                let disk = self.index(place);
                self.message(&AgentMessage::DigestRequest { id, disk, offset, length, chunk })
            }
            Outgoing::Flush(ticket) => self.barrier(Some(ticket)),
            Outgoing::Checkpoint { epoch, consistency, ticket } => self.checkpoint(epoch, consistency, ticket),
        }
    }

    fn runs(&mut self, buffer: Buffer, runs: &[Run], settled: Settled) -> Result<(), Halt> {
        for run in runs {
            let bytes = buffer.bytes().get(run.at..run.at + run.length).unwrap_or_default();
            self.block(settled.place, run.offset, bytes)?;
        }
        // Nobody takes it any more if the driver is gone.
        let _ = self.put_back.send(buffer);
        settled.add_to(&mut self.settles);
        self.uncovered = true;
        Ok(())
    }

    fn passed(&mut self, place: usize, end: u64, first_copy: bool) {
        self.uncovered = true;
        if let Some(disk) = self.disks.get_mut(place).filter(|_| first_copy) {
            disk.mark = disk.mark.max(end);
        }
    }

    fn block(&mut self, place: usize, offset: u64, bytes: &[u8]) -> Result<(), Halt> {
        for segment in segments(bytes) {
            match segment {
                Segment::Zero(range) => self.zero(place, offset + range.start as u64, range.len() as u64)?,
                Segment::Data(range) => {
                    self.flush_zeros()?;
                    let at = offset + range.start as u64;
                    self.data(place, at, bytes.get(range).unwrap_or_default())?;
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, place: usize, offset: u64, bytes: &[u8]) -> Result<(), Halt> {
        let mut at = offset;
        for part in bytes.chunks(FRAME) {
            self.reserve(part.len() as u64)?;
            self.frame(place, at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Room in the window; what could make room must not wait for itself to be sent.
    fn reserve(&mut self, bytes: u64) -> Result<(), Halt> {
        if !self.ledger.try_reserve(bytes) {
            if self.since_barrier > 0 {
                self.barrier(None)?;
            }
            self.flush()?;
            self.ledger.reserve(bytes)?;
        }
        self.since_barrier += bytes;
        Ok(())
    }

    fn frame(&mut self, place: usize, offset: u64, bytes: &[u8]) -> Result<(), Halt> {
        let disk = self.index(place);
        let small = bytes.len() <= SMALL;
        if !small {
            self.flush()?;
        }
        let (codec, payload) = match self.packer.pack(bytes) {
            Some(packed) => (BlockCodec::Zstd, packed),
            None => (BlockCodec::Raw, bytes),
        };
        let raw_length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let block = DataBlock { disk, offset: ByteOffset(offset), codec, raw_length, payload };
        if small {
            self.batch.add_block(&block)?;
            return self.flush_if_full();
        }
        let prefix = data_frame_prefix(&block)?;
        let length = prefix.len() + payload.len();
        // A throttle is a slow link, too: the time it takes counts.
        let started = Instant::now();
        self.throttle.take(on_the_wire(length), self.control)?;
        self.sender.send(&[&prefix, payload])?;
        self.packer.sent(length, started.elapsed());
        self.control.board.add_sent(length as u64);
        Ok(())
    }

    fn zero(&mut self, place: usize, offset: u64, length: u64) -> Result<(), Halt> {
        match &mut self.zeros {
            Some((last, start, grown)) if *last == place && *start + *grown == offset => *grown += length,
            _ => {
                self.flush_zeros()?;
                self.zeros = Some((place, offset, length));
            }
        }
        Ok(())
    }

    fn flush_zeros(&mut self) -> Result<(), Halt> {
        let Some((place, offset, length)) = self.zeros.take() else {
            return Ok(());
        };
        let (disk, offset, length) = (self.index(place), ByteOffset(offset), ByteCount(length));
        self.message(&AgentMessage::Zero { disk, offset, length })
    }

    fn barrier(&mut self, ticket: Option<Ticket>) -> Result<(), Halt> {
        let seq = self.enter_barrier(ticket)?;
        let mark = |disk: &OutDisk| DiskProgress { disk: disk.index, high_water: ByteOffset(disk.mark) };
        let progress = self.disks.iter().map(mark).collect();
        self.message(&AgentMessage::Barrier { seq, progress })?;
        self.flush()
    }

    fn checkpoint(&mut self, epoch: Epoch, consistency: Consistency, ticket: Ticket) -> Result<(), Halt> {
        // The marks travel with a barrier: also if the disks ended in the same moment.
        if self.uncovered {
            self.barrier(None)?;
        }
        let seq = self.enter_barrier(Some(ticket))?;
        self.message(&AgentMessage::Checkpoint { seq, epoch, consistency })?;
        self.flush()
    }

    /// Entered before it is sent: the acknowledgement may be quick.
    fn enter_barrier(&mut self, ticket: Option<Ticket>) -> Result<Sequence, Halt> {
        self.flush_zeros()?;
        self.seq = Sequence(self.seq.0 + 1);
        let marks = self.disks.iter().map(|disk| disk.mark).collect();
        let settles = std::mem::take(&mut self.settles);
        self.ledger.enter_barrier(Barrier { seq: self.seq, marks, settles, ticket });
        (self.since_barrier, self.uncovered) = (0, false);
        self.last_barrier = Instant::now();
        Ok(self.seq)
    }

    fn message(&mut self, message: &AgentMessage<'_>) -> Result<(), Halt> {
        self.batch.add(message)?;
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), Halt> {
        if self.batch.is_full() { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Halt> {
        let length = self.batch.bytes().len();
        if length == 0 {
            return Ok(());
        }
        let started = Instant::now();
        self.throttle.take(on_the_wire(length), self.control)?;
        self.sender.send(&[self.batch.bytes()])?;
        self.packer.sent(length, started.elapsed());
        self.control.board.add_sent(length as u64);
        self.batch.clear();
        Ok(())
    }

    fn index(&self, place: usize) -> DiskIndex {
        self.disks.get(place).map_or(DiskIndex(u8::MAX), |disk| disk.index)
    }
}
