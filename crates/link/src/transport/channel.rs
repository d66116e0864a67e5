//! The two halves of a connection: frames in, frames out.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use rehost_protocol::{FrameHeader, FrameKind, HEADER_LENGTH, Phase};

use super::{
    TransportError,
    connection::{Connection, OutBuffer, Progress},
};

/// One read of a peer that is not trusted yet.
const OPENING_READ: usize = 16 * 1024;
/// One read of a peer that is.
const BULK_READ: usize = 256 * 1024;
/// A TLS record at its longest: one may always lie half received at the buffer's end.
const LONGEST_RECORD: usize = 17 * 1024;

/// What both halves share. Locks are taken in the order writer, session.
pub(super) struct Shared {
    socket: TcpStream,
    writer: Mutex<OutBuffer>,
    session: Mutex<Session>,
}

/// The TLS state, and what the receiver found that must be sent.
pub(super) struct Session {
    pub(super) connection: Connection,
    /// Encrypted earlier than anything a sender will encrypt, hence sent before it.
    pub(super) control: OutBuffer,
    /// A record was refused: only `control` may still be sent.
    failed: bool,
}

impl Shared {
    pub(super) fn new(socket: TcpStream, connection: Connection) -> Arc<Self> {
        let session = Session { connection, control: OutBuffer::default(), failed: false };
        Arc::new(Self { socket, writer: Mutex::default(), session: Mutex::new(session) })
    }

    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transmit(&self, writer: &mut OutBuffer, parts: &[&[u8]]) -> Result<(), TransportError> {
        writer.clear();
        {
            let mut session = self.session();
            let Session { connection, control, failed } = &mut *session;
            if *failed {
                return Err(TransportError::Closed);
            }
            writer.append(control.filled());
            control.clear();
            connection.send(parts, writer)?;
        }
        self.write(writer.filled())
    }

    /// Sends what TLS itself has to say, during the handshake.
    pub(super) fn flush_control(&self) -> Result<(), TransportError> {
        let mut session = self.session();
        self.write(session.control.filled())?;
        session.control.clear();
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<(), TransportError> {
        (&self.socket).write_all(bytes).map_err(|error| {
            // Part of a record may be out: nothing sent after it could be understood.
            self.shutdown();
            match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    TransportError::Silent(self.socket.write_timeout().ok().flatten().unwrap_or_default())
                }
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => TransportError::Closed,
                _ => TransportError::Io(error),
            }
        })
    }

    fn shutdown(&self) {
        // Fails only if it is shut down already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Sends frames. Clones share the connection; a frame is never mixed with another.
#[derive(Clone)]
pub struct Sender {
    pub(super) shared: Arc<Shared>,
}

impl Sender {
    /// Sends the bytes of one frame, or of several, given in parts. Blocks while the peer takes nothing.
    ///
    /// # Errors
    /// The connection is gone; it is of no further use.
    pub fn send(&self, parts: &[&[u8]]) -> Result<(), TransportError> {
        let mut writer = self.writer();
        self.shared.transmit(&mut writer, parts)
    }

    /// Like [`Sender::send`], but only if nobody else is sending; returns whether it was sent.
    ///
    /// # Errors
    /// The connection is gone; it is of no further use.
    pub fn send_if_free(&self, parts: &[&[u8]]) -> Result<bool, TransportError> {
        let mut writer = match self.shared.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        self.shared.transmit(&mut writer, parts).map(|()| true)
    }

    /// Ends the connection at once, whatever other threads are doing with it.
    pub fn shutdown(&self) {
        self.shared.shutdown();
    }

    /// Tells the peer that nothing more will come, after everything sent so far.
    pub fn finish(&self) {
        // Waits for a frame that is being sent; the peer may have gone already.
        let _writer = self.writer();
        let _ = self.shared.socket.shutdown(Shutdown::Write);
    }

    fn writer(&self) -> MutexGuard<'_, OutBuffer> {
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame as it was received; it lives until the next one is asked for.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The type of its body.
    pub kind: FrameKind,
    /// Its body.
    pub body: &'a [u8],
}

/// Receives frames.
pub struct Receiver {
    shared: Arc<Shared>,
    /// Received, not yet decrypted: `start..end`.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// Decrypted; everything before `position` was handed out.
    plain: Vec<u8>,
    position: usize,
    phase: Phase,
    idle: Duration,
    deadline: Option<Instant>,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, idle: Duration, deadline: Option<Instant>) -> Self {
        Self {
            shared,
            incoming: Vec::new(),
            start: 0,
            end: 0,
            plain: Vec::new(),
            position: 0,
            phase: Phase::Opening,
            idle,
            deadline,
        }
    }

    /// From here on the peer is known: frames may be long, reads are, and only silence ends the connection.
    ///
    /// # Errors
    /// [`TransportError::Io`] if the socket refuses the timeout.
    pub fn establish(&mut self) -> Result<(), TransportError> {
        self.phase = Phase::Established;
        self.deadline = None;
        let idle = Some(self.idle);
        self.shared.socket.set_read_timeout(idle).map_err(TransportError::Io)
    }

    /// The next frame.
    ///
    /// # Errors
    /// The peer closed, fell silent or sent what is no frame. A limit is checked before its bytes are waited for.
    pub fn receive(&mut self) -> Result<Frame<'_>, TransportError> {
        let header = loop {
            match self.buffered_frame()? {
                Some(header) => break header,
                None => self.fill()?,
            }
        };
        let from = self.position + HEADER_LENGTH;
        self.position = from + header.body_length();
        let body = self.plain.get(from..self.position).unwrap_or_default();
        Ok(Frame { kind: header.kind, body })
    }

    /// Whether [`Receiver::receive`] has something to say without waiting for it: the next frame is here, or what is no frame.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        !matches!(self.buffered_frame(), Ok(None))
    }

    /// Throws away what still arrives, until the peer closes or `limit` has passed. A socket that is closed with unread
    /// bytes resets the connection, and the peer would lose the last thing it was told.
    pub fn drain(&mut self, limit: Duration) {
        self.deadline = Some(Instant::now() + limit);
        loop {
            self.start = self.end;
            if !matches!(self.read(), Ok(true)) {
                return;
            }
        }
    }

    fn buffered_frame(&self) -> Result<Option<FrameHeader>, TransportError> {
        let rest = self.plain.get(self.position..).unwrap_or_default();
        let Some((head, body)) = rest.split_first_chunk() else {
            return Ok(None);
        };
        let header = FrameHeader::parse(*head, self.phase)?;
        Ok((body.len() >= header.body_length()).then_some(header))
    }

    /// Adds to `plain`: first from what was received, then from the socket.
    fn fill(&mut self) -> Result<(), TransportError> {
        self.drop_consumed();
        let before = self.plain.len();
        loop {
            let progress = self.decrypt()?;
            if self.plain.len() > before {
                return Ok(());
            }
            if progress == Progress::Closed || !self.read()? {
                return Err(TransportError::Closed);
            }
        }
    }

    /// Runs the handshake to its end.
    pub(super) fn handshake(&mut self) -> Result<(), TransportError> {
        loop {
            let progress = self.decrypt();
            // Also after an error: rustls has queued the alert that tells the peer why.
            let flushed = self.shared.flush_control();
            let progress = progress?;
            flushed?;
            if !self.shared.session().connection.is_handshaking() {
                return Ok(());
            }
            if progress == Progress::Closed || !self.read()? {
                return Err(TransportError::Closed);
            }
        }
    }

    /// Decrypts everything that is there. The lock is taken for it once.
    fn decrypt(&mut self) -> Result<Progress, TransportError> {
        let shared = self.shared.clone();
        let mut session = shared.session();
        loop {
            match self.decrypt_step(&mut session) {
                Ok(Progress::Again) => {}
                Ok(progress) => return Ok(progress),
                Err(error) => {
                    self.queue_alert(&mut session);
                    return Err(error);
                }
            }
        }
    }

    fn decrypt_step(&mut self, session: &mut Session) -> Result<Progress, TransportError> {
        let incoming = self.incoming.get_mut(self.start..self.end).unwrap_or_default();
        let Session { connection, control, .. } = session;
        connection.receive(incoming, &mut self.start, &mut self.plain, control)
    }

    /// After an error rustls may hold an alert that tells the peer why: it is the next thing to be encoded. Nobody may
    /// touch the connection after that, which rustls does not expect.
    fn queue_alert(&mut self, session: &mut Session) {
        // If there is none, the same error comes again.
        let _ = self.decrypt_step(session);
        session.failed = true;
    }

    /// Reads once; false at the end of the stream.
    fn read(&mut self) -> Result<bool, TransportError> {
        self.make_room();
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TransportError::HandshakeTimeout);
            }
            self.shared.socket.set_read_timeout(Some(left)).map_err(TransportError::Io)?;
        }
        let room = self.incoming.get_mut(self.end..).unwrap_or_default();
        match (&self.shared.socket).read(room) {
            Ok(count) => {
                self.end += count;
                Ok(count > 0)
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => Ok(true),
                ErrorKind::WouldBlock | ErrorKind::TimedOut if self.deadline.is_some() => {
                    Err(TransportError::HandshakeTimeout)
                }
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(TransportError::Silent(self.idle)),
                ErrorKind::ConnectionReset => Err(TransportError::Closed),
                _ => Err(TransportError::Io(error)),
            },
        }
    }

    /// Moves the rest of the ciphertext to the front, only here: once for every read, not for every record.
    fn make_room(&mut self) {
        self.incoming.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = match self.phase {
            Phase::Opening => OPENING_READ,
            Phase::Established => BULK_READ,
        };
        let wanted = read + LONGEST_RECORD;
        if self.incoming.len() < wanted {
            self.incoming.resize(wanted, 0);
        }
    }

    fn drop_consumed(&mut self) {
        let rest = self.plain.len() - self.position;
        self.plain.copy_within(self.position.., 0);
        self.plain.truncate(rest);
        self.position = 0;
    }
}
