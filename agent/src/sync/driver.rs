//! Decides what travels, and when.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use rehost_model::{Epoch, link::AgentPhase};
use rehost_protocol::{DigestId, DigestKey, Lineage};

use super::{
    buffer::{Buffer, Pool},
    control::SyncControl,
    error::Halt,
    frozen::FrozenReads,
    ledger::{Ledger, Ticket},
    machine::{Lease, Machine},
    outbox::Outgoing,
    schedule::{Schedule, Task},
    source::Source,
};
use crate::tracker::DiskTracker;

/// The idle engine looks at the marks this often, and less and less often while nothing changes.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));
/// More than this makes a backlog; bytes.
const BACKLOG: u64 = 64 << 20;

/// A disk, how far its first copy is, and what tells of its changes.
pub(super) struct DriverDisk {
    pub(super) source: Source,
    pub(super) synced: u64,
    pub(super) lineage: Lineage,
    pub(super) lease: Lease,
    /// Every difference between disk and volume is marked.
    pub(super) covered: bool,
}

pub(super) struct Driver<'a> {
    pub(super) disks: Vec<DriverDisk>,
    pub(super) queue: mpsc::SyncSender<Outgoing>,
    pub(super) pool: Pool,
    /// What a pass reads to compare.
    pub(super) own: Buffer,
    pub(super) ledger: &'a Ledger<'a>,
    pub(super) control: &'a SyncControl,
    pub(super) machine: Arc<Machine>,
    pub(super) key: DigestKey,
    pub(super) last_id: DigestId,
    pub(super) ticket: Ticket,
    /// Reads of passes over marks, to settle now and then.
    pub(super) reads: u32,
    pub(super) frozen: Option<FrozenReads>,
    pub(super) schedule: Schedule,
    /// The newest checkpoint that was asked for and that the replicator has.
    pub(super) reached: Epoch,
}

impl Driver<'_> {
    /// Runs until something ends it.
    pub(super) fn run(&mut self) -> Result<(), Halt> {
        self.control.board.set_reached(self.reached);
        self.take_up();
        self.cover()?;
        self.initial_sync()?;
        loop {
            match self.next_task()? {
                Task::Checkpoint(epoch) => self.checkpoint(epoch)?,
                Task::Pass => self.round()?,
            }
        }
    }

    /// What is to be done next; idle until there is something.
    fn next_task(&mut self) -> Result<Task, Halt> {
        let mut look = LOOK.0;
        let mut last = 0;
        loop {
            self.ledger.check()?;
            let backlog = self.backlog();
            self.show_phase(backlog);
            let asked = self.control.requested();
            if asked > self.reached {
                return Ok(Task::Checkpoint(asked));
            }
            let tracked = self.extent(|disk| (!disk.covered).then_some(disk.source.size())).is_empty();
            let interval = self.control.checkpoints().interval_ms;
            if let Some(task) = self.schedule.due(backlog, tracked, Duration::from_millis(interval), Instant::now()) {
                return Ok(task);
            }
            self.control.board.set_changed(backlog > 0 || self.schedule.unconfirmed);
            self.control.set_error(None);
            look = if backlog == last { (look * 2).min(LOOK.1) } else { LOOK.0 };
            last = backlog;
            let at_most = self.schedule.until_due(Duration::from_millis(interval), Instant::now());
            self.control.wait(look.min(at_most));
        }
    }

    pub(super) fn show_phase(&self, backlog: u64) {
        let phase = if backlog > BACKLOG { AgentPhase::Backlog } else { AgentPhase::Idle };
        self.control.board.set_phase(phase);
    }

    pub(super) fn check_disks(&self) -> Result<(), Halt> {
        self.disks.iter().try_for_each(|disk| disk.source.check())?;
        Ok(())
    }

    /// The trackers of the disks that are covered.
    pub(super) fn trackers(&mut self) -> impl Iterator<Item = &mut Box<dyn DiskTracker>> {
        self.disks.iter_mut().filter(|disk| disk.covered).filter_map(|disk| disk.lease.tracker.as_mut())
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

    /// Waits until everything that was queued is durable.
    pub(super) fn flush(&mut self) -> Result<(), Halt> {
        let ticket = self.next_ticket();
        self.queue(Outgoing::Flush(ticket))?;
        self.ledger.wait_for(ticket)
    }

    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.ticket = Ticket(self.ticket.0 + 1);
        self.ticket
    }

    pub(super) fn free_buffer(&mut self) -> Result<Buffer, Halt> {
        self.ledger.check()?;
        self.pool.take().ok_or(Halt::Ended)
    }
}
