//! Security groups that servers share: each stands in the ledger of every server that wants it, from before it is made until the
//! server's replication or job is over. The reaper removes those that are in nobody's.

use rehost_model::ledger::{LedgerEntry, Purpose, ResourceKind};
use rehost_model::{JobId, SecurityGroupId, SourceServer};

use crate::ledger::{self, Planned};
use crate::ports::{ClientToken, GroupRole, GroupSource, PortResult, Ports, SharedGroup};

/// The group for a machine of this role that the server, or a job of it, is about to have.
pub(super) async fn ensure(
    ports: &Ports,
    server: &SourceServer,
    role: GroupRole,
    job: Option<&JobId>,
) -> PortResult<Option<SecurityGroupId>> {
    let network = match ports.compute.group_source(&server.internal.replication.settings, role).await? {
        GroupSource::Unnamed => return Ok(None),
        GroupSource::Given(group) => return Ok(Some(group)),
        GroupSource::Shared(network) => network,
    };
    let purpose = purpose(role);
    let token = token(&network, role, job);
    let (server, kind) = (&server.source_server_id, ResourceKind::SecurityGroup);
    let planned = Planned { server, kind, purpose, job, token: &token, billed: None };
    ledger::note(ports, &planned, None).await?;
    let group = ports.compute.ensure_shared_group(&network, role).await?;
    ledger::note(ports, &planned, Some(group.as_str())).await?;
    Ok(Some(group))
}

/// What machines of this role are for.
pub(crate) fn purpose(role: GroupRole) -> Purpose {
    match role {
        GroupRole::Replication => Purpose::Staging,
        GroupRole::Conversion => Purpose::Conversion,
    }
}

fn token(network: &str, role: GroupRole, job: Option<&JobId>) -> ClientToken {
    let mut parts = vec!["group", role.name(), network];
    parts.extend(job.map(JobId::as_str));
    ClientToken::derive(&parts)
}

/// Whether an entry of the ledger is this group, or a wish for it: it may just be looked for.
pub(crate) fn is_wanted_by(group: &SharedGroup, entry: &LedgerEntry) -> bool {
    let wish = || token(&group.network, group.role, entry.job.as_ref());
    entry.kind == ResourceKind::SecurityGroup && entry.token == wish().as_str()
}
