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
use rehost_protocol::{DiskIndex, DiskProgress, ReplicatorMessage, Sequence};

use super::{
    admission::{Disk, Disks},
    refusal::Refusal,
    registry::Registry,
    session::send_error,
    sidecar::Durable,
};

/// A barrier or a checkpoint, as the session received it.
pub(super) struct Commit {
    pub(super) seq: Sequence,
    pub(super) progress: Vec<DiskProgress>,
    pub(super) checkpoint: Option<Epoch>,
}

/// Handle of a session's committer.
pub(super) struct Committer {
    queue: Option<mpsc::Sender<Commit>>,
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
        let (queue, commits) = mpsc::channel();
        let failure = Arc::new(Failure::default());
        let states = disks.iter().map(|(index, disk)| (*index, disk.record.durable.clone())).collect();
        let worker = Worker { registry, server, disks, sender, states };
        let noted = failure.clone();
        let work = move || {
            if let Err(refusal) = worker.run(&commits) {
                noted.note(refusal);
            }
        };
        let thread = thread::Builder::new().name("committer".into()).spawn(work)?;
        Ok(Self { queue: Some(queue), failure, thread: Some(thread) })
    }

    /// Queues a commit. Bounded by the window: an agent that has sent it without an acknowledgement waits.
    pub(super) fn commit(&self, commit: Commit) {
        if let Some(queue) = &self.queue {
            // A committer that failed takes nothing more; the session finds the failure.
            let _ = queue.send(commit);
        }
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

struct Worker {
    registry: Arc<Registry>,
    server: ServerId,
    disks: Arc<Disks>,
    sender: Sender,
    states: Vec<(DiskIndex, Durable)>,
}

impl Worker {
    fn run(mut self, commits: &mpsc::Receiver<Commit>) -> Result<(), Refusal> {
        while let Ok(first) = commits.recv() {
            let merged = merge(first, commits);
            if let Err(refusal) = self.commit(&merged) {
                send_error(&self.sender, &refusal);
                return Err(refusal);
            }
            let mut ack = Vec::new();
            if (ReplicatorMessage::Ack { seq: merged.seq }).encode(&mut ack).is_ok() {
                // An agent that is gone asks again when it is back; what is queued is made durable all the same.
                let _ = self.sender.send(&[&ack]);
            }
        }
        Ok(())
    }

    /// In this order, for the reason given in [`super::sidecar`]: volumes, sidecars, and then the word.
    fn commit(&mut self, commit: &Commit) -> Result<(), Refusal> {
        self.flush()?;
        let mut recorded = Vec::new();
        for (index, state) in &mut self.states {
            let Some(disk) = self.disks.get(index) else { continue };
            let next = advanced(state, *index, commit);
            if next != *state {
                let path = &disk.record.sidecar;
                next.save(path).map_err(|error| Refusal::io("recording progress in", path, &error))?;
                state.clone_from(&next);
            }
            recorded.push((disk.record.assignment.volume.clone(), next));
        }
        self.publish(&recorded, commit.checkpoint);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        for (index, state) in &mut self.states {
            let Some(disk) = self.disks.get(index) else { continue };
            if let Err(refusal) = disk.volume.flush() {
                distrust(disk, state);
                let recorded = [(disk.record.assignment.volume.clone(), state.clone())];
                self.registry.committed(&self.server, &recorded, None);
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn publish(&self, recorded: &[(VolumeId, Durable)], checkpoint: Option<Epoch>) {
        self.registry.committed(&self.server, recorded, checkpoint);
    }
}

/// After a failed flush: which of the writes were lost is unknown, and a second flush would not say; everything is sent again.
fn distrust(disk: &Disk, state: &mut Durable) {
    state.synced_bytes = 0;
    let path = &disk.record.sidecar;
    if let Err(error) = state.save(path) {
        // The running replicator knows; a restarted one compares with the disk.
        tracing::warn!(path = %path.display(), %error, "cannot record that a volume is to be sent again");
    }
}

/// A volume's state after a commit. The mark does not fall here: what was durable once need not be sent again.
fn advanced(state: &Durable, index: DiskIndex, commit: &Commit) -> Durable {
    let mut next = state.clone();
    if let Some(progress) = commit.progress.iter().find(|progress| progress.disk == index) {
        next.synced_bytes = next.synced_bytes.max(progress.high_water.0);
    }
    if let Some(epoch) = commit.checkpoint {
        next.checkpoint = epoch;
        next.held = Some(epoch);
    }
    next
}

/// Takes everything that is queued, up to a checkpoint: behind one, nothing is applied, hence nothing queued.
fn merge(first: Commit, commits: &mpsc::Receiver<Commit>) -> Commit {
    let mut merged = first;
    while merged.checkpoint.is_none() {
        let Ok(next) = commits.try_recv() else { break };
        merged.seq = next.seq;
        merged.checkpoint = next.checkpoint;
        if !next.progress.is_empty() {
            merged.progress = next.progress;
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{registry::Record, sidecar, volume::Volume};
    use rehost_model::replicator::Assignment;

    #[test]
    fn a_volume_that_failed_to_flush_is_sent_from_its_start() {
        let directory = tempfile::tempdir().unwrap();
        let assignment = Assignment {
            server: ServerId::generate(),
            volume: VolumeId::generate(),
            size_bytes: 1 << 20,
            location: directory.path().join("v.img").display().to_string(),
            initialized: false,
        };
        let sidecar = sidecar::path_of(&assignment, None);
        let mut state = Durable::fresh(&assignment);
        state.synced_bytes = 1 << 20;
        state.checkpoint = Epoch(3);
        state.save(&sidecar).unwrap();
        let unsyncable = Assignment { size_bytes: 0, location: "/dev/null".into(), ..assignment.clone() };
        let volume = Volume::open(&unsyncable).unwrap();
        let record = Record { assignment: assignment.clone(), sidecar: sidecar.clone(), durable: state.clone() };
        let disk = Disk { volume, record };
        disk.volume.flush().unwrap_err();
        distrust(&disk, &mut state);
        assert_eq!(state.synced_bytes, 0);
        let found = Durable::load(&sidecar, &assignment);
        assert_eq!((found.synced_bytes, found.checkpoint), (0, Epoch(3)));
    }
}
