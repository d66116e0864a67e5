//! What goes wrong: it is refused or survived, and shown where somebody looks.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rehost_link::transport::{self, Timeouts};
use rehost_model::{Epoch, ServerId, VolumeId};
use rehost_protocol::{
    AgentMessage, ByteCount, DigestReply, DigestRunsBuilder, DiskIndex, DiskState, ErrorCode, ProtocolVersion,
    ReplicatorMessage, Welcome,
};

use super::bed::{Agent, Bed, MIB, Random, TestCa, assert_same_bytes, failure, wait_for};
use crate::sync::{SyncError, SyncSession};

fn refused(error: &SyncError) -> ErrorCode {
    match error {
        SyncError::Refused { code, .. } => *code,
        other => panic!("not refused, but: {other}"),
    }
}

#[test]
fn the_certificate_of_another_server_is_refused() {
    let bed = Bed::new(MIB);
    let mut config = bed.config();
    config.tls = bed.ca.agent(&ServerId::generate(), &[&bed.volume]);
    assert_eq!(refused(&failure(&config)), ErrorCode::NotAuthorised);
    assert!(!bed.report().connected);
}

#[test]
fn a_certificate_of_another_ca_is_refused() {
    let bed = Bed::new(MIB);
    let mut config = bed.config();
    config.tls = TestCa::new().agent(&bed.server, &[&bed.volume]);
    let error = failure(&config);
    assert_eq!(error.code(), "CertificateRefused");
    assert!(!error.retryable());
}

#[test]
fn a_volume_that_is_not_in_the_certificate_is_refused() {
    let bed = Bed::new(MIB);
    let mut config = bed.config();
    config.tls = bed.ca.agent(&bed.server, &[&VolumeId::generate()]);
    assert_eq!(refused(&failure(&config)), ErrorCode::NotAuthorised);
    assert_eq!(bed.report().error.unwrap().code, "NotAuthorised");
}

#[test]
fn a_volume_that_is_not_assigned_is_refused_for_now() {
    let bed = Bed::new(MIB);
    bed.engine.set_assignments(Vec::new()).unwrap();
    let error = failure(&bed.config());
    assert_eq!(refused(&error), ErrorCode::UnknownVolume);
    assert!(error.retryable());
    bed.engine.set_assignments(vec![bed.assignment()]).unwrap();
    bed.reach(&bed.config(), 1);
}

#[test]
fn another_server_cannot_write_a_volume_even_with_a_certificate_for_it() {
    let bed = Bed::new(MIB);
    let other = ServerId::generate();
    let mut own = bed.assignment();
    (own.server, own.volume) = (other.clone(), VolumeId::generate());
    bed.engine.set_assignments(vec![bed.assignment(), own]).unwrap();
    let mut config = bed.config();
    config.tls = bed.ca.agent(&other, &[&bed.volume]);
    config.server = other;
    assert_eq!(refused(&failure(&config)), ErrorCode::UnknownVolume);
}

#[test]
fn another_size_is_refused() {
    let bed = Bed::new(MIB);
    let mut config = bed.config();
    config.disks[0].size_bytes = 2 * MIB;
    assert_eq!(failure(&config).code(), "DiskResized");
    File::options().write(true).open(bed.source()).unwrap().set_len(2 * MIB).unwrap();
    assert_eq!(refused(&failure(&config)), ErrorCode::SizeMismatch);
}

#[test]
fn garbage_on_the_port_is_closed_in_time_and_disturbs_nobody() {
    let bed = Bed::with(MIB, |config| config.timeouts.handshake = Duration::from_millis(500));
    let started = Instant::now();
    let mut peers: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut peer = TcpStream::connect(bed.engine.address()).unwrap();
            // Those above the limit are closed already.
            let _ = peer.write_all(b"SSH-2.0-nobody\r\n");
            peer
        })
        .collect();
    for peer in &mut peers {
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut rest = Vec::new();
        // An alert, an end or a reset: but an end.
        let _ = peer.read_to_end(&mut rest);
        assert!(rest.len() < 100);
    }
    assert!(started.elapsed() < Duration::from_secs(8));
    bed.reach(&bed.config(), 1);
}

#[test]
fn a_newer_session_replaces_the_older_one() {
    let bed = Bed::new(MIB);
    let config = bed.config();
    let older = crate::sync::SyncControl::new();
    thread::scope(|scope| {
        let session = scope.spawn(|| SyncSession::run(&config, &older));
        bed.wait_for("the older session", |report| report.connected);
        bed.reach(&config, 1);
        assert!(session.join().unwrap().is_err());
    });
}

#[test]
fn writes_wait_for_the_release_of_a_hold() {
    let bed = Bed::new(4 * MIB);
    bed.write(0, b"first");
    let agent = Agent::start(&bed.config());
    agent.control.request_checkpoint(Epoch(1));
    agent.wait_until_reached(1);
    assert_eq!(bed.report().held, Some(Epoch(1)));
    let frozen = bed.directory.path().join("snapshot");
    std::fs::copy(bed.source(), &frozen).unwrap();
    bed.write(0, b"later");
    agent.control.request_checkpoint(Epoch(2));
    thread::sleep(Duration::from_millis(700));
    assert_same_bytes(&frozen, &bed.target());
    assert_eq!(bed.report().checkpoint, Epoch(1));
    assert!(bed.engine.release_hold(&bed.server, Epoch(1)));
    agent.wait_until_reached(2);
    bed.assert_equal();
    assert_eq!(bed.report().expired, Epoch::default());
    agent.stop();
}

#[test]
fn an_agent_that_comes_back_during_a_hold_is_let_in_and_waits() {
    let bed = Bed::new(4 * MIB);
    let older = Agent::start(&bed.config());
    older.control.request_checkpoint(Epoch(1));
    older.wait_until_reached(1);
    bed.write(0, b"later");
    older.control.request_checkpoint(Epoch(2));
    // The older session waits with its block for the release.
    thread::sleep(Duration::from_millis(500));
    older.stop();
    let started = Instant::now();
    let agent = Agent::start(&bed.config());
    agent.control.request_checkpoint(Epoch(2));
    wait_for("the checkpoint that is there", || (agent.control.progress().reached == Epoch(1)).then_some(()));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(bed.report().held, Some(Epoch(1)));
    assert!(bed.engine.release_hold(&bed.server, Epoch(1)));
    agent.wait_until_reached(2);
    bed.assert_equal();
    agent.stop();
}

#[test]
fn a_hold_that_is_not_released_expires() {
    let bed = Bed::with(4 * MIB, |config| config.hold_timeout = Duration::from_millis(500));
    let agent = Agent::start(&bed.config());
    agent.control.request_checkpoint(Epoch(1));
    agent.wait_until_reached(1);
    bed.write(0, b"later");
    agent.control.request_checkpoint(Epoch(2));
    agent.wait_until_reached(2);
    bed.assert_equal();
    assert_eq!(bed.report().expired, Epoch(1));
    assert!(!bed.engine.release_hold(&bed.server, Epoch(1)));
    agent.stop();
}

#[test]
fn a_restarted_replicator_knows_what_it_had_and_what_hold_it_lost() {
    let mut random = Random::new();
    let mut bed = Bed::new(8 * MIB);
    bed.write(0, &random.bytes(4 * MIB));
    bed.reach(&bed.config(), 1);
    bed.restart();
    let report = bed.report();
    assert_eq!((report.checkpoint, report.expired), (Epoch(1), Epoch::default()));
    assert_eq!(report.volumes[0].synced_bytes, bed.size);
    let agent = Agent::start(&bed.config());
    agent.control.request_checkpoint(Epoch(2));
    agent.wait_until_reached(2);
    agent.stop();
    assert!(bed.report().received_bytes < 65536);
    bed.restart();
    let report = bed.report();
    assert_eq!((report.checkpoint, report.expired, report.held), (Epoch(2), Epoch(2), None));
}

#[test]
fn a_disk_that_goes_while_it_is_replicated_is_named() {
    let bed = Bed::new(8 * MIB);
    let agent = Agent::start(&bed.config());
    bed.wait_for("the first copy", |report| report.volumes[0].synced_bytes == bed.size);
    std::fs::remove_file(bed.source()).unwrap();
    agent.control.request_checkpoint(Epoch(1));
    let message = agent.wait_for_error("DiskVanished");
    assert!(message.contains("source.img"), "{message}");
    agent.stop();
}

/// Answers every digest request with digests that no disk has.
fn never_content(listener: &std::net::TcpListener, tls: &transport::ServerTls, size: u64) {
    let (socket, _) = listener.accept().unwrap();
    let (sender, mut receiver, _) = transport::accept(socket, tls, &Timeouts::default()).unwrap();
    receiver.receive().unwrap();
    let state = DiskState {
        disk: DiskIndex(0),
        synced: ByteCount(size),
        checkpoint: Epoch::default(),
        lineage: rehost_protocol::Lineage::default(),
    };
    let welcome = Welcome {
        version: ProtocolVersion::CURRENT,
        window: ByteCount(MIB),
        keep_alive_milliseconds: 1000,
        disks: vec![state],
    };
    send(&sender, &ReplicatorMessage::Welcome(welcome));
    receiver.establish().unwrap();
    while let Ok(frame) = receiver.receive() {
        match AgentMessage::decode(frame.kind, frame.body).unwrap() {
            AgentMessage::DigestRequest { id, length, chunk, .. } => {
                let mut runs = DigestRunsBuilder::new();
                (0..length.0.div_ceil(chunk.bytes())).for_each(|_| runs.push_digest([255; 16]));
                let runs = runs.runs(length, chunk).unwrap();
                send(&sender, &ReplicatorMessage::Digests(DigestReply { id, covered: length, chunk, runs }));
            }
            AgentMessage::Barrier { seq, .. } => send(&sender, &ReplicatorMessage::Ack { seq }),
            _ => {}
        }
    }
}

fn send(sender: &transport::Sender, message: &ReplicatorMessage<'_>) {
    let mut frame = Vec::new();
    message.encode(&mut frame).unwrap();
    // The agent may have gone by now.
    let _ = sender.send(&[&frame]);
}

#[test]
fn disks_that_always_differ_do_not_converge() {
    let bed = Bed::new(2 * MIB);
    bed.write(0, &[1; 100]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = bed.config();
    config.addresses = vec![listener.local_addr().unwrap().to_string()];
    let control = crate::sync::SyncControl::new();
    control.request_checkpoint(Epoch(1));
    thread::scope(|scope| {
        scope.spawn(|| never_content(&listener, &bed.ca.replicator(), bed.size));
        let error = SyncSession::run(&config, &control).unwrap_err();
        assert!(matches!(error, SyncError::NotConverging { passes: 20 }), "{error}");
        assert!(error.retryable());
    });
    assert!(control.progress().disks[0].backlogged_storage_bytes > 0);
}

/// A file system of a few megabytes; gone when it is dropped.
struct SmallFilesystem<'a>(&'a std::path::Path);

impl<'a> SmallFilesystem<'a> {
    /// None where mounting is not allowed.
    fn mount(at: &'a std::path::Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        mount(at, options).then_some(Self(at))
    }

    fn grow(&self, options: &str) {
        assert!(mount(self.0, &format!("remount,{options}")));
    }
}

impl Drop for SmallFilesystem<'_> {
    fn drop(&mut self) {
        // Lazily: a volume may be open for a moment longer.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn mount(at: &std::path::Path, options: &str) -> bool {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(at).output();
    mount.is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_replicator_says_so_and_goes_on_when_there_is_room() {
    let mut random = Random::new();
    let bed = Bed::with(16 * MIB, |config| config.window = ByteCount(4 * MIB));
    bed.write(0, &random.bytes(12 * MIB));
    let directory = bed.directory.path().join("small");
    let Some(small) = SmallFilesystem::mount(&directory, "size=6m") else {
        println!("skipped: mounting is not allowed here");
        return;
    };
    let target = directory.join("target.img");
    File::create(&target).unwrap().set_len(bed.size).unwrap();
    let mut assignment = bed.assignment();
    assignment.location = target.display().to_string();
    bed.engine.set_assignments(vec![assignment]).unwrap();
    let agent = Agent::start(&bed.config());
    agent.control.request_checkpoint(Epoch(1));
    let message = agent.wait_for_error("NoSpace");
    assert!(message.contains("target.img"), "{message}");
    wait_for("the report", || bed.report().error.filter(|error| error.code == "NoSpace"));
    small.grow("size=32m");
    agent.wait_until_reached(1);
    assert_same_bytes(&bed.source(), &target);
    assert_eq!(bed.report().error, None);
    agent.stop();
}
