//! What a delta costs here, printed and not judged.

use std::{fs, sync::Arc};

use rehost_model::{ServerId, VolumeId, replicator::Assignment};
use rehost_protocol::{ByteCount, ByteOffset};

use super::{
    super::{Budget, FileStorage, Journal, MAX_EXTENTS, Member, Place, Recorded, Room, Volumes},
    world::{Random, checkpoint, key},
};
use crate::engine::{manifest::Chunks, random_name::RandomName, refusal::Refusal, volume::Volume};

const BLOCKS: usize = 16_000;
const SIZE: u64 = 2 << 30;

struct One(Volume);

impl Volumes for One {
    fn write(&mut self, _: &VolumeId, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.0.write_applied(ByteOffset(offset), bytes)
    }

    fn zero(&mut self, _: &VolumeId, offset: u64, length: u64) -> Result<(), Refusal> {
        self.0.zero(ByteOffset(offset), ByteCount(length))
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        self.0.flush()
    }

    fn record(&mut self, _: Recorded) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Seconds that this thread has run.
fn seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

#[test]
fn a_delta_of_scattered_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.img");
    fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    let assignment = Assignment {
        server: ServerId::generate(),
        volume: VolumeId::generate(),
        size_bytes: SIZE,
        location: path.display().to_string(),
        initialized: false,
    };
    let member = Member { volume: assignment.volume.clone(), lineage: RandomName([1; 16]) };
    let mut volume = One(Volume::open(&assignment, Arc::new(Chunks::new(SIZE))).unwrap());
    let path = directory.path().join("journal");
    let place =
        Place { path: path.clone(), server: assignment.server, limit: 1 << 30, budget: Budget::new(MAX_EXTENTS) };
    let journal = Journal::create(Arc::new(FileStorage::create(&path).unwrap()), place, key(7)).unwrap();
    let mut random = Random(1);
    let mut places: Vec<u64> = (0..BLOCKS).map(|_| random.next() % (SIZE / 4096) * 4096).collect();
    places.sort_unstable();
    places.dedup();
    for round in ["fresh blocks", "allocated blocks"] {
        let start = seconds();
        for at in &places {
            assert_eq!(journal.write(&member, *at, &[7; 4096]).unwrap(), Room::Taken);
        }
        journal.sync(journal.barrier().unwrap()).unwrap();
        let appended = seconds();
        journal.commit(std::slice::from_ref(&member), checkpoint(0), &mut volume).unwrap();
        let applied = seconds();
        let count = places.len();
        println!("{count} {round}: append {:.3} CPU-s, commit {:.3} CPU-s", appended - start, applied - appended);
    }
    let mut block = [0; 4096];
    for at in &places {
        volume.0.read(*at, &mut block).unwrap();
        assert_eq!(block, [7; 4096]);
    }
}
