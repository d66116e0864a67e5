use thiserror::Error;

/// Bytes that are no frame of this protocol.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// The body ended before the message did.
    #[error("a message is cut short: {what} is missing")]
    Truncated {
        /// The field that was being read.
        what: &'static str,
    },
    /// The message ended before the body did.
    #[error("{extra} bytes too many at the end of a message")]
    TrailingBytes {
        /// How many bytes were left over.
        extra: usize,
    },
    /// A length is above its limit; nothing was allocated for it.
    #[error("{what} of {length} is above the limit of {limit}")]
    TooLong {
        /// What was measured.
        what: &'static str,
        /// What the peer wrote.
        length: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A field holds a value that has no meaning.
    #[error("{what} has no valid value")]
    Invalid {
        /// The field.
        what: &'static str,
    },
    /// A frame type that does not exist, or not in this direction.
    #[error("frame type {0:#04x} is not known here: is this really a peer of rehost?")]
    UnknownFrame(u8),
    /// A protocol version this build does not speak.
    #[error("protocol version {0} is not known to this build: update the older side")]
    UnknownVersion(u16),
}

/// Why a replicator refuses or ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The agent speaks a version the replicator does not.
    VersionUnsupported,
    /// The client certificate does not cover the server or one of its volumes.
    NotAuthorised,
    /// The volume is not (or no longer) assigned to this replicator for this server.
    UnknownVolume,
    /// The disk and its staging volume differ in size.
    SizeMismatch,
    /// No space is left where the staging volumes live.
    NoSpace,
    /// Reading, writing or flushing a staging volume failed.
    Io,
    /// The agent broke the rules of the protocol.
    Protocol,
    /// The replicator has as many connections as it may have.
    Busy,
    /// The replicator is about to stop.
    ShuttingDown,
    /// A newer session of the same server took over.
    Replaced,
    /// A code of a later version.
    Unrecognised(u16),
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::VersionUnsupported => 1,
            Self::NotAuthorised => 2,
            Self::UnknownVolume => 3,
            Self::SizeMismatch => 4,
            Self::NoSpace => 5,
            Self::Io => 6,
            Self::Protocol => 7,
            Self::Busy => 8,
            Self::ShuttingDown => 9,
            Self::Replaced => 10,
            Self::Unrecognised(number) => number,
        }
    }

    /// The code with this number; a number of a later version is kept as it is.
    #[must_use]
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::VersionUnsupported,
            2 => Self::NotAuthorised,
            3 => Self::UnknownVolume,
            4 => Self::SizeMismatch,
            5 => Self::NoSpace,
            6 => Self::Io,
            7 => Self::Protocol,
            8 => Self::Busy,
            9 => Self::ShuttingDown,
            10 => Self::Replaced,
            other => Self::Unrecognised(other),
        }
    }

    /// Whether trying again soon, with nothing changed by a person, can succeed.
    #[must_use]
    pub fn retryable(self) -> bool {
        match self {
            Self::UnknownVolume
            | Self::NoSpace
            | Self::Io
            | Self::Busy
            | Self::ShuttingDown
            | Self::Replaced
            | Self::Unrecognised(_) => true,
            Self::VersionUnsupported | Self::NotAuthorised | Self::SizeMismatch | Self::Protocol => false,
        }
    }
}
