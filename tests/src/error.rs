//! What the harness can report: always with enough of the other side's words to see the reason.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// A failure of the harness or of what it drives.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation of the operating system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("{program} ended with {status}: {output}")]
    Failed {
        /// The program's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A process that should have stayed is gone.
    #[error("{program} stopped with {status}; see {log}: {tail}", log = log.display())]
    Stopped {
        /// The program's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Where its output is.
        log: PathBuf,
        /// The last lines of that.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}: {seen}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
        /// What was seen instead.
        seen: String,
    },
    /// The other side answered, but not as agreed.
    #[error("{0}")]
    Unexpected(String),
}

/// The harness's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was tried when the system refuses.
pub trait Context<T> {
    /// Turns an I/O error into [`Error::Io`] with this description.
    ///
    /// # Errors
    /// The same failure, described.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}
