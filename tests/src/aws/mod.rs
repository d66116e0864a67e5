//! AWS without AWS: two independent emulators behind a proxy, and what instances and volumes would do if they were real.

pub mod emulators;

pub use emulators::{MiniStack, Moto};
