//! The delta: 3 % of a device's 4 KiB blocks change, scattered, after a full sync; only that is measured.
//!
//! A server that replicates has one delta after the other, so several are measured: the first one, for which the replicator's journal
//! has to grow, by itself.
//!
//! Ours is told by the kernel what changed (a loop device, marked by eBPF; needs root); the peer, rsync, has to look.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rehost_tests::random::Random;
use serde::Serialize;

use crate::device::Loop;
use crate::image::IMAGE_BYTES;
use crate::measure::{Timed, cpu_seconds, thread_cpu_seconds};
use crate::sides;

const BLOCK: u64 = 4096;
const CHANGED_PERCENT: u64 = 3;
const LIMIT: Duration = Duration::from_secs(120);

/// What a delta cost.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Delta {
    /// User and system time of both sides.
    pub(crate) cpu_seconds: f64,
    /// The user time of it: what the kernel takes for the same work depends on what the machine's memory costs at that moment.
    pub(crate) user_cpu_seconds: f64,
    /// The sender's part of it, where that is known.
    pub(crate) sender_cpu_seconds: Option<f64>,
    /// The digests of the checkpoint that was asked for, which are made after it; not part of the above.
    pub(crate) manifest_cpu_seconds: Option<f64>,
    pub(crate) wall_seconds: f64,
    pub(crate) wire_mb: f64,
}

/// Bytes that change.
pub(crate) fn changed_bytes() -> u64 {
    places(0).len() as u64 * BLOCK
}

/// Others for each seed.
fn places(seed: u64) -> BTreeSet<u64> {
    let blocks = IMAGE_BYTES / BLOCK;
    let mut random = Random::new(seed);
    let mut places = BTreeSet::new();
    while (places.len() as u64) < blocks * CHANGED_PERCENT / 100 {
        places.insert(random.below(blocks));
    }
    places
}

/// Why ours cannot be measured here; none if it can.
pub(crate) fn obstacle() -> Option<&'static str> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    match (is_root, Path::new("/dev/loop-control").exists()) {
        (false, _) => Some("only root can track a device"),
        (true, false) => Some("there are no loop devices here"),
        (true, true) => None,
    }
}

/// Ours, delta after delta; `image` is changed.
pub(crate) fn measure(image: &Path, folder: &Path) -> Result<Vec<Delta>> {
    let device = Loop::over(image)?;
    sides::prepare(&device.0, folder)?;
    let this = std::env::current_exe()?;
    let _pins = Pins(folder.join("bpf"));
    let receiver = Side::start(&this, "receive-delta", folder)?;
    sides::wait_for(&folder.join("port"))?;
    let sender = Side::start(&this, "send-delta", folder)?;
    wait_for(&folder.join("reached-1"), &[&sender, &receiver])?;
    // The digests of the whole first checkpoint are no part of a delta.
    settle(&receiver)?;
    let deltas = sides::DELTA_EPOCHS.map(|epoch| measure_one(&device.0, folder, epoch, (&sender, &receiver)));
    let deltas: Vec<Delta> = deltas.collect::<Result<_>>()?;
    fs::write(folder.join("done"), "")?;
    sender.finish()?;
    drop(receiver);
    sides::compare(&device.0, &folder.join("target.img"))?;
    fs::remove_file(folder.join("target.img"))?;
    Ok(deltas)
}

/// The delta up to the checkpoint `epoch`.
fn measure_one(device: &Path, folder: &Path, epoch: u64, (sender, receiver): (&Side, &Side)) -> Result<Delta> {
    change(device, epoch)?;
    let before = (sender.cpu_seconds()?, receiver.cpu_seconds()?);
    let started = Instant::now();
    fs::write(folder.join(format!("go-{epoch}")), "")?;
    wait_for(&folder.join(format!("reached-{epoch}")), &[sender, receiver])?;
    let wall_seconds = started.elapsed().as_secs_f64();
    // It has begun before the sender was told. Asked first: what it takes meanwhile counts.
    let digests = thread_cpu_seconds(receiver.0.id(), "manifest")?;
    let (sent_by, mut received_by) = (sender.cpu_seconds()?, receiver.cpu_seconds()?);
    received_by = (received_by.0 - digests.0, received_by.1 - digests.1);
    let wire_mb = (sent(folder, epoch)? - sent(folder, epoch - 1)?) / 1e6;
    settle(receiver)?;
    let sender_cpu_seconds = sent_by.0 - before.0.0;
    Ok(Delta {
        cpu_seconds: sender_cpu_seconds + received_by.0 - before.1.0,
        user_cpu_seconds: sent_by.1 - before.0.1 + received_by.1 - before.1.1,
        sender_cpu_seconds: Some(sender_cpu_seconds),
        manifest_cpu_seconds: Some(receiver.cpu_seconds()?.0 - received_by.0),
        wall_seconds,
        wire_mb,
    })
}

/// Waits until a side has nothing more to do.
fn settle(side: &Side) -> Result<()> {
    let started = Instant::now();
    loop {
        let before = side.cpu_seconds()?.0;
        thread::sleep(Duration::from_millis(400));
        // It looks for holds to release all the time, which takes a tick now and then.
        if side.cpu_seconds()?.0 - before <= 0.02 || started.elapsed() > LIMIT {
            return Ok(());
        }
    }
}

/// rsync between two files on this machine, which looks for what changed by checksums of 4 KiB; none where it is not installed.
pub(crate) fn measure_peer(image: &Path, folder: &Path) -> Result<Option<Delta>> {
    if Command::new("rsync").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    fs::create_dir_all(folder)?;
    let target = folder.join("target.img");
    ensure!(Command::new("cp").arg("--sparse=always").arg(image).arg(&target).status()?.success(), "cp failed");
    change(image, 0)?;
    let (report, log) = (folder.join("rsync.time"), folder.join("rsync.log"));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a folder with a plain name");
    let log_option = format!("--log-file={}", text(&log)?);
    let started = Instant::now();
    let options = ["--inplace", "--no-whole-file", "--block-size=4096", "--ignore-times", "--stats", &log_option];
    let rsync = Timed::start(&report, Path::new("rsync"), &[&options[..], &[&text(image)?, &text(&target)?]].concat())?;
    let cost = rsync.finish(false)?;
    let wall_seconds = started.elapsed().as_secs_f64();
    sides::compare(image, &target)?;
    fs::remove_file(&target)?;
    let wire_mb = (total(&log, "Total bytes sent: ")? + total(&log, "Total bytes received: ")?) / 1e6;
    Ok(Some(Delta {
        cpu_seconds: cost.cpu_seconds,
        user_cpu_seconds: cost.user_cpu_seconds,
        wall_seconds,
        wire_mb,
        ..Delta::default()
    }))
}

fn total(log: &Path, what: &str) -> Result<f64> {
    let text = fs::read_to_string(log)?;
    let number = text.lines().find_map(|line| line.split_once(what)).map(|(_, number)| number.replace(',', ""));
    Ok(number.context("rsync's statistics")?.trim().parse()?)
}

/// Writes new random blocks; on the disk when it returns.
fn change(path: &Path, seed: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut random = Random::new(Instant::now().elapsed().subsec_nanos().into());
    let mut block = vec![0; usize::try_from(BLOCK)?];
    random.fill(&mut block);
    for place in places(seed) {
        block[..8].copy_from_slice(&random.next_u64().to_be_bytes());
        file.write_all_at(&block, place * BLOCK)?;
    }
    Ok(file.sync_all()?)
}

/// Where the sender pins what it tracks with; gone when it is dropped, also if the sender was killed.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        // The sender unmounts it itself if all goes well.
        let _ = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// A process of ours; ended when it is dropped.
struct Side(Child);

impl Side {
    fn start(program: &Path, role: &str, folder: &Path) -> Result<Self> {
        Ok(Self(Command::new(program).arg(role).arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }
}

impl Side {
    /// As [`cpu_seconds`].
    fn cpu_seconds(&self) -> Result<(f64, f64)> {
        cpu_seconds(self.0.id())
    }

    /// It ends by itself, and takes back what it has pinned.
    fn finish(mut self) -> Result<()> {
        ensure!(self.0.wait()?.success(), "a side failed");
        Ok(())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = Command::new("kill").arg(self.0.id().to_string()).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

fn sent(folder: &Path, epoch: u64) -> Result<f64> {
    Ok(fs::read_to_string(folder.join(format!("reached-{epoch}")))?.trim().parse()?)
}

fn wait_for(file: &Path, sides: &[&Side]) -> Result<()> {
    let started = Instant::now();
    while File::open(file).is_err() {
        for side in sides {
            if !Path::new(&format!("/proc/{}/exe", side.0.id())).exists() {
                bail!("a side ended early");
            }
        }
        ensure!(started.elapsed() < LIMIT, "{} did not appear", file.display());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
