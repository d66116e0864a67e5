//! The replicator's process: it enrols once, then serves agents and reports to the control plane every second.
//!
//! Agents are served whether or not the control plane answers. What is durable is on the volumes and in their sidecars, so
//! that a killed replicator begins where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rehost_link::control_client::{ControlClient, ControlError, Proof, Trust, now};
use rehost_link::identity::{Identity, IdentityError, PrivateKey, StateDir};
use rehost_link::signature::RequestSigner;
use rehost_link::transport::{ServerTls, TlsIdentity, TransportError};
use rehost_model::link::{
    IssuedCertificate, REPLICATOR_ENROL_PATH, REPLICATOR_MANIFEST_PATH, REPLICATOR_POLL_PATH, REPLICATOR_RENEW_PATH,
    RenewRequest, ReplicatorDirective, ReplicatorEnrolRequest, ReplicatorReport, ReportedError, ServerReport,
};
use rehost_model::replication::Consistency;
use rehost_model::replicator::Assignment;
use rehost_model::{Epoch, ServerId};
use serde::de::IgnoredAny;
use tokio::time::sleep;

use crate::config::ReplicatorConfig;
use crate::engine::{Engine, EngineConfig, EngineError, JOURNAL, SIDECAR};
use crate::location::Locations;

/// The version that the replicator reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Polls are at least and at most this far apart, whatever the control plane says.
const POLL_LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Between polls in vain: from, and up to. Short, since volumes may be held still until the control plane is heard again.
const RETRY_LIMITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Between attempts to renew the certificate.
const RENEWAL_PAUSE_MS: u64 = 600_000;

/// Why the replicator cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("the control plane does not let this replication server in: {0}")]
    Enrolment(ControlError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TransportError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Serves until `stop` is ready; then ends every session in order.
///
/// # Errors
/// [`ServiceError`] when it cannot begin. Later trouble is reported, and no reason to end.
pub async fn run(config: &ReplicatorConfig, stop: impl Future<Output = ()>) -> Result<(), ServiceError> {
    tokio::pin!(stop);
    let state = StateDir::new(&config.state_dir);
    state.create()?;
    let identity = tokio::select! {
        identity = identity(config, &state) => identity?,
        () = &mut stop => return Ok(()),
    };
    let mut service = Service::start(config, state, identity)?;
    let engine = Arc::clone(&service.engine);
    tracing::info!(replicator = %config.replicator, address = %engine.address(), "serving agents");
    tokio::select! {
        () = service.serve() => {}
        () = &mut stop => {}
    }
    // Sessions end with their threads: that blocks.
    if tokio::task::spawn_blocking(move || engine.shutdown()).await.is_err() {
        tracing::error!("the engine ended by a panic");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The identity that is kept, or a new one; tries until the control plane answers.
async fn identity(config: &ReplicatorConfig, state: &StateDir) -> Result<Identity, ServiceError> {
    if let Some(identity) = state.identity()?.filter(|i| i.not_after() > now()) {
        return Ok(identity);
    }
    let mut failures = 0;
    loop {
        match enrol(config, state).await {
            Ok(identity) => return Ok(identity),
            Err(ServiceError::Enrolment(error)) if error.is_retryable() => {
                if failures == 0 {
                    tracing::warn!(%error, "cannot enrol yet; trying again");
                }
                sleep(pause_after(failures)).await;
                failures += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn enrol(config: &ReplicatorConfig, state: &StateDir) -> Result<Identity, ServiceError> {
    let key = match state.key()? {
        Some(key) => key,
        None => PrivateKey::generate()?,
    };
    // Kept first: a certificate that is issued must not be lost together with its key.
    state.save_key(&key)?;
    let request = ReplicatorEnrolRequest {
        replicator: config.replicator.clone(),
        token: config.enrol_token.to_string(),
        csr: key.signing_request()?,
    };
    let trust = config.ca_fingerprint.map_or(Trust::PublicRoots, Trust::Fingerprint);
    let client = ControlClient::new(config.endpoint.clone(), &trust)?;
    let issued: IssuedCertificate =
        client.post(REPLICATOR_ENROL_PATH, &request, &Proof::Nothing).await.map_err(ServiceError::Enrolment)?;
    let identity = Identity::new(&key, &issued)?;
    state.save(&identity)?;
    tracing::info!(until = %identity.not_after(), "enrolled");
    Ok(identity)
}

fn pause_after(failures: u32) -> Duration {
    RETRY_LIMITS.0.saturating_mul(1 << failures.min(10)).min(RETRY_LIMITS.1)
}

fn tls(identity: &Identity) -> Result<ServerTls, TransportError> {
    ServerTls::new(TlsIdentity::from_pem(identity.certificate_pem(), identity.key_pem(), identity.ca_pem())?)
}

struct Service {
    state: StateDir,
    identity: Identity,
    signer: RequestSigner,
    client: ControlClient,
    engine: Arc<Engine>,
    /// Where sidecars and journals are.
    records: PathBuf,
    locations: Locations,
    /// As the control plane named them.
    assignments: Option<Vec<Assignment>>,
    /// As they were found here.
    served: Vec<Assignment>,
    /// Of servers whose volumes are not all here yet.
    missing: BTreeMap<ServerId, ReportedError>,
    renewal_not_before: rehost_model::Timestamp,
    failures: u32,
}

impl Service {
    fn start(config: &ReplicatorConfig, state: StateDir, identity: Identity) -> Result<Self, ServiceError> {
        let volumes = StateDir::new(config.state_dir.join("volumes"));
        volumes.create()?;
        let records = volumes.path().to_owned();
        let usual = EngineConfig::new(config.listen, tls(&identity)?);
        let engine = Engine::new(EngineConfig {
            state_dir: Some(records.clone()),
            hold_timeout: config.hold_timeout,
            journal_bytes: config.journal_bytes.unwrap_or(usual.journal_bytes),
            ..usual
        })?;
        let trust = Trust::after_enrolment(config.ca_fingerprint, identity.ca());
        Ok(Self {
            signer: identity.signer()?,
            client: ControlClient::new(config.endpoint.clone(), &trust)?,
            state,
            identity,
            engine: Arc::new(engine),
            records,
            locations: Locations::new(config.volumes_directory.clone()),
            assignments: None,
            served: Vec::new(),
            missing: BTreeMap::new(),
            renewal_not_before: now(),
            failures: 0,
        })
    }

    async fn serve(&mut self) {
        loop {
            let pause = match self.poll().await {
                Ok(directive) => {
                    self.note_success();
                    self.follow(directive)
                }
                Err(error) => self.note_failure(&error),
            };
            self.renew_if_due().await;
            self.bring_manifest().await;
            sleep(pause).await;
        }
    }

    async fn poll(&self) -> Result<ReplicatorDirective, ControlError> {
        let mut servers = self.engine.report();
        let absent = self.missing.iter().filter(|(id, _)| !servers.iter().any(|known| known.server == **id));
        let absent: Vec<_> = absent.map(|(server, error)| absent_server(server, error)).collect();
        servers.extend(absent);
        let report = ReplicatorReport { port: self.engine.address().port(), version: VERSION.to_owned(), servers };
        self.client.post(REPLICATOR_POLL_PATH, &report, &Proof::Certificate(&self.signer)).await
    }

    fn follow(&mut self, directive: ReplicatorDirective) -> Duration {
        // First: journals are opened as soon as their volumes are known.
        self.engine.set_data_keys(directive.data_keys);
        if self.assignments.as_ref() != Some(&directive.assignments) || !self.missing.is_empty() {
            self.assign(directive.assignments);
        }
        self.engine.release_holds(&directive.releases);
        Duration::from_millis(directive.poll_after_ms).clamp(POLL_LIMITS.0, POLL_LIMITS.1)
    }

    fn assign(&mut self, assignments: Vec<Assignment>) {
        let mut found = self.locations.find(&assignments);
        // A disk that came to a server and is not here yet keeps nobody from replicating the others.
        let still =
            |a: &&Assignment| assignments.iter().any(|new| new.volume == a.volume && new.size_bytes == a.size_bytes);
        let before = self.served.iter().filter(still).filter(|a| found.missing.contains_key(&a.server));
        found.assignments.extend(before.cloned());
        let is_known = self.assignments.as_ref() == Some(&assignments) && self.missing == found.missing;
        if is_known {
            return;
        }
        tracing::info!(volumes = found.assignments.len(), "new assignments");
        for error in found.missing.values() {
            tracing::warn!(error = %error.message, "a server is not served yet");
        }
        match self.engine.set_assignments(found.assignments.clone()) {
            Ok(()) => {
                self.served = found.assignments;
                self.forget_others(&assignments);
                self.missing = found.missing;
                self.assignments = Some(assignments);
            }
            Err(error) => tracing::error!(%error, "the assignments cannot be taken; those before stay"),
        }
    }

    /// Removes the sidecars of volumes, and the journals of servers, that are not served here any more.
    fn forget_others(&self, assignments: &[Assignment]) {
        let files = |a: &Assignment| [format!("{}{SIDECAR}", a.volume), format!("{}{JOURNAL}", a.server)];
        let served: BTreeSet<_> = assignments.iter().flat_map(files).collect();
        let entries = fs::read_dir(&self.records).into_iter().flatten().flatten();
        for path in entries.map(|e| e.path()) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if (name.ends_with(SIDECAR) || name.ends_with(JOURNAL))
                && !served.contains(name)
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a record");
            }
        }
    }

    /// Brings one manifest to the control plane; what does not arrive is brought after the next poll.
    async fn bring_manifest(&self) {
        let Some(manifest) = self.engine.manifest() else { return };
        let proof = Proof::Certificate(&self.signer);
        let sent: Result<IgnoredAny, _> = self.client.post(REPLICATOR_MANIFEST_PATH, &manifest, &proof).await;
        match sent {
            Ok(_) => self.engine.drop_manifest(&manifest.volume, manifest.epoch),
            Err(error) if error.is_retryable() => tracing::debug!(%error, "a manifest has not arrived"),
            Err(error) => {
                tracing::warn!(%error, volume = %manifest.volume, "the control plane does not take a manifest");
                self.engine.drop_manifest(&manifest.volume, manifest.epoch);
            }
        }
    }

    async fn renew_if_due(&mut self) {
        let time = now();
        if !self.identity.is_due_for_renewal(time) || time < self.renewal_not_before {
            return;
        }
        self.renewal_not_before = time.plus_ms(RENEWAL_PAUSE_MS);
        if let Err(error) = self.renew().await {
            tracing::warn!(%error, until = %self.identity.not_after(), "the certificate cannot be renewed yet");
        }
    }

    async fn renew(&mut self) -> Result<(), ServiceError> {
        let kept = self.state.key()?;
        let key =
            kept.ok_or_else(|| IdentityError::Key("the key is gone; replace the replication server".to_owned()))?;
        let request = RenewRequest { csr: key.signing_request()? };
        let proof = Proof::Certificate(&self.signer);
        let renewed: Result<IssuedCertificate, _> = self.client.post(REPLICATOR_RENEW_PATH, &request, &proof).await;
        let identity = Identity::new(&key, &renewed?)?;
        self.state.save(&identity)?;
        tracing::info!(until = %identity.not_after(), "the certificate was renewed");
        self.engine.set_tls(tls(&identity)?);
        self.signer = identity.signer()?;
        self.identity = identity;
        Ok(())
    }

    fn note_success(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("the control plane answers again");
        }
    }

    fn note_failure(&mut self, error: &ControlError) -> Duration {
        if self.failures == 0 {
            tracing::warn!(%error, "the control plane does not answer; agents are served all the same");
        }
        self.failures += 1;
        pause_after(self.failures - 1)
    }
}

/// What is reported of a server whose volumes are not here: nothing but why.
fn absent_server(server: &ServerId, error: &ReportedError) -> ServerReport {
    ServerReport {
        server: server.clone(),
        connected: false,
        received_bytes: 0,
        checkpoint: Epoch(0),
        held: None,
        expired: Epoch(0),
        consistency: Consistency::None,
        consistent: false,
        journal_bytes: 0,
        volumes: Vec::new(),
        error: Some(error.clone()),
    }
}

#[cfg(test)]
mod tests;
