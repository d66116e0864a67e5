use std::{fmt, io::ErrorKind, path::Path};

use rehost_link::transport::TransportError;
use rehost_model::link::ReportedError;
use rehost_protocol::{ErrorCode, ProtocolError};

/// Why a session is refused or ended: for the agent, for the report and for the log.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A failed operation on a file; a file system without room is told from one that is broken.
    pub(super) fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::no_space(path, &error.to_string())
            }
            _ => Self::new(ErrorCode::Io, format!("{doing} {} failed: {error}", path.display())),
        }
    }

    /// The file system of `path` has no room for it.
    pub(super) fn no_space(path: &Path, why: &str) -> Self {
        let path = path.display();
        let message = format!("no space left for {path} ({why}): make room, and replication goes on by itself");
        Self::new(ErrorCode::NoSpace, message)
    }

    /// Its stable name in reports.
    pub(super) fn name(&self) -> &'static str {
        match self.code {
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

    /// As the control plane gets to see it; none if it is no trouble of the server.
    pub(super) fn reported(&self) -> Option<ReportedError> {
        let trouble = !matches!(self.code, ErrorCode::Replaced | ErrorCode::ShuttingDown | ErrorCode::Busy);
        trouble.then(|| ReportedError { code: self.name().to_owned(), message: self.message.clone() })
    }
}

impl From<ProtocolError> for Refusal {
    fn from(error: ProtocolError) -> Self {
        let code = match error {
            ProtocolError::UnknownVersion(_) => ErrorCode::VersionUnsupported,
            _ => ErrorCode::Protocol,
        };
        Self::new(code, error.to_string())
    }
}

/// How a session came to its end.
#[derive(Debug)]
pub(super) enum Ended {
    /// The agent said bye.
    Bye,
    /// The connection is gone: there is nobody to be told.
    Lost(TransportError),
    /// The replicator ends it.
    Refused(Refusal),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bye => f.write_str("the agent said bye"),
            Self::Lost(error) => error.fmt(f),
            Self::Refused(refusal) => write!(f, "{}: {}", refusal.name(), refusal.message),
        }
    }
}

impl From<TransportError> for Ended {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Protocol(error) => Self::Refused(error.into()),
            other => Self::Lost(other),
        }
    }
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ProtocolError> for Ended {
    fn from(error: ProtocolError) -> Self {
        Self::Refused(error.into())
    }
}
