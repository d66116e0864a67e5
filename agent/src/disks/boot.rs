//! Which disk the machine booted from.

use std::fs;
use std::path::{Path, PathBuf};

use crate::system::{System, names, text};

/// How deep file systems may be stacked (LVM on RAID on multipath is three).
const MAX_LAYERS: usize = 8;

/// The name in `/sys/block` of the disk under `/boot`, or else under `/`.
pub(super) fn disk(system: &System) -> Option<String> {
    let mounts = text(system.proc.join("self/mountinfo"))?;
    ["/boot", "/"].into_iter().find_map(|point| disk_at(system, mount(&mounts, point)?))
}

/// A line of mountinfo, as far as it matters.
#[derive(Clone, Copy)]
struct Mount<'a> {
    /// `major:minor` of the file system.
    number: &'a str,
    source: &'a str,
}

/// The newest mount at `point` hides the older ones.
fn mount<'a>(mounts: &'a str, point: &str) -> Option<Mount<'a>> {
    mounts.lines().rev().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let fields: Vec<_> = mount.split(' ').collect();
        let source = file_system.split(' ').nth(1)?;
        (*fields.get(4)? == point).then_some(Mount { number: fields.get(2)?, source })
    })
}

fn disk_at(system: &System, mount: Mount<'_>) -> Option<String> {
    let by_number = fs::canonicalize(system.sys.join("dev/block").join(mount.number)).ok();
    // btrfs shows a number of its own: then only the source tells.
    let device = by_number.or_else(|| {
        let device = fs::canonicalize(mount.source).unwrap_or_else(|_| PathBuf::from(mount.source));
        let name = device.file_name()?.to_str()?.to_owned();
        fs::canonicalize(system.sys.join("class/block").join(name)).ok()
    })?;
    whole_disk(system, &device, MAX_LAYERS)
}

/// Goes down from a device's directory in sysfs to a whole disk.
fn whole_disk(system: &System, device: &Path, layers: usize) -> Option<String> {
    let below = names(device.join("slaves"));
    if let Some(first) = below.first().filter(|_| layers > 0) {
        let lower = fs::canonicalize(system.sys.join("class/block").join(first)).ok()?;
        return whole_disk(system, &lower, layers - 1);
    }
    let disk = if device.join("partition").exists() { device.parent()? } else { device };
    Some(disk.file_name()?.to_str()?.to_owned())
}
