//! The listening side: a thread for every connection, few of them for strangers.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{registry::Registry, session};

/// Connections that have not proved who they are, all together and from one address: whoever only holds them keeps no others out.
const MOST_STRANGERS: usize = 128;
const MOST_OF_ONE_ADDRESS: usize = 16;
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
    strangers: Mutex<BTreeMap<IpAddr, usize>>,
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
        let mut strangers = door.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.values().sum::<usize>() >= MOST_STRANGERS {
            return None;
        }
        let of_one = strangers.entry(peer.ip()).or_default();
        if *of_one >= MOST_OF_ONE_ADDRESS {
            return None;
        }
        *of_one += 1;
        Some(Self { door: door.clone(), peer })
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
        let mut strangers = self.door.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = strangers.get_mut(&self.peer.ip()) {
            *of_one -= 1;
            if *of_one == 0 {
                strangers.remove(&self.peer.ip());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_keeps_no_others_out() {
        let door = Arc::new(Door::default());
        let at = |host: u8| SocketAddr::from(([192, 0, 2, host], 1));
        let mut held: Vec<Stranger> = (0..64).filter_map(|_| Stranger::enter(&door, at(1))).collect();
        assert_eq!(held.len(), MOST_OF_ONE_ADDRESS);
        for host in 2..=8 {
            held.extend((0..64).filter_map(|_| Stranger::enter(&door, at(host))));
        }
        assert_eq!(held.len(), MOST_STRANGERS);
        assert!(Stranger::enter(&door, at(9)).is_none());
        held.clear();
        assert!(Stranger::enter(&door, at(9)).is_some());
        assert!(door.strangers.lock().unwrap().is_empty());
    }
}
