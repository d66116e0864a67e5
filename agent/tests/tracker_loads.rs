//! Whatever writes to a disk, and however: a replica that copies only what is marked ends up identical.

mod tracker_bed;

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use rehost_model::replication::TrackerKind;
use tracker_bed::{LoopDisk, MIB, Replica, Server, can_run, fio, run};

#[test]
fn live_nothing_is_missed_on_ext4() {
    nothing_is_missed("ext4", TrackerKind::Ebpf);
}

#[test]
fn live_nothing_is_missed_on_xfs() {
    nothing_is_missed("xfs", TrackerKind::Ebpf);
}

#[test]
fn live_nothing_is_missed_on_btrfs() {
    nothing_is_missed("btrfs", TrackerKind::Ebpf);
}

#[test]
fn live_nothing_is_missed_with_ftrace() {
    nothing_is_missed("ext4", TrackerKind::Ftrace);
}

fn nothing_is_missed(filesystem: &str, kind: TrackerKind) {
    if !can_run() {
        return;
    }
    let (disk, server) = (LoopDisk::new(400 * MIB), Server::new());
    disk.mkfs(filesystem);
    let opened = server.open_at_best(&disk.tracked(), kind);
    assert_eq!(opened.kind, kind, "{opened:?}");
    let mut tracker = opened.tracker.unwrap();
    let mut replica = Replica::of(&disk);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let _over = Over(&is_over);
            load(&disk, filesystem);
        });
        let mut passes = 0;
        while !is_over.load(Relaxed) {
            replica.pass(tracker.as_mut());
            passes += 1;
            thread::sleep(Duration::from_millis(2));
        }
        load.join().unwrap();
        println!("{filesystem}, {:?}: {passes} passes, {} MiB copied", opened.kind, replica.copied / MIB);
    });
    replica.pass(tracker.as_mut());
    let missed = replica.differences();
    assert!(missed.is_empty(), "{filesystem}: {} blocks were missed: {missed:?}", missed.len());
    assert!(tracker.is_quiet().unwrap());
}

/// Set when the load is over, however it ended.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn load(disk: &LoopDisk, filesystem: &str) {
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
    std::fs::remove_file(at.join("buffered.0.0")).unwrap();
    run(Command::new("fstrim").arg(at));
    drop(mount);
    disk.mkfs(filesystem);
    run(Command::new("blkdiscard").args(["--zeroout", "--offset", "64M", "--length", "40M"]).arg(&disk.path));
    run(Command::new("blkdiscard").args(["--offset", "128M", "--length", "90M"]).arg(&disk.path));
}
