//! Marks outlive the agent, and belong to one disk.
#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod tracker_bed;

use std::{
    env,
    fs::OpenOptions,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rehost_agent::tracker::{self, DiskIdentity, Pass, TrackedDisk, TrackerOptions};
use rehost_model::replication::TrackerKind;
use rehost_protocol::Lineage;
use tracker_bed::{Disk, MIB, Replica, Server, can_run, fio, run};

const LINEAGE: Lineage = Lineage([7; 16]);

/// What the agent that is killed is told: server, bpffs, volume, disk, size.
const AGENT: &str = "REHOST_TEST_TRACKER_AGENT";

#[test]
fn live_marks_outlive_agents_that_are_killed_while_they_collect() {
    if let Ok(told) = env::var(AGENT) {
        agent(&told);
    }
    if !can_run() {
        return;
    }
    let (disk, server) = (Disk::new(400 * MIB), Server::new());
    disk.mkfs("ext4");
    let tracked = disk.tracked();
    let mut tracker = server.open(&tracked).tracker.unwrap();
    tracker.cover(&LINEAGE);
    drop(tracker);
    let mut replica = Replica::of(&disk);
    let mut kills = 0;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mount = disk.mount();
            fio(&mount.0, "buffered", &["--ioengine=psync", "--fsync=16"]);
            fio(&mount.0, "direct", &["--ioengine=io_uring", "--direct=1", "--iodepth=8"]);
        });
        while !writer.is_finished() {
            let agent = Agent::start(&server.options, &tracked);
            thread::sleep(Duration::from_millis(20 + kills * 7 % 50));
            agent.kill();
            kills += 1;
        }
        writer.join().unwrap();
    });
    let mut tracker = server.open(&tracked).tracker.unwrap();
    assert!(tracker.covers(&LINEAGE));
    replica.pass(tracker.as_mut());
    println!("{kills} agents were killed, {} MiB were marked", replica.copied / MIB);
    assert!(kills > 3);
    let missed = replica.differences();
    assert!(missed.is_empty(), "{} blocks were missed: {missed:?}", missed.len());
}

/// Collects without end.
fn agent(told: &str) -> ! {
    let mut words = told.split(' ');
    let mut word = || words.next().unwrap();
    let options = TrackerOptions { server: word().parse().unwrap(), bpffs: word().into(), map_bytes: 8 * MIB };
    let volume = word().parse().unwrap();
    let disk = TrackedDisk { volume, path: word().into(), size_bytes: word().parse().unwrap() };
    let mut tracker = tracker::open(&disk, &options).tracker.unwrap();
    assert!(tracker.covers(&LINEAGE));
    println!("collecting");
    let mut pass = Pass::FIRST;
    loop {
        tracker.collect(pass).unwrap();
        pass = pass.next();
    }
}

struct Agent(Child);

impl Agent {
    fn start(options: &TrackerOptions, disk: &TrackedDisk) -> Self {
        let (server, bpffs) = (options.server.as_str(), options.bpffs.display());
        let told = format!("{server} {bpffs} {} {} {}", disk.volume.as_str(), disk.path.display(), disk.size_bytes);
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["live_marks_outlive_agents_that_are_killed_while_they_collect", "--exact", "--nocapture"]);
        let mut child = command.env(AGENT, told).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.ends_with("collecting")), "the agent did not start");
        Self(child)
    }

    fn kill(self) {
        drop(self);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn live_what_was_kept_for_another_size_is_discarded_and_a_granule_stays() {
    if !can_run() {
        return;
    }
    let (disk, mut server) = (Disk::new(64 * MIB), Server::new());
    let tracked = disk.tracked();
    let mut opened = server.open(&tracked);
    opened.tracker.as_mut().unwrap().cover(&LINEAGE);
    drop(opened);
    let kept = server.open(&tracked);
    assert!(kept.tracker.unwrap().covers(&LINEAGE) && kept.why.is_empty());
    let grown = TrackedDisk { size_bytes: 32 * MIB, ..tracked.clone() };
    let opened = server.open(&grown);
    assert!(!opened.tracker.unwrap().covers(&LINEAGE));
    assert!(opened.why.iter().any(|why| why.contains("discarded")), "{:?}", opened.why);
    server.open(&grown).tracker.unwrap().cover(&LINEAGE);
    server.options.map_bytes = 4096;
    let opened = server.open(&grown);
    assert_eq!(opened.why, Vec::<String>::new());
    let tracker = opened.tracker.unwrap();
    assert!(tracker.covers(&LINEAGE) && tracker.granule_bytes() == 4096);
    drop(tracker);
    tracker::forget_volume(&server.options, &grown.volume).unwrap();
    assert_eq!(server.open(&grown).tracker.unwrap().granule_bytes(), 8192);
}

#[test]
fn live_a_disk_that_is_attached_again_is_another_one() {
    if !can_run() {
        return;
    }
    let (disk, server) = (Disk::new(64 * MIB), Server::new());
    let tracked = disk.tracked();
    let before = DiskIdentity::at(&disk.path);
    assert_eq!(DiskIdentity::at(&disk.path), before);
    server.open(&tracked).tracker.unwrap().cover(&LINEAGE);
    disk.attach_again();
    if !before.is_counted {
        println!("skipped: this kernel does not count its disks, and a loop device keeps its node");
        return;
    }
    assert_ne!(DiskIdentity::at(&disk.path), before);
    assert!(!server.open(&tracked).tracker.unwrap().covers(&LINEAGE));
}

#[test]
fn live_what_is_forgotten_leaves_nothing() {
    if !can_run() {
        return;
    }
    let (disk, server) = (Disk::new(64 * MIB), Server::new());
    let bpffs = &server.options.bpffs;
    let [first, second] = [disk.tracked(), disk.tracked()];
    let trackers = [server.open(&first), server.open(&second)];
    assert!(bpffs.join("rehost").exists());
    tracker::forget_volume(&server.options, &first.volume).unwrap();
    tracker::forget_volume(&server.options, &first.volume).unwrap();
    let kept = server.options.bpffs.join("rehost").join(server.options.server.as_str());
    assert_eq!(kept.read_dir().unwrap().count(), 1);
    assert_eq!(tracker::kept_volumes(&server.options), std::slice::from_ref(&second.volume));
    drop(trackers);
    tracker::forget(&server.options).unwrap();
    assert_eq!(bpffs.read_dir().unwrap().count(), 0, "bpffs was unmounted");
    let programs = run(Command::new("bpftool").args(["-j", "link", "show"])).stdout;
    let shown = String::from_utf8_lossy(&programs).into_owned();
    println!("{shown}");
    tracker::forget(&server.options).unwrap();
}

#[test]
fn live_a_partition_reports_its_disk_and_is_none() {
    if !can_run() {
        return;
    }
    let (disk, server) = (Disk::new(64 * MIB), Server::new());
    let _partition = Partition::on(&disk);
    let partition = format!("{}p1", disk.path.display());
    let opened = server.open(&TrackedDisk { path: partition.clone().into(), ..disk.tracked() });
    assert_eq!(opened.kind, TrackerKind::Rescan);
    assert!(opened.why.iter().any(|why| why.contains("partition")), "{:?}", opened.why);
    for kind in [TrackerKind::Ebpf, TrackerKind::Ftrace] {
        let mut tracker = server.open_at_best(&disk.tracked(), kind).tracker.unwrap();
        let file = OpenOptions::new().write(true).open(&partition).unwrap();
        file.write_all_at(&[1; 4096], 3 * 4096).unwrap();
        file.sync_all().unwrap();
        tracker.collect(Pass::FIRST).unwrap();
        let pending: Vec<_> = tracker.pending().iter().map(|range| (range.offset, range.length)).collect();
        assert_eq!(pending, [(MIB + 3 * 4096, 4096)], "{kind:?}");
    }
}

/// 4 MiB at 1 MiB. The kernel is told by hand: it may not know this kind of table, and keeps partitions of loop devices.
struct Partition(PathBuf);

impl Partition {
    fn on(disk: &Disk) -> Self {
        let path = disk.path.display();
        let partition = Self(disk.path.clone());
        drop(Command::new("partx").arg("--delete").arg(&disk.path).output());
        run(Command::new("sh").arg("-c").arg(format!("echo 2048,8192 | sfdisk -q {path} && partx --update {path}")));
        partition
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        drop(Command::new("partx").arg("--delete").arg(&self.0).output());
    }
}

#[test]
fn an_image_file_is_compared_by_digests() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let disk = TrackedDisk { path: file.path().into(), volume: rehost_model::VolumeId::generate(), size_bytes: MIB };
    let opened = Server::new().open(&disk);
    assert_eq!((opened.kind, opened.tracker.is_none()), (TrackerKind::Rescan, true));
}
