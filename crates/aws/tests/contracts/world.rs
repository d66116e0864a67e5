//! A region on an emulator, behind the proxy that can let its calls fail.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use rehost_aws::{RegionConfig, sdk};
use rehost_tests::aws::{Moto, Proxy, Routes, stack};
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) config: RegionConfig,
    pub(crate) sdk: SdkConfig,
    pub(crate) proxy: Proxy,
    /// Of the emulator itself.
    pub(crate) port: u16,
    _moto: Moto,
    _folder: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let make = move || {
            let moto = Moto::start(&path).unwrap();
            let environment = stack::make(moto.port()).unwrap();
            (moto, environment)
        };
        let (moto, environment) = tokio::task::spawn_blocking(make).await.unwrap();
        let config = RegionConfig::read(&|name| environment.get(name).cloned()).unwrap();
        let proxy = Proxy::start(Routes::to(&moto.endpoint())).unwrap();
        let sdk = at(&config, &proxy.endpoint()).await;
        Self { config, sdk, proxy, port: moto.port(), _moto: moto, _folder: folder }
    }
}

/// As functions set the SDK up, but for where it calls and how long it pauses between attempts.
pub(crate) async fn at(config: &RegionConfig, endpoint: &str) -> SdkConfig {
    let sdk = sdk::load(config).await;
    let attempts = sdk.retry_config().unwrap().max_attempts();
    let retries = RetryConfig::standard().with_max_attempts(attempts).with_initial_backoff(Duration::from_millis(5));
    let credentials = Credentials::new("test", "test", None, None, "test");
    sdk.into_builder()
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .retry_config(retries)
        .build()
}
