//! What a run must not leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rehost_model::ServerId;
use rehost_tests::sweep;

use crate::failure::{Failure, Kind, Outcome};
use crate::interrupt::wait;

const BPFFS: &str = "/sys/fs/bpf/rehost";

/// Watchdogs, and processes, mounts and loop devices that name the run's folder, the folder itself, and what is pinned for its server.
pub(crate) fn check(folder: &Path, server: &ServerId, watchdogs: &BTreeSet<u32>) -> Outcome {
    // A device that is detached goes when its last user has closed it.
    let gone = || Ok(found(folder, server, watchdogs).is_empty().then_some(()));
    wait("the end of a run", Duration::from_secs(10), gone, String::new)
        .map_err(|_| Failure::new(Kind::Leftover, found(folder, server, watchdogs).join(", ")))
}

fn found(folder: &Path, server: &ServerId, watchdogs: &BTreeSet<u32>) -> Vec<String> {
    let name = folder.to_string_lossy();
    let mut found: Vec<String> = sweep::processes_naming(folder).iter().map(|pid| format!("process {pid}")).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&*name)).map(|line| format!("mount {line}")));
    found.extend(loops().filter(|(_, file)| file.contains(&*name)).map(|(device, _)| format!("loop device {device}")));
    found.extend(folder.exists().then(|| format!("folder {name}")));
    let pins = Path::new(BPFFS).join(server.as_str());
    found.extend(pins.exists().then(|| format!("pins in {}", pins.display())));
    found.extend(watchdogs.iter().filter(|pid| is_watchdog(**pid)).map(|pid| format!("watchdog {pid}")));
    found
}

/// The number may belong to another process by now.
fn is_watchdog(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "thaw-watchdog")
}

fn loops() -> impl Iterator<Item = (String, String)> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter_map(|device| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        Some((device.file_name().to_string_lossy().into_owned(), file))
    })
}
