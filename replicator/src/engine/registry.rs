//! What the engine knows: assigned volumes, sessions, holds. One lock; nothing slow happens under it but the recording of
//! a release.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rehost_link::transport::{Sender, ServerTls};
use rehost_model::{
    Epoch, ServerId, VolumeId,
    link::{ReportedError, ServerReport, VolumeReport},
    replicator::Assignment,
};
use rehost_protocol::ErrorCode;

use super::{
    EngineConfig, EngineError, MAX_VOLUMES,
    hold::Hold,
    journal::{Budget, DataKey, MAX_EXTENTS, Place},
    manifest::{Chunks, Manifest},
    opening::{self, JournalSlot, Situation},
    refusal::Refusal,
    sidecar::{self, Durable},
};

/// How often a waiting thread looks up even if nobody wakes it.
const LOOK_UP: Duration = Duration::from_secs(1);
/// The ending of a journal's name.
pub(super) const JOURNAL: &str = ".journal";
/// How long an older session may take to end, or all of them at the engine's end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that sessions share.
pub(super) struct Registry {
    pub(super) config: EngineConfig,
    tls: Mutex<ServerTls>,
    budget: Budget,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) servers: BTreeMap<ServerId, Server>,
    pub(super) stopping: bool,
    sessions: u64,
    /// Threads that open journals.
    openers: usize,
    keys: BTreeMap<ServerId, DataKey>,
    /// Those that nobody has taken, the newest of each volume.
    manifests: BTreeMap<VolumeId, Manifest>,
}

/// A server that has volumes here.
pub(super) struct Server {
    pub(super) volumes: BTreeMap<VolumeId, Record>,
    session: Option<Active>,
    pub(super) hold: Hold,
    error: Option<ReportedError>,
    pub(super) received: Arc<AtomicU64>,
    journal: Arc<JournalSlot>,
}

/// A volume and what is durable of it.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) assignment: Assignment,
    pub(super) sidecar: PathBuf,
    pub(super) durable: Durable,
    /// The sidecar says what `durable` says.
    pub(super) recorded: bool,
    pub(super) chunks: Arc<Chunks>,
}

impl Record {
    pub(super) fn load(assignment: Assignment, state_dir: Option<&Path>) -> Self {
        let sidecar = sidecar::path_of(&assignment, state_dir);
        let found = Durable::load(&sidecar, &assignment);
        let recorded = found.is_some();
        let durable = found.unwrap_or_else(|| Durable::fresh(&assignment));
        let chunks = Arc::new(Chunks::new(assignment.size_bytes));
        Self { assignment, sidecar, durable, recorded, chunks }
    }

    /// Makes the sidecar say what `durable` says.
    pub(super) fn save(&mut self) -> Result<(), Refusal> {
        let saved = self.durable.save(&self.sidecar);
        self.recorded = saved.is_ok();
        saved.map_err(|error| Refusal::io("recording progress in", &self.sidecar, &error))
    }
}

/// A session that stands.
struct Active {
    number: SessionNumber,
    sender: Sender,
    /// It was told to end; it may be waiting for a hold and not for its socket.
    ending: bool,
}

impl Active {
    fn end(&mut self) {
        self.ending = true;
        self.sender.shutdown();
    }
}

/// Tells a server's sessions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionNumber(u64);

impl Registry {
    pub(super) fn new(config: EngineConfig) -> Arc<Self> {
        let tls = Mutex::new(config.tls.clone());
        let budget = Budget::new(MAX_EXTENTS);
        Arc::new(Self { tls, config, budget, state: Mutex::default(), changed: Condvar::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tls(&self) -> ServerTls {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn renew(&self, tls: ServerTls) {
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    pub(super) fn assign(self: &Arc<Self>, assignments: Vec<Assignment>) -> Result<(), EngineError> {
        check(&assignments)?;
        let mut state = self.lock();
        state.withdraw(&assignments);
        for assignment in assignments {
            self.add(&mut state, assignment);
        }
        forget_keys(&mut state);
        self.changed.notify_all();
        drop(state);
        self.open_journals();
        Ok(())
    }

    fn add(&self, state: &mut State, assignment: Assignment) {
        let server = state.servers.entry(assignment.server.clone()).or_insert_with(Server::new);
        if let Some(known) = server.volumes.get_mut(&assignment.volume) {
            known.assignment = assignment;
            return;
        }
        let record = Record::load(assignment, self.config.state_dir.as_deref());
        server.expire(record.durable.held);
        server.volumes.insert(record.assignment.volume.clone(), record);
    }

    /// Takes the keys of the journals; those that are not named stay as long as their servers are served.
    pub(super) fn take_keys(self: &Arc<Self>, keys: BTreeMap<ServerId, DataKey>) {
        let mut state = self.lock();
        for (server, key) in keys {
            if let Some(journal) = state.servers.get(&server).and_then(|known| known.journal.usable()) {
                journal.rekey(&key);
            }
            state.keys.insert(server, key);
        }
        drop(state);
        self.open_journals();
    }

    /// Opens journals without waiting for their agents: a checkpoint may be waiting in one.
    fn open_journals(self: &Arc<Self>) {
        let mut state = self.lock();
        let State { servers, keys, openers, stopping, .. } = &mut *state;
        for (id, server) in servers.iter().filter(|_| !*stopping) {
            if server.session.is_none()
                && server.waits_for_journal()
                && keys.contains_key(id)
                && server.journal.is_due()
            {
                let (registry, id) = (self.clone(), id.clone());
                let open = move || registry.open_alone(&id);
                // Else the next poll, or the next session, tries.
                *openers += usize::from(thread::Builder::new().name("journal".into()).spawn(open).is_ok());
            }
        }
    }

    fn open_alone(&self, server: &ServerId) {
        if let Err(refusal) = opening::open(self, server) {
            tracing::error!(%server, reason = %refusal.message, "the journal cannot be opened");
            self.note(server, refusal.reported());
        }
        self.lock().openers -= 1;
        self.changed.notify_all();
    }

    /// What is needed to open a server's journal.
    pub(super) fn situation(&self, server: &ServerId) -> Result<Situation, Refusal> {
        let mut state = self.lock();
        let key = state.keys.get(server).cloned();
        let known = state.known(server)?;
        let slot = known.journal.clone();
        let records = known.volumes.clone();
        let path = self.journal_path(server, known);
        let (limit, budget) = (self.config.journal_bytes, self.budget.clone());
        Ok(Situation { slot, place: Place { path, server: server.clone(), limit, budget }, key, records })
    }

    fn journal_path(&self, server: &ServerId, known: &Server) -> PathBuf {
        let beside_first = || known.volumes.values().next().and_then(|record| record.sidecar.parent());
        let directory = self.config.state_dir.as_deref().or_else(beside_first).unwrap_or(Path::new("."));
        directory.join(format!("{server}{JOURNAL}"))
    }

    /// Records that opening a journal has changed, and with them perhaps a hold that was lost.
    pub(super) fn reopened(&self, server: &ServerId, records: &[Record]) {
        let mut state = self.lock();
        let Some(known) = state.servers.get_mut(server) else { return };
        for record in records {
            known.expire(record.durable.held);
            if let Some(own) = known.successor(record) {
                own.durable.clone_from(&record.durable);
                own.recorded = record.recorded;
            }
        }
    }

    pub(super) fn keep_manifest(&self, manifest: Manifest) {
        self.lock().manifests.insert(manifest.volume.clone(), manifest);
    }

    /// Any manifest that waits; it stays until it is [dropped](Self::drop_manifest).
    pub(super) fn any_manifest(&self) -> Option<Manifest> {
        self.lock().manifests.values().next().cloned()
    }

    /// It is where it belongs, or nobody wants it.
    pub(super) fn drop_manifest(&self, volume: &VolumeId, epoch: Epoch) {
        let mut state = self.lock();
        if state.manifests.get(volume).is_some_and(|kept| kept.epoch == epoch) {
            state.manifests.remove(volume);
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// The hold that each volume's sidecar is to name: a release may have come.
    pub(super) fn held_of(&self, server: &ServerId, volume: &VolumeId) -> Option<Epoch> {
        let state = self.lock();
        state.servers.get(server)?.volumes.get(volume)?.durable.held
    }

    pub(super) fn release(&self, server: &ServerId, epoch: Epoch) -> bool {
        let mut state = self.lock();
        let Some(server) = state.servers.get_mut(server) else {
            return false;
        };
        if !server.hold.release(epoch, Instant::now()) {
            return false;
        }
        for record in server.volumes.values_mut() {
            record.durable.held = None;
            // Unrecorded, the release would be forgotten by a restart, and the hold counted as expired: harmless.
            if let Err(refusal) = record.save() {
                tracing::warn!(reason = %refusal.message, "cannot record a release");
            }
        }
        self.changed.notify_all();
        true
    }

    pub(super) fn report(&self) -> Vec<ServerReport> {
        let now = Instant::now();
        let mut state = self.lock();
        state.servers.iter_mut().map(|(id, server)| server.report(id, now)).collect()
    }

    /// Enters a session, after the one it replaces has ended.
    pub(super) fn enter(&self, server: &ServerId, sender: &Sender) -> Result<SessionNumber, Refusal> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        loop {
            let known = state.known(server)?;
            let Some(older) = &mut known.session else { break };
            older.end();
            self.changed.notify_all();
            if Instant::now() >= deadline {
                let text = "an older session of this server does not end";
                return Err(Refusal::new(ErrorCode::Busy, text));
            }
            state = self.wait(state, LOOK_UP);
        }
        state.sessions += 1;
        let number = SessionNumber(state.sessions);
        let active = Active { number, sender: sender.clone(), ending: false };
        state.known(server)?.session = Some(active);
        Ok(number)
    }

    /// Removes a session, and notes the trouble it ended with.
    pub(super) fn leave(&self, server: &ServerId, number: SessionNumber, trouble: Option<ReportedError>) {
        let mut state = self.lock();
        if let Some(known) = state.servers.get_mut(server)
            && known.session.as_ref().is_some_and(|active| active.number == number)
        {
            known.session = None;
            let recorded = known.checkpoint();
            known.hold.abandon(recorded);
            known.error = trouble.or(known.error.take());
        }
        drop_forgotten(&mut state);
        forget_keys(&mut state);
        self.changed.notify_all();
    }

    /// Notes trouble of a server whose session did not come to stand.
    pub(super) fn note(&self, server: &ServerId, trouble: Option<ReportedError>) {
        if let Some(known) = self.lock().servers.get_mut(server)
            && trouble.is_some()
        {
            known.error = trouble;
        }
    }

    /// A checkpoint was received: nothing after it is applied.
    pub(super) fn close(&self, server: &ServerId, epoch: Epoch) {
        if let Some(known) = self.lock().servers.get_mut(server) {
            known.hold.close(epoch);
        }
    }

    /// Waits until changes may be applied.
    pub(super) fn wait_until_open(&self, server: &ServerId, number: SessionNumber) -> Result<(), Refusal> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let known = state.known(server)?;
            if known.session.as_ref().is_none_or(|active| active.number != number || active.ending) {
                return Err(Refusal::new(ErrorCode::Replaced, "a newer session took over"));
            }
            known.hold.tick(now);
            if known.hold.is_open() {
                return Ok(());
            }
            let remaining = known.hold.remaining(now).unwrap_or(LOOK_UP);
            state = self.wait(state, remaining.min(LOOK_UP));
        }
    }

    /// What became durable: the new states of a server's volumes, and perhaps a checkpoint.
    pub(super) fn committed(&self, server: &ServerId, states: &[Record], checkpoint: Option<Epoch>) {
        let until = Instant::now() + self.config.hold_timeout;
        let mut state = self.lock();
        let Some(known) = state.servers.get_mut(server) else {
            return;
        };
        for state in states {
            if let Some(record) = known.successor(state) {
                // A release may have come since.
                let held = if checkpoint.is_some() { state.durable.held } else { record.durable.held };
                record.durable.clone_from(&state.durable);
                record.durable.held = held;
                record.recorded = state.recorded;
            }
        }
        if let Some(epoch) = checkpoint {
            known.hold.hold(epoch, until);
        }
        self.changed.notify_all();
    }

    /// A session made something durable: what was wrong before is not any more.
    pub(super) fn went_well(&self, server: &ServerId) {
        if let Some(known) = self.lock().servers.get_mut(server) {
            known.error = None;
        }
    }

    /// Takes over what is durable of the volumes.
    pub(super) fn noted(&self, server: &ServerId, states: &[Record]) {
        self.committed(server, states, None);
    }

    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.servers.values_mut().filter_map(|server| server.session.as_mut()).for_each(Active::end);
        self.changed.notify_all();
    }

    pub(super) fn wait_for_sessions(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while state.is_busy() && Instant::now() < deadline {
            state = self.wait(state, LOOK_UP);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Duration) -> MutexGuard<'a, State> {
        let woken = self.changed.wait_timeout(state, at_most);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    /// The server, if it may be served.
    pub(super) fn known(&mut self, server: &ServerId) -> Result<&mut Server, Refusal> {
        if self.stopping {
            return Err(Refusal::new(ErrorCode::ShuttingDown, "the replicator is stopping"));
        }
        self.servers.get_mut(server).filter(|known| !known.volumes.is_empty()).ok_or_else(|| {
            let text = format!("nothing of server {server} is assigned to this replicator (yet)");
            Refusal::new(ErrorCode::UnknownVolume, text)
        })
    }

    fn is_busy(&self) -> bool {
        self.openers > 0 || self.servers.values().any(|server| server.session.is_some())
    }

    /// Drops what is not in `assignments` any more, or is there in another form.
    fn withdraw(&mut self, assignments: &[Assignment]) {
        for server in self.servers.values_mut() {
            let before = server.volumes.len();
            server.volumes.retain(|_, record| assignments.iter().any(|other| same_volume(other, &record.assignment)));
            if server.volumes.len() < before
                && let Some(active) = &mut server.session
            {
                active.end();
            }
        }
        drop_forgotten(self);
    }
}

impl Server {
    fn new() -> Self {
        Self {
            volumes: BTreeMap::new(),
            session: None,
            hold: Hold::new(Epoch::default()),
            error: None,
            received: Arc::default(),
            journal: Arc::default(),
        }
    }

    /// The record of the volume that another record is of, unless it was assigned anew in another size or place meanwhile: what
    /// is known of the former one is not true of it.
    fn successor(&mut self, of: &Record) -> Option<&mut Record> {
        let record = self.volumes.get_mut(&of.assignment.volume)?;
        same_volume(&record.assignment, &of.assignment).then_some(record)
    }

    /// The hold of a sidecar did not outlive the replicator, or the session, that held it.
    fn expire(&mut self, held: Option<Epoch>) {
        if let Some(held) = held
            && self.hold.held() != Some(held)
            && held > self.hold.expired()
        {
            self.hold = Hold::new(held);
        }
    }

    /// Whether the volumes are not what their sidecars say before the journal is opened.
    fn waits_for_journal(&self) -> bool {
        let used = self.volumes.values().any(|record| record.durable.journal.is_some());
        used && self.journal.usable().is_none()
    }

    fn is_consistent(&self) -> bool {
        let mut records = self.volumes.values();
        !self.volumes.is_empty() && records.all(|record| record.durable.consistent) && !self.waits_for_journal()
    }

    /// The newest checkpoint that was asked for and that every volume has.
    fn checkpoint(&self) -> Epoch {
        self.volumes.values().map(|record| record.durable.checkpoint).min().unwrap_or_default()
    }

    fn report(&mut self, id: &ServerId, now: Instant) -> ServerReport {
        self.hold.tick(now);
        let volumes = self
            .volumes
            .iter()
            .map(|(volume, record)| VolumeReport { volume: volume.clone(), synced_bytes: record.durable.synced_bytes });
        ServerReport {
            server: id.clone(),
            connected: self.session.is_some(),
            received_bytes: self.received.load(Ordering::Relaxed),
            checkpoint: self.checkpoint(),
            held: self.hold.held(),
            expired: self.hold.expired(),
            consistency: self.volumes.values().map(|record| record.durable.consistency).min().unwrap_or_default(),
            consistent: self.is_consistent(),
            journal_bytes: self.journal.journal().map_or(0, |journal| journal.bytes()),
            volumes: volumes.collect(),
            error: self.error.clone(),
        }
    }
}

/// Whether an assignment is of the same volume, in the same place and size.
fn same_volume(one: &Assignment, other: &Assignment) -> bool {
    let form = |a: &Assignment| (a.server.clone(), a.volume.clone(), a.size_bytes, a.location.clone());
    form(one) == form(other)
}

/// A server without volumes is forgotten once its last session has ended.
fn drop_forgotten(state: &mut State) {
    state.servers.retain(|_, server| !server.volumes.is_empty() || server.session.is_some());
}

/// Keys of servers that are not served. Not before new assignments are taken: keys come first, and the volumes of a server may all be
/// given back in another size.
fn forget_keys(state: &mut State) {
    let State { servers, keys, .. } = state;
    keys.retain(|id, _| servers.contains_key(id));
}

fn check(assignments: &[Assignment]) -> Result<(), EngineError> {
    if assignments.len() > MAX_VOLUMES {
        return Err(EngineError::TooManyVolumes(assignments.len()));
    }
    let mut seen = BTreeSet::new();
    match assignments.iter().find(|assignment| !seen.insert(&assignment.volume)) {
        Some(twice) => Err(EngineError::AssignedTwice(twice.volume.to_string())),
        None => Ok(()),
    }
}
