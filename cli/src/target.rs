//! Which service is meant, with which credentials, and for whom requests are signed.

use anyhow::{Error, Result, anyhow};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use rehost_link::sigv4::{AccessKey, SigningScope, SigningService};
use rehost_model::region::LOCAL_REGION;
use zeroize::Zeroizing;

use crate::args::Global;
use crate::home::Home;

/// A service with MGN's API.
pub(crate) struct Target {
    pub(crate) config: SdkConfig,
    /// What signatures are made for.
    pub(crate) scope: SigningScope,
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
        let config = loader.load().await;
        let scope = scope_of(&config, global.signing_service);
        // The official client must know some region; an endpoint of API Gateway names its own.
        let region = config.region().cloned().unwrap_or_else(|| Region::new(scope.region.clone()));
        Self { config: config.into_builder().region(region).build(), scope, home: None }
    }

    fn of_home(home: Home) -> Result<Self> {
        let key = home.admin_key()?;
        let credentials = Credentials::new(key.id, key.secret, None, None, "the region's home");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(LOCAL_REGION))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(format!("http://{}", home.serving()?.address_for_clients()))
            .build();
        Ok(Self { scope: scope_of(&config, None), config, home: Some(home) })
    }

    /// The service's address, as it is told to the user.
    pub(crate) fn endpoint(&self) -> &str {
        self.config.endpoint_url().unwrap_or("the AWS service")
    }

    /// The key for requests that the official client does not know.
    pub(crate) async fn access_key(&self) -> Result<AccessKey> {
        let provider = self.config.credentials_provider().ok_or_else(|| anyhow!("there are no credentials"))?;
        let found: Credentials = provider.provide_credentials().await?;
        Ok(AccessKey {
            id: found.access_key_id().to_owned(),
            secret: Zeroizing::new(found.secret_access_key().to_owned()),
            session_token: found.session_token().map(|token| Zeroizing::new(token.to_owned())),
        })
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

fn scope_of(config: &SdkConfig, service: Option<SigningService>) -> SigningScope {
    let region = config.region().map_or(LOCAL_REGION, Region::as_ref);
    SigningScope::of(host(config.endpoint_url().unwrap_or_default()), region, service)
}

/// The host in a URL.
fn host(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(url: &str, region: Option<&'static str>, service: Option<SigningService>) -> (String, &'static str) {
        let config = SdkConfig::builder().endpoint_url(url).region(region.map(Region::from_static)).build();
        let scope = scope_of(&config, service);
        (scope.region, scope.service.as_str())
    }

    #[test]
    fn an_endpoint_of_the_gateway_is_signed_for_it() {
        let gateway = "https://a1b2c3.execute-api.eu-west-1.amazonaws.com";
        assert_eq!(scope(gateway, None, None), ("eu-west-1".to_owned(), "execute-api"));
        assert_eq!(scope(&format!("{gateway}:443/"), Some("us-east-1"), None), ("eu-west-1".to_owned(), "execute-api"));
        let emulator = "http://127.0.0.1:4566";
        assert_eq!(scope(emulator, None, None), ("local".to_owned(), "mgn"));
        let said = Some(SigningService::ExecuteApi);
        assert_eq!(scope(emulator, Some("us-east-1"), said), ("us-east-1".to_owned(), "execute-api"));
    }
}
