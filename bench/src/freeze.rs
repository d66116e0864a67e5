//! How long freezes block writers: an ext4 on which three threads make, rename and remove small files as fast as they can while a fourth
//! flushes a record at a time, so that the disk is never quiet; replicated by an agent that is installed and run as a user would.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rehost_tests::live::load::small_files;
use rehost_tests::process::{Running, run};
use rehost_tests::{LocalAgent, Region, Workspace};
use serde_json::json;

use crate::device::Loop;
use crate::idle::Installed;

const DISK_BYTES: u64 = 2 << 30;
const THREADS: u32 = 3;
/// With a checkpoint every second, each of which needs one.
const FREEZES: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(900);

pub(crate) fn measure() -> Result<()> {
    let space = Workspace::new("freeze")?;
    let image = space.path("source.img");
    File::create(&image)?.set_len(DISK_BYTES)?;
    let device = Loop::over(&image)?;
    run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&device.0))?;
    let mounted = Mounted::at(&device.0, space.path("mounted"))?;
    let region = Region::start(space.folder(), &["127.0.0.1"])?;
    let installed = Installed(space.path("agent"));
    let mut agent = LocalAgent::install(&region, &device.0, &installed.0)?;
    let mut load = Command::new(std::env::current_exe()?);
    let _load = Running::start(load.arg("churn").arg(&mounted.0), &space.path("churn.log"))?;
    agent.start()?;
    region.wait_state(agent.server(), "READY_FOR_TEST", PATIENCE)?;
    region.rehost(&["server", "set", agent.server(), "--checkpoint-interval", "1"])?;
    let sent = |agent: &LocalAgent| -> Result<u64> {
        let status = agent.status()?;
        status.pointer("/status/sentBytes").and_then(serde_json::Value::as_u64).context("the bytes sent")
    };
    let (started, before) = (Instant::now(), sent(&agent)?);
    let freezes = loop {
        thread::sleep(Duration::from_secs(5));
        let status = agent.status()?;
        let freezes = status.pointer("/status/freezes").cloned().unwrap_or_default();
        let count = freezes["count"].as_u64().unwrap_or_default();
        println!("{:>4.0} s: {freezes}", started.elapsed().as_secs_f64());
        if count >= FREEZES {
            break freezes;
        }
        ensure!(started.elapsed() < PATIENCE, "no more than {count} freezes: {status}");
    };
    let mb_per_second = (sent(&agent)? - before) as f64 / 1e6 / started.elapsed().as_secs_f64();
    println!(
        "writers were blocked, ms: half of {} freezes at most {}, 99 of 100 at most {}, the longest {}; {mb_per_second:.1} MB/s of changes sent",
        freezes["count"], freezes["p50Ms"], freezes["p99Ms"], freezes["maxMs"]
    );
    crate::write_result("freeze.json", &json!({"threads": THREADS, "freezes": freezes, "mbPerSecond": mb_per_second}))
}

/// The load, until it is killed.
pub(crate) fn churn(folder: &Path) {
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || small_files(&folder.join(number.to_string()), Duration::ZERO));
        }
        scope.spawn(|| flush_records(&folder.join("records")));
    });
}

/// Until the file system refuses.
fn flush_records(path: &Path) {
    let Ok(mut file) = File::create(path) else { return };
    while file.write_all(&[7; 512]).and_then(|()| file.sync_data()).is_ok() {}
}

/// A file system, unmounted when this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(device: &Path, point: PathBuf) -> Result<Self> {
        fs::create_dir_all(&point)?;
        run(Command::new("mount").arg(device).arg(&point))?;
        Ok(Self(point))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
