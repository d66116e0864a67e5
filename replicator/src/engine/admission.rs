//! Who may write what: checked once, when a session begins.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rehost_link::pki_verify::PeerIdentity;
use rehost_model::VolumeId;
use rehost_protocol::{ByteCount, DiskIndex, DiskOffer, DiskState, ErrorCode, Hello, ProtocolVersion, Welcome};

use super::{
    digests::View,
    journal::{Journal, Member},
    opening,
    refusal::Refusal,
    registry::{Record, Registry},
    volume::Volume,
};

/// A disk of a session: the volume it writes, and what was durable of it when the session began.
pub(super) struct Disk {
    pub(super) volume: Volume,
    pub(super) record: Record,
    pub(super) member: Member,
    /// As the sidecar has it: then nothing but the journal is written to.
    consistent: AtomicBool,
}

impl Disk {
    fn open(record: Record) -> Result<Self, Refusal> {
        let volume = Volume::open(&record.assignment, record.chunks.clone())?;
        let member = Member { volume: record.assignment.volume.clone(), lineage: record.durable.lineage };
        let consistent = AtomicBool::new(record.durable.consistent);
        Ok(Self { volume, record, member, consistent })
    }

    pub(super) fn is_consistent(&self) -> bool {
        self.consistent.load(Ordering::Acquire)
    }

    pub(super) fn set_consistent(&self, consistent: bool) {
        self.consistent.store(consistent, Ordering::Release);
    }
}

/// The disks of a session, by their index, and the journal that their changes go to.
pub(super) struct Disks {
    by_index: BTreeMap<DiskIndex, Disk>,
    journal: OnceLock<Arc<Journal>>,
}

impl Disks {
    pub(super) fn get(&self, index: DiskIndex) -> Option<&Disk> {
        self.by_index.get(&index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (DiskIndex, &Disk)> {
        self.by_index.iter().map(|(index, disk)| (*index, disk))
    }

    pub(super) fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.get()
    }

    /// The journal of the first checkpoint; it stays that of the session.
    pub(super) fn set_journal(&self, journal: Arc<Journal>) {
        // Set once, by the committer.
        let _ = self.journal.set(journal);
    }

    /// A disk as it will be at the next checkpoint.
    pub(super) fn view<'a>(&'a self, disk: &'a Disk) -> View<'a> {
        let journal = self.journal().filter(|_| disk.is_consistent());
        View { volume: &disk.volume, journal: journal.map(|journal| (&**journal, &disk.member)) }
    }
}

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

/// Opens the journal and the volumes of a session, with the same checks once more: time has passed.
pub(super) fn admit(registry: &Registry, peer: &PeerIdentity, hello: &Hello<'_>) -> Result<Admission, Refusal> {
    let journal = open_journal(registry, peer, hello)?;
    let mut state = registry.lock();
    let server = state.known(&peer.server)?;
    let mut records = BTreeMap::new();
    for offer in &hello.disks {
        let volume = authorise_disk(&server.volumes, peer, offer)?.assignment.volume.clone();
        if let Some(record) = server.volumes.get_mut(&volume) {
            // The agent counts on a lineage that it is told; and nothing may be written before it is known what was recorded.
            if !record.recorded {
                record.save()?;
            }
            records.insert(offer.disk, record.clone());
        }
    }
    let (received, held) = (server.received.clone(), !server.hold.is_open());
    drop(state);
    let disks = open(records, journal)?;
    Ok(Admission { disks: Arc::new(disks), received, held })
}

fn open_journal(registry: &Registry, peer: &PeerIdentity, hello: &Hello<'_>) -> Result<Option<Arc<Journal>>, Refusal> {
    let Some(journal) = opening::open(registry, &peer.server)? else { return Ok(None) };
    let offered = |volume: &VolumeId| hello.disks.iter().any(|offer| offer.volume == volume.as_str());
    if journal.changed().iter().any(|member| !offered(&member.volume)) {
        opening::spill(registry, &peer.server, &journal)?;
    }
    Ok(Some(journal))
}

/// The welcome to a session.
pub(super) fn welcome(registry: &Registry, disks: &Disks) -> Welcome {
    let keep_alive = registry.config.keep_alive.as_millis();
    let disks = disks.iter().map(|(index, disk)| DiskState {
        disk: index,
        synced: ByteCount(disk.record.durable.synced_bytes),
        checkpoint: disk.record.durable.checkpoint,
        lineage: disk.record.durable.lineage.into(),
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

fn open(records: BTreeMap<DiskIndex, Record>, journal: Option<Arc<Journal>>) -> Result<Disks, Refusal> {
    let mut by_index: BTreeMap<DiskIndex, Disk> = BTreeMap::new();
    for (index, record) in records {
        if by_index.values().any(|other| other.member.volume == record.assignment.volume) {
            let text = format!("{} is offered twice", record.assignment.volume);
            return Err(Refusal::new(ErrorCode::Protocol, text));
        }
        by_index.insert(index, Disk::open(record)?);
    }
    let journal = journal.map_or_else(OnceLock::new, OnceLock::from);
    Ok(Disks { by_index, journal })
}
