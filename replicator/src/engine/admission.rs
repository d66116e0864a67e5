//! Who may write what: checked once, when a session begins.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use rehost_link::pki_verify::PeerIdentity;
use rehost_model::VolumeId;
use rehost_protocol::{
    ByteCount, DiskIndex, DiskOffer, DiskState, ErrorCode, Hello, Lineage, ProtocolVersion, Welcome,
};

use super::{
    refusal::Refusal,
    registry::{Record, Registry},
    volume::Volume,
};

/// A disk of a session: the volume it writes, and what is durable of it.
pub(super) struct Disk {
    pub(super) volume: Volume,
    pub(super) record: Record,
}

/// The disks of a session, by their index.
pub(super) type Disks = BTreeMap<DiskIndex, Disk>;

/// What a session may do.
pub(super) struct Admission {
    pub(super) disks: Arc<Disks>,
    pub(super) received: Arc<AtomicU64>,
    /// A checkpoint is held: nothing may be applied yet.
    pub(super) held: bool,
}

/// Refuses a hello whose disks may not all be written.
pub(super) fn authorise(registry: &Registry, peer: &PeerIdentity, hello: &Hello<'_>) -> Result<(), Refusal> {
    if hello.server != peer.server.as_str() {
        let text = format!("the certificate is that of {}, not of {}", peer.server, hello.server);
        return Err(Refusal::new(ErrorCode::NotAuthorised, text));
    }
    let mut state = registry.lock();
    let volumes = &state.known(&peer.server)?.volumes;
    hello.disks.iter().try_for_each(|offer| authorise_disk(volumes, peer, offer).map(|_| ()))
}

/// Opens the volumes of a session, with the same checks once more: time has passed.
pub(super) fn admit(registry: &Registry, peer: &PeerIdentity, hello: &Hello<'_>) -> Result<Admission, Refusal> {
    let mut state = registry.lock();
    let server = state.known(&peer.server)?;
    let mut records = BTreeMap::new();
    for offer in &hello.disks {
        let record = authorise_disk(&server.volumes, peer, offer)?;
        records.insert(offer.disk, record.clone());
    }
    let (received, held) = (server.received.clone(), !server.hold.is_open());
    drop(state);
    let disks = open(records)?;
    Ok(Admission { disks: Arc::new(disks), received, held })
}

/// The welcome to a session.
pub(super) fn welcome(registry: &Registry, disks: &Disks) -> Welcome {
    let keep_alive = registry.config.keep_alive.as_millis();
    let disks = disks.iter().map(|(index, disk)| DiskState {
        disk: *index,
        synced: ByteCount(disk.record.durable.synced_bytes),
        checkpoint: disk.record.durable.checkpoint,
        lineage: Lineage::default(),
    });
    Welcome {
        version: ProtocolVersion::CURRENT,
        window: registry.config.window,
        keep_alive_milliseconds: u32::try_from(keep_alive).unwrap_or(u32::MAX),
        disks: disks.collect(),
    }
}

/// A disk's volume must be in the client's certificate, be assigned here to that server, and have the disk's size.
fn authorise_disk<'r>(
    volumes: &'r BTreeMap<VolumeId, Record>,
    peer: &PeerIdentity,
    offer: &DiskOffer<'_>,
) -> Result<&'r Record, Refusal> {
    let volume = offer.volume.parse::<VolumeId>();
    let volume = volume.map_err(|e| Refusal::new(ErrorCode::Protocol, e.to_string()))?;
    if !peer.may_write(&volume) {
        let text = format!("the certificate of {} does not cover {volume}: it must be renewed", peer.server);
        return Err(Refusal::new(ErrorCode::NotAuthorised, text));
    }
    let record = volumes.get(&volume).ok_or_else(|| {
        let text = format!("{volume} is not assigned to this replicator for {} (yet)", peer.server);
        Refusal::new(ErrorCode::UnknownVolume, text)
    })?;
    let expected = record.assignment.size_bytes;
    if expected != offer.size.0 {
        let text = format!("the disk has {} bytes, but its volume {volume} has {expected}", offer.size);
        return Err(Refusal::new(ErrorCode::SizeMismatch, text));
    }
    Ok(record)
}

fn open(records: BTreeMap<DiskIndex, Record>) -> Result<Disks, Refusal> {
    let mut disks = Disks::new();
    for (index, record) in records {
        if disks.values().any(|other| other.record.assignment.volume == record.assignment.volume) {
            let text = format!("{} is offered twice", record.assignment.volume);
            return Err(Refusal::new(ErrorCode::Protocol, text));
        }
        let volume = Volume::open(&record.assignment)?;
        disks.insert(index, Disk { volume, record });
    }
    Ok(disks)
}
