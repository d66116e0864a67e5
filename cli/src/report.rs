//! A source server in words.

use aws_sdk_mgn::types::{
    DataReplicationInitiation, DataReplicationInitiationStepStatus as StepStatus, DataReplicationState, LifeCycle,
    SourceProperties, SourceServer,
};
use rehost_control::operations::ServerSettings;
use rehost_model::link::FenceState;
use rehost_model::observed::Extras;
use rehost_model::settings::{MigrationPolicy, Retention};
use serde_json::Value;

use crate::show::{Facts, Table, iso_duration, percent, size, time};

/// How much of a server's disks is copied; bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

impl Progress {
    /// Of all disks together. While disks are compared again, that is what counts.
    pub(crate) fn of(server: &SourceServer) -> Self {
        let Some(info) = server.data_replication_info() else { return Self::default() };
        let rescan = info.data_replication_state() == Some(&DataReplicationState::Rescan);
        let mut progress = Self::default();
        for disk in info.replicated_disks() {
            let done = if rescan { disk.rescanned_storage_bytes() } else { disk.replicated_storage_bytes() };
            progress.done = progress.done.saturating_add(bytes(done));
            progress.total = progress.total.saturating_add(bytes(disk.total_storage_bytes()));
        }
        progress
    }

    /// Such as `45 %`; empty when nothing is known.
    pub(crate) fn percent_text(self) -> String {
        if self.total == 0 { String::new() } else { format!("{} %", percent(self.done, self.total)) }
    }

    /// Such as `2.0 GiB`; empty when nothing is known.
    pub(crate) fn total_text(self) -> String {
        if self.total == 0 { String::new() } else { size(self.total) }
    }
}

/// The server's id.
pub(crate) fn id(server: &SourceServer) -> &str {
    server.source_server_id().unwrap_or_default()
}

/// The server's host name.
pub(crate) fn host(server: &SourceServer) -> &str {
    let hints = server.source_properties().and_then(|p| p.identification_hints());
    hints.and_then(|h| h.hostname()).unwrap_or_default()
}

/// Its lifecycle state.
pub(crate) fn life_cycle(server: &SourceServer) -> &str {
    server.life_cycle().and_then(|l| l.state()).map_or("", |s| s.as_str())
}

/// The state of its data replication.
pub(crate) fn replication(server: &SourceServer) -> &str {
    server.data_replication_info().and_then(|i| i.data_replication_state()).map_or("", |s| s.as_str())
}

/// How far its copy is behind.
pub(crate) fn lag(server: &SourceServer) -> Option<String> {
    server.data_replication_info()?.lag_duration().map(iso_duration)
}

/// Its launched instance.
pub(crate) fn instance(server: &SourceServer) -> Option<&str> {
    server.launched_instance()?.ec2_instance_id()
}

/// What keeps it from replicating, with the remedy.
pub(crate) fn error(server: &SourceServer) -> Option<String> {
    let error = server.data_replication_info()?.data_replication_error()?;
    let name = error.error().map_or("ERROR", |e| e.as_str());
    Some(match error.raw_error() {
        Some(raw) => format!("{name}: {}", raw.trim_end()),
        None => name.to_owned(),
    })
}

/// Everything about a server; `raw` is the same as the service told it, with what MGN's types have no place for.
pub(crate) fn full(server: &SourceServer, raw: &Value, own: Option<&ServerSettings>, configuration: &Value) -> String {
    let mut facts = facts(server);
    facts.add("Reachable at", endpoints(raw));
    if let Some(extras) = extras(raw) {
        add_extras(&mut facts, &extras);
    }
    let mut text = facts.to_string();
    let info = server.data_replication_info();
    if info.is_some_and(|i| !i.replicated_disks().is_empty()) {
        text.push_str(&format!("\nDISKS\n{}", disks(server)));
    }
    if let Some(initiation) = info.and_then(|i| i.data_replication_initiation()) {
        text.push_str(&format!("\nREPLICATION STEPS\n{}", steps(initiation)));
    }
    if let Some(own) = own {
        text.push_str(&format!("\nSETTINGS\n{}", settings(own)));
    }
    let replication = replication_settings(configuration);
    if !replication.is_empty() {
        text.push_str(&format!("\nREPLICATION SETTINGS\n{replication}"));
    }
    text
}

/// MGN's `ReplicationConfiguration` or its template, as it came.
pub(crate) fn replication_settings(configuration: &Value) -> String {
    let text = |name: &str| configuration[name].as_str().unwrap_or_default().to_owned();
    let yes_or_no = |name: &str| configuration[name].as_bool().map(yes_or_no);
    let mut facts = Facts::default();
    facts.add("Template", text("replicationConfigurationTemplateID"));
    let subnet = configuration["stagingAreaSubnetId"].as_str();
    facts.add_some("Staging subnet", subnet.map(|id| if id.is_empty() { "the region's own" } else { id }));
    let groups = configuration["replicationServersSecurityGroupsIDs"].as_array().into_iter().flatten();
    facts.add("Security groups", groups.filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
    facts.add_some("Region's group too", yes_or_no("associateDefaultSecurityGroup"));
    facts.add("Replication server type", text("replicationServerInstanceType"));
    facts.add_some("A server of its own", yes_or_no("useDedicatedReplicationServer"));
    facts.add_some("Public address", yes_or_no("createPublicIP"));
    facts.add("Reached by", text("dataPlaneRouting"));
    facts.add_some("Bandwidth", configuration["bandwidthThrottling"].as_u64().map(bandwidth));
    facts.add("Large disks", text("defaultLargeStagingDiskType"));
    facts.add("Encryption", text("ebsEncryption"));
    facts.add("Key", text("ebsEncryptionKeyArn"));
    let tags = configuration["stagingAreaTags"].as_object().into_iter().flatten();
    let tags: Vec<_> = tags.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    facts.add("Staging tags", tags.join(", "));
    facts.to_string()
}

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// What a region of rehost tells beside MGN's shape; other services tell nothing.
pub(crate) fn extras(raw: &Value) -> Option<Extras> {
    serde_json::from_value(raw.get("rehost")?.clone()).ok()
}

/// What the copy is worth now, such as `FROZEN`.
pub(crate) fn consistency(extras: &Extras) -> String {
    let name = extras.consistency.and_then(|c| serde_json::to_value(c).ok());
    let name = name.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    match extras.consistency {
        Some(_) if !extras.consistent => "not before the next checkpoint".to_owned(),
        _ => name,
    }
}

fn add_extras(facts: &mut Facts, extras: &Extras) {
    let tracker = extras.tracker.and_then(|t| serde_json::to_value(t).ok());
    facts.add_some("Changes found by", tracker.as_ref().and_then(Value::as_str));
    facts.add("Consistency", consistency(extras));
    if extras.backlog_bytes > 0 {
        facts.add("Backlog", size(extras.backlog_bytes));
    }
    if extras.journal_bytes > 0 {
        facts.add("Journal", size(extras.journal_bytes));
    }
    facts.add_some("Last freeze", extras.last_freeze_ms.map(|ms| format!("{ms} ms")));
    facts.add_some("Source", fence(&extras.fence));
    let disks = extras.new_disks.iter().map(|d| format!("{} ({})", d.device_name, size(d.size_bytes)));
    facts.add("Not replicated", disks.collect::<Vec<_>>().join(", "));
}

fn fence(fence: &FenceState) -> Option<String> {
    match fence {
        FenceState::Open => None,
        FenceState::Closing { fence } => Some(format!("its quiesce scripts run for {}", fence.0)),
        FenceState::Fenced { fence } => Some(format!("fenced for {}", fence.0)),
        FenceState::Failed { fence, reason } => Some(format!("could not be fenced for {}: {reason}", fence.0)),
    }
}

fn facts(server: &SourceServer) -> Facts {
    let mut facts = Facts::default();
    facts.add("Server", id(server));
    facts.add("Host", host(server));
    facts.add_some("User-provided id", server.user_provided_id());
    if let Some(properties) = server.source_properties() {
        add_properties(&mut facts, properties);
    }
    let archived = if server.is_archived() == Some(true) { ", archived" } else { "" };
    facts.add("Lifecycle", format!("{}{archived}", life_cycle(server)));
    facts.add("Replication", replication_line(server));
    facts.add_some("Error", error(server));
    if let Some(info) = server.data_replication_info() {
        facts.add_some("Last snapshot", info.last_snapshot_date_time().map(time));
        facts.add_some("Replicator", info.replicator_id());
    }
    if let Some(life_cycle) = server.life_cycle() {
        add_history(&mut facts, life_cycle);
    }
    facts.add_some("Launched instance", launched(server));
    facts
}

fn add_properties(facts: &mut Facts, properties: &SourceProperties) {
    facts.add_some("System", properties.os().and_then(|o| o.full_string()));
    let cores: i64 = properties.cpus().iter().map(|c| c.cores()).sum();
    let model = properties.cpus().first().and_then(|c| c.model_name()).unwrap_or_default();
    if cores > 0 {
        facts.add("Processor", format!("{cores} × {model}").trim_end_matches([' ', '×']));
    }
    if properties.ram_bytes() > 0 {
        facts.add("Memory", size(bytes(properties.ram_bytes())));
    }
    let addresses: Vec<_> = properties.network_interfaces().iter().flat_map(|n| n.ips()).cloned().collect();
    facts.add("Addresses", addresses.join(", "));
}

fn add_history(facts: &mut Facts, life_cycle: &LifeCycle) {
    facts.add_some("Added", life_cycle.added_to_service_date_time().map(time));
    facts.add_some("First byte", life_cycle.first_byte_date_time().map(time));
    facts.add_some("Last seen", life_cycle.last_seen_by_service_date_time().map(time));
    if let Some(test) = life_cycle.last_test() {
        let initiated = test.initiated().map(|i| (i.api_call_date_time(), i.job_id()));
        let reverted = test.reverted().map(|r| r.api_call_date_time());
        let finalized = test.finalized().map(|f| f.api_call_date_time());
        facts.add("Last test", record(initiated, reverted.flatten(), finalized.flatten()));
    }
    if let Some(cutover) = life_cycle.last_cutover() {
        let initiated = cutover.initiated().map(|i| (i.api_call_date_time(), i.job_id()));
        let reverted = cutover.reverted().map(|r| r.api_call_date_time());
        let finalized = cutover.finalized().map(|f| f.api_call_date_time());
        facts.add("Last cutover", record(initiated, reverted.flatten(), finalized.flatten()));
    }
}

fn record(initiated: Option<(Option<&str>, Option<&str>)>, reverted: Option<&str>, finalized: Option<&str>) -> String {
    let mut parts = Vec::new();
    if let Some((at, job)) = initiated {
        let job = job.map(|j| format!(" ({j})")).unwrap_or_default();
        parts.push(format!("initiated {}{job}", at.map(time).unwrap_or_default()));
    }
    parts.extend(reverted.map(|at| format!("reverted {}", time(at))));
    parts.extend(finalized.map(|at| format!("finalized {}", time(at))));
    parts.join(", ")
}

fn replication_line(server: &SourceServer) -> String {
    let progress = Progress::of(server);
    let mut line = replication(server).to_owned();
    if progress.total > 0 {
        line.push_str(&format!(", {} of {}", progress.percent_text(), progress.total_text()));
    }
    if let Some(lag) = lag(server) {
        line.push_str(&format!(", lag {lag}"));
    }
    if let Some(eta) = server.data_replication_info().and_then(|i| i.eta_date_time()) {
        line.push_str(&format!(", done about {}", time(eta)));
    }
    line
}

fn launched(server: &SourceServer) -> Option<String> {
    let instance = server.launched_instance()?;
    let boot = instance.first_boot().map_or("UNKNOWN", |b| b.as_str());
    let job = instance.job_id().unwrap_or("no job");
    Some(format!("{} (first boot {boot}, {job})", instance.ec2_instance_id()?))
}

/// Where ports of the launched instance are reached from the region's machine.
fn endpoints(raw: &Value) -> String {
    let endpoints = raw["launchedInstance"]["endpoints"].as_object().into_iter().flatten();
    let shown: Vec<_> = endpoints.filter_map(|(port, at)| Some(format!("port {port}: {}", at.as_str()?))).collect();
    shown.join(", ")
}

fn disks(server: &SourceServer) -> Table {
    let mut table = Table::new(&["DEVICE", "SIZE", "REPLICATED", "", "RESCANNED", "BACKLOG"]);
    let disks = server.data_replication_info().map(|i| i.replicated_disks()).unwrap_or_default();
    for disk in disks {
        let (total, done) = (bytes(disk.total_storage_bytes()), bytes(disk.replicated_storage_bytes()));
        table.row(vec![
            disk.device_name().unwrap_or_default().to_owned(),
            size(total),
            size(done),
            format!("{} %", percent(done, total)),
            size(bytes(disk.rescanned_storage_bytes())),
            size(bytes(disk.backlogged_storage_bytes())),
        ]);
    }
    table
}

fn steps(initiation: &DataReplicationInitiation) -> String {
    let mut text = String::new();
    for step in initiation.steps() {
        let mark = match step.status() {
            Some(StepStatus::Succeeded) => "✓",
            Some(StepStatus::InProgress) => "→",
            Some(StepStatus::Failed) => "✗",
            Some(StepStatus::Skipped) => "-",
            _ => "·",
        };
        let status = step.status().map_or("", |s| s.as_str());
        text.push_str(&format!("{mark} {status:11}  {}\n", step.name().map_or("", |n| n.as_str())));
    }
    text
}

/// The settings that MGN has no operation for.
pub(crate) fn settings(own: &ServerSettings) -> String {
    let mut facts = Facts::default();
    let probes = own.probes.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
    facts.add("Probes", probes.join(", "));
    facts.add_some("Verified within", own.verify_timeout_seconds.map(crate::show::duration));
    facts.add_some("Opens by itself", own.policy.as_ref().map(gates));
    let boot_mode = own.boot_mode.and_then(|mode| serde_json::to_value(mode).ok());
    facts.add_some("Boot mode", boot_mode.as_ref().and_then(|mode| mode.as_str()));
    facts.add_some("Quiesced for cutover", own.quiesce.map(yes_or_no));
    facts.add_some("Checkpoint every", own.checkpoint_interval_ms.map(|ms| crate::show::duration(ms / 1000)));
    let freeze = |ms| if ms == 0 { "never".to_owned() } else { format!("at most {ms} ms") };
    facts.add_some("Frozen", own.max_freeze_ms.map(freeze));
    facts.add_some("Hooks may take", own.hook_timeout_ms.map(|ms| crate::show::duration(ms / 1000)));
    facts.add_some("New disks join", own.auto_add_disks.map(yes_or_no));
    facts.add_some("Snapshot every", own.snapshot_schedule.map(|schedule| every(schedule.every_minutes)));
    facts.add_some("Snapshots kept", own.retention.map(kept));
    facts.add_some("Launch template", own.ec2_launch_template_id.clone());
    facts.add_some("Copies its address", own.copy_private_ip.map(yes_or_no));
    facts.add_some("Replication server", own.replication_server_rotation_days.map(rotation));
    facts.to_string()
}

fn every(minutes: u64) -> String {
    if minutes == 0 { "only on demand".to_owned() } else { crate::show::duration(minutes.saturating_mul(60)) }
}

fn rotation(days: u64) -> String {
    if days == 0 { "never replaced for its age".to_owned() } else { format!("replaced after {days} days") }
}

fn kept(retention: Retention) -> String {
    format!("the newest {}, {} hourly, {} daily", retention.keep_last, retention.hourly, retention.daily)
}

fn gates(policy: &MigrationPolicy) -> String {
    let gates = [
        (policy.auto_test, "test"),
        (policy.auto_ready_for_cutover, "ready for cutover"),
        (policy.auto_cutover, "cutover"),
        (policy.auto_finalize, "finalize"),
        (policy.auto_archive, "archive"),
    ];
    let open: Vec<_> = gates.into_iter().filter(|(open, _)| *open).map(|(_, name)| name).collect();
    if open.is_empty() { "nothing".to_owned() } else { open.join(", ") }
}

fn bandwidth(mbit: u64) -> String {
    if mbit == 0 { "no limit".to_owned() } else { format!("{mbit} Mbit/s") }
}

fn bytes(of_api: i64) -> u64 {
    u64::try_from(of_api).unwrap_or(0)
}

#[cfg(test)]
mod tests;
