//! What was written to the source, write by write: enough to say what its disks were after every one of them, and so
//! whether a volume is what they were at one moment.
//!
//! A disk is made of blocks of 4 KiB. Write *n* fills some neighbouring blocks with records, each made of *n*, its place and the
//! run's seed, so that every byte can be checked; or it makes them zero. Writes are made one after the other, each durable before the
//! next. So the disks have been in as many states as there were writes, and the newest record in a volume says in which of them it must be:
//! a record that is missing, or one that is there too early, is a torn checkpoint.

use rehost_tests::random::Random;

use crate::failure::{Failure, Kind, Outcome};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
const MAGIC: u64 = 0x7265_686f_7374_2d66;
/// The newest numbers that a volume without records has.
const NOTHING: usize = 0;

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) disk: usize,
    pub(crate) block: usize,
    pub(crate) blocks: usize,
    /// Zeros instead of records.
    pub(crate) zero: bool,
}

impl Write {
    fn covers(&self, disk: usize, block: usize) -> bool {
        self.disk == disk && (self.block..self.block + self.blocks).contains(&block)
    }
}

/// The disks as they were at first, and every write since, in order: write *n* is at place *n - 1*.
#[derive(Debug, Clone)]
pub(crate) struct History {
    seed: u64,
    pub(crate) initial: Vec<Vec<u8>>,
    pub(crate) writes: Vec<Write>,
}

impl History {
    /// Disks of so many blocks: three quarters random, a quarter zeros.
    pub(crate) fn new(seed: u64, disks: usize, blocks: usize) -> Self {
        let mut random = Random::new(seed);
        let disk = |_| {
            let mut bytes = vec![0; blocks * BLOCK];
            random.fill(bytes.get_mut(..blocks * BLOCK / 4 * 3).unwrap_or_default());
            bytes
        };
        Self { seed, initial: (0..disks).map(disk).collect(), writes: Vec::new() }
    }

    /// The bytes of write `number`.
    pub(crate) fn content(&self, number: usize, write: &Write) -> Vec<u8> {
        let mut bytes = vec![0; write.blocks * BLOCK];
        if !write.zero {
            for (at, block) in bytes.chunks_mut(BLOCK).enumerate() {
                self.record(number, write.disk, write.block + at, block);
            }
        }
        bytes
    }

    /// The disks after the first `count` writes.
    pub(crate) fn state(&self, count: usize) -> Vec<Vec<u8>> {
        let mut disks = self.initial.clone();
        (0..count).for_each(|at| self.apply(at, &mut disks));
        disks
    }

    /// Makes the write at this place, if there is one.
    fn apply(&self, at: usize, disks: &mut [Vec<u8>]) {
        let Some(write) = self.writes.get(at) else { return };
        let content = self.content(at + 1, write);
        let begin = write.block * BLOCK;
        if let Some(place) = disks.get_mut(write.disk).and_then(|d| d.get_mut(begin..begin + content.len())) {
            place.copy_from_slice(&content);
        }
    }

    /// After how many writes the source was as these volumes are. The write that was under way at that moment may be there in part.
    ///
    /// # Errors
    /// [`Kind::Torn`] if it never was; [`Kind::Lost`] if that was before write `least`.
    pub(crate) fn moment(&self, volumes: &[Vec<u8>], least: usize) -> Outcome<usize> {
        let newest = self.newest(volumes);
        let mut state = self.state(newest);
        let (mut torn, mut older) = (None, false);
        // Zeros leave no number, and may lie on all that a later record wrote: the state may be one after the newest record's too.
        for count in newest..=self.writes.len() {
            match self.difference(&state, volumes, count) {
                None if count >= least => return Ok(count),
                None => older = true,
                found => torn = torn.or(found),
            }
            self.apply(count, &mut state);
        }
        let text = format!(
            "of {} writes, at least {least} acknowledged, the newest in the volumes is {newest}",
            self.writes.len()
        );
        match torn {
            Some((disk, block)) if !older => {
                let found =
                    volumes.get(disk).and_then(|v| v.get(block * BLOCK..(block + 1) * BLOCK)).unwrap_or_default();
                let found = self.number(disk, block, found);
                let last = self.writes.iter().take(newest).rposition(|write| write.covers(disk, block));
                let last = last.map_or("nothing".to_owned(), |at| format!("write {}", at + 1));
                let found = found.map_or("no record".to_owned(), |number| format!("write {number}"));
                Err(Failure::new(
                    Kind::Torn,
                    format!("disk {disk} block {block} has {found} instead of {last}; {text}"),
                ))
            }
            _ => Err(Failure::new(Kind::Lost, text)),
        }
    }

    /// The number of the newest record anywhere.
    fn newest(&self, volumes: &[Vec<u8>]) -> usize {
        let numbers = volumes.iter().enumerate().flat_map(|(disk, bytes)| {
            bytes.chunks(BLOCK).enumerate().filter_map(move |(block, found)| self.number(disk, block, found))
        });
        numbers.max().unwrap_or(NOTHING)
    }

    /// The number of the record in a block, if it is one, with every byte right.
    fn number(&self, disk: usize, block: usize, found: &[u8]) -> Option<usize> {
        let (head, _) = found.split_first_chunk::<16>()?;
        let (magic, number) = head.split_at(8);
        if magic != MAGIC.to_le_bytes() {
            return None;
        }
        let number = usize::try_from(u64::from_le_bytes(number.try_into().ok()?)).ok()?;
        let mut expected = vec![0; BLOCK];
        self.record(number, disk, block, &mut expected);
        (expected == found).then_some(number)
    }

    fn record(&self, number: usize, disk: usize, block: usize, to: &mut [u8]) {
        let key = (number as u64) << 32 ^ (disk as u64) << 24 ^ block as u64;
        Random::new(self.seed ^ key.wrapping_mul(0x9E37_79B9_7F4A_7C15)).fill(to);
        if let Some((head, _)) = to.split_first_chunk_mut::<16>() {
            head[..8].copy_from_slice(&MAGIC.to_le_bytes());
            head[8..].copy_from_slice(&(number as u64).to_le_bytes());
        }
    }

    /// The first block that differs and that write `count + 1`, under way, does not excuse: each byte is as before it or as after it.
    fn difference(&self, state: &[Vec<u8>], volumes: &[Vec<u8>], count: usize) -> Option<(usize, usize)> {
        let under_way = self.writes.get(count).map(|write| (write, self.content(count + 1, write)));
        let excused = |disk: usize, block: usize, before: &[u8], found: &[u8]| {
            let Some((write, after)) = under_way.as_ref().filter(|(write, _)| write.covers(disk, block)) else {
                return false;
            };
            let after = after.get((block - write.block) * BLOCK..).unwrap_or_default();
            found.iter().zip(before).zip(after).all(|((found, before), after)| found == before || found == after)
        };
        for (disk, (expected, found)) in state.iter().zip(volumes).enumerate() {
            if expected == found {
                continue;
            }
            let pairs = expected.chunks(BLOCK).zip(found.chunks(BLOCK)).enumerate();
            for (block, (expected, found)) in pairs {
                if expected != found && !excused(disk, block, expected, found) {
                    return Some((disk, block));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let mut history = History::new(7, 2, 64);
        for at in 0..20 {
            let write = Write { disk: at % 2, block: (at * 13) % 60, blocks: 1 + at % 4, zero: at % 5 == 4 };
            history.writes.push(write);
        }
        history
    }

    #[test]
    fn every_state_is_recognised() {
        let history = history();
        for count in 0..=20 {
            // Zeros that were just written may be taken for zeros that are being written.
            let found = history.moment(&history.state(count), 0).unwrap();
            assert!(found == count || found + 1 == count, "{count} was taken for {found}");
            assert_eq!(history.moment(&history.state(count), count).unwrap(), count);
        }
    }

    #[test]
    fn zeros_may_lie_on_the_newest_record() {
        let mut history = history();
        history.writes.push(Write { disk: 0, block: 7, blocks: 2, zero: false });
        history.writes.push(Write { disk: 1, block: 3, blocks: 1, zero: true });
        history.writes.push(Write { disk: 0, block: 6, blocks: 4, zero: true });
        assert_eq!(history.moment(&history.state(23), 23).unwrap(), 23);
    }

    #[test]
    fn a_mixture_is_torn_and_an_old_state_is_lost() {
        let history = history();
        let (mut early, late) = (history.state(4), history.state(18));
        assert_eq!(history.moment(&early, 10).unwrap_err().kind, Kind::Lost);
        early[0] = late[0].clone();
        assert_eq!(history.moment(&early, 0).unwrap_err().kind, Kind::Torn);
        let mut flipped = history.state(18);
        flipped[1][5 * BLOCK + 100] ^= 1;
        assert_eq!(history.moment(&flipped, 0).unwrap_err().kind, Kind::Torn);
    }

    #[test]
    fn the_write_under_way_may_be_there_in_part() {
        let history = history();
        let mut volumes = history.state(10);
        let next = history.writes[10];
        let (at, content) = (next.block * BLOCK, history.content(11, &next));
        volumes[next.disk][at..at + 100].copy_from_slice(&content[..100]);
        assert_eq!(history.moment(&volumes, 10).unwrap(), 10);
        volumes[next.disk][at..at + 100].fill(3);
        assert_eq!(history.moment(&volumes, 10).unwrap_err().kind, Kind::Torn);
    }

    #[test]
    fn a_write_under_way_does_not_hide_one_that_was_lost() {
        let mut history = history();
        history.writes.push(Write { disk: 0, block: 7, blocks: 2, zero: false });
        history.writes.push(Write { disk: 0, block: 6, blocks: 4, zero: false });
        assert_eq!(history.moment(&history.state(20), 21).unwrap_err().kind, Kind::Lost);
    }
}
