//! A local region: its home folder, and everything that runs in it.
//!
//! ```text
//! region.json      what it is: where it listens, under which hosts replication servers are reached
//! lock             held by the process that serves it, whose id it names
//! credentials      access keys, in the format of the AWS CLI
//! keys/            the master key, and the access keys sealed under it
//! objects/         objects; among them the certificate authority, its key sealed
//! rehost.db        items, executions and their history
//! events.jsonl     events
//! volumes/ snapshots/ instances/ replicators/ cache/     the compute's own
//! ```

mod access;
mod config;
mod init;
mod lock;
mod machines;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rehost_control::authority::{self, Authority};
use rehost_control::ports::{Clock, Events, Keys, Objects, Polling, PortResult, Ports};
use rehost_control::rules::RuledEvents;
use rehost_control::{PortError, PortErrorKind, jobs, monitor, reaper, schedule, steps};
use rehost_model::region::LOCAL_REGION;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::compute::{LocalCompute, LocalComputeConfig};
use crate::database::Database;
use crate::events::EventLog;
use crate::interpreter::{Engine, EngineOptions, TaskError, TaskHandler, random_jitter};
use crate::keys::FileKeys;
use crate::objects::FileObjects;
use crate::store::SqliteStore;
use rehost_control::SystemClock;

pub use access::{AccessKeyPair, AccessKeys};
pub use config::RegionConfig;
pub use init::{InitOptions, InitReport, init};
use lock::RegionLock;

/// The account in the local region's ARNs.
pub const LOCAL_ACCOUNT: &str = "000000000000";

/// Steps that may run at once.
const MAX_RUNNING_STEPS: usize = 64;

/// How often it is looked for agents that fell silent.
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(30);

/// How often it is looked for snapshots that are due or were cut off.
const KEEP_SNAPSHOTS_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked for what nobody needs.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// The files of a home, by their names in it.
mod names {
    pub(super) const CONFIG: &str = "region.json";
    pub(super) const LOCK: &str = "lock";
    pub(super) const CREDENTIALS: &str = "credentials";
    pub(super) const KEYS: &str = "keys";
    pub(super) const MASTER_KEY: &str = "keys/master.key";
    pub(super) const ACCESS_KEYS: &str = "keys/access-keys.sealed";
    pub(super) const OBJECTS: &str = "objects";
    pub(super) const DATABASE: &str = "rehost.db";
    pub(super) const EVENTS: &str = "events.jsonl";
}

/// What [`LocalRegion::open`] is told.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// `rehost-replicator`.
    pub replicator_binary: PathBuf,
    /// `rehost-converter`, static.
    pub converter_binary: PathBuf,
    /// Where the API listens, if not where the region's configuration says.
    pub listen: Option<SocketAddr>,
}

/// A region that this process holds: nobody else serves it meanwhile.
pub struct LocalRegion {
    pub home: PathBuf,
    pub config: RegionConfig,
    /// Where the API listens.
    pub listen: SocketAddr,
    pub ports: Ports,
    pub access_keys: AccessKeys,
    pub authority: Arc<Authority>,
    engine: Arc<Engine>,
    compute: LocalCompute,
    background: Mutex<JoinSet<()>>,
    _lock: RegionLock,
}

impl LocalRegion {
    /// Opens a region's home. Nothing runs yet: see [`Self::start_background`].
    ///
    /// # Errors
    /// `NotFound` when there is no region, `Conflict` when another process serves it (which one is told), and whatever keeps
    /// its files from being read.
    pub async fn open(home: &Path, options: OpenOptions) -> PortResult<Self> {
        let config = RegionConfig::load(&home.join(names::CONFIG))?;
        let lock = RegionLock::take(&home.join(names::LOCK))?;
        let keys: Arc<dyn Keys> = Arc::new(FileKeys::open(&home.join(names::MASTER_KEY))?);
        let objects: Arc<dyn Objects> = Arc::new(FileObjects::new(home.join(names::OBJECTS)));
        let access_keys = AccessKeys::open(&home.join(names::ACCESS_KEYS), &*keys).await?;
        let authority = Arc::new(authority::load_or_create(&*objects, &*keys).await?);
        let listen = options.listen.unwrap_or(config.listen);
        let compute = LocalCompute::open(compute_config(home, &config, options, listen, &authority))?;
        let database = Database::open(&home.join(names::DATABASE))?;
        let engine = Arc::new(engine(database.clone())?);
        let log: Arc<dyn Events> = Arc::new(EventLog::open(home.join(names::EVENTS))?);
        let ports = Ports {
            store: Arc::new(SqliteStore::new(database)),
            compute: Arc::new(compute.clone()),
            objects,
            events: Arc::new(RuledEvents::new(log, engine.clone())),
            workflows: engine.clone(),
            keys,
            clock: clock(),
            region: LOCAL_REGION.to_owned(),
            account: LOCAL_ACCOUNT.to_owned(),
            replicator_hosts: config.advertised_hosts.clone(),
            polling: Polling::LOCAL,
        };
        let (home, background) = (home.to_owned(), Mutex::default());
        Ok(Self { home, config, listen, ports, access_keys, authority, engine, compute, background, _lock: lock })
    }

    /// Takes up the state machines where they were, and looks after agents and instances from now on. To be called before the
    /// API is served: what a crash cut off is told from what is just beginning by being there before anything else.
    ///
    /// # Errors
    /// When a state machine does not fit the steps, or the database does not answer.
    pub async fn start_background(&self) -> PortResult<()> {
        report("something that a crash cut off was not taken up", jobs::recover(&self.ports).await);
        self.engine.resume(Arc::new(Steps { ports: self.ports.clone() })).await?;
        let (compute, ports) = (self.compute.clone(), self.ports.clone());
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        background.spawn(async move { compute.supervise().await });
        background.spawn(keep_snapshots(ports.clone()));
        background.spawn(tidy_up(ports.clone()));
        background.spawn(look_after(ports));
        Ok(())
    }

    /// Stops what [`Self::start_background`] started. Replication servers and instances run on; the next process finds them.
    pub async fn shutdown(&self) {
        self.background.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.engine.shutdown().await;
    }

    /// The state machines' interpreter, for those who want to see histories.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The compute, for those who want to prepare or inspect it.
    #[must_use]
    pub fn compute(&self) -> &LocalCompute {
        &self.compute
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

fn engine(database: Database) -> PortResult<Engine> {
    Engine::new(EngineOptions {
        database,
        clock: clock(),
        machines: machines::definitions(),
        max_running_steps: MAX_RUNNING_STEPS,
        jitter: random_jitter,
    })
}

fn compute_config(
    home: &Path,
    config: &RegionConfig,
    options: OpenOptions,
    listen: SocketAddr,
    authority: &Authority,
) -> LocalComputeConfig {
    let endpoint = format!("https://{}", reachable(listen));
    let (home, fingerprint) = (home.to_owned(), authority.fingerprint());
    LocalComputeConfig {
        replication_listen: listen.ip(),
        replication_port_first: config.replication_port,
        ..LocalComputeConfig::new(home, options.replicator_binary, options.converter_binary, endpoint, fingerprint)
    }
}

/// How a process of this machine reaches what listens there.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => address,
    };
    SocketAddr::new(address, listen.port())
}

/// Watches for agents that fall silent; for ever.
async fn look_after(ports: Ports) {
    loop {
        report("it cannot be seen which agents fell silent", monitor::check_agents(&ports).await);
        report("it cannot be seen which replication servers died", monitor::check_replicators(&ports).await);
        tokio::time::sleep(LOOK_AFTER_EVERY).await;
    }
}

/// Takes the snapshots that are due, and goes on with those that were cut off; for ever.
async fn keep_snapshots(ports: Ports) {
    loop {
        report("not every snapshot could go on; it is tried again", schedule::tick(&ports).await);
        tokio::time::sleep(KEEP_SNAPSHOTS_EVERY).await;
    }
}

/// Removes what nobody needs; for ever.
async fn tidy_up(ports: Ports) {
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        match reaper::reap(&ports, None, false).await {
            Ok(found) => {
                for resource in found.left() {
                    tracing::warn!(?resource, "something was left over");
                }
            }
            Err(error) => tracing::warn!(%error, "it cannot be seen what is left over"),
        }
    }
}

fn report(what: &str, result: PortResult<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}

/// The steps of the control plane as the interpreter's tasks.
struct Steps {
    ports: Ports,
}

#[async_trait]
impl TaskHandler for Steps {
    fn knows(&self, step: &str) -> bool {
        steps::NAMES.contains(&step)
    }

    async fn run(&self, step: &str, input: Value) -> Result<Value, TaskError> {
        let ended = steps::run(&self.ports, step, input).await;
        ended.map_err(|failed| TaskError { error: failed.name, cause: failed.cause })
    }
}

/// The error for a home in which something is not as it must be.
fn unfit(path: &Path, why: impl std::fmt::Display) -> PortError {
    PortError::new(PortErrorKind::Invalid, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests;
