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
    freezing::Freeze,
    history::{History, milliseconds},
};
use crate::tracker::{self, DiskTracker, Opened, TrackedDisk, TrackerOptions};

/// Gives trackers to disks.
pub trait OpenTrackers: Send + Sync {
    /// The best tracker that the disk can have, with the marks that an earlier agent left.
    fn open(&self, disk: &TrackedDisk) -> Opened;

    /// The disk is not replicated any more: nothing of it stays marked.
    fn forget(&self, volume: &VolumeId);
}

impl OpenTrackers for TrackerOptions {
    fn open(&self, disk: &TrackedDisk) -> Opened {
        tracker::open(disk, self)
    }

    fn forget(&self, volume: &VolumeId) {
        if let Err(error) = tracker::forget_volume(self, volume) {
            tracing::warn!(%volume, %error, "marks of a disk that is not replicated any more stay in memory");
        }
    }
}

/// Shared by the engines that replicate a machine one after the other.
#[derive(Default)]
pub struct Machine {
    trackers: Option<Box<dyn OpenTrackers>>,
    tracked: Mutex<BTreeMap<VolumeId, Tracked>>,
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

    /// Borrows the trackers of these disks, and opens those that are missing or were made for another size. Disks that are
    /// not replicated any more are not tracked any more.
    pub(super) fn borrow(self: &Arc<Self>, disks: &[DiskSource]) -> Vec<Lease> {
        let gone: Vec<VolumeId> =
            self.entries().keys().filter(|volume| !disks.iter().any(|disk| disk.volume == **volume)).cloned().collect();
        for volume in gone {
            self.entries().remove(&volume);
            self.trackers.iter().for_each(|trackers| trackers.forget(&volume));
        }
        disks.iter().map(|disk| self.lease(disk)).collect()
    }

    fn lease(self: &Arc<Self>, source: &DiskSource) -> Lease {
        let disk =
            TrackedDisk { path: source.path.clone(), volume: source.volume.clone(), size_bytes: source.size_bytes };
        let mut entries = self.entries();
        let known = entries.get(&disk.volume).is_some_and(|tracked| tracked.disk == disk);
        if !known {
            // The older one first: two trackers of a disk would take each other's marks.
            entries.remove(&disk.volume);
            let tracked = self.open(&disk);
            entries.insert(disk.volume.clone(), tracked);
        }
        let tracker = entries.get_mut(&disk.volume).and_then(|tracked| tracked.tracker.take());
        Lease { machine: self.clone(), disk, tracker }
    }

    fn open(&self, disk: &TrackedDisk) -> Tracked {
        let opened = match &self.trackers {
            Some(trackers) => trackers.open(disk),
            None => {
                let why = vec!["tracking is turned off".to_owned()];
                Opened { tracker: None, kind: TrackerKind::Rescan, why }
            }
        };
        let device = disk.path.display().to_string();
        let note = TrackerNote { device, kind: opened.kind, why: opened.why };
        Tracked { disk: disk.clone(), note, tracker: opened.tracker }
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
