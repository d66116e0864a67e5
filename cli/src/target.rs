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

    /// A service that answers one request with an empty list; gives where it listens, and then what it was asked.
    async fn service() -> (String, tokio::task::JoinHandle<String>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 16 * 1024];
            let length = stream.read(&mut request).await.unwrap();
            let body = r#"{"items":[]}"#;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length";
            stream.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (format!("http://{address}"), asked)
    }

    fn target(url: &str, service: Option<SigningService>) -> Target {
        let credentials = Credentials::new("ASIAEXAMPLE", "a secret", Some("a token".to_owned()), None, "test");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(url)
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        Target { scope: scope_of(&config, service), config, home: None }
    }

    #[tokio::test]
    async fn both_clients_sign_for_the_same_scope_and_with_the_session_token() {
        for (said, scope) in [(None, "/eu-west-1/mgn/"), (Some(SigningService::ExecuteApi), "/eu-west-1/execute-api/")]
        {
            for official in [true, false] {
                let (url, asked) = service().await;
                let target = target(&url, said);
                if official {
                    crate::client::Mgn::new(target).jobs(None).await.unwrap();
                } else {
                    crate::own::snapshots(&target, &rehost_api::snapshots::ListRequest::default()).await.unwrap();
                }
                let asked = asked.await.unwrap().to_lowercase();
                let signature = asked.lines().find(|line| line.starts_with("authorization:")).unwrap();
                assert!(signature.contains(&format!("{scope}aws4_request")), "{official}: {signature}");
                assert!(signature.contains("x-amz-security-token"), "{official}: {signature}");
                assert!(asked.contains("x-amz-security-token: a token") && !asked.contains("a secret"), "{official}");
            }
        }
    }
}
