//! Sessions through the engine: journal, checkpoints, restarts and what goes wrong.

mod bed;

use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command};

use rehost_model::replication::Consistency;
use rehost_protocol::{ByteCount, DigestChunk, ErrorCode};

use self::bed::{Bed, SIZE, wait_for};
use super::*;

#[test]
fn changes_reach_the_volumes_at_their_checkpoint_and_digests_see_them_before() {
    let bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    let report = bed.report();
    assert_eq!((report.consistent, report.checkpoint, report.held), (true, Epoch(0), None));
    assert_eq!((report.consistency, report.journal_bytes), (Consistency::Frozen, 0));

    agent.write(0, 4096, &[9; 4096]);
    agent.write(0, 1 << 20, &[8; 4096]);
    agent.zero(1, 65536, 4096);
    agent.barrier().unwrap();
    assert_eq!(bed.bytes(0, 4096, 4096), [1; 4096]);
    assert_eq!(bed.bytes(1, 65536, 4096), [2; 4096]);
    assert!(bed.report().journal_bytes > 8192);
    assert!(agent.sees(0, 0, &[1; 4096], DigestChunk::Fine));
    assert!(agent.sees(0, 4096, &[9; 4096], DigestChunk::Fine));
    assert!(agent.sees(0, 1 << 20, &[8; 4096], DigestChunk::Fine), "the volume has a hole there");
    assert!(agent.sees(1, 65536, &[0; 65536], DigestChunk::Coarse));
    let coarse = [vec![1; 4096], vec![9; 4096], vec![0; 57344]].concat();
    assert!(agent.sees(0, 0, &coarse, DigestChunk::Coarse));

    agent.checkpoint(0).unwrap();
    assert_eq!(bed.bytes(0, 4096, 4096), [9; 4096]);
    assert_eq!(bed.bytes(0, 1 << 20, 4096), [8; 4096]);
    assert_eq!(bed.bytes(1, 65536, 4096), [0; 4096]);
    assert_eq!((bed.report().journal_bytes, bed.report().held), (0, None));
    agent.write(0, 0, &[3; 512]);
    agent.checkpoint(5).unwrap();
    let report = bed.report();
    assert_eq!((report.checkpoint, report.held, report.consistent), (Epoch(5), Some(Epoch(5)), true));
    assert_eq!(bed.bytes(0, 0, 512), [3; 512]);
}

#[test]
fn a_partial_epoch_outlives_a_restart_and_goes_on() {
    let mut bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    let lineages: Vec<_> = agent.disks.iter().map(|disk| disk.lineage).collect();
    agent.write(0, 0, &[9; 4096]);
    agent.barrier().unwrap();
    bed.restart();
    assert!(!bed.report().consistent, "it cannot be known");
    let (code, text) = bed.try_agent(2).err().unwrap();
    assert_eq!(code, ErrorCode::UnknownVolume, "{text}");
    bed.give_key(7);
    let mut agent = bed.agent();
    assert!(bed.report().consistent);
    assert_eq!(agent.disks.iter().map(|disk| disk.lineage).collect::<Vec<_>>(), lineages);
    assert!(agent.disks.iter().all(|disk| disk.synced == ByteCount(SIZE)));
    assert!(agent.sees(0, 0, &[9; 4096], DigestChunk::Fine));
    assert_eq!(bed.bytes(0, 0, 4096), [1; 4096]);
    agent.write(1, 0, &[4; 4096]);
    agent.checkpoint(1).unwrap();
    assert_eq!((bed.bytes(0, 0, 4096), bed.bytes(1, 0, 4096)), (vec![9; 4096], vec![4; 4096]));
}

#[test]
fn another_key_is_refused_until_the_right_one_comes() {
    let mut bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    agent.write(0, 0, &[9; 4096]);
    agent.barrier().unwrap();
    bed.restart();
    bed.give_key(8);
    assert_eq!(bed.try_agent(2).err().unwrap().0, ErrorCode::Io);
    let error = wait_for("the report", || bed.report().error);
    assert!(error.message.contains("another data key"), "{}", error.message);
    assert!(!bed.report().consistent);
    bed.give_key(7);
    let mut agent = bed.agent();
    assert!(agent.sees(0, 0, &[9; 4096], DigestChunk::Fine));
}

#[test]
fn a_hold_whose_checkpoint_cannot_be_recorded_has_expired() {
    let bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    let mut sidecar = bed.config.state_dir.clone().unwrap().join(bed.volumes[1].as_str()).into_os_string();
    sidecar.push(".sync.json.new");
    fs::create_dir(&sidecar).unwrap();
    // Nothing changed: no commit record makes it count, only the sidecars do.
    assert_eq!(agent.checkpoint(5).unwrap_err().0, ErrorCode::Io);
    fs::remove_dir(&sidecar).unwrap();
    wait_for("the end of the session", || (!bed.report().connected).then_some(()));
    assert_eq!((bed.report().held, bed.report().expired), (None, Epoch(5)), "who waits for the hold asks for another");
    let mut agent = bed.agent();
    agent.checkpoint(6).unwrap();
    assert_eq!(bed.report().held, Some(Epoch(6)));
}

#[test]
fn a_full_journal_is_spilled_and_the_next_checkpoint_mends_it() {
    let mut bed = Bed::with(|config, _| config.journal_bytes = 64 << 10);
    let mut agent = bed.first_checkpoint();
    for at in 0..32 {
        agent.write(0, at * 8192, &[7; 4096]);
    }
    agent.barrier().unwrap();
    let report = bed.report();
    assert_eq!((report.consistent, report.journal_bytes), (false, 0));
    assert_eq!(bed.bytes(0, 0, 4096), [7; 4096]);
    bed.restart();
    bed.give_key(7);
    let mut agent = bed.agent();
    assert!(!bed.report().consistent, "a restart does not make it one");
    agent.write(0, 0, &[6; 4096]);
    agent.checkpoint(0).unwrap();
    assert!(bed.report().consistent);
    agent.write(0, 0, &[5; 4096]);
    agent.barrier().unwrap();
    assert_eq!(bed.bytes(0, 0, 4096), [6; 4096], "the journal is used again");
}

#[test]
fn a_journal_that_is_gone_or_damaged_makes_the_agent_compare() {
    for damage in [|path: &Path| fs::remove_file(path).unwrap(), flip] {
        let mut bed = Bed::new();
        let mut agent = bed.first_checkpoint();
        let before: Vec<_> = agent.disks.iter().map(|disk| disk.lineage).collect();
        agent.write(0, 0, &[9; 4096]);
        agent.barrier().unwrap();
        bed.restart();
        damage(&bed.journal());
        bed.give_key(7);
        let mut agent = bed.agent();
        let report = bed.report();
        assert!(!report.consistent && report.error.is_some_and(|error| error.message.contains("journal")));
        for (disk, lineage) in agent.disks.iter().zip(&before) {
            assert_ne!(disk.lineage, *lineage);
            assert_eq!(disk.synced, ByteCount(SIZE), "compared, and not sent again");
        }
        agent.write(0, 0, &[9; 4096]);
        agent.checkpoint(1).unwrap();
        assert!(bed.report().consistent && bed.report().error.is_none());
    }
}

fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4200).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 4200).unwrap();
}

#[test]
fn without_a_key_volumes_are_written_directly_and_do_not_count_meanwhile() {
    let bed = Bed::new();
    let mut agent = bed.agent();
    agent.write(0, 0, &[1; 4096]);
    agent.checkpoint(1).unwrap();
    assert!(bed.report().consistent);
    assert!(bed.engine.release_hold(&bed.server, Epoch(1)));
    agent.write(0, 0, &[2; 4096]);
    agent.barrier().unwrap();
    assert!(!bed.report().consistent);
    assert_eq!(bed.bytes(0, 0, 4096), [2; 4096]);
    bed.give_key(7);
    agent.checkpoint(0).unwrap();
    assert!(bed.report().consistent);
    agent.write(0, 0, &[3; 4096]);
    agent.barrier().unwrap();
    assert_eq!(bed.bytes(0, 0, 4096), [2; 4096], "from now on there is a journal");
}

#[test]
fn a_disk_that_is_added_is_written_directly_beside_the_journal_of_the_other() {
    let bed = Bed::new();
    bed.give_key(7);
    let mut agent = bed.try_agent(1).unwrap();
    agent.synced();
    agent.checkpoint(0).unwrap();
    agent.bye();
    let mut agent = bed.agent();
    agent.write(0, 0, &[1; 4096]);
    agent.write(1, 0, &[2; 4096]);
    agent.barrier().unwrap();
    assert_eq!((bed.bytes(0, 0, 4096), bed.bytes(1, 0, 4096)), (vec![0; 4096], vec![2; 4096]));
    assert!(!bed.report().consistent);
    agent.checkpoint(0).unwrap();
    assert!(bed.report().consistent);
    agent.write(1, 0, &[3; 4096]);
    agent.barrier().unwrap();
    assert_eq!((bed.bytes(0, 0, 4096), bed.bytes(1, 0, 4096)), (vec![1; 4096], vec![2; 4096]));
    // A disk that is not offered any more: its epoch will never be complete.
    agent.bye();
    let agent = bed.try_agent(1).unwrap();
    assert_eq!(bed.bytes(1, 0, 4096), [3; 4096]);
    assert!(!bed.report().consistent);
    agent.bye();
}

/// Changes of both disks are in the journal, after the first checkpoint.
fn with_partial_epoch() -> (Bed, bed::Agent) {
    let bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    agent.write(0, 0, &[3; 4096]);
    agent.write(1, 0, &[4; 4096]);
    agent.barrier().unwrap();
    (bed, agent)
}

#[test]
fn the_key_stays_when_all_disks_have_grown_while_no_agent_was_there() {
    let bed = Bed::new();
    bed.first_checkpoint().bye();
    wait_for("the end of the session", || (!bed.report().connected).then_some(()));
    bed.grow(2);
    let mut agent = bed.try_agent_of(&[2 * SIZE; 2]).unwrap();
    agent.checkpoint(0).unwrap();
    agent.write(0, 0, &[7; 4096]);
    agent.barrier().unwrap();
    assert_eq!(bed.bytes(0, 0, 4096), [1; 4096], "there is a journal again, for which a key is needed");
    assert!(bed.report().consistent);
}

#[test]
fn what_the_journal_holds_of_a_disk_that_grew_is_not_applied() {
    let (bed, agent) = with_partial_epoch();
    let before = agent.disks[0].lineage;
    bed.grow(1);
    let mut agent = bed.try_agent_of(&[2 * SIZE, SIZE]).unwrap();
    assert_ne!(agent.disks[0].lineage, before, "it is compared");
    // The comparison found that the disk has other bytes by now.
    agent.write(0, 0, &[5; 4096]);
    agent.checkpoint(0).unwrap();
    assert!(bed.report().consistent);
    assert_eq!(bed.bytes(0, 0, 4096), [5; 4096]);
    assert_eq!(bed.bytes(1, 0, 4096), [4; 4096], "the other disk's changes are part of the checkpoint");
}

#[test]
fn a_volume_that_goes_takes_its_changes_with_it_and_no_others() {
    let (bed, _agent) = with_partial_epoch();
    bed.engine.set_assignments(bed.assignments().into_iter().take(1).collect()).unwrap();
    let mut agent = bed.try_agent(1).unwrap();
    assert!(bed.report().consistent, "nothing is wrong with the other one");
    agent.checkpoint(0).unwrap();
    assert_eq!(bed.bytes(0, 0, 4096), [3; 4096]);
    assert_eq!(bed.bytes(1, 0, 4096), [0; 4096], "it is not served any more");
}

#[test]
fn the_end_of_the_first_copy_disturbs_no_session() {
    let bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    let initialized = bed.assignments().into_iter().map(|a| Assignment { initialized: true, ..a }).collect();
    bed.engine.set_assignments(initialized).unwrap();
    agent.write(0, 0, &[9; 4096]);
    agent.checkpoint(0).unwrap();
    assert!(bed.report().connected);
}

#[test]
fn a_volume_that_was_complete_elsewhere_is_compared() {
    let mut bed = Bed::new();
    let agent = bed.first_checkpoint();
    agent.bye();
    bed.engine.shutdown();
    fs::remove_dir_all(bed.config.state_dir.as_ref().unwrap()).unwrap();
    fs::create_dir(bed.config.state_dir.as_ref().unwrap()).unwrap();
    bed.engine = Engine::new(bed.config.clone()).unwrap();
    let initialized: Vec<_> = bed.assignments().into_iter().map(|a| Assignment { initialized: true, ..a }).collect();
    bed.engine.set_assignments(initialized.clone()).unwrap();
    let agent = bed.agent();
    assert!(agent.disks.iter().all(|disk| disk.synced == ByteCount(SIZE)));
    assert!(!bed.report().consistent);
    let told: Vec<_> = agent.disks.iter().map(|disk| disk.lineage).collect();
    agent.bye();
    // A lineage that an agent was told outlives a restart.
    bed.engine.shutdown();
    bed.engine = Engine::new(bed.config.clone()).unwrap();
    bed.engine.set_assignments(initialized).unwrap();
    assert_eq!(bed.agent().disks.iter().map(|disk| disk.lineage).collect::<Vec<_>>(), told);
}

#[test]
fn a_checkpoint_that_was_asked_for_gets_a_manifest_and_the_next_one_too() {
    let bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    for (epoch, byte) in [(1, 1_u8), (2, 6)] {
        if epoch == 2 {
            agent.write(0, 0, &[byte; 8192]);
        }
        agent.checkpoint(epoch).unwrap();
        for _ in 0..2 {
            let manifest = wait_for("a manifest", || bed.engine.manifest());
            assert_eq!((manifest.epoch, manifest.size_bytes, manifest.chunk_bytes), (Epoch(epoch), SIZE, 32768));
            assert_eq!(manifest.chunks.len(), 64);
            let which = bed.volumes.iter().position(|volume| *volume == manifest.volume).unwrap();
            for (index, chunk) in manifest.chunks.iter().enumerate() {
                let bytes = bed.bytes(which, index as u64 * 32768, 32768);
                let expected = match bytes.iter().all(|byte| *byte == 0) {
                    true => "-".to_owned(),
                    false => blake3::hash(&bytes).to_hex()[..32].to_owned(),
                };
                assert_eq!(*chunk, expected, "chunk {index} at epoch {epoch}");
            }
            bed.engine.drop_manifest(&manifest.volume, manifest.epoch);
        }
        assert!(bed.engine.release_hold(&bed.server, Epoch(epoch)));
    }
}

#[test]
fn a_checkpoint_in_the_journal_is_applied_at_start_without_an_agent() {
    let mut bed = Bed::new();
    let mut agent = bed.first_checkpoint();
    agent.write(0, 0, &[9; 4096]);
    agent.write(1, 0, &[9; 4096]);
    agent.barrier().unwrap();
    // As if it was killed between the commit record and the volumes.
    bed.engine.shutdown();
    let place = journal::Place {
        path: bed.journal(),
        server: bed.server.clone(),
        limit: 1 << 30,
        budget: journal::Budget::new(1000),
    };
    let storage = Arc::new(journal::FileStorage::open(&bed.journal()).unwrap());
    let (journal, _) = journal::Journal::open(storage, place, Zeroizing::new([7; 32]), None).unwrap();
    let committed = journal::Committed { epoch: Epoch(4), consistency: Consistency::Quiescent };
    journal.commit(&journal.members(), committed, &mut Nothing).unwrap_err();
    assert_eq!(bed.bytes(0, 0, 4096), [1; 4096]);
    bed.restart();
    bed.give_key(7);
    let report = wait_for("the checkpoint", || Some(bed.report()).filter(|report| report.consistent));
    assert_eq!(bed.bytes(0, 0, 4096), [9; 4096]);
    assert_eq!((report.checkpoint, report.expired), (Epoch(4), Epoch(4)), "there, but not held");
    assert_eq!(report.consistency, Consistency::Quiescent);
}

/// Volumes that fail.
struct Nothing;

impl journal::Volumes for Nothing {
    fn write(&mut self, _: &VolumeId, _: u64, _: &[u8]) -> Result<(), refusal::Refusal> {
        Err(refusal::Refusal::new(ErrorCode::Io, "gone"))
    }

    fn zero(&mut self, _: &VolumeId, _: u64, _: u64) -> Result<(), refusal::Refusal> {
        Err(refusal::Refusal::new(ErrorCode::Io, "gone"))
    }

    fn flush(&mut self) -> Result<(), refusal::Refusal> {
        Ok(())
    }

    fn record(&mut self, _: journal::Recorded) -> Result<(), refusal::Refusal> {
        Ok(())
    }
}

/// A file system in memory that goes with its test.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Self {
        assert!(mount(at, "size=8m"), "this test needs root");
        Self(at)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Fails only if it is not mounted.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn mount(at: &Path, options: &str) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "rehost-test"]).arg(at).status().is_ok_and(|status| status.success())
}

#[test]
fn live_a_full_disk_under_the_journal_is_named_and_nothing_is_lost() {
    let small = tempfile::tempdir().unwrap();
    let _disk = SmallDisk::mount(small.path());
    let bed = Bed::with(|config, _| config.state_dir = Some(small.path().to_owned()));
    let mut agent = bed.first_checkpoint();
    agent.write(0, 0, &[9; 4096]);
    agent.barrier().unwrap();
    fs::write(small.path().join("ballast"), vec![1; 6 << 20]).unwrap();
    let refused = (0..200_u64).find_map(|at| {
        agent.write(1, at * 8192 % SIZE, &[7; 8192]);
        agent.barrier().err()
    });
    assert_eq!(refused.unwrap().0, ErrorCode::NoSpace);
    wait_for("the report", || bed.report().error.filter(|error| error.code == "NoSpace"));
    assert_eq!(bed.bytes(1, 65536, 4096), [2; 4096], "the volume is the checkpoint it was");
    fs::remove_file(small.path().join("ballast")).unwrap();
    let mut agent = bed.agent();
    assert!(agent.sees(0, 0, &[9; 4096], DigestChunk::Fine));
    for at in (0..SIZE).step_by(8192) {
        agent.write(1, at, &[7; 8192]);
    }
    agent.checkpoint(1).unwrap();
    assert_eq!((bed.bytes(0, 0, 4096), bed.bytes(1, 0, 8192)), (vec![9; 4096], vec![7; 8192]));
    assert!(bed.report().error.is_none());
}
