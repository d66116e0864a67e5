//! The data engine, as the daemon holds it: started for a target, re-targeted by starting anew, stopped.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use rehost_link::identity::Identity;
use rehost_link::transport::{ClientTls, Timeouts, TlsIdentity};
use rehost_model::link::{AgentPhase, CheckpointSettings, DiskTarget, ReportedError};
use rehost_model::region::REPLICATOR_ROLE;
use rehost_model::{Epoch, ServerId};
use rehost_protocol::DiskIndex;

use crate::sync::{DiskSource, Machine, Progress, SyncConfig, SyncControl, SyncLoop};

/// Where the disks are replicated to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// `host:port`, to be tried in order.
    pub(super) addresses: Vec<String>,
    pub(super) disks: Vec<DiskTarget>,
}

impl Target {
    /// The paths of the disks.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.disks.iter().map(|disk| disk.device_name.clone().into()).collect()
    }

    fn config(&self, server: ServerId, tls: ClientTls, machine: Arc<Machine>) -> SyncConfig {
        let source = |disk: &DiskTarget| DiskSource {
            index: DiskIndex(disk.disk_index),
            path: disk.device_name.clone().into(),
            volume: disk.volume.clone(),
            size_bytes: disk.size_bytes,
        };
        SyncConfig {
            addresses: self.addresses.clone(),
            tls,
            server,
            disks: self.disks.iter().map(source).collect(),
            timeouts: Timeouts::default(),
            machine,
        }
    }
}

/// A running engine.
pub(super) struct Replication {
    target: Target,
    /// When the certificate that it uses ends: tells whether that is still the newest one.
    certificate: String,
    control: Arc<SyncControl>,
    thread: JoinHandle<()>,
}

impl Replication {
    /// Starts the engine in a thread of its own.
    ///
    /// # Errors
    /// [`ReportedError`] when the identity cannot be used, or the system gives no thread.
    pub(super) fn start(
        target: Target,
        server: &ServerId,
        identity: &Identity,
        machine: Arc<Machine>,
    ) -> Result<Self, ReportedError> {
        let unusable =
            |code: &str, e: &dyn std::fmt::Display| ReportedError { code: code.to_owned(), message: e.to_string() };
        let (certificate, key, ca) = (identity.certificate_pem(), identity.key_pem(), identity.ca_pem());
        let tls = TlsIdentity::from_pem(certificate, key, ca)
            .and_then(|own| ClientTls::new(own, REPLICATOR_ROLE))
            .map_err(|e| unusable("CertificateUnusable", &e))?;
        let config = target.config(server.clone(), tls, machine);
        let control = Arc::new(SyncControl::new());
        let shared = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || {
                SyncLoop::run(&config, &shared);
            })
            .map_err(|e| unusable("SystemShortOfResources", &e))?;
        Ok(Self { target, certificate: certificate.to_owned(), control, thread })
    }

    /// Whether this engine can go on for `target` with `identity`. A renewed certificate is taken when that disturbs nothing.
    pub(super) fn serves(&self, target: &Target, identity: &Identity) -> bool {
        let at_work = matches!(self.progress().phase, AgentPhase::InitialSync | AgentPhase::Rescan);
        let certified = at_work || self.certificate == identity.certificate_pem();
        self.target == *target && certified && !self.thread.is_finished()
    }

    /// Passes on what may change while the engine runs.
    pub(super) fn direct(&self, checkpoint: Epoch, throttle_bytes_per_second: u64, checkpoints: CheckpointSettings) {
        self.control.set_checkpoints(checkpoints);
        self.control.request_checkpoint(checkpoint);
        self.control.set_throttle(throttle_bytes_per_second);
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn addresses(&self) -> &[String] {
        &self.target.addresses
    }

    pub(super) fn progress(&self) -> Progress {
        self.control.progress()
    }

    pub(super) fn error(&self) -> Option<ReportedError> {
        self.control.error()
    }

    /// Stops the engine and waits for its end; gives how far it came.
    pub(super) async fn stop(self) -> Progress {
        self.control.stop();
        let control = self.control;
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the data engine ended by a panic");
        }
        control.progress()
    }
}
