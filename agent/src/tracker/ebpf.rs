//! The tracker whose marks are set by eBPF programs.
//!
//! Maps and links are pinned: the programs go on marking while no agent runs, and the next agent finds both sets of marks, and
//! which lineage they cover, as they were left. What was set up for another disk or size is set up anew; granules stay as they are.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rehost_model::replication::TrackerKind;
use rehost_protocol::Lineage;

use super::{
    ByteRange, DiskTracker, MarksLost, Pass, TrackedDisk, TrackerOptions,
    device::BlockDevice,
    geometry::{ENTRY_SHIFT, Geometry},
    marks::Marks,
    meta::{META_BYTES, Meta},
    mounts::BPFFS,
    pins,
    program::{Hook, KernelLayout, Maps, SECTOR_SHIFT, Target},
};
use crate::sys::{
    bpf::{self, LoadError, MapKind, MapShape, Place},
    shared::SharedWords,
};

/// No write takes longer: that is the kernel's patience with a request. One that is noted for longer was completed unseen.
const LONGEST_WRITE: Duration = Duration::from_secs(30);

/// A request that is noted for so long was given to the disk long ago. If the disk has nothing to do, its completion passed unseen.
const UNSEEN_AFTER: Duration = Duration::from_secs(1);

/// The name of a program of [`Hook::Request`] that marks of a discard of many places the first one alone.
const FIRST_PLACE_ONLY: &str = "rehost_first";

/// How long a new tracker waits until bios that were on their way before it are complete.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no such tracker.
#[derive(Debug, thiserror::Error)]
pub(super) enum EbpfError {
    #[error("the {map} map cannot be made: {source}")]
    Map { map: &'static str, source: io::Error },
    #[error(transparent)]
    Program(#[from] LoadError),
    #[error("the {hook} program cannot be attached: {source}")]
    Attach { hook: &'static str, source: io::Error },
    #[error("bpffs at {path} cannot be used: {source}")]
    Pins { path: String, source: io::Error },
}

/// Marks of one disk, set by eBPF programs.
#[derive(Debug)]
pub(super) struct EbpfTracker {
    /// Its path, for messages.
    disk: String,
    device: BlockDevice,
    marks: Marks<SharedWords>,
    meta: Meta,
    attached: Vec<Attached>,
    /// The map of writes that are noted.
    notes: OwnedFd,
    /// That of places that were discarded, where a request may discard many.
    discarded: OwnedFd,
    /// Some of a discard's places are known by their notes alone.
    notes_only: bool,
    /// Those that the last collection found, and since when they are there.
    noted: HashMap<(u64, Place), Instant>,
}

/// A tracker that is there, and what became of an earlier one.
pub(super) struct OpenedPins {
    pub(super) tracker: EbpfTracker,
    /// Why the marks that were found could not be used.
    pub(super) discarded: Option<String>,
}

/// Opens what is pinned for this disk, or sets it up.
pub(super) fn open(
    disk: &TrackedDisk,
    device: &BlockDevice,
    layout: &KernelLayout,
    options: &TrackerOptions,
) -> Result<OpenedPins, EbpfError> {
    let geometry = Geometry::fitting(disk.size_bytes, options.map_bytes);
    let failed = |source| EbpfError::Pins { path: options.bpffs.display().to_string(), source };
    BPFFS.ensure(&options.bpffs).map_err(failed)?;
    let directory = pins::of_volume(options, &disk.volume);
    let mut discarded = None;
    if directory.exists() {
        match EbpfTracker::reopen(disk, device, &directory) {
            Ok(tracker) => return Ok(OpenedPins { tracker, discarded }),
            Err(unfit) => {
                discarded = Some(format!("marks that were kept for {} are discarded: {unfit}", disk.path.display()))
            }
        }
        pins::remove(&directory, &options.bpffs).map_err(failed)?;
        BPFFS.ensure(&options.bpffs).map_err(failed)?;
    }
    let objects = Objects::create(device, layout, geometry)?;
    let pinned = objects.pin(&directory).map_err(failed);
    let tracker = pinned.and_then(|()| EbpfTracker::over(disk, device, geometry, objects).map_err(failed));
    match tracker {
        Ok(tracker) => {
            tracker.meta.complete(device, geometry);
            Ok(OpenedPins { tracker, discarded })
        }
        Err(error) => {
            // What is left of it does not count: it was not completed.
            let _ = pins::remove(&directory, &options.bpffs);
            Err(error)
        }
    }
}

impl EbpfTracker {
    /// A tracker that nothing outlives.
    pub(super) fn unpinned(
        disk: &TrackedDisk,
        device: &BlockDevice,
        layout: &KernelLayout,
        geometry: Geometry,
    ) -> Result<Self, EbpfError> {
        let objects = Objects::create(device, layout, geometry)?;
        Self::over(disk, device, geometry, objects).map_err(|source| EbpfError::Map { map: "mapped", source })
    }

    fn reopen(disk: &TrackedDisk, device: &BlockDevice, pins: &Path) -> io::Result<Self> {
        let geometry = kept_geometry(disk.size_bytes, pins)?;
        let objects = Objects::open(device, geometry, pins)?;
        let tracker = Self::over(disk, device, geometry, objects)?;
        if tracker.meta.fits(device, geometry) {
            Ok(tracker)
        } else {
            Err(unfit("they are of another disk, size or version"))
        }
    }

    fn over(disk: &TrackedDisk, device: &BlockDevice, geometry: Geometry, objects: Objects) -> io::Result<Self> {
        let Objects { maps, attached } = objects;
        let [live, coarse, pending, meta, notes, discarded] = maps;
        let map = |map: OwnedFd, entries: u32| {
            let bytes = usize::try_from(entries).unwrap_or(usize::MAX).saturating_mul(1 << ENTRY_SHIFT);
            SharedWords::map(map.as_fd(), bytes)
        };
        let (fine, rough) = (geometry.fine_entries(), geometry.coarse_entries());
        let marks = Marks::new(geometry, map(live, fine)?, map(coarse, rough)?, map(pending, fine)?);
        bpf::places(notes.as_fd())?;
        bpf::places(discarded.as_fd())?;
        let (disk, meta) = (disk.path.display().to_string(), Meta::new(map(meta, 1)?));
        let mut notes_only = false;
        for attached in &attached {
            notes_only |= bpf::program_name(attached.program.as_fd())? == FIRST_PLACE_ONLY;
        }
        let (device, noted) = (device.clone(), HashMap::new());
        Ok(Self { disk, device, marks, meta, attached, notes, discarded, notes_only, noted })
    }

    /// Fails if an event may have passed unseen since this was asked last.
    fn check(&self) -> Result<(), MarksLost> {
        let misses = self.attached.iter().map(|attached| bpf::recursion_misses(attached.program.as_fd()));
        let misses = misses.collect::<io::Result<Vec<u64>>>();
        let misses = misses.map_err(|e| self.lost(format!("the program cannot be asked: {e}")))?;
        let lost_bios = self.meta.lost_bios();
        let verdict = self.judge(lost_bios, &misses);
        // Last: an agent that is killed in between must not leave as seen what nobody has acted on.
        self.meta.see(lost_bios, &misses);
        verdict
    }

    /// What these counts say; if they say that marks may be missing, nothing is covered from now on.
    fn judge(&self, lost_bios: u64, misses: &[u64]) -> Result<(), MarksLost> {
        let lost = self.meta.grown_losses(lost_bios);
        if lost > 0 {
            return Err(self.lost(format!("{lost} writes were too many to be followed")));
        }
        let mut seen = HashMap::new();
        for (index, (Attached { hook, .. }, misses)) in self.attached.iter().zip(misses).enumerate() {
            *seen.entry(hook.name()).or_insert(false) |= self.meta.grown_misses(index, *misses) == 0;
        }
        // What is not noted when it is issued is still marked when it is complete.
        seen.remove(Hook::Issue.name());
        match seen.iter().find(|(_, by_some_copy)| !**by_some_copy) {
            None => Ok(()),
            Some((hook, _)) => {
                Err(self.lost(format!("all copies of the {hook} program were interrupted by themselves")))
            }
        }
    }

    /// Makes pending what is being written, and forgets what cannot be.
    fn collect_notes(&mut self, pass: Pass) -> Result<(), MarksLost> {
        let now = Instant::now();
        let (mut noted, mut old) = (HashMap::new(), Vec::new());
        for note in self.notes()? {
            let (key, place) = note;
            self.marks.collect_range(range_of(place), pass);
            let since = *self.noted.get(&note).unwrap_or(&now);
            if since.elapsed() > LONGEST_WRITE {
                // It may be complete by now.
                let _ = bpf::remove_place(self.notes.as_fd(), key);
                continue;
            }
            if since.elapsed() > UNSEEN_AFTER {
                old.push(key);
            }
            noted.insert(note, since);
        }
        self.noted = noted;
        // (What is known by its note alone may be queued again, and then the disk is idle and it is still to come.)
        if !old.is_empty() && !self.notes_only && self.device.is_idle() {
            self.forget_unseen(&old, pass);
        }
        Ok(())
    }

    /// Makes pending what was discarded.
    fn collect_discarded(&mut self, pass: Pass) -> Result<(), MarksLost> {
        if !self.device.discards_many() {
            return Ok(());
        }
        if self.discarded()?.is_empty() {
            return Ok(());
        }
        // An agent that is killed in between owes what it took.
        self.meta.set_taking(true);
        let mut taken = Vec::new();
        let result = bpf::take_places(self.discarded.as_fd(), &mut taken);
        for (_, place) in taken {
            self.marks.collect_range(range_of(place), pass);
        }
        self.meta.set_taking(false);
        result.map_err(|error| self.lost(format!("what was discarded cannot be taken: {error}")))
    }

    /// Forgets the notes under these addresses, of which an idle disk has nothing left to do.
    fn forget_unseen(&mut self, keys: &[u64], pass: Pass) {
        let mut taken = Vec::new();
        for key in keys {
            if let Ok(place) = bpf::take_place(self.notes.as_fd(), *key) {
                self.marks.collect_range(range_of(place), pass);
                taken.push((*key, place));
            }
        }
        if !self.device.is_idle() {
            // What began meanwhile may have been noted under one of them.
            for (key, place) in taken {
                // Fails where another is noted by now.
                let _ = bpf::put_place(self.notes.as_fd(), key, place);
            }
            return;
        }
        // What cannot be taken, before 5.14, goes on ageing.
        self.noted.retain(|(key, _), _| !taken.iter().any(|(gone, _)| gone == key));
    }

    fn notes(&self) -> Result<Vec<(u64, Place)>, MarksLost> {
        bpf::places(self.notes.as_fd())
            .map_err(|error| self.lost(format!("what is being written cannot be read: {error}")))
    }

    fn discarded(&self) -> Result<Vec<(u64, Place)>, MarksLost> {
        bpf::places(self.discarded.as_fd())
            .map_err(|error| self.lost(format!("what was discarded cannot be read: {error}")))
    }

    fn lost(&self, reason: String) -> MarksLost {
        self.meta.uncover();
        MarksLost { disk: self.disk.clone(), reason }
    }
}

impl DiskTracker for EbpfTracker {
    fn kind(&self) -> TrackerKind {
        if self.device.has_requests { TrackerKind::Ebpf } else { TrackerKind::EbpfBio }
    }

    fn granule_bytes(&self) -> u64 {
        self.marks.geometry().granule_bytes()
    }

    fn covers(&self, lineage: &Lineage) -> bool {
        self.meta.covers(lineage)
    }

    fn cover(&mut self, lineage: &Lineage) {
        self.meta.cover(lineage);
    }

    fn uncover(&mut self) {
        self.meta.uncover();
    }

    fn collect(&mut self, pass: Pass) -> Result<(), MarksLost> {
        self.marks.collect(pass);
        self.collect_notes(pass)?;
        self.collect_discarded(pass)?;
        self.check()
    }

    fn pending(&self) -> Vec<ByteRange> {
        self.marks.pending()
    }

    fn settle(&mut self, range: ByteRange, pass: Pass) {
        self.marks.settle(range, pass);
    }

    fn is_quiet(&mut self) -> Result<bool, MarksLost> {
        self.check()?;
        // What is complete, and neither noted nor marked yet, nobody has been told of. In this order: what was discarded is there
        // before its note goes.
        Ok(self.notes()?.is_empty() && self.discarded()?.is_empty() && self.marks.is_quiet())
    }

    fn backlog_bytes(&self) -> u64 {
        let discarded = if self.device.discards_many() { self.discarded().unwrap_or_default() } else { Vec::new() };
        self.marks.backlog_bytes() + discarded.iter().map(|(_, place)| range_of(*place).length).sum::<u64>()
    }
}

/// A program that marks.
#[derive(Debug)]
struct Attached {
    hook: Hook,
    copy: usize,
    program: OwnedFd,
    /// Held open, so that it stays attached even if its pin is removed.
    link: OwnedFd,
}

impl Attached {
    /// Loads the program of a hook and attaches every copy.
    fn copies(hook: Hook, layout: &KernelLayout, target: Target, maps: Maps<'_>) -> Result<Vec<Self>, EbpfError> {
        let name = format!("rehost_{}", hook.name());
        let tracepoint = layout.tracepoint(hook).0;
        let load = |name: &str, target| bpf::load_program(name, &layout.program(hook, target, maps), tracepoint);
        let attach = |copy| {
            // A verifier that cannot follow it through so many bios: then all places but the first are noted until they must be over.
            let program = load(&name, target).or_else(|error| match (hook, target.most_discards) {
                (Hook::Request, 2..) => load(FIRST_PLACE_ONLY, Target { most_discards: 1, ..target }),
                _ => Err(error),
            })?;
            let link = bpf::attach(program.as_fd());
            let link = link.map_err(|source| EbpfError::Attach { hook: hook.name(), source })?;
            Ok(Self { hook, copy, program, link })
        };
        (0..hook.copies()).map(attach).collect()
    }

    fn file_name(hook: Hook, copy: usize) -> String {
        format!("{}-{copy}", hook.name())
    }
}

/// The maps, in the order of [`MAP_NAMES`], and the attached programs, all copies of one hook together.
struct Objects {
    maps: [OwnedFd; MAP_NAMES.len()],
    attached: Vec<Attached>,
}

const MAP_NAMES: [&str; 6] = ["live", "coarse", "pending", "meta", "notes", "discards"];

impl Objects {
    /// Makes the maps and attaches the programs.
    fn create(device: &BlockDevice, layout: &KernelLayout, geometry: Geometry) -> Result<Self, EbpfError> {
        let maps = create_maps(device, geometry).or_else(|error| {
            // Before 5.11 maps count as locked memory, of which a process may have little.
            raise_locked_memory();
            create_maps(device, geometry).map_err(|_| error)
        })?;
        let (written, target) = (written(&maps), target(device, geometry));
        let mut attached = Vec::new();
        for hook in hooks(device) {
            attached.extend(Attached::copies(*hook, layout, target, written)?);
        }
        if !device.has_requests {
            wait_for_earlier_bios(device);
        }
        Ok(Self { maps, attached })
    }

    fn open(device: &BlockDevice, geometry: Geometry, pins: &Path) -> io::Result<Self> {
        let open = |name: &str| bpf::open_pin(&pins.join(name));
        let shapes = shapes(device, geometry);
        let mut maps = Vec::new();
        for (name, shape) in MAP_NAMES.into_iter().zip(shapes) {
            let map = open(name)?;
            if !bpf::has_shape(map.as_fd(), shape)? {
                return Err(unfit("the maps have another size"));
            }
            maps.push(map);
        }
        let mut attached = Vec::new();
        for hook in hooks(device) {
            for copy in 0..hook.copies() {
                let link = open(&Attached::file_name(*hook, copy))?;
                let program = bpf::program_by_id(bpf::linked_program(link.as_fd())?)?;
                attached.push(Attached { hook: *hook, copy, program, link });
            }
        }
        let maps = maps.try_into().map_err(|_| unfit("maps are missing"))?;
        Ok(Self { maps, attached })
    }

    fn pin(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let pin = |object: BorrowedFd<'_>, name: &str| bpf::pin(object, &directory.join(name));
        for (name, map) in MAP_NAMES.into_iter().zip(&self.maps) {
            pin(map.as_fd(), name)?;
        }
        for Attached { hook, copy, link, .. } in &self.attached {
            pin(link.as_fd(), &Attached::file_name(*hook, *copy))?;
        }
        Ok(())
    }
}

/// How a disk of this size was divided when this was pinned.
fn kept_geometry(size_bytes: u64, pins: &Path) -> io::Result<Geometry> {
    let page = bpf::open_pin(&pins.join("meta"))?;
    let meta = Meta::new(SharedWords::map(page.as_fd(), usize::try_from(META_BYTES).unwrap_or(usize::MAX))?);
    Geometry::of_granules(size_bytes, meta.granule_bytes()).ok_or_else(|| unfit("nobody knows how it was divided"))
}

/// The programs that a disk needs.
fn hooks(device: &BlockDevice) -> &'static [Hook] {
    match (device.has_requests, device.discards_many()) {
        (true, false) => &[Hook::Issue, Hook::Request],
        (true, true) => &[Hook::Issue, Hook::Request, Hook::BioQueue],
        (false, _) => &[Hook::BioQueue, Hook::BioDone],
    }
}

/// What the programs write to.
fn written(maps: &[OwnedFd; MAP_NAMES.len()]) -> Maps<'_> {
    let [live, coarse, _, meta, notes, discarded] = maps.each_ref().map(OwnedFd::as_fd);
    Maps { live, coarse, meta, notes, discarded }
}

/// What the programs look for.
fn target(device: &BlockDevice, geometry: Geometry) -> Target {
    let BlockDevice { major, minor, has_requests, most_discards, .. } = *device;
    Target { major, minor, geometry, only_discards: has_requests, most_discards }
}

fn create_maps(device: &BlockDevice, geometry: Geometry) -> Result<[OwnedFd; MAP_NAMES.len()], EbpfError> {
    let [live, coarse, pending, meta, notes, discarded] = shapes(device, geometry);
    let make = |name, shape| bpf::create_map(&format!("rehost_{name}"), shape);
    let make = |map, shape| make(map, shape).map_err(|source| EbpfError::Map { map, source });
    let [n0, n1, n2, n3, n4, n5] = MAP_NAMES;
    let [live, coarse, pending] = [make(n0, live)?, make(n1, coarse)?, make(n2, pending)?];
    Ok([live, coarse, pending, make(n3, meta)?, make(n4, notes)?, make(n5, discarded)?])
}

fn shapes(device: &BlockDevice, geometry: Geometry) -> [MapShape; MAP_NAMES.len()] {
    let array = |entries| MapShape { kind: MapKind::SharedArray, key: 4, value: 1 << ENTRY_SHIFT, entries };
    let (fine, coarse) = (array(geometry.fine_entries()), array(geometry.coarse_entries()));
    let table = |entries| MapShape { kind: MapKind::Hash, key: 8, value: 16, entries };
    let (notes, discarded) = (table(most_notes(device)), table(most_discarded(device)));
    [fine, coarse, fine, MapShape { value: META_BYTES, ..array(1) }, notes, discarded]
}

/// Writes that can be noted at once. A bio that cannot be noted is lost, and writeback has many on their way; a request is
/// marked anyway when it is complete.
fn most_notes(device: &BlockDevice) -> u32 {
    match (device.has_requests, device.discards_many()) {
        (true, false) => 8192,
        (true, true) => 32_768,
        (false, _) => 131_072,
    }
}

/// Places that can wait to be collected. While there is no room, they stay noted.
fn most_discarded(device: &BlockDevice) -> u32 {
    if device.has_requests && device.discards_many() { most_notes(device) } else { 1 }
}

/// What was on its way when the programs were attached was not noted, and its completion marks nothing: it has to be over
/// before anything is compared. (A disk that is never idle is given up on: a bio rarely takes seconds.)
fn wait_for_earlier_bios(device: &BlockDevice) {
    let start = Instant::now();
    while device.in_flight().is_some_and(|count| count > 0) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn raise_locked_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // Without the right to do so the maps just cannot be made.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

fn range_of(place: Place) -> ByteRange {
    ByteRange { offset: place.first_sector << SECTOR_SHIFT, length: place.sectors << SECTOR_SHIFT }
}

fn unfit(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests;
