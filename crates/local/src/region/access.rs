//! The region's two access keys: made at its beginning, sealed for the service, and written down for the user.

use std::fmt;
use std::fs;
use std::path::Path;

use rehost_control::PortError;
use rehost_control::ports::{Keys, PortResult};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::unfit;
use crate::files::{file_error, write_private};

const CONTEXT: &str = "access-keys";
const ID_CHARS: usize = 16;
const SECRET_CHARS: usize = 40;

/// 32 characters, as in the ids of AWS.
const ID_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// 64 characters.
const SECRET_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// An access key; its secret never shows in debug output.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessKeyPair {
    /// Like AWS's: `AKIA` and 16 characters.
    pub id: String,
    /// 40 characters.
    pub secret: String,
}

/// The access keys of a region.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessKeys {
    /// May do everything.
    pub admin: AccessKeyPair,
    /// May enrol source servers, and nothing else.
    pub installation: AccessKeyPair,
}

impl AccessKeyPair {
    fn generate() -> PortResult<Self> {
        let id = format!("AKIA{}", drawn(ID_ALPHABET, ID_CHARS)?);
        Ok(Self { id, secret: drawn(SECRET_ALPHABET, SECRET_CHARS)? })
    }
}

impl Drop for AccessKeyPair {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for AccessKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKeyPair({})", self.id)
    }
}

/// `count` random characters. The alphabet's length divides 256, so each is as likely as another.
fn drawn(alphabet: &[u8], count: usize) -> PortResult<String> {
    let mut bytes = Zeroizing::new(vec![0; count]);
    getrandom::fill(&mut bytes)
        .map_err(|e| PortError::unavailable(format!("the kernel gives no random numbers: {e}")))?;
    let character = |byte: &u8| alphabet.get(usize::from(*byte) % alphabet.len()).copied().map(char::from);
    Ok(bytes.iter().filter_map(character).collect())
}

impl AccessKeys {
    pub(super) fn generate() -> PortResult<Self> {
        Ok(Self { admin: AccessKeyPair::generate()?, installation: AccessKeyPair::generate()? })
    }

    /// Writes the keys sealed, for the service.
    pub(super) async fn seal(&self, path: &Path, keys: &dyn Keys) -> PortResult<()> {
        let plain = Zeroizing::new(serde_json::to_vec(self).map_err(|e| unfit(path, e))?);
        let sealed = keys.seal(&plain, CONTEXT).await?;
        write_private(path, &sealed).map_err(|e| file_error("write the access keys", path, &e))
    }

    pub(super) async fn open(path: &Path, keys: &dyn Keys) -> PortResult<Self> {
        let sealed = fs::read(path).map_err(|e| file_error("read the access keys", path, &e))?;
        let plain = Zeroizing::new(keys.open(&sealed, CONTEXT).await.map_err(|e| unfit(path, e))?);
        // The parser's message could quote a secret.
        serde_json::from_slice(&plain)
            .map_err(|_| unfit(path, "it does not hold access keys: restore it from a backup"))
    }

    /// Writes the keys for the user, as the AWS CLI reads them.
    pub(super) fn write_credentials(&self, path: &Path) -> PortResult<()> {
        let profile = |name: &str, key: &AccessKeyPair| {
            format!("[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n", key.id, key.secret)
        };
        let (admin, installation) =
            (profile("default", &self.admin), profile("agent-installation", &self.installation));
        let text = Zeroizing::new(format!("{admin}\n# May only enrol source servers.\n{installation}"));
        write_private(path, text.as_bytes()).map_err(|e| file_error("write the credentials", path, &e))
    }
}
