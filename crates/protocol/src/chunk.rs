//! What both sides must compute alike: whether bytes are zero, and the digest of a chunk.

use crate::{DigestKey, ZeroOrDigest};

/// Whether all bytes are zero. Folds words with OR, which the compiler turns into vector code: several times the speed
/// of looking for the first byte that differs.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<512>();
    blocks.iter().all(block_is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// The digest of a chunk, or that it is zero.
#[must_use]
pub fn digest_chunk(key: &DigestKey, chunk: &[u8]) -> ZeroOrDigest {
    if is_zero(chunk) {
        return ZeroOrDigest::Zero;
    }
    let hash = blake3::keyed_hash(&key.0, chunk);
    let (digest, _) = hash.as_bytes().as_chunks();
    // The hash has 32 bytes: there is a first half.
    ZeroOrDigest::Digest(digest.first().copied().unwrap_or_default())
}

fn block_is_zero(block: &[u8; 512]) -> bool {
    let (words, _) = block.as_chunks::<8>();
    words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_anywhere_is_seen() {
        let mut bytes = vec![0; 1500];
        assert!(is_zero(&bytes));
        for at in 0..bytes.len() {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "at {at}");
            bytes[at] = 0;
        }
    }

    #[test]
    fn digests_depend_on_bytes_and_key() {
        let (one, other) = (DigestKey([1; 32]), DigestKey([2; 32]));
        assert_eq!(digest_chunk(&one, &[0; 700]), ZeroOrDigest::Zero);
        assert_eq!(digest_chunk(&one, b"a"), digest_chunk(&one, b"a"));
        assert_ne!(digest_chunk(&one, b"a"), digest_chunk(&one, b"b"));
        assert_ne!(digest_chunk(&one, b"a"), digest_chunk(&other, b"a"));
    }
}
