//! A journal against the simplest thing that does the same: an array of bytes.

use proptest::prelude::*;

use super::{
    super::Journal,
    world::{Random, SIZE, World, checkpoint},
};

#[derive(Clone, Debug)]
enum Step {
    Write { which: usize, at: usize, length: usize, byte: u8 },
    Zero { which: usize, at: usize, length: usize },
    Barrier,
    Reopen,
    Commit,
    Spill,
}

fn range() -> impl Strategy<Value = (usize, usize, usize)> {
    (0..2_usize, 0..SIZE, 1..20_000_usize).prop_map(|(which, at, length)| (which, at, length.min(SIZE - at)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (range(), 1..=255_u8).prop_map(|((which, at, length), byte)| Step::Write { which, at, length, byte }),
        4 => range().prop_map(|(which, at, length)| Step::Zero { which, at, length }),
        2 => Just(Step::Barrier),
        1 => Just(Step::Reopen),
        1 => Just(Step::Commit),
        1 => Just(Step::Spill),
    ]
}

/// What a journal promises of where there may be data.
fn check_next_data(world: &World, journal: &Journal, expected: &[Vec<u8>], random: &mut Random) {
    for (member, expected) in world.members.iter().zip(expected) {
        let start = random.below(SIZE);
        let next = usize::try_from(journal.next_data(member, start as u64, SIZE as u64).unwrap()).unwrap();
        let mut only_journal = vec![0; SIZE];
        journal.overlay(member, 0, &mut only_journal).unwrap();
        assert!(only_journal[start..next].iter().all(|byte| *byte == 0));
        let differs = only_journal.iter().zip(expected).any(|(a, b)| *a != 0 && a != b);
        assert!(!differs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn volumes_and_journal_together_are_what_was_written(steps in prop::collection::vec(step(), 1..60), seed: u64) {
        let mut random = Random(seed);
        let (mut world, mut journal) = World::new(&mut random);
        let mut expected = world.contents();
        let mut checkpointed = expected.clone();
        for step in steps {
            match step {
                Step::Write { which, at, length, byte } => {
                    let bytes: Vec<u8> = (0..length).map(|n| byte ^ u8::try_from(n % 251).unwrap()).collect();
                    expected[which][at..at + length].copy_from_slice(&bytes);
                    journal.write(&world.members[which], at as u64, &bytes).unwrap();
                }
                Step::Zero { which, at, length } => {
                    expected[which][at..at + length].fill(0);
                    journal.zero(&world.members[which], at as u64, length as u64).unwrap();
                }
                Step::Barrier => journal.sync(journal.barrier().unwrap()).unwrap(),
                Step::Reopen => {
                    journal.sync(journal.barrier().unwrap()).unwrap();
                    journal = world.recover();
                }
                Step::Commit => {
                    journal.commit(&world.members, checkpoint(2), &mut world.disks).unwrap();
                    checkpointed.clone_from(&expected);
                }
                Step::Spill => {
                    journal.spill(&mut world.disks).unwrap();
                    // What the volumes are then counts as the next checkpoint here: the model has no other place for it.
                    world.disks.sidecars.values_mut().for_each(|sidecar| sidecar.consistent = true);
                    checkpointed.clone_from(&expected);
                }
            }
            prop_assert!(world.contents() == checkpointed, "the volumes changed before their checkpoint");
            prop_assert!(world.view(&journal) == expected, "a change is not seen");
            check_next_data(&world, &journal, &expected, &mut random);
        }
    }
}
