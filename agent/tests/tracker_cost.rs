//! What tracking a large disk costs while nothing is written to it.
#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod tracker_bed;

use std::{
    fs,
    time::{Duration, Instant},
};

use rehost_agent::tracker::Pass;
use tracker_bed::{Disk, MIB, Server, can_run};

const TIB: u64 = 1 << 40;

/// The figures are printed; the verdict is the memory that they stand for.
#[test]
fn live_an_idle_disk_of_a_terabyte_costs_little() {
    if !can_run() {
        return;
    }
    let (disk, server) = (Disk::new(TIB), Server::new());
    let tracked = disk.tracked();
    let mut opened = Vec::new();
    for what in ["first", "second", "reopened"] {
        let volume = if what == "second" { disk.tracked() } else { tracked.clone() };
        let start = Instant::now();
        let tracker = server.open(&volume).tracker.unwrap();
        println!("{what} tracker: opened in {:?}", start.elapsed());
        opened.push(tracker);
    }
    let mut tracker = opened.swap_remove(2);
    drop(opened);
    let rounds = 200;
    let before = cpu_time();
    for _ in 0..rounds {
        tracker.collect(Pass::FIRST).unwrap();
        assert!(tracker.pending().is_empty() && tracker.is_quiet().unwrap());
        assert_eq!(tracker.backlog_bytes(), 0);
    }
    println!(
        "granule {} KiB; a collection, a look and a count: {:?}",
        tracker.granule_bytes() >> 10,
        (cpu_time() - before) / rounds
    );
    println!("resident: {} MiB", resident() / MIB);
    assert!(resident() < 64 * MIB);
}

/// Of this thread.
fn cpu_time() -> Duration {
    let times = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
