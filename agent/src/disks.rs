//! Which disks the source has, and which of them is to be replicated.
//!
//! Whole disks only: what lies on them (partitions, RAID, LVM) travels inside. The boot disk is the one under `/boot`, or else
//! under `/`, found through whatever layers of device-mapper and RAID lie between. Image files can be named in place of disks.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rehost_model::link::{PartitionTable, SourceDisk};

use crate::system::{System, names, number, text};

mod boot;
mod table;

/// Sizes in sysfs are in sectors of this many bytes, whatever the disk's own sector size.
const SECTOR: u64 = 512;

/// Disks that are memory, removable media, or made of other disks.
const NO_DISKS: &[&str] = &["loop", "ram", "zram", "sr", "fd", "nbd", "dm-", "md", "mtdblock", "drbd"];

/// Why the disks cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("no disk was found under {}; name the disks with --devices", sys.display())]
    None { sys: PathBuf },
    #[error("cannot open {name}: {source}; check the name, and that the agent runs as root")]
    Open { name: String, source: io::Error },
    #[error("{partition} is a partition; whole disks are replicated: name {disk}")]
    Partition { partition: String, disk: String },
    #[error("{name} is neither a block device nor a file")]
    Kind { name: String },
    #[error("{name} has {size_bytes} bytes; a disk has a whole number of 512-byte sectors, and at least one")]
    Size { name: String, size_bytes: u64 },
    #[error("{name} is named twice in --devices")]
    Twice { name: String },
}

/// The disks to replicate, and what the user should know about the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub disks: Vec<SourceDisk>,
    pub notes: Vec<String>,
}

/// Finds the disks to replicate: all of the machine's, or those that were `chosen`.
///
/// # Errors
/// A [`DiskError`] that names the disk.
pub fn select(system: &System, chosen: Option<&[String]>) -> Result<Selection, DiskError> {
    let mut selection = match chosen {
        None => discover(system)?,
        Some(chosen) => Choice::of(system, chosen)?.select()?,
    };
    selection.disks.sort_by_key(|disk| !disk.is_boot_disk);
    Ok(selection)
}

/// The disks that are to be replicated by now: those that are, as they are by now, and all others of the machine if it is
/// replicated whole. A disk that cannot be looked at is left out: the engine says so.
pub(crate) fn inventory(system: &System, replicated: &[&str], all_disks: bool) -> Vec<SourceDisk> {
    let boot = boot::disk(system).map(|name| device_path(system, &name).display().to_string());
    let mut found: Vec<SourceDisk> = replicated.iter().filter_map(|name| named(system, name).ok()).collect();
    // Names as the control plane knows them.
    for (disk, name) in found.iter_mut().zip(replicated) {
        disk.is_boot_disk = boot.as_deref() == Some(*name);
    }
    let others = discover(system).map(|selection| selection.disks).unwrap_or_default();
    // Images and loop devices stand for another machine.
    let of_machine =
        !found.is_empty() && found.iter().all(|disk| others.iter().any(|o| o.device_name == disk.device_name));
    if all_disks && of_machine {
        let new = |disk: &SourceDisk| !found.iter().any(|known| known.device_name == disk.device_name);
        let new: Vec<SourceDisk> = others.into_iter().filter(new).collect();
        found.extend(new);
    }
    found
}

/// Whether a disk is made to be started by UEFI.
pub(crate) fn is_for_uefi(disk: &SourceDisk) -> bool {
    table::is_for_uefi(Path::new(&disk.device_name))
}

fn discover(system: &System) -> Result<Selection, DiskError> {
    let boot = boot::disk(system);
    let mut found = Vec::new();
    for name in names(system.sys.join("block")) {
        let is_boot_disk = boot.as_ref() == Some(&name);
        if let Some(size_bytes) = replicable(system, &name, is_boot_disk) {
            let device = device_path(system, &name);
            let table = table::of(&device);
            let device_name = device.display().to_string();
            found.push(SourceDisk { device_name, size_bytes, is_boot_disk, partition_table: table });
        }
    }
    let mut notes = Vec::new();
    if !found.is_empty() && !found.iter().any(|d| d.is_boot_disk) {
        notes.extend(assume_boot_disk(&mut found));
    }
    if found.is_empty() {
        return Err(DiskError::None { sys: system.sys.clone() });
    }
    Ok(Selection { disks: found, notes })
}

/// When the root file system is on no disk of the machine: the first disk with partitions, else the first disk.
fn assume_boot_disk(disks: &mut [SourceDisk]) -> Option<String> {
    let partitioned = disks.iter().position(|d| d.partition_table != PartitionTable::None).unwrap_or(0);
    let disk = disks.get_mut(partitioned)?;
    disk.is_boot_disk = true;
    Some(format!("no disk holds / or /boot; {} is taken for the boot disk", disk.device_name))
}

/// The size of a disk in bytes, when it is one to replicate.
fn replicable(system: &System, name: &str, is_boot_disk: bool) -> Option<u64> {
    let attributes = system.sys.join("block").join(name);
    let set = |attribute: &str| number(attributes.join(attribute)).unwrap_or(0) != 0;
    let is_disk = !NO_DISKS.iter().any(|prefix| name.starts_with(prefix)) && !set("hidden") && !set("ro");
    let size_bytes = number(attributes.join("size"))?.checked_mul(SECTOR)?;
    // A machine may well run from a removable disk: then it is no mere medium.
    (is_disk && size_bytes > 0 && (is_boot_disk || !set("removable"))).then_some(size_bytes)
}

/// sysfs writes `/` in names as `!`: `cciss!c0d0` is `/dev/cciss/c0d0`.
fn device_path(system: &System, name: &str) -> PathBuf {
    system.dev.join(name.replace('!', "/"))
}

/// What the user chose.
struct Choice<'a> {
    system: &'a System,
    disks: Vec<SourceDisk>,
    boot: Option<PathBuf>,
}

impl<'a> Choice<'a> {
    fn of(system: &'a System, chosen: &[String]) -> Result<Self, DiskError> {
        let disks = chosen.iter().map(|name| named(system, name)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = disks.iter().find(|d| !seen.insert(d.device_name.as_str())) {
            return Err(DiskError::Twice { name: twice.device_name.clone() });
        }
        let boot = boot::disk(system).map(|name| device_path(system, &name));
        Ok(Self { system, disks, boot })
    }

    fn select(mut self) -> Result<Selection, DiskError> {
        let mut notes = Vec::new();
        if let Some(boot) = self.boot.as_ref().map(|b| b.display().to_string()) {
            if self.are_disks_of_the_machine() && !self.disks.iter().any(|d| d.device_name == boot) {
                notes.push(format!("{boot} is the boot disk and is replicated as well"));
                self.disks.insert(0, named(self.system, &boot)?);
            }
            for disk in &mut self.disks {
                disk.is_boot_disk = disk.device_name == boot;
            }
        }
        if !self.disks.iter().any(|d| d.is_boot_disk)
            && let Some(first) = self.disks.first_mut()
        {
            first.is_boot_disk = true;
        }
        Ok(Selection { disks: self.disks, notes })
    }

    /// Images and loop devices stand for another machine: then the disks of this one stay out of it.
    fn are_disks_of_the_machine(&self) -> bool {
        let of_machine: BTreeSet<_> = names(self.system.sys.join("block"))
            .into_iter()
            .filter(|name| replicable(self.system, name, true).is_some())
            .map(|name| device_path(self.system, &name).display().to_string())
            .collect();
        self.disks.iter().all(|d| of_machine.contains(&d.device_name))
    }
}

fn named(system: &System, name: &str) -> Result<SourceDisk, DiskError> {
    let open = |source| DiskError::Open { name: name.to_owned(), source };
    // Links such as /dev/disk/by-id/… are followed, so that one disk has one name.
    let path = fs::canonicalize(name).map_err(open)?;
    let kind = fs::metadata(&path).map_err(open)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(DiskError::Kind { name: name.to_owned() });
    }
    if let Some(disk) = disk_of_partition(system, &path) {
        return Err(DiskError::Partition { partition: name.to_owned(), disk });
    }
    let size_bytes = File::open(&path).and_then(|mut f| f.seek(SeekFrom::End(0))).map_err(open)?;
    if size_bytes == 0 || size_bytes % SECTOR != 0 {
        return Err(DiskError::Size { name: name.to_owned(), size_bytes });
    }
    let partition_table = table::of(&path);
    Ok(SourceDisk { device_name: path.display().to_string(), size_bytes, is_boot_disk: false, partition_table })
}

fn disk_of_partition(system: &System, device: &Path) -> Option<String> {
    let name = device.strip_prefix(&system.dev).ok()?.to_str()?.replace('/', "!");
    let class = system.sys.join("class/block").join(&name);
    text(class.join("partition"))?;
    let disk = fs::canonicalize(class).ok()?.parent()?.file_name()?.to_str()?.to_owned();
    Some(device_path(system, &disk).display().to_string())
}

#[cfg(test)]
mod tests;
