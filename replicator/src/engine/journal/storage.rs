//! Where a journal's bytes lie: a file, or in tests something that fails when it is told to.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use rehost_direct::{ALIGNMENT, BLOCK};
use rustix::fs::OFlags;

use crate::{engine::volume::room_beside, planted};

/// A file, as far as a journal needs one.
pub(in crate::engine) trait Storage: Send + Sync {
    /// Reads as many bytes as there are; fewer than asked for at the end only.
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes`.
    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;
    fn length(&self) -> io::Result<u64>;
    fn set_length(&self, length: u64) -> io::Result<()>;
}

/// A journal's file.
pub(in crate::engine) struct FileStorage {
    file: File,
    /// The same past the page cache, where the file system has that: records are written once and read once, in their
    /// order, so that the cache would be nothing but copies, and as much memory as a journal is long. Others cannot.
    direct: Option<File>,
}

impl FileStorage {
    pub(in crate::engine) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self::with)
    }

    /// A new file, or an old one that counts as none; durable as a name.
    pub(in crate::engine) fn create(path: &Path) -> io::Result<Self> {
        planted::io("journal")?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(Self::with(file))
    }

    fn with(file: File) -> Self {
        let direct = open_direct(&file);
        Self { file, direct }
    }

    /// The file that whole blocks are read from and written to.
    fn for_blocks(&self, position: u64, length: usize) -> &File {
        let whole = position.is_multiple_of(ALIGNMENT) && length.is_multiple_of(BLOCK);
        self.direct.as_ref().filter(|_| whole).unwrap_or(&self.file)
    }
}

/// Opens the same file once more, and not what may lie at its path by now.
fn open_direct(file: &File) -> Option<File> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(same).ok()
}

/// Some file systems open for direct I/O and then refuse it, and memory may lie where it is refused.
fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// Reads until `buffer` is full or the file ends.
fn read_full(file: &File, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, position + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Storage for FileStorage {
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match read_full(self.for_blocks(position, buffer.len()), position, buffer) {
            // Also at the end of a file that is not whole blocks: what comes after it cannot be asked for past the cache.
            Err(error) if is_refused(&error) => read_full(&self.file, position, buffer),
            result => result,
        }
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        planted::io("journal")?;
        // The header is there, and is what says that the rest is not needed any more.
        if position > 0 {
            room_beside(&self.file)?;
        }
        match self.for_blocks(position, bytes.len()).write_all_at(bytes, position) {
            Err(error) if is_refused(&error) => self.file.write_all_at(bytes, position),
            result => result,
        }
    }

    fn sync(&self) -> io::Result<()> {
        planted::io("journal")?;
        self.file.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehost_direct::Aligned;

    /// What `statfs` says of a file system in memory (linux/magic.h).
    const TMPFS: i64 = 0x0102_1994;

    #[test]
    fn whole_blocks_and_anything_else_are_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let with = FileStorage::create(&path).unwrap();
        let kind = rustix::fs::fstatfs(&with.file).unwrap().f_type;
        assert!(with.direct.is_some() || kind == TMPFS, "the file system of temporary files has direct I/O");
        let without = FileStorage { file: File::open(&path).unwrap(), direct: None };
        let mut blocks = Aligned::zeroed(4 * BLOCK);
        for (byte, number) in blocks.iter_mut().zip(0_u32..) {
            *byte = (number % 251).to_le_bytes()[0];
        }
        with.write_at(0, b"header").unwrap();
        with.write_at(ALIGNMENT, &blocks).unwrap();
        // Memory that lies anywhere.
        with.write_at(ALIGNMENT * 2, &[7; BLOCK + 1][1..]).unwrap();
        with.write_at(ALIGNMENT * 3 + 5, b"within").unwrap();
        with.sync().unwrap();
        let mut expected = blocks.to_vec();
        expected[BLOCK..2 * BLOCK].fill(7);
        expected[2 * BLOCK + 5..2 * BLOCK + 11].copy_from_slice(b"within");
        for length in [5 * ALIGNMENT, 4 * ALIGNMENT + 100] {
            with.set_length(length).unwrap();
            expected.truncate(usize::try_from(length).unwrap() - BLOCK);
            for storage in [&with, &without] {
                let mut found = Aligned::zeroed(8 * BLOCK);
                let count = storage.read_at(ALIGNMENT, &mut found).unwrap();
                assert!(found[..count] == expected, "up to {length}");
                let mut header = [0; 7];
                assert_eq!((storage.read_at(0, &mut header).unwrap(), &header), (7, b"header\0"));
            }
        }
    }
}
