//! The replicator: port 1500, and the volumes behind it.

pub mod config;
pub mod engine;
mod location;
mod planted;
pub mod service;
