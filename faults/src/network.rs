//! The network between agent and replicator: a forwarder that can be slow, cut, half-open, or change a byte.
//!
//! Within one TCP connection nothing can overtake anything, so "reordering" has no meaning here beyond what it does to the
//! receiver: bytes that come late and in other pieces than they were sent in. That is what a [`Quality`] gives: a delay that varies from
//! piece to piece, and pieces of random length down to a byte.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rehost_tests::random::Random;

/// Bytes that one read takes at most.
const PIECE: usize = 64 * 1024;
/// How often a silent pump looks whether its connection was ended.
const LOOK: Duration = Duration::from_millis(5);

/// The quality of the link; each direction by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    /// Each piece waits up to this long.
    pub(crate) delay: Duration,
    /// Bytes a second.
    pub(crate) rate: Option<u64>,
    /// The longest piece; shorter ones are as likely.
    pub(crate) piece: usize,
}

impl Default for Quality {
    fn default() -> Self {
        Self { delay: Duration::ZERO, rate: None, piece: PIECE }
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the agent to the replicator.
    Up,
    /// Back.
    Down,
}

/// A forwarder on a port of the loopback interface; it and its connections end on drop.
pub(crate) struct Network {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Network {
    /// Starts it; connections are closed until a target is set.
    pub(crate) fn start(seed: u64) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for the agent")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(seed));
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where new connections go; none closes them as they come. Open ones stay.
    pub(crate) fn set_target(&self, target: Option<SocketAddr>) {
        *lock(&self.shared.target) = target;
    }

    /// Changes the link, for open connections too; what it was.
    pub(crate) fn set_quality(&self, quality: Quality) -> Quality {
        std::mem::replace(&mut *lock(&self.shared.quality), quality)
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.shared.cut();
    }

    /// Ends all connections once `bytes` more have gone this way, in the midst of a piece.
    pub(crate) fn cut_after(&self, way: Way, bytes: u64) {
        self.shared.way(way).arm(bytes, Trap::Cut);
    }

    /// Changes one bit of the byte that comes after `bytes` more.
    pub(crate) fn flip_after(&self, way: Way, bytes: u64) {
        self.shared.way(way).arm(bytes, Trap::Flip);
    }

    /// Whether what was armed has happened.
    pub(crate) fn sprung(&self, way: Way) -> bool {
        lock(&self.shared.way(way).trap).is_none()
    }

    /// From now on nothing passes on the connections there are, and neither side is told. Later connections work.
    pub(crate) fn go_silent(&self) {
        for connection in lock(&self.shared.open).iter() {
            connection.silent.store(true, Ordering::SeqCst);
        }
    }

    /// While this is set nothing passes, on no connection; then everything does.
    pub(crate) fn stand_still(&self, still: bool) {
        self.shared.still.store(still, Ordering::SeqCst);
    }

    /// Connections that came to stand so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Bytes that went this way so far.
    pub(crate) fn passed(&self, way: Way) -> u64 {
        self.shared.way(way).bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees the flag.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.cut();
    }
}

struct Shared {
    target: Mutex<Option<SocketAddr>>,
    quality: Mutex<Quality>,
    random: Mutex<Random>,
    up: Direction,
    down: Direction,
    stopping: AtomicBool,
    still: AtomicBool,
    open: Mutex<Vec<Arc<Connection>>>,
    connections: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trap {
    Cut,
    Flip,
}

/// One direction of the link: what went, when it is free for the next bytes, and what is to happen at which byte.
struct Direction {
    bytes: AtomicU64,
    free_at: Mutex<Instant>,
    trap: Mutex<Option<(u64, Trap)>>,
}

impl Direction {
    fn new() -> Self {
        Self { bytes: AtomicU64::new(0), free_at: Mutex::new(Instant::now()), trap: Mutex::new(None) }
    }

    fn arm(&self, bytes: u64, trap: Trap) {
        *lock(&self.trap) = Some((self.bytes.load(Ordering::SeqCst) + bytes, trap));
    }

    /// Takes the link for `bytes`; the moment at which the last of them has left.
    fn occupy(&self, bytes: u64, rate: Option<u64>) -> Instant {
        let mut free_at = lock(&self.free_at);
        let time = rate.map_or(Duration::ZERO, |rate| Duration::from_nanos(bytes * 1_000_000_000 / rate.max(1)));
        *free_at = (*free_at).max(Instant::now()) + time;
        *free_at
    }

    /// Counts a piece that is about to go. If the trap lies in it: where, and which.
    fn take(&self, piece: u64) -> Option<(u64, Trap)> {
        let begin = self.bytes.fetch_add(piece, Ordering::SeqCst);
        let mut trap = lock(&self.trap);
        let (at, what) = (*trap)?;
        if at >= begin + piece {
            return None;
        }
        *trap = None;
        Some((at.saturating_sub(begin), what))
    }
}

struct Connection {
    agent: TcpStream,
    replicator: TcpStream,
    silent: AtomicBool,
    ended: AtomicBool,
}

impl Connection {
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = self.agent.shutdown(Shutdown::Both);
        let _ = self.replicator.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn new(seed: u64) -> Self {
        Self {
            target: Mutex::new(None),
            quality: Mutex::new(Quality::default()),
            random: Mutex::new(Random::new(seed)),
            up: Direction::new(),
            down: Direction::new(),
            stopping: AtomicBool::new(false),
            still: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
            connections: AtomicU64::new(0),
        }
    }

    fn way(&self, way: Way) -> &Direction {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for agent in listener.incoming().flatten() {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let target = *lock(&self.target);
            if let Some(target) = target {
                // A target that does not answer looks to the agent as it would without us: closed.
                let _ = self.connect(agent, target);
            }
        }
    }

    fn connect(self: &Arc<Self>, agent: TcpStream, target: SocketAddr) -> std::io::Result<()> {
        let replicator = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        agent.set_nodelay(true)?;
        replicator.set_nodelay(true)?;
        let (silent, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        self.connections.fetch_add(1, Ordering::SeqCst);
        let connection = Arc::new(Connection { agent, replicator, silent, ended });
        let mut open = lock(&self.open);
        open.retain(|connection| !connection.ended.load(Ordering::SeqCst));
        open.push(Arc::clone(&connection));
        for way in [Way::Up, Way::Down] {
            let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || shared.pump(&connection, way));
        }
        Ok(())
    }

    fn pump(&self, connection: &Connection, way: Way) {
        let (from, to) = match way {
            Way::Up => (&connection.agent, &connection.replicator),
            Way::Down => (&connection.replicator, &connection.agent),
        };
        // A side that closes has nothing more to say to the other in this protocol: both are closed.
        let _ = self.forward(connection, from, to, way);
        connection.end();
    }

    fn forward(
        &self,
        connection: &Connection,
        mut from: &TcpStream,
        mut to: &TcpStream,
        way: Way,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let (length, wait, rate) = self.next_piece();
            let count = from.read(buffer.get_mut(..length).unwrap_or_default())?;
            while connection.silent.load(Ordering::SeqCst) || self.still.load(Ordering::SeqCst) {
                if connection.ended.load(Ordering::SeqCst) {
                    return Ok(());
                }
                thread::sleep(LOOK);
            }
            let piece = buffer.get_mut(..count).unwrap_or_default();
            if piece.is_empty() {
                return Ok(());
            }
            let left = self.way(way).occupy(piece.len() as u64, rate) + wait;
            thread::sleep(left.saturating_duration_since(Instant::now()));
            let trap = self.way(way).take(piece.len() as u64);
            let whole = spring(piece, trap);
            to.write_all(piece.get(..whole).unwrap_or_default())?;
            if whole < count {
                self.cut();
            }
        }
    }

    /// Length, delay and rate of the next piece.
    fn next_piece(&self) -> (usize, Duration, Option<u64>) {
        let quality = *lock(&self.quality);
        let mut random = lock(&self.random);
        let length = if quality.piece >= PIECE {
            PIECE
        } else {
            usize::try_from(1 + random.below(quality.piece as u64)).unwrap_or(1)
        };
        let delay = u64::try_from(quality.delay.as_micros()).unwrap_or(0);
        (length, Duration::from_micros(random.below(delay + 1)), quality.rate)
    }

    fn cut(&self) {
        for connection in lock(&self.open).drain(..) {
            connection.end();
        }
    }
}

/// Does to a piece what the trap says; how much of it may go on.
fn spring(piece: &mut [u8], trap: Option<(u64, Trap)>) -> usize {
    let place = |at: u64| usize::try_from(at).unwrap_or(0);
    match trap {
        None => {}
        Some((at, Trap::Cut)) => return place(at).min(piece.len().saturating_sub(1)),
        Some((at, Trap::Flip)) => {
            if let Some(byte) = piece.get_mut(place(at)) {
                *byte ^= 0x10;
            }
        }
    }
    piece.len()
}

/// A panic of one pump must not take the others with it: the values behind these locks are always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                    let _ = std::io::copy(&mut from, &mut to);
                });
            }
        });
        address
    }

    fn through(network: &Network, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(network.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        stream.write_all(bytes).unwrap();
        let (mut back, mut buffer) = (Vec::new(), [0; 4096]);
        while back.len() < bytes.len() {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => back.extend_from_slice(&buffer[..count]),
            }
        }
        back
    }

    #[test]
    fn bytes_pass_also_in_pieces() {
        let network = Network::start(1).unwrap();
        network.set_target(Some(echo()));
        let bytes: Vec<u8> = (0..20_000u32).map(|at| (at % 251) as u8).collect();
        network.set_quality(Quality { delay: Duration::from_micros(100), rate: None, piece: 700 });
        assert_eq!(through(&network, &bytes), bytes);
        assert_eq!(network.passed(Way::Up), 20_000);
    }

    #[test]
    fn traps_are_sprung_at_their_byte() {
        let network = Network::start(1).unwrap();
        network.set_target(Some(echo()));
        network.flip_after(Way::Up, 3);
        assert_eq!(through(&network, &[0; 8]), [0, 0, 0, 0x10, 0, 0, 0, 0]);
        network.cut_after(Way::Down, 5);
        assert_eq!(through(&network, &[7; 8]), [7; 5]);
        assert!(network.sprung(Way::Down));
        assert_eq!(through(&network, &[7; 8]), [7; 8]);
    }

    #[test]
    fn silence_is_not_an_end() {
        let network = Network::start(1).unwrap();
        network.set_target(Some(echo()));
        let mut stream = TcpStream::connect(network.address).unwrap();
        stream.write_all(b"a").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        network.go_silent();
        stream.write_all(b"b").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let error = stream.read_exact(&mut byte).unwrap_err();
        assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");
        assert_eq!(through(&network, b"c"), b"c");
    }
}
