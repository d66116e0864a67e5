//! The first copy of every disk: sequential, from where the replicator says it was interrupted.

use rehost_direct::ALIGNMENT;
use rehost_model::link::AgentPhase;

use super::{driver::Driver, error::Halt, outbox::Outgoing};

/// A shorter hole is read: telling of it would cost more.
const SHORTEST_HOLE: u64 = 64 * 1024;
/// The disks are looked at after this much, in case one has gone.
const CHECK_INTERVAL: u64 = 1 << 30;

impl Driver<'_> {
    pub(super) fn initial_sync(&mut self) -> Result<(), Halt> {
        for place in 0..self.disks.len() {
            // Whatever is written meanwhile waits for the first pass: nothing is passed over twice.
            if let Some(disk) = self.disks.get(place).filter(|disk| disk.synced < disk.source.size()) {
                let synced = disk.synced;
                self.control.board.set_phase(AgentPhase::InitialSync);
                self.first_copy(place, synced)?;
                if let Some(disk) = self.disks.get_mut(place) {
                    disk.synced = disk.source.size();
                }
            }
        }
        Ok(())
    }

    fn first_copy(&mut self, place: usize, synced: u64) -> Result<(), Halt> {
        let mut at = synced / ALIGNMENT * ALIGNMENT;
        let mut check_at = at;
        while let Some(size) = self.disks.get(place).map(|disk| disk.source.size()).filter(|size| at < *size) {
            if at >= check_at {
                self.check_disks()?;
                check_at = at + CHECK_INTERVAL;
            }
            let hole = self.hole_at(place, at);
            if hole >= SHORTEST_HOLE || (hole > 0 && at + hole == size) {
                if at + hole == size {
                    // A file that was cut off reads as a hole up to its former end.
                    self.check_disks()?;
                }
                self.ledger.check()?;
                self.queue(Outgoing::Zero { place, offset: at, length: hole, first_copy: true })?;
                at += hole;
            } else {
                at += self.send_block(place, at, u64::MAX, true)?;
            }
        }
        Ok(())
    }

    /// Bytes of the hole at an offset, in whole blocks (or to the disk's end).
    fn hole_at(&self, place: usize, at: u64) -> u64 {
        let Some(disk) = self.disks.get(place) else { return 0 };
        let data = disk.source.next_data(at);
        let end = if data == disk.source.size() { data } else { data / ALIGNMENT * ALIGNMENT };
        end.saturating_sub(at)
    }
}
