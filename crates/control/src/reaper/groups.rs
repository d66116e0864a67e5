//! Security groups that servers share, in networks of the user's: they go when they are in nobody's ledger.
//!
//! They cost nothing. Whatever cannot be learnt of them keeps them, and nothing else from being removed.

use std::collections::BTreeSet;

use rehost_model::ledger::{LedgerEntry, ResourceKind};
use rehost_model::settings::ReplicationTemplate;
use rehost_model::{SecurityGroupId, SourceServer};

use super::Done;
use crate::ports::{PortResult, Ports, SharedGroup};
use crate::{ledger, repo};

/// The groups that there are; `None` if that cannot be learnt.
pub(super) async fn listed(ports: &Ports) -> Option<Vec<SharedGroup>> {
    let listed = ports.compute.shared_groups().await;
    listed.inspect_err(|error| tracing::warn!(%error, "security groups in other networks cannot be listed")).ok()
}

/// Which groups somebody needs.
pub(super) enum Needs {
    /// Nobody knows or has asked, or one is just being looked up or made.
    All,
    These(BTreeSet<String>),
}

impl Needs {
    /// What these servers need, if there is anything to need.
    pub(super) async fn gather(
        ports: &Ports,
        groups: Option<&Vec<SharedGroup>>,
        ledger: &[LedgerEntry],
        servers: &[SourceServer],
    ) -> Self {
        if groups.is_none_or(Vec::is_empty) {
            return Self::All;
        }
        Self::of(ports, ledger, servers).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "nobody knows which security groups are needed");
            Self::All
        })
    }

    async fn of(ports: &Ports, ledger: &[LedgerEntry], servers: &[SourceServer]) -> PortResult<Self> {
        let entries = ledger.iter().filter(|entry| entry.kind == ResourceKind::SecurityGroup);
        let Some(mut needed) = entries.map(|entry| entry.resource.clone()).collect::<Option<BTreeSet<_>>>() else {
            return Ok(Self::All);
        };
        let templates: Vec<ReplicationTemplate> = repo::list(ports, "").await?;
        let of_servers = servers.iter().map(|server| &server.internal.replication.settings);
        let settings = of_servers.chain(templates.iter().map(|template| &template.settings));
        let named = settings.flat_map(|settings| &settings.replication_servers_security_groups_ids);
        needed.extend(named.map(ToString::to_string));
        Ok(Self::These(needed))
    }

    /// Whether this one is needed.
    pub(super) fn include(&self, group: &SharedGroup) -> bool {
        let is_needed = match self {
            Self::All => true,
            Self::These(needed) => needed.contains(group.id.as_str()),
        };
        group.in_use || is_needed
    }
}

/// Deletes a group, unless somebody has begun to need it since it was judged.
pub(super) async fn remove(ports: &Ports, id: &SecurityGroupId) -> PortResult<Done> {
    let groups = ports.compute.shared_groups().await?;
    let servers = repo::list::<SourceServer>(ports, "").await?;
    let entries = repo::list::<LedgerEntry>(ports, "").await?;
    let needs = Needs::of(ports, &entries, &servers).await?;
    if groups.iter().any(|group| group.id == *id && needs.include(group)) {
        return Ok(Done::Nothing);
    }
    ledger::delete(ports, ResourceKind::SecurityGroup, id.as_str()).await?;
    Ok(Done::Removed)
}
