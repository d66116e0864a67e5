//! A journal, its volumes and their sidecars in memory, which can be cut off after any step.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use rehost_direct::{ALIGNMENT, BLOCK};
use rehost_model::{Epoch, ServerId, VolumeId, replication::Consistency};
use zeroize::Zeroizing;

use super::super::{
    Budget, Committed, DataKey, Journal, MAX_EXTENTS, Member, OpenError, Place, Recorded, Room, Storage, Volumes,
};
use crate::engine::{random_name::RandomName, refusal::Refusal};

pub(super) const SIZE: usize = 64 << 10;

pub(super) fn key(byte: u8) -> DataKey {
    Zeroizing::new([byte; 32])
}

/// A small generator, so that a seed names a run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// Counts what changes something, and lets nothing happen from the step on at which it is to end.
#[derive(Clone, Default)]
pub(super) struct Fate(Arc<Mutex<(usize, Option<usize>)>>);

impl Fate {
    pub(super) fn steps(&self) -> usize {
        self.0.lock().unwrap().0
    }

    /// Everything fails from the `nth` step from now on.
    pub(super) fn end_at(&self, nth: Option<usize>) {
        *self.0.lock().unwrap() = (0, nth);
    }

    pub(super) fn step(&self) -> io::Result<()> {
        let mut fate = self.0.lock().unwrap();
        if fate.1.is_some_and(|end| fate.0 >= end) {
            return Err(io::Error::other("it ends here"));
        }
        fate.0 += 1;
        Ok(())
    }
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// Bytes as they are seen, and as they would be after a power cut.
#[derive(Clone, Default)]
pub(super) struct Bytes {
    pub(super) seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

fn make(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, new) => {
            bytes.resize(bytes.len().max(at + new.len()), 0);
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

impl Bytes {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { seen: bytes.clone(), durable: bytes, unsynced: Vec::new() }
    }

    fn change(&mut self, change: Change) {
        make(&mut self.seen, &change);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.seen);
        self.unsynced.clear();
    }

    /// Of what was not synced, any sectors are there, and others are not.
    fn cut_power(&mut self, random: &mut Random) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Change::Write(at, new) => {
                    for (index, sector) in new.chunks(512).enumerate() {
                        if random.below(2) == 0 {
                            make(&mut self.durable, &Change::Write(at + index * 512, sector.to_vec()));
                        }
                    }
                }
                length @ Change::Length(_) => {
                    if random.below(2) == 0 {
                        make(&mut self.durable, &length);
                    }
                }
            }
        }
        self.seen.clone_from(&self.durable);
    }
}

/// A journal's file.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) bytes: Mutex<Bytes>,
    pub(super) fate: Fate,
    pub(super) writes: Mutex<usize>,
}

impl Memory {
    pub(super) fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().unwrap()
    }
}

impl Storage for Memory {
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.lock();
        let from = usize::try_from(position).unwrap().min(bytes.seen.len());
        let count = buffer.len().min(bytes.seen.len() - from);
        buffer[..count].copy_from_slice(&bytes.seen[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let whole = position.is_multiple_of(ALIGNMENT) && bytes.len().is_multiple_of(BLOCK);
        assert!(position == 0 || whole, "records are written in whole blocks");
        self.fate.step()?;
        *self.writes.lock().unwrap() += 1;
        self.lock().change(Change::Write(usize::try_from(position).unwrap(), bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.fate.step()?;
        self.lock().sync();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.lock().seen.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.fate.step()?;
        self.lock().change(Change::Length(usize::try_from(length).unwrap()));
        Ok(())
    }
}

/// What a sidecar says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sidecar {
    pub(super) epoch: Epoch,
    pub(super) consistent: bool,
}

/// Volumes and sidecars.
#[derive(Clone)]
pub(super) struct Disks {
    pub(super) volumes: BTreeMap<VolumeId, Bytes>,
    pub(super) sidecars: BTreeMap<VolumeId, Sidecar>,
    pub(super) fate: Fate,
    pub(super) largest: usize,
    pub(super) writes: usize,
}

fn refused(error: &io::Error) -> Refusal {
    Refusal::io("changing", std::path::Path::new("a volume"), error)
}

impl Volumes for Disks {
    fn write(&mut self, volume: &VolumeId, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.fate.step().map_err(|error| refused(&error))?;
        self.largest = self.largest.max(bytes.len());
        self.writes += 1;
        let offset = usize::try_from(offset).unwrap();
        self.volumes.get_mut(volume).unwrap().change(Change::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn zero(&mut self, volume: &VolumeId, offset: u64, length: u64) -> Result<(), Refusal> {
        self.write(volume, offset, &vec![0; usize::try_from(length).unwrap()])
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        for volume in self.volumes.values_mut() {
            self.fate.step().map_err(|error| refused(&error))?;
            volume.sync();
        }
        Ok(())
    }

    fn record(&mut self, what: Recorded) -> Result<(), Refusal> {
        for sidecar in self.sidecars.values_mut() {
            self.fate.step().map_err(|error| refused(&error))?;
            match what {
                Recorded::Checkpoint(committed) => {
                    *sidecar = Sidecar { epoch: committed.epoch, consistent: true };
                }
                Recorded::Inconsistent => sidecar.consistent = false,
            }
        }
        Ok(())
    }
}

/// Everything of one server.
pub(super) struct World {
    pub(super) place: Place,
    pub(super) memory: Arc<Memory>,
    pub(super) disks: Disks,
    pub(super) members: Vec<Member>,
}

impl World {
    /// Two volumes of random contents at epoch 1, and an empty journal.
    pub(super) fn new(random: &mut Random) -> (Self, Journal) {
        let fate = Fate::default();
        let budget = Budget::new(MAX_EXTENTS);
        let server = ServerId::generate();
        let place = Place { path: "journal".into(), server, limit: 64 << 20, budget };
        let members: Vec<Member> =
            (1..3).map(|n| Member { volume: VolumeId::generate(), lineage: RandomName([n; 16]) }).collect();
        let contents: Vec<u8> = (0..SIZE).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        let volumes = members.iter().map(|m| (m.volume.clone(), Bytes::new(contents.clone()))).collect();
        let sidecar = Sidecar { epoch: Epoch(1), consistent: true };
        let sidecars = members.iter().map(|m| (m.volume.clone(), sidecar)).collect();
        let disks = Disks { volumes, sidecars, fate: fate.clone(), largest: 0, writes: 0 };
        let memory = Arc::new(Memory { fate, ..Memory::default() });
        let journal = Journal::create(memory.clone(), place.clone(), key(7)).unwrap();
        (Self { place, memory, disks, members }, journal)
    }

    /// The same once more, with a life of its own.
    pub(super) fn fork(&self) -> Self {
        let fate = Fate::default();
        let bytes = Mutex::new(self.memory.lock().clone());
        let memory = Arc::new(Memory { bytes, fate: fate.clone(), ..Memory::default() });
        let disks = Disks { fate, ..self.disks.clone() };
        Self { place: self.place.clone(), memory, disks, members: self.members.clone() }
    }

    pub(super) fn open(&self) -> Result<(Journal, Option<Committed>), OpenError> {
        Journal::open(self.memory.clone(), self.place.clone(), key(7), None)
    }

    pub(super) fn cut_power(&mut self, random: &mut Random) {
        self.memory.lock().cut_power(random);
        self.disks.volumes.values_mut().for_each(|volume| volume.cut_power(random));
    }

    /// As a replicator that starts does it.
    pub(super) fn recover(&mut self) -> Journal {
        let (journal, committed) = self.open().unwrap();
        let inconsistent = self.disks.sidecars.values().any(|sidecar| !sidecar.consistent);
        match committed {
            Some(committed) => journal.finish(committed, &mut self.disks).unwrap(),
            None if inconsistent => journal.spill(&mut self.disks).unwrap(),
            None => {}
        }
        journal
    }

    /// What is on the volumes.
    pub(super) fn contents(&self) -> Vec<Vec<u8>> {
        self.members.iter().map(|member| self.disks.volumes[&member.volume].seen.clone()).collect()
    }

    /// What the volumes will be at the next checkpoint.
    pub(super) fn view(&self, journal: &Journal) -> Vec<Vec<u8>> {
        let mut contents = self.contents();
        for (member, bytes) in self.members.iter().zip(&mut contents) {
            journal.overlay(member, 0, bytes).unwrap();
        }
        contents
    }

    /// Makes a random change, to the journal and to what is expected; false if there was no room.
    pub(super) fn change(&self, journal: &Journal, expected: &mut [Vec<u8>], random: &mut Random) -> bool {
        let which = random.below(self.members.len());
        let at = random.below(SIZE);
        let length = 1 + random.below((SIZE - at).min(9000));
        let range = at..at + length;
        let member = &self.members[which];
        let room = if random.below(4) == 0 {
            expected[which][range].fill(0);
            journal.zero(member, at as u64, length as u64).unwrap()
        } else {
            let bytes: Vec<u8> = (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
            expected[which][range].copy_from_slice(&bytes);
            journal.write(member, at as u64, &bytes).unwrap()
        };
        room == Room::Taken
    }
}

pub(super) fn checkpoint(epoch: u64) -> Committed {
    Committed { epoch: Epoch(epoch), consistency: Consistency::Frozen }
}

/// A seed that names this run; given by `REHOST_SEED` to repeat one.
pub(super) fn seed() -> u64 {
    let given = std::env::var("REHOST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(time.subsec_nanos()) ^ time.as_secs()
    });
    println!("REHOST_SEED={seed}");
    seed
}
