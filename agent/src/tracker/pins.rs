//! Where maps and links are pinned: `<bpffs>/rehost/<server>/<volume>/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rehost_model::VolumeId;

use super::{TrackerOptions, mounts::BPFFS};

/// The directory of all disks of a server.
pub(super) fn of_server(options: &TrackerOptions) -> PathBuf {
    options.bpffs.join("rehost").join(options.server.as_str())
}

/// The directory of one disk.
pub(super) fn of_volume(options: &TrackerOptions, volume: &VolumeId) -> PathBuf {
    of_server(options).join(volume.as_str())
}

/// Removes a directory of pins, then what is empty above it, and bpffs if nobody else has a use for it. Nothing stays
/// attached then that no process has open.
pub(super) fn remove(directory: &Path, bpffs: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for above in directory.ancestors().skip(1).take_while(|above| *above != bpffs) {
        match fs::remove_dir(above) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Ok(()),
            _ => {}
        }
    }
    // The kernel puts two files of its own into every bpffs.
    let is_kernels = |name: std::ffi::OsString| name == "maps.debug" || name == "progs.debug";
    if fs::read_dir(bpffs).is_ok_and(|entries| entries.flatten().all(|of| is_kernels(of.file_name()))) {
        BPFFS.release(bpffs);
    }
    Ok(())
}
