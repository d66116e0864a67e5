//! The listening side: a thread for every connection, few of them for strangers.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{registry::Registry, session};

/// Connections that have not proved who they are, all together.
const MOST_STRANGERS: usize = 32;
/// Failed handshakes are logged at most this often: anybody can cause them.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Starts accepting, until the registry stops and the listener is shut down.
pub(super) fn start(listener: TcpListener, registry: Arc<Registry>) -> io::Result<JoinHandle<()>> {
    let door = Arc::new(Door::default());
    let accept = move || {
        while !registry.lock().stopping {
            match listener.accept() {
                Ok((socket, peer)) => admit(socket, peer, &door, &registry),
                Err(_) if registry.lock().stopping => {}
                // Out of file descriptors, or a connection that was reset at once: neither may spin.
                Err(error) => {
                    door.log(None, &error);
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    };
    thread::Builder::new().name("accept".into()).spawn(accept)
}

fn admit(socket: TcpStream, peer: SocketAddr, door: &Arc<Door>, registry: &Arc<Registry>) {
    let Some(stranger) = Stranger::enter(door, peer) else {
        door.log(Some(peer), &"too many connections that have not proved who they are");
        return;
    };
    let registry = registry.clone();
    let serve = move || session::serve(&registry, socket, stranger);
    if let Err(error) = thread::Builder::new().name("session".into()).spawn(serve) {
        door.log(Some(peer), &error);
    }
}

/// Counts strangers, and holds back the log.
#[derive(Default)]
pub(super) struct Door {
    strangers: AtomicUsize,
    log: Mutex<(Option<Instant>, u64)>,
}

impl Door {
    fn log(&self, peer: Option<SocketAddr>, reason: &dyn std::fmt::Display) {
        let now = Instant::now();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held_back) = &mut *log;
        if last.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            *held_back += 1;
            return;
        }
        tracing::warn!(?peer, %reason, more_before = *held_back, "connection refused");
        *log = (Some(now), 0);
    }
}

/// A connection that has not proved who it is; makes room for another when it is dropped.
pub(super) struct Stranger {
    door: Arc<Door>,
    peer: SocketAddr,
}

impl Stranger {
    fn enter(door: &Arc<Door>, peer: SocketAddr) -> Option<Self> {
        let stranger = Self { door: door.clone(), peer };
        // Counted first: a refused one gives its place back as it is dropped.
        let before = door.strangers.fetch_add(1, Ordering::AcqRel);
        (before < MOST_STRANGERS).then_some(stranger)
    }

    /// Where it comes from.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// It could not prove who it is.
    pub(super) fn refuse(&self, reason: &dyn std::fmt::Display) {
        self.door.log(Some(self.peer), reason);
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.door.strangers.fetch_sub(1, Ordering::AcqRel);
    }
}
