//! Sends what the driver decides, in that order.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use rehost_link::transport::Sender;
use rehost_model::Epoch;
use rehost_protocol::{
    AgentMessage, BlockCodec, ByteCount, ByteOffset, Consistency, DataBlock, DigestChunk, DigestId, DiskIndex,
    DiskProgress, Sequence, data_frame_prefix,
};

use super::{
    buffer::Buffer,
    control::SyncControl,
    error::Halt,
    ledger::{Barrier, Ledger},
    pack::Packer,
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
    /// A range that is zero.
    Zero { place: usize, offset: u64, length: u64, first_copy: bool },
    /// A question.
    Digests { place: usize, id: DigestId, offset: u64, length: u64 },
    /// Everything before it is a checkpoint.
    Checkpoint(Epoch),
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
    scratch: Vec<u8>,
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
            scratch: Vec::new(),
        }
    }

    /// Sends until the driver is done, then says bye.
    pub(super) fn run(mut self, queue: &mpsc::Receiver<Outgoing>) -> Result<(), Halt> {
        loop {
            match queue.recv_timeout(BARRIER_INTERVAL) {
                Ok(outgoing) => self.handle(outgoing)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let due = self.since_barrier >= BARRIER_BYTES || self.last_barrier.elapsed() >= BARRIER_INTERVAL;
            if due && self.uncovered {
                self.barrier()?;
            }
        }
        if self.uncovered {
            self.barrier()?;
        }
        self.send_message(&AgentMessage::Bye)
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
            Outgoing::Zero { place, offset, length, first_copy } => {
                self.zero(place, offset, length)?;
                self.passed(place, offset + length, first_copy);
                Ok(())
            }
            Outgoing::Digests { place, id, offset, length } => {
                self.flush_zeros()?;
                let (offset, length) = (ByteOffset(offset), ByteCount(length));
                let disk = self.index(place);
                self.send_message(&AgentMessage::DigestRequest { id, disk, offset, length, chunk: DigestChunk::Coarse })
            }
            Outgoing::Checkpoint(epoch) => self.checkpoint(epoch),
        }
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
                self.barrier()?;
            }
            self.ledger.reserve(bytes)?;
        }
        self.since_barrier += bytes;
        Ok(())
    }

    fn frame(&mut self, place: usize, offset: u64, bytes: &[u8]) -> Result<(), Halt> {
        let disk = self.index(place);
        let (codec, payload) = match self.packer.pack(bytes) {
            Some(packed) => (BlockCodec::Zstd, packed),
            None => (BlockCodec::Raw, bytes),
        };
        let raw_length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let block = DataBlock { disk, offset: ByteOffset(offset), codec, raw_length, payload };
        let prefix = data_frame_prefix(&block)?;
        let length = prefix.len() + payload.len();
        // A throttle is a slow link, too: the time it takes counts.
        let started = Instant::now();
        self.throttle.take(length, self.control)?;
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
        self.send_message(&AgentMessage::Zero { disk, offset, length })
    }

    fn barrier(&mut self) -> Result<(), Halt> {
        let seq = self.enter_barrier(None)?;
        let mark = |disk: &OutDisk| DiskProgress { disk: disk.index, high_water: ByteOffset(disk.mark) };
        let progress = self.disks.iter().map(mark).collect();
        self.send_message(&AgentMessage::Barrier { seq, progress })
    }

    fn checkpoint(&mut self, epoch: Epoch) -> Result<(), Halt> {
        // The marks travel with a barrier: also if the disks ended in the same moment.
        if self.uncovered {
            self.barrier()?;
        }
        let seq = self.enter_barrier(Some(epoch))?;
        self.send_message(&AgentMessage::Checkpoint { seq, epoch, consistency: Consistency::Quiescent })
    }

    /// Entered before it is sent: the acknowledgement may be quick.
    fn enter_barrier(&mut self, epoch: Option<Epoch>) -> Result<Sequence, Halt> {
        self.flush_zeros()?;
        self.seq = Sequence(self.seq.0 + 1);
        let marks = self.disks.iter().map(|disk| disk.mark).collect();
        self.ledger.enter_barrier(Barrier { seq: self.seq, marks, epoch });
        (self.since_barrier, self.uncovered) = (0, false);
        self.last_barrier = Instant::now();
        Ok(self.seq)
    }

    fn send_message(&mut self, message: &AgentMessage<'_>) -> Result<(), Halt> {
        self.scratch.clear();
        message.encode(&mut self.scratch)?;
        self.sender.send(&[&self.scratch])?;
        Ok(())
    }

    fn index(&self, place: usize) -> DiskIndex {
        self.disks.get(place).map_or(DiskIndex(u8::MAX), |disk| disk.index)
    }
}
