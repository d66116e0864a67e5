//! The data engine of the replicator: sessions of agents on one side, staging volumes on the other.
//!
//! ```text
//!   socket ── session thread ── digests ── volume (page cache)
//!                   │ blocks, barriers        │
//!             applier thread ── writes ───────┤
//!                   │ barriers                │
//!            committer thread ── fdatasync ───┘── sidecar ── Ack
//! ```
//! A session has three threads that matter: one receives and decrypts, one applies, one makes durable and acknowledges, so
//! that none waits for another, except for room in a short queue. What a volume durably holds is recorded in a small *sidecar* file; it is all that a
//! restarted replicator needs. After a checkpoint a server's volumes are *held* still until the control plane has taken
//! its snapshot and releases them, or the hold times out.

mod accept;
mod admission;
mod applier;
mod committer;
mod digests;
mod hold;
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
use rehost_model::{Epoch, ServerId, link::ServerReport, replicator::Assignment};
use rehost_protocol::ByteCount;
use thiserror::Error;

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
    /// Limits on the connections.
    pub timeouts: Timeouts,
}

impl EngineConfig {
    /// The usual values: holds of 120 s, a window of 32 MiB, and a peer that is silent for 15 s is gone.
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
pub const MAX_VOLUMES: usize = rehost_model::settings::MAX_DISKS_PER_REPLICATION_SERVER;

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
