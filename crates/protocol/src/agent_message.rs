//! What an agent says.

use crate::{
    ByteCount, ByteOffset, Consistency, DigestChunk, DigestId, DigestKey, DiskIndex, Epoch, FrameHeader, FrameKind,
    HEADER_LENGTH, MAX_BLOCK_LENGTH, MAX_DISKS, ProtocolError, ProtocolVersion, Sequence, SessionId,
    codec::{FrameWriter, Reader, check_limit},
};

/// Bytes of a data frame's fields before its payload.
const DATA_FIELDS: usize = 16;

/// A message from an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentMessage<'a> {
    /// The first frame of a connection.
    Hello(Hello<'a>),
    /// Bytes of a disk.
    Data(DataBlock<'a>),
    /// A range that is zero.
    Zero {
        /// Which disk.
        disk: DiskIndex,
        /// Where it begins.
        offset: ByteOffset,
        /// How many bytes are zero; not 0.
        length: ByteCount,
    },
    /// Asks for an acknowledgement once everything before it is durable.
    Barrier {
        /// The number the acknowledgement repeats.
        seq: Sequence,
        /// How far each disk's initial sync has come.
        progress: Vec<DiskProgress>,
    },
    /// Everything before it is one state of all disks; acknowledged when the volumes are it.
    Checkpoint {
        /// The number the acknowledgement repeats.
        seq: Sequence,
        /// The checkpoint the control plane asked for, at which the volumes are then held still; 0 for one that nobody
        /// asked for, which is not held.
        epoch: Epoch,
        /// What is known of that state.
        consistency: Consistency,
    },
    /// Asks for the digests of a range as it is after everything before this message.
    DigestRequest {
        /// The number the reply repeats.
        id: DigestId,
        /// Which disk.
        disk: DiskIndex,
        /// Where it begins; a multiple of the chunk.
        offset: ByteOffset,
        /// How many bytes; not 0. Only the last chunk of a disk may be partial.
        length: ByteCount,
        /// How many bytes one digest covers.
        chunk: DigestChunk,
    },
    /// The agent is alive.
    KeepAlive,
    /// The agent ends the session on purpose.
    Bye,
}

/// Who connects, and what it wants to replicate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The version the agent speaks.
    pub version: ProtocolVersion,
    /// The source server's id; the certificate must say the same.
    pub server: &'a str,
    /// Random name of this session.
    pub session: SessionId,
    /// Key of this session's digests.
    pub digest_key: DigestKey,
    /// The disks, each index once; 1 to [`MAX_DISKS`].
    pub disks: Vec<DiskOffer<'a>>,
}

/// One disk of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOffer<'a> {
    /// Its number in this session.
    pub disk: DiskIndex,
    /// The staging volume it belongs to.
    pub volume: &'a str,
    /// Its size.
    pub size: ByteCount,
}

/// Bytes of a disk, as they travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataBlock<'a> {
    /// Which disk.
    pub disk: DiskIndex,
    /// Where the first byte belongs.
    pub offset: ByteOffset,
    /// How the payload is packed.
    pub codec: BlockCodec,
    /// Bytes after unpacking; 1 to [`MAX_BLOCK_LENGTH`].
    pub raw_length: u32,
    /// The packed bytes, never more than `raw_length`.
    pub payload: &'a [u8],
}

/// How the payload of a data block is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockCodec {
    /// Not at all.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// How far a disk's initial sync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskProgress {
    /// Which disk.
    pub disk: DiskIndex,
    /// Everything below this offset was sent at least once.
    pub high_water: ByteOffset,
}

impl<'a> AgentMessage<'a> {
    /// Reads the body of a frame of type `kind`.
    ///
    /// # Errors
    /// [`ProtocolError`] for a body that is no such message; never panics.
    pub fn decode(kind: FrameKind, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(body);
        let message = match kind {
            FrameKind::Data => return DataBlock::decode(reader).map(Self::Data),
            FrameKind::Hello => Self::Hello(Hello::decode(&mut reader)?),
            FrameKind::Zero => decode_zero(&mut reader)?,
            FrameKind::Barrier => decode_barrier(&mut reader)?,
            FrameKind::Checkpoint => decode_checkpoint(&mut reader)?,
            FrameKind::DigestRequest => decode_digest_request(&mut reader)?,
            FrameKind::AgentKeepAlive => Self::KeepAlive,
            FrameKind::Bye => Self::Bye,
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
            Self::Hello(hello) => hello.encode(&mut frame)?,
            Self::Data(block) => {
                frame.bytes(&block.fields()?);
                frame.bytes(block.payload);
            }
            Self::Zero { disk, offset, length } => {
                frame.u8(disk.0);
                frame.u64(offset.0);
                frame.u64(length.0);
            }
            Self::Barrier { seq, progress } => encode_barrier(&mut frame, *seq, progress)?,
            Self::Checkpoint { seq, epoch, consistency } => {
                frame.u64(seq.0);
                frame.u64(epoch.0);
                frame.u8(consistency_number(*consistency));
            }
            Self::DigestRequest { id, disk, offset, length, chunk } => {
                frame.u32(id.0);
                frame.u8(disk.0);
                frame.u64(offset.0);
                frame.u64(length.0);
                frame.u8(chunk.number());
            }
            Self::KeepAlive | Self::Bye => {}
        }
        frame.finish()
    }

    fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::Data(_) => FrameKind::Data,
            Self::Zero { .. } => FrameKind::Zero,
            Self::Barrier { .. } => FrameKind::Barrier,
            Self::Checkpoint { .. } => FrameKind::Checkpoint,
            Self::DigestRequest { .. } => FrameKind::DigestRequest,
            Self::KeepAlive => FrameKind::AgentKeepAlive,
            Self::Bye => FrameKind::Bye,
        }
    }
}

/// The bytes that precede a data block's payload on the wire: header and fields. A sender writes them and then the
/// payload from where it lies, which saves a copy of every block.
///
/// # Errors
/// A block that is empty, longer than [`MAX_BLOCK_LENGTH`], or packed to more than it was.
pub fn data_frame_prefix(block: &DataBlock<'_>) -> Result<[u8; HEADER_LENGTH + DATA_FIELDS], ProtocolError> {
    let fields = block.fields()?;
    let length = u32::try_from(DATA_FIELDS + block.payload.len())
        .map_err(|_| ProtocolError::Invalid { what: "a block's payload" })?;
    let header = FrameHeader { kind: FrameKind::Data, length };
    let mut prefix = [0; HEADER_LENGTH + DATA_FIELDS];
    let (head, tail) = prefix.split_at_mut(HEADER_LENGTH);
    head.copy_from_slice(&header.to_bytes());
    tail.copy_from_slice(&fields);
    Ok(prefix)
}

impl<'a> DataBlock<'a> {
    /// Fields: disk u8, codec u8, reserved u16, raw length u32, offset u64; the payload follows.
    fn fields(&self) -> Result<[u8; DATA_FIELDS], ProtocolError> {
        self.check()?;
        let mut fields = [0; DATA_FIELDS];
        fields[0] = self.disk.0;
        fields[1] = match self.codec {
            BlockCodec::Raw => 0,
            BlockCodec::Zstd => 1,
        };
        fields[4..8].copy_from_slice(&self.raw_length.to_be_bytes());
        fields[8..].copy_from_slice(&self.offset.0.to_be_bytes());
        Ok(fields)
    }

    fn decode(mut reader: Reader<'a>) -> Result<Self, ProtocolError> {
        let disk = DiskIndex(reader.u8("a block's disk")?);
        let codec = match reader.u8("a block's codec")? {
            0 => BlockCodec::Raw,
            1 => BlockCodec::Zstd,
            _ => {
                return Err(ProtocolError::Invalid { what: "a block's codec" });
            }
        };
        if reader.u16("a block's reserved bytes")? != 0 {
            return Err(ProtocolError::Invalid { what: "a block's reserved bytes" });
        }
        let raw_length = reader.u32("a block's length")?;
        let offset = ByteOffset(reader.u64("a block's offset")?);
        let block = Self { disk, offset, codec, raw_length, payload: reader.rest() };
        block.check()?;
        Ok(block)
    }

    fn check(&self) -> Result<(), ProtocolError> {
        let raw = u64::from(self.raw_length);
        check_limit("a block", raw, MAX_BLOCK_LENGTH as u64)?;
        check_limit("a block's payload", self.payload.len() as u64, raw)?;
        let exact = self.codec != BlockCodec::Raw || self.payload.len() as u64 == raw;
        if self.payload.is_empty() || !exact || self.offset.0.checked_add(raw).is_none() {
            return Err(ProtocolError::Invalid { what: "a block's length" });
        }
        Ok(())
    }
}

impl<'a> Hello<'a> {
    fn encode(&self, frame: &mut FrameWriter<'_>) -> Result<(), ProtocolError> {
        frame.u16(self.version.number());
        frame.name(self.server, "the server's id")?;
        frame.bytes(&self.session.0);
        frame.bytes(&self.digest_key.0);
        check_limit("the disks", self.disks.len() as u64, MAX_DISKS as u64)?;
        frame.count_u8(self.disks.len(), "the disks")?;
        for offer in &self.disks {
            frame.u8(offer.disk.0);
            frame.name(offer.volume, "a volume's id")?;
            frame.u64(offer.size.0);
        }
        Ok(())
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, ProtocolError> {
        let version = ProtocolVersion::from_number(reader.u16("the version")?)?;
        let server = reader.name("the server's id")?;
        let session = SessionId(reader.array("the session's id")?);
        let digest_key = DigestKey(reader.array("the digest key")?);
        let count = disk_count(reader)?;
        let mut disks: Vec<DiskOffer<'a>> = Vec::with_capacity(count);
        for _ in 0..count {
            let disk = DiskIndex(reader.u8("a disk's index")?);
            if disks.iter().any(|other| other.disk == disk) {
                return Err(ProtocolError::Invalid { what: "a disk's index" });
            }
            disks.push(DiskOffer {
                disk,
                volume: reader.name("a volume's id")?,
                size: ByteCount(reader.u64("a disk's size")?),
            });
        }
        if disks.is_empty() {
            return Err(ProtocolError::Invalid { what: "the disks" });
        }
        Ok(Self { version, server, session, digest_key, disks })
    }
}

fn disk_count(reader: &mut Reader<'_>) -> Result<usize, ProtocolError> {
    let count = reader.u8("the number of disks")?;
    check_limit("the disks", u64::from(count), MAX_DISKS as u64)?;
    Ok(usize::from(count))
}

fn decode_zero<'a>(reader: &mut Reader<'a>) -> Result<AgentMessage<'a>, ProtocolError> {
    let disk = DiskIndex(reader.u8("a zero run's disk")?);
    let (offset, length) = reader.range("a zero run")?;
    Ok(AgentMessage::Zero { disk, offset, length })
}

fn encode_barrier(frame: &mut FrameWriter<'_>, seq: Sequence, progress: &[DiskProgress]) -> Result<(), ProtocolError> {
    frame.u64(seq.0);
    check_limit("the disks", progress.len() as u64, MAX_DISKS as u64)?;
    frame.count_u8(progress.len(), "the disks")?;
    for disk in progress {
        frame.u8(disk.disk.0);
        frame.u64(disk.high_water.0);
    }
    Ok(())
}

fn decode_barrier<'a>(reader: &mut Reader<'a>) -> Result<AgentMessage<'a>, ProtocolError> {
    let seq = Sequence(reader.u64("a barrier's number")?);
    let count = disk_count(reader)?;
    let mut progress = Vec::with_capacity(count);
    for _ in 0..count {
        progress.push(DiskProgress {
            disk: DiskIndex(reader.u8("a barrier's disk")?),
            high_water: ByteOffset(reader.u64("a barrier's progress")?),
        });
    }
    Ok(AgentMessage::Barrier { seq, progress })
}

fn decode_checkpoint<'a>(reader: &mut Reader<'a>) -> Result<AgentMessage<'a>, ProtocolError> {
    let seq = Sequence(reader.u64("a checkpoint's number")?);
    let epoch = Epoch(reader.u64("a checkpoint's epoch")?);
    let consistency = match reader.u8("a checkpoint's consistency")? {
        0 => Consistency::None,
        1 => Consistency::Frozen,
        2 => Consistency::Quiescent,
        _ => return Err(ProtocolError::Invalid { what: "a checkpoint's consistency" }),
    };
    Ok(AgentMessage::Checkpoint { seq, epoch, consistency })
}

fn consistency_number(consistency: Consistency) -> u8 {
    match consistency {
        Consistency::None => 0,
        Consistency::Frozen => 1,
        Consistency::Quiescent => 2,
    }
}

fn decode_digest_request<'a>(reader: &mut Reader<'a>) -> Result<AgentMessage<'a>, ProtocolError> {
    let id = DigestId(reader.u32("a digest request's number")?);
    let disk = DiskIndex(reader.u8("a digest request's disk")?);
    let (offset, length) = reader.range("a digest request")?;
    let chunk = DigestChunk::from_number(reader.u8("a digest request's chunk")?)?;
    if !offset.0.is_multiple_of(chunk.bytes()) {
        return Err(ProtocolError::Invalid { what: "a digest request's offset" });
    }
    Ok(AgentMessage::DigestRequest { id, disk, offset, length, chunk })
}
