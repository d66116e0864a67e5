//! Which filesystems are to be frozen: those that lie, wholly or in part, on the replicated disks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::FreezeError;
use super::layers::{Layers, device_at};
use super::mounts::{DeviceId, Mount, parse};
use crate::system::{System, text};

/// They have no journal, and the kernel has no way to freeze them.
const FAT: &[&str] = &["vfat", "msdos", "exfat"];

/// They lie on devices that cannot be found through sysfs.
const OPAQUE: &[&str] = &["zfs", "bcachefs", "btrfs"];

/// A filesystem that is to be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Where it is mounted first.
    pub mount_point: PathBuf,
    /// `ext4`, `xfs`, …
    pub kind: String,
    /// Of its superblock.
    pub device: DeviceId,
    /// Each mount of it, as mountinfo's id and the mount point.
    mounts: Vec<(u64, PathBuf)>,
    loops: u32,
}

/// A filesystem on the replicated disks that was not frozen: it goes on being written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Why it was left out.
    pub reason: SkipReason,
}

/// Why a filesystem was not frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    #[error("it is frozen already, by somebody else")]
    FrozenAlready,
    #[error("its kind cannot be frozen")]
    CannotFreeze,
    #[error("its mount points are hidden or cannot be opened")]
    Unreachable,
    #[error("the devices below it cannot be found")]
    UnknownDevices,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.mount_point.display(), self.reason)
    }
}

/// What is mounted now, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// In the order in which they must be frozen.
    pub(crate) filesystems: Vec<Filesystem>,
    pub(crate) skipped: Vec<Skipped>,
}

/// Looks at every mount of the machine.
pub(crate) fn survey(system: &System, disks: &[PathBuf]) -> Result<Survey, FreezeError> {
    let disks: BTreeSet<_> = disks.iter().filter_map(|disk| device_at(disk)).collect();
    Ok(on_disks(system, &mounts(system)?, &disks))
}

/// The mounts of the agent's namespace.
pub(crate) fn mounts(system: &System) -> Result<Vec<Mount>, FreezeError> {
    let path = system.proc.join("self/mountinfo");
    let mountinfo = fs::read(&path).map_err(|source| FreezeError::Mounts { path, source })?;
    Ok(parse(&mountinfo))
}

fn on_disks(system: &System, mounts: &[Mount], disks: &BTreeSet<DeviceId>) -> Survey {
    let layers = Layers { system, mounts };
    let mut survey = Survey::default();
    for group in by_superblock(mounts) {
        let Some(first) = group.first().filter(|first| first.writable) else { continue };
        let beneath = layers.beneath(first);
        let mut skip = |reason| survey.skipped.push(Skipped { mount_point: first.point.clone(), reason });
        if beneath.devices.is_empty() && OPAQUE.contains(&first.kind.as_str()) {
            skip(SkipReason::UnknownDevices);
        } else if beneath.devices.is_disjoint(disks) {
        } else if FAT.contains(&first.kind.as_str()) {
            skip(SkipReason::CannotFreeze);
        } else {
            survey.filesystems.push(Filesystem::of(first, &group, beneath.loops));
        }
    }
    // The last mounted is frozen first, and what lies in a file of another filesystem before that one.
    survey.filesystems.reverse();
    survey.filesystems.sort_by_key(|filesystem| std::cmp::Reverse(filesystem.loops));
    survey
}

/// Every mounted filesystem, whatever it lies on.
pub(crate) fn all(mounts: &[Mount]) -> Vec<Filesystem> {
    let groups = by_superblock(mounts).into_iter();
    groups.filter_map(|group| Some(Filesystem::of(group.first()?, &group, 0))).collect()
}

/// The mounts of each filesystem together, in the order of their first mounts.
fn by_superblock(mounts: &[Mount]) -> Vec<Vec<&Mount>> {
    let mut groups: Vec<Vec<&Mount>> = Vec::new();
    let mut seen = BTreeMap::new();
    for mount in mounts {
        let at = *seen.entry(mount.device).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.push(mount),
            None => groups.push(vec![mount]),
        }
    }
    groups
}

impl Filesystem {
    fn of(first: &Mount, group: &[&Mount], loops: u32) -> Self {
        Self {
            mount_point: first.point.clone(),
            kind: first.kind.clone(),
            device: first.device,
            mounts: group.iter().map(|mount| (mount.id, mount.point.clone())).collect(),
            loops,
        }
    }

    /// A descriptor of one of its directories; `None` when no mount of it can be reached. It keeps the filesystem from being
    /// unmounted, and is to be closed soon.
    pub(crate) fn open(&self) -> Option<OwnedFd> {
        self.mounts.iter().find_map(|(id, point)| open_mount(*id, point, self.device))
    }
}

/// Another mount may have come on top of the mount point: then the path leads elsewhere.
fn open_mount(id: u64, point: &Path, device: DeviceId) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let directory = rustix::fs::open(point, flags, Mode::empty()).ok()?;
    let is_right = match mount_id(&directory) {
        Some(found) => found == id,
        None => rustix::fs::fstat(&directory).is_ok_and(|stat| DeviceId::from_raw(stat.st_dev) == device),
    };
    is_right.then_some(directory)
}

/// Which mount a descriptor belongs to; kernels before 3.15 do not say.
fn mount_id(directory: &OwnedFd) -> Option<u64> {
    let info = text(format!("/proc/self/fdinfo/{}", directory.as_raw_fd()))?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sda1 holds `/`, with images in it on which loop0 and loop1 lie; sdb is another disk.
    fn machine() -> (tempfile::TempDir, System) {
        let root = tempfile::tempdir().unwrap();
        let system = System::under(root.path());
        let device = |number: &str, file: &str, content: &str| {
            let path = system.sys.join("dev/block").join(number).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for number in ["8:0", "8:16", "7:0", "7:1"] {
            device(number, "dev", number);
        }
        device("7:0", "loop/backing_file", "/images/outer");
        device("7:1", "loop/backing_file", "/outer/inner");
        (root, system)
    }

    fn surveyed(mountinfo: &str, disk: &str) -> (Vec<String>, Vec<String>) {
        let (_root, system) = machine();
        let disks = BTreeSet::from([DeviceId::parse(disk).unwrap()]);
        let survey = on_disks(&system, &parse(mountinfo.as_bytes()), &disks);
        let points = survey.filesystems.iter().map(|f| f.mount_point.display().to_string());
        (points.collect(), survey.skipped.iter().map(ToString::to_string).collect())
    }

    const MOUNTS: &str = "\
1 1 8:0 / / rw - ext4 /dev/sda rw
2 1 0:5 / /proc rw - proc proc rw
3 1 7:1 / /inner rw - ext4 /dev/loop1 rw
4 1 7:0 / /outer rw - xfs /dev/loop0 rw
5 1 8:0 /srv /bind rw - ext4 /dev/sda rw
6 1 8:16 / /other rw - ext4 /dev/sdb rw";

    #[test]
    fn what_lies_in_a_file_is_frozen_before_what_the_file_lies_in() {
        assert_eq!(surveyed(MOUNTS, "8:0").0, ["/inner", "/outer", "/"]);
        assert_eq!(surveyed(MOUNTS, "7:0").0, ["/inner", "/outer"]);
        assert_eq!(surveyed(MOUNTS, "7:1").0, ["/inner"]);
    }

    #[test]
    fn only_the_replicated_disks_count() {
        assert_eq!(surveyed(MOUNTS, "8:16"), (vec!["/other".to_owned()], vec![]));
        assert_eq!(surveyed(MOUNTS, "8:32"), (vec![], vec![]));
    }

    #[test]
    fn the_last_mounted_is_frozen_first() {
        let mounts =
            "1 1 8:0 / /a rw - ext4 /dev/sda rw\n2 1 7:0 / /b rw - ext4 /dev/x rw\n3 1 8:16 / /c rw - xfs /dev/y rw";
        let (_root, system) = machine();
        let disks = ["8:0", "8:16"].iter().filter_map(|d| DeviceId::parse(d)).collect();
        let survey = on_disks(&system, &parse(mounts.as_bytes()), &disks);
        // loop0 lies in a file below `/`, which is mounted nowhere here: it has nothing to do with these disks.
        assert_eq!(
            survey.filesystems.iter().map(|f| f.mount_point.as_path()).collect::<Vec<_>>(),
            [Path::new("/c"), Path::new("/a")]
        );
    }

    #[test]
    fn fat_and_the_unknown_are_named_and_the_read_only_is_no_matter() {
        let mounts = "\
1 1 8:0 / / ro - ext4 /dev/sda ro
2 1 8:0 / /efi rw - vfat /dev/sda ro
3 1 8:16 / /boot/efi rw - vfat /dev/sdb rw
4 1 0:44 / /tank rw - zfs tank rw";
        let (frozen, skipped) = surveyed(mounts, "8:16");
        assert!(frozen.is_empty(), "{frozen:?}");
        assert_eq!(skipped, ["/boot/efi: its kind cannot be frozen", "/tank: the devices below it cannot be found"]);
    }

    #[test]
    fn a_hidden_mount_point_is_not_opened() {
        let here = tempfile::tempdir().unwrap();
        let file = fs::File::open(here.path()).unwrap();
        let id = mount_id(&file.into()).unwrap();
        let device = DeviceId { major: 0, minor: 0 };
        assert!(open_mount(id, here.path(), device).is_some());
        assert!(open_mount(id + 1, here.path(), device).is_none());
    }
}
