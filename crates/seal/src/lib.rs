//! AES-256-GCM for what is kept at rest: a record is sealed in its place and opened where it is wanted.
//!
//! A crate of its own, because the library's code is generic: it is compiled, and optimised, with whoever calls it first.

#![warn(missing_docs)]

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, Key, KeyInit as _, Nonce, Tag};
use zeroize::Zeroizing;

/// Bytes of a nonce. One that is used twice under the same key gives both records away.
pub const NONCE_LENGTH: usize = 12;
/// Bytes of a tag.
pub const TAG_LENGTH: usize = 16;

/// Seals and opens under one key.
pub struct Sealer(Aes256Gcm);

/// What was to be opened is not what was sealed so: other bytes, another tag, nonce, key or context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotSealedSo;

/// Longer than the cipher can seal: 64 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl Sealer {
    /// A sealer under this key.
    #[must_use]
    pub fn new(key: &Zeroizing<[u8; 32]>) -> Self {
        Self(Aes256Gcm::new(&Key::<Aes256Gcm>::from(**key)))
    }

    /// Seals `bytes` in their place. The tag authenticates them and `context`, which stays in the clear.
    ///
    /// # Errors
    /// [`TooLong`], with `bytes` as they were.
    #[inline(never)]
    pub fn seal(
        &self,
        nonce: [u8; NONCE_LENGTH],
        context: &[u8],
        bytes: &mut [u8],
    ) -> Result<[u8; TAG_LENGTH], TooLong> {
        let nonce: Nonce<U12> = nonce.into();
        let tag = self.0.encrypt_inout_detached(&nonce, context, bytes.into());
        tag.map(Into::into).map_err(|_| TooLong)
    }

    /// Opens `sealed` into `out`, which is as long.
    ///
    /// # Errors
    /// [`NotSealedSo`]; then nothing was written to `out`.
    #[inline(never)]
    pub fn open(
        &self,
        nonce: [u8; NONCE_LENGTH],
        context: &[u8],
        (sealed, tag): (&[u8], &[u8; TAG_LENGTH]),
        out: &mut [u8],
    ) -> Result<(), NotSealedSo> {
        let nonce: Nonce<U12> = nonce.into();
        let buffer = InOutBuf::new(sealed, out).map_err(|_| NotSealedSo)?;
        self.0.decrypt_inout_detached(&nonce, context, buffer, &Tag::from(*tag)).map_err(|_| NotSealedSo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(&Zeroizing::new([byte; 32]))
    }

    /// Test case 15 of "The Galois/Counter Mode of Operation" (McGrew, Viega).
    #[test]
    fn it_is_aes_256_gcm() {
        let key = hex::decode("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308").unwrap();
        let mut bytes = hex::decode(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
        ))
        .unwrap();
        let nonce = hex::decode("cafebabefacedbaddecaf888").unwrap().try_into().unwrap();
        let tag = Sealer::new(&Zeroizing::new(key.try_into().unwrap())).seal(nonce, &[], &mut bytes).unwrap();
        assert_eq!(hex::encode(&bytes[..16]), "522dc1f099567d07f47f37a32a84427d");
        assert_eq!(hex::encode(tag), "b094dac5d93471bdec1a502270e3cc6c");
    }

    #[test]
    fn only_what_was_sealed_so_is_opened() {
        let (sealer, other, nonce) = (sealer(1), sealer(2), [7; NONCE_LENGTH]);
        let mut sealed = *b"content";
        let tag = sealer.seal(nonce, b"context", &mut sealed).unwrap();
        let mut out = [0; 7];
        sealer.open(nonce, b"context", (&sealed, &tag), &mut out).unwrap();
        assert_eq!(&out, b"content");
        let mut out = [0; 7];
        let mut changed = sealed;
        changed[0] ^= 1;
        for refused in [
            sealer.open(nonce, b"other", (&sealed, &tag), &mut out),
            sealer.open([8; NONCE_LENGTH], b"context", (&sealed, &tag), &mut out),
            sealer.open(nonce, b"context", (&sealed, &[0; TAG_LENGTH]), &mut out),
            sealer.open(nonce, b"context", (&changed, &tag), &mut out),
            other.open(nonce, b"context", (&sealed, &tag), &mut out),
            sealer.open(nonce, b"context", (&sealed[1..], &tag), &mut out),
        ] {
            assert_eq!(refused, Err(NotSealedSo));
            assert_eq!(out, [0; 7]);
        }
    }
}
