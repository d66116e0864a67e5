//! Where a journal's bytes lie: a file, or in tests something that fails when it is told to.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

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
pub(in crate::engine) struct FileStorage(File);

impl FileStorage {
    pub(in crate::engine) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    /// A new file, or an old one that counts as none; durable as a name.
    pub(in crate::engine) fn create(path: &Path) -> io::Result<Self> {
        planted::io("journal")?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(Self(file))
    }
}

impl Storage for FileStorage {
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, position + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        planted::io("journal")?;
        // The header is there, and is what says that the rest is not needed any more.
        if position > 0 {
            room_beside(&self.0)?;
        }
        self.0.write_all_at(bytes, position)
    }

    fn sync(&self) -> io::Result<()> {
        planted::io("journal")?;
        self.0.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}
