use std::fmt;

use rehost_protocol::Lineage;
use serde::{Deserialize, Serialize};

/// 16 random bytes that name something once and for all; hexadecimal in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct RandomName(pub(super) [u8; 16]);

impl RandomName {
    pub(super) fn generate() -> Self {
        Self(random())
    }
}

/// Random bytes of the kernel.
///
/// # Panics
/// When the kernel has none: nothing of this program, TLS included, works then.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if let Err(error) = getrandom::fill(&mut bytes) {
        panic!("the kernel gives no random numbers: {error}");
    }
    bytes
}

impl fmt::Display for RandomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl From<RandomName> for String {
    fn from(name: RandomName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for RandomName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| "a name has 32 hexadecimal digits")?;
        Ok(Self(bytes))
    }
}

impl From<RandomName> for Lineage {
    fn from(name: RandomName) -> Self {
        Self(name.0)
    }
}
