//! The ports on one machine, and the interpreter of the state machines.
//!
//! A region's home folder holds all of it: `rehost.db` ([`store`], [`interpreter`]), `events.jsonl` ([`events`]),
//! `objects/` ([`objects`]), `keys/` ([`keys`]), and the rest is [`compute`]'s. [`region`] puts them together.

pub mod compute;
mod database;
pub mod events;
mod files;
pub mod interpreter;
pub mod keys;
pub mod objects;
pub mod region;
pub mod store;

pub use database::Database;
pub use region::{InitOptions, InitReport, LocalRegion, OpenOptions, init};
