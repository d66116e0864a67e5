//! Trackers and a freezer that are told, instead of the kernel, what is written and when to stand still.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, RwLock},
    time::Duration,
};

use rehost_model::{VolumeId, replication::TrackerKind};
use rehost_protocol::Lineage;

use crate::{
    sync::{Freeze, FreezeLimits, NotFrozen, OpenTrackers, Thawed},
    tracker::{ByteRange, DiskIdentity, DiskTracker, MarksLost, Opened, Pass, TrackedDisk},
};

/// A disk whose writes are marked, as the kernel would: survives agents, not "reboots".
pub(super) struct FakeDisk {
    file: File,
    pub(super) path: PathBuf,
    granule: u64,
    marks: Mutex<Marks>,
    identity: Mutex<DiskIdentity>,
    /// Held for reading by who writes, for writing by who freezes.
    gate: RwLock<()>,
}

#[derive(Default)]
struct Marks {
    size: u64,
    live: BTreeSet<u64>,
    pending: BTreeMap<u64, u8>,
    covers: Option<Lineage>,
    /// To be reported at the next collection.
    lost: bool,
    /// Something writes whenever somebody looks.
    busy: bool,
    opened: u32,
}

impl FakeDisk {
    pub(super) fn new(path: &Path, granule: u64) -> Arc<Self> {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let (marks, gate) = (Mutex::default(), RwLock::default());
        let identity = Mutex::new(DiskIdentity { number: 7, sequence: 1, is_counted: true });
        Arc::new(Self { file, path: path.to_owned(), granule, marks, identity, gate })
    }

    /// Writes; the mark comes with the completion.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let _open = self.gate.read().unwrap();
        self.write_unfrozen(offset, bytes);
    }

    fn write_unfrozen(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
        let end = offset + bytes.len() as u64;
        self.marks().live.extend(offset / self.granule..end.div_ceil(self.granule));
    }

    /// What was marked is forgotten, as by a boot.
    pub(super) fn reboot(&self) {
        let mut marks = self.marks();
        *marks = Marks { opened: marks.opened, ..Marks::default() };
    }

    /// It was away, and nobody marked what was done to it meanwhile.
    pub(super) fn attach_again(&self) {
        self.identity.lock().unwrap().sequence += 1;
    }

    /// The kernel is one that does not count its disks.
    pub(super) fn do_not_count(&self) {
        self.identity.lock().unwrap().is_counted = false;
    }

    pub(super) fn lose_marks(&self) {
        self.marks().lost = true;
    }

    pub(super) fn set_busy(&self, busy: bool) {
        self.marks().busy = busy;
    }

    pub(super) fn is_settled(&self) -> bool {
        let marks = self.marks();
        marks.live.is_empty() && marks.pending.is_empty()
    }

    pub(super) fn times_opened(&self) -> u32 {
        self.marks().opened
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap()
    }
}

/// Gives a tracker to each of these disks, and none to others.
pub(super) struct FakeTrackers(pub(super) Vec<Arc<FakeDisk>>);

impl OpenTrackers for FakeTrackers {
    fn open(&self, disk: &TrackedDisk, _disks: usize) -> Opened {
        let Some(fake) = self.0.iter().find(|fake| fake.path == disk.path) else {
            return Opened { tracker: None, kind: TrackerKind::Rescan, why: vec!["not one of the fakes".into()] };
        };
        let mut marks = fake.marks();
        if marks.size != disk.size_bytes {
            *marks = Marks { size: disk.size_bytes, opened: marks.opened, busy: marks.busy, ..Marks::default() };
        }
        marks.opened += 1;
        Opened { tracker: Some(Box::new(FakeTracker(fake.clone()))), kind: TrackerKind::Ebpf, why: Vec::new() }
    }

    fn identity(&self, disk: &TrackedDisk) -> DiskIdentity {
        let fake = self.0.iter().find(|fake| fake.path == disk.path);
        fake.map(|fake| *fake.identity.lock().unwrap()).unwrap_or_default()
    }

    fn forget(&self, _volume: &VolumeId) {}

    fn kept(&self) -> Vec<VolumeId> {
        Vec::new()
    }
}

struct FakeTracker(Arc<FakeDisk>);

impl FakeTracker {
    fn range(&self, granule: u64, size: u64) -> ByteRange {
        let offset = granule * self.0.granule;
        ByteRange { offset, length: self.0.granule.min(size - offset) }
    }
}

impl DiskTracker for FakeTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Ebpf
    }

    fn granule_bytes(&self) -> u64 {
        self.0.granule
    }

    fn covers(&self, lineage: &Lineage) -> bool {
        self.0.marks().covers.as_ref() == Some(lineage)
    }

    fn cover(&mut self, lineage: &Lineage) {
        self.0.marks().covers = Some(*lineage);
    }

    fn uncover(&mut self) {
        self.0.marks().covers = None;
    }

    fn collect(&mut self, pass: Pass) -> Result<(), MarksLost> {
        let mut marks = self.0.marks();
        if std::mem::take(&mut marks.lost) {
            marks.covers = None;
            return Err(MarksLost { disk: "fake".into(), reason: "as told".into() });
        }
        let live = std::mem::take(&mut marks.live);
        marks.pending.extend(live.into_iter().map(|granule| (granule, pass.number())));
        Ok(())
    }

    fn pending(&self) -> Vec<ByteRange> {
        let marks = self.0.marks();
        let mut ranges: Vec<ByteRange> = Vec::new();
        for granule in marks.pending.keys() {
            let range = self.range(*granule, marks.size);
            match ranges.last_mut() {
                Some(last) if last.end() == range.offset => last.length += range.length,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    fn settle(&mut self, range: ByteRange, pass: Pass) {
        let mut marks = self.0.marks();
        let size = marks.size;
        let within = |granule: u64| {
            let own = self.range(granule, size);
            own.offset >= range.offset && own.end() <= range.end()
        };
        marks.pending.retain(|granule, number| *number != pass.number() || !within(*granule));
    }

    fn is_quiet(&mut self) -> Result<bool, MarksLost> {
        let mut marks = self.0.marks();
        if marks.busy && self.0.gate.try_read().is_ok() {
            // Rewritten with what is there: marked, and not different.
            marks.live.insert(0);
        }
        Ok(marks.live.is_empty())
    }

    fn backlog_bytes(&self) -> u64 {
        let marks = self.0.marks();
        (marks.live.len() + marks.pending.len()) as u64 * self.0.granule
    }
}

/// Stops the writers of a disk, and keeps an image of what it was meanwhile.
pub(super) struct FakeFreezer {
    pub(super) disk: Arc<FakeDisk>,
    pub(super) image: PathBuf,
    /// So many freezes are thawed by the watchdog first.
    pub(super) late: u32,
    /// Written just before the next freeze, once.
    pub(super) burst: u64,
}

impl Freeze for FakeFreezer {
    fn presync(&self) {}

    fn frozen(&mut self, limits: FreezeLimits, work: &mut dyn FnMut()) -> Result<Thawed, NotFrozen> {
        assert_eq!(limits.freeze, Duration::from_secs(2));
        let burst = std::mem::take(&mut self.burst);
        for at in (0..burst).step_by(1 << 20) {
            self.disk.write(at, &[7; 1 << 20]);
        }
        let _closed = self.disk.gate.write().unwrap();
        std::fs::copy(&self.disk.path, &self.image).unwrap();
        let in_time = self.late == 0;
        self.late = self.late.saturating_sub(1);
        if !in_time {
            // Thawed behind our back: somebody writes while the rest is read.
            self.disk.write_unfrozen(8 << 20, &[0xab; 512]);
        }
        work();
        Ok(Thawed { blocked: Duration::from_millis(50), in_time })
    }
}
