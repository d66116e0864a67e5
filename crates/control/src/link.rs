//! What agents and replicators are answered. They only ever report and ask; the steps decide.

use std::net::{IpAddr, SocketAddr};

use rehost_model::lifecycle::LifeCycleCommand;
use rehost_model::link::{
    AgentCommand, AgentDirective, AgentReport, DiskTarget, EnrolRequest, EnrolResponse, FenceState, IssuedCertificate,
    RenewRequest, ReplicatorDirective, ReplicatorEnrolRequest, ReplicatorReport, ServerReport,
};
use rehost_model::replication::{DataReplicationInfo, DataReplicationState};
use rehost_model::replicator::ReplicationServer;
use rehost_model::server::{CheckpointProgress, LifeCycle, ReplicationType, ServerInternals, StagingDisk};
use rehost_model::settings::{MAX_DISKS_PER_SERVER, ReplicationConfiguration};
use rehost_model::{
    LifeCycleState, ReplicatorId, ServerId, SourceServer, Timestamp, VolumeId, event::EventType, region,
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::authority::{self, Authority, Issued, Subject};
use crate::operations::OperationError;
use crate::ports::{PortResult, Ports};
use crate::steps::snapshot;
use crate::{PortError, PortErrorKind, data_keys, events, jobs, observe, repo};

/// How long certificates of agents and replicators are valid; they renew them themselves.
pub const CERTIFICATE_DAYS: u32 = 7;

/// A replication server that was silent for so long may have been stopped and started: its public address is another one then.
const ADDRESSES_KEPT_MS: u64 = 60_000;

type LinkResult<T> = Result<T, OperationError>;

/// Who signed a request: what stands in a certificate whose chain and signature were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// Lower-case hex.
    pub serial: String,
    pub server: Option<ServerId>,
    pub replicator: Option<ReplicatorId>,
    pub volumes: Vec<VolumeId>,
}

/// Takes in a source server, or takes it back: who still holds the key of an earlier enrolment keeps its identity.
///
/// # Errors
/// `Validation` for an unusable CSR, no disks, or too many; `Conflict` when that server cannot be installed again.
pub async fn enrol(ports: &Ports, request: &EnrolRequest) -> LinkResult<EnrolResponse> {
    check_disks(request)?;
    let authority = authority::load_or_create(ports.objects.as_ref(), ports.keys.as_ref()).await?;
    let key = authority::requested_key_der(&request.csr).map_err(|e| invalid("csr", e))?;
    let key_sha256 = hex::encode(Sha256::digest(&key));
    let known = match &request.source_server_id {
        Some(id) => repo::find::<SourceServer>(ports, id.as_str()).await?.map(|(server, _)| server),
        None => None,
    };
    let id = match known {
        Some(server) if server.internal.public_key_sha256 == key_sha256 => server.source_server_id,
        _ => ServerId::generate(),
    };
    let subject = Subject::Agent { server: id.clone(), volumes: Vec::new() };
    let issued = issue(ports, &authority, &request.csr, &subject)?;
    write_enrolment(ports, request, &id, &issued, &key_sha256).await?;
    Ok(EnrolResponse { source_server_id: id, issued: certificates(&authority, issued) })
}

fn check_disks(request: &EnrolRequest) -> LinkResult<()> {
    let disks = &request.disks;
    if disks.is_empty() || disks.len() > MAX_DISKS_PER_SERVER {
        return Err(invalid("disks", format!("1 to {MAX_DISKS_PER_SERVER} disks, not {}", disks.len())));
    }
    if disks.iter().filter(|d| d.is_boot_disk).count() != 1 {
        return Err(invalid("disks", "exactly one disk must be the boot disk"));
    }
    match disks.iter().find(|d| d.size_bytes == 0 || d.size_bytes % 512 != 0) {
        Some(d) => Err(invalid("disks", format!("{}: {} bytes is no size of a disk", d.device_name, d.size_bytes))),
        None => Ok(()),
    }
}

async fn write_enrolment(
    ports: &Ports,
    request: &EnrolRequest,
    id: &ServerId,
    issued: &Issued,
    key_sha256: &str,
) -> LinkResult<()> {
    let now = ports.clock.now();
    if repo::find::<SourceServer>(ports, id.as_str()).await?.is_none() {
        let mut server = new_server(ports, request, id, now).await?;
        server.internal.public_key_sha256 = key_sha256.to_owned();
        server.internal.certificate_serials.push(issued.serial_hex.clone());
        events::record(&mut server, now, EventType::Registered, json!({"replicate": request.replicate}));
        repo::create(ports, &server).await?;
        return Ok(events::publish_outbox(ports, &server).await?);
    }
    let taken_back = repo::update_server(ports, id, |server| {
        take_back(server, request, now)?;
        server.internal.certificate_serials.push(issued.serial_hex.clone());
        events::record(server, now, EventType::Registered, json!({"replicate": request.replicate}));
        Ok::<_, OperationError>(())
    });
    taken_back.await.map(|_| ())
}

async fn new_server(ports: &Ports, request: &EnrolRequest, id: &ServerId, now: Timestamp) -> PortResult<SourceServer> {
    let templates = repo::list::<rehost_model::settings::ReplicationTemplate>(ports, "").await?;
    let settings = templates.into_iter().next().map(|t| t.settings).unwrap_or_default();
    Ok(SourceServer {
        source_server_id: id.clone(),
        arn: region::arn(&ports.region, &ports.account, "source-server", id.as_str()),
        is_archived: false,
        tags: request.tags.clone(),
        replication_type: ReplicationType::AgentBased,
        user_provided_id: request.user_provided_id.clone(),
        life_cycle: LifeCycle {
            state: LifeCycleState::NotReady,
            added_to_service_date_time: now,
            first_byte_date_time: None,
            last_seen_by_service_date_time: Some(now),
            last_test: None,
            last_cutover: None,
        },
        data_replication_info: DataReplicationInfo::stopped(),
        source_properties: request.properties.clone(),
        launched_instance: None,
        internal: ServerInternals {
            replication: ReplicationConfiguration { settings, replicated_disks: Vec::new() },
            firmware: request.firmware,
            staging: staging_disks(request),
            agent_version: Some(request.agent_version.clone()),
            ..ServerInternals::default()
        },
    })
}

/// The staging disks of an enrolment, the boot disk first: that is the order in which a copy sees them.
fn staging_disks(request: &EnrolRequest) -> Vec<StagingDisk> {
    let mut disks: Vec<_> = request
        .disks
        .iter()
        .map(|disk| StagingDisk {
            device_name: disk.device_name.clone(),
            size_bytes: disk.size_bytes,
            is_boot_disk: disk.is_boot_disk,
            ..StagingDisk::default()
        })
        .collect();
    disks.sort_by_key(|disk| !disk.is_boot_disk);
    disks
}

fn take_back(server: &mut SourceServer, request: &EnrolRequest, now: Timestamp) -> LinkResult<()> {
    let id = server.source_server_id.clone();
    if matches!(server.life_cycle.state, LifeCycleState::Disconnected | LifeCycleState::Stopped) {
        let disconnected = server.data_replication_info.data_replication_state == DataReplicationState::Disconnected;
        let leaving = server.life_cycle.state == LifeCycleState::Disconnected && !disconnected;
        if leaving || server.internal.stop_requested {
            let message = format!("the server {id} is still being disconnected; install again in a minute");
            return Err(OperationError::conflict(&id, message));
        }
        server.apply(LifeCycleCommand::Register).map_err(|e| OperationError::conflict(&id, e))?;
        server.is_archived = false;
        server.internal.staging = staging_disks(request);
        server.internal.checkpoint = CheckpointProgress::default();
        (server.internal.paused, server.internal.fence) = (false, None);
        server.data_replication_info = DataReplicationInfo::stopped();
    } else if server.life_cycle.state == LifeCycleState::Cutover {
        let message =
            format!("the server {id} was cut over already; remove the agent's state to migrate it as a new server");
        return Err(OperationError::conflict(&id, message));
    } else if !same_disks(server, request) {
        let message =
            "the disks differ from those of the first installation; disconnect the server, then install again";
        return Err(OperationError::conflict(&id, message));
    }
    server.source_properties = request.properties.clone();
    server.internal.disconnect_requested = false;
    server.internal.agent_stopped = false;
    server.internal.agent_version = Some(request.agent_version.clone());
    server.life_cycle.last_seen_by_service_date_time = Some(now);
    Ok(())
}

fn same_disks(server: &SourceServer, request: &EnrolRequest) -> bool {
    let shape =
        |disks: &[StagingDisk]| -> Vec<_> { disks.iter().map(|d| (d.device_name.clone(), d.size_bytes)).collect() };
    shape(&server.internal.staging) == shape(&staging_disks(request))
}

/// Takes the agent's report and says what to do.
///
/// # Errors
/// `Denied` for a certificate that is not (or no longer) the server's.
pub async fn agent_poll(
    ports: &Ports,
    identity: &CertificateIdentity,
    report: &AgentReport,
) -> LinkResult<AgentDirective> {
    let id = agent_of(identity)?;
    let now = ports.clock.now();
    let (server, initiates_again) = repo::update_server(ports, &id, |server| {
        from_serial_on(&mut server.internal.certificate_serials, &identity.serial)?;
        let provisioning = server.internal.provisioning.clone();
        observe::hear_agent(server, report, now);
        Ok::<_, OperationError>(server.internal.provisioning != provisioning)
    })
    .await?;
    if initiates_again {
        jobs::start_provision(ports, &server).await?;
    }
    if report.uninstalling && server.data_replication_info.data_replication_state.is_active() {
        crate::operations::disconnect_from_service(ports, &id).await?;
    }
    directive(ports, &server, identity).await
}

/// Checks a certificate against those that its holder may use; a new one that is used makes the older ones invalid.
pub(crate) fn from_serial_on(serials: &mut Vec<String>, serial: &str) -> PortResult<()> {
    match serials.iter().position(|s| s == serial) {
        Some(position) => {
            serials.drain(..position);
            Ok(())
        }
        None => Err(PortError::new(PortErrorKind::Denied, "the certificate was replaced or withdrawn; enrol again")),
    }
}

async fn directive(ports: &Ports, server: &SourceServer, identity: &CertificateIdentity) -> LinkResult<AgentDirective> {
    let poll_after_ms = poll_after_ms(ports, server);
    let answer = |command, renew| Ok(AgentDirective { command, renew, poll_after_ms });
    if server.internal.disconnect_requested {
        return answer(AgentCommand::Disconnect, false);
    }
    if !server.data_replication_info.data_replication_state.is_active() {
        return answer(AgentCommand::Wait, false);
    }
    let attached: Vec<_> =
        server.internal.staging.iter().filter(|d| d.attached).filter_map(|d| d.volume.clone()).collect();
    let renew = !attached.is_empty() && identity.volumes != attached;
    // A pause leaves a fence alone: one that is to be lifted is lifted first.
    let fence_to_lift = server.internal.fence.is_none() && server.internal.observed.fence != FenceState::Open;
    if server.internal.paused {
        return answer(if fence_to_lift { AgentCommand::Wait } else { AgentCommand::Pause }, renew && !fence_to_lift);
    }
    // What its certificate names goes on while a new one for a disk that came is fetched.
    let disks = disk_targets(server, &identity.volumes);
    let Some(replicator) = server.internal.replicator.as_ref().filter(|_| !disks.is_empty()) else {
        let followed = server.internal.staging.iter().any(|disk| disk.initialized) && !fence_to_lift;
        // While its replication server is replaced, a source that was followed goes on noting what changes.
        return answer(if followed { AgentCommand::Pause } else { AgentCommand::Wait }, renew);
    };
    let replicator: ReplicationServer = repo::load(ports, replicator.as_str()).await?;
    let routing = server.internal.replication.settings.data_plane_routing;
    answer(replicate(server, replicator.addresses_for(routing).to_vec(), disks), renew)
}

/// When agent and replicator are to report next.
fn poll_after_ms(ports: &Ports, server: &SourceServer) -> u64 {
    if server.internal.checkpoint.is_awaited() { ports.polling.soon_ms } else { ports.polling.idle_ms }
}

/// The disks whose volume is attached and in `named`. A disk's number is its place among the server's disks, for good.
fn disk_targets(server: &SourceServer, named: &[VolumeId]) -> Vec<DiskTarget> {
    let target = |(disk, disk_index): (&StagingDisk, u8)| {
        let volume = disk.volume.clone().filter(|volume| disk.attached && named.contains(volume))?;
        Some(DiskTarget { disk_index, device_name: disk.device_name.clone(), size_bytes: disk.size_bytes, volume })
    };
    server.internal.staging.iter().zip(0u8..).filter_map(target).collect()
}

fn replicate(server: &SourceServer, replicator_addresses: Vec<String>, disks: Vec<DiskTarget>) -> AgentCommand {
    let internal = &server.internal;
    AgentCommand::Replicate {
        replicator_addresses,
        disks,
        checkpoint: internal.checkpoint.requested,
        // Mbit/s to bytes a second.
        throttle_bytes_per_second: internal.replication.settings.bandwidth_throttling.saturating_mul(125_000),
        checkpoints: internal.checkpoints,
        fence: internal.fence.clone(),
    }
}

/// A new certificate for the agent, which names the volumes that the server has now.
///
/// # Errors
/// `Denied` for a certificate that is not the server's; `Validation` for an unusable CSR or another key.
pub async fn agent_renew(
    ports: &Ports,
    identity: &CertificateIdentity,
    request: &RenewRequest,
) -> LinkResult<IssuedCertificate> {
    let id = agent_of(identity)?;
    let server = crate::operations::load_server(ports, &id).await?;
    let volumes: Vec<_> = server.internal.staging.iter().filter_map(|d| d.volume.clone()).collect();
    let authority = authority::load_or_create(ports.objects.as_ref(), ports.keys.as_ref()).await?;
    let key = authority::requested_key_der(&request.csr).map_err(|e| invalid("csr", e))?;
    if hex::encode(Sha256::digest(&key)) != server.internal.public_key_sha256 {
        return Err(invalid("csr", "the key is not the one that the agent enrolled with"));
    }
    let subject = Subject::Agent { server: id.clone(), volumes: volumes.clone() };
    let issued = issue(ports, &authority, &request.csr, &subject)?;
    repo::update_server(ports, &id, |server| {
        from_serial_on(&mut server.internal.certificate_serials, &identity.serial)?;
        server.internal.certificate_serials.push(issued.serial_hex.clone());
        server.internal.paired_volumes.clone_from(&volumes);
        Ok::<_, OperationError>(())
    })
    .await?;
    Ok(certificates(&authority, issued))
}

/// Takes in a replication server by its one-time token.
///
/// # Errors
/// `Denied` for a wrong or used token.
pub async fn replicator_enrol(ports: &Ports, request: &ReplicatorEnrolRequest) -> LinkResult<IssuedCertificate> {
    let authority = authority::load_or_create(ports.objects.as_ref(), ports.keys.as_ref()).await?;
    let subject = Subject::Replicator { id: request.replicator.clone() };
    let issued = issue(ports, &authority, &request.csr, &subject)?;
    let now = ports.clock.now();
    let token_sha256 = hex::encode(Sha256::digest(request.token.as_bytes()));
    let enrolled = repo::update_replicator(ports, &request.replicator, |replicator| {
        // A token serves again until a certificate was used (its answer may have been lost), and once all of them have run out.
        let alive = |seen: Timestamp| now.ms_since(seen) < u64::from(CERTIFICATE_DAYS) * 86_400_000;
        if replicator.last_seen.is_some_and(alive) || replicator.enrol_token_sha256 != token_sha256 {
            return Err(PortError::new(PortErrorKind::Denied, "the replication server's token is wrong or was used"));
        }
        replicator.certificate_serials.push(issued.serial_hex.clone());
        Ok(())
    });
    enrolled.await?;
    Ok(certificates(&authority, issued))
}

/// A new certificate for a replication server, before the old one ends.
///
/// # Errors
/// `Denied` for a certificate that is not the replication server's; `Validation` for an unusable CSR.
pub async fn replicator_renew(
    ports: &Ports,
    identity: &CertificateIdentity,
    request: &RenewRequest,
) -> LinkResult<IssuedCertificate> {
    let id = replicator_of(identity)?;
    let authority = authority::load_or_create(ports.objects.as_ref(), ports.keys.as_ref()).await?;
    let issued = issue(ports, &authority, &request.csr, &Subject::Replicator { id: id.clone() })?;
    repo::update_replicator(ports, &id, |replicator| {
        from_serial_on(&mut replicator.certificate_serials, &identity.serial)?;
        replicator.certificate_serials.push(issued.serial_hex.clone());
        Ok(())
    })
    .await?;
    Ok(certificates(&authority, issued))
}

/// Takes the replicator's report and says whom it serves.
///
/// # Errors
/// `Denied` for a certificate that is not the replication server's.
pub async fn replicator_poll(
    ports: &Ports,
    identity: &CertificateIdentity,
    report: &ReplicatorReport,
) -> LinkResult<ReplicatorDirective> {
    let id = replicator_of(identity)?;
    let now = ports.clock.now();
    let addresses = new_addresses(ports, &id, report, now).await?;
    let (replicator, ()) = repo::update_replicator(ports, &id, |replicator| {
        from_serial_on(&mut replicator.certificate_serials, &identity.serial)?;
        replicator.last_seen = Some(now);
        replicator.missed_checks = 0;
        if let Some(addresses) = &addresses {
            replicator.addresses.clone_from(&addresses.private);
            replicator.public_addresses.clone_from(&addresses.public);
        }
        for assignment in &mut replicator.assignments {
            let volumes = report.servers.iter().filter(|s| s.server == assignment.server).flat_map(|s| &s.volumes);
            let synced = volumes.filter(|v| v.volume == assignment.volume).map(|v| v.synced_bytes).max().unwrap_or(0);
            assignment.initialized |= synced > 0 && synced >= assignment.size_bytes;
        }
        Ok(())
    })
    .await?;
    for server_report in &report.servers {
        record_server_report(ports, &replicator, server_report, now).await?;
    }
    replicator_directive(ports, replicator).await
}

/// Where agents reach a replication server; see [`ReplicationServer::public_addresses`].
struct Addresses {
    private: Vec<String>,
    public: Option<Vec<String>>,
}

/// The addresses of a replication server that reports; `None`: those that are known.
async fn new_addresses(
    ports: &Ports,
    id: &ReplicatorId,
    report: &ReplicatorReport,
    now: Timestamp,
) -> LinkResult<Option<Addresses>> {
    let at = |host: &str| format!("{host}:{}", report.port);
    if !ports.replicator_hosts.is_empty() {
        let private = ports.replicator_hosts.iter().map(|host| at(host)).collect();
        return Ok(Some(Addresses { private, public: None }));
    }
    let replicator: ReplicationServer = repo::load(ports, id.as_str()).await?;
    let recent = replicator.last_seen.is_some_and(|seen| now.ms_since(seen) < ADDRESSES_KEPT_MS);
    let ends_with_port = |address: &String| address.ends_with(&at(""));
    let Some(instance) = replicator.instance.filter(|_| !recent || !replicator.addresses.iter().any(ends_with_port))
    else {
        return Ok(None);
    };
    let Some(instance) = ports.compute.instance(&instance).await? else { return Ok(None) };
    let address = |ip: Option<IpAddr>| ip.map(|ip| SocketAddr::new(ip, report.port).to_string()).into_iter().collect();
    Ok(Some(Addresses { private: address(instance.private_ip), public: Some(address(instance.public_ip)) }))
}

async fn record_server_report(
    ports: &Ports,
    replicator: &ReplicationServer,
    report: &ServerReport,
    now: Timestamp,
) -> LinkResult<()> {
    if !replicator.assignments.iter().any(|a| a.server == report.server) {
        return Ok(());
    }
    let recorded = repo::update_server(ports, &report.server, |server| {
        observe::hear_replicator(server, report, now);
        Ok::<_, OperationError>(())
    });
    match recorded.await {
        // Deleted while its replicator was still told of it.
        Err(OperationError::Port(e)) if e.is_not_found() => Ok(()),
        Err(error) => Err(error),
        Ok((server, ())) => Ok(snapshot::on_report(ports, &server).await?),
    }
}

async fn replicator_directive(ports: &Ports, replicator: ReplicationServer) -> LinkResult<ReplicatorDirective> {
    let mut releases = std::collections::BTreeMap::new();
    let mut keys = std::collections::BTreeMap::new();
    let mut soonest_ms = ports.polling.idle_ms;
    for assignment in &replicator.assignments {
        if let Some((server, _)) = repo::find::<SourceServer>(ports, assignment.server.as_str()).await? {
            soonest_ms = soonest_ms.min(poll_after_ms(ports, &server));
            releases.insert(assignment.server.clone(), server.internal.checkpoint.released);
            if !keys.contains_key(&assignment.server) {
                keys.insert(assignment.server.clone(), data_keys::of(ports, &server).await?);
            }
        }
    }
    Ok(ReplicatorDirective {
        assignments: replicator.assignments,
        releases,
        data_keys: keys,
        poll_after_ms: soonest_ms,
    })
}

fn agent_of(identity: &CertificateIdentity) -> LinkResult<ServerId> {
    identity.server.clone().ok_or_else(|| denied("the certificate is not an agent's"))
}

pub(crate) fn replicator_of(identity: &CertificateIdentity) -> LinkResult<ReplicatorId> {
    identity.replicator.clone().ok_or_else(|| denied("the certificate is not a replication server's"))
}

fn issue(ports: &Ports, authority: &Authority, csr: &str, subject: &Subject) -> LinkResult<Issued> {
    authority.issue(csr, subject, ports.clock.now(), CERTIFICATE_DAYS).map_err(|e| invalid("csr", e))
}

fn certificates(authority: &Authority, issued: Issued) -> IssuedCertificate {
    IssuedCertificate { certificate: issued.certificate_pem, ca_certificate: authority.certificate_pem().to_owned() }
}

fn denied(message: &str) -> OperationError {
    OperationError::Port(PortError::new(PortErrorKind::Denied, message))
}

fn invalid(field: &'static str, message: impl ToString) -> OperationError {
    OperationError::Validation { field, message: message.to_string() }
}
