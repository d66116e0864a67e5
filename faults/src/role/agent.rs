//! The agent's side: the sync loop over the run's disks, with trackers and a freezer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rehost_agent::freeze::{Freezer, lock_memory};
use rehost_agent::sync::{
    DiskSource, Freeze, FreezeLimits, FreezeStats, Machine, NotFrozen, SyncConfig, SyncControl, SyncLoop, Thawed,
};
use rehost_agent::tracker::TrackerOptions;
use rehost_link::transport::{ClientTls, Timeouts};
use rehost_model::link::{AgentPhase, CheckpointSettings, ReportedError};
use rehost_model::region::REPLICATOR_ROLE;
use rehost_model::replication::{Consistency, TrackerKind};
use rehost_model::{Epoch, ServerId};
use rehost_protocol::DiskIndex;
use serde::{Deserialize, Serialize};

use super::{Speaker, log_warnings, orders};
use crate::spec::{DiskSpec, Spec, identity};

const LOOK: Duration = Duration::from_millis(3);
const BPFFS: &str = "/sys/fs/bpf";
const MAP_BYTES: u64 = 8 << 20;
/// What starts the watchdog: this program.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What it says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) phase: AgentPhase,
    pub(crate) reached: Epoch,
    pub(crate) error: Option<ReportedError>,
    pub(crate) tracker: Option<TrackerKind>,
    pub(crate) consistency: Option<Consistency>,
    /// Why that is not better.
    pub(crate) shortfall: Option<String>,
    pub(crate) freezes: Option<FreezeStats>,
    /// The filesystems are frozen at this moment.
    pub(crate) frozen: bool,
    /// The watchdog's process; 0 for none.
    pub(crate) watchdog: u32,
}

/// How the disks of a server are tracked.
pub(crate) fn tracker_options(server: &ServerId) -> TrackerOptions {
    TrackerOptions { server: server.clone(), bpffs: BPFFS.into(), map_bytes: MAP_BYTES }
}

/// Replicates until its input ends.
pub(crate) fn run(folder: &Path) -> Result<()> {
    log_warnings();
    let spec = Spec::load(folder)?;
    let view = Arc::new(FreezeView::default());
    let config = config(folder, &spec, &view)?;
    let control = Arc::new(SyncControl::new());
    control.set_checkpoints(CheckpointSettings {
        interval_ms: spec.interval_ms,
        max_freeze_ms: spec.freeze_ms,
        ..CheckpointSettings::default()
    });
    let engine = {
        let (control, config) = (control.clone(), config.clone());
        thread::spawn(move || SyncLoop::run(&config, &control))
    };
    let (orders, mut speaker) = (orders(), Speaker::new());
    loop {
        speaker.say(&status(&control, &config.machine, &view))?;
        match orders.recv_timeout(LOOK) {
            Ok(order) => obey(&control, &view, &order)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    control.stop();
    engine.join().map_err(|_| anyhow!("the engine panicked"))?;
    config.machine.close();
    Ok(())
}

fn config(folder: &Path, spec: &Spec, view: &Arc<FreezeView>) -> Result<SyncConfig> {
    let disk = |(index, disk): (usize, &DiskSpec)| {
        Ok::<_, anyhow::Error>(DiskSource {
            index: DiskIndex(u8::try_from(index)?),
            path: disk.source.clone(),
            volume: disk.volume.clone(),
            size_bytes: disk.size_bytes,
        })
    };
    let machine = Machine::tracked(Box::new(tracker_options(&spec.server)));
    if spec.freeze_ms > 0 {
        let paths: Vec<PathBuf> = spec.disks.iter().map(|disk| disk.source.clone()).collect();
        machine.set_freezer(Some(Box::new(Seen::new(&paths, folder, view)?)));
    }
    let silence = spec.silence();
    Ok(SyncConfig {
        addresses: vec![format!("127.0.0.1:{}", spec.port)],
        tls: ClientTls::new(identity(folder, "agent")?, REPLICATOR_ROLE)?,
        server: spec.server.clone(),
        disks: spec.disks.iter().enumerate().map(disk).collect::<Result<_>>()?,
        timeouts: Timeouts { connect: silence, handshake: 2 * silence, idle: silence, write: Some(4 * silence) },
        machine,
    })
}

fn status(control: &SyncControl, machine: &Machine, view: &FreezeView) -> Status {
    let progress = control.progress();
    let trackers = machine.notes();
    Status {
        phase: progress.phase,
        reached: progress.reached,
        error: control.error(),
        tracker: trackers.first().map(|note| note.kind),
        consistency: progress.consistency,
        shortfall: progress.shortfall,
        freezes: progress.freezes,
        frozen: view.frozen.load(Ordering::SeqCst),
        watchdog: view.watchdog.load(Ordering::SeqCst),
    }
}

fn obey(control: &SyncControl, view: &FreezeView, order: &str) -> Result<()> {
    let (verb, number) = order.split_once(' ').context("an order of two words")?;
    let number = number.parse().context("a number")?;
    match verb {
        "checkpoint" => control.request_checkpoint(Epoch(number)),
        "stay" => view.stay_ms.store(number, Ordering::SeqCst),
        _ => bail!("no such order: {order}"),
    }
    Ok(())
}

/// What the conductor sees of freezes, and wants of them.
#[derive(Debug, Default)]
struct FreezeView {
    frozen: AtomicBool,
    watchdog: AtomicU32,
    /// Every freeze lasts twice this much longer; milliseconds.
    stay_ms: AtomicU64,
}

/// A freezer that says when something is frozen.
struct Seen {
    freezer: Freezer,
    view: Arc<FreezeView>,
}

impl Seen {
    fn new(disks: &[PathBuf], folder: &Path, view: &Arc<FreezeView>) -> Result<Self> {
        let notes = folder.join("notes");
        std::fs::create_dir_all(&notes)?;
        let (freezer, _) = Freezer::new(disks, Path::new(OWN_PROGRAM))?.with_note_in(&notes)?;
        lock_memory()?;
        let seen = Self { freezer, view: view.clone() };
        seen.show_watchdog();
        Ok(seen)
    }

    fn show_watchdog(&self) {
        self.view.watchdog.store(self.freezer.watchdog_process().unwrap_or(0), Ordering::SeqCst);
    }
}

impl Freeze for Seen {
    fn presync(&self) {
        // A freeze that has more to do for want of this is still a freeze.
        let _ = self.freezer.presync();
    }

    fn frozen(&mut self, limits: FreezeLimits, work: &mut dyn FnMut()) -> Result<Thawed, NotFrozen> {
        let frozen = self.freezer.freeze(limits.freeze);
        let frozen = frozen.map_err(|error| NotFrozen { reason: error.to_string(), retryable: true })?;
        self.view.frozen.store(true, Ordering::SeqCst);
        // Before what it is frozen for, and after it: what happens meanwhile may fall into either.
        let stay = Duration::from_millis(self.view.stay_ms.load(Ordering::SeqCst));
        thread::sleep(stay);
        work();
        thread::sleep(stay);
        self.view.frozen.store(false, Ordering::SeqCst);
        let thawed = frozen.thaw();
        self.show_watchdog();
        Ok(Thawed { blocked: thawed.blocked, in_time: thawed.in_time })
    }
}
