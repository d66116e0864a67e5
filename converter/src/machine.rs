//! The conversion machine: the converter as its first and only program (`/init`).
//!
//! The request stands on the kernel's command line, the volumes are NVMe disks whose serial numbers are the volumes' ids, the
//! report goes to the second serial line (`ttyS1`; see [`rehost_model::conversion`]). Whatever happens, it ends with a report and with
//! the power off: nobody is there to type at a prompt.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rehost_model::conversion::{
    ConversionOutcome, ConversionReport, ConversionRequest, DiskInventory, Finding, GuestInventory, RequestedDisk,
    Severity, frame_report,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::disk::{Content, Disk, Disks, Resolution, Volume};
use crate::fstab;
use crate::guest::{Guest, OWN_VOLUMES, source_name};
use crate::initramfs::MODULE_DIRECTORY;
use crate::root::Root;
use crate::{carry_out, no_root, plan};

const GUEST: &str = "/guest";
const REPORT_LINE: &str = "/dev/ttyS1";
const DISK_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Whether this process is a machine's first program.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1 && std::env::args().next().as_deref() == Some("/init")
}

/// Converts, reports, powers off.
pub fn run() -> ! {
    let started = Instant::now();
    let converted =
        panic::catch_unwind(AssertUnwindSafe(|| mount_kernel_file_systems().and_then(|()| convert(started))));
    let mut report = match converted {
        Ok(Ok(report)) => report,
        Ok(Err(failure)) => failure.report(),
        Err(_) => {
            let finding = machine_error("the converter ended unexpectedly", "report this with the machine's console");
            ConversionReport::ended(ConversionOutcome::Failed, finding)
        }
    };
    report.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Err(error) = deliver(&report) {
        println!("rehost-converter: the report could not be written: {error}");
    }
    rustix::fs::sync();
    loop {
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
        thread::sleep(Duration::from_secs(1));
    }
}

/// Why there is nothing more to report than one finding.
struct Failure {
    outcome: ConversionOutcome,
    finding: Finding,
    /// What the disks hold, where that is known.
    disks: Vec<DiskInventory>,
}

impl Failure {
    fn report(self) -> ConversionReport {
        let guest = (!self.disks.is_empty()).then(|| GuestInventory { disks: self.disks, ..GuestInventory::default() });
        ConversionReport { guest, ..ConversionReport::ended(self.outcome, self.finding) }
    }
}

impl From<Finding> for Failure {
    fn from(finding: Finding) -> Self {
        Self { outcome: ConversionOutcome::Failed, finding, disks: Vec::new() }
    }
}

fn machine_error(cause: impl Into<String>, remedy: &str) -> Finding {
    Finding::new(Severity::Error, "machine", cause, remedy)
}

fn mount_kernel_file_systems() -> Result<(), Failure> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir(target);
        mount(kind, target, kind, MountFlags::empty(), None)
            .map_err(|error| machine_error(format!("cannot mount {target}: {error}"), "use Debian's cloud kernel"))?;
    }
    Ok(())
}

fn convert(started: Instant) -> Result<ConversionReport, Failure> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let request = ConversionRequest::from_kernel_command_line(&line)
        .map_err(|error| machine_error(error.to_string(), "launch the conversion machine again"))?;
    let disks = attach(&request.disks)?;
    if disks.volumes().any(|(_, volume)| volume.holds(Content::Vfat)) {
        load_modules();
    }
    let inventory: Vec<DiskInventory> = disks.0.iter().map(Disk::inventory).collect();
    let mut mounts = Mounts(Vec::new());
    let report = convert_mounted(&request, disks, &mut mounts, started);
    mounts.unmount();
    report.map_err(|failure| Failure { disks: inventory, ..failure })
}

fn convert_mounted(
    request: &ConversionRequest,
    disks: Disks,
    mounts: &mut Mounts,
    started: Instant,
) -> Result<ConversionReport, Failure> {
    let (node, uuid, others) = find_root(&disks)?;
    let mount_error = |error: io::Error| {
        machine_error(format!("cannot mount {}: {error}", node.display()), "check the file system on the source")
    };
    mounts.add(&node, Path::new(GUEST), "ext4").map_err(mount_error)?;
    let root = Root::new(Path::new(GUEST));
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

/// Waits for the requested volumes and reads them, in the request's order; without a request's list all that there are.
fn attach(requested: &[RequestedDisk]) -> Result<Disks, Failure> {
    let deadline = Instant::now() + DISK_TIMEOUT;
    let names = loop {
        let attached = attached_disks();
        let find = |disk: &RequestedDisk| {
            attached.iter().find(|(serial, _)| *serial == disk.serial).map(|(_, name)| name.clone())
        };
        let missing = requested.iter().find(|disk| find(disk).is_none());
        match missing {
            None if !requested.is_empty() => break requested.iter().filter_map(find).collect(),
            None if !attached.is_empty() => break attached.into_iter().map(|(_, name)| name).collect::<Vec<_>>(),
            Some(disk) if Instant::now() >= deadline => {
                let cause = format!("volume {} is not attached", disk.serial);
                return Err(machine_error(cause, "attach it as an NVMe disk with its id as serial number").into());
            }
            None if Instant::now() >= deadline => {
                return Err(machine_error("no disk is attached", "attach the server's volumes as NVMe disks").into());
            }
            _ => thread::sleep(POLL),
        }
    };
    let sources = requested.iter().map(|disk| disk.source_device.clone()).chain(std::iter::repeat(None));
    let read = |(name, source): (&String, Option<String>)| {
        let node = PathBuf::from(format!("/dev/{name}"));
        let disk = Disk::read(&node, source).map_err(|error| {
            machine_error(format!("cannot read {}: {error}", node.display()), "see the conversion machine's console")
        })?;
        wait_for_nodes(&disk, deadline);
        Ok(disk)
    };
    names.iter().zip(sources).map(read).collect::<Result<_, _>>().map(Disks)
}

/// Serial numbers and names of the NVMe disks, by name.
fn attached_disks() -> Vec<(String, String)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("nvme"));
    let mut disks: Vec<(String, String)> = names
        .filter_map(|name| {
            let serial = fs::read_to_string(format!("/sys/block/{name}/device/serial")).ok()?;
            Path::new(&format!("/dev/{name}")).exists().then(|| (serial.trim().to_owned(), name))
        })
        .collect();
    disks.sort_by(|a, b| a.1.cmp(&b.1));
    disks
}

/// The kernel announces partitions a little after their disk.
fn wait_for_nodes(disk: &Disk, deadline: Instant) {
    let is_there = |volume: &Volume| disk.volume_node(volume.partition.number).exists();
    while !disk.volumes.iter().all(is_there) && Instant::now() < deadline {
        thread::sleep(POLL);
    }
}

/// Loads the modules of the EFI system partition's file system. If one fails, so will the mount, which says so.
fn load_modules() {
    let order = fs::read_to_string(format!("{MODULE_DIRECTORY}/order")).unwrap_or_default();
    for name in order.lines() {
        let loaded = File::open(format!("{MODULE_DIRECTORY}/{name}"))
            .and_then(|file| rustix::system::finit_module(&file, c"", 0).map_err(io::Error::from));
        if let Err(error) = loaded {
            println!("rehost-converter: module {name}: {error}");
        }
    }
}

/// The root file system's device and UUID, and how many more there are. Mounting replays the journal, as the guest itself would.
fn find_root(disks: &Disks) -> Result<(PathBuf, Option<String>, usize), Failure> {
    let mut found: Vec<(bool, PathBuf, Option<String>)> = Vec::new();
    let mut failed = None;
    for (disk, volume) in disks.volumes() {
        if !volume.superblock.as_ref().is_some_and(|superblock| superblock.content.is_ext()) {
            continue;
        }
        let node = disk.volume_node(volume.partition.number);
        let mut mounts = Mounts(Vec::new());
        match mounts.add(&node, Path::new(GUEST), "ext4") {
            Ok(()) => {
                let root = Root::new(Path::new(GUEST));
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

/// To the second serial line; where there is none, to the console among its messages.
fn deliver(report: &ConversionReport) -> io::Result<()> {
    let framed = frame_report(report).map_err(io::Error::other)?;
    let Ok(mut line) = OpenOptions::new().write(true).open(REPORT_LINE) else {
        return io::stdout().write_all(framed.as_bytes());
    };
    if let Err(error) = line.write_all(framed.as_bytes()).and_then(|()| Ok(rustix::termios::tcdrain(&line)?)) {
        println!("rehost-converter: {REPORT_LINE}: {error}");
        return io::stdout().write_all(framed.as_bytes());
    }
    println!("rehost-converter: {:?} in {} ms, {} edits", report.outcome, report.duration_ms, report.actions.len());
    Ok(())
}
