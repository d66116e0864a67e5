//! Filesystems on loop devices that may be frozen, and are thawed and removed whatever happens.
#![allow(dead_code)] // Each test uses a part of it.
#![allow(clippy::unwrap_used)] // A bed that cannot be made fails the test.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rehost_agent::freeze::Freezer;

/// The agent, whose subcommand is the watchdog.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_rehost-agent");

/// So long a thaw may take in a test before it counts as missing: far longer than any limit that a test sets.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether such tests can run here; says why not.
pub(crate) fn can_run() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !can {
        println!("skipped: needs root and loop devices");
    }
    can
}

/// Whether this kernel knows such filesystems; says so if not.
pub(crate) fn can_mount(kind: &str) -> bool {
    // Also loads the module, if there is one.
    quietly(Command::new("modprobe").arg(kind));
    let can = fs::read_to_string("/proc/filesystems").unwrap().lines().any(|line| line.trim() == kind);
    if !can {
        println!("skipped: this kernel has no {kind}");
    }
    can
}

/// A loop device over a sparse file.
pub(crate) struct LoopDisk {
    pub(crate) device: PathBuf,
    file: PathBuf,
}

impl LoopDisk {
    /// In `directory`, which outlives it.
    pub(crate) fn new(directory: &Path, size_mib: u64) -> Self {
        let file = directory.join(format!("{}.img", fs::read_dir(directory).unwrap().count()));
        File::create(&file).unwrap().set_len(size_mib << 20).unwrap();
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&file)).trim().into();
        Self { device, file }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        quietly(Command::new("losetup").arg("--detach").arg(&self.device));
        let _ = fs::remove_file(&self.file);
    }
}

/// A mounted filesystem on a disk of its own.
pub(crate) struct Mounted {
    pub(crate) point: PathBuf,
    binds: Vec<PathBuf>,
    pub(crate) disk: LoopDisk,
}

impl Mounted {
    /// Of `kind`, in `directory`, which outlives it and may lie on another such filesystem.
    pub(crate) fn new(kind: &str, directory: &Path) -> Self {
        let size_mib = if kind == "xfs" { 320 } else { 160 };
        let disk = LoopDisk::new(directory, size_mib);
        let quiet = match kind {
            "ext4" => &["-q", "-F"][..],
            "vfat" => &[],
            _ => &["-q"],
        };
        run(Command::new(format!("mkfs.{kind}")).args(quiet).arg(&disk.device));
        let point = directory.join(format!("mnt-{}", disk.device.file_name().unwrap().display()));
        fs::create_dir(&point).unwrap();
        run(Command::new("mount").arg(&disk.device).arg(&point));
        Self { point, binds: Vec::new(), disk }
    }

    /// Mounts something else of it, as `mount {arguments} {point}`.
    pub(crate) fn mount_again(&mut self, arguments: &[&str], point: &Path) {
        fs::create_dir_all(point).unwrap();
        run(Command::new("mount").args(arguments).arg(point));
        self.binds.push(point.to_owned());
    }

    pub(crate) fn is_frozen_by_somebody(&self) -> bool {
        // There is no way to ask: who can thaw it, has found it frozen.
        let thawed = quietly(Command::new("fsfreeze").arg("--unfreeze").arg(&self.point));
        if thawed {
            assert!(quietly(Command::new("fsfreeze").arg("--freeze").arg(&self.point)));
        }
        thawed
    }

    pub(crate) fn freeze_by_somebody(&self) {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.point));
    }

    /// Thaws it; whether it was frozen.
    pub(crate) fn thaw_by_somebody(&self) -> bool {
        quietly(Command::new("fsfreeze").arg("--unfreeze").arg(&self.point))
    }

    /// Begins to write a file.
    pub(crate) fn write(&self) -> Write {
        let path = self.point.join("written");
        let (sender, done) = mpsc::channel();
        thread::spawn(move || {
            let mut file = File::create(path).unwrap();
            file.write_all(b"something").unwrap();
            file.sync_all().unwrap();
            let _ = sender.send(());
        });
        Write(done)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        while self.thaw_by_somebody() {}
        for point in self.binds.iter().rev().chain([&self.point]) {
            let end = Instant::now() + PATIENCE;
            while !quietly(Command::new("umount").arg(point)) && Instant::now() < end {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A file that is being written.
pub(crate) struct Write(Receiver<()>);

impl Write {
    /// It has not ended, although there was time enough.
    pub(crate) fn is_blocked(&self) -> bool {
        self.0.recv_timeout(Duration::from_millis(200)).is_err()
    }

    pub(crate) fn ends(&self) -> bool {
        self.0.recv_timeout(PATIENCE).is_ok()
    }
}

pub(crate) fn freezer(disks: &[&Mounted]) -> Freezer {
    let disks: Vec<_> = disks.iter().map(|mounted| mounted.disk.device.clone()).collect();
    Freezer::new(&disks, Path::new(AGENT)).unwrap()
}

/// Whether a process is there and not merely unreaped.
pub(crate) fn runs(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn signal(process: u32, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(process, signal).unwrap();
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn quietly(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
