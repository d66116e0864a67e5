//! Whatever writes to a disk, and however: a replica that copies only what is marked ends up identical.
#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod tracker_bed;

use std::{
    fs::{self, File},
    io::Write as _,
    process::{Child, Command, Stdio},
};

use rehost_model::replication::TrackerKind;
use tracker_bed::{Disk, MIB, Replica, Server, await_quiet, can_run, load, passes_during, run};

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

#[test]
fn live_nothing_is_missed_on_a_disk_without_request_queue() {
    if !can_run() {
        return;
    }
    let Some(disk) = Disk::without_requests(400 * MIB) else {
        println!("skipped: no zram here");
        return;
    };
    nothing_is_missed_on(&disk, "ext4", TrackerKind::EbpfBio);
}

/// Other users of eBPF: programs on the very same events, and a process that works on maps without pause.
#[test]
fn live_nothing_is_missed_beside_other_users_of_ebpf() {
    if !can_run() {
        return;
    }
    let disk = Disk::new(400 * MIB);
    let other = Server::new();
    let tracked = disk.tracked();
    let opened = other.open(&tracked);
    assert_eq!(opened.kind, TrackerKind::Ebpf, "{opened:?}");
    let pins = other.options.bpffs.join("rehost").join(other.options.server.as_str()).join(tracked.volume.as_str());
    let _busy = MapUser::of(&pins.join("notes"));
    nothing_is_missed_on(&disk, "ext4", TrackerKind::Ebpf);
    nothing_is_missed_on(&disk, "ext4", TrackerKind::Ftrace);
}

fn nothing_is_missed(filesystem: &str, kind: TrackerKind) {
    if can_run() {
        nothing_is_missed_on(&Disk::new(400 * MIB), filesystem, kind);
    }
}

fn nothing_is_missed_on(disk: &Disk, filesystem: &str, kind: TrackerKind) {
    let server = Server::new();
    disk.mkfs(filesystem);
    let opened = server.open_at_best(&disk.tracked(), kind);
    assert_eq!(opened.kind, kind, "{opened:?}");
    let mut tracker = opened.tracker.unwrap();
    let mut replica = Replica::of(disk);
    let passes = passes_during(&mut replica, tracker.as_mut(), || load(disk, filesystem));
    println!("{filesystem}, {kind:?}: {passes} passes, {} MiB copied", replica.copied / MIB);
    let missed = replica.differences();
    assert!(missed.is_empty(), "{filesystem}: {} blocks were missed: {missed:?}", missed.len());
    await_quiet(&mut replica, tracker.as_mut());
}

/// A process that writes to a map and reads it, again and again.
struct MapUser {
    shell: Child,
    _directory: tempfile::TempDir,
}

impl MapUser {
    fn of(map: &std::path::Path) -> Self {
        run(Command::new("bpftool").arg("version"));
        let directory = tempfile::tempdir().unwrap();
        let batch = directory.path().join("batch");
        let mut commands = File::create(&batch).unwrap();
        for _ in 0..2000 {
            let (map, key) = (map.display(), "key 1 0 0 0 0 0 0 0");
            let value = ["0"; 16].join(" ");
            writeln!(commands, "map update pinned {map} {key} value {value}\nmap lookup pinned {map} {key}").unwrap();
        }
        let script = format!("while bpftool -j batch file {}; do :; done", batch.display());
        let mut shell = Command::new("sh");
        let shell = shell.arg("-c").arg(script).stdout(Stdio::null()).spawn().unwrap();
        Self { shell, _directory: directory }
    }
}

impl Drop for MapUser {
    fn drop(&mut self) {
        // The loop ends with its next round: the file is gone. It is waited for, so that it holds nothing.
        fs::remove_dir_all(self._directory.path()).unwrap();
        assert!(self.shell.wait().is_ok());
    }
}
