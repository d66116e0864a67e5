//! Converts a guest whose disks are attached to this machine: waits for them, finds and mounts what belongs to the guest, and has
//! the rules do their work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rehost_model::conversion::{
    ConversionOutcome, ConversionReport, ConversionRequest, DiskInventory, Finding, GuestInventory, RequestedDisk,
    Severity,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::disk::{Disk, Disks, Resolution, Volume};
use crate::fstab;
use crate::guest::{Guest, OWN_VOLUMES, source_name};
use crate::root::Root;
use crate::{carry_out, no_root, plan};

const POLL: Duration = Duration::from_millis(20);

/// The machine on which a guest is converted.
pub(crate) trait Machine {
    /// The device of the attached disk with this serial number; `None` while there is none.
    ///
    /// # Errors
    /// When the disk is there and cannot be used.
    fn device(&mut self, serial: &str) -> io::Result<Option<PathBuf>>;

    /// Gets ready to mount what these disks hold.
    fn prepare(&mut self, disks: &Disks);

    /// An empty directory to mount the guest at.
    fn mount_point(&self) -> &Path;

    /// How long disks are waited for.
    fn patience(&self) -> Duration;
}

/// Converts the guest on the requested disks.
pub(crate) fn convert(
    machine: &mut dyn Machine,
    request: &ConversionRequest,
    started: Instant,
) -> Result<ConversionReport, Failure> {
    let disks = attach(machine, &request.disks)?;
    machine.prepare(&disks);
    let inventory: Vec<DiskInventory> = disks.0.iter().map(Disk::inventory).collect();
    let mut mounts = Mounts(Vec::new());
    let report = convert_mounted(request, disks, machine.mount_point(), &mut mounts, started);
    mounts.unmount();
    report.map_err(|failure| Failure { disks: inventory, ..failure })
}

/// Why there is nothing more to report than one finding.
pub(crate) struct Failure {
    outcome: ConversionOutcome,
    finding: Finding,
    /// What the disks hold, where that is known.
    disks: Vec<DiskInventory>,
}

impl Failure {
    pub(crate) fn report(self) -> ConversionReport {
        let guest = (!self.disks.is_empty()).then(|| GuestInventory { disks: self.disks, ..GuestInventory::default() });
        ConversionReport { guest, ..ConversionReport::ended(self.outcome, self.finding) }
    }
}

impl From<Finding> for Failure {
    fn from(finding: Finding) -> Self {
        Self { outcome: ConversionOutcome::Failed, finding, disks: Vec::new() }
    }
}

pub(crate) fn machine_error(cause: impl Into<String>, remedy: &str) -> Finding {
    Finding::new(Severity::Error, "machine", cause, remedy)
}

fn convert_mounted(
    request: &ConversionRequest,
    disks: Disks,
    guest: &Path,
    mounts: &mut Mounts,
    started: Instant,
) -> Result<ConversionReport, Failure> {
    let (node, uuid, others) = find_root(&disks, guest)?;
    let mount_error = |error: io::Error| {
        machine_error(format!("cannot mount {}: {error}", node.display()), "check the file system on the source")
    };
    mounts.add(&node, guest, "ext4").map_err(mount_error)?;
    let root = Root::new(guest);
    mount_own_volumes(&root, &disks, mounts);
    let guest = Guest::survey(root, disks, request, uuid);
    let mut plan = plan(&guest);
    if others > 0 {
        let cause = format!("{others} more root file systems are on the disks; {} is converted", node.display());
        plan.proposal.findings.push(Finding::new(
            Severity::Warning,
            "machine",
            cause,
            "remove what the server does not boot from",
        ));
    }
    if !request.dry_run && plan.outcome == ConversionOutcome::Converted {
        mounts.make_writable().map_err(mount_error)?;
    }
    Ok(carry_out(&guest, plan, request.dry_run, started))
}

/// Waits for the requested disks and reads them, in the request's order.
fn attach(machine: &mut dyn Machine, requested: &[RequestedDisk]) -> Result<Disks, Failure> {
    let deadline = Instant::now() + machine.patience();
    let mut disks = Vec::new();
    for disk in requested {
        let node = await_device(machine, &disk.serial, deadline)?;
        let disk = Disk::read(&node, disk.source_device.clone()).map_err(|error| {
            machine_error(format!("cannot read {}: {error}", node.display()), "see the conversion machine's console")
        })?;
        wait_for_nodes(&disk, deadline);
        disks.push(disk);
    }
    Ok(Disks(disks))
}

fn await_device(machine: &mut dyn Machine, serial: &str, deadline: Instant) -> Result<PathBuf, Failure> {
    loop {
        let device = machine.device(serial).map_err(|error| {
            machine_error(format!("volume {serial} cannot be used: {error}"), "see the conversion machine's console")
        })?;
        match device {
            Some(device) => return Ok(device),
            None if Instant::now() >= deadline => {
                let cause = format!("volume {serial} is not attached");
                return Err(machine_error(cause, "attach it as an NVMe disk with its id as serial number").into());
            }
            None => thread::sleep(POLL),
        }
    }
}

/// Serial numbers (without the hyphen that some EBS volumes' have) and devices of the NVMe disks, by name.
pub(crate) fn nvme_disks() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("nvme"));
    let mut disks: Vec<(String, PathBuf)> = names
        .filter_map(|name| {
            let serial = fs::read_to_string(format!("/sys/block/{name}/device/serial")).ok()?;
            let device = PathBuf::from(format!("/dev/{name}"));
            device.exists().then(|| (plain(&serial), device))
        })
        .collect();
    disks.sort_by(|a, b| a.1.cmp(&b.1));
    disks
}

/// A serial number or a volume's id, without space around it and without hyphen.
pub(crate) fn plain(serial: &str) -> String {
    serial.trim().replace('-', "")
}

/// The kernel announces partitions a little after their disk.
fn wait_for_nodes(disk: &Disk, deadline: Instant) {
    let is_there = |volume: &Volume| disk.volume_node(volume.partition.number).exists();
    while !disk.volumes.iter().all(is_there) && Instant::now() < deadline {
        thread::sleep(POLL);
    }
}

/// The root file system's device and UUID, and how many more there are. Mounting replays the journal, as the guest itself would.
fn find_root(disks: &Disks, guest: &Path) -> Result<(PathBuf, Option<String>, usize), Failure> {
    let mut found: Vec<(bool, PathBuf, Option<String>)> = Vec::new();
    let mut failed = None;
    for (disk, volume) in disks.volumes() {
        if !volume.superblock.as_ref().is_some_and(|superblock| superblock.content.is_ext()) {
            continue;
        }
        let node = disk.volume_node(volume.partition.number);
        let mut mounts = Mounts(Vec::new());
        match mounts.add(&node, guest, "ext4") {
            Ok(()) => {
                let root = Root::new(guest);
                if is_root(&root) {
                    found.push((names_itself(&root, disks, volume), node, volume.uuid().map(str::to_owned)));
                }
            }
            Err(error) => failed = Some(cannot_mount(&source_name(disk, volume), &error)),
        }
        mounts.unmount();
    }
    let others = found.len().saturating_sub(1);
    let best = found.iter().position(|(names_itself, ..)| *names_itself).unwrap_or(0);
    match (found.into_iter().nth(best), failed) {
        (Some((_, node, uuid)), _) => Ok((node, uuid, others)),
        (None, Some(finding)) => Err(finding.into()),
        (None, None) => Err(Failure { outcome: ConversionOutcome::Unsupported, ..Failure::from(no_root(disks)) }),
    }
}

fn cannot_mount(what: &str, error: &io::Error) -> Finding {
    let cause = format!("the file system on the source's {what} cannot be mounted: {error}");
    machine_error(
        cause,
        "check it on the source (`fsck.mode=force` on the kernel's command line, reboot), then launch again",
    )
}

fn is_root(root: &Root) -> bool {
    let has_init = ["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/etc/os-release"]
        .iter()
        .any(|path| root.has_name(path));
    has_init && root.is_directory("/etc")
}

/// Whether the tree's own fstab says that this volume is its root: an old copy of a system says it of another.
fn names_itself(root: &Root, disks: &Disks, volume: &Volume) -> bool {
    let text = root.text("/etc/fstab").unwrap_or_default();
    fstab::entries(&text).filter(|entry| entry.mount_point == "/").any(|entry| match disks.resolve(entry.device) {
        Resolution::Found(_, own) => own == volume,
        _ => false,
    })
}

/// `/boot`, the EFI system partition and the like, outer ones first. What cannot be mounted is missed by the rules, which say so.
fn mount_own_volumes(root: &Root, disks: &Disks, mounts: &mut Mounts) {
    let text = root.text("/etc/fstab").unwrap_or_default();
    let mut entries: Vec<fstab::Entry<'_>> =
        fstab::entries(&text).filter(|entry| OWN_VOLUMES.contains(&entry.mount_point)).collect();
    entries.sort_by_key(|entry| entry.mount_point.len());
    for entry in entries {
        let Resolution::Found(disk, volume) = disks.resolve(entry.device) else { continue };
        let Some(superblock) = &volume.superblock else { continue };
        let kind = if superblock.content.is_ext() { "ext4" } else { superblock.content.name() };
        let node = disk.volume_node(volume.partition.number);
        let mounted = root.resolve(entry.mount_point).and_then(|target| mounts.add(&node, &target, kind));
        if let Err(error) = mounted {
            println!("rehost-converter: {} on {}: {error}", node.display(), entry.mount_point);
        }
    }
}

/// What is mounted, in order.
struct Mounts(Vec<PathBuf>);

impl Mounts {
    const SAFE: MountFlags =
        MountFlags::NODEV.union(MountFlags::NOSUID).union(MountFlags::NOEXEC).union(MountFlags::NOATIME);

    /// Mounts read-only.
    fn add(&mut self, node: &Path, target: &Path, kind: &str) -> io::Result<()> {
        let _ = fs::create_dir(target);
        mount(node, target, kind, Self::SAFE | MountFlags::RDONLY, None)?;
        self.0.push(target.to_owned());
        Ok(())
    }

    fn make_writable(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|target| mount_remount(target, Self::SAFE, "").map_err(io::Error::from))
    }

    fn unmount(&mut self) {
        for target in self.0.drain(..).rev() {
            if let Err(error) = unmount(&target, UnmountFlags::empty()) {
                println!("rehost-converter: cannot unmount {}: {error}", target.display());
            }
        }
    }
}

impl Drop for Mounts {
    /// Also when a rule panicked: nothing stays mounted.
    fn drop(&mut self) {
        self.unmount();
    }
}
