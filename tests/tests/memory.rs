//! Agent and replicator stay small whatever the disk's size: a sparse source of 2 TiB.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rehost_tests::error::Context;
use rehost_tests::random::Random;
use rehost_tests::{Error, LocalAgent, Region, Result, Workspace, sweep};

const PATIENCE: Duration = Duration::from_secs(240);
const DISK_BYTES: u64 = 2 << 40;
const EXTENT_BYTES: u64 = 128 << 20;
/// What each of the two may hold at its peak.
const LIMIT_KIB: u64 = 64 << 10;

#[test]
fn two_tebibytes_take_no_more_than_64_mib_each() -> Result<()> {
    let space = Workspace::new("memory")?;
    let source = space.path("source.img");
    write_source(&source)?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let mut agent = LocalAgent::install(&region, &source, &space.path("agent"))?;
    agent.start()?;
    // The first copy, a whole pass of digests and a snapshot are behind it then.
    region.wait_state(agent.server(), "READY_FOR_TEST", PATIENCE)?;
    let of_agent = peak_kib(agent.process().map_or(0, |running| running.pid()))?;
    let replicators = sweep::processes_naming(&region.home().join("replicators"));
    let of_replicator = peak_kib(replicators.first().copied().unwrap_or_default())?;
    println!("peak of a 2 TiB source: agent {of_agent} KiB, replicator {of_replicator} KiB");
    assert!(of_agent <= LIMIT_KIB, "the agent took {of_agent} KiB");
    assert!(of_replicator <= LIMIT_KIB, "the replicator took {of_replicator} KiB");
    Ok(())
}

/// Incompressible data at the beginning, in the middle and at the end, several windows of it; holes between.
fn write_source(path: &std::path::Path) -> Result<()> {
    let what = || format!("write {}", path.display());
    let file = File::create(path).context(what)?;
    file.set_len(DISK_BYTES).context(what)?;
    let (mut random, mut block) = (Random::new(1), vec![0; 1 << 20]);
    for begin in [0, DISK_BYTES / 2, DISK_BYTES - EXTENT_BYTES] {
        for offset in (begin..begin + EXTENT_BYTES).step_by(1 << 20) {
            random.fill(&mut block);
            file.write_all_at(&block, offset).context(what)?;
        }
    }
    Ok(())
}

/// The most resident memory that a process ever had.
fn peak_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.ok_or_else(|| Error::Unexpected(format!("{path} has no VmHWM")))
}
