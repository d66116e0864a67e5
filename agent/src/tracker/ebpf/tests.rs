//! Each program on a disk of its own: what is marked is exactly what was written.

use std::{fs::OpenOptions, os::unix::fs::FileExt as _, path::PathBuf, process::Command};

use rehost_model::VolumeId;

use super::*;
use crate::{
    sys::loop_disk::LoopDisk,
    tracker::{
        geometry::COARSE_SHIFT,
        open::{Kernel, kernel},
    },
};

const KIB: u64 = 1024;
const MIB: u64 = KIB * KIB;

/// A disk in memory, with or without request queue.
enum Scratch {
    Loop(LoopDisk),
    /// The number of a zram device.
    Zram(String),
}

impl Scratch {
    fn new(size: u64, has_requests: bool) -> io::Result<Self> {
        if has_requests {
            return LoopDisk::new(size).map(Self::Loop);
        }
        let number = fs::read_to_string(ZRAM.to_owned() + "/hot_add")?.trim().to_owned();
        fs::write(format!("/sys/block/zram{number}/disksize"), size.to_string())?;
        Ok(Self::Zram(number))
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Loop(disk) => disk.path().into(),
            Self::Zram(number) => format!("/dev/zram{number}").into(),
        }
    }

    fn write(&self, offset: u64, length: u64) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(&vec![1; usize::try_from(length).unwrap()], offset).unwrap();
        file.sync_all().unwrap();
    }

    fn discard(&self, offset: u64, length: u64, how: &[&str]) {
        let mut command = Command::new("blkdiscard");
        command.args(how).args(["--offset", &offset.to_string(), "--length", &length.to_string()]);
        assert!(command.arg(self.path()).status().unwrap().success());
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Self::Zram(number) = self {
            let _ = fs::write(format!("/sys/block/zram{number}/reset"), "1");
            let _ = fs::write(ZRAM.to_owned() + "/hot_remove", number);
        }
    }
}

const ZRAM: &str = "/sys/class/zram-control";

/// A disk and its tracker; none where there are no such disks.
fn bench(size: u64, map_bytes: u64, has_requests: bool) -> Option<(Scratch, EbpfTracker)> {
    bench_believing(size, map_bytes, has_requests, |_| {})
}

fn bench_believing(
    size: u64,
    map_bytes: u64,
    has_requests: bool,
    believed: impl Fn(&mut BlockDevice),
) -> Option<(Scratch, EbpfTracker)> {
    let scratch = Scratch::new(size, has_requests).inspect_err(|error| println!("skipped: {error}")).ok()?;
    let kernel = kernel().as_ref().inspect_err(|reason| println!("skipped: {reason}")).ok()?;
    let mut device = BlockDevice::at(&scratch.path()).unwrap();
    assert_eq!(device.has_requests, has_requests);
    believed(&mut device);
    let disk = TrackedDisk { path: scratch.path(), volume: VolumeId::generate(), size_bytes: size };
    let geometry = Geometry::fitting(size, map_bytes);
    let start = Instant::now();
    let tracker = EbpfTracker::unpinned(&disk, &device, &kernel.layout, geometry).unwrap();
    println!("granule {} KiB, set up in {:?}", geometry.granule_bytes() / KIB, start.elapsed());
    Some((scratch, tracker))
}

fn marked(tracker: &mut EbpfTracker) -> Vec<(u64, u64)> {
    tracker.collect(Pass::FIRST).unwrap();
    let pending = tracker.pending();
    for range in &pending {
        tracker.settle(*range, Pass::FIRST);
    }
    assert!(tracker.marks.is_quiet());
    // A completion that was not seen is another test's business.
    for (address, _) in tracker.notes().unwrap() {
        let _ = bpf::remove_place(tracker.notes.as_fd(), address);
    }
    pending.iter().map(|range| (range.offset, range.length)).collect()
}

#[test]
fn live_marks_of_requests_are_exact() {
    let Some((scratch, mut tracker)) = bench(64 * MIB + 512 * 3, 8 * MIB, true) else { return };
    small_marks_are_exact(&scratch, &mut tracker);
    scratch.write(64 * MIB, 512 * 3);
    assert_eq!(marked(&mut tracker), [(64 * MIB, 512 * 3)], "the last granule is cut short");
    scratch.discard(16 * MIB - 4 * KIB, 40 * MIB, &[]);
    let coarse = tracker.granule_bytes() << COARSE_SHIFT;
    assert_eq!(marked(&mut tracker), [(16 * MIB - coarse, 40 * MIB + coarse)], "large ones are marked coarsely");
}

#[test]
fn live_marks_of_bios_are_exact() {
    let Some((scratch, mut tracker)) = bench(64 * MIB, 8 * MIB, false) else { return };
    small_marks_are_exact(&scratch, &mut tracker);
}

fn small_marks_are_exact(scratch: &Scratch, tracker: &mut EbpfTracker) {
    assert_eq!(marked(tracker), []);
    scratch.write(8 * KIB, 4 * KIB);
    scratch.write(40 * KIB, 20 * KIB);
    assert_eq!(marked(tracker), [(8 * KIB, 4 * KIB), (40 * KIB, 20 * KIB)]);
    let file = OpenOptions::new().read(true).write(true).open(scratch.path()).unwrap();
    file.read_exact_at(&mut [0; 512], MIB).unwrap();
    file.sync_all().unwrap();
    assert_eq!(marked(tracker), [], "a read and a flush mark nothing");
    scratch.discard(MIB, 64 * KIB, &[]);
    scratch.discard(2 * MIB, 64 * KIB, &["--zeroout"]);
    assert_eq!(marked(tracker), [(MIB, 64 * KIB), (2 * MIB, 64 * KIB)]);
}

/// A disk of which it is believed that a request may discard many places.
fn bench_of_many_discards() -> Option<(Scratch, EbpfTracker)> {
    bench_believing(64 * MIB, 8 * MIB, true, |device: &mut BlockDevice| device.most_discards = 256)
}

fn places(ranges: &[ByteRange]) -> Vec<(u64, u64)> {
    ranges.iter().map(|range| (range.offset, range.length)).collect()
}

#[test]
fn live_discards_of_many_places_are_over_when_they_are_complete() {
    let Some((scratch, mut tracker)) = bench_of_many_discards() else { return };
    scratch.discard(MIB, 64 * KIB, &[]);
    scratch.discard(2 * MIB, 64 * KIB, &[]);
    scratch.write(3 * MIB, 4 * KIB);
    assert!(!tracker.is_quiet().unwrap());
    let expected = [(MIB, 64 * KIB), (2 * MIB, 64 * KIB), (3 * MIB, 4 * KIB)];
    tracker.collect(Pass::FIRST).unwrap();
    assert!(tracker.is_quiet().unwrap());
    assert_eq!(places(&tracker.pending()), expected);
    assert_eq!(marked(&mut tracker), expected, "until it is settled");
    assert_eq!(marked(&mut tracker), []);
}

/// The completion counts: what was marked when it was queued may be collected before the disk has discarded it.
#[test]
fn live_the_completion_of_a_discard_of_many_places_marks_by_itself() {
    let Some((scratch, tracker)) = bench_of_many_discards() else { return };
    let mut device = BlockDevice::at(&scratch.path()).unwrap();
    device.most_discards = 256;
    let Some(mut tracker) = marked_when_complete(&scratch, &device, tracker, Hook::Request) else { return };
    assert_eq!(tracker.backlog_bytes(), 0);
    scratch.discard(MIB, 64 * KIB, &[]);
    assert_eq!((tracker.is_quiet().unwrap(), tracker.backlog_bytes()), (false, 64 * KIB));
    assert_eq!(marked(&mut tracker), [(MIB, 64 * KIB)]);
    assert_eq!((tracker.is_quiet().unwrap(), tracker.backlog_bytes()), (true, 0));
}

/// Nobody collects while there is no connection: more is discarded than can be noted, and all of it is noted or marked.
#[test]
fn live_no_number_of_discards_is_too_many() {
    let Some((scratch, mut tracker)) = bench_of_many_discards() else { return };
    let mut device = BlockDevice::at(&scratch.path()).unwrap();
    device.most_discards = 256;
    let file = OpenOptions::new().write(true).open(scratch.path()).unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let places = 4096;
    for number in 0..u64::from(most_notes(&device)) + places {
        rustix::fs::fallocate(&file, punch, number % places * 16 * KIB, 8 * KIB).unwrap();
    }
    tracker.collect(Pass::FIRST).unwrap();
    assert_eq!(tracker.pending().len() as u64, places);
    assert!(tracker.is_quiet().unwrap());
}

/// Where there is no room for what was discarded, its note stays.
#[test]
fn live_a_discard_that_finds_no_room_is_not_lost() {
    let Some((scratch, mut tracker)) = bench_of_many_discards() else { return };
    for address in 1..=u64::from(most_discarded(&tracker.device)) {
        bpf::put_place(tracker.discarded.as_fd(), address, Place { first_sector: 0, sectors: 8 }).unwrap();
    }
    scratch.discard(MIB, 64 * KIB, &[]);
    assert_eq!(tracker.notes().unwrap().len(), 1);
    let expected = [(0, 4 * KIB), (MIB, 64 * KIB)];
    tracker.collect(Pass::FIRST).unwrap();
    assert_eq!(places(&tracker.pending()), expected);
    assert!(tracker.discarded().unwrap().is_empty() && !tracker.is_quiet().unwrap());
    age(&mut tracker, 2 * LONGEST_WRITE);
    tracker.collect(Pass::FIRST).unwrap();
    assert_eq!(places(&tracker.pending()), expected);
    assert!(tracker.is_quiet().unwrap());
}

/// Then the notes of discards are taken again and again until they must be over, idle as the disk may be.
#[test]
fn live_a_verifier_that_cannot_follow_so_many_discards_is_asked_for_less() {
    let believed = |device: &mut BlockDevice| device.most_discards = u16::MAX;
    let Some((scratch, mut tracker)) = bench_believing(64 * MIB, 8 * MIB, true, believed) else { return };
    let Kernel { layout, .. } = kernel().as_ref().unwrap();
    let (device, geometry) = (&tracker.device, tracker.marks.geometry());
    let maps = create_maps(device, geometry).unwrap();
    let program = layout.program(Hook::Request, target(device, geometry), written(&maps));
    let refused = bpf::load_program("refused", &program, layout.tracepoint(Hook::Request).0).unwrap_err();
    println!("{refused}");
    scratch.discard(MIB, 64 * KIB, &[]);
    scratch.write(2 * MIB, 4 * KIB);
    let expected = [(MIB, 64 * KIB), (2 * MIB, 4 * KIB)];
    tracker.collect(Pass::FIRST).unwrap();
    assert_eq!(places(&tracker.pending()), expected);
    for by in [2 * UNSEEN_AFTER, 2 * LONGEST_WRITE] {
        assert!(!tracker.is_quiet().unwrap(), "nobody was told that the discard is complete");
        age(&mut tracker, by);
        tracker.collect(Pass::FIRST).unwrap();
        assert_eq!(places(&tracker.pending()), expected);
    }
    assert!(tracker.is_quiet().unwrap());
}

/// One whose completion is not seen is taken again and again until it must be over.
#[test]
fn live_a_discard_whose_completion_is_not_seen_is_not_lost() {
    let Some((scratch, mut tracker)) = bench_of_many_discards() else { return };
    tracker.attached.retain(|attached| attached.hook == Hook::BioQueue);
    scratch.write(2 * MIB, 64 * KIB);
    assert_eq!(marked(&mut tracker), []);
    scratch.discard(MIB, 64 * KIB, &[]);
    for _ in 0..2 {
        tracker.collect(Pass::FIRST).unwrap();
        let discarded = ByteRange { offset: MIB, length: 64 * KIB };
        assert_eq!(tracker.pending(), [discarded]);
        assert!(!tracker.is_quiet().unwrap());
        tracker.settle(discarded, Pass::FIRST);
    }
    age(&mut tracker, 2 * LONGEST_WRITE);
    tracker.collect(Pass::FIRST).unwrap();
    assert!(tracker.is_quiet().unwrap() && !tracker.pending().is_empty());
}

/// What was found noted was found long ago.
fn age(tracker: &mut EbpfTracker, by: Duration) {
    for since in tracker.noted.values_mut() {
        *since = since.checked_sub(by).unwrap();
    }
}

/// A tracker instead of this one, whose program of queued bios notes here and marks elsewhere; `done` is that of the completion.
fn marked_when_complete(
    scratch: &Scratch,
    device: &BlockDevice,
    former: EbpfTracker,
    done: Hook,
) -> Option<EbpfTracker> {
    let Kernel { layout, .. } = kernel().as_ref().ok()?;
    let geometry = former.marks.geometry();
    drop(former);
    let [here, elsewhere] = [(); 2].map(|()| create_maps(device, geometry).unwrap());
    let queue = Maps { notes: written(&here).notes, ..written(&elsewhere) };
    let target = target(device, geometry);
    let mut attached = Attached::copies(Hook::BioQueue, layout, target, queue).unwrap();
    attached.extend(Attached::copies(done, layout, target, written(&here)).unwrap());
    let disk = TrackedDisk { path: scratch.path(), volume: VolumeId::generate(), size_bytes: 64 * MIB };
    Some(EbpfTracker::over(&disk, device, geometry, Objects { maps: here, attached }).unwrap())
}

/// The mark of the completion is what counts: the other may be collected before the data is on the disk.
#[test]
fn live_the_completion_of_a_bio_marks_by_itself() {
    let Some((scratch, tracker)) = bench(64 * MIB, 8 * MIB, false) else { return };
    let device = BlockDevice::at(&scratch.path()).unwrap();
    let Some(mut tracker) = marked_when_complete(&scratch, &device, tracker, Hook::BioDone) else { return };
    scratch.write(MIB, 20 * KIB);
    assert_eq!(marked(&mut tracker), [(MIB, 20 * KIB)]);
}

/// A write whose completion passes unseen stays noted: every collection takes it, and so does the next use of its address.
#[test]
fn live_a_write_whose_completion_is_not_seen_is_not_lost() {
    for (has_requests, hook) in [(true, Hook::Issue), (false, Hook::BioQueue)] {
        let Some((scratch, mut tracker)) = bench(64 * MIB, 8 * MIB, has_requests) else { return };
        tracker.attached.retain(|attached| attached.hook == hook);
        scratch.write(MIB, 4 * KIB);
        for pass in [1, 2] {
            tracker.collect(Pass::FIRST).unwrap();
            let pending = tracker.pending();
            assert_eq!(pending, [ByteRange { offset: MIB, length: 4 * KIB }], "{hook:?} {pass}");
            tracker.settle(pending[0], Pass::FIRST);
            assert!(!tracker.is_quiet().unwrap());
        }
        (0..600).for_each(|block| scratch.write(2 * MIB + block * 4 * KIB, 4 * KIB));
        age(&mut tracker, 2 * LONGEST_WRITE);
        tracker.collect(Pass::FIRST).unwrap();
        let kept = ByteRange { offset: 2 * MIB, length: 600 * 4 * KIB };
        assert!(tracker.pending().contains(&kept), "{:?}", tracker.pending());
    }
}

/// Who has nothing left to do has done it, seen or not; and a disk that is busy may be busy with that.
#[test]
fn live_a_write_whose_completion_is_not_seen_is_over_when_the_disk_is_idle() {
    let sysfs = tempfile::tempdir().unwrap();
    fs::create_dir(sysfs.path().join("queue")).unwrap();
    let in_flight = |count: &str| fs::write(sysfs.path().join("inflight"), count).unwrap();
    for (iostats, counts) in [("1", "       0        1"), ("0", "       0        0"), ("1", ""), ("1", "0 0")] {
        let Some((scratch, mut tracker)) = bench(64 * MIB, 8 * MIB, true) else { return };
        fs::write(sysfs.path().join("queue/iostats"), iostats).unwrap();
        in_flight(counts);
        tracker.device.directory = sysfs.path().into();
        tracker.attached.retain(|attached| attached.hook == Hook::Issue);
        scratch.write(MIB, 4 * KIB);
        let written = ByteRange { offset: MIB, length: 4 * KIB };
        let mut collect = || {
            tracker.collect(Pass::FIRST).unwrap();
            assert_eq!(tracker.pending(), [written], "{iostats} {counts}");
            tracker.settle(written, Pass::FIRST);
            let is_quiet = tracker.is_quiet().unwrap();
            age(&mut tracker, 2 * UNSEEN_AFTER);
            is_quiet
        };
        assert!(!collect(), "it may be on its way");
        assert_eq!(collect(), counts == "0 0", "{iostats} {counts}");
    }
}

/// What began while notes were forgotten is noted again, unless something later is.
#[test]
fn live_notes_of_a_disk_that_is_busy_again_are_put_back() {
    let Some((_scratch, mut tracker)) = bench(64 * MIB, 8 * MIB, true) else { return };
    let sysfs = tempfile::tempdir().unwrap();
    tracker.device.directory = sysfs.path().into();
    let place = |first_sector| Place { first_sector, sectors: 8 };
    bpf::put_place(tracker.notes.as_fd(), 1, place(64)).unwrap();
    tracker.forget_unseen(&[1, 2], Pass::FIRST);
    assert_eq!(tracker.notes().unwrap(), [(1, place(64))]);
    assert_eq!(places(&tracker.pending()), [(32 * KIB, 4 * KIB)]);
    assert!(bpf::put_place(tracker.notes.as_fd(), 1, place(128)).is_err());
    assert_eq!(bpf::take_place(tracker.notes.as_fd(), 1).unwrap(), place(64));
    assert!(bpf::take_place(tracker.notes.as_fd(), 1).is_err());
}

#[test]
fn live_large_granules_and_their_largest_requests_are_accepted() {
    for map_bytes in [4 * KIB, 64 * KIB, 8 * MIB] {
        let Some((scratch, mut tracker)) = bench(1 << 40, map_bytes, true) else { return };
        let granule = tracker.granule_bytes();
        scratch.write((1 << 40) - 4096, 4096);
        assert_eq!(marked(&mut tracker), [((1 << 40) - granule, granule)]);
    }
}
