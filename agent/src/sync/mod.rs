//! The data engine of the agent: reads disks and keeps their staging volumes equal to them.
//!
//! ```text
//!   driver ── blocks, digest requests ──> outbox ── frames ──> replicator
//!     ^  ^                                  │                      │
//!     │  └──────── buffers go back ─────────┘                      │
//!     └── ledger <── acknowledgements, digests ── inbox <──────────┘
//! ```
//! The *driver* decides what travels: first every disk from the replicator's high-water mark on, then what is marked as
//! changed ([`crate::tracker`]), pass after pass, and now and then a checkpoint. Where nothing tells what changed, a pass
//! compares digests of everything. The *outbox* drops zeros, packs when the link is short, keeps to the throttle and to the
//! window, and sends. The *inbox* receives.
//!
//! A session keeps no state: after any interruption the replicator says what it has and the trackers say what changed since.
//! Nothing is written to a disk and nothing is logged while a pass runs, since the agent may live on the disk that it
//! replicates.

mod batch;
mod board;
mod buffer;
mod checkpoint;
mod config;
mod control;
mod cover;
mod delta;
mod driver;
mod error;
mod freezing;
mod frozen;
mod history;
mod inbox;
mod initial;
mod ledger;
mod machine;
mod outbox;
mod pack;
mod plan;
mod rescan;
mod retry;
mod schedule;
mod session;
mod source;
mod throttle;
mod zeros;

pub use config::{DiskSource, SyncConfig};
pub use control::{Progress, SyncControl};
pub use error::SyncError;
pub use freezing::{Freeze, FreezeLimits, NotFrozen, Thawed};
pub use history::FreezeStats;
pub use machine::{Machine, OpenTrackers, TrackerNote};
pub use retry::SyncLoop;
pub use session::{SyncEnd, SyncSession};

#[cfg(test)]
mod tests;
