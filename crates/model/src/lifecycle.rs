//! The lifecycle of a source server: one function decides every transition.
//!
//! ```text
//!                 Register            ReadyForTest          StartTest
//!   (enrolment) ───────────▶ NOT_READY ───────────▶ READY_FOR_TEST ───────────▶ TESTING ◀─┐
//!                                                      ▲   │    ▲  ▲               │  │   │ StartTest
//!                                                      │   │    │  └─ LaunchFailed ─┘  └───┘ (a new test)
//!                                                      │   │    └──── Mark(READY_FOR_TEST) ────┐
//!                                                      │   │ Mark(READY_FOR_CUTOVER)           │
//!                                  Mark(READY_FOR_TEST)│   ▼                                   │
//!                                                      └─ READY_FOR_CUTOVER ◀── Mark(READY_FOR_CUTOVER) ── TESTING
//!                                                          │   ▲
//!                                             StartCutover │   │ LaunchFailed, Mark(READY_FOR_CUTOVER)
//!                                                          ▼   │
//!                                                       CUTTING_OVER ── FinalizeCutover, Mark(CUTOVER) ──▶ CUTOVER
//!
//!   any state that replicates ── Disconnect ──▶ DISCONNECTED ── Register (installed again) ──▶ NOT_READY
//!   NOT_READY, READY_FOR_TEST, TESTING, READY_FOR_CUTOVER ── StopReplication ──▶ STOPPED ── StartReplication ──▶ NOT_READY
//! ```
//!
//! `LaunchFailed` goes back to the state before the call: a launch that fails must not leave a server stuck in TESTING or
//! CUTTING_OVER. A cutover is a transaction: whatever fails on its way (the drain, the source's quiesce scripts, the snapshot, the
//! conversion, the launch, the verification) takes the source's fence away and ends with `LaunchFailed` in READY_FOR_CUTOVER.
//! `StartReplication` of a server that was installed without replication leaves it NOT_READY. Archiving is not a state: see
//! [`may_archive`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::replication::DataReplicationState;

/// MGN's `LifeCycleState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LifeCycleState {
    Stopped,
    NotReady,
    ReadyForTest,
    Testing,
    ReadyForCutover,
    CuttingOver,
    Cutover,
    Disconnected,
    Discovered,
    PendingInstallation,
}

impl LifeCycleState {
    /// Every state, in MGN's order.
    pub const ALL: [Self; 10] = [
        Self::Stopped,
        Self::NotReady,
        Self::ReadyForTest,
        Self::Testing,
        Self::ReadyForCutover,
        Self::CuttingOver,
        Self::Cutover,
        Self::Disconnected,
        Self::Discovered,
        Self::PendingInstallation,
    ];

    /// MGN's name of the state, such as `READY_FOR_TEST`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::NotReady => "NOT_READY",
            Self::ReadyForTest => "READY_FOR_TEST",
            Self::Testing => "TESTING",
            Self::ReadyForCutover => "READY_FOR_CUTOVER",
            Self::CuttingOver => "CUTTING_OVER",
            Self::Cutover => "CUTOVER",
            Self::Disconnected => "DISCONNECTED",
            Self::Discovered => "DISCOVERED",
            Self::PendingInstallation => "PENDING_INSTALLATION",
        }
    }
}

impl fmt::Display for LifeCycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What asks for a transition: a call of the API, or something that the service saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifeCycleCommand {
    /// The agent enrolled (again).
    Register,
    /// Initial sync done, backlog flushed, first launchable snapshot there.
    ReadyForTest,
    /// `StartTest`.
    StartTest,
    /// `ChangeServerLifeCycleState` to this state.
    Mark(LifeCycleState),
    /// `StartCutover`.
    StartCutover,
    /// The launch that a `StartTest` or `StartCutover` began did not succeed; back to the state before the call.
    LaunchFailed { before: LifeCycleState },
    /// `FinalizeCutover`.
    FinalizeCutover,
    /// `DisconnectFromService`, or the agent was uninstalled.
    Disconnect,
    /// `StopReplication`.
    StopReplication,
    /// `StartReplication`.
    StartReplication,
}

/// In MGN's words, where it has some.
impl fmt::Display for LifeCycleCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register => f.write_str("the agent's registration"),
            Self::ReadyForTest => f.write_str("the end of the initial sync"),
            Self::StartTest => f.write_str("StartTest"),
            Self::Mark(state) => write!(f, "ChangeServerLifeCycleState to {state}"),
            Self::StartCutover => f.write_str("StartCutover"),
            Self::LaunchFailed { before } => write!(f, "the return to {before} after a failed launch"),
            Self::FinalizeCutover => f.write_str("FinalizeCutover"),
            Self::Disconnect => f.write_str("DisconnectFromService"),
            Self::StopReplication => f.write_str("StopReplication"),
            Self::StartReplication => f.write_str("StartReplication"),
        }
    }
}

/// A command that the lifecycle does not allow in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{command} is not possible while the server is {state}; it is possible in: {}", possible_in(*.command))]
pub struct IllegalTransition {
    pub state: LifeCycleState,
    pub command: LifeCycleCommand,
}

fn possible_in(command: LifeCycleCommand) -> String {
    let states: Vec<_> =
        LifeCycleState::ALL.iter().filter(|s| next(**s, command).is_some()).map(|s| s.as_str()).collect();
    if states.is_empty() { "no state".to_owned() } else { states.join(", ") }
}

/// The state after `command`, or why it is illegal in `state`.
///
/// # Errors
/// [`IllegalTransition`] when the diagram above has no such arrow.
pub fn transition(state: LifeCycleState, command: LifeCycleCommand) -> Result<LifeCycleState, IllegalTransition> {
    next(state, command).ok_or(IllegalTransition { state, command })
}

fn next(state: LifeCycleState, command: LifeCycleCommand) -> Option<LifeCycleState> {
    use LifeCycleCommand as C;
    use LifeCycleState as S;
    match (state, command) {
        (S::NotReady | S::Disconnected | S::Stopped | S::Discovered | S::PendingInstallation, C::Register)
        | (S::Stopped, C::Mark(S::NotReady))
        | (S::Stopped | S::NotReady, C::StartReplication) => Some(S::NotReady),

        (S::NotReady | S::ReadyForTest | S::Testing | S::ReadyForCutover, C::StopReplication) => Some(S::Stopped),

        (S::NotReady, C::ReadyForTest)
        | (S::Testing | S::ReadyForCutover, C::Mark(S::ReadyForTest))
        | (S::Testing, C::LaunchFailed { before: S::ReadyForTest }) => Some(S::ReadyForTest),

        (S::ReadyForTest | S::Testing, C::StartTest) | (S::Testing, C::LaunchFailed { before: S::Testing }) => {
            Some(S::Testing)
        }

        (S::Testing | S::ReadyForTest | S::CuttingOver, C::Mark(S::ReadyForCutover))
        | (S::CuttingOver, C::LaunchFailed { before: S::ReadyForCutover }) => Some(S::ReadyForCutover),

        (S::ReadyForCutover, C::StartCutover) => Some(S::CuttingOver),

        (S::CuttingOver, C::FinalizeCutover | C::Mark(S::Cutover)) => Some(S::Cutover),

        (
            S::Stopped | S::NotReady | S::ReadyForTest | S::Testing | S::ReadyForCutover | S::CuttingOver,
            C::Disconnect,
        ) => Some(S::Disconnected),

        _ => None,
    }
}

/// Whether `MarkAsArchived` is possible: only once nothing of the server replicates any more.
#[must_use]
pub fn may_archive(state: LifeCycleState) -> bool {
    matches!(state, LifeCycleState::Cutover | LifeCycleState::Disconnected)
}

/// What a user asks of a server's data replication; its states are those of [`DataReplicationState`].
///
/// | command | possible while the replication is |
/// |---|---|
/// | Pause | anything but PAUSED, STOPPED, DISCONNECTED |
/// | Resume | PAUSED |
/// | Stop | anything but STOPPED, DISCONNECTED |
/// | Start | STOPPED |
/// | Retry | STALLED |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationCommand {
    Pause,
    Resume,
    Stop,
    Start,
    Retry,
}

impl ReplicationCommand {
    fn possible_in(self) -> &'static [DataReplicationState] {
        use DataReplicationState as S;
        match self {
            Self::Pause => {
                &[S::Initiating, S::InitialSync, S::Backlog, S::CreatingSnapshot, S::Continuous, S::Rescan, S::Stalled]
            }
            Self::Resume => &[S::Paused],
            Self::Stop => &[
                S::Initiating,
                S::InitialSync,
                S::Backlog,
                S::CreatingSnapshot,
                S::Continuous,
                S::Paused,
                S::Rescan,
                S::Stalled,
            ],
            Self::Start => &[S::Stopped],
            Self::Retry => &[S::Stalled],
        }
    }
}

/// In MGN's words.
impl fmt::Display for ReplicationCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "PauseReplication",
            Self::Resume => "ResumeReplication",
            Self::Stop => "StopReplication",
            Self::Start => "StartReplication",
            Self::Retry => "RetryDataReplication",
        })
    }
}

/// A command that the state of the data replication does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{command} is not possible while the data replication is {state}; it is possible in: {}", listed(.command.possible_in()))]
pub struct IllegalReplicationCommand {
    pub state: DataReplicationState,
    pub command: ReplicationCommand,
}

fn listed(states: &[DataReplicationState]) -> String {
    states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(", ")
}

/// Whether `command` is possible in `state`.
///
/// # Errors
/// [`IllegalReplicationCommand`] where the table above says no.
pub fn check_replication(
    state: DataReplicationState,
    command: ReplicationCommand,
) -> Result<(), IllegalReplicationCommand> {
    let possible = command.possible_in().contains(&state);
    if possible { Ok(()) } else { Err(IllegalReplicationCommand { state, command }) }
}

#[cfg(test)]
mod tests {
    use LifeCycleCommand as C;
    use LifeCycleState as S;

    use super::*;

    #[test]
    fn the_whole_path_of_a_migration_is_legal() {
        let path = [
            (C::ReadyForTest, S::ReadyForTest),
            (C::StartTest, S::Testing),
            (C::StartTest, S::Testing),
            (C::Mark(S::ReadyForCutover), S::ReadyForCutover),
            (C::StartCutover, S::CuttingOver),
            (C::LaunchFailed { before: S::ReadyForCutover }, S::ReadyForCutover),
            (C::StartCutover, S::CuttingOver),
            (C::FinalizeCutover, S::Cutover),
        ];
        let mut state = S::NotReady;
        for (command, expected) in path {
            state = transition(state, command).unwrap();
            assert_eq!(state, expected, "{command:?}");
        }
    }

    #[test]
    fn cutover_is_final() {
        let commands = [
            C::Register,
            C::ReadyForTest,
            C::StartTest,
            C::StartCutover,
            C::FinalizeCutover,
            C::Disconnect,
            C::StopReplication,
            C::StartReplication,
        ];
        let marks = S::ALL.map(C::Mark);
        for command in commands.into_iter().chain(marks) {
            assert!(transition(S::Cutover, command).is_err(), "{command:?}");
        }
    }

    #[test]
    fn change_server_life_cycle_state_never_starts_a_test_or_a_cutover() {
        for state in S::ALL {
            for target in [S::Testing, S::CuttingOver, S::Disconnected] {
                assert!(transition(state, C::Mark(target)).is_err(), "{state} -> {target}");
            }
        }
    }

    #[test]
    fn a_cutover_is_never_stopped_only_taken_back() {
        assert!(transition(S::CuttingOver, C::StopReplication).is_err());
        assert_eq!(transition(S::Testing, C::StopReplication), Ok(S::Stopped));
        assert_eq!(transition(S::Stopped, C::StartReplication), Ok(S::NotReady));
    }

    #[test]
    fn replication_is_resumed_only_from_a_pause() {
        let resume = |state| check_replication(state, ReplicationCommand::Resume);
        assert!(resume(DataReplicationState::Paused).is_ok());
        let error = resume(DataReplicationState::Continuous).unwrap_err().to_string();
        assert!(error.contains("ResumeReplication") && error.ends_with("in: PAUSED"), "{error}");
    }

    #[test]
    fn the_error_names_the_states_that_would_do() {
        let error = transition(S::NotReady, C::StartCutover).unwrap_err().to_string();
        assert!(error.contains("NOT_READY") && error.ends_with("READY_FOR_CUTOVER"), "{error}");
    }

    #[test]
    fn the_error_speaks_of_commands_as_mgn_does() {
        let error = |command| transition(S::NotReady, command).unwrap_err().to_string();
        let mark = error(C::Mark(S::ReadyForCutover));
        assert!(mark.starts_with("ChangeServerLifeCycleState to READY_FOR_CUTOVER is not possible"), "{mark}");
        assert!(error(C::StartTest).starts_with("StartTest is not possible while the server is NOT_READY"));
        let failed = error(C::LaunchFailed { before: S::ReadyForTest });
        assert!(!failed.contains("LaunchFailed") && failed.contains("READY_FOR_TEST"), "{failed}");
    }

    #[test]
    fn only_what_no_longer_replicates_is_archived() {
        let archivable: Vec<_> = S::ALL.into_iter().filter(|s| may_archive(*s)).collect();
        assert_eq!(archivable, [S::Cutover, S::Disconnected]);
    }

    #[test]
    fn names_are_those_of_serde() {
        for state in S::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
