//! Numbers and states, as people read them.

use rehost_model::link::AgentPhase;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
        assert!(bytes(u64::MAX).ends_with("PiB"));
        assert_eq!([percent(1, 3), percent(999, 1000), percent(0, 0)], ["33.3 %", "99.9 %", "0.0 %"]);
        assert_eq!([duration(40), duration(125), duration(7500)], ["40 s", "2 min 05 s", "2 h 05 min"]);
    }
}
