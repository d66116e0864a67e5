//! Sealing with a key file: envelope encryption with AES-256-GCM.
//!
//! Every sealing has a data key of its own, which is sealed by the region's master key and stands in front:
//!
//! ```text
//!  offset  bytes
//!       0      4  magic `RHSL`
//!       4      1  version: 1
//!       5     12  nonce of the data key's sealing
//!      17     48  the data key (32) and its tag (16), sealed under the master key
//!      65     12  nonce of the content's sealing
//!      77    n+16 the content and its tag, sealed under the data key
//! ```
//!
//! Both sealings authenticate magic, version and the caller's context, so that a sealed thing cannot be passed off as
//! another, nor opened as another version. The header comes first so that a reader knows the layout before it touches a key;
//! the sealed data key comes before the content so that a wrong master key is noticed without reading the content.
//!
//! `keys/master.key` is a line of 64 hexadecimal digits, readable by its owner alone. Whoever has it and the sealed files has
//! the secrets; without it they are lost.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use async_trait::async_trait;
use rehost_control::ports::{Keys, PortResult};
use rehost_control::{PortError, PortErrorKind};
use zeroize::Zeroizing;

use crate::files::{file_error, write_private};

const HEADER: &[u8; 5] = b"RHSL\x01";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

type Key = Zeroizing<[u8; KEY_BYTES]>;

/// [`Keys`] by a master key in memory, read from its file.
pub struct FileKeys {
    master: Key,
}

impl FileKeys {
    /// Makes a new master key and its file.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(path: &Path) -> PortResult<Self> {
        if path.exists() {
            return Err(PortError::conflict(format!("the master key {} exists; it is never replaced", path.display())));
        }
        let keys = Self { master: random_key()? };
        let line = Zeroizing::new(hex::encode(*keys.master) + "\n");
        write_private(path, line.as_bytes()).map_err(|e| file_error("write the master key", path, &e))?;
        Ok(keys)
    }

    /// Reads the master key.
    ///
    /// # Errors
    /// When the file cannot be read, may be read by others, or holds no key.
    pub fn open(path: &Path) -> PortResult<Self> {
        let failed = |e: std::io::Error| file_error("read the master key", path, &e);
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            let why = format!("the master key {0} may be read by others; run `chmod 600 {0}`", path.display());
            return Err(PortError::new(PortErrorKind::Denied, why));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
        let mut master = Key::default();
        hex::decode_to_slice(text.trim_end(), master.as_mut_slice()).map_err(|_| {
            let why = "is not a line of 64 hexadecimal digits: restore it from a backup";
            PortError::invalid(format!("the master key {} {why}", path.display()))
        })?;
        Ok(Self { master })
    }

    fn seal_bytes(&self, plain: &[u8], context: &str) -> PortResult<Vec<u8>> {
        let aad = authenticated(context);
        let data_key = random_key()?;
        let mut sealed = HEADER.to_vec();
        sealed.extend(encrypt(&self.master, data_key.as_slice(), &aad)?);
        sealed.extend(encrypt(&data_key, plain, &aad)?);
        Ok(sealed)
    }

    fn open_bytes(&self, sealed: &[u8], context: &str) -> Option<Vec<u8>> {
        let aad = authenticated(context);
        let envelope = sealed.strip_prefix(HEADER)?;
        let (wrapped, content) = envelope.split_at_checked(NONCE_BYTES + KEY_BYTES + TAG_BYTES)?;
        let unwrapped = Zeroizing::new(decrypt(&self.master, wrapped, &aad)?);
        let data_key: Key = Zeroizing::new(unwrapped.as_slice().try_into().ok()?);
        decrypt(&data_key, content, &aad)
    }
}

#[async_trait]
impl Keys for FileKeys {
    async fn seal(&self, plain: &[u8], context: &str) -> PortResult<Vec<u8>> {
        self.seal_bytes(plain, context)
    }

    async fn open(&self, sealed: &[u8], context: &str) -> PortResult<Vec<u8>> {
        self.open_bytes(sealed, context).ok_or_else(|| {
            PortError::invalid(format!(
                "what was sealed as `{context}` does not open: it was changed, sealed as something else, or sealed under \
                 another master key; restore both from one backup"
            ))
        })
    }
}

fn authenticated(context: &str) -> Vec<u8> {
    [HEADER.as_slice(), context.as_bytes()].concat()
}

fn random_key() -> PortResult<Key> {
    let mut key = Key::default();
    fill(key.as_mut_slice())?;
    Ok(key)
}

fn fill(bytes: &mut [u8]) -> PortResult<()> {
    getrandom::fill(bytes).map_err(|e| PortError::unavailable(format!("the kernel gives no random numbers: {e}")))
}

/// A random nonce and the sealed message.
fn encrypt(key: &Key, plain: &[u8], aad: &[u8]) -> PortResult<Vec<u8>> {
    let mut nonce = [0; NONCE_BYTES];
    fill(&mut nonce)?;
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
    use rehost_control::contract;

    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        contract::keys::suite(&FileKeys::create(&folder.path().join("master.key")).unwrap()).await;
    }

    #[tokio::test]
    async fn what_was_sealed_opens_after_reopening_and_not_with_another_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let sealed = FileKeys::create(&path).unwrap().seal(b"secret", "x").await.unwrap();
        assert_eq!(FileKeys::open(&path).unwrap().open(&sealed, "x").await.unwrap(), b"secret");
        let other = FileKeys::create(&folder.path().join("other.key")).unwrap();
        assert_eq!(other.open(&sealed, "x").await.unwrap_err().kind, PortErrorKind::Invalid);
    }

    /// Made by another implementation of AES-GCM: what was sealed once must open for ever.
    const GOLDEN: &str = concat!(
        "5248534c01",
        "010101010101010101010101",
        "76e08bb494baea09d9ddd62a7c3a7e3eb8ea06e70c822d04402859797aa928a4d80910e8547d6f9d28b25cbc2aca2303",
        "020202020202020202020202",
        "fa4a7ac77de921242d43aeb79501633bd1f88f",
    );

    #[test]
    fn the_layout_is_pinned() {
        let keys = FileKeys { master: Zeroizing::new([7; KEY_BYTES]) };
        let sealed = keys.seal_bytes(b"abc", "x").unwrap();
        assert_eq!((&sealed[..5], sealed.len()), (&b"RHSL\x01"[..], 5 + 12 + 48 + 12 + 3 + 16));
        assert_eq!(keys.open_bytes(&hex::decode(GOLDEN).unwrap(), "ca/key").unwrap(), b"abc");
    }

    #[test]
    fn a_key_file_is_private_whole_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        FileKeys::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(FileKeys::create(&path).err().unwrap().kind, PortErrorKind::Conflict);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(FileKeys::open(&path).err().unwrap().message.contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for damaged in ["", "abcd\n", &"g".repeat(64)] {
            fs::write(&path, damaged).unwrap();
            assert!(FileKeys::open(&path).err().unwrap().message.contains("64 hexadecimal"));
        }
    }
}
