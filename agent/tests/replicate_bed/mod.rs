//! A replicator with one volume, the certificates of both sides, and an agent's engine that replicates a device.
#![allow(dead_code)] // Each test uses a part of it.
#![allow(clippy::unwrap_used)] // A bed that cannot be made fails the test.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rehost_agent::sync::{DiskSource, Machine, SyncConfig, SyncControl, SyncLoop};
use rehost_link::transport::{ClientTls, ServerTls, Timeouts, TlsIdentity};
use rehost_model::{
    Epoch, ServerId, VolumeId,
    link::{CheckpointSettings, DataKey, ServerReport},
    region::{REPLICATOR_ROLE, SERVER_URI, VOLUME_URI},
    replicator::Assignment,
};
use rehost_protocol::DiskIndex;
use rehost_replicator::engine::{Engine, EngineConfig};

const PATIENCE: Duration = Duration::from_secs(120);

/// One server with one device, and a replicator that serves it.
pub(crate) struct Bed {
    pub(crate) server: ServerId,
    pub(crate) engine: Engine,
    config: SyncConfig,
    directory: tempfile::TempDir,
}

impl Bed {
    pub(crate) fn new(server: ServerId, device: &Path, size_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let volume = VolumeId::generate();
        let (client, served) = certificates(&server, &volume);
        let engine = Engine::new(EngineConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), served)).unwrap();
        engine.set_data_keys(BTreeMap::from([(server.clone(), DataKey([7; 32]))]));
        let target = directory.path().join("target.img");
        File::create(&target).unwrap().set_len(size_bytes).unwrap();
        let location = target.display().to_string();
        let (server_id, volume_id) = (server.clone(), volume.clone());
        let assignment = Assignment { server: server_id, volume: volume_id, size_bytes, location, initialized: false };
        engine.set_assignments(vec![assignment]).unwrap();
        let config = SyncConfig {
            addresses: vec![engine.address().to_string()],
            tls: client,
            server: server.clone(),
            disks: vec![DiskSource { index: DiskIndex(0), path: device.to_owned(), volume, size_bytes }],
            timeouts: Timeouts::default(),
            machine: Machine::untracked(),
        };
        Self { server, engine, config, directory }
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.directory.path().join("target.img")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn report(&self) -> ServerReport {
        self.engine.report().remove(0)
    }

    pub(crate) fn start(&self, machine: &Arc<Machine>, settings: CheckpointSettings) -> Agent {
        let control = Arc::new(SyncControl::new());
        control.set_checkpoints(settings);
        let config = SyncConfig { machine: machine.clone(), ..self.config.clone() };
        let shared = control.clone();
        let thread = thread::spawn(move || {
            SyncLoop::run(&config, &shared);
        });
        Agent { control, thread: Some(thread) }
    }

    /// Copies the volume at a checkpoint, and releases the hold.
    pub(crate) fn snapshot(&self, agent: &Agent, epoch: u64, copy: &Path) {
        agent.control.request_checkpoint(Epoch(epoch));
        wait_for("the checkpoint", || agent.control.progress().reached >= Epoch(epoch));
        assert_eq!(self.report().held, Some(Epoch(epoch)), "{:?}", self.report());
        std::fs::copy(self.target(), copy).unwrap();
        assert!(self.engine.release_hold(&self.server, Epoch(epoch)));
    }
}

/// An agent's engine in a thread of its own; stopped when it is dropped.
pub(crate) struct Agent {
    pub(crate) control: Arc<SyncControl>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn certificates(server: &ServerId, volume: &VolumeId) -> (ClientTls, ServerTls) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |names: Vec<SanType>| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem(), &ca.pem()).unwrap()
    };
    let uri = |text: String| SanType::URI(text.as_str().try_into().unwrap());
    let client = issue(vec![uri(format!("{SERVER_URI}{server}")), uri(format!("{VOLUME_URI}{volume}"))]);
    let served = issue(vec![SanType::DnsName(REPLICATOR_ROLE.try_into().unwrap())]);
    (ClientTls::new(client, REPLICATOR_ROLE).unwrap(), ServerTls::new(served).unwrap())
}
