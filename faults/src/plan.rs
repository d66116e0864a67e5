//! What a run is given, how runs differ, and what is counted of them.

use std::time::Duration;

use rehost_tests::random::Random;

use crate::source::Work;
use crate::spec::Authority;
use crate::writer::Pace;

/// What distinguishes the beds of the rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) work: Work,
    /// A continuous checkpoint this often.
    pub(crate) interval: Duration,
    pub(crate) journal_bytes: u64,
    /// A freeze may last this long.
    pub(crate) freeze: Duration,
    /// A peer that is silent for this long is gone.
    pub(crate) silence: Duration,
}

impl Plan {
    /// Records on tracked disks.
    pub(crate) fn records() -> Self {
        let pace = Pace { burst: 20, pause: Duration::from_millis(120) };
        Self {
            work: Work::Records(pace),
            interval: Duration::from_millis(200),
            journal_bytes: 32 << 20,
            freeze: Duration::ZERO,
            silence: Duration::from_millis(600),
        }
    }

    /// Files on a filesystem, which is frozen for its checkpoints.
    pub(crate) fn files() -> Self {
        Self {
            work: Work::Files,
            freeze: Duration::from_millis(1500),
            silence: Duration::from_secs(3),
            ..Self::records()
        }
    }

    /// One of the above, and now and then disks that cannot be tracked.
    pub(crate) fn any(seed: u64) -> Self {
        match Random::new(seed ^ 0xB3D).below(8) {
            0 | 1 => Self { silence: Self::records().silence, ..Self::files() },
            2 => Self { work: Work::Images(Pace { burst: 20, pause: Duration::from_millis(120) }), ..Self::records() },
            _ => Self::records(),
        }
    }
}

/// What a run is given.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) authority: &'a Authority,
    pub(crate) seed: u64,
    pub(crate) planted: Option<&'a str>,
}

/// Figures of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Faults that were injected.
    pub(crate) faults: u64,
    /// Times that the volumes were found to be exactly one state of the source, not counting the last comparison.
    pub(crate) verified: u64,
    /// Times that nothing was promised of them: the source was being written and cannot be frozen, or the journal was too small.
    pub(crate) unpromised: u64,
    /// Bytes that went to the replicator after the first checkpoints, how many may have, and how many the disks hold.
    pub(crate) sent: u64,
    pub(crate) allowed: u64,
}
