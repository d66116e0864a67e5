//! Many reads of a file at once, by the kernel's asynchronous I/O (io_submit(2)): one thread sleeps once for all of them.
//!
//! Old, plain, and there wherever direct I/O is; io_uring is newer, and often forbidden.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `IOCB_CMD_PREAD` of linux/aio_abi.h.
const PREAD: u16 = 0;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    /// And flags; neither is used, so that their order, which depends on the machine, does not matter.
    key: [u32; 2],
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// What one read is to bring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// In the file.
    pub(crate) offset: u64,
    /// In the buffer.
    pub(crate) at: usize,
    pub(crate) length: usize,
}

/// Reads in batches of at most as many parts as it was made for.
#[derive(Debug)]
pub(crate) struct BatchReader {
    context: libc::c_ulong,
    most: usize,
}

impl BatchReader {
    /// For batches of `most` parts.
    ///
    /// # Errors
    /// The kernel knows no asynchronous I/O, or has given out all that it may.
    pub(crate) fn new(most: usize) -> io::Result<Self> {
        let events = libc::c_long::try_from(most).map_err(io::Error::other)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number, which is as long as a pointer, and nothing else.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, events, &raw mut context) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { context, most }) }
    }

    /// Reads every part; says of each whether it was read whole. What was not may be anything, and is to be read in another
    /// way, which tells the reason. So is every part that does not lie in the buffer.
    pub(crate) fn read(&mut self, file: BorrowedFd<'_>, buffer: &mut [u8], parts: &[Part]) -> Vec<bool> {
        let mut whole = vec![false; parts.len()];
        let mut requests: Vec<Request> =
            (0..).zip(parts).filter_map(|(n, part)| request(file, buffer, n, *part)).collect();
        requests.truncate(self.most);
        let pointers: Vec<*mut Request> = requests.iter_mut().map(std::ptr::from_mut).collect();
        let mut started = 0;
        while let Some(waiting) = pointers.get(started..).filter(|waiting| !waiting.is_empty()) {
            let count = libc::c_long::try_from(waiting.len()).unwrap_or(0);
            // SAFETY: `waiting` holds `count` pointers to requests that live until their events have been taken, below; so
            // does the buffer, which is borrowed until then, and `request` has seen to it that each lies within it.
            let done = unsafe { libc::syscall(libc::SYS_io_submit, self.context, count, waiting.as_ptr()) };
            let Some(done) = usize::try_from(done).ok().filter(|done| *done > 0) else { break };
            started += done;
        }
        self.wait(started, parts, &mut whole);
        whole
    }

    /// Takes as many events as reads were started: not before is the buffer the caller's again.
    fn wait(&mut self, started: usize, parts: &[Part], whole: &mut [bool]) {
        let mut events = vec![Event::default(); started];
        let mut left = started;
        while left > 0 {
            let count = libc::c_long::try_from(left).unwrap_or(0);
            let no_limit: *const libc::timespec = std::ptr::null();
            // SAFETY: there is room for `count` events, and no time is given, so that nothing else is read or written.
            let taken = unsafe {
                libc::syscall(libc::SYS_io_getevents, self.context, count, count, events.as_mut_ptr(), no_limit)
            };
            let Ok(taken) = usize::try_from(taken) else {
                if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                // Ending the context waits for what is under way.
                return self.close();
            };
            for event in events.iter().take(taken) {
                let place = usize::try_from(event.data).unwrap_or(usize::MAX);
                if let (Some(part), Some(whole)) = (parts.get(place), whole.get_mut(place)) {
                    *whole = usize::try_from(event.result) == Ok(part.length);
                }
            }
            left = left.saturating_sub(taken);
        }
    }

    fn close(&mut self) {
        // SAFETY: the kernel waits until every read of the context is over, and takes no pointer. A number that is none of
        // its contexts (any more) is refused.
        let _ = unsafe { libc::syscall(libc::SYS_io_destroy, std::mem::take(&mut self.context)) };
    }
}

impl Drop for BatchReader {
    fn drop(&mut self) {
        self.close();
    }
}

/// The read of a part, if it lies in the buffer.
fn request(file: BorrowedFd<'_>, buffer: &mut [u8], number: u64, part: Part) -> Option<Request> {
    let target = buffer.get_mut(part.at..part.at.checked_add(part.length)?)?;
    Some(Request {
        data: number,
        opcode: PREAD,
        file: u32::try_from(file.as_raw_fd()).ok()?,
        buffer: target.as_mut_ptr() as u64,
        length: part.length as u64,
        offset: i64::try_from(part.offset).ok()?,
        ..Request::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd as _, os::unix::fs::FileExt as _};

    #[test]
    fn every_part_comes_to_its_place_and_a_short_one_is_told() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..65_536_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let Ok(mut reader) = BatchReader::new(8) else { return };
        let part = |offset: u64, at, length| Part { offset, at, length };
        let parts = [
            part(0, 4096, 4096),
            part(40_000, 0, 100),
            part(65_000, 20_000, 1000),
            part(0, 60_000, 10_000),
            part(9000, 30_000, 5000),
        ];
        for _ in 0..3 {
            let mut buffer = vec![0; 65_536];
            let whole = reader.read(file.as_fd(), &mut buffer, &parts);
            assert_eq!(whole, [true, true, false, false, true]);
            assert_eq!(buffer[4096..8192], bytes[..4096]);
            assert_eq!(buffer[..100], bytes[40_000..40_100]);
            assert_eq!(buffer[30_000..35_000], bytes[9000..14_000]);
        }
    }

    #[test]
    fn more_parts_than_it_was_made_for_and_an_unreadable_file_are_told() {
        let Ok(mut reader) = BatchReader::new(4) else { return };
        let parts: Vec<_> = (0..9).map(|n| Part { offset: 0, at: n * 10, length: 10 }).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 10], 0).unwrap();
        let whole = reader.read(file.as_fd(), &mut [0; 100], &parts);
        assert_eq!(whole.iter().filter(|whole| **whole).count(), 4);
        let directory = File::open("/").unwrap();
        assert_eq!(reader.read(directory.as_fd(), &mut [0; 100], &parts), [false; 9]);
    }
}
