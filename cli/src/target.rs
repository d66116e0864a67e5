//! Which service is meant, and with which credentials.

use anyhow::{Error, Result, anyhow};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};

use crate::args::Global;
use crate::home::Home;

/// A service with MGN's API.
pub(crate) struct Target {
    pub(crate) config: SdkConfig,
    home: Option<Home>,
}

impl Target {
    /// The local region of the home, unless the user named another service.
    pub(crate) async fn of(global: &Global) -> Result<Self> {
        let elsewhere = global.endpoint_url.is_some() || global.profile.is_some() || global.region.is_some();
        if elsewhere { Ok(Self::elsewhere(global).await) } else { Self::of_home(Home::of(global)?) }
    }

    async fn elsewhere(global: &Global) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(url) = &global.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some(profile) = &global.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &global.region {
            loader = loader.region(Region::new(region.clone()));
        }
        Self { config: loader.load().await, home: None }
    }

    fn of_home(home: Home) -> Result<Self> {
        let key = home.admin_key()?;
        let credentials = Credentials::new(key.id, key.secret, None, None, "the region's home");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(rehost_model::region::LOCAL_REGION))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(format!("http://{}", home.serving()?.address_for_clients()))
            .build();
        Ok(Self { config, home: Some(home) })
    }

    /// The service's address, as it is told to the user.
    pub(crate) fn endpoint(&self) -> &str {
        self.config.endpoint_url().unwrap_or("the AWS service")
    }

    /// The AWS region for signatures.
    pub(crate) fn region(&self) -> String {
        self.config.region().map_or_else(|| "local".to_owned(), ToString::to_string)
    }

    /// Credentials for requests that the official client does not know.
    pub(crate) async fn credentials(&self) -> Result<Credentials> {
        let provider = self.config.credentials_provider().ok_or_else(|| anyhow!("there are no credentials"))?;
        Ok(provider.provide_credentials().await?)
    }

    /// The error of a service that cannot be reached, and why.
    pub(crate) fn unreachable(&self, cause: &str) -> Error {
        let endpoint = self.endpoint();
        match &self.home {
            Some(home) => {
                let home = home.path().display();
                anyhow!(
                    "cannot reach the region {home} at {endpoint}: {cause}; start it with `rehost serve --home {home}`"
                )
            }
            None => anyhow!("cannot reach {endpoint}: {cause}; check --endpoint-url, --region and the network"),
        }
    }
}
