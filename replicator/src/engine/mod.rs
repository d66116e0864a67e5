//! The data engine of the replicator: sessions of agents on one side, staging volumes on the other.
//!
//! ```text
//!   socket ── session thread ── digests ── volume (page cache)
//!                   │ blocks, barriers        │
//!             applier thread ── writes ───────┤  or journal
//!                   │ barriers                │      │ checkpoint
//!            committer thread ── fdatasync ───┘──────┘── sidecar ── Ack
//! ```
//! A session has three threads that matter: one receives and decrypts, one applies, one makes durable and acknowledges, so
//! that none waits for another, except for room in a short queue. What a volume durably holds is recorded in a small
//! *sidecar* file. Once a volume is a checkpoint, changes go to its server's [*journal*](journal) until the next one is whole;
//! without a data key, the sidecar says that the volume is no checkpoint, and it is written to directly. After a checkpoint a server's volumes are *held* still until the control plane has taken
//! its snapshot and releases them, or the hold times out.

mod accept;
mod admission;
mod applier;
mod blocks;
mod committer;
mod digests;
mod hold;
mod journal;
mod manifest;
mod opening;
mod random_name;
mod refusal;
mod registry;
mod session;
mod sidecar;
mod volume;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use rehost_link::transport::{ServerTls, Timeouts};
use rehost_model::{
    Epoch, ServerId, VolumeId,
    link::{DataKey, ServerReport, VolumeManifest},
    replicator::Assignment,
};
use rehost_protocol::ByteCount;
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use self::registry::Registry;

/// What an engine needs to know.
#[derive(Clone)]
pub struct EngineConfig {
    /// Where agents connect; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Own certificate, and the CA of the agents.
    pub tls: ServerTls,
    /// Where the sidecars live; by default each lies beside its volume, which is right for image files only.
    pub state_dir: Option<PathBuf>,
    /// How long a server's volumes are held still for a snapshot.
    pub hold_timeout: Duration,
    /// How often each side of a session says something.
    pub keep_alive: Duration,
    /// Bytes of disks that an agent may have sent without an acknowledgement.
    pub window: ByteCount,
    /// Most bytes of changes of a server that wait in its journal for their checkpoint.
    pub journal_bytes: u64,
    /// Limits on the connections.
    pub timeouts: Timeouts,
}

impl EngineConfig {
    /// The usual values: holds of 120 s, a window of 32 MiB, a journal of 1 GiB, and a peer that is silent for 15 s is gone.
    #[must_use]
    pub fn new(listen: SocketAddr, tls: ServerTls) -> Self {
        let timeouts = Timeouts::default();
        Self {
            listen,
            tls,
            state_dir: None,
            hold_timeout: Duration::from_secs(120),
            keep_alive: Duration::from_secs(5),
            window: ByteCount(32 << 20),
            journal_bytes: 1 << 30,
            // An agent always reads: one that does not is gone.
            timeouts: Timeouts { write: Some(timeouts.idle), ..timeouts },
        }
    }
}

/// Why an engine cannot do what it was told.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}; is another replicator running?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The system refuses another thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// More volumes than a replicator may serve.
    #[error("{0} volumes were assigned, but a replicator serves at most {max}: spread them over more", max = MAX_VOLUMES)]
    TooManyVolumes(usize),
    /// The same volume twice.
    #[error("volume {0} is assigned twice")]
    AssignedTwice(String),
}

/// Most volumes of one replicator, over all servers.
pub const MAX_VOLUMES: usize = rehost_model::settings::MAX_DISKS_PER_SERVER;

/// The ending of a volume's sidecar, after its id.
pub(crate) const SIDECAR: &str = sidecar::ENDING;
/// The ending of a server's journal, after its id.
pub(crate) const JOURNAL: &str = registry::JOURNAL;

/// A running engine; it stops when it is dropped.
pub struct Engine {
    registry: Arc<Registry>,
    listener: TcpListener,
    address: SocketAddr,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Listens and serves; nobody is let in before [`Engine::set_assignments`].
    ///
    /// # Errors
    /// [`EngineError::Listen`] or [`EngineError::Thread`].
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        let address = config.listen;
        let listen = |source| EngineError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let registry = Registry::new(config);
        let accepting = listener.try_clone().map_err(listen)?;
        let acceptor = accept::start(accepting, registry.clone()).map_err(EngineError::Thread)?;
        let acceptor = Mutex::new(Some(acceptor));
        Ok(Self { registry, listener, address, acceptor })
    }

    /// The address that agents connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the volumes that are served. What stays is not disturbed; the session of a server that loses a volume,
    /// or whose volume changes, is ended.
    ///
    /// # Errors
    /// Too many volumes, or one twice; then everything stays as it was.
    pub fn set_assignments(&self, assignments: Vec<Assignment>) -> Result<(), EngineError> {
        self.registry.assign(assignments)
    }

    /// Takes the keys under which journals are sealed. Volumes that use a journal are not served before their server's key has
    /// come; without one, a new server's volumes use none. A journal that is not empty stays under its key until it is.
    pub fn set_data_keys(&self, keys: BTreeMap<ServerId, DataKey>) {
        let taken = keys.into_iter().map(|(server, mut key)| {
            let own = Zeroizing::new(key.0);
            key.0.zeroize();
            (server, own)
        });
        self.registry.take_keys(taken.collect());
    }

    /// A manifest that is to be brought to the control plane; the same one until it is [dropped](Self::drop_manifest).
    #[must_use]
    pub fn manifest(&self) -> Option<VolumeManifest> {
        self.registry.any_manifest().map(|manifest| manifest.to_message())
    }

    /// The manifest of this volume and epoch needs no further attention.
    pub fn drop_manifest(&self, volume: &VolumeId, epoch: Epoch) {
        self.registry.drop_manifest(volume, epoch);
    }

    /// Takes a renewed certificate for connections from now on.
    pub fn set_tls(&self, tls: ServerTls) {
        self.registry.renew(tls);
    }

    /// Ends the hold of a server at `epoch` or before; false if there is none (any more).
    pub fn release_hold(&self, server: &ServerId, epoch: Epoch) -> bool {
        self.registry.release(server, epoch)
    }

    /// Ends every hold that a map of releases, as the control plane sends it, covers.
    pub fn release_holds(&self, releases: &BTreeMap<ServerId, Epoch>) {
        for (server, epoch) in releases {
            self.registry.release(server, *epoch);
        }
    }

    /// What is known of every assigned server, by its id.
    #[must_use]
    pub fn report(&self) -> Vec<ServerReport> {
        self.registry.report()
    }

    /// Ends every session and stops listening. Whatever was acknowledged is durable.
    pub fn shutdown(&self) {
        self.registry.stop();
        // Wakes the acceptor; fails only if the socket is shut already.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = acceptor {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
        self.registry.wait_for_sessions();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests;
