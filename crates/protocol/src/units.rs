//! Newtypes of everything that is counted or named on the wire.

use std::fmt;

use crate::ProtocolError;

/// Bytes covered by one [coarse](DigestChunk::Coarse) digest, except at the end of a disk.
pub const DIGEST_CHUNK: u64 = 64 * 1024;
/// Bytes covered by one [fine](DigestChunk::Fine) digest, except at the end of a disk.
pub const FINE_DIGEST_CHUNK: u64 = 4 * 1024;
/// Most disks one server may offer.
pub const MAX_DISKS: usize = 60;
/// Longest server or volume id, in bytes.
pub const MAX_NAME_LENGTH: usize = 64;
/// Longest text of an error, in bytes.
pub const MAX_TEXT_LENGTH: usize = 1024;

/// A disk within a session: the number under which the hello offered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskIndex(pub u8);

/// A position on a disk, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteOffset(pub u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

/// A barrier's number within a session; each is larger than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// A digest request's number within a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DigestId(pub u32);

/// How many bytes one digest of a reply covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestChunk {
    /// [`FINE_DIGEST_CHUNK`]: for what is known to have changed in part.
    Fine,
    /// [`DIGEST_CHUNK`]: for whole disks.
    Coarse,
}

impl DigestChunk {
    /// Its size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Fine => FINE_DIGEST_CHUNK,
            Self::Coarse => DIGEST_CHUNK,
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Coarse => 1,
        }
    }

    pub(crate) fn from_number(number: u8) -> Result<Self, ProtocolError> {
        match number {
            0 => Ok(Self::Fine),
            1 => Ok(Self::Coarse),
            _ => Err(ProtocolError::Invalid { what: "a digest's chunk" }),
        }
    }
}

/// Random name of what a replicator's record of a volume goes back to: a new one begins with a fresh volume, and whenever the
/// replicator does not know any more what the volume holds. Who has noted what changed since then need not compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lineage(pub [u8; 16]);

/// Random name of one session, so that two connections of one server can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId(pub [u8; 16]);

/// Key of the session's digests: nobody can prepare two blocks of equal digest beforehand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DigestKey(pub [u8; 32]);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(…)")
    }
}

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
