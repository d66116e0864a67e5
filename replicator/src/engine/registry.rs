//! What the engine knows: assigned volumes, sessions, holds. One lock; nothing slow happens under it but the recording of
//! a release.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rehost_link::transport::{Sender, ServerTls};
use rehost_model::{
    Epoch, ServerId, VolumeId,
    link::{ReportedError, ServerReport, VolumeReport},
    replication::Consistency,
    replicator::Assignment,
};
use rehost_protocol::ErrorCode;

use super::{
    EngineConfig, EngineError, MAX_VOLUMES,
    hold::Hold,
    refusal::Refusal,
    sidecar::{self, Durable},
};

/// How often a waiting thread looks up even if nobody wakes it.
const LOOK_UP: Duration = Duration::from_secs(1);
/// How long an older session may take to end, or all of them at the engine's end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that sessions share.
pub(super) struct Registry {
    pub(super) config: EngineConfig,
    tls: Mutex<ServerTls>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) servers: BTreeMap<ServerId, Server>,
    pub(super) stopping: bool,
    sessions: u64,
}

/// A server that has volumes here.
pub(super) struct Server {
    pub(super) volumes: BTreeMap<VolumeId, Record>,
    session: Option<Active>,
    pub(super) hold: Hold,
    error: Option<ReportedError>,
    pub(super) received: Arc<AtomicU64>,
}

/// A volume and what is durable of it.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) assignment: Assignment,
    pub(super) sidecar: PathBuf,
    pub(super) durable: Durable,
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
        Arc::new(Self { tls: Mutex::new(config.tls.clone()), config, state: Mutex::default(), changed: Condvar::new() })
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

    pub(super) fn assign(&self, assignments: Vec<Assignment>) -> Result<(), EngineError> {
        check(&assignments)?;
        let mut state = self.lock();
        state.withdraw(&assignments);
        for assignment in assignments {
            self.add(&mut state, assignment);
        }
        self.changed.notify_all();
        Ok(())
    }

    fn add(&self, state: &mut State, assignment: Assignment) {
        let server = state.servers.entry(assignment.server.clone()).or_insert_with(Server::new);
        if server.volumes.contains_key(&assignment.volume) {
            return;
        }
        let sidecar = sidecar::path_of(&assignment, self.config.state_dir.as_deref());
        let durable = Durable::load(&sidecar, &assignment);
        // The hold did not outlive the replicator that held it.
        if let Some(held) = durable.held
            && server.hold.held() != Some(held)
            && held > server.hold.expired()
        {
            server.hold = Hold::new(held);
        }
        let volume = assignment.volume.clone();
        server.volumes.insert(volume, Record { assignment, sidecar, durable });
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
            if let Err(error) = record.durable.save(&record.sidecar) {
                tracing::warn!(path = %record.sidecar.display(), %error, "cannot record a release");
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
            known.hold.abandon();
            known.error = trouble.or(known.error.take());
        }
        drop_forgotten(&mut state);
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
    pub(super) fn committed(&self, server: &ServerId, states: &[(VolumeId, Durable)], checkpoint: Option<Epoch>) {
        let until = Instant::now() + self.config.hold_timeout;
        let mut state = self.lock();
        let Some(known) = state.servers.get_mut(server) else {
            return;
        };
        for (volume, durable) in states {
            if let Some(record) = known.volumes.get_mut(volume) {
                record.durable = durable.clone();
            }
        }
        if let Some(epoch) = checkpoint {
            known.hold.hold(epoch, until);
        }
        known.error = None;
        self.changed.notify_all();
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
        while state.servers.values().any(|server| server.session.is_some()) && Instant::now() < deadline {
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

    /// Drops what is not in `assignments` any more, or is there in another form.
    fn withdraw(&mut self, assignments: &[Assignment]) {
        for server in self.servers.values_mut() {
            let before = server.volumes.len();
            server.volumes.retain(|_, record| assignments.contains(&record.assignment));
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
        }
    }

    fn report(&mut self, id: &ServerId, now: Instant) -> ServerReport {
        self.hold.tick(now);
        let volumes = self
            .volumes
            .iter()
            .map(|(volume, record)| VolumeReport { volume: volume.clone(), synced_bytes: record.durable.synced_bytes });
        let checkpoints = self.volumes.values().map(|record| record.durable.checkpoint);
        let checkpoint = checkpoints.min().unwrap_or_default();
        ServerReport {
            server: id.clone(),
            connected: self.session.is_some(),
            received_bytes: self.received.load(Ordering::Relaxed),
            checkpoint,
            held: self.hold.held(),
            expired: self.hold.expired(),
            consistency: Consistency::Quiescent,
            consistent: checkpoint > Epoch::default(),
            journal_bytes: 0,
            volumes: volumes.collect(),
            error: self.error.clone(),
        }
    }
}

/// A server without volumes is forgotten once its last session has ended.
fn drop_forgotten(state: &mut State) {
    state.servers.retain(|_, server| !server.volumes.is_empty() || server.session.is_some());
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
