//! Loads inside the source server: small files without end, and writes of every kind on one file.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::error::{Context, Result};
use crate::random::Random;

/// How many small files exist at a time.
const ALIVE: u64 = 200;
const BLOCK: u64 = 4096;
/// The longest single write, in blocks.
const LONGEST: u64 = 64;

/// Makes, renames and removes small files until the file system refuses: directory, inode and journal blocks change all the time.
pub fn small_files(folder: &Path, pause: Duration) {
    let (mut random, mut number) = (Random::new(1), 0);
    while small_file(folder, number, &mut random).is_ok() {
        number += 1;
        thread::sleep(pause);
    }
}

fn small_file(folder: &Path, number: u64, random: &mut Random) -> std::io::Result<()> {
    let place = |number: u64| folder.join(format!("d{}", number % 16)).join(format!("file-{number}"));
    let path = place(number);
    fs::create_dir_all(path.parent().unwrap_or(folder))?;
    let mut bytes = vec![0; usize::try_from(random.below(4 * BLOCK)).unwrap_or_default()];
    random.fill(&mut bytes);
    fs::write(path.with_extension("new"), &bytes)?;
    fs::rename(path.with_extension("new"), &path)?;
    if let Some(old) = number.checked_sub(ALIVE) {
        // Not there when this is the first round of a new run.
        let _ = fs::remove_file(place(old));
    }
    Ok(())
}

/// For `time`, changes a file of `mib` MiB in every way: buffered, direct, with fsync, holes, zero ranges, sizes.
///
/// # Errors
/// When a write fails. Kinds that the file system does not have are skipped.
pub fn every_kind(path: &Path, mib: u64, seed: u64, time: Duration) -> Result<u64> {
    let what = || format!("write {}", path.display());
    let buffered = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).context(what)?;
    buffered.set_len(mib << 20).context(what)?;
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
    let direct = OpenOptions::new().write(true).custom_flags(flags).open(path).context(what)?;
    let (mut random, start, mut writes) = (Random::new(seed), Instant::now(), 0);
    while start.elapsed() < time {
        one_write(&buffered, &direct, mib << 20, &mut random).context(what)?;
        writes += 1;
    }
    buffered.sync_all().context(what)?;
    Ok(writes)
}

fn one_write(buffered: &File, direct: &File, size: u64, random: &mut Random) -> std::io::Result<()> {
    let blocks = 1 + random.below(LONGEST);
    let (offset, length) = (random.below(size / BLOCK - blocks) * BLOCK, blocks * BLOCK);
    match random.below(8) {
        0..3 => buffered.write_all_at(Aligned::random(length, random).bytes(), offset),
        3..5 => direct.write_all_at(Aligned::random(length, random).bytes(), offset),
        5 => punch(buffered, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length),
        6 => punch(buffered, FallocateFlags::ZERO_RANGE, offset, length),
        _ => buffered.sync_data(),
    }
}

fn punch(file: &File, flags: FallocateFlags, offset: u64, length: u64) -> std::io::Result<()> {
    match fallocate(file, flags, offset, length) {
        Err(rustix::io::Errno::OPNOTSUPP) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Random bytes at an address that direct I/O accepts.
struct Aligned {
    buffer: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Aligned {
    fn random(length: u64, random: &mut Random) -> Self {
        let (length, block) = (usize::try_from(length).unwrap_or_default(), usize::try_from(BLOCK).unwrap_or_default());
        let mut buffer = vec![0; length + block];
        let begin = buffer.as_ptr().align_offset(block);
        random.fill(&mut buffer);
        Self { buffer, begin, length }
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.begin..self.begin + self.length).unwrap_or_default()
    }
}

/// Fills a file with random bytes, as a second disk's first content.
///
/// # Errors
/// When it cannot be written.
pub fn fill(path: &Path, mib: u64, seed: u64) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = File::create(path).context(what)?;
    let (mut random, mut step) = (Random::new(seed), vec![0; 1 << 20]);
    for _ in 0..mib {
        random.fill(&mut step);
        file.write_all(&step).context(what)?;
    }
    file.sync_all().context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_run_on_any_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let mut random = Random::new(3);
        for number in 0..ALIVE + 20 {
            small_file(folder.path(), number, &mut random).unwrap();
        }
        assert!(!folder.path().join("d0/file-0").exists() && folder.path().join("d0/file-208").exists());
        // A memory file system may refuse direct I/O: then there is nothing to try here.
        let file = folder.path().join("file");
        match every_kind(&file, 1, 7, Duration::from_millis(50)) {
            Ok(writes) => assert!(writes > 0),
            Err(error) => assert!(error.to_string().contains("write"), "{error}"),
        }
    }
}
