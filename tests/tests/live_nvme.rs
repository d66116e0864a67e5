//! A Debian server whose NVMe disk is mounted with `discard`: one request of that discards many places, and none of them keeps the
//! disk from being quiet, or is missed.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::disk::first_difference;
use rehost_tests::live::LiveServer;
use rehost_tests::live::server::GATEWAY;
use rehost_tests::{Error, Region, Result, Workspace};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(400);
/// XFS makes none that is smaller.
const DISK_MIB: u64 = 320;
/// So many places are discarded before anything is expected.
const ENOUGH: u64 = 60;
/// Writes files of different lengths, and removes every other: XFS discards them together.
const CHURN: &str = r"#!/bin/sh
n=0
while :; do
  n=$((n + 1))
  for i in $(seq 40); do dd if=/dev/urandom of=/mnt/nvme/$i bs=4k count=$((1 + (i * 7 + n) % 13)) 2>/dev/null; done
  sync
  for i in $(seq 1 2 40); do rm -f /mnt/nvme/$i; done
  sync
  sleep 1
done
";

#[test]
fn live_nvme_disk_that_discards_comes_to_rest() -> Result<()> {
    let space = Workspace::new("live-nvme")?;
    let disk = space.path("nvme.img");
    let made = File::create(&disk).and_then(|file| file.set_len(DISK_MIB << 20));
    made.map_err(|e| Error::Unexpected(format!("make {}: {e}", disk.display())))?;
    rehost_tests::process::run(Command::new("mkfs.xfs").arg("-q").arg(&disk))?;
    let mut server = LiveServer::start(space.folder(), Some(&disk), PATIENCE)?;
    server.sh("mkdir /mnt/nvme && mount -o discard /dev/nvme0n1 /mnt/nvme")?;
    let region = Region::start(space.folder(), &[GATEWAY])?;
    let id = server.install_agent(&region, space.folder(), "--devices /dev/nvme0n1")?;
    region.wait_state(&id, "READY_FOR_TEST", PATIENCE)?;
    server.sh(&format!(
        "printf '%s' '{CHURN}' >/root/churn && chmod 755 /root/churn && systemd-run -q --unit churn /root/churn"
    ))?;
    let started = Instant::now();
    let mut discards = Discards::of(&server)?;
    while discards.merged < ENOUGH || discards.merged < discards.requests {
        assert!(started.elapsed() < PATIENCE, "{discards:?}: no request discards many places");
        thread::sleep(Duration::from_secs(2));
        discards = Discards::of(&server)?;
    }
    println!("  {discards:?}");
    for _ in 0..2 {
        checkpoint_of_now(&server)?;
    }
    server.sh("systemctl stop churn; fstrim /mnt/nvme; sync")?;
    checkpoint_of_now(&server)?;
    same_bytes(&mut server, &region, &id, &disk)
}

/// What the guest's kernel has counted.
#[derive(Debug)]
struct Discards {
    requests: u64,
    /// Discards that joined another's request.
    merged: u64,
}

impl Discards {
    fn of(server: &LiveServer) -> Result<Self> {
        let text = server.sh("cat /sys/block/nvme0n1/stat")?;
        let words: Vec<u64> = text.split_ascii_whitespace().map(|word| word.parse().unwrap_or_default()).collect();
        let word = |place: usize| words.get(place).copied().unwrap_or_default();
        Ok(Self { requests: word(11), merged: word(12) })
    }
}

/// Until there is a checkpoint of a moment after this was called, and of one moment.
fn checkpoint_of_now(server: &LiveServer) -> Result<()> {
    // The status may be some seconds old.
    let (begin, stale) = (Instant::now(), Duration::from_secs(3));
    loop {
        let status = server.agent_status()?["status"].take();
        assert_eq!(status["trackers"][0]["tracker"], "EBPF", "{status}");
        let lag = status["lagMs"].as_u64().map(Duration::from_millis);
        let consistency = status["consistency"].as_str().unwrap_or_default();
        let is_of_one = ["QUIESCENT", "FROZEN"].contains(&consistency);
        if is_of_one && lag.is_some_and(|lag| lag + stale < begin.elapsed()) {
            println!("  {consistency}, lag {lag:?}, after {:?}", begin.elapsed());
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            let (what, seen) = ("a checkpoint".to_owned(), format!("{status}; {}", server.agent_journal()));
            return Err(Error::Timeout { what, after: PATIENCE, seen });
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Nothing writes any more: the disk and its volume become the same.
fn same_bytes(server: &mut LiveServer, region: &Region, id: &str, disk: &Path) -> Result<()> {
    let at_rest = |server: &Value| {
        let own = &server["rehost"];
        own["backlogBytes"] == 0 && own["lagMs"] == 0 && own["consistent"] == true
    };
    let started = Instant::now();
    loop {
        region.wait_server(id, "nothing left to send", PATIENCE, at_rest)?;
        let volumes = region.volumes()?;
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let volume = volumes.iter().find(|volume| size(volume) == size(disk));
        let volume = volume.ok_or_else(|| Error::Unexpected(format!("none of {volumes:?} is the disk's")))?;
        server.machine().pause()?;
        let differing = first_difference(disk, volume);
        server.machine().resume()?;
        match differing? {
            None => return Ok(()),
            Some(offset) if started.elapsed() > PATIENCE / 2 => {
                return Err(Error::Unexpected(format!("the disk and its volume differ in the MiB at {offset}")));
            }
            Some(offset) => println!("  not yet: the MiB at {offset}"),
        }
        thread::sleep(Duration::from_secs(3));
    }
}
