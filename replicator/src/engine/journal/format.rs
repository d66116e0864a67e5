//! The bytes of a journal: its header, its records, and how they are sealed. `docs/journal.md` has the diagrams.

use std::borrow::Cow;

use rehost_model::ServerId;
use rehost_seal::{NONCE_LENGTH, Sealer};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{engine::random_name::RandomName, planted};

/// The key that a server's journal is sealed under.
pub(in crate::engine) type DataKey = Zeroizing<[u8; 32]>;
/// What makes a segment's key its own.
pub(super) type Salt = [u8; 32];
/// Stands for the salts of all segments so far.
type Chain = [u8; 32];

/// The records begin here.
pub(super) const HEADER_LENGTH: u64 = 4096;
/// Bytes of a record's header.
pub(super) const RECORD_HEADER: usize = 16;
/// Bytes of a record's tag.
pub(super) const TAG_LENGTH: usize = rehost_seal::TAG_LENGTH;
/// Bytes of a record besides its body.
pub(super) const RECORD_OVERHEAD: usize = RECORD_HEADER + TAG_LENGTH;
/// No body is longer.
pub(super) const MAX_BODY: usize = rehost_protocol::MAX_BLOCK_LENGTH;

/// The header's fields: they fit a sector, which a disk writes whole or not at all.
pub(super) const FIELDS_LENGTH: usize = 88;
/// Where the key check stands.
const KEY_CHECK: std::ops::Range<usize> = 24..32;
const MAGIC: [u8; 8] = *b"rehostJ1";
const CHECK_CONTEXT: &str = "rehost replicator journal v1: which data key";
const CHAIN_CONTEXT: &str = "rehost replicator journal v1: chain of salts";
const SEGMENT_CONTEXT: &str = "rehost replicator journal v1: segment key";
const HEADER_CONTEXT: &str = "rehost replicator journal v1: header";

/// The start of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: RandomName,
    pub(super) salt: Salt,
    /// Everything before this position is durable.
    pub(super) mark: u64,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Foreign,
    OtherKey,
    Broken,
}

impl Header {
    pub(super) fn to_bytes(&self, key: &DataKey) -> [u8; FIELDS_LENGTH] {
        let mut bytes = [0; FIELDS_LENGTH];
        let fields = [MAGIC.as_slice(), &self.id.0, &key_check(key), &self.salt, &self.mark.to_be_bytes()].concat();
        let (head, tail) = bytes.split_at_mut(FIELDS_LENGTH - TAG_LENGTH);
        head.copy_from_slice(&fields);
        tail.copy_from_slice(&authenticate(key, head));
        bytes
    }

    pub(super) fn parse(bytes: &[u8; FIELDS_LENGTH], key: &DataKey) -> Result<Self, HeaderError> {
        let fields = Self::unchecked(bytes).ok_or(HeaderError::Foreign)?;
        let (head, tag) = bytes.split_at(FIELDS_LENGTH - TAG_LENGTH);
        if head.get(KEY_CHECK) != Some(&key_check(key)) {
            return Err(if only_check_differs(head, tag, key) { HeaderError::Broken } else { HeaderError::OtherKey });
        }
        // Compared in any time: whoever could learn from it can write the file.
        match authenticate(key, head) == tag {
            true => Ok(fields),
            false => Err(HeaderError::Broken),
        }
    }

    /// The fields, whatever they are worth.
    pub(super) fn unchecked(bytes: &[u8; FIELDS_LENGTH]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (_, rest) = rest.split_first_chunk::<8>()?;
        let (salt, rest) = rest.split_first_chunk::<32>()?;
        let (mark, _) = rest.split_first_chunk::<8>()?;
        (*magic == MAGIC).then(|| Self { id: RandomName(*id), salt: *salt, mark: u64::from_be_bytes(*mark) })
    }
}

/// The check itself may be what was changed: then everything else is as this key has made it.
fn only_check_differs(head: &[u8], tag: &[u8], key: &DataKey) -> bool {
    let mut mended = head.to_vec();
    if let Some(check) = mended.get_mut(KEY_CHECK) {
        check.copy_from_slice(&key_check(key));
    }
    authenticate(key, &mended) == tag
}

/// Tells a wrong key from a broken file; says nothing about the key.
fn key_check(key: &DataKey) -> [u8; 8] {
    let mut check = [0; 8];
    derive(CHECK_CONTEXT, &[key.as_slice()], &mut check);
    check
}

fn authenticate(key: &DataKey, fields: &[u8]) -> [u8; TAG_LENGTH] {
    let mut tag = [0; TAG_LENGTH];
    derive(HEADER_CONTEXT, &[key.as_slice(), fields], &mut tag);
    tag
}

/// BLAKE3's key derivation; every part but the last has a fixed length.
fn derive(context: &str, parts: &[&[u8]], out: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    let mut reader = hasher.finalize_xof();
    reader.fill(out);
    reader.zeroize();
    hasher.zeroize();
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of a volume.
    Data,
    /// A range of a volume is zero; the body is its length, u64.
    Zero,
    /// The agent was, or may have been, told that everything before it is durable.
    Barrier,
    /// Everything before it is a checkpoint; the body is its epoch, u64, and its consistency, u8.
    Commit,
    /// Names the volume of the slot: lineage, 16 bytes, and the volume's id.
    Volume,
    /// A new segment begins; the body is its salt, in the clear.
    Segment,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Data, Self::Zero, Self::Barrier, Self::Commit, Self::Volume, Self::Segment];

    fn number(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Zero => 2,
            Self::Barrier => 3,
            Self::Commit => 4,
            Self::Volume => 5,
            Self::Segment => 6,
        }
    }
}

/// A volume's number in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u8);

/// The header of a record: in the clear, but authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: Kind,
    pub(super) slot: Slot,
    /// Bytes of the body.
    pub(super) length: u32,
    /// Where on the volume; 0 for what has no place there.
    pub(super) offset: u64,
}

impl RecordHeader {
    pub(super) fn to_bytes(self) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        bytes[0] = self.kind.number();
        bytes[1] = self.slot.0;
        bytes[4..8].copy_from_slice(&self.length.to_be_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    /// None for what cannot be a record.
    pub(super) fn parse(bytes: &[u8; RECORD_HEADER]) -> Option<Self> {
        let (fixed, offset) = bytes.split_first_chunk::<8>()?;
        let [kind, slot, 0, 0, length @ ..] = *fixed else { return None };
        let kind = Kind::ALL.into_iter().find(|known| known.number() == kind)?;
        let length = u32::from_be_bytes(length);
        let offset = u64::from_be_bytes(*offset.first_chunk()?);
        (length as usize <= MAX_BODY).then_some(Self { kind, slot: Slot(slot), length, offset })
    }

    /// Bytes of the whole record.
    pub(super) fn record_length(self) -> u64 {
        u64::from(self.length) + RECORD_OVERHEAD as u64
    }
}

/// Records from a position on that are sealed under one key.
pub(super) struct Segment {
    pub(super) start: u64,
    chain: Chain,
    sealer: Sealer,
}

impl Segment {
    /// The first one, whose salt is in the file's header.
    pub(super) fn first(key: &DataKey, server: &ServerId, header: &Header) -> Self {
        let mut chain = [0; 32];
        derive(CHAIN_CONTEXT, &[&header.id.0, &header.salt, server.as_str().as_bytes()], &mut chain);
        Self::new(key, chain, HEADER_LENGTH)
    }

    /// The one after this, which begins at `start`. Its key depends on every segment before it, so that none can be
    /// exchanged for one of an older journal.
    pub(super) fn next(&self, key: &DataKey, salt: &Salt, start: u64) -> Self {
        let mut chain = [0; 32];
        derive(CHAIN_CONTEXT, &[&self.chain, salt, &start.to_be_bytes()], &mut chain);
        Self::new(key, chain, start)
    }

    fn new(key: &DataKey, chain: Chain, start: u64) -> Self {
        let mut own = Zeroizing::new([0; 32]);
        derive(SEGMENT_CONTEXT, &[key.as_slice(), &chain], own.as_mut_slice());
        Self { start, chain, sealer: Sealer::new(&own) }
    }

    /// Fills `out`, which is as long, with the record that lies at `position`. One key never sees a position twice, so that
    /// no nonce is used twice, and a record is good at its own position only.
    pub(super) fn seal(&self, header: RecordHeader, position: u64, body: &[u8], out: &mut [u8]) -> Option<()> {
        let head = header.to_bytes();
        let (to_head, rest) = out.split_first_chunk_mut()?;
        let (to_body, to_tag) = rest.split_last_chunk_mut()?;
        if to_body.len() != body.len() {
            return None;
        }
        *to_head = head;
        to_body.copy_from_slice(body);
        let sealed = if header.kind == Kind::Segment { &mut [] } else { to_body };
        let aad = associated(header, &head, body);
        *to_tag = self.sealer.seal(nonce(position), &aad, sealed).ok()?;
        Some(())
    }

    /// Opens `sealed`, the body of the record at `position`, into `body`, which is as long; None if it is not what was
    /// sealed there. (A segment's salt is in the clear.)
    pub(super) fn open(
        &self,
        header: RecordHeader,
        position: u64,
        (sealed, tag): (&[u8], &[u8; TAG_LENGTH]),
        body: &mut [u8],
    ) -> Option<()> {
        let head = header.to_bytes();
        let aad = associated(header, &head, sealed);
        let clear = header.kind == Kind::Segment;
        let (from, to) = if clear { (&[] as &[u8], &mut [] as &mut [u8]) } else { (sealed, &mut *body) };
        let opened = self.sealer.open(nonce(position), &aad, (from, tag), to);
        if clear || (opened.is_err() && planted::is("no-crc-check")) {
            // What does not fit was not opened.
            body.copy_from_slice(sealed);
        }
        (opened.is_ok() || planted::is("no-crc-check")).then_some(())
    }
}

/// What is authenticated besides what is sealed: a record's header; a segment's salt besides, which is not sealed.
fn associated<'a>(header: RecordHeader, head: &'a [u8; RECORD_HEADER], body: &[u8]) -> Cow<'a, [u8]> {
    match header.kind {
        Kind::Segment => [head.as_slice(), body].concat().into(),
        _ => head.as_slice().into(),
    }
}

fn nonce(position: u64) -> [u8; NONCE_LENGTH] {
    let mut bytes = [0; NONCE_LENGTH];
    bytes[4..].copy_from_slice(&position.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DataKey {
        Zeroizing::new([7; 32])
    }

    fn server() -> ServerId {
        "s-00000000000000001".parse().unwrap()
    }

    fn header() -> Header {
        Header { id: RandomName([1; 16]), salt: [2; 32], mark: 4096 }
    }

    fn record() -> RecordHeader {
        RecordHeader { kind: Kind::Data, slot: Slot(3), length: 5, offset: 0x1122_3344_5566_7788 }
    }

    #[test]
    fn the_header_has_these_bytes() {
        let bytes = header().to_bytes(&key());
        let expected = concat!(
            "7265686f73744a31",
            "01010101010101010101010101010101",
            "159cdd2ec44dae1f",
            "0202020202020202020202020202020202020202020202020202020202020202",
            "0000000000001000",
            "9ae44ac10bdfc587fdf1958f822c2b33"
        );
        assert_eq!(hex::encode(bytes), expected);
        assert_eq!(Header::parse(&bytes, &key()), Ok(header()));
    }

    #[test]
    fn a_record_has_these_bytes() {
        let first = Segment::first(&key(), &server(), &header());
        let mut bytes = [0; 37 + 32];
        first.seal(record(), 4096, b"hello", &mut bytes[..37]).unwrap();
        let next = first.next(&key(), &[9; 32], 4133);
        next.seal(
            RecordHeader { length: 0, kind: Kind::Barrier, slot: Slot(0), offset: 0 },
            8000,
            &[],
            &mut bytes[37..],
        )
        .unwrap();
        let expected = concat!(
            "01030000000000051122334455667788",
            "80132ba561980d16fa7da41971039c6cc43e71acf7",
            "03000000000000000000000000000000",
            "f713bd3a8da0dc2beb7ad0d4c3054067"
        );
        assert_eq!(hex::encode(bytes), expected);
    }

    #[test]
    fn a_header_that_was_changed_or_has_another_key_is_refused() {
        let good = header().to_bytes(&key());
        assert_eq!(Header::parse(&good, &Zeroizing::new([8; 32])), Err(HeaderError::OtherKey));
        for bit in 0..FIELDS_LENGTH * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            // Never taken for another key: that would wait for a key that nobody has.
            let error = Header::parse(&bad, &key()).unwrap_err();
            assert!(matches!(error, HeaderError::Foreign | HeaderError::Broken), "bit {bit}: {error:?}");
        }
    }

    #[test]
    fn a_record_is_good_only_where_and_as_it_was_sealed() {
        let (key, server) = (key(), server());
        let segment = Segment::first(&key, &server, &header());
        let mut bytes = [0; 37];
        segment.seal(record(), 5000, b"hello", &mut bytes).unwrap();
        let open = |segment: &Segment, header: RecordHeader, position: u64| {
            let mut body = vec![0; 5];
            let tag = bytes[21..].try_into().unwrap();
            segment.open(header, position, (&bytes[16..21], tag), &mut body).map(|()| body)
        };
        assert_eq!(open(&segment, record(), 5000).unwrap(), b"hello");
        assert!(open(&segment, record(), 5001).is_none(), "moved");
        assert!(open(&segment, RecordHeader { slot: Slot(4), ..record() }, 5000).is_none(), "another volume");
        assert!(open(&segment, RecordHeader { offset: 0, ..record() }, 5000).is_none(), "another place");
        let other = Segment::first(&key, &ServerId::generate(), &header());
        assert!(open(&other, record(), 5000).is_none(), "another server");
        let next = segment.next(&key, &[2; 32], 4096);
        assert!(open(&next, record(), 5000).is_none(), "another segment");
    }

    #[test]
    fn what_cannot_be_a_record_is_none() {
        let good = record().to_bytes();
        assert_eq!(RecordHeader::parse(&good), Some(record()));
        for (at, value) in [(0, 0), (0, 7), (2, 1), (3, 1), (4, 255), (5, 9)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(RecordHeader::parse(&bad), None);
        }
    }
}
