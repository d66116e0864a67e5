//! A Debian server that never stops writing replicates its own root disk from inside, and its copies are of one moment.
//!
//! One boot of a translated machine costs half a minute, so everything that needs this machine happens while it lives. Each part
//! is printed with its duration. `SEED` repeats the loads.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rehost_tests::disk::first_difference;
use rehost_tests::live::record::count;
use rehost_tests::live::server::{Counters, GATEWAY, PLACES};
use rehost_tests::live::{Evidence, LiveServer, Phases};
use rehost_tests::{Error, Region, Result, Workspace, http_get};
use serde_json::Value;

/// Many times what it takes: the machine may be shared, and without KVM.
const PATIENCE: Duration = Duration::from_secs(400);
/// A restart costs less than this part of the first copy, in bytes read and in bytes sent.
const LITTLE: u64 = 4;
const SECOND_DISK_MIB: u64 = 96;

#[test]
fn live_vm_replicates_while_it_writes() -> Result<()> {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rehost_tests::random::seed);
    println!("SEED={seed}");
    let mut phases = Phases::default();
    let space = Workspace::new("live")?;
    let server = phases.run("boot", || {
        let server = LiveServer::start(space.folder(), None, PATIENCE)?;
        server.start_writer(space.folder())?;
        Ok(server)
    })?;
    let region = Region::start(space.folder(), &[GATEWAY])?;
    let id = phases.run("installation", || server.install_agent(&region, space.folder(), ""))?;
    let mut bed = Bed { space, server, region, id, first: Counters { sent: 0, read: 0 } };

    phases.run("first copy", || bed.first_copy())?;
    phases.note(bed.facts()?);
    phases.run("test launch", || bed.test_launch())?;
    phases.run("kill -9 of the agent", || bed.restart("kill -9 $(systemctl show -p MainPID --value rehost-agent)"))?;
    phases.run("upgrade of the agent", || bed.upgrade())?;
    phases.run("pause", || bed.pause())?;
    phases.run("second disk", || bed.second_disk())?;
    phases.run("byte for byte", || bed.same_bytes(seed))?;
    phases.note(bed.facts()?);
    phases.run("reboot", || bed.reboot())?;
    phases.run("failed cutover", || bed.failed_cutover())?;
    phases.run("cutover", || bed.cutover())?;
    phases.note(bed.facts()?);
    println!("live_vm: OK {}", phases.summary());
    Ok(())
}

/// The server, its region, and what its first copy cost.
struct Bed {
    space: Workspace,
    server: LiveServer,
    region: Region,
    id: String,
    first: Counters,
}

impl Bed {
    /// Until the first launchable snapshot. Meanwhile the control: a copy that is not of one moment is told as such.
    fn first_copy(&mut self) -> Result<()> {
        let before = self.server.counters()?;
        self.rehost(&["server", "set", &self.id, "--probe", "http:80"])?;
        self.expect_control_fails()?;
        self.region.wait_state(&self.id, "READY_FOR_TEST", PATIENCE)?;
        let following = self.wait("CONTINUOUS", |server| replication(server) == "CONTINUOUS")?;
        self.first = self.server.counters()?.since(before);
        let own = &following["rehost"];
        assert_eq!(own["tracker"], "EBPF", "{own}");
        assert!(own["consistency"] == "QUIESCENT" || own["consistency"] == "FROZEN", "{own}");
        Ok(())
    }

    /// The first partition is copied, then 40 more records are acknowledged, then the rest is copied.
    fn expect_control_fails(&self) -> Result<()> {
        let copy = self.space.path("control.img");
        let root_ends = 1 << 30;
        copy_part(self.server.disk(), &copy, 0, root_ends)?;
        self.server.wait_records(self.server.acknowledged()? + 40)?;
        let size = std::fs::metadata(self.server.disk()).map_or(0, |m| m.len());
        copy_part(self.server.disk(), &copy, root_ends, size)?;
        match Evidence::of_image(&copy, PLACES, &self.space.path("cut")) {
            Ok(evidence) => Err(Error::Unexpected(format!("a copy of different moments looks like one: {evidence:?}"))),
            Err(_) => remove(&copy),
        }
    }

    /// What was written before the launch was asked for is in the copy, without a gap; nothing is of a later moment.
    fn test_launch(&mut self) -> Result<()> {
        let before = self.server.acknowledged()?;
        self.rehost(&["test", &self.id, "--wait"])?;
        let after = self.server.acknowledged()?;
        let copied = self.copied_records()?;
        println!("  copy: {copied} records; the source had {before} before its launch and {after} after it");
        assert!((before..=after + 1).contains(&copied), "{before} {copied} {after}");
        self.look_at_snapshots(before, after)?;
        // Its processor time is wanted elsewhere.
        self.rehost(&["ready", &self.id])?;
        self.wait("the end of the test instance", |server| server["launchedInstance"].is_null()).map(drop)
    }

    /// Every snapshot that counts is of one moment, and as tidy as its consistency promises; the newest has the records.
    fn look_at_snapshots(&self, before: u64, after: u64) -> Result<()> {
        let list = self.region.json(&["snapshots", &self.id])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let mut newest = 0;
        for item in items.iter().filter(|item| item["state"] == "LAUNCHABLE") {
            let consistency = item["consistency"].as_str().unwrap_or_default();
            let image = format!("snapshots/{}.img", item["disks"][0]["snapshotID"].as_str().unwrap_or_default());
            let evidence = Evidence::of_image(&self.region.home().join(image), PLACES, &self.space.path("cut"))?;
            println!("  snapshot at checkpoint {}: {consistency}, {evidence:?}", item["epoch"]);
            assert!(consistency == "QUIESCENT" || consistency == "FROZEN", "{item}");
            // A frozen file system has nothing to replay.
            assert!(consistency == "QUIESCENT" || !evidence.replayed, "{item} {evidence:?}");
            newest = newest.max(evidence.log);
        }
        assert!((before..=after + 1).contains(&newest), "{before} {newest} {after}: {list}");
        Ok(())
    }

    /// The agent ends in this way and comes back: no mark is lost, nothing is compared, little is sent.
    fn restart(&self, how: &str) -> Result<()> {
        let pid = self.server.sh("systemctl show -p MainPID --value rehost-agent")?;
        let before = self.server.counters()?;
        self.server.sh(how)?;
        self.wait_agent(&pid)?;
        self.wait_later_checkpoint()?;
        let cost = self.server.counters()?.since(before);
        println!("  cost: {cost:?}, of {:?} for the first copy", self.first);
        assert!(cost.sent < self.first.sent / LITTLE, "{cost:?}");
        assert!(cost.read < self.first.read / LITTLE, "{cost:?}: the disk was read through");
        Ok(())
    }

    fn upgrade(&self) -> Result<()> {
        self.restart("install -m 755 /root/rehost-agent /usr/local/sbin/rehost-agent && systemctl restart rehost-agent")
    }

    /// What is written during a pause is noted, not sent; afterwards only that travels.
    fn pause(&self) -> Result<()> {
        self.rehost(&["pause", &self.id])?;
        self.wait("PAUSED", |server| replication(server) == "PAUSED")?;
        self.wait_status("the agent's pause", |status| status["phase"] == "PAUSED")?;
        let before = self.server.counters()?;
        self.server.wait_records(self.server.acknowledged()? + 100)?;
        let paused = self.server.counters()?.since(before);
        self.rehost(&["resume", &self.id])?;
        self.wait_later_checkpoint()?;
        let resumed = self.server.counters()?.since(before);
        println!("  cost: {paused:?} paused, {resumed:?} until it had caught up");
        assert!(paused.sent < 1 << 20, "{paused:?}");
        assert!(resumed.sent < self.first.sent / LITTLE && resumed.read < self.first.read / LITTLE, "{resumed:?}");
        Ok(())
    }

    /// A disk that comes while everything runs joins; the first one is not read through again.
    fn second_disk(&mut self) -> Result<()> {
        let image = self.second_image();
        let file = std::fs::File::create(&image).and_then(|file| file.set_len(SECOND_DISK_MIB << 20));
        file.map_err(|e| Error::Unexpected(format!("make {}: {e}", image.display())))?;
        self.server.machine().add_disk(&image, "second")?;
        self.server.sh("for i in $(seq 100); do [ -b /dev/sdb ] && break; sleep 0.2; done; \
             mkfs.ext4 -q /dev/sdb && mkdir -p /mnt/second && mount /dev/sdb /mnt/second && \
             live-writer fill /mnt/second/first 16 5")?;
        self.wait("the second disk in the report", |server| {
            let new = server["rehost"]["newDisks"].as_array().cloned().unwrap_or_default();
            new.iter().any(|disk| disk["deviceName"] == "/dev/sdb")
        })?;
        let before = self.server.counters()?;
        self.rehost(&["disks", "add", &self.id, "/dev/sdb"])?;
        self.wait("the second disk's first copy", |server| {
            let info = &server["dataReplicationInfo"];
            let disks = info["replicatedDisks"].as_array().cloned().unwrap_or_default();
            let synced = |disk: &Value| disk["replicatedStorageBytes"] == disk["totalStorageBytes"];
            disks.len() == 2 && disks.iter().all(synced) && replication(server) == "CONTINUOUS"
        })?;
        let cost = self.server.counters()?.since(before);
        println!("  cost for the first disk: {} bytes read", cost.read);
        assert!(cost.read < self.first.read / LITTLE, "{cost:?}");
        Ok(())
    }

    /// Writes of every kind on all file systems; then everything comes to rest, and the disks and their volumes are the same.
    fn same_bytes(&mut self, seed: u64) -> Result<()> {
        self.server.sh(&format!(
            "for at in /var/kinds /srv/data/kinds /mnt/second/kinds; do live-writer kinds $at 12 {seed} 4 || exit 1; done; \
             fstrim /srv/data; fstrim /mnt/second; rm /srv/data/kinds; systemctl stop live-writer; sync"
        ))?;
        let disks = [self.server.disk().to_owned(), self.second_image()];
        let started = Instant::now();
        loop {
            self.wait("nothing left to send", |server| {
                let own = &server["rehost"];
                own["backlogBytes"] == 0 && own["lagMs"] == 0 && own["consistent"] == true
            })?;
            self.server.machine().pause()?;
            let differing = self.differing(&disks);
            self.server.machine().resume()?;
            // A server at rest still writes something now and then; what was missed stays different for ever.
            match differing? {
                None => break,
                Some(what) if started.elapsed() > PATIENCE / 2 => return Err(Error::Unexpected(what)),
                Some(what) => println!("  not yet: {what}"),
            }
            thread::sleep(Duration::from_secs(3));
        }
        self.server.sh("umount /mnt/second; systemctl start live-writer").map(drop)
    }

    /// The first difference between a disk and the staging volume of its size.
    fn differing(&self, disks: &[PathBuf]) -> Result<Option<String>> {
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        for disk in disks {
            let volumes = self.region.volumes()?;
            let volume = volumes.iter().find(|volume| length(volume) == length(disk));
            let volume = volume.ok_or_else(|| Error::Unexpected(format!("no volume of {}", disk.display())))?;
            if let Some(offset) = first_difference(disk, volume)? {
                return Ok(Some(format!("{} and its volume differ in the MiB at {offset}", disk.display())));
            }
        }
        Ok(None)
    }

    /// After a reboot, marks are gone: digests travel, and what changed.
    fn reboot(&mut self) -> Result<()> {
        self.server.reboot()?;
        self.wait_later_checkpoint()?;
        let sent = self.server.counters()?.sent;
        println!("  cost: {sent} bytes sent since the boot, of {} for the first copy", self.first.sent);
        assert!(sent < self.first.sent / LITTLE, "{sent}");
        self.server.served_records().map(drop)
    }

    /// A cutover whose copy cannot pass its probe takes everything back: the writer runs again.
    fn failed_cutover(&self) -> Result<()> {
        self.server.sh("mkdir -p -m 755 /etc/rehost/hooks/quiesce.d /etc/rehost/hooks/unquiesce.d && \
             printf '#!/bin/sh\\nexec systemctl stop live-writer\\n' >/etc/rehost/hooks/quiesce.d/50-writer && \
             printf '#!/bin/sh\\nexec systemctl start live-writer\\n' >/etc/rehost/hooks/unquiesce.d/50-writer && \
             chmod 755 /etc/rehost/hooks/*/50-writer")?;
        self.rehost(&["server", "set", &self.id, "--probe", "tcp:9", "--verify-timeout", "10"])?;
        let invocation = || self.server.sh("systemctl show -p InvocationID --value live-writer");
        let (records, before) = (self.server.acknowledged()?, invocation()?);
        match self.rehost(&["cutover", &self.id, "--quiesce", "--wait"]) {
            Ok(said) => return Err(Error::Unexpected(format!("a cutover without a passed probe succeeded: {said}"))),
            Err(error) => println!("  as it should be: {error}"),
        }
        self.region.wait_state(&self.id, "READY_FOR_CUTOVER", PATIENCE)?;
        self.wait("the open source", |server| server["rehost"]["fence"]["state"] == "OPEN")?;
        self.server.wait_records(records + 20)?;
        assert!(self.server.writer_runs()?);
        assert_ne!(invocation()?, before, "the writer was never stopped");
        Ok(())
    }

    /// The scripts stop the writer, and the copy has every record.
    fn cutover(&self) -> Result<()> {
        self.rehost(&["server", "set", &self.id, "--probe", "http:80", "--verify-timeout", "600"])?;
        self.rehost(&["cutover", &self.id, "--quiesce", "--wait"])?;
        assert!(!self.server.writer_runs()?, "the source is fenced and writes");
        let all = self.server.served_records()?;
        let copied = self.copied_records()?;
        println!("  copy: {copied} records of {all}");
        assert_eq!(copied, all);
        self.look_at_snapshots(all, all)
    }

    /// The records that the launched copy serves: every one of them right.
    fn copied_records(&self) -> Result<u64> {
        let server = self.region.server(&self.id)?;
        let endpoint = server["launchedInstance"]["endpoints"]["80"].as_str().unwrap_or_default().to_owned();
        let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| Error::Unexpected(format!("no address: {}", server["launchedInstance"])))?;
        count(&http_get(port, "/records", Duration::from_secs(60))?.body)
    }

    fn second_image(&self) -> PathBuf {
        self.space.path("second.img")
    }

    /// Until what is written now is in an acknowledged checkpoint, and the server is followed again.
    fn wait_later_checkpoint(&self) -> Result<()> {
        let begin = Instant::now();
        // The status may be some seconds old.
        let stale = Duration::from_secs(3);
        self.wait_status("a checkpoint of a later moment", |status| {
            let lag = status["lagMs"].as_u64().map(Duration::from_millis);
            status["phase"] == "IDLE" && lag.is_some_and(|lag| lag + stale < begin.elapsed())
        })?;
        self.wait("CONTINUOUS", |server| replication(server) == "CONTINUOUS").map(drop)
    }

    fn wait_agent(&self, former: &str) -> Result<()> {
        self.wait_status("another process of the agent", |status| {
            status["processId"].as_u64().is_some_and(|pid| pid.to_string() != former)
        })
    }

    fn wait_status(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let status = self.server.agent_status();
            if status.as_ref().is_ok_and(|status| is_so(&status["status"])) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                let seen = format!("{status:?}; {}", self.server.agent_journal());
                return Err(Error::Timeout { what: what.to_owned(), after: PATIENCE, seen });
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        self.region.wait_server(&self.id, what, PATIENCE, is_so).map_err(|error| {
            let words = self.server.agent_journal();
            Error::Unexpected(format!("{error}; the agent said: {words}"))
        })
    }

    /// What is to be seen of the tracker, the checkpoints and the freezes.
    fn facts(&self) -> Result<String> {
        let (server, status) = (self.region.server(&self.id)?, self.server.agent_status()?);
        Ok(format!("API: {}; agent: {}", server["rehost"], status["status"]))
    }

    fn rehost(&self, arguments: &[&str]) -> Result<String> {
        self.region.rehost(arguments)
    }
}

fn replication(server: &Value) -> &str {
    server["dataReplicationInfo"]["dataReplicationState"].as_str().unwrap_or_default()
}

/// Copies the bytes from `begin` to `end` to the same place of another file.
fn copy_part(from: &Path, to: &Path, begin: u64, end: u64) -> Result<()> {
    let mut dd = std::process::Command::new("dd");
    dd.arg(format!("if={}", from.display())).arg(format!("of={}", to.display())).args(["bs=1M", "status=none"]);
    dd.args(["conv=notrunc,sparse", "iflag=skip_bytes,count_bytes", "oflag=seek_bytes"]);
    dd.args([format!("skip={begin}"), format!("seek={begin}"), format!("count={}", end - begin)]);
    rehost_tests::process::run(&mut dd).map(drop)
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| Error::Unexpected(format!("remove {}: {e}", path.display())))
}
