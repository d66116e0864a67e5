//! File systems of the kernel that a tracker needs, mounted if they are not, and unmounted by who mounted them.

use std::{fs, io, path::Path};

use rustix::{
    fs::statfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

/// What our own mounts are called, so that they are told from those that others need.
const SOURCE: &str = "rehost";

/// A file system of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct KernelFs {
    kind: &'static str,
    magic: u64,
}

pub(super) const BPFFS: KernelFs = KernelFs { kind: "bpf", magic: 0xcafe_4a11 };
pub(super) const TRACEFS: KernelFs = KernelFs { kind: "tracefs", magic: 0x7472_6163 };

impl KernelFs {
    /// Mounts it if it is not mounted there.
    pub(super) fn ensure(self, at: &Path) -> io::Result<()> {
        if self.is_at(at) {
            return Ok(());
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
        Ok(mount(SOURCE, at, self.kind, flags, Some(c"mode=0700"))?)
    }

    /// Whether it is mounted there.
    pub(super) fn is_at(self, path: &Path) -> bool {
        statfs(path).is_ok_and(|of| u64::try_from(of.f_type).is_ok_and(|magic| magic == self.magic))
    }

    /// Undoes [`KernelFs::ensure`], if that mounted it and nobody uses it.
    pub(super) fn release(self, at: &Path) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let is_own = mounts.lines().any(|line| {
            let mut words = line.split(' ');
            let (source, path, kind) = (words.next(), words.next(), words.next());
            (source, path.map(Path::new), kind) == (Some(SOURCE), Some(at), Some(self.kind))
        });
        if is_own {
            // Whoever uses it keeps it.
            let _ = unmount(at, UnmountFlags::empty());
        }
    }
}
