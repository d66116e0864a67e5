//! From the source's names of devices to volumes.
//!
//! `/dev/sda1` is the first partition of what the source called `/dev/sda`; where the request does not say what the source
//! called its disks, the letters count them. UUIDs and labels are looked up in the superblocks.

use super::{Disk, Disks, Volume};

/// What a name of a device means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution<'a> {
    /// A volume on the guest's disks.
    Found(&'a Disk, &'a Volume),
    /// The name of a disk or partition that is not there.
    Missing,
    /// A name that is not tied to hardware (LVM, a file, a network share, `tmpfs`): left alone.
    NotHardware,
}

pub(super) fn resolve<'a>(disks: &'a Disks, spec: &str) -> Resolution<'a> {
    let found = if let Some((tag, value)) = tag(spec) {
        disks.volumes().find(|(_, volume)| has_tag(volume, tag, value))
    } else if let Some(path) = spec.strip_prefix("/dev/") {
        if is_virtual(path) {
            return Resolution::NotHardware;
        }
        by_path(disks, path)
    } else {
        return Resolution::NotHardware;
    };
    found.map_or(Resolution::Missing, |(disk, volume)| Resolution::Found(disk, volume))
}

/// `UUID=…` and `/dev/disk/by-uuid/…` alike.
fn tag(spec: &str) -> Option<(&str, &str)> {
    const LINKS: [(&str, &str); 4] = [
        ("/dev/disk/by-uuid/", "UUID"),
        ("/dev/disk/by-label/", "LABEL"),
        ("/dev/disk/by-partuuid/", "PARTUUID"),
        ("/dev/disk/by-partlabel/", "PARTLABEL"),
    ];
    let linked = LINKS.iter().find_map(|(prefix, tag)| Some((*tag, spec.strip_prefix(prefix)?)));
    let (tag, value) = linked.or_else(|| spec.split_once('='))?;
    let known = matches!(tag, "UUID" | "LABEL" | "PARTUUID" | "PARTLABEL");
    known.then(|| (tag, value.trim_matches('"')))
}

fn has_tag(volume: &Volume, tag: &str, value: &str) -> bool {
    let label = || volume.superblock.as_ref().and_then(|superblock| superblock.label.as_deref());
    let own = match tag {
        "UUID" => volume.uuid(),
        "LABEL" => label(),
        "PARTUUID" => volume.partition.partuuid.as_deref(),
        _ => volume.partition.name.as_deref(),
    };
    own.is_some_and(|own| own.eq_ignore_ascii_case(value))
}

/// Device-mapper, RAID, loop and other devices whose names do not depend on the disk controller; `VG/LV` is LVM's.
fn is_virtual(path: &str) -> bool {
    const PREFIXES: [&str; 9] = ["mapper/", "md", "dm-", "loop", "ram", "zram", "fuse", "shm", "nbd"];
    const OTHER_DIRECTORIES: [&str; 1] = ["disk/"];
    PREFIXES.iter().any(|prefix| path.starts_with(prefix))
        || (path.contains('/') && !OTHER_DIRECTORIES.iter().any(|prefix| path.starts_with(prefix)))
        || matches!(path, "null" | "cdrom" | "sr0" | "fd0")
}

fn by_path<'a>(disks: &'a Disks, path: &str) -> Option<(&'a Disk, &'a Volume)> {
    let (disk, number) = if path.starts_with("disk/") {
        // by-id and by-path name the source's hardware: only with a single disk is it clear which is meant.
        let [disk] = disks.0.as_slice() else { return None };
        (disk, path.rsplit_once("-part").map_or(Some(0), |(_, number)| number.parse().ok())?)
    } else {
        let (base, number) = split_partition(path)?;
        (disk_named(disks, base)?, number)
    };
    disk.volumes.iter().find(|volume| volume.partition.number == number).map(|volume| (disk, volume))
}

fn disk_named<'a>(disks: &'a Disks, base: &str) -> Option<&'a Disk> {
    let named =
        |disk: &&Disk| disk.source_device.as_deref().is_some_and(|name| name.strip_prefix("/dev/") == Some(base));
    if disks.0.iter().any(|disk| disk.source_device.is_some()) {
        return disks.0.iter().find(named);
    }
    disks.0.get(position(base)?)
}

/// `sdb` → 1, `nvme2n1` → 2.
fn position(base: &str) -> Option<usize> {
    if let Some(rest) = base.strip_prefix("nvme") {
        return rest.strip_suffix("n1")?.parse().ok();
    }
    let letters = ["xvd", "sd", "hd", "vd"].iter().find_map(|prefix| base.strip_prefix(prefix))?;
    let number = letters.bytes().try_fold(0usize, |number, letter| {
        let digit = letter.is_ascii_lowercase().then(|| usize::from(letter - b'a') + 1)?;
        number.checked_mul(26)?.checked_add(digit)
    })?;
    number.checked_sub(1)
}

/// `sda1` → (`sda`, 1); `nvme0n1p3` → (`nvme0n1`, 3); `sdb` → (`sdb`, 0).
fn split_partition(path: &str) -> Option<(&str, u32)> {
    let base = path.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = path.get(base.len()..)?;
    if path.starts_with("nvme") || path.starts_with("mmcblk") {
        return match base.strip_suffix('p') {
            Some(disk) if disk.ends_with(|c: char| c.is_ascii_digit()) => Some((disk, digits.parse().ok()?)),
            _ => Some((path, 0)),
        };
    }
    Some((base, if digits.is_empty() { 0 } else { digits.parse().ok()? }))
}
