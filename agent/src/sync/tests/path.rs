//! The path as it should be: everything arrives, and nothing travels twice.

use std::{os::unix::fs::MetadataExt, time::Duration};

use rehost_model::{Epoch, VolumeId, link::AgentPhase};
use rehost_protocol::{ByteCount, DiskIndex};

use super::{
    bed::{Agent, Bed, MIB, Random, assert_same_bytes, wait_for},
    forwarder::Forwarder,
};
use crate::sync::DiskSource;

#[test]
fn a_disk_with_data_zeros_and_holes_arrives() {
    let mut random = Random::new();
    let bed = Bed::new(64 * MIB + 1536);
    bed.write(0, &random.bytes(3 * MIB));
    bed.write(10 * MIB, &vec![0; 4 << 20]);
    bed.write(20 * MIB + 4096, b"alone in its page");
    bed.write(40 * MIB, &b"compressible ".repeat(100_000));
    bed.write(64 * MIB, &[7; 1536]);
    bed.reach(&bed.config(), 1);
    let report = bed.report();
    assert_eq!(report.volumes[0].synced_bytes, bed.size);
    assert!(report.received_bytes < 6 * MIB, "{}", report.received_bytes);
    let allocated = std::fs::metadata(bed.target()).unwrap().blocks() * 512;
    assert!(allocated < 6 * MIB, "{allocated}");
}

#[test]
fn what_was_there_before_is_overwritten_by_zeros() {
    let mut random = Random::new();
    let bed = Bed::new(8 * MIB);
    std::fs::write(bed.target(), random.bytes(8 * MIB)).unwrap();
    bed.write(MIB, &random.bytes(MIB));
    bed.reach(&bed.config(), 1);
}

#[test]
fn only_what_changed_travels_in_a_digest_pass() {
    let mut random = Random::new();
    let bed = Bed::new(64 * MIB);
    bed.write(0, &random.bytes(32 * MIB));
    bed.reach(&bed.config(), 1);
    let before = bed.report().received_bytes;
    bed.write(5 * MIB + 17, b"changed");
    bed.write(31 * MIB, &[0; 65536]);
    bed.write(50 * MIB, b"was a hole");
    bed.reach(&bed.config(), 2);
    let travelled = bed.report().received_bytes - before;
    assert!(travelled > 0 && travelled <= 2 * 65536, "{travelled}");
}

#[test]
fn several_disks_share_a_checkpoint() {
    let mut random = Random::new();
    let bed = Bed::new(8 * MIB);
    let volume = VolumeId::generate();
    let (source, target) = (bed.directory.path().join("b.src"), bed.directory.path().join("b.dst"));
    std::fs::write(&source, random.bytes(5 * MIB)).unwrap();
    std::fs::File::create(&target).unwrap().set_len(5 * MIB).unwrap();
    let mut second = bed.assignment();
    (second.volume, second.size_bytes) = (volume.clone(), 5 * MIB);
    second.location = target.display().to_string();
    bed.engine.set_assignments(vec![bed.assignment(), second]).unwrap();
    bed.write(MIB, &random.bytes(2 * MIB));
    let mut config = bed.config();
    config.tls = bed.ca.agent(&bed.server, &[&bed.volume, &volume]);
    config.disks.push(DiskSource { index: DiskIndex(9), path: source.clone(), volume, size_bytes: 5 * MIB });
    bed.reach(&config, 1);
    assert_same_bytes(&source, &target);
    assert_eq!(bed.report().volumes.len(), 2);
}

#[test]
fn a_sync_that_is_cut_again_and_again_resumes() {
    let mut random = Random::new();
    // A small window, so that little is sent twice.
    let bed = Bed::with(96 * MIB, |config| config.window = ByteCount(2 * MIB));
    bed.write(0, &random.bytes(40 * MIB));
    bed.write(60 * MIB, &random.bytes(20 * MIB));
    let budgets: Vec<u64> = (0..6).map(|_| 4 * MIB + random.below(6 * MIB)).collect();
    let forwarder = Forwarder::start(bed.engine.address(), budgets.clone());
    let mut config = bed.config();
    config.addresses = vec![forwarder.address.to_string()];
    bed.reach(&config, 1);
    // Each cut may cost what was not acknowledged, and what lay in the forwarder and the sockets.
    let sent = forwarder.forwarded.load(std::sync::atomic::Ordering::Relaxed);
    let most = 60 * MIB + budgets.len() as u64 * 4 * MIB + MIB;
    assert!(sent < most, "{sent} bytes travelled, {most} were expected at most");
}

#[test]
fn progress_is_shown_and_the_engine_idles() {
    let mut random = Random::new();
    let bed = Bed::new(16 * MIB);
    bed.write(0, &random.bytes(8 * MIB));
    let agent = Agent::start(&bed.config());
    // It idles when everything is handed over to the outbox; what that has sent shows with the acknowledgement.
    wait_for("idleness", || (agent.control.progress().phase == AgentPhase::Idle).then_some(()));
    bed.wait_for("the first copy", |report| report.volumes[0].synced_bytes == bed.size);
    wait_for("its acknowledgement", || {
        let disk = agent.control.progress().disks.remove(0);
        (disk.replicated_storage_bytes == disk.total_storage_bytes).then_some(())
    });
    assert!(agent.control.progress().sent_bytes >= 8 * MIB);
    assert_eq!(bed.report().checkpoint, Epoch::default());
    assert!(bed.report().connected);
    agent.control.request_checkpoint(Epoch(4));
    agent.wait_until_reached(4);
    assert_eq!(agent.control.progress().disks[0].rescanned_storage_bytes, bed.size);
    agent.stop();
    bed.wait_for("the session's end", |report| !report.connected);
}

#[test]
fn a_throttle_is_obeyed_live() {
    let mut random = Random::new();
    let bed = Bed::new(16 * MIB);
    bed.write(0, &random.bytes(16 * MIB));
    let control = crate::sync::SyncControl::new();
    control.set_throttle(MIB);
    let config = bed.config();
    std::thread::scope(|scope| {
        let session = scope.spawn(|| crate::sync::SyncSession::run(&config, &control));
        std::thread::sleep(Duration::from_millis(1500));
        let sent = control.progress().sent_bytes;
        assert!((MIB / 2..4 * MIB).contains(&sent), "{sent}");
        control.set_throttle(0);
        bed.wait_for("the first copy", |report| report.volumes[0].synced_bytes == bed.size);
        control.stop();
        session.join().unwrap().unwrap();
    });
    bed.assert_equal();
}

#[test]
fn a_slow_link_gets_packed_blocks() {
    let bed = Bed::new(32 * MIB);
    bed.write(0, &b"all the same ".repeat(2_500_000));
    let control = crate::sync::SyncControl::new();
    control.set_throttle(20 * MIB);
    let config = bed.config();
    std::thread::scope(|scope| {
        let session = scope.spawn(|| crate::sync::SyncSession::run(&config, &control));
        bed.wait_for("the first copy", |report| report.volumes[0].synced_bytes == bed.size);
        assert!(control.progress().sent_bytes < 16 * MIB);
        control.stop();
        session.join().unwrap().unwrap();
    });
    bed.assert_equal();
}

#[test]
fn a_sparse_disk_of_terabytes_takes_moments() {
    let bed = Bed::new(2 << 40);
    bed.write(1 << 40, b"here");
    let agent = Agent::start(&bed.config());
    agent.control.request_checkpoint(Epoch(1));
    agent.wait_until_reached(1);
    let allocated = std::fs::metadata(bed.target()).unwrap().blocks() * 512;
    assert!(allocated < MIB, "{allocated}");
    agent.stop();
}
