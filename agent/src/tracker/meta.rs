//! What a tracker remembers beside the marks: one page, pinned like them.
//!
//! ```text
//!   word  0        1       2     3        4         5       6, 7     8     9          16 …
//!         version  device  size  granule  sequence  covers  lineage  lost  lost,seen  misses of each program
//! ```
//! The version is written last and says that the tracker was set up whole; `covers` is cleared before the lineage changes and
//! set after. The programs write nothing but `lost`.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use rehost_protocol::Lineage;

use super::{device::BlockDevice, geometry::Geometry};
use crate::sys::shared::SharedWords;

/// Changed whenever the maps or the programs mean something else: what an older agent left is then set up anew.
const VERSION: u64 = 0x7265_686f_7374_0001;

/// Bytes of the page; all of it is one value of an array map.
pub(super) const META_BYTES: u32 = 4096;

/// Where the programs count bios that they could not note.
pub(super) const LOST_BIOS_OFFSET: i16 = 8 * 8;

const IDENTITY: std::ops::Range<usize> = 1..5;
const COVERS: usize = 5;
const LINEAGE: std::ops::Range<usize> = 6..8;
const LOST: usize = 8;
const LOST_SEEN: usize = 9;
const MISSES: usize = 16;

/// The page.
#[derive(Debug)]
pub(super) struct Meta(SharedWords);

impl Meta {
    pub(super) fn new(words: SharedWords) -> Self {
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

    pub(super) fn covers(&self, lineage: &Lineage) -> bool {
        let found = self.words(LINEAGE).iter().map(|word| word.load(Relaxed));
        self.load(COVERS) == 1 && found.eq(halves(lineage))
    }

    pub(super) fn cover(&self, lineage: &Lineage) {
        self.uncover();
        for (word, value) in self.words(LINEAGE).iter().zip(halves(lineage)) {
            word.store(value, Relaxed);
        }
        self.store(COVERS, 1);
    }

    pub(super) fn uncover(&self) {
        self.store(COVERS, 0);
    }

    /// How many bios could not be noted since this was asked last.
    pub(super) fn lost_bios(&self) -> u64 {
        let lost = self.load(LOST);
        let seen = self.load(LOST_SEEN);
        self.store(LOST_SEEN, lost);
        lost.wrapping_sub(seen)
    }

    /// Remembers the misses of a program; returns by how many they grew.
    pub(super) fn grown_misses(&self, program: usize, misses: u64) -> u64 {
        let before = self.load(MISSES + program);
        self.store(MISSES + program, misses);
        misses.saturating_sub(before)
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
