//! The replicator: port 1500, and the volumes behind it.

pub mod engine;
