//! The daemon: reports to the control plane, and does what it is told.
//!
//! The control plane decides, the agent only asks: every poll carries what it is doing and brings what it is to do. When the
//! control plane is away, the data engine keeps at what it was told last.

use std::path::PathBuf;
use std::time::Duration;

use rehost_link::control_client::{ControlClient, ControlError, Proof, now};
use rehost_link::identity::{Identity, IdentityError, StateDir};
use rehost_link::signature::RequestSigner;
use rehost_model::Epoch;
use rehost_model::link::{
    AGENT_POLL_PATH, AGENT_RENEW_PATH, AgentCommand, AgentDirective, AgentPhase, AgentReport, CheckpointSettings,
    IssuedCertificate, RenewRequest, ReportedError,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::hooks::HookSet;
use crate::settings::{AgentSettings, StateError, installed};
use crate::status::{AgentStatus, StatusFile, TrackerStatus};
use crate::sync::Progress;
use crate::system::System;
use crate::{VERSION, service};

mod fencing;
mod host;
mod inventory;
mod journal;
mod replication;

use fencing::Fencing;
pub use host::HookedFreezer;
use host::Host;
pub(crate) use host::tracker_options;
use inventory::Inventory;
use journal::Journal;
use replication::{Replication, Target};

/// Polls are at least and at most this far apart, whatever the control plane says.
const POLL_LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));

/// Between polls in vain: from, and up to.
const RETRY_LIMITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How often the status is written while nothing else happens.
const TICK: Duration = Duration::from_secs(1);

/// Until the control plane says how long a script may take.
const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the engine may take to stop when the daemon is told to end; what was acknowledged is safe in any case.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Where the daemon finds its state and shows what it does.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    /// Directory of the user's scripts.
    pub hooks_dir: PathBuf,
}

/// Why the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// By a signal: it is to be started again.
    Signalled,
    /// The server was disconnected or cut over: its work is done.
    Disconnected,
}

/// Runs until a signal, or until the control plane says that the work is done.
///
/// # Errors
/// [`StateError`] when no agent is installed, or its state is damaged. Trouble on the network is no reason to end.
pub async fn run(options: &RunOptions) -> Result<RunEnd, StateError> {
    let mut daemon = Daemon::new(options)?;
    let end = tokio::select! {
        () = terminated() => RunEnd::Signalled,
        () = daemon.serve() => RunEnd::Disconnected,
    };
    daemon.shut_down(end).await;
    Ok(end)
}

async fn terminated() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be watched; only a kill ends the agent");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

struct Daemon {
    state: StateDir,
    settings: AgentSettings,
    identity: Identity,
    signer: RequestSigner,
    client: ControlClient,
    status: StatusFile,
    journal: Journal,
    host: Host,
    fence: Fencing,
    inventory: Inventory,
    replication: Option<Replication>,
    /// What the newest engine had done when it was stopped.
    last: Progress,
    /// Told to pause.
    paused: bool,
    /// Why no engine could be started.
    start_error: Option<ReportedError>,
    /// Sent by engines that are gone.
    sent_before: u64,
    requested: Epoch,
    throttle: u64,
    checkpoints: CheckpointSettings,
    disconnected: bool,
    control_error: Option<String>,
    failures: u32,
}

impl Daemon {
    fn new(options: &RunOptions) -> Result<Self, StateError> {
        let state = StateDir::new(&options.state_dir);
        let (settings, identity) = installed(&state)?;
        let signer = identity.signer()?;
        let client = settings.client(&identity)?;
        let status = StatusFile::new(&options.runtime_dir, &options.state_dir);
        let mut journal = Journal::new();
        let hooks = HookSet::new(&options.hooks_dir, settings.source_server_id.clone(), DEFAULT_HOOK_TIMEOUT);
        let host = Host::new(&settings.source_server_id, hooks.clone(), &options.runtime_dir);
        let system = System::default();
        let fence = Fencing::open(&state, hooks, &system, &mut |line| journal.say(line));
        let inventory = Inventory::new(system, settings.all_disks);
        journal.say(format!("agent {VERSION} of {} asks {}", settings.source_server_id, client.endpoint()));
        Ok(Self {
            state,
            settings,
            identity,
            signer,
            client,
            status,
            journal,
            host,
            fence,
            inventory,
            replication: None,
            last: Progress::default(),
            paused: false,
            start_error: None,
            sent_before: 0,
            requested: Epoch(0),
            throttle: 0,
            checkpoints: CheckpointSettings::default(),
            disconnected: false,
            control_error: None,
            failures: 0,
        })
    }

    /// Polls until the control plane has heard that the agent stopped for good.
    async fn serve(&mut self) {
        loop {
            let report = self.report();
            let stopped = report.phase == AgentPhase::Stopped;
            let pause = match self.poll(&report).await {
                Ok(_) if stopped => return,
                Ok(directive) => self.follow(directive).await,
                Err(error) => self.note_failure(&error),
            };
            self.wait(pause).await;
        }
    }

    async fn poll(&mut self, report: &AgentReport) -> Result<AgentDirective, ControlError> {
        let directive = self.client.post(AGENT_POLL_PATH, report, &Proof::Certificate(&self.signer)).await?;
        self.failures = 0;
        if self.control_error.take().is_some() {
            self.journal.say("the control plane answers again");
        }
        Ok(directive)
    }

    /// Does what the directive says; gives the time until the next poll.
    async fn follow(&mut self, directive: AgentDirective) -> Duration {
        if (directive.renew || self.identity.is_due_for_renewal(now()))
            && let Err(error) = self.renew().await
        {
            return self.note_failure(&error);
        }
        self.paused = matches!(directive.command, AgentCommand::Pause);
        match directive.command {
            // A certificate that is being renewed for new volumes is no reason to stop the old ones.
            AgentCommand::Wait if directive.renew => return POLL_LIMITS.0,
            AgentCommand::Wait => {
                self.fence.follow(None, self.checkpoints.hook_timeout_ms);
                self.stop_replication().await;
                self.last = Progress::default();
            }
            AgentCommand::Pause => self.stop_replication().await,
            AgentCommand::Replicate {
                replicator_addresses,
                disks,
                checkpoint,
                throttle_bytes_per_second,
                checkpoints,
                fence,
            } => {
                (self.requested, self.throttle) = (checkpoint, throttle_bytes_per_second);
                self.checkpoints = checkpoints;
                self.fence.follow(fence.as_ref(), checkpoints.hook_timeout_ms);
                self.replicate(Target { addresses: replicator_addresses, disks }).await;
            }
            AgentCommand::Disconnect => {
                self.disconnect().await;
                return POLL_LIMITS.0;
            }
        }
        Duration::from_millis(directive.poll_after_ms).clamp(POLL_LIMITS.0, POLL_LIMITS.1)
    }

    async fn replicate(&mut self, target: Target) {
        if !self.replication.as_ref().is_some_and(|r| r.serves(&target, &self.identity)) {
            self.stop_replication().await;
            let (disks, addresses) = (target.disks.len(), target.addresses.join(", "));
            let journal = &mut self.journal;
            self.host.prepare(&target.paths(), &mut |line| journal.say(line));
            let machine = self.host.machine.clone();
            match Replication::start(target, &self.settings.source_server_id, &self.identity, machine) {
                Ok(started) => {
                    self.start_error = None;
                    self.replication = Some(started);
                    self.journal.say(format!("replicating {disks} disk(s) to {addresses}"));
                }
                Err(error) => self.start_error = Some(error),
            }
        }
        if let Some(replication) = &self.replication {
            replication.direct(self.requested, self.throttle, self.checkpoints);
        }
    }

    /// For good: the source is used on or switched off by its user, and nothing is marked on it any more.
    async fn disconnect(&mut self) {
        self.stop_replication().await;
        if !self.disconnected
            && let Err(error) = self.host.forget()
        {
            self.journal.say(format!("marks stay in the kernel's memory until the next boot: {error}"));
        }
        self.disconnected = true;
    }

    async fn stop_replication(&mut self) {
        self.start_error = None;
        if let Some(replication) = self.replication.take() {
            self.last = replication.stop().await;
            self.sent_before += self.last.sent_bytes;
        }
    }

    async fn renew(&mut self) -> Result<(), ControlError> {
        let kept = self.state.key()?;
        let key = kept.ok_or_else(|| IdentityError::Key("the key is gone; install the agent again".to_owned()))?;
        let request = RenewRequest { csr: key.signing_request()? };
        let issued: IssuedCertificate =
            self.client.post(AGENT_RENEW_PATH, &request, &Proof::Certificate(&self.signer)).await?;
        let identity = Identity::new(&key, &issued)?;
        self.state.save(&identity)?;
        self.signer = identity.signer()?;
        self.identity = identity;
        self.journal.say(format!("the certificate was renewed, until {}", self.identity.not_after()));
        Ok(())
    }

    fn note_failure(&mut self, error: &ControlError) -> Duration {
        let message = error.to_string();
        if self.control_error.is_none() {
            self.journal.say(format!("the control plane: {message}; trying again"));
        }
        self.control_error = Some(message);
        let pause = RETRY_LIMITS.0.saturating_mul(1 << self.failures.min(10)).min(RETRY_LIMITS.1);
        self.failures += 1;
        pause
    }

    async fn wait(&mut self, pause: Duration) {
        let end = Instant::now() + pause;
        loop {
            self.publish();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(TICK)).await;
        }
    }

    fn progress(&self) -> Progress {
        let mut progress = match &self.replication {
            Some(replication) => replication.progress(),
            None => self.progress_at_rest(),
        };
        progress.sent_bytes += self.sent_before;
        if self.disconnected {
            progress.phase = AgentPhase::Stopped;
        }
        progress
    }

    /// Nothing is sent; what changes is marked all the same.
    fn progress_at_rest(&self) -> Progress {
        let phase = if self.paused { AgentPhase::Paused } else { AgentPhase::Waiting };
        let (disks, reached) = (self.last.disks.clone(), self.last.reached);
        let mut progress = Progress { phase, disks, reached, ..Progress::default() };
        self.host.machine.describe(&mut progress, false, std::time::Instant::now());
        progress
    }

    fn error(&self) -> Option<ReportedError> {
        self.start_error.clone().or_else(|| self.replication.as_ref()?.error())
    }

    fn report(&mut self) -> AgentReport {
        let progress = self.progress();
        let targets = self.replication.as_ref().map(|r| r.target().disks.as_slice()).unwrap_or_default();
        let inventory = self.inventory.differing(targets);
        AgentReport {
            agent_version: VERSION.to_owned(),
            phase: progress.phase,
            disks: progress.disks,
            sent_bytes: progress.sent_bytes,
            rate_bytes_per_second: progress.rate_bytes_per_second,
            error: self.error(),
            uninstalling: false,
            tracker: progress.tracker,
            consistency: progress.consistency,
            backlog_bytes: progress.backlog_bytes,
            lag_ms: progress.lag_ms,
            last_freeze_ms: progress.freezes.map(|freezes| freezes.last_ms),
            inventory,
            fence: self.fence.state(),
        }
    }

    fn publish(&mut self) {
        let (progress, error) = (self.progress(), self.error());
        self.journal.note(&progress, error.as_ref());
        let status = AgentStatus {
            source_server_id: self.settings.source_server_id.clone(),
            endpoint: self.settings.endpoint.clone(),
            agent_version: VERSION.to_owned(),
            process_id: std::process::id(),
            updated: now(),
            phase: progress.phase,
            replicator: self.replication.as_ref().map(|r| r.addresses().to_vec()).unwrap_or_default(),
            disks: progress.disks,
            sent_bytes: progress.sent_bytes,
            rate_bytes_per_second: progress.rate_bytes_per_second,
            checkpoint_requested: self.requested,
            checkpoint_reached: progress.reached,
            trackers: progress.trackers.into_iter().map(TrackerStatus::from).collect(),
            consistency: progress.consistency,
            shortfall: progress.shortfall,
            backlog_bytes: progress.backlog_bytes,
            lag_ms: progress.lag_ms,
            freezes: progress.freezes,
            fence: self.fence.state(),
            throttle_bytes_per_second: self.throttle,
            certificate_ends: self.identity.not_after(),
            control_plane_error: self.control_error.clone(),
            error,
        };
        // Only the status command misses it; there is no better place to say so.
        if let Err(error) = self.status.write(&status) {
            tracing::debug!(%error, "the status cannot be written");
        }
    }

    async fn shut_down(mut self, end: RunEnd) {
        if timeout(STOP_PATIENCE, self.stop_replication()).await.is_err() {
            tracing::debug!("the data engine did not stop in time");
        }
        if end == RunEnd::Disconnected {
            self.publish();
            self.journal.say("the server was disconnected: the agent's work is done");
            if let Err(error) = service::disable(&self.state) {
                self.journal.say(format!("the service stays enabled: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
