//! The ledger: what was made for a server, written down before it is made.

use serde::{Deserialize, Serialize};

use crate::{JobId, ServerId, Timestamp};

/// The tag that every resource of a server carries; its value is the server's id.
pub const SERVER_TAG: &str = "rehost:server";

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
}

/// The kinds of resources that cost something while they exist, in the order in which they are made of each other: they go in the
/// reverse order, because EC2 keeps a snapshot while an image refers to it and a volume while an instance uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    Volume,
    Snapshot,
    Image,
    Instance,
}

/// What a resource is for; decides when it must be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Purpose {
    /// Replication: gone after finalize or disconnect.
    Staging,
    /// A conversion server: gone when its job is over.
    Conversion,
    /// A test instance and its disks: gone when the test ends.
    Test,
    /// The cutover instance and its disks: from finalize on they are the user's.
    Cutover,
}
