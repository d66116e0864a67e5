//! What agent and replicator last told of a server, and what MGN calls the state that follows from it.

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::link::{AgentPhase, AgentReport, FenceState, ReportedError, ServerReport, SourceDisk};
use crate::replication::{Consistency, DataReplicationState, TrackerKind};

/// After this time without a report the agent counts as not seen; milliseconds.
pub const AGENT_NOT_SEEN_AFTER_MS: u64 = 5 * 60 * 1000;

/// A report is fresh for so long; after it, what the agent said of its lag has grown since. Milliseconds.
const FRESH_MS: u64 = 10_000;

/// The newest reports about a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observed {
    pub phase: AgentPhase,
    pub agent_error: Option<ReportedError>,
    pub replicator_error: Option<ReportedError>,
    /// How changes are found; the worst of all disks.
    pub tracker: Option<TrackerKind>,
    /// Of the newest checkpoint.
    pub consistency: Option<Consistency>,
    /// Whether the volumes are a checkpoint now; if not, they are again from the next one on.
    pub consistent: bool,
    /// What the agent said of its lag; see [`Observed::lag_ms_at`].
    pub lag_ms: Option<u64>,
    pub backlog_bytes: u64,
    pub rate_bytes_per_second: u64,
    pub last_freeze_ms: Option<u64>,
    pub journal_bytes: u64,
    pub fence: FenceState,
    /// The disks of the machine, when they differ from those that are replicated.
    pub inventory: Vec<SourceDisk>,
}

impl Observed {
    /// Takes in the agent's report.
    pub fn hear_agent(&mut self, report: &AgentReport) {
        self.phase = report.phase;
        self.agent_error.clone_from(&report.error);
        self.tracker = report.tracker.or(self.tracker);
        self.consistency = report.consistency.or(self.consistency);
        self.lag_ms = report.lag_ms;
        self.backlog_bytes = report.backlog_bytes;
        self.rate_bytes_per_second = report.rate_bytes_per_second;
        self.last_freeze_ms = report.last_freeze_ms.or(self.last_freeze_ms);
        self.fence.clone_from(&report.fence);
        self.inventory.clone_from(&report.inventory);
    }

    /// Takes in what the replicator says of the server.
    pub fn hear_replicator(&mut self, report: &ServerReport) {
        self.replicator_error.clone_from(&report.error);
        self.consistent = report.consistent;
        self.journal_bytes = report.journal_bytes;
        if report.checkpoint.0 > 0 {
            self.consistency = Some(report.consistency);
        }
    }

    /// How far the copy is behind at `now`; milliseconds. While nothing is heard it grows; without word of the agent it is the
    /// age of the newest checkpoint (`reached`).
    #[must_use]
    pub fn lag_ms_at(&self, now: Timestamp, heard: Option<Timestamp>, reached: Option<Timestamp>) -> Option<u64> {
        let Some(lag) = self.lag_ms else { return reached.map(|at| now.ms_since(at)) };
        let silent = heard.map_or(0, |at| now.ms_since(at));
        Some(if silent > FRESH_MS { lag.saturating_add(silent) } else { lag })
    }
}

/// How far the initiation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitiationProgress {
    UnderWay,
    /// Its present step failed, and is tried again later.
    Failed,
    /// Every step is done, or there was none.
    Over,
}

/// What the data replication state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationFacts {
    pub previous: DataReplicationState,
    pub paused: bool,
    pub initiation: InitiationProgress,
    /// The agent was heard of within [`AGENT_NOT_SEEN_AFTER_MS`].
    pub heard: bool,
    /// Agent or replicator reports trouble.
    pub trouble: bool,
    pub phase: AgentPhase,
    /// The first copy of every disk is durable.
    pub copied: bool,
    /// The volumes are held still for a snapshot that is being taken.
    pub held_still: bool,
}

/// MGN's data replication state. The first row that applies decides:
///
/// | fact | state |
/// |---|---|
/// | it was ended | `STOPPED`, `DISCONNECTED` stay until replication is started again |
/// | told to pause | `PAUSED` |
/// | agent not heard of for 5 minutes | `STALLED` |
/// | a step of the initiation failed | `STALLED` |
/// | the initiation is under way | `INITIATING` |
/// | agent or replicator reports trouble | `STALLED` |
/// | agent: first copy | `INITIAL_SYNC` |
/// | agent: comparing digests | `RESCAN` |
/// | volumes are held still for a snapshot | `CREATING_SNAPSHOT` |
/// | the first copy is not durable | `INITIAL_SYNC` |
/// | agent: more changed than a checkpoint may leave | `BACKLOG` |
/// | agent: following what is written | `CONTINUOUS` |
/// | agent: waiting, connecting, paused (still) | as before, if data flowed before; else `BACKLOG`: what changed meanwhile is to come |
#[must_use]
pub fn data_replication_state(facts: &ReplicationFacts) -> DataReplicationState {
    use DataReplicationState as S;
    match facts {
        ReplicationFacts { previous: S::Stopped | S::Disconnected, .. } => facts.previous,
        ReplicationFacts { paused: true, .. } => S::Paused,
        ReplicationFacts { heard: false, .. } => S::Stalled,
        ReplicationFacts { initiation: InitiationProgress::Failed, .. } => S::Stalled,
        ReplicationFacts { initiation: InitiationProgress::UnderWay, .. } => S::Initiating,
        ReplicationFacts { trouble: true, .. } => S::Stalled,
        ReplicationFacts { phase: AgentPhase::InitialSync, .. } => S::InitialSync,
        ReplicationFacts { phase: AgentPhase::Rescan, .. } => S::Rescan,
        ReplicationFacts { held_still: true, .. } => S::CreatingSnapshot,
        ReplicationFacts { copied: false, .. } => S::InitialSync,
        ReplicationFacts { phase: AgentPhase::Backlog, .. } => S::Backlog,
        ReplicationFacts { phase: AgentPhase::Idle, .. } => S::Continuous,
        ReplicationFacts { previous: S::Continuous | S::Rescan, .. } => facts.previous,
        _ => S::Backlog,
    }
}

/// What this service tells of a server beside MGN's shape: the member `rehost` of a source server. MGN's clients skip it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Extras {
    /// How changes are found; the worst of all disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracker: Option<TrackerKind>,
    /// Of the newest checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// False while the volumes are no checkpoint: before the first one, or while more is written than the journal holds.
    pub consistent: bool,
    /// The number of the newest checkpoint that was asked for and is durable, and when it was reported.
    pub checkpoint: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_date_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    pub backlog_bytes: u64,
    pub journal_bytes: u64,
    /// How long writers were blocked by the last freeze; milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_freeze_ms: Option<u64>,
    /// Whether the source is fenced for a cutover.
    pub fence: FenceState,
    /// Disks of the source that are not replicated.
    pub new_disks: Vec<SourceDisk>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataReplicationState as S;

    fn following() -> ReplicationFacts {
        ReplicationFacts {
            previous: S::Continuous,
            paused: false,
            initiation: InitiationProgress::Over,
            heard: true,
            trouble: false,
            phase: AgentPhase::Idle,
            copied: true,
            held_still: false,
        }
    }

    #[test]
    fn every_row_of_the_table_decides_over_those_below() {
        // From the last row up, each fact is added to those before: the newest must win.
        let mut facts = ReplicationFacts { previous: S::Stalled, phase: AgentPhase::Connecting, ..following() };
        assert_eq!(data_replication_state(&facts), S::Backlog);
        type Row = (fn(&mut ReplicationFacts), S);
        let rows: [Row; 11] = [
            (|f| f.phase = AgentPhase::Idle, S::Continuous),
            (|f| f.phase = AgentPhase::Backlog, S::Backlog),
            (|f| f.copied = false, S::InitialSync),
            (|f| f.held_still = true, S::CreatingSnapshot),
            (|f| f.phase = AgentPhase::Rescan, S::Rescan),
            (|f| f.trouble = true, S::Stalled),
            (|f| f.initiation = InitiationProgress::UnderWay, S::Initiating),
            (|f| f.initiation = InitiationProgress::Failed, S::Stalled),
            (|f| f.heard = false, S::Stalled),
            (|f| f.paused = true, S::Paused),
            (|f| f.previous = S::Stopped, S::Stopped),
        ];
        for (add, expected) in rows {
            add(&mut facts);
            assert_eq!(data_replication_state(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_lost_connection_alone_changes_nothing() {
        for previous in [S::Continuous, S::Rescan] {
            let facts = ReplicationFacts { previous, phase: AgentPhase::Connecting, ..following() };
            assert_eq!(data_replication_state(&facts), previous);
        }
    }

    #[test]
    fn after_a_pause_there_is_a_backlog_until_the_agent_says_otherwise() {
        let facts = ReplicationFacts { previous: S::Paused, phase: AgentPhase::Paused, ..following() };
        assert_eq!(data_replication_state(&facts), S::Backlog);
        assert_eq!(data_replication_state(&ReplicationFacts { phase: AgentPhase::Idle, ..facts }), S::Continuous);
    }

    #[test]
    fn lag_grows_while_nothing_is_heard() {
        let at = |ms| Some(Timestamp::from_unix_ms(ms));
        let now = Timestamp::from_unix_ms(100_000);
        let mut observed = Observed { lag_ms: Some(2000), ..Observed::default() };
        assert_eq!(observed.lag_ms_at(now, at(99_000), None), Some(2000));
        assert_eq!(observed.lag_ms_at(now, at(40_000), at(1)), Some(62_000));
        observed.lag_ms = None;
        assert_eq!(observed.lag_ms_at(now, at(99_000), at(70_000)), Some(30_000));
        assert_eq!(observed.lag_ms_at(now, at(99_000), None), None);
    }
}
