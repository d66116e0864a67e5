//! What changed on a disk since its copy was made.
//!
//! A tracker marks whole *granules* of a disk when something is written to them. It has two sets of marks:
//!
//! ```text
//!   a write completes ──> live ── collect(pass) ──> pending ── settle(range, pass) ──> (on the volume)
//! ```
//! *Live* marks are set while the agent looks elsewhere. [`DiskTracker::collect`] moves them to *pending*, each with the
//! number of the pass that collected it; the agent reads and sends what is pending, and [`DiskTracker::settle`]s it when the
//! replicator has made it durable. A granule that was written again meanwhile was collected by a later pass and stays
//! pending. Where the kernel can keep both sets for us (pinned eBPF maps), they survive the agent: whatever is marked in
//! either is to be sent, and nothing else.
//!
//! Marks are worth nothing without knowing since when they were kept: that is the *lineage* that a tracker
//! [covers](DiskTracker::cover), a name which the replicator gives to what it has of the volume.

mod assembler;
mod btf;
mod device;
mod ebpf;
mod ftrace;
mod geometry;
mod marks;
mod meta;
mod mounts;
mod open;
mod pins;
mod program;

use std::path::PathBuf;

use rehost_model::{ServerId, VolumeId, replication::TrackerKind};
use rehost_protocol::Lineage;

pub use device::DiskIdentity;
pub use open::{Opened, forget, forget_volume, kept_volumes, open, open_at_best};

/// A disk that is to be tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedDisk {
    /// A whole block device, such as `/dev/sda`; anything else cannot be tracked.
    pub path: PathBuf,
    /// The staging volume of its copy: names what is pinned.
    pub volume: VolumeId,
    /// Its size, in bytes.
    pub size_bytes: u64,
}

/// Where a tracker keeps what must survive the agent.
#[derive(Debug, Clone)]
pub struct TrackerOptions {
    /// The source server: what is pinned lies under its name.
    pub server: ServerId,
    /// Where bpffs is (or will be) mounted, by default `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// Bytes that the marks of one disk may take, twice: those that are set, and those that were collected. Decides the granule of a
    /// disk that was not tracked before.
    pub map_bytes: u64,
}

/// A part of a disk, in bytes: whole granules, except at the disk's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; not 0.
    pub length: u64,
}

impl ByteRange {
    /// The first byte after it.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// The number of a pass. It goes round: only "this one" and "another one" are told apart, and a pass must be settled or
/// collected anew before its number comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass(std::num::NonZeroU8);

impl Pass {
    /// The first pass. What an earlier agent left pending counts as collected by it.
    pub const FIRST: Self = Self(std::num::NonZeroU8::MIN);

    /// The pass after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(std::num::NonZeroU8::MIN))
    }

    /// As it stands in a map; never 0, which means "not pending".
    #[must_use]
    pub fn number(self) -> u8 {
        self.0.get()
    }
}

/// Marks may be missing: everything must be compared, and the lineage covered anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("changes of {disk} may have been missed ({reason}): it is compared by digests")]
pub struct MarksLost {
    /// The disk's path.
    pub disk: String,
    /// What happened.
    pub reason: String,
}

/// Marks what is written to one disk.
pub trait DiskTracker: Send {
    /// How it does so.
    fn kind(&self) -> TrackerKind;

    /// Bytes that one mark stands for: a power of two, at least 4096.
    fn granule_bytes(&self) -> u64;

    /// Whether every difference between the disk and the volume of this lineage, below the volume's high-water mark, is
    /// marked.
    fn covers(&self, lineage: &Lineage) -> bool;

    /// From now on it does. To be called when nothing is on the volume yet, or when a comparison of everything that began
    /// after this tracker was opened has been made durable.
    fn cover(&mut self, lineage: &Lineage);

    /// From now on it covers nothing: marks may be thrown away.
    fn uncover(&mut self);

    /// Moves every live mark to pending, as collected by `pass`. What is read after this is as new as the mark, or newer.
    ///
    /// # Errors
    /// [`MarksLost`], and the tracker covers nothing any more.
    fn collect(&mut self, pass: Pass) -> Result<(), MarksLost>;

    /// Everything pending, in ascending order, neighbours joined.
    fn pending(&self) -> Vec<ByteRange>;

    /// What is pending in `range` since `pass` is not pending any more: it is durable on the volume.
    fn settle(&mut self, range: ByteRange, pass: Pass);

    /// Whether nothing was written since the last [`DiskTracker::collect`].
    ///
    /// # Errors
    /// [`MarksLost`], and the tracker covers nothing any more.
    fn is_quiet(&mut self) -> Result<bool, MarksLost>;

    /// An estimate of what is marked, live and pending, in bytes; cheap enough to be asked every second.
    fn backlog_bytes(&self) -> u64;
}
