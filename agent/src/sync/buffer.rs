//! Buffers that direct I/O accepts, and that travel in a circle instead of being allocated again and again.

use std::sync::mpsc;

/// Bytes of a buffer: one read.
pub(super) const STEP: usize = 1 << 20;
/// Direct I/O wants memory, offsets and lengths in multiples of the logical block size, which is at most this.
pub(super) const ALIGNMENT: u64 = 4096;
/// Buffers of a session: what the driver reads ahead of the outbox.
const BUFFERS: usize = 6;

/// Memory of [`STEP`] bytes at an aligned address, and how many of them are in use.
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let alignment = usize::try_from(ALIGNMENT).unwrap_or(1);
        let memory = vec![0; STEP + alignment];
        // The vector never grows, so its memory stays where it is.
        let start = memory.as_ptr().align_offset(alignment).min(alignment);
        Self { memory, start, length: 0 }
    }

    /// All of the memory, to be read into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + STEP).unwrap_or_default()
    }

    pub(super) fn set_length(&mut self, length: usize) {
        self.length = length.min(STEP);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.length).unwrap_or_default()
    }
}

/// A session's buffers: whoever is done with one puts it back.
pub(super) struct Pool {
    free: mpsc::Receiver<Buffer>,
}

impl Pool {
    /// A pool, and the way back into it.
    pub(super) fn new() -> (Self, mpsc::Sender<Buffer>) {
        let (put_back, free) = mpsc::channel();
        for _ in 0..BUFFERS {
            // The other end is in this function's hands.
            let _ = put_back.send(Buffer::new());
        }
        (Self { free }, put_back)
    }

    /// A free buffer, as soon as there is one; none if nobody will put one back any more.
    pub(super) fn take(&self) -> Option<Buffer> {
        self.free.recv().ok()
    }
}
