//! An engine with volumes in a directory, and an agent that says what it is told to.

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rehost_link::transport::{self, ClientTls, Receiver, Sender, ServerTls, Timeouts, TlsIdentity};
use rehost_model::{
    Epoch, ServerId, VolumeId,
    link::{DataKey, ServerReport},
    region::{REPLICATOR_ROLE, SERVER_URI, VOLUME_URI},
    replication::Consistency,
    replicator::Assignment,
};
use rehost_protocol::{
    AgentMessage, BlockCodec, ByteCount, ByteOffset, DataBlock, DigestChunk, DigestId, DigestKey, DigestRun, DiskIndex,
    DiskOffer, DiskProgress, DiskState, ErrorCode, Hello, ProtocolVersion, ReplicatorMessage, Sequence, SessionId,
    ZeroOrDigest, digest_chunk,
};

use crate::engine::{Engine, EngineConfig};

pub(super) const SIZE: u64 = 2 << 20;
const KEY: DigestKey = DigestKey([5; 32]);
const PATIENCE: Duration = Duration::from_secs(30);

/// One server with two volumes.
pub(super) struct Bed {
    pub(super) directory: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
    pub(super) server: ServerId,
    pub(super) volumes: Vec<VolumeId>,
    pub(super) config: EngineConfig,
    pub(super) engine: Engine,
}

impl Bed {
    pub(super) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(super) fn with(configure: impl FnOnce(&mut EngineConfig, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let own = issue(&ca, vec![SanType::DnsName(REPLICATOR_ROLE.try_into().unwrap())]);
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = EngineConfig::new(listen, ServerTls::new(own).unwrap());
        let records = directory.path().join("records");
        std::fs::create_dir(&records).unwrap();
        config.state_dir = Some(records);
        configure(&mut config, directory.path());
        let engine = Engine::new(config.clone()).unwrap();
        let volumes = vec![VolumeId::generate(), VolumeId::generate()];
        let bed = Self { directory, ca, server: ServerId::generate(), volumes, config, engine };
        for volume in &bed.volumes {
            File::create(bed.path(volume)).unwrap().set_len(SIZE).unwrap();
        }
        bed.engine.set_assignments(bed.assignments()).unwrap();
        bed
    }

    pub(super) fn path(&self, volume: &VolumeId) -> PathBuf {
        self.directory.path().join(volume.as_str())
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.config.state_dir.clone().unwrap().join(format!("{}.journal", self.server))
    }

    pub(super) fn assignments(&self) -> Vec<Assignment> {
        let assignment = |volume: &VolumeId| Assignment {
            server: self.server.clone(),
            volume: volume.clone(),
            size_bytes: SIZE,
            location: self.path(volume).display().to_string(),
            initialized: false,
        };
        self.volumes.iter().map(assignment).collect()
    }

    /// The first disks have twice the size from now on.
    pub(super) fn grow(&self, disks: usize) {
        let mut assignments = self.assignments();
        for assignment in assignments.iter_mut().take(disks) {
            assignment.size_bytes = 2 * SIZE;
            File::options().write(true).open(&assignment.location).unwrap().set_len(2 * SIZE).unwrap();
        }
        self.engine.set_assignments(assignments).unwrap();
    }

    pub(super) fn give_key(&self, byte: u8) {
        self.engine.set_data_keys([(self.server.clone(), DataKey([byte; 32]))].into());
    }

    /// The replicator is started anew; it has no key yet.
    pub(super) fn restart(&mut self) {
        self.engine.shutdown();
        self.engine = Engine::new(self.config.clone()).unwrap();
        self.engine.set_assignments(self.assignments()).unwrap();
    }

    pub(super) fn report(&self) -> ServerReport {
        self.engine.report().into_iter().find(|report| report.server == self.server).unwrap()
    }

    pub(super) fn bytes(&self, which: usize, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(self.path(&self.volumes[which])).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub(super) fn agent(&self) -> Agent {
        self.try_agent(2).unwrap()
    }

    /// An agent that offers the first `disks` volumes.
    pub(super) fn try_agent(&self, disks: usize) -> Result<Agent, (ErrorCode, String)> {
        self.try_agent_of(&vec![SIZE; disks])
    }

    /// An agent that offers the first volumes, for disks of these sizes in bytes.
    pub(super) fn try_agent_of(&self, sizes: &[u64]) -> Result<Agent, (ErrorCode, String)> {
        let uri = |text: String| SanType::URI(text.as_str().try_into().unwrap());
        let mut names = vec![uri(format!("{SERVER_URI}{}", self.server))];
        names.extend(self.volumes.iter().map(|volume| uri(format!("{VOLUME_URI}{volume}"))));
        let tls = ClientTls::new(issue(&self.ca, names), REPLICATOR_ROLE).unwrap();
        let address = self.engine.address().to_string();
        let (sender, receiver) = transport::connect(&address, &tls, &Timeouts::default()).unwrap();
        let mut agent = Agent { sender, receiver, disks: Vec::new(), seq: 0 };
        let disks = (0..).map(DiskIndex).zip(self.volumes.iter().zip(sizes));
        agent.say(&AgentMessage::Hello(Hello {
            version: ProtocolVersion::CURRENT,
            server: self.server.as_str(),
            session: SessionId([1; 16]),
            digest_key: KEY,
            disks: disks
                .map(|(disk, (volume, size))| DiskOffer { disk, volume: volume.as_str(), size: ByteCount(*size) })
                .collect(),
        }));
        agent.disks = agent.hear(|message| match message {
            ReplicatorMessage::Welcome(welcome) => Some(welcome.disks),
            _ => None,
        })?;
        agent.receiver.establish().unwrap();
        Ok(agent)
    }

    /// The first copy, and the first checkpoint.
    pub(super) fn first_checkpoint(&self) -> Agent {
        self.give_key(7);
        let mut agent = self.agent();
        agent.write(0, 0, &[1; 8192]);
        agent.write(1, 65536, &[2; 4096]);
        agent.synced();
        agent.checkpoint(0).unwrap();
        agent
    }
}

fn issue(ca: &CertifiedIssuer<'static, KeyPair>, names: Vec<SanType>) -> TlsIdentity {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem(), &ca.pem()).unwrap()
}

/// The other side of a session.
pub(super) struct Agent {
    sender: Sender,
    receiver: Receiver,
    pub(super) disks: Vec<DiskState>,
    seq: u64,
}

type Heard<T> = Result<T, (ErrorCode, String)>;

impl Agent {
    fn say(&self, message: &AgentMessage<'_>) {
        let mut frame = Vec::new();
        message.encode(&mut frame).unwrap();
        // Who has ended the session has said why.
        let _ = self.sender.send(&[&frame]);
    }

    /// Waits for what `wanted` takes.
    fn hear<T>(&mut self, wanted: impl Fn(ReplicatorMessage<'_>) -> Option<T>) -> Heard<T> {
        loop {
            let frame = self.receiver.receive().map_err(|error| (ErrorCode::ShuttingDown, error.to_string()))?;
            match ReplicatorMessage::decode(frame.kind, frame.body).unwrap() {
                ReplicatorMessage::Error { code, message } => return Err((code, message.to_owned())),
                message => {
                    if let Some(found) = wanted(message) {
                        return Ok(found);
                    }
                }
            }
        }
    }

    pub(super) fn write(&self, disk: u8, at: u64, bytes: &[u8]) {
        let raw_length = u32::try_from(bytes.len()).unwrap();
        let block = DataBlock {
            disk: DiskIndex(disk),
            offset: ByteOffset(at),
            codec: BlockCodec::Raw,
            raw_length,
            payload: bytes,
        };
        self.say(&AgentMessage::Data(block));
    }

    pub(super) fn zero(&self, disk: u8, at: u64, length: u64) {
        self.say(&AgentMessage::Zero { disk: DiskIndex(disk), offset: ByteOffset(at), length: ByteCount(length) });
    }

    fn acknowledged(&mut self) -> Heard<()> {
        let awaited = Sequence(self.seq);
        self.hear(move |message| (message == ReplicatorMessage::Ack { seq: awaited }).then_some(()))
    }

    pub(super) fn barrier(&mut self) -> Heard<()> {
        self.barrier_with(Vec::new())
    }

    /// The first copy is complete.
    pub(super) fn synced(&mut self) {
        let mark = |disk: &DiskState| DiskProgress { disk: disk.disk, high_water: ByteOffset(SIZE) };
        let progress = self.disks.iter().map(mark).collect();
        self.barrier_with(progress).unwrap();
    }

    fn barrier_with(&mut self, progress: Vec<DiskProgress>) -> Heard<()> {
        self.seq += 1;
        self.say(&AgentMessage::Barrier { seq: Sequence(self.seq), progress });
        self.acknowledged()
    }

    pub(super) fn checkpoint(&mut self, epoch: u64) -> Heard<()> {
        self.seq += 1;
        let (seq, epoch) = (Sequence(self.seq), Epoch(epoch));
        self.say(&AgentMessage::Checkpoint { seq, epoch, consistency: Consistency::Frozen });
        self.acknowledged()
    }

    /// Whether the digest of a chunk is that of `expected`.
    pub(super) fn sees(&mut self, disk: u8, at: u64, expected: &[u8], chunk: DigestChunk) -> bool {
        assert_eq!(expected.len() as u64, chunk.bytes());
        let length = ByteCount(chunk.bytes());
        let (id, disk) = (DigestId(9), DiskIndex(disk));
        self.say(&AgentMessage::DigestRequest { id, disk, offset: ByteOffset(at), length, chunk });
        let found = self.hear(|message| match message {
            ReplicatorMessage::Digests(reply) => {
                assert_eq!((reply.chunk, reply.covered), (chunk, length));
                reply.runs.iter().next().map(|run| match run {
                    DigestRun::Zero(_) => ZeroOrDigest::Zero,
                    DigestRun::Digests(digests) => ZeroOrDigest::Digest(digests[0]),
                })
            }
            _ => None,
        });
        found.unwrap() == digest_chunk(&KEY, expected)
    }

    pub(super) fn bye(self) {
        self.say(&AgentMessage::Bye);
        self.sender.shutdown();
    }
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
