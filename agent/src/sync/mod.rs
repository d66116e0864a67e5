//! The data engine of the agent: reads disks and keeps their staging volumes equal to them.
//!
//! ```text
//!   driver ── blocks, digest requests ──> outbox ── frames ──> replicator
//!     ^  ^                                  │                      │
//!     │  └──────── buffers go back ─────────┘                      │
//!     └── ledger <── acknowledgements, digests ── inbox <──────────┘
//! ```
//! The *driver* decides what travels: first every disk from the replicator's high-water mark on, then pass after pass
//! only what digests show to differ, until a whole pass finds nothing; that is a checkpoint. The *outbox* drops zeros,
//! packs when the link is short, keeps to the throttle and to the window, and sends. The *inbox* receives.
//!
//! The agent keeps no state: after any interruption the replicator says what it has. Nothing is written to a disk and
//! nothing is logged while a pass runs, since the agent may live on the disk that it replicates.

mod board;
mod buffer;
mod config;
mod control;
mod driver;
mod error;
mod inbox;
mod initial;
mod ledger;
mod outbox;
mod pack;
mod rescan;
mod retry;
mod session;
mod source;
mod throttle;
mod zeros;

pub use config::{DiskSource, SyncConfig};
pub use control::{Progress, SyncControl};
pub use error::SyncError;
pub use retry::SyncLoop;
pub use session::{SyncEnd, SyncSession};

#[cfg(test)]
mod tests;
