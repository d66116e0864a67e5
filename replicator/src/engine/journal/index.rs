//! Which ranges of the volumes a journal holds, and where: the newest record wins.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::format::Slot;

/// Most extents of all journals together: some 48 bytes each, hence 12 MiB.
pub(in crate::engine) const MAX_EXTENTS: usize = 256 * 1024;

/// Counts the extents of all journals of a replicator.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Budget {
    used: Arc<AtomicUsize>,
    most: usize,
}

impl Budget {
    pub(in crate::engine) fn new(most: usize) -> Self {
        Self { used: Arc::default(), most }
    }

    /// Whether one more change may be noted, which adds two extents at most.
    pub(super) fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) + 2 <= self.most
    }
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Zero,
    /// In the body of the record at `position`, from `skip` on.
    Record {
        position: u64,
        skip: u32,
    },
}

/// A range that starts at its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) length: u64,
    pub(super) source: Source,
}

impl Extent {
    /// What is left of it without its first `bytes`.
    fn after(self, bytes: u64) -> Self {
        let source = match self.source {
            Source::Zero => Source::Zero,
            Source::Record { position, skip } => {
                // An extent of a record is shorter than a record.
                let skip = skip.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
                Source::Record { position, skip }
            }
        };
        Self { length: self.length - bytes, source }
    }
}

/// The changes of one volume: ranges that do not overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct Extents(BTreeMap<u64, Extent>);

impl Extents {
    pub(super) fn insert(&mut self, offset: u64, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        self.carve(offset, offset + extent.length);
        match extent.source {
            Source::Zero => self.insert_zero(offset, extent.length),
            Source::Record { .. } => {
                self.0.insert(offset, extent);
            }
        }
    }

    /// Neighbours that are zero become one.
    fn insert_zero(&mut self, offset: u64, length: u64) {
        let (mut start, mut end) = (offset, offset + length);
        if let Some((at, before)) = self.0.range(..offset).next_back()
            && before.source == Source::Zero
            && at + before.length == offset
        {
            start = *at;
        }
        if let Some(after) = self.0.get(&end).filter(|after| after.source == Source::Zero) {
            let length = after.length;
            self.0.remove(&end);
            end += length;
        }
        self.0.insert(start, Extent { length: end - start, source: Source::Zero });
    }

    /// Takes a range out.
    fn carve(&mut self, start: u64, end: u64) {
        if let Some((at, before)) = self.0.range_mut(..start).next_back()
            && at + before.length > start
        {
            let (at, whole) = (*at, *before);
            before.length = start - at;
            if at + whole.length > end {
                self.0.insert(end, whole.after(end - at));
            }
        }
        while let Some((at, inside)) = self.0.range(start..end).next() {
            let (at, inside) = (*at, *inside);
            self.0.remove(&at);
            if at + inside.length > end {
                self.0.insert(end, inside.after(end - at));
            }
        }
    }

    /// The parts that lie in a range, in order.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, Extent)> {
        let before = self.0.range(..start).next_back().filter(move |(at, extent)| **at + extent.length > start);
        before.into_iter().chain(self.0.range(start..end)).map(move |(at, extent)| {
            let from = start.max(*at);
            let mut part = extent.after(from - at);
            part.length = part.length.min(end - from);
            (from, part)
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Extent)> {
        self.0.iter().map(|(at, extent)| (*at, *extent))
    }
}

/// The changes of every volume of a journal.
#[derive(Debug)]
pub(super) struct Index {
    volumes: BTreeMap<Slot, Extents>,
    counted: usize,
    budget: Budget,
}

impl Index {
    pub(super) fn new(budget: Budget) -> Self {
        Self { volumes: BTreeMap::new(), counted: 0, budget }
    }

    pub(super) fn has_room(&self) -> bool {
        self.budget.has_room()
    }

    pub(super) fn insert(&mut self, slot: Slot, offset: u64, extent: Extent) {
        let extents = self.volumes.entry(slot).or_default();
        let before = extents.0.len();
        extents.insert(offset, extent);
        let after = extents.0.len();
        self.count(self.counted + after - before);
    }

    /// Forgets the changes of a volume.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.volumes.remove(&slot);
        self.recount();
    }

    pub(super) fn clear(&mut self) {
        self.volumes.clear();
        self.recount();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.volumes.is_empty()
    }

    pub(super) fn volume(&self, slot: Slot) -> Option<&Extents> {
        self.volumes.get(&slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Extents)> {
        self.volumes.iter().map(|(slot, extents)| (*slot, extents))
    }

    fn recount(&mut self) {
        self.count(self.volumes.values().map(|extents| extents.0.len()).sum());
    }

    fn count(&mut self, now: usize) {
        self.budget.used.fetch_add(now, Ordering::Relaxed);
        self.budget.used.fetch_sub(self.counted, Ordering::Relaxed);
        self.counted = now;
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.count(0);
    }
}
