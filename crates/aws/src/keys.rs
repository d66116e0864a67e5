//! Sealing under a KMS key: envelope encryption with AES-256-GCM.
//!
//! Every sealing has a data key of its own, which KMS made and wrapped and which stands in front:
//!
//! ```text
//!  offset  bytes
//!       0      4  magic `RHSK`
//!       4      1  version: 1
//!       5      2  length w of the wrapped data key, big-endian
//!       7      w  the data key (32) as KMS wrapped it
//!     7+w      8  the beginning of the SHA-256 of all before it
//!    15+w     12  nonce
//!    27+w   n+16  the content and its tag, sealed under the data key
//! ```
//!
//! Everything before the nonce is authenticated with the content, and so is the caller's context. KMS authenticates the
//! context, too (as the encryption context, beside the stack's name): a policy can bind the key's use to the stack, and
//! CloudTrail shows what was opened. The length comes before the wrapped key because KMS does not promise one; the wrapped
//! key before the content so that nothing of the content is read before KMS agreed. The digest tells damage from a refusal:
//! to a wrapped key that names another key KMS answers as to somebody who may not use it.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use rehost_control::ports::{Keys, PortResult};
use rehost_control::{PortError, PortErrorKind};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::RegionConfig;
use crate::error::{code, deployed, failed};

const HEADER: &[u8; 5] = b"RHSK\x01";
const LENGTH_BYTES: usize = 2;
const KEY_BYTES: usize = 32;
const DIGEST_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;

/// The names in KMS's encryption context; policies may ask for them.
const STACK_CONTEXT: &str = "rehost:stack";
const WHAT_CONTEXT: &str = "rehost:context";

/// What KMS answers to a wrapped key that it did not wrap so. (`NotFoundException`: wrapped by a key that there is not.)
const NOT_ITS_OWN: [&str; 4] =
    ["InvalidCiphertextException", "IncorrectKeyException", "NotFoundException", "ValidationException"];

type Key = Zeroizing<[u8; KEY_BYTES]>;

/// [`Keys`] on KMS.
#[derive(Debug, Clone)]
pub struct KmsKeys {
    client: Client,
    key: String,
    stack: String,
}

impl KmsKeys {
    /// The keys of this region.
    #[must_use]
    pub fn new(config: &RegionConfig, sdk: &SdkConfig) -> Self {
        Self { client: Client::new(sdk), key: config.key_arn.clone(), stack: config.stack.clone() }
    }

    /// A new data key, and how KMS wrapped it.
    async fn generate(&self, context: &str) -> PortResult<(Key, Vec<u8>)> {
        let call = self
            .client
            .generate_data_key()
            .key_id(&self.key)
            .key_spec(DataKeySpec::Aes256)
            .encryption_context(STACK_CONTEXT, &self.stack)
            .encryption_context(WHAT_CONTEXT, context);
        let answer = call.send().await.map_err(|e| deployed(failed("kms:GenerateDataKey", &self.key, &e)))?;
        let wrapped = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        Ok((self.data_key(answer.plaintext)?, wrapped))
    }

    /// The data key; `None` when this key of KMS did not wrap it for this context.
    async fn unwrap(&self, wrapped: &[u8], context: &str) -> PortResult<Option<Key>> {
        let call = self
            .client
            .decrypt()
            .key_id(&self.key)
            .ciphertext_blob(Blob::new(wrapped))
            .encryption_context(STACK_CONTEXT, &self.stack)
            .encryption_context(WHAT_CONTEXT, context);
        match call.send().await {
            Ok(answer) => self.data_key(answer.plaintext).map(Some),
            Err(e) if code(&e).is_some_and(|code| NOT_ITS_OWN.contains(&code)) => Ok(None),
            Err(e) => Err(failed("kms:Decrypt", &self.key, &e)),
        }
    }

    fn data_key(&self, plain: Option<Blob>) -> PortResult<Key> {
        let plain = Zeroizing::new(plain.map(Blob::into_inner).unwrap_or_default());
        let key = plain.as_slice().try_into().map(Zeroizing::new);
        key.map_err(|_| PortError::unavailable(format!("{} gave a data key of {} bytes", self.key, plain.len())))
    }
}

#[async_trait]
impl Keys for KmsKeys {
    async fn seal(&self, plain: &[u8], context: &str) -> PortResult<Vec<u8>> {
        let (key, wrapped) = self.generate(context).await?;
        let length = u16::try_from(wrapped.len());
        let length = length.map_err(|_| PortError::unavailable(format!("{} wraps keys too long", self.key)))?;
        let mut sealed = [HEADER.as_slice(), &length.to_be_bytes(), &wrapped].concat();
        sealed.extend(digest(&sealed));
        let content = encrypt(&key, plain, &authenticated(&sealed, context))?;
        sealed.extend(content);
        Ok(sealed)
    }

    async fn open(&self, sealed: &[u8], context: &str) -> PortResult<Vec<u8>> {
        let refused = || {
            PortError::new(
                PortErrorKind::Invalid,
                format!(
                    "what was sealed as `{context}` does not open: it was changed, sealed as something else, or sealed under \
                     another key than {}; restore it from a backup",
                    self.key
                ),
            )
        };
        let envelope = Envelope::parse(sealed).ok_or_else(refused)?;
        let key = self.unwrap(envelope.wrapped, context).await?.ok_or_else(refused)?;
        decrypt(&key, envelope.content, &authenticated(envelope.front, context)).ok_or_else(refused)
    }
}

/// A sealed thing, taken apart.
struct Envelope<'a> {
    /// Everything before the nonce.
    front: &'a [u8],
    wrapped: &'a [u8],
    /// The nonce and what was sealed with it.
    content: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn parse(sealed: &'a [u8]) -> Option<Self> {
        let (length, _) = sealed.strip_prefix(HEADER)?.split_first_chunk::<LENGTH_BYTES>()?;
        let wrapped_at = HEADER.len() + LENGTH_BYTES;
        let digest_at = wrapped_at + usize::from(u16::from_be_bytes(*length));
        let (front, content) = sealed.split_at_checked(digest_at + DIGEST_BYTES)?;
        let (digested, found) = front.split_at_checked(digest_at)?;
        let wrapped = digested.get(wrapped_at..)?;
        (found == digest(digested)).then_some(Self { front, wrapped, content })
    }
}

fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let whole: [u8; 32] = Sha256::digest(bytes).into();
    let mut beginning = [0; DIGEST_BYTES];
    beginning.copy_from_slice(&whole[..DIGEST_BYTES]);
    beginning
}

fn authenticated(front: &[u8], context: &str) -> Vec<u8> {
    [front, context.as_bytes()].concat()
}

/// A random nonce and the sealed message.
fn encrypt(key: &Key, plain: &[u8], aad: &[u8]) -> PortResult<Vec<u8>> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)
        .map_err(|e| PortError::unavailable(format!("the kernel gives no random numbers: {e}")))?;
    let sealed = cipher(key).encrypt(&Nonce::from(nonce), Payload { msg: plain, aad });
    let sealed = sealed.map_err(|_| PortError::invalid(format!("{} bytes are too many to seal", plain.len())))?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn decrypt(key: &Key, sealed: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
    let (nonce, msg) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    cipher(key).decrypt(&Nonce::from(*nonce), Payload { msg, aad }).ok()
}

fn cipher(key: &Key) -> Aes256Gcm {
    Aes256Gcm::new(&aes_gcm::Key::<Aes256Gcm>::from(**key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by another implementation of AES-GCM (Python's `cryptography`): what was sealed once must open for ever.
    const GOLDEN: &str =
        "5248534b0100077772617070656410b24013f3c98b530202020202020202020202027bd68aba2dad161a91a136644666970ba29710";

    #[test]
    fn the_layout_is_pinned() {
        let sealed = hex::decode(GOLDEN).unwrap();
        let envelope = Envelope::parse(&sealed).unwrap();
        assert_eq!(envelope.wrapped, b"wrapped");
        let key = Zeroizing::new([7; KEY_BYTES]);
        let plain = decrypt(&key, envelope.content, &authenticated(envelope.front, "ca/key"));
        assert_eq!(plain.as_deref(), Some(b"abc".as_slice()));
    }

    #[test]
    fn the_front_is_authenticated() {
        let key = Zeroizing::new([7; KEY_BYTES]);
        let sealed = encrypt(&key, b"secret", &authenticated(b"front", "context")).unwrap();
        assert!(decrypt(&key, &sealed, &authenticated(b"front", "context")).is_some());
        assert!(decrypt(&key, &sealed, &authenticated(b"fron", "context")).is_none());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_apart_within_its_bounds(bytes: Vec<u8>, cut in 0usize..64) {
            let hostile = [HEADER.as_slice(), &bytes].concat();
            prop_assert!(Envelope::parse(&hostile).is_none(), "no digest fits by chance");
            prop_assert!(Envelope::parse(&hostile[..cut.min(hostile.len())]).is_none());
        }
    }
}
