//! What of the source machine outlives a session and a connection: the trackers of its disks, what stops its writers, and
//! what is known of the newest checkpoint.
//!
//! A session borrows the trackers and gives them back at its end, whatever that end is. While nobody has borrowed them (the
//! replication is paused, or the replicator away) they go on marking: that is the kernel's work.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rehost_model::{VolumeId, replication::TrackerKind};

use super::{
    config::DiskSource,
    control::Progress,
    error::SyncError,
    freezing::Freeze,
    history::{History, milliseconds},
};
use crate::tracker::{self, DiskIdentity, DiskTracker, Opened, TrackedDisk, TrackerOptions};

/// What the marks of all disks together may take, twice: see [`TrackerOptions::map_bytes`].
const ALL_MAPS_BYTES: u64 = 32 << 20;

/// Gives trackers to disks.
pub trait OpenTrackers: Send + Sync {
    /// The best tracker that the disk can have, being one of so many, with the marks that an earlier agent left.
    fn open(&self, disk: &TrackedDisk, disks: usize) -> Opened;

    /// Which disk it is by now: an older tracker is of no use to another one.
    fn identity(&self, disk: &TrackedDisk) -> DiskIdentity {
        DiskIdentity::at(&disk.path)
    }

    /// The disk is not replicated any more: nothing of it stays marked.
    fn forget(&self, volume: &VolumeId);

    /// The volumes of which an earlier agent left something.
    fn kept(&self) -> Vec<VolumeId>;
}

impl OpenTrackers for TrackerOptions {
    fn open(&self, disk: &TrackedDisk, disks: usize) -> Opened {
        tracker::open(disk, &Self { map_bytes: share(self.map_bytes, disks), ..self.clone() })
    }

    fn forget(&self, volume: &VolumeId) {
        if let Err(error) = tracker::forget_volume(self, volume) {
            tracing::warn!(%volume, %error, "marks of a disk that is not replicated any more stay in memory");
        }
    }

    fn kept(&self) -> Vec<VolumeId> {
        tracker::kept_volumes(self)
    }
}

/// What the marks of one of so many disks may take, twice.
fn share(map_bytes: u64, disks: usize) -> u64 {
    map_bytes.min(ALL_MAPS_BYTES / u64::try_from(disks.max(1)).unwrap_or(u64::MAX))
}

/// Shared by the engines that replicate a machine one after the other.
#[derive(Default)]
pub struct Machine {
    trackers: Option<Box<dyn OpenTrackers>>,
    tracked: Mutex<BTreeMap<VolumeId, Tracked>>,
    /// Whether what earlier agents left was looked through. Held while trackers are opened, which takes time; nobody who holds
    /// another lock of this takes it.
    swept: Mutex<bool>,
    freezer: Mutex<Option<Box<dyn Freeze>>>,
    history: Mutex<History>,
}

/// How changes of a disk are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackerNote {
    /// The disk's path.
    pub device: String,
    /// How it is tracked.
    pub kind: TrackerKind,
    /// Why not in a better way; empty if there is none.
    pub why: Vec<String>,
}

/// A disk's tracker, and why it is that one.
struct Tracked {
    disk: TrackedDisk,
    /// As it was before the tracker was opened.
    identity: DiskIdentity,
    note: TrackerNote,
    /// None while it is borrowed, or if there is none.
    tracker: Option<Box<dyn DiskTracker>>,
}

impl Machine {
    /// Without trackers and without anything that freezes: disks are compared by digests.
    #[must_use]
    pub fn untracked() -> Arc<Self> {
        Arc::default()
    }

    /// With whatever trackers there are.
    #[must_use]
    pub fn tracked(trackers: Box<dyn OpenTrackers>) -> Arc<Self> {
        Arc::new(Self { trackers: Some(trackers), ..Self::default() })
    }

    /// What freezes the file systems, if anything can.
    pub fn set_freezer(&self, freezer: Option<Box<dyn Freeze>>) {
        *self.freezer() = freezer;
    }

    /// Only the engine's driver asks, so nobody waits for it while writers are stopped.
    pub(super) fn freezer(&self) -> MutexGuard<'_, Option<Box<dyn Freeze>>> {
        self.freezer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the trackers that nobody has borrowed have marked; bytes.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        let tracked = self.entries();
        let trackers = tracked.values().filter_map(|tracked| tracked.tracker.as_ref());
        trackers.map(|tracker| tracker.backlog_bytes()).sum()
    }

    /// How each disk is tracked, as far as disks were opened.
    #[must_use]
    pub fn notes(&self) -> Vec<TrackerNote> {
        self.entries().values().map(|tracked| tracked.note.clone()).collect()
    }

    /// Adds to `progress` what is known here; `changed`: something is in no checkpoint.
    pub fn describe(&self, progress: &mut Progress, changed: bool, now: Instant) {
        progress.trackers = self.notes();
        progress.tracker = progress.trackers.iter().map(|note| note.kind).max_by_key(|kind| rank(*kind));
        // Either the driver has the trackers and shows what they say, or they are here.
        let shown: u64 = progress.disks.iter().map(|disk| disk.backlogged_storage_bytes).sum();
        let here = self.backlog_bytes();
        progress.backlog_bytes = if here > 0 { here } else { shown };
        let history = self.history();
        progress.consistency = history.consistency();
        progress.shortfall = history.shortfall().map(str::to_owned);
        let age = history.age(now).map(milliseconds);
        progress.lag_ms = age.map(|age| if changed || here > 0 { age } else { 0 });
        progress.freezes = history.freezes();
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of every tracker. What they have pinned stays.
    pub fn close(&self) {
        self.entries().clear();
        self.set_freezer(None);
    }

    /// Borrows the trackers of these disks, and opens those that are missing or were made for another size or another disk.
    /// Disks that are not replicated any more are not tracked any more.
    pub(super) fn borrow(self: &Arc<Self>, disks: &[DiskSource]) -> Vec<Lease> {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_gone = |volume: &VolumeId| !disks.iter().any(|disk| disk.volume == *volume);
        if !std::mem::replace(&mut *swept, true) {
            self.sweep(is_gone);
        }
        let gone: Vec<VolumeId> = self.entries().keys().filter(|volume| is_gone(volume)).cloned().collect();
        for volume in gone {
            self.entries().remove(&volume);
            self.trackers.iter().for_each(|trackers| trackers.forget(&volume));
        }
        disks.iter().map(|disk| self.lease(disk, disks.len())).collect()
    }

    /// Volumes may have been replaced while no agent ran: nobody has forgotten them yet.
    fn sweep(&self, is_gone: impl Fn(&VolumeId) -> bool) {
        let Some(trackers) = &self.trackers else { return };
        trackers.kept().iter().filter(|volume| is_gone(volume)).for_each(|volume| trackers.forget(volume));
    }

    /// A session ended by this error. If a disk was away, and the kernel does not count its disks, what comes back may be
    /// another one with every sign of this one: its marks do not count.
    pub(super) fn doubt(&self, error: &SyncError) {
        let (SyncError::DiskVanished { path, .. } | SyncError::DiskResized { path, .. }) = error else { return };
        for tracked in self.entries().values_mut() {
            if tracked.disk.path == *path && !tracked.identity.is_counted {
                tracked.identity = DiskIdentity::default();
            }
        }
    }

    fn lease(self: &Arc<Self>, source: &DiskSource, disks: usize) -> Lease {
        let disk =
            TrackedDisk { path: source.path.clone(), volume: source.volume.clone(), size_bytes: source.size_bytes };
        let identity = self.trackers.as_ref().map(|trackers| trackers.identity(&disk)).unwrap_or_default();
        let is_same = |tracked: &Tracked| tracked.disk == disk && tracked.identity == identity;
        let known = self.entries().get(&disk.volume).is_some_and(is_same);
        if !known {
            self.retire(&disk.volume, identity);
            let tracked = self.open(&disk, identity, disks);
            self.entries().insert(disk.volume.clone(), tracked);
        }
        let tracker = self.entries().get_mut(&disk.volume).and_then(|tracked| tracked.tracker.take());
        Lease { machine: self.clone(), disk, tracker }
    }

    /// Lets go of a tracker before another one is opened: two of a disk would take each other's marks. If the disk is not the
    /// one that it was opened for, what it has pinned covers nothing any more.
    fn retire(&self, volume: &VolumeId, now: DiskIdentity) {
        let older = self.entries().remove(volume);
        if let Some(Tracked { identity, tracker: Some(mut tracker), .. }) = older
            && identity != now
        {
            tracker.uncover();
        }
    }

    fn open(&self, disk: &TrackedDisk, identity: DiskIdentity, disks: usize) -> Tracked {
        let opened = match &self.trackers {
            Some(trackers) => trackers.open(disk, disks),
            None => {
                let why = vec!["tracking is turned off".to_owned()];
                Opened { tracker: None, kind: TrackerKind::Rescan, why }
            }
        };
        let device = disk.path.display().to_string();
        let note = TrackerNote { device, kind: opened.kind, why: opened.why };
        Tracked { disk: disk.clone(), identity, note, tracker: opened.tracker }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Tracked>> {
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The higher, the worse.
fn rank(kind: TrackerKind) -> u8 {
    match kind {
        TrackerKind::Ebpf => 0,
        TrackerKind::EbpfBio => 1,
        TrackerKind::Ftrace => 2,
        TrackerKind::Rescan => 3,
    }
}

/// A borrowed tracker; it goes back when this is dropped.
pub(super) struct Lease {
    machine: Arc<Machine>,
    disk: TrackedDisk,
    pub(super) tracker: Option<Box<dyn DiskTracker>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut entries = self.machine.entries();
        // Unless the disk was forgotten or opened anew meanwhile.
        if let Some(tracked) = entries.get_mut(&self.disk.volume)
            && tracked.disk == self.disk
            && tracked.tracker.is_none()
        {
            tracked.tracker = self.tracker.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehost_protocol::DiskIndex;

    /// An earlier agent left something of these; what is forgotten is noted.
    struct Left {
        volumes: Vec<VolumeId>,
        forgotten: Arc<Mutex<Vec<VolumeId>>>,
    }

    impl OpenTrackers for Left {
        fn open(&self, _disk: &TrackedDisk, _disks: usize) -> Opened {
            Opened { tracker: None, kind: TrackerKind::Rescan, why: Vec::new() }
        }

        fn forget(&self, volume: &VolumeId) {
            self.forgotten.lock().unwrap().push(volume.clone());
        }

        fn kept(&self) -> Vec<VolumeId> {
            self.volumes.clone()
        }
    }

    #[test]
    fn many_disks_share_what_their_marks_may_take() {
        const MIB: u64 = 1 << 20;
        for (disks, expected) in [(0, 8 * MIB), (1, 8 * MIB), (4, 8 * MIB), (8, 4 * MIB), (64, MIB / 2)] {
            assert_eq!(share(8 * MIB, disks), expected, "{disks}");
        }
    }

    #[test]
    fn what_is_left_of_volumes_that_were_replaced_is_forgotten_once() {
        let volumes: Vec<VolumeId> = (0..2).map(|_| VolumeId::generate()).collect();
        let forgotten = Arc::new(Mutex::new(Vec::new()));
        let left = Left { volumes: volumes.clone(), forgotten: forgotten.clone() };
        let machine = Machine::tracked(Box::new(left));
        let source = |volume: &VolumeId| DiskSource {
            index: DiskIndex(0),
            path: "/nonexistent".into(),
            volume: volume.clone(),
            size_bytes: 4096,
        };
        for _ in 0..2 {
            assert_eq!(machine.borrow(&[source(&volumes[0])]).len(), 1);
            assert_eq!(*forgotten.lock().unwrap(), volumes[1..]);
        }
        machine.borrow(&[]);
        assert_eq!(*forgotten.lock().unwrap(), [volumes[1].clone(), volumes[0].clone()]);
    }
}
