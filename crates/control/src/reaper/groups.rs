//! Security groups that servers share, in networks of the user's: they go when they are in nobody's ledger.
//!
//! They cost nothing. Whatever cannot be learnt of them keeps them, and nothing else from being removed.

use std::collections::BTreeSet;

use rehost_model::ledger::{LedgerEntry, ResourceKind};
use rehost_model::settings::ReplicationTemplate;
use rehost_model::{SecurityGroupId, SourceServer};

use super::Done;
use crate::ports::{PortResult, Ports, SharedGroup};
use crate::steps::groups::is_wanted_by;
use crate::{ledger, repo};

/// The groups that there are; `None` if that cannot be learnt.
pub(super) async fn listed(ports: &Ports) -> Option<Vec<SharedGroup>> {
    let listed = ports.compute.shared_groups().await;
    listed.inspect_err(|error| tracing::warn!(%error, "security groups in other networks cannot be listed")).ok()
}

/// Those of the groups that nobody needs.
pub(super) async fn unneeded(
    ports: &Ports,
    groups: &[SharedGroup],
    ledger: &[LedgerEntry],
    servers: &[SourceServer],
) -> BTreeSet<SecurityGroupId> {
    if groups.is_empty() {
        return BTreeSet::new();
    }
    find_unneeded(ports, groups, ledger, servers).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "nobody knows which security groups are needed");
        BTreeSet::new()
    })
}

async fn find_unneeded(
    ports: &Ports,
    groups: &[SharedGroup],
    ledger: &[LedgerEntry],
    servers: &[SourceServer],
) -> PortResult<BTreeSet<SecurityGroupId>> {
    let templates: Vec<ReplicationTemplate> = repo::list(ports, "").await?;
    let of_servers = servers.iter().map(|server| &server.internal.replication.settings);
    let settings = of_servers.chain(templates.iter().map(|template| &template.settings));
    let named: BTreeSet<_> = settings.flat_map(|s| &s.replication_servers_security_groups_ids).collect();
    let is_needed = |group: &&SharedGroup| {
        group.in_use || named.contains(&group.id) || ledger.iter().any(|entry| is_wanted_by(group, entry))
    };
    Ok(groups.iter().filter(|group| !is_needed(group)).map(|group| group.id.clone()).collect())
}

/// Deletes a group, unless somebody has begun to need it since it was judged.
pub(super) async fn remove(ports: &Ports, id: &SecurityGroupId) -> PortResult<Done> {
    let groups = ports.compute.shared_groups().await?;
    let servers = repo::list::<SourceServer>(ports, "").await?;
    let entries = repo::list::<LedgerEntry>(ports, "").await?;
    let unneeded = find_unneeded(ports, &groups, &entries, &servers).await?;
    if groups.iter().any(|group| group.id == *id) && !unneeded.contains(id) {
        return Ok(Done::Nothing);
    }
    ledger::delete(ports, ResourceKind::SecurityGroup, id.as_str()).await?;
    Ok(Done::Removed)
}
