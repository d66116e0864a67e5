//! What the steps of a migration do, written once against ports and run in every region.
//!
//! [`steps::run`] is what a Lambda function and the local interpreter call; [`operations`] is what the API calls;
//! [`link`] answers agents and replicators. None of them knows AWS or SQLite: see [`ports`].

pub mod authority;
mod clock;
#[cfg(feature = "contract")]
pub mod contract;
pub mod costs;
mod data_keys;
pub mod error;
mod events;
pub mod jobs;
pub mod ledger;
pub mod link;
pub mod manifest;
pub mod monitor;
mod observe;
pub mod operations;
pub mod ports;
pub mod reaper;
mod repo;
pub mod retention;
pub mod rules;
pub mod schedule;
pub mod snapshots;
pub mod steps;
#[cfg(test)]
mod testing;

pub use clock::SystemClock;
pub use error::{PortError, PortErrorKind};
pub use ports::Ports;
