//! Numbers and states, as people read them.

use rehost_model::link::{AgentPhase, FenceState};
use rehost_model::replication::{Consistency, TrackerKind};

/// Bytes in binary units, such as `1.5 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A part of a whole, such as `50.0 %`; never 100 % before all of it is there.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part.min(whole)) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

/// A duration, such as `2 h 05 min` or `40 s`.
#[must_use]
pub fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

/// What the agent is doing.
#[must_use]
pub fn phase(phase: AgentPhase) -> &'static str {
    match phase {
        AgentPhase::Waiting => "waiting for directions",
        AgentPhase::Connecting => "connecting to the replication server",
        AgentPhase::InitialSync => "first copy of everything",
        AgentPhase::Rescan => "comparing, and sending what differs",
        AgentPhase::Backlog => "sending what changed",
        AgentPhase::Idle => "following what is written",
        AgentPhase::Paused => "paused: changes are noted and not sent",
        AgentPhase::Stopped => "stopped for good",
    }
}

/// How changes are found.
#[must_use]
pub fn tracker(kind: TrackerKind) -> &'static str {
    match kind {
        TrackerKind::Ebpf => "marked by eBPF, by request",
        TrackerKind::EbpfBio => "marked by eBPF, by bio",
        TrackerKind::Ftrace => "marked by ftrace",
        TrackerKind::Rescan => "found by comparing everything",
    }
}

/// What a checkpoint is worth.
#[must_use]
pub fn consistency(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::None => "of several moments: a file system on it may be damaged",
        Consistency::Frozen => "clean: the file systems were frozen",
        Consistency::Quiescent => "of one moment, as after a power cut: nothing was written meanwhile",
    }
}

/// A short time, such as `2.5 s`.
#[must_use]
pub fn milliseconds(milliseconds: u64) -> String {
    match milliseconds {
        0 => "none".to_owned(),
        1..60_000 => format!("{}.{} s", milliseconds / 1000, milliseconds / 100 % 10),
        _ => duration(milliseconds / 1000),
    }
}

/// How far a fence is; none where the source is in use.
#[must_use]
pub fn fence(fence: &FenceState) -> Option<String> {
    match fence {
        FenceState::Open => None,
        FenceState::Closing { fence } => Some(format!("closing for {}", fence.0)),
        FenceState::Fenced { fence } => Some(format!("closed for {}: only the system itself writes", fence.0)),
        FenceState::Failed { fence, reason } => Some(format!("failed for {}: {reason}", fence.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
        assert!(bytes(u64::MAX).ends_with("PiB"));
        assert_eq!([percent(1, 3), percent(999, 1000), percent(0, 0)], ["33.3 %", "99.9 %", "0.0 %"]);
        assert_eq!([milliseconds(0), milliseconds(2560), milliseconds(125_000)], ["none", "2.5 s", "2 min 05 s"]);
        assert_eq!([duration(40), duration(125), duration(7500)], ["40 s", "2 min 05 s", "2 h 05 min"]);
    }
}
