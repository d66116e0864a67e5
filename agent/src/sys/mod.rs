//! The only module of the agent with `unsafe` code: calls of the kernel that no safe wrapper has.
//!
//! What leaves it is safe to use: descriptors are owned, memory that the kernel shares is seen through atomics, and every
//! pointer that the kernel gets outlives the call.
#![allow(unsafe_code)] // The calls below take pointers; each one says why they are valid.

pub(crate) mod batch_read;
pub(crate) mod bpf;
pub(crate) mod freeze;
pub(crate) mod loop_disk;
pub(crate) mod shared;
