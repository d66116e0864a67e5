//! TLS and HTTP between the agent, the replicator and the control plane.

pub mod pki_verify;
pub mod signature;
pub mod transport;
