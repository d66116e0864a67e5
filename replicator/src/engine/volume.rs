//! A staging volume: a sparse file or a block device.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rehost_model::replicator::Assignment;
use rehost_protocol::{ByteCount, ByteOffset, ErrorCode, is_zero};
use rustix::{
    fs::{Advice, FallocateFlags, SeekFrom as SparseSeek, fadvise, fallocate, fstatvfs, seek},
    io::Errno,
};

use super::{manifest::Chunks, refusal::Refusal};
use crate::planted;

/// How much is read or written at a time.
const STEP: usize = 1 << 20;

/// What a volume in a file leaves free on its file system: who keeps records beside it must still be able to say that it is
/// full. Of a small file system, one part in [`RESERVE_PART`].
const RESERVE_BYTES: u64 = 64 << 20;
const RESERVE_PART: u64 = 8;

/// An open volume; its session writes, its committer flushes.
pub(super) struct Volume {
    path: PathBuf,
    file: File,
    is_device: bool,
    size: u64,
    /// Perhaps written since the last flush. So is a volume that was just opened: a replicator that was killed may have left
    /// writes in the page cache, where digests find them and a power cut does not.
    dirty: AtomicBool,
    /// What is known of the contents, which a change makes unknown.
    chunks: Arc<Chunks>,
}

impl Volume {
    /// Opens what an assignment points at, which must be there and large enough.
    pub(super) fn open(assignment: &Assignment, chunks: Arc<Chunks>) -> Result<Self, Refusal> {
        let path = PathBuf::from(&assignment.location);
        let failed = |error: io::Error| Refusal::io("opening the staging volume", &path, &error);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let is_device = file.metadata().map_err(failed)?.file_type().is_block_device();
        let actual = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if actual < assignment.size_bytes {
            return Err(Refusal::new(
                ErrorCode::SizeMismatch,
                format!("{} has {actual} bytes, but {} were assigned", path.display(), assignment.size_bytes),
            ));
        }
        let size = assignment.size_bytes;
        Ok(Self { path, file, is_device, size, dirty: AtomicBool::new(true), chunks })
    }

    /// The range as plain numbers, if it lies within the volume.
    pub(super) fn range(&self, offset: ByteOffset, length: ByteCount) -> Result<(u64, u64), Refusal> {
        let end = offset.0.checked_add(length.0).filter(|end| *end <= self.size);
        end.map(|_| (offset.0, length.0)).ok_or_else(|| {
            let text = format!("{length} bytes at {offset} are beyond the volume's {} bytes", self.size);
            Refusal::new(ErrorCode::Protocol, text)
        })
    }

    /// Writes within the page cache, as long as there is room to spare.
    pub(super) fn write(&self, offset: ByteOffset, bytes: &[u8]) -> Result<(), Refusal> {
        self.check_room()?;
        self.write_applied(offset, bytes)
    }

    /// Writes within the page cache, into the last room there is: what is written frees room elsewhere.
    pub(super) fn write_applied(&self, offset: ByteOffset, bytes: &[u8]) -> Result<(), Refusal> {
        let length = bytes.len() as u64;
        let (offset, _) = self.range(offset, ByteCount(length))?;
        self.change("writing", offset, length, || {
            planted::io("volume")?;
            self.file.write_all_at(bytes, offset)
        })
    }

    /// Makes a range zero; what is zero already is not touched, so that a sparse file stays sparse.
    pub(super) fn zero(&self, offset: ByteOffset, length: ByteCount) -> Result<(), Refusal> {
        let (offset, length) = self.range(offset, length)?;
        self.change("zeroing", offset, length, || match self.is_device {
            true => self.zero_device(offset, length),
            false => self.zero_file(offset, length),
        })
    }

    /// Flushes what was written since the last time. After a failure nobody knows what the disk has of it.
    pub(super) fn flush(&self) -> Result<(), Refusal> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        planted::io("volume").and_then(|()| self.file.sync_data()).map_err(|error| {
            self.dirty.store(true, Ordering::Release);
            self.forget_cache();
            Refusal::io("flushing", &self.path, &error)
        })
    }

    /// After a failed flush the kernel counts as clean what it could not write, and goes on answering reads with it: whoever
    /// compares is to see the disk.
    fn forget_cache(&self) {
        if let Err(error) = fadvise(&self.file, 0, None, Advice::DontNeed) {
            tracing::warn!(path = %self.path.display(), %error, "cannot drop the cache of a volume that failed to flush");
        }
    }

    /// Reads all of `buffer`. Holes are not read: each would be pages of zeros in the page cache.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Refusal> {
        let end = offset + buffer.len() as u64;
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let data = self.next_data(at, end);
            let hole = self.next_hole(data, end);
            let (zeros, after) = rest.split_at_mut(index(data - at).min(rest.len()));
            let (bytes, after) = after.split_at_mut(index(hole - data).min(after.len()));
            zeros.fill(0);
            let read = self.file.read_exact_at(bytes, data).and_then(|()| self.check_end(data, end));
            read.map_err(|error| Refusal::io("reading", &self.path, &error))?;
            (rest, at) = (after, hole);
        }
        Ok(())
    }

    /// Beyond the end of a file that was cut off meanwhile there is no data either.
    fn check_end(&self, data: u64, end: u64) -> io::Result<()> {
        match data == end && self.file.metadata()?.len() < end {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Where the first byte at or after `offset` is that may not be zero; `end` if there is none before it.
    pub(super) fn next_data(&self, offset: u64, end: u64) -> u64 {
        if self.is_device {
            return offset;
        }
        match seek(&self.file, SparseSeek::Data(offset)) {
            Ok(found) => found.clamp(offset, end),
            Err(Errno::NXIO) => end,
            // A file system that knows no holes.
            Err(_) => offset,
        }
    }

    /// Where the data at `offset` ends, at `end` at the latest; after it, if any is there.
    fn next_hole(&self, offset: u64, end: u64) -> u64 {
        if self.is_device || offset == end {
            return end;
        }
        match seek(&self.file, SparseSeek::Hole(offset)) {
            Ok(found) if found > offset => found.min(end),
            // No file system that knows holes, or one was made just now.
            _ => end,
        }
    }

    /// Whether the file may grow. Asked also where it would not have to: which of its blocks it has is not worth finding out.
    fn check_room(&self) -> Result<(), Refusal> {
        if self.is_device {
            return Ok(());
        }
        let room = room_beside(&self.file);
        room.map_err(|error| Refusal::io("asking for the room of", &self.path, &error))
    }

    /// Marked after the change, whatever came of it: a mark before it could be taken by a flush that ends too early. What was
    /// known of the contents is forgotten before, and once more after: it may have been learnt while they changed.
    fn change(
        &self,
        doing: &str,
        offset: u64,
        length: u64,
        change: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Refusal> {
        self.chunks.forget(offset, length);
        let result = change();
        self.dirty.store(true, Ordering::Release);
        self.chunks.forget(offset, length);
        result.map_err(|error| Refusal::io(doing, &self.path, &error))
    }

    fn zero_file(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.next_data(offset, offset + length) == offset + length {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, punch, offset, length) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(offset, length),
            result => Ok(result?),
        }
    }

    /// Reads before it zeroes: a new volume reads as zeros, and writing them would allocate all of it.
    fn zero_device(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut buffer = vec![0; STEP];
        for (at, count) in steps(offset, length) {
            let piece = buffer.get_mut(..count).unwrap_or_default();
            self.file.read_exact_at(piece, at)?;
            if !is_zero(piece) {
                self.zero_device_step(at, count)?;
            }
        }
        Ok(())
    }

    fn zero_device_step(&self, offset: u64, length: usize) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, length as u64) {
            // Not a multiple of the sector size, or a driver that cannot.
            Err(_) => self.write_zeros(offset, length as u64),
            Ok(()) => Ok(()),
        }
    }

    fn write_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        let zeros = vec![0; STEP];
        for (at, count) in steps(offset, length) {
            self.file.write_all_at(zeros.get(..count).unwrap_or_default(), at)?;
        }
        Ok(())
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Refuses what would take the last room of a file's file system.
pub(super) fn room_beside(file: &File) -> io::Result<()> {
    let room = fstatvfs(file)?;
    let (total, free) = (room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize);
    if free >= reserve(total) {
        return Ok(());
    }
    let left = format!("{} MiB are left, and those are kept for the records beside it", free >> 20);
    Err(io::Error::new(io::ErrorKind::StorageFull, left))
}

/// What stays free of a file system of `total` bytes.
fn reserve(total: u64) -> u64 {
    RESERVE_BYTES.min(total / RESERVE_PART)
}

/// Cuts a range into pieces of at most [`STEP`].
fn steps(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize)> {
    (offset..offset + length).step_by(STEP).map(move |at| {
        let left = offset + length - at;
        (at, usize::try_from(left).map_or(STEP, |left| left.min(STEP)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehost_model::{ServerId, VolumeId};
    use std::os::unix::fs::MetadataExt;

    fn chunks() -> Arc<Chunks> {
        Arc::new(Chunks::new(1 << 20))
    }

    fn volume(size: u64) -> (tempfile::TempDir, Volume, Assignment) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.img");
        File::create(&path).unwrap().set_len(size).unwrap();
        let assignment = Assignment {
            server: ServerId::generate(),
            volume: VolumeId::generate(),
            size_bytes: size,
            location: path.display().to_string(),
            initialized: false,
        };
        let volume = Volume::open(&assignment, chunks()).unwrap();
        (directory, volume, assignment)
    }

    #[test]
    fn nothing_is_written_beyond_the_volume() {
        let (_directory, volume, _) = volume(1 << 20);
        let last = ByteOffset((1 << 20) - 1);
        volume.write(last, &[1]).unwrap();
        assert_eq!(volume.write(last, &[1, 2]).unwrap_err().code, ErrorCode::Protocol);
        assert!(volume.zero(last, ByteCount(2)).is_err());
        assert!(volume.range(ByteOffset(u64::MAX), ByteCount(2)).is_err());
    }

    #[test]
    fn zeroing_a_hole_allocates_nothing_and_zeroing_data_frees_it() {
        let (_directory, volume, _) = volume(64 << 20);
        volume.zero(ByteOffset(0), ByteCount(64 << 20)).unwrap();
        volume.flush().unwrap();
        assert_eq!(volume.file.metadata().unwrap().blocks(), 0);
        volume.write(ByteOffset(1000), &[7; 5000]).unwrap();
        volume.zero(ByteOffset(2000), ByteCount(1000)).unwrap();
        let mut bytes = [1; 7000];
        volume.read(0, &mut bytes).unwrap();
        let expected = |at| matches!(at, 1000..2000 | 3000..6000);
        assert!(bytes.iter().enumerate().all(|(at, byte)| (*byte == 7) == expected(at)));
        volume.zero(ByteOffset(0), ByteCount(1 << 20)).unwrap();
        assert_eq!(volume.next_data(0, 64 << 20), 64 << 20);
    }

    #[test]
    fn what_is_read_is_the_same_whether_it_lies_in_holes_or_not() {
        let (_directory, volume, _) = volume(1 << 20);
        let mut expected = vec![0; 1 << 20];
        for (offset, length) in [(0, 10), (70_000, 5000), (200_000, 66_000), ((1 << 20) - 1, 1)] {
            volume.write(ByteOffset(offset), &vec![7; length]).unwrap();
            let start = usize::try_from(offset).unwrap();
            expected[start..start + length].fill(7);
        }
        let ranges = [(0, 1 << 20), (5, 100), (100, 60_000), (69_999, 300_001), (1_000_000, 1 << 20)];
        for (start, end) in ranges {
            let mut found = vec![9; end - start];
            volume.read(start as u64, &mut found).unwrap();
            assert!(found == expected[start..end], "from {start} to {end}");
        }
        volume.file.set_len(300_000).unwrap();
        volume.read(200_000, &mut [0; 100_000]).unwrap();
        assert_eq!(volume.read(200_000, &mut [0; 100_001]).unwrap_err().code, ErrorCode::Io);
    }

    #[test]
    fn the_first_flush_after_opening_reaches_the_disk_and_a_failed_one_is_repeated() {
        let (_directory, volume, assignment) = volume(1 << 20);
        assert!(volume.dirty.load(Ordering::Acquire), "what a killed replicator left is unknown");
        volume.flush().unwrap();
        assert!(!volume.dirty.load(Ordering::Acquire));
        // A file that cannot be synced tells whether it was asked to.
        let unsyncable = Assignment { size_bytes: 0, location: "/dev/null".into(), ..assignment };
        let volume = Volume::open(&unsyncable, chunks()).unwrap();
        for _ in 0..2 {
            assert_eq!(volume.flush().unwrap_err().code, ErrorCode::Io);
        }
    }

    #[test]
    fn some_room_is_left_to_others() {
        assert_eq!(reserve(1 << 40), RESERVE_BYTES);
        assert_eq!(reserve(80 << 20), 10 << 20);
        let (_directory, volume, _) = volume(1 << 20);
        volume.check_room().unwrap();
    }

    #[test]
    fn a_missing_or_short_file_is_refused() {
        let (directory, _volume, assignment) = volume(1 << 20);
        let larger = Assignment { size_bytes: 2 << 20, ..assignment.clone() };
        assert_eq!(Volume::open(&larger, chunks()).err().unwrap().code, ErrorCode::SizeMismatch);
        let location = directory.path().join("none").display().to_string();
        let missing = Assignment { location, ..assignment };
        assert_eq!(Volume::open(&missing, chunks()).err().unwrap().code, ErrorCode::Io);
    }

    #[test]
    fn steps_cover_a_range_exactly() {
        let covered: Vec<_> = steps(5, (2 << 20) + 3).collect();
        assert_eq!(covered, [(5, STEP), (5 + (1 << 20), STEP), (5 + (2 << 20), 3)]);
    }
}
