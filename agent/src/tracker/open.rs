//! Chooses a tracker for a disk by trying, not by the kernel's version.

use std::{fs, io, os::unix::fs::FileExt as _, sync::OnceLock};

use rehost_model::{VolumeId, replication::TrackerKind};

use super::{
    DiskTracker, Pass, TrackedDisk, TrackerOptions,
    btf::Btf,
    device::BlockDevice,
    ebpf::{self, EbpfTracker},
    ftrace::{self, FtraceTracker},
    geometry::Geometry,
    pins,
    program::KernelLayout,
};
use crate::sys::loop_disk::LoopDisk;

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// A disk's tracker, if it can have one.
pub struct Opened {
    /// None: the disk has to be compared by digests, again and again.
    pub tracker: Option<Box<dyn DiskTracker>>,
    /// The tracker's kind, or [`TrackerKind::Rescan`].
    pub kind: TrackerKind,
    /// What stood in the way of a better one, and what else an administrator should know.
    pub why: Vec<String>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("kind", &self.kind).field("why", &self.why).finish_non_exhaustive()
    }
}

/// Opens the best tracker that a disk can have: eBPF, else ftrace, else none. Marks that an earlier agent left pinned for this
/// disk are taken over. It takes some 100 ms for the first disk, and never fails.
#[must_use]
pub fn open(disk: &TrackedDisk, options: &TrackerOptions) -> Opened {
    open_at_best(disk, options, TrackerKind::Ebpf)
}

/// The same, as if nothing better than this kind existed.
#[must_use]
pub fn open_at_best(disk: &TrackedDisk, options: &TrackerOptions, kind: TrackerKind) -> Opened {
    let mut why = Vec::new();
    let tracker = match BlockDevice::at(&disk.path) {
        Ok(device) => best(disk, &device, options, kind, &mut why),
        Err(error) => {
            why.push(error.to_string());
            None
        }
    };
    let kind = tracker.as_ref().map_or(TrackerKind::Rescan, |tracker| tracker.kind());
    Opened { tracker, kind, why }
}

/// Detaches and removes everything that is kept for the disks of a server.
///
/// # Errors
/// What is pinned cannot be removed.
pub fn forget(options: &TrackerOptions) -> io::Result<()> {
    ftrace::forget(options);
    pins::remove(&pins::of_server(options), &options.bpffs)
}

/// Detaches and removes what is kept for one disk.
///
/// # Errors
/// What is pinned cannot be removed.
pub fn forget_volume(options: &TrackerOptions, volume: &VolumeId) -> io::Result<()> {
    ftrace::forget_volume(options, volume);
    pins::remove(&pins::of_volume(options, volume), &options.bpffs)
}

/// The volumes of this server of which an agent has left something: those of now, and those of disks that were given
/// another volume while no agent ran.
#[must_use]
pub fn kept_volumes(options: &TrackerOptions) -> Vec<VolumeId> {
    pins::volumes(options).into_iter().chain(ftrace::volumes(options)).collect()
}

fn best(
    disk: &TrackedDisk,
    device: &BlockDevice,
    options: &TrackerOptions,
    kind: TrackerKind,
    why: &mut Vec<String>,
) -> Option<Box<dyn DiskTracker>> {
    if matches!(kind, TrackerKind::Ebpf | TrackerKind::EbpfBio) {
        match with_ebpf(disk, device, options, why) {
            Ok(tracker) => return Some(Box::new(tracker)),
            Err(reason) => why.push(format!("eBPF: {reason}")),
        }
    }
    if kind != TrackerKind::Rescan {
        match FtraceTracker::open(disk, device, options) {
            Ok(tracker) => return Some(Box::new(tracker)),
            Err(reason) => why.push(format!("ftrace: {reason}")),
        }
    }
    None
}

fn with_ebpf(
    disk: &TrackedDisk,
    device: &BlockDevice,
    options: &TrackerOptions,
    why: &mut Vec<String>,
) -> Result<EbpfTracker, String> {
    let kernel = kernel().as_ref().map_err(Clone::clone)?;
    why.extend(kernel.note.clone());
    let opened = ebpf::open(disk, device, &kernel.layout, options).map_err(|error| error.to_string())?;
    why.extend(opened.discarded);
    Ok(opened.tracker)
}

/// What this kernel can do, found out once.
pub(super) struct Kernel {
    pub(super) layout: KernelLayout,
    /// What could not be found out.
    note: Option<String>,
}

pub(super) fn kernel() -> &'static Result<Kernel, String> {
    static KERNEL: OnceLock<Result<Kernel, String>> = OnceLock::new();
    KERNEL.get_or_init(|| {
        let bytes = fs::read(KERNEL_BTF).map_err(|error| format!("{KERNEL_BTF} cannot be read: {error}"))?;
        let layout = Btf::parse(bytes).and_then(|btf| KernelLayout::of(&btf)).map_err(|error| error.to_string())?;
        let note = self_test(&layout)?;
        Ok(Kernel { layout, note })
    })
}

/// Writes to a small disk in memory, which must be seen. Where there is none, the verifier's word is taken.
fn self_test(layout: &KernelLayout) -> Result<Option<String>, String> {
    const BYTES: u64 = 1 << 20;
    let untested = |reason: &dyn std::fmt::Display| Ok(Some(format!("the tracker was not tested: {reason}")));
    // Where the loop driver is not there yet, opening its control device would load it.
    if !fs::exists("/sys/module/loop").unwrap_or(false) {
        return untested(&"no loop devices");
    }
    let scratch = match LoopDisk::new(BYTES) {
        Ok(scratch) => scratch,
        Err(error) => return untested(&error),
    };
    let path = scratch.path().to_owned();
    let device = match BlockDevice::at(&path) {
        Ok(device) => device,
        Err(error) => return untested(&error),
    };
    let disk = TrackedDisk { path, volume: VolumeId::generate(), size_bytes: BYTES };
    let tracker = EbpfTracker::unpinned(&disk, &device, layout, Geometry::fitting(BYTES, BYTES));
    let seen = sees_a_write(tracker.map_err(|error| error.to_string())?, &scratch);
    match seen {
        Ok(true) => Ok(None),
        Ok(false) => Err("a write to a disk made for that was not seen".to_owned()),
        Err(error) => untested(&error),
    }
}

fn sees_a_write(mut tracker: EbpfTracker, scratch: &LoopDisk) -> io::Result<bool> {
    const AT: u64 = 64 * 1024;
    scratch.file().write_all_at(&[0x5a; 4096], AT)?;
    scratch.file().sync_all()?;
    tracker.collect(Pass::FIRST).map_err(io::Error::other)?;
    Ok(tracker.pending().iter().any(|range| (range.offset..range.end()).contains(&AT)))
}
