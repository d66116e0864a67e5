use std::path::{Path, PathBuf};

use rehost_link::transport::TransportError;
use rehost_model::link::ReportedError;
use rehost_protocol::{ErrorCode, ProtocolError};
use thiserror::Error;

/// Why a session ended before it was told to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The connection could not be made, or was lost.
    #[error("{0}")]
    Transport(#[from] TransportError),
    /// The replicator refuses, or ended the session.
    #[error("the replicator ended the session: {message}")]
    Refused {
        /// Its reason.
        code: ErrorCode,
        /// Its words.
        message: String,
    },
    /// A disk cannot be opened, or is not what was opened any more.
    #[error("disk {} is gone: {reason}; bring it back, or disconnect the server and install the agent again without it", path.display())]
    DiskVanished {
        /// The disk.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A disk has another size than was agreed on.
    #[error("disk {} had {expected} bytes and has {actual}: give it its size back, or disconnect the server and install the agent again", path.display())]
    DiskResized {
        /// The disk.
        path: PathBuf,
        /// The agreed size in bytes.
        expected: u64,
        /// The size now, in bytes.
        actual: u64,
    },
    /// A disk cannot be read.
    #[error("reading {} at byte {offset} failed: {source}; check the disk's health", path.display())]
    DiskRead {
        /// The disk.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The disks change faster than passes can follow.
    #[error(
        "after {passes} passes the disks still differ: they change faster than they can be compared; raise the throttle or wait for a quieter time"
    )]
    NotConverging {
        /// Passes that were made.
        passes: u32,
    },
    /// What changed could not be followed.
    #[error(
        "marks of changed blocks were lost {times} times in a row; the disks are compared again (if this comes again, another program disturbs the tracker: see `rehost-agent status`)"
    )]
    MarksLost {
        /// How often.
        times: u32,
    },
    /// The replicator broke the rules.
    #[error("the replicator broke the protocol: {0}")]
    Protocol(String),
    /// The system refuses a thread or random bytes.
    #[error("the system is short of resources: {0}")]
    System(String),
}

impl SyncError {
    pub(super) fn vanished(path: &Path, reason: impl ToString) -> Self {
        Self::DiskVanished { path: path.to_owned(), reason: reason.to_string() }
    }

    /// Its stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Transport(TransportError::Resolve { .. } | TransportError::Connect { .. }) => "ReplicatorUnreachable",
            Self::Transport(TransportError::Tls(_) | TransportError::Material { .. }) => "CertificateRefused",
            Self::Transport(TransportError::Protocol(_)) | Self::Protocol(_) => "ProtocolViolated",
            Self::Transport(_) => "ConnectionLost",
            Self::Refused { code, .. } => refusal_name(*code),
            Self::DiskVanished { .. } => "DiskVanished",
            Self::DiskResized { .. } => "DiskResized",
            Self::DiskRead { .. } => "DiskUnreadable",
            Self::NotConverging { .. } => "NotConverging",
            Self::MarksLost { .. } => "MarksLost",
            Self::System(_) => "SystemShortOfResources",
        }
    }

    /// Whether trying again soon, with nothing changed by a person, can succeed.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code.retryable(),
            Self::Transport(TransportError::Tls(_) | TransportError::Material { .. })
            | Self::Protocol(_)
            | Self::DiskVanished { .. }
            | Self::DiskResized { .. } => false,
            Self::Transport(_)
            | Self::DiskRead { .. }
            | Self::NotConverging { .. }
            | Self::MarksLost { .. }
            | Self::System(_) => true,
        }
    }

    /// As the control plane gets to see it.
    #[must_use]
    pub fn reported(&self) -> ReportedError {
        ReportedError { code: self.code().to_owned(), message: self.to_string() }
    }
}

impl From<ProtocolError> for SyncError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error.to_string())
    }
}

fn refusal_name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::VersionUnsupported => "VersionUnsupported",
        ErrorCode::NotAuthorised => "NotAuthorised",
        ErrorCode::UnknownVolume => "UnknownVolume",
        ErrorCode::SizeMismatch => "SizeMismatch",
        ErrorCode::NoSpace => "NoSpace",
        ErrorCode::Io => "VolumeFailed",
        ErrorCode::Protocol => "ProtocolViolated",
        ErrorCode::Busy => "Busy",
        ErrorCode::ShuttingDown => "ShuttingDown",
        ErrorCode::Replaced => "Replaced",
        ErrorCode::Unrecognised(_) => "Unrecognised",
    }
}

/// Why a thread of a session stops.
#[derive(Debug)]
pub(super) enum Halt {
    /// It was told to.
    Stopped,
    /// The session has ended; the ledger knows why, or will.
    Ended,
    /// It found the reason to end the session.
    Failed(SyncError),
}

impl<E: Into<SyncError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
