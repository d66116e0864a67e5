//! Makes a replicated server boot on its target.
//!
//! The converter runs as `/init` of a conversion machine, with clones of the server's volumes attached (`machine`), or as
//! a command of a conversion server (`server`), or as one on a mounted file tree. Either way: [`Guest::survey`] looks at what is there, [`plan`] asks the rules what they would edit,
//! and [`carry_out`] does it and reports. Nothing is edited before every rule has had its say, and nothing at all if one of
//! them sees that the guest could not boot anyway.

pub mod cpio;
pub mod disk;
pub mod edit;
pub mod initramfs;
pub mod machine;
pub mod server;

mod attached;
mod convert;
mod fstab;
mod guest;
mod root;
mod rules;
mod space;
mod support;

pub use convert::{Plan, carry_out, plan};
pub use guest::Guest;
pub use root::Root;
pub use support::no_root;
