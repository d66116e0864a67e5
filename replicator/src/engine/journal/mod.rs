//! The journal of a server: changes wait in it for their checkpoint, and then come to the volumes whole or not at all.
//!
//! ```text
//!   blocks ──> tail ── sealed, 1 MiB at a time ──> file ── barrier: fdatasync ──> Ack
//!                └──> index: the newest record of every range
//!   checkpoint:  commit record ─> fdatasync ─> volumes ─> flush ─> sidecars ─> journal emptied ─> Ack
//! ```
//! From the commit record on, the checkpoint counts: whatever happens then, it is applied (again) from the journal. The
//! bytes, and the reason for each order, are in `docs/journal.md`.
//!
//! After any error a journal refuses to go on: it is opened anew, and then is what is durable of it.

mod apply;
mod format;
mod index;
mod reader;
mod replay;
mod storage;
mod tail;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rehost_model::ServerId;
use rehost_protocol::ErrorCode;

pub(super) use self::{
    apply::{Recorded, Volumes},
    format::DataKey,
    index::{Budget, MAX_EXTENTS},
    replay::{Committed, Member, OpenError},
    storage::{FileStorage, Storage},
};
use self::{
    format::{HEADER_LENGTH, Header, RECORD_OVERHEAD, Segment, Slot},
    index::{Extent, Extents, Index, Source},
    reader::{ReadError, Reader, SCATTERED, SEQUENTIAL},
    tail::Tail,
};
use super::{
    random_name::{RandomName, random},
    refusal::Refusal,
};
use crate::planted;

/// An empty journal keeps this much of its file.
const MOST_KEPT: u64 = 128 << 20;

/// Where a journal lies, whose it is, and how large it may become.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) server: ServerId,
    /// Most bytes.
    pub(super) limit: u64,
    /// Most extents, shared with the other journals.
    pub(super) budget: Budget,
}

/// Whether a change found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Taken,
    /// It was not taken: what the journal holds must leave it first.
    Full,
}

/// The journal of one server. Appended to by one thread, made durable and committed by another.
pub(super) struct Journal {
    storage: Arc<dyn Storage>,
    place: Place,
    id: RandomName,
    inner: Mutex<Inner>,
    usable: AtomicBool,
    /// Everything before this position is durable.
    synced: AtomicU64,
    bytes: AtomicU64,
}

struct Inner {
    key: DataKey,
    next_key: Option<DataKey>,
    header: Header,
    segments: Vec<Segment>,
    members: Vec<Member>,
    index: Index,
    tail: Tail,
}

impl Journal {
    /// A new, empty journal in `storage`, which is durable.
    pub(super) fn create(storage: Arc<dyn Storage>, place: Place, key: DataKey) -> io::Result<Self> {
        let header = Header { id: RandomName::generate(), salt: random(), mark: HEADER_LENGTH };
        Self::begin(storage, place, key, header)
    }

    /// An empty journal under the id of the one before it, of which nothing is kept.
    pub(super) fn renew(storage: Arc<dyn Storage>, place: Place, key: DataKey, id: RandomName) -> io::Result<Self> {
        Self::begin(storage, place, key, Header { id, salt: random(), mark: HEADER_LENGTH })
    }

    fn begin(storage: Arc<dyn Storage>, place: Place, key: DataKey, header: Header) -> io::Result<Self> {
        storage.write_at(0, &header.to_bytes(&key))?;
        storage.set_length(HEADER_LENGTH)?;
        storage.sync()?;
        let first = Segment::first(&key, &place.server, &header);
        let index = Index::new(place.budget.clone());
        let tail = Tail::new();
        let id = header.id;
        let inner = Inner { key, next_key: None, header, segments: vec![first], members: Vec::new(), index, tail };
        Ok(Self::with(storage, place, id, inner))
    }

    /// What is durable of a journal, and the checkpoint it holds, if it does: then nothing may be appended before that is
    /// [applied](Self::finish). Of what lies from `trust` on, nothing counts.
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        place: Place,
        key: DataKey,
        trust: Option<u64>,
    ) -> Result<(Self, Option<Committed>), OpenError> {
        let empty = storage.length()? <= HEADER_LENGTH;
        if (empty || planted::is("reuse-partial-after-key-change"))
            && let Err(OpenError::OtherKey) = replay::read_header(&*storage, &key)
        {
            // There is nothing that the old key would be needed for, but the id.
            let id = replay::empty_id(&*storage)?;
            return Ok((Self::renew(storage, place, key, id)?, None));
        }
        let found = replay::replay(&*storage, &key, &place.server, place.budget.clone(), trust)?;
        if planted::is("skip-replay") {
            return Ok((Self::renew(storage, place, key, found.header.id)?, None));
        }
        let mut inner = Inner {
            key,
            next_key: None,
            header: found.header,
            segments: found.segments,
            members: found.members,
            index: found.index,
            tail: Tail::resume(&*storage, found.end)?,
        };
        storage.set_length(found.end)?;
        inner.begin_segment()?;
        let id = inner.header.id;
        Ok((Self::with(storage, place, id, inner), found.committed))
    }

    fn with(storage: Arc<dyn Storage>, place: Place, id: RandomName, inner: Inner) -> Self {
        let synced = AtomicU64::new(inner.tail.written());
        let bytes = AtomicU64::new(inner.held_bytes());
        Self { storage, place, id, inner: Mutex::new(inner), usable: AtomicBool::new(true), synced, bytes }
    }

    pub(super) fn id(&self) -> RandomName {
        self.id
    }

    /// False after an error: it must be opened anew, and trusted up to [`Self::synced`].
    pub(super) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Bytes that wait for a checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Seals under `key` once the journal is empty.
    pub(super) fn rekey(&self, key: &DataKey) {
        // The other thread may be applying for seconds: another time will do.
        if let Ok(mut inner) = self.inner.try_lock() {
            inner.next_key = (inner.key != *key).then(|| key.clone());
        }
    }

    /// The volumes of which there are changes.
    pub(super) fn changed(&self) -> Vec<Member> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let member = |(slot, _): (Slot, &Extents)| inner.members.get(usize::from(slot.0)).cloned();
        inner.index.iter().filter_map(member).collect()
    }

    /// Every volume that takes part, with changes or without.
    pub(super) fn members(&self) -> Vec<Member> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).members.clone()
    }

    /// Drops the changes of a volume whose record does not go back to where they were made.
    pub(super) fn forget(&self, member: &Member) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = inner.slot_of(member) {
            inner.index.remove(slot);
        }
    }

    /// Adds bytes of a volume.
    pub(super) fn write(&self, member: &Member, offset: u64, bytes: &[u8]) -> Result<Room, Refusal> {
        self.guarded("writing to", |inner| {
            if !inner.has_room(bytes.len(), self.place.limit) {
                return Ok(Room::Full);
            }
            let Some(slot) = inner.slot(member)? else { return Ok(Room::Full) };
            let Inner { segments, index, tail, .. } = inner;
            tail.data((last(segments)?, index), slot, offset, bytes)?;
            self.write_if_due(tail)?;
            Ok(Room::Taken)
        })
    }

    /// Adds that a range of a volume is zero.
    pub(super) fn zero(&self, member: &Member, offset: u64, length: u64) -> Result<Room, Refusal> {
        self.guarded("writing to", |inner| {
            if !inner.has_room(0, self.place.limit) {
                return Ok(Room::Full);
            }
            let Some(slot) = inner.slot(member)? else { return Ok(Room::Full) };
            let Inner { segments, index, tail, .. } = inner;
            tail.zero((last(segments)?, index), slot, offset, length)?;
            self.write_if_due(tail)?;
            Ok(Room::Taken)
        })
    }

    /// Writes everything and a barrier; says up to where [`Self::sync`] has to come.
    pub(super) fn barrier(&self) -> Result<u64, Refusal> {
        self.guarded("writing to", |inner| {
            let Inner { segments, index, tail, .. } = inner;
            tail.barrier(last(segments)?, index)?;
            if !planted::is("ack-before-journal-sync") {
                tail.write(&*self.storage)?;
            }
            Ok(tail.written())
        })
    }

    /// Makes durable what lies before `position`. Does not hold up who appends.
    pub(super) fn sync(&self, position: u64) -> Result<(), Refusal> {
        if self.synced() >= position || planted::is("ack-before-journal-sync") {
            return Ok(());
        }
        if let Err(error) = self.storage.sync() {
            self.usable.store(false, Ordering::Release);
            return Err(Refusal::io("flushing", &self.place.path, &error));
        }
        self.guarded("marking", |inner| self.mark(inner, position))
    }

    /// Makes what the journal holds a checkpoint of `members`, and the volumes that checkpoint.
    pub(super) fn commit(
        &self,
        members: &[Member],
        committed: Committed,
        volumes: &mut dyn Volumes,
    ) -> Result<(), Refusal> {
        self.guarded("writing to", |inner| {
            inner.seal_collected()?;
            if inner.index.is_empty() {
                return Ok(());
            }
            if planted::is("sidecar-before-flush") {
                return Ok(volumes.record(Recorded::Checkpoint(committed))?);
            }
            for member in members {
                inner.slot(member)?;
            }
            let Inner { segments, index, tail, .. } = inner;
            tail.commit((last(segments)?, index), committed.epoch, committed.consistency)?;
            tail.write(&*self.storage)?;
            self.storage.sync()?;
            let end = tail.written();
            self.mark(inner, end)
        })?;
        self.finish(committed, volumes)
    }

    /// Applies a checkpoint that is durable in the journal, and empties that.
    pub(super) fn finish(&self, committed: Committed, volumes: &mut dyn Volumes) -> Result<(), Refusal> {
        self.guarded("applying", |inner| {
            self.apply(inner, volumes)?;
            volumes.flush()?;
            volumes.record(Recorded::Checkpoint(committed))?;
            self.empty(inner)
        })
    }

    /// Applies what the journal holds without a checkpoint: the volumes are none then.
    pub(super) fn spill(&self, volumes: &mut dyn Volumes) -> Result<(), Refusal> {
        self.guarded("applying", |inner| {
            // First: a volume that is written to must not count as a checkpoint.
            volumes.record(Recorded::Inconsistent)?;
            inner.seal_collected()?;
            inner.tail.write(&*self.storage)?;
            self.apply(inner, volumes)?;
            volumes.flush()?;
            self.empty(inner)
        })
    }

    /// A planted fault: changes reach the volumes before their checkpoint counts.
    pub(super) fn apply_early(&self, volumes: &mut dyn Volumes) -> Result<(), Refusal> {
        self.guarded("applying", |inner| self.apply(inner, volumes))
    }

    /// Puts the changes of a range over `buffer`, which holds what the volume has there.
    pub(super) fn overlay(&self, member: &Member, start: u64, buffer: &mut [u8]) -> Result<(), Refusal> {
        self.guarded("reading", |inner| {
            let Some(slot) = inner.slot_of(member) else { return Ok(()) };
            inner.seal_collected()?;
            let end = start + buffer.len() as u64;
            let Inner { segments, index, tail, .. } = inner;
            let Some(extents) = index.volume(slot) else { return Ok(()) };
            let mut parts = extents.within(start, end).peekable();
            if parts.peek().is_none() {
                return Ok(());
            }
            tail.write(&*self.storage)?;
            let mut reader = Reader::new(&*self.storage, tail.written(), SCATTERED);
            for (at, extent) in parts {
                let target = slice_mut(buffer, at - start, extent.length).ok_or_else(misplaced)?;
                fill(&mut reader, segments, extent, target)?;
            }
            Ok(())
        })
    }

    /// Where the first change at or after `start` is that may not be zero; `end` if there is none before it.
    pub(super) fn next_data(&self, member: &Member, start: u64, end: u64) -> Result<u64, Refusal> {
        self.guarded("reading", |inner| {
            inner.seal_collected()?;
            let extents = inner.slot_of(member).and_then(|slot| inner.index.volume(slot));
            let data = |extents: &Extents| {
                extents.within(start, end).find(|(_, extent)| extent.source != Source::Zero).map(|(at, _)| at)
            };
            Ok(extents.and_then(data).unwrap_or(end))
        })
    }

    fn apply(&self, inner: &mut Inner, volumes: &mut dyn Volumes) -> Result<(), Trouble> {
        let Inner { segments, index, tail, members, .. } = inner;
        let mut reader = Reader::new(&*self.storage, tail.written(), SEQUENTIAL);
        for (slot, extents) in index.iter() {
            let member = members.get(usize::from(slot.0)).ok_or_else(misplaced)?;
            let read = |_, extent: Extent, out: &mut Vec<u8>| {
                let from = out.len();
                let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
                out.resize(from.saturating_add(length), 0);
                let target = out.get_mut(from..).unwrap_or_default();
                let filled = fill(&mut reader, segments, extent, target);
                filled.map_err(|error| Trouble::from(error).refusal("reading", &self.place.path))
            };
            apply::apply(volumes, &member.volume, extents, read)?;
        }
        Ok(())
    }

    /// Begins again under a fresh salt, which makes what lies behind the header worthless. Most of it stays: to write over
    /// blocks that a file has costs a tenth of getting new ones.
    fn empty(&self, inner: &mut Inner) -> Result<(), Trouble> {
        if inner.tail.end() == HEADER_LENGTH {
            return Ok(());
        }
        if let Some(key) = inner.next_key.take() {
            inner.key = key;
        }
        inner.header = Header { id: self.id, salt: random(), mark: HEADER_LENGTH };
        self.storage.write_at(0, &inner.header.to_bytes(&inner.key))?;
        // Cut off only when that is durable: a short file under the old header would look damaged.
        self.storage.sync()?;
        if self.storage.length()? > MOST_KEPT {
            self.storage.set_length(MOST_KEPT)?;
        }
        inner.segments = vec![Segment::first(&inner.key, &self.place.server, &inner.header)];
        inner.members.clear();
        inner.index.clear();
        inner.tail = Tail::new();
        self.synced.store(HEADER_LENGTH, Ordering::Release);
        Ok(())
    }

    fn mark(&self, inner: &mut Inner, position: u64) -> Result<(), Trouble> {
        inner.header.mark = position;
        self.storage.write_at(0, &inner.header.to_bytes(&inner.key))?;
        self.synced.store(position, Ordering::Release);
        Ok(())
    }

    fn write_if_due(&self, tail: &mut Tail) -> io::Result<()> {
        match tail.is_due() {
            true => tail.write(&*self.storage),
            false => Ok(()),
        }
    }

    /// Runs `work` under the lock; after an error, nothing runs any more.
    fn guarded<T>(&self, doing: &str, work: impl FnOnce(&mut Inner) -> Result<T, Trouble>) -> Result<T, Refusal> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_usable() {
            let text = format!("the journal {} failed: the session has to begin again", self.place.path.display());
            return Err(Refusal::new(ErrorCode::Io, text));
        }
        let result = work(&mut inner);
        if result.is_err() {
            self.usable.store(false, Ordering::Release);
        }
        self.bytes.store(inner.held_bytes(), Ordering::Relaxed);
        result.map_err(|trouble| trouble.refusal(doing, &self.place.path))
    }
}

impl Inner {
    /// The slot of a volume, a new one if it has none; None if there are too many.
    fn slot(&mut self, member: &Member) -> Result<Option<Slot>, Trouble> {
        if let Some(slot) = self.slot_of(member) {
            return Ok(Some(slot));
        }
        let Ok(number) = u8::try_from(self.members.len()) else { return Ok(None) };
        self.seal_collected()?;
        self.tail.volume(last(&self.segments)?, Slot(number), member.lineage, &member.volume)?;
        self.members.push(member.clone());
        Ok(Some(Slot(number)))
    }

    fn slot_of(&self, member: &Member) -> Option<Slot> {
        let found = self.members.iter().position(|known| known == member)?;
        u8::try_from(found).ok().map(Slot)
    }

    fn has_room(&self, bytes: usize, limit: u64) -> bool {
        // Besides the record itself: a name of the volume, the barrier and the commit.
        let added = (bytes + 8 * RECORD_OVERHEAD + 128) as u64;
        self.tail.end() + added <= limit && self.index.has_room()
    }

    fn held_bytes(&self) -> u64 {
        match self.index.is_empty() && self.members.is_empty() {
            true => 0,
            false => self.tail.end() - HEADER_LENGTH,
        }
    }

    fn seal_collected(&mut self) -> Result<(), Trouble> {
        Ok(self.tail.seal_collected(last(&self.segments)?, &mut self.index)?)
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let next = self.tail.segment(last(&self.segments)?, &self.key)?;
        self.segments.push(next);
        Ok(())
    }
}

/// What went wrong within the journal, or beyond it.
enum Trouble {
    Io(io::Error),
    Read(ReadError),
    Beyond(Refusal),
}

impl Trouble {
    fn refusal(self, doing: &str, path: &Path) -> Refusal {
        match self {
            Self::Io(error) | Self::Read(ReadError::Io(error)) => Refusal::io(doing, path, &error),
            Self::Read(ReadError::Broken(reason)) => {
                let text = format!("{doing} {} failed: a record cannot be opened: {reason}", path.display());
                Refusal::new(ErrorCode::Io, text)
            }
            Self::Beyond(refusal) => refusal,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Beyond(refusal)
    }
}

/// There always is one.
fn last(segments: &[Segment]) -> io::Result<&Segment> {
    segments.last().ok_or_else(|| io::Error::other("the journal has no segment"))
}

fn misplaced() -> ReadError {
    ReadError::Broken("the index does not fit the journal")
}

/// The bytes of an extent.
fn fill(reader: &mut Reader<'_>, segments: &[Segment], extent: Extent, target: &mut [u8]) -> Result<(), ReadError> {
    let Source::Record { position, skip } = extent.source else {
        target.fill(0);
        return Ok(());
    };
    reader.record_into(segments, position, usize::try_from(skip).unwrap_or(usize::MAX), target)
}

fn slice_mut(buffer: &mut [u8], from: u64, length: u64) -> Option<&mut [u8]> {
    let from = usize::try_from(from).ok()?;
    buffer.get_mut(from..)?.get_mut(..usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests;
