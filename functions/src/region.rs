//! The ports of the AWS region, put together once per cold start.

use std::sync::Arc;

use rehost_aws::{RegionConfig, S3Objects, sdk};
use rehost_control::ports::{PortResult, Ports};
use rehost_ec2::Ec2Compute;

/// The region that the function's environment describes.
pub(crate) struct Region {
    stack: String,
    ports: PortResult<Ports>,
}

impl Region {
    /// Puts the ports together now, while Lambda gives a starting function more than it will have later. What is wrong with the
    /// environment is told to whoever invokes the function: one that does not even start could not say why.
    pub(crate) async fn prepare() -> Self {
        match RegionConfig::from_environment() {
            Ok(config) => Self { ports: Ok(connect(&config).await), stack: config.stack },
            Err(error) => {
                tracing::error!(%error, "the function cannot work");
                Self { stack: "unknown".to_owned(), ports: Err(error) }
            }
        }
    }

    /// A region with these ports.
    #[cfg(test)]
    pub(crate) fn of(ports: PortResult<Ports>) -> Self {
        Self { stack: "rehost".to_owned(), ports }
    }

    /// The stack's name, as it stands in metrics.
    pub(crate) fn stack(&self) -> &str {
        &self.stack
    }

    /// The ports.
    ///
    /// # Errors
    /// `Invalid` when the environment is not as the stack's template makes it.
    pub(crate) fn ports(&self) -> PortResult<&Ports> {
        self.ports.as_ref().map_err(Clone::clone)
    }
}

async fn connect(config: &RegionConfig) -> Ports {
    let sdk = sdk::load(config).await;
    let objects = Arc::new(S3Objects::new(config, &sdk));
    let compute = Ec2Compute::new(&sdk, config.clone(), objects);
    rehost_aws::ports(config, &sdk, Arc::new(compute))
}
