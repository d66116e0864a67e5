//! Which block devices a filesystem lies on, through partitions, device-mapper, RAID and loop devices, from sysfs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::mounts::{DeviceId, Mount, mount_of};
use crate::system::{System, names, text};

/// More loop devices than this, one in a file on the other, are a circle.
const MAX_LOOPS: u32 = 16;

/// What lies below a filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beneath {
    /// Each block device, down to the whole disks.
    pub(crate) devices: BTreeSet<DeviceId>,
    /// How many loop devices there are one below the other. Who freezes must begin with the highest number: a frozen
    /// filesystem can take no more of what the loop device in one of its files wants to write.
    pub(crate) loops: u32,
}

/// The machine's devices.
#[derive(Debug)]
pub(crate) struct Layers<'a> {
    pub(crate) system: &'a System,
    pub(crate) mounts: &'a [Mount],
}

impl Layers<'_> {
    /// What lies below a mounted filesystem; no devices when it has none, or when they cannot be known.
    pub(crate) fn beneath(&self, mount: &Mount) -> Beneath {
        let mut beneath = Beneath::default();
        self.descend_mount(mount, 0, &mut beneath);
        beneath
    }

    fn descend_mount(&self, mount: &Mount, loops: u32, beneath: &mut Beneath) {
        for device in self.devices_of(mount) {
            self.descend(device, loops, beneath);
        }
    }

    /// A filesystem with an anonymous device may have several: `mount` names one of them, or all with colons between.
    fn devices_of(&self, mount: &Mount) -> Vec<DeviceId> {
        if !mount.device.is_anonymous() {
            return vec![mount.device];
        }
        let source = mount.source.to_string_lossy();
        let named = source.split(':').filter(|part| part.starts_with('/'));
        let mut devices: Vec<_> = named.filter_map(|part| self.block_device(Path::new(part))).collect();
        if mount.kind == "btrfs" {
            devices.extend(self.companions(&devices));
        }
        devices
    }

    fn block_device(&self, path: &Path) -> Option<DeviceId> {
        let path = path.strip_prefix("/dev").map_or_else(|_| path.to_owned(), |name| self.system.dev.join(name));
        if let Some(device) = device_at(&path) {
            return Some(device);
        }
        let path = fs::canonicalize(path).ok()?;
        let name = path.strip_prefix(fs::canonicalize(&self.system.dev).ok()?).ok()?.to_str()?.replace('/', "!");
        DeviceId::parse(&text(self.system.sys.join("class/block").join(name).join("dev"))?)
    }

    /// The other devices of the btrfs that one of `known` belongs to.
    fn companions(&self, known: &[DeviceId]) -> Vec<DeviceId> {
        let all = self.system.sys.join("fs/btrfs");
        let volumes = names(&all).into_iter().map(|volume| devices_in(&all.join(volume).join("devices")));
        volumes.filter(|devices| devices.iter().any(|d| known.contains(d))).flatten().collect()
    }

    fn descend(&self, device: DeviceId, loops: u32, beneath: &mut Beneath) {
        if loops > MAX_LOOPS {
            return;
        }
        beneath.loops = beneath.loops.max(loops);
        beneath.devices.insert(device);
        let directory = self.system.sys.join("dev/block").join(device.to_string());
        if directory.join("partition").exists()
            && let Some(disk) = text(directory.join("../dev")).as_deref().and_then(DeviceId::parse)
        {
            return self.descend(disk, loops, beneath);
        }
        for below in devices_in(&directory.join("slaves")) {
            self.descend(below, loops, beneath);
        }
        if let Some(file) = text(directory.join("loop/backing_file")) {
            self.descend_file(&PathBuf::from(file), loops + 1, beneath);
        }
    }

    /// A loop device lies on a file, or on another device.
    fn descend_file(&self, file: &Path, loops: u32, beneath: &mut Beneath) {
        if let Some(device) = self.block_device(file) {
            self.descend(device, loops, beneath);
        } else if let Some(mount) = mount_of(self.mounts, file) {
            self.descend_mount(mount, loops, beneath);
        }
    }
}

/// The number of the block device at a path.
pub(crate) fn device_at(path: &Path) -> Option<DeviceId> {
    let found = fs::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| DeviceId::from_raw(found.rdev()))
}

/// The numbers of the devices that a directory of sysfs has links to.
fn devices_in(directory: &Path) -> Vec<DeviceId> {
    names(directory).iter().filter_map(|name| DeviceId::parse(&text(directory.join(name).join("dev"))?)).collect()
}

#[cfg(test)]
mod tests;
