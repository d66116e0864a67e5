//! A source disk, a replicator engine with its volume, and the certificates of both.

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rehost_link::transport::{ClientTls, ServerTls, Timeouts, TlsIdentity};
use rehost_model::{
    Epoch, ServerId, VolumeId,
    link::ServerReport,
    region::{REPLICATOR_ROLE, SERVER_URI, VOLUME_URI},
    replicator::Assignment,
};
use rehost_protocol::DiskIndex;
use rehost_replicator::engine::{Engine, EngineConfig};

use crate::sync::{DiskSource, Machine, SyncConfig, SyncControl, SyncEnd, SyncError, SyncLoop, SyncSession};

pub(super) const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A private CA.
pub(super) struct TestCa(CertifiedIssuer<'static, KeyPair>);

impl TestCa {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn agent(&self, server: &ServerId, volumes: &[&VolumeId]) -> ClientTls {
        let uri = |text: String| SanType::URI(text.as_str().try_into().unwrap());
        let mut names = vec![uri(format!("{SERVER_URI}{server}"))];
        names.extend(volumes.iter().map(|volume| uri(format!("{VOLUME_URI}{volume}"))));
        ClientTls::new(self.issue(names), REPLICATOR_ROLE).unwrap()
    }

    pub(super) fn replicator(&self) -> ServerTls {
        let name = SanType::DnsName(REPLICATOR_ROLE.try_into().unwrap());
        ServerTls::new(self.issue(vec![name])).unwrap()
    }

    fn issue(&self, names: Vec<SanType>) -> TlsIdentity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem(), &self.0.pem()).unwrap()
    }
}

/// One server with one disk of `size` bytes, and a replicator that serves it.
pub(super) struct Bed {
    pub(super) directory: tempfile::TempDir,
    pub(super) ca: TestCa,
    pub(super) server: ServerId,
    pub(super) volume: VolumeId,
    pub(super) size: u64,
    pub(super) engine: Engine,
    /// Untracked, unless a test gives another one.
    pub(super) machine: Arc<Machine>,
    engine_config: EngineConfig,
}

impl Bed {
    pub(super) fn new(size: u64) -> Self {
        Self::with(size, |_| {})
    }

    pub(super) fn with(size: u64, configure: impl FnOnce(&mut EngineConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut engine_config = EngineConfig::new(listen, ca.replicator());
        engine_config.keep_alive = Duration::from_millis(200);
        engine_config.timeouts.handshake = Duration::from_secs(2);
        configure(&mut engine_config);
        let engine = Engine::new(engine_config.clone()).unwrap();
        let (server, volume) = (ServerId::generate(), VolumeId::generate());
        let machine = Machine::untracked();
        let bed = Self { directory, ca, server, volume, size, engine, machine, engine_config };
        for path in [bed.source(), bed.target()] {
            File::create(path).unwrap().set_len(size).unwrap();
        }
        bed.engine.set_assignments(vec![bed.assignment()]).unwrap();
        bed
    }

    pub(super) fn source(&self) -> PathBuf {
        self.directory.path().join("source.img")
    }

    pub(super) fn target(&self) -> PathBuf {
        self.directory.path().join("target.img")
    }

    pub(super) fn assignment(&self) -> Assignment {
        Assignment {
            server: self.server.clone(),
            volume: self.volume.clone(),
            size_bytes: self.size,
            location: self.target().display().to_string(),
            initialized: false,
        }
    }

    pub(super) fn config(&self) -> SyncConfig {
        let disk =
            DiskSource { index: DiskIndex(0), path: self.source(), volume: self.volume.clone(), size_bytes: self.size };
        SyncConfig {
            addresses: vec![self.engine.address().to_string()],
            tls: self.ca.agent(&self.server, &[&self.volume]),
            server: self.server.clone(),
            disks: vec![disk],
            timeouts: Timeouts::default(),
            machine: self.machine.clone(),
        }
    }

    /// The engine as it is after the replicator was started anew.
    pub(super) fn restart(&mut self) {
        self.engine.shutdown();
        self.engine = Engine::new(self.engine_config.clone()).unwrap();
        self.engine.set_assignments(vec![self.assignment()]).unwrap();
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.source()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    pub(super) fn report(&self) -> ServerReport {
        let reports = self.engine.report();
        reports.into_iter().find(|report| report.server == self.server).unwrap()
    }

    /// Waits until `reached` holds of the report.
    pub(super) fn wait_for(&self, what: &str, reached: impl Fn(&ServerReport) -> bool) -> ServerReport {
        wait_for(what, || Some(self.report()).filter(|report| reached(report)))
    }

    pub(super) fn assert_equal(&self) {
        assert_same_bytes(&self.source(), &self.target());
    }

    /// Runs sessions, each after the other, until a checkpoint is reached, and releases it.
    pub(super) fn reach(&self, config: &SyncConfig, epoch: u64) {
        let agent = Agent::start(config);
        agent.control.request_checkpoint(Epoch(epoch));
        self.wait_for("the checkpoint", |report| report.checkpoint >= Epoch(epoch) && report.held.is_some());
        agent.wait_until_reached(epoch);
        self.assert_equal();
        assert!(self.engine.release_hold(&self.server, Epoch(epoch)));
        agent.stop();
    }
}

/// The agent's engine in a thread of its own; stopped when it is dropped.
pub(super) struct Agent {
    pub(super) control: Arc<SyncControl>,
    thread: Option<thread::JoinHandle<SyncEnd>>,
}

impl Agent {
    pub(super) fn start(config: &SyncConfig) -> Self {
        let control = Arc::new(SyncControl::new());
        let (config, engine) = (config.clone(), control.clone());
        let thread = thread::spawn(move || SyncLoop::run(&config, &engine));
        Self { control, thread: Some(thread) }
    }

    pub(super) fn wait_until_reached(&self, epoch: u64) {
        wait_for("the agent to hear of its checkpoint", || {
            (self.control.progress().reached >= Epoch(epoch)).then_some(())
        });
    }

    /// Waits until the engine shows an error of this name.
    pub(super) fn wait_for_error(&self, code: &str) -> String {
        wait_for(code, || self.control.error().filter(|error| error.code == code)).message
    }

    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.control.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.thread.is_some() && !thread::panicking() {
            self.end();
        }
        self.control.stop();
    }
}

/// One session that is expected to fail.
pub(super) fn failure(config: &SyncConfig) -> SyncError {
    SyncSession::run(config, &SyncControl::new()).unwrap_err()
}

pub(super) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn assert_same_bytes(one: &Path, other: &Path) {
    let (one, other) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    assert_eq!(one.len(), other.len());
    let differs = one.iter().zip(&other).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the volume differs from the disk");
}

/// Numbers that repeat with their seed, which is printed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        let seed = std::env::var("REHOST_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap()).max(1);
        println!("REHOST_TEST_SEED={seed}");
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}
