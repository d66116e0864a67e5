//! Whoever is killed while filesystems are frozen, they are thawed.
#![allow(clippy::unwrap_used)] // What cannot be made or asked fails the test.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rehost_agent::freeze::Freezer;
use rustix::process::Signal;

use crate::freeze_bed::{AGENT, Mounted, can_run, runs, signal, wait_until};

mod freeze_bed;

const DISKS: &str = "REHOST_TEST_FREEZER_DISKS";
const NOTES: &str = "REHOST_TEST_FREEZER_NOTES";
const HELD: &str = "REHOST_TEST_FREEZER_HELD";
const PROGRAM: &str = "REHOST_TEST_FREEZER_PROGRAM";

/// Longer than the tests wait for a thaw: only the end of the agent can be the reason for one.
const LIMIT: Duration = Duration::from_secs(300);

/// Another process, this very test: it freezes and thaws until it is killed.
#[test]
fn freezer_process() {
    let Ok(disks) = std::env::var(DISKS) else { return };
    let disks: Vec<_> = disks.split(':').map(PathBuf::from).collect();
    let notes = std::env::var(NOTES).unwrap();
    let held = Duration::from_millis(std::env::var(HELD).unwrap().parse().unwrap());
    let program = std::env::var(PROGRAM).unwrap();
    let (mut freezer, _) = Freezer::new(&disks, Path::new(&program)).unwrap().with_note_in(Path::new(&notes)).unwrap();
    println!("watchdog {}", freezer.watchdog_process().unwrap());
    loop {
        let frozen = freezer.freeze(LIMIT).unwrap();
        // Not a word, for its output may lie on what is frozen; but here it is a pipe.
        println!("frozen");
        std::thread::sleep(held);
        assert!(frozen.thaw().in_time);
    }
}

struct FreezerProcess {
    process: Child,
    output: BufReader<ChildStdout>,
    watchdog: u32,
}

impl FreezerProcess {
    fn start(disks: &[&Mounted], notes: &Path, held: Duration) -> Self {
        Self::start_with(Path::new(AGENT), disks, notes, held)
    }

    fn start_with(program: &Path, disks: &[&Mounted], notes: &Path, held: Duration) -> Self {
        let disks: Vec<_> = disks.iter().map(|mounted| mounted.disk.device.display().to_string()).collect();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "freezer_process", "--nocapture"])
            .env(DISKS, disks.join(":"))
            .env(NOTES, notes)
            .env(PROGRAM, program)
            .env(HELD, held.as_millis().to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut started = Self { process, output, watchdog: 0 };
        started.watchdog = started.said("watchdog ").parse().unwrap();
        started
    }

    /// What follows `word` in the next line that has it.
    fn said(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some((_, rest)) = line.trim_end().split_once(word) {
                return rest.to_owned();
            }
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for FreezerProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Small and good enough for moments.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 0x5eed);
        println!("SEED={seed}");
        Self(seed.max(1))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn runs_wanted() -> u64 {
    std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(25)
}

#[test]
fn live_an_agent_that_is_killed_at_any_moment_leaves_nothing_frozen() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Mounted::new("ext4", directory.path()), Mounted::new("xfs", directory.path()));
    let mut dice = Dice::new();
    let mut frozen = 0;
    for run in 0..runs_wanted() {
        let notes = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut agent = FreezerProcess::start(&[&one, &two], notes.path(), Duration::from_millis(dice.below(20)));
        std::thread::sleep(Duration::from_micros(dice.below(60_000)));
        agent.kill();
        frozen += u64::from(notes.path().join("frozen").exists());
        assert!(one.write().ends() && two.write().ends(), "run {run}: still frozen");
        wait_until("the watchdog ends", || !runs(agent.watchdog));
        assert!(!one.thaw_by_somebody() && !two.thaw_by_somebody(), "run {run}: frozen again");
    }
    println!("{frozen} of {} were killed while frozen, or nearly so", runs_wanted());
    assert!(frozen > 0, "no agent was killed while frozen");
}

#[test]
fn live_an_agent_that_is_killed_for_certain_while_frozen_is_thawed_for_at_once() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new("ext4", directory.path());
    let notes = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = FreezerProcess::start(&[&mounted], notes.path(), LIMIT);
    agent.said("frozen");
    let write = mounted.write();
    assert!(write.is_blocked());
    // A polite end of the whole group, as of a service that is stopped, does not reach the watchdog either.
    signal(agent.watchdog, Signal::TERM);
    agent.kill();
    assert!(write.ends());
    wait_until("the watchdog ends", || !runs(agent.watchdog));
}

#[test]
fn live_a_watchdog_whose_program_lies_on_what_is_frozen_needs_nothing_of_it() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new("ext4", directory.path());
    let program = mounted.point.join("rehost-agent");
    std::fs::copy(AGENT, &program).unwrap();
    let notes = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = FreezerProcess::start_with(&program, &[&mounted], notes.path(), LIMIT);
    agent.said("frozen");
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let write = mounted.write();
    assert!(write.is_blocked());
    agent.kill();
    assert!(write.ends());
    wait_until("the watchdog ends", || !runs(agent.watchdog));
}

#[test]
fn live_if_both_are_killed_the_next_start_thaws() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Mounted::new("ext4", directory.path()), Mounted::new("btrfs", directory.path()));
    let notes = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = FreezerProcess::start(&[&one, &two], notes.path(), LIMIT);
    agent.said("frozen");
    signal(agent.watchdog, Signal::KILL);
    wait_until("the watchdog ends", || !runs(agent.watchdog));
    agent.kill();
    let writes = [one.write(), two.write()];
    assert!(writes.iter().all(|write| write.is_blocked()));
    let start = || Freezer::new(&[], Path::new(AGENT)).unwrap().with_note_in(notes.path()).unwrap().1;
    assert_eq!(start(), [one.point.as_path(), two.point.as_path()]);
    assert!(writes.iter().all(|write| write.ends()));
    assert!(start().is_empty());
}
