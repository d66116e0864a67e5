//! The port Compute against moto: every method from the making of a thing over its use to its end, each twice; what is asked of
//! EC2 in detail, which moto does not check; and answers that are lost.
//!
//! moto differs from EC2: everything is ready at once, client tokens and the fields of an image have no effect, a volume may
//! take a device name that is in use. The crate's unit tests cover what that hides.

#![allow(clippy::unwrap_used)] // What cannot be set up fails the test.

mod lives;
mod refusals;
mod world;
