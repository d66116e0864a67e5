//! A disk of the source: a block device or an image file.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use rehost_direct::{ALIGNMENT, BLOCK};
use rehost_protocol::DIGEST_CHUNK;
use rustix::{
    fs::{Advice, OFlags, SeekFrom as SparseSeek, fadvise, seek},
    io::Errno,
};

use super::{
    buffer::{Buffer, STEP},
    config::DiskSource,
    error::SyncError,
    plan::{MOST_READS, Read},
};
use crate::{
    sys::batch_read::{BatchReader, Part},
    tracker::{ByteRange, DiskIdentity},
};

/// How much of a disk one digest request covers, where there is data.
const DATA_PIECE: u64 = 16 << 20;

/// An open disk.
pub(super) struct Source {
    disk: DiskSource,
    file: File,
    /// Which one it was when it was opened.
    identity: DiskIdentity,
    /// Past the page cache, for a device: what is read once should not displace what the server needs.
    direct: bool,
    has_holes: bool,
    /// For a device, if the kernel has it.
    batches: Option<BatchReader>,
}

/// Reads a disk from other threads, while its file systems are frozen.
pub(super) struct FrozenReader {
    file: File,
    size: u64,
}

impl FrozenReader {
    /// Fills `space`, which is aligned, from an aligned offset on; zeros stand for what is beyond the disk's end.
    pub(super) fn read(&self, offset: u64, space: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(space.len());
        let mut done = 0;
        while done < there {
            let at = offset + done as u64;
            match self.file.read_at(space.get_mut(done..).unwrap_or_default(), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        space.get_mut(there..).unwrap_or_default().fill(0);
        Ok(())
    }
}

/// A part of a disk, for a digest pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// It is a hole: it need not be read.
    pub(super) hole: bool,
}

impl Source {
    /// Opens a disk, which must have at least the size that was agreed on.
    pub(super) fn open(disk: &DiskSource) -> Result<Self, SyncError> {
        let (file, direct) = open(&disk.path).map_err(|e| SyncError::vanished(&disk.path, e))?;
        let metadata = file.metadata().map_err(|e| SyncError::vanished(&disk.path, e))?;
        let has_holes = !metadata.file_type().is_block_device();
        // Through the page cache a batch would wait for each of its reads all the same.
        let batches = if direct { BatchReader::new(MOST_READS).ok() } else { None };
        let identity = DiskIdentity::of(&metadata);
        let source = Self { disk: disk.clone(), file, identity, direct, has_holes, batches };
        source.check()?;
        Ok(source)
    }

    pub(super) fn disk(&self) -> &DiskSource {
        &self.disk
    }

    /// For another thread.
    pub(super) fn frozen_reader(&self) -> Result<FrozenReader, SyncError> {
        let file = self.file.try_clone().map_err(|e| SyncError::System(e.to_string()))?;
        Ok(FrozenReader { file, size: self.size() })
    }

    pub(super) fn size(&self) -> u64 {
        self.disk.size_bytes
    }

    /// Whether the path still leads to this disk, which was not detached meanwhile, and the disk still has its size.
    pub(super) fn check(&self) -> Result<(), SyncError> {
        let path = &self.disk.path;
        let vanished = |e: io::Error| SyncError::vanished(path, e);
        let there = std::fs::metadata(path).map_err(vanished)?;
        let here = self.file.metadata().map_err(vanished)?;
        if identity(&there) != identity(&here) || DiskIdentity::of(&there) != self.identity {
            return Err(SyncError::vanished(path, "something else is in its place"));
        }
        self.check_size()
    }

    /// Reads up to the end of the buffer, the disk or the current megabyte, whichever comes first, so that blocks of all
    /// passes have the same borders. `offset` must be aligned.
    pub(super) fn read(&mut self, offset: u64, at_most: u64, buffer: &mut Buffer) -> Result<(), SyncError> {
        let step = STEP as u64 - offset % STEP as u64;
        let length = step.min(at_most).min(self.size().saturating_sub(offset));
        self.read_one(Read { range: ByteRange { offset, length }, at: 0 }, buffer)
    }

    /// Reads each to its place in the buffer. None may cross a border of the buffer's size on the disk, or the disk's end.
    pub(super) fn read_all(&mut self, reads: &[Read], buffer: &mut Buffer) -> Result<(), SyncError> {
        let whole = self.read_batch(reads, buffer);
        let mut end = 0;
        for (number, read) in reads.iter().enumerate() {
            if !whole.get(number).copied().unwrap_or(false) {
                self.read_one(*read, buffer)?;
            }
            end = end.max(read.at + usize::try_from(read.range.length).unwrap_or(STEP));
        }
        buffer.set_length(end);
        Ok(())
    }

    /// Reads what can be read together; says of each whether it was.
    fn read_batch(&mut self, reads: &[Read], buffer: &mut Buffer) -> Vec<bool> {
        let Some(batches) = self.batches.as_mut().filter(|_| self.direct && reads.len() > 1) else { return Vec::new() };
        let part = |read: &Read| {
            let length = usize::try_from(read.range.length.next_multiple_of(ALIGNMENT)).unwrap_or(STEP);
            Part { offset: read.range.offset, at: read.at, length }
        };
        let parts: Vec<_> = reads.iter().map(part).collect();
        batches.read(self.file.as_fd(), buffer.space(), &parts)
    }

    fn read_one(&mut self, read: Read, buffer: &mut Buffer) -> Result<(), SyncError> {
        let ByteRange { offset, length } = read.range;
        let length = usize::try_from(length).unwrap_or(0);
        buffer.set_length(read.at + length);
        let mut done = 0;
        while done < length {
            let count = self.read_some(read, done, buffer)?;
            // Only the end of the disk is not aligned: reading on from within a block is not possible.
            let next = done + count;
            if next < length {
                self.check_size()?;
                if next / BLOCK * BLOCK <= done {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(self.failed(offset, source));
                }
            }
            done = if next < length { next / BLOCK * BLOCK } else { length };
        }
        if !self.direct && !self.has_holes {
            self.forget(offset, length as u64);
        }
        Ok(())
    }

    /// Where the first byte at or after `offset` is that may not be zero; the size if there is none.
    pub(super) fn next_data(&self, offset: u64) -> u64 {
        match self.seek_sparse(SparseSeek::Data(offset)) {
            Some(Ok(found)) => found.clamp(offset, self.size()),
            Some(Err(Errno::NXIO)) => self.size(),
            Some(Err(_)) | None => offset,
        }
    }

    /// The part that begins at `offset`, which is a multiple of the digest chunk, and ends at `end` (a multiple, too) or
    /// before; none at the end of the disk.
    pub(super) fn piece_before(&self, offset: u64, end: u64) -> Option<Piece> {
        let piece = self.piece(offset).filter(|_| offset < end)?;
        Some(Piece { length: piece.length.min(end - offset), ..piece })
    }

    fn piece(&self, offset: u64) -> Option<Piece> {
        let size = self.size();
        if offset >= size {
            return None;
        }
        let data = self.next_data(offset);
        let hole_end = if data == size { size } else { data / DIGEST_CHUNK * DIGEST_CHUNK };
        if hole_end > offset {
            return Some(Piece { offset, length: hole_end - offset, hole: true });
        }
        let data_end = self.next_hole(data).next_multiple_of(DIGEST_CHUNK);
        let length = data_end.min(size).saturating_sub(offset).clamp(1, DATA_PIECE);
        // A hole that is made at this moment must not leave less than a chunk.
        let length = length.next_multiple_of(DIGEST_CHUNK).min(size - offset);
        Some(Piece { offset, length, hole: false })
    }

    fn next_hole(&self, offset: u64) -> u64 {
        match self.seek_sparse(SparseSeek::Hole(offset)) {
            Some(Ok(found)) => found.clamp(offset, self.size()),
            Some(Err(_)) | None => self.size(),
        }
    }

    fn seek_sparse(&self, to: SparseSeek) -> Option<Result<u64, Errno>> {
        self.has_holes.then(|| seek(&self.file, to))
    }

    fn read_some(&mut self, read: Read, done: usize, buffer: &mut Buffer) -> Result<usize, SyncError> {
        let at = read.range.offset + done as u64;
        // Up to a whole block, as direct I/O wants it; at the disk's end fewer bytes come.
        let length = usize::try_from(read.range.length.next_multiple_of(ALIGNMENT)).unwrap_or(STEP);
        let wanted = (read.at + length).min(STEP);
        loop {
            let space = buffer.space().get_mut(read.at + done..wanted).unwrap_or_default();
            match self.file.read_at(space, at) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.direct && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    self.give_up_direct()?;
                }
                Err(error) => return Err(self.failed(at, error)),
            }
        }
    }

    /// Some file systems open for direct I/O and then refuse it.
    fn give_up_direct(&mut self) -> Result<(), SyncError> {
        let path = &self.disk.path;
        self.file = File::open(path).map_err(|e| SyncError::vanished(path, e))?;
        self.direct = false;
        Ok(())
    }

    fn check_size(&self) -> Result<(), SyncError> {
        let end = (&self.file).seek(SeekFrom::End(0));
        let actual = end.map_err(|e| SyncError::vanished(&self.disk.path, e))?;
        // What a disk has grown by is replicated once a volume has grown by it, too.
        if actual < self.size() {
            let path = self.disk.path.clone();
            return Err(SyncError::DiskResized { path, expected: self.size(), actual });
        }
        Ok(())
    }

    fn failed(&self, offset: u64, source: io::Error) -> SyncError {
        let path = self.disk.path.clone();
        let gone = [Errno::NODEV, Errno::NXIO].map(|errno| Some(errno.raw_os_error()));
        if gone.contains(&source.raw_os_error()) {
            return SyncError::vanished(&path, source);
        }
        SyncError::DiskRead { path, offset, source }
    }

    /// What was read through the page cache is not needed there.
    fn forget(&self, offset: u64, length: u64) {
        let length = std::num::NonZeroU64::new(length);
        // Advice may be ignored, and so may its failure.
        let _ = fadvise(&self.file, offset, length, Advice::DontNeed);
    }
}

/// A device is opened for direct I/O if it can be. An image file is read through the page cache: whoever uses the image has
/// parts of it there already, and the kernel reads ahead.
fn open(path: &Path) -> io::Result<(File, bool)> {
    if !std::fs::metadata(path)?.file_type().is_block_device() {
        let file = File::open(path)?;
        // Advice may be ignored, and so may its failure.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        return Ok((file, false));
    }
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    match OpenOptions::new().read(true).custom_flags(direct).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            File::open(path).map(|file| (file, false))
        }
        opened => opened.map(|file| (file, true)),
    }
}

fn identity(metadata: &Metadata) -> (u64, u64, u64) {
    (metadata.dev(), metadata.ino(), metadata.rdev())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehost_model::VolumeId;
    use rehost_protocol::DiskIndex;

    const MIB: u64 = 1 << 20;

    fn image(size: u64) -> (tempfile::TempDir, DiskSource, File) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        let disk = DiskSource { index: DiskIndex(0), path, volume: VolumeId::generate(), size_bytes: size };
        (directory, disk, file)
    }

    #[test]
    fn every_byte_is_read_once_also_at_an_odd_end() {
        let size = 2 * MIB + 12_345;
        let (_directory, disk, file) = image(size);
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let mut source = Source::open(&disk).unwrap();
        let (mut buffer, mut read) = (Buffer::new(), Vec::new());
        while (read.len() as u64) < size {
            source.read(read.len() as u64, u64::MAX, &mut buffer).unwrap();
            read.extend_from_slice(buffer.bytes());
        }
        assert!(read == bytes);
    }

    #[test]
    fn a_sparse_disk_of_terabytes_is_a_few_pieces() {
        let size = 2 << 40;
        let (_directory, disk, file) = image(size);
        file.write_all_at(&[1; 100], 1 << 40).unwrap();
        let source = Source::open(&disk).unwrap();
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(piece) = source.piece(at) {
            assert_eq!(piece.offset, at);
            at += piece.length;
            pieces.push(piece);
        }
        assert_eq!(at, size);
        assert!(pieces.len() <= 3, "{pieces:?}");
        assert!(pieces.iter().any(|piece| !piece.hole && piece.offset == 1 << 40));
    }

    #[test]
    fn a_disk_that_shrank_or_went_is_named_and_one_that_grew_goes_on() {
        let (_directory, disk, file) = image(4 * MIB);
        let mut source = Source::open(&disk).unwrap();
        file.set_len(MIB).unwrap();
        let error = source.read(2 * MIB, u64::MAX, &mut Buffer::new()).unwrap_err();
        assert!(matches!(error, SyncError::DiskResized { actual: MIB, .. }), "{error}");
        assert!(matches!(Source::open(&disk).err(), Some(SyncError::DiskResized { .. })));
        file.set_len(8 * MIB).unwrap();
        source.read(3 * MIB, u64::MAX, &mut Buffer::new()).unwrap();
        source.check().unwrap();
        std::fs::remove_file(&disk.path).unwrap();
        let error = source.check().unwrap_err();
        assert!(error.to_string().contains("disk.img"), "{error}");
        assert_eq!(error.code(), "DiskVanished");
    }
}
