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
    AGENT_POLL_PATH, AGENT_RENEW_PATH, AgentCommand, AgentDirective, AgentPhase, AgentReport, IssuedCertificate,
    RenewRequest, ReportedError,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::settings::{AgentSettings, StateError, installed};
use crate::status::{AgentStatus, StatusFile};
use crate::sync::Progress;
use crate::{VERSION, service};

mod journal;
mod replication;

use journal::Journal;
use replication::{Replication, Target};

/// Polls are at least and at most this far apart, whatever the control plane says.
const POLL_LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));

/// Between polls in vain: from, and up to.
const RETRY_LIMITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How often the status is written while nothing else happens.
const TICK: Duration = Duration::from_secs(1);

/// How long the engine may take to stop when the daemon is told to end; what was acknowledged is safe in any case.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Where the daemon finds its state and shows what it does.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
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
    replication: Option<Replication>,
    /// Why no engine could be started.
    start_error: Option<ReportedError>,
    /// Sent by engines that are gone.
    sent_before: u64,
    requested: Epoch,
    throttle: u64,
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
        journal.say(format!("agent {VERSION} of {} asks {}", settings.source_server_id, client.endpoint()));
        Ok(Self {
            state,
            settings,
            identity,
            signer,
            client,
            status,
            journal,
            replication: None,
            start_error: None,
            sent_before: 0,
            requested: Epoch(0),
            throttle: 0,
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
        match directive.command {
            // A certificate that is being renewed for new volumes is no reason to stop the old ones.
            AgentCommand::Wait if directive.renew => return POLL_LIMITS.0,
            AgentCommand::Wait | AgentCommand::Pause => self.stop_replication().await,
            AgentCommand::Replicate { replicator_addresses, disks, checkpoint, throttle_bytes_per_second, .. } => {
                (self.requested, self.throttle) = (checkpoint, throttle_bytes_per_second);
                self.replicate(Target { addresses: replicator_addresses, disks }).await;
            }
            AgentCommand::Disconnect => {
                self.stop_replication().await;
                self.disconnected = true;
                return POLL_LIMITS.0;
            }
        }
        Duration::from_millis(directive.poll_after_ms).clamp(POLL_LIMITS.0, POLL_LIMITS.1)
    }

    async fn replicate(&mut self, target: Target) {
        if !self.replication.as_ref().is_some_and(|r| r.serves(&target, &self.identity)) {
            self.stop_replication().await;
            let (disks, addresses) = (target.disks.len(), target.addresses.join(", "));
            match Replication::start(target, &self.settings.source_server_id, &self.identity) {
                Ok(started) => {
                    self.start_error = None;
                    self.replication = Some(started);
                    self.journal.say(format!("replicating {disks} disk(s) to {addresses}"));
                }
                Err(error) => self.start_error = Some(error),
            }
        }
        if let Some(replication) = &self.replication {
            replication.direct(self.requested, self.throttle);
        }
    }

    async fn stop_replication(&mut self) {
        self.start_error = None;
        if let Some(replication) = self.replication.take() {
            self.sent_before += replication.stop().await;
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
        let mut progress = self.replication.as_ref().map(Replication::progress).unwrap_or_default();
        progress.sent_bytes += self.sent_before;
        if self.disconnected {
            progress.phase = AgentPhase::Stopped;
        }
        progress
    }

    fn error(&self) -> Option<ReportedError> {
        self.start_error.clone().or_else(|| self.replication.as_ref()?.error())
    }

    fn report(&self) -> AgentReport {
        let progress = self.progress();
        AgentReport {
            agent_version: VERSION.to_owned(),
            phase: progress.phase,
            disks: progress.disks,
            sent_bytes: progress.sent_bytes,
            rate_bytes_per_second: progress.rate_bytes_per_second,
            error: self.error(),
            ..AgentReport::default()
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
