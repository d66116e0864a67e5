//! One run's source, network, agent and replicator, and what may be asked of them at any moment.

mod travel;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rehost_agent::tracker;
use rehost_model::link::ServerReport;
use rehost_model::replication::Consistency;
use rehost_model::{Epoch, ServerId};
use rehost_tests::random::Random;
use rehost_tests::{Tmpfs, Workspace};

use self::travel::Flow;
use crate::child::Role;
use crate::failure::{Failure, Kind, Outcome};
use crate::history::BLOCK;
use crate::interrupt::wait;
use crate::leftovers;
use crate::network::{Network, Quality, Way};
use crate::plan::{Figures, Plan, Setting};
use crate::role::{agent, replicator};
use crate::source::{Source, Work};
use crate::spec::{DiskSpec, Spec};
use crate::storage::Home;

/// Far more than anything takes: only what hangs meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);
/// A journal that can be opened is open by then; if it is not, nothing is verified.
const OPENING: Duration = Duration::from_secs(1);
const HOME_BYTES: u64 = 96 << 20;
/// A link on which the changes of a moment take some tenths of a second; bytes a second.
const SLOW: u64 = 1 << 20;
/// Everything of a run is in memory, so that flushing costs nothing.
const MEMORY_MIB: u32 = 1024;

/// The parts end in the order in which they stand here.
pub(crate) struct Bed<'a> {
    pub(crate) agent: Option<Role<agent::Status>>,
    pub(crate) replicator: Option<Role<replicator::Status>>,
    pins: Pins,
    pub(crate) source: Source,
    pub(crate) network: Network,
    pub(crate) home: Home,
    _tmpfs: Tmpfs,
    space: Workspace,
    pub(crate) spec: Spec,
    pub(crate) random: Random,
    pub(crate) setting: Setting<'a>,
    plan: Plan,
    epoch: u64,
    /// Writes that are in a checkpoint that was acknowledged.
    acknowledged: usize,
    /// For each checkpoint that was asked for, the writes that were durable before.
    asked: BTreeMap<Epoch, usize>,
    /// The number of the data key, and whether the next replicator is to have another.
    key: u8,
    before: Flow,
    /// Whether what this row does may cost a comparison, and bytes that the volumes lacked when one could begin.
    pub(crate) compares: bool,
    differing: u64,
    /// Bytes that agents which were killed may have sent in vain, and bytes written until the last of them was.
    unsettled: u64,
    written_at_kill: u64,
    pub(crate) figures: Figures,
    /// Watchdogs that were seen.
    watchdogs: BTreeSet<u32>,
    /// An error that the next replicator meets, in the words of its planted errors.
    pub(crate) bad_storage: Option<String>,
}

impl<'a> Bed<'a> {
    /// Makes everything, copies the disks once and takes two checkpoints, while the source is written already.
    pub(crate) fn start(setting: Setting<'a>, plan: Plan) -> Outcome<Self> {
        let mut bed = Self::make(setting, plan)?;
        bed.start_replicator()?;
        bed.start_agent()?;
        bed.checkpoint()?;
        // What is written once a checkpoint is asked for may travel after it. A second one, since nobody waits long for it.
        let asked = bed.flow()?;
        bed.checkpoint()?;
        bed.before = Flow { written: asked.written, overwritten: asked.overwritten, ..bed.flow()? };
        bed.written_at_kill = bed.before.written;
        Ok(bed)
    }

    fn make(setting: Setting<'a>, plan: Plan) -> Outcome<Self> {
        let mut random = Random::new(setting.seed);
        let space = Workspace::new("faults")?;
        let tmpfs = Tmpfs::mount(&space.path("run"), MEMORY_MIB)?;
        let folder = space.path("run");
        let home = Home::make(&folder, HOME_BYTES)?;
        let network = Network::start(random.next_u64())?;
        let (source, disks) = Source::start(&folder, plan.work, random.next_u64())?;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let spec = Spec {
            server: ServerId::generate(),
            disks,
            port: network.port(),
            interval_ms: milliseconds(plan.interval),
            journal_bytes: plan.journal_bytes,
            freeze_ms: milliseconds(plan.freeze),
            silence_ms: milliseconds(plan.silence),
        };
        spec.save(&folder, setting.authority)?;
        Ok(Self {
            agent: None,
            replicator: None,
            pins: Pins(spec.server.clone()),
            source,
            network,
            home,
            _tmpfs: tmpfs,
            space,
            spec,
            random,
            setting,
            plan,
            epoch: 0,
            acknowledged: 0,
            asked: BTreeMap::new(),
            key: 1,
            before: Flow::default(),
            compares: false,
            differing: 0,
            unsettled: 0,
            written_at_kill: 0,
            figures: Figures::default(),
            watchdogs: BTreeSet::new(),
            bad_storage: None,
        })
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.space.path("run")
    }

    /// Starts the agent, with the checkpoint that was asked for last.
    pub(crate) fn start_agent(&mut self) -> Outcome {
        self.note_comparison()?;
        let mut agent = Role::start("agent", &self.folder(), &[], &self.planted())?;
        agent.tell(&format!("checkpoint {}", self.epoch));
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts the replicator and waits until it knows its volumes; the agent is not let in yet.
    pub(crate) fn start_replicator_alone(&mut self) -> Outcome {
        self.network.set_target(None);
        let arguments = ["--key".to_owned(), self.key.to_string()];
        let mut environment = self.planted();
        environment.extend(self.bad_storage.clone().map(|error| ("REHOST_PLANTED_IO", error)));
        self.replicator = Some(Role::start("replicator", &self.folder(), &arguments, &environment)?);
        self.wait("the start of the replicator", |bed| {
            let ready = bed.replicator_status().is_some_and(|status| status.report.is_some());
            (ready || bed.replicator_stands_still()).then_some(())
        })
    }

    /// Whether the replicator has stopped where it was planned to.
    pub(crate) fn replicator_stands_still(&self) -> bool {
        self.replicator.as_ref().is_some_and(Role::stands_still)
    }

    fn planted(&self) -> Vec<(&'static str, String)> {
        self.setting.planted.map(|bug| ("REHOST_PLANTED", bug.to_owned())).into_iter().collect()
    }

    /// Lets the agent in.
    pub(crate) fn connect(&mut self) -> Outcome {
        self.note_comparison()?;
        let port = self.replicator_status().map(|status| status.port);
        self.network.set_target(port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        Ok(())
    }

    pub(crate) fn start_replicator(&mut self) -> Outcome {
        self.start_replicator_alone()?;
        self.connect()
    }

    /// Kills the agent where it is.
    pub(crate) fn kill_agent(&mut self) -> Outcome {
        self.note_watchdog();
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
        self.figures.faults += 1;
        let written = self.source.written()?;
        self.unsettled += written.saturating_sub(self.written_at_kill);
        self.written_at_kill = written;
        Ok(())
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
        let captured = self.home.capture()?;
        replicator.kill();
        Ok(self.home.power_cycle(captured)?)
    }

    /// One of both.
    pub(crate) fn stop_replicator_somehow(&mut self) -> Outcome {
        match self.chance(3) {
            true => {
                self.kill_replicator();
                Ok(())
            }
            false => self.cut_power(),
        }
    }

    /// Starts the replicator with another data key. A journal that is not empty needs the key that it was sealed with: then the agent
    /// must be refused, until the replicator has that key again.
    pub(crate) fn try_another_key(&mut self) -> Outcome {
        self.key += 1;
        self.start_replicator()?;
        let refused = self.wait("what another key does", |bed| {
            let report = bed.report()?;
            (report.connected || report.error.is_some()).then_some(!report.connected)
        })?;
        if refused {
            self.key -= 1;
            self.stop_replicator_somehow()?;
            self.start_replicator()?;
        }
        Ok(())
    }

    /// What a replicator that was started anew finds is a checkpoint.
    pub(crate) fn verify_reopened(&mut self) -> Outcome {
        let started = Instant::now();
        self.wait("the opening of the journal", |bed| {
            let open = bed.report().is_some_and(|report| report.consistent || report.error.is_some());
            (open || started.elapsed() > OPENING).then_some(())
        })?;
        self.verify()
    }

    /// Asks for a checkpoint, waits until the volumes are held at it, looks at them, and releases them. If nothing is promised of it,
    /// since bare disks were written all the time, another one is taken while they rest.
    pub(crate) fn checkpoint(&mut self) -> Outcome {
        self.checkpoint_and_hold()?;
        let unpromised = self.figures.unpromised;
        self.verify()?;
        self.release();
        if self.figures.unpromised > unpromised {
            self.source.rest(true);
            self.checkpoint_and_hold()?;
            self.verify()?;
            self.release();
        }
        Ok(())
    }

    /// Asks for a checkpoint, waits until the volumes are held at it, and leaves them held.
    pub(crate) fn checkpoint_and_hold(&mut self) -> Outcome {
        // Digests find a disk that rests, or none.
        self.source.rest(matches!(self.plan.work, Work::Images(_)));
        let least = self.hold()?;
        self.source.rest(false);
        self.acknowledged = self.acknowledged.max(least);
        Ok(())
    }

    /// Asks for a checkpoint and does not wait for it.
    pub(crate) fn request(&mut self) {
        self.epoch += 1;
        self.asked.insert(Epoch(self.epoch), self.source.done());
        if let Some(agent) = &mut self.agent {
            agent.tell(&format!("checkpoint {}", self.epoch));
        }
    }

    /// Asks for a checkpoint and waits until the volumes are held at it. The writes that must be in it.
    fn hold(&mut self) -> Outcome<usize> {
        loop {
            let least = self.source.done();
            self.request();
            if self.held_or_expired()? {
                return Ok(least);
            }
        }
    }

    /// False if the hold was lost when the replicator failed or ended: another checkpoint is needed.
    fn held_or_expired(&mut self) -> Outcome<bool> {
        let epoch = Epoch(self.epoch);
        self.wait(&format!("checkpoint {epoch}"), |bed| {
            let report = bed.report()?;
            if report.expired >= epoch {
                return Some(false);
            }
            let held = report.held;
            // An older one, that was not or is just being released. Only that: the new one may be held by the time this arrives.
            if let Some(older) = held.filter(|held| *held < epoch) {
                bed.release_at(older);
            }
            (held == Some(epoch)).then_some(true)
        })
    }

    pub(crate) fn release(&mut self) {
        self.release_at(Epoch(self.epoch));
    }

    fn release_at(&mut self, epoch: Epoch) {
        let words = format!("release {epoch}");
        if let Some(replicator) = &mut self.replicator {
            replicator.tell(&words);
        }
    }

    /// The volumes, at a moment when nothing is applied to them, are one state of the source, and not one before the newest
    /// acknowledged checkpoint.
    pub(crate) fn verify(&mut self) -> Outcome {
        let Some(report) = self.report() else { return Ok(()) };
        let least = match self.plan.work {
            Work::Files => Consistency::Frozen,
            Work::Records(_) | Work::Images(_) => Consistency::Quiescent,
        };
        if !report.consistent || report.consistency < least {
            self.figures.unpromised += 1;
            return Ok(());
        }
        // What the replicator says to have, it must have, whether that was acknowledged or not.
        let said = self.asked.range(..=report.checkpoint).next_back().map_or(0, |(_, writes)| *writes);
        let least = self.acknowledged.max(said);
        self.acknowledged = self.source.moment(&self.volumes()?, &self.folder(), least)?.max(least);
        self.figures.verified += 1;
        Ok(())
    }

    /// Keeps the agent out until nothing of it is under way any more, looks at the volumes, and lets it in again.
    pub(crate) fn part_and_verify(&mut self) -> Outcome {
        self.network.set_target(None);
        self.network.cut();
        // A session that waits for the end of a hold ends after it.
        self.release();
        self.wait("the end of the session", |bed| bed.report().filter(|report| !report.connected))?;
        self.verify()?;
        self.connect()
    }

    /// Stops writing, takes a last checkpoint and compares every byte; then ends everything and looks for leftovers.
    pub(crate) fn settle(mut self) -> Outcome<Figures> {
        self.source.stop()?;
        self.hold()?;
        self.compare()?;
        self.release();
        self.check_sent()?;
        self.end()
    }

    fn compare(&self) -> Outcome {
        for (at, (disk, volume)) in self.source.disks()?.iter().zip(self.volumes()?).enumerate() {
            let pairs = || disk.chunks(BLOCK).zip(volume.chunks(BLOCK));
            let Some(place) = pairs().position(|(a, b)| a != b) else { continue };
            let blocks = pairs().filter(|(a, b)| a != b).count();
            let text = format!("{blocks} blocks of disk {at} are not on its volume, the first is {place}");
            return Err(Failure::new(Kind::Differs, text));
        }
        Ok(())
    }

    fn note_watchdog(&mut self) {
        self.watchdogs.extend(self.agent_status().map(|status| status.watchdog).filter(|pid| *pid != 0));
    }

    fn end(mut self) -> Outcome<Figures> {
        self.note_watchdog();
        if let Some(agent) = &mut self.agent {
            agent.finish(PATIENCE)?;
        }
        if let Some(replicator) = &mut self.replicator {
            replicator.finish(PATIENCE)?;
        }
        let (folder, server) = (self.space.folder().to_owned(), self.spec.server.clone());
        let (figures, watchdogs) = (self.figures, std::mem::take(&mut self.watchdogs));
        drop(self);
        leftovers::check(&folder, &server, &watchdogs)?;
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
        let look = || match look(self) {
            Some(found) => Ok(Some(found)),
            None => self.check_alive().map(|()| None),
        };
        let started = Instant::now();
        let found = wait(what, PATIENCE, look, String::new);
        if std::env::var_os("FAULTS_TRACE").is_some() {
            eprintln!("  {what}: {:?}, {}", started.elapsed(), self.last_words());
        }
        found.map_err(|failure| Failure::new(failure.kind, format!("{}{}", failure.detail, self.last_words())))
    }

    fn check_alive(&mut self) -> Outcome {
        let agent = self.agent.as_mut().and_then(Role::ended);
        match agent.or(self.replicator.as_mut().and_then(Role::ended)) {
            None => Ok(()),
            Some(how) => Err(Failure::new(Kind::Stuck, format!("a process ended by itself: {how}; "))),
        }
    }

    fn last_words(&self) -> String {
        let agent = self.agent.as_ref().map(Role::last_words);
        let replicator = self.replicator.as_ref().map(Role::last_words);
        let writes = self.source.done();
        format!("{writes} writes | {} | {}", agent.unwrap_or_default(), replicator.unwrap_or_default())
    }

    /// A moment of the run: some time from now, or when so many bytes more have gone to the replicator; after a checkpoint was asked
    /// for, or not.
    pub(crate) fn random_moment(&mut self) -> Outcome {
        if self.chance(3) {
            self.request();
        }
        let (bytes, mut time) = match self.chance(3) {
            true => (u64::MAX, self.random.below(350)),
            false => (self.random.below(500_000), 700),
        };
        // An agent that is not connected sends nothing.
        time = time.max(1);
        let (sent, started) = (self.network.passed(Way::Up), Instant::now());
        self.wait("a moment", |bed| {
            let passed = bed.network.passed(Way::Up) - sent >= bytes;
            (passed || started.elapsed() >= Duration::from_millis(time)).then_some(())
        })
    }

    /// A moment when changes wait in the journal, and some of them are acknowledged, if one comes soon.
    pub(crate) fn journal_moment(&mut self) -> Outcome {
        let (bytes, started) = (self.random.below(60_000), Instant::now());
        // So slow that an epoch lasts.
        let before = self.network.set_quality(Quality { rate: Some(SLOW), ..Quality::default() });
        let found = self.wait("changes in the journal", |bed| {
            let durable = bed.home.journals().iter().any(|journal| journal.durable() > bytes);
            (durable || started.elapsed() > Duration::from_secs(2)).then_some(())
        });
        self.network.set_quality(before);
        found
    }

    /// A moment in the midst of what the replicator makes durable: its journal or a sidecar was just written.
    pub(crate) fn storage_moment(&mut self) -> Outcome {
        if self.chance(2) {
            self.request();
        }
        let ends = if self.chance(3) { "journal" } else { "json" };
        let before = self.home.stamps(ends);
        let started = Instant::now();
        while self.home.stamps(ends) == before && started.elapsed() < Duration::from_millis(900) {
            std::thread::sleep(Duration::from_micros(50));
        }
        std::thread::sleep(Duration::from_micros(self.random.below(4) * self.random.below(500)));
        Ok(())
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    /// Waits until the source was written a few times more.
    pub(crate) fn some_writes(&mut self) -> Outcome {
        let target = self.source.done() + 5;
        self.wait("some writes", |bed| (bed.source.done() >= target).then_some(()))
    }

    /// From now on every freeze lasts this much longer.
    pub(crate) fn stay(&mut self, time: Duration) {
        if let Some(agent) = &mut self.agent {
            agent.tell(&format!("stay {}", time.as_millis()));
        }
    }

    pub(crate) fn work(&self) -> Work {
        self.plan.work
    }

    /// What the agent has pinned is gone, as if it never had been.
    pub(crate) fn lose_pins(&self) -> Outcome {
        Ok(self.pins.remove()?)
    }
}

/// What an agent pins for its server; removed on drop.
struct Pins(ServerId);

impl Pins {
    fn remove(&self) -> std::io::Result<()> {
        tracker::forget(&agent::tracker_options(&self.0))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // If they stay, the look for leftovers finds them.
        let _ = self.remove();
    }
}
