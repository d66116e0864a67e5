//! The ledger: every resource of a server is written down before it is made, and struck out after it is gone.

use std::future::Future;

use rehost_model::ledger::{Billed, JOB_TAG, LedgerEntry, Purpose, ResourceKind, SERVER_TAG};
use rehost_model::{JobId, ServerId, SourceServer};

use crate::ports::{ClientToken, PortResult, Ports, Tags};
use crate::{PortError, PortErrorKind, repo};

/// The tag with the client token of a resource's creation: finds what was made when the answer was lost.
pub const TOKEN_TAG: &str = "rehost:token";

/// The tag with the purpose of a resource.
pub const PURPOSE_TAG: &str = "rehost:purpose";

/// A resource that is about to be made.
pub(crate) struct Planned<'a> {
    pub(crate) server: &'a ServerId,
    pub(crate) kind: ResourceKind,
    pub(crate) purpose: Purpose,
    pub(crate) job: Option<&'a JobId>,
    pub(crate) token: &'a ClientToken,
    pub(crate) billed: Option<Billed>,
}

impl Planned<'_> {
    /// The tags that the resource must carry.
    pub(crate) fn tags(&self) -> Tags {
        let purpose = self.purpose.as_tag();
        let job = self.job.map(|job| (JOB_TAG.to_owned(), job.to_string()));
        let of_all = [
            (SERVER_TAG.to_owned(), self.server.to_string()),
            (TOKEN_TAG.to_owned(), self.token.as_str().to_owned()),
            (PURPOSE_TAG.to_owned(), purpose.to_owned()),
        ];
        of_all.into_iter().chain(job).collect()
    }
}

/// Writes the entry, makes the resource, and writes its id down. Run again, it finds the entry and the resource.
pub(crate) async fn make<Id: std::fmt::Display + Sync + Send>(
    ports: &Ports,
    planned: &Planned<'_>,
    create: impl Future<Output = PortResult<Id>>,
) -> PortResult<Id> {
    plan(ports, planned).await?;
    let id = create.await?;
    match write_down(ports, planned, &id.to_string()).await {
        Ok(()) => Ok(id),
        Err(error) if error.is_not_found() => {
            // Somebody ended what this was for while it was being made: nobody else will ever look for it.
            delete(ports, planned.kind, &id.to_string()).await?;
            let message = format!("{id} is not needed any more: the server {} was disconnected", planned.server);
            Err(PortError::new(PortErrorKind::NotFound, message))
        }
        Err(error) => Err(error),
    }
}

/// Writes an entry of a resource that is not the server's alone: before it is made (`None`), and after.
pub(crate) async fn note(ports: &Ports, planned: &Planned<'_>, resource: Option<&str>) -> PortResult<()> {
    match resource {
        None => plan(ports, planned).await,
        Some(resource) => write_down(ports, planned, resource).await,
    }
}

async fn plan(ports: &Ports, planned: &Planned<'_>) -> PortResult<()> {
    let entry = LedgerEntry {
        token: planned.token.as_str().to_owned(),
        server: planned.server.clone(),
        kind: planned.kind,
        resource: None,
        purpose: planned.purpose,
        job: planned.job.cloned(),
        created: ports.clock.now(),
        billed: planned.billed.clone(),
    };
    if repo::find::<LedgerEntry>(ports, &key(planned)).await?.is_none() {
        repo::create(ports, &entry).await?;
    }
    Ok(())
}

async fn write_down(ports: &Ports, planned: &Planned<'_>, resource: &str) -> PortResult<()> {
    let key = key(planned);
    let written = repo::update(ports, &key, |entry: &mut LedgerEntry| {
        entry.resource = Some(resource.to_owned());
        Ok::<_, PortError>(())
    });
    written.await.map(|_| ())
}

fn key(planned: &Planned<'_>) -> String {
    format!("{}/{}", planned.server, planned.token.as_str())
}

/// Deletes resources; several ids are separated by commas.
pub(crate) async fn delete(ports: &Ports, kind: ResourceKind, ids: &str) -> PortResult<()> {
    for id in ids.split(',').filter(|id| !id.is_empty()) {
        delete_resource(ports, kind, id).await?;
    }
    Ok(())
}

/// The entries of a server.
///
/// # Errors
/// Those of the store.
pub async fn entries(ports: &Ports, server: &ServerId) -> PortResult<Vec<LedgerEntry>> {
    repo::list(ports, &format!("{server}/")).await
}

/// Deletes the resources of these entries, instances first (they use volumes), and strikes the entries out; what others share
/// is only struck out.
pub(crate) async fn remove(ports: &Ports, mut entries: Vec<LedgerEntry>) -> PortResult<()> {
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.kind));
    for entry in &entries {
        if !entry.kind.is_shared() {
            for ids in resources_of(ports, entry).await? {
                delete(ports, entry.kind, &ids).await?;
            }
        }
        strike_out(ports, entry).await?;
    }
    Ok(())
}

/// Strikes an entry out without touching its resource: it is gone, or it belongs to the user from now on.
pub(crate) async fn strike_out(ports: &Ports, entry: &LedgerEntry) -> PortResult<()> {
    strike_out_share(ports, entry, 1).await
}

/// As [`strike_out`], for a resource that so many servers have used together.
pub(crate) async fn strike_out_share(ports: &Ports, entry: &LedgerEntry, servers: usize) -> PortResult<()> {
    repo::remove::<LedgerEntry>(ports, &format!("{}/{}", entry.server, entry.token)).await?;
    let (Some(billed), true) = (&entry.billed, entry.resource.is_some()) else { return Ok(()) };
    let seconds = ports.clock.now().ms_since(entry.created) / 1000 / u64::try_from(servers.max(1)).unwrap_or(1);
    // After the removal: what is cut off in between is missed and never counted twice.
    let counted = repo::update(ports, entry.server.as_str(), |server: &mut SourceServer| {
        let used = server.internal.usage.entry(billed.item.clone()).or_default();
        *used = used.saturating_add(billed.quantity.saturating_mul(seconds));
        Ok::<_, PortError>(())
    });
    match counted.await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// The entry's resources: the one written down, or what carries its token when the answer to the creation was lost.
async fn resources_of(ports: &Ports, entry: &LedgerEntry) -> PortResult<Vec<String>> {
    if let Some(id) = &entry.resource {
        return Ok(vec![id.clone()]);
    }
    let tagged = ports.compute.tagged_resources(Some(&entry.server)).await?;
    let mine = tagged.into_iter().filter(|r| r.kind == entry.kind && r.tags.get(TOKEN_TAG) == Some(&entry.token));
    Ok(mine.map(|r| r.id).collect())
}

async fn delete_resource(ports: &Ports, kind: ResourceKind, id: &str) -> PortResult<()> {
    let invalid = |e: rehost_model::id::InvalidId| PortError::invalid(format!("in the ledger: {e}"));
    match kind {
        ResourceKind::SecurityGroup => ports.compute.delete_security_group(&id.parse().map_err(invalid)?).await,
        ResourceKind::Volume => ports.compute.delete_volume(&id.parse().map_err(invalid)?).await,
        ResourceKind::Snapshot => ports.compute.delete_snapshot(&id.parse().map_err(invalid)?).await,
        ResourceKind::Image => ports.compute.deregister_image(&id.parse().map_err(invalid)?).await,
        ResourceKind::Instance => ports.compute.terminate_instance(&id.parse().map_err(invalid)?).await,
    }
}
