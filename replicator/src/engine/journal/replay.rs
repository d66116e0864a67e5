//! Finds out what a journal holds: everything up to its last whole barrier, or a commit.
//!
//! What follows that is the torn end of a crash, and was never acknowledged. But a journal that ends before the mark in its
//! header has lost what was acknowledged: that is damage, and never cut off in silence.

use rehost_model::{Epoch, ServerId, VolumeId, replication::Consistency};

use super::{
    format::{DataKey, FIELDS_LENGTH, HEADER_LENGTH, Header, HeaderError, Kind, RecordHeader, Segment, Slot},
    index::{Budget, Extent, Index, Source},
    reader::{ReadError, Reader, SEQUENTIAL},
    storage::Storage,
    tail::consistency_number,
};
use crate::{engine::random_name::RandomName, planted};

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine) enum OpenError {
    /// Sealed under another key.
    #[error("it is sealed under another data key")]
    OtherKey,
    /// Not all that was acknowledged is there.
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A checkpoint that a journal holds in whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Committed {
    /// 0 if nobody asked for it.
    pub(in crate::engine) epoch: Epoch,
    pub(in crate::engine) consistency: Consistency,
}

/// A volume that a journal has changes of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Member {
    pub(in crate::engine) volume: VolumeId,
    pub(in crate::engine) lineage: RandomName,
}

/// What was found.
pub(super) struct Replayed {
    pub(super) header: Header,
    pub(super) segments: Vec<Segment>,
    pub(super) members: Vec<Member>,
    pub(super) index: Index,
    pub(super) committed: Option<Committed>,
    /// Where what counts ends.
    pub(super) end: u64,
}

/// Reads a journal; of what lies from `trust` on, nothing counts.
pub(super) fn replay(
    storage: &dyn Storage,
    key: &DataKey,
    server: &ServerId,
    budget: Budget,
    trust: Option<u64>,
) -> Result<Replayed, OpenError> {
    let length = storage.length()?.min(trust.unwrap_or(u64::MAX));
    let header = read_header(storage, key)?;
    // What a killed replicator left in the page cache is to outlive a power cut from now on.
    storage.sync()?;
    let mut scan = Scan {
        reader: Reader::new(storage, length, SEQUENTIAL),
        segments: vec![Segment::first(key, server, &header)],
        members: Vec::new(),
        pending: Vec::new(),
        index: Index::new(budget),
        committed: None,
        whole: Whole { end: HEADER_LENGTH, members: 0, segments: 1 },
    };
    let reason = scan.run(key)?;
    if scan.whole.end < header.mark.min(trust.unwrap_or(u64::MAX)) {
        let text = format!("{} bytes were acknowledged, but at {} {reason}", header.mark, scan.whole.end);
        return Err(OpenError::Damaged(text));
    }
    Ok(scan.finish(header))
}

/// Reads the id in the header of a journal, if it is one that this key opens.
pub(super) fn read_header(storage: &dyn Storage, key: &DataKey) -> Result<Header, OpenError> {
    let mut bytes = [0; FIELDS_LENGTH];
    let count = storage.read_at(0, &mut bytes)?;
    let parsed = if count < FIELDS_LENGTH { Err(HeaderError::Foreign) } else { Header::parse(&bytes, key) };
    parsed.map_err(|error| match error {
        HeaderError::Foreign => OpenError::Damaged("it does not begin as a journal".to_owned()),
        HeaderError::Broken => OpenError::Damaged("its header was changed".to_owned()),
        HeaderError::OtherKey => OpenError::OtherKey,
    })
}

/// The id of an empty journal whose key is not known.
pub(super) fn empty_id(storage: &dyn Storage) -> Result<RandomName, OpenError> {
    let mut bytes = [0; FIELDS_LENGTH];
    storage.read_at(0, &mut bytes)?;
    let header = Header::unchecked(&bytes);
    let empty = |header: &Header| header.mark <= HEADER_LENGTH || planted::is("reuse-partial-after-key-change");
    header.filter(empty).map(|header| header.id).ok_or(OpenError::OtherKey)
}

/// What is whole: it ends in a barrier or a commit.
struct Whole {
    end: u64,
    members: usize,
    segments: usize,
}

struct Scan<'a> {
    reader: Reader<'a>,
    segments: Vec<Segment>,
    members: Vec<Member>,
    /// Changes since the last barrier.
    pending: Vec<(Slot, u64, Extent)>,
    index: Index,
    committed: Option<Committed>,
    whole: Whole,
}

impl Scan<'_> {
    /// Reads until the end, and says why it is the end.
    fn run(&mut self, key: &DataKey) -> Result<&'static str, OpenError> {
        let mut at = HEADER_LENGTH;
        while self.committed.is_none() {
            match self.step(key, at) {
                Ok(next) => at = next,
                Err(ReadError::Broken(reason)) => {
                    if planted::is("no-crc-check") {
                        self.keep(at);
                    }
                    return Ok(reason);
                }
                Err(ReadError::Io(error)) => return Err(error.into()),
            }
        }
        Ok("it ends")
    }

    /// Reads the record at a position and says where the next one begins.
    fn step(&mut self, key: &DataKey, at: u64) -> Result<u64, ReadError> {
        let header = self.reader.header(at)?;
        let next = at + header.record_length();
        if header.kind == Kind::Segment {
            self.begin_segment(key, at, header)?;
            // It is synced with the barrier that follows, or with one that had nothing to say.
            if at == self.whole.end {
                self.keep(next);
            }
            return Ok(next);
        }
        let segment = self.segments.last().ok_or(ReadError::Broken("it has no segment"))?;
        let body = self.reader.open(segment, at, header)?;
        match header.kind {
            Kind::Data => {
                let extent = Extent { length: body.len() as u64, source: Source::Record { position: at, skip: 0 } };
                self.change(header, extent)?;
            }
            Kind::Zero => {
                let length = *body.first_chunk().ok_or(ReadError::Broken("a zero range has no length"))?;
                self.change(header, Extent { length: u64::from_be_bytes(length), source: Source::Zero })?;
            }
            Kind::Volume => {
                let member = parse_member(body).ok_or(ReadError::Broken("a volume has no name"))?;
                self.members.push(member);
            }
            Kind::Commit => {
                let committed = parse_commit(body).ok_or(ReadError::Broken("a commit has no epoch"))?;
                self.committed = Some(committed);
                self.keep(next);
            }
            Kind::Barrier => self.keep(next),
            Kind::Segment => {}
        }
        Ok(next)
    }

    fn begin_segment(&mut self, key: &DataKey, at: u64, header: RecordHeader) -> Result<(), ReadError> {
        let salt = *self.reader.clear_body(at, header)?.first_chunk().ok_or(ReadError::Broken("it has no salt"))?;
        let last = self.segments.last().ok_or(ReadError::Broken("it has no segment"))?;
        let segment = last.next(key, &salt, at);
        self.reader.open(&segment, at, header)?;
        self.segments.push(segment);
        Ok(())
    }

    fn change(&mut self, header: RecordHeader, extent: Extent) -> Result<(), ReadError> {
        let known = usize::from(header.slot.0) < self.members.len();
        let fits = header.offset.checked_add(extent.length).is_some();
        if !(known && fits) {
            return Err(ReadError::Broken("a change has no volume"));
        }
        self.pending.push((header.slot, header.offset, extent));
        Ok(())
    }

    /// Everything before `end` counts.
    fn keep(&mut self, end: u64) {
        for (slot, offset, extent) in self.pending.drain(..) {
            self.index.insert(slot, offset, extent);
        }
        self.whole = Whole { end, members: self.members.len(), segments: self.segments.len() };
    }

    fn finish(mut self, header: Header) -> Replayed {
        self.members.truncate(self.whole.members);
        self.segments.truncate(self.whole.segments);
        let Self { segments, members, index, committed, whole, .. } = self;
        Replayed { header, segments, members, index, committed, end: whole.end }
    }
}

fn parse_member(body: &[u8]) -> Option<Member> {
    let (lineage, volume) = body.split_first_chunk()?;
    let volume = std::str::from_utf8(volume).ok()?.parse().ok()?;
    Some(Member { volume, lineage: RandomName(*lineage) })
}

fn parse_commit(body: &[u8]) -> Option<Committed> {
    let (epoch, rest) = body.split_first_chunk()?;
    let [number] = rest else { return None };
    let known = [Consistency::None, Consistency::Frozen, Consistency::Quiescent];
    let consistency = known.into_iter().find(|one| consistency_number(*one) == *number)?;
    Some(Committed { epoch: Epoch(u64::from_be_bytes(*epoch)), consistency })
}
