//! Disk images of random bytes, and whether two images are the same.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Context, Result};
use crate::random::Random;

const STEP: usize = 1 << 20;

/// Writes a disk of `mib` MiB that does not compress and holds nothing that is known; what it holds depends on the seed.
///
/// # Errors
/// When it cannot be written.
pub fn write_random(path: &Path, mib: usize, seed: u64) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = File::create(path).context(what)?;
    let (mut random, mut step) = (Random::new(seed), vec![0; STEP]);
    for _ in 0..mib {
        random.fill(&mut step);
        file.write_all(&step).context(what)?;
    }
    file.sync_all().context(what)
}

/// The offset of the first MiB in which two images differ, their ends included; `None` when they are the same.
///
/// # Errors
/// When one of them cannot be read.
pub fn first_difference(left: &Path, right: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| File::open(path).context(|| format!("read {}", path.display()));
    let (mut a, mut b, mut at) = (open(left)?, open(right)?, 0);
    loop {
        let (left, right) = (read_step(&mut a, left)?, read_step(&mut b, right)?);
        if left != right {
            return Ok(Some(at));
        }
        if left.is_empty() {
            return Ok(None);
        }
        at += STEP as u64;
    }
}

fn read_step(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut step = Vec::with_capacity(STEP);
    file.take(STEP as u64).read_to_end(&mut step).context(|| format!("read {}", path.display()))?;
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_the_same_or_differ_somewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        write_random(&one, 3, 1).unwrap();
        write_random(&other, 3, 1).unwrap();
        assert_eq!(first_difference(&one, &other).unwrap(), None);
        File::options().append(true).open(&other).unwrap().write_all(b"more").unwrap();
        assert_eq!(first_difference(&one, &other).unwrap(), Some(3 << 20));
        write_random(&other, 3, 2).unwrap();
        assert_eq!(first_difference(&one, &other).unwrap(), Some(0));
    }
}
