//! Security groups that servers share, in networks of the user's: in no ledger, and gone with the last server of their network.
//!
//! They cost nothing. Whatever cannot be learnt of them keeps them, and nothing else from being removed.

use std::collections::BTreeSet;

use rehost_model::ledger::ResourceKind;
use rehost_model::settings::ReplicationTemplate;
use rehost_model::{SecurityGroupId, SourceServer};

use super::Done;
use crate::ports::{PortResult, Ports, SharedGroup};
use crate::{PortErrorKind, ledger, repo};

/// The groups that there are.
pub(super) async fn listed(ports: &Ports) -> Vec<SharedGroup> {
    ports.compute.shared_groups().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "security groups in other networks cannot be listed");
        Vec::new()
    })
}

/// Who needs such groups.
#[derive(Default)]
pub(super) struct Needs {
    /// Where servers replicate, or are being converted; `None` if that cannot be learnt.
    networks: Option<BTreeSet<String>>,
    /// Those that settings name.
    named: BTreeSet<SecurityGroupId>,
}

impl Needs {
    /// What these servers need, if there is anything to need.
    pub(super) async fn gather(ports: &Ports, groups: &[SharedGroup], servers: &[SourceServer]) -> Self {
        if groups.is_empty() {
            return Self::default();
        }
        Self::of(ports, servers).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "nobody knows which security groups are needed");
            Self::default()
        })
    }

    async fn of(ports: &Ports, servers: &[SourceServer]) -> PortResult<Self> {
        let templates: Vec<ReplicationTemplate> = repo::list(ports, "").await?;
        let of_servers = servers.iter().map(|server| &server.internal.replication.settings);
        let settings = of_servers.chain(templates.iter().map(|template| &template.settings));
        let named = settings.flat_map(|settings| settings.replication_servers_security_groups_ids.clone()).collect();
        Ok(Self { networks: Some(networks(ports, servers).await?), named })
    }

    /// Whether anybody needs this one.
    pub(super) fn include(&self, group: &SharedGroup) -> bool {
        let has_servers = self.networks.as_ref().is_none_or(|networks| networks.contains(&group.network));
        group.in_use || has_servers || self.named.contains(&group.id)
    }
}

async fn networks(ports: &Ports, servers: &[SourceServer]) -> PortResult<BTreeSet<String>> {
    let is_active = |server: &&SourceServer| {
        server.data_replication_info.data_replication_state.is_active() || server.internal.active_job.is_some()
    };
    let mut networks = BTreeSet::new();
    for server in servers.iter().filter(is_active) {
        match ports.compute.network_of(&server.internal.replication.settings).await {
            // Nothing can be launched in a subnet that is gone.
            Err(error) if error.kind == PortErrorKind::Invalid => {}
            network => networks.extend(network?),
        }
    }
    Ok(networks)
}

/// Deletes a group, unless somebody has begun to need it since it was judged.
pub(super) async fn remove(ports: &Ports, id: &SecurityGroupId) -> PortResult<Done> {
    let groups = ports.compute.shared_groups().await?;
    let servers = repo::list::<SourceServer>(ports, "").await?;
    let needs = Needs::of(ports, &servers).await?;
    if groups.iter().any(|group| group.id == *id && needs.include(group)) {
        return Ok(Done::Nothing);
    }
    ledger::delete(ports, ResourceKind::SecurityGroup, id.as_str()).await?;
    Ok(Done::Removed)
}
