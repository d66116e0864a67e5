//! Small disks, loads on them, and a replica that is kept by nothing but a tracker's marks.
#![allow(clippy::unwrap_used)] // A test that cannot go on fails.
#![allow(dead_code)] // Each test uses a part of it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use rehost_agent::tracker::{self, DiskTracker, Opened, Pass, TrackedDisk, TrackerOptions};
use rehost_model::{ServerId, VolumeId, replication::TrackerKind};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const MIB: u64 = 1 << 20;

/// Whether such tests can run here; says why not.
pub(crate) fn can_run() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let has_loop = Path::new("/dev/loop-control").exists();
    if !is_root || !has_loop {
        println!("skipped: needs root and loop devices");
    }
    is_root && has_loop
}

/// A server with a bpffs of its own. Its pins are removed at the end, and with them the mount.
pub(crate) struct Server {
    pub(crate) options: TrackerOptions,
    _directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bpffs = directory.path().to_owned();
        let options = TrackerOptions { server: ServerId::generate(), bpffs, map_bytes: 8 * MIB };
        Self { options, _directory: directory }
    }

    pub(crate) fn open(&self, disk: &TrackedDisk) -> Opened {
        self.open_at_best(disk, TrackerKind::Ebpf)
    }

    pub(crate) fn open_at_best(&self, disk: &TrackedDisk, kind: TrackerKind) -> Opened {
        let opened = tracker::open_at_best(disk, &self.options, kind);
        if !opened.why.is_empty() {
            println!("{}: {:?}", disk.path.display(), opened.why);
        }
        opened
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = tracker::forget(&self.options) {
            eprintln!("pins are left: {error}");
        }
    }
}

/// A disk that is made for a test.
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    directory: tempfile::TempDir,
    /// The number of a zram device; else it is a loop device.
    zram: Option<String>,
}

const ZRAM: &str = "/sys/class/zram-control";

impl Disk {
    /// A loop device over a sparse file.
    pub(crate) fn new(size: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk.img");
        File::create(&file).unwrap().set_len(size).unwrap();
        let shown = run(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&file));
        let path = String::from_utf8(shown.stdout).unwrap().trim().into();
        Self { path, size, directory, zram: None }
    }

    /// Detaches a loop device, and attaches it under the same name as soon as nobody else has that.
    pub(crate) fn attach_again(&self) {
        run(Command::new("losetup").arg("-d").arg(&self.path));
        let mut attach = Command::new("losetup");
        attach.arg("--direct-io=on").arg(&self.path).arg(self.directory.path().join("disk.img"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !attach.status().unwrap().success() {
            assert!(Instant::now() < deadline, "{} stays in use", self.path.display());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// A disk without request queue; none where there is no such driver.
    pub(crate) fn without_requests(size: u64) -> Option<Self> {
        let number = fs::read_to_string(Path::new(ZRAM).join("hot_add")).ok()?.trim().to_owned();
        let (path, directory) = (format!("/dev/zram{number}").into(), tempfile::tempdir().unwrap());
        fs::write(format!("/sys/block/zram{number}/disksize"), size.to_string()).unwrap();
        Some(Self { path, size, directory, zram: Some(number) })
    }

    pub(crate) fn tracked(&self) -> TrackedDisk {
        TrackedDisk { path: self.path.clone(), volume: VolumeId::generate(), size_bytes: self.size }
    }

    pub(crate) fn mkfs(&self, filesystem: &str) {
        let force = if filesystem == "ext4" { "-F" } else { "-f" };
        run(Command::new(format!("mkfs.{filesystem}")).args(["-q", force]).arg(&self.path));
    }

    pub(crate) fn mount(&self) -> Mount {
        let at = self.directory.path().join("mounted");
        fs::create_dir_all(&at).unwrap();
        run(Command::new("mount").arg(&self.path).arg(&at));
        Mount(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(number) = &self.zram {
            let _ = fs::write(format!("/sys/block/zram{number}/reset"), "1");
            let _ = fs::write(Path::new(ZRAM).join("hot_remove"), number);
        } else {
            let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
        }
    }
}

/// A mounted file system.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A copy of a disk in memory.
pub(crate) struct Replica {
    disk: File,
    bytes: Vec<u8>,
    buffer: Vec<u8>,
    pass: Pass,
    /// How many bytes were read since the first copy.
    pub(crate) copied: u64,
}

const STEP: usize = 1 << 20;

impl Replica {
    /// Copies the whole disk.
    pub(crate) fn of(disk: &Disk) -> Self {
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(direct).open(&disk.path).unwrap();
        let bytes = vec![0; usize::try_from(disk.size).unwrap()];
        let mut replica = Self { disk: file, bytes, buffer: vec![0; STEP + BLOCK], pass: Pass::FIRST, copied: 0 };
        replica.copy(0, disk.size);
        replica.copied = 0;
        replica
    }

    /// One pass: collect, read, settle.
    pub(crate) fn pass(&mut self, tracker: &mut dyn DiskTracker) {
        tracker.collect(self.pass).unwrap();
        for range in tracker.pending() {
            self.copy(range.offset, range.length);
            tracker.settle(range, self.pass);
        }
        assert!(tracker.pending().is_empty(), "all of it was settled");
        self.pass = self.pass.next();
    }

    /// The blocks in which it differs from the disk.
    pub(crate) fn differences(&mut self) -> Vec<usize> {
        let mut differing = Vec::new();
        for at in (0..self.bytes.len()).step_by(STEP) {
            let length = STEP.min(self.bytes.len() - at);
            let read = read_direct(&self.disk, &mut self.buffer, at, length);
            let pairs = read.chunks(BLOCK).zip(self.bytes[at..at + length].chunks(BLOCK)).enumerate();
            differing.extend(pairs.filter(|(_, (now, then))| now != then).map(|(block, _)| at / BLOCK + block));
        }
        differing
    }

    fn copy(&mut self, offset: u64, length: u64) {
        let (mut at, end) = (usize::try_from(offset).unwrap(), usize::try_from(offset + length).unwrap());
        self.copied += length;
        while at < end {
            let length = STEP.min(end - at);
            let read = read_direct(&self.disk, &mut self.buffer, at, length);
            self.bytes[at..at + length].copy_from_slice(read);
            at += length;
        }
    }
}

fn read_direct<'a>(disk: &File, buffer: &'a mut [u8], at: usize, length: usize) -> &'a [u8] {
    let aligned = buffer.as_ptr().align_offset(BLOCK);
    let space = &mut buffer[aligned..aligned + length];
    disk.read_exact_at(space, at as u64).unwrap();
    space
}

/// Runs a command, which must succeed.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {} {errors}", output.status);
    output
}

/// One run of fio in a directory; `how` is what is special about it.
pub(crate) fn fio(directory: &Path, name: &str, how: &[&str]) {
    let mut command = Command::new("fio");
    command.arg(format!("--name={name}")).arg(format!("--directory={}", directory.display()));
    command.args(["--output-format=terse", "--size=24M", "--rw=randwrite", "--bsrange=4k-64k", "--numjobs=2"]);
    command.args(["--refill_buffers", "--randseed=7", "--io_size=24M"]);
    run(command.args(how));
}

/// Writes to a disk, raw and through a file system, in all the ways there are.
pub(crate) fn load(disk: &Disk, filesystem: &str) {
    let mount = disk.mount();
    let at = mount.0.as_path();
    fio(at, "buffered", &["--ioengine=psync"]);
    fio(at, "direct", &["--ioengine=psync", "--direct=1"]);
    fio(at, "fsync", &["--ioengine=psync", "--fsync=8"]);
    fio(at, "uring", &["--ioengine=io_uring", "--direct=1", "--iodepth=16"]);
    let change = |arguments: &[&str], file: &str| run(Command::new("fallocate").args(arguments).arg(at.join(file)));
    change(&["--punch-hole", "--offset", "1M", "--length", "9M"], "direct.0.0");
    change(&["--zero-range", "--offset", "3M", "--length", "8M"], "direct.1.0");
    run(Command::new("sync").arg("-f").arg(at));
    fs::remove_file(at.join("buffered.0.0")).unwrap();
    run(Command::new("fstrim").arg(at));
    drop(mount);
    disk.mkfs(filesystem);
    run(Command::new("blkdiscard").args(["--zeroout", "--offset", "64M", "--length", "40M"]).arg(&disk.path));
    run(Command::new("blkdiscard").args(["--offset", "128M", "--length", "90M"]).arg(&disk.path));
}

/// Keeps the replica equal by passes while `load` runs. Returns how many there were.
pub(crate) fn passes_during(replica: &mut Replica, tracker: &mut dyn DiskTracker, load: impl FnOnce() + Send) -> u64 {
    let mut passes = 0;
    thread::scope(|scope| {
        let load = scope.spawn(load);
        while !load.is_finished() {
            replica.pass(tracker);
            passes += 1;
            thread::sleep(Duration::from_millis(2));
        }
        load.join().unwrap();
    });
    replica.pass(tracker);
    passes
}

/// Waits until nothing is being written. (Not at once: a write whose completion passed unseen counts as being written for a
/// while.)
pub(crate) fn await_quiet(replica: &mut Replica, tracker: &mut dyn DiskTracker) {
    let start = Instant::now();
    while !tracker.is_quiet().unwrap() {
        assert!(start.elapsed() < Duration::from_secs(120), "it is never quiet");
        thread::sleep(Duration::from_millis(100));
        replica.pass(tracker);
    }
}
