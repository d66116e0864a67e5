//! How a disk is divided into granules, and where their marks lie.
//!
//! ```text
//!   disk    | granule 0 | granule 1 | granule 2 | …          granule: a power of two, at least 4 KiB
//!   fine    |  byte 0   |  byte 1   |  byte 2   | …          one byte a granule
//!   coarse  |        byte 0 (granules 0..512)          | …   for large requests
//! ```

/// No granule is smaller: it is the block in which filesystems write.
const SMALLEST_SHIFT: u32 = 12;

/// Granules that one coarse mark stands for, as a power of two: few enough marks for the largest request that verifiers up to
/// 6.1, which remember at most 8192 branches on a path, can follow the loop that sets them.
pub(super) const COARSE_SHIFT: u32 = 9;

/// Bytes of marks in one entry of an eBPF map, as a power of two: a page, so that an array map wastes nothing.
pub(super) const ENTRY_SHIFT: u32 = 12;

/// A disk's size and granule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    size_bytes: u64,
    granule_shift: u32,
}

impl Geometry {
    /// The smallest granule with which the fine marks fit into `map_bytes` (at least a page).
    pub(super) fn fitting(size_bytes: u64, map_bytes: u64) -> Self {
        let room = map_bytes.max(1 << ENTRY_SHIFT);
        let fits = |shift: &u32| size_bytes.div_ceil(1 << shift) <= room;
        let granule_shift = (SMALLEST_SHIFT..u64::BITS).find(fits).unwrap_or(u64::BITS - 1);
        Self { size_bytes, granule_shift }
    }

    /// With granules of so many bytes; `None` if there are no such granules.
    pub(super) fn of_granules(size_bytes: u64, granule_bytes: u64) -> Option<Self> {
        let granule_shift = granule_bytes.checked_ilog2()?;
        let is_one = granule_bytes.is_power_of_two() && granule_shift >= SMALLEST_SHIFT;
        is_one.then_some(Self { size_bytes, granule_shift })
    }

    pub(super) fn size_bytes(self) -> u64 {
        self.size_bytes
    }

    pub(super) fn granule_shift(self) -> u32 {
        self.granule_shift
    }

    pub(super) fn granule_bytes(self) -> u64 {
        1 << self.granule_shift
    }

    /// How many granules there are; the last one may be cut short by the disk's end.
    pub(super) fn granules(self) -> u64 {
        self.size_bytes.div_ceil(self.granule_bytes())
    }

    /// Entries of a map with one byte a granule.
    pub(super) fn fine_entries(self) -> u32 {
        entries(self.granules())
    }

    /// Entries of a map with one byte for all granules of a coarse mark.
    pub(super) fn coarse_entries(self) -> u32 {
        entries(self.granules().div_ceil(1 << COARSE_SHIFT))
    }
}

fn entries(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << ENTRY_SHIFT).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_granule_is_the_smallest_that_fits() {
        let granule = |size, map| Geometry::fitting(size, map).granule_bytes();
        assert_eq!(granule(32 << 30, 8 * MIB), 4096);
        assert_eq!(granule((32 << 30) + 1, 8 * MIB), 8192);
        assert_eq!(granule(1 << 40, 8 * MIB), 128 * 1024);
        assert_eq!(granule(0, 8 * MIB), 4096);
        assert_eq!(granule(1 << 40, 0), 256 * MIB);
        assert_eq!(granule(u64::MAX, 0), 1 << 52);
    }

    #[test]
    fn granules_are_powers_of_two() {
        let fitting = Geometry::fitting(1 << 40, 8 * MIB);
        assert_eq!(Geometry::of_granules(1 << 40, fitting.granule_bytes()), Some(fitting));
        for granule_bytes in [0, 1, 2048, 4097, 12_288] {
            assert_eq!(Geometry::of_granules(1 << 40, granule_bytes), None);
        }
    }

    #[test]
    fn the_last_granule_and_the_last_entry_may_be_cut_short() {
        let geometry = Geometry::fitting(4096 * 4096 * 3 + 512, 8 * MIB);
        assert_eq!((geometry.granules(), geometry.fine_entries(), geometry.coarse_entries()), (12_289, 4, 1));
    }
}
