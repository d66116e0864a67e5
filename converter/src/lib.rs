//! Makes a replicated server boot on its target.
//!
//! The converter runs as `/init` of a conversion machine, with clones of the server's volumes attached, or as an ordinary
//! command on a mounted file tree.

pub mod cpio;
pub mod initramfs;
