//! The frame: eight bytes of header, then a body.
//!
//! ```text
//!  0        1        2                 4                                   8
//!  +--------+--------+-----------------+-----------------------------------+----
//!  | type   | flags 0|  reserved 0     |  length of the body, big-endian   | body
//!  +--------+--------+-----------------+-----------------------------------+----
//! ```
//! The type comes first so that garbage is refused after one byte; flags and reserved must be zero, so that a later
//! version may give them a meaning an older peer refuses rather than ignores.

use crate::{
    ProtocolError,
    codec::{Reader, check_limit},
};

/// Bytes of a frame's header.
pub const HEADER_LENGTH: usize = 8;
/// Most bytes of a disk that one data frame carries.
pub const MAX_BLOCK_LENGTH: usize = 512 * 1024;
/// Most bytes of a body between peers that know each other: a block and its fields.
pub const MAX_BODY_LENGTH: usize = MAX_BLOCK_LENGTH + 64;
/// Most bytes of a body before the replicator has said welcome.
pub const MAX_OPENING_BODY_LENGTH: usize = 64 * 1024;

/// How far a connection has come; decides how long a frame may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The peer has not proved who it is.
    Opening,
    /// Hello and welcome were exchanged.
    Established,
}

impl Phase {
    /// Most bytes of a body in this phase.
    #[must_use]
    pub fn body_limit(self) -> usize {
        match self {
            Self::Opening => MAX_OPENING_BODY_LENGTH,
            Self::Established => MAX_BODY_LENGTH,
        }
    }
}

/// The type of a frame. Types of the replicator have the top bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// [`crate::AgentMessage::Hello`]
    Hello,
    /// [`crate::AgentMessage::Data`]
    Data,
    /// [`crate::AgentMessage::Zero`]
    Zero,
    /// [`crate::AgentMessage::Barrier`]
    Barrier,
    /// [`crate::AgentMessage::Checkpoint`]
    Checkpoint,
    /// [`crate::AgentMessage::DigestRequest`]
    DigestRequest,
    /// [`crate::AgentMessage::KeepAlive`]
    AgentKeepAlive,
    /// [`crate::AgentMessage::Bye`]
    Bye,
    /// [`crate::ReplicatorMessage::Welcome`]
    Welcome,
    /// [`crate::ReplicatorMessage::Ack`]
    Ack,
    /// [`crate::ReplicatorMessage::Digests`]
    Digests,
    /// [`crate::ReplicatorMessage::KeepAlive`]
    ReplicatorKeepAlive,
    /// [`crate::ReplicatorMessage::Error`]
    Error,
}

const KINDS: [(FrameKind, u8); 13] = [
    (FrameKind::Hello, 0x01),
    (FrameKind::Data, 0x02),
    (FrameKind::Zero, 0x03),
    (FrameKind::Barrier, 0x04),
    (FrameKind::Checkpoint, 0x05),
    (FrameKind::DigestRequest, 0x06),
    (FrameKind::AgentKeepAlive, 0x07),
    (FrameKind::Bye, 0x08),
    (FrameKind::Welcome, 0x81),
    (FrameKind::Ack, 0x82),
    (FrameKind::Digests, 0x83),
    (FrameKind::ReplicatorKeepAlive, 0x84),
    (FrameKind::Error, 0x85),
];

impl FrameKind {
    /// The byte on the wire.
    #[must_use]
    pub fn byte(self) -> u8 {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, byte)| *byte)
    }

    fn from_byte(byte: u8) -> Result<Self, ProtocolError> {
        KINDS.iter().find(|(_, known)| *known == byte).map(|(kind, _)| *kind).ok_or(ProtocolError::UnknownFrame(byte))
    }
}

/// A frame's header whose length was found to be within its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body is.
    pub kind: FrameKind,
    /// Bytes of the body.
    pub length: u32,
}

impl FrameHeader {
    /// Reads a header; `phase` decides the limit on its length.
    ///
    /// # Errors
    /// An unknown type, set flags, or a length above the limit.
    pub fn parse(bytes: [u8; HEADER_LENGTH], phase: Phase) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(&bytes);
        let kind = FrameKind::from_byte(reader.u8("the frame's type")?)?;
        let flags = reader.u8("the frame's flags")?;
        let reserved = reader.u16("the frame's reserved bytes")?;
        if flags != 0 || reserved != 0 {
            return Err(ProtocolError::Invalid { what: "a frame's flags" });
        }
        let length = reader.u32("the frame's length")?;
        check_limit("a frame's body", u64::from(length), phase.body_limit() as u64)?;
        Ok(Self { kind, length })
    }

    /// The header as it goes on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LENGTH] {
        let [a, b, c, d] = self.length.to_be_bytes();
        [self.kind.byte(), 0, 0, 0, a, b, c, d]
    }

    /// Bytes of the body.
    #[must_use]
    pub fn body_length(self) -> usize {
        // Cannot fail where a usize has at least 32 bits; elsewhere nothing would be read.
        usize::try_from(self.length).unwrap_or(0)
    }
}
