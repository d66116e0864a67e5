//! A server that never stops writing, and what its copies must hold.
//!
//! The writer (`live-writer`, inside the guest) leaves evidence that says by itself whether a copy is of one moment:
//!
//! ```text
//! root file system   records     1 2 3 … n      each fsynced before the next line is begun: no gap, every checksum right,
//! data file system   records     1 2 3 … n      and n or n-1 of them: the second file lags the first by one at most
//! root file system   latest      k              replaced by rename: whole, and among the last few of n
//! root file system   churn/…     created, renamed, unlinked without end: `e2fsck` finds nothing to complain about
//! ```

pub mod load;
pub mod offline;
pub mod phases;
pub mod record;
pub mod server;
pub mod writer;

pub use offline::{Evidence, FileSystem};
pub use phases::Phases;
pub use server::LiveServer;
