//! What the programs run: the frame, with the ports on AWS.

use std::sync::Arc;

use rehost_api::Part;
use rehost_aws::{RegionConfig, S3Objects, sdk};
use rehost_control::ports::PortResult;
use rehost_ec2::Ec2Compute;

use crate::{Connected, Error, Function, run_with, serve_with};

/// Answers invocations of `function`, for ever.
///
/// # Errors
/// When Lambda's runtime API is not there.
pub async fn run(function: Function) -> Result<(), Error> {
    run_with(function, connect).await
}

/// Answers requests for one part of the API, for ever.
///
/// # Errors
/// As [`run`].
pub async fn serve(part: Part) -> Result<(), Error> {
    serve_with(part, connect).await
}

async fn connect() -> PortResult<Connected> {
    let config = RegionConfig::from_environment()?;
    let sdk = sdk::load(&config).await;
    let objects = Arc::new(S3Objects::new(&config, &sdk));
    let compute = Ec2Compute::new(&sdk, config.clone(), objects);
    let ports = rehost_aws::ports(&config, &sdk, Arc::new(compute));
    Ok(Connected { stack: config.stack, ports })
}
