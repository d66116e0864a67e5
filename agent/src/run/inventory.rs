//! Which disks the machine has by now: one may have been added, or have grown.

use std::time::{Duration, Instant};

use rehost_model::link::{DiskTarget, SourceDisk};

use crate::disks;
use crate::system::System;

/// The machine is looked at this often.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks now and then, and remembers.
pub(super) struct Inventory {
    system: System,
    /// Every disk of the machine is replicated.
    all_disks: bool,
    looked: Option<Instant>,
    found: Vec<SourceDisk>,
}

impl Inventory {
    pub(super) fn new(system: System, all_disks: bool) -> Self {
        Self { system, all_disks, looked: None, found: Vec::new() }
    }

    /// The disks of the machine, if they are not those that are replicated; nothing while nothing is replicated.
    pub(super) fn differing(&mut self, targets: &[DiskTarget]) -> Vec<SourceDisk> {
        if targets.is_empty() {
            return Vec::new();
        }
        if self.looked.is_none_or(|looked| looked.elapsed() >= INTERVAL) {
            self.looked = Some(Instant::now());
            let names: Vec<&str> = targets.iter().map(|disk| disk.device_name.as_str()).collect();
            self.found = disks::inventory(&self.system, &names, self.all_disks);
        }
        let is_target = |disk: &SourceDisk| {
            targets.iter().any(|target| target.device_name == disk.device_name && target.size_bytes == disk.size_bytes)
        };
        if self.found.iter().all(is_target) { Vec::new() } else { self.found.clone() }
    }
}
