mod cost;
mod model;
mod world;

use std::sync::atomic::Ordering;

use self::world::{Fate, Memory, Random, SIZE, World, checkpoint, key, seed};
use super::*;

/// Where barriers end, and what the volumes would be there.
type Barriers = Vec<(u64, Vec<Vec<u8>>)>;

/// A journal with three barriers, the views at each of them, and where each one ends.
fn three_barriers(synced: usize) -> (World, Barriers) {
    let mut random = Random(11);
    let (world, journal) = World::new(&mut random);
    let mut expected = world.contents();
    let mut barriers = vec![(HEADER_LENGTH, expected.clone())];
    for number in 0..3 {
        for _ in 0..2 {
            assert!(world.change(&journal, &mut expected, &mut random));
        }
        let end = journal.barrier().unwrap();
        if number < synced {
            journal.sync(end).unwrap();
        }
        barriers.push((end, expected.clone()));
    }
    (world, barriers)
}

/// A journal cut anywhere is what it was at its last whole barrier; or damaged, if more was acknowledged.
#[test]
fn a_torn_end_is_cut_at_the_last_whole_barrier_at_every_byte() {
    for synced in [0, 1] {
        let (world, barriers) = three_barriers(synced);
        let whole = world.memory.lock().seen.clone();
        for cut in 88..=whole.len() {
            let torn = world.fork();
            torn.memory.lock().seen.truncate(cut);
            let opened = torn.open();
            if (cut as u64) < barriers[synced].0 && synced > 0 {
                assert!(matches!(opened, Err(OpenError::Damaged(_))), "at {cut}");
                continue;
            }
            let (journal, committed) = opened.unwrap_or_else(|error| panic!("at {cut}: {error}"));
            let last = barriers.iter().rev().find(|(end, _)| *end <= cut as u64).unwrap_or(&barriers[0]);
            assert!(committed.is_none());
            assert!(torn.view(&journal) == last.1, "at {cut}");
        }
        for cut in 0..88 {
            let torn = world.fork();
            torn.memory.lock().seen.truncate(cut);
            assert!(matches!(torn.open(), Err(OpenError::Damaged(_))), "at {cut}");
        }
    }
}

/// A changed bit makes a journal end before it, or be damaged; it is never taken for something else.
#[test]
fn a_flipped_bit_is_never_believed() {
    let (world, barriers) = three_barriers(1);
    let mut random = Random(seed());
    let length = world.memory.lock().seen.len();
    for _ in 0..3000 {
        let bit = random.below(length * 8);
        let bad = world.fork();
        bad.memory.lock().seen[bit / 8] ^= 1 << (bit % 8);
        match bad.open() {
            Ok((journal, None)) => {
                let view = bad.view(&journal);
                assert!(barriers[1..].iter().any(|(_, expected)| *expected == view), "bit {bit}");
                let at = (bit / 8) as u64;
                assert!((88..HEADER_LENGTH).contains(&at) || at >= barriers[1].0, "bit {bit} was acknowledged");
            }
            Ok((_, Some(committed))) => panic!("bit {bit} made {committed:?}"),
            Err(OpenError::Damaged(_) | OpenError::OtherKey) => {}
            Err(OpenError::Io(error)) => panic!("bit {bit}: {error}"),
        }
    }
}

/// Runs `work` on a world that ends after every possible number of steps, by a kill and by a power cut.
fn end_at_every_step(world: &World, work: impl Fn(&mut World, &Journal) -> bool, check: impl Fn(World, bool, &str)) {
    let mut random = Random(seed());
    for powered in [true, false] {
        let mut end = 0;
        loop {
            let mut world = world.fork();
            let journal = world.recover();
            world.memory.fate.end_at(Some(end));
            let done = work(&mut world, &journal);
            drop(journal);
            world.memory.fate.end_at(None);
            if !powered {
                world.cut_power(&mut random);
            }
            check(world, done, &format!("{} after {end} steps", if powered { "killed" } else { "power cut" }));
            if done {
                break;
            }
            end += 1;
        }
        assert!(end > 10, "{end} steps only");
    }
}

#[test]
fn a_commit_that_ends_at_any_step_leaves_the_old_checkpoint_or_the_new_one() {
    let mut random = Random(5);
    let (world, journal) = World::new(&mut random);
    let (old, mut new) = (world.contents(), world.contents());
    for _ in 0..12 {
        assert!(world.change(&journal, &mut new, &mut random));
    }
    journal.sync(journal.barrier().unwrap()).unwrap();
    drop(journal);
    let commit =
        |world: &mut World, journal: &Journal| journal.commit(&world.members, checkpoint(2), &mut world.disks).is_ok();
    end_at_every_step(&world, commit, |mut world, done, what| {
        let journal = world.recover();
        let contents = world.contents();
        assert!(contents == old || contents == new, "{what}: a mixture");
        let recorded: Vec<_> = world.disks.sidecars.values().map(|sidecar| sidecar.epoch.0).collect();
        assert!(!recorded.contains(&2) || contents == new, "{what}: recorded before it was there");
        assert!(!done || (contents == new && recorded == [2, 2]), "{what}: done, and not there");
        // What was acknowledged is not lost, and the checkpoint can be made again.
        assert!(world.view(&journal) == new, "{what}: changes are lost");
        assert!(commit(&mut world, &journal) && world.contents() == new, "{what}: no second try");
        assert_eq!(journal.bytes(), 0);
    });
}

#[test]
fn a_spill_that_ends_at_any_step_loses_nothing_and_claims_nothing() {
    let mut random = Random(6);
    let (world, journal) = World::new(&mut random);
    let (old, mut new) = (world.contents(), world.contents());
    for _ in 0..12 {
        assert!(world.change(&journal, &mut new, &mut random));
    }
    journal.sync(journal.barrier().unwrap()).unwrap();
    drop(journal);
    let spill = |world: &mut World, journal: &Journal| journal.spill(&mut world.disks).is_ok();
    end_at_every_step(&world, spill, |mut world, done, what| {
        let claimed = world.disks.sidecars.values().all(|sidecar| sidecar.consistent);
        assert!(!claimed || world.contents() == old, "{what}: no checkpoint any more, and not recorded");
        let journal = world.recover();
        assert!(world.view(&journal) == new, "{what}: changes are lost");
        assert!(!done || world.contents() == new, "{what}: done, and not there");
    });
}

#[test]
fn another_key_is_refused_unless_there_is_nothing_to_lose() {
    let (world, _) = three_barriers(3);
    let open = |world: &World| Journal::open(world.memory.clone(), world.place.clone(), key(8), None);
    assert!(matches!(open(&world), Err(OpenError::OtherKey)));
    let (world, journal) = World::new(&mut Random(1));
    let id = journal.id();
    let (journal, _) = open(&world).unwrap();
    assert_eq!(journal.id(), id);
    journal.write(&world.members[0], 0, &[1]).unwrap();
    journal.barrier().unwrap();
    assert!(matches!(world.open(), Err(OpenError::OtherKey)), "it has the new key now");
}

#[test]
fn a_new_key_is_used_once_the_journal_is_empty() {
    let mut random = Random(3);
    let (mut world, journal) = World::new(&mut random);
    let mut expected = world.contents();
    world.change(&journal, &mut expected, &mut random);
    journal.rekey(&key(8));
    assert!(world.open().is_ok(), "still the old one");
    journal.commit(&world.members, checkpoint(2), &mut world.disks).unwrap();
    world.change(&journal, &mut expected, &mut random);
    journal.barrier().unwrap();
    assert!(matches!(world.open(), Err(OpenError::OtherKey)));
}

#[test]
fn a_journal_of_another_server_is_not_opened() {
    let (world, _) = three_barriers(3);
    let place = Place { server: ServerId::generate(), ..world.place.clone() };
    let opened = Journal::open(world.memory.clone(), place, key(7), None);
    assert!(matches!(opened, Err(OpenError::Damaged(_))));
}

#[test]
fn what_was_not_synced_does_not_count_after_a_failed_sync() {
    let mut random = Random(9);
    let (world, journal) = World::new(&mut random);
    let mut expected = world.contents();
    world.change(&journal, &mut expected, &mut random);
    journal.sync(journal.barrier().unwrap()).unwrap();
    let acknowledged = expected.clone();
    world.change(&journal, &mut expected, &mut random);
    let end = journal.barrier().unwrap();
    world.memory.fate.end_at(Some(0));
    journal.sync(end).unwrap_err();
    assert!(!journal.is_usable());
    assert!(journal.write(&world.members[0], 0, &[1]).is_err());
    world.memory.fate.end_at(None);
    // What the page cache shows may not be on the disk.
    let reopened = Journal::open(world.memory.clone(), world.place.clone(), key(7), Some(journal.synced()));
    let (journal, _) = reopened.unwrap();
    assert!(world.view(&journal) == acknowledged);
}

#[test]
fn every_opening_begins_a_segment_under_another_key() {
    let (world, barriers) = three_barriers(3);
    let mut salts = vec![world.memory.lock().seen[32..64].to_vec()];
    for _ in 0..3 {
        let (journal, _) = world.open().unwrap();
        let member = world.members[0].clone();
        journal.write(&member, 0, &barriers[3].1[0][..10]).unwrap();
        let from = usize::try_from(journal.synced()).unwrap();
        journal.sync(journal.barrier().unwrap()).unwrap();
        assert_eq!(world.memory.lock().seen[from], 6, "a segment begins at {from}");
        salts.push(world.memory.lock().seen[from + 16..from + 48].to_vec());
        assert!(world.view(&journal) == barriers[3].1);
    }
    salts.sort();
    salts.dedup();
    assert_eq!(salts.len(), 4);
}

#[test]
fn a_barrier_with_nothing_but_a_new_segment_before_it_is_found_again() {
    let (world, barriers) = three_barriers(3);
    for _ in 0..3 {
        let (journal, _) = world.open().unwrap();
        journal.sync(journal.barrier().unwrap()).unwrap();
        assert!(world.view(&journal) == barriers[3].1);
    }
}

#[test]
fn a_full_journal_takes_nothing_and_is_spilled() {
    let mut random = Random(4);
    for (limit, extents) in [(20 << 10, MAX_EXTENTS), (64 << 20, 10)] {
        let (mut world, journal) = World::new(&mut random);
        drop(journal);
        world.place.limit = limit;
        world.place.budget = Budget::new(extents);
        let memory = Arc::new(Memory::default());
        let journal = Journal::create(memory.clone(), world.place.clone(), key(7)).unwrap();
        let mut expected = world.contents();
        let mut before = expected.clone();
        while world.change(&journal, &mut expected, &mut random) {
            before.clone_from(&expected);
        }
        assert!(journal.bytes() <= limit && memory.length().unwrap() <= limit);
        journal.spill(&mut world.disks).unwrap();
        assert!(world.contents() == before);
        assert!(world.disks.sidecars.values().all(|sidecar| !sidecar.consistent));
        assert_eq!(journal.bytes(), 0);
        assert_eq!(journal.write(&world.members[0], 0, &[1]).unwrap(), Room::Taken);
    }
}

#[test]
fn neighbours_share_a_record_and_writes_are_large() {
    let mut random = Random(8);
    let (mut world, journal) = World::new(&mut random);
    let member = world.members[0].clone();
    let block = [3; 1024];
    for at in 0..SIZE / 1024 {
        journal.write(&member, at as u64 * 1024, &block).unwrap();
    }
    let end = journal.barrier().unwrap();
    let records = RECORD_OVERHEAD as u64 * 3 + 16 + member.volume.as_str().len() as u64;
    assert_eq!(end, HEADER_LENGTH + records + SIZE as u64);
    for round in 0..64 {
        for at in (0..SIZE).step_by(2048) {
            journal.write(&member, at as u64, &[round; 1024]).unwrap();
        }
    }
    let before = *world.memory.writes.lock().unwrap();
    journal.barrier().unwrap();
    assert!(before < 20, "{before} writes for 2 MiB in 2048 records");
    journal.commit(&world.members, checkpoint(2), &mut world.disks).unwrap();
    assert_eq!((world.disks.largest, world.disks.writes), (SIZE, 1), "neighbours come together");
}

#[test]
fn changes_of_a_forgotten_volume_do_not_come_back() {
    let (mut world, barriers) = three_barriers(3);
    let (journal, _) = world.open().unwrap();
    let before = world.contents();
    journal.forget(&world.members[1]);
    assert_eq!(journal.changed(), world.members[..1]);
    journal.commit(&world.members[..1], checkpoint(2), &mut world.disks).unwrap();
    assert!(world.contents()[0] == barriers[3].1[0] && world.contents()[1] == before[1]);
}

#[test]
fn an_empty_commit_writes_nothing_to_the_journal() {
    let mut random = Random(2);
    let (mut world, journal) = World::new(&mut random);
    let before = *world.memory.writes.lock().unwrap();
    journal.barrier().unwrap();
    journal.commit(&world.members, checkpoint(2), &mut world.disks).unwrap();
    assert_eq!(*world.memory.writes.lock().unwrap(), before);
    assert!(world.disks.sidecars.values().all(|sidecar| sidecar.epoch == rehost_model::Epoch(2)));
    let fate: &Fate = &world.memory.fate;
    assert!(fate.steps() > 0 && journal.usable.load(Ordering::Acquire));
}
