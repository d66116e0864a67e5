//! The end of a journal, where records are added: collected, sealed and written in large pieces.
//!
//! What is written are whole blocks, as direct I/O wants them: zeros stand behind the last record, and its block is written
//! again with what follows. The records in it do not change by that.

use std::io;

use rehost_direct::{ALIGNMENT, Aligned, BLOCK};
use rehost_model::{Epoch, VolumeId, replication::Consistency};

use super::{
    format::{DataKey, HEADER_LENGTH, Kind, RECORD_OVERHEAD, RecordHeader, Segment, Slot},
    index::{Extent, Index, Source},
    storage::Storage,
};
use crate::engine::random_name::{RandomName, random};

/// Neighbouring blocks are collected into one record of at most this many bytes.
const MOST_COLLECTED: usize = 256 << 10;
/// Records are written when there are this many bytes of them.
const WRITE_AT: u64 = 1 << 20;
/// For them; more is found where it is needed.
const ROOM: usize = 2 << 20;

/// Records that are not written yet.
pub(super) struct Tail {
    /// Where in the file `memory` lies, a border of blocks.
    base: u64,
    /// The last block that was written, and records that are not written yet; whole blocks.
    memory: Aligned,
    /// Bytes of it that are in use.
    filled: usize,
    /// Where the file ends now.
    written: u64,
    /// Blocks that follow each other on a volume.
    collected: Vec<u8>,
    place: Option<(Slot, u64)>,
    /// Something was added since the last barrier.
    pub(super) open: bool,
}

/// A body is at most [`super::format::MAX_BODY`] and always can be sealed.
fn unsealable() -> io::Error {
    io::Error::other("a record cannot be sealed")
}

impl Tail {
    /// Behind an empty journal's header.
    pub(super) fn new() -> Self {
        Self {
            base: HEADER_LENGTH,
            memory: Aligned::zeroed(ROOM),
            filled: 0,
            written: HEADER_LENGTH,
            collected: Vec::new(),
            place: None,
            open: false,
        }
    }

    /// Goes on at `end`, before which there are records.
    pub(super) fn resume(storage: &dyn Storage, end: u64) -> io::Result<Self> {
        let base = end / ALIGNMENT * ALIGNMENT;
        let filled = usize::try_from(end - base).map_err(io::Error::other)?;
        let mut tail = Self { base, filled, written: end, ..Self::new() };
        let there = tail.memory.get_mut(..filled).unwrap_or_default();
        match storage.read_at(base, there)? == filled {
            true => Ok(tail),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Where the file ends once everything is written.
    pub(super) fn end(&self) -> u64 {
        let collected = if self.place.is_some() { self.collected.len() + RECORD_OVERHEAD } else { 0 };
        self.position() + collected as u64
    }

    /// Where the file ends now.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Where the next record will lie.
    fn position(&self) -> u64 {
        self.base + self.filled as u64
    }

    pub(super) fn data(
        &mut self,
        (segment, index): (&Segment, &mut Index),
        slot: Slot,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.open = true;
        if !self.continues(slot, offset, bytes.len()) {
            self.seal_collected(segment, index)?;
            self.place = Some((slot, offset));
        }
        self.collected.extend_from_slice(bytes);
        match self.collected.len() >= MOST_COLLECTED {
            true => self.seal_collected(segment, index),
            false => Ok(()),
        }
    }

    pub(super) fn zero(
        &mut self,
        (segment, index): (&Segment, &mut Index),
        slot: Slot,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.open = true;
        self.seal_collected(segment, index)?;
        self.seal(segment, Kind::Zero, slot, offset, &length.to_be_bytes())?;
        index.insert(slot, offset, Extent { length, source: Source::Zero });
        Ok(())
    }

    pub(super) fn volume(
        &mut self,
        segment: &Segment,
        slot: Slot,
        lineage: RandomName,
        volume: &VolumeId,
    ) -> io::Result<()> {
        self.open = true;
        let body = [lineage.0.as_slice(), volume.as_str().as_bytes()].concat();
        self.seal(segment, Kind::Volume, slot, 0, &body).map(|_| ())
    }

    pub(super) fn barrier(&mut self, segment: &Segment, index: &mut Index) -> io::Result<()> {
        if std::mem::take(&mut self.open) {
            self.seal_collected(segment, index)?;
            self.seal(segment, Kind::Barrier, Slot(0), 0, &[])?;
        }
        Ok(())
    }

    pub(super) fn commit(
        &mut self,
        (segment, index): (&Segment, &mut Index),
        epoch: Epoch,
        consistency: Consistency,
    ) -> io::Result<()> {
        self.seal_collected(segment, index)?;
        let body = [epoch.0.to_be_bytes().as_slice(), &[consistency_number(consistency)]].concat();
        self.seal(segment, Kind::Commit, Slot(0), 0, &body).map(|_| ())
    }

    /// Begins a segment after `last`.
    pub(super) fn segment(&mut self, last: &Segment, key: &DataKey) -> io::Result<Segment> {
        let salt = random();
        let next = last.next(key, &salt, self.position());
        self.seal(&next, Kind::Segment, Slot(0), 0, &salt)?;
        Ok(next)
    }

    /// Seals what is collected, so that the index knows all of it.
    pub(super) fn seal_collected(&mut self, segment: &Segment, index: &mut Index) -> io::Result<()> {
        let Some((slot, offset)) = self.place.take() else { return Ok(()) };
        let collected = std::mem::take(&mut self.collected);
        let position = self.seal(segment, Kind::Data, slot, offset, &collected)?;
        let source = Source::Record { position, skip: 0 };
        index.insert(slot, offset, Extent { length: collected.len() as u64, source });
        self.collected = collected;
        self.collected.clear();
        Ok(())
    }

    pub(super) fn is_due(&self) -> bool {
        self.position() - self.written >= WRITE_AT
    }

    /// Writes what is sealed. After an error the tail must not be used any more: what was written is not known, and
    /// another record at the same place would use a nonce twice.
    pub(super) fn write(&mut self, storage: &dyn Storage) -> io::Result<()> {
        let end = self.position();
        if self.written == end {
            return Ok(());
        }
        let blocks = self.memory.get_mut(..self.filled.next_multiple_of(BLOCK)).unwrap_or_default();
        blocks.get_mut(self.filled..).unwrap_or_default().fill(0);
        storage.write_at(self.base, blocks)?;
        self.written = end;
        let whole = self.filled / BLOCK * BLOCK;
        self.memory.copy_within(whole..self.filled, 0);
        self.base += whole as u64;
        self.filled -= whole;
        Ok(())
    }

    fn continues(&self, slot: Slot, offset: u64, length: usize) -> bool {
        let next = self.place.map(|(slot, start)| (slot, start + self.collected.len() as u64));
        next == Some((slot, offset)) && self.collected.len() + length <= MOST_COLLECTED
    }

    /// Says where the record will lie.
    fn seal(&mut self, segment: &Segment, kind: Kind, slot: Slot, offset: u64, body: &[u8]) -> io::Result<u64> {
        let position = self.position();
        let length = u32::try_from(body.len()).map_err(|_| unsealable())?;
        let header = RecordHeader { kind, slot, length, offset };
        let end = self.filled + RECORD_OVERHEAD + body.len();
        self.memory.grow(end.next_multiple_of(BLOCK));
        let record = self.memory.get_mut(self.filled..end).ok_or_else(unsealable)?;
        segment.seal(header, position, body, record).ok_or_else(unsealable)?;
        self.filled = end;
        Ok(position)
    }
}

/// As in the frame of a checkpoint.
pub(super) fn consistency_number(consistency: Consistency) -> u8 {
    match consistency {
        Consistency::None => 0,
        Consistency::Frozen => 1,
        Consistency::Quiescent => 2,
    }
}
