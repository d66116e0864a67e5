//! Identifiers: MGN's and EC2's prefixes, each followed by 17 characters.
//!
//! They are generated once and kept; nothing is ever derived from a MAC address or a host name, which change or collide.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters after the prefix, as in MGN's and EC2's long identifiers.
const SUFFIX_CHARS: usize = 17;

/// And in those that EC2 gave to what was made before 2018 and may still exist.
const OLD_SUFFIX_CHARS: usize = 8;

/// Why a text is not the identifier it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: expected `{prefix}` and {SUFFIX_CHARS} lower-case letters or digits")]
pub struct InvalidId {
    text: String,
    what: &'static str,
    prefix: &'static str,
}

fn check(text: &str, what: &'static str, prefix: &'static str) -> Result<(), InvalidId> {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    // The only kind that this service takes from elsewhere and does not make itself.
    let old = |chars: usize| prefix == SecurityGroupId::PREFIX && chars == OLD_SUFFIX_CHARS;
    let length = |chars: usize| chars == SUFFIX_CHARS || old(chars);
    match text.strip_prefix(prefix) {
        Some(suffix) if length(suffix.len()) && suffix.bytes().all(alphanumeric) => Ok(()),
        _ => {
            let text = text.chars().take(64).collect();
            Err(InvalidId { text, what, prefix })
        }
    }
}

fn random_suffix() -> String {
    let mut bytes = [0u8; SUFFIX_CHARS];
    // The kernel's generator fails only before it is seeded at boot; an identifier that is not random must not exist.
    getrandom::fill(&mut bytes).expect("the kernel's random number generator answers");
    bytes.iter().map(|b| char::from(b"0123456789abcdef"[usize::from(b & 0x0f)])).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The prefix of every identifier of this kind.
            pub const PREFIX: &'static str = $prefix;

            /// A new random identifier.
            #[must_use]
            pub fn generate() -> Self {
                Self(format!("{}{}", $prefix, random_suffix()))
            }

            /// The whole identifier, prefix included.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text, $what, $prefix)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                check(&text, $what, $prefix)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(/// A source server.
    ServerId, "s-", "source server id");
id!(/// A launch or terminate job.
    JobId, "mgnjob-", "job id");
id!(/// A replication configuration template.
    ReplicationTemplateId, "rct-", "replication configuration template id");
id!(/// A launch configuration template.
    LaunchTemplateId, "lct-", "launch configuration template id");
id!(/// A replication server.
    ReplicatorId, "r-", "replication server id");
id!(/// A volume.
    VolumeId, "vol-", "volume id");
id!(/// A snapshot of a volume.
    SnapshotId, "snap-", "snapshot id");
id!(/// An instance: a launched copy, a conversion server, or the machine of a replication server.
    InstanceId, "i-", "instance id");
id!(/// A machine image, from which a copy is launched.
    ImageId, "ami-", "image id");
id!(/// A security group.
    SecurityGroupId, "sg-", "security group id");

impl VolumeId {
    /// The serial number under which a machine sees the volume as an NVMe device: the id without its hyphen, 20 characters,
    /// as on EC2's Nitro instances.
    #[must_use]
    pub fn nvme_serial(&self) -> String {
        self.0.replacen('-', "", 1)
    }
}

/// One run of a state machine: its name, unique within the region.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecutionId(pub String);

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one attempt at a task that waits until somebody reports how it went. Whoever holds it may report: a secret, which
/// does not show in debug output.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskToken(pub String);

impl fmt::Debug for TaskToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskToken(…)")
    }
}

/// The number of a checkpoint of a server; all its disks share the sequence. 0 is before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The checkpoint after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_are_valid_and_differ() {
        let a = ServerId::generate();
        assert_eq!(a.as_str().len(), 2 + SUFFIX_CHARS);
        assert_eq!(a.as_str().parse::<ServerId>(), Ok(a.clone()));
        assert_ne!(a, ServerId::generate());
    }

    #[test]
    fn foreign_or_hostile_texts_are_refused() {
        for text in
            ["", "s-", "s-0123456789abcdef", "vol-0123456789abcdef0", "s-0123456789abcdef/", "s-0123456789ABCDEF0"]
        {
            assert!(text.parse::<ServerId>().is_err(), "{text}");
        }
    }

    #[test]
    fn security_groups_may_be_older_than_long_ids() {
        assert!("sg-1a2b3c4d".parse::<SecurityGroupId>().is_ok());
        assert!("vol-1a2b3c4d".parse::<VolumeId>().is_err());
    }

    #[test]
    fn deserialising_checks_the_form() {
        assert!(serde_json::from_str::<VolumeId>("\"../../etc/passwd\"").is_err());
    }

    #[test]
    fn nvme_serial_has_twenty_characters() {
        let id: VolumeId = "vol-0123456789abcdef0".parse().unwrap();
        assert_eq!(id.nvme_serial(), "vol0123456789abcdef0");
    }
}
