//! The ports on one machine, and the interpreter of the state machines.
//!
//! A region's home folder holds all of it: `rehost.db` ([`store`], [`interpreter`]), `events.jsonl` ([`events`]),
//! `objects/` ([`objects`]), `keys/` ([`keys`]).

pub mod compute;
pub mod clock;
mod database;
pub mod events;
mod files;
pub mod interpreter;
pub mod keys;
pub mod objects;
pub mod store;

pub use database::Database;
