//! What the running agent is doing, for `rehost-agent status`.
//!
//! The daemon writes it every second or so, and therefore to memory (`/run`), never to a disk: a write to the disk that is being
//! replicated would have to be replicated in its turn.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rehost_model::link::{AgentPhase, FenceState, ReportedError};
use rehost_model::replication::{Consistency, ReplicatedDisk, TrackerKind};
use rehost_model::{Epoch, ServerId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::sync::{FreezeStats, TrackerNote};
use crate::text;

/// Where the daemon writes, unless `--runtime-dir` says otherwise.
pub const RUNTIME_DIR: &str = "/run/rehost-agent";

/// A daemon that has not written for this long is not running (or stuck).
const STALE_MS: u64 = 60_000;

/// What the daemon writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    #[serde(rename = "sourceServerID")]
    pub source_server_id: ServerId,
    pub endpoint: String,
    pub agent_version: String,
    pub process_id: u32,
    pub updated: Timestamp,
    pub phase: AgentPhase,
    /// Addresses of the replication server, in the order in which they are tried.
    pub replicator: Vec<String>,
    pub disks: Vec<ReplicatedDisk>,
    pub sent_bytes: u64,
    pub rate_bytes_per_second: u64,
    /// The checkpoint that was asked for, and the newest one that is durable on the replication server.
    pub checkpoint_requested: Epoch,
    pub checkpoint_reached: Epoch,
    /// How changes are found on each disk.
    #[serde(default)]
    pub trackers: Vec<TrackerStatus>,
    /// Of the newest checkpoint that is durable on the replication server.
    #[serde(default)]
    pub consistency: Option<Consistency>,
    /// Why that is not better.
    #[serde(default)]
    pub shortfall: Option<String>,
    /// Bytes that changed and were not sent yet.
    #[serde(default)]
    pub backlog_bytes: u64,
    /// How old the newest checkpoint is if anything changed since, else 0; none before the first.
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// How long writers were blocked.
    #[serde(default)]
    pub freezes: Option<FreezeStats>,
    /// Whether the source is kept from changing for a cutover.
    #[serde(default)]
    pub fence: FenceState,
    pub throttle_bytes_per_second: u64,
    pub certificate_ends: Timestamp,
    /// Why the control plane cannot be reached, if it cannot.
    pub control_plane_error: Option<String>,
    /// Why nothing is replicated, if something keeps the agent from it.
    pub error: Option<ReportedError>,
}

/// How changes of a disk are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrackerStatus {
    pub device_name: String,
    pub tracker: TrackerKind,
    /// Why not in a better way, and what else is to be known of it.
    pub notes: Vec<String>,
}

impl From<TrackerNote> for TrackerStatus {
    fn from(note: TrackerNote) -> Self {
        Self { device_name: note.device, tracker: note.kind, notes: note.why }
    }
}

/// The file of one agent: its name is made from the state directory, so that agents beside each other do not collide.
#[derive(Debug, Clone)]
pub struct StatusFile(PathBuf);

impl StatusFile {
    /// The status file in `runtime_dir` of the agent whose state is in `state_dir`.
    #[must_use]
    pub fn new(runtime_dir: &Path, state_dir: &Path) -> Self {
        let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let name = state_dir.display().to_string().trim_start_matches('/').replace('/', "-");
        Self(runtime_dir.join(format!("{name}.json")))
    }

    /// Replaces the status.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self, status: &AgentStatus) -> io::Result<()> {
        if let Some(folder) = self.0.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        }
        let temporary = self.0.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(status)?)?;
        fs::rename(&temporary, &self.0)
    }

    /// The status, if there is one that can be read.
    #[must_use]
    pub fn read(&self) -> Option<AgentStatus> {
        serde_json::from_slice(&fs::read(&self.0).ok()?).ok()
    }

    /// Removes the file, and the folder when it is empty then.
    pub fn remove(&self) {
        // Either may be gone already, and it is only memory.
        let _ = fs::remove_file(&self.0);
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

impl AgentStatus {
    /// Whether the daemon that wrote this is alive. A process that ended has no program any more, even before it is reaped.
    #[must_use]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        let program = fs::read_link(format!("/proc/{}/exe", self.process_id));
        now.ms_since(self.updated) < STALE_MS && program.is_ok()
    }

    /// As lines for people.
    #[must_use]
    pub fn lines(&self, now: Timestamp) -> Vec<String> {
        let mut lines = vec![
            format!("source server  {}", self.source_server_id),
            format!("control plane  {}{}", self.endpoint, self.control_plane_note()),
        ];
        if self.is_fresh(now) {
            lines.push(format!("doing          {}", text::phase(self.phase)));
        } else {
            lines.push(format!("doing          nothing: the agent is not running (last seen {})", self.updated));
        }
        if !self.replicator.is_empty() {
            lines.push(format!("replicator     {}", self.replicator.join(", ")));
        }
        lines.extend(self.disks.iter().map(disk_line));
        lines.push(format!(
            "sent           {}, now {}/s{}",
            text::bytes(self.sent_bytes),
            text::bytes(self.rate_bytes_per_second),
            if self.throttle_bytes_per_second > 0 {
                format!(" (limit {}/s)", text::bytes(self.throttle_bytes_per_second))
            } else {
                String::new()
            }
        ));
        lines.push(format!("checkpoint     {} of {}", self.checkpoint_reached, self.checkpoint_requested));
        lines.extend(self.change_lines());
        lines.push(format!("certificate    until {}", self.certificate_ends));
        lines.extend(self.error.iter().map(|e| format!("error          {}: {}", e.code, e.message)));
        lines
    }

    /// What is known of changes: how they are found, and how far the copy is behind.
    fn change_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for tracker in &self.trackers {
            lines.push(format!("changes        {} {}", tracker.device_name, text::tracker(tracker.tracker)));
            lines.extend(tracker.notes.iter().map(|note| format!("               {note}")));
        }
        lines.extend(self.consistency.map(|consistency| format!("newest copy    {}", text::consistency(consistency))));
        lines.extend(self.shortfall.iter().map(|why| format!("               {why}")));
        lines.extend(self.lag_ms.map(|lag| format!("lag            {}", text::milliseconds(lag))));
        lines.push(format!("backlog        {}", text::bytes(self.backlog_bytes)));
        lines.extend(self.freezes.map(|freezes| {
            let FreezeStats { count, last_ms, p50_ms, p99_ms, max_ms } = freezes;
            format!(
                "freezes        {count}; writers were blocked {last_ms} ms by the last one, \
                 {p50_ms} ms in the median, {p99_ms} ms at the 99th percentile, {max_ms} ms at most"
            )
        }));
        lines.extend(text::fence(&self.fence).map(|fence| format!("fence          {fence}")));
        lines
    }

    fn control_plane_note(&self) -> String {
        self.control_plane_error.as_ref().map(|e| format!(" (not reachable: {e})")).unwrap_or_default()
    }
}

fn disk_line(disk: &ReplicatedDisk) -> String {
    let percent = text::percent(disk.replicated_storage_bytes, disk.total_storage_bytes);
    format!("disk           {} {percent} of {}", disk.device_name, text::bytes(disk.total_storage_bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn status() -> AgentStatus {
        AgentStatus {
            source_server_id: ServerId::generate(),
            endpoint: "https://127.0.0.1:8443".to_owned(),
            agent_version: "0.1.0".to_owned(),
            process_id: std::process::id(),
            updated: Timestamp::from_unix_ms(1000),
            phase: AgentPhase::InitialSync,
            replicator: vec!["10.0.0.1:1500".to_owned()],
            disks: vec![ReplicatedDisk {
                device_name: "/dev/sda".to_owned(),
                total_storage_bytes: 2 << 30,
                replicated_storage_bytes: 1 << 30,
                ..ReplicatedDisk::default()
            }],
            sent_bytes: 0,
            rate_bytes_per_second: 0,
            checkpoint_requested: Epoch(2),
            checkpoint_reached: Epoch(1),
            trackers: vec![TrackerStatus {
                device_name: "/dev/sda".to_owned(),
                tracker: TrackerKind::Ftrace,
                notes: vec!["eBPF: no BTF".to_owned()],
            }],
            consistency: Some(Consistency::Frozen),
            shortfall: None,
            backlog_bytes: 4096,
            lag_ms: Some(2500),
            freezes: Some(FreezeStats { count: 3, last_ms: 50, p50_ms: 60, p99_ms: 70, max_ms: 80 }),
            fence: FenceState::Open,
            throttle_bytes_per_second: 0,
            certificate_ends: Timestamp::from_unix_ms(0),
            control_plane_error: None,
            error: Some(ReportedError { code: "NoSpace".to_owned(), message: "full".to_owned() }),
        }
    }

    #[test]
    fn a_status_is_read_back_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let file = StatusFile::new(&directory.path().join("run"), Path::new("/var/lib/rehost-agent"));
        assert!(file.0.ends_with("run/var-lib-rehost-agent.json"), "{:?}", file.0);
        file.write(&status()).unwrap();
        assert!(file.read().is_some());
        file.remove();
        assert!(file.read().is_none() && !directory.path().join("run").exists());
    }

    #[test]
    fn people_see_whether_the_agent_lives() {
        let now = Timestamp::from_unix_ms(2000);
        let alive = status().lines(now).join("\n");
        assert!(alive.contains("doing          first copy of everything"), "{alive}");
        assert!(alive.contains("/dev/sda 50.0 % of 2.0 GiB") && alive.contains("NoSpace: full"), "{alive}");
        assert!(
            alive.contains("changes        /dev/sda marked by ftrace") && alive.contains("eBPF: no BTF"),
            "{alive}"
        );
        assert!(alive.contains("lag            2.5 s") && alive.contains("70 ms at the 99th percentile"), "{alive}");
        assert!(alive.contains("newest copy    clean") && !alive.contains("fence"), "{alive}");
        let old = status().lines(now.plus_ms(STALE_MS)).join("\n");
        assert!(old.contains("not running"), "{old}");
        let dead = AgentStatus { process_id: u32::MAX, ..status() };
        assert!(!dead.is_fresh(now));
    }
}
