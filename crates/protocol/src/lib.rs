//! The wire format of port 1500, protocol version 1.
//!
//! An agent and a replicator talk over one TLS connection per server. Everything on it is a *frame*: eight bytes of
//! header and a body whose length is checked against a limit before anything is allocated for it. A body is one
//! [`AgentMessage`] or one [`ReplicatorMessage`]; decoding borrows from the received bytes and never copies a payload.
//!
//! ```text
//!   agent                                   replicator
//!     | Hello (disks, digest key)               |
//!     |---------------------------------------->|  at most 64 KiB a frame until here
//!     |                 Welcome (high-water marks, window)
//!     |<----------------------------------------|
//!     | Data, Zero … Barrier(seq, progress)     |
//!     |---------------------------------------->|  writes, makes durable, notes the progress
//!     |                                Ack(seq) |
//!     |<----------------------------------------|
//!     | DigestRequest …                 Digests |  pass after pass, until nothing differs
//!     | Checkpoint(seq, epoch, …)      Ack(seq) |
//! ```
//!
//! This crate opens no sockets and no files. All integers are big-endian.

mod agent_message;
mod chunk;
mod codec;
mod digest;
mod error;
mod frame;
mod replicator_message;
mod units;
mod version;

pub use agent_message::{AgentMessage, BlockCodec, DataBlock, DiskOffer, DiskProgress, Hello, data_frame_prefix};
pub use chunk::{digest_chunk, is_zero};
pub use digest::{Digest, DigestRun, DigestRuns, DigestRunsBuilder, ZeroOrDigest};
pub use error::{ErrorCode, ProtocolError};
pub use frame::{
    FrameHeader, FrameKind, HEADER_LENGTH, MAX_BLOCK_LENGTH, MAX_BODY_LENGTH, MAX_OPENING_BODY_LENGTH, Phase,
};
pub use rehost_model::{Epoch, replication::Consistency};
pub use replicator_message::{DigestReply, DiskState, ReplicatorMessage, Welcome};
pub use units::{
    ByteCount, ByteOffset, DIGEST_CHUNK, DigestChunk, DigestId, DigestKey, DiskIndex, FINE_DIGEST_CHUNK, Lineage,
    MAX_DISKS, MAX_NAME_LENGTH, MAX_TEXT_LENGTH, Sequence, SessionId,
};
pub use version::ProtocolVersion;

#[cfg(test)]
mod tests;
