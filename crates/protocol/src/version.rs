use crate::ProtocolError;

/// The versions of the protocol that were ever spoken, each with the reason it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u16)]
pub enum ProtocolVersion {
    /// The first one: initial sync with resume marks, digest passes, checkpoints.
    V1 = 1,
}

impl ProtocolVersion {
    /// The version this build speaks.
    pub const CURRENT: Self = Self::V1;

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::V1 => 1,
        }
    }

    /// The version with this number on the wire.
    ///
    /// # Errors
    /// [`ProtocolError::UnknownVersion`] for a number this build has never heard of.
    pub fn from_number(number: u16) -> Result<Self, ProtocolError> {
        match number {
            1 => Ok(Self::V1),
            other => Err(ProtocolError::UnknownVersion(other)),
        }
    }
}
