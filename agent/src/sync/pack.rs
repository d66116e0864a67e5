//! Packs blocks when the link is what is short.
//!
//! The outbox tells how long it was busy sending and how long it was busy packing. As long as bytes leave faster than
//! [`SLOW_LINK`], packing could only cost CPU time; below it, zstd at level 1 packs several times faster than the link
//! drains. Once packing takes most of the time, the CPU is what is short, and blocks travel as they are again.
//! Blocks whose sample does not shrink are never packed.

use std::time::Duration;

/// Bytes a second that leave a core enough time to pack: about 1 Gbit/s.
const SLOW_LINK: f64 = 120e6;
/// The link is measured over this many bytes on the wire.
const SAMPLE_BYTES: usize = 2 << 20;
/// So many slow samples in a row make a slow link: one alone is a busy machine, or a replicator that flushes.
const SLOW_SAMPLES: u32 = 4;
/// The part of a block that is tried first.
const TRIAL: usize = 16 * 1024;
const LEVEL: i32 = 1;

/// Decides, and packs.
pub(super) struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
    active: bool,
    slow_samples: u32,
    wire_bytes: usize,
    sending: Duration,
    packing: Duration,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self {
            zstd: None,
            packed: Vec::new(),
            active: false,
            slow_samples: 0,
            wire_bytes: 0,
            sending: Duration::ZERO,
            packing: Duration::ZERO,
        }
    }

    /// Notes that `wire_bytes` took `time` to send; a limit on the link counts as a slow link.
    pub(super) fn sent(&mut self, wire_bytes: usize, time: Duration) {
        self.wire_bytes += wire_bytes;
        self.sending += time;
        if self.wire_bytes >= SAMPLE_BYTES {
            self.decide();
        }
    }

    /// The block packed, if that is worth it.
    pub(super) fn pack(&mut self, block: &[u8]) -> Option<&[u8]> {
        if !self.active {
            return None;
        }
        let started = std::time::Instant::now();
        let length = self.try_pack(block);
        self.packing += started.elapsed();
        length.and_then(|length| self.packed.get(..length))
    }

    fn try_pack(&mut self, block: &[u8]) -> Option<usize> {
        if self.zstd.is_none() {
            // Without memory for a context, blocks travel as they are.
            self.zstd = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        let zstd = self.zstd.as_mut()?;
        let middle = block.len().saturating_sub(TRIAL) / 2;
        let trial = block.get(middle..middle + TRIAL).filter(|_| block.len() > 4 * TRIAL);
        if let Some(trial) = trial {
            pack_into(zstd, trial, &mut self.packed)?;
        }
        pack_into(zstd, block, &mut self.packed)
    }

    #[expect(clippy::cast_precision_loss, reason = "a sample is a few megabytes")]
    fn decide(&mut self) {
        let seconds = self.sending.as_secs_f64();
        let slow = SLOW_LINK * seconds > self.wire_bytes as f64;
        self.slow_samples = if slow { self.slow_samples.saturating_add(1) } else { 0 };
        self.active = self.slow_samples >= SLOW_SAMPLES && self.packing <= 2 * self.sending;
        (self.wire_bytes, self.sending, self.packing) = (0, Duration::ZERO, Duration::ZERO);
    }
}

/// Packs into `target`; none unless at least a tenth is saved.
fn pack_into(zstd: &mut zstd::bulk::Compressor<'_>, bytes: &[u8], target: &mut Vec<u8>) -> Option<usize> {
    let most = bytes.len() - bytes.len() / 10;
    if target.len() < most {
        target.resize(most, 0);
    }
    // What does not fit into so little is not worth packing.
    zstd.compress_to_buffer(bytes, target.get_mut(..most)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow() -> Packer {
        let mut packer = Packer::new();
        (0..SLOW_SAMPLES).for_each(|_| packer.sent(SAMPLE_BYTES, Duration::from_secs(1)));
        packer
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn a_fast_link_never_packs_and_a_slow_one_does() {
        let mut packer = Packer::new();
        let text = b"the same again ".repeat(10_000);
        assert!(packer.pack(&text).is_none());
        packer.sent(SAMPLE_BYTES, Duration::from_millis(1));
        assert!(packer.pack(&text).is_none());
        let mut packer = slow();
        let packed = packer.pack(&text).unwrap();
        assert_eq!(zstd::bulk::decompress(packed, text.len()).unwrap(), text);
    }

    #[test]
    fn a_moment_of_slowness_is_no_slow_link() {
        let mut packer = Packer::new();
        for _ in 0..10 {
            (1..SLOW_SAMPLES).for_each(|_| packer.sent(SAMPLE_BYTES, Duration::from_secs(1)));
            assert!(!packer.active);
            packer.sent(SAMPLE_BYTES, Duration::from_millis(1));
        }
    }

    #[test]
    fn what_does_not_shrink_travels_as_it_is() {
        let mut packer = slow();
        assert!(packer.pack(&noise(256 * 1024)).is_none());
        assert!(packer.pack(&noise(5000)).is_none());
    }

    #[test]
    fn a_short_cpu_ends_the_packing() {
        let mut packer = slow();
        packer.packing = Duration::from_secs(5);
        packer.sent(SAMPLE_BYTES, Duration::from_secs(1));
        assert!(!packer.active);
    }
}
