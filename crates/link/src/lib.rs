//! TLS and HTTP between the agent, the replicator and the control plane.

pub mod control_client;
pub mod identity;
mod names;
pub mod pki_verify;
pub mod signature;
pub mod sigv4;
pub mod transport;
