//! Typed access to the store: load, create, and read-modify-write under the item's version.

use rehost_model::ledger::LedgerEntry;
use rehost_model::replicator::ReplicationServer;
use rehost_model::settings::ReplicationTemplate;
use rehost_model::snapshot::SnapshotSet;
use rehost_model::{Job, JobId, ReplicatorId, ServerId, SourceServer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::events;
use crate::ports::{Item, ItemKey, Kind, PortResult, Ports};
use crate::{PortError, PortErrorKind};

/// How often a read-modify-write starts over when other writers are faster.
const MAX_CONFLICTS: u32 = 20;

/// What is written as one item.
pub(crate) trait Aggregate: Serialize + DeserializeOwned + Clone + Send + Sync {
    const KIND: Kind;
    fn id(&self) -> String;
}

impl Aggregate for SourceServer {
    const KIND: Kind = Kind::SourceServer;
    fn id(&self) -> String {
        self.source_server_id.to_string()
    }
}

impl Aggregate for Job {
    const KIND: Kind = Kind::Job;
    fn id(&self) -> String {
        self.job_id.to_string()
    }
}

impl Aggregate for ReplicationServer {
    const KIND: Kind = Kind::ReplicationServer;
    fn id(&self) -> String {
        self.id.to_string()
    }
}

impl Aggregate for ReplicationTemplate {
    const KIND: Kind = Kind::ReplicationTemplate;
    fn id(&self) -> String {
        self.id.to_string()
    }
}

impl Aggregate for SnapshotSet {
    const KIND: Kind = Kind::SnapshotSet;
    fn id(&self) -> String {
        format!("{}/{}", self.server, self.execution)
    }
}

impl Aggregate for LedgerEntry {
    const KIND: Kind = Kind::Ledger;
    fn id(&self) -> String {
        format!("{}/{}", self.server, self.token)
    }
}

fn decode<T: Aggregate>(item: &Item) -> PortResult<T> {
    serde_json::from_value(item.body.clone()).map_err(|e| {
        let what = format!("the stored item {} (version {}) cannot be read: {e}", item.key, item.version);
        PortError::invalid(what + "; restore it from a backup, or delete it if it is not needed")
    })
}

fn encode<T: Aggregate>(value: &T) -> PortResult<serde_json::Value> {
    serde_json::to_value(value).map_err(|e| PortError::invalid(format!("cannot write {}: {e}", value.id())))
}

/// The aggregate and its version, or `None`.
pub(crate) async fn find<T: Aggregate>(ports: &Ports, id: &str) -> PortResult<Option<(T, u64)>> {
    match ports.store.get(&ItemKey::new(T::KIND, id)).await? {
        Some(item) => Ok(Some((decode(&item)?, item.version))),
        None => Ok(None),
    }
}

/// The aggregate; `NotFound` when there is none.
pub(crate) async fn load<T: Aggregate>(ports: &Ports, id: &str) -> PortResult<T> {
    let found = find::<T>(ports, id).await?;
    found
        .map(|(value, _)| value)
        .ok_or_else(|| PortError::not_found(format!("{} does not exist", ItemKey::new(T::KIND, id))))
}

/// Writes an aggregate that must not exist yet.
pub(crate) async fn create<T: Aggregate>(ports: &Ports, value: &T) -> PortResult<()> {
    ports.store.put(&ItemKey::new(T::KIND, value.id()), encode(value)?, None).await.map(|_| ())
}

/// Deletes an aggregate whatever its version; a success when there is none.
pub(crate) async fn remove<T: Aggregate>(ports: &Ports, id: &str) -> PortResult<()> {
    let key = ItemKey::new(T::KIND, id);
    for _ in 0..MAX_CONFLICTS {
        let Some(item) = ports.store.get(&key).await? else {
            return Ok(());
        };
        match ports.store.delete(&key, item.version).await {
            Err(e) if e.kind == PortErrorKind::Conflict => {}
            other => return other,
        }
    }
    Err(too_many_conflicts(&key))
}

/// Every aggregate of a kind whose id starts with `prefix`.
pub(crate) async fn list<T: Aggregate>(ports: &Ports, prefix: &str) -> PortResult<Vec<T>> {
    ports.store.list(T::KIND, prefix).await?.iter().map(decode).collect()
}

/// Reads, changes and writes an aggregate, from the start again when another writer was faster; so `change` must decide by
/// what it is given alone. Nothing is written when it fails, or when it changed nothing.
pub(crate) async fn update<T, R, E>(
    ports: &Ports,
    id: &str,
    mut change: impl FnMut(&mut T) -> Result<R, E> + Send,
) -> Result<(T, R), E>
where
    T: Aggregate + PartialEq,
    R: Send,
    E: From<PortError>,
{
    let key = ItemKey::new(T::KIND, id);
    for _ in 0..MAX_CONFLICTS {
        let Some((before, version)) = find::<T>(ports, id).await? else {
            return Err(PortError::not_found(format!("{key} does not exist")).into());
        };
        let mut value = before.clone();
        let result = change(&mut value)?;
        if value == before {
            return Ok((value, result));
        }
        match ports.store.put(&key, encode(&value)?, Some(version)).await {
            Ok(_) => return Ok((value, result)),
            Err(e) if e.kind == PortErrorKind::Conflict => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(too_many_conflicts(&key).into())
}

fn too_many_conflicts(key: &ItemKey) -> PortError {
    PortError::conflict(format!("{key} was changed {MAX_CONFLICTS} times while it was being written; try again"))
}

/// [`update`] for a source server: what changed becomes events, written with the change and then published.
pub(crate) async fn update_server<R, E>(
    ports: &Ports,
    id: &ServerId,
    mut change: impl FnMut(&mut SourceServer) -> Result<R, E> + Send,
) -> Result<(SourceServer, R), E>
where
    R: Send,
    E: From<PortError>,
{
    let now = ports.clock.now();
    let (server, result) = update(ports, id.as_str(), |server: &mut SourceServer| {
        let before = server.clone();
        let result = change(server)?;
        events::record_changes(&before, server, now);
        Ok::<R, E>(result)
    })
    .await?;
    events::publish_outbox(ports, &server).await?;
    Ok((server, result))
}

/// The source server; `NotFound` when there is none.
pub(crate) async fn server(ports: &Ports, id: &ServerId) -> PortResult<SourceServer> {
    load(ports, id.as_str()).await
}

/// [`update`] for a job.
pub(crate) async fn update_job<R: Send, E: From<PortError>>(
    ports: &Ports,
    id: &JobId,
    change: impl FnMut(&mut Job) -> Result<R, E> + Send,
) -> Result<(Job, R), E> {
    update(ports, id.as_str(), change).await
}

/// [`update`] for a replication server.
pub(crate) async fn update_replicator<R: Send>(
    ports: &Ports,
    id: &ReplicatorId,
    change: impl FnMut(&mut ReplicationServer) -> PortResult<R> + Send,
) -> PortResult<(ReplicationServer, R)> {
    update(ports, id.as_str(), change).await
}
