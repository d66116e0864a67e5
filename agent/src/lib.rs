//! The agent: reads a server's disks and replicates them.

pub mod sync;
