//! Brings what a journal holds to the volumes: in the order of their offsets, neighbours together.

use rehost_model::VolumeId;

use super::{
    index::{Extent, Extents, Source},
    replay::Committed,
};
use crate::engine::refusal::Refusal;

/// Neighbours are written together up to this many bytes.
const MOST_TOGETHER: usize = 1 << 20;

/// What a journal is applied to: volumes and the records beside them.
pub(in crate::engine) trait Volumes {
    fn write(&mut self, volume: &VolumeId, offset: u64, bytes: &[u8]) -> Result<(), Refusal>;
    fn zero(&mut self, volume: &VolumeId, offset: u64, length: u64) -> Result<(), Refusal>;
    /// Makes durable what was written.
    fn flush(&mut self) -> Result<(), Refusal>;
    /// Records durably what the volumes are.
    fn record(&mut self, what: Recorded) -> Result<(), Refusal>;
}

/// What is recorded of the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Recorded {
    /// They are this checkpoint.
    Checkpoint(Committed),
    /// They are about to be written to, and are no checkpoint any more.
    Inconsistent,
}

/// Applies the changes of one volume; `read` gives the body of the record at a position.
pub(super) fn apply(
    volumes: &mut dyn Volumes,
    volume: &VolumeId,
    extents: &Extents,
    mut read: impl FnMut(u64, Extent, &mut Vec<u8>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut run = Run { volume, start: 0, bytes: Vec::new() };
    for (offset, extent) in extents.iter() {
        match extent.source {
            Source::Zero => {
                run.write(volumes)?;
                volumes.zero(volume, offset, extent.length)?;
            }
            Source::Record { position, .. } => {
                if !run.continues(offset, extent.length) {
                    run.write(volumes)?;
                    run.start = offset;
                }
                read(position, extent, &mut run.bytes)?;
            }
        }
    }
    run.write(volumes)
}

/// Bytes that are written together.
struct Run<'a> {
    volume: &'a VolumeId,
    start: u64,
    bytes: Vec<u8>,
}

impl Run<'_> {
    fn continues(&self, offset: u64, length: u64) -> bool {
        let have = self.bytes.len() as u64;
        have > 0 && self.start + have == offset && have + length <= MOST_TOGETHER as u64
    }

    fn write(&mut self, volumes: &mut dyn Volumes) -> Result<(), Refusal> {
        if !self.bytes.is_empty() {
            volumes.write(self.volume, self.start, &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}
