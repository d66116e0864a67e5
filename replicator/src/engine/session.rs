//! One agent's session, from its first byte to its last.

use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rehost_link::{
    pki_verify::PeerIdentity,
    transport::{self, Frame, KeepAlive, Receiver, Sender},
};
use rehost_model::{Epoch, ServerId};
use rehost_protocol::{
    AgentMessage, BlockCodec, ByteCount, ByteOffset, DataBlock, DigestChunk, DigestId, DigestReply, DiskIndex,
    DiskProgress, ErrorCode, Hello, MAX_BLOCK_LENGTH, ReplicatorMessage, Sequence,
};

use super::{
    accept::Stranger,
    admission::{self, Admission, Disk, Disks},
    applier::{Applier, Operation},
    committer::{Commit, Committer},
    digests::Digester,
    journal::Committed,
    refusal::{Ended, Refusal},
    registry::{Registry, SessionNumber},
};

/// How long an agent may take to hear why its session ends.
const LINGER: Duration = Duration::from_secs(2);

/// Serves a connection until it ends.
pub(super) fn serve(registry: &Arc<Registry>, socket: TcpStream, stranger: Stranger) {
    let accepted = transport::accept(socket, &registry.tls(), &registry.config.timeouts);
    let (sender, mut receiver, peer) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => return stranger.refuse(&error),
    };
    let ended = match Session::open(registry, &sender, &mut receiver, &peer) {
        Ok(session) => {
            tracing::info!(server = %peer.server, address = %stranger.peer(), "session begins");
            drop(stranger);
            session.run(&mut receiver)
        }
        Err(ended) => {
            stranger.refuse(&format_args!("{}: {ended}", peer.server));
            ended
        }
    };
    tracing::info!(server = %peer.server, %ended, "session ended");
    if let Ended::Refused(refusal) = &ended {
        send_error(&sender, refusal);
        receiver.drain(LINGER);
    }
    sender.shutdown();
}

/// Tells the agent why its session ends, and that nothing more will come.
pub(super) fn send_error(sender: &Sender, refusal: &Refusal) {
    let message = ReplicatorMessage::Error { code: refusal.code, message: &refusal.message };
    let mut frame = Vec::new();
    if message.encode(&mut frame).is_ok() && sender.send(&[&frame]).is_ok() {
        sender.finish();
    }
}

/// A session that stands. Its parts end in the order in which they are declared.
struct Session {
    keep_alive: KeepAlive,
    applier: Applier,
    entered: Entered,
    disks: Arc<Disks>,
    sender: Sender,
    digester: Digester,
    unpacker: Unpacker,
    received: Arc<AtomicU64>,
    /// A checkpoint is, or may be, held: ask before anything is applied.
    held: bool,
    /// A reply, before it is sent.
    reply: Vec<u8>,
}

impl Session {
    /// Hello, the checks, and welcome.
    fn open(
        registry: &Arc<Registry>,
        sender: &Sender,
        receiver: &mut Receiver,
        peer: &PeerIdentity,
    ) -> Result<Self, Ended> {
        let frame = receiver.receive()?;
        let AgentMessage::Hello(hello) = AgentMessage::decode(frame.kind, frame.body)? else {
            return Err(Refusal::new(ErrorCode::Protocol, "the first frame is no hello").into());
        };
        let session = Self::admit(registry, sender, peer, &hello).inspect_err(|ended| {
            if let Ended::Refused(refusal) = ended {
                registry.note(&peer.server, refusal.reported());
            }
        })?;
        receiver.establish()?;
        Ok(session)
    }

    fn admit(registry: &Arc<Registry>, sender: &Sender, peer: &PeerIdentity, hello: &Hello<'_>) -> Result<Self, Ended> {
        // Only who may come in replaces the session before it; and what that one made durable counts.
        admission::authorise(registry, peer, hello)?;
        let entered = Entered::enter(registry, &peer.server, sender)?;
        let Admission { disks, received, held } = admission::admit(registry, peer, hello)?;
        let mut welcome = Vec::new();
        ReplicatorMessage::Welcome(admission::welcome(registry, &disks)).encode(&mut welcome)?;
        sender.send(&[&welcome])?;
        let server = peer.server.clone();
        let committer = Committer::start(registry.clone(), server, disks.clone(), sender.clone());
        let committer = committer.map_err(|error| no_thread(&error))?;
        let applier = Applier::start(disks.clone(), sender.clone(), committer).map_err(|error| no_thread(&error))?;
        let keep_alive = start_keep_alive(registry, sender)?;
        Ok(Self {
            keep_alive,
            applier,
            entered,
            disks,
            sender: sender.clone(),
            digester: Digester::new(hello.digest_key),
            unpacker: Unpacker::default(),
            received,
            held,
            reply: Vec::new(),
        })
    }

    fn run(mut self, receiver: &mut Receiver) -> Ended {
        let ended = self.receive(receiver);
        if matches!(ended, Ended::Lost(_)) {
            self.sender.shutdown();
        }
        drop(self.keep_alive);
        self.applier.finish();
        // A failure to write or to commit ends the connection; it, and not the connection's end, is the reason.
        let ended = self.applier.failure().map_or(ended, Ended::Refused);
        if let Ended::Refused(refusal) = &ended {
            self.entered.trouble = Some(refusal.clone());
        }
        ended
    }

    fn receive(&mut self, receiver: &mut Receiver) -> Ended {
        loop {
            let handled = match receiver.receive() {
                Ok(frame) => self.handle(&frame),
                Err(error) => return error.into(),
            };
            match handled {
                Ok(true) => {}
                Ok(false) => return Ended::Bye,
                Err(ended) => return ended,
            }
            if let Some(refusal) = self.applier.failure() {
                return refusal.into();
            }
            // Before waiting: what is here is applied meanwhile.
            if !receiver.has_frame()
                && let Err(refusal) = self.applier.flush()
            {
                return refusal.into();
            }
        }
    }

    /// False when the agent says bye.
    fn handle(&mut self, frame: &Frame<'_>) -> Result<bool, Ended> {
        match AgentMessage::decode(frame.kind, frame.body)? {
            AgentMessage::Data(block) => self.write(&block)?,
            AgentMessage::Zero { disk, offset, length } => self.zero(disk, offset, length)?,
            AgentMessage::Barrier { seq, progress } => self.barrier(seq, progress)?,
            AgentMessage::Checkpoint { seq, epoch, consistency } => {
                self.checkpoint(seq, Committed { epoch, consistency })?;
            }
            AgentMessage::DigestRequest { id, disk, offset, length, chunk } => {
                self.digest(id, disk, (offset, length), chunk)?;
            }
            AgentMessage::KeepAlive => {}
            AgentMessage::Bye => return Ok(false),
            AgentMessage::Hello(_) => {
                return Err(Refusal::new(ErrorCode::Protocol, "a second hello").into());
            }
        }
        Ok(true)
    }

    fn write(&mut self, block: &DataBlock<'_>) -> Result<(), Refusal> {
        self.wait_until_open()?;
        let disk = find(&self.disks, block.disk)?;
        disk.volume.range(block.offset, ByteCount(block.raw_length.into()))?;
        let (unpacker, length) = (&mut self.unpacker, block.raw_length as usize);
        self.applier.write((block.disk, block.offset), length, |bytes| unpacker.unpack(block, bytes))?;
        self.received.fetch_add(block.payload.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&mut self, disk: DiskIndex, offset: ByteOffset, length: ByteCount) -> Result<(), Refusal> {
        self.wait_until_open()?;
        find(&self.disks, disk)?.volume.range(offset, length)?;
        self.applier.apply(Operation::Zero { disk, offset, length })
    }

    fn barrier(&mut self, seq: Sequence, progress: Vec<DiskProgress>) -> Result<(), Refusal> {
        self.wait_until_open()?;
        for mark in &progress {
            let disk = find(&self.disks, mark.disk)?;
            disk.volume.range(ByteOffset(0), ByteCount(mark.high_water.0))?;
        }
        self.applier.apply(Operation::Commit(Commit { seq, progress, checkpoint: None }))
    }

    fn checkpoint(&mut self, seq: Sequence, checkpoint: Committed) -> Result<(), Refusal> {
        self.wait_until_open()?;
        if checkpoint.epoch > Epoch::default() {
            self.held = true;
            self.entered.registry.close(&self.entered.server, checkpoint.epoch);
        }
        let checkpoint = Some(checkpoint);
        self.applier.apply(Operation::Commit(Commit { seq, progress: Vec::new(), checkpoint }))
    }

    /// Reading disturbs no hold.
    fn digest(
        &mut self,
        id: DigestId,
        disk: DiskIndex,
        (offset, length): (ByteOffset, ByteCount),
        chunk: DigestChunk,
    ) -> Result<(), Ended> {
        self.applier.wait_until_applied()?;
        let disk = find(&self.disks, disk)?;
        let (runs, covered) = self.digester.digest(&self.disks.view(disk), offset, length, chunk)?;
        let runs = runs.runs(covered, chunk)?;
        self.reply.clear();
        ReplicatorMessage::Digests(DigestReply { id, covered, chunk, runs }).encode(&mut self.reply)?;
        self.sender.send(&[&self.reply])?;
        Ok(())
    }

    fn wait_until_open(&mut self) -> Result<(), Refusal> {
        if self.held {
            let Entered { registry, server, number, .. } = &self.entered;
            registry.wait_until_open(server, *number)?;
            self.held = false;
        }
        Ok(())
    }
}

/// A session's entry in the registry; it leaves whatever happens.
struct Entered {
    registry: Arc<Registry>,
    server: ServerId,
    number: SessionNumber,
    trouble: Option<Refusal>,
}

impl Entered {
    fn enter(registry: &Arc<Registry>, server: &ServerId, sender: &Sender) -> Result<Self, Refusal> {
        let number = registry.enter(server, sender)?;
        Ok(Self { registry: registry.clone(), server: server.clone(), number, trouble: None })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let trouble = self.trouble.as_ref().and_then(Refusal::reported);
        self.registry.leave(&self.server, self.number, trouble);
    }
}

/// Unpacks blocks.
#[derive(Default)]
struct Unpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unpacker {
    /// Appends to `target`.
    fn unpack(&mut self, block: &DataBlock<'_>, target: &mut Vec<u8>) -> Result<(), Refusal> {
        match block.codec {
            BlockCodec::Raw => {
                target.extend_from_slice(block.payload);
                Ok(())
            }
            BlockCodec::Zstd => self.unpack_zstd(block, target),
        }
    }

    fn unpack_zstd(&mut self, block: &DataBlock<'_>, target: &mut Vec<u8>) -> Result<(), Refusal> {
        let broken = |reason: &str| {
            Refusal::new(ErrorCode::Protocol, format!("a block at {} cannot be unpacked: {reason}", block.offset))
        };
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(|e| broken(&e.to_string()))?),
        };
        let length = usize::try_from(block.raw_length).unwrap_or(usize::MAX).min(MAX_BLOCK_LENGTH);
        let start = target.len();
        target.resize(start + length, 0);
        let unpacked = zstd.decompress_to_buffer(block.payload, target.get_mut(start..).unwrap_or_default());
        match unpacked {
            Ok(count) if count == length => Ok(()),
            Ok(_) => Err(broken("it is shorter than it says")),
            Err(error) => Err(broken(&error.to_string())),
        }
    }
}

pub(super) fn find(disks: &Disks, index: DiskIndex) -> Result<&Disk, Refusal> {
    disks.get(index).ok_or_else(|| {
        let text = format!("disk {index} was not offered in this session");
        Refusal::new(ErrorCode::NotAuthorised, text)
    })
}

fn start_keep_alive(registry: &Registry, sender: &Sender) -> Result<KeepAlive, Ended> {
    let mut frame = Vec::new();
    ReplicatorMessage::KeepAlive.encode(&mut frame)?;
    let started = KeepAlive::start(sender.clone(), frame, registry.config.keep_alive);
    Ok(started.map_err(|error| no_thread(&error))?)
}

fn no_thread(error: &std::io::Error) -> Refusal {
    Refusal::new(ErrorCode::Busy, format!("no thread can be started: {error}"))
}
