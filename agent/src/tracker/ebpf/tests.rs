//! Each program on a disk of its own: what is marked is exactly what was written.

use std::{os::unix::fs::FileExt as _, process::Command};

use rehost_model::VolumeId;

use super::*;
use crate::{sys::loop_disk::LoopDisk, tracker::open::{Kernel, kernel}};

const KIB: u64 = 1024;
const MIB: u64 = KIB * KIB;

/// A disk in memory, and a tracker that believes `believed` of it; none where there are no such disks.
fn bench(size: u64, map_bytes: u64, believed: impl Fn(&mut BlockDevice)) -> Option<(LoopDisk, EbpfTracker)> {
    let scratch = LoopDisk::new(size).inspect_err(|error| println!("skipped: {error}")).ok()?;
    let kernel = kernel().as_ref().inspect_err(|reason| println!("skipped: {reason}")).ok()?;
    let mut device = BlockDevice::at(scratch.path()).unwrap();
    believed(&mut device);
    let disk = TrackedDisk { path: scratch.path().into(), volume: VolumeId::generate(), size_bytes: size };
    let geometry = Geometry::fitting(size, map_bytes);
    let start = Instant::now();
    let tracker = EbpfTracker::unpinned(&disk, &device, &kernel.layout, geometry).unwrap();
    println!("granule {} KiB, set up in {:?}", geometry.granule_bytes() / KIB, start.elapsed());
    Some((scratch, tracker))
}

fn write(scratch: &LoopDisk, offset: u64, length: u64) {
    scratch.file().write_all_at(&vec![1; usize::try_from(length).unwrap()], offset).unwrap();
    scratch.file().sync_all().unwrap();
}

fn discard(scratch: &LoopDisk, offset: u64, length: u64, how: &[&str]) {
    let mut command = Command::new("blkdiscard");
    command.args(how).args(["--offset", &offset.to_string(), "--length", &length.to_string()]);
    assert!(command.arg(scratch.path()).status().unwrap().success());
}

fn marked(tracker: &mut EbpfTracker) -> Vec<(u64, u64)> {
    tracker.collect(Pass::FIRST).unwrap();
    let pending = tracker.pending();
    for range in &pending {
        tracker.settle(*range, Pass::FIRST);
    }
    assert!(tracker.is_quiet().unwrap());
    pending.iter().map(|range| (range.offset, range.length)).collect()
}

fn marks_are_exact(believed: impl Fn(&mut BlockDevice)) {
    let Some((scratch, mut tracker)) = bench(64 * MIB + 512 * 3, 8 * MIB, believed) else { return };
    assert_eq!(marked(&mut tracker), []);
    write(&scratch, 8 * KIB, 4 * KIB);
    write(&scratch, 40 * KIB, 20 * KIB);
    assert_eq!(marked(&mut tracker), [(8 * KIB, 4 * KIB), (40 * KIB, 20 * KIB)]);
    let mut head = [0; 512];
    scratch.file().read_exact_at(&mut head, 0).unwrap();
    scratch.file().sync_all().unwrap();
    assert_eq!(marked(&mut tracker), [], "a read and a flush mark nothing");
    write(&scratch, 64 * MIB, 512 * 3);
    assert_eq!(marked(&mut tracker), [(64 * MIB, 512 * 3)], "the last granule is cut short");
    discard(&scratch, MIB, 64 * KIB, &[]);
    discard(&scratch, 2 * MIB, 64 * KIB, &["--zeroout"]);
    assert_eq!(marked(&mut tracker), [(MIB, 64 * KIB), (2 * MIB, 64 * KIB)]);
    discard(&scratch, 16 * MIB - 4 * KIB, 40 * MIB, &[]);
    let coarse = 2 * MIB;
    assert_eq!(marked(&mut tracker), [(16 * MIB - coarse, 40 * MIB + coarse)], "large ones are marked coarsely");
}

#[test]
fn live_marks_of_requests_are_exact() {
    marks_are_exact(|_| {});
}

#[test]
fn live_marks_of_bios_are_exact() {
    marks_are_exact(|device| device.has_requests = false);
}

#[test]
fn live_marks_of_requests_and_discarding_bios_are_exact() {
    marks_are_exact(|device| device.discards_many = true);
}

/// What the requests say of discards is not needed where bios are followed.
#[test]
fn live_discards_are_followed_as_bios() {
    let only_bios = |device: &mut BlockDevice| device.discards_many = true;
    let Some((scratch, mut tracker)) = bench(64 * MIB, 8 * MIB, only_bios) else { return };
    tracker.attached.retain(|attached| attached.hook != Hook::Request);
    discard(&scratch, MIB, 64 * KIB, &[]);
    write(&scratch, 2 * MIB, 64 * KIB);
    assert_eq!(marked(&mut tracker), [(MIB, 64 * KIB)]);
}

/// The mark of the completion is what counts: the other may be collected before the data is on the disk.
#[test]
fn live_the_completion_of_a_bio_marks_by_itself() {
    let Some((scratch, mut tracker)) = bench(64 * MIB, 8 * MIB, |device| device.has_requests = false) else { return };
    let Ok(Kernel { layout, .. }) = kernel() else { return };
    let mut device = BlockDevice::at(scratch.path()).unwrap();
    device.has_requests = false;
    let geometry = tracker.marks.geometry();
    let [here, elsewhere] = [(); 2].map(|()| create_maps(&device, geometry).unwrap());
    let queue = Maps { bios: written(&here).bios, ..written(&elsewhere) };
    let target = target(&device, geometry);
    let mut attached = Attached::copies(Hook::BioQueue, layout, target, queue).unwrap();
    attached.extend(Attached::copies(Hook::BioDone, layout, target, written(&here)).unwrap());
    let disk = TrackedDisk { path: scratch.path().into(), volume: VolumeId::generate(), size_bytes: 64 * MIB };
    tracker = EbpfTracker::over(&disk, &device, geometry, Objects { maps: here, attached }).unwrap();
    write(&scratch, MIB, 20 * KIB);
    assert_eq!(marked(&mut tracker), [(MIB, 20 * KIB)]);
}

#[test]
fn live_large_granules_and_their_largest_requests_are_accepted() {
    for map_bytes in [4 * KIB, 64 * KIB, 8 * MIB] {
        let Some((scratch, mut tracker)) = bench(1 << 40, map_bytes, |device| device.discards_many = true) else { return };
        let granule = tracker.granule_bytes();
        write(&scratch, (1 << 40) - 4096, 4096);
        assert_eq!(marked(&mut tracker), [((1 << 40) - granule, granule)]);
    }
}
