//! The ports of the region, put together once per cold start.

use std::future::Future;

use rehost_control::ports::{PortResult, Ports};

/// A region as a function finds it.
pub struct Connected {
    /// The stack's name, as it stands in metrics.
    pub stack: String,
    pub ports: Ports,
}

/// The region that the function's environment describes; or why there is none.
pub(crate) struct Region(PortResult<Connected>);

impl Region {
    /// Puts the ports together (by `connect`) now, while Lambda gives a starting function more than it will have later. What is
    /// wrong with the environment is told to whoever invokes the function: one that does not even start could not say why.
    pub(crate) async fn prepare<F>(connect: impl FnOnce() -> F) -> Self
    where
        F: Future<Output = PortResult<Connected>>,
    {
        let connected = connect().await;
        if let Err(error) = &connected {
            tracing::error!(%error, "the function cannot work");
        }
        Self(connected)
    }

    /// The stack's name.
    pub(crate) fn stack(&self) -> &str {
        self.0.as_ref().map_or("unknown", |connected| connected.stack.as_str())
    }

    /// The ports.
    ///
    /// # Errors
    /// `Invalid` when the environment is not as the stack's template makes it.
    pub(crate) fn ports(&self) -> PortResult<&Ports> {
        self.0.as_ref().map(|connected| &connected.ports).map_err(Clone::clone)
    }
}
