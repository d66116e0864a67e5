//! A TCP forwarder that is slow, narrow or broken on demand: the network of the fault tests.
//!
//! The kernel's own emulation is not to be had everywhere, and this needs no privilege. Rate and delay are those of one
//! link that all connections share, each direction by itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Context, Result};

/// Bytes that one read takes from a socket.
const CHUNK: usize = 64 * 1024;
/// Chunks under way in one direction of a connection: at least 64 KiB × 256 for a link that is long and wide.
const UNDER_WAY: usize = 256;

/// The quality of the link.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    /// One-way delay.
    pub delay: Duration,
    /// Capacity of each direction in bytes a second; unlimited without.
    pub bytes_per_second: Option<u64>,
}

/// A forwarder from a port of the loopback interface to a target. It and its connections end on drop.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts to forward.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(target: SocketAddr, link: Link) -> Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), target, link)
    }

    /// As [`Forwarder::start`], at an address of one's own choice.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start_at(address: SocketAddr, target: SocketAddr, link: Link) -> Result<Self> {
        let what = || format!("listen on {address} for {target}");
        let listener = TcpListener::bind(address).context(what)?;
        let address = listener.local_addr().context(what)?;
        let shared = Arc::new(Shared::new(target, link));
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes the link, for open connections too.
    pub fn set_link(&self, link: Link) {
        *lock(&self.shared.link) = link;
    }

    /// Breaks all connections once `bytes` more have gone to the target. Later connections work.
    pub fn cut_after(&self, bytes: u64) {
        let at = self.sent().saturating_add(bytes);
        self.shared.cut_at.store(at, Ordering::SeqCst);
    }

    /// Breaks all connections now. Later connections work.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// While set, connections are closed as soon as they come: the port is there, nobody behind it.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Ordering::SeqCst);
        if refuse {
            self.shared.cut();
        }
    }

    /// Bytes that went to the target so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.up.bytes.load(Ordering::SeqCst)
    }

    /// Bytes that came back so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.down.bytes.load(Ordering::SeqCst)
    }

    /// How often connections were broken on purpose.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees the flag.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.close_all();
    }
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    link: Mutex<Link>,
    up: Direction,
    down: Direction,
    cut_at: AtomicU64,
    cuts: AtomicU64,
    refusing: AtomicBool,
    stopping: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// One direction of the link: what went, and when it is free for the next bytes.
#[derive(Debug)]
struct Direction {
    bytes: AtomicU64,
    free_at: Mutex<Instant>,
}

impl Direction {
    fn new() -> Self {
        Self { bytes: AtomicU64::new(0), free_at: Mutex::new(Instant::now()) }
    }

    /// Takes the link for `bytes` and gives the moment at which the last of them has left.
    fn occupy(&self, bytes: usize, link: Link) -> Instant {
        let mut free_at = lock(&self.free_at);
        let start = (*free_at).max(Instant::now());
        let time = link.bytes_per_second.map_or(Duration::ZERO, |rate| transmission(bytes, rate));
        *free_at = start + time;
        *free_at
    }
}

fn transmission(bytes: usize, rate: u64) -> Duration {
    let nanoseconds = u128::try_from(bytes).unwrap_or_default() * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

impl Shared {
    fn new(target: SocketAddr, link: Link) -> Self {
        Self {
            target,
            link: Mutex::new(link),
            up: Direction::new(),
            down: Direction::new(),
            cut_at: AtomicU64::new(u64::MAX),
            cuts: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            if !self.refusing.load(Ordering::SeqCst) {
                // A target that does not answer looks to the client as it would without us: closed.
                let _ = self.connect(client);
            }
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect_timeout(&self.target, Duration::from_secs(5))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        lock(&self.open).extend([client.try_clone()?, server.try_clone()?]);
        self.pump(client.try_clone()?, server.try_clone()?, true);
        self.pump(server, client, false);
        Ok(())
    }

    fn pump(self: &Arc<Self>, from: TcpStream, to: TcpStream, up: bool) {
        let (sender, receiver) = sync_channel(UNDER_WAY);
        let shared = Arc::clone(self);
        thread::spawn(move || shared.read(from, &sender, up));
        thread::spawn(move || write(to, &receiver));
    }

    fn read(&self, mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>, up: bool) {
        let direction = if up { &self.up } else { &self.down };
        let mut buffer = vec![0; CHUNK];
        while let Ok(count) = from.read(&mut buffer) {
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return;
            }
            let link = *lock(&self.link);
            let left = direction.occupy(bytes.len(), link);
            sleep_until(left);
            if sender.send((left + link.delay, bytes.to_vec())).is_err() {
                return;
            }
            self.count(direction, bytes.len(), up);
        }
    }

    fn count(&self, direction: &Direction, bytes: usize, up: bool) {
        let bytes = u64::try_from(bytes).unwrap_or_default();
        let total = direction.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        let due = up && total >= self.cut_at.load(Ordering::SeqCst);
        if due && self.cut_at.swap(u64::MAX, Ordering::SeqCst) != u64::MAX {
            self.cut();
        }
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.close_all();
    }

    fn close_all(&self) {
        for stream in lock(&self.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn write(mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in receiver {
        sleep_until(due);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn sleep_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}

/// A panic of one pump must not take the others with it: the values behind these locks are always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
