//! What the agent costs that has nothing to do: installed and run as a user would, for a disk of 1 TiB that replicates continuously.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rehost_tests::random::Random;
use rehost_tests::{LocalAgent, Region, Workspace};
use serde_json::json;

use crate::device::Loop;
use crate::measure::cpu_seconds;

const DISK_BYTES: u64 = 1 << 40;
/// Of that, what is not a hole.
const DATA_BYTES: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(3600);
/// After the first snapshot, before it counts as idle.
const SETTLE: Duration = Duration::from_secs(20);
const WATCHED: Duration = Duration::from_secs(120);

pub(crate) fn measure() -> Result<()> {
    let space = Workspace::new("idle")?;
    let image = space.path("source.img");
    write(&image)?;
    let device = Loop::over(&image)?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let installed = Installed(space.path("agent"));
    let mut agent = LocalAgent::install(&region, &device.0, &installed.0)?;
    let began = Instant::now();
    agent.start()?;
    println!("the first copy of a disk of 1 TiB: all of it is read");
    region.wait_state(agent.server(), "READY_FOR_TEST", PATIENCE)?;
    println!("ready for test after {:.0} s", began.elapsed().as_secs_f64());
    let pid = agent.process().context("the agent ended")?.pid();
    thread::sleep(SETTLE);
    let (before, began) = (cpu_seconds(pid)?.0, Instant::now());
    thread::sleep(WATCHED);
    let cpu_percent = (cpu_seconds(pid)?.0 - before) / began.elapsed().as_secs_f64() * 100.0;
    let (resident_mib, peak_mib) = (memory_mib(pid, "VmRSS:")?, memory_mib(pid, "VmHWM:")?);
    let tracker = agent.status()?.pointer("/status/trackers/0/tracker").cloned().unwrap_or_default();
    println!(
        "idle, tracker {tracker}: {cpu_percent:.2} % of a core over {WATCHED:?}; {resident_mib:.1} MiB, at its peak {peak_mib:.1} MiB"
    );
    let document = json!({"diskBytes": DISK_BYTES, "tracker": tracker, "cpuPercent": cpu_percent, "residentMib": resident_mib, "peakMib": peak_mib});
    crate::write_result("idle.json", &document)
}

/// Where an agent is installed; uninstalled when it is dropped, after the agent was killed: nothing of it stays pinned in the kernel.
pub(crate) struct Installed(pub(crate) PathBuf);

impl Drop for Installed {
    fn drop(&mut self) {
        let Ok(program) = rehost_tests::paths::binary("rehost-agent") else { return };
        let mut command = Command::new(program);
        command.args(["uninstall", "--no-service", "--state-dir"]).arg(&self.0);
        let ended = command.arg("--runtime-dir").arg(self.0.with_extension("run")).output();
        if !ended.is_ok_and(|ended| ended.status.success()) {
            println!("the agent in {} could not be uninstalled", self.0.display());
        }
    }
}

fn write(path: &Path) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(DISK_BYTES)?;
    let (mut random, mut block) = (Random::new(1), vec![0; 1 << 20]);
    for offset in (0..DATA_BYTES).step_by(block.len()) {
        random.fill(&mut block);
        file.write_all_at(&block, offset)?;
    }
    Ok(file.sync_all()?)
}

fn memory_mib(pid: u32, what: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).with_context(|| what.to_owned())?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
