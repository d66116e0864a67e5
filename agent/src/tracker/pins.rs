//! Where maps and links are pinned: `<bpffs>/rehost/<server>/<volume>/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rehost_model::VolumeId;
use rustix::{
    fs::statfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::TrackerOptions;

/// The kernel's number of bpffs.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;
/// What our own mount is called, so that it is told from one that others need.
const MOUNT_SOURCE: &str = "rehost";

/// Mounts bpffs if it is not mounted.
pub(super) fn mount_bpffs(at: &Path) -> io::Result<()> {
    if is_bpffs(at) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    Ok(mount(MOUNT_SOURCE, at, "bpf", flags, Some(c"mode=0700"))?)
}

/// The directory of all disks of a server.
pub(super) fn of_server(options: &TrackerOptions) -> PathBuf {
    root(&options.bpffs).join(options.server.as_str())
}

/// The directory of one disk.
pub(super) fn of_volume(options: &TrackerOptions, volume: &VolumeId) -> PathBuf {
    of_server(options).join(volume.as_str())
}

/// Removes a directory of pins, then what is empty above it: nothing stays attached that no process has open.
pub(super) fn remove(directory: &Path, bpffs: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for above in directory.ancestors().skip(1).take_while(|above| *above != bpffs) {
        if fs::remove_dir(above).is_err() {
            return Ok(());
        }
    }
    unmount_own(bpffs);
    Ok(())
}

fn root(bpffs: &Path) -> PathBuf {
    bpffs.join("rehost")
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|of| u64::try_from(of.f_type).is_ok_and(|magic| magic == BPFFS_MAGIC))
}

/// Undoes [`mount_bpffs`], if it was that and nobody else uses it.
fn unmount_own(bpffs: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_own = mounts.lines().any(|line| {
        let mut words = line.split(' ');
        words.next() == Some(MOUNT_SOURCE) && words.next().map(Path::new) == Some(bpffs) && words.next() == Some("bpf")
    });
    // The kernel puts two files of its own into every bpffs.
    let is_kernels = |name: std::ffi::OsString| name == "maps.debug" || name == "progs.debug";
    let is_empty = || fs::read_dir(bpffs).is_ok_and(|entries| entries.flatten().all(|of| is_kernels(of.file_name())));
    if is_own && is_empty() {
        // Whoever uses it keeps it.
        let _ = unmount(bpffs, UnmountFlags::empty());
    }
}
