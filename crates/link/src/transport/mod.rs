//! The connection of port 1500: TLS 1.3, mutual, AES-256-GCM, under one private CA; blocking sockets and threads.
//!
//! A connection falls apart into a [`Sender`], which any thread may hold, and a [`Receiver`], which one thread drives.
//! Both share the TLS state behind a lock that is held only for the cryptography: never while a socket blocks, so a
//! side that cannot send for a while still hears its peer. rustls' unbuffered interface saves a third of the CPU time
//! that its buffered streams take, since nothing is copied through intermediate buffers.
//!
//! Who a peer is, is decided by its certificate alone: a client checks the chain and the *role* in the certificate,
//! whatever address it dialled; a server checks the chain and reads the identity with [`crate::pki_verify`].

mod channel;
mod connection;
mod dial;
mod error;
mod keep_alive;
mod tls;

pub use channel::{Frame, Receiver, Sender};
pub use dial::{Timeouts, accept, connect};
pub use error::TransportError;
pub use keep_alive::KeepAlive;
pub use tls::{ClientTls, ServerTls, TlsIdentity};

#[cfg(test)]
mod tests;
