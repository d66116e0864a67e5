//! One session: a connection, and the threads that use it.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use rehost_link::transport::{self, KeepAlive, Receiver, Sender, TransportError};
use rehost_model::{Epoch, link::AgentPhase};
use rehost_protocol::{
    AgentMessage, ByteCount, DigestId, DigestKey, DiskOffer, Hello, ProtocolVersion, ReplicatorMessage, SessionId,
    Welcome,
};

use super::{
    buffer::{Buffer, Pool},
    config::{DiskSource, SyncConfig},
    control::SyncControl,
    driver::{Driver, DriverDisk},
    error::{Halt, SyncError},
    inbox,
    ledger::{Ledger, Ticket},
    machine::{Lease, Machine},
    outbox::{OutDisk, Outbox},
    schedule::Schedule,
    source::Source,
};
use crate::planted;

/// What the driver may queue besides the buffers.
const QUEUE: usize = 16;
/// Keep-alives at most and at least this often, whatever the replicator says.
const KEEP_ALIVE_LIMITS: (u32, u32) = (50, 5000);

/// How a session ends when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncEnd {
    /// [`SyncControl::stop`] was called.
    Stopped,
}

/// One connection to a replicator, from hello to bye.
pub struct SyncSession;

impl SyncSession {
    /// Replicates until it is told to stop, or until something goes wrong.
    ///
    /// # Errors
    /// [`SyncError`]; what the replicator has acknowledged is not lost by it.
    pub fn run(config: &SyncConfig, control: &SyncControl) -> Result<SyncEnd, SyncError> {
        Self::run_noting(config, control, &mut false)
    }

    /// Like [`SyncSession::run`]; `progressed` becomes true if anything was acknowledged.
    pub(super) fn run_noting(
        config: &SyncConfig,
        control: &SyncControl,
        progressed: &mut bool,
    ) -> Result<SyncEnd, SyncError> {
        control.board.set_phase(AgentPhase::Connecting);
        let sources = config.disks.iter().map(Source::open).collect::<Result<Vec<_>, _>>();
        let sources = sources.inspect_err(|error| config.machine.doubt(error))?;
        // Before the replicator says what it has: from then on nothing is missed.
        let leases = config.machine.borrow(&config.disks);
        control.board.set_machine(&config.machine);
        let mut connection = Connection::open(config)?;
        let disks = connection.disks(sources, leases)?;
        let known: Vec<_> = disks.iter().map(|disk| (disk.source.disk().clone(), disk.synced)).collect();
        control.board.begin(&known);
        let ledger = Ledger::new(control, connection.welcome.window.0);
        let halt = connection.replicate(disks, &config.machine, &ledger, control);
        if let Some(Halt::Failed(error)) = &halt {
            config.machine.doubt(error);
        }
        let closing = ledger.into_result();
        *progressed = closing.acknowledged;
        match (halt, closing.error) {
            // After a bye the replicator closes: that is no error.
            _ if control.stopped() => Ok(SyncEnd::Stopped),
            (Some(Halt::Failed(error)), _) | (_, Some(error)) => Err(error),
            _ => Err(TransportError::Closed.into()),
        }
    }
}

/// A session that the replicator has welcomed.
struct Connection {
    sender: Sender,
    receiver: Receiver,
    welcome: Welcome,
    key: DigestKey,
}

impl Connection {
    fn open(config: &SyncConfig) -> Result<Self, SyncError> {
        let (sender, mut receiver) = connect(config)?;
        let key = DigestKey(random()?);
        sender.send(&[&hello(config, key)?])?;
        let frame = receiver.receive()?;
        let welcome = match ReplicatorMessage::decode(frame.kind, frame.body)? {
            ReplicatorMessage::Welcome(welcome) => welcome,
            ReplicatorMessage::Error { code, message } => {
                return Err(SyncError::Refused { code, message: message.to_owned() });
            }
            _ => return Err(SyncError::Protocol("the first frame is no welcome".into())),
        };
        receiver.establish()?;
        Ok(Self { sender, receiver, welcome, key })
    }

    /// Each disk with what the replicator has of it.
    fn disks(&self, sources: Vec<Source>, leases: Vec<Lease>) -> Result<Vec<DriverDisk>, SyncError> {
        let with_state = |(source, lease): (Source, Lease)| {
            let index = source.disk().index;
            let state = self.welcome.disks.iter().find(|state| state.disk == index);
            let state = state.filter(|state| state.synced.0 <= source.size());
            let state = state.ok_or_else(|| SyncError::Protocol("the welcome does not fit the hello".into()))?;
            let synced = if planted::is("copy-again") { 0 } else { state.synced.0 };
            Ok(DriverDisk { source, synced, lineage: state.lineage, lease, covered: false })
        };
        sources.into_iter().zip(leases).map(with_state).collect()
    }

    /// The newest checkpoint that holds every disk.
    fn reached(&self) -> Epoch {
        self.welcome.disks.iter().map(|disk| disk.checkpoint).min().unwrap_or_default()
    }

    /// Runs the threads; returns why the driver halted.
    fn replicate(
        &mut self,
        disks: Vec<DriverDisk>,
        machine: &Arc<Machine>,
        ledger: &Ledger<'_>,
        control: &SyncControl,
    ) -> Option<Halt> {
        let (pool, put_back) = Pool::new();
        let (queue, outgoing) = mpsc::sync_channel(QUEUE);
        let out_disk = |disk: &DriverDisk| OutDisk { index: disk.source.disk().index, mark: disk.synced };
        let out_disks = disks.iter().map(out_disk).collect();
        let outbox = Outbox::new(self.sender.clone(), ledger, control, put_back, out_disks);
        let driver = Driver {
            reached: self.reached(),
            disks,
            queue,
            pool,
            own: Buffer::new(),
            ledger,
            control,
            machine: machine.clone(),
            key: self.key,
            last_id: DigestId(0),
            ticket: Ticket(0),
            reads: 0,
            frozen: None,
            schedule: Schedule::new(Instant::now()),
        };
        let keep_alive = self.start_keep_alive();
        let keep_alive = match keep_alive {
            Ok(keep_alive) => keep_alive,
            Err(error) => return Some(Halt::Failed(error)),
        };
        let (sender, receiver) = (self.sender.clone(), &mut self.receiver);
        let halt = thread::scope(|scope| {
            scope.spawn(|| inbox::run(receiver, &sender, ledger, control));
            let sending = scope.spawn(move || outbox.run(&outgoing));
            let (halt, mut disks) = drive(driver);
            // The queue is closed now; what it holds is sent, unless the session has failed.
            if !matches!(halt, Halt::Stopped) {
                sender.shutdown();
            }
            let sent = sending.join();
            ledger.end(None);
            sender.shutdown();
            settle(&mut disks, ledger);
            match (halt, sent) {
                (Halt::Ended, Ok(Err(Halt::Failed(error)))) if !is_transport(&error) => Halt::Failed(error),
                (halt, _) => halt,
            }
        });
        drop(keep_alive);
        Some(halt)
    }

    fn start_keep_alive(&self) -> Result<KeepAlive, SyncError> {
        let mut frame = Vec::new();
        AgentMessage::KeepAlive.encode(&mut frame)?;
        let (least, most) = KEEP_ALIVE_LIMITS;
        let interval = self.welcome.keep_alive_milliseconds.clamp(least, most);
        let interval = Duration::from_millis(interval.into());
        KeepAlive::start(self.sender.clone(), frame, interval).map_err(|e| SyncError::System(e.to_string()))
    }
}

/// Runs the driver to its end; its queue is closed by that.
fn drive(mut driver: Driver<'_>) -> (Halt, Vec<DriverDisk>) {
    let halt = match driver.run() {
        Ok(()) => Halt::Stopped,
        Err(halt) => halt,
    };
    (halt, driver.disks)
}

/// What was acknowledged to the last need not be sent by the next session.
fn settle(disks: &mut [DriverDisk], ledger: &Ledger<'_>) {
    for settled in ledger.take_settled() {
        if let Some(disk) = disks.get_mut(settled.place) {
            disk.settle(settled.range);
        }
    }
}

/// A connection that fails while something is sent has a reason that the inbox knows better.
fn is_transport(error: &SyncError) -> bool {
    matches!(error, SyncError::Transport(_))
}

/// Tries the addresses in order; the last error counts.
fn connect(config: &SyncConfig) -> Result<(Sender, Receiver), SyncError> {
    let mut last = SyncError::System("no address of a replicator is known".into());
    for address in &config.addresses {
        match transport::connect(address, &config.tls, &config.timeouts) {
            Ok(connected) => return Ok(connected),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn hello(config: &SyncConfig, digest_key: DigestKey) -> Result<Vec<u8>, SyncError> {
    let distinct: BTreeSet<_> = config.disks.iter().map(|disk| disk.index).collect();
    if distinct.len() < config.disks.len() {
        return Err(SyncError::Protocol("two disks have the same index".into()));
    }
    let mut frame = Vec::new();
    let hello = Hello {
        version: ProtocolVersion::CURRENT,
        server: config.server.as_str(),
        session: SessionId(random()?),
        digest_key,
        disks: config.disks.iter().map(offer).collect(),
    };
    AgentMessage::Hello(hello).encode(&mut frame)?;
    Ok(frame)
}

fn offer(disk: &DiskSource) -> DiskOffer<'_> {
    DiskOffer { disk: disk.index, volume: disk.volume.as_str(), size: ByteCount(disk.size_bytes) }
}

fn random<const N: usize>() -> Result<[u8; N], SyncError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| SyncError::System(e.to_string()))?;
    Ok(bytes)
}
