//! The image: what a small server's disk looks like.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rehost_tests::random::Random;

/// Size of the image, in bytes.
pub(crate) const IMAGE_BYTES: u64 = 2 << 30;
const FILES_BYTES: u64 = 700_000_000;
const RANDOM_BYTES: u64 = 400_000_000;
/// Fixed: every run and every machine compares on the same random part.
const SEED: u64 = 1500;

/// Writes it; the bytes that are not zeros by construction.
pub(crate) fn write(path: &Path) -> Result<u64> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(IMAGE_BYTES)?;
    let files = write_files(&mut file)?;
    let mut random = Random::new(SEED);
    let mut buffer = vec![0; 1 << 20];
    // Data and zeros alternate, as they do on a disk that has been in use.
    let (mut written, mut at) = (0, files.next_multiple_of(1 << 20));
    while written < RANDOM_BYTES && at < IMAGE_BYTES {
        random.fill(&mut buffer);
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&buffer)?;
        written += buffer.len() as u64;
        at += 2 * buffer.len() as u64;
    }
    file.sync_all()?;
    Ok(files + written)
}

/// The machine's own programs and libraries, in the order of their names.
fn write_files(file: &mut File) -> Result<u64> {
    let mut written = 0;
    let mut buffer = vec![0; 1 << 20];
    for path in files_below(Path::new("/usr")) {
        let Ok(mut source) = File::open(&path) else { continue };
        loop {
            let n = source.read(&mut buffer).unwrap_or(0);
            let n = n.min(usize::try_from(FILES_BYTES - written)?);
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n])?;
            written += n as u64;
        }
        if written == FILES_BYTES {
            break;
        }
    }
    Ok(written)
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let (mut files, mut total) = (Vec::new(), 0);
    for path in paths {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            files.extend(files_below(&path));
        } else if metadata.is_file() && total < FILES_BYTES {
            total += metadata.len();
            files.push(path);
        }
    }
    files
}
