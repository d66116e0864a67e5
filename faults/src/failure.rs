//! How a run can fail: what was seen, and of which kind it is, since a planted bug must be caught for the right reason.

use serde::Serialize;

/// What a run found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// At the end a volume is not byte-identical to its disk.
    Differs,
    /// A volume is no state that the source ever had: parts of two checkpoints, or of none.
    Torn,
    /// A volume is older than a checkpoint that was acknowledged.
    Lost,
    /// More travelled than what was written and what was under way.
    FullSync,
    /// A filesystem stayed frozen for longer than it may.
    NotThawed,
    /// Replication did not go on, or not in time.
    Stuck,
    /// Something is left of the run.
    Leftover,
    /// The run could not be made: no verdict.
    Harness,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Differs => "differs",
            Self::Torn => "torn",
            Self::Lost => "lost",
            Self::FullSync => "full-sync",
            Self::NotThawed => "not-thawed",
            Self::Stuck => "stuck",
            Self::Leftover => "leftover",
            Self::Harness => "harness",
        })
    }
}

/// A run that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) detail: String,
}

/// What a step of a run gives.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind, self.detail)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Kind::Harness, format!("{error:#}"))
    }
}

impl From<rehost_tests::Error> for Failure {
    fn from(error: rehost_tests::Error) -> Self {
        Self::new(Kind::Harness, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Kind::Harness, error.to_string())
    }
}
