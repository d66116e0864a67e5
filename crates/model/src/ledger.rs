//! The ledger: what was made for a server, written down before it is made.

use serde::{Deserialize, Serialize};

use crate::settings::StagingDiskType;
use crate::{JobId, ServerId, Timestamp};

/// The tag that every resource of a server carries; its value is the server's id.
pub const SERVER_TAG: &str = "rehost:server";

/// The tag with the job that a resource was made for.
pub const JOB_TAG: &str = "rehost:job";

/// One resource that was made, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerEntry {
    /// The client token of the creation; the key of the entry within the server.
    pub token: String,
    pub server: ServerId,
    pub kind: ResourceKind,
    /// The resource's id, once it is known.
    pub resource: Option<String>,
    pub purpose: Purpose,
    pub job: Option<JobId>,
    pub created: Timestamp,
    /// What is paid for it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billed: Option<Billed>,
}

/// So much of an item of the price table is paid for as long as a resource exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Billed {
    /// Such as `volume.gp3` or `instance.t3.small`.
    pub item: String,
    /// GiB of a volume; 1 of an instance.
    pub quantity: u64,
}

impl Billed {
    /// A volume of this type and size.
    #[must_use]
    pub fn volume(kind: StagingDiskType, size_bytes: u64) -> Self {
        let name = serde_json::to_value(kind).ok().and_then(|name| name.as_str().map(str::to_lowercase));
        Self { item: format!("volume.{}", name.unwrap_or_default()), quantity: size_bytes.div_ceil(1 << 30) }
    }

    /// An instance of this type, such as `t3.small`.
    #[must_use]
    pub fn instance(kind: &str) -> Self {
        Self { item: format!("instance.{kind}"), quantity: 1 }
    }
}

/// The kinds of resources that are made for servers, in the order in which they are made of each other: they go in the reverse
/// order, because EC2 keeps a snapshot while an image refers to it, and a volume or a security group while an instance uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    /// One that all servers of a network share; in the ledger of each.
    SecurityGroup,
    Volume,
    Snapshot,
    Image,
    Instance,
}

impl ResourceKind {
    /// Whether servers share such resources: no one of them removes it.
    #[must_use]
    pub fn is_shared(self) -> bool {
        self == Self::SecurityGroup
    }
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 4] = [Self::Staging, Self::Conversion, Self::Test, Self::Cutover];

    /// The purpose as the value of a tag.
    #[must_use]
    pub fn as_tag(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Conversion => "conversion",
            Self::Test => "test",
            Self::Cutover => "cutover",
        }
    }
}

/// What a resource is for; decides when it must be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Purpose {
    /// Replication: gone after finalize or disconnect.
    Staging,
    /// A conversion server, and what a copy is made of and not made from any more: gone when its job is over.
    Conversion,
    /// A test instance and its disks: gone when the test ends.
    Test,
    /// The cutover instance and its disks: from finalize on they are the user's.
    Cutover,
}
