//! Makes sure that a disk's marks say everything that its volume lacks.
//!
//! The replicator names the lineage of each volume. If the tracker covers it, the marks are all there is to send. If not (the
//! first time, after a reboot, when either side has lost its record), what the volume already has is compared once.

use rehost_model::link::AgentPhase;

use super::{delta::PASS, driver::Driver, error::Halt, rescan::Extent};
use crate::{planted, tracker::ByteRange};

impl Driver<'_> {
    /// At the start of a session: takes up the marks of disks that are covered, and covers fresh volumes.
    pub(super) fn take_up(&mut self) {
        for disk in &mut self.disks {
            let lineage = disk.lineage;
            let Some(tracker) = disk.lease.tracker.as_mut() else { continue };
            disk.covered = tracker.covers(&lineage);
            if !disk.covered && (disk.synced == 0 || planted::is("cover-without-compare")) {
                tracker.cover(&lineage);
                disk.covered = true;
            }
            if planted::is("forget-pending-after-restart") {
                disk.settle(ByteRange { offset: 0, length: disk.source.size() });
            }
        }
    }

    /// Compares what the volumes of disks that are tracked and not covered have, and covers them.
    pub(super) fn cover(&mut self) -> Result<(), Halt> {
        let uncovered = |disk: &super::driver::DriverDisk| disk.lease.tracker.is_some() && !disk.covered;
        let extent: Extent = self.extent(|disk| uncovered(disk).then_some(disk.synced));
        if extent.is_empty() {
            return Ok(());
        }
        self.control.board.set_phase(AgentPhase::Rescan);
        self.control.board.begin_pass();
        self.check_disks()?;
        self.forget_marks(&extent);
        self.pass(&extent)?;
        self.flush()?;
        // What the comparison sent settles no mark: those are of what was written since it began.
        self.settle_durable();
        for (place, _) in extent {
            let Some(disk) = self.disks.get_mut(place) else { continue };
            let lineage = disk.lineage;
            if let Some(tracker) = &mut disk.lease.tracker {
                tracker.cover(&lineage);
                disk.covered = true;
            }
        }
        Ok(())
    }

    /// What was written before a comparison begins is found by it: it need not be sent once more for its mark. Nothing is covered
    /// before the marks go, so that a comparison that is cut off is not mistaken for one that was made.
    fn forget_marks(&mut self, extent: &Extent) {
        for (place, _) in extent {
            let Some(disk) = self.disks.get_mut(*place) else { continue };
            let whole = ByteRange { offset: 0, length: disk.source.size() };
            if let Some(tracker) = &mut disk.lease.tracker {
                tracker.uncover();
                // Marks that were lost are of before, too.
                let _ = tracker.collect(PASS);
                tracker.settle(whole, PASS);
            }
        }
    }

    /// The disks for which `end` says how far they are to be compared.
    pub(super) fn extent(&self, end: impl Fn(&super::driver::DriverDisk) -> Option<u64>) -> Extent {
        let ends = self.disks.iter().map(end).enumerate();
        ends.filter_map(|(place, end)| Some((place, end?))).filter(|(_, end)| *end > 0).collect()
    }
}
