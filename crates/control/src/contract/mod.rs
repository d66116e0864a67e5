//! The contract of each port as a test suite that every implementation runs: behind the feature `contract`.
//!
//! Each `suite` panics with what was broken. It expects an empty thing of its own and leaves it as it likes.

pub mod keys;
pub mod objects;
pub mod store;
pub mod workflows;
