//! What a copy holds, read from its image while nothing runs on it: partitions cut out by the partition table, file systems
//! checked by `e2fsck`, files taken out by `debugfs`. Nothing is mounted.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::record::count;
use super::writer::LATEST_EVERY;
use crate::error::{Context, Error, Result};
use crate::process::last_lines;

const SECTOR: u64 = 512;
const STEP: usize = 1 << 20;

/// An ext4 file system that was cut out of a disk image.
#[derive(Debug)]
pub struct FileSystem {
    image: PathBuf,
}

impl FileSystem {
    /// Copies partition `number` (from 1) of a disk with an MBR to `out`.
    ///
    /// # Errors
    /// When there is no such partition, or the copy fails.
    pub fn cut_out(disk: &Path, number: usize, out: &Path) -> Result<Self> {
        let (begin, length) = partition(disk, number)?;
        copy_range(disk, begin, length, out)?;
        Ok(Self { image: out.to_owned() })
    }

    /// Whether its journal has to be replayed before it is clean: a frozen file system has an empty one.
    ///
    /// # Errors
    /// When it is no ext4.
    pub fn needs_recovery(&self) -> Result<bool> {
        let (status, text) = tool("dumpe2fs", &["-h"], &self.image)?;
        if status != Some(0) || !text.contains("Filesystem features:") {
            return Err(self.broken("dumpe2fs", &text));
        }
        Ok(text.lines().any(|line| line.starts_with("Filesystem features:") && line.contains("needs_recovery")))
    }

    /// Replays the journal and the list of orphans, as a kernel would when it mounts the file system.
    ///
    /// # Errors
    /// When more than that was wrong: with e2fsck's words.
    pub fn recover(&self) -> Result<()> {
        let (status, text) = tool("e2fsck", &["-p"], &self.image)?;
        if matches!(status, Some(0 | 1)) { Ok(()) } else { Err(self.broken("e2fsck -p", &text)) }
    }

    /// Checks everything and changes nothing.
    ///
    /// # Errors
    /// When anything is wrong: with e2fsck's words.
    pub fn check(&self) -> Result<()> {
        let (status, text) = tool("e2fsck", &["-fn"], &self.image)?;
        if status == Some(0) { Ok(()) } else { Err(self.broken("e2fsck -fn", &text)) }
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let out = self.image.with_extension("file");
        let (_, text) = tool("debugfs", &["-R", &format!("dump {path} {}", out.display())], &self.image)?;
        let bytes = fs::read(&out).map_err(|_| self.broken(&format!("debugfs found no {path}"), &text))?;
        fs::remove_file(&out).context(|| format!("remove {}", out.display()))?;
        Ok(bytes)
    }

    fn broken(&self, what: &str, text: &str) -> Error {
        Error::Unexpected(format!("{what} on {}: {}", self.image.display(), last_lines(text, 15)))
    }
}

/// What a copy says about the moment of which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// Records on the root file system.
    pub log: u64,
    /// Records on the data file system.
    pub second: u64,
    /// The number in `latest`; 0 before the first.
    pub latest: u64,
    /// Whether the root file system's journal had to be replayed.
    pub replayed: bool,
}

/// Where the writer writes; paths inside their file systems.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The first partition's file of records.
    pub log: &'a str,
    /// The data partition's file of records.
    pub second: &'a str,
    /// The file that is replaced by rename.
    pub latest: &'a str,
}

/// The partitions of the Debian server.
const ROOT: usize = 1;
const DATA: usize = 3;

impl Evidence {
    /// Reads the image of the Debian server's disk; `folder` is for what is cut out of it.
    ///
    /// # Errors
    /// When a file system is not clean after what a kernel would do, or the files contradict each other.
    pub fn of_image(disk: &Path, places: Places<'_>, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
        let root = FileSystem::cut_out(disk, ROOT, &folder.join("root.ext4"))?;
        let data = FileSystem::cut_out(disk, DATA, &folder.join("data.ext4"))?;
        let replayed = root.needs_recovery()?;
        for file_system in [&root, &data] {
            file_system.recover()?;
            file_system.check()?;
        }
        let log = count(&root.read(places.log)?)?;
        let second = count(&data.read(places.second)?)?;
        let latest = if log > LATEST_EVERY { number(&root.read(places.latest)?)? } else { 0 };
        let evidence = Self { log, second, latest, replayed };
        fs::remove_dir_all(folder).context(|| format!("remove {}", folder.display()))?;
        evidence.expect_one_moment()
    }

    fn expect_one_moment(self) -> Result<Self> {
        let order = self.log == self.second || self.log == self.second + 1;
        // The record is written before `latest`: one that is not there yet must not be named, and an old one must be gone.
        let named = self.latest <= self.log && self.log - self.latest <= LATEST_EVERY;
        if order && named {
            return Ok(self);
        }
        Err(Error::Unexpected(format!("the files are of different moments: {self:?}")))
    }

    /// Whether the copy is of a moment between two counts of acknowledged records.
    ///
    /// # Errors
    /// [`Error::Unexpected`] with both.
    pub fn expect_between(self, before: u64, after: u64) -> Result<()> {
        // One more may have been written and not been acknowledged yet.
        if (before..=after + 1).contains(&self.log) {
            return Ok(());
        }
        Err(Error::Unexpected(format!(
            "the copy has {} records: there were {before} before its checkpoint and {after} after it",
            self.log
        )))
    }
}

fn number(line: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(line);
    let number = text.split(' ').next().and_then(|word| word.parse().ok());
    number
        .filter(|_| line.len() == super::record::RECORD_BYTES)
        .ok_or_else(|| Error::Unexpected(format!("`latest` is not a whole record: {text:?}")))
}

/// First byte and length of a primary partition.
fn partition(disk: &Path, number: usize) -> Result<(u64, u64)> {
    let what = || format!("read the partition table of {}", disk.display());
    let mut entry = [0; 16];
    let place = 446 + 16 * u64::try_from(number.saturating_sub(1)).unwrap_or_default();
    File::open(disk).and_then(|file| file.read_exact_at(&mut entry, place)).context(what)?;
    let word = |at: usize| {
        let bytes = entry.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        u64::from(u32::from_le_bytes(bytes.unwrap_or_default()))
    };
    let (begin, length) = (word(8) * SECTOR, word(12) * SECTOR);
    if length == 0 {
        return Err(Error::Unexpected(format!("{} has no partition {number}", disk.display())));
    }
    Ok((begin, length))
}

/// Copies a part of a file and leaves holes where it is zero.
fn copy_range(from: &Path, begin: u64, length: u64, to: &Path) -> Result<()> {
    let what = || format!("copy from {} to {}", from.display(), to.display());
    let mut input = File::open(from).context(what)?;
    input.seek(SeekFrom::Start(begin)).context(what)?;
    let mut input = input.take(length);
    let mut output = File::create(to).context(what)?;
    let mut step = Vec::with_capacity(STEP);
    loop {
        step.clear();
        input.by_ref().take(STEP as u64).read_to_end(&mut step).context(what)?;
        if step.is_empty() {
            return output.set_len(length).context(what);
        }
        if step.iter().any(|byte| *byte != 0) {
            output.write_all(&step).context(what)?;
        } else {
            let skip = i64::try_from(step.len()).unwrap_or_default();
            output.seek(SeekFrom::Current(skip)).context(what)?;
        }
    }
}

/// Runs a tool of e2fsprogs on an image; its status and everything it printed.
fn tool(name: &str, arguments: &[&str], image: &Path) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C").args(arguments).arg(image);
    let output = command.output().context(|| format!("start {name} (Debian's package e2fsprogs)"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::record::record;

    const PLACES: Places<'static> = Places { log: "/records", second: "/records", latest: "/latest" };

    /// A disk as the Debian server's, with two small file systems.
    fn disk(folder: &Path, log: u64, second: u64, latest: u64) -> PathBuf {
        let image = folder.join("disk.img");
        let disk = File::create(&image).unwrap();
        disk.set_len(32 << 20).unwrap();
        let records = |count| (1..=count).map(|number| record(number, 5)).collect::<String>();
        for (partition, sectors, count) in [(0_u64, 2048_u64, log), (2, 34_816, second)] {
            let tree = folder.join(format!("tree{partition}"));
            fs::create_dir(&tree).unwrap();
            fs::write(tree.join("records"), records(count)).unwrap();
            fs::write(tree.join("latest"), record(latest, 0)).unwrap();
            let part = folder.join(format!("part{partition}"));
            File::create(&part).unwrap().set_len(14 << 20).unwrap();
            let (status, text) =
                tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap()], &part).unwrap();
            assert_eq!(status, Some(0), "{text}");
            disk.write_all_at(&fs::read(&part).unwrap(), sectors * SECTOR).unwrap();
            let mut entry = [0; 16];
            entry[8..12].copy_from_slice(&u32::try_from(sectors).unwrap().to_le_bytes());
            entry[12..].copy_from_slice(&(28_672_u32).to_le_bytes());
            disk.write_all_at(&entry, 446 + 16 * partition).unwrap();
        }
        image
    }

    #[test]
    fn evidence_is_read_from_an_image() {
        let folder = tempfile::tempdir().unwrap();
        let image = disk(folder.path(), 42, 41, 40);
        let evidence = Evidence::of_image(&image, PLACES, &folder.path().join("cut")).unwrap();
        assert_eq!(evidence, Evidence { log: 42, second: 41, latest: 40, replayed: false });
        evidence.expect_between(41, 45).unwrap();
        evidence.expect_between(43, 45).unwrap_err();
        evidence.expect_between(1, 40).unwrap_err();
        assert!(!folder.path().join("cut").exists());
    }

    #[test]
    fn files_of_different_moments_are_found() {
        for (log, second, latest) in [(42, 40, 40), (40, 42, 40), (42, 42, 50), (42, 42, 20)] {
            let folder = tempfile::tempdir().unwrap();
            let image = disk(folder.path(), log, second, latest);
            Evidence::of_image(&image, PLACES, &folder.path().join("cut")).unwrap_err();
        }
    }

    #[test]
    fn a_damaged_file_system_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let image = disk(folder.path(), 42, 42, 40);
        let file = File::options().write(true).open(&image).unwrap();
        // The block and inode bitmaps of the first group are somewhere behind the superblock.
        file.write_all_at(&[0x5a; 64 << 10], 2048 * SECTOR + (8 << 10)).unwrap();
        Evidence::of_image(&image, PLACES, &folder.path().join("cut")).unwrap_err();
    }
}
