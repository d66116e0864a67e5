//! Opens a server's journal, and brings the volumes to what it says.
//!
//! ```text
//!   no volume of the server uses one ───────────────────────────> none
//!   no data key yet ────────────────────────────────────────────> refused, for now
//!   sealed under another key ───────────────────────────────────> refused, until that key comes
//!   gone, damaged, or not the one that a sidecar names ─────────> those volumes begin a new lineage: they are compared
//!   holds a checkpoint ─────────────────────────────────────────> applied (again)
//!   holds changes of a volume that is written to directly ──────> applied: a spill was under way
//!   else ───────────────────────────────────────────────────────> the partial epoch goes on
//! ```

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rehost_model::{ServerId, VolumeId};
use rehost_protocol::{ByteCount, ByteOffset, ErrorCode};

use super::{
    journal::{Committed, DataKey, FileStorage, Journal, Member, OpenError, Place, Recorded, Storage, Volumes},
    random_name::RandomName,
    refusal::Refusal,
    registry::{Record, Registry},
    volume::Volume,
};

/// Between attempts to open a journal that no session asks for.
const RETRY: Duration = Duration::from_secs(5);

/// A server's journal, once it is open.
#[derive(Default)]
pub(super) struct JournalSlot {
    /// Held while it is being opened, which may take a while.
    opening: Mutex<()>,
    journal: Mutex<Option<Arc<Journal>>>,
    tried: Mutex<Option<Instant>>,
}

impl JournalSlot {
    pub(super) fn journal(&self) -> Option<Arc<Journal>> {
        lock(&self.journal).clone()
    }

    /// The journal, unless it has to be opened (again).
    pub(super) fn usable(&self) -> Option<Arc<Journal>> {
        self.journal().filter(|journal| journal.is_usable())
    }

    /// Whether it is time to try to open it.
    pub(super) fn is_due(&self) -> bool {
        let mut tried = lock(&self.tried);
        let due = tried.is_none_or(|at| at.elapsed() >= RETRY);
        if due {
            *tried = Some(Instant::now());
        }
        due
    }

    fn put(&self, journal: Option<Arc<Journal>>) {
        *lock(&self.journal) = journal;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is needed to open a journal.
pub(super) struct Situation {
    pub(super) slot: Arc<JournalSlot>,
    pub(super) place: Place,
    pub(super) key: Option<DataKey>,
    pub(super) records: BTreeMap<VolumeId, Record>,
}

/// The journal of a server whose volumes use one. Afterwards the volumes are what their sidecars say.
pub(super) fn open(registry: &Registry, server: &ServerId) -> Result<Option<Arc<Journal>>, Refusal> {
    let slot = registry.situation(server)?.slot;
    let _alone = lock(&slot.opening);
    if let Some(journal) = slot.usable() {
        // A volume may have grown, or gone and come back, since it was opened.
        forget_strangers(&journal, &registry.situation(server)?.records);
        return Ok(Some(journal));
    }
    // Once more: somebody else may just have tried.
    let mut opening = Opening { registry, server, situation: registry.situation(server)?, changed: Vec::new() };
    let opened = opening.open();
    registry.reopened(server, &opening.changed);
    let journal = opened?.map(Arc::new);
    if journal.is_some() {
        slot.put(journal.clone());
    }
    Ok(journal)
}

/// A new journal, for volumes that are a checkpoint; None without a key.
pub(super) fn create(registry: &Registry, server: &ServerId) -> Result<Option<Arc<Journal>>, Refusal> {
    let situation = registry.situation(server)?;
    let Some(key) = situation.key else { return Ok(None) };
    let path = situation.place.path.clone();
    let created = FileStorage::create(&path)
        .and_then(|storage| Journal::create(Arc::new(storage), situation.place, key))
        .map_err(|error| Refusal::io("creating the journal", &path, &error))?;
    let journal = Arc::new(created);
    situation.slot.put(Some(journal.clone()));
    Ok(Some(journal))
}

/// Applies changes of volumes that the agent does not offer any more: nobody would ever complete their epoch.
pub(super) fn spill(registry: &Registry, server: &ServerId, journal: &Journal) -> Result<(), Refusal> {
    let situation = registry.situation(server)?;
    let mut volumes = Reopened::new(situation.records, journal.changed(), journal.id())?;
    let spilled = journal.spill(&mut volumes);
    registry.reopened(server, &volumes.into_records());
    spilled
}

struct Opening<'a> {
    registry: &'a Registry,
    server: &'a ServerId,
    situation: Situation,
    /// Records that are others now.
    changed: Vec<Record>,
}

impl Opening<'_> {
    fn open(&mut self) -> Result<Option<Journal>, Refusal> {
        if !self.situation.records.values().any(|record| record.durable.journal.is_some()) {
            return Ok(None);
        }
        let Some(key) = self.situation.key.clone() else {
            let text = format!("the data key of {} has not come yet: its journal cannot be read", self.server);
            return Err(Refusal::new(ErrorCode::UnknownVolume, text));
        };
        let path = self.situation.place.path.clone();
        let storage: Arc<dyn Storage> = match FileStorage::open(&path) {
            Ok(storage) => Arc::new(storage),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.lost(&path, &"it is gone"),
            Err(error) => return Err(Refusal::io("opening the journal", &path, &error)),
        };
        let trust = self.situation.slot.journal().map(|journal| journal.synced());
        match Journal::open(storage, self.situation.place.clone(), key, trust) {
            Ok((journal, committed)) => self.settle(journal, committed),
            Err(OpenError::OtherKey) => Err(other_key(&path)),
            Err(OpenError::Io(error)) => Err(Refusal::io("reading the journal", &path, &error)),
            Err(OpenError::Damaged(reason)) => {
                self.lost(&path, &reason)?;
                set_aside(&path);
                Ok(None)
            }
        }
    }

    /// What a journal knew of is not known any more: its volumes are compared, under a new lineage.
    fn lost(&mut self, path: &Path, reason: &dyn std::fmt::Display) -> Result<Option<Journal>, Refusal> {
        let text = format!("the journal {} cannot be used ({reason}): its volumes are compared anew", path.display());
        tracing::error!(server = %self.server, "{text}");
        self.begin_anew(|record| record.durable.journal.is_some())?;
        self.registry.note(self.server, Refusal::new(ErrorCode::Io, text).reported());
        Ok(None)
    }

    /// Records a new lineage of every volume that is `affected`.
    fn begin_anew(&mut self, affected: impl Fn(&Record) -> bool) -> Result<(), Refusal> {
        for record in self.situation.records.values_mut().filter(|record| affected(record)) {
            record.durable.begin_anew();
            let saved = record.save();
            self.changed.push(record.clone());
            saved?;
        }
        Ok(())
    }

    fn settle(&mut self, journal: Journal, committed: Option<Committed>) -> Result<Option<Journal>, Refusal> {
        let id = journal.id();
        self.begin_anew(|record| record.durable.journal.is_some_and(|named| named != id))?;
        forget_strangers(&journal, &self.situation.records);
        let members = if committed.is_some() { journal.members() } else { journal.changed() };
        let records = self.situation.records.clone();
        let mut volumes = Reopened::new(records, members, id)?;
        let done = match committed {
            Some(committed) => {
                tracing::info!(server = %self.server, epoch = committed.epoch.0, "applying a checkpoint again");
                journal.finish(committed, &mut volumes)
            }
            None if volumes.any_inconsistent() => journal.spill(&mut volumes),
            None => Ok(()),
        };
        self.changed.extend(volumes.into_records());
        done?;
        Ok(Some(journal))
    }
}

/// Drops the changes of volumes that are not served any more, or have another lineage by now: those are compared.
fn forget_strangers(journal: &Journal, records: &BTreeMap<VolumeId, Record>) {
    for member in journal.changed() {
        if records.get(&member.volume).is_none_or(|record| record.durable.lineage != member.lineage) {
            tracing::warn!(volume = %member.volume, "changes in the journal belong to no record any more");
            journal.forget(&member);
        }
    }
}

/// The volumes of a journal without a session.
struct Reopened {
    disks: BTreeMap<VolumeId, (Volume, Record)>,
    journal: RandomName,
}

impl Reopened {
    fn new(
        mut records: BTreeMap<VolumeId, Record>,
        members: Vec<Member>,
        journal: RandomName,
    ) -> Result<Self, Refusal> {
        let mut disks = BTreeMap::new();
        for member in members {
            let record = records.remove(&member.volume);
            if let Some(record) = record.filter(|record| record.durable.lineage == member.lineage) {
                let volume = Volume::open(&record.assignment, record.chunks.clone())?;
                disks.insert(member.volume, (volume, record));
            }
        }
        Ok(Self { disks, journal })
    }

    fn any_inconsistent(&self) -> bool {
        self.disks.values().any(|(_, record)| !record.durable.consistent)
    }

    fn volume(&self, volume: &VolumeId) -> Result<&Volume, Refusal> {
        let text = || format!("the journal has changes of {volume}, which is not served here");
        self.disks.get(volume).map(|(volume, _)| volume).ok_or_else(|| Refusal::new(ErrorCode::Io, text()))
    }

    fn into_records(self) -> Vec<Record> {
        self.disks.into_values().map(|(_, record)| record).collect()
    }
}

impl Volumes for Reopened {
    fn write(&mut self, volume: &VolumeId, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.volume(volume)?.write_applied(ByteOffset(offset), bytes)
    }

    fn zero(&mut self, volume: &VolumeId, offset: u64, length: u64) -> Result<(), Refusal> {
        self.volume(volume)?.zero(ByteOffset(offset), ByteCount(length))
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        self.disks.values().try_for_each(|(volume, _)| volume.flush())
    }

    fn record(&mut self, what: Recorded) -> Result<(), Refusal> {
        for (_, record) in self.disks.values_mut() {
            record.durable.note(what, Some(self.journal));
            record.save()?;
        }
        Ok(())
    }
}

fn other_key(path: &Path) -> Refusal {
    let path = path.display();
    let text = format!(
        "the journal {path} is sealed under another data key, and may hold what was acknowledged: give the server its former \
         key back; or, if that is lost, remove the file, and its volumes are compared anew"
    );
    Refusal::new(ErrorCode::Io, text)
}

/// Kept for whoever wants to know what happened; the next one replaces it.
fn set_aside(path: &Path) {
    let aside = path.with_extension("journal.damaged");
    if let Err(error) = std::fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "cannot set a damaged journal aside");
    }
}
