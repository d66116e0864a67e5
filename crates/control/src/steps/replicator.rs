//! Replication servers: chosen or launched for a server, left by it, and removed when nobody uses them any more.
//!
//! One serves several servers, so each of them has it in its own ledger; the last to leave terminates it.

use std::collections::{BTreeMap, BTreeSet};

use rehost_model::ledger::{Billed, LedgerEntry, Purpose, ResourceKind};
use rehost_model::replication::{InitiationStepName as Name, InitiationStepStatus as Status};
use rehost_model::replicator::{Placement, ReplicationServer};
use rehost_model::settings::ReplicationSettings;
use rehost_model::{InstanceId, ReplicatorId, ServerId, SourceServer};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{StepError, groups};
use crate::ledger::{self, Planned};
use crate::ports::{ClientToken, GroupRole, InstanceState, ItemKey, Kind, Ports, ReplicationServerSpec, Tags, Version};
use crate::{PortError, repo};

/// A replication server that serves others has let go of a server's volumes when it has reported this long after it was told;
/// milliseconds.
const LETS_GO_AFTER_MS: u64 = 3000;

/// Sees to it that the server has a replication server, and that this has a machine.
pub(super) async fn launch(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    let replicator = match &server.internal.replicator {
        Some(id) => repo::load::<ReplicationServer>(ports, id.as_str()).await?,
        None => choose(ports, server).await?,
    };
    let token = launch_token(&replicator.id);
    let billed = Some(Billed::instance(&server.internal.replication.settings.replication_server_instance_type));
    let planned = Planned { billed, ..planned(&server.source_server_id, &token) };
    ledger::note(ports, &planned, None).await?;
    let instance = match replicator.instance.clone() {
        Some(instance) => instance,
        None => launch_machine(ports, server, &replicator).await?,
    };
    Ok(ledger::note(ports, &planned, Some(&instance.to_string())).await?)
}

async fn launch_machine(
    ports: &Ports,
    server: &SourceServer,
    replicator: &ReplicationServer,
) -> Result<InstanceId, StepError> {
    let spec = spec(ports, server, replicator).await?;
    let instance = ports.compute.launch_replication_server(&spec, &launch_token(&replicator.id)).await?;
    let now = ports.clock.now();
    let known = repo::update_replicator(ports, &replicator.id, |r| {
        r.instance = Some(instance.clone());
        r.launched_at.get_or_insert(now);
        Ok(())
    });
    match known.await {
        Ok(_) => Ok(instance),
        Err(error) => {
            if error.is_not_found() {
                // Its last server left while it was being launched: nobody else will ever look for it.
                ports.compute.terminate_instance(&instance).await?;
            }
            Err(error.into())
        }
    }
}

fn launch_token(id: &ReplicatorId) -> ClientToken {
    ClientToken::derive(&[id.as_str(), LAUNCH])
}

const LAUNCH: &str = "launch";

fn planned<'a>(server: &'a ServerId, token: &'a ClientToken) -> Planned<'a> {
    let billed = None;
    Planned { server, kind: ResourceKind::Instance, purpose: Purpose::Staging, job: None, token, billed }
}

async fn spec(
    ports: &Ports,
    server: &SourceServer,
    replicator: &ReplicationServer,
) -> Result<ReplicationServerSpec, StepError> {
    let settings = server.internal.replication.settings.clone();
    let sealed = hex::decode(&replicator.enrol_token_sealed)
        .map_err(|e| PortError::invalid(format!("the sealed token of {}: {e}", replicator.id)))?;
    let enrol_token = ports.keys.open(&sealed, replicator.id.as_str()).await?;
    let enrol_token =
        String::from_utf8(enrol_token).map_err(|e| PortError::invalid(format!("the sealed token: {e}")))?;
    Ok(ReplicationServerSpec {
        id: replicator.id.clone(),
        security_group: groups::ensure(ports, server, GroupRole::Replication, None).await?,
        tags: Tags::from([("rehost:replicator".to_owned(), replicator.id.to_string())]),
        settings,
        enrol_token,
    })
}

/// One with room, or a new one; and the server remembers it.
async fn choose(ports: &Ports, server: &SourceServer) -> Result<ReplicationServer, StepError> {
    let (me, settings) = (&server.source_server_id, &server.internal.replication.settings);
    let disks = server.internal.staging.len();
    let former = server.internal.former_replicator.as_ref();
    let turn = ports.store.get(&next_one()).await?.map(|turn| turn.version);
    let mut all: Vec<ReplicationServer> = repo::list(ports, "").await?;
    // First the one that it chose before it was cut off.
    all.sort_by_key(|replicator| !replicator.reserved.contains_key(me));
    let suits = |r: &&ReplicationServer| former != Some(&r.id) && r.suits(settings) && r.has_room_for(me, disks);
    let suitable: Vec<_> = all.iter().filter(suits).collect();
    let mut chosen = None;
    for replicator in &suitable {
        chosen = reserve(ports, &replicator.id, me, disks).await?;
        if chosen.is_some() {
            break;
        }
    }
    let chosen = match chosen {
        Some(replicator) => replicator,
        None if !suitable.is_empty() => {
            return Err(
                PortError::conflict("others took the room that replication servers had; it is chosen anew").into()
            );
        }
        None => new(ports, settings, turn, BTreeMap::from([(me.clone(), disks)])).await?,
    };
    repo::update_server(ports, me, |server| {
        set(server, Some(chosen.id.clone()));
        Ok::<_, StepError>(())
    })
    .await?;
    Ok(chosen)
}

/// Keeps room for the server's disks until they are attached, so that of many who choose at once no more come than fit.
async fn reserve(
    ports: &Ports,
    id: &ReplicatorId,
    server: &ServerId,
    disks: usize,
) -> Result<Option<ReplicationServer>, StepError> {
    let reserved = repo::update_replicator(ports, id, |replicator| {
        let has_room = replicator.has_room_for(server, disks);
        if has_room {
            replicator.reserved.insert(server.clone(), disks);
        }
        Ok(has_room)
    });
    match reserved.await {
        Ok((replicator, has_room)) => Ok(Some(replicator).filter(|_| has_room)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn set(server: &mut SourceServer, id: Option<ReplicatorId>) {
    server.internal.replicator.clone_from(&id);
    server.data_replication_info.replicator_id = id;
}

/// Changes whenever a replication server is made that others may share: of many servers that find no room at once one makes it, and
/// the others come again and find it.
fn next_one() -> ItemKey {
    ItemKey::new(Kind::Lock, "replication-server")
}

async fn new(
    ports: &Ports,
    settings: &ReplicationSettings,
    turn: Option<Version>,
    reserved: BTreeMap<ServerId, usize>,
) -> Result<ReplicationServer, StepError> {
    let id = ReplicatorId::generate();
    let mut token = [0u8; 32];
    getrandom::fill(&mut token).map_err(|e| PortError::unavailable(format!("no random numbers: {e}")))?;
    let token = hex::encode(token);
    let replicator = ReplicationServer {
        enrol_token_sha256: hex::encode(Sha256::digest(token.as_bytes())),
        enrol_token_sealed: hex::encode(ports.keys.seal(token.as_bytes(), id.as_str()).await?),
        id,
        instance: None,
        dedicated: settings.use_dedicated_replication_server,
        placement: Some(Placement::of(settings)),
        certificate_serials: Vec::new(),
        last_seen: None,
        addresses: Vec::new(),
        public_addresses: None,
        assignments: Vec::new(),
        reserved,
        draining: false,
        launched_at: None,
        missed_checks: 0,
    };
    if !replicator.dedicated {
        ports.store.put(&next_one(), json!({}), turn).await?;
    }
    repo::create(ports, &replicator).await?;
    Ok(replicator)
}

/// The server's replication server.
pub(super) async fn of(ports: &Ports, server: &SourceServer) -> Result<ReplicationServer, StepError> {
    let id = server.internal.replicator.as_ref().ok_or_else(|| {
        StepError::new("NotFound", format!("the server {} has no replication server", server.source_server_id))
    })?;
    Ok(repo::load(ports, id.as_str()).await?)
}

/// The server goes to another replication server: this one died, went away, or is full.
pub(super) async fn start_over_with_another(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    if let Some(id) = &server.internal.replicator {
        let avoided = repo::update_replicator(ports, id, |replicator| {
            replicator.reserved.remove(&server.source_server_id);
            replicator.draining |= replicator.assignments.is_empty();
            Ok(())
        });
        // It may not exist any more: then nobody chooses it either.
        avoided.await.map(|_| ()).or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })?;
    }
    repo::update_server(ports, &server.source_server_id, |server| {
        give_up(server);
        if let Some(initiation) = &mut server.data_replication_info.data_replication_initiation {
            for step in [Name::LaunchReplicationServer, Name::BootReplicationServer, Name::AuthenticateWithService] {
                initiation.record(step, Status::NotStarted);
            }
        }
        Ok::<_, StepError>(())
    })
    .await
    .map(|_| ())
}

/// The server has no replication server any more; where its volumes are attached is remembered until they are detached.
pub(crate) fn give_up(server: &mut SourceServer) {
    let old = server.internal.replicator.take();
    set(server, None);
    let internal = &mut server.internal;
    if internal.former_replicator.is_none() {
        internal.former_replicator = old;
    }
    internal.staging.iter_mut().for_each(|disk| disk.attached = false);
    internal.replicator_connected = false;
    (internal.received_bytes, internal.synced_bytes) = (0, 0);
    internal.observed.replicator_error = None;
}

/// Detaches the server's volumes from its former replication server; `false` while that still writes to them.
pub(super) async fn leave_former(ports: &Ports, server: &SourceServer) -> Result<bool, StepError> {
    let Some(former) = &server.internal.former_replicator else { return Ok(true) };
    if !lets_go(ports, server, former).await? {
        return Ok(false);
    }
    leave(ports, server, former).await?;
    repo::update_server(ports, &server.source_server_id, |server| {
        if server.internal.former_replicator.as_ref() == Some(former) {
            server.internal.former_replicator = None;
        }
        Ok::<_, StepError>(())
    })
    .await?;
    Ok(true)
}

/// Whether nothing writes to the server's volumes any more: its machine is gone, or it was told and has reported since.
async fn lets_go(ports: &Ports, server: &SourceServer, id: &ReplicatorId) -> Result<bool, StepError> {
    let Some((replicator, _)) = repo::find::<ReplicationServer>(ports, id.as_str()).await? else { return Ok(true) };
    let Some(instance) = &replicator.instance else { return Ok(true) };
    let machine = ports.compute.instance(instance).await?;
    if machine.is_none_or(|machine| matches!(machine.state, InstanceState::Terminated | InstanceState::Stopped)) {
        return Ok(true);
    }
    repo::update_replicator(ports, id, |replicator| {
        replicator.assignments.retain(|a| a.server != server.source_server_id);
        replicator.reserved.remove(&server.source_server_id);
        Ok(())
    })
    .await?;
    let told = server.internal.step_started;
    let reported = replicator.last_seen;
    Ok(told.zip(reported).is_none_or(|(told, reported)| reported.ms_since(told) > LETS_GO_AFTER_MS))
}

/// The server leaves a replication server; when nobody is left whom it serves, that goes.
pub(super) async fn leave(ports: &Ports, server: &SourceServer, id: &ReplicatorId) -> Result<(), StepError> {
    let me = &server.source_server_id;
    let Some((replicator, _)) = repo::find::<ReplicationServer>(ports, id.as_str()).await? else {
        return settle(ports, me, id, 1).await;
    };
    if let Some(instance) = &replicator.instance {
        for volume in server.internal.staging.iter().filter_map(|disk| disk.volume.as_ref()) {
            ports.compute.detach_volume(volume, instance).await?;
        }
    }
    let served: BTreeSet<&ServerId> = replicator.assignments.iter().map(|a| &a.server).collect();
    let others: Vec<SourceServer> = repo::list(ports, "").await?;
    let wanted = others.iter().any(|s| s.source_server_id != *me && s.internal.replicator.as_ref() == Some(id));
    let (left, ()) = repo::update_replicator(ports, id, |replicator| {
        replicator.assignments.retain(|a| a.server != *me);
        replicator.reserved.remove(me);
        // From here on nobody joins it, so that it can go without taking a newcomer's volumes with it.
        replicator.draining |= is_empty(replicator) && !wanted;
        Ok(())
    })
    .await?;
    if left.draining && is_empty(&left) && !wanted {
        remove(ports, server, &left).await?;
    }
    settle(ports, me, id, served.len()).await
}

fn is_empty(replicator: &ReplicationServer) -> bool {
    replicator.assignments.is_empty() && replicator.reserved.is_empty()
}

async fn remove(ports: &Ports, server: &SourceServer, replicator: &ReplicationServer) -> Result<(), StepError> {
    let entries = ledger::entries(ports, &server.source_server_id).await?;
    let launched = entries.iter().any(|entry| entry.token == launch_token(&replicator.id).as_str());
    let instance = match &replicator.instance {
        Some(instance) => Some(instance.clone()),
        // Its launch was cut off; the same token tells what it came to.
        None if launched => {
            let spec = spec(ports, server, replicator).await?;
            Some(ports.compute.launch_replication_server(&spec, &launch_token(&replicator.id)).await?)
        }
        None => None,
    };
    if let Some(instance) = instance {
        ports.compute.terminate_instance(&instance).await?;
    }
    Ok(repo::remove::<ReplicationServer>(ports, replicator.id.as_str()).await?)
}

/// Strikes the replication server out of the server's ledger: it is gone, or it is in the ledgers of those whom it serves.
async fn settle(ports: &Ports, server: &ServerId, id: &ReplicatorId, servers: usize) -> Result<(), StepError> {
    for entry in ledger::entries(ports, server).await? {
        if entry.token == launch_token(id).as_str() {
            ledger::strike_out_share(ports, &entry, servers).await?;
        }
    }
    Ok(())
}

/// Leaves every replication server that is in the server's ledger, or keeps room for it: it may have been cut off while it chose.
pub(super) async fn leave_all(ports: &Ports, server: &SourceServer) -> Result<(), StepError> {
    let me = &server.source_server_id;
    let entries = ledger::entries(ports, me).await?;
    let replicators: Vec<ReplicationServer> = repo::list(ports, "").await?;
    let chosen = replicators.into_iter().filter(|replicator| replicator.reserved.contains_key(me));
    let mut all: Vec<ReplicatorId> = entries.iter().filter_map(named_by).chain(chosen.map(|r| r.id)).collect();
    let internal = &server.internal;
    all.extend(internal.replicator.iter().chain(&internal.former_replicator).cloned());
    all.sort();
    all.dedup();
    for id in &all {
        leave(ports, server, id).await?;
    }
    Ok(())
}

/// Whether an entry of the ledger is a replication server: then it is not the server's alone.
pub(crate) fn named_by(entry: &LedgerEntry) -> Option<ReplicatorId> {
    let is_one = entry.kind == ResourceKind::Instance && entry.purpose == Purpose::Staging;
    entry.token.strip_suffix(LAUNCH)?.strip_suffix('-')?.parse().ok().filter(|_| is_one)
}
