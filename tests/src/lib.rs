//! The harness of the end-to-end tests and of the demo: source servers as QEMU machines, the images they boot, a
//! network that can be slow or break, and the guards that leave nothing behind.
//!
//! It shares no code with the product: a fault in how `rehost` starts a machine must not hide in how the test looks at
//! it. Everything is blocking; the tests have few things to wait for, and they wait for them one at a time.
//!
//! ```no_run
//! use std::time::Duration;
//! use rehost_tests::{MachineSpec, SmallLinux, Workspace};
//!
//! let space = Workspace::new("example")?;
//! let disk = SmallLinux::default().page("hello").build(&space.path("source.img"))?;
//! let mut source = MachineSpec::source(&disk).start(&space.path("source"))?;
//! let answer = source.wait_http(80, "/", Duration::from_secs(120))?;
//! assert_eq!(answer.body.trim_ascii(), b"hello");
//! # Ok::<(), rehost_tests::Error>(())
//! ```

pub mod accelerator;
pub mod agent;
pub mod aws;
pub mod disk;
pub mod error;
pub mod forward;
pub mod guest;
pub mod history;
pub mod image;
pub mod journey;
pub mod live;
pub mod machine;
pub mod negative;
pub mod net;
pub mod paths;
pub mod permissions;
pub mod process;
pub mod qmp;
pub mod random;
pub mod region;
pub mod show;
pub mod ssh;
pub mod sweep;
pub mod template;
pub mod tmpfs;
pub mod workspace;

pub use accelerator::Accelerator;
pub use agent::LocalAgent;
pub use error::{Error, Result};
pub use forward::{Forwarder, Link};
pub use guest::Guest;
pub use image::{DebianServer, SmallLinux};
pub use machine::{Controller, Firmware, Machine, MachineSpec, Nic};
pub use net::{Answer, free_port, http_get, wait_http};
pub use process::Running;
pub use region::Region;
pub use ssh::{Key, Ssh};
pub use tmpfs::Tmpfs;
pub use workspace::Workspace;
