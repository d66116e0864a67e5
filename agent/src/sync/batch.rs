//! Frames that wait to be sent together: thousands of small ones would cost a system call and a TLS record each.

use rehost_protocol::{AgentMessage, DataBlock, ProtocolError, data_frame_prefix};

/// A batch is sent when it has grown to this; bytes.
const FULL: usize = 192 * 1024;
/// A payload that is longer travels from where it lies.
pub(super) const SMALL: usize = 32 * 1024;
/// TLS adds this much to each of its records, which hold this much; bytes.
const RECORD: (usize, usize) = (22, 16 * 1024);

/// The bytes of whole frames, in order.
pub(super) struct Batch {
    bytes: Vec<u8>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(FULL + SMALL + 1024) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(super) fn add(&mut self, message: &AgentMessage<'_>) -> Result<(), ProtocolError> {
        message.encode(&mut self.bytes)
    }

    pub(super) fn add_block(&mut self, block: &DataBlock<'_>) -> Result<(), ProtocolError> {
        self.bytes.extend_from_slice(&data_frame_prefix(block)?);
        self.bytes.extend_from_slice(block.payload);
        Ok(())
    }
}

/// What `length` bytes take on the wire.
pub(super) fn on_the_wire(length: usize) -> usize {
    let (overhead, record) = RECORD;
    length + length.div_ceil(record) * overhead
}
