//! One run's source, network, agent and replicator, and what may be asked of them at any moment.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rehost_model::link::ServerReport;
use rehost_model::replication::Consistency;
use rehost_model::{Epoch, ServerId, VolumeId};
use rehost_tests::random::Random;
use rehost_tests::{Tmpfs, Workspace};

use crate::failure::{Failure, Kind, Outcome};
use crate::history::{BLOCK, History};
use crate::interrupt::wait;
use crate::leftovers;
use crate::network::{Network, Way};
use crate::role::{agent, replicator};
use crate::child::Role;
use crate::spec::{Authority, DiskSpec, Spec};
use crate::storage::{Home, Loop};
use crate::writer::{Pace, Writer};

/// Far more than anything takes: only what hangs meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
const DISKS: usize = 2;
const DISK_BLOCKS: usize = (12 << 20) / BLOCK;
const HOME_BYTES: u64 = 96 << 20;
/// Everything of a run is in memory, so that flushing costs nothing.
const MEMORY_MIB: u32 = 1024;

/// What distinguishes the beds of the rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) pace: Pace,
    /// A continuous checkpoint this often.
    pub(crate) interval: Duration,
    /// The source is block devices and is tracked; else image files, which are compared by digests.
    pub(crate) tracked: bool,
    pub(crate) journal_bytes: u64,
}

impl Default for Plan {
    fn default() -> Self {
        let pace = Pace { burst: 24, pause: Duration::from_millis(60) };
        Self { pace, interval: Duration::from_millis(120), tracked: true, journal_bytes: 32 << 20 }
    }
}

/// What a run is given.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) authority: &'a Authority,
    pub(crate) seed: u64,
    pub(crate) planted: Option<&'a str>,
}

/// Figures of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Faults that were injected.
    pub(crate) faults: u64,
    /// Volumes that were found to be exactly one state of the source, not counting the last comparison.
    pub(crate) verified: u64,
    /// Checkpoints of which nothing is promised, since the source was being written and cannot be frozen.
    pub(crate) unpromised: u64,
    /// Bytes that went to the replicator after the first checkpoint, and how many may have.
    pub(crate) sent: u64,
    pub(crate) allowed: u64,
}

/// The parts end in the order in which they stand here.
pub(crate) struct Bed<'a> {
    pub(crate) writer: Option<Writer>,
    pub(crate) agent: Option<Role<agent::Status>>,
    pub(crate) replicator: Option<Role<replicator::Status>>,
    pub(crate) network: Network,
    pub(crate) home: Option<Home>,
    loops: Vec<Loop>,
    pub(crate) tmpfs: Tmpfs,
    space: Workspace,
    pub(crate) spec: Spec,
    pub(crate) random: Random,
    setting: Setting<'a>,
    plan: Plan,
    epoch: u64,
    /// Writes that are in a checkpoint that was acknowledged.
    acknowledged: usize,
    key: u8,
    before: u64,
    connections_before: u64,
    pub(crate) figures: Figures,
}

impl<'a> Bed<'a> {
    /// Makes everything, copies the disks once and takes the first checkpoint, while the source is written already.
    pub(crate) fn start(setting: Setting<'a>, plan: Plan) -> Outcome<Self> {
        let mut bed = Self::make(setting, plan)?;
        bed.start_replicator()?;
        bed.start_agent()?;
        bed.checkpoint()?;
        bed.before = bed.network.passed(Way::Up);
        bed.connections_before = bed.network.connections();
        Ok(bed)
    }

    fn make(setting: Setting<'a>, plan: Plan) -> Outcome<Self> {
        let mut random = Random::new(setting.seed);
        let space = Workspace::new("faults")?;
        let tmpfs = Tmpfs::mount(&space.path("run"), MEMORY_MIB)?;
        let folder = space.path("run");
        let history = History::new(random.next_u64(), DISKS, DISK_BLOCKS);
        let home = Home::make(&folder, HOME_BYTES)?;
        let network = Network::start(random.next_u64())?;
        let (disks, loops) = make_disks(&folder, &history, plan.tracked)?;
        let spec = Spec {
            server: ServerId::generate(),
            disks,
            port: network.port(),
            interval_ms: u64::try_from(plan.interval.as_millis()).unwrap_or(u64::MAX),
            journal_bytes: plan.journal_bytes,
        };
        spec.save(&folder, setting.authority)?;
        let paths: Vec<_> = spec.disks.iter().map(|disk| disk.source.clone()).collect();
        let writer = Writer::start(history, &paths, plan.tracked, plan.pace, random.next_u64())?;
        Ok(Self {
            writer: Some(writer),
            agent: None,
            replicator: None,
            network,
            home: Some(home),
            loops,
            tmpfs,
            space,
            spec,
            random,
            setting,
            plan,
            epoch: 0,
            acknowledged: 0,
            key: 1,
            before: 0,
            connections_before: 0,
            figures: Figures::default(),
        })
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.space.path("run")
    }

    /// Starts the agent, with the checkpoint that is asked for.
    pub(crate) fn start_agent(&mut self) -> Outcome {
        let mut agent = Role::start("agent", &self.folder(), &[], self.setting.planted)?;
        agent.tell(&format!("checkpoint {}", self.epoch));
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts the replicator and waits until it knows its volumes; the agent is not let in yet.
    pub(crate) fn start_replicator_alone(&mut self) -> Outcome {
        self.network.set_target(None);
        let arguments = ["--key".to_owned(), self.key.to_string()];
        self.replicator = Some(Role::start("replicator", &self.folder(), &arguments, self.setting.planted)?);
        let ready = |bed: &mut Self| bed.replicator_status().filter(|status| status.report.is_some());
        self.wait("the start of the replicator", ready)?;
        Ok(())
    }

    /// Lets the agent in.
    pub(crate) fn connect(&mut self) {
        let port = self.replicator_status().map(|status| status.port);
        self.network.set_target(port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }

    pub(crate) fn start_replicator(&mut self) -> Outcome {
        self.start_replicator_alone()?;
        self.connect();
        Ok(())
    }

    /// Kills the agent where it is.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
        self.figures.faults += 1;
    }

    /// Kills the replicator's process; what it wrote stays in the page cache.
    pub(crate) fn kill_replicator(&mut self) {
        if let Some(mut replicator) = self.replicator.take() {
            replicator.kill();
        }
        self.figures.faults += 1;
    }

    /// Cuts the power of the replicator: what was not flushed is gone.
    pub(crate) fn cut_power(&mut self) -> Outcome {
        self.figures.faults += 1;
        let Some(mut replicator) = self.replicator.take() else { return Ok(()) };
        replicator.stop_still()?;
        if let Some(home) = &mut self.home {
            let captured = home.capture()?;
            replicator.kill();
            home.power_cycle(captured)?;
        }
        Ok(())
    }

    /// From the next start on, the replicator has another data key.
    pub(crate) fn change_key(&mut self) {
        self.key += 1;
    }

    /// Asks for a checkpoint, waits until the volumes are held at it, looks at them, and releases them.
    pub(crate) fn checkpoint(&mut self) -> Outcome {
        // Digests find a disk that rests, or none.
        self.rest(!self.plan.tracked);
        let least = self.hold()?;
        self.acknowledged = self.acknowledged.max(least);
        self.verify()?;
        self.release();
        self.rest(false);
        Ok(())
    }

    fn rest(&self, rest: bool) {
        if let Some(writer) = &self.writer {
            writer.rest(rest);
        }
    }

    /// Asks for a checkpoint and waits until the volumes are held at it. The writes that must be in it.
    fn hold(&mut self) -> Outcome<usize> {
        self.epoch += 1;
        let (epoch, least) = (Epoch(self.epoch), self.writer.as_ref().map_or(0, Writer::done));
        if let Some(agent) = &mut self.agent {
            agent.tell(&format!("checkpoint {epoch}"));
        }
        self.wait(&format!("checkpoint {epoch}"), |bed| bed.report().filter(|report| report.held == Some(epoch)))?;
        Ok(least)
    }

    fn release(&mut self) {
        let words = format!("release {}", self.epoch);
        if let Some(replicator) = &mut self.replicator {
            replicator.tell(&words);
        }
    }

    /// The volumes, at a moment when nothing is applied to them, are one state of the source, and not one before the newest
    /// acknowledged checkpoint.
    pub(crate) fn verify(&mut self) -> Outcome {
        let Some(report) = self.report() else { return Ok(()) };
        if !report.consistent || report.consistency != Consistency::Quiescent {
            self.figures.unpromised += 1;
            return Ok(());
        }
        let volumes = self.volumes()?;
        let Some(writer) = &self.writer else { return Ok(()) };
        let moment = writer.history().moment(&volumes, self.acknowledged)?;
        self.acknowledged = self.acknowledged.max(moment);
        self.figures.verified += 1;
        Ok(())
    }

    /// Stops writing, takes a last checkpoint and compares every byte; then ends everything and looks for leftovers.
    pub(crate) fn settle(mut self) -> Outcome<Figures> {
        let history = match &mut self.writer {
            Some(writer) => writer.stop()?,
            None => return Err(Failure::new(Kind::Harness, "nothing was written")),
        };
        self.hold()?;
        self.compare(&history)?;
        self.release();
        self.check_sent(&history)?;
        self.end()
    }

    fn compare(&self, history: &History) -> Outcome {
        let expected = history.state(history.writes.len());
        for (at, (disk, volume)) in self.spec.disks.iter().zip(self.volumes()?).enumerate() {
            let source = fs::read(&disk.source)?;
            if expected.get(at) != Some(&source) {
                return Err(Failure::new(Kind::Harness, format!("disk {at} is not what was written to it")));
            }
            if let Some(place) = source.chunks(BLOCK).zip(volume.chunks(BLOCK)).position(|(a, b)| a != b) {
                let blocks = source.chunks(BLOCK).zip(volume.chunks(BLOCK)).filter(|(a, b)| a != b).count();
                let text = format!("{blocks} blocks of disk {at} are not on its volume, the first is {place}");
                return Err(Failure::new(Kind::Differs, text));
            }
        }
        Ok(())
    }

    /// After the first checkpoint travels what was written, and what was under way when a session ended.
    fn check_sent(&mut self, history: &History) -> Outcome {
        let written: u64 = history.writes.iter().map(|write| (write.blocks * BLOCK) as u64).sum();
        let sessions = self.network.connections() - self.connections_before;
        let sent = self.network.passed(Way::Up) - self.before;
        // Frames, TLS and its handshakes, digest requests.
        let around = written / 16 + (sessions + 1) * 16_384 + (1 << 18);
        let allowed = written + (sessions + 1) * replicator::WINDOW_BYTES + around;
        (self.figures.sent, self.figures.allowed) = (sent, allowed);
        if sent <= allowed {
            return Ok(());
        }
        let text = format!("{sent} bytes were sent for {written} that were written in {sessions} sessions");
        Err(Failure::new(Kind::FullSync, text))
    }

    fn end(mut self) -> Outcome<Figures> {
        for role in [self.agent.as_mut().map(|role| role.finish(PATIENCE)), self.replicator.as_mut().map(|role| role.finish(PATIENCE))] {
            role.transpose()?;
        }
        let (figures, folder, server) = (self.figures, self.space.folder().to_owned(), self.spec.server.clone());
        drop(self);
        leftovers::check(&folder, &server)?;
        Ok(figures)
    }

    pub(crate) fn volumes(&self) -> Outcome<Vec<Vec<u8>>> {
        let read = |disk: &DiskSpec| Ok(fs::read(&disk.target)?);
        self.spec.disks.iter().map(read).collect()
    }

    pub(crate) fn replicator_status(&self) -> Option<replicator::Status> {
        self.replicator.as_ref()?.status()
    }

    pub(crate) fn report(&self) -> Option<ServerReport> {
        self.replicator_status()?.report
    }

    pub(crate) fn agent_status(&self) -> Option<agent::Status> {
        self.agent.as_ref()?.status()
    }

    /// Waits for something to be seen; a role that has died is a failure.
    pub(crate) fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> Outcome<T> {
        let mut last_words = String::new();
        let found = wait(
            what,
            PATIENCE,
            || {
                if let Some(found) = look(self) {
                    return Ok(Some(found));
                }
                last_words = self.last_words();
                self.check_alive()?;
                Ok(None)
            },
            String::new,
        );
        found.map_err(|failure| Failure::new(failure.kind, format!("{}{last_words}", failure.detail)))
    }

    fn check_alive(&mut self) -> Outcome {
        let agent = self.agent.as_mut().is_none_or(Role::alive);
        let replicator = self.replicator.as_mut().is_none_or(Role::alive);
        match agent && replicator {
            true => Ok(()),
            false => Err(Failure::new(Kind::Stuck, "a process ended by itself; ")),
        }
    }

    fn last_words(&self) -> String {
        let agent = self.agent.as_ref().map(Role::last_words);
        let replicator = self.replicator.as_ref().map(Role::last_words);
        format!("{} | {}", agent.unwrap_or_default(), replicator.unwrap_or_default())
    }

    /// A moment of the run: when so many bytes more have gone to the replicator, or so much time has passed.
    pub(crate) fn random_moment(&mut self) -> Outcome {
        let (bytes, time) = (self.random.below(400_000), Duration::from_millis(5 + self.random.below(250)));
        let (target, started) = (self.network.passed(Way::Up) + bytes, std::time::Instant::now());
        self.wait("a moment", |bed| {
            (bed.network.passed(Way::Up) >= target || started.elapsed() >= time).then_some(())
        })
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    pub(crate) fn loops(&self) -> &[Loop] {
        &self.loops
    }
}

/// The disks of the source with their first content, and where their volumes are.
fn make_disks(folder: &Path, history: &History, devices: bool) -> Outcome<(Vec<DiskSpec>, Vec<Loop>)> {
    let (mut disks, mut loops) = (Vec::new(), Vec::new());
    for (at, bytes) in history.initial.iter().enumerate() {
        let (image, target) = (folder.join(format!("source-{at}.img")), folder.join(format!("home/volume-{at}.img")));
        fs::write(&image, bytes)?;
        fs::File::create(&target)?.set_len(bytes.len() as u64)?;
        let source = match devices {
            true => {
                loops.push(Loop::attach(&image)?);
                loops.last().map_or(image, |device| device.device().to_owned())
            }
            false => image,
        };
        disks.push(DiskSpec { source, volume: VolumeId::generate(), size_bytes: bytes.len() as u64, target });
    }
    // That the volumes exist is the control plane's word: it survives a power cut.
    fs::File::open(folder.join("home"))?.sync_all()?;
    for disk in &disks {
        fs::File::open(&disk.target)?.sync_all()?;
    }
    Ok((disks, loops))
}
