//! Copies of images: sharing the blocks where the file system can (reflink), else copying what is not a hole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rehost_control::ports::PortResult;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::files;

/// At most this much is asked of the kernel in one call, so that a copy can be interrupted.
const STEP_BYTES: usize = 64 << 20;

/// Where the kernel cannot copy by itself.
const BUFFER_BYTES: usize = 1 << 20;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Reflink,
    Sparse,
}

/// Copies `source` to `target` with `size_bytes` (more than the source has are zeros). `target` appears whole and durable
/// or not at all; on an error nothing of it is left.
pub(super) fn copy_image(source: &Path, target: &Path, size_bytes: u64) -> PortResult<Method> {
    let partial = files::with_suffix(target, files::PARTIAL);
    let copied = copy_to(source, &partial, size_bytes).and_then(|method| {
        fs::rename(&partial, target)?;
        Ok(method)
    });
    match copied {
        Ok(method) => files::sync_parent(target).map(|()| method),
        Err(error) => {
            let _ = fs::remove_file(&partial);
            Err(files::io_error(&format!("copy {} to", source.display()), target, &error))
        }
    }
}

/// Makes an image of `size_bytes` zeros; whole or not at all.
pub(super) fn make_image(target: &Path, size_bytes: u64) -> PortResult<()> {
    let partial = files::with_suffix(target, files::PARTIAL);
    let made = create(&partial).and_then(|file| {
        file.set_len(size_bytes)?;
        file.sync_all()?;
        fs::rename(&partial, target)
    });
    match made {
        Ok(()) => files::sync_parent(target),
        Err(error) => {
            let _ = fs::remove_file(&partial);
            Err(files::io_error("make", target, &error))
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn copy_to(source: &Path, partial: &Path, size_bytes: u64) -> io::Result<Method> {
    let source = File::open(source)?;
    let target = create(partial)?;
    let method = match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => Method::Reflink,
        Err(_) => {
            copy_data(&source, &target)?;
            Method::Sparse
        }
    };
    target.set_len(size_bytes)?;
    target.sync_all()?;
    Ok(method)
}

/// Copies the parts of `source` that are not holes to the same places of `target`.
fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        copy_range(source, target, start, end)?;
        at = end;
    }
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
        let (mut from, mut to) = (at, at);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), step) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => at += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(source, target, at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let part = &mut buffer[..wanted];
        source.read_exact_at(part, at)?;
        target.write_all_at(part, at)?;
        at += wanted as u64;
    }
    Ok(())
}
