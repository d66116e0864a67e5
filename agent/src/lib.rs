//! The agent: reads a server's disks and replicates them.
//!
//! `install` enrols the server and sets the agent up, `run` is the daemon, `status` shows what it does, `uninstall` removes
//! everything. The daemon polls the control plane ([`run`]) and drives the data engine ([`sync`]) as it is directed.

pub mod disks;
pub mod facts;
pub mod fence;
pub mod freeze;
pub mod hooks;
pub mod install;
mod planted;
pub mod run;
pub mod service;
pub mod settings;
pub mod status;
pub mod sync;
mod sys;
pub mod system;
pub mod text;
pub mod tracker;
pub mod uninstall;

/// The version that the agent reports.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod fake_control;
