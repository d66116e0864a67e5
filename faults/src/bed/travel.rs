//! How much has travelled since the first checkpoints, and how much may have: nothing is copied again as a whole.

use super::Bed;
use crate::failure::{Failure, Kind, Outcome};
use crate::history::BLOCK;
use crate::network::Way;
use crate::role::replicator;

/// Bytes that an acknowledgement has at least.
const ACKNOWLEDGEMENT: u64 = 32;
/// A frame that is larger than the window travels alone.
const MOST_IN_A_FRAME: u64 = 256 << 10;

/// As the replicator's log has it.
const NOT_FLUSHED: &str = "could not be flushed: all of it is sent again";

/// What has gone by at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flow {
    /// Bytes to the replicator.
    pub(super) sent: u64,
    /// Bytes from it.
    pub(super) back: u64,
    /// Connections.
    pub(super) sessions: u64,
    /// Bytes written to the source, but for those of the block that is overwritten all the time; and how often that was.
    pub(super) written: u64,
    pub(super) overwritten: u64,
}

impl Bed<'_> {
    pub(super) fn flow(&self) -> Outcome<Flow> {
        let (sent, back) = (self.network.passed(Way::Up), self.network.passed(Way::Down));
        let (written, overwritten) = (self.source.written()?, self.source.overwritten());
        Ok(Flow { sent, back, sessions: self.network.connections(), written, overwritten })
    }

    /// What will be found if everything is to be compared from now on.
    pub(crate) fn note_comparison(&mut self) -> Outcome {
        match self.compares {
            true => self.note_differences(),
            false => Ok(()),
        }
    }

    /// Blocks in which disk and volume differ will travel, whatever is written from now on.
    fn note_differences(&mut self) -> Outcome {
        let (disks, volumes) = (self.source.disks()?, self.volumes()?);
        let pairs = disks.iter().zip(&volumes);
        let blocks = pairs.flat_map(|(disk, volume)| disk.chunks(BLOCK).zip(volume.chunks(BLOCK)));
        self.differing += (blocks.filter(|(a, b)| a != b).count() * BLOCK) as u64;
        Ok(())
    }

    /// Bytes of volumes of which the replicator has said that they could not be flushed, each as often as it said so.
    fn distrusted(&self) -> Outcome<u64> {
        let log = std::fs::read(self.folder().join("replicator.log"))?;
        let log = String::from_utf8_lossy(&log);
        let said =
            |volume: &str| log.lines().filter(|line| line.contains(NOT_FLUSHED) && line.contains(volume)).count();
        let disks = self.source.disks()?;
        let bytes =
            self.spec.disks.iter().zip(&disks).map(|(spec, disk)| (said(spec.volume.as_str()) * disk.len()) as u64);
        Ok(bytes.sum())
    }

    /// After the first checkpoints travels what was written since the last of them was asked for, once, and
    /// - what was under way when a session ended;
    /// - what an agent had sent and not yet crossed off when it was killed: less than what was written since the last one was;
    /// - what the volumes lacked when a comparison began, where one is needed;
    /// - the whole of a volume that could not be flushed while it was written directly: nobody knows what it lacks;
    /// - the block that is overwritten without a pause: once for each pass, which is acknowledged.
    pub(super) fn check_sent(&mut self) -> Outcome {
        let (now, before) = (self.flow()?, self.before);
        let (sent, sessions) = (now.sent - before.sent, now.sessions - before.sessions);
        let written = now.written.saturating_sub(before.written);
        let under_way = (sessions + 1) * (replicator::WINDOW_BYTES + MOST_IN_A_FRAME);
        // Frames, TLS and its handshakes, digest requests.
        let around = sent / 16 + (sessions + 1) * 16_384 + (1 << 18);
        let passes = (now.back - before.back) / ACKNOWLEDGEMENT;
        let again = (now.overwritten - before.overwritten).min(passes) * BLOCK as u64;
        let distrusted = self.distrusted()?;
        let allowed = written + under_way + self.unsettled + self.differing + distrusted + again + around;
        (self.figures.sent, self.figures.allowed) = (sent, allowed);
        match sent <= allowed {
            true => Ok(()),
            false => {
                let text = format!(
                    "{sent} bytes were sent for {written} that were written, in {sessions} sessions; besides, {} may have been sent \
                     twice, {again} in vain, {} lacked, and {distrusted} could not be flushed",
                    self.unsettled, self.differing
                );
                Err(Failure::new(Kind::FullSync, text))
            }
        }
    }
}
