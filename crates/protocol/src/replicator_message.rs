//! What a replicator says.

use crate::{
    ByteCount, DigestChunk, DigestId, DigestRuns, DiskIndex, Epoch, ErrorCode, FrameKind, Lineage, MAX_DISKS,
    MAX_TEXT_LENGTH, ProtocolError, ProtocolVersion, Sequence,
    codec::{FrameWriter, Reader, check_limit},
};

/// A message from a replicator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicatorMessage<'a> {
    /// The answer to a hello: the session stands.
    Welcome(Welcome),
    /// Everything up to this barrier is durable.
    Ack {
        /// The barrier's number.
        seq: Sequence,
    },
    /// The answer to a digest request.
    Digests(DigestReply<'a>),
    /// The replicator is alive.
    KeepAlive,
    /// The session ends, and why.
    Error {
        /// For the agent to act on.
        code: ErrorCode,
        /// For a person to read; cut to [`MAX_TEXT_LENGTH`] bytes.
        message: &'a str,
    },
}

/// The terms of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version the replicator will speak.
    pub version: ProtocolVersion,
    /// Most bytes of disks the agent may have sent without an acknowledgement.
    pub window: ByteCount,
    /// Each side says something at least this often.
    pub keep_alive_milliseconds: u32,
    /// What is already there, for every disk of the hello.
    pub disks: Vec<DiskState>,
}

/// What the replicator durably has of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskState {
    /// Which disk.
    pub disk: DiskIndex,
    /// The initial sync has passed this many bytes.
    pub synced: ByteCount,
    /// The last checkpoint, or 0 for none.
    pub checkpoint: Epoch,
    /// What the replicator's record of the volume goes back to.
    pub lineage: Lineage,
}

/// Digests of the first part of a requested range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestReply<'a> {
    /// The request's number.
    pub id: DigestId,
    /// How many bytes from the request's offset on are covered; not 0.
    pub covered: ByteCount,
    /// How many bytes one digest covers: as in the request.
    pub chunk: DigestChunk,
    /// Their chunks.
    pub runs: DigestRuns<'a>,
}

impl<'a> ReplicatorMessage<'a> {
    /// Reads the body of a frame of type `kind`.
    ///
    /// # Errors
    /// [`ProtocolError`] for a body that is no such message; never panics.
    pub fn decode(kind: FrameKind, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(body);
        let message = match kind {
            FrameKind::Digests => return decode_digests(reader),
            FrameKind::Error => return decode_error(reader),
            FrameKind::Welcome => Self::Welcome(Welcome::decode(&mut reader)?),
            FrameKind::Ack => Self::Ack { seq: Sequence(reader.u64("an acknowledgement's number")?) },
            FrameKind::ReplicatorKeepAlive => Self::KeepAlive,
            other => return Err(ProtocolError::UnknownFrame(other.byte())),
        };
        reader.finish()?;
        Ok(message)
    }

    /// Appends the message as one frame to `out`.
    ///
    /// # Errors
    /// A field above its limit; `out` then ends in part of a frame and must not be sent.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let mut frame = FrameWriter::new(out, self.kind());
        match self {
            Self::Welcome(welcome) => welcome.encode(&mut frame)?,
            Self::Ack { seq } => frame.u64(seq.0),
            Self::Digests(reply) => {
                frame.u32(reply.id.0);
                frame.u64(reply.covered.0);
                frame.u8(reply.chunk.number());
                frame.bytes(reply.runs.as_bytes());
            }
            Self::KeepAlive => {}
            Self::Error { code, message } => {
                frame.u16(code.number());
                frame.bytes(prefix_of(message, MAX_TEXT_LENGTH).as_bytes());
            }
        }
        frame.finish()
    }

    fn kind(&self) -> FrameKind {
        match self {
            Self::Welcome(_) => FrameKind::Welcome,
            Self::Ack { .. } => FrameKind::Ack,
            Self::Digests(_) => FrameKind::Digests,
            Self::KeepAlive => FrameKind::ReplicatorKeepAlive,
            Self::Error { .. } => FrameKind::Error,
        }
    }
}

impl Welcome {
    fn encode(&self, frame: &mut FrameWriter<'_>) -> Result<(), ProtocolError> {
        frame.u16(self.version.number());
        frame.u64(self.window.0);
        frame.u32(self.keep_alive_milliseconds);
        check_limit("the disks", self.disks.len() as u64, MAX_DISKS as u64)?;
        frame.count_u8(self.disks.len(), "the disks")?;
        for disk in &self.disks {
            frame.u8(disk.disk.0);
            frame.u64(disk.synced.0);
            frame.u64(disk.checkpoint.0);
            frame.bytes(&disk.lineage.0);
        }
        Ok(())
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        let version = ProtocolVersion::from_number(reader.u16("the version")?)?;
        let window = ByteCount(reader.u64("the window")?);
        let keep_alive_milliseconds = reader.u32("the keep-alive interval")?;
        let count = reader.u8("the number of disks")?;
        check_limit("the disks", u64::from(count), MAX_DISKS as u64)?;
        let mut disks = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            disks.push(DiskState {
                disk: DiskIndex(reader.u8("a disk's index")?),
                synced: ByteCount(reader.u64("a disk's progress")?),
                checkpoint: Epoch(reader.u64("a disk's checkpoint")?),
                lineage: Lineage(reader.array("a volume's lineage")?),
            });
        }
        Ok(Self { version, window, keep_alive_milliseconds, disks })
    }
}

fn decode_digests(mut reader: Reader<'_>) -> Result<ReplicatorMessage<'_>, ProtocolError> {
    let id = DigestId(reader.u32("a digest reply's number")?);
    let covered = ByteCount(reader.u64("a digest reply's coverage")?);
    let chunk = DigestChunk::from_number(reader.u8("a digest reply's chunk")?)?;
    let runs = DigestRuns::parse(reader.rest(), covered, chunk)?;
    Ok(ReplicatorMessage::Digests(DigestReply { id, covered, chunk, runs }))
}

fn decode_error(mut reader: Reader<'_>) -> Result<ReplicatorMessage<'_>, ProtocolError> {
    let code = ErrorCode::from_number(reader.u16("an error's code")?);
    let text = reader.rest();
    check_limit("an error's text", text.len() as u64, MAX_TEXT_LENGTH as u64)?;
    let message = std::str::from_utf8(text).map_err(|_| ProtocolError::Invalid { what: "an error's text" })?;
    Ok(ReplicatorMessage::Error { code, message })
}

/// The longest prefix of at most `limit` bytes that ends between characters.
fn prefix_of(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or("")
}
