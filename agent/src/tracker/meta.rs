//! What a tracker remembers beside the marks: one page, pinned like them.
//!
//! ```text
//!   word  0        1       2     3        4         5       6, 7     8     9          10      16 …
//!         version  device  size  granule  sequence  covers  lineage  lost  lost,seen  taking  misses of each program
//! ```
//! The version is written last and says that the tracker was set up whole; `covers` is cleared before the lineage changes and
//! set after. While `taking` is set, some of what changed is known to one agent alone: found set, the marks cover nothing. The
//! programs write nothing but `lost`.

use std::{
    ops::Deref,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use rehost_protocol::Lineage;

use super::{device::BlockDevice, geometry::Geometry};
use crate::sys::shared::SharedWords;

/// Changed whenever the maps or the programs mean something else: what an older agent left is then set up anew.
const VERSION: u64 = 0x7265_686f_7374_0003;

/// Bytes of the page; all of it is one value of an array map.
pub(super) const META_BYTES: u32 = 4096;

/// Where the programs count bios that nothing follows: they could not be noted.
pub(super) const LOST_BIOS_OFFSET: i16 = 8 * 8;

const IDENTITY: std::ops::Range<usize> = 1..5;
const GRANULE: usize = 3;
const COVERS: usize = 5;
const LINEAGE: std::ops::Range<usize> = 6..8;
const LOST: usize = 8;
const LOST_SEEN: usize = 9;
const TAKING: usize = 10;
const MISSES: usize = 16;

/// The page, in memory `M`.
#[derive(Debug)]
pub(super) struct Meta<M = SharedWords>(M);

impl<M: Deref<Target = [AtomicU64]>> Meta<M> {
    pub(super) fn new(words: M) -> Self {
        Self(words)
    }

    /// Everything is set up for this disk.
    pub(super) fn complete(&self, device: &BlockDevice, geometry: Geometry) {
        for (word, value) in self.words(IDENTITY).iter().zip(identity(device, geometry)) {
            word.store(value, Relaxed);
        }
        self.store(0, VERSION);
    }

    /// Whether it was set up whole, and for this disk.
    pub(super) fn fits(&self, device: &BlockDevice, geometry: Geometry) -> bool {
        let found = self.words(IDENTITY).iter().map(|word| word.load(Relaxed));
        self.load(0) == VERSION && found.eq(identity(device, geometry))
    }

    /// The granule of the disk that it was set up for; bytes.
    pub(super) fn granule_bytes(&self) -> u64 {
        self.load(GRANULE)
    }

    pub(super) fn covers(&self, lineage: &Lineage) -> bool {
        let found = self.words(LINEAGE).iter().map(|word| word.load(Relaxed));
        self.load(COVERS) == 1 && self.load(TAKING) == 0 && found.eq(halves(lineage))
    }

    pub(super) fn cover(&self, lineage: &Lineage) {
        self.uncover();
        for (word, value) in self.words(LINEAGE).iter().zip(halves(lineage)) {
            word.store(value, Relaxed);
        }
        self.store(TAKING, 0);
        self.store(COVERS, 1);
    }

    /// Whether some of what changed is about to be known to this agent alone.
    pub(super) fn set_taking(&self, taking: bool) {
        self.store(TAKING, taking.into());
    }

    pub(super) fn uncover(&self) {
        self.store(COVERS, 0);
    }

    /// How many bios could not be noted, ever.
    pub(super) fn lost_bios(&self) -> u64 {
        self.load(LOST)
    }

    /// By how much that had grown when it was `lost`, since it was [seen](Self::see).
    pub(super) fn grown_losses(&self, lost: u64) -> u64 {
        lost.wrapping_sub(self.load(LOST_SEEN))
    }

    /// By how much the misses of a program have grown since they were [seen](Self::see).
    pub(super) fn grown_misses(&self, program: usize, misses: u64) -> u64 {
        misses.saturating_sub(self.load(MISSES + program))
    }

    /// What these counts mean was judged, and acted on: whoever is killed before this leaves them to be judged again.
    pub(super) fn see(&self, lost_bios: u64, misses: &[u64]) {
        self.store(LOST_SEEN, lost_bios);
        for (program, misses) in misses.iter().enumerate() {
            self.store(MISSES + program, *misses);
        }
    }

    fn load(&self, word: usize) -> u64 {
        self.0.get(word).map_or(0, |word| word.load(Acquire))
    }

    fn store(&self, word: usize, value: u64) {
        if let Some(word) = self.0.get(word) {
            word.store(value, Release);
        }
    }

    fn words(&self, range: std::ops::Range<usize>) -> &[AtomicU64] {
        self.0.get(range).unwrap_or_default()
    }
}

fn identity(device: &BlockDevice, geometry: Geometry) -> [u64; 4] {
    let number = u64::from(device.major) << 32 | u64::from(device.minor);
    [number, geometry.size_bytes(), geometry.granule_bytes(), device.sequence]
}

fn halves(lineage: &Lineage) -> [u64; 2] {
    let [low, high] = [0, 64].map(|shift| u128::from_le_bytes(lineage.0) >> shift & u128::from(u64::MAX));
    [low, high].map(|half| u64::try_from(half).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Meta<Box<[AtomicU64]>> {
        Meta::new((0..META_BYTES / 8).map(|_| AtomicU64::new(0)).collect())
    }

    #[test]
    fn what_has_grown_stays_so_until_it_is_seen() {
        let page = page();
        page.store(LOST, 3);
        for _ in 0..2 {
            assert_eq!((page.grown_losses(page.lost_bios()), page.grown_misses(1, 7)), (3, 7));
        }
        page.see(3, &[0, 7]);
        assert_eq!((page.grown_losses(page.lost_bios()), page.grown_misses(1, 7)), (0, 0));
        // What comes after it was read is new.
        page.store(LOST, 4);
        assert_eq!((page.grown_losses(page.lost_bios()), page.grown_misses(1, 9)), (1, 2));
    }

    #[test]
    fn one_lineage_is_covered_at_a_time() {
        let page = page();
        let [one, other] = [[1; 16], [2; 16]].map(Lineage);
        assert!(!page.covers(&one) && !page.covers(&Lineage::default()));
        page.cover(&one);
        page.cover(&other);
        assert!(page.covers(&other) && !page.covers(&one));
        page.uncover();
        assert!(!page.covers(&other));
    }

    #[test]
    fn what_an_agent_took_and_did_not_mark_is_not_covered_until_all_is_compared() {
        let (page, lineage) = (page(), Lineage([1; 16]));
        page.cover(&lineage);
        page.set_taking(true);
        assert!(!page.covers(&lineage));
        page.set_taking(false);
        assert!(page.covers(&lineage));
        page.set_taking(true);
        page.cover(&lineage);
        assert!(page.covers(&lineage));
    }
}
