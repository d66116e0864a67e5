//! Where the engine's threads note how far they are, and where anybody may look.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rehost_model::{Epoch, link::AgentPhase, replication::ReplicatedDisk};

use super::{config::DiskSource, control::Progress, machine::Machine};

/// A rate is taken over at least this long.
const RATE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Board {
    state: Mutex<State>,
    /// Payload bytes handed to the network.
    sent: AtomicU64,
    /// Bytes of disk that were replicated or compared: what the rate is made of.
    worked: AtomicU64,
}

#[derive(Default)]
struct State {
    phase: AgentPhase,
    disks: Vec<ReplicatedDisk>,
    reached: Epoch,
    sample: Option<(Instant, u64)>,
    rate: u64,
    machine: Option<Arc<Machine>>,
    /// Something changed that is in no acknowledged checkpoint.
    changed: bool,
    /// Why a disk had to be compared anew.
    lost: Option<String>,
}

impl Board {
    pub(super) fn progress(&self) -> Progress {
        let now = Instant::now();
        let mut state = self.lock();
        state.measure(now, self.worked.load(Ordering::Relaxed));
        let mut progress = Progress {
            phase: state.phase,
            disks: state.disks.clone(),
            sent_bytes: self.sent.load(Ordering::Relaxed),
            rate_bytes_per_second: state.rate,
            reached: state.reached,
            ..Progress::default()
        };
        let (machine, changed, lost) = (state.machine.clone(), state.changed, state.lost.clone());
        drop(state);
        if let Some(machine) = machine {
            machine.describe(&mut progress, changed, now);
        }
        progress.shortfall = progress.shortfall.or(lost);
        progress
    }

    /// Starts over with what a replicator says it has of each disk.
    pub(super) fn begin(&self, disks: &[(DiskSource, u64)]) {
        let entry = |(disk, synced): &(DiskSource, u64)| ReplicatedDisk {
            device_name: disk.path.display().to_string(),
            total_storage_bytes: disk.size_bytes,
            replicated_storage_bytes: *synced,
            ..ReplicatedDisk::default()
        };
        self.lock().disks = disks.iter().map(entry).collect();
    }

    /// What the disks are tracked with.
    pub(super) fn set_machine(&self, machine: &Arc<Machine>) {
        self.lock().machine = Some(machine.clone());
    }

    /// Whether anything changed that is in no acknowledged checkpoint.
    pub(super) fn set_changed(&self, changed: bool) {
        let mut state = self.lock();
        state.changed = changed;
        if !changed {
            state.lost = None;
        }
    }

    pub(super) fn note_lost(&self, why: String) {
        self.lock().lost = Some(why);
    }

    /// Bytes of a disk that are marked.
    pub(super) fn set_backlog(&self, place: usize, bytes: u64) {
        if let Some(disk) = self.lock().disks.get_mut(place) {
            disk.backlogged_storage_bytes = bytes;
        }
    }

    /// Bytes of disk that a pass sent.
    pub(super) fn add_worked(&self, bytes: u64) {
        self.worked.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_phase(&self, phase: AgentPhase) {
        self.lock().phase = phase;
    }

    pub(super) fn set_reached(&self, epoch: Epoch) {
        self.lock().reached = epoch;
    }

    pub(super) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The first copy of a disk, given by its place in the configuration, is durable up to here.
    pub(super) fn set_replicated(&self, place: usize, bytes: u64) {
        if let Some(disk) = self.lock().disks.get_mut(place) {
            let gained = bytes.saturating_sub(disk.replicated_storage_bytes);
            disk.replicated_storage_bytes += gained;
            self.worked.fetch_add(gained, Ordering::Relaxed);
        }
    }

    /// A pass begins: nothing is compared, nothing found to differ.
    pub(super) fn begin_pass(&self) {
        for disk in &mut self.lock().disks {
            disk.rescanned_storage_bytes = 0;
            disk.backlogged_storage_bytes = 0;
        }
    }

    pub(super) fn add_rescanned(&self, place: usize, compared: u64, differing: u64) {
        if let Some(disk) = self.lock().disks.get_mut(place) {
            disk.rescanned_storage_bytes += compared;
            disk.backlogged_storage_bytes += differing;
        }
        self.worked.fetch_add(compared, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn measure(&mut self, now: Instant, worked: u64) {
        let Some((then, before)) = self.sample else {
            self.sample = Some((now, worked));
            return;
        };
        let elapsed = now.duration_since(then);
        if elapsed >= RATE_INTERVAL {
            let per_millisecond = u128::from(worked - before) * 1000 / elapsed.as_millis().max(1);
            self.rate = u64::try_from(per_millisecond).unwrap_or(u64::MAX);
            self.sample = Some((now, worked));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_bytes_over_time() {
        let mut state = State::default();
        let start = Instant::now();
        state.measure(start, 1000);
        state.measure(start + Duration::from_millis(100), 5000);
        assert_eq!(state.rate, 0);
        state.measure(start + Duration::from_secs(2), 9000);
        assert_eq!(state.rate, 4000);
        state.measure(start + Duration::from_secs(4), 9000);
        assert_eq!(state.rate, 0);
    }
}
