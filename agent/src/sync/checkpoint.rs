//! One state of all disks.
//!
//! ```text
//!   passes until little is left ──> quiet passes ── nothing was written meanwhile ──> QUIESCENT
//!                                        │ always something
//!                                        └──> presync, passes, freeze ── all was read ──> FROZEN
//!                                                                           │ not so
//!                                                                           └──> quiet passes for some seconds ──> QUIESCENT
//!                                                                                      └──> NONE, if nothing else is left
//! ```
//! Everything of it is sent before the `Checkpoint` frame, and nothing later before that is acknowledged.

use std::time::{Duration, Instant};

use rehost_model::{Epoch, link::CheckpointSettings, replication::Consistency};

use super::{
    driver::Driver,
    error::{Halt, SyncError},
    freezing::{Freeze, FreezeLimits},
    frozen::{FrozenReads, Job, MOST_LEFT, Shortfall},
    outbox::Outgoing,
    schedule::CONTINUOUS,
};
use crate::{planted, tracker::MarksLost};

/// Passes without a clean one after which the engine says that it cannot keep up.
const MOST_PASSES: u32 = 20;
/// So much may be left for a quiet or a frozen pass; bytes.
const LITTLE: u64 = MOST_LEFT / 4;
const QUIET_TRIES: u32 = 3;
const FREEZE_TRIES: u32 = 3;
/// Whoever asked for a checkpoint waits so long for a moment at which nothing is written, if nothing else makes it one state.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether that moment has come.
const LOOK: Duration = Duration::from_millis(20);
/// Marks that are lost again and again cannot be worked with.
const MOST_LOSSES: u32 = 3;

/// A state that was sent, and that the next frame makes a checkpoint.
struct Taken {
    consistency: Consistency,
    /// The moment of which it is the state.
    at: Instant,
    /// Why it is not better.
    shortfall: Option<String>,
}

/// How an attempt ended.
enum Attempt {
    Taken(Taken),
    /// It would not be consistent: the volumes are better left as they are.
    LeftOut,
    /// Marks were lost: the disks must be covered anew first.
    Lost,
}

impl Attempt {
    fn taken(consistency: Consistency, at: Instant) -> Self {
        Self::Taken(Taken { consistency, at, shortfall: None })
    }
}

/// What a freeze brought.
enum Frozen {
    At(Instant),
    /// Another try may do better.
    Again(String),
    Never(String),
}

/// Why the rest was not caught while the disks were frozen.
enum Missed {
    Lost(MarksLost),
    Short(Shortfall),
    Busy,
}

impl Driver<'_> {
    /// Makes a checkpoint, and waits until it is acknowledged.
    pub(super) fn checkpoint(&mut self, epoch: Epoch) -> Result<(), Halt> {
        let began = Instant::now();
        for _ in 0..MOST_LOSSES {
            self.check_disks()?;
            self.cover()?;
            match self.take(epoch, began)? {
                Attempt::Taken(taken) => return self.commit(epoch, taken, began),
                Attempt::LeftOut => return Ok(()),
                Attempt::Lost => {}
            }
        }
        Err(SyncError::MarksLost { times: MOST_LOSSES }.into())
    }

    fn commit(&mut self, epoch: Epoch, taken: Taken, began: Instant) -> Result<(), Halt> {
        let Taken { consistency, at, shortfall } = taken;
        let ticket = self.next_ticket();
        self.queue(Outgoing::Checkpoint { epoch, consistency, ticket })?;
        self.ledger.wait_for(ticket)?;
        self.settle_acknowledged();
        self.machine.history().acknowledged(at, consistency, shortfall);
        self.schedule.made(began, Instant::now());
        if epoch != CONTINUOUS {
            self.reached = epoch;
            self.control.board.set_reached(epoch);
        }
        let changed = self.backlog() > 0;
        self.control.board.set_changed(changed);
        Ok(())
    }

    fn take(&mut self, epoch: Epoch, began: Instant) -> Result<Attempt, Halt> {
        if self.trackers().next().is_none() {
            return self.compare_until_equal().map(Attempt::Taken);
        }
        if planted::is("skip-last-pass") {
            let at = Instant::now();
            return Ok(Attempt::taken(Consistency::Quiescent, at));
        }
        let settings = self.control.checkpoints();
        let may_freeze = settings.max_freeze_ms > 0;
        if epoch != CONTINUOUS && may_freeze {
            // What was written before it was asked for belongs to it, also if it still lies in memory.
            self.presync();
        }
        self.catch_up()?;
        for _ in 0..QUIET_TRIES {
            if let Some(at) = self.quiet_round()? {
                return Ok(Attempt::taken(Consistency::Quiescent, at));
            }
        }
        let reason = match self.frozen_state(&settings)? {
            Ok(at) => return Ok(Attempt::taken(Consistency::Frozen, at)),
            Err(reason) => reason,
        };
        if epoch != CONTINUOUS
            && let Some(at) = self.moment_of_rest()?
        {
            return Ok(Attempt::taken(Consistency::Quiescent, at));
        }
        if self.has_lost_marks() {
            return Ok(Attempt::Lost);
        }
        if epoch == CONTINUOUS && self.schedule.may_miss(began, Instant::now()) {
            return Ok(Attempt::LeftOut);
        }
        self.take_as_it_is(reason)
    }

    /// Blocks of different moments.
    fn take_as_it_is(&mut self, reason: String) -> Result<Attempt, Halt> {
        if !self.collect_noting() {
            return Ok(Attempt::Lost);
        }
        self.send_pending()?;
        let at = Instant::now();
        Ok(Attempt::Taken(Taken { consistency: Consistency::None, at, shortfall: Some(reason) }))
    }

    /// Without marks: pass after pass, until one finds nothing that differs.
    fn compare_until_equal(&mut self) -> Result<Taken, Halt> {
        let extent = self.extent(|disk| Some(disk.source.size()));
        self.control.board.set_phase(rehost_model::link::AgentPhase::Rescan);
        for _ in 0..MOST_PASSES {
            self.check_disks()?;
            self.control.board.begin_pass();
            let at = Instant::now();
            if self.pass(&extent)? {
                return Ok(Taken { consistency: Consistency::Quiescent, at, shortfall: None });
            }
        }
        Err(SyncError::NotConverging { passes: MOST_PASSES }.into())
    }

    /// Passes until little is left, or until they do not make it less.
    fn catch_up(&mut self) -> Result<(), Halt> {
        let mut before = u64::MAX;
        for _ in 0..MOST_PASSES {
            let backlog = self.backlog();
            self.show_phase(backlog);
            if backlog <= LITTLE || backlog > before - before / 10 {
                return Ok(());
            }
            before = backlog;
            self.round()?;
        }
        Ok(())
    }

    /// A pass over what is marked, until it is durable.
    pub(super) fn round(&mut self) -> Result<(), Halt> {
        self.check_disks()?;
        if self.collect_noting() && self.send_pending()? {
            self.schedule.unconfirmed = true;
            self.settle_all()?;
        }
        Ok(())
    }

    /// A pass during which nothing may be written; the moment at which nothing had been.
    fn quiet_round(&mut self) -> Result<Option<Instant>, Halt> {
        if self.has_lost_marks() || !self.collect_noting() {
            return Ok(None);
        }
        let sent = self.send_pending()?;
        let untracked = self.extent(|disk| (!disk.covered).then_some(disk.source.size()));
        let equal = untracked.is_empty() || self.pass(&untracked)?;
        let at = Instant::now();
        let quiet = self.is_quiet().unwrap_or_else(|lost| self.note_lost(&lost));
        if quiet && equal {
            return Ok(Some(at));
        }
        if sent {
            self.schedule.unconfirmed = true;
            self.settle_all()?;
        }
        Ok(None)
    }

    /// Quiet passes until one succeeds, or patience ends.
    fn moment_of_rest(&mut self) -> Result<Option<Instant>, Halt> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE && self.disks.iter().all(|disk| disk.covered) {
            if let Some(at) = self.quiet_round()? {
                return Ok(Some(at));
            }
            self.control.wait(LOOK);
            self.ledger.check()?;
        }
        Ok(None)
    }

    fn presync(&self) {
        if let Some(freezer) = self.machine.freezer().as_ref() {
            freezer.presync();
        }
    }

    /// The state of frozen file systems; or why there is none.
    fn frozen_state(&mut self, settings: &CheckpointSettings) -> Result<Result<Instant, String>, Halt> {
        if settings.max_freeze_ms == 0 {
            return Ok(Err("something is always written, and freezing is turned off".to_owned()));
        }
        if self.disks.iter().any(|disk| !disk.covered) {
            return Ok(Err("a disk without tracker cannot be compared while it is frozen".to_owned()));
        }
        let limits = FreezeLimits {
            freeze: Duration::from_millis(settings.max_freeze_ms),
            hook: Duration::from_millis(settings.hook_timeout_ms),
        };
        let machine = self.machine.clone();
        let mut freezer = machine.freezer();
        let Some(freezer) = freezer.as_mut() else {
            return Ok(Err("something is always written, and nothing here can be frozen".to_owned()));
        };
        let mut reason = String::new();
        for _ in 0..FREEZE_TRIES {
            freezer.presync();
            self.catch_up()?;
            self.round()?;
            match self.freeze_once(freezer.as_mut(), limits)? {
                Frozen::At(at) => return Ok(Ok(at)),
                Frozen::Again(text) => reason = text,
                Frozen::Never(text) => return Ok(Err(text)),
            }
        }
        Ok(Err(reason))
    }

    fn freeze_once(&mut self, freezer: &mut dyn Freeze, limits: FreezeLimits) -> Result<Frozen, Halt> {
        if self.has_lost_marks() {
            return Ok(Frozen::Never("marks were lost".to_owned()));
        }
        let mut reads = match self.frozen.take() {
            Some(reads) => reads,
            None => FrozenReads::start(self.disks.iter().map(|disk| &disk.source))?,
        };
        if !reads.prepare(&mut self.pool) {
            return Err(SyncError::System("memory that was set aside did not come back".to_owned()).into());
        }
        let mut caught = Err(Missed::Busy);
        let thawed = freezer.frozen(limits, &mut || {
            caught = self.catch(&mut reads);
            planted_lateness(limits);
        });
        let outcome = match thawed {
            Err(refused) if refused.retryable => Ok(Frozen::Again(refused.reason)),
            Err(refused) => Ok(Frozen::Never(refused.reason)),
            Ok(thawed) => {
                self.machine.history().froze(thawed.blocked);
                let in_time = thawed.in_time || planted::is("thaw-late");
                if in_time { self.judge(caught, &mut reads) } else { Ok(Frozen::Again(late(limits))) }
            }
        };
        // What is still being read has no use any more.
        let _ = reads.finish();
        reads.clear(&mut self.pool);
        self.frozen = Some(reads);
        outcome
    }

    /// Runs while everything is frozen: collects, reads, and looks whether that was all.
    fn catch(&mut self, reads: &mut FrozenReads) -> Result<Instant, Missed> {
        self.collect().map_err(Missed::Lost)?;
        for (place, disk) in self.disks.iter().enumerate() {
            if let Some(tracker) = &disk.lease.tracker {
                reads.add(place, &tracker.pending()).map_err(Missed::Short)?;
            }
        }
        reads.finish().map_err(Missed::Short)?;
        let at = Instant::now();
        let quiet = self.is_quiet().map_err(Missed::Lost)?;
        if planted::is("send-while-frozen") {
            let _ = self.send_caught(reads.take()).and_then(|()| self.flush());
        }
        if quiet { Ok(at) } else { Err(Missed::Busy) }
    }

    /// After the thaw: sends what was caught.
    fn judge(&mut self, caught: Result<Instant, Missed>, reads: &mut FrozenReads) -> Result<Frozen, Halt> {
        match caught {
            Ok(at) => {
                let jobs = reads.take();
                self.send_caught(jobs)?;
                Ok(Frozen::At(at))
            }
            Err(Missed::Busy) => {
                Ok(Frozen::Again("something that cannot be frozen is written all the time".to_owned()))
            }
            Err(Missed::Short(Shortfall::TooMuch)) => {
                Ok(Frozen::Again("more was left than can be read while everything is frozen".to_owned()))
            }
            Err(Missed::Short(Shortfall::Unreadable(place, offset, source))) => {
                let path = self.disks.get(place).map(|disk| disk.source.disk().path.clone()).unwrap_or_default();
                Err(SyncError::DiskRead { path, offset, source }.into())
            }
            Err(Missed::Lost(lost)) => {
                self.note_lost(&lost);
                Ok(Frozen::Never(lost.to_string()))
            }
        }
    }

    fn send_caught(&mut self, jobs: Vec<Job>) -> Result<(), Halt> {
        let mut asked = Vec::with_capacity(jobs.len());
        for job in &jobs {
            let fine = self.disks.get(job.place).is_some_and(|disk| disk.has_large_granules());
            asked.push(if fine { Some(self.ask_runs(job.place, &job.runs)?) } else { None });
        }
        for (job, ids) in jobs.into_iter().zip(asked) {
            let Job { place, buffer, runs, .. } = job;
            let range = hull(&runs);
            let runs = match ids {
                Some(ids) => self.differing_runs(place, &buffer, &runs, &ids)?,
                None => runs,
            };
            self.queue_runs(place, buffer, runs, range)?;
        }
        Ok(())
    }

    /// False if marks were lost.
    fn collect_noting(&mut self) -> bool {
        match self.collect() {
            Ok(()) => true,
            Err(lost) => self.note_lost(&lost),
        }
    }

    /// Always false, for whoever asked whether all is well.
    fn note_lost(&mut self, lost: &MarksLost) -> bool {
        for disk in &mut self.disks {
            let lineage = disk.lineage;
            disk.covered &= disk.lease.tracker.as_ref().is_some_and(|tracker| tracker.covers(&lineage));
        }
        self.control.board.note_lost(lost.to_string());
        false
    }

    /// Whether a disk that is tracked must be covered anew.
    fn has_lost_marks(&self) -> bool {
        self.disks.iter().any(|disk| disk.lease.tracker.is_some() && !disk.covered)
    }
}

fn hull(runs: &[super::plan::Run]) -> crate::tracker::ByteRange {
    let offset = runs.first().map_or(0, |run| run.offset);
    let end = runs.last().map_or(offset, |run| run.offset + run.length as u64);
    crate::tracker::ByteRange { offset, length: end - offset }
}

fn late(limits: FreezeLimits) -> String {
    format!("what was left could not be read within {} ms", limits.freeze.as_millis())
}

fn planted_lateness(limits: FreezeLimits) {
    if planted::is("thaw-late") {
        std::thread::sleep(limits.freeze * 2);
    }
}
