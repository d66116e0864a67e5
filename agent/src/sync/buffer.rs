//! Buffers that direct I/O accepts, and that travel in a circle instead of being allocated again and again.

use std::sync::mpsc;

use rehost_direct::Aligned;

/// Bytes of a buffer: one read.
pub(super) const STEP: usize = 1 << 20;
/// Buffers of a session: what the driver reads ahead of the outbox.
const BUFFERS: usize = 6;

/// Aligned memory of [`STEP`] bytes, and how many of them are in use.
pub(super) struct Buffer {
    memory: Aligned,
    length: usize,
    /// Kept for what is read while file systems are frozen.
    reserved: bool,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self { memory: Aligned::zeroed(STEP), length: 0, reserved: false }
    }

    /// All of its memory is there already: nothing has to be found for it when it is used.
    fn reserved() -> Self {
        Self { memory: Aligned::resident(STEP), length: 0, reserved: true }
    }

    /// All of the memory, to be read into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    pub(super) fn set_length(&mut self, length: usize) {
        self.length = length.min(STEP);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.get(..self.length).unwrap_or_default()
    }
}

/// A session's buffers: whoever is done with one puts it back.
pub(super) struct Pool {
    returned: mpsc::Receiver<Buffer>,
    free: Vec<Buffer>,
    reserve: Vec<Buffer>,
    /// How many buffers of the reserve there are, here and elsewhere.
    reserved: usize,
}

impl Pool {
    /// A pool, and the way back into it.
    pub(super) fn new() -> (Self, mpsc::Sender<Buffer>) {
        let (put_back, returned) = mpsc::channel();
        let free = std::iter::repeat_with(Buffer::new).take(BUFFERS).collect();
        (Self { returned, free, reserve: Vec::new(), reserved: 0 }, put_back)
    }

    /// A free buffer, as soon as there is one; none if nobody will put one back any more.
    pub(super) fn take(&mut self) -> Option<Buffer> {
        loop {
            if let Some(buffer) = self.free.pop() {
                return Some(buffer);
            }
            let buffer = self.returned.recv().ok()?;
            self.give_back(buffer);
        }
    }

    pub(super) fn give_back(&mut self, buffer: Buffer) {
        if buffer.reserved {
            self.reserve.push(buffer);
        } else {
            self.free.push(buffer);
        }
    }

    /// Makes the reserve at its first call, and gathers what has come back of it; says whether all of it is there.
    pub(super) fn fill_reserve(&mut self, count: usize) -> bool {
        while let Ok(buffer) = self.returned.try_recv() {
            self.give_back(buffer);
        }
        while self.reserved < count {
            self.reserve.push(Buffer::reserved());
            self.reserved += 1;
        }
        self.reserve.len() >= count
    }

    /// A buffer of the reserve, if one is left.
    pub(super) fn take_reserved(&mut self) -> Option<Buffer> {
        self.reserve.pop()
    }
}
