//! A file system that never comes to rest, replicated while it is written to: kernel, trackers, freezes, wire, journal and
//! volume, all of them real.

#![allow(clippy::unwrap_used)] // What cannot be set up fails the test.

mod replicate_bed;
mod tracker_bed;

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rehost_agent::{
    freeze::Freezer,
    hooks::HookSet,
    run::HookedFreezer,
    sync::{Machine, Progress},
};
use rehost_model::{
    link::CheckpointSettings,
    replication::{Consistency, TrackerKind},
};
use replicate_bed::{Bed, wait_for};
use tracker_bed::{Disk, MIB, Server, can_run, run};

/// The agent, whose subcommand is the watchdog.
const AGENT: &str = env!("CARGO_BIN_EXE_rehost-agent");

/// As the daemon makes it: trackers, freezer, the scripts of nobody.
fn machine(server: &Server, disk: &Disk) -> Arc<Machine> {
    let machine = Machine::tracked(Box::new(server.options.clone()));
    let freezer = Freezer::new(std::slice::from_ref(&disk.path), Path::new(AGENT)).unwrap();
    let hooks = HookSet::new("/nonexistent", server.options.server.clone(), Duration::from_secs(1));
    machine.set_freezer(Some(Box::new(HookedFreezer::new(freezer, hooks))));
    machine
}

fn settings(interval_ms: u64) -> CheckpointSettings {
    CheckpointSettings { interval_ms, max_freeze_ms: 10_000, ..CheckpointSettings::default() }
}

/// Makes, renames, rewrites and removes files, and never waits.
fn metadata_load(at: &Path, over: &AtomicBool) {
    let mut round = 0_u64;
    while !over.load(Relaxed) {
        let directory = at.join(format!("d{}", round % 50));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("f{round}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&round.to_be_bytes().repeat(2000)).unwrap();
        if round.is_multiple_of(16) {
            file.sync_all().unwrap();
        }
        fs::rename(&path, directory.join(format!("g{}", round % 40))).unwrap();
        if round.is_multiple_of(100) {
            let _ = fs::remove_dir_all(at.join(format!("d{}", (round / 100) % 50)));
        }
        round += 1;
    }
    println!("{round} files were written");
}

fn show(what: &str, progress: &Progress) {
    let Progress { consistency, shortfall, freezes, backlog_bytes, lag_ms, sent_bytes, .. } = progress;
    println!("{what}: {consistency:?} {shortfall:?}, backlog {backlog_bytes}, lag {lag_ms:?}, sent {sent_bytes}");
    println!("  {freezes:?}");
}

/// A copy of a frozen ext4 is clean as it is; one of a quiet moment, and every xfs, after its journal was replayed.
fn assert_clean(copy: &Path, filesystem: &str, consistency: Consistency) {
    if consistency == Consistency::Quiescent || filesystem == "xfs" {
        let at = copy.with_extension("replayed");
        fs::create_dir_all(&at).unwrap();
        let options = if filesystem == "xfs" { "loop,nouuid" } else { "loop" };
        run(Command::new("mount").args(["-o", options]).arg(copy).arg(&at));
        run(Command::new("umount").arg(&at));
    }
    let mut check = match filesystem {
        "ext4" => Command::new("e2fsck"),
        _ => Command::new("xfs_repair"),
    };
    let output = check.args(["-f", "-n"]).arg(copy).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{consistency:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
}

fn copies_are_clean(filesystem: &str) {
    if !can_run() {
        return;
    }
    let (disk, server) = (Disk::new(400 * MIB), Server::new());
    disk.mkfs(filesystem);
    let bed = Bed::new(server.options.server.clone(), &disk.path, disk.size);
    let machine = machine(&server, &disk);
    let over = AtomicBool::new(false);
    let mount = disk.mount();
    let agent = bed.start(&machine, settings(1000));
    thread::scope(|scope| {
        let _over = Over(&over);
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let at = mount.0.join(format!("w{writer}"));
                let over = &over;
                scope.spawn(move || {
                    fs::create_dir_all(&at).unwrap();
                    metadata_load(&at, over);
                })
            })
            .collect();
        for epoch in 1..=4 {
            let copy = bed.file("copy.img");
            bed.snapshot(&agent, epoch, &copy);
            let progress = agent.control.progress();
            show(&format!("{filesystem}, checkpoint {epoch}"), &progress);
            let consistency = bed.report().consistency;
            assert_ne!(consistency, Consistency::None, "{progress:?}");
            assert_ne!(progress.tracker, Some(TrackerKind::Rescan), "{progress:?}");
            assert_clean(&copy, filesystem, consistency);
        }
        over.store(true, Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    drop(mount);
    run(Command::new("sync").arg("-f").arg(&disk.path));
    let copy = bed.file("copy.img");
    bed.snapshot(&agent, 5, &copy);
    let progress = agent.control.progress();
    show(&format!("{filesystem}, at rest"), &progress);
    assert_eq!(progress.disks[0].rescanned_storage_bytes, 0, "nothing was compared");
    run(Command::new("cmp").arg(&disk.path).arg(&copy));
    wait_for("the lag's end", || agent.control.progress().lag_ms == Some(0));
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn live_copies_of_a_loaded_ext4_are_clean() {
    copies_are_clean("ext4");
}

#[test]
fn live_copies_of_a_loaded_xfs_are_clean() {
    copies_are_clean("xfs");
}

#[test]
fn live_an_agent_that_comes_back_sends_what_changed_and_no_more() {
    if !can_run() {
        return;
    }
    let (disk, server) = (Disk::new(200 * MIB), Server::new());
    disk.mkfs("ext4");
    let bed = Bed::new(server.options.server.clone(), &disk.path, disk.size);
    let copy = bed.file("copy.img");
    let first = machine(&server, &disk);
    let agent = bed.start(&first, settings(u32::MAX.into()));
    bed.snapshot(&agent, 1, &copy);
    drop(agent);
    first.close();
    drop(first);
    let before = bed.report().received_bytes;
    {
        let mount = disk.mount();
        fs::write(mount.0.join("new"), vec![5; 3 << 20]).unwrap();
    }
    let second = machine(&server, &disk);
    let agent = bed.start(&second, settings(u32::MAX.into()));
    bed.snapshot(&agent, 2, &copy);
    run(Command::new("cmp").arg(&disk.path).arg(&copy));
    let travelled = bed.report().received_bytes - before;
    println!("{travelled} bytes travelled after 3 MiB were written");
    assert!(travelled < 8 * MIB, "{travelled}");
    assert_eq!(agent.control.progress().disks[0].rescanned_storage_bytes, 0);
}

/// Printed, not judged: other work may be going on here.
#[test]
fn live_an_idle_agent_costs_next_to_nothing() {
    if !can_run() {
        return;
    }
    let (large, server) = (Disk::new(1 << 40), Server::new());
    let opened = server.open(&large.tracked());
    let mut tracker = opened.tracker.unwrap();
    let started = Instant::now();
    (0..20).for_each(|_| assert_eq!(tracker.backlog_bytes(), 0));
    println!("1 TiB, granules of {} KiB: a look takes {:?}", tracker.granule_bytes() >> 10, started.elapsed() / 20);
    let started = Instant::now();
    assert!(tracker.is_quiet().unwrap());
    println!("a check that it is quiet takes {:?}", started.elapsed());
    drop(tracker);
    let disk = Disk::new(64 * MIB);
    let bed = Bed::new(server.options.server.clone(), &disk.path, disk.size);
    let machine = machine(&server, &disk);
    let agent = bed.start(&machine, settings(1000));
    bed.snapshot(&agent, 1, &bed.file("copy.img"));
    let before = cpu_seconds();
    thread::sleep(Duration::from_secs(10));
    println!("both engines used {:.3} CPU s in 10 s", cpu_seconds() - before);
}

/// User and system time of this process, from ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}
