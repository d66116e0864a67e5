//! Errors of the ports and of the steps: each says whether trying again can help.

use std::fmt;

/// What kind of refusal a port met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortErrorKind {
    /// The thing does not exist (any more).
    NotFound,
    /// Another writer was faster: read again, decide again.
    Conflict,
    /// Too many calls for now.
    Throttled,
    /// The other side does not answer, or answers that it is broken.
    Unavailable,
    /// Not allowed.
    Denied,
    /// A limit of the account or of the machine.
    Quota,
    /// No space left.
    Full,
    /// The request can never succeed as it is.
    Invalid,
}

impl PortErrorKind {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(self, Self::Conflict | Self::Throttled | Self::Unavailable)
    }
}

/// A port's error: what failed, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    pub kind: PortErrorKind,
    pub message: String,
}

impl PortError {
    /// An error of `kind`; the message says what, where and how to mend it.
    pub fn new(kind: PortErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// Shorthand for [`PortErrorKind::NotFound`].
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(PortErrorKind::NotFound, message)
    }

    /// Shorthand for [`PortErrorKind::Conflict`].
    pub fn conflict(message: impl fmt::Display) -> Self {
        Self::new(PortErrorKind::Conflict, message)
    }

    /// Shorthand for [`PortErrorKind::Unavailable`].
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(PortErrorKind::Unavailable, message)
    }

    /// Shorthand for [`PortErrorKind::Invalid`].
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(PortErrorKind::Invalid, message)
    }

    /// Whether the thing that was asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind == PortErrorKind::NotFound
    }
}
