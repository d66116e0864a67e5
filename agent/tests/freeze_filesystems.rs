//! What is frozen, and that it is: on filesystems of its own, on loop devices.
#![allow(clippy::unwrap_used)] // What cannot be made or asked fails the test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rehost_agent::freeze::{FreezeError, Freezer, SkipReason, WatchdogError};
use rustix::process::Signal;

use crate::freeze_bed::{AGENT, LoopDisk, Mounted, can_mount, can_run, freezer, run, runs, signal};

mod freeze_bed;

const LIMIT: Duration = Duration::from_secs(30);

fn points(freezer: &Freezer) -> Vec<PathBuf> {
    freezer.filesystems().unwrap().0.into_iter().map(|filesystem| filesystem.mount_point).collect()
}

fn writers_wait_until_the_thaw(kind: &str) {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(kind, directory.path());
    let mut freezer = freezer(&[&mounted]);
    freezer.presync().unwrap();
    for _ in 0..3 {
        let frozen = freezer.freeze(LIMIT).unwrap();
        let write = mounted.write();
        assert!(write.is_blocked());
        assert!(frozen.left() < LIMIT);
        let thawed = frozen.thaw();
        assert!(thawed.in_time && thawed.skipped.is_empty(), "{thawed:?}");
        assert!(write.ends() && !mounted.thaw_by_somebody());
    }
    drop(freezer.freeze(LIMIT).unwrap());
    assert!(mounted.write().ends() && !mounted.thaw_by_somebody());
}

#[test]
fn live_writers_to_ext4_wait_until_the_thaw() {
    writers_wait_until_the_thaw("ext4");
}

#[test]
fn live_writers_to_xfs_wait_until_the_thaw() {
    writers_wait_until_the_thaw("xfs");
}

#[test]
fn live_writers_to_btrfs_wait_until_the_thaw() {
    writers_wait_until_the_thaw("btrfs");
}

#[test]
fn live_a_filesystem_with_many_mounts_is_frozen_once() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut mounted = Mounted::new("ext4", directory.path());
    let point = mounted.point.display().to_string();
    mounted.mount_again(&["--bind", &point], &directory.path().join("bind"));
    mounted.mount_again(&["--bind", "-o", "ro", &point], &directory.path().join("read-only"));
    // On top of the first: its path leads elsewhere now.
    let on_top = Mounted::new("ext4", directory.path());
    mounted.mount_again(&["--bind", &on_top.point.display().to_string()], &mounted.point.clone());
    let mut freezer = freezer(&[&mounted]);
    assert_eq!(points(&freezer), [mounted.point.as_path()]);
    let frozen = freezer.freeze(LIMIT).unwrap();
    assert!(on_top.write().ends(), "the one on top was frozen instead");
    let thawed = frozen.thaw();
    assert!(thawed.in_time && thawed.skipped.is_empty(), "{thawed:?}");
}

#[test]
fn live_subvolumes_of_a_btrfs_are_frozen_once() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut mounted = Mounted::new("btrfs", directory.path());
    run(std::process::Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(mounted.point.join("sub")));
    let device = mounted.disk.device.display().to_string();
    mounted.mount_again(&["-o", "subvol=sub", &device], &directory.path().join("sub"));
    let mut freezer = freezer(&[&mounted]);
    assert_eq!(points(&freezer), [mounted.point.as_path()]);
    assert!(freezer.freeze(LIMIT).unwrap().thaw().in_time);
}

#[test]
fn live_a_filesystem_in_a_file_is_frozen_before_the_one_that_it_lies_in() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let outer = Mounted::new("xfs", directory.path());
    let inner = Mounted::new("ext4", &outer.point);
    let mut freezer = freezer(&[&outer]);
    assert_eq!(points(&freezer), [inner.point.as_path(), outer.point.as_path()]);
    for round in 0..5 {
        std::fs::write(inner.point.join(format!("{round}")), vec![1; 1 << 20]).unwrap();
        let frozen = freezer.freeze(LIMIT).unwrap();
        let writes = [inner.write(), outer.write()];
        assert!(writes.iter().all(|write| write.is_blocked()));
        assert!(frozen.thaw().in_time);
        assert!(writes.iter().all(|write| write.ends()));
    }
}

#[test]
fn live_only_the_filesystems_of_the_disks_are_frozen() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mine, other) = (Mounted::new("ext4", directory.path()), Mounted::new("ext4", directory.path()));
    let empty = LoopDisk::new(directory.path(), 16);
    let mut freezer = freezer(&[&mine]);
    let frozen = freezer.freeze(LIMIT).unwrap();
    assert!(other.write().ends());
    assert!(frozen.thaw().in_time);
    for disks in [vec![], vec![empty.device.clone()], vec![directory.path().join("image"), "/dev/nothing".into()]] {
        freezer.set_disks(&disks);
        assert!(matches!(freezer.freeze(LIMIT), Err(FreezeError::NothingToFreeze)));
    }
}

#[test]
fn live_what_cannot_be_frozen_is_skipped_and_named() {
    if !can_run() || !can_mount("vfat") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (fat, mine) = (Mounted::new("vfat", directory.path()), Mounted::new("ext4", directory.path()));
    let mut freezer = freezer(&[&fat, &mine]);
    let frozen = freezer.freeze(LIMIT).unwrap();
    assert!(fat.write().ends());
    let thawed = frozen.thaw();
    assert!(thawed.in_time);
    let skipped: Vec<_> = thawed.skipped.into_iter().map(|s| (s.mount_point, s.reason)).collect();
    assert_eq!(skipped, [(fat.point.clone(), SkipReason::CannotFreeze)]);
}

#[test]
fn live_what_somebody_else_froze_stays_theirs() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mine, theirs) = (Mounted::new("ext4", directory.path()), Mounted::new("xfs", directory.path()));
    let mut freezer = freezer(&[&mine, &theirs]);
    theirs.freeze_by_somebody();
    let thawed = freezer.freeze(LIMIT).unwrap().thaw();
    assert!(thawed.in_time);
    assert_eq!((&thawed.skipped[0].mount_point, thawed.skipped[0].reason), (&theirs.point, SkipReason::FrozenAlready));
    // Nor does the watchdog take it, at the end of the limit.
    let frozen = freezer.freeze(Duration::from_millis(50)).unwrap();
    assert!(mine.write().ends());
    assert!(!frozen.thaw().in_time);
    assert!(theirs.thaw_by_somebody());
    // Somebody else thaws what is ours: then it does not count.
    let frozen = freezer.freeze(LIMIT).unwrap();
    assert!(mine.thaw_by_somebody());
    assert!(!frozen.thaw().in_time);
}

#[test]
fn live_after_the_limit_the_watchdog_thaws() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Mounted::new("ext4", directory.path()), Mounted::new("xfs", directory.path()));
    let mut freezer = freezer(&[&one, &two]);
    let watchdog = freezer.watchdog_process();
    let frozen = freezer.freeze(Duration::from_millis(300)).unwrap();
    // As an agent does that hangs: nothing at all.
    assert!(one.write().ends() && two.write().ends());
    assert!(frozen.left().is_zero() && !frozen.thaw().in_time);
    assert!(freezer.freeze(LIMIT).unwrap().thaw().in_time);
    assert_eq!(freezer.watchdog_process(), watchdog);
}

#[test]
fn live_a_limit_that_is_over_before_all_is_frozen_ends_the_freeze() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new("ext4", directory.path());
    let mut freezer = freezer(&[&mounted]);
    assert!(matches!(freezer.freeze(Duration::ZERO), Err(FreezeError::TooSlow { .. })));
    assert!(mounted.write().ends() && !mounted.thaw_by_somebody());
    assert!(freezer.freeze(LIMIT).unwrap().thaw().in_time);
}

/// Writers that make, rename and delete files as fast as they can: the figures are for reading, the verdict is not in them.
fn freezes_under_a_load_of_metadata(kind: &str) {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(kind, directory.path());
    let mut freezer = freezer(&[&mounted]);
    let stop = AtomicBool::new(false);
    let mut blocked: Vec<_> = std::thread::scope(|scope| {
        for writer in 0..4 {
            let (stop, place) = (&stop, mounted.point.join(format!("{writer}")));
            scope.spawn(move || churn(&place, stop));
        }
        let _stopped = Stopped(&stop);
        let freezes = (0..20).map(|_| {
            freezer.presync().unwrap();
            let frozen = freezer.freeze(LIMIT).unwrap();
            // Stands for reading what changed.
            std::thread::sleep(Duration::from_millis(5));
            let thawed = frozen.thaw();
            assert!(thawed.in_time, "{thawed:?}");
            thawed.blocked
        });
        freezes.collect()
    });
    blocked.sort();
    println!("{kind}: writers were blocked for {:?} (median), {:?} (most)", blocked[blocked.len() / 2], blocked.last());
}

/// Stops the writers, also those of a test that fails.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn churn(place: &Path, stop: &AtomicBool) {
    std::fs::create_dir(place).unwrap();
    for round in 0_u64.. {
        for file in 0..50 {
            let (made, renamed) = (place.join(format!("a{file}")), place.join(format!("b{}", (file + round) % 100)));
            std::fs::write(&made, [1; 6000]).unwrap();
            std::fs::rename(made, renamed).unwrap();
            if stop.load(Relaxed) {
                return;
            }
        }
    }
}

#[test]
fn live_ext4_is_frozen_under_a_load_of_metadata() {
    freezes_under_a_load_of_metadata("ext4");
}

#[test]
fn live_xfs_is_frozen_under_a_load_of_metadata() {
    freezes_under_a_load_of_metadata("xfs");
}

#[test]
fn live_btrfs_is_frozen_under_a_load_of_metadata() {
    freezes_under_a_load_of_metadata("btrfs");
}

#[test]
fn live_a_watchdog_that_died_is_replaced_and_the_agent_thaws_without_it() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new("ext4", directory.path());
    let mut freezer = freezer(&[&mounted]);
    let first = freezer.watchdog_process().unwrap();
    let frozen = freezer.freeze(LIMIT).unwrap();
    signal(first, Signal::KILL);
    assert!(mounted.write().is_blocked());
    assert!(frozen.thaw().in_time);
    assert!(mounted.write().ends());
    let frozen = freezer.freeze(LIMIT).unwrap();
    assert!(frozen.thaw().in_time);
    let second = freezer.watchdog_process().unwrap();
    assert!(first != second && !runs(first) && runs(second));
    signal(second, Signal::KILL);
    assert!(freezer.freeze(LIMIT).unwrap().thaw().in_time);
    let third = freezer.watchdog_process().unwrap();
    drop(freezer);
    assert!(!runs(second) && !runs(third));
}

#[test]
fn live_a_watchdog_that_hangs_is_replaced() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new("ext4", directory.path());
    let mut freezer = freezer(&[&mounted]);
    let hanging = freezer.watchdog_process().unwrap();
    signal(hanging, Signal::STOP);
    assert!(freezer.freeze(LIMIT).unwrap().thaw().in_time);
    assert!(!runs(hanging));
    // During a freeze, it is not missed.
    let hanging = freezer.watchdog_process().unwrap();
    let frozen = freezer.freeze(LIMIT).unwrap();
    signal(hanging, Signal::STOP);
    assert!(frozen.thaw().in_time);
    assert!(mounted.write().ends() && !runs(hanging));
}

#[test]
fn live_the_watchdog_is_hard_to_kill() {
    if !can_run() {
        return;
    }
    let freezer = Freezer::new(&[], Path::new(AGENT)).unwrap();
    let process = freezer.watchdog_process().unwrap();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).unwrap();
    println!("spared by the OOM killer: {}", freezer.is_spared_by_oom_killer());
    assert_eq!(read("oom_score_adj").trim() == "-1000", freezer.is_spared_by_oom_killer());
    assert_eq!(read("comm").trim(), "thaw-watchdog");
    assert!(!read("cmdline").contains("rehost"));
    let locked = read("status").lines().find_map(|line| line.strip_prefix("VmLck:").map(str::to_owned));
    let locked: u64 = locked.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    println!("locked: {locked} KiB");
    assert!(locked > 0);
    // As `/proc` tells it: `getsid` has no id for a session whose leader is outside of this process's namespace.
    let session = |process: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned()
    };
    assert_eq!(session(&process.to_string()), process.to_string(), "it leads a session of its own");
    assert_ne!(session(&process.to_string()), session("self"));
    for polite in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        signal(process, polite);
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(runs(process));
    drop(freezer);
    assert!(!runs(process));
}

#[test]
fn live_what_is_no_watchdog_is_refused() {
    let refused = |program: &str| Freezer::new(&[], Path::new(program)).unwrap_err();
    assert!(matches!(refused("/nowhere"), FreezeError::Watchdog(WatchdogError::Start { .. })));
    assert!(matches!(refused("/bin/true"), FreezeError::Watchdog(WatchdogError::NotOne { .. })));
}
