//! Two ends of a connection over loopback, with a CA made for the test.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rehost_model::{
    ServerId,
    region::{CONTROL_ROLE, REPLICATOR_ROLE, SERVER_URI},
};
use rehost_protocol::{AgentMessage, Epoch, FrameKind, Sequence};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};

use super::{tls::provider, *};
use crate::pki_verify::PeerIdentity;

struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl TestCa {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer }
    }

    fn issue(&self, name: SanType) -> TlsIdentity {
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsIdentity::from_pem(&certificate.pem(), &key.serialize_pem(), &self.issuer.pem()).unwrap()
    }

    fn replicator(&self, name: &str) -> ServerTls {
        let name = SanType::DnsName(name.try_into().unwrap());
        ServerTls::new(self.issue(name)).unwrap()
    }

    fn agent(&self, server: &ServerId) -> TlsIdentity {
        let uri = format!("{SERVER_URI}{server}");
        self.issue(SanType::URI(uri.as_str().try_into().unwrap()))
    }
}

fn quick() -> Timeouts {
    Timeouts { handshake: Duration::from_millis(400), idle: Duration::from_millis(300), ..Timeouts::default() }
}

type Accepted = Result<(Sender, Receiver, PeerIdentity), TransportError>;
type Connected = Result<(Sender, Receiver), TransportError>;

fn pair(client: &ClientTls, server: &ServerTls) -> (Connected, Accepted) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            accept(socket, server, &quick())
        });
        let connected = connect(&address, client, &quick());
        (connected, accepting.join().unwrap())
    })
}

fn barrier(seq: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let message = AgentMessage::Checkpoint {
        seq: Sequence(seq),
        epoch: Epoch(1),
        consistency: rehost_protocol::Consistency::None,
    };
    message.encode(&mut out).unwrap();
    out
}

#[test]
fn frames_cross_in_both_directions_at_once() {
    let ca = TestCa::new();
    let server_id = ServerId::generate();
    let client = ClientTls::new(ca.agent(&server_id), REPLICATOR_ROLE).unwrap();
    let (connected, accepted) = pair(&client, &ca.replicator(REPLICATOR_ROLE));
    let (ours, theirs) = (connected.unwrap(), accepted.unwrap());
    assert_eq!(theirs.2.server, server_id);
    exchange((ours.0, ours.1), (theirs.0, theirs.1), 2000);
}

/// Both ends send and receive `count` frames at the same time.
fn exchange(one: (Sender, Receiver), other: (Sender, Receiver), count: u64) {
    thread::scope(|scope| {
        for (sender, mut receiver) in [one, other] {
            receiver.establish().unwrap();
            scope.spawn(move || {
                for seq in 0..count {
                    sender.send(&[&barrier(seq)]).unwrap();
                }
            });
            scope.spawn(move || {
                for seq in 0..count {
                    let frame = receiver.receive().unwrap();
                    assert_eq!(frame.kind, FrameKind::Checkpoint);
                    assert_eq!(frame.body, &barrier(seq)[8..]);
                }
            });
        }
    });
}

#[test]
fn keys_are_renewed_when_they_have_encrypted_enough() {
    let ca = TestCa::new();
    let mut provider = (*provider()).clone();
    let suite = provider.cipher_suites[0].tls13().unwrap();
    let mut weak = Tls13CipherSuite {
        common: rustls::crypto::CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: 50,
        },
        ..*suite
    };
    weak.quic = None;
    provider.cipher_suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(weak)))];
    let identity = ca.agent(&ServerId::generate());
    let client = ClientTls::with_provider(Arc::new(provider), identity, REPLICATOR_ROLE).unwrap();
    let (connected, accepted) = pair(&client, &ca.replicator(REPLICATOR_ROLE));
    let (ours, theirs) = (connected.unwrap(), accepted.unwrap());
    exchange(ours, (theirs.0, theirs.1), 400);
}

#[test]
fn another_role_of_the_same_ca_is_refused() {
    let ca = TestCa::new();
    let client = ClientTls::new(ca.agent(&ServerId::generate()), REPLICATOR_ROLE).unwrap();
    let (connected, accepted) = pair(&client, &ca.replicator(CONTROL_ROLE));
    assert!(matches!(connected, Err(TransportError::Tls(_))));
    assert!(accepted.is_err());
}

#[test]
fn a_client_of_another_ca_is_refused() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let client = ClientTls::new(other.agent(&ServerId::generate()), REPLICATOR_ROLE).unwrap();
    let (connected, accepted) = pair(&client, &ca.replicator(REPLICATOR_ROLE));
    assert!(connected.is_err());
    assert!(accepted.is_err());
}

#[test]
fn a_client_certificate_that_names_nobody_is_refused() {
    let ca = TestCa::new();
    let nobody = ca.issue(SanType::DnsName("nobody.invalid".try_into().unwrap()));
    let client = ClientTls::new(nobody, REPLICATOR_ROLE).unwrap();
    let (_, accepted) = pair(&client, &ca.replicator(REPLICATOR_ROLE));
    assert!(matches!(accepted, Err(TransportError::Material { .. })));
}

#[test]
fn garbage_and_silence_end_within_the_handshake_timeout() {
    let server = TestCa::new().replicator(REPLICATOR_ROLE);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"\x16\x03\x01\xff\xff"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.write_all(bytes).unwrap();
        let started = Instant::now();
        let (socket, _) = listener.accept().unwrap();
        assert!(accept(socket, &server, &quick()).is_err());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_silent_peer_is_noticed_and_a_living_one_is_not() {
    let ca = TestCa::new();
    let client = ClientTls::new(ca.agent(&ServerId::generate()), REPLICATOR_ROLE).unwrap();
    let (connected, accepted) = pair(&client, &ca.replicator(REPLICATOR_ROLE));
    let (_sender, mut receiver) = connected.unwrap();
    let (sender, _receiver, _) = accepted.unwrap();
    receiver.establish().unwrap();
    let beat = KeepAlive::start(sender, barrier(1), Duration::from_millis(50)).unwrap();
    for _ in 0..10 {
        receiver.receive().unwrap();
    }
    drop(beat);
    let end = loop {
        match receiver.receive() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(end, TransportError::Silent(_)), "{end}");
}
