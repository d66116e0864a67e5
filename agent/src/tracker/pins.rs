//! Where maps and links are pinned: `<bpffs>/rehost/<server>/<volume>/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rehost_model::VolumeId;

use super::{TrackerOptions, mounts::BPFFS};
use crate::system::names;

/// The directory of all disks of a server.
pub(super) fn of_server(options: &TrackerOptions) -> PathBuf {
    options.bpffs.join("rehost").join(options.server.as_str())
}

/// The directory of one disk.
pub(super) fn of_volume(options: &TrackerOptions, volume: &VolumeId) -> PathBuf {
    of_server(options).join(volume.as_str())
}

/// The disks of a server that have a directory.
pub(super) fn volumes(options: &TrackerOptions) -> Vec<VolumeId> {
    names(of_server(options)).iter().filter_map(|name| name.parse().ok()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_server_is_found_by_its_names() {
        let root = tempfile::tempdir().unwrap();
        let server = rehost_model::ServerId::generate();
        let options = TrackerOptions { server, bpffs: root.path().to_owned(), map_bytes: 4096 };
        assert_eq!(volumes(&options), []);
        let volume = VolumeId::generate();
        fs::create_dir_all(of_volume(&options, &volume)).unwrap();
        fs::create_dir(of_server(&options).join("of-somebody-else")).unwrap();
        assert_eq!(volumes(&options), [volume]);
    }
}
