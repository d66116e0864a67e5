#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // Small numbers of a model.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use proptest::prelude::*;

use super::*;

const GRANULE: u64 = 4096;

/// Memory that outlives the marks that are kept in it, as pinned maps outlive the agent.
struct Memory {
    geometry: Geometry,
    live: Vec<AtomicU64>,
    coarse: Vec<AtomicU64>,
    pending: Vec<AtomicU64>,
}

impl Memory {
    fn of(size_bytes: u64) -> Self {
        let geometry = Geometry::fitting(size_bytes, 1 << 20);
        assert_eq!(geometry.granule_bytes(), GRANULE);
        let zeroed = |bytes: u64| (0..bytes.div_ceil(LANES)).map(|_| AtomicU64::new(0)).collect();
        let (fine, coarse) = (geometry.granules(), geometry.granules().div_ceil(1 << COARSE_SHIFT));
        Self { geometry, live: zeroed(fine), coarse: zeroed(coarse), pending: zeroed(fine) }
    }

    fn marks(&self) -> Marks<&[AtomicU64]> {
        Marks::new(self.geometry, &self.live, &self.coarse, &self.pending)
    }

    /// What a program does when a write of these granules completes.
    fn complete(&self, granules: Range<u64>) {
        let set = |map: &[AtomicU64], byte: u64| {
            at(map, byte / LANES).unwrap().fetch_or(1 << (byte % LANES * 8), SeqCst);
        };
        if granules.end - granules.start <= 1 + (1 << COARSE_SHIFT) {
            granules.for_each(|granule| set(&self.live, granule));
        } else {
            (granules.start >> COARSE_SHIFT..=(granules.end - 1) >> COARSE_SHIFT)
                .for_each(|byte| set(&self.coarse, byte));
        }
    }
}

fn range(granules: Range<u64>) -> ByteRange {
    ByteRange { offset: granules.start * GRANULE, length: (granules.end - granules.start) * GRANULE }
}

fn pass(number: u8) -> Pass {
    (1..number).fold(Pass::FIRST, |pass, _| pass.next())
}

#[test]
fn marks_go_from_live_to_pending_and_are_settled() {
    let memory = Memory::of(100 * GRANULE);
    let mut marks = memory.marks();
    memory.complete(3..5);
    memory.complete(7..9);
    assert!(!marks.is_quiet());
    assert_eq!((marks.pending(), marks.backlog_bytes()), (vec![], 4 * GRANULE));
    marks.collect(pass(1));
    assert!(marks.is_quiet());
    assert_eq!((marks.pending(), marks.backlog_bytes()), (vec![range(3..5), range(7..9)], 4 * GRANULE));
    marks.settle(range(0..8), pass(1));
    assert_eq!(marks.pending(), [range(8..9)]);
    marks.settle(range(8..100), pass(1));
    assert_eq!((marks.pending(), marks.backlog_bytes()), (vec![], 0));
}

#[test]
fn what_was_written_again_is_settled_by_the_later_pass_alone() {
    let memory = Memory::of(100 * GRANULE);
    let mut marks = memory.marks();
    memory.complete(1..4);
    marks.collect(pass(1));
    memory.complete(2..3);
    marks.collect(pass(2));
    marks.settle(range(0..100), pass(1));
    assert_eq!(marks.pending(), [range(2..3)]);
    marks.settle(range(0..100), pass(2));
    assert_eq!(marks.pending(), []);
}

#[test]
fn a_large_write_is_marked_coarsely_and_cut_at_the_end_of_the_disk() {
    let memory = Memory::of(3000 * GRANULE + 512);
    let mut marks = memory.marks();
    memory.complete(1700..3001);
    assert!(!marks.is_quiet());
    marks.collect(pass(1));
    let from = 1700 >> COARSE_SHIFT << COARSE_SHIFT;
    let expected = ByteRange { offset: from * GRANULE, length: (3000 - from) * GRANULE + 512 };
    assert_eq!(marks.pending(), [expected]);
    marks.settle(expected, pass(1));
    assert_eq!((marks.pending(), marks.backlog_bytes()), (vec![], 0));
}

#[test]
fn a_granule_that_is_settled_in_part_stays() {
    let memory = Memory::of(10 * GRANULE);
    let mut marks = memory.marks();
    memory.complete(0..3);
    marks.collect(pass(1));
    marks.settle(ByteRange { offset: 512, length: 3 * GRANULE - 1024 }, pass(1));
    assert_eq!(marks.pending(), [range(0..1), range(2..3)]);
}

#[test]
fn what_is_found_in_memory_counts() {
    let memory = Memory::of(100 * GRANULE);
    memory.complete(5..6);
    memory.marks().collect(pass(200));
    memory.complete(50..51);
    let mut marks = memory.marks();
    assert_eq!((marks.pending(), marks.backlog_bytes()), (vec![range(5..6)], 2 * GRANULE));
    marks.settle(range(0..100), pass(1));
    assert_eq!(marks.pending(), [], "it counts as collected by the first pass");
    marks.collect(pass(2));
    assert_eq!(marks.pending(), [range(50..51)]);
}

#[test]
fn bytes_are_told_from_zeros() {
    assert_eq!(marked(0), 0);
    assert_eq!(marked(0xff00_8000_0100_007f), 0x0100_0100_0100_0001);
    assert_eq!(lanes_within(0, 0..8), ONES);
    assert_eq!(lanes_within(1, 9..11), 0x0001_0100);
    assert_eq!(lanes_within(2, 0..10), 0);
}

/// Two threads mark while one collects: every mark is seen by a pass that began after it, or by the next one.
#[test]
fn marks_that_are_set_meanwhile_are_never_lost() {
    const ROUNDS: u64 = 20_000;
    let memory = Memory::of(64 * GRANULE);
    let is_over = AtomicBool::new(false);
    let seen: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
    let written: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
    let copy = |marks: &mut Marks<&[AtomicU64]>, pass: Pass| {
        marks.collect(pass);
        for range in marks.pending() {
            for granule in range.offset / GRANULE..range.end() / GRANULE {
                let now = at(&written, granule).unwrap().load(SeqCst);
                at(&seen, granule).unwrap().store(now, SeqCst);
            }
            marks.settle(range, pass);
        }
    };
    thread::scope(|scope| {
        let write = |seed: u64| {
            let mut state = seed;
            for _ in 0..ROUNDS {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let granule = state >> 58;
                at(&written, granule).unwrap().fetch_add(1, SeqCst);
                memory.complete(granule..granule + 1);
            }
        };
        let writers = [1, 2].map(|seed| scope.spawn(move || write(seed)));
        let mut marks = memory.marks();
        let mut pass = Pass::FIRST;
        let is_over = &is_over;
        scope.spawn(move || {
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            is_over.store(true, SeqCst);
        });
        loop {
            let was_over = is_over.load(SeqCst);
            copy(&mut marks, pass);
            pass = pass.next();
            if was_over {
                break;
            }
        }
    });
    let values = |of: &[AtomicU64]| of.iter().map(|value| value.load(SeqCst)).collect::<Vec<_>>();
    assert_eq!(values(&seen), values(&written));
}

/// The process is killed at some exchange of a collection: what is marked after is what was marked before.
#[test]
fn a_collection_that_is_cut_off_loses_nothing() {
    for survived in 0..40 {
        let memory = Memory::of(1000 * GRANULE);
        (0..20).for_each(|step| memory.complete(step * 9..step * 9 + 2));
        memory.complete(200..1000);
        let before = marked_granules(&memory);
        let words = memory.live.iter().filter(|word| word.load(SeqCst) != 0).count() as i32;
        // The words are cleared in order, so that a cut is a prefix of them.
        let mut left = survived;
        let cut = catch_unwind(AssertUnwindSafe(|| {
            for (word, live) in (0..).zip(&memory.live) {
                take(live, |seen| {
                    set(&memory.pending, memory.geometry, word, marked(seen), 1);
                    left -= 1;
                    if left < 0 {
                        resume_unwind(Box::new("killed"));
                    }
                });
            }
        }));
        assert_eq!(cut.is_err(), survived < words, "{survived} of {words}");
        let after = marked_granules(&memory);
        assert!(before.iter().all(|granule| after.contains(granule)));
        let mut marks = memory.marks();
        marks.collect(pass(2));
        assert!(marks.is_quiet());
    }
}

fn is_set(map: &[AtomicU64], byte: u64) -> bool {
    at(map, byte / LANES).unwrap().load(SeqCst) >> (byte % LANES * 8) & 0xff != 0
}

fn live_granules(memory: &Memory) -> Vec<u64> {
    let is_live = |granule: &u64| is_set(&memory.live, *granule) || is_set(&memory.coarse, *granule >> COARSE_SHIFT);
    (0..memory.geometry.granules()).filter(is_live).collect()
}

fn marked_granules(memory: &Memory) -> Vec<u64> {
    let mut granules = live_granules(memory);
    granules.extend((0..memory.geometry.granules()).filter(|granule| is_set(&memory.pending, *granule)));
    granules
}

#[derive(Debug, Clone)]
enum Step {
    /// A write changes the disk; it completes when so many more steps are done.
    Write(Range<u64>, usize),
    Collect,
    /// The oldest granules that are pending are read and sent.
    Send(usize),
    /// The oldest of what was sent is acknowledged.
    Acknowledge(usize),
    /// The agent starts again: what was sent and not acknowledged is void.
    Restart,
}

const GRANULES: u64 = 1500;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..GRANULES, 1..5_u64, 0..4_usize).prop_map(|(at, length, delay)| Step::Write(at..(at + length).min(GRANULES), delay)),
        1 => (0..GRANULES, 520..GRANULES, 0..4_usize).prop_map(|(at, length, delay)| Step::Write(at..(at + length).min(GRANULES), delay)),
        3 => Just(Step::Collect),
        4 => (1..40_usize).prop_map(Step::Send),
        4 => (1..4_usize).prop_map(Step::Acknowledge),
        1 => Just(Step::Restart),
    ]
}

/// A disk, a volume and what is between them; contents are version numbers.
struct Model<'a> {
    memory: &'a Memory,
    marks: Marks<&'a [AtomicU64]>,
    disk: Vec<u64>,
    volume: Vec<u64>,
    /// Writes that are on the disk, but not complete: granules, and steps that are left.
    running: Vec<(Range<u64>, usize)>,
    /// What was sent: granule, contents, pass.
    sent: Vec<(u64, u64, Pass)>,
    pass: Pass,
    /// The pass that collected each granule last.
    collected: Vec<Pass>,
}

impl<'a> Model<'a> {
    fn new(memory: &'a Memory) -> Self {
        let empty = || vec![0; usize::try_from(GRANULES).unwrap()];
        let marks = memory.marks();
        let collected = vec![Pass::FIRST; usize::try_from(GRANULES).unwrap()];
        let (running, sent, pass) = (vec![], vec![], Pass::FIRST);
        Self { memory, marks, disk: empty(), volume: empty(), running, sent, pass, collected }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(granules, delay) => {
                granules.clone().for_each(|granule| self.disk[granule as usize] += 1);
                self.running.push((granules, delay));
            }
            Step::Collect => {
                self.pass = self.pass.next();
                for granule in live_granules(self.memory) {
                    self.collected[granule as usize] = self.pass;
                }
                self.marks.collect(self.pass);
            }
            Step::Send(count) => self.send(count),
            Step::Acknowledge(count) => self.acknowledge(count),
            Step::Restart => {
                self.sent.clear();
                self.marks = self.memory.marks();
                self.pass = Pass::FIRST;
                self.collected.fill(Pass::FIRST);
            }
        }
        let memory = self.memory;
        self.running.retain_mut(|(granules, left)| {
            let is_complete = *left == 0;
            if is_complete {
                memory.complete(granules.clone());
            }
            *left = left.saturating_sub(1);
            !is_complete
        });
    }

    fn send(&mut self, count: usize) {
        let ranges = self.marks.pending();
        let granules = ranges.into_iter().flat_map(|range| range.offset / GRANULE..range.end() / GRANULE);
        let sent = granules.take(count).map(|at| (at, self.disk[at as usize], self.collected[at as usize]));
        let sent: Vec<_> = sent.collect();
        self.sent.extend(sent);
    }

    fn acknowledge(&mut self, count: usize) {
        for (granule, contents, pass) in self.sent.drain(..count.min(self.sent.len())) {
            self.volume[granule as usize] = contents;
            self.marks.settle(range(granule..granule + 1), pass);
        }
    }

    /// Whatever differs is marked, or a write of it will still complete.
    fn check(&self) {
        let marked = marked_granules(self.memory);
        for granule in 0..GRANULES {
            let is_equal = self.disk[granule as usize] == self.volume[granule as usize];
            let will_be = self.running.iter().any(|(granules, _)| granules.contains(&granule));
            assert!(is_equal || will_be || marked.contains(&granule), "granule {granule} is forgotten");
        }
    }
}

proptest! {
    /// Failures print their seed and are kept beside this file.
    #[test]
    fn no_interleaving_forgets_a_difference(steps in prop::collection::vec(step(), 1..120)) {
        let memory = Memory::of(GRANULES * GRANULE);
        let mut model = Model::new(&memory);
        for step in steps {
            model.step(step);
            model.check();
        }
        while !model.running.is_empty() {
            model.step(Step::Acknowledge(0));
        }
        model.step(Step::Collect);
        model.step(Step::Send(usize::MAX));
        model.step(Step::Acknowledge(usize::MAX));
        prop_assert_eq!(&model.disk, &model.volume);
        prop_assert_eq!(model.marks.pending(), vec![]);
    }

    /// Settling whatever parts of a disk, in whatever order: the count agrees with the marks.
    #[test]
    fn the_count_of_what_is_pending_is_right(steps in prop::collection::vec(step(), 1..60)) {
        let memory = Memory::of(GRANULES * GRANULE - 100);
        let mut model = Model::new(&memory);
        for step in steps {
            model.step(step);
            let pending = memory.pending.iter().map(|word| count(marked(word.load(SeqCst)))).sum::<u64>();
            prop_assert_eq!(pending, model.marks.pending_count);
        }
    }
}
