//! Makes durable what a session has applied, records it, and only then acknowledges it.
//!
//! Barriers that arrive while a flush is running are taken together by the next one: a slow disk gets fewer, larger
//! flushes, a fast one acknowledges at once.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use rehost_link::transport::Sender;
use rehost_model::{Epoch, ServerId, VolumeId};
use rehost_protocol::{ByteCount, ByteOffset, DiskIndex, DiskProgress, ErrorCode, ReplicatorMessage, Sequence};

use super::{
    admission::{Disk, Disks},
    journal::{Committed, Journal, Recorded, Volumes},
    manifest::{self, Subject},
    opening,
    random_name::RandomName,
    refusal::Refusal,
    registry::{Record, Registry},
    session::send_error,
};
use crate::planted;

/// A barrier or a checkpoint, as the session received it.
pub(super) struct Commit {
    pub(super) seq: Sequence,
    pub(super) progress: Vec<DiskProgress>,
    pub(super) checkpoint: Option<Committed>,
}

/// What is to be done.
enum Work {
    /// Everything before it shall be durable, the journal up to `journal`.
    Barrier { seq: Sequence, progress: Vec<DiskProgress>, journal: u64 },
    /// The volumes shall be a checkpoint.
    Checkpoint { seq: Sequence, checkpoint: Committed, done: mpsc::Sender<()> },
    /// The volumes shall be written to directly.
    Spill { done: mpsc::Sender<()> },
}

/// Handle of a session's committer.
pub(super) struct Committer {
    queue: Option<mpsc::Sender<Work>>,
    failure: Arc<Failure>,
    thread: Option<JoinHandle<()>>,
}

/// What went wrong, for the session to find.
#[derive(Default)]
pub(super) struct Failure {
    happened: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
}

impl Committer {
    pub(super) fn start(
        registry: Arc<Registry>,
        server: ServerId,
        disks: Arc<Disks>,
        sender: Sender,
    ) -> std::io::Result<Self> {
        let (queue, works) = mpsc::channel();
        let failure = Arc::new(Failure::default());
        let states = disks.iter().map(|(index, disk)| (index, disk.record.clone())).collect();
        let worker = Worker { registry, server, disks, sender, states, failure: failure.clone() };
        let thread = thread::Builder::new().name("committer".into()).spawn(move || worker.run(&works))?;
        Ok(Self { queue: Some(queue), failure, thread: Some(thread) })
    }

    /// Queues a barrier. Bounded by the window: an agent that has sent it without an acknowledgement waits.
    pub(super) fn barrier(&self, commit: Commit, journal: u64) {
        let Commit { seq, progress, .. } = commit;
        // A committer that failed takes nothing more; the session finds the failure.
        let _ = self.send(Work::Barrier { seq, progress, journal });
    }

    /// Waits until the volumes are a checkpoint, or it has failed.
    pub(super) fn checkpoint(&self, commit: Commit) -> Result<(), Refusal> {
        let (done, wait) = mpsc::channel();
        if let Some(checkpoint) = commit.checkpoint {
            self.send(Work::Checkpoint { seq: commit.seq, checkpoint, done })?;
        }
        wait.recv().map_err(|_| self.ended())
    }

    /// Waits until the volumes do not count as a checkpoint any more, and the journal is empty.
    pub(super) fn spill(&self) -> Result<(), Refusal> {
        let (done, wait) = mpsc::channel();
        self.send(Work::Spill { done })?;
        wait.recv().map_err(|_| self.ended())
    }

    fn send(&self, work: Work) -> Result<(), Refusal> {
        let sent = self.queue.as_ref().map(|queue| queue.send(work));
        sent.and_then(Result::ok).ok_or_else(|| self.ended())
    }

    /// The worker has said why before it went.
    fn ended(&self) -> Refusal {
        let unknown = || Refusal::new(ErrorCode::Io, "the thread that makes changes durable has ended");
        self.failure.refusal().unwrap_or_else(unknown)
    }

    /// Where it notes what ends it; whoever feeds it may note there, too.
    pub(super) fn failure_slot(&self) -> Arc<Failure> {
        self.failure.clone()
    }

    /// Commits what is queued and ends.
    pub(super) fn finish(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Failure {
    pub(super) fn refusal(&self) -> Option<Refusal> {
        if !self.happened.load(Ordering::Acquire) {
            return None;
        }
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first one counts.
    pub(super) fn note(&self, refusal: Refusal) {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(refusal);
        self.happened.store(true, Ordering::Release);
    }
}

type States = Vec<(DiskIndex, Record)>;

struct Worker {
    registry: Arc<Registry>,
    server: ServerId,
    disks: Arc<Disks>,
    sender: Sender,
    states: States,
    failure: Arc<Failure>,
}

impl Worker {
    fn run(mut self, works: &mpsc::Receiver<Work>) {
        let mut next = works.recv().ok();
        while let Some(work) = next {
            let (work, following) = merge(work, works);
            let done = self.work(work);
            self.registry.noted(&self.server, &self.records());
            if let Err((refusal, waiting)) = done {
                self.failure.note(refusal.clone());
                // Who waits finds the reason noted.
                drop(waiting);
                send_error(&self.sender, &refusal);
                return;
            }
            next = following.or_else(|| works.recv().ok());
        }
    }

    /// Does it and says so; after a failure, gives back who is waiting.
    fn work(&mut self, work: Work) -> Result<(), (Refusal, Option<mpsc::Sender<()>>)> {
        for (_, state) in &mut self.states {
            state.durable.held = self.registry.held_of(&self.server, &state.assignment.volume);
        }
        match work {
            Work::Barrier { seq, progress, journal } => {
                self.barrier(&progress, journal).map_err(|refusal| (refusal, None))?;
                self.acknowledge(seq);
            }
            Work::Checkpoint { seq, checkpoint, done } => {
                if let Err(refusal) = self.checkpoint(checkpoint) {
                    return Err((refusal, Some(done)));
                }
                self.acknowledge(seq);
                // Nobody waits any more if the session is over.
                let _ = done.send(());
            }
            Work::Spill { done } => {
                if let Err(refusal) = self.spill() {
                    return Err((refusal, Some(done)));
                }
                let _ = done.send(());
            }
        }
        Ok(())
    }

    /// In this order, for the reason given in [`super::sidecar`]: volumes and journal, sidecars, and then the word.
    fn barrier(&mut self, progress: &[DiskProgress], position: u64) -> Result<(), Refusal> {
        self.flush_direct()?;
        if let Some(journal) = self.disks.journal().cloned() {
            journal.sync(position)?;
            if planted::is("apply-before-commit") {
                journal.apply_early(&mut self.volumes(None))?;
            }
        }
        for (index, state) in &mut self.states {
            let Some(progress) = progress.iter().find(|progress| progress.disk == *index) else { continue };
            // The mark does not fall here: what was durable once need not be sent again.
            if progress.high_water.0 > state.durable.synced_bytes {
                state.durable.synced_bytes = progress.high_water.0;
                state.save()?;
            }
        }
        self.registry.went_well(&self.server);
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: Committed) -> Result<(), Refusal> {
        let in_journal = self.disks.iter().filter(|(_, disk)| disk.is_consistent());
        let members: Vec<_> = in_journal.map(|(_, disk)| disk.member.clone()).collect();
        if planted::is("sidecar-before-flush") {
            let journal = self.disks.journal().cloned();
            self.volumes(journal.as_deref()).record(Recorded::Checkpoint(checkpoint))?;
        }
        // What was written directly is durable before anything says that it is a checkpoint.
        self.flush_direct()?;
        match self.journal()? {
            Some(journal) => {
                let mut volumes = self.volumes(Some(&journal));
                journal.commit(&members, checkpoint, &mut volumes)?;
            }
            None => self.volumes(None).record(Recorded::Checkpoint(checkpoint))?,
        }
        let held = Some(checkpoint.epoch).filter(|epoch| *epoch > Epoch::default());
        self.make_manifests(held, checkpoint);
        self.registry.committed(&self.server, &self.records(), held);
        self.registry.went_well(&self.server);
        Ok(())
    }

    fn spill(&mut self) -> Result<(), Refusal> {
        match self.disks.journal().cloned() {
            Some(journal) => {
                let bytes = journal.bytes();
                tracing::info!(server = %self.server, bytes, "the journal is full: the volumes are written to directly");
                journal.spill(&mut self.volumes(Some(&journal)))
            }
            None => self.volumes(None).record(Recorded::Inconsistent),
        }
    }

    /// The journal; a new one if this is the first checkpoint, and there is a key for it.
    fn journal(&self) -> Result<Option<Arc<Journal>>, Refusal> {
        if let Some(journal) = self.disks.journal() {
            return Ok(Some(journal.clone()));
        }
        let created = opening::create(&self.registry, &self.server)?;
        if let Some(journal) = &created {
            self.disks.set_journal(journal.clone());
        }
        Ok(created)
    }

    /// Flushes what is written to directly.
    fn flush_direct(&mut self) -> Result<(), Refusal> {
        for (index, state) in &mut self.states {
            let Some(disk) = self.disks.get(*index).filter(|disk| !disk.is_consistent()) else { continue };
            if let Err(refusal) = disk.volume.flush() {
                distrust(state);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Before the hold is known, so that no write can come first.
    fn make_manifests(&self, held: Option<Epoch>, checkpoint: Committed) {
        let Some(epoch) = held else { return };
        let subject = |(_, state): &(DiskIndex, Record)| Subject {
            server: self.server.clone(),
            assignment: state.assignment.clone(),
            chunks: state.chunks.clone(),
            generation: state.chunks.generation(),
            epoch,
            consistency: checkpoint.consistency,
        };
        manifest::start(self.registry.clone(), self.states.iter().map(subject).collect());
    }

    fn acknowledge(&self, seq: Sequence) {
        let mut ack = Vec::new();
        if (ReplicatorMessage::Ack { seq }).encode(&mut ack).is_ok() {
            // An agent that is gone asks again when it is back; what is queued is made durable all the same.
            let _ = self.sender.send(&[&ack]);
        }
    }

    fn volumes(&mut self, journal: Option<&Journal>) -> Written<'_> {
        Written { disks: &self.disks, states: &mut self.states, journal: journal.map(Journal::id) }
    }

    fn records(&self) -> Vec<Record> {
        self.states.iter().map(|(_, state)| state.clone()).collect()
    }
}

/// The volumes of a session, for its journal to be applied to.
struct Written<'a> {
    disks: &'a Disks,
    states: &'a mut States,
    journal: Option<RandomName>,
}

impl Written<'_> {
    fn disk(&self, volume: &VolumeId) -> Result<&Disk, Refusal> {
        let found = self.disks.iter().map(|(_, disk)| disk).find(|disk| disk.member.volume == *volume);
        let text = || format!("the journal has changes of {volume}, which is not part of this session");
        found.ok_or_else(|| Refusal::new(ErrorCode::Io, text()))
    }
}

impl Volumes for Written<'_> {
    fn write(&mut self, volume: &VolumeId, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.disk(volume)?.volume.write_applied(ByteOffset(offset), bytes)
    }

    fn zero(&mut self, volume: &VolumeId, offset: u64, length: u64) -> Result<(), Refusal> {
        self.disk(volume)?.volume.zero(ByteOffset(offset), ByteCount(length))
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        self.disks.iter().try_for_each(|(_, disk)| disk.volume.flush())
    }

    fn record(&mut self, what: Recorded) -> Result<(), Refusal> {
        for (index, state) in &mut *self.states {
            let before = state.durable.clone();
            state.durable.note(what, self.journal);
            if state.durable != before || !state.recorded {
                state.save()?;
            }
            if let Some(disk) = self.disks.get(*index) {
                disk.set_consistent(state.durable.consistent);
            }
        }
        Ok(())
    }
}

/// After a failed flush: which of the writes were lost is unknown, and a second flush would not say; everything is sent again.
fn distrust(state: &mut Record) {
    let volume = &state.assignment.volume;
    tracing::error!(%volume, "what was written directly could not be flushed: all of it is sent again");
    state.durable.begin_anew();
    state.durable.synced_bytes = 0;
    if let Err(refusal) = state.save() {
        // The running replicator knows; a restarted one compares with the disk.
        tracing::warn!(reason = %refusal.message, "cannot record that a volume is to be sent again");
    }
}

/// Takes the barriers that are queued together; and what ends them, which is to be done next.
fn merge(first: Work, works: &mpsc::Receiver<Work>) -> (Work, Option<Work>) {
    let mut merged = first;
    while let Work::Barrier { seq, progress, journal } = &mut merged {
        match works.try_recv() {
            Ok(Work::Barrier { seq: newer, progress: further, journal: position }) => {
                *seq = newer;
                *journal = position.max(*journal);
                if !further.is_empty() {
                    *progress = further;
                }
            }
            Ok(other) => return (merged, Some(other)),
            Err(_) => break,
        }
    }
    (merged, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{sidecar::Durable, volume::Volume};
    use rehost_model::replicator::Assignment;

    #[test]
    fn a_volume_that_failed_to_flush_is_sent_from_its_start_under_a_new_lineage() {
        let directory = tempfile::tempdir().unwrap();
        let assignment = Assignment {
            server: ServerId::generate(),
            volume: VolumeId::generate(),
            size_bytes: 1 << 20,
            location: directory.path().join("v.img").display().to_string(),
            initialized: false,
        };
        let mut record = Record::load(assignment.clone(), None);
        record.durable.synced_bytes = 1 << 20;
        record.durable.checkpoint = Epoch(3);
        record.save().unwrap();
        let before = record.durable.lineage;
        let unsyncable = Assignment { size_bytes: 0, location: "/dev/null".into(), ..assignment.clone() };
        let volume = Volume::open(&unsyncable, record.chunks.clone()).unwrap();
        volume.flush().unwrap_err();
        distrust(&mut record);
        let found = Durable::load(&record.sidecar, &assignment).unwrap();
        assert_eq!((found.synced_bytes, found.checkpoint), (0, Epoch(3)));
        assert_ne!(found.lineage, before);
    }

    #[test]
    fn barriers_are_taken_together_up_to_something_else() {
        let (queue, works) = mpsc::channel();
        let barrier = |seq, journal| Work::Barrier { seq: Sequence(seq), progress: Vec::new(), journal };
        for seq in 2..4 {
            queue.send(barrier(seq, seq * 100)).unwrap();
        }
        queue.send(Work::Spill { done: mpsc::channel().0 }).unwrap();
        queue.send(barrier(9, 900)).unwrap();
        let (merged, next) = merge(barrier(1, 100), &works);
        assert!(matches!(merged, Work::Barrier { seq: Sequence(3), journal: 300, .. }));
        assert!(matches!(next, Some(Work::Spill { .. })));
    }
}
