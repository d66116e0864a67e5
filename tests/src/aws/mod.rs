//! AWS without AWS: two independent emulators behind a proxy, and what instances and volumes would do if they were real.

pub mod calls;
#[cfg(feature = "aws")]
pub mod cloud;
pub mod deploy;
pub mod emulators;
pub mod faults;
#[cfg(feature = "aws")]
pub mod front;
pub mod plane;
pub mod proxy;
pub mod stack;
pub mod wire;

pub use calls::Call;
#[cfg(feature = "aws")]
pub use cloud::Cloud;
pub use emulators::{MiniStack, Moto};
pub use faults::{Failure, Fault, Faults};
pub use plane::Plane;
pub use proxy::{Answer, Hook, Proxy, Routes};
pub use wire::Wire;
