//! Source servers: the list, one of them, and its settings.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_mgn::types::SourceServer;
use rehost_api::settings::{AddDiskRequest, SettingsRequest};
use rehost_control::operations::ServerSettings;
use rehost_model::launch::RightSizing;
use rehost_model::settings::{MigrationPolicy, Retention, SnapshotSchedule};
use serde_json::{Value, json};

use super::{out, out_json};
use crate::args::{AddDiskArgs, OneArgs, ReplicationArgs, ServersArgs, SetArgs};
use crate::client::Mgn;
use crate::show::Table;
use crate::{own, report};

/// Lists servers.
pub(super) async fn list(mgn: &Mgn, args: &ServersArgs, json: bool) -> Result<()> {
    let servers = mgn.servers(args.archived, &args.state).await?;
    if json {
        return out_json(&servers.json);
    }
    if servers.value.is_empty() {
        return out("There are no such servers. `rehost install-command` prints how to add one.\n");
    }
    let mut table =
        Table::new(&["SERVER", "HOST", "LIFECYCLE", "REPLICATION", "DONE", "OF", "LAG", "CONSISTENCY", "INSTANCE"]);
    for (at, server) in servers.value.iter().enumerate() {
        table.row(row(server, &servers.json["items"][at]));
    }
    out(table)?;
    for server in &servers.value {
        if let Some(error) = report::error(server) {
            out(format_args!("\n{}: {error}\n", report::id(server)))?;
        }
    }
    Ok(())
}

fn row(server: &SourceServer, raw: &Value) -> Vec<String> {
    let progress = report::Progress::of(server);
    vec![
        report::id(server).to_owned(),
        report::host(server).to_owned(),
        report::life_cycle(server).to_owned(),
        report::replication(server).to_owned(),
        progress.percent_text(),
        progress.total_text(),
        report::lag(server).unwrap_or_default(),
        report::extras(raw).map(|extras| report::consistency(&extras)).unwrap_or_default(),
        report::instance(server).unwrap_or_default().to_owned(),
    ]
}

/// Shows one server.
pub(super) async fn show(mgn: &Mgn, one: &OneArgs, json: bool) -> Result<()> {
    let id = mgn.resolve(&one.server).await?;
    let mut server = mgn.server(&id).await?;
    // Only a region of rehost has settings of its own; of other services the rest is shown.
    let settings = match id.parse() {
        Ok(source_server_id) => {
            let request = SettingsRequest { source_server_id, settings: ServerSettings::default() };
            own::settings(&mgn.target, &request).await.ok().map(|answer| answer.settings)
        }
        Err(_) => None,
    };
    // A service may refuse to tell it.
    let replication = mgn.replication(&id).await.unwrap_or_default();
    if json {
        if let Some(settings) = settings {
            server.json["settings"] = json!(settings);
        }
        server.json["replicationConfiguration"] = replication;
        return out_json(&server.json);
    }
    out(report::full(&server.value, &server.json, settings.as_ref(), &replication))
}

/// Changes the settings of one server.
pub(super) async fn set(mgn: &Mgn, set: SetArgs, json: bool) -> Result<()> {
    let source_server_id = mgn.resolve(&set.one.server).await?.parse()?;
    let mut settings = ServerSettings {
        probes: Some(set.probe.clone()).filter(|p| !p.is_empty()),
        verify_timeout_seconds: set.verify_timeout,
        boot_mode: set.boot_mode,
        bandwidth_throttling: None,
        policy: None,
        quiesce: set.quiesce,
        checkpoint_interval_ms: set.checkpoint_interval.map(milliseconds),
        max_freeze_ms: set.max_freeze,
        hook_timeout_ms: set.hook_timeout.map(milliseconds),
        auto_add_disks: set.auto_disks,
        snapshot_schedule: set.snapshot_every.map(|every_minutes| SnapshotSchedule { every_minutes }),
        retention: None,
        ec2_launch_template_id: set.launch_template.clone(),
        copy_private_ip: set.copy_private_ip,
        target_instance_type_right_sizing_method: set.right_size.map(right_sizing),
        replication_server_rotation_days: set.rotate_after,
    };
    let mut request = SettingsRequest { source_server_id, settings: ServerSettings::default() };
    if names_gates(&set) {
        // The policy is written whole: what is not named stays as it is.
        let now = own::settings(&mgn.target, &request).await?.settings.policy.unwrap_or_default();
        settings.policy = Some(policy(now, &set));
    }
    if [set.keep_last, set.keep_hourly, set.keep_daily].iter().any(Option::is_some) {
        let now = own::settings(&mgn.target, &request).await?.settings.retention.unwrap_or_default();
        settings.retention = Some(retention(now, &set));
    }
    request.settings = settings;
    let mut answer = own::settings(&mgn.target, &request).await?;
    let id = request.source_server_id.as_str();
    if set.replication != ReplicationArgs::default() {
        mgn.set_replication(id, &set.replication).await.context("the settings of the replication were not changed")?;
        request.settings = ServerSettings::default();
        answer = own::settings(&mgn.target, &request).await?;
    }
    let replication = mgn.replication(id).await.unwrap_or_default();
    if json {
        let mut settings = json!(answer.settings);
        settings["replicationConfiguration"] = replication;
        return out_json(&settings);
    }
    out(format_args!("{}{}", report::settings(&answer.settings), report::replication_settings(&replication)))
}

fn right_sizing(by_source: bool) -> RightSizing {
    if by_source { RightSizing::Basic } else { RightSizing::None }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Replicates one more disk of a server.
pub(super) async fn add_disk(mgn: &Mgn, args: &AddDiskArgs, json: bool) -> Result<()> {
    let id = mgn.resolve(&args.one.server).await?;
    let request = AddDiskRequest { source_server_id: id.parse()?, device_name: args.device.clone() };
    let server = own::add_disk(&mgn.target, &request).await?;
    if json { out_json(&server) } else { out(format_args!("{} of {id} is replicated from now on\n", args.device)) }
}

fn retention(now: Retention, set: &SetArgs) -> Retention {
    Retention {
        keep_last: set.keep_last.unwrap_or(now.keep_last),
        hourly: set.keep_hourly.unwrap_or(now.hourly),
        daily: set.keep_daily.unwrap_or(now.daily),
    }
}

fn names_gates(set: &SetArgs) -> bool {
    [set.auto_test, set.auto_ready, set.auto_cutover, set.auto_finalize, set.auto_archive].iter().any(Option::is_some)
}

fn policy(now: MigrationPolicy, set: &SetArgs) -> MigrationPolicy {
    MigrationPolicy {
        auto_test: set.auto_test.unwrap_or(now.auto_test),
        auto_ready_for_cutover: set.auto_ready.unwrap_or(now.auto_ready_for_cutover),
        auto_cutover: set.auto_cutover.unwrap_or(now.auto_cutover),
        auto_finalize: set.auto_finalize.unwrap_or(now.auto_finalize),
        auto_archive: set.auto_archive.unwrap_or(now.auto_archive),
    }
}
