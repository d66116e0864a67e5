//! Golden bytes of the handshake, round trips, and hostile bytes.

use super::*;
use proptest::prelude::*;

fn hello() -> AgentMessage<'static> {
    AgentMessage::Hello(Hello {
        version: ProtocolVersion::V1,
        server: "s-1",
        session: SessionId([7; 16]),
        digest_key: DigestKey([9; 32]),
        disks: vec![DiskOffer { disk: DiskIndex(0), volume: "vol-a", size: ByteCount(1 << 20) }],
    })
}

fn agent_bytes(message: &AgentMessage<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out).unwrap();
    out
}

fn replicator_bytes(message: &ReplicatorMessage<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out).unwrap();
    out
}

fn split(frame: &[u8]) -> (FrameHeader, &[u8]) {
    let (head, body) = frame.split_first_chunk().unwrap();
    let header = FrameHeader::parse(*head, Phase::Established).unwrap();
    assert_eq!(header.body_length(), body.len());
    (header, body)
}

#[test]
fn the_hello_never_changes() {
    let mut expected = vec![0x01, 0, 0, 0, 0, 0, 0, 70]; // type, flags, reserved, length
    expected.extend_from_slice(&[0, 1, 3]); // version 1, length of the id
    expected.extend_from_slice(b"s-1");
    expected.extend_from_slice(&[7; 16]);
    expected.extend_from_slice(&[9; 32]);
    expected.extend_from_slice(&[1, 0, 5]); // one disk, index 0, length of its volume's id
    expected.extend_from_slice(b"vol-a");
    expected.extend_from_slice(&[0, 0, 0, 0, 0, 0x10, 0, 0]);
    assert_eq!(agent_bytes(&hello()), expected);
}

#[test]
fn the_welcome_never_changes() {
    let welcome = ReplicatorMessage::Welcome(Welcome {
        version: ProtocolVersion::V1,
        window: ByteCount(32 << 20),
        keep_alive_milliseconds: 5000,
        disks: vec![DiskState {
            disk: DiskIndex(3),
            synced: ByteCount(0x0102),
            checkpoint: Epoch(4),
            lineage: Lineage([6; 16]),
        }],
    });
    let expected = [
        0x81, 0, 0, 0, 0, 0, 0, 48, // header
        0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x13, 0x88, // version, window, keep-alive
        1, 3, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 4, // one disk
        6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, // its lineage
    ];
    assert_eq!(replicator_bytes(&welcome), expected);
}

#[test]
fn a_block_never_changes() {
    let block = DataBlock {
        disk: DiskIndex(2),
        offset: ByteOffset(0x1_0000),
        codec: BlockCodec::Raw,
        raw_length: 3,
        payload: b"abc",
    };
    let expected = [2, 0, 0, 0, 0, 0, 0, 19, 2, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, b'a', b'b', b'c'];
    assert_eq!(agent_bytes(&AgentMessage::Data(block)), expected);
    let mut in_parts = data_frame_prefix(&block).unwrap().to_vec();
    in_parts.extend_from_slice(block.payload);
    assert_eq!(in_parts, expected);
}

#[test]
fn an_error_never_changes() {
    let error = ReplicatorMessage::Error { code: ErrorCode::NoSpace, message: "full" };
    assert_eq!(replicator_bytes(&error), [0x85, 0, 0, 0, 0, 0, 0, 6, 0, 5, b'f', b'u', b'l', b'l']);
}

#[test]
fn a_length_above_the_limit_is_refused_by_the_header() {
    let header = FrameHeader { kind: FrameKind::Hello, length: 64 * 1024 + 1 };
    assert!(FrameHeader::parse(header.to_bytes(), Phase::Established).is_ok());
    assert!(matches!(FrameHeader::parse(header.to_bytes(), Phase::Opening), Err(ProtocolError::TooLong { .. })));
    let huge = FrameHeader { kind: FrameKind::Data, length: u32::MAX };
    assert!(FrameHeader::parse(huge.to_bytes(), Phase::Established).is_err());
}

#[test]
fn an_unknown_version_is_named() {
    let mut bytes = agent_bytes(&hello());
    bytes[9] = 200;
    let (header, body) = split(&bytes);
    assert_eq!(AgentMessage::decode(header.kind, body), Err(ProtocolError::UnknownVersion(200)));
}

#[test]
fn a_disk_offered_twice_is_refused() {
    let AgentMessage::Hello(mut twice) = hello() else { unreachable!() };
    twice.disks.push(twice.disks[0]);
    let bytes = agent_bytes(&AgentMessage::Hello(twice));
    let (header, body) = split(&bytes);
    assert!(AgentMessage::decode(header.kind, body).is_err());
}

#[test]
fn a_hole_of_terabytes_is_one_run() {
    let mut builder = DigestRunsBuilder::new();
    let covered = ByteCount(2 << 40);
    builder.push_zero(covered.0 / DIGEST_CHUNK);
    let reply = ReplicatorMessage::Digests(DigestReply {
        id: DigestId(1),
        covered,
        chunk: DigestChunk::Coarse,
        runs: builder.runs(covered, DigestChunk::Coarse).unwrap(),
    });
    assert!(replicator_bytes(&reply).len() < 64);
}

#[test]
fn a_full_reply_fits_a_frame() {
    let mut builder = DigestRunsBuilder::new();
    while builder.has_room() {
        builder.push_digest([1; 16]);
        if builder.has_room() {
            builder.push_zero(1);
        }
    }
    let covered = ByteCount(builder.chunks() * DIGEST_CHUNK);
    let reply = ReplicatorMessage::Digests(DigestReply {
        id: DigestId(1),
        covered,
        chunk: DigestChunk::Coarse,
        runs: builder.runs(covered, DigestChunk::Coarse).unwrap(),
    });
    let bytes = replicator_bytes(&reply);
    let (header, body) = split(&bytes);
    assert_eq!(ReplicatorMessage::decode(header.kind, body).unwrap(), reply);
}

#[test]
fn codes_survive_the_wire() {
    for number in 0..40 {
        assert_eq!(ErrorCode::from_number(number).number(), number);
    }
}

#[test]
fn a_long_error_is_cut_between_characters() {
    let text = "é".repeat(MAX_TEXT_LENGTH);
    let bytes = replicator_bytes(&ReplicatorMessage::Error { code: ErrorCode::Io, message: &text });
    let (header, body) = split(&bytes);
    assert!(ReplicatorMessage::decode(header.kind, body).is_ok());
}

#[derive(Clone, Debug)]
enum Chunk {
    Zero(u64),
    Digest(Digest),
}

fn chunk() -> impl Strategy<Value = Chunk> {
    prop_oneof![(1_u64..1000).prop_map(Chunk::Zero), any::<Digest>().prop_map(Chunk::Digest)]
}

fn range() -> impl Strategy<Value = (ByteOffset, ByteCount)> {
    (0..u64::MAX / 2, 1..u64::MAX / 2).prop_map(|(o, l)| (ByteOffset(o), ByteCount(l)))
}

/// Builds a message of each kind from arbitrary values and hands its frame to `check`.
fn check_agent(message: &AgentMessage<'_>) {
    let bytes = agent_bytes(message);
    let (header, body) = split(&bytes);
    assert_eq!(&AgentMessage::decode(header.kind, body).unwrap(), message);
}

proptest! {
    #[test]
    fn hello_round_trips(
        server in "[a-zA-Z0-9_-]{1,64}",
        session: [u8; 16],
        key: [u8; 32],
        volumes in prop::collection::vec(("[a-z0-9-]{1,64}", any::<u64>()), 1..=MAX_DISKS),
    ) {
        let disks = volumes.iter().zip(0_u8..).map(|((volume, size), index)| DiskOffer {
            disk: DiskIndex(index),
            volume,
            size: ByteCount(*size),
        });
        check_agent(&AgentMessage::Hello(Hello {
            version: ProtocolVersion::V1,
            server: &server,
            session: SessionId(session),
            digest_key: DigestKey(key),
            disks: disks.collect(),
        }));
    }

    #[test]
    fn blocks_round_trip(
        disk: u8,
        offset in 0..u64::MAX / 2,
        payload in prop::collection::vec(any::<u8>(), 1..5000),
        grows in 0_u32..5000,
    ) {
        let length = u32::try_from(payload.len()).unwrap();
        let raw = DataBlock {
            disk: DiskIndex(disk),
            offset: ByteOffset(offset),
            codec: BlockCodec::Raw,
            raw_length: length,
            payload: &payload,
        };
        check_agent(&AgentMessage::Data(raw));
        let packed = DataBlock { codec: BlockCodec::Zstd, raw_length: length + grows, ..raw };
        check_agent(&AgentMessage::Data(packed));
    }

    #[test]
    fn small_messages_round_trip(
        disk: u8,
        (offset, length) in range(),
        number: u64,
        id: u32,
        progress in prop::collection::vec((any::<u8>(), any::<u64>()), 0..=MAX_DISKS),
    ) {
        let disk = DiskIndex(disk);
        let (seq, epoch) = (Sequence(number), Epoch(number));
        let aligned = ByteOffset(offset.0 / DIGEST_CHUNK * DIGEST_CHUNK);
        let progress = progress.into_iter().map(|(disk, at)| DiskProgress {
            disk: DiskIndex(disk),
            high_water: ByteOffset(at),
        });
        check_agent(&AgentMessage::Zero { disk, offset, length });
        check_agent(&AgentMessage::Barrier { seq, progress: progress.collect() });
        for consistency in [Consistency::None, Consistency::Frozen, Consistency::Quiescent] {
            check_agent(&AgentMessage::Checkpoint { seq, epoch, consistency });
        }
        let id = DigestId(id);
        for chunk in [DigestChunk::Fine, DigestChunk::Coarse] {
            check_agent(&AgentMessage::DigestRequest { id, disk, offset: aligned, length, chunk });
        }
        check_agent(&AgentMessage::KeepAlive);
        check_agent(&AgentMessage::Bye);
    }

    #[test]
    fn digest_replies_round_trip(chunks in prop::collection::vec(chunk(), 1..200), id: u32) {
        let mut builder = DigestRunsBuilder::new();
        let mut flat = Vec::new();
        for chunk in &chunks {
            match chunk {
                Chunk::Zero(count) => {
                    builder.push_zero(*count);
                    flat.extend((0..*count).map(|_| None));
                }
                Chunk::Digest(digest) => {
                    builder.push_digest(*digest);
                    flat.push(Some(*digest));
                }
            }
        }
        let covered = ByteCount(builder.chunks() * DIGEST_CHUNK);
        let runs = builder.runs(covered, DigestChunk::Coarse).unwrap();
        let sent = ReplicatorMessage::Digests(DigestReply { id: DigestId(id), covered, chunk: DigestChunk::Coarse, runs });
        let bytes = replicator_bytes(&sent);
        let (header, body) = split(&bytes);
        let received = ReplicatorMessage::decode(header.kind, body).unwrap();
        prop_assert_eq!(&received, &sent);
        let ReplicatorMessage::Digests(reply) = received else { unreachable!() };
        let mut back = Vec::new();
        for run in reply.runs.iter() {
            match run {
                DigestRun::Zero(count) => back.extend((0..count).map(|_| None)),
                DigestRun::Digests(digests) => back.extend(digests.iter().copied().map(Some)),
            }
        }
        prop_assert_eq!(back, flat);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for byte in 0..=255 {
            let header = [byte, 0, 0, 0, 0, 0, 1, 0];
            if let Ok(header) = FrameHeader::parse(header, Phase::Opening) {
                let _ = AgentMessage::decode(header.kind, &bytes);
                let _ = ReplicatorMessage::decode(header.kind, &bytes);
            }
        }
    }

    #[test]
    fn mutated_frames_never_panic(at: prop::sample::Index, value: u8, cut: prop::sample::Index) {
        let mut builder = DigestRunsBuilder::new();
        builder.push_zero(9);
        builder.push_digest([3; 16]);
        let covered = ByteCount(10 * DIGEST_CHUNK);
        let reply = DigestReply { id: DigestId(1), covered, chunk: DigestChunk::Coarse, runs: builder.runs(covered, DigestChunk::Coarse).unwrap() };
        for mut frame in [
            agent_bytes(&hello()),
            replicator_bytes(&ReplicatorMessage::Digests(reply)),
        ] {
            let at = at.index(frame.len());
            frame[at] = value;
            let body_end = HEADER_LENGTH + cut.index(frame.len() - HEADER_LENGTH + 1);
            let head = frame[..HEADER_LENGTH].try_into().unwrap();
            let Ok(header) = FrameHeader::parse(head, Phase::Opening) else { continue };
            prop_assert!(header.body_length() <= MAX_OPENING_BODY_LENGTH);
            let body = &frame[HEADER_LENGTH..body_end];
            let _ = AgentMessage::decode(header.kind, body);
            if let Ok(ReplicatorMessage::Digests(reply)) = ReplicatorMessage::decode(header.kind, body) {
                prop_assert!(reply.runs.iter().count() <= body.len());
            }
        }
    }
}
