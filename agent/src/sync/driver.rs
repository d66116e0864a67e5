//! Decides what travels.

use std::{sync::mpsc, time::Duration};

use rehost_model::{Epoch, link::AgentPhase};
use rehost_protocol::{DigestId, DigestKey};

use super::{
    buffer::{Buffer, Pool},
    control::SyncControl,
    error::{Halt, SyncError},
    ledger::Ledger,
    outbox::Outgoing,
    source::Source,
};

/// Passes without a clean one after which the engine says that it cannot keep up.
pub(super) const MOST_PASSES: u32 = 20;
/// The idle engine looks up this often for a session that has ended.
const IDLE_LOOK: Duration = Duration::from_millis(250);

/// A disk, and how far its first copy is.
pub(super) struct DriverDisk {
    pub(super) source: Source,
    pub(super) synced: u64,
}

pub(super) struct Driver<'a> {
    pub(super) disks: Vec<DriverDisk>,
    pub(super) queue: mpsc::SyncSender<Outgoing>,
    pub(super) pool: Pool,
    /// What a pass reads to compare.
    pub(super) own: Buffer,
    pub(super) ledger: &'a Ledger<'a>,
    pub(super) control: &'a SyncControl,
    pub(super) key: DigestKey,
    pub(super) last_id: DigestId,
    /// The newest checkpoint that the replicator has.
    pub(super) reached: Epoch,
}

impl Driver<'_> {
    /// Runs until something ends it.
    pub(super) fn run(&mut self) -> Result<(), Halt> {
        self.control.board.set_reached(self.reached);
        self.initial_sync()?;
        loop {
            let epoch = self.wait_for_request()?;
            self.control.board.set_phase(AgentPhase::Rescan);
            self.passes()?;
            self.queue(Outgoing::Checkpoint(epoch))?;
            self.ledger.wait_until_reached(epoch)?;
            self.reached = epoch;
            self.control.board.set_reached(epoch);
        }
    }

    /// The next checkpoint; idle until it is requested.
    fn wait_for_request(&self) -> Result<Epoch, Halt> {
        loop {
            self.ledger.check()?;
            let requested = self.control.requested();
            if requested > self.reached {
                return Ok(requested);
            }
            self.control.board.set_phase(AgentPhase::Idle);
            self.control.set_error(None);
            self.control.wait(IDLE_LOOK);
        }
    }

    /// Pass after pass, until one finds nothing that differs.
    fn passes(&mut self) -> Result<(), Halt> {
        for _ in 0..MOST_PASSES {
            self.check_disks()?;
            self.control.board.begin_pass();
            if self.pass()? {
                return Ok(());
            }
        }
        Err(SyncError::NotConverging { passes: MOST_PASSES }.into())
    }

    pub(super) fn check_disks(&self) -> Result<(), Halt> {
        self.disks.iter().try_for_each(|disk| disk.source.check())?;
        Ok(())
    }

    /// Reads a block and queues it; returns its length.
    pub(super) fn send_block(
        &mut self,
        place: usize,
        offset: u64,
        at_most: u64,
        first_copy: bool,
    ) -> Result<u64, Halt> {
        let mut buffer = self.free_buffer()?;
        let Some(disk) = self.disks.get_mut(place) else {
            return Ok(at_most);
        };
        disk.source.read(offset, at_most, &mut buffer)?;
        let length = buffer.bytes().len() as u64;
        self.queue(Outgoing::Block { place, offset, buffer, first_copy })?;
        Ok(length)
    }

    /// Hands over to the outbox; waits while it is busy.
    pub(super) fn queue(&self, outgoing: Outgoing) -> Result<(), Halt> {
        self.queue.send(outgoing).map_err(|_| Halt::Ended)
    }

    fn free_buffer(&self) -> Result<Buffer, Halt> {
        self.ledger.check()?;
        self.pool.take().ok_or(Halt::Ended)
    }
}
