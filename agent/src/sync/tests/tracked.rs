//! Disks whose changes are marked: only those travel, whatever happens in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rehost_model::{
    Epoch, VolumeId,
    link::CheckpointSettings,
    replication::{Consistency, TrackerKind},
};
use rehost_protocol::{ByteCount, DiskIndex};

use super::{
    bed::{Agent, Bed, MIB, Random, assert_same_bytes, failure, wait_for},
    fake::{FakeDisk, FakeFreezer, FakeTrackers},
    forwarder::Forwarder,
};
use crate::sync::{DiskSource, Machine, Progress, SyncConfig, SyncError};

/// A bed whose disk is tracked.
fn tracked(size: u64, granule: u64) -> (Bed, Arc<FakeDisk>) {
    let mut bed = Bed::with(size, |config| config.window = ByteCount(2 * MIB));
    let disk = FakeDisk::new(&bed.source(), granule);
    bed.machine = Machine::tracked(Box::new(FakeTrackers(vec![disk.clone()])));
    (bed, disk)
}

/// Only what is asked for: no checkpoint comes by itself.
fn on_request() -> CheckpointSettings {
    CheckpointSettings { interval_ms: u64::from(u32::MAX), ..CheckpointSettings::default() }
}

/// Reaches a checkpoint, checks that the volume is `image`, and releases it; says what the engine says then.
fn reach_image(bed: &Bed, config: &SyncConfig, epoch: u64, image: &std::path::Path) -> Progress {
    let agent = Agent::start(config);
    agent.control.set_checkpoints(on_request());
    agent.control.request_checkpoint(Epoch(epoch));
    agent.wait_until_reached(epoch);
    assert_same_bytes(image, &bed.target());
    assert!(bed.engine.release_hold(&bed.server, Epoch(epoch)));
    let progress = agent.control.progress();
    agent.stop();
    progress
}

fn reach(bed: &Bed, epoch: u64) -> Progress {
    reach_image(bed, &bed.config(), epoch, &bed.source())
}

fn received(bed: &Bed) -> u64 {
    bed.report().received_bytes
}

/// Writes random blocks of 4 KiB, each once; returns how many bytes.
fn scatter(disk: &FakeDisk, random: &mut Random, blocks: u64, count: u64) -> u64 {
    let mut places: Vec<u64> = (0..count).map(|_| random.below(blocks)).collect();
    places.sort_unstable();
    places.dedup();
    for place in &places {
        disk.write(place * 4096, &random.bytes(4096));
    }
    places.len() as u64 * 4096
}

#[test]
fn exactly_the_changed_blocks_travel() {
    let mut random = Random::new();
    for granule in [4096, 65_536, MIB] {
        let (bed, disk) = tracked(32 * MIB, granule);
        disk.write(0, &random.bytes(20 * MIB));
        let progress = reach(&bed, 1);
        assert_eq!(progress.consistency, Some(Consistency::Quiescent));
        assert_eq!(progress.tracker, Some(TrackerKind::Ebpf));
        let before = received(&bed);
        let written = scatter(&disk, &mut random, 32 * 256, 300);
        let progress = reach(&bed, 2);
        assert_eq!(received(&bed) - before, written, "granules of {granule}");
        assert_eq!(progress.disks[0].rescanned_storage_bytes, 0);
        assert_eq!((progress.backlog_bytes, progress.lag_ms), (0, Some(0)));
        assert!(disk.is_settled());
    }
}

#[test]
fn what_is_zeroed_travels_as_zeros() {
    let mut random = Random::new();
    let (bed, disk) = tracked(16 * MIB + 512, 4096);
    disk.write(0, &random.bytes(8 * MIB));
    disk.write(16 * MIB, &[5; 512]);
    reach(&bed, 1);
    let before = received(&bed);
    disk.write(MIB, &vec![0; 3 << 20]);
    disk.write(16 * MIB, &[6; 512]);
    reach(&bed, 2);
    assert_eq!(received(&bed) - before, 512);
}

#[test]
fn nothing_is_lost_while_the_agent_is_away_and_nothing_is_compared_after() {
    let mut random = Random::new();
    let (mut bed, disk) = tracked(32 * MIB, 4096);
    disk.write(0, &random.bytes(20 * MIB));
    reach(&bed, 1);
    let before = received(&bed);
    let written = scatter(&disk, &mut random, 32 * 256, 100);
    // Another process: other trackers, the same marks.
    bed.machine = Machine::tracked(Box::new(FakeTrackers(vec![disk.clone()])));
    let progress = reach(&bed, 2);
    assert_eq!(received(&bed) - before, written);
    assert_eq!(progress.disks[0].rescanned_storage_bytes, 0);
    assert_eq!(disk.times_opened(), 2);
}

#[test]
fn a_pass_that_is_cut_off_is_taken_up() {
    let mut random = Random::new();
    let (bed, disk) = tracked(16 * MIB, 4096);
    disk.write(0, &random.bytes(10 * MIB));
    reach(&bed, 1);
    let before = received(&bed);
    disk.write(MIB, &random.bytes(6 * MIB));
    let forwarder = Forwarder::start(bed.engine.address(), vec![3 * MIB]);
    let mut config = bed.config();
    config.addresses = vec![forwarder.address.to_string()];
    let progress = reach_image(&bed, &config, 2, &bed.source());
    // What was under way in the window travels twice.
    let travelled = received(&bed) - before;
    assert!((6 * MIB..9 * MIB).contains(&travelled), "{travelled}");
    assert_eq!(progress.disks[0].rescanned_storage_bytes, 0);
    assert!(disk.is_settled());
}

#[test]
fn a_reboot_costs_digests_and_what_changed() {
    let mut random = Random::new();
    let (mut bed, disk) = tracked(32 * MIB, 4096);
    disk.write(0, &random.bytes(20 * MIB));
    reach(&bed, 1);
    let before = received(&bed);
    disk.write(5 * MIB, b"changed");
    disk.reboot();
    bed.machine = Machine::tracked(Box::new(FakeTrackers(vec![disk.clone()])));
    let progress = reach(&bed, 2);
    assert_eq!(received(&bed) - before, 4096);
    assert_eq!(progress.disks[0].rescanned_storage_bytes, bed.size);
    // From then on marks will do again.
    disk.write(6 * MIB, b"changed");
    let before = received(&bed);
    assert_eq!(reach(&bed, 3).disks[0].rescanned_storage_bytes, 0);
    assert_eq!(received(&bed) - before, 4096);
}

#[test]
fn lost_marks_are_made_up_for_by_digests() {
    let mut random = Random::new();
    let (bed, disk) = tracked(16 * MIB, 4096);
    disk.write(0, &random.bytes(10 * MIB));
    reach(&bed, 1);
    let before = received(&bed);
    disk.write(5 * MIB, b"changed");
    disk.lose_marks();
    let progress = reach(&bed, 2);
    // Once: what the comparison finds is not sent again for its mark.
    assert_eq!(received(&bed) - before, 4096);
    assert_eq!(progress.disks[0].rescanned_storage_bytes, bed.size);
    assert_eq!(progress.consistency, Some(Consistency::Quiescent));
}

/// Its marks, which would do for the disk that it was, do not for what it has become elsewhere.
#[test]
fn a_disk_that_was_attached_again_is_compared() {
    let mut random = Random::new();
    let (bed, disk) = tracked(16 * MIB, 4096);
    disk.write(0, &random.bytes(10 * MIB));
    reach(&bed, 1);
    let before = received(&bed);
    bed.write(5 * MIB, b"unmarked");
    disk.attach_again();
    let progress = reach(&bed, 2);
    assert_eq!(received(&bed) - before, 4096);
    assert_eq!(progress.disks[0].rescanned_storage_bytes, bed.size);
    assert_eq!(disk.times_opened(), 2);
    assert_eq!(reach(&bed, 3).disks[0].rescanned_storage_bytes, 0);
}

#[test]
fn a_disk_that_vanished_is_compared_unless_the_kernel_knows_it_again() {
    for (counted, compared) in [(true, 0), (false, 16 * MIB)] {
        let mut random = Random::new();
        let (bed, disk) = tracked(16 * MIB, 4096);
        if !counted {
            disk.do_not_count();
        }
        disk.write(0, &random.bytes(10 * MIB));
        reach(&bed, 1);
        let away = bed.directory.path().join("away.img");
        std::fs::rename(bed.source(), &away).unwrap();
        assert!(matches!(failure(&bed.config()), SyncError::DiskVanished { .. }));
        std::fs::rename(&away, bed.source()).unwrap();
        assert_eq!(reach(&bed, 2).disks[0].rescanned_storage_bytes, compared, "counted: {counted}");
    }
}

#[test]
fn a_disk_that_joins_leaves_the_others_alone() {
    let mut random = Random::new();
    let (mut bed, disk) = tracked(16 * MIB, 4096);
    disk.write(0, &random.bytes(10 * MIB));
    let volume = VolumeId::generate();
    let (source, target) = (bed.directory.path().join("b.src"), bed.directory.path().join("b.dst"));
    std::fs::write(&source, random.bytes(5 * MIB)).unwrap();
    std::fs::File::create(&target).unwrap().set_len(5 * MIB).unwrap();
    let second = FakeDisk::new(&source, 4096);
    bed.machine = Machine::tracked(Box::new(FakeTrackers(vec![disk.clone(), second.clone()])));
    reach(&bed, 1);
    disk.write(MIB, &random.bytes(4096));
    let before = received(&bed);
    let mut joined = bed.assignment();
    (joined.volume, joined.size_bytes) = (volume.clone(), 5 * MIB);
    joined.location = target.display().to_string();
    bed.engine.set_assignments(vec![bed.assignment(), joined]).unwrap();
    let mut config = bed.config();
    config.tls = bed.ca.agent(&bed.server, &[&bed.volume, &volume]);
    config.disks.push(DiskSource { index: DiskIndex(9), path: source.clone(), volume, size_bytes: 5 * MIB });
    let progress = reach_image(&bed, &config, 2, &bed.source());
    assert_same_bytes(&source, &target);
    assert_eq!(received(&bed) - before, 5 * MIB + 4096);
    assert_eq!(progress.disks.iter().map(|disk| disk.rescanned_storage_bytes).sum::<u64>(), 0);
    assert_eq!((disk.times_opened(), second.times_opened()), (1, 1));
}

/// Ends a writer, also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_disk_that_is_always_written_is_frozen() {
    let mut random = Random::new();
    let (bed, disk) = tracked(64 * MIB, 4096);
    disk.write(0, &random.bytes(20 * MIB));
    let image = bed.directory.path().join("frozen.img");
    // The first freeze finds too much, the second is thawed too early.
    let freezer = FakeFreezer { disk: disk.clone(), image: image.clone(), late: 0, burst: 32 * MIB };
    bed.machine.set_freezer(Some(Box::new(freezer)));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ends_with_this = Over(&over);
        let writer = scope.spawn(|| {
            let mut at = 0;
            while !over.load(Ordering::Relaxed) {
                at = (at + 7 * 4096) % (4 * MIB);
                disk.write(at, &at.to_be_bytes());
                thread::sleep(Duration::from_micros(200));
            }
        });
        disk.set_busy(true);
        let progress = reach_image(&bed, &bed.config(), 1, &image);
        assert_eq!(progress.consistency, Some(Consistency::Frozen));
        let freezes = progress.freezes.unwrap();
        assert!(freezes.count >= 2 && freezes.max_ms == 50, "{freezes:?}");
        let late = FakeFreezer { disk: disk.clone(), image: image.clone(), late: 1, burst: 0 };
        bed.machine.set_freezer(Some(Box::new(late)));
        let progress = reach_image(&bed, &bed.config(), 2, &image);
        assert_eq!(progress.consistency, Some(Consistency::Frozen));
        drop(ends_with_this);
        writer.join().unwrap();
    });
    disk.set_busy(false);
    assert_eq!(reach(&bed, 3).consistency, Some(Consistency::Quiescent));
}

#[test]
fn without_a_freezer_a_busy_disk_is_of_no_moment_and_says_so() {
    let mut random = Random::new();
    let (bed, disk) = tracked(8 * MIB, 4096);
    disk.write(0, &random.bytes(4 * MIB));
    disk.set_busy(true);
    let progress = reach(&bed, 1);
    assert_eq!(progress.consistency, Some(Consistency::None));
    assert!(progress.shortfall.unwrap().contains("nothing here can be frozen"));
}

#[test]
fn who_asked_waits_for_a_moment_of_rest() {
    let (bed, disk) = tracked(8 * MIB, 4096);
    reach(&bed, 1);
    disk.write(0, &Random::new().bytes(MIB));
    disk.set_busy(true);
    let rests = thread::spawn({
        let disk = disk.clone();
        move || {
            thread::sleep(Duration::from_secs(1));
            disk.set_busy(false);
        }
    });
    let progress = reach(&bed, 2);
    rests.join().unwrap();
    assert_eq!(progress.consistency, Some(Consistency::Quiescent));
    assert_eq!(progress.shortfall, None);
}

#[test]
fn checkpoints_come_by_themselves_while_anything_changes() {
    let mut random = Random::new();
    let (bed, disk) = tracked(16 * MIB, 4096);
    disk.write(0, &random.bytes(8 * MIB));
    let agent = Agent::start(&bed.config());
    agent.control.set_checkpoints(CheckpointSettings { interval_ms: 200, ..CheckpointSettings::default() });
    // The first copy is one, also if nothing has changed since it began.
    bed.wait_for("the first checkpoint", |report| report.consistent);
    for _ in 0..5 {
        disk.write(random.below(1000) * 4096, &random.bytes(8192));
        let settled = || (disk.is_settled() && agent.control.progress().lag_ms == Some(0)).then_some(());
        wait_for("a checkpoint", settled);
        assert_same_bytes(&bed.source(), &bed.target());
        let report = bed.report();
        assert_eq!((report.checkpoint, report.held, report.consistent), (Epoch(0), None, true));
        assert_eq!(report.consistency, Consistency::Quiescent);
    }
    // The first one that is asked for is one of its own.
    agent.control.request_checkpoint(Epoch(1));
    agent.wait_until_reached(1);
    assert_eq!(bed.report().held, Some(Epoch(1)));
    agent.stop();
}

#[test]
fn what_is_written_without_a_connection_is_lag_and_backlog() {
    let mut random = Random::new();
    let (bed, disk) = tracked(16 * MIB, 4096);
    disk.write(0, &random.bytes(8 * MIB));
    reach(&bed, 1);
    disk.write(MIB, &random.bytes(40_960));
    assert_eq!(bed.machine.backlog_bytes(), 40_960);
    let mut progress = Progress::default();
    bed.machine.describe(&mut progress, false, std::time::Instant::now() + Duration::from_secs(60));
    assert_eq!(progress.backlog_bytes, 40_960);
    assert!(progress.lag_ms.unwrap() >= 60_000, "{:?}", progress.lag_ms);
}

/// Random writes, cuts, ends of the agent and of the replicator, boots: at every checkpoint the volume is the disk.
fn random_schedule(granule: u64) {
    let mut random = Random::new();
    let (mut bed, disk) = tracked(24 * MIB, granule);
    disk.write(0, &random.bytes(10 * MIB));
    let mut written = 10 * MIB;
    let mut cuts = 0;
    for epoch in 1..=8 {
        let budgets: Vec<u64> = (0..random.below(3)).map(|_| 300_000 + random.below(4 * MIB)).collect();
        cuts += budgets.len() as u64;
        let forwarder = Forwarder::start(bed.engine.address(), budgets);
        let mut config = bed.config();
        config.addresses = vec![forwarder.address.to_string()];
        let agent = Agent::start(&config);
        agent.control.set_checkpoints(on_request());
        for _ in 0..random.below(60) {
            let length = [512, 4096, 4096, 10_000, 200_000][usize::try_from(random.below(5)).unwrap()];
            let offset = random.below((24 * MIB - length) / 512) * 512;
            let bytes =
                if random.below(5) == 0 { vec![0; usize::try_from(length).unwrap()] } else { random.bytes(length) };
            disk.write(offset, &bytes[..usize::try_from(length).unwrap()]);
            written += (length + 2 * granule.min(4096)).next_multiple_of(4096);
            if random.below(8) == 0 {
                thread::sleep(Duration::from_millis(random.below(20)));
            }
        }
        if random.below(3) == 0 {
            drop(agent);
        } else {
            agent.stop();
        }
        match random.below(6) {
            0 => bed.restart(),
            1 => bed.machine = Machine::tracked(Box::new(FakeTrackers(vec![disk.clone()]))),
            _ => {}
        }
        reach(&bed, epoch);
        assert!(disk.is_settled());
    }
    if granule == 4096 {
        println!("{written} bytes were written, with {cuts} cuts");
    }
}

#[test]
fn whatever_happens_a_checkpoint_is_the_disk() {
    random_schedule(4096);
}

#[test]
fn whatever_happens_a_checkpoint_is_the_disk_with_large_granules() {
    random_schedule(65_536);
}
